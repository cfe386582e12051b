//! Sixteen callers at once, each on a thread of its own, beside one that hands in batches of 32.
//! `cargo run --release --example callers -- [PRECISION] [CALLERS]`
//!
//! Both answer the same prompts, in turns; the medians of five rounds and their ratio are printed.
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
    let options = Options::default()
        .device("cpu")
        .precision(precision.parse()?);
    let alone = Router::open(STORE, options.clone().threads(1))?;
    let together = Router::open(STORE, options)?;
    let words: Vec<&str> = TEXT.split(' ').collect();
    let prompt = |n: usize| {
        let count = 6 + n * 7 % 31;
        Request::new(words[n % 3..][..count.min(words.len() - 3)].join(" ")).top(1)
    };
    let requests: Vec<Request> = (0..PROMPTS).map(prompt).collect();
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        let found = [
            side_by_side(&alone, &requests, callers)?,
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
    let [callers_rate, batch_rate] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!("{callers} callers with a thread each  {callers_rate:8.0} prompts/s");
    println!("batches of 32                {batch_rate:8.0} prompts/s");
    println!(
        "ratio                        {:8.2}",
        callers_rate / batch_rate
    );
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
