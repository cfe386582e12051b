//! Shader sources, and what naga reads from them.

use std::borrow::Cow;

use wgpu::naga;

use crate::device::gpu::{Gpu, trusted};
use crate::error::{Result, error};

/// One `shaders/<name>.wgsl` with the shared parts appended, so that line numbers are the file's.
pub(crate) struct Shader {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
}

/// `shader!("pool")`, `shader!("softmax", "reduce")`: the op's file and shared parts of it.
macro_rules! shader {
    ($name:literal $(, $shared:literal)*) => {
        $crate::device::Shader {
            name: $name,
            source: concat!(
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")),
                $(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/shared/", $shared, ".wgsl")),)*
            ),
        }
    };
}
pub(crate) use shader;

/// A binding that an entry point uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) name: String,
    pub(crate) number: u32,
    pub(crate) uniform: bool,
    /// Whether its type allows writing.
    pub(crate) written: bool,
}

/// A shader that was read, validated and handed to the device: once, for all its entry points.
pub(crate) struct Parsed {
    name: &'static str,
    pub(super) module: wgpu::ShaderModule,
    /// Every entry point with the bindings of group 0 that it uses, by number.
    entries: Vec<(String, Vec<Binding>)>,
}

impl Parsed {
    pub(super) fn new(gpu: &Gpu, shader: &Shader) -> Result<Self> {
        let Shader { name, source } = *shader;
        let broken = |text: String| error!(Device, "{name}.wgsl: {text}");
        let module =
            naga::front::wgsl::parse_str(source).map_err(|e| broken(e.emit_to_string(source)))?;
        let info = naga::valid::Validator::new(
            naga::valid::ValidationFlags::all(),
            naga::valid::Capabilities::all(),
        )
        .validate(&module)
        .map_err(|e| broken(e.emit_to_string(source)))?;
        let entries = module.entry_points.iter().enumerate();
        let entries = entries
            .map(|(index, point)| (point.name.clone(), bindings(&module, &info, index)))
            .collect();
        let module = gpu.checked(name, |device| {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(name),
                source: wgpu::ShaderSource::Naga(Cow::Owned(module)),
            };
            match trusted::is_trusted(name) {
                true => unchecked(device, descriptor),
                false => device.create_shader_module(descriptor),
            }
        })?;
        Ok(Self {
            name,
            module,
            entries,
        })
    }

    /// The bindings that `entry` uses, by number.
    pub(super) fn bindings(&self, entry: &str) -> Result<Vec<Binding>> {
        let found = self.entries.iter().find(|(name, _)| name == entry);
        found
            .map(|(_, bindings)| bindings.clone())
            .ok_or_else(|| error!(Device, "{}.wgsl: no entry point {entry}", self.name))
    }
}

/// A module without checks of indices, of divisors and of loops at run time.
#[expect(
    unsafe_code,
    reason = "kernels that are proven in bounds run without checks"
)]
fn unchecked(
    device: &wgpu::Device,
    descriptor: wgpu::ShaderModuleDescriptor<'_>,
) -> wgpu::ShaderModule {
    let checks = wgpu::ShaderRuntimeChecks::unchecked();
    // SAFETY: called for the shaders of this crate that `trusted::SHADERS` lists: each of them with
    // the reason why its indices stay inside for any dims that its op dispatches. Their loops have
    // bounds that nothing inside changes, and they divide by constants and by sizes that are not 0.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}

/// The bindings of group 0 that entry point `index` uses, by number.
fn bindings(module: &naga::Module, info: &naga::valid::ModuleInfo, index: usize) -> Vec<Binding> {
    let uses = info.get_entry_point(index);
    let mut bindings = Vec::new();
    for (handle, variable) in module.global_variables.iter() {
        if let (Some(binding), false) = (&variable.binding, uses[handle].is_empty()) {
            bindings.push(Binding {
                name: variable.name.clone().unwrap_or_default(),
                number: binding.binding,
                uniform: variable.space == naga::AddressSpace::Uniform,
                written: matches!(
                    variable.space,
                    naga::AddressSpace::Storage { access }
                        if access.contains(naga::StorageAccess::STORE)
                ),
            });
        }
    }
    bindings.sort_by_key(|binding| binding.number);
    bindings
}
