//! The GPU through wgpu: adapters, limits, error scopes, device lost. This folder alone knows wgpu.

mod kernel;
mod pass;
mod shader;
mod tape;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::adapter::{AdapterReport, LimitsReport};
use crate::error::{Error, ErrorKind, Result, bail, error};
use shader::Parsed;

pub(crate) use kernel::Kernel;
pub(crate) use pass::GpuPass;
pub(crate) use shader::{Shader, shader};
pub(crate) use tape::Tape;
pub(crate) use wgpu::Buffer;

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
    made: AtomicUsize,
    /// Shaders by name.
    parsed: Mutex<BTreeMap<&'static str, Arc<Slot>>>,
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
    pub(crate) fn open(adapter: &GpuAdapter) -> Result<Self> {
        let name = adapter.0.get_info().name;
        let available = adapter.0.limits();
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
        // The adapter's own limits: a hub's table may need more than the portable 128 MiB.
        let stamps =
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        let clock = adapter.0.features() & stamps;
        let request = adapter.0.request_device(&wgpu::DeviceDescriptor {
            label: Some("hubrouter"),
            required_features: clock,
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
        let gpu = Self {
            clock: !clock.is_empty() && queue.get_timestamp_period() > 0.0,
            stamps_inside: clock == stamps,
            hardware: adapter.report().hardware,
            zeroes_scratch: false,
            made: AtomicUsize::new(0),
            parsed: Mutex::default(),
            limits: available,
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

    /// A storage buffer of `size` bytes; wgpu zeroes it.
    pub(crate) fn buffer(&self, label: &str, size: usize) -> Result<Buffer> {
        self.storage(label, size, false)
    }

    /// A storage buffer that holds `bytes`.
    pub(crate) fn buffer_with(&self, label: &str, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.storage(label, bytes.len(), true)?;
        match buffer.get_mapped_range_mut(..) {
            Ok(mut view) => view.slice(..bytes.len()).copy_from_slice(bytes),
            Err(e) => {
                return Err(self.explain(error!(
                    Device,
                    "{}: {label}: cannot fill the buffer: {e}", self.name
                )));
            }
        }
        buffer.unmap();
        Ok(buffer)
    }

    fn storage(&self, label: &str, size: usize, mapped: bool) -> Result<Buffer> {
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
                usage: Use::STORAGE | Use::COPY_DST | Use::COPY_SRC,
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

    pub(super) fn is_hardware(&self) -> bool {
        self.hardware
    }

    pub(super) fn timestamp_period(&self) -> f32 {
        self.queue.get_timestamp_period()
    }

    pub(super) fn uniform_slot(&self) -> usize {
        (self.limits.min_uniform_buffer_offset_alignment as usize).max(64)
    }

    /// Workgroups along one axis.
    pub(crate) fn most_groups(&self) -> u32 {
        self.limits.max_compute_workgroups_per_dimension
    }

    /// Storage buffers that a kernel may bind.
    pub(crate) fn most_buffers(&self) -> u32 {
        self.limits.max_storage_buffers_per_shader_stage
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
            name: self.name.clone(),
            device: self.device.clone(),
            queue: self.queue.clone(),
            limits: self.limits.clone(),
            clock: self.clock,
            stamps_inside: self.stamps_inside,
            hardware: self.hardware,
            made: AtomicUsize::new(0),
            parsed: Mutex::default(),
            zeroes_scratch: true,
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

    /// Takes the device away, as a driver reset would.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.device.destroy();
    }
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
    use crate::device::Device;
    use crate::ops::gelu::{Forward, Gelu};
    use crate::ops::reference;
    use crate::ops::testing::{assert_close, gpu, run};

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
        assert_eq!(outputs.dispatches, 3);
        // `before` and `once` end one each, `twice` does not.
        assert_eq!(outputs.passes, if gpu().stamps_inside() { 3 } else { 4 });
        assert!(!gpu().has_clock() || outputs.stage(1) > 0.0);
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
