//! `hubrouter doctor --tune`: which of a GPU's kernels is the faster one, measured there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::AdapterReport;
use super::crossover::{self, TunedBatch};
use super::kernels::best;
use super::matrices;
use crate::device::cpu::Cpu;
use crate::device::gpu::{self, Gpu};
use crate::device::tuning::Tuning;
use crate::device::{Device, DeviceChoice, DeviceVariant, Tensor, choose};
use crate::error::{Result, bail, caught};
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
    /// Fewest rows for which matrix units are taken from now on; `None`: for none.
    pub matrix_rows: Option<usize>,
    /// Why matrix units are not taken for any; `None`: they are right, and were measured.
    pub matrix_fault: Option<String>,
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
    /// Microseconds by the kernel for matrix units, where they are right.
    pub matrix_us: Option<f64>,
}

/// What `--tune` has kept of an adapter.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct KeptTuning {
    /// The adapter.
    pub adapter: String,
    /// Its driver.
    pub driver: String,
    /// Most rows for which the kernel for few rows is taken; `None`: the file is at fault.
    pub few_rows: Option<usize>,
    /// Fewest rows for which matrix units are taken; `None`: for none.
    pub matrix_rows: Option<usize>,
    /// Most tokens of a batch that the CPU computes where the device is `auto`; `None`: not measured.
    pub cpu_tokens: Option<usize>,
    /// Threads of the CPU for which that holds.
    pub threads: Option<usize>,
    /// Why the file is not used, and the built-in numbers are.
    pub fault: Option<String>,
}

/// What `folder` keeps of those of the `adapters` that were measured.
pub fn kept(adapters: &[AdapterReport], folder: &Path) -> Vec<KeptTuning> {
    let known = adapters.iter().filter_map(|report| {
        let of_adapter = KeptTuning {
            adapter: report.name.clone(),
            driver: report.driver.clone(),
            ..KeptTuning::default()
        };
        match Tuning::kept(folder, report) {
            Ok(tuning) => tuning.map(|tuning| KeptTuning {
                few_rows: Some(tuning.few_rows()),
                matrix_rows: tuning.matrix_rows(),
                cpu_tokens: tuning.cpu().map(|share| share.tokens),
                threads: tuning.cpu().map(|share| share.threads),
                ..of_adapter
            }),
            Err(error) => Some(KeptTuning {
                fault: Some(error.to_string()),
                ..of_adapter
            }),
        }
    });
    known.collect()
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
    let open = |variant| {
        let gpu = Gpu::open(&adapter, &host, None, variant)?;
        Ok(Device::Gpu(Arc::new(gpu)))
    };
    // A driver may say that it has matrix units, and then refuse.
    let with_matrices = caught("opening a GPU with matrix units", || {
        let device = open(DeviceVariant::Matrix)?;
        Ok((matrices::fault(&device)?, device))
    });
    let (matrix_fault, device) = match with_matrices {
        Ok(both) => both,
        Err(error) => (Some(error.to_string()), open(DeviceVariant::Tiled)?),
    };
    let steps = ROWS.len() + crossover::TOKENS.len();
    let mut measured = Vec::with_capacity(ROWS.len());
    for (done, rows) in ROWS.into_iter().enumerate() {
        progress(done, steps);
        let by = |variant| microseconds(&device, variant, rows);
        measured.push(TunedRows {
            rows,
            skinny_us: by(DeviceVariant::Skinny)?,
            tiled_us: by(DeviceVariant::Tiled)?,
            matrix_us: match matrix_fault {
                None => Some(by(DeviceVariant::Matrix)?),
                Some(_) => None,
            },
        });
    }
    let times = |m: &TunedRows| (m.rows, [m.skinny_us, m.tiled_us]);
    let few_rows = crossover::wins(measured.iter().map(times));
    let matrix_rows = matrices_win(&measured);
    // The routers take these kernels. If they cannot be measured, what was known of the CPU remains.
    let before = Tuning::look(Some(folder), &report).cpu();
    let tuning = Tuning::of(&report, few_rows, matrix_rows).beside(before);
    tuning.keep(folder, &report)?;
    let named = DeviceChoice::Named(report.name.clone());
    let options = options.clone().cache_folder(folder);
    let (routes, share) = crossover::measure(store, &named, &options, &mut |done| {
        progress(ROWS.len() + done, steps);
    })?;
    let kept = tuning.beside(Some(share)).keep(folder, &report)?;
    Ok(TuningReport {
        adapter: report.name,
        driver: report.driver,
        measured,
        few_rows,
        matrix_rows,
        matrix_fault,
        routes,
        cpu_tokens: share.tokens,
        threads: share.threads,
        kept,
    })
}

/// The size from which on matrix units are faster than both other kernels; `None` where they are not
/// at the largest.
fn matrices_win(measured: &[TunedRows]) -> Option<usize> {
    let slower = measured.iter().rposition(|m| {
        m.matrix_us
            .is_none_or(|matrix| matrix >= m.skinny_us.min(m.tiled_us))
    });
    let first = slower.map_or(0, |slower| slower + 1);
    measured.get(first).map(|m| m.rows)
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
    use crate::testing::Folder;

    #[test]
    fn matrix_units_are_taken_from_where_on_they_win() {
        let of = |times: &[Option<f64>]| {
            let rows = times.iter().zip([16, 32, 64]);
            let measured = rows.map(|(matrix_us, rows)| TunedRows {
                rows,
                skinny_us: 5.0,
                tiled_us: 4.0,
                matrix_us: *matrix_us,
            });
            matrices_win(&measured.collect::<Vec<_>>())
        };
        assert_eq!(of(&[Some(1.0), Some(4.0), Some(3.9)]), Some(64));
        assert_eq!(of(&[Some(1.0), Some(1.0), Some(1.0)]), Some(16));
        assert_eq!(of(&[Some(1.0), Some(1.0), Some(4.5)]), None);
        assert_eq!(of(&[None, None, None]), None);
    }

    #[test]
    fn a_gpu_is_measured_and_what_is_kept_is_found() {
        use crate::ops::testing::adapter_name;
        let folder = Folder::new("tune");
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
        let opened = Device::open(&choice, &host, Some(&folder), DeviceVariant::Auto);
        let Ok(Device::Gpu(gpu)) = opened.map(|opened| opened.device) else {
            panic!("no GPU");
        };
        assert_eq!(gpu.few_rows(), report.few_rows);
        assert_eq!(gpu.matrix_rows(), report.matrix_rows);
        assert_eq!(report.matrix_rows.is_some(), gpu.matrices().is_some());
        let share = gpu.cpu_share().map(|share| (share.threads, share.tokens));
        assert_eq!(share, Some((2, report.cpu_tokens)));
        let of = |folder: &Path| {
            let adapter = |kept: &KeptTuning| kept.adapter == report.adapter;
            let all: Vec<_> = gpu::adapters()
                .iter()
                .map(gpu::GpuAdapter::report)
                .collect();
            kept(&all, folder).into_iter().find(adapter)
        };
        let found = of(&folder).expect("it was kept");
        assert_eq!(
            (found.few_rows, found.matrix_rows, found.fault.as_deref()),
            (Some(report.few_rows), report.matrix_rows, None)
        );
        assert_eq!(
            (found.threads, found.cpu_tokens),
            (Some(2), Some(report.cpu_tokens))
        );
        assert!(of(Path::new("weights/nowhere")).is_none());
        // Without a store there are no routes to measure, and the CPU's share is as it was.
        let nowhere = Path::new("weights/nowhere");
        assert!(tune(&choice, nowhere, &options, &folder, &mut |_, _| {}).is_err());
        let kept = Device::open(&choice, &host, Some(&folder), DeviceVariant::Auto);
        let Ok(Device::Gpu(kept)) = kept.map(|opened| opened.device) else {
            panic!("no GPU");
        };
        assert_eq!(kept.cpu_share(), gpu.cpu_share());
        std::fs::write(&report.kept, "{}").expect("a folder of our own");
        let fault = of(&folder).and_then(|found| found.fault);
        assert!(fault.is_some_and(|fault| fault.contains("--tune")));
        let cpu = tune(&DeviceChoice::Cpu, store, &options, &folder, &mut |_, _| {}).err();
        assert!(cpu.is_some_and(|error| error.to_string().contains("expected a GPU")));
    }
}
