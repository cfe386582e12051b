//! A pass: the calls of one batch. The GPU records them, the CPU runs each at once.
#![expect(clippy::disallowed_types, reason = "times of a pass, for Timing")]

use std::time::Instant;

use crate::device::cpu::Cpu;
use crate::device::gpu::GpuPass;
use crate::device::{Part, Place, Tensor};

pub(crate) enum Pass<'p> {
    Gpu(GpuPass<'p>),
    Cpu(CpuPass<'p>),
}

/// Names a tensor whose content comes back with the [`Outputs`].
#[derive(Clone, Copy)]
pub(crate) struct Read(pub(super) usize);

/// What a pass brought back.
#[derive(Default)]
pub(crate) struct Outputs {
    pub(super) reads: Vec<Vec<u32>>,
    /// Microseconds of each stage, in the order in which they began.
    pub(super) stages: Vec<f64>,
    pub(crate) counts: Counts,
}

/// What a GPU was told to do in a pass; nothing on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Kernels that were dispatched.
    pub(crate) dispatches: usize,
    /// Compute passes that they were in.
    pub(crate) passes: usize,
    /// Copies of what the host uploaded.
    pub(crate) copies_in: usize,
    /// Copies of results for the host.
    pub(crate) copies_out: usize,
    /// Whether its commands were recorded while the pass before it ran.
    pub(crate) ahead: bool,
}

impl Outputs {
    /// Rows of ids.
    pub(crate) fn u32(&self, read: Read) -> &[u32] {
        &self.reads[read.0]
    }

    /// Rows of numbers.
    pub(crate) fn f32(&self, read: Read) -> &[f32] {
        bytemuck::cast_slice(&self.reads[read.0])
    }

    /// Microseconds of stage `index`; zero where the device has no clock.
    pub(crate) fn stage(&self, index: usize) -> f64 {
        self.stages.get(index).copied().unwrap_or(0.0)
    }
}

impl Pass<'_> {
    /// Begins the next timed stage.
    pub(crate) fn stage(&mut self) {
        match self {
            Pass::Gpu(gpu) => gpu.stage(),
            Pass::Cpu(cpu) => {
                cpu.close_stage();
                cpu.began = Some(Instant::now());
            }
        }
    }

    /// Sets the rows of `tensor` to `values`.
    pub(crate) fn upload(&mut self, tensor: &mut Tensor, values: &[u32]) {
        Self::fit(tensor, values.len());
        match self {
            Pass::Gpu(gpu) => gpu.upload(tensor, values),
            Pass::Cpu(_) => tensor.u32_mut().copy_from_slice(values),
        }
    }

    /// As [`Pass::upload`], for numbers.
    pub(crate) fn upload_f32(&mut self, tensor: &mut Tensor, values: &[f32]) {
        Self::fit(tensor, values.len());
        match self {
            Pass::Gpu(gpu) => gpu.upload(tensor, bytemuck::cast_slice(values)),
            Pass::Cpu(_) => tensor.f32_mut().copy_from_slice(values),
        }
    }

    /// Gives `tensor` the rows that `count` elements are.
    fn fit(tensor: &mut Tensor, count: usize) {
        let rows = count / tensor.columns().max(1);
        assert_eq!(
            rows * tensor.columns(),
            count,
            "{}: not whole rows",
            tensor.label()
        );
        tensor.resize(rows);
    }

    /// Brings the content that `tensor` has at this point back with the outputs.
    pub(crate) fn read(&mut self, tensor: &Tensor) -> Read {
        match self {
            Pass::Gpu(gpu) => gpu.read(tensor),
            Pass::Cpu(cpu) => {
                let content = if tensor.holds_ids() {
                    tensor.u32().to_vec()
                } else {
                    bytemuck::cast_slice(tensor.f32()).to_vec()
                };
                cpu.outputs.reads.push(content);
                Read(cpu.outputs.reads.len() - 1)
            }
        }
    }

    /// As [`Pass::read`], of the rows `ids` of a matrix of numbers with consecutive rows, in this order.
    pub(crate) fn read_rows(&mut self, part: Part<'_>, ids: &[u32]) -> Read {
        let Place {
            stride,
            rows,
            columns,
            ..
        } = part.place;
        assert!(
            stride == columns && ids.iter().all(|id| (*id as usize) < rows),
            "{}: a row is not one of {:?}, or they are not consecutive",
            part.tensor.label(),
            part.place
        );
        match self {
            Pass::Gpu(gpu) => gpu.read_rows(part, ids),
            Pass::Cpu(cpu) => {
                let table = part.f32();
                let mut content = Vec::with_capacity(ids.len() * columns);
                for id in ids {
                    let row = &table[*id as usize * columns..][..columns];
                    content.extend_from_slice(bytemuck::cast_slice(row));
                }
                cpu.outputs.reads.push(content);
                Read(cpu.outputs.reads.len() - 1)
            }
        }
    }

    pub(super) fn into_outputs(self) -> Outputs {
        match self {
            Pass::Gpu(_) => unreachable!("a GPU's pass is submitted"),
            Pass::Cpu(mut cpu) => {
                cpu.close_stage();
                cpu.outputs
            }
        }
    }
}

pub(crate) struct CpuPass<'p> {
    pub(crate) cpu: &'p Cpu,
    outputs: Outputs,
    began: Option<Instant>,
}

impl<'p> CpuPass<'p> {
    pub(super) fn new(cpu: &'p Cpu) -> Self {
        Self {
            cpu,
            outputs: Outputs::default(),
            began: None,
        }
    }

    fn close_stage(&mut self) {
        if let Some(began) = self.began.take() {
            self.outputs
                .stages
                .push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
}
