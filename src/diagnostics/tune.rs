//! `hubrouter doctor --tune`: which of a GPU's kernels is the faster one, measured there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::crossover::{self, TunedBatch};
use super::kernels::best;
use crate::device::cpu::Cpu;
use crate::device::gpu::{self, Gpu};
use crate::device::tuning::Tuning;
use crate::device::{Device, DeviceChoice, DeviceVariant, Tensor, choose};
use crate::error::{Result, bail};
use crate::ops::linear::{Forward, Linear, Weight};
use crate::options::Options;
use crate::weights::View;

/// Rows that are measured, ascending.
const ROWS: [usize; 8] = [16, 32, 64, 96, 128, 192, 256, 384];

/// (in, out) of the products of a layer of all-MiniLM-L6-v2.
const MAPS: [(usize, usize); 4] = [(384, 1152), (384, 384), (384, 1536), (1536, 384)];

/// What was measured, and where it is kept.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TuningReport {
    /// The adapter.
    pub adapter: String,
    /// Its driver.
    pub driver: String,
    /// The products of a layer by each kernel.
    pub measured: Vec<TunedRows>,
    /// Most rows for which the kernel for few rows is taken from now on.
    pub few_rows: usize,
    /// Whole routes by the CPU and by the GPU.
    pub routes: Vec<TunedBatch>,
    /// Most tokens of a batch that the CPU computes from now on where the device is `auto`; 0:
    /// none.
    pub cpu_tokens: usize,
    /// Threads of the CPU.
    pub threads: usize,
    /// The file.
    pub kept: PathBuf,
}

/// The products of one layer with so many rows.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct TunedRows {
    /// Tokens of a batch.
    pub rows: usize,
    /// Microseconds by the kernel for few rows.
    pub skinny_us: f64,
    /// Microseconds by the kernel for many rows.
    pub tiled_us: f64,
}

/// Measures the GPU that `choice` names, alone and beside the CPU by routes of the store in the
/// folder `store`, and keeps the result in `folder`, where opening a router looks for it.
/// `options`: of the routers, but for their device and precision. `progress`: steps that are done,
/// of how many.
///
/// Errors: `choice` is the CPU; the store cannot be opened; the device failed; the folder cannot be
/// written.
pub fn tune(
    choice: &DeviceChoice,
    store: &Path,
    options: &Options,
    folder: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<TuningReport> {
    let host = Arc::new(Cpu::open(None)?);
    let (adapter, reason) = choose(choice, gpu::adapters)?;
    let Some(adapter) = adapter else {
        bail!(
            InvalidRequest,
            "--tune: expected a GPU, found the CPU ({reason}); name one with --device"
        );
    };
    let report = adapter.report();
    let device = Device::Gpu(Arc::new(Gpu::open(&adapter, &host, None)?));
    let steps = ROWS.len() + crossover::TOKENS.len();
    let mut measured = Vec::with_capacity(ROWS.len());
    for (done, rows) in ROWS.into_iter().enumerate() {
        progress(done, steps);
        let by = |variant| microseconds(&device, variant, rows);
        measured.push(TunedRows {
            rows,
            skinny_us: by(DeviceVariant::Skinny)?,
            tiled_us: by(DeviceVariant::Tiled)?,
        });
    }
    let times = |m: &TunedRows| (m.rows, [m.skinny_us, m.tiled_us]);
    let few_rows = crossover::wins(measured.iter().map(times));
    // The routers take these kernels.
    let tuning = Tuning::of(&report, few_rows);
    tuning.keep(folder, &report)?;
    let named = DeviceChoice::Named(report.name.clone());
    let options = options.clone().cache_folder(folder);
    let (routes, share) = crossover::measure(store, &named, &options, &mut |done| {
        progress(ROWS.len() + done, steps);
    })?;
    let kept = tuning.beside(share).keep(folder, &report)?;
    Ok(TuningReport {
        adapter: report.name,
        driver: report.driver,
        measured,
        few_rows,
        routes,
        cpu_tokens: share.tokens,
        threads: share.threads,
        kept,
    })
}

/// The products of one layer: the shortest of three means.
fn microseconds(device: &Device, variant: DeviceVariant, rows: usize) -> Result<f64> {
    let op = Linear::new(device, variant);
    let mut maps: Vec<(Tensor, Weight, Tensor)> = Vec::with_capacity(MAPS.len());
    for (inputs, outputs) in MAPS {
        let weights = vec![0.01; inputs * outputs];
        let parts = [("w", View::of_f32(&weights, inputs))];
        maps.push((
            device.upload("x", inputs, &vec![0.5; rows * inputs])?,
            Weight::new(device, &parts, &vec![0.0; outputs])?,
            device.scratch("y", rows, outputs)?,
        ));
    }
    let seconds = best(device, 3, |pass| {
        for (x, w, y) in &mut maps {
            op.forward(pass, Forward { x, w, y });
        }
    })?;
    Ok(seconds * 1e6)
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_measured_and_what_is_kept_is_found() {
        use crate::ops::testing::adapter_name;
        let own = format!("hubrouter-tune-{}", std::process::id());
        let folder = std::env::temp_dir().join(own);
        let choice = DeviceChoice::from(adapter_name().as_str());
        let all = ROWS.len() + crossover::TOKENS.len();
        let (mut steps, mut progress) = (0, 0);
        let options = Options::default().threads(2);
        let store = Path::new("weights/cmrbench");
        let report = tune(&choice, store, &options, &folder, &mut |done, of| {
            steps += 1;
            assert!(done >= progress && of == all);
            progress = done;
        });
        let report = report.unwrap_or_else(|error| panic!("{error}"));
        assert!(steps > ROWS.len() + 1, "{steps}");
        assert_eq!(progress, all);
        assert!(report.measured.iter().all(|m| m.skinny_us > 0.0));
        // A software adapter is slower than the cores that it computes on.
        assert_eq!(report.threads, 2);
        assert!(report.cpu_tokens >= 8, "{:?}", report.routes);
        let host = Arc::new(Cpu::open(Some(1)).unwrap_or_else(|error| panic!("{error}")));
        let opened = Device::open(&choice, &host, Some(&folder));
        let Ok(Device::Gpu(gpu)) = opened.map(|opened| opened.device) else {
            panic!("no GPU");
        };
        assert_eq!(gpu.few_rows(), report.few_rows);
        let share = gpu.cpu_share().map(|share| (share.threads, share.tokens));
        assert_eq!(share, Some((2, report.cpu_tokens)));
        let cpu = tune(&DeviceChoice::Cpu, store, &options, &folder, &mut |_, _| {}).err();
        assert!(cpu.is_some_and(|error| error.to_string().contains("expected a GPU")));
        let _ = std::fs::remove_dir_all(folder);
    }
}
