//! What a chat request demands of a model.

use crate::error::Result;
use crate::route::chat::json::{Json, JsonPath};
use crate::route::chat::messages::{Media, Message, MessagePart, Speaker};
use crate::route::chat::record::{ChatNeeds, ResponseFormat};

/// Tokens of a message beside its text.
const PER_MESSAGE: u64 = 4;

/// Tokens of an image, audio, video or file, roughly.
const PER_MEDIUM: u64 = 1000;

/// Keys of the tokens asked for, the one that counts first.
const LIMITS: [&str; 3] = ["max_completion_tokens", "max_tokens", "max_output_tokens"];

/// ASCII bytes and other characters of texts.
#[derive(Default)]
struct TextSize {
    ascii: u64,
    others: u64,
}

impl TextSize {
    fn add(&mut self, text: &str) {
        let ascii = text.bytes().filter(u8::is_ascii).count() as u64;
        // The first byte of each character of several.
        let others = text.bytes().filter(|byte| *byte >= 0xc0).count() as u64;
        self.ascii += ascii;
        self.others += others;
    }

    /// Every text inside of `json`, keys included.
    fn add_all(&mut self, json: &Json<'_>) {
        match json {
            Json::Text(text) => self.add(text),
            Json::List(list) => list.iter().for_each(|json| self.add_all(json)),
            Json::Object(entries) => entries.iter().for_each(|(key, json)| {
                self.add(key);
                self.add_all(json);
            }),
            Json::Null | Json::Bool | Json::Number(_) => (),
        }
    }

    fn tokens(&self) -> u64 {
        self.ascii.div_ceil(4) + self.others
    }
}

/// What the request `root` with these messages demands.
///
/// Errors: a limit of tokens is no number.
pub(super) fn needs(root: &Json<'_>, messages: &[Message<'_>]) -> Result<ChatNeeds> {
    let mut needs = ChatNeeds {
        max_output_tokens: limit(root)?,
        response_format: format(root),
        ..ChatNeeds::default()
    };
    let modalities = root.get("modalities").map_or(&[][..], Json::list);
    needs.wants_audio = modalities.iter().any(|one| one.as_text() == Some("audio"));
    let (mut size, mut others) = (TextSize::default(), 0);
    for key in ["tools", "functions"] {
        if let Some(tools) = root.get(key).filter(|tools| !tools.list().is_empty()) {
            needs.has_tools = true;
            size.add_all(tools);
        }
    }
    for message in messages {
        others += PER_MESSAGE;
        needs.has_tools |= message.speaker == Speaker::Tool;
        for piece in &message.pieces {
            match piece {
                MessagePart::Text(text) => size.add(text),
                MessagePart::ToolResult(text) => {
                    needs.has_tools = true;
                    size.add(text);
                }
                MessagePart::ToolCall(call) => {
                    needs.has_tools = true;
                    size.add_call(call);
                }
                MessagePart::Media(media) => {
                    others += PER_MEDIUM;
                    needs.see(*media);
                }
                MessagePart::Unknown => (),
            }
        }
    }
    needs.input_tokens = size.tokens() + others;
    Ok(needs)
}

impl TextSize {
    /// The arguments of a call; never the image that one may have made.
    fn add_call(&mut self, call: &Json<'_>) {
        let inner = call.get("function").unwrap_or(call);
        for key in ["name", "arguments", "input", "action"] {
            if let Some(json) = inner.get(key) {
                self.add_all(json);
            }
        }
    }
}

impl ChatNeeds {
    fn see(&mut self, media: Media) {
        match media {
            Media::Image => self.has_images = true,
            Media::Audio => self.has_audio = true,
            Media::Video => self.has_video = true,
            Media::File => self.has_files = true,
        }
    }
}

/// The tokens asked for; a negative limit is none.
fn limit(root: &Json<'_>) -> Result<Option<u64>> {
    for key in LIMITS {
        match root.get(key) {
            None => (),
            #[expect(clippy::cast_possible_truncation, reason = "it saturates")]
            Some(Json::Number(tokens)) => return Ok((*tokens >= 0.0).then_some(*tokens as u64)),
            Some(found) => return Err(JsonPath::Root.key(key).wrong("a number", found)),
        }
    }
    Ok(None)
}

/// `response_format` of chat completions, `text.format` of responses, `output_format` and
/// `output_config.format` of messages.
fn format(root: &Json<'_>) -> ResponseFormat {
    let inside = |outer: &str, inner: &str| root.get(outer).and_then(|json| json.get(inner));
    let format = root
        .get("response_format")
        .or_else(|| inside("text", "format"))
        .or_else(|| inside("output_config", "format"))
        .or_else(|| root.get("output_format"));
    match format.map(|format| format.text("type")) {
        None | Some(Some("text")) => ResponseFormat::Text,
        Some(Some("json_object")) => ResponseFormat::JsonObject,
        Some(Some("json_schema")) => ResponseFormat::JsonSchema,
        Some(_) => ResponseFormat::Other,
    }
}
