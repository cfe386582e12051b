//! What a ranking costs after encoding: the whole hub, 12 candidates, and a mask of half the hub.
//!
//! `cargo run --release --example candidates`
#![allow(clippy::print_stdout, reason = "an example")]

use hubrouter::{Options, Policy, PolicyHandle, Request, Router};

/// Routes whose median is printed.
const ROUTES: usize = 300;

fn main() -> Result<(), hubrouter::Error> {
    let router = Router::open(
        "weights/cmrbench",
        Options::default().device("cpu").threads(1),
    )?;
    let hub = router.hub();
    let names = |step: usize| {
        let models = hub.iter().step_by(step);
        models.map(|(_, model)| model.name.to_string())
    };
    let twelve = router.compile(&Policy::default().candidates(names(hub.len() / 12).take(12)))?;
    let half = router.compile(&Policy::default().candidates(names(2)))?;
    show("the whole hub", &router, None)?;
    show("12 candidates", &router, Some(&twelve))?;
    show("half of the hub", &router, Some(&half))
}

fn show(
    what: &str,
    router: &Router,
    policy: Option<&PolicyHandle>,
) -> Result<(), hubrouter::Error> {
    let request = Request::new("Translate this letter into Spanish, and keep its tone.").top(1);
    let mut score = Vec::with_capacity(ROUTES);
    let mut around = Vec::with_capacity(ROUTES);
    for _ in 0..ROUTES {
        let decision = match policy {
            Some(policy) => router.route_within(&request, policy)?,
            None => router.route(&request)?,
        };
        let timing = decision.timing;
        score.push(timing.score);
        around.push(timing.total - timing.encode - timing.tokenize - timing.score);
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (score, around) = (median(&mut score), median(&mut around));
    println!("{what:16} score {score:7.1} us, around it {around:6.1} us");
    Ok(())
}
