//! How `route` shows its answers: a table for people, or a line of JSON each.

use serde::Serialize;

use super::output;
use super::sink::Sink;
use super::terminal::{cut, escaped, width};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Parts;
use crate::{Decision, Ranked};

/// Share of unknown tokens above which an answer says little.
const MOSTLY_UNKNOWN: f32 = 1.0 / 3.0;

/// What the parts of a score are, in words.
const LEGEND: &str = "score = learned (likeness to what training learned of the model, or to its card) + \
    memory (how well the prompt fits those the model was learned with) + words (how well its words fit \
    the model's domain; 0 for the best)";

/// Where answers go, and in which form.
pub(super) struct Answers {
    sink: Sink,
    form: Form,
    first: bool,
}

/// What is shown of an answer.
pub(super) struct Form {
    /// A line of JSON each; a table otherwise.
    pub(super) json: bool,
    /// JSON has the prompt.
    pub(super) echo: bool,
    /// The table has what a score is the sum of.
    pub(super) explain: bool,
    /// Most domains of an answer.
    pub(super) domains: usize,
}

/// What is written for a prompt that has no answer.
#[derive(Serialize)]
struct Failure<'f> {
    schema_version: u32,
    prompt_id: &'f str,
    error: Reason,
}

#[derive(Serialize)]
struct Reason {
    kind: ErrorKind,
    message: String,
}

#[derive(Serialize)]
struct Echoed<'e, T: Serialize> {
    #[serde(flatten)]
    answer: &'e T,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'e str>,
}

impl Answers {
    pub(super) fn new(sink: Sink, form: Form) -> Self {
        Self {
            sink,
            form,
            first: true,
        }
    }

    /// `prompt` is none where the line held none.
    pub(super) fn write(
        &mut self,
        id: &str,
        prompt: Option<&str>,
        answer: Result<Decision>,
    ) -> Result<()> {
        match answer {
            Ok(mut decision) => {
                decision.domains.truncate(self.form.domains);
                if self.form.json {
                    self.json(&decision, prompt)
                } else {
                    self.table(prompt.unwrap_or_default(), &decision)
                }
            }
            Err(error) if self.form.json => self.json(&failure(id, &error), prompt),
            Err(error) => {
                output::complain(&error.at(format!("prompt {id}")));
                Ok(())
            }
        }
    }

    fn json(&mut self, answer: &impl Serialize, prompt: Option<&str>) -> Result<()> {
        let line = match self.form.echo {
            true => output::json_line(&Echoed { answer, prompt })?,
            false => output::json_line(answer)?,
        };
        self.sink.write(&line)
    }

    fn table(&mut self, prompt: &str, decision: &Decision) -> Result<()> {
        if !std::mem::take(&mut self.first) {
            output::line("")?;
        }
        output::line(heading(prompt))?;
        let mut table = output::Table::new(&[">#", "model", ">probability", "~domain"]);
        for (rank, ranked) in decision.ranked.iter().enumerate() {
            table.row(vec![
                (rank + 1).to_string(),
                ranked.model.to_string(),
                format!("{:.2} %", ranked.probability * 100.0),
                ranked.domain.to_string(),
            ]);
            if self.form.explain {
                table.note(explained(ranked));
            }
        }
        table.print()?;
        if self.form.explain && decision.ranked.iter().any(|ranked| ranked.parts.is_some()) {
            output::paragraph(LEGEND)?;
        }
        let domains: Vec<String> = decision
            .domains
            .iter()
            .map(|domain| format!("{} {:.1} %", domain.domain, domain.probability * 100.0))
            .collect();
        output::paragraph(format!("domains: {}", domains.join(", ")))?;
        if decision.unknown > MOSTLY_UNKNOWN {
            output::paragraph(format!(
                "unknown: the encoder does not know {:.0} % of this prompt's tokens; the answer says little",
                decision.unknown * 100.0
            ))?;
        }
        output::paragraph(facts(decision, self.form.explain))
    }

    /// Makes what was written appear.
    pub(super) fn finish(self) -> Result<()> {
        self.sink.finish()
    }
}

fn failure<'f>(id: &'f str, error: &Error) -> Failure<'f> {
    let reason = Reason {
        kind: error.kind(),
        message: error.to_string(),
    };
    Failure {
        schema_version: 1,
        prompt_id: id,
        error: reason,
    }
}

/// The beginning of the prompt, on a line of its own.
fn heading(prompt: &str) -> String {
    let first = prompt.lines().next().unwrap_or_default();
    // More cannot be shown, and a prompt may be long.
    let start: String = first.chars().take(width()).collect();
    let more = if start.len() < prompt.len() {
        " ..."
    } else {
        ""
    };
    let room = width().saturating_sub(more.len());
    format!("{}{more}", cut(&escaped(&start), room))
}

/// What the score is the sum of.
fn explained(ranked: &Ranked) -> String {
    let sum = match &ranked.parts {
        Some(parts) => format!("score {:.3} = {}", ranked.score, sum(parts)),
        None => format!("score {:.3}, cosine {:.3}", ranked.score, ranked.cosine),
    };
    match &ranked.family {
        Some(family) => format!("{sum}; family {family}"),
        None => sum,
    }
}

/// `learned 2.05 + memory 0.65 - words 0.14`
fn sum(parts: &Parts) -> String {
    let named = [
        ("learned", parts.learned),
        ("memory", parts.memory),
        ("words", parts.words),
    ];
    let mut text = String::new();
    for (name, part) in named {
        // What is shown as zero has no sign.
        let negative = part <= -0.005;
        text.push_str(match (text.is_empty(), negative) {
            (true, false) => "",
            (true, true) => "-",
            (false, false) => " + ",
            (false, true) => " - ",
        });
        text.push_str(&format!("{name} {:.2}", part.abs()));
    }
    text
}

/// Tokens, time, and what answered; with the time of each stage where that is wanted.
fn facts(decision: &Decision, stages: bool) -> String {
    let unknown = match decision.unknown {
        share if share > 0.0 => format!(", {:.0} % of them unknown", share * 100.0),
        _ => String::new(),
    };
    let truncated = if decision.truncated {
        ", cut at the encoder's limit"
    } else {
        ""
    };
    let margin = decision.margin;
    let margin = margin.map_or("-".to_owned(), |margin| format!("{margin:.3}"));
    let timing = decision.timing;
    let stages = match stages {
        true => format!(
            " (tokenize {:.2}, encode {:.2}, score {:.2})",
            timing.tokenize / 1e3,
            timing.encode / 1e3,
            timing.score / 1e3
        ),
        false => String::new(),
    };
    let degraded = if decision.degraded.is_some() {
        " (degraded)"
    } else {
        ""
    };
    format!(
        "{}{unknown}{truncated}; margin {margin}; {:.1} ms{stages} on {}{degraded}; {} with {}",
        output::counted(decision.tokens, "token"),
        timing.total / 1e3,
        decision.device,
        decision.revisions.generation,
        decision.revisions.encoder,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_have_one_sign_at_a_time() {
        let parts = Parts {
            learned: 2.05,
            memory: -0.001,
            words: -0.14,
        };
        assert_eq!(sum(&parts), "learned 2.05 + memory 0.00 - words 0.14");
    }
}
