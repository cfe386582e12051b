//! A line of a log: a decision, and what became of it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result, bail, error};
use crate::files;
use crate::generation::GenerationId;
use crate::options::Precision;
use crate::route::{Decision, PolicyRecord};
use crate::text::lines::json_line;

/// What a line says that it is.
const KIND: &str = "hubrouter-feedback";

/// Version of the form of a line.
const SCHEMA_VERSION: u32 = 1;

/// Most elements of a vector that is read.
const WIDEST: usize = 1 << 16;

/// A rating from here on is good.
const GOOD: f64 = 0.5;

/// What was really used for a prompt, and how it went; every part may be unknown.
///
/// ```
/// use hubrouter::feedback::Feedback;
///
/// let went = Feedback::used("acme/ner").success(true).tokens(120, 40).cost(0.002);
/// assert_eq!(went.used.as_deref(), Some("acme/ner"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default)]
#[non_exhaustive]
pub struct Feedback {
    /// When the request came, in Unix milliseconds; in JSON also ISO 8601, which is written.
    /// `None`: when the line is written.
    #[serde(with = "iso", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", schemars(with = "Option<String>"))]
    pub time: Option<i64>,
    /// The model that was really used, or the name of its deployment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// The model that is known to be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_model: Option<String>,
    /// Whether what was used gave a good answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// How good the answer was, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rating: Option<f64>,
    /// What the answer cost, in the unit of the registry's prices, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// How long the answer took, in milliseconds, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Tokens of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    /// Tokens of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// Why there was no answer. A log keeps it as it is, whatever is kept of the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One line of a log (`docs/feedback.md`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct FeedbackLine {
    /// `hubrouter-feedback`.
    pub kind: String,
    /// Version of this form; 1.
    pub schema_version: u32,
    /// As in the request.
    #[serde(default)]
    pub prompt_id: String,
    /// What was really used, when, and how it went.
    #[serde(flatten)]
    pub feedback: Feedback,
    /// True if nobody acted on the decision.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
    /// The prompt, with [`crate::feedback::KeepPrompt::Text`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// True if only the beginning of the prompt was kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prompt_cut: bool,
    /// SHA-256 of the prompt's bytes, with [`crate::feedback::KeepPrompt::Hash`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_sha256: Option<String>,
    /// The prompt's pooled vector, not normalised, with
    /// [`crate::feedback::KeepPrompt::Vector`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_vector: Option<Vec<f32>>,
    /// [`crate::Encoder::revision`] of the encoder that made the vector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vector_encoder: Option<String>,
    /// The generation that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<GenerationId>,
    /// Name and hash of its encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<String>,
    /// The numbers that it computed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// The first of the decision's models, best first; empty without an answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranked: Vec<LoggedModel>,
    /// As in the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f32>,
    /// Tokens that were encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// True if the prompt was longer than the encoder's limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// Share of tokens that the tokenizer does not know, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<f32>,
    /// Microseconds that the route took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_us: Option<f64>,
    /// Which models could answer, without the Pareto front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRecord>,
    /// Why another device or generation answered than the one asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
    /// The decision's `confidence`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<Value>,
    /// The decision's `abstained`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abstained: Option<Value>,
    /// Why the router had no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_answer: Option<NoAnswer>,
}

/// A ranked model, as a log keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct LoggedModel {
    /// Its name.
    pub model: String,
    /// Its domain.
    pub domain: String,
    /// Its score.
    pub score: f32,
    /// Its probability, 0 to 1.
    pub probability: f32,
    /// Its deployments that could answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deployments: Vec<String>,
    /// Score less cost and latency, if the policy traded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utility: Option<f64>,
}

/// The error of a router that had no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NoAnswer {
    /// Its kind.
    pub kind: ErrorKind,
    /// Its text, if the log keeps the text of prompts: it may cite one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Times as Unix milliseconds that are written in ISO 8601 and read in both forms.
mod iso {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "time: expected Unix milliseconds or ISO 8601")]
    enum Form {
        Milliseconds(i64),
        Text(String),
    }

    #[expect(clippy::ref_option, reason = "for serde")]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<i64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let written = time.map(|ms| match jiff::Timestamp::from_millisecond(ms) {
            Ok(time) => format!("{time:.3}"),
            // Out of the calendar's range: no such time is read, either.
            Err(_) => ms.to_string(),
        });
        written.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<i64>, D::Error> {
        let time = match Option::<Form>::deserialize(deserializer)? {
            None => return Ok(None),
            Some(Form::Milliseconds(ms)) => jiff::Timestamp::from_millisecond(ms),
            Some(Form::Text(text)) => text.parse(),
        };
        match time {
            Ok(time) => Ok(Some(time.as_millisecond())),
            Err(e) => Err(D::Error::custom(format!(
                "time: expected Unix milliseconds or ISO 8601: {e}"
            ))),
        }
    }
}

impl Feedback {
    /// The model or deployment `name` was used.
    pub fn used(name: impl Into<String>) -> Self {
        Self {
            used: Some(name.into()),
            ..Self::default()
        }
    }

    /// Whether it gave a good answer.
    pub fn success(mut self, good: bool) -> Self {
        self.success = Some(good);
        self
    }

    /// How good the answer was, 0 to 1.
    pub fn rating(mut self, rating: f64) -> Self {
        self.rating = Some(rating);
        self
    }

    /// What the answer cost, in the unit of the registry's prices.
    pub fn cost(mut self, cost: f64) -> Self {
        self.cost = Some(cost);
        self
    }

    /// How long the answer took, in milliseconds.
    pub fn latency_ms(mut self, latency: f64) -> Self {
        self.latency_ms = Some(latency);
        self
    }

    /// Tokens of the request and of the answer.
    pub fn tokens(mut self, input: u64, output: u64) -> Self {
        (self.input_tokens, self.output_tokens) = (Some(input), Some(output));
        self
    }

    /// The model that is known to be right.
    pub fn expected_model(mut self, name: impl Into<String>) -> Self {
        self.expected_model = Some(name.into());
        self
    }

    /// Why there was no answer.
    pub fn error(mut self, text: impl Into<String>) -> Self {
        self.error = Some(text.into());
        self
    }

    /// When the request came, in Unix milliseconds.
    pub fn time(mut self, milliseconds: i64) -> Self {
        self.time = Some(milliseconds);
        self
    }

    /// Whether the answer was good, if that is known: `success` and a rating of at least 0.5, as
    /// far as they are given. An error is no good answer.
    pub fn good(&self) -> Option<bool> {
        let rated = self.rating.map(|rating| rating >= GOOD);
        let failed = self.error.is_some().then_some(false);
        [self.success, rated, failed]
            .into_iter()
            .flatten()
            .reduce(|a, b| a && b)
    }

    /// Errors: a number is out of its range.
    pub(crate) fn check(&self) -> Result<()> {
        let not_negative = 0.0..=f64::MAX;
        for (name, value, range) in [
            ("rating", self.rating, 0.0..=1.0),
            ("cost", self.cost, not_negative.clone()),
            ("latency_ms", self.latency_ms, not_negative),
        ] {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                let wanted = match name {
                    "rating" => "a number from 0 to 1",
                    _ => "a number from 0 on",
                };
                bail!(InvalidRequest, "{name}: expected {wanted}, found {value}");
            }
        }
        Ok(())
    }
}

impl FeedbackLine {
    /// A line with what is known of every request.
    pub(super) fn new(prompt_id: &str, feedback: &Feedback) -> Self {
        Self {
            kind: KIND.to_owned(),
            schema_version: SCHEMA_VERSION,
            prompt_id: prompt_id.to_owned(),
            feedback: feedback.clone(),
            ..Self::default()
        }
    }

    /// The line with the first `top` models of `decision`, and what else it says.
    pub(super) fn decided(mut self, decision: &Decision, top: usize) -> Result<Self> {
        let ranked = decision.ranked.iter().take(top).map(|ranked| LoggedModel {
            model: ranked.model.to_string(),
            domain: ranked.domain.to_string(),
            score: ranked.score,
            probability: ranked.probability,
            deployments: ranked.deployments.iter().map(|d| d.to_string()).collect(),
            utility: ranked.utility,
        });
        self.ranked = ranked.collect();
        self.generation = Some(decision.revisions.generation.clone());
        self.encoder = Some(decision.revisions.encoder.clone());
        self.precision = Some(decision.precision);
        self.margin = decision.margin;
        self.tokens = Some(decision.tokens);
        self.truncated = decision.truncated;
        self.unknown = Some(decision.unknown);
        self.route_us = Some(decision.timing.total);
        self.degraded.clone_from(&decision.degraded);
        self.policy = decision.policy.clone().map(|mut record| {
            record.pareto = Vec::new();
            record
        });
        // Parts of a decision that not every version has.
        let shown = Decision {
            ranked: Vec::new(),
            domains: Vec::new(),
            policy: None,
            chat: None,
            ..decision.clone()
        };
        let mut shown =
            serde_json::to_value(&shown).map_err(|e| error!(Format, "cannot write JSON: {e}"))?;
        let mut part = |name| {
            let part = shown.get_mut(name).map(Value::take);
            part.filter(|part| !part.is_null())
        };
        self.confidence = part("confidence");
        self.abstained = part("abstained");
        Ok(self)
    }

    /// The line of JSON, with its line break.
    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let mut text =
            serde_json::to_vec(self).map_err(|e| error!(Format, "cannot write JSON: {e}"))?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads a line; `None` if it is one of another kind or version.
    pub(super) fn parse(text: &[u8]) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Header {
            kind: String,
            schema_version: u32,
        }
        let other = |kind: &str, version: u32| kind != KIND || version != SCHEMA_VERSION;
        match json_line::<Self>(text) {
            Ok(line) if other(&line.kind, line.schema_version) => Ok(None),
            Ok(line) => line.check().map(|()| Some(line)),
            Err(error) => match json_line::<Header>(text) {
                Ok(found) if other(&found.kind, found.schema_version) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Errors: a number is out of its range, or a hash is none.
    fn check(&self) -> Result<()> {
        self.feedback.check()?;
        for ranked in &self.ranked {
            if !(0.0..=1.0).contains(&ranked.probability) || !ranked.score.is_finite() {
                bail!(
                    Format,
                    "ranked: expected a finite score and a probability from 0 to 1, found {}, {}",
                    ranked.score,
                    ranked.probability
                );
            }
        }
        if let Some(vector) = &self.prompt_vector
            && (vector.is_empty()
                || vector.len() > WIDEST
                || !vector.iter().all(|element| element.is_finite()))
        {
            bail!(
                Format,
                "prompt_vector: expected 1 to {WIDEST} finite numbers, found {}",
                vector.len()
            );
        }
        if let Some(hash) = &self.prompt_sha256
            && !files::is_sha256(hash)
        {
            bail!(
                Format,
                "prompt_sha256: expected 64 hexadecimal digits, found another text"
            );
        }
        Ok(())
    }

    /// The best model of the decision, unless there was no answer.
    pub fn best(&self) -> Option<&LoggedModel> {
        self.ranked.first()
    }

    /// The name of the model behind `name`, which may be one of its deployments.
    fn model_of<'l>(&'l self, name: &'l str) -> &'l str {
        let has = |ranked: &&LoggedModel| ranked.deployments.iter().any(|d| d == name);
        self.ranked
            .iter()
            .find(has)
            .map_or(name, |ranked| &ranked.model)
    }

    /// The name of the model that was really used, if that is known; of a deployment that the
    /// decision names, its model's.
    pub fn used_model(&self) -> Option<&str> {
        self.feedback
            .used
            .as_deref()
            .map(|name| self.model_of(name))
    }

    /// The name of the model that is known to be right, if one is.
    pub fn expected_model(&self) -> Option<&str> {
        let expected = self.feedback.expected_model.as_deref();
        expected.map(|name| self.model_of(name))
    }

    /// The model that the line shows to be right: the expected one, or else the used one if its
    /// answer was good.
    pub fn right_model(&self) -> Option<&str> {
        let good = self.feedback.good() == Some(true);
        self.expected_model()
            .or_else(|| self.used_model().filter(|_| good))
    }

    /// The error of a router that had no answer; its text only if prompts are kept as texts.
    pub(super) fn failed(mut self, error: &Error, with_text: bool) -> Self {
        self.no_answer = Some(NoAnswer {
            kind: error.kind(),
            message: with_text.then(|| error.to_string()),
        });
        self
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(json: &str) -> Result<Option<FeedbackLine>> {
        FeedbackLine::parse(json.as_bytes())
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let went = Feedback::used("m")
            .success(true)
            .rating(0.75)
            .cost(0.5)
            .latency_ms(12.5)
            .tokens(7, 9)
            .expected_model("n")
            .error("late")
            .time(1_732_788_000_123);
        let mut line = FeedbackLine::new("p", &went);
        line.prompt_vector = Some(vec![0.1, -2.5e-7]);
        line.ranked.push(LoggedModel {
            model: "m".into(),
            domain: "d".into(),
            score: -1.25,
            probability: 0.1,
            deployments: vec!["m-eu".into()],
            utility: None,
        });
        let json = line.to_json().unwrap();
        let text = std::str::from_utf8(&json).unwrap();
        assert!(
            text.contains(r#""time":"2024-11-28T10:00:00.123Z""#),
            "{text}"
        );
        assert_eq!(parse(text).unwrap(), Some(line));
    }

    #[test]
    fn times_come_in_two_forms() {
        let head = r#""kind":"hubrouter-feedback","schema_version":1"#;
        for time in [r#""2024-11-28T10:00:00.123Z""#, "1732788000123"] {
            let line = parse(&format!("{{{head},\"time\":{time}}}")).unwrap();
            assert_eq!(line.unwrap().feedback.time, Some(1_732_788_000_123));
        }
        for time in [r#""yesterday""#, "9223372036854775807", "true", "1.5"] {
            let error = parse(&format!("{{{head},\"time\":{time}}}")).unwrap_err();
            assert!(error.to_string().contains("time: expected"), "{error}");
        }
    }

    #[test]
    fn other_kinds_and_versions_are_no_lines_of_a_log_and_no_errors() {
        for json in [
            r#"{"kind":"other","schema_version":1}"#,
            r#"{"kind":"hubrouter-feedback","schema_version":2,"ranked":7}"#,
        ] {
            assert_eq!(parse(json).unwrap(), None, "{json}");
        }
    }

    #[test]
    fn errors_say_what_was_expected() {
        let head = r#""kind":"hubrouter-feedback","schema_version":1"#;
        for (rest, want) in [
            (r#","rating":1.5"#, "rating: expected a number from 0 to 1"),
            (r#","cost":-1"#, "cost: expected a number from 0 on"),
            (r#","prompt_vector":[]"#, "prompt_vector: expected 1 to"),
            (r#","prompt_sha256":"abc""#, "prompt_sha256: expected 64"),
            (r#","generation":"../x""#, "generation"),
            (r#","used":7"#, "expected a string"),
            (
                r#","ranked":[{"model":"m","domain":"d","score":0,"probability":7}]"#,
                "probability from 0 to 1",
            ),
        ] {
            let error = parse(&format!("{{{head}{rest}}}")).unwrap_err().to_string();
            assert!(error.contains(want), "{rest}: {error}");
        }
        for not_json in ["{", "[1]", "\0", "", "7"] {
            assert!(parse(not_json).is_err(), "{not_json}");
        }
        let deep = format!("{{{head},\"confidence\":{}}}", "[".repeat(100_000));
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn good_is_all_that_is_known() {
        for (went, want) in [
            (Feedback::default(), None),
            (Feedback::default().success(true), Some(true)),
            (Feedback::default().rating(0.5), Some(true)),
            (Feedback::default().rating(0.4).success(true), Some(false)),
            (Feedback::default().error("x"), Some(false)),
        ] {
            assert_eq!(went.good(), want, "{went:?}");
        }
    }

    #[test]
    fn the_right_model_is_the_expected_one_or_a_good_one() {
        let line = |went: Feedback| {
            let mut line = FeedbackLine::new("", &went);
            line.ranked.push(LoggedModel {
                model: "m".into(),
                domain: "d".into(),
                score: 0.0,
                probability: 1.0,
                deployments: vec!["m-eu".into()],
                utility: None,
            });
            line
        };
        for (went, want) in [
            (Feedback::used("m-eu").success(true), Some("m")),
            (Feedback::used("m-eu").success(false), None),
            (Feedback::used("m-eu"), None),
            (Feedback::used("x").expected_model("y"), Some("y")),
            (Feedback::used("x").success(true), Some("x")),
        ] {
            assert_eq!(line(went.clone()).right_model(), want, "{went:?}");
        }
    }
}
