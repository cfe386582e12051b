//! Kernels: one entry point of one shader, compiled when it is first needed.

use std::sync::{Arc, OnceLock};

use crate::device::gpu::Gpu;
use crate::device::gpu::shader::{Binding, Shader};
use crate::error::Result;

/// An entry point with its override constants. It belongs to the device that first compiles it; the
/// CPU has no use for it.
#[derive(Clone)]
pub(crate) struct Kernel(Arc<EntryPoint>);

struct EntryPoint {
    shader: &'static Shader,
    entry: &'static str,
    constants: Vec<(&'static str, f64)>,
    compiled: OnceLock<Compiled>,
}

pub(crate) struct Compiled {
    /// `linear::forward`
    pub(super) label: String,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    pub(super) bindings: Vec<Binding>,
}

impl Kernel {
    pub(crate) fn new(
        shader: &'static Shader,
        entry: &'static str,
        constants: &[(&'static str, f64)],
    ) -> Self {
        Self(Arc::new(EntryPoint {
            shader,
            entry,
            constants: constants.to_vec(),
            compiled: OnceLock::new(),
        }))
    }

    /// The pipeline, if it is there.
    pub(super) fn ready(&self) -> Option<&Compiled> {
        self.0.compiled.get()
    }

    /// Whether both are the same, clones of each other.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// `linear::forward`
    pub(super) fn label(&self) -> String {
        format!("{}::{}", self.0.shader.name, self.0.entry)
    }

    /// Label, source and constants, for those who read what becomes of them.
    #[cfg(any(test, feature = "cli"))]
    pub(crate) fn parts(&self) -> (String, &str, &[(&'static str, f64)]) {
        (self.label(), self.0.shader.source, &self.0.constants)
    }

    /// The pipeline, compiled now unless it is there.
    pub(crate) fn compiled(&self, gpu: &Gpu) -> Result<&Compiled> {
        if let Some(compiled) = self.ready() {
            return Ok(compiled);
        }
        let compiled = self.compile(gpu)?;
        // Another thread may have been faster; both made the same.
        Ok(self.0.compiled.get_or_init(|| compiled))
    }

    fn compile(&self, gpu: &Gpu) -> Result<Compiled> {
        let label = self.label();
        let EntryPoint {
            shader,
            entry,
            constants,
            ..
        } = &*self.0;
        // wgpu does not compare these.
        #[cfg(test)]
        assert!(
            super::flight::scratch(self) <= gpu.most_scratch() as usize,
            "{label}: more workgroup memory than the adapter has"
        );
        let parsed = gpu.parsed(shader)?;
        let bindings = parsed.bindings(entry)?;
        let pipeline = gpu.checked(&label, |device| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: None,
                module: &parsed.module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants,
                    // Scratch is written before it is read, as each header promises.
                    zero_initialize_workgroup_memory: gpu.zeroes_scratch(),
                },
                cache: gpu.kept_pipelines(),
            })
        })?;
        let layout = pipeline.get_bind_group_layout(0);
        Ok(Compiled {
            label,
            pipeline,
            layout,
            bindings,
        })
    }
}
