//! Every dispatch of a route and of a learning step, predicted for named cards.
//!
//! `cargo bench --bench roofline [-- DEVICE [CARD]]`; without arguments what llvmpipe dispatches,
//! predicted for all cards of `benches/cards.json`. The dispatches are noted while the bundled router
//! routes and a learner takes one step; DEVICE `cpu` has none. On a device that is one of the cards
//! its own measured times stand beside the predicted ones.
#![allow(clippy::print_stdout, missing_docs, reason = "a bench")]

#[path = "common/hub.rs"]
mod hub;

use std::time::Instant;

use hubrouter::diagnostics::{GpuCard, PassShape, cards, passes_of};
use hubrouter::{Options, Request, Result, Router};

const STORE: &str = "weights/cmrbench";

/// Milliseconds of an H100 that the cards' reference has for each: one prompt, 32, a step of 32.
const BARS: [f64; 3] = [0.5, 1.5, 2.5];

/// The host's part of a route on 16 cores, estimated from this project's measurements of each on two:
/// tokens 0.06 ms, submission 0.04, waking 0.02, the decision 0.04 (its commands are there, which
/// would take 0.03); for 32 prompts tokens and decisions on four threads.
const HOST: [f64; 3] = [0.16, 0.45, 0.1];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let device = arguments.first().map_or("llvmpipe", String::as_str);
    let wanted = arguments.get(1).map(String::as_str);
    let options = Options::default().device(device);
    let router = Router::open(STORE, options.clone())?;
    let prompt =
        "Which of these models reads scanned invoices in three languages and writes a table?";
    let (all, name) = (cards()?, router.route(&Request::new(prompt))?.device);
    // On other devices times mean nothing here, and one call of each gives the dispatches.
    let known = all.iter().any(|card| is(card, &name));
    let batch: Vec<Request> = (0..32)
        .map(|n| Request::new(format!("{n} {prompt}")))
        .collect();
    let show = |index: usize, label: &str, run: &Measured| {
        let wanted = |card: &&GpuCard| wanted.is_none_or(|wanted| card.name.contains(wanted));
        for card in all.iter().filter(wanted) {
            show(card, &name, (index, label), run);
        }
    };
    let one = measured(if known { 50 } else { 0 }, || {
        router.route(&Request::new(prompt)).map(drop)
    })?;
    show(0, "one prompt", &one);
    let many = measured(if known { 20 } else { 0 }, || {
        let decisions = router.route_batch(&batch);
        decisions.into_iter().collect::<Result<Vec<_>>>().map(drop)
    })?;
    show(1, "32 prompts", &many);
    let on_matrices = many.0.as_ref().map(PassShape::on_matrices);
    show(
        1,
        "32 prompts, by matrix units",
        &(on_matrices, f64::INFINITY),
    );
    let step = step(&options, if known { 20 } else { 1 })?;
    show(2, "a step of 32 examples", &step);
    Ok(())
}

/// The pass of a call with the most dispatches, and the shortest of the calls' seconds.
type Measured = (Option<PassShape>, f64);

/// `repeats` calls after one to warm up.
fn measured(repeats: usize, mut call: impl FnMut() -> Result<()>) -> Result<Measured> {
    let (outcome, passes) = passes_of(&mut call);
    outcome?;
    let mut best = f64::INFINITY;
    for _ in 0..repeats {
        let began = Instant::now();
        call()?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok((passes.into_iter().max_by_key(PassShape::dispatches), best))
}

/// The pass and the shortest seconds of a step of 32 examples over all models of a hub.
fn step(options: &Options, count: usize) -> Result<Measured> {
    let scratch = hub::Scratch::new();
    let (steps, passes) = passes_of(|| hub::steps(&scratch, options, count));
    let best = steps?.into_iter().fold(f64::INFINITY, f64::min);
    Ok((passes.into_iter().max_by_key(PassShape::dispatches), best))
}

fn show(card: &GpuCard, adapter: &str, (index, label): (usize, &str), run: &Measured) {
    let (Some(pass), seconds) = run else {
        println!("{label}: no dispatch");
        return;
    };
    println!(
        "\n{} ({})\n{label}, {} dispatches\n{:>5} {:>9} {:>9} {:>9} {:>7} {:>11}  kernel",
        card.name,
        card.origin,
        pass.dispatches(),
        "times",
        "us each",
        "MB",
        "MFLOP",
        "rounds",
        "bound by"
    );
    let predicted = pass.predict(card);
    for kernel in &predicted {
        let [bytes, operations, rounds] = kernel.work;
        println!(
            "{:5} {:9.2} {:9.3} {:9.1} {rounds:7.0} {:>11}  {}",
            kernel.count,
            kernel.seconds / kernel.count as f64 * 1e6,
            bytes / 1e6,
            operations / 1e6,
            kernel.bound,
            kernel.kernel,
        );
    }
    let device: f64 = predicted.iter().map(|kernel| kernel.seconds * 1e3).sum();
    let (host, bar) = (HOST[index], BARS[index]);
    let whole = device + host;
    print!("{label}: {device:.3} ms on the card, {whole:.3} with the host's {host:.2}");
    if card.name.contains("H100") {
        let kept = if whole <= bar { "kept" } else { "MISSED" };
        print!("; at most {bar:.1}: {kept}");
    }
    match is(card, adapter) {
        true if seconds.is_finite() => println!("; measured here {:.3} ms", seconds * 1e3),
        _ => println!("; not measured"),
    }
}

/// Whether an adapter of this name is that card.
fn is(card: &GpuCard, adapter: &str) -> bool {
    card.names
        .iter()
        .any(|name| adapter.contains(name.as_str()))
}
