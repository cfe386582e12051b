//! A pass as it is recorded: uploads, dispatches with their bind groups, reads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::gpu::encode::{Recorded, Step};
use crate::device::gpu::kernel::Compiled;
use crate::device::gpu::tape::{Bound, Choices, Entry, SLOTS, STAGES, Tape};
use crate::device::gpu::ticket::Ticket;
use crate::device::gpu::{Buffer, Gpu, Uploaded};
use crate::device::pass::Read;
use crate::device::{Kernel, Part, Tensor};
use crate::error::{Result, error};

pub(crate) struct GpuPass<'p> {
    gpu: &'p Gpu,
    tape: &'p mut Tape,
    staging: wgpu::BufferViewMut,
    /// No other pass of this process has it.
    number: u64,
    /// Inputs so far.
    inputs: usize,
    /// Where the uploads into tensors' own buffers begin.
    apart: usize,
    /// The parts of each read, one behind the other.
    reads: Vec<Vec<Buffer>>,
    dispatches: usize,
    /// The dispatches whose kernels are not compiled.
    waiting: Vec<Waiting>,
    stages: usize,
    steps: Vec<Step>,
}

/// A dispatch whose bind group is made before the submission.
struct Waiting {
    entry: usize,
    kernel: Kernel,
    tensors: Vec<NamedBuffer>,
}

/// A tensor by the name of a binding.
struct NamedBuffer {
    name: &'static str,
    buffer: Buffer,
    /// Kernels may only read it.
    input: bool,
}

impl<'p> GpuPass<'p> {
    pub(crate) fn begin(gpu: &'p Gpu, tape: &'p mut Tape) -> Result<Self> {
        static PASSES: AtomicU64 = AtomicU64::new(0);
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
            tape,
            number: PASSES.fetch_add(1, Ordering::Relaxed),
            inputs: 0,
            apart: staging.len(),
            staging,
            reads: Vec::new(),
            dispatches: 0,
            waiting: Vec::new(),
            stages: 0,
            steps: Vec::new(),
        })
    }

    pub(crate) fn stage(&mut self) {
        assert!(self.stages < STAGES, "a pass has at most {STAGES} stages");
        self.steps.push(Step::Stage(self.stages));
        self.stages += 1;
    }

    pub(crate) fn upload(&mut self, tensor: &mut Tensor, values: &[u32]) {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if tensor.is_input() {
            self.upload_input(tensor, bytes);
        } else if !bytes.is_empty() {
            self.apart -= bytes.len().min(self.apart);
            let (label, from) = (tensor.label(), self.apart);
            assert!(from >= self.inputs_end(), "{label}: no room to upload");
            self.write(from, bytes);
            self.steps.push(Step::Upload {
                from,
                to: tensor.buffer(self.number).part(0, bytes.len()),
            });
        }
    }

    /// Puts `bytes` where they come with the dims. The place is that of the last pass, so that
    /// bind groups stay.
    fn upload_input(&mut self, tensor: &mut Tensor, bytes: &[u8]) {
        // What a vector of four needs.
        let room = tensor.room().max(16) + self.gpu.guard();
        let first = self.inputs_end();
        let place = first..first + room.next_multiple_of(self.gpu.alignment());
        assert!(
            place.end <= self.apart,
            "{}: no room to upload",
            tensor.label()
        );
        if self.tape.places.get(self.inputs) != Some(&place) {
            self.tape.places.truncate(self.inputs);
            self.tape.places.push(place.clone());
        }
        self.inputs += 1;
        self.write(place.start, bytes);
        if self.gpu.guard() > 0 {
            let behind = place.start + bytes.len()..place.end;
            self.staging
                .slice(behind.clone())
                .copy_from_slice(&vec![super::guard::POISON; behind.len()]);
        }
        let buffer = Buffer::of(self.tape.inputs.clone(), place.start, room);
        if let Some(uploaded) = tensor.input_mut() {
            *uploaded = Some(Uploaded::new(buffer, self.number));
        }
    }

    /// Where the inputs of this pass end.
    fn inputs_end(&self) -> usize {
        match self.inputs {
            0 => self.tape.first_input(),
            count => self.tape.places[count - 1].end,
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.staging
            .slice(at..at + bytes.len())
            .copy_from_slice(bytes);
    }

    pub(crate) fn read(&mut self, tensor: &Tensor) -> Read {
        let all = tensor.buffer(self.number).part(0, tensor.len() * 4);
        self.read_back(Vec::from([all]))
    }

    /// The rows `ids` of `part`, whose rows are consecutive, as one content: a copy for each run of
    /// ids.
    pub(crate) fn read_rows(&mut self, part: Part<'_>, ids: &[u32]) -> Read {
        let width = part.place.columns;
        let buffer = part.tensor.buffer(self.number);
        let runs = ids.chunk_by(|a, b| a + 1 == *b);
        let rows = runs.map(|run| {
            let at = part.place.offset + run[0] as usize * width;
            buffer.part(at * 4, run.len() * width * 4)
        });
        self.read_back(rows.collect())
    }

    fn read_back(&mut self, mut parts: Vec<Buffer>) -> Read {
        parts.retain(|part| part.size() > 0);
        self.steps.push(Step::Read(self.reads.len()));
        self.reads.push(parts);
        Read(self.reads.len() - 1)
    }

    /// Runs `kernel` on a grid of `groups` with `dims` as its uniform and `tensors` by name. A kernel
    /// that cannot be compiled makes the submission fail.
    ///
    /// # Panics
    /// When the grid is over the limit that [`Gpu::most_groups`] gives, here or at the submission
    /// when a name is wrong, missing or extra, or an input is written: a bug in the op.
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
        assert!(
            groups.iter().all(|n| *n <= self.gpu.most_groups()),
            "{}: grid {groups:?}",
            kernel.label()
        );
        let entry = self.dispatches;
        assert!(
            entry < SLOTS,
            "{}: more than {SLOTS} dispatches in a pass",
            kernel.label()
        );
        let dims = bytemuck::bytes_of(dims);
        assert!(
            dims.len() <= self.tape.slot,
            "{}: dims of {} bytes",
            kernel.label(),
            dims.len()
        );
        self.write(self.tape.dims_at(entry), dims);
        if !self.kept(entry, kernel, tensors) {
            self.make_entry(entry, kernel, tensors);
        }
        self.dispatches += 1;
        self.steps.push(Step::Dispatch { entry, groups });
    }

    /// Whether the tape has the bind group of this dispatch; the pass takes it then.
    fn kept(&mut self, entry: usize, kernel: &Kernel, tensors: &[(&'static str, &Tensor)]) -> bool {
        if self.tape.entries.len() == entry {
            self.tape.entries.push(Choices::default());
        }
        let Some(kernel) = kernel.ready() else {
            return false;
        };
        self.tape.entries[entry].choose(|entry| {
            let mut pairs = entry.buffers.iter().zip(tensors);
            entry.pipeline == kernel.pipeline
                && entry.buffers.len() == tensors.len()
                && pairs.all(|(kept, (_, tensor))| kept.buffer == *tensor.buffer(self.number))
        })
    }

    /// Makes the bind group of this dispatch, now or behind the compilation of its kernel.
    fn make_entry(&mut self, entry: usize, kernel: &Kernel, tensors: &[(&'static str, &Tensor)]) {
        let named = tensors.iter().map(|(name, tensor)| NamedBuffer {
            name,
            buffer: tensor.buffer(self.number).clone(),
            input: tensor.is_input(),
        });
        let tensors: Vec<NamedBuffer> = named.collect();
        match kernel.ready() {
            Some(compiled) => {
                let made = self.bind(compiled, entry, tensors);
                self.tape.entries[entry].add(made);
            }
            None => self.waiting.push(Waiting {
                entry,
                kernel: kernel.clone(),
                tensors,
            }),
        }
    }

    /// Compiles the kernels that dispatches wait for, side by side, and makes their bind groups.
    fn bind_waiting(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let kernels: Vec<&Kernel> = waiting.iter().map(|waiting| &waiting.kernel).collect();
        self.gpu.compile(&kernels)?;
        for waiting in waiting {
            let Waiting {
                entry,
                kernel,
                tensors,
            } = waiting;
            let made = self.bind(kernel.compiled(self.gpu)?, entry, tensors);
            self.tape.entries[entry].add(made);
        }
        Ok(())
    }

    fn bind(&self, kernel: &Compiled, entry: usize, tensors: Vec<NamedBuffer>) -> Entry {
        self.gpu.count();
        let label = &kernel.label;
        let dims = Buffer::of(
            self.tape.inputs.clone(),
            self.tape.dims_at(entry),
            self.tape.slot,
        );
        let mut bound = Vec::with_capacity(kernel.bindings.len());
        for binding in &kernel.bindings {
            let tensor = tensors.iter().find(|tensor| tensor.name == binding.name);
            let resource = match tensor {
                _ if binding.uniform => dims.binding(),
                Some(tensor) if binding.written && tensor.input => {
                    panic!(
                        "{label}: {} is an input and may not be written",
                        tensor.name
                    )
                }
                Some(tensor) => tensor.buffer.binding(),
                None => panic!("{label}: binding {} has no tensor", binding.name),
            };
            bound.push(wgpu::BindGroupEntry {
                binding: binding.number,
                resource,
            });
        }
        let device = self.gpu.device();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(label),
            layout: &kernel.layout,
            entries: &bound,
        });
        let buffers = tensors.into_iter().map(|NamedBuffer { name, buffer, .. }| {
            let mut bindings = kernel.bindings.iter();
            match bindings.find(|binding| binding.name == name) {
                Some(binding) => Bound {
                    buffer,
                    written: binding.written,
                },
                None => panic!("{label}: no binding is called {name}"),
            }
        });
        Entry {
            pipeline: kernel.pipeline.clone(),
            buffers: buffers.collect(),
            group,
        }
    }

    /// Submits the pass; the ticket waits for it and has what it read.
    pub(crate) fn submit(mut self) -> Result<Ticket> {
        self.bind_waiting()?;
        let first = self.tape.first_input() - self.dispatches * self.tape.slot;
        let sent = first..self.inputs_end();
        let Self {
            gpu,
            tape,
            staging,
            reads,
            stages,
            steps,
            dispatches,
            ..
        } = self;
        drop(staging);
        tape.staging.unmap();
        let entries = tape.entries[..dispatches].iter();
        let recorded = Recorded {
            groups: entries.map(|entry| entry.chosen().group.clone()).collect(),
            steps,
            reads,
            stages,
            sent,
        };
        let mut form = tape.ahead.take(recorded);
        let (commands, coming) = form.commands(gpu.device(), tape);
        let index = gpu.queue().submit([commands]);
        let ticket = Ticket::new(tape, index, coming);
        form.prepare(gpu.device(), tape);
        tape.ahead.keep(form);
        Ok(ticket)
    }
}
