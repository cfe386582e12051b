//! The answer to a request, and its JSON form.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::generation::GenerationId;
use crate::hub::ModelId;
use crate::memory::Parts;
use crate::options::Precision;
use crate::route::abstain::Abstention;
use crate::route::chat::ChatRecord;
use crate::route::confidence::Confidence;
use crate::route::policy::PolicyRecord;
use crate::route::session::SessionRecord;

/// Version of the JSON form of a [`Decision`].
const SCHEMA_VERSION: u32 = 1;

/// The models that should take a prompt, with scores and provenance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Decision {
    /// Version of this form; 1.
    pub schema_version: u32,
    /// As in the request.
    pub prompt_id: String,
    /// Best first; equal scores by the smaller id. If a policy trades, by utility. A conversation's
    /// own model is the first if it was kept.
    pub ranked: Vec<Ranked>,
    /// Best domain first; domains without an eligible model are left out.
    pub domains: Vec<DomainScore>,
    /// Best score minus the runner-up's, or best utility if a policy trades; `None` with a single
    /// eligible model.
    pub margin: Option<f32>,
    /// Tokens that were encoded, special ones included.
    pub tokens: usize,
    /// True when the prompt was longer than the encoder's limit and was cut: on the right, or in
    /// the middle if it is of a chat request.
    pub truncated: bool,
    /// Share of the prompt's tokens, special ones left out, that the tokenizer does not know, 0 to
    /// 1. If it is large, the answer means little: emoji, and scripts that the encoder never saw.
    #[serde(default)]
    pub unknown: f32,
    /// What the chat request demanded, what of it was routed and what was left out, if the prompt is
    /// of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatRecord>,
    /// Which models could answer, if the request came with a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRecord>,
    /// How sure the answer is, if that was measured for the generation: of the best by the scores,
    /// also where a session keeps another model or a fallback answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<Confidence>,
    /// Why the answer is not the router's own choice, if a policy or a deadline says so. `ranked`
    /// is the answer of the fallback that `policy` names, with scores of 0 if a deadline passed;
    /// without a fallback it is what would have been answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abstained: Option<Abstention>,
    /// Whether the conversation kept its model, if the request has a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionRecord>,
    /// True if it was made before, for an equal prompt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// Why another device or generation answered than the one asked for, if one did.
    pub degraded: Option<String>,
    /// The device that computed: `cpu`, or the adapter's name.
    pub device: String,
    /// Why that device, where `auto` chooses between the CPU and a GPU for each call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_reason: Option<String>,
    /// The numbers that the prompt's vector was computed in: `f32`, `bf16` or `int8`.
    #[serde(default = "f32")]
    pub precision: Precision,
    /// The generation, encoder and tokenizer that answered.
    #[serde(flatten)]
    pub revisions: Revisions,
    /// How long it took, in microseconds.
    #[serde(rename = "timings_us")]
    pub timing: Timing,
}

/// One ranked model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Ranked {
    /// Its id in the registry.
    pub id: ModelId,
    /// Its name.
    pub model: Arc<str>,
    /// s = cosine / tau (carve.md section 2) or, if the generation has a memory, the sum of
    /// `parts`.
    pub score: f32,
    /// The parts of the score, if the generation has a memory of the prompts that it was learned
    /// with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
    /// Cosine of prompt and model embedding, -1 to 1.
    pub cosine: f32,
    /// Softmax of the scores over all eligible models: a relative confidence.
    pub probability: f32,
    /// Its domain.
    pub domain: Arc<str>,
    /// Its family, if known.
    pub family: Option<Arc<str>>,
    /// The deployments of the model that may answer, if the policy has candidates: the cheapest in
    /// the sense of its trade-off first, else in the order of the policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deployments: Vec<Arc<str>>,
    /// Score less cost and latency, if the policy trades and the model states what that needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utility: Option<f64>,
}

/// The score of a domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct DomainScore {
    /// The domain, as first spelled in the hub.
    pub domain: Arc<str>,
    /// Log-sum-exp of its eligible members' scores.
    pub score: f32,
    /// The members' probabilities, added.
    pub probability: f32,
}

/// The versions that answered; with these three the answer can be reproduced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Revisions {
    /// The generation.
    pub generation: GenerationId,
    /// Name and hash of the encoder bundle: `all-MiniLM-L6-v2@0123456789ab`.
    pub encoder: String,
    /// Beginning of the tokenizer's SHA-256.
    pub tokenizer: String,
}

/// Microseconds of each stage. The prompts of a batch share the times of their batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Timing {
    /// Waiting in the queue, if the options have one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub queue: f64,
    /// Text to tokens.
    pub tokenize: f64,
    /// Tokens to vector; on a GPU without timestamps the whole of the device's work is in `total`.
    pub encode: f64,
    /// Vector to ranks.
    pub score: f64,
    /// From the call to the answer.
    pub total: f64,
    /// Prompts that were computed together.
    pub batch: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "for serde")]
fn is_zero(time: &f64) -> bool {
    *time == 0.0
}

/// Before there was a choice.
fn f32() -> Precision {
    Precision::F32
}

impl Decision {
    pub(crate) const fn schema_version() -> u32 {
        SCHEMA_VERSION
    }
}
