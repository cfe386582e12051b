//! The GPU through wgpu: adapters, limits, error scopes, device lost. This folder alone knows wgpu.

mod ahead;
mod buffer;
mod encode;
#[cfg(test)]
pub(crate) mod flight;
mod guard;
mod kept;
mod kernel;
mod matrices;
mod pass;
mod shader;
mod tape;
mod ticket;
mod trusted;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::adapter::{AdapterReport, LimitsReport};
use crate::device::cpu::Cpu;
use crate::device::tuning::Tuning;
use crate::device::{CpuShare, DeviceVariant, Matrices};
use crate::error::{Error, ErrorKind, Result, bail, caught, error};
use kept::KeptPipelines;
use shader::Parsed;

pub(crate) use buffer::{Buffer, Uploaded};
pub(crate) use kernel::Kernel;
pub(crate) use pass::GpuPass;
pub(crate) use shader::{Shader, shader};
pub(crate) use tape::Tape;
pub(crate) use ticket::Ticket;

/// False where the system shows that there is no hardware GPU: on Linux a driver of one needs a
/// device file.
pub(crate) fn may_be_hardware() -> bool {
    const NODES: [&str; 9] = [
        "dri",
        "nvidia",
        "dxg",
        "kgsl",
        "mali",
        "pvr",
        "galcore",
        "apple-gpu",
        "accel",
    ];
    if !cfg!(target_os = "linux") {
        return true;
    }
    let Ok(devices) = std::fs::read_dir("/dev") else {
        return true;
    };
    devices.flatten().any(|entry| {
        let name = entry.file_name();
        name.to_str()
            .is_none_or(|name| NODES.iter().any(|node| name.starts_with(node)))
    })
}

#[derive(Clone)]
pub(crate) struct GpuAdapter(wgpu::Adapter);

/// All adapters of the platform's native interfaces.
pub(crate) fn adapters() -> Vec<GpuAdapter> {
    let backends = wgpu::Backends::PRIMARY;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        // No validation layers: they are the driver developer's, and noisy where missing.
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    pollster::block_on(instance.enumerate_adapters(backends))
        .into_iter()
        .map(GpuAdapter)
        .collect()
}

impl GpuAdapter {
    pub(crate) fn report(&self) -> AdapterReport {
        let info = self.0.get_info();
        let limits = self.0.limits();
        let features = self.0.features();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        let named = [
            ("timestamp-query", wgpu::Features::TIMESTAMP_QUERY),
            ("shader-f16", wgpu::Features::SHADER_F16),
            ("subgroup", wgpu::Features::SUBGROUP),
        ];
        AdapterReport {
            kind,
            hardware: !matches!(kind, "software" | "other"),
            backend: format!("{:?}", info.backend),
            driver: [info.driver, info.driver_info].join(" ").trim().to_owned(),
            name: info.name,
            limits: LimitsReport {
                max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
                max_buffer_size: limits.max_buffer_size,
                max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage,
                max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
                max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
                max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
                subgroup_size: [info.subgroup_min_size, info.subgroup_max_size],
            },
            features: named
                .iter()
                .filter(|(_, f)| features.contains(*f))
                .map(|(n, _)| *n)
                .collect(),
        }
    }
}

/// An open device with its queue.
pub(crate) struct Gpu {
    /// Whose threads compile.
    host: Arc<Cpu>,
    name: String,
    device: wgpu::Device,
    queue: wgpu::Queue,
    limits: wgpu::Limits,
    clock: bool,
    /// Timestamps can be taken inside of a compute pass.
    stamps_inside: bool,
    /// A wait is short enough to be spent awake.
    hardware: bool,
    zeroes_scratch: bool,
    tuning: Tuning,
    /// Those that it was opened for.
    matrices: Option<Matrices>,
    made: AtomicUsize,
    /// Shaders by name.
    parsed: Mutex<BTreeMap<&'static str, Arc<Slot>>>,
    kept: Option<Arc<KeptPipelines>>,
    /// Bytes of poison behind every tensor: none but in tests.
    guard: usize,
    #[cfg(test)]
    guarded: guard::Guarded,
    /// The first error outside a scope, or the loss of the device.
    failure: Arc<Mutex<Option<Error>>>,
}

/// A shader once it is parsed. One thread parses it, and the others wait at the lock.
type Slot = Mutex<Option<Arc<Parsed>>>;

/// What every kernel of this crate needs; the rest depends on encoder and hub.
const LEAST_LANES: u32 = 256;
const LEAST_SCRATCH: u32 = 16_352;
const LEAST_BUFFERS: u32 = 8;

impl Gpu {
    /// `host`: whose threads compile kernels; `cache`: the folder that keeps them, and what was
    /// measured. Matrix units are asked for where `variant` names them, or where they were measured
    /// to be the faster.
    pub(crate) fn open(
        adapter: &GpuAdapter,
        host: &Arc<Cpu>,
        cache: Option<&Path>,
        variant: DeviceVariant,
    ) -> Result<Self> {
        // The adapter's own limits: a hub's table may need more than the portable 128 MiB.
        let limits = adapter.0.limits();
        let tuning = Tuning::look(cache, &adapter.report());
        let matrices = match variant {
            DeviceVariant::Matrix | DeviceVariant::Fast => matrices::of(&adapter.0),
            DeviceVariant::Auto if tuning.matrix_rows().is_some() => matrices::of(&adapter.0),
            _ => None,
        };
        let open = |matrices| {
            let both = (tuning.clone(), matrices);
            Self::open_within(adapter, host, cache, limits.clone(), both)
        };
        match variant {
            DeviceVariant::Auto => Self::with_or_without(matrices, open),
            _ => open(matrices),
        }
    }

    /// What `open` opens, with `matrices` if the driver lets it have them.
    fn with_or_without(
        matrices: Option<Matrices>,
        open: impl Fn(Option<Matrices>) -> Result<Self>,
    ) -> Result<Self> {
        if matrices.is_some() {
            // A driver may say that it has them, and then refuse.
            match caught("opening a GPU with matrix units", || open(matrices)) {
                Ok(gpu) => return Ok(gpu),
                Err(error) => log::warn!("matrix units are not taken: {error}"),
            }
        }
        open(None)
    }

    /// With the least limits that are taken.
    #[cfg(all(test, feature = "cli"))]
    pub(crate) fn open_least(adapter: &GpuAdapter, host: &Arc<Cpu>) -> Result<Self> {
        let limits = wgpu::Limits {
            max_compute_invocations_per_workgroup: LEAST_LANES,
            max_compute_workgroup_size_x: LEAST_LANES,
            max_compute_workgroup_storage_size: LEAST_SCRATCH,
            max_storage_buffers_per_shader_stage: LEAST_BUFFERS,
            ..adapter.0.limits()
        };
        let tuning = Tuning::look(None, &adapter.report());
        Self::open_within(adapter, host, None, limits, (tuning, None))
    }

    fn open_within(
        adapter: &GpuAdapter,
        host: &Arc<Cpu>,
        cache: Option<&Path>,
        available: wgpu::Limits,
        (tuning, matrices): (Tuning, Option<Matrices>),
    ) -> Result<Self> {
        let name = adapter.0.get_info().name;
        check_limits(&name, &available)?;
        let stamps =
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        let clock = adapter.0.features() & stamps;
        let keeping = adapter.0.features() & wgpu::Features::PIPELINE_CACHE;
        let (of_matrices, experimental_features) = matrices::wanted(matrices);
        let request = adapter.0.request_device(&wgpu::DeviceDescriptor {
            label: Some("hubrouter"),
            required_features: clock | keeping | of_matrices,
            experimental_features,
            required_limits: available.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..wgpu::DeviceDescriptor::default()
        });
        let (device, queue) = pollster::block_on(request).map_err(|e| {
            Error::new(
                ErrorKind::Device,
                format!("{name}: the adapter gave no device: {e}"),
            )
        })?;
        let failure = Arc::new(Mutex::new(None));
        let report = adapter.report();
        let kept = cache
            .filter(|_| !keeping.is_empty())
            .and_then(|folder| KeptPipelines::open(&device, &adapter.0, folder));
        let gpu = Self {
            host: Arc::clone(host),
            kept: kept.map(Arc::new),
            guard: 0,
            #[cfg(test)]
            guarded: guard::Guarded::default(),
            clock: !clock.is_empty() && queue.get_timestamp_period() > 0.0,
            stamps_inside: clock == stamps,
            zeroes_scratch: false,
            made: AtomicUsize::new(0),
            parsed: Mutex::default(),
            limits: available,
            tuning,
            matrices,
            hardware: report.hardware,
            name,
            device,
            queue,
            failure,
        };
        gpu.listen();
        Ok(gpu)
    }

    /// Notes errors that no scope catches, instead of wgpu's panic.
    fn listen(&self) {
        let note = {
            let (failure, name) = (Arc::clone(&self.failure), self.name.clone());
            move |kind: ErrorKind, text: String| {
                let error = Error::new(kind, format!("{name}: {text}"));
                log::error!("{error}");
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                // The loss explains whatever else fails around it.
                if kind == ErrorKind::DeviceLost {
                    *failure = Some(error);
                } else {
                    failure.get_or_insert(error);
                }
            }
        };
        let uncaught = note.clone();
        self.device.on_uncaptured_error(Arc::new(move |error| {
            let (kind, text) = described(&error);
            uncaught(kind, text);
        }));
        self.device
            .set_device_lost_callback(move |reason, message| {
                note(
                    ErrorKind::DeviceLost,
                    format!("device lost ({reason:?}): {message}"),
                );
            });
    }

    /// The error of an earlier call that had nobody to report to, if any.
    pub(crate) fn check(&self) -> Result<()> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone().map_or(Ok(()), Err)
    }

    /// `error`, or what is behind it: a lost device fails in many ways, and says so when polled.
    pub(super) fn explain(&self, error: Error) -> Error {
        // Whatever the poll returns, the callbacks have run.
        let _ = self.device.poll(wgpu::PollType::Poll);
        self.check().err().unwrap_or(error)
    }

    /// Counts something that is made: a warm route must make nothing.
    pub(super) fn count(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    /// `make`, inside error scopes: its errors come back here.
    pub(crate) fn checked<T>(
        &self,
        label: &str,
        make: impl FnOnce(&wgpu::Device) -> T,
    ) -> Result<T> {
        self.check()?;
        self.count();
        let filters = [
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::Validation,
            wgpu::ErrorFilter::OutOfMemory,
        ];
        let scopes: Vec<_> = filters
            .map(|filter| self.device.push_error_scope(filter))
            .into();
        let value = make(&self.device);
        let mut first = None;
        for scope in scopes.into_iter().rev() {
            first = first.or(pollster::block_on(scope.pop()));
        }
        self.check()?;
        match first {
            None => Ok(value),
            Some(error) => {
                let (kind, text) = described(&error);
                Err(self.explain(Error::new(kind, format!("{}: {label}: {text}", self.name))))
            }
        }
    }

    /// `shader` for this device, parsed and validated the first time.
    fn parsed(&self, shader: &Shader) -> Result<Arc<Parsed>> {
        let mut shaders = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = Arc::clone(shaders.entry(shader.name).or_default());
        drop(shaders);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(parsed) => Ok(Arc::clone(parsed)),
            None => Ok(Arc::clone(
                slot.insert(Arc::new(Parsed::new(self, shader)?)),
            )),
        }
    }

    /// Compiles `kernels` side by side on the threads of the host.
    pub(crate) fn compile(&self, kernels: &[&Kernel]) -> Result<()> {
        /// As multiply-adds: a compilation is always worth a thread.
        const WORK: usize = 1_000_000;
        let mut different: Vec<&Kernel> = Vec::with_capacity(kernels.len());
        for kernel in kernels {
            if !different.iter().any(|known| known.is(kernel)) {
                different.push(kernel);
            }
        }
        let kernels = different;
        let mut outcomes = vec![Ok(()); kernels.len()];
        let each = |index: usize, outcome: &mut [Result<()>]| {
            outcome.fill(kernels[index].compiled(self).map(drop));
        };
        match kernels.len() {
            0 => return Ok(()),
            1 => each(0, &mut outcomes),
            _ => self
                .host
                .run(|| self.host.each(&mut outcomes, 1, WORK, each)),
        }
        if let Some(kept) = &self.kept {
            kept.keep();
        }
        outcomes.into_iter().collect()
    }

    /// A storage buffer of `size` bytes; wgpu zeroes it.
    pub(crate) fn buffer(&self, label: &str, size: usize) -> Result<Buffer> {
        match self.guard() {
            0 => {
                let whole = self.storage(label, size, wgpu::BufferUsages::empty(), false)?;
                Ok(Buffer::new(whole, size.max(4)))
            }
            _ => self.buffer_with(label, &vec![0; size]),
        }
    }

    /// A storage buffer that holds `bytes`.
    pub(crate) fn buffer_with(&self, label: &str, bytes: &[u8]) -> Result<Buffer> {
        let usage = wgpu::BufferUsages::empty();
        let size = bytes.len().next_multiple_of(4).max(4) + self.guard();
        let buffer = self.storage(label, size, usage, true)?;
        self.fill(&buffer, label, |view| {
            view.slice(..bytes.len()).copy_from_slice(bytes);
            let behind = bytes.len().next_multiple_of(4).max(4)..size;
            view.slice(behind.clone())
                .copy_from_slice(&vec![guard::POISON; behind.len()]);
        })?;
        #[cfg(test)]
        self.note_guarded(&buffer, size - self.guard);
        Ok(Buffer::new(buffer, size))
    }

    /// Parts of `sizes` bytes of one storage buffer, beside each other and behind room for the
    /// stamps of a pass. `first`: what they hold.
    pub(crate) fn results(&self, sizes: &[usize], first: f32) -> Result<Vec<Buffer>> {
        const LABEL: &str = "results";
        let filled = |size: usize| vec![first; size / 4];
        if self.guard() > 0 {
            let each = sizes.iter();
            return each
                .map(|size| self.buffer_with(LABEL, bytemuck::cast_slice(&filled(*size))))
                .collect();
        }
        let mut places = Vec::with_capacity(sizes.len());
        let mut end = (tape::STAGES * 16).next_multiple_of(self.alignment());
        for size in sizes {
            // What a vector of four needs.
            let size = (*size).max(16);
            places.push((end, size));
            end += size.next_multiple_of(self.alignment());
        }
        let stamps = match self.clock {
            true => wgpu::BufferUsages::QUERY_RESOLVE,
            false => wgpu::BufferUsages::empty(),
        };
        let whole = self.storage(LABEL, end, stamps, true)?;
        self.fill(&whole, LABEL, |view| {
            view.slice(..end)
                .copy_from_slice(bytemuck::cast_slice(&filled(end)));
        })?;
        let parts = places.into_iter();
        Ok(parts
            .map(|(at, size)| Buffer::of(whole.clone(), at, size))
            .collect())
    }

    /// Fills a buffer that was mapped when it was made.
    fn fill(
        &self,
        buffer: &wgpu::Buffer,
        label: &str,
        fill: impl FnOnce(&mut wgpu::BufferViewMut),
    ) -> Result<()> {
        match buffer.get_mapped_range_mut(..) {
            Ok(mut view) => fill(&mut view),
            Err(e) => {
                return Err(self.explain(error!(
                    Device,
                    "{}: {label}: cannot fill the buffer: {e}", self.name
                )));
            }
        }
        buffer.unmap();
        Ok(())
    }

    fn storage(
        &self,
        label: &str,
        size: usize,
        more: wgpu::BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer> {
        use wgpu::BufferUsages as Use;
        let size = size.next_multiple_of(4).max(4) as u64;
        let most = self
            .limits
            .max_storage_buffer_binding_size
            .min(self.limits.max_buffer_size);
        if size > most {
            bail!(
                Limits,
                "{}: {label}: needs a buffer of {size} bytes, the adapter allows {most}",
                self.name
            );
        }
        self.checked(label, |device| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage: Use::STORAGE | Use::COPY_DST | Use::COPY_SRC | more,
                mapped_at_creation: mapped,
            })
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    pub(super) fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    pub(super) fn has_clock(&self) -> bool {
        self.clock
    }

    pub(super) fn stamps_inside(&self) -> bool {
        self.stamps_inside
    }

    pub(crate) fn is_hardware(&self) -> bool {
        self.hardware
    }

    pub(super) fn timestamp_period(&self) -> f32 {
        self.queue.get_timestamp_period()
    }

    pub(super) fn uniform_slot(&self) -> usize {
        (self.limits.min_uniform_buffer_offset_alignment as usize).max(64)
    }

    /// Bytes of which a part of a buffer begins at a multiple.
    pub(super) fn alignment(&self) -> usize {
        (self.limits.min_storage_buffer_offset_alignment as usize).max(16)
    }

    /// Bytes of poison behind every tensor: none but in tests.
    pub(super) fn guard(&self) -> usize {
        self.guard
    }

    /// What keeps compiled kernels between two processes, if anything does.
    pub(super) fn kept_pipelines(&self) -> Option<&wgpu::PipelineCache> {
        self.kept.as_ref().map(|kept| kept.cache())
    }

    /// Workgroups along one axis.
    pub(crate) fn most_groups(&self) -> u32 {
        self.limits.max_compute_workgroups_per_dimension
    }

    /// Storage buffers that a kernel may bind.
    pub(crate) fn most_buffers(&self) -> u32 {
        self.limits.max_storage_buffers_per_shader_stage
    }

    /// Most rows for which the kernel for few rows is taken.
    pub(crate) fn few_rows(&self) -> usize {
        self.tuning.few_rows()
    }

    /// What the CPU computes sooner; `None`: not measured.
    pub(crate) fn cpu_share(&self) -> Option<CpuShare> {
        self.tuning.cpu()
    }

    /// Fewest rows of a product that matrix units compute; `None`: they were not measured to be
    /// faster.
    pub(crate) fn matrix_rows(&self) -> Option<usize> {
        self.tuning.matrix_rows()
    }

    /// The matrix units that it was opened for, if it has such: weights are kept in f16 too.
    pub(crate) fn matrices(&self) -> Option<Matrices> {
        self.matrices
    }

    /// Bytes of workgroup memory that a kernel may use.
    pub(crate) fn most_scratch(&self) -> u32 {
        self.limits.max_compute_workgroup_storage_size
    }

    pub(super) fn zeroes_scratch(&self) -> bool {
        self.zeroes_scratch
    }

    /// The same device, compiling kernels with zeroed workgroup memory.
    #[cfg(test)]
    pub(crate) fn zeroing_scratch(&self) -> Self {
        Self {
            zeroes_scratch: true,
            ..self.again()
        }
    }

    /// The same device with kernels of its own.
    #[cfg(test)]
    fn again(&self) -> Self {
        Self {
            host: Arc::clone(&self.host),
            name: self.name.clone(),
            device: self.device.clone(),
            queue: self.queue.clone(),
            limits: self.limits.clone(),
            tuning: self.tuning.clone(),
            matrices: self.matrices,
            clock: self.clock,
            stamps_inside: self.stamps_inside,
            hardware: self.hardware,
            made: AtomicUsize::new(0),
            parsed: Mutex::default(),
            kept: self.kept.clone(),
            guard: self.guard,
            guarded: guard::Guarded::default(),
            zeroes_scratch: self.zeroes_scratch,
            failure: Arc::clone(&self.failure),
        }
    }

    /// Buffers, bind groups and pipelines that were made through this device.
    #[cfg(test)]
    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// Pipelines that exist, as wgpu counts them.
    #[cfg(test)]
    pub(crate) fn pipelines(&self) -> isize {
        let counters = self.device.get_internal_counters().hal;
        counters.compute_pipelines.read()
    }

    /// Those that exist, as wgpu counts them.
    #[cfg(test)]
    pub(crate) fn alive(&self) -> isize {
        let counters = self.device.get_internal_counters().hal;
        counters.buffers.read() + counters.bind_groups.read() + counters.compute_pipelines.read()
    }

    /// Bytes of the buffers that exist, and allocations, as wgpu counts them.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> (isize, isize) {
        let counters = self.device.get_internal_counters().hal;
        let (bytes, blocks) = (counters.buffer_memory, counters.memory_allocations);
        (bytes.read(), blocks.read())
    }

    /// Takes the device away, as a driver reset would.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.device.destroy();
    }
}

/// Errors: the adapter has less than every kernel needs.
fn check_limits(name: &str, available: &wgpu::Limits) -> Result<()> {
    for (limit, found, least) in [
        (
            "lanes of a workgroup",
            available.max_compute_invocations_per_workgroup,
            LEAST_LANES,
        ),
        (
            "bytes of workgroup memory",
            available.max_compute_workgroup_storage_size,
            LEAST_SCRATCH,
        ),
        (
            "storage buffers of a kernel",
            available.max_storage_buffers_per_shader_stage,
            LEAST_BUFFERS,
        ),
    ] {
        if found < least {
            bail!(
                Limits,
                "{name}: {limit}: expected at least {least}, found {found}"
            );
        }
    }
    Ok(())
}

fn described(error: &wgpu::Error) -> (ErrorKind, String) {
    match error {
        wgpu::Error::OutOfMemory { .. } => (ErrorKind::OutOfMemory, "out of memory".into()),
        wgpu::Error::Validation { description, .. } => (ErrorKind::Device, description.clone()),
        wgpu::Error::Internal { description, .. } => (ErrorKind::Device, description.clone()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::device::{Device, NewTensor, Pass};
    use crate::ops::gelu::{Forward, Gelu};
    use crate::ops::reference;
    use crate::ops::testing::{assert_close, gpu, open_gpu, run};

    #[test]
    fn errors_of_the_driver_have_their_kind() {
        let source = || Box::new(std::io::Error::other("driver")) as _;
        let kind = |error| described(&error).0;
        assert_eq!(
            kind(wgpu::Error::OutOfMemory { source: source() }),
            ErrorKind::OutOfMemory
        );
        let invalid = wgpu::Error::Validation {
            source: source(),
            description: "binding 3".into(),
        };
        let (kind, text) = described(&invalid);
        assert_eq!((kind, text.as_str()), (ErrorKind::Device, "binding 3"));
    }

    /// A driver that says no, and one that panics.
    #[test]
    fn a_driver_that_refuses_matrix_units_is_opened_without_them() {
        for side in [8, 16] {
            let asked = std::cell::RefCell::new(Vec::new());
            let open = |matrices: Option<Matrices>| {
                asked.borrow_mut().push(matrices.map(|units| units.side));
                match matrices {
                    Some(units) if units.side == 8 => Err(error!(Device, "the driver refuses")),
                    Some(_) => panic!("the driver panics"),
                    None => Ok(open_gpu()),
                }
            };
            let units = Matrices { side, lanes: 128 };
            Gpu::with_or_without(Some(units), open).unwrap();
            assert_eq!(*asked.borrow(), [Some(side), None]);
        }
    }

    /// x -> y is read, y -> x overwrites x, which was read before, x -> y overwrites y.
    #[test]
    fn a_result_is_as_it_was_at_its_place_and_waits_where_it_can() {
        let device = Device::Gpu(gpu());
        let (gelu, values) = (Gelu::new(), [-1.0, 0.5, 2.0]);
        let content = |times: usize| {
            let mut row: Vec<f64> = values.map(f64::from).to_vec();
            (0..times).for_each(|_| row = reference::gelu(&row));
            row
        };
        let mut x = device.upload("x", 3, &values).unwrap();
        let mut y = device.scratch("y", 1, 3).unwrap();
        let (reads, outputs) = run(&device, |pass| {
            pass.stage();
            let before = pass.read(&x);
            gelu.forward(pass, Forward { x: &x, y: &mut y });
            let once = pass.read(&y);
            gelu.forward(pass, Forward { x: &y, y: &mut x });
            let twice = pass.read(&x);
            pass.stage();
            gelu.forward(pass, Forward { x: &x, y: &mut y });
            [before, once, twice, pass.read(&y)]
        });
        for (times, read) in reads.into_iter().enumerate() {
            assert_close("content", outputs.f32(read), &content(times), 1e-6);
        }
        assert_eq!(outputs.counts.dispatches, 3);
        // `before` and `once` end one each, `twice` does not.
        assert_eq!(
            outputs.counts.passes,
            if gpu().stamps_inside() { 3 } else { 4 }
        );
        assert!(!gpu().has_clock() || outputs.stage(1) > 0.0);
    }

    #[test]
    fn inputs_and_results_take_one_copy_each_and_other_uploads_one_of_their_own() {
        let device = Device::Gpu(gpu());
        let gelu = Gelu::new();
        let mut input = device.input(NewTensor::numbers("input", 2, 3));
        let mut own = device.scratch("own", 1, 3).unwrap();
        let wanted = ["a", "b", "c"].map(|label| NewTensor::numbers(label, 40, 3));
        let [mut a, mut b, mut c] = device.beside(wanted).unwrap();
        let (values, others) = ([-1.0, 0.5, 2.0], [3.0, -0.25, 0.0]);
        let wide = |values: [f32; 3]| values.map(f64::from).to_vec();
        for pass in 0..2 {
            let (reads, outputs) = run(&device, |pass| {
                pass.upload_f32(&mut input, &values);
                pass.upload_f32(&mut own, &others);
                for y in [&mut a, &mut b, &mut c] {
                    y.resize(1);
                }
                pass.stage();
                gelu.forward(
                    pass,
                    Forward {
                        x: &input,
                        y: &mut a,
                    },
                );
                gelu.forward(pass, Forward { x: &own, y: &mut b });
                gelu.forward(pass, Forward { x: &a, y: &mut own });
                gelu.forward(pass, Forward { x: &own, y: &mut c });
                [&a, &b, &c, &input].map(|y| pass.read(y))
            });
            let once = reference::gelu(&wide(values));
            let want = [
                once.clone(),
                reference::gelu(&wide(others)),
                reference::gelu(&reference::gelu(&once)),
                wide(values),
            ];
            for (read, want) in reads.into_iter().zip(want) {
                assert_close("content", outputs.f32(read), &want, 1e-6);
            }
            let counts = outputs.counts;
            assert_eq!((counts.copies_in, counts.copies_out), (2, 2), "pass {pass}");
            assert!(!gpu().has_clock() || outputs.stage(0) > 0.0);
        }
    }

    #[test]
    #[should_panic(expected = "input: not uploaded in this pass")]
    fn an_input_that_a_pass_has_not_uploaded_is_a_bug() {
        let device = Device::Gpu(gpu());
        let gelu = Gelu::new();
        let mut x = device.input(NewTensor::numbers("input", 1, 3));
        let mut y = device.scratch("y", 1, 3).unwrap();
        for upload in [true, false] {
            run(&device, |pass| {
                if upload {
                    pass.upload_f32(&mut x, &[1.0; 3]);
                }
                gelu.forward(pass, Forward { x: &x, y: &mut y });
            });
        }
    }

    #[test]
    #[should_panic(expected = "y is an input and may not be written")]
    fn an_input_that_a_kernel_writes_is_a_bug() {
        let device = Device::Gpu(gpu());
        let x = device.upload("x", 3, &[1.0; 3]).unwrap();
        let mut y = device.input(NewTensor::numbers("input", 1, 3));
        run(&device, |pass| {
            pass.upload_f32(&mut y, &[1.0; 3]);
            Gelu::new().forward(pass, Forward { x: &x, y: &mut y });
        });
    }

    /// Writes, or reads, as many elements behind a tensor as `dims` says.
    static PLANTED: Shader = Shader {
        name: "planted",
        source: "
            struct Dims { read: u32, write: u32 }
            @group(0) @binding(0) var<uniform> dims: Dims;
            @group(0) @binding(1) var<storage, read> x: array<f32>;
            @group(0) @binding(2) var<storage, read_write> y: array<f32>;
            @compute @workgroup_size(1)
            fn forward() { y[2u + dims.write] = x[2u + dims.read]; }",
    };

    #[test]
    fn guards_show_a_planted_read_or_write_behind_a_tensor() {
        for (read, write) in [(0, 0), (1, 0), (1000, 0), (0, 1), (0, 1000)] {
            let guarded = Arc::new(gpu().guarding());
            let device = Device::Gpu(Arc::clone(&guarded));
            let kernel = Kernel::new(&PLANTED, "forward", &[]);
            let x = device.upload("x", 3, &[1.0; 3]).unwrap();
            let y = device.upload("y", 3, &[2.0; 3]).unwrap();
            let (result, outputs) = run(&device, |pass| {
                if let Pass::Gpu(pass) = pass {
                    let dims: [u32; 2] = [read, write];
                    pass.dispatch(&kernel, [1; 3], &dims, &[("x", &x), ("y", &y)]);
                }
                pass.read(&y)
            });
            let last = outputs.f32(result)[2];
            assert_eq!(last.is_nan(), read > 0, "{last}");
            assert_eq!(guarded.guards_are_whole(), write == 0);
        }
    }

    #[test]
    fn a_buffer_over_the_limit_is_refused_and_the_device_goes_on() {
        let gpu = gpu();
        let error = gpu.buffer("table", 1 << 40).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Limits);
        assert!(error.to_string().contains("table"), "{error}");
        let error = gpu
            .checked("broken", |device| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: 64,
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE,
                    mapped_at_creation: false,
                })
            })
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::Device);
        gpu.buffer("small", 64).unwrap();
        gpu.check().unwrap();
    }
}
