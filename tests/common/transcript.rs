//! Transcripts of the command: Markdown files whose `console` blocks are run and compared.
//!
//! ````markdown
//! ```console
//! $ hubrouter hub show nobody
//! ? 2
//! hubrouter: "nobody": expected a model of the hub[..]
//! ```
//! ````
//!
//! The blocks of a file run one after the other in one new folder, each command in a POSIX shell. A
//! command goes on in lines that begin with `> `. `? N` is its exit code, which is 0 without that
//! line. Its output follows, stderr after stdout. `[..]` stands for any text within a line, a line
//! `...` for any number of lines. A line of JSON on stdout is compared in its indented form.
//!
//! `$ROOT` is the source tree. `HUBROUTER_TRANSCRIPTS=write` writes what differs into the file,
//! with `[..]` for fractions, digests and the folder: read the difference before it is committed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Folder, ROOT};

/// Lines of one command in a transcript.
#[derive(Default)]
struct Step {
    command: Vec<String>,
    /// Lines after the command: the exit code where it is not 0, and the output.
    expected: Vec<String>,
}

/// Runs the transcript `tests/cli/<name>.md` in `folder`.
pub fn check(name: &str, folder: &Folder) {
    let path = Path::new(ROOT).join("tests/cli").join(format!("{name}.md"));
    let text = fs::read_to_string(&path).unwrap();
    let write = std::env::var_os("HUBROUTER_TRANSCRIPTS").is_some_and(|way| way == "write");
    let (written, differences) = compared(&text, folder);
    if write {
        fs::write(&path, written).unwrap();
    } else {
        assert!(
            differences.is_empty(),
            "{name}.md: {}",
            differences.join("\n")
        );
    }
}

/// The text with what was found in place of what differs, and what differs.
pub fn compared(text: &str, folder: &Folder) -> (String, Vec<String>) {
    let (mut written, mut differences) = (String::new(), Vec::new());
    let (mut inside, mut step) = (false, Step::default());
    for line in text.lines() {
        let ends = inside && (line.starts_with("$ ") || line == "```");
        if ends && !step.command.is_empty() {
            let step = std::mem::take(&mut step);
            let found = run(&step.command, folder);
            for line in &step.command {
                written += &format!("{line}\n");
            }
            let fits = fits(&step.expected, &found);
            if !fits {
                differences.push(format!(
                    "{}\nexpected:\n{}\nfound:\n{}",
                    step.command[0],
                    step.expected.join("\n"),
                    found.join("\n")
                ));
            }
            let kept = match fits {
                true => step.expected,
                false => found.iter().map(|line| redacted(line, folder)).collect(),
            };
            for line in kept {
                written += &format!("{line}\n");
            }
        }
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            _ if line.starts_with("$ ") => step.command.push(line.to_owned()),
            _ if line.starts_with("> ") && step.expected.is_empty() => {
                step.command.push(line.to_owned());
            }
            _ => step.expected.push(line.to_owned()),
        }
        if !inside || line == "```console" {
            written += &format!("{line}\n");
        }
    }
    assert!(!inside, "a block has no end");
    (written, differences)
}

/// The exit code where it is not 0, stdout, stderr.
fn run(command: &[String], folder: &Folder) -> Vec<String> {
    let lines: Vec<&str> = command.iter().map(|line| &line[2..]).collect();
    let program = Path::new(env!("CARGO_BIN_EXE_hubrouter"));
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .args(["-c", &lines.join("\n")])
        .stdin(Stdio::null())
        .current_dir(&folder.0)
        .env(
            "PATH",
            format!("{}:{path}", program.parent().unwrap().display()),
        )
        .env("ROOT", ROOT)
        .env_remove("HUBROUTER_HOME")
        .env_remove("HUBROUTER_CMRBENCH")
        .env_remove("COLUMNS")
        .output()
        .unwrap();
    let code = output.status.code().unwrap_or(-1);
    let mut found = Vec::new();
    if code != 0 {
        found.push(format!("? {code}"));
    }
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(value @ Value::Object(_)) => {
                let indented = serde_json::to_string_pretty(&value).unwrap();
                found.extend(indented.lines().map(str::to_owned));
            }
            _ => found.push(line.to_owned()),
        }
    }
    let errors = String::from_utf8(output.stderr).unwrap();
    found.extend(errors.lines().map(str::to_owned));
    found
}

fn fits(expected: &[String], found: &[String]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=found.len()).any(|skipped| fits(rest, &found[skipped..]))
        }
        Some((first, rest)) => found
            .split_first()
            .is_some_and(|(line, left)| line_fits(first, line) && fits(rest, left)),
    }
}

/// `[..]` in `expected` stands for any text.
fn line_fits(expected: &str, found: &str) -> bool {
    let Some((start, rest)) = expected.split_once("[..]") else {
        return expected == found;
    };
    let Some(left) = found.strip_prefix(start) else {
        return false;
    };
    let ends = left.char_indices().map(|(at, _)| at).chain([left.len()]);
    let mut ends = ends.into_iter();
    ends.any(|at| line_fits(rest, &left[at..]))
}

/// `[..]` for the folder, fractions and hexadecimal digests of 12 digits or more.
fn redacted(line: &str, folder: &Folder) -> String {
    let line = line.replace(folder.0.to_str().unwrap(), "[..]");
    let mut shown = String::new();
    for word in line.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '.') {
        let (core, end) = match word.char_indices().next_back() {
            Some((at, c)) if !c.is_ascii_alphanumeric() => word.split_at(at),
            _ => (word, ""),
        };
        let fraction = core.contains('.') && core.parse::<f64>().is_ok();
        let digest = core.len() >= 12 && core.chars().all(|c| c.is_ascii_hexdigit());
        shown += if fraction || digest { "[..]" } else { core };
        shown += end;
    }
    shown
}
