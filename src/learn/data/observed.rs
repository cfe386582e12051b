//! Examples from a log of feedback: the prompts whose right model is known.

use std::collections::HashSet;
use std::path::Path;

use serde::Serialize;

use crate::error::Result;
use crate::feedback::{FeedbackLine, SkippedLines, is_log, read_log};
use crate::hub::Hub;
use crate::learn::data::examples::Example;
use crate::text::query::{Prefix, query_digest, query_text};

/// The examples of a log, and why its other lines are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ObservedExamples {
    /// The examples, in the order of their first lines.
    #[serde(skip)]
    pub examples: Vec<Example>,
    /// Lines that were read.
    pub lines: usize,
    /// Lines that became an example.
    pub taken: usize,
    /// Lines that say the same as an earlier one.
    pub repeated: usize,
    /// Lines without the prompt's text: the log keeps hashes, vectors or nothing.
    pub without_text: usize,
    /// Lines that do not say how it went, or with which model.
    pub without_outcome: usize,
    /// Lines whose answer was not good, and that name no expected model.
    pub not_good: usize,
    /// Lines whose right model the hub does not have, or has retired.
    pub unknown_model: usize,
    /// Lines that could not be read.
    pub skipped: SkippedLines,
}

/// Whether there is a log of feedback at `path`, and not a file of examples.
pub fn is_feedback(path: impl AsRef<Path>) -> bool {
    is_log(path.as_ref())
}

/// The examples of the log at `path`: prompts kept as text whose right model is known and in `hub`.
/// That is the expected model or, if none is given, the one that was used with a good answer.
///
/// Errors: there is no log at `path`, or a file of it cannot be read. That there is no example is
/// no error.
pub fn read_observed(path: impl AsRef<Path>, hub: &Hub) -> Result<ObservedExamples> {
    let mut all = ObservedExamples::default();
    let mut seen = HashSet::new();
    let skipped = read_log(path.as_ref(), &mut |line| {
        all.lines += 1;
        let place = match example(&line, hub) {
            Ok(example) => {
                let key = (query_digest(&example.prompt), example.model_name.clone());
                if seen.insert(key) {
                    all.examples.push(example);
                    &mut all.taken
                } else {
                    &mut all.repeated
                }
            }
            Err(why) => match why {
                NoExample::WithoutText => &mut all.without_text,
                NoExample::WithoutOutcome => &mut all.without_outcome,
                NoExample::NotGood => &mut all.not_good,
                NoExample::UnknownModel => &mut all.unknown_model,
            },
        };
        *place += 1;
        Ok(())
    })?;
    all.skipped = skipped;
    Ok(all)
}

/// Why a line is no example.
enum NoExample {
    WithoutText,
    WithoutOutcome,
    NotGood,
    UnknownModel,
}

fn example(line: &FeedbackLine, hub: &Hub) -> Result<Example, NoExample> {
    let text = line.prompt.as_deref().unwrap_or_default();
    let text = query_text(text, Prefix::Strip);
    if text.is_empty() {
        return Err(NoExample::WithoutText);
    }
    let Some(right) = line.right_model() else {
        return Err(match line.feedback.good() {
            Some(false) => NoExample::NotGood,
            _ => NoExample::WithoutOutcome,
        });
    };
    let model = hub.find(right).and_then(|id| hub.get(id));
    match model.filter(|model| !model.retired) {
        Some(model) => Ok(Example::new(text, &*model.name)),
        None => Err(NoExample::UnknownModel),
    }
}
