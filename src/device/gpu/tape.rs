//! A tape: what one plan's passes need of wgpu, made on the first pass and replayed on the next.

use crate::device::gpu::Gpu;
use crate::error::Result;

/// Dispatches that a pass may have.
pub(super) const SLOTS: usize = 1024;

/// Timed stages that a pass may have.
pub(super) const STAGES: usize = 4;

pub(crate) struct Tape {
    /// Mapped for writing between passes: dims of every dispatch, then what the pass uploads.
    pub(super) staging: wgpu::Buffer,
    /// The dims, one slot a dispatch.
    pub(super) uniforms: wgpu::Buffer,
    /// Mapped for reading after a pass.
    pub(super) readback: wgpu::Buffer,
    pub(super) clock: Option<Clock>,
    pub(super) entries: Vec<Entry>,
    pub(super) slot: usize,
}

/// Timestamps of the stages.
pub(super) struct Clock {
    pub(super) queries: wgpu::QuerySet,
    pub(super) resolved: wgpu::Buffer,
    /// Stamps can be taken inside of a compute pass; else a stage is a pass of its own.
    pub(super) inside: bool,
}

/// The bind group of one dispatch and what it was made of.
pub(super) struct Entry {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) buffers: Vec<Bound>,
    pub(super) group: wgpu::BindGroup,
}

/// A buffer of a bind group.
pub(super) struct Bound {
    pub(super) buffer: wgpu::Buffer,
    /// Whether the kernel may write it.
    pub(super) written: bool,
}

impl Tape {
    pub(crate) fn new(gpu: &Gpu, uploads: usize, reads: usize) -> Result<Self> {
        use wgpu::BufferUsages as Use;
        let slot = gpu.uniform_slot();
        let stamps = if gpu.has_clock() { STAGES * 16 } else { 0 };
        let staging = gpu.checked("plan staging", |device| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("plan staging"),
                size: (slot * SLOTS + uploads.next_multiple_of(16)) as u64,
                usage: Use::MAP_WRITE | Use::COPY_SRC,
                mapped_at_creation: true,
            })
        })?;
        let plain = |label: &'static str, size: usize, usage: Use| {
            gpu.checked(label, |device| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size: size as u64,
                    usage,
                    mapped_at_creation: false,
                })
            })
        };
        let uniforms = plain("plan dims", slot * SLOTS, Use::UNIFORM | Use::COPY_DST)?;
        let readback = plain(
            "plan readback",
            (reads + stamps).next_multiple_of(16).max(16),
            Use::MAP_READ | Use::COPY_DST,
        )?;
        let clock = match gpu.has_clock() {
            false => None,
            true => Some(Clock {
                queries: gpu.checked("plan clock", |device| {
                    device.create_query_set(&wgpu::QuerySetDescriptor {
                        label: Some("plan clock"),
                        ty: wgpu::QueryType::Timestamp,
                        count: crate::num::to_u32(STAGES * 2),
                    })
                })?,
                resolved: plain(
                    "plan clock",
                    STAGES * 16,
                    Use::QUERY_RESOLVE | Use::COPY_SRC,
                )?,
                inside: gpu.stamps_inside(),
            }),
        };
        Ok(Self {
            staging,
            uniforms,
            readback,
            clock,
            entries: Vec::new(),
            slot,
        })
    }
}
