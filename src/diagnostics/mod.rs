//! Checks of a machine for `doctor` and the benches: devices, a self-test of every op, timed
//! kernels.
#![expect(
    clippy::disallowed_types,
    reason = "speeds of kernels, seconds of a self-test"
)]

mod cases;
mod crossover;
mod kernels;
mod matrices;
mod roofline;
mod tune;

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

pub use crate::device::adapter::{AdapterReport, LimitsReport};
use crate::device::cpu::Cpu;
use crate::device::cpu::low::LowFormat;
use crate::device::gpu::{self, Gpu};
use crate::device::{CpuLevel, Device, DeviceChoice, DeviceVariant, choose};
use crate::error::Result;
use cases::CaseScale;
pub use crossover::TunedBatch;
#[doc(hidden)]
pub use kernels::{KernelBench, Peaks};
#[doc(hidden)]
pub use roofline::{GpuCard, PassShape, PredictedKernel, cards, passes_of};
pub use tune::{KeptTuning, TunedRows, TuningReport, kept, tune};

/// A report on this machine.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Version of this form; 1.
    pub schema_version: u32,
    /// The CPU.
    pub cpu: CpuReport,
    /// Every adapter of the native interfaces.
    pub adapters: Vec<AdapterReport>,
    /// The device that was requested.
    pub asked: String,
    /// The device it resolves to: `cpu`, an adapter's name, or `none`.
    pub chosen: String,
    /// The reason for this choice.
    pub reason: String,
    /// Every op on every device.
    pub self_test: Vec<OpTest>,
    /// Devices that could not be tested, and why.
    pub failures: Vec<String>,
    /// How long the self-test took.
    pub seconds: f64,
}

/// The CPU.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CpuReport {
    /// Threads that are used by default.
    pub threads: usize,
    /// The instructions that were asked for.
    pub level: CpuLevel,
    /// The instruction set of the GEMM kernels.
    pub kernels: &'static str,
    /// The kernel of products in int8; `None`: this CPU has no instruction for them.
    pub int8: Option<String>,
    /// Why it is that kernel.
    pub int8_reason: String,
    /// The kernel of products in bf16; `None`: this CPU has no instruction for them.
    pub bf16: Option<String>,
    /// Why it is that kernel.
    pub bf16_reason: String,
    /// Instruction set extensions that were found.
    pub features: Vec<&'static str>,
}

/// One op on one device against its f64 reference.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct OpTest {
    /// The op.
    pub op: &'static str,
    /// `cpu`, or an adapter's name.
    pub device: String,
    /// Largest absolute difference.
    pub max_abs_error: f64,
    /// Bound of the difference over 1 + |reference|.
    pub bound: f64,
    /// True when every element is within the bound.
    pub ok: bool,
}

/// Looks at every device and tests every op on it, within seconds; on the CPU with the kernels of
/// `level`.
///
/// Errors: the CPU lacks that level.
pub fn diagnose(choice: &DeviceChoice, level: CpuLevel) -> Result<Diagnosis> {
    let host = Arc::new(Cpu::open_at(None, level)?);
    let adapters = gpu::adapters();
    let reports: Vec<AdapterReport> = adapters.iter().map(gpu::GpuAdapter::report).collect();
    let (chosen, reason) = match choose(choice, || adapters.clone()) {
        Ok((Some(adapter), reason)) => (adapter.report().name, reason),
        Ok((None, reason)) => ("cpu".into(), reason),
        Err(error) => ("none".into(), error.to_string()),
    };
    let began = Instant::now();
    let (mut self_test, mut failures) = (Vec::new(), Vec::new());
    let mut test = |device: Result<Device>, name: &str| match device
        .and_then(|device| self_test_on(&device))
    {
        Ok(tests) => self_test.extend(tests),
        Err(error) => failures.push(format!("{name}: {error}")),
    };
    test(Ok(Device::Cpu(Arc::clone(&host))), "cpu");
    for (adapter, report) in adapters.iter().zip(&reports) {
        test(
            Gpu::open(adapter, &host, None, DeviceVariant::Auto)
                .map(|gpu| Device::Gpu(Arc::new(gpu))),
            &report.name,
        );
    }
    let (int8, int8_reason) = host.low_kernel(LowFormat::Int8);
    let (bf16, bf16_reason) = host.low_kernel(LowFormat::Bf16);
    Ok(Diagnosis {
        schema_version: 1,
        cpu: CpuReport {
            threads: host.threads(),
            level: host.asked(),
            kernels: host.level().name(),
            int8: int8.map(|kernel| kernel.to_string()),
            int8_reason,
            bf16: bf16.map(|kernel| kernel.to_string()),
            bf16_reason,
            features: cpu_features(),
        },
        adapters: reports,
        asked: choice.clone().into(),
        chosen,
        reason,
        self_test,
        failures,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// SIMD features of this machine that the kernels use or could use.
fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! look {
            ($($feature:tt)*) => {
                $(if std::arch::is_x86_feature_detected!($feature) { found.push($feature); })*
            };
        }
        look!("sse4.2" "avx" "avx2" "fma" "f16c" "avxvnni" "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512bf16" "avx512fp16");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! look {
            ($($feature:tt)*) => {
                $(if std::arch::is_aarch64_feature_detected!($feature) { found.push($feature); })*
            };
        }
        look!("neon" "fp16" "dotprod" "i8mm" "bf16" "sve");
    }
    found
}

fn self_test_on(device: &Device) -> Result<Vec<OpTest>> {
    let mut tests = Vec::new();
    for case in &mut cases::all(device, CaseScale::UGLY)? {
        for output in case.check(device)? {
            let pairs = output.got.iter().zip(&output.want);
            let errors = pairs.map(|(got, want)| (f64::from(*got) - want).abs());
            tests.push(OpTest {
                op: case.op,
                device: device.name().to_owned(),
                max_abs_error: errors.fold(0.0, f64::max),
                bound: case.bound,
                ok: output.error() < case.bound,
            });
        }
    }
    Ok(tests)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::testing::devices;

    #[test]
    fn every_op_passes_on_every_device() {
        let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders")).unwrap();
        let shaders: Vec<String> = sources
            .filter_map(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .into_string()
                    .unwrap()
                    .strip_suffix(".wgsl")
                    .map(str::to_owned)
            })
            .collect();
        for device in devices() {
            let tests = self_test_on(&device).unwrap();
            for test in &tests {
                assert!(test.ok, "{test:?}");
                assert!(test.max_abs_error < 1e-2, "{test:?}");
            }
            // On the CPU `matmul` is in the place of `low_rank`. Cases of `contrastive` with all
            // models take `contrastive_all` on a GPU. `doctor --tune` tests `linear_matrix`, since
            // nothing takes it before.
            let elsewhere = |shader: &str| match shader {
                "low_rank" => device.name() == "cpu",
                "contrastive_all" | "linear_matrix" => true,
                _ => false,
            };
            for shader in shaders.iter().filter(|shader| !elsewhere(shader)) {
                assert!(
                    tests.iter().any(|test| test.op == shader),
                    "{shader} is not in the self-test"
                );
            }
        }
    }

    /// What an adapter with 16 KiB of workgroup memory, 8 storage buffers and 256 lanes allows.
    #[cfg(feature = "gpu")]
    #[test]
    fn every_op_passes_within_the_least_limits() {
        let gpu = crate::ops::testing::least_gpu();
        assert_eq!(gpu.most_scratch(), 16_352);
        let device = Device::Gpu(Arc::new(gpu));
        for test in self_test_on(&device).unwrap() {
            assert!(test.ok, "{test:?}");
        }
    }
}
