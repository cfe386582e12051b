//! How `route` shows its answers: a table for people, or one line of JSON each.

use serde::Serialize;

use super::output;
use super::policy::{front_lines, policy_line};
use super::serving::serving_lines;
use super::sink::Sink;
use super::terminal::{columns, cut, escaped, width};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Parts, Strengths};
use crate::{
    AbstainReason, Abstention, ChatRecord, ChatShape, Decision, Explanation, LeftOut, Ranked,
    ResponseFormat, TakenFrom,
};

/// Above this share of unknown tokens the table warns that the answer means little.
const MOSTLY_UNKNOWN: f32 = 1.0 / 3.0;

/// The parts of a score of a generation with a memory.
const PARTS: [&str; 3] = [
    "learned score  similarity of the prompt to what training learned of the model, or to its \
     card: cosine over temperature",
    "memory         likeness of the prompt to the prompts that the model was learned with: \
     log-likelihood of a Gaussian",
    "words          likeness of its words to those of the model's domain: log-likelihood, 0 for \
     the best domain",
];

/// The score of a generation without a memory.
const COSINE: &str = "score          similarity of the prompt to what training learned of the \
                      model, or to its card: cosine over temperature";

/// The column where the explanations of [`PARTS`] begin.
const EXPLAINED_AT: usize = 15;

/// Writes answers to a sink, in one form.
pub(super) struct AnswerWriter {
    sink: Sink,
    form: AnswerForm,
    first: bool,
}

/// What is shown of an answer.
pub(super) struct AnswerForm {
    /// One line of JSON each; a table otherwise.
    pub(super) json: bool,
    /// JSON repeats the prompt.
    pub(super) echo: bool,
    /// Most domains of an answer. `None`: [`USUAL_DOMAINS`]; a table shows as many as fit a line.
    pub(super) domains: Option<usize>,
}

/// A decision and, where that is asked for, what is behind it.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum RouteAnswer {
    Plain(Box<Decision>),
    Explained(Box<Explanation>),
}

impl RouteAnswer {
    pub(super) fn plain(decision: Decision) -> Self {
        Self::Plain(Box::new(decision))
    }

    pub(super) fn explained(explanation: Explanation) -> Self {
        Self::Explained(Box::new(explanation))
    }

    pub(super) fn decision(&self) -> &Decision {
        match self {
            Self::Plain(decision) => decision,
            Self::Explained(explanation) => &explanation.decision,
        }
    }

    fn decision_mut(&mut self) -> &mut Decision {
        match self {
            Self::Plain(decision) => decision,
            Self::Explained(explanation) => &mut explanation.decision,
        }
    }
}

/// Domains of an answer where the command line names no number.
const USUAL_DOMAINS: usize = 5;

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

impl AnswerWriter {
    pub(super) fn new(sink: Sink, form: AnswerForm) -> Self {
        Self {
            sink,
            form,
            first: true,
        }
    }

    /// Writes the answer to `prompt`, which is `None` where the input line held no prompt.
    pub(super) fn write(
        &mut self,
        id: &str,
        prompt: Option<&str>,
        answer: Result<RouteAnswer>,
    ) -> Result<()> {
        match answer {
            Ok(mut answer) => {
                let most = self.form.domains.unwrap_or(USUAL_DOMAINS);
                answer.decision_mut().domains.truncate(most);
                let prompt_text = prompt.unwrap_or_default();
                match &answer {
                    _ if self.form.json => self.json(&answer, prompt),
                    RouteAnswer::Plain(decision) => self.table(prompt_text, decision, None),
                    RouteAnswer::Explained(explanation) => {
                        self.table(prompt_text, &explanation.decision, Some(explanation))
                    }
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

    fn table(
        &mut self,
        prompt: &str,
        decision: &Decision,
        explanation: Option<&Explanation>,
    ) -> Result<()> {
        if !std::mem::take(&mut self.first) {
            output::line("")?;
        }
        output::line(heading(prompt))?;
        let mut table = output::TextTable::new(&[">#", "model", ">probability", "~domain"]);
        for (rank, ranked) in decision.ranked.iter().enumerate() {
            table.row(vec![
                (rank + 1).to_string(),
                ranked.model.to_string(),
                format!("{:.2} %", ranked.probability * 100.0),
                ranked.domain.to_string(),
            ]);
            let explained = explanation.map(|_| explained(ranked));
            let notes: Vec<String> = deployed(ranked).into_iter().chain(explained).collect();
            if !notes.is_empty() {
                table.note(notes.join("; "));
            }
        }
        table.print()?;
        match self.form.domains {
            _ if decision.domains.is_empty() => (),
            None => output::line(domains_line(decision, width()))?,
            Some(_) => output::paragraph(domains_line(decision, usize::MAX))?,
        }
        if decision.unknown > MOSTLY_UNKNOWN {
            output::paragraph(format!(
                "the encoder does not know {:.0} % of this prompt's tokens: the answer means \
                 little",
                decision.unknown * 100.0
            ))?;
        }
        if let Some(record) = &decision.policy {
            output::paragraph(policy_line(record))?;
        }
        if let Some(abstention) = &decision.abstained {
            output::paragraph(abstained_line(abstention, decision))?;
        }
        serving_lines(decision).try_for_each(output::paragraph)?;
        output::paragraph(timing_line(decision))?;
        explanation.map_or(Ok(()), explain)
    }

    /// Completes the output: a regular file appears now.
    pub(super) fn finish(self) -> Result<()> {
        self.sink.finish()
    }
}

/// What the parts of a score are, what is behind the decision, how long each stage took, and what
/// answered.
fn explain(explanation: &Explanation) -> Result<()> {
    let decision = &explanation.decision;
    let has_parts = decision.ranked.iter().any(|ranked| ranked.parts.is_some());
    let legend = if has_parts { &PARTS[..] } else { &[COSINE] };
    for text in legend {
        output::hanging(text, EXPLAINED_AT)?;
    }
    if let Some(strengths) = explanation.strengths.filter(|_| has_parts) {
        output::hanging(strengths_line(&strengths), EXPLAINED_AT)?;
    }
    if let Some(margin) = decision.margin {
        let trades = decision
            .ranked
            .iter()
            .any(|ranked| ranked.utility.is_some());
        let of = if trades { "utility" } else { "score" };
        let margin = format!("margin         {margin:.3}: best {of} minus the next");
        output::hanging(margin, EXPLAINED_AT)?;
    }
    let mut behind = behind_lines(explanation).into_iter();
    behind.try_for_each(|line| output::hanging(line, EXPLAINED_AT))?;
    let timing = decision.timing;
    let [tokenize, encode, score] =
        [timing.tokenize, timing.encode, timing.score].map(|us| us / 1e3);
    let stages = format!(
        "stages         tokenize {tokenize:.2} ms, encode {encode:.2} ms, score {score:.2} ms"
    );
    output::hanging(stages, EXPLAINED_AT)?;
    let encoder = format!("encoder        {}", decision.revisions.encoder);
    output::hanging(encoder, EXPLAINED_AT)?;
    let mut front = decision.policy.iter().flat_map(front_lines);
    front.try_for_each(|line| output::hanging(line, EXPLAINED_AT))?;
    let mut chat = decision.chat.iter().flat_map(chat_lines);
    chat.try_for_each(|line| output::hanging(line, EXPLAINED_AT))
}

/// The runner-up, how sure the decision is, what is near, what was excluded, and the generation
/// that brought the best model.
fn behind_lines(explanation: &Explanation) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(second) = &explanation.runner_up {
        let parts = second
            .parts
            .as_ref()
            .map(|parts| format!(" = {}", sum(parts)));
        lines.push(format!(
            "runner-up      {}, {}: {:.3}{} behind",
            escaped(&second.model),
            escaped(&second.domain),
            second.gap,
            parts.unwrap_or_default()
        ));
    }
    if let Some(sure) = &explanation.decision.confidence {
        lines.push(format!(
            "confidence     {:.0} % that the domain is right, {:.0} % that the model is",
            100.0 * sure.domain,
            100.0 * sure.model
        ));
        lines.push(format!(
            "distance       {:.3} out of distribution: farther than {:.0} % of the held-out prompts, \
             more unknown words than {:.0} %",
            sure.out_of_distribution,
            100.0 * sure.far,
            100.0 * sure.strange_words
        ));
    }
    let listed = |name: &str, near: Vec<String>| match near.is_empty() {
        true => None,
        false => Some(format!("{name}{}", near.join(", "))),
    };
    let models = explanation.near_models.iter();
    let models = models.map(|near| format!("{} {:.1}", escaped(&near.model), near.distance));
    lines.extend(listed("near models    ", models.collect()));
    let domains = explanation.near_domains.iter();
    let domains = domains.map(|near| format!("{} {:.1}", escaped(&near.domain), near.distance));
    lines.extend(listed("near domains   ", domains.collect()));
    let excluded = explanation.excluded.iter();
    let excluded = excluded.map(|part| format!("{} {}", escaped(&part.by), part.models));
    lines.extend(listed("excluded       ", excluded.collect()));
    lines.extend(explanation.introduced.as_ref().map(|introduced| {
        let update = introduced.update;
        let update = update.map_or(String::new(), |number| format!(", update {number}"));
        let or = match introduced.certain {
            true => "",
            false => ", or an earlier generation, which the store does not have",
        };
        format!(
            "introduced     by {}{update} ({}){or}",
            introduced.generation,
            escaped(&introduced.made_by)
        )
    }));
    lines
}

/// Why the answer is not to be acted on, and who answers instead.
fn abstained_line(abstention: &Abstention, decision: &Decision) -> String {
    let reason = match abstention.reason {
        AbstainReason::LowConfidence => "low confidence",
        AbstainReason::OutOfDistribution => "out of distribution",
        AbstainReason::NothingEligible => "nothing eligible",
        AbstainReason::Deadline => "deadline",
    };
    let fallback = decision.policy.as_ref();
    // Where a deadline has passed, the detail names it.
    let fallback = fallback.filter(|_| abstention.reason != AbstainReason::Deadline);
    let fallback = fallback.and_then(|policy| policy.fallback.as_ref());
    let instead = fallback.map(|by| format!("; the fallback {by} answers"));
    let instead = instead.unwrap_or_default();
    format!("abstained: {reason}: {}{instead}", abstention.detail)
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

/// The deployments of a model, unless the only one has the model's name.
fn deployed(ranked: &Ranked) -> Option<String> {
    let names = &ranked.deployments;
    let same = names.iter().all(|name| *name == ranked.model);
    (!same).then(|| format!("deployed as {}", names.join(", ")))
}

/// The parts of a model's score, and its family.
fn explained(ranked: &Ranked) -> String {
    let utility = ranked
        .utility
        .map(|utility| format!("utility {utility:.3}; "));
    let utility = utility.unwrap_or_default();
    let sum = match &ranked.parts {
        Some(parts) => format!("score {:.3} = {}", ranked.score, sum(parts)),
        None => format!("score {:.3}, cosine {:.3}", ranked.score, ranked.cosine),
    };
    match &ranked.family {
        Some(family) => format!("{utility}{sum}; family {family}"),
        None => format!("{utility}{sum}"),
    }
}

/// `learned score 2.05 + memory 0.65 - words 0.14`
fn sum(parts: &Parts) -> String {
    let named = [
        ("learned score", parts.learned),
        ("memory", parts.memory),
        ("words", parts.words),
    ];
    let mut text = String::new();
    for (name, part) in named {
        // A part that is shown as zero has no sign.
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

/// The strengths that the parts of a score were multiplied with.
fn strengths_line(strengths: &Strengths) -> String {
    format!(
        "strengths      learned score {}, memory {}, words {} are multiplied in above; the memory \
         of a model without learned prompts is {} more",
        strengths.learned, strengths.memory, strengths.words, strengths.newcomer
    )
}

/// What was taken of a chat request, what was left out, and what it demands.
fn chat_lines(chat: &ChatRecord) -> [String; 3] {
    let (taken, needs) = (&chat.taken, &chat.needs);
    let from = match taken.from {
        TakenFrom::NewestAsk => "the newest ask",
        TakenFrom::EarlierAsk => "an earlier ask, as the newest says nothing",
        TakenFrom::Summary => "a summary, as no ask is left",
        TakenFrom::System => "the system prompt, as no human wrote anything",
        TakenFrom::SaysNothing => "an ask that says nothing, as there is no other text",
    };
    let place = match taken.message {
        Some(message) => format!("message {message}, {}", taken.role),
        None => taken.role.clone(),
    };
    let bytes = output::counted(taken.bytes, "byte");
    let left = taken.left_out.iter().map(|(why, count)| {
        let why = match why {
            LeftOut::System => "system",
            LeftOut::Assistant => "assistant",
            LeftOut::ToolCall => "call of a tool",
            LeftOut::ToolResult => "result of a tool",
            LeftOut::Harness => "put there by an agent",
            LeftOut::SaysNothing => "says nothing",
            LeftOut::Earlier => "earlier ask",
            LeftOut::Media => "image, audio, video or file",
            LeftOut::TooLong => "middle of a long text",
            LeftOut::Unknown => "unknown",
        };
        match count.bytes {
            0 => format!("{why} {}", count.parts),
            bytes => format!("{why} {} ({})", count.parts, output::counted(bytes, "byte")),
        }
    });
    let left: Vec<String> = left.collect();
    let left = match left.is_empty() {
        true => "nothing".to_owned(),
        false => left.join(", "),
    };
    let flags = [
        (needs.has_tools, "tools"),
        (needs.has_images, "images"),
        (needs.has_audio, "audio"),
        (needs.has_video, "video"),
        (needs.has_files, "files"),
        (needs.wants_audio, "a spoken answer"),
        (
            needs.response_format == ResponseFormat::JsonObject,
            "a JSON object",
        ),
        (
            needs.response_format == ResponseFormat::JsonSchema,
            "JSON by a schema",
        ),
        (
            needs.response_format == ResponseFormat::Other,
            "an answer of a form",
        ),
    ];
    let flags = flags.into_iter().filter(|(set, _)| *set);
    let mut demands: Vec<String> = flags.map(|(_, name)| name.to_owned()).collect();
    demands.push(format!("about {} tokens in", needs.input_tokens));
    if let Some(most) = needs.max_output_tokens {
        demands.push(format!("{most} tokens out"));
    }
    let api = match chat.shape {
        ChatShape::OpenAiChat => "OpenAI chat completions",
        ChatShape::OpenAiResponses => "OpenAI responses",
        ChatShape::AnthropicMessages => "Anthropic messages",
    };
    [
        format!("taken          {place}, {bytes}: {from}"),
        format!("left out       {left}"),
        format!("demands        {}; {api}", demands.join(", ")),
    ]
}

/// The best domains and their probabilities, as many as fit `limit` columns.
fn domains_line(decision: &Decision, limit: usize) -> String {
    let mut text = "domains: ".to_owned();
    for (place, domain) in decision.domains.iter().enumerate() {
        let comma = if place == 0 { "" } else { ", " };
        let share = domain.probability * 100.0;
        let next = format!("{comma}{} {share:.1} %", escaped(&domain.domain));
        if place > 0 && columns(&text) + columns(&next) > limit {
            break;
        }
        text.push_str(&next);
    }
    cut(&text, limit).into_owned()
}

/// Tokens, time, device and generation.
fn timing_line(decision: &Decision) -> String {
    let unknown = match decision.unknown {
        share if share > 0.0 => format!(" ({:.0} % unknown)", share * 100.0),
        _ => String::new(),
    };
    let truncated = if decision.truncated {
        ", cut at the encoder's limit"
    } else {
        ""
    };
    let degraded = if decision.degraded.is_some() {
        " (degraded)"
    } else {
        ""
    };
    let place = match decision.cached {
        true => "from the cache".to_owned(),
        false => format!("on {}", decision.device),
    };
    format!(
        "{}{unknown}{truncated}; {:.1} ms {place}{degraded}; {}",
        output::counted(decision.tokens, "token"),
        decision.timing.total / 1e3,
        decision.revisions.generation,
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
        assert_eq!(sum(&parts), "learned score 2.05 + memory 0.00 - words 0.14");
    }
}
