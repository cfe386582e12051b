//! Recording, bind groups, dispatch, submit, read back: all of it, once.
#![expect(clippy::disallowed_types, reason = "how long a thread waits awake")]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::device::gpu::Gpu;
use crate::device::gpu::tape::{Bound, Clock, Entry, SLOTS, STAGES, Tape};
use crate::device::pass::{Outputs, Read};
use crate::device::{Kernel, Part, Tensor};
use crate::error::{Error, Result, error};
use crate::num::to_u32;

/// How long a thread waits awake for a hardware GPU.
const AWAKE: Duration = Duration::from_micros(500);

pub(crate) struct GpuPass<'p> {
    gpu: &'p Gpu,
    tape: &'p mut Tape,
    staging: wgpu::BufferViewMut,
    uploaded: usize,
    read_bytes: usize,
    reads: Vec<(usize, usize)>,
    dispatches: usize,
    stages: usize,
    steps: Vec<Step>,
    /// Why a kernel could not be compiled; the pass is not submitted then.
    failure: Option<Error>,
}

enum Step {
    /// The beginning of this timed stage.
    Stage(usize),
    Dispatch {
        entry: usize,
        groups: [u32; 3],
    },
    Upload {
        from: u64,
        to: wgpu::Buffer,
        size: u64,
    },
    Read {
        from: wgpu::Buffer,
        at: u64,
        to: u64,
        size: u64,
    },
}

impl<'p> GpuPass<'p> {
    pub(crate) fn begin(gpu: &'p Gpu, tape: &'p mut Tape) -> Result<Self> {
        gpu.check()?;
        let staging = tape.staging.get_mapped_range_mut(..).map_err(|e| {
            gpu.explain(error!(
                Device,
                "{}: cannot write the staging buffer: {e}",
                gpu.name()
            ))
        })?;
        Ok(Self {
            gpu,
            uploaded: tape.slot * SLOTS,
            tape,
            staging,
            read_bytes: 0,
            reads: Vec::new(),
            dispatches: 0,
            stages: 0,
            steps: Vec::new(),
            failure: None,
        })
    }

    pub(crate) fn stage(&mut self) {
        assert!(self.stages < STAGES, "a pass has at most {STAGES} stages");
        self.steps.push(Step::Stage(self.stages));
        self.stages += 1;
    }

    pub(crate) fn upload(&mut self, tensor: &Tensor, values: &[u32]) {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if bytes.is_empty() {
            return;
        }
        let from = self.uploaded;
        assert!(
            from + bytes.len() <= self.staging.len(),
            "{}: no room to upload",
            tensor.label()
        );
        self.staging
            .slice(from..from + bytes.len())
            .copy_from_slice(bytes);
        self.uploaded += bytes.len();
        let to = tensor.buffer().clone();
        self.steps.push(Step::Upload {
            from: from as u64,
            to,
            size: bytes.len() as u64,
        });
    }

    pub(crate) fn read(&mut self, tensor: &Tensor) -> Read {
        let begin = self.read_bytes;
        self.copy_back(tensor, 0, tensor.len() * 4);
        self.close_read(begin)
    }

    /// The rows `ids` of `part`, whose rows are consecutive, as one content: a copy for each run of
    /// ids.
    pub(crate) fn read_rows(&mut self, part: Part<'_>, ids: &[u32]) -> Read {
        let (begin, width) = (self.read_bytes, part.place.columns);
        for run in ids.chunk_by(|a, b| a + 1 == *b) {
            let at = part.place.offset + run[0] as usize * width;
            self.copy_back(part.tensor, at * 4, run.len() * width * 4);
        }
        self.close_read(begin)
    }

    fn copy_back(&mut self, tensor: &Tensor, at: usize, size: usize) {
        if size > 0 {
            self.steps.push(Step::Read {
                from: tensor.buffer().clone(),
                at: at as u64,
                to: self.read_bytes as u64,
                size: size as u64,
            });
        }
        self.read_bytes += size;
    }

    fn close_read(&mut self, begin: usize) -> Read {
        self.reads.push((begin, self.read_bytes - begin));
        Read(self.reads.len() - 1)
    }

    /// Runs `kernel` on a grid of `groups` with `dims` as its uniform and `tensors` by name. A kernel
    /// that cannot be compiled makes the submission fail.
    ///
    /// # Panics
    /// When a name is wrong, missing or extra, or the grid is over the limit that
    /// [`Gpu::most_groups`] gives: a bug in the op.
    pub(crate) fn dispatch(
        &mut self,
        kernel: &Kernel,
        groups: [u32; 3],
        dims: &impl bytemuck::NoUninit,
        tensors: &[(&'static str, &Tensor)],
    ) {
        if groups.contains(&0) {
            return;
        }
        #[cfg(feature = "cli")]
        {
            let dims = bytemuck::bytes_of(dims);
            crate::device::noted::note(kernel, self.dispatches, groups, dims, tensors);
        }
        let kernel = match kernel.compiled(self.gpu) {
            Ok(compiled) => compiled,
            Err(error) => {
                self.failure.get_or_insert(error);
                return;
            }
        };
        let label = &kernel.label;
        assert!(
            groups.iter().all(|n| *n <= self.gpu.most_groups()),
            "{label}: grid {groups:?}"
        );
        assert!(
            self.dispatches < SLOTS,
            "{label}: more than {SLOTS} dispatches in a pass"
        );
        let slot = self.tape.slot;
        let dims = bytemuck::bytes_of(dims);
        assert!(dims.len() <= slot, "{label}: dims of {} bytes", dims.len());
        let place = self.dispatches * slot;
        self.staging
            .slice(place..place + dims.len())
            .copy_from_slice(dims);

        let entry = self.dispatches;
        let kept = self.tape.entries.get(entry).is_some_and(|entry| {
            entry.pipeline == kernel.pipeline
                && entry.buffers.len() == tensors.len()
                && entry
                    .buffers
                    .iter()
                    .zip(tensors)
                    .all(|(kept, (_, t))| kept.buffer == *t.buffer())
        });
        if !kept {
            let made = self.bind(kernel, place, tensors);
            self.tape.entries.truncate(entry);
            self.tape.entries.push(made);
        }
        self.dispatches += 1;
        self.steps.push(Step::Dispatch { entry, groups });
    }

    fn bind(
        &self,
        kernel: &super::kernel::Compiled,
        place: usize,
        tensors: &[(&str, &Tensor)],
    ) -> Entry {
        self.gpu.count();
        let label = &kernel.label;
        let mut bound = Vec::with_capacity(kernel.bindings.len());
        for binding in &kernel.bindings {
            let resource = if binding.uniform {
                wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &self.tape.uniforms,
                    offset: place as u64,
                    size: std::num::NonZeroU64::new(self.tape.slot as u64),
                })
            } else {
                match tensors.iter().find(|(name, _)| *name == binding.name) {
                    Some((_, tensor)) => tensor.buffer().as_entire_binding(),
                    None => panic!("{label}: binding {} has no tensor", binding.name),
                }
            };
            bound.push(wgpu::BindGroupEntry {
                binding: binding.number,
                resource,
            });
        }
        let bound_by = |(name, tensor): &(&str, &Tensor)| {
            let mut bindings = kernel.bindings.iter();
            match bindings.find(|binding| binding.name == *name) {
                Some(binding) => Bound {
                    buffer: tensor.buffer().clone(),
                    written: binding.written,
                },
                None => panic!("{label}: no binding is called {name}"),
            }
        };
        let buffers = tensors.iter().map(bound_by).collect();
        let group = self
            .gpu
            .device()
            .create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(label),
                layout: &kernel.layout,
                entries: &bound,
            });
        Entry {
            pipeline: kernel.pipeline.clone(),
            buffers,
            group,
        }
    }

    /// Submits once, waits, and reads back.
    pub(crate) fn submit(self) -> Result<Outputs> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let (gpu, tape, read_bytes) = (self.gpu, self.tape, self.read_bytes);
        drop(self.staging);
        tape.staging.unmap();
        let mut encoder = gpu
            .device()
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        if self.dispatches > 0 {
            let size = (self.dispatches * tape.slot) as u64;
            encoder.copy_buffer_to_buffer(&tape.staging, 0, &tape.uniforms, 0, size);
        }
        let passes = encode(&mut encoder, tape, &self.steps);
        let stamps = resolve_stamps(&mut encoder, tape, self.stages, read_bytes);
        let index = gpu.queue().submit([encoder.finish()]);
        wait(gpu, tape, index)?;
        let outputs = {
            let bytes = tape
                .readback
                .get_mapped_range(..)
                .map_err(|e| error!(DeviceLost, "{}: cannot read back: {e}", gpu.name()))?;
            let reads = self.reads.iter();
            Outputs {
                reads: reads
                    .map(|(from, size)| bytemuck::pod_collect_to_vec(&bytes[*from..from + size]))
                    .collect(),
                stages: stage_times(
                    &bytes[read_bytes..read_bytes + stamps],
                    gpu.timestamp_period(),
                ),
                dispatches: self.dispatches,
                passes,
            }
        };
        tape.readback.unmap();
        Ok(outputs)
    }
}

/// Copies the timestamps of `stages` behind `at` bytes of results; returns their bytes, 0 where the
/// device has no clock.
fn resolve_stamps(
    encoder: &mut wgpu::CommandEncoder,
    tape: &Tape,
    stages: usize,
    at: usize,
) -> usize {
    let Some(clock) = tape.clock.as_ref().filter(|_| stages > 0) else {
        return 0;
    };
    let count = to_u32(stages * 2);
    encoder.resolve_query_set(&clock.queries, 0..count, &clock.resolved, 0);
    let size = u64::from(count) * 8;
    encoder.copy_buffer_to_buffer(&clock.resolved, 0, &tape.readback, at as u64, size);
    stages * 16
}

/// Waits for submission `index`, and maps what it read back and the staging of the next pass.
fn wait(gpu: &Gpu, tape: &Tape, index: wgpu::SubmissionIndex) -> Result<()> {
    // Another thread's poll may be the one that calls back, after ours has returned.
    let (sender, mapped) = mpsc::channel();
    let tell = |sender: mpsc::Sender<_>| {
        move |result: Result<(), wgpu::BufferAsyncError>| {
            // The receiver is gone only when this pass has failed already.
            let _ = sender.send(result.is_ok());
        }
    };
    tape.staging
        .map_async(wgpu::MapMode::Write, .., tell(sender.clone()));
    tape.readback
        .map_async(wgpu::MapMode::Read, .., tell(sender));
    let mut done = Vec::with_capacity(2);
    if gpu.is_hardware() {
        // To be woken takes as long as a short prompt.
        let began = Instant::now();
        while done.len() < 2 && began.elapsed() < AWAKE {
            // An error shows in the wait below.
            let _ = gpu.device().poll(wgpu::PollType::Poll);
            done.extend(mapped.try_iter());
            std::hint::spin_loop();
        }
    }
    let name = gpu.name();
    if done.len() < 2 {
        let waited = gpu.device().poll(wgpu::PollType::Wait {
            submission_index: Some(index),
            timeout: None,
        });
        gpu.check()?;
        if let Err(e) = waited {
            let error = error!(DeviceLost, "{name}: cannot wait for the device: {e}");
            return Err(gpu.explain(error));
        }
        let missing = 2 - done.len();
        done.extend(mapped.iter().take(missing));
    }
    gpu.check()?;
    if done != [true, true] {
        let error = error!(DeviceLost, "{name}: the result could not be read back");
        return Err(gpu.explain(error));
    }
    Ok(())
}

/// Records the steps; returns the number of compute passes.
///
/// Uploads are copied before all else, and a result is copied behind all dispatches if none of them
/// writes it any more. So a batch is one compute pass, unless a stage has to be one for its times.
fn encode(encoder: &mut wgpu::CommandEncoder, tape: &Tape, steps: &[Step]) -> usize {
    for step in steps {
        if let Step::Upload { from, to, size } = step {
            encoder.copy_buffer_to_buffer(&tape.staging, *from, to, 0, *size);
        }
    }
    let (mut index, mut passes) = (0, 0);
    while index < steps.len() {
        let done = match &steps[index] {
            Step::Upload { .. } => 1,
            Step::Read { .. } if waits(tape, &steps[index..]) => 1,
            step @ Step::Read { .. } => {
                copy_read(encoder, tape, step);
                1
            }
            Step::Stage(_) | Step::Dispatch { .. } => {
                passes += 1;
                compute(encoder, tape, &steps[index..])
            }
        };
        index += done;
    }
    for (index, step) in steps.iter().enumerate() {
        if waits(tape, &steps[index..]) {
            copy_read(encoder, tape, step);
        }
    }
    passes
}

/// Whether the first of `steps` is a read of what no later one writes.
fn waits(tape: &Tape, steps: &[Step]) -> bool {
    let Some((Step::Read { from, .. }, later)) = steps.split_first() else {
        return false;
    };
    !later.iter().any(|step| match step {
        Step::Dispatch { entry, .. } => {
            let bound = &tape.entries[*entry].buffers;
            bound.iter().any(|b| b.written && b.buffer == *from)
        }
        _ => false,
    })
}

fn copy_read(encoder: &mut wgpu::CommandEncoder, tape: &Tape, step: &Step) {
    if let Step::Read { from, at, to, size } = step {
        encoder.copy_buffer_to_buffer(from, *at, &tape.readback, *to, *size);
    }
}

/// Records one compute pass from the first of `steps` on; returns how many steps it took.
fn compute(encoder: &mut wgpu::CommandEncoder, tape: &Tape, steps: &[Step]) -> usize {
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
                let entry = &tape.entries[*entry];
                let [x, y, z] = *groups;
                pass.set_pipeline(&entry.pipeline);
                pass.set_bind_group(0, &entry.group, &[]);
                pass.dispatch_workgroups(x, y, z);
            }
            Step::Stage(_) if apart && index > 0 => break,
            Step::Stage(stage) => stamps.next(&mut pass, Some(*stage)),
            Step::Upload { .. } => {}
            Step::Read { .. } if waits(tape, &steps[index..]) => {}
            Step::Read { .. } => break,
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

/// Microseconds between the two stamps of each stage.
fn stage_times(stamps: &[u8], period: f32) -> Vec<f64> {
    let stamps: Vec<u64> = bytemuck::pod_collect_to_vec(stamps);
    stamps
        .chunks_exact(2)
        .map(|pair| pair[1].saturating_sub(pair[0]) as f64 * f64::from(period) / 1000.0)
        .collect()
}
