//! Sixteen callers at once beside one that hands in batches of 32: on a router whose calls compute
//! each on its own thread, and on one whose calls share batches.
//! `cargo run --release --example callers -- [PRECISION] [CALLERS] [GATHER_US]`
//!
//! All answer the same prompts, in turns; the medians of five rounds and their ratios are printed.
#![allow(clippy::print_stdout, reason = "an example")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hubrouter::{Options, Request, Result, Router};

const STORE: &str = "weights/cmrbench";

/// Prompts of a round.
const PROMPTS: usize = 3200;

const ROUNDS: usize = 5;

/// What the prompts are made of: 8 to 40 tokens each.
const TEXT: &str = "find a model that reads scanned invoices in three languages and writes a table \
                    of sums, then translates each line and says which bird sings in the recording \
                    that came with the letter of complaint about a late train";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let precision = arguments.next().unwrap_or_else(|| "auto".to_owned());
    let callers = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(16);
    let gather_us = arguments
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20_000);
    let options = Options::default()
        .device("cpu")
        .precision(precision.parse()?);
    let alone = Router::open(STORE, options.clone().threads(1))?;
    let sharing = Router::open(STORE, options.clone().gather_us(gather_us))?;
    let together = Router::open(STORE, options)?;
    let words: Vec<&str> = TEXT.split(' ').collect();
    let prompt = |n: usize| {
        let count = 6 + n * 7 % 31;
        Request::new(words[n % 3..][..count.min(words.len() - 3)].join(" ")).top(1)
    };
    let requests: Vec<Request> = (0..PROMPTS).map(prompt).collect();
    let mut rates = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        let found = [
            side_by_side(&alone, &requests, callers)?,
            side_by_side(&sharing, &requests, callers)?,
            in_batches(&together, &requests)?,
        ];
        // The first warms up.
        if round > 0 {
            rates
                .iter_mut()
                .zip(found)
                .for_each(|(rates, rate)| rates.push(rate));
        }
    }
    let [alone, sharing, batches] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!("prompts a second:");
    println!("batches of 32                          {batches:8.0}");
    for (rate, how) in [(alone, "a thread each"), (sharing, "shared batches")] {
        let how = format!("{callers} callers, {how}");
        println!("{how:<38} {rate:8.0} {:5.2}", rate / batches);
    }
    Ok(())
}

/// Prompts a second.
fn side_by_side(router: &Router, requests: &[Request], callers: usize) -> Result<f64> {
    let (next, begin) = (AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        let call = || -> Result<()> {
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                router.route(request)?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..callers).map(|_| scope.spawn(call)).collect();
        let outcomes = threads.into_iter().map(|thread| match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        outcomes.collect::<Result<()>>()
    })?;
    Ok(requests.len() as f64 / begin.elapsed().as_secs_f64())
}

/// Prompts a second.
fn in_batches(router: &Router, requests: &[Request]) -> Result<f64> {
    let begin = Instant::now();
    for batch in requests.chunks(32) {
        for answer in router.route_batch(batch) {
            answer?;
        }
    }
    Ok(requests.len() as f64 / begin.elapsed().as_secs_f64())
}
