//! A hub of 2,127 models with random rows, and steps of learning for it.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each bench uses its part"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hubrouter::learn::{Control, Example, Experience, Learner, Settings};
use hubrouter::{Encoder, ModelCard, NewModel, Options, Result, Store};

pub const ENCODER: &str = "weights/all-MiniLM-L6-v2";

pub const MODELS: usize = 2127;

/// Examples of a step.
pub const BATCH: usize = 32;

/// A folder that goes away.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hubrouter-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Seconds of each of `count` steps of [`BATCH`] examples over all models, on the device of `options`.
pub fn steps(scratch: &Scratch, options: &Options, count: usize) -> Result<Vec<f64>> {
    make_hub(scratch)?;
    let options = options.clone().encoder(ENCODER);
    let mut settings = Settings::edge();
    let epochs = count.to_string();
    for (key, value) in [
        ("batch", "32"),
        ("hold_out", "false"),
        ("replay.strategy", "none"),
        ("candidates", "all"),
        ("phase_split", "0"),
        ("train.least", "1"),
        ("epochs", &*epochs),
    ] {
        settings.set(key, value)?;
    }
    let mut learner = Learner::open(&scratch.0, None, settings, options)?.save_every(Duration::MAX);
    let experience = Experience {
        models: Vec::new(),
        examples: (0..BATCH).map(|i| example(i, i * MODELS / BATCH)).collect(),
    };
    let (mut seconds, mut began) = (Vec::new(), Instant::now());
    learner.learn(&experience, None, &mut |status| {
        if status.loss.is_some() {
            seconds.push(began.elapsed().as_secs_f64());
        }
        began = Instant::now();
        Control::Continue
    })?;
    Ok(seconds)
}

/// A store whose current generation has [`MODELS`] models with random rows.
fn make_hub(scratch: &Scratch) -> Result<()> {
    let store = Store::create(&scratch.0)?;
    if !store.ids()?.is_empty() {
        return Ok(());
    }
    let options = Options::default().device("cpu").threads(2).encoder(ENCODER);
    let encoder = Arc::new(Encoder::open(ENCODER, &options)?);
    store.build(&encoder, &[model(0)], "bench", &mut |_, _| {})?;
    let mut settings = Settings::edge();
    settings.set("init.profile", "random")?;
    settings.set("hold_out", "false")?;
    let mut learner = Learner::open(&scratch.0, None, settings, options)?;
    let experience = Experience {
        models: (1..MODELS).map(model).collect(),
        examples: vec![example(0, 0)],
    };
    learner.learn(&experience, Some(Duration::ZERO), &mut |_| {
        Control::Continue
    })?;
    learner.commit()?;
    Ok(())
}

/// One of 58 domains.
fn domain(i: usize) -> String {
    format!("Domain {}", i % 58)
}

fn model(i: usize) -> NewModel {
    NewModel::from(&ModelCard::new(format!("model-{i:06}"), domain(i)))
}

/// A prompt of 19 to 28 tokens.
fn example(i: usize, of: usize) -> Example {
    let mut example = Example::new(prompt(i), format!("model-{of:06}"));
    example.domain = Some(domain(of));
    example
}

/// Prompts of 9 to 28 tokens, no two of the first thousands alike.
pub fn prompt(i: usize) -> String {
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
    let words = (0..7 + i * 7 % 20).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        WORDS[(state >> 33) as usize % WORDS.len()]
    });
    words.collect::<Vec<_>>().join(" ")
}
