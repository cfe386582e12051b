//! How much of a prompt a log keeps.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, error};

/// What a log keeps of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeepPrompt {
    /// Its text, of which at most 512 KiB: `learn` and `replay-log` can read the log.
    Text,
    /// The SHA-256 of its text: equal prompts are found. Who guesses a prompt can confirm it.
    #[default]
    Hash,
    /// Its vector by the encoder without an adapter: prompts can be clustered. A vector tells much
    /// about the text, and costs a second encoding.
    Vector,
    /// Nothing.
    Nothing,
}

impl KeepPrompt {
    const ALL: [Self; 4] = [Self::Text, Self::Hash, Self::Vector, Self::Nothing];

    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Hash => "hash",
            Self::Vector => "vector",
            Self::Nothing => "nothing",
        }
    }
}

impl fmt::Display for KeepPrompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KeepPrompt {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|keep| keep.name() == text);
        known.ok_or_else(|| {
            error!(
                InvalidRequest,
                "expected text, hash, vector or nothing, found {text:?}"
            )
        })
    }
}
