//! What a host asks.

use serde::{Deserialize, Serialize};

/// Ranked models of a request that says nothing else.
const TOP: usize = 10;

/// A prompt, and how much of an answer is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Request {
    /// The text to route.
    pub prompt: String,
    /// Comes back in the decision.
    #[serde(default)]
    pub prompt_id: String,
    /// Ranked models wanted; more than the hub has gives the whole hub.
    #[serde(default = "top")]
    pub top: usize,
}

fn top() -> usize {
    TOP
}

impl Request {
    /// Asks for the ten best models for `prompt`.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            prompt_id: String::new(),
            top: TOP,
        }
    }

    /// The request with this many ranked models.
    pub fn top(mut self, top: usize) -> Self {
        self.top = top;
        self
    }

    /// The request with an id.
    pub fn prompt_id(mut self, id: impl Into<String>) -> Self {
        self.prompt_id = id.into();
        self
    }
}
