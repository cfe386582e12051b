//! A recorded pass as commands: one copy in, the dispatches, one copy out.

use std::ops::Range;

use crate::device::gpu::Buffer;
use crate::device::gpu::tape::{Clock, Tape};
use crate::device::pass::Counts;
use crate::num::to_u32;

#[derive(PartialEq)]
pub(super) enum Step {
    /// The beginning of this timed stage.
    Stage(usize),
    Dispatch {
        entry: usize,
        groups: [u32; 3],
    },
    /// Of staged bytes into a tensor's own buffer.
    Upload {
        from: usize,
        to: Buffer,
    },
    /// The read of this number.
    Read(usize),
}

#[derive(PartialEq)]
pub(super) struct Recorded {
    /// The bind group of each dispatch.
    pub(super) groups: Vec<wgpu::BindGroup>,
    pub(super) steps: Vec<Step>,
    /// The parts of each read.
    pub(super) reads: Vec<Vec<Buffer>>,
    pub(super) stages: usize,
    /// Staged bytes that have the dims and the inputs.
    pub(super) sent: Range<usize>,
}

/// Where a pass leaves its results in the readback buffer.
pub(super) struct Coming {
    /// Bytes of each read.
    pub(super) reads: Vec<Range<usize>>,
    /// Bytes of the stamps of all stages.
    pub(super) stamps: Range<usize>,
    pub(super) counts: Counts,
}

/// The commands of the pass.
///
/// Uploads are copied before all else, and a result is copied behind all dispatches if none of them
/// writes it any more. So a batch is one compute pass, unless a stage has to be one for its times.
pub(super) fn encode(
    device: &wgpu::Device,
    tape: &Tape,
    recorded: &Recorded,
) -> (wgpu::CommandBuffer, Coming) {
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let steps = recorded.steps.as_slice();
    let mut counts = Counts {
        dispatches: recorded.groups.len(),
        copies_in: upload(&mut encoder, tape, recorded),
        ..Counts::default()
    };
    let waits = waiting(tape, recorded);
    let mut out = CopiesOut {
        tape,
        waits: &waits,
        end: 0,
        copies: 0,
        places: vec![0..0; recorded.reads.len() + 1],
    };
    let mut index = 0;
    while index < steps.len() {
        let done = match &steps[index] {
            Step::Upload { .. } => 1,
            Step::Read(read) if waits[*read] => 1,
            Step::Read(read) => {
                out.parts(&mut encoder, *read, &recorded.reads[*read]);
                1
            }
            Step::Stage(_) | Step::Dispatch { .. } => {
                counts.passes += 1;
                compute(&mut encoder, tape, &steps[index..], &waits)
            }
        };
        index += done;
    }
    out.rest(&mut encoder, recorded);
    counts.copies_out = out.copies;
    let stamps = out.places.pop().unwrap_or_default();
    let coming = Coming {
        reads: out.places,
        stamps,
        counts,
    };
    (encoder.finish(), coming)
}

/// Copies what was staged; returns the number of copies.
fn upload(encoder: &mut wgpu::CommandEncoder, tape: &Tape, recorded: &Recorded) -> usize {
    let (from, size) = (recorded.sent.start as u64, recorded.sent.len() as u64);
    let mut copies = 0;
    if size > 0 {
        encoder.copy_buffer_to_buffer(&tape.staging, from, &tape.inputs, from, size);
        copies += 1;
    }
    for step in &recorded.steps {
        if let Step::Upload { from, to } = step {
            let (from, at, size) = (*from as u64, to.offset() as u64, to.size() as u64);
            encoder.copy_buffer_to_buffer(&tape.staging, from, to.whole(), at, size);
            copies += 1;
        }
    }
    copies
}

/// Whether each read is of what no later dispatch writes.
fn waiting(tape: &Tape, recorded: &Recorded) -> Vec<bool> {
    let mut waits = vec![true; recorded.reads.len()];
    for (index, step) in recorded.steps.iter().enumerate() {
        let Step::Read(read) = step else { continue };
        let parts = &recorded.reads[*read];
        waits[*read] = !recorded.steps[index..].iter().any(|step| match step {
            Step::Dispatch { entry, .. } => {
                let bound = &tape.entries[*entry].chosen().buffers;
                let mut written = bound.iter().filter(|bound| bound.written);
                written.any(|bound| parts.iter().any(|part| part.overlaps(&bound.buffer)))
            }
            _ => false,
        });
    }
    waits
}

/// Copies into the readback buffer.
struct CopiesOut<'t> {
    tape: &'t Tape,
    /// Whether each read is copied behind all dispatches.
    waits: &'t [bool],
    end: usize,
    copies: usize,
    /// Bytes of each read; the last are those of the stamps.
    places: Vec<Range<usize>>,
}

/// Reads of one buffer with their numbers.
type BufferReads = Vec<(usize, Buffer)>;

impl CopiesOut<'_> {
    /// Copies `from` behind what is there; returns where it begins.
    fn copy(&mut self, encoder: &mut wgpu::CommandEncoder, from: &Buffer) -> usize {
        let at = self.end;
        let (offset, size) = (from.offset() as u64, from.size() as u64);
        let to = &self.tape.readback;
        encoder.copy_buffer_to_buffer(from.whole(), offset, to, at as u64, size);
        self.end += from.size();
        self.copies += 1;
        at
    }

    /// Copies the parts of one read, one behind the other.
    fn parts(&mut self, encoder: &mut wgpu::CommandEncoder, read: usize, parts: &[Buffer]) {
        let begin = self.end;
        for part in parts {
            self.copy(encoder, part);
        }
        self.places[read] = begin..self.end;
    }

    /// Copies what waited, and the stamps: reads of one buffer in one copy, if they lie near each
    /// other, with the stamps where that buffer has room for them.
    fn rest(&mut self, encoder: &mut wgpu::CommandEncoder, recorded: &Recorded) {
        let mut groups: Vec<BufferReads> = Vec::new();
        for (read, parts) in recorded.reads.iter().enumerate() {
            match parts.as_slice() {
                _ if !self.waits[read] => {}
                [part] => join(&mut groups, read, part.clone()),
                parts => self.parts(encoder, read, parts),
            }
        }
        if let Some(stamps) = self.resolve(encoder, recorded, &groups) {
            join(&mut groups, recorded.reads.len(), stamps);
        }
        let mut left: usize = groups.iter().map(size_of).sum();
        for group in &groups {
            left -= size_of(group);
            let room = self.tape.room_for_reads.saturating_sub(self.end + left);
            match span(group).filter(|span| span.size() <= room) {
                Some(span) => {
                    let at = self.copy(encoder, &span);
                    for (read, part) in group {
                        let begin = at + part.offset() - span.offset();
                        self.places[*read] = begin..begin + part.size();
                    }
                }
                None => {
                    for (read, part) in group {
                        self.parts(encoder, *read, std::slice::from_ref(part));
                    }
                }
            }
        }
    }

    /// Writes the stamps of the stages where one of `groups` comes back with them, or else to a
    /// buffer of their own; `None` where there are none.
    fn resolve(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        recorded: &Recorded,
        groups: &[BufferReads],
    ) -> Option<Buffer> {
        let clock = self.tape.clock.as_ref().filter(|_| recorded.stages > 0)?;
        let resolves = wgpu::BufferUsages::QUERY_RESOLVE;
        let wholes = groups.iter().map(|group| group[0].1.whole());
        let mut with_room = wholes.filter(|whole| whole.usage().contains(resolves));
        let whole = with_room.next().unwrap_or(&clock.resolved);
        let count = to_u32(recorded.stages * 2);
        encoder.resolve_query_set(&clock.queries, 0..count, whole, 0);
        Some(Buffer::of(whole.clone(), 0, recorded.stages * 16))
    }
}

/// Puts a read to those of the same buffer.
fn join(groups: &mut Vec<BufferReads>, read: usize, part: Buffer) {
    let mut known = groups.iter_mut();
    match known.find(|group| group[0].1.whole() == part.whole()) {
        Some(group) => group.push((read, part)),
        None => groups.push(Vec::from([(read, part)])),
    }
}

fn size_of(group: &BufferReads) -> usize {
    group.iter().map(|(_, part)| part.size()).sum()
}

/// What covers all of `group`, unless most of it is of no use.
fn span(group: &BufferReads) -> Option<Buffer> {
    /// Bytes that are copied as fast as fewer.
    const SHORT: usize = 1 << 17;
    let first = group.iter().map(|(_, part)| part.offset()).min()?;
    let end = group.iter().map(|(_, part)| part.end()).max()?;
    let most = SHORT.max(4 * size_of(group));
    let whole = group[0].1.whole();
    (end - first <= most).then(|| Buffer::of(whole.clone(), first, end - first))
}

/// Records one compute pass from the first of `steps` on; returns how many steps it took. `waits`:
/// whether each read is copied behind all dispatches.
fn compute(
    encoder: &mut wgpu::CommandEncoder,
    tape: &Tape,
    steps: &[Step],
    waits: &[bool],
) -> usize {
    let clock = tape.clock.as_ref();
    let inside = clock.filter(|clock| clock.inside);
    let around = match (clock, steps.first()) {
        (Some(clock), Some(Step::Stage(stage))) if !clock.inside => {
            let first = to_u32(*stage) * 2;
            Some(wgpu::ComputePassTimestampWrites {
                query_set: &clock.queries,
                beginning_of_pass_write_index: Some(first),
                end_of_pass_write_index: Some(first + 1),
            })
        }
        _ => None,
    };
    let apart = clock.is_some() && inside.is_none();
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
        label: None,
        timestamp_writes: around,
    });
    let mut stamps = StageStamps { inside, open: None };
    let mut taken = 0;
    for (index, step) in steps.iter().enumerate() {
        match step {
            Step::Dispatch { entry, groups } => {
                let entry = tape.entries[*entry].chosen();
                let [x, y, z] = *groups;
                pass.set_pipeline(&entry.pipeline);
                pass.set_bind_group(0, &entry.group, &[]);
                pass.dispatch_workgroups(x, y, z);
            }
            Step::Stage(_) if apart && index > 0 => break,
            Step::Stage(stage) => stamps.next(&mut pass, Some(*stage)),
            Step::Upload { .. } => {}
            Step::Read(read) if waits[*read] => {}
            Step::Read(_) => break,
        }
        taken = index + 1;
    }
    stamps.next(&mut pass, None);
    taken
}

/// Takes the stamps of stages inside of a compute pass.
struct StageStamps<'c> {
    inside: Option<&'c Clock>,
    open: Option<usize>,
}

impl StageStamps<'_> {
    /// Ends the stage that is open, and begins `stage`.
    fn next(&mut self, pass: &mut wgpu::ComputePass<'_>, stage: Option<usize>) {
        let Some(clock) = self.inside else { return };
        if let Some(open) = self.open {
            pass.write_timestamp(&clock.queries, to_u32(open * 2 + 1));
        }
        if let Some(stage) = stage {
            pass.write_timestamp(&clock.queries, to_u32(stage * 2));
        }
        self.open = stage;
    }
}
