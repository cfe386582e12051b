//! Replaces the served generation while another thread routes.
//! `cargo run --release --example swap_while_serving`
//!
//! A store is made from the bundled encoder; every change of its hub publishes a generation, and
//! `Router::refresh` serves it. No request waits, fails or mixes two generations.
#![allow(clippy::print_stdout, reason = "an example")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hubrouter::{Encoder, ModelCard, NewModel, Options, Request, Result, Router, Store};

const ENCODER: &str = "weights/all-MiniLM-L6-v2";

fn main() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("hubrouter-swap-{}", std::process::id()));
    let outcome = swap(&folder);
    // A failure to remove the folder is not an error of the example.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

fn swap(folder: &std::path::Path) -> Result<()> {
    let options = Options::default().device("cpu");
    let encoder = Arc::new(Encoder::open(ENCODER, &options)?);
    let model = |name: &str| NewModel::from(&ModelCard::new(name, "Translation"));
    let store = Store::create(folder)?;
    store.build(&encoder, &[model("acme/first")], "example", &mut |_, _| {})?;
    let router = Router::with_encoder(folder, Arc::clone(&encoder), options)?;
    let done = AtomicBool::new(false);
    let answers = std::thread::scope(|threads| -> Result<BTreeMap<String, usize>> {
        let serving = threads.spawn(|| {
            let mut answers = BTreeMap::new();
            // Once more after the last change, so that the newest generation answers, too.
            let mut last = false;
            while !last {
                last = done.load(Ordering::Relaxed);
                let decision = router.route(&Request::new("Translate this letter."))?;
                let generation = decision.revisions.generation.to_string();
                *answers.entry(generation).or_default() += 1;
            }
            Ok(answers)
        });
        let changed = ["acme/second", "acme/third"].iter().try_for_each(|name| {
            store.add(&encoder, &[model(name)], &mut |_, _| {})?;
            router.refresh().map(drop)
        });
        done.store(true, Ordering::Relaxed);
        let answers = serving.join().unwrap_or_else(|_| Ok(BTreeMap::new()));
        changed.and(answers)
    })?;
    for (generation, count) in answers {
        println!("{count:6} answers by {generation}");
    }
    Ok(())
}
