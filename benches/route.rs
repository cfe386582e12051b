//! Whole routes with the bundled router: single prompts by length, batches, opening; devices side by
//! side. `cargo bench --bench route`
#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hubrouter::{Encoder, Options, Request, Router};

const STORE: &str = "weights/cmrbench";
const ENCODER: &str = "weights/all-MiniLM-L6-v2";

/// Devices of this machine with how many prompts a bench of them can afford.
fn devices() -> Vec<(String, Options)> {
    let cpu = |threads| {
        (
            format!("cpu-{threads}"),
            Options::default().device("cpu").threads(threads),
        )
    };
    let mut devices = vec![cpu(1), cpu(2)];
    let adapters = hubrouter::diagnostics::diagnose(&"auto".into(), hubrouter::CpuLevel::Auto)
        .map(|d| d.adapters)
        .unwrap_or_default();
    for adapter in adapters {
        let options = Options::default().device(adapter.name.as_str());
        devices.push((adapter.name, options));
    }
    devices
}

/// A prompt of exactly `tokens` tokens, special ones included.
fn prompt(encoder: &Encoder, tokens: usize) -> String {
    let words =
        "find a model that reads scanned invoices in three languages and writes a table of sums ";
    let words: Vec<&str> = words.repeat(20).leak().split_whitespace().collect();
    let length = |count: usize| {
        encoder
            .token_ids(&[&words[..count].join(" ")])
            .remove(0)
            .map_or(0, |ids| ids.len())
    };
    let count = (1..words.len())
        .take_while(|count| length(*count) <= tokens)
        .last()
        .unwrap_or(1);
    words[..count].join(" ")
}

fn routes(criterion: &mut Criterion) {
    let encoder = match Encoder::open(ENCODER, &Options::default().device("cpu")) {
        Ok(encoder) => encoder,
        Err(error) => panic!("{error}"),
    };
    for (device, options) in devices() {
        let Ok(router) = Router::open(STORE, options) else {
            continue;
        };
        let software = !device.starts_with("cpu") && router.device_reason().contains("llvmpipe");
        let mut group = criterion.benchmark_group(format!("route/{device}"));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(if software { 2 } else { 4 }));
        for tokens in [8, 18, 32, 64, 128] {
            let request = Request::new(prompt(&encoder, tokens));
            group.throughput(Throughput::Elements(1));
            group.bench_with_input(
                BenchmarkId::new("single", tokens),
                &request,
                |bencher, request| {
                    bencher.iter(|| router.route(black_box(request)));
                },
            );
        }
        if !software {
            for size in [8, 32, 128] {
                let batch: Vec<Request> = (0..size)
                    .map(|i| Request::new(prompt(&encoder, 10 + i * 7 % 30)))
                    .collect();
                group.throughput(Throughput::Elements(size as u64));
                group.bench_with_input(
                    BenchmarkId::new("batch", size),
                    &batch,
                    |bencher, batch| {
                        bencher.iter(|| router.route_batch(black_box(batch)));
                    },
                );
            }
        }
        group.finish();
    }
}

/// From a new process to its first answer; `cold`: the weights' pages are dropped before each run.
fn opening(criterion: &mut Criterion) {
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hubrouter"));
        command.args([
            "route",
            "--json",
            "--device",
            "cpu",
            "--threads",
            "2",
            "Who is speaking in this recording?",
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let mut group = criterion.benchmark_group("open to first answer");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(5));
    group.bench_function("warm", |bencher| bencher.iter(|| command().status()));
    group.bench_function("cold", |bencher| {
        bencher.iter_batched(
            drop_pages,
            |()| command().status(),
            criterion::BatchSize::PerIteration,
        );
    });
    group.bench_function("in the process", |bencher| {
        bencher.iter(|| {
            let router = Router::open(STORE, Options::default().device("cpu").threads(2))?;
            router.route(&Request::new("Who is speaking in this recording?"))
        });
    });
    group.finish();
}

/// Asks the kernel to forget the files under `weights` (GNU dd; no effect where there is none).
fn drop_pages() {
    let script = "find weights -type f -exec dd of={} oflag=nocache conv=notrunc,fdatasync count=0 status=none \\;";
    let _ = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

criterion_group!(benches, routes, opening);
criterion_main!(benches);
