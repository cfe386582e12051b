//! The messages of a chat request: who speaks, and which parts of text, media and tools.

use crate::error::Result;
use crate::route::chat::json::{Json, JsonPath};
use crate::route::chat::record::ChatShape;

/// Who speaks in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    Human,
    Assistant,
    System,
    Tool,
    /// A role that is not known.
    Unknown,
}

/// A part of a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum MessagePart<'m> {
    Text(&'m str),
    Media(Media),
    ToolCall(&'m Json<'m>),
    /// Text of the result of a tool.
    ToolResult(&'m str),
    Unknown,
}

/// What is no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    Image,
    Audio,
    Video,
    File,
}

/// One message.
#[derive(Debug)]
pub(super) struct Message<'m> {
    /// Its place in the list; `None` for instructions beside it.
    pub(super) index: Option<usize>,
    pub(super) role: &'m str,
    pub(super) speaker: Speaker,
    pub(super) pieces: Vec<MessagePart<'m>>,
}

/// The messages of `root` in order, the instructions beside them first.
///
/// Errors: the list of the shape is missing or is no list; a message, its role or its content has
/// another type than the API gives it.
pub(super) fn messages<'m>(root: &'m Json<'m>, shape: ChatShape) -> Result<Vec<Message<'m>>> {
    let (list, beside) = match shape {
        ChatShape::OpenAiChat => ("messages", "system"),
        ChatShape::OpenAiResponses => ("input", "instructions"),
        ChatShape::AnthropicMessages => ("messages", "system"),
    };
    let top = JsonPath::Root;
    let mut all = Vec::new();
    if let Some(text) = root.get(beside) {
        let mut pieces = Vec::new();
        content(text, &top.key(beside), Speaker::System, &mut pieces)?;
        all.push(Message {
            index: None,
            role: beside,
            speaker: Speaker::System,
            pieces,
        });
    }
    let path = top.key(list);
    match root.get(list) {
        Some(Json::List(messages)) => {
            for (index, json) in messages.iter().enumerate() {
                let path = path.index(index);
                all.push(match shape {
                    ChatShape::OpenAiResponses => item(json, index, &path)?,
                    _ => message(json, index, &path)?,
                });
            }
        }
        Some(Json::Text(text)) if shape == ChatShape::OpenAiResponses => all.push(Message {
            index: Some(0),
            role: "user",
            speaker: Speaker::Human,
            pieces: vec![MessagePart::Text(text)],
        }),
        found => {
            let expected = match shape {
                ChatShape::OpenAiResponses => "a string or a list of items",
                _ => "a list of messages",
            };
            return Err(path.wrong(expected, found.unwrap_or(&Json::Null)));
        }
    }
    Ok(all)
}

fn speaker(role: &str) -> Speaker {
    match role {
        "user" | "human" => Speaker::Human,
        "assistant" | "model" | "ai" => Speaker::Assistant,
        "system" | "developer" => Speaker::System,
        "tool" | "function" | "ipython" => Speaker::Tool,
        _ => Speaker::Unknown,
    }
}

/// A message with a role.
fn message<'m>(json: &'m Json<'m>, index: usize, path: &JsonPath<'_>) -> Result<Message<'m>> {
    if !matches!(json, Json::Object(_)) {
        return Err(path.wrong("an object with role and content", json));
    }
    let role = match json.get("role") {
        Some(Json::Text(role)) => role.as_ref(),
        found => {
            return Err(path
                .key("role")
                .wrong("a string", found.unwrap_or(&Json::Null)));
        }
    };
    let speaker = speaker(role);
    let mut pieces = Vec::new();
    if let Some(json) = json.get("content") {
        content(json, &path.key("content"), speaker, &mut pieces)?;
    }
    if let Some(Json::Text(text)) = json.get("refusal") {
        pieces.push(MessagePart::Text(text));
    }
    let calls = json.get("tool_calls").map_or(&[][..], Json::list).iter();
    pieces.extend(
        calls
            .chain(json.get("function_call"))
            .map(MessagePart::ToolCall),
    );
    Ok(Message {
        index: Some(index),
        role,
        speaker,
        pieces,
    })
}

/// An item of the responses API: a message, a call, a result, reasoning.
fn item<'m>(json: &'m Json<'m>, index: usize, path: &JsonPath<'_>) -> Result<Message<'m>> {
    if !matches!(json, Json::Object(_)) {
        return Err(path.wrong("an object with type or role", json));
    }
    let kind = match json.get("type") {
        None => "message",
        Some(Json::Text(kind)) => kind.as_ref(),
        Some(found) => return Err(path.key("type").wrong("a string", found)),
    };
    if kind == "message" {
        return message(json, index, path);
    }
    let (speaker, pieces) = if kind.ends_with("_output") || kind.ends_with("_response") {
        let mut pieces = Vec::new();
        result(json.get("output"), &path.key("output"), &mut pieces)?;
        (Speaker::Tool, pieces)
    } else if kind.ends_with("_call") || kind.starts_with("mcp_") {
        (Speaker::Assistant, vec![MessagePart::ToolCall(json)])
    } else if kind == "reasoning" {
        let summary = json.get("summary").map_or(&[][..], Json::list).iter();
        let texts = summary.filter_map(|part| part.text("text"));
        (Speaker::Assistant, texts.map(MessagePart::Text).collect())
    } else {
        (Speaker::Unknown, vec![MessagePart::Unknown])
    };
    Ok(Message {
        index: Some(index),
        role: kind,
        speaker,
        pieces,
    })
}

/// The parts of a content: a string, a list of parts, or nothing.
fn content<'m>(
    json: &'m Json<'m>,
    path: &JsonPath<'_>,
    speaker: Speaker,
    pieces: &mut Vec<MessagePart<'m>>,
) -> Result<()> {
    match json {
        Json::Null => Ok(()),
        Json::Text(text) if speaker == Speaker::Tool => {
            pieces.push(MessagePart::ToolResult(text));
            Ok(())
        }
        Json::Text(text) => {
            pieces.push(MessagePart::Text(text));
            Ok(())
        }
        Json::List(parts) => parts
            .iter()
            .enumerate()
            .try_for_each(|(index, json)| part(json, &path.index(index), speaker, pieces)),
        other => Err(path.wrong("a string, a list of parts or null", other)),
    }
}

/// One part of a content.
fn part<'m>(
    json: &'m Json<'m>,
    path: &JsonPath<'_>,
    speaker: Speaker,
    pieces: &mut Vec<MessagePart<'m>>,
) -> Result<()> {
    let kind = match json {
        Json::Text(_) => return content(json, path, speaker, pieces),
        Json::Object(_) => match json.get("type") {
            None => "text",
            Some(Json::Text(kind)) => kind.as_ref(),
            Some(found) => return Err(path.key("type").wrong("a string", found)),
        },
        other => return Err(path.wrong("an object with type, or a string", other)),
    };
    if let Some(media) = media(kind) {
        pieces.push(MessagePart::Media(media));
        return Ok(());
    }
    let key = match kind {
        "text" | "input_text" | "output_text" | "summary_text" => "text",
        "refusal" | "thinking" => kind,
        _ if kind.ends_with("tool_result") => {
            return result(json.get("content"), &path.key("content"), pieces);
        }
        _ => {
            let is_call = kind.ends_with("tool_use") || kind.ends_with("_call");
            pieces.push(match is_call {
                true => MessagePart::ToolCall(json),
                false => MessagePart::Unknown,
            });
            return Ok(());
        }
    };
    match json.get(key) {
        None => Ok(()),
        Some(text @ Json::Text(_)) => content(text, path, speaker, pieces),
        Some(found) => Err(path.key(key).wrong("a string", found)),
    }
}

/// The result of a tool: a string, parts, or an object with an image.
fn result<'m>(
    json: Option<&'m Json<'m>>,
    path: &JsonPath<'_>,
    pieces: &mut Vec<MessagePart<'m>>,
) -> Result<()> {
    let before = pieces.len();
    match json {
        Some(parts @ (Json::Text(_) | Json::List(_))) => {
            content(parts, path, Speaker::Tool, pieces)?;
        }
        Some(object @ Json::Object(_)) => {
            let image = object.text("type").and_then(media);
            pieces.extend(image.map(MessagePart::Media));
        }
        _ => (),
    }
    // A result without text is one, too.
    if !pieces[before..]
        .iter()
        .any(|piece| matches!(piece, MessagePart::ToolResult(_)))
    {
        pieces.push(MessagePart::ToolResult(""));
    }
    Ok(())
}

/// The medium of a kind of part.
fn media(kind: &str) -> Option<Media> {
    Some(match kind {
        "image" | "image_url" | "input_image" | "computer_screenshot" => Media::Image,
        "audio" | "audio_url" | "input_audio" => Media::Audio,
        "video" | "video_url" | "input_video" => Media::Video,
        "file" | "input_file" | "document" | "container_upload" => Media::File,
        _ => return None,
    })
}
