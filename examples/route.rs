//! Routes a prompt with the bundled router: `cargo run --release --example route -- "a prompt"`.
#![allow(clippy::print_stdout, reason = "an example")]

use hubrouter::{Options, Request, Router};

fn main() -> hubrouter::Result<()> {
    let prompt = std::env::args()
        .nth(1)
        .unwrap_or("Who is speaking in this recording?".into());
    // `auto` takes a hardware GPU if there is one; should it fail later, answers go on on the CPU.
    let router = Router::open("weights/cmrbench", Options::default().fallback(true))?;
    let decision = router.route(&Request::new(prompt).top(5))?;
    for ranked in &decision.ranked {
        println!(
            "{:7.3}  {:40}  {}",
            ranked.score, ranked.model, ranked.domain
        );
    }
    println!(
        "{:.1} ms on {}",
        decision.timing.total / 1e3,
        decision.device
    );
    Ok(())
}
