//! What is behind a decision.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::generation::GenerationId;
use crate::hub::ModelId;
use crate::memory::{Parts, Strengths};
use crate::route::{Decision, Excluded};

/// A decision and what is behind it: [`crate::Router::explain`] makes it.
///
/// Prompts are not named: a memory keeps sums over them alone. The nearest models and domains stand
/// in for the nearest prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Explanation {
    /// The decision; its fields stand beside the others in JSON.
    #[serde(flatten)]
    pub decision: Decision,
    /// The second of the ranking, and what it lacks.
    pub runner_up: Option<RunnerUp>,
    /// The models whose prompts are nearest in the memory's space, at most five; empty without a
    /// memory.
    pub near_models: Vec<NearModel>,
    /// The domains whose prompts are nearest, at most five; empty without a memory.
    pub near_domains: Vec<NearDomain>,
    /// What was excluded, and by what.
    pub excluded: Vec<Excluded>,
    /// The generation that brought the best model; `None` if no model is ranked, or if only a card
    /// of the policy describes the best.
    pub introduced: Option<Introduced>,
    /// What the parts of a score were multiplied with, if there is a memory.
    pub strengths: Option<Strengths>,
}

/// The second of a ranking against the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct RunnerUp {
    /// Its name.
    pub model: Arc<str>,
    /// Its domain.
    pub domain: Arc<str>,
    /// The first's score minus its own.
    pub gap: f32,
    /// The same of each part of the score, if there is a memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
}

/// A model whose prompts are near.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NearModel {
    /// Its id in the registry.
    pub id: ModelId,
    /// Its name.
    pub model: Arc<str>,
    /// Its domain.
    pub domain: Arc<str>,
    /// Distance to its expected prompt, in standard deviations of prompts about their model's mean
    /// (`docs/memory.md`).
    pub distance: f32,
    /// Its learned prompts.
    pub prompts: u32,
}

/// A domain whose prompts are near.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NearDomain {
    /// The domain, as first spelled in the hub.
    pub domain: Arc<str>,
    /// Distance to the mean of its models' expected prompts, as in [`NearModel`].
    pub distance: f32,
    /// Learned prompts of its models.
    pub prompts: u32,
}

/// The generation that brought a model into the hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Introduced {
    /// The generation.
    pub generation: GenerationId,
    /// The number of the update that made it, from 1; `None` if it was made without learning.
    pub update: Option<u32>,
    /// The command that made it.
    pub made_by: String,
    /// False if the store has no longer its parent, which may have had the model already.
    pub certain: bool,
}
