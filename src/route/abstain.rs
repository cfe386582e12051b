//! Why a decision is not the router's own choice.

use serde::{Deserialize, Serialize};

/// Why a router did not choose by the scores of the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AbstainReason {
    /// The request's deadline passed before its prompt was computed.
    Deadline,
}

/// That a router did not choose by the scores of the prompt, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Abstention {
    /// The reason, for programs.
    pub reason: AbstainReason,
    /// The reason with its numbers, for people.
    pub detail: String,
}
