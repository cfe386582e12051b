//! The devices under test, and a comparison that shows that it can fail.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
#[cfg(feature = "gpu")]
use std::sync::OnceLock;

#[cfg(feature = "gpu")]
use crate::device::DeviceVariant;
use crate::device::cpu::Cpu;
#[cfg(feature = "gpu")]
use crate::device::gpu::Gpu;
use crate::device::{Device, Outputs, Pass, Plan};
use crate::error::Result;
use crate::ops::case::Case;
pub(crate) use crate::ops::reference::{noise, wide, worst};

/// The adapter that tests run on; missing, they fail.
///
/// `HUBROUTER_TEST_ADAPTER` names another one, to run the same tests on a real GPU.
#[cfg(feature = "gpu")]
pub(crate) fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    Arc::clone(GPU.get_or_init(|| Arc::new(open_gpu())))
}

/// Part of its name.
#[cfg(feature = "gpu")]
pub(crate) fn adapter_name() -> String {
    std::env::var("HUBROUTER_TEST_ADAPTER").unwrap_or_else(|_| "llvmpipe".into())
}

/// A new device, for tests that damage it.
#[cfg(feature = "gpu")]
pub(crate) fn open_gpu() -> Gpu {
    let (adapter, host) = (adapter(), Arc::new(Cpu::open(Some(2)).unwrap()));
    // With matrix units where it has such.
    Gpu::open(&adapter, &host, None, DeviceVariant::Matrix).unwrap()
}

/// A new device with 16 KiB of workgroup memory and 8 storage buffers for a kernel.
#[cfg(all(feature = "gpu", feature = "cli"))]
pub(crate) fn least_gpu() -> Gpu {
    let (adapter, host) = (adapter(), Arc::new(Cpu::open(Some(2)).unwrap()));
    Gpu::open_least(&adapter, &host).unwrap()
}

#[cfg(feature = "gpu")]
fn adapter() -> crate::device::gpu::GpuAdapter {
    let name = adapter_name();
    let adapters = crate::device::gpu::adapters();
    let found = adapters.into_iter().find(|adapter| {
        let report = adapter.report();
        format!("{} {}", report.name, report.driver)
            .to_lowercase()
            .contains(&name.to_lowercase())
    });
    found.unwrap_or_else(|| {
        panic!("GPU tests need a Vulkan adapter called {name}; ./tests/run.sh installs llvmpipe")
    })
}

/// What the two devices of each pair in [`devices`] differ in.
const PAIRS: [&str; 2] = [
    "threads",
    "workgroup memory, and what is behind each tensor",
];

/// Every op test runs on all of these.
pub(crate) fn devices() -> Vec<Device> {
    Vec::from([
        Device::Cpu(Arc::new(Cpu::open(Some(1)).unwrap())),
        Device::Cpu(Arc::new(Cpu::open(Some(2)).unwrap())),
        #[cfg(feature = "gpu")]
        Device::Gpu(gpu()),
        // Workgroup memory zeroed, and poison behind every tensor: equal results show that the
        // former is written before it is read, and the latter not read at all.
        #[cfg(feature = "gpu")]
        Device::Gpu(Arc::new(gpu().zeroing_scratch().guarding())),
    ])
}

/// Runs `body` as one pass.
pub(crate) fn run<R: Send>(
    device: &Device,
    body: impl FnOnce(&mut Pass<'_>) -> R + Send,
) -> (R, Outputs) {
    let mut plan = Plan::new(device, (), 1 << 20, 1 << 22).unwrap();
    device.run(&mut plan, |pass, ()| body(pass)).unwrap()
}

/// Asserts that nothing was written behind the tensors of `device`.
fn assert_guards(label: &str, device: &Device) {
    #[cfg(feature = "gpu")]
    if let Device::Gpu(gpu) = device {
        assert!(gpu.guards_are_whole(), "{label}: writes behind a tensor");
    }
    #[cfg(not(feature = "gpu"))]
    let _ = (label, device);
}

/// The outputs of a case on each of [`devices`]. Two threads give the bits of one, and zeroed
/// workgroup memory those of any other.
pub(crate) fn outputs<const N: usize>(
    make: impl Fn(&Device) -> Result<Case>,
) -> Vec<[Vec<f32>; N]> {
    let on = |device: &Device| {
        let checked = make(device).unwrap().check(device).unwrap();
        assert!(checked.iter().all(|output| output.intact));
        assert_guards("a case", device);
        let outputs: Vec<Vec<f32>> = checked.into_iter().map(|output| output.got).collect();
        outputs.try_into().unwrap()
    };
    let all: Vec<[Vec<f32>; N]> = devices().iter().map(on).collect();
    for (pair, what) in all.chunks_exact(2).zip(PAIRS) {
        let [one, other] = [0, 1].map(|i| pair[i].each_ref().map(|values| bits(values)));
        assert_eq!(one, other, "{what}");
    }
    all
}

/// Every case is within its bound on each of [`devices`]; two threads give the bits of one, and
/// zeroed workgroup memory those of any other.
pub(crate) fn check(make: impl Fn(&Device) -> Result<Vec<Case>>) {
    check_on(&devices(), &PAIRS, make);
}

/// As [`check`], on GPUs alone.
#[cfg(feature = "gpu")]
pub(crate) fn check_on_gpus(make: impl Fn(&Device) -> Result<Vec<Case>>) {
    check_on(&devices()[2..], &PAIRS[1..], make);
}

/// `pairs`: of `devices`, what they differ in.
fn check_on(devices: &[Device], pairs: &[&str], make: impl Fn(&Device) -> Result<Vec<Case>>) {
    let on = |device: &Device| {
        let mut seen = Vec::new();
        for case in &mut make(device).unwrap() {
            for output in case.check(device).unwrap() {
                let label = format!("{} on {}", case.label, device.name());
                assert!(output.intact, "{label}: something else is written");
                assert_close(&label, &output.got, &output.want, case.bound);
                seen.push((case.label.clone(), bits(&output.got)));
            }
            assert_guards(&case.label, device);
        }
        assert!(!seen.is_empty());
        seen
    };
    let all: Vec<_> = devices.iter().map(on).collect();
    for (pair, what) in all.chunks_exact(2).zip(pairs) {
        assert_eq!(pair[0], pair[1], "{what}");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The gradient of `loss` at `x` by central differences.
pub(crate) fn finite_differences(x: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut moved = x.to_vec();
    let mut at = |i: usize, value: f64| {
        moved[i] = value;
        let loss = loss(&moved);
        moved[i] = x[i];
        loss
    };
    (0..x.len())
        .map(|i| (at(i, x[i] + STEP) - at(i, x[i] - STEP)) / (2.0 * STEP))
        .collect()
}

/// Asserts [`worst`] below `bound`, and that one perturbed element would not pass.
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f64], bound: f64) {
    let found = worst(got, want);
    assert!(found < bound, "{what}: error {found:e}, bound {bound:e}");
    if let Some(middle) = got.len().checked_sub(1).map(|last| last / 2) {
        let mut perturbed = got.to_vec();
        perturbed[middle] += 1e-2 * (1.0 + perturbed[middle].abs());
        assert!(
            worst(&perturbed, want) > bound,
            "{what}: the comparison cannot fail"
        );
    }
}
