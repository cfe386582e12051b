//! Labelled prompts of a command line: a file of examples, or a log of feedback.

use std::path::Path;
use std::sync::Arc;

use super::output;
use crate::Hub;
use crate::error::{Result, bail};
use crate::feedback::SkippedLines;
use crate::learn::{Example, ObservedExamples, is_feedback, read_examples, read_observed};

/// The examples at `path`. Of a log of feedback a remark says how many lines are examples, and why
/// the others are none; `hub` gives the hub that has the models.
pub(super) fn examples(
    path: &Path,
    hub: impl FnOnce() -> Result<Arc<Hub>>,
) -> Result<Vec<Example>> {
    if !is_feedback(path) {
        return read_examples(path);
    }
    let found = read_observed(path, &*hub()?)?;
    let text = format!("{}: {}", path.display(), taken_line(&found));
    if found.examples.is_empty() {
        bail!(Format, "{text}: expected at least one example");
    }
    output::remark(format!("hubrouter: {text}"));
    Ok(found.examples)
}

/// `2 examples of 9 lines; 4 without text, ...`
fn taken_line(found: &ObservedExamples) -> String {
    let left = [
        (found.repeated, "repeated"),
        (found.without_text, "without the prompt's text"),
        (found.without_outcome, "without an outcome or a model"),
        (found.not_good, "with an answer that was not good"),
        (
            found.unknown_model,
            "with a model that the hub does not have",
        ),
    ];
    let left = left.into_iter().filter(|(count, _)| *count > 0);
    let mut left: Vec<String> = left.map(|(count, why)| format!("{count} {why}")).collect();
    left.extend(skipped_line(&found.skipped));
    let left = match left.is_empty() {
        true => String::new(),
        false => format!("; not taken: {}", left.join(", ")),
    };
    format!(
        "{} of {} of feedback{left}",
        output::counted(found.taken, "example"),
        output::counted(found.lines, "line")
    )
}

/// How many lines of a log could not be read; `None` if all could.
pub(super) fn skipped_line(skipped: &SkippedLines) -> Option<String> {
    let parts = [
        (skipped.malformed, "malformed"),
        (skipped.cut_off, "cut off at the end"),
        (skipped.too_long, "too long"),
        (skipped.other_version, "of another kind or version"),
    ];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(count, why)| format!("{count} {why}")).collect();
    let first = skipped.first.as_deref()?;
    Some(format!("{} (first: {first})", parts.join(", ")))
}
