//! What a decision says of the chat request behind it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The API whose JSON a chat request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChatShape {
    /// OpenAI chat completions: `messages`, with system messages among them.
    #[serde(rename = "openai_chat")]
    OpenAiChat,
    /// OpenAI responses: `input` and `instructions`.
    #[serde(rename = "openai_responses")]
    OpenAiResponses,
    /// Anthropic messages: `messages` of content blocks, and `system` beside them.
    AnthropicMessages,
}

/// What a chat request demands of a model, whatever its text is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default)]
#[non_exhaustive]
pub struct ChatNeeds {
    /// Tools are declared, or the conversation has calls of tools or their results.
    pub has_tools: bool,
    /// An image is somewhere in the conversation, results of tools included.
    pub has_images: bool,
    /// Audio is somewhere in the conversation.
    pub has_audio: bool,
    /// Video is somewhere in the conversation.
    pub has_video: bool,
    /// A file, such as a PDF, is somewhere in the conversation.
    pub has_files: bool,
    /// The answer should be spoken: `modalities` has `audio`.
    pub wants_audio: bool,
    /// The form of the answer.
    pub response_format: ResponseFormat,
    /// Tokens asked for: `max_completion_tokens`, `max_tokens` or `max_output_tokens`.
    pub max_output_tokens: Option<u64>,
    /// Estimated tokens of the whole request: one for four ASCII bytes of text, one for each other
    /// character, 4 for a message, 1,000 for an image, audio, video or file.
    pub input_tokens: u64,
}

/// The form of the answer that a chat request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResponseFormat {
    /// Text without a form; what is meant if nothing is said.
    #[default]
    Text,
    /// Some JSON object.
    JsonObject,
    /// JSON by a schema.
    JsonSchema,
    /// A form that this crate does not know, such as a grammar.
    Other,
}

/// Where the routed text was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TakenFrom {
    /// The newest ask of a human.
    NewestAsk,
    /// An ask before the newest, which says nothing ("yes, go on").
    EarlierAsk,
    /// A summary that an agent wrote of the conversation before; no ask is left.
    Summary,
    /// The system prompt; no human wrote anything.
    System,
    /// An ask that says nothing: there is no other text.
    SaysNothing,
}

/// Why a part of a conversation is not in the routed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeftOut {
    /// A system or developer prompt.
    System,
    /// An answer of the model, or its reasoning.
    Assistant,
    /// A call of a tool.
    ToolCall,
    /// The result of a tool, also one that an agent sends as the user's text.
    ToolResult,
    /// A reminder, an environment dump or another text that an agent put into the user's turn.
    Harness,
    /// An ask that says nothing, newer than the one that was taken.
    SaysNothing,
    /// An ask older than the one that was taken.
    Earlier,
    /// An image, audio, video or file.
    Media,
    /// The middle of a text of more than 1 MiB.
    TooLong,
    /// A role or a kind of content that this crate does not know.
    Unknown,
}

/// Parts that were left out for one reason, and their bytes of text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct LeftOutCount {
    /// Parts of messages, or blocks within a part.
    pub parts: usize,
    /// Their text in bytes; media and calls of tools count as none.
    pub bytes: usize,
}

/// The message that became the routed text, and what did not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ChatTaken {
    /// How the message was chosen.
    pub from: TakenFrom,
    /// Its place in `messages` or `input`, from 0; `None` for `system` and `instructions`.
    pub message: Option<usize>,
    /// Its role.
    pub role: String,
    /// Bytes of the routed text.
    pub bytes: usize,
    /// What was left out, by reason.
    pub left_out: BTreeMap<LeftOut, LeftOutCount>,
}

/// A chat request without its text: which API, what it demands, what of it is routed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ChatRecord {
    /// The API.
    pub shape: ChatShape,
    /// What the request demands of a model.
    pub needs: ChatNeeds,
    /// What is routed, and what was left out.
    pub taken: ChatTaken,
}

impl ChatTaken {
    /// Counts one more part of `bytes` that was left out.
    pub(super) fn leave(&mut self, why: LeftOut, bytes: usize) {
        let count = self.left_out.entry(why).or_default();
        count.parts += 1;
        count.bytes += bytes;
    }
}
