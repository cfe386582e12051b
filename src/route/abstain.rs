//! Why a decision is not to be acted on.

use serde::{Deserialize, Serialize};

/// Why a router abstains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AbstainReason {
    /// The domain is too uncertain.
    LowConfidence,
    /// The prompt is too far from those that the generation learned.
    OutOfDistribution,
    /// No model may answer.
    NothingEligible,
    /// The request's deadline passed before its prompt was computed.
    Deadline,
}

/// That a router abstains, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Abstention {
    /// The reason, for programs.
    pub reason: AbstainReason,
    /// The reason with its numbers, for people.
    pub detail: String,
}
