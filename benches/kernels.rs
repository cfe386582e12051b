//! Every kernel of a route and of an update at the shapes of all-MiniLM-L6-v2, as a share of the
//! device's measured peaks.
//!
//! `cargo bench --bench kernels [-- DEVICE [THREADS]]`; without arguments the CPU with one and with
//! two threads, then every adapter. It does not use criterion: a share of a peak needs both in one
//! run, so each row is a median of seven, and the peaks are measured before each of them.
#![allow(clippy::print_stdout, missing_docs, reason = "a bench")]

use hubrouter::diagnostics::{KernelBench, diagnose};
use hubrouter::{CpuLevel, DeviceChoice, Result};

/// Tokens and prompts of a batch: one short prompt, one of the benchmark's median, a long one, 32.
const BATCHES: [(usize, usize); 4] = [(8, 1), (18, 1), (128, 1), (576, 32)];

/// Models of the hub.
const MODELS: usize = 2127;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let devices: Vec<(String, usize)> = match arguments.as_slice() {
        [] => {
            let adapters = diagnose(&DeviceChoice::Auto, CpuLevel::Auto)?.adapters;
            let cpu = [1, 2].map(|threads| ("cpu".to_owned(), threads));
            cpu.into_iter()
                .chain(adapters.into_iter().map(|adapter| (adapter.name, 1)))
                .collect()
        }
        [device, rest @ ..] => {
            let threads = rest
                .first()
                .and_then(|threads| threads.parse().ok())
                .unwrap_or(1);
            vec![(device.clone(), threads)]
        }
    };
    for (device, threads) in devices {
        for (tokens, prompts) in BATCHES {
            bench(&device, threads, tokens, prompts)?;
        }
    }
    Ok(())
}

fn bench(device: &str, threads: usize, tokens: usize, prompts: usize) -> Result<()> {
    let mut kernels = KernelBench::open(&device.into(), threads, tokens, prompts, MODELS)?;
    println!(
        "\n{}, {threads} threads: {tokens} tokens in {prompts} prompts",
        kernels.device()
    );
    println!(
        "{:48} {:>10} {:>9} {:>8} {:>8} {:>8}",
        "op", "ms", "GFLOP/s", "of peak", "GB/s", "of peak"
    );
    // A pass of a GPU has 1,024 dispatches at most, and an op up to 6.
    let most = if device == "cpu" { 400.0 } else { 160.0 };
    for (index, (label, flops, bytes)) in kernels.cases().into_iter().enumerate() {
        // As often as fills about 5 ms, so that one run is not mostly the clock.
        let mut once = f64::INFINITY;
        for _ in 0..3 {
            once = once.min(kernels.time(index, 3)?.max(1e-7));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small count"
        )]
        let repeats = (5e-3 / once).clamp(1.0, most) as usize;
        let mut ratios = Vec::new();
        for _ in 0..7 {
            let peaks = kernels.peaks()?;
            // The copy has emptied the caches.
            kernels.time(index, 3)?;
            let seconds = kernels.time(index, repeats)?;
            ratios.push((
                seconds,
                flops / seconds / peaks.flops,
                bytes / seconds / peaks.bytes,
            ));
        }
        let seconds = median(ratios.iter().map(|ratio| ratio.0));
        println!(
            "{label:48} {:10.4} {:9.1} {:7.1}% {:8.1} {:7.1}%",
            seconds * 1e3,
            flops / seconds / 1e9,
            100.0 * median(ratios.iter().map(|ratio| ratio.1)),
            bytes / seconds / 1e9,
            100.0 * median(ratios.iter().map(|ratio| ratio.2)),
        );
    }
    let peaks = kernels.peaks()?;
    println!(
        "peaks: {:.1} GFLOP/s of multiply-adds, {:.1} GB/s of a copy",
        peaks.flops / 1e9,
        peaks.bytes / 1e9
    );
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
