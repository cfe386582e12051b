//! Prompts of many megabytes: memory does not follow their length, and they are answered as if
//! somebody had cut them by hand. `HUBROUTER_LONG_MIB` says how long; 4 MiB without it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::time::Instant;

use common::{cpu, store};
use hubrouter::{Decision, Request, Router};

/// Megabytes that a route may take beyond the prompt.
const MOST: u64 = 200;

/// What stays of a prompt that is cut by hand, in bytes: much more than is encoded, little to read.
const BY_HAND: usize = 60_000;

/// What is repeated.
const TEXTS: [(&str, &str); 12] = [
    ("exclamation marks", "!"),
    ("exclamation marks and spaces", "! "),
    ("accents", "é"),
    ("accents and spaces", "é "),
    ("Han", "漢"),
    ("emoji", "🐦"),
    ("emoji of parts", "👩\u{200d}👩\u{200d}👧"),
    ("one word", "a"),
    ("words", "which bird sings "),
    ("words and line breaks", "which\r\nbird\r\n"),
    ("combining marks", "\u{301}"),
    ("what the tokenizer drops", "\u{200b}"),
];

fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// The answer, seconds, and megabytes of memory beyond what was in use before.
fn route(router: &Router, request: &Request) -> (hubrouter::Result<Decision>, f64, u64) {
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, began) = (status("VmRSS:"), Instant::now());
    let decision = router.route(request);
    let seconds = began.elapsed().as_secs_f64();
    (
        decision,
        seconds,
        status("VmHWM:").saturating_sub(before) >> 10,
    )
}

/// Ids and bits of the scores, or the kind of the error.
fn outcome(
    decision: &hubrouter::Result<Decision>,
) -> Result<(Vec<(u32, u32)>, usize), hubrouter::ErrorKind> {
    match decision {
        Ok(decision) => {
            let ranked = decision
                .ranked
                .iter()
                .map(|model| (model.id.0, model.score.to_bits()));
            Ok((ranked.collect(), decision.tokens))
        }
        Err(error) => Err(error.kind()),
    }
}

#[test]
fn memory_and_answers_do_not_depend_on_what_lies_behind_the_kept_tokens() {
    let mib = std::env::var("HUBROUTER_LONG_MIB").map_or(4, |text| text.parse().unwrap());
    let bytes: usize = mib << 20;
    for threads in [1, 2] {
        let router = Router::open(store(), cpu(threads)).unwrap();
        router.route(&Request::new("warm")).unwrap();
        for (name, text) in TEXTS {
            let long = Request::new(text.repeat(bytes / text.len()));
            let (decision, seconds, grown) = route(&router, &long);
            let by_hand = Request::new(text.repeat(BY_HAND / text.len()));
            let (want, ..) = route(&router, &by_hand);
            println!("{mib} MiB of {name}, {threads} threads: {seconds:.3} s, {grown} MB");
            assert_eq!(outcome(&decision), outcome(&want), "{name}");
            assert!(grown < MOST, "{name}: {grown} MB");
        }
    }
}

#[cfg(feature = "cli")]
#[test]
fn the_command_bounds_what_it_reads() {
    use std::process::{Command, Stdio};

    let folder = common::Folder::new("long");
    let path = folder.join("prompts.txt");
    let short = "which bird sings ".repeat(3000);
    for (name, text) in TEXTS.into_iter().filter(|(_, text)| !text.contains('\n')) {
        let long = text.repeat((4 << 20) / text.len());
        fs::write(&path, format!("{short}\n{long}\n{short}\n")).unwrap();
        let output = Command::new("sh")
            // Address space, in kilobytes: program, encoder, hub and three prompts fit.
            .args([
                "-c",
                "ulimit -v 700000; exec \"$@\"",
                "sh",
                env!("CARGO_BIN_EXE_hubrouter"),
            ])
            .args([
                "route",
                "--device",
                "cpu",
                "--threads",
                "1",
                "--top",
                "1",
                "--json",
                "--router",
            ])
            .arg(store())
            .arg("--input")
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let lines = String::from_utf8(output.stdout).unwrap();
        assert_eq!(lines.lines().count(), 3, "{name}: {said}");
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{name}: {said}"
        );
    }
}
