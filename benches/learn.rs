//! Learning: what a step costs by hub size, examples a second, what a publish costs.
//!
//! `cargo bench --bench learn [-- DEVICE [THREADS]]`; without arguments the CPU with two threads, then
//! a few steps on every software adapter. Not criterion's: hubs of all sizes learn side by side and
//! take turns step by step, so that ratios within a run mean something on a noisy machine.
#![allow(clippy::print_stdout, missing_docs, reason = "a bench")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use hubrouter::diagnostics::diagnose;
use hubrouter::learn::{Control, Example, Experience, Learner, Outcome, Settings};
use hubrouter::{
    CpuLevel, DeviceChoice, Encoder, GenerationId, ModelCard, NewModel, Options, Result, Store,
};

const ENCODER: &str = "weights/all-MiniLM-L6-v2";

/// Models of the hubs.
const HUBS: [usize; 3] = [2_000, 20_000, 200_000];

/// Examples of a step, and steps of an epoch.
const BATCH: usize = 32;
const WINDOWS: usize = 4;

/// Settings over the edge recipe.
type Pairs = &'static [(&'static str, &'static str)];

const FULL: Pairs = &[("candidates", "all")];
const SAMPLED: Pairs = &[("candidates", "sampled")];
// Decay moves a row away from its reference in this form: no row sleeps, the rule is dense.
const RAW: Pairs = &[("candidates", "sampled"), ("anchor.form", "raw")];
const TOUCHED: Pairs = &[
    ("candidates", "sampled"),
    ("adamw.rows", "touched"),
    ("anchor.rows", "touched"),
];

/// What learns beside others.
const COURSES: [(&str, Pairs, &[usize]); 4] = [
    ("all models, edge", FULL, &[HUBS[0], HUBS[1]]),
    ("64 sampled, no row asleep", RAW, &HUBS),
    ("64 sampled, adamw.rows = all", SAMPLED, &HUBS),
    ("64 sampled, adamw.rows = touched", TOUCHED, &HUBS),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let scratch = Scratch(std::env::temp_dir().join(format!("hubrouter-{}", std::process::id())));
    match arguments.as_slice() {
        [] => {
            growth(&scratch.0, &Options::default().device("cpu").threads(2))?;
            for adapter in diagnose(&DeviceChoice::Auto, CpuLevel::Auto)?.adapters {
                if !adapter.hardware {
                    software(
                        &scratch.0,
                        &Options::default().device(adapter.name.as_str()),
                    )?;
                }
            }
            Ok(())
        }
        [device, rest @ ..] => {
            let threads = rest.first().and_then(|threads| threads.parse().ok());
            let options = Options::default().device(device.as_str());
            let software_adapter = diagnose(&device.as_str().into(), CpuLevel::Auto)?
                .adapters
                .iter()
                .any(|adapter| !adapter.hardware && adapter.name.contains(device.as_str()));
            if software_adapter {
                software(&scratch.0, &options)
            } else {
                growth(&scratch.0, &options.threads(threads.unwrap_or(2)))
            }
        }
    }
}

/// A folder that goes away.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Step times and publishes by hub size.
fn growth(scratch: &Path, options: &Options) -> Result<()> {
    println!("{options:?}");
    let stores: Vec<PathBuf> = HUBS
        .iter()
        .map(|models| hub(scratch, *models))
        .collect::<Result<_>>()?;
    let mut courses = Vec::new();
    for (name, pairs, hubs) in COURSES {
        for &models in hubs {
            let place = HUBS.iter().position(|hub| *hub == models).unwrap_or(0);
            let more = [("epochs", "10"), ("phase_split", "0.6")];
            let settings = settings(&[pairs, more.as_slice()].concat())?;
            courses.push((name, models, stores[place].clone(), settings));
        }
    }
    let runs = take_turns(&courses, options)?;

    println!(
        "\n{:34} {:>7} {:>8} {:>7} {:>18} {:>8} {:>7} {:>9}",
        "candidates", "models", "phase 1", "ratio", "first and last 6", "full", "ratio", "full"
    );
    let mut base = (f64::NAN, f64::NAN);
    for ((name, models, ..), run) in courses.iter().zip(&runs) {
        let of = |stage: &str| -> Vec<f64> {
            let steps = run.steps.iter().filter(|step| step.0 == stage);
            steps.map(|step| step.1).collect()
        };
        let (first, second) = (of("phase 1"), of("phase 2"));
        let (frozen, full) = (median(&first), median(&second));
        if *models == HUBS[0] {
            base = (frozen, full);
        }
        let ends = (
            median(&first[..6]) * 1e3,
            median(&first[first.len() - 6..]) * 1e3,
        );
        println!(
            "{name:34} {models:7} {:5.1} ms {:7.2} {:6.1} and {:5.1} ms {:5.0} ms {:7.2} {:5.1} ex/s",
            frozen * 1e3,
            frozen / base.0,
            ends.0,
            ends.1,
            full * 1e3,
            full / base.1,
            BATCH as f64 / full
        );
    }

    println!("\n{:>7} {:>10} {:>12}", "models", "publish", "bytes");
    for ((_, models, store, _), run) in courses.iter().zip(runs) {
        let began = Instant::now();
        let id = run.learner.commit()?;
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{models:7} {:7.0} ms {:12}",
            seconds * 1e3,
            bytes(store, &id)
        );
    }
    Ok(())
}

/// A few full steps of a few examples on a software adapter: it is right, and slow.
fn software(scratch: &Path, options: &Options) -> Result<()> {
    let store = hub(scratch, HUBS[0])?;
    let settings = settings(&[
        ("batch", "4"),
        ("epochs", "1"),
        ("phase_split", "0"),
        ("candidates", "all"),
    ])?;
    let courses = [("all models, edge", HUBS[0], store, settings)];
    let runs = take_turns(&courses, options)?;
    let steps: Vec<f64> = runs[0].steps.iter().map(|step| step.1).collect();
    println!(
        "\n{}: {} full steps of 4 examples, {} models: {:.1} s a step, {:.2} examples/s",
        String::from(options.device.clone()),
        steps.len(),
        HUBS[0],
        median(&steps),
        4.0 / median(&steps)
    );
    Ok(())
}

/// What a course was seen to do.
struct Run {
    /// Stage and seconds of each step but the first.
    steps: Vec<(&'static str, f64)>,
    learner: Learner,
}

type Course = (&'static str, usize, PathBuf, Settings);

/// All courses learn, one step at a time in turns.
fn take_turns(courses: &[Course], options: &Options) -> Result<Vec<Run>> {
    std::thread::scope(|scope| {
        let mut learners = Vec::new();
        for (_, models, store, settings) in courses {
            let (go, wait) = channel::<()>();
            let (told, steps) = channel();
            let learner =
                scope.spawn(move || learn(*models, store, settings, options, &told, &wait));
            // Its first step is done before the next one opens.
            let _ = steps.recv();
            learners.push((go, steps, Vec::new(), learner));
        }
        let mut left = learners.len();
        while left > 0 {
            left = 0;
            for (go, steps, seen, _) in &mut learners {
                if go.send(()).is_ok()
                    && let Ok(step) = steps.recv()
                {
                    seen.push(step);
                    left += 1;
                }
            }
        }
        let mut runs = Vec::new();
        for (go, told, steps, learner) in learners {
            drop((go, told));
            match learner.join() {
                Ok(learner) => {
                    let learner = learner?;
                    assert!(!steps.is_empty(), "an update took one step or none");
                    runs.push(Run { steps, learner });
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(runs)
    })
}

/// Tells each step's stage and seconds, and waits to be told to go on.
fn learn(
    models: usize,
    store: &Path,
    settings: &Settings,
    options: &Options,
    told: &Sender<(&'static str, f64)>,
    wait: &Receiver<()>,
) -> Result<Learner> {
    let options = options.clone().encoder(ENCODER);
    // Learners wait for their turns by the minute: a state in between would be measured as a step.
    let mut learner =
        Learner::open(store, None, settings.clone(), options)?.save_every(Duration::MAX);
    let rows = BATCH * WINDOWS;
    let experience = Experience {
        models: Vec::new(),
        examples: (0..rows).map(|i| example(i, i * models / rows)).collect(),
    };
    let mut began = Instant::now();
    learner.learn(&experience, None, &mut |status| {
        if status.loss.is_some() {
            let _ = told.send((status.stage, began.elapsed().as_secs_f64()));
            // After the last step too: what follows is not beside another's step.
            let _ = wait.recv();
        }
        began = Instant::now();
        Control::Continue
    })?;
    Ok(learner)
}

/// A store whose current generation has `models` models with random rows, and has learned once.
fn hub(scratch: &Path, models: usize) -> Result<PathBuf> {
    let folder = scratch.join(models.to_string());
    let store = Store::create(&folder)?;
    if !store.ids()?.is_empty() {
        return Ok(folder);
    }
    let options = Options::default().device("cpu").threads(2).encoder(ENCODER);
    let encoder = Arc::new(Encoder::open(ENCODER, &options)?);
    store.build(&encoder, &[model(0)], "bench", &mut |_, _| {})?;
    let settings = settings(&[("init.profile", "random")])?;
    let mut learner = Learner::open(&folder, None, settings, options)?;
    let experience = Experience {
        models: (1..models).map(model).collect(),
        examples: vec![example(0, 0)],
    };
    let outcome = learner.learn(&experience, Some(Duration::ZERO), &mut |_| {
        Control::Continue
    })?;
    assert!(matches!(outcome, Outcome::Learned(_)));
    learner.commit()?;
    Ok(folder)
}

/// The edge recipe, trained in every update, nothing held out or replayed, with changes.
fn settings(pairs: &[(&str, &str)]) -> Result<Settings> {
    let mut settings = Settings::edge();
    settings.set("batch", &BATCH.to_string())?;
    settings.set("train", "always")?;
    settings.set("hold_out", "false")?;
    settings.set("replay.strategy", "none")?;
    for (key, value) in pairs {
        settings.set(key, value)?;
    }
    Ok(settings)
}

/// One of sixty domains in six parent groups.
fn domain(i: usize) -> String {
    const GROUPS: [&str; 6] = [
        "Natural Language Processing",
        "Computer Vision",
        "Audio",
        "Multimodal",
        "Tabular",
        "Graph",
    ];
    format!("{} task {}", GROUPS[i % 6], i / 6 % 10)
}

fn model(i: usize) -> NewModel {
    NewModel::from(&ModelCard::new(format!("model-{i:06}"), domain(i)))
}

/// A prompt of about 20 tokens.
fn example(i: usize, of: usize) -> Example {
    const WORDS: [&str; 24] = [
        "find",
        "a",
        "model",
        "that",
        "reads",
        "scanned",
        "invoices",
        "in",
        "three",
        "languages",
        "and",
        "writes",
        "table",
        "of",
        "sums",
        "for",
        "photos",
        "birds",
        "speech",
        "from",
        "noisy",
        "rooms",
        "with",
        "names",
    ];
    let mut state = i as u64 + 1;
    let count = 14 + i % 9;
    let words = (0..count).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        WORDS[(state >> 33) as usize % WORDS.len()]
    });
    let words: Vec<&str> = words.collect();
    let mut example = Example::new(words.join(" "), format!("model-{of:06}"));
    example.domain = Some(domain(of));
    example
}

/// Bytes of a generation's files.
fn bytes(store: &Path, id: &GenerationId) -> u64 {
    let files = std::fs::read_dir(store.join(id.as_str()))
        .into_iter()
        .flatten();
    let sizes = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len()));
    sizes.sum()
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
