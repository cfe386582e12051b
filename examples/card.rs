//! Everything to know of one card, within minutes: `benches/card.sh` runs it beside PyTorch.
//!
//! `card DEVICE OUT.json [quick]`; each phase is written as soon as it is over, so that an ended run
//! keeps what it has. `quick` takes small counts, for a software adapter.
#![allow(clippy::print_stdout, missing_docs, reason = "a bench")]

#[path = "../benches/common/hub.rs"]
mod hub;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hubrouter::diagnostics::{cards, diagnose, passes_of, tune};
use hubrouter::{CpuLevel, DeviceVariant, Encoder, Options, Request, Result, Router};
use serde_json::{Map, Value, json};

const STORE: &str = "weights/cmrbench";

/// Of a phase that repeats.
const PHASE: Duration = Duration::from_secs(8);

struct Run {
    device: String,
    out: String,
    /// What is measured of the card, and its compiled kernels: the phases after `tuned` use them.
    cache: PathBuf,
    quick: bool,
    figures: Map<String, Value>,
    began: Instant,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, out, rest @ ..] = &arguments[..] else {
        println!("usage: card DEVICE OUT.json [quick]");
        return;
    };
    let mut run = Run {
        device: device.clone(),
        out: out.clone(),
        cache: PathBuf::from(format!("{out}.cache")),
        quick: rest.first().is_some_and(|word| word == "quick"),
        figures: Map::new(),
        began: Instant::now(),
    };
    run.phase("adapter", adapter);
    run.phase("variants", variants);
    run.phase("tuned", tuned);
    run.phase("open", open);
    run.phase("routes", routes);
    run.phase("profile", profile);
    run.phase("learning", learning);
}

impl Run {
    fn options(&self) -> Options {
        Options::default()
            .device(self.device.as_str())
            .cache_folder(&self.cache)
    }

    /// Runs `phase`, prints a line, and writes all figures so far. What fails is a figure too.
    fn phase(&mut self, name: &str, phase: impl FnOnce(&Self) -> Result<Value>) {
        let began = Instant::now();
        let mut value = phase(self).unwrap_or_else(|error| json!({"failed": error.to_string()}));
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{:6.1} s  {name}: {seconds:.1} s{}",
            self.began.elapsed().as_secs_f64(),
            if value.get("failed").is_some_and(|failed| !failed.is_null()) {
                ", FAILED"
            } else {
                ""
            }
        );
        if let Some(map) = value.as_object_mut() {
            map.insert("seconds".into(), json!(seconds));
        }
        self.figures.insert(name.into(), value);
        let text = Value::Object(self.figures.clone()).to_string();
        if let Err(error) = std::fs::write(&self.out, text) {
            println!("{}: {error}", self.out);
        }
    }

    /// Seconds of `call` after one to warm up: half and 95 % within, and how often it was called.
    fn times(&self, most: usize, mut call: impl FnMut() -> Result<()>) -> Result<Value> {
        call()?;
        let most = if self.quick { 3 } else { most };
        let (mut all, began) = (Vec::new(), Instant::now());
        while all.len() < most && (all.is_empty() || began.elapsed() < PHASE) {
            let one = Instant::now();
            call()?;
            all.push(one.elapsed().as_secs_f64() * 1e3);
        }
        all.sort_by(f64::total_cmp);
        let within = |part: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a place"
            )]
            let place = ((all.len() - 1) as f64 * part).round() as usize;
            all[place]
        };
        let [half, most] = [0.5, 0.95].map(within);
        Ok(json!({"p50_ms": half, "p95_ms": most, "least_ms": all[0], "calls": all.len()}))
    }
}

/// What the card is, and every op on it against f64.
fn adapter(run: &Run) -> Result<Value> {
    let diagnosis = diagnose(&run.device.as_str().into(), CpuLevel::Auto)?;
    let failed: Vec<_> = diagnosis.self_test.iter().filter(|test| !test.ok).collect();
    let mut worst = Map::new();
    let of_card = diagnosis.self_test.iter();
    for test in of_card.filter(|test| test.device == diagnosis.chosen) {
        let known = worst.get(test.op).and_then(Value::as_f64).unwrap_or(0.0);
        worst.insert(test.op.into(), json!(test.max_abs_error.max(known)));
    }
    Ok(json!({
        "chosen": diagnosis.chosen, "adapters": diagnosis.adapters, "failures": diagnosis.failures,
        "worst_errors": worst, "failed": (!failed.is_empty()).then_some(failed),
    }))
}

/// Vectors by every variant beside the CPU's: the worst distance from a cosine of 1, and whether a
/// second run gives the same bits.
fn variants(run: &Run) -> Result<Value> {
    let prompts: Vec<String> = (0..if run.quick { 6 } else { 200 })
        .map(hub::prompt)
        .collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let embed = |options: &Options| -> Result<[Vec<Vec<f32>>; 2]> {
        let encoder = Encoder::open(hub::ENCODER, options)?;
        let all = || {
            encoder
                .embed(&prompts)
                .into_iter()
                .collect::<Result<Vec<_>>>()
        };
        Ok([all()?, all()?])
    };
    let [cpu, _] = embed(&Options::default().device("cpu"))?;
    let mut all = Map::new();
    for name in ["auto", "skinny", "tiled", "matrix", "fast", "any"] {
        let variant: DeviceVariant = name.parse()?;
        let [vectors, again] = embed(&run.options().device_variant(variant))?;
        let far = vectors.iter().zip(&cpu).map(|(a, b)| 1.0 - cosine(a, b));
        let far = far.fold(0.0, f64::max);
        all.insert(
            name.into(),
            json!({"1 - cosine": far, "same_bits": vectors == again}),
        );
    }
    Ok(Value::Object(all))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// 300 runs of the products on matrix units, which kernels are the faster ones, and which batches the
/// CPU computes sooner.
fn tuned(run: &Run) -> Result<Value> {
    let device = run.device.as_str().into();
    let report = tune(
        &device,
        Path::new(STORE),
        &Options::default(),
        &run.cache,
        &mut |_, _| {},
    )?;
    Ok(json!(report))
}

/// From nothing to the first answer, three times.
fn open(run: &Run) -> Result<Value> {
    let mut all = Vec::new();
    for _ in 0..if run.quick { 1 } else { 3 } {
        // No kernel is kept from a phase before.
        let options = Options::default().device(run.device.as_str());
        let began = Instant::now();
        let router = Router::open(STORE, options)?;
        let opened = began.elapsed().as_secs_f64() * 1e3;
        router.route(&Request::new(hub::prompt(0)))?;
        let answered = began.elapsed().as_secs_f64() * 1e3;
        all.push(json!({"opened_ms": opened, "answered_ms": answered}));
    }
    Ok(json!({ "runs": all }))
}

/// Single prompts of several lengths, and batches of 8 to 1,024.
fn routes(run: &Run) -> Result<Value> {
    let router = Router::open(STORE, run.options())?;
    let mut all = Map::new();
    let words = "find a model that reads scanned invoices in three languages ".repeat(20);
    for tokens in [8, 18, 32, 64, 128] {
        let words: Vec<&str> = words.split_whitespace().take(tokens - 2).collect();
        let request = Request::new(words.join(" "));
        let times = run.times(400, || router.route(&request).map(drop))?;
        all.insert(format!("one of about {tokens} tokens"), times);
    }
    let sizes: &[usize] = if run.quick { &[8] } else { &[8, 32, 256, 1024] };
    for size in sizes {
        let batch: Vec<Request> = (0..*size).map(|i| Request::new(hub::prompt(i))).collect();
        let times = run.times(200, || {
            let decisions = router.route_batch(&batch).into_iter();
            decisions.collect::<Result<Vec<_>>>().map(drop)
        })?;
        let half = times["p50_ms"].as_f64().unwrap_or(f64::NAN);
        let mut times = times;
        times["texts_per_second"] = json!(*size as f64 / half * 1e3);
        all.insert(format!("batch of {size}"), times);
    }
    Ok(Value::Object(all))
}

/// The stages of a route by the card's clock, beside the prediction for it where it is known.
fn profile(run: &Run) -> Result<Value> {
    let router = Router::open(STORE, run.options())?;
    let cards = cards()?;
    let name = router.route(&Request::new(hub::prompt(0)))?.device;
    let card = cards
        .iter()
        .find(|card| card.names.iter().any(|part| name.contains(part.as_str())));
    let mut all = Map::new();
    let sizes: &[usize] = if run.quick { &[1] } else { &[1, 32, 256] };
    for size in sizes {
        let batch: Vec<Request> = (0..*size).map(|i| Request::new(hub::prompt(i))).collect();
        for warm in [false, true] {
            let (decisions, passes) = passes_of(|| router.route_batch(&batch));
            let decisions = decisions.into_iter().collect::<Result<Vec<_>>>()?;
            if !warm {
                continue;
            }
            let timing = &decisions[0].timing;
            let mut figures = json!({
                "tokenize_us": timing.tokenize, "encode_us": timing.encode,
                "score_us": timing.score, "total_us": timing.total,
                "dispatches": passes.iter().map(|pass| pass.dispatches()).sum::<usize>(),
            });
            if let Some(card) = card {
                let predicted = passes.iter().flat_map(|pass| pass.predict(card));
                let kernels: Vec<Value> = predicted
                    .map(|kernel| json!([kernel.kernel, kernel.count, kernel.seconds * 1e6]))
                    .collect();
                figures["predicted_us"] = json!(kernels);
            }
            all.insert(format!("{size} prompts"), figures);
        }
    }
    Ok(Value::Object(all))
}

/// Steps of 32 examples over all models of a hub of 2,127.
fn learning(run: &Run) -> Result<Value> {
    let scratch = hub::Scratch::new();
    let count = if run.quick { 2 } else { 60 };
    let mut steps = hub::steps(&scratch, &run.options(), count)?;
    // The first compiles.
    steps.remove(0);
    steps.sort_by(f64::total_cmp);
    let half = steps[steps.len() / 2];
    Ok(json!({
        "step_ms": half * 1e3, "least_ms": steps[0] * 1e3, "steps": steps.len(),
        "examples_per_second": hub::BATCH as f64 / half,
    }))
}
