//! Kernels: one entry point of one shader, compiled at open.

use crate::device::gpu::Gpu;
use crate::device::gpu::shader::{Binding, Shader};
use crate::error::Result;

/// A compiled entry point; on the CPU nothing is compiled and this is empty.
pub(crate) struct Kernel(Option<Compiled>);

pub(crate) struct Compiled {
    /// `linear::forward`
    pub(super) label: String,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    pub(super) bindings: Vec<Binding>,
}

impl Kernel {
    pub(crate) fn native() -> Self {
        Self(None)
    }

    pub(crate) fn compile(
        gpu: &Gpu,
        shader: &Shader,
        entry: &'static str,
        constants: &[(&str, f64)],
    ) -> Result<Self> {
        let label = format!("{}::{entry}", shader.name);
        let bindings = shader.bindings(entry)?;
        let pipeline = gpu.checked(&label, |device| {
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(shader.name),
                source: wgpu::ShaderSource::Wgsl(shader.source.into()),
            });
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: None,
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants,
                    // Scratch is written before it is read, as each header promises.
                    zero_initialize_workgroup_memory: gpu.zeroes_scratch(),
                },
                cache: None,
            })
        })?;
        let layout = pipeline.get_bind_group_layout(0);
        Ok(Self(Some(Compiled {
            label,
            pipeline,
            layout,
            bindings,
        })))
    }

    /// # Panics
    /// On the CPU's empty kernel: a bug, a kernel runs on the device that compiled it.
    pub(super) fn compiled(&self) -> &Compiled {
        match &self.0 {
            Some(compiled) => compiled,
            None => panic!("a kernel of the CPU was dispatched"),
        }
    }
}
