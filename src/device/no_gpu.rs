//! `device::gpu` of a build without the feature `gpu`: the same names, and no value of any of them.

use std::path::Path;
use std::sync::Arc;

use crate::device::CpuShare;
use crate::device::adapter::AdapterReport;
use crate::device::cpu::Cpu;
use crate::device::pass::{Outputs, Read};
use crate::device::{DeviceVariant, Matrices, Part, Tensor};
use crate::error::Result;

pub(crate) enum Gpu {}
pub(crate) enum Buffer {}
pub(crate) enum Uploaded {}
pub(crate) enum Ticket {}
pub(crate) enum Tape {}
pub(crate) type GpuPass<'p> = Recording;
pub(crate) enum Recording {}

#[derive(Clone)]
pub(crate) enum GpuAdapter {}

/// Stands for a shader: its source is left out of the build.
pub(crate) struct Shader;

macro_rules! shader {
    ($($part:literal),+) => {
        $crate::device::Shader
    };
}
pub(crate) use shader;

/// Stands for a kernel: the CPU compiles none.
#[derive(Clone)]
pub(crate) struct Kernel;

pub(crate) fn adapters() -> Vec<GpuAdapter> {
    Vec::new()
}

pub(crate) fn may_be_hardware() -> bool {
    false
}

impl GpuAdapter {
    pub(crate) fn report(&self) -> AdapterReport {
        match *self {}
    }
}

impl Kernel {
    pub(crate) fn new(_: &'static Shader, _: &'static str, _: &[(&'static str, f64)]) -> Self {
        Self
    }
}

impl Gpu {
    pub(crate) fn open(
        adapter: &GpuAdapter,
        _host: &Arc<Cpu>,
        _cache: Option<&Path>,
        _variant: DeviceVariant,
    ) -> Result<Self> {
        match *adapter {}
    }

    pub(crate) fn compile(&self, _kernels: &[&Kernel]) -> Result<()> {
        match *self {}
    }

    pub(crate) fn results(&self, _sizes: &[usize], _first: f32) -> Result<Vec<Buffer>> {
        match *self {}
    }

    pub(crate) fn is_hardware(&self) -> bool {
        match *self {}
    }

    pub(crate) fn name(&self) -> &str {
        match *self {}
    }

    pub(crate) fn buffer(&self, _label: &str, _size: usize) -> Result<Buffer> {
        match *self {}
    }

    pub(crate) fn buffer_with(&self, _label: &str, _bytes: &[u8]) -> Result<Buffer> {
        match *self {}
    }

    pub(crate) fn most_buffers(&self) -> u32 {
        match *self {}
    }

    pub(crate) fn few_rows(&self) -> usize {
        match *self {}
    }

    pub(crate) fn matrix_rows(&self) -> Option<usize> {
        match *self {}
    }

    pub(crate) fn matrices(&self) -> Option<Matrices> {
        match *self {}
    }

    pub(crate) fn cpu_share(&self) -> Option<CpuShare> {
        match *self {}
    }

    pub(crate) fn most_scratch(&self) -> u32 {
        match *self {}
    }
}

impl Tape {
    pub(crate) fn new(gpu: &Gpu, _uploads: usize, _reads: usize) -> Result<Self> {
        match *gpu {}
    }
}

impl Recording {
    pub(crate) fn begin(gpu: &Gpu, _tape: &mut Tape) -> Result<Self> {
        match *gpu {}
    }

    pub(crate) fn stage(&mut self) {
        match *self {}
    }

    pub(crate) fn upload(&mut self, _tensor: &mut Tensor, _values: &[u32]) {
        match *self {}
    }

    pub(crate) fn read(&mut self, _tensor: &Tensor) -> Read {
        match *self {}
    }

    pub(crate) fn read_rows(&mut self, _part: Part<'_>, _ids: &[u32]) -> Read {
        match *self {}
    }

    pub(crate) fn dispatch(
        &mut self,
        _kernel: &Kernel,
        _groups: [u32; 3],
        _dims: &impl bytemuck::NoUninit,
        _tensors: &[(&'static str, &Tensor)],
    ) {
        match *self {}
    }

    pub(crate) fn submit(self) -> Result<Ticket> {
        match self {}
    }
}

impl Ticket {
    pub(crate) fn wait(self, _gpu: &Gpu, _tape: &Tape) -> Result<Outputs> {
        match self {}
    }
}
