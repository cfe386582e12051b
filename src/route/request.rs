//! A request: a prompt and the size of the answer.

use serde::{Deserialize, Serialize};

/// Ranked models of a request by default.
const TOP: usize = 10;

/// A prompt, and how many ranked models the answer should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Request {
    /// The text to route.
    pub prompt: String,
    /// Comes back in the decision.
    #[serde(default)]
    pub prompt_id: String,
    /// Ranked models of the answer; if the hub has fewer, all of them.
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
