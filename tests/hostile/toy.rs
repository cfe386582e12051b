//! What the cases grow from: a toy encoder, stores that were built and learned with it, and what a
//! router says of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hubrouter::learn::{Control, Experience, Learner, Outcome, Settings};
use hubrouter::{Decision, Encoder, Error, ErrorKind, NewModel, Options, Request, Router, Store};

use crate::common::{cpu, toy};
use crate::harness::corpus_folder;

/// The toy encoder's bundle.
pub fn bundle() -> PathBuf {
    corpus_folder("bundles").join("toy-bert")
}

pub fn options() -> Options {
    cpu(1).encoder(bundle())
}

/// SHA-256 of the toy encoder's manifest, to which the stores of the corpus belong.
pub fn revision() -> String {
    let manifest = std::fs::read(bundle().join("manifest.json")).unwrap();
    crate::seal::sha256(&manifest)
}

/// A text to route whatever the case is.
pub const PROMPT: &str = "find a model for french number 3";

/// An error as a caller sees it.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub kind: ErrorKind,
    pub text: String,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind(),
            text: error.to_string(),
        }
    }
}

impl Refusal {
    /// An error is text for people: some, not too much, and nothing that steers a terminal. A panic that
    /// was caught is still one, but for those of the tokenizer's crate.
    pub fn judge(&self) -> Result<(), String> {
        if self.text.trim().is_empty() {
            return Err("an error without a text".into());
        }
        if self.kind == ErrorKind::Panic && !self.text.contains("token") {
            return Err(format!("a panic: {}", self.text));
        }
        if self.text.len() > 16_384 {
            let start: String = self.text.chars().take(200).collect();
            return Err(format!("an error of {} bytes: {start}", self.text.len()));
        }
        if self.text.chars().any(|c| c.is_control() && c != '\n') {
            return Err(format!("an error with control characters: {:?}", self.text));
        }
        Ok(())
    }
}

pub fn judge_refused<T>(result: &Result<T, Refusal>) -> Result<(), String> {
    result.as_ref().err().map_or(Ok(()), Refusal::judge)
}

/// An answer, as far as it is judged.
#[derive(Clone, Debug)]
pub struct Answer {
    pub generation: String,
    pub degraded: Option<String>,
    /// What is wrong with the numbers.
    pub odd: Option<String>,
}

impl Answer {
    pub fn of(decision: &Decision) -> Self {
        Self {
            generation: decision.revisions.generation.to_string(),
            degraded: decision.degraded.clone(),
            odd: odd(decision),
        }
    }
}

/// What cannot be in a decision.
fn odd(decision: &Decision) -> Option<String> {
    let ranked = &decision.ranked;
    for model in ranked {
        let good = model.score.is_finite()
            && (-1.001..=1.001).contains(&model.cosine)
            && (0.0..=1.0001).contains(&model.probability);
        if !good {
            return Some(format!(
                "score {} cosine {} probability {}",
                model.score, model.cosine, model.probability
            ));
        }
    }
    if !(0.0..=1.0).contains(&decision.unknown) {
        return Some(format!("unknown {}", decision.unknown));
    }
    if !ranked.is_sorted_by(|a, b| a.score >= b.score) {
        return Some("the ranking is not in order of its scores".into());
    }
    let domains = &decision.domains;
    let sum: f64 = domains
        .iter()
        .map(|domain| f64::from(domain.probability))
        .sum();
    if !domains.is_empty() && (sum - 1.0).abs() > 1e-3 {
        return Some(format!("the domains' probabilities add up to {sum}"));
    }
    let zero = |model: &hubrouter::Ranked| model.parts.is_none() && model.score == 0.0;
    if ranked.len() > 1 && ranked.iter().all(zero) {
        return Some("every score is 0".into());
    }
    decision
        .margin
        .filter(|margin| !margin.is_finite())
        .map(|margin| format!("margin {margin}"))
}

/// Opens the store as it is and routes one prompt.
pub fn served(store: &Path) -> Result<Answer, Refusal> {
    let router = Router::open(store, options())?;
    let decision = router.route(&Request::new(PROMPT).top(usize::MAX))?;
    Ok(Answer::of(&decision))
}

/// A new store in `folder` with the toy's six models.
pub fn build(folder: &Path) -> Store {
    let models: Vec<NewModel> = (0..6).map(toy::model).collect();
    let store = Store::create(folder).unwrap();
    let encoder = Arc::new(Encoder::open(bundle(), &options()).unwrap());
    store
        .build(&encoder, &models, "hub build", &mut |_, _| {})
        .unwrap();
    store
}

/// Learns `experience` into the store with at most `steps` steps: the child, if it was published.
pub fn learn(
    store: &Path,
    experience: &Experience,
    settings: Settings,
    steps: usize,
) -> Result<Option<String>, Refusal> {
    let mut learner = Learner::open(store, None, settings, options())?.allow_unmeasured(true);
    let mut count = 0;
    let outcome = learner.learn(experience, None, &mut |_| {
        count += 1;
        if count > steps {
            Control::Stop
        } else {
            Control::Continue
        }
    })?;
    match outcome {
        Outcome::Learned(_) => Ok(Some(learner.commit()?.to_string())),
        _ => Ok(None),
    }
}
