//! A request: a prompt, or the text of a chat request, and the size of the answer.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Result;
use crate::route::SessionKey;
use crate::route::chat::{self, ChatRecord, ChatShape};

/// Ranked models of a request by default.
const TOP: usize = 10;

/// A prompt, and how many ranked models the answer should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
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
    /// The chat request that the prompt was taken from, if it was. A prompt over the encoder's
    /// limit then keeps its head and its tail; others are cut on the right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatRecord>,
    /// How long after the call the prompt must be in computation; in JSON in microseconds. When it
    /// has passed, the policy's last fallback answers, or there is an error of kind
    /// [`crate::ErrorKind::Deadline`].
    #[serde(
        rename = "deadline_us",
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "microseconds",
        deserialize_with = "of_microseconds"
    )]
    #[cfg_attr(feature = "cli", schemars(with = "Option<u64>"))]
    pub deadline: Option<Duration>,
    /// The conversation that it belongs to, which keeps its model while that is good enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionKey>,
}

#[expect(clippy::ref_option, reason = "for serde")]
fn microseconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    let whole = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    time.map(whole).serialize(serializer)
}

fn of_microseconds<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_micros))
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
            chat: None,
            deadline: None,
            session: None,
        }
    }

    /// Asks for the ten best models for a chat request, given as the JSON that a client sends:
    /// OpenAI chat completions, OpenAI responses or Anthropic messages. The shape says which.
    ///
    /// What is routed is the newest ask of a human, without what agents put around it and without
    /// results of tools; the ask before it where the newest says nothing ("yes, go on").
    /// [`Request::chat`] says what was taken and left out, and what the request demands of a model.
    /// `docs/chat.md` has the rules.
    ///
    /// ```
    /// let json = br#"{"messages": [
    ///     {"role": "user", "content": "Which bird is singing?"},
    ///     {"role": "assistant", "content": "Shall I listen to the recording?"},
    ///     {"role": "user", "content": "Yes, go on."}]}"#;
    /// let request = hubrouter::Request::from_chat(json)?;
    /// assert_eq!(request.prompt, "Which bird is singing?");
    /// # Ok::<(), hubrouter::Error>(())
    /// ```
    ///
    /// Errors: of kind [`crate::ErrorKind::Format`] if it is no JSON; of kind
    /// [`crate::ErrorKind::InvalidRequest`] if it is no chat request, is longer than 64 MiB, or has
    /// no text. The message names the path within the JSON.
    pub fn from_chat(json: impl AsRef<[u8]>) -> Result<Self> {
        Self::read_chat(json.as_ref(), None)
    }

    /// As [`Request::from_chat`], for the API `shape` whatever the request looks like.
    pub fn from_chat_as(json: impl AsRef<[u8]>, shape: ChatShape) -> Result<Self> {
        Self::read_chat(json.as_ref(), Some(shape))
    }

    fn read_chat(json: &[u8], named: Option<ChatShape>) -> Result<Self> {
        let (prompt, record) = chat::read(json, named)?;
        Ok(Self {
            chat: Some(record),
            ..Self::new(prompt)
        })
    }

    /// The request with this many ranked models.
    pub fn top(mut self, top: usize) -> Self {
        self.top = top;
        self
    }

    /// The request with a deadline, counted from the call.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The request as one of the conversation `id` of `tenant`, which may be empty.
    pub fn session(mut self, tenant: impl Into<String>, id: impl Into<String>) -> Self {
        self.session = Some(SessionKey::new(tenant, id));
        self
    }

    /// The request with an id.
    pub fn prompt_id(mut self, id: impl Into<String>) -> Self {
        self.prompt_id = id.into();
        self
    }
}
