//! Shader sources, and what naga reads from them.

use wgpu::naga;

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
}

impl Shader {
    /// The bindings of group 0 that `entry` uses, by number.
    pub(crate) fn bindings(&self, entry: &str) -> Result<Vec<Binding>> {
        let module = naga::front::wgsl::parse_str(self.source).map_err(|e| {
            error!(
                Device,
                "{}.wgsl: {}",
                self.name,
                e.emit_to_string(self.source)
            )
        })?;
        let info = naga::valid::Validator::new(
            naga::valid::ValidationFlags::all(),
            naga::valid::Capabilities::all(),
        )
        .validate(&module)
        .map_err(|e| {
            error!(
                Device,
                "{}.wgsl: {}",
                self.name,
                e.emit_to_string(self.source)
            )
        })?;
        let index = module
            .entry_points
            .iter()
            .position(|point| point.name == entry)
            .ok_or_else(|| error!(Device, "{}.wgsl: no entry point {entry}", self.name))?;
        let uses = info.get_entry_point(index);
        let mut bindings = Vec::new();
        for (handle, variable) in module.global_variables.iter() {
            if let (Some(binding), false) = (&variable.binding, uses[handle].is_empty()) {
                bindings.push(Binding {
                    name: variable.name.clone().unwrap_or_default(),
                    number: binding.binding,
                    uniform: variable.space == naga::AddressSpace::Uniform,
                });
            }
        }
        bindings.sort_by_key(|binding| binding.number);
        Ok(bindings)
    }
}
