//! Routes a prompt with the bundled router: `cargo run --release --example route -- "a prompt"`.
#![allow(clippy::print_stdout, reason = "an example")]

use hubrouter::{Options, Request, Router};

fn main() -> hubrouter::Result<()> {
    let prompt = std::env::args().nth(1);
    let prompt = prompt.unwrap_or("Who is speaking in this recording?".into());
    // The default device is `auto`: a hardware GPU, else the CPU. With `fallback` the router goes
    // on on the CPU if the GPU fails later.
    let router = Router::open("weights/cmrbench", Options::default().fallback(true))?;
    let decision = router.route(&Request::new(prompt).top(5))?;
    for ranked in &decision.ranked {
        let percent = ranked.probability * 100.0;
        println!("{percent:6.2} %  {:45}  {}", ranked.model, ranked.domain);
    }
    let ms = decision.timing.total / 1e3;
    println!("{ms:.1} ms on {}", decision.device);
    Ok(())
}
