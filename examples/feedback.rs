//! A gateway that keeps what became of its requests, and what a line of its log costs.
//!
//! `cargo run --release --example feedback`
#![allow(clippy::print_stdout, reason = "an example")]

use std::time::Instant;

use hubrouter::feedback::{Feedback, FeedbackLog, FeedbackOptions, KeepPrompt, read_feedback};
use hubrouter::{Options, Request, Router};

/// Lines whose median is printed.
const LINES: usize = 2000;

fn main() -> Result<(), hubrouter::Error> {
    let router = Router::open(
        "weights/cmrbench",
        Options::default().device("cpu").threads(1),
    )?;
    let folder = std::env::temp_dir().join(format!("feedback-{}", std::process::id()));
    let request = Request::new("Which bird is singing in this recording?").prompt_id("42");
    let decision = router.route(&request)?;
    let used = decision.ranked[0].model.to_string();
    let went = Feedback::used(used).success(true).tokens(120, 40);
    for keep in [KeepPrompt::Hash, KeepPrompt::Text, KeepPrompt::Vector] {
        let path = folder.join(keep.to_string());
        let options = FeedbackOptions::default().keep(keep);
        let log = FeedbackLog::open(&path, options)?.encoder(router.encoder());
        log.observe(&request, &decision, &went)?;
        let mut microseconds = Vec::new();
        for _ in 0..LINES {
            let began = Instant::now();
            log.observe(&request, &decision, &went)?;
            microseconds.push(began.elapsed().as_secs_f64() * 1e6);
        }
        microseconds.sort_by(f64::total_cmp);
        let (median, late) = (microseconds[LINES / 2], microseconds[LINES * 99 / 100]);
        let mut lines = 0;
        let began = Instant::now();
        read_feedback(&path, |_| {
            lines += 1;
            Ok(())
        })?;
        let read = began.elapsed().as_secs_f64() * 1e6 / f64::from(lines);
        println!("{keep}: median {median:.0} us a line, 99 % within {late:.0}; read in {read:.0}");
    }
    let _ = std::fs::remove_dir_all(folder);
    Ok(())
}
