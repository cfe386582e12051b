//! A tape: what one plan's passes need of wgpu, made on the first pass and replayed on the next.

use std::ops::Range;

use crate::device::gpu::ahead::Ahead;
use crate::device::gpu::{Buffer, Gpu};
use crate::error::Result;

/// Dispatches that a pass may have.
pub(super) const SLOTS: usize = 1024;

/// Timed stages that a pass may have.
pub(super) const STAGES: usize = 4;

/// Tensors that a pass may upload; each begins at a multiple of [`Gpu::alignment`].
const INPUTS: usize = 64;

pub(crate) struct Tape {
    /// Mapped for writing between passes: the dims of the dispatches, the last one's first; behind
    /// them the inputs; at its end, the first one last, what else the pass uploads.
    pub(super) staging: wgpu::Buffer,
    /// Dims and inputs, where they are in `staging`: one copy brings both.
    pub(super) inputs: wgpu::Buffer,
    /// Bytes of each input of the latest passes, in the order of their uploads.
    pub(super) places: Vec<Range<usize>>,
    /// Mapped for reading after a pass.
    pub(super) readback: wgpu::Buffer,
    /// Its bytes.
    pub(super) room_for_reads: usize,
    pub(super) clock: Option<Clock>,
    /// What each dispatch in turn may be: batches of other sizes take other kernels.
    pub(super) entries: Vec<Choices>,
    pub(super) slot: usize,
    pub(super) ahead: Ahead,
}

/// Timestamps of the stages.
pub(super) struct Clock {
    pub(super) queries: wgpu::QuerySet,
    pub(super) resolved: wgpu::Buffer,
    /// Stamps can be taken inside of a compute pass; else a stage is a pass of its own.
    pub(super) inside: bool,
}

/// The bind groups that one dispatch of the passes has had, the longest unused ones left out.
#[derive(Default)]
pub(super) struct Choices {
    kept: Vec<Entry>,
    chosen: usize,
}

/// Bind groups that are kept for a dispatch.
const CHOICES: usize = 8;

impl Choices {
    /// Chooses the bind group for which `fits` is true, if it is there.
    pub(super) fn choose(&mut self, fits: impl Fn(&Entry) -> bool) -> bool {
        // The one of the last pass first.
        let last = self.kept.get(self.chosen).is_some_and(&fits);
        if !last && let Some(place) = self.kept.iter().position(fits) {
            self.chosen = place;
            return true;
        }
        last
    }

    /// Chooses `made`.
    pub(super) fn add(&mut self, made: Entry) {
        if self.kept.len() == CHOICES {
            self.kept.remove(0);
        }
        self.chosen = self.kept.len();
        self.kept.push(made);
    }

    /// The bind group of this pass.
    pub(super) fn chosen(&self) -> &Entry {
        &self.kept[self.chosen]
    }
}

/// The bind group of one dispatch and what it was made of.
pub(super) struct Entry {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) buffers: Vec<Bound>,
    pub(super) group: wgpu::BindGroup,
}

/// A buffer of a bind group.
pub(super) struct Bound {
    pub(super) buffer: Buffer,
    /// Whether the kernel may write it.
    pub(super) written: bool,
}

impl Tape {
    pub(crate) fn new(gpu: &Gpu, uploads: usize, reads: usize) -> Result<Self> {
        use wgpu::BufferUsages as Use;
        let slot = gpu.uniform_slot();
        let padding = INPUTS * (gpu.alignment() + gpu.guard());
        let sent = slot * SLOTS + uploads.next_multiple_of(16) + padding;
        let staging = gpu.checked("plan staging", |device| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("plan staging"),
                size: sent as u64,
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
        let inputs = plain(
            "plan inputs",
            sent,
            Use::UNIFORM | Use::STORAGE | Use::COPY_DST | Use::COPY_SRC,
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
        // Results beside each other begin with the stamps and have gaps between them.
        let gaps = (INPUTS + 1) * gpu.alignment();
        let room_for_reads = (reads + gaps).next_multiple_of(16) + STAGES * 16;
        let readback = plain(
            "plan readback",
            room_for_reads,
            Use::MAP_READ | Use::COPY_DST,
        )?;
        Ok(Self {
            staging,
            inputs,
            places: Vec::new(),
            readback,
            room_for_reads,
            clock,
            entries: Vec::new(),
            slot,
            ahead: Ahead::default(),
        })
    }

    /// Where the dims of dispatch `index` are, in `staging` and `inputs`.
    pub(super) fn dims_at(&self, index: usize) -> usize {
        (SLOTS - 1 - index) * self.slot
    }

    /// Where the inputs begin.
    pub(super) fn first_input(&self) -> usize {
        SLOTS * self.slot
    }
}
