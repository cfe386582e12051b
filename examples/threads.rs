//! Threads share one router and print decisions as JSON Lines.
//! `cargo run --release --example threads`
#![allow(clippy::print_stdout, reason = "an example")]

use std::sync::Arc;
use std::thread;

use hubrouter::{Options, Request, Result, Router};

const PROMPTS: [&str; 6] = [
    "Translate this letter into Spanish.",
    "Which bird is singing in this recording?",
    "Summarise this contract in three sentences.",
    "Draw a fox in the snow.",
    "Write a function that reverses a string.",
    "Who is speaking?",
];

fn main() -> Result<()> {
    // A GPU pays for large batches. Prompts that come one by one are answered sooner by the CPU.
    let options = Options::default().device("cpu");
    let router = Arc::new(Router::open("weights/cmrbench", options)?);
    let clients = PROMPTS.chunks(2).map(|prompts| {
        let router = Arc::clone(&router);
        thread::spawn(move || serve(&router, prompts))
    });
    // All clients start before the first one is waited for.
    for client in clients.collect::<Vec<_>>() {
        for line in client.join().unwrap_or_default() {
            println!("{line}");
        }
    }
    Ok(())
}

/// One line of JSON for each prompt. The prompts of a batch are computed together, and each has its
/// own result: an empty prompt does not spoil the others.
fn serve(router: &Router, prompts: &[&str]) -> Vec<String> {
    let request =
        |(i, prompt): (usize, &&str)| Request::new(*prompt).prompt_id(i.to_string()).top(3);
    let requests: Vec<Request> = prompts.iter().enumerate().map(request).collect();
    let answers = router.route_batch(&requests).into_iter();
    let line = |answer: Result<hubrouter::Decision>| match answer {
        Ok(decision) => serde_json::to_string(&decision).unwrap_or_default(),
        Err(error) => serde_json::json!({"error": error.to_string()}).to_string(),
    };
    answers.map(line).collect()
}
