//! Which API a request is for, by its shape.

use crate::error::Result;
use crate::route::chat::json::{Json, JsonPath};
use crate::route::chat::record::ChatShape;

/// Keys that Anthropic's requests have at the top and OpenAI's have not.
const ANTHROPIC: [&str; 4] = ["system", "anthropic_version", "stop_sequences", "thinking"];

/// Keys that OpenAI's chat requests have at the top and Anthropic's have not.
const OPEN_AI: [&str; 9] = [
    "max_completion_tokens",
    "response_format",
    "frequency_penalty",
    "presence_penalty",
    "stream_options",
    "functions",
    "modalities",
    "reasoning_effort",
    "seed",
];

/// Kinds of parts that Anthropic's messages have and OpenAI's have not, beside uses and results of
/// tools.
const BLOCKS: [&str; 4] = ["thinking", "redacted_thinking", "image", "document"];

/// The API of `root`. What both APIs with `messages` allow is OpenAI's, unless the model is a
/// Claude.
///
/// Errors: neither `messages` nor `input` is there.
pub(super) fn shape(root: &Json<'_>) -> Result<ChatShape> {
    if !matches!(root, Json::Object(_)) {
        return Err(JsonPath::Root.wrong("an object with messages or input", root));
    }
    let Some(messages) = root.get("messages") else {
        return match root.get("input") {
            Some(_) => Ok(ChatShape::OpenAiResponses),
            None => Err(JsonPath::Root.wrong("messages or input in it", root)),
        };
    };
    let has = |keys: &[&str]| keys.iter().any(|key| root.get(key).is_some());
    let tools = root.get("tools").map_or(&[][..], Json::list);
    let by_tools = tools.iter().any(|tool| tool.get("input_schema").is_some());
    let is_open_ai = |message: &Json<'_>| {
        let role = message.text("role");
        matches!(role, Some("system" | "developer" | "tool" | "function"))
            || message.get("tool_calls").is_some()
    };
    let is_block = |part: &Json<'_>| {
        let kind = part.text("type").unwrap_or_default();
        kind.ends_with("tool_use") || kind.ends_with("tool_result") || BLOCKS.contains(&kind)
    };
    let has_blocks = |message: &Json<'_>| {
        let content = message.get("content").map_or(&[][..], Json::list);
        content.iter().any(is_block)
    };
    let anthropic = if messages.list().iter().any(is_open_ai) || has(&OPEN_AI) {
        false
    } else {
        by_tools
            || has(&ANTHROPIC)
            || messages.list().iter().any(has_blocks)
            || root
                .text("model")
                .is_some_and(|model| model.contains("claude"))
    };
    Ok(match anthropic {
        true => ChatShape::AnthropicMessages,
        false => ChatShape::OpenAiChat,
    })
}
