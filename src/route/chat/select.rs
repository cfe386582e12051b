//! Which text of a conversation is routed.

use std::collections::BTreeMap;

use crate::error::{Result, bail};
use crate::route::chat::ask::stripped;
use crate::route::chat::filler::says_nothing;
use crate::route::chat::messages::{Message, MessagePart, Speaker};
use crate::route::chat::record::{ChatTaken, LeftOut, TakenFrom};

/// Longest text that is routed, in bytes; of a longer one both ends are.
pub(super) const LONGEST_TEXT: usize = 1 << 20;

/// Between the parts of a message.
const BETWEEN: &str = "\n";

/// A text that may be routed.
struct Candidate<'m> {
    words: Vec<&'m str>,
    place: usize,
    from: TakenFrom,
}

/// The text that is routed of `messages`, and the record of it.
///
/// Errors: there is no text of a human, and none of the system.
pub(super) fn select(messages: &[Message<'_>]) -> Result<(String, ChatTaken)> {
    let mut taken = ChatTaken {
        from: TakenFrom::NewestAsk,
        message: None,
        role: String::new(),
        bytes: 0,
        left_out: BTreeMap::new(),
    };
    let (mut ask, mut summary, mut filler) = (None, None, None);
    for (place, message) in messages.iter().enumerate().rev() {
        if message.speaker != Speaker::Human {
            continue;
        }
        if ask.is_some() {
            leave_earlier(message, &mut taken);
            continue;
        }
        let (words, found_summary) = words_of(message, &mut taken);
        summary = summary.or(found_summary.map(|text| (vec![text], place)));
        if words.is_empty() {
            continue;
        }
        if words.iter().all(|words| says_nothing(words)) {
            taken.leave(LeftOut::SaysNothing, words.iter().map(|w| w.len()).sum());
            filler = filler.or(Some((words, place)));
        } else {
            ask = Some((words, place));
        }
    }
    for message in messages {
        leave_others(message, &mut taken);
    }
    let candidate = |from: TakenFrom| move |(words, place)| Candidate { words, place, from };
    let from = match filler {
        Some(_) => TakenFrom::EarlierAsk,
        None => TakenFrom::NewestAsk,
    };
    let chosen = ask
        .map(candidate(from))
        .or_else(|| summary.map(candidate(TakenFrom::Summary)))
        .or_else(|| system(messages).map(candidate(TakenFrom::System)))
        .or_else(|| filler.map(candidate(TakenFrom::SaysNothing)));
    let Some(chosen) = chosen else {
        bail!(
            InvalidRequest,
            "the chat request has no text to route: expected a message of the user or the system \
             with text, found {} without",
            messages.len()
        );
    };
    // What was counted as left out before it was chosen.
    let own: usize = chosen.words.iter().map(|words| words.len()).sum();
    match chosen.from {
        TakenFrom::Summary => taken.unleave(LeftOut::Harness, 1, own),
        TakenFrom::System => taken.unleave(LeftOut::System, chosen.words.len(), own),
        TakenFrom::SaysNothing => taken.unleave(LeftOut::SaysNothing, 1, own),
        TakenFrom::NewestAsk | TakenFrom::EarlierAsk => (),
    }
    let text = shortened(chosen.words.join(BETWEEN), &mut taken);
    let message = &messages[chosen.place];
    taken.from = chosen.from;
    taken.message = message.index;
    message.role.clone_into(&mut taken.role);
    taken.bytes = text.len();
    Ok((text, taken))
}

/// The human's words in `message`, and a summary that an agent wrote. What is left out is counted.
fn words_of<'m>(message: &Message<'m>, taken: &mut ChatTaken) -> (Vec<&'m str>, Option<&'m str>) {
    let (mut words, mut summary, mut is_result) = (Vec::new(), None, false);
    for piece in &message.pieces {
        if let MessagePart::Text(text) = piece {
            let found = stripped(text, is_result);
            is_result = found.heads_result;
            words.extend(found.words);
            summary = summary.or(found.summary);
            for (why, bytes) in found.left {
                taken.leave(why, bytes);
            }
        }
    }
    (words, summary)
}

/// The newest text of the system.
fn system<'m>(messages: &[Message<'m>]) -> Option<(Vec<&'m str>, usize)> {
    messages
        .iter()
        .enumerate()
        .rev()
        .find_map(|(place, message)| {
            let is_system = message.speaker == Speaker::System;
            let texts = message.pieces.iter().filter_map(|piece| match piece {
                MessagePart::Text(text) if is_system => Some(text.trim()),
                _ => None,
            });
            let texts: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
            (!texts.is_empty()).then_some((texts, place))
        })
}

/// Counts the asks of a message before the one that was taken.
fn leave_earlier(message: &Message<'_>, taken: &mut ChatTaken) {
    for piece in &message.pieces {
        if let MessagePart::Text(text) = piece {
            taken.leave(LeftOut::Earlier, text.trim().len());
        }
    }
}

/// Counts what is no text of a human.
fn leave_others(message: &Message<'_>, taken: &mut ChatTaken) {
    for piece in &message.pieces {
        let (why, bytes) = match piece {
            MessagePart::Text(text) => match message.speaker {
                Speaker::Human => continue,
                Speaker::Assistant => (LeftOut::Assistant, text.trim().len()),
                Speaker::System => (LeftOut::System, text.trim().len()),
                Speaker::Tool => (LeftOut::ToolResult, text.trim().len()),
                Speaker::Unknown => (LeftOut::Unknown, text.trim().len()),
            },
            MessagePart::ToolResult(text) => (LeftOut::ToolResult, text.trim().len()),
            MessagePart::ToolCall(_) => (LeftOut::ToolCall, 0),
            MessagePart::Media(_) => (LeftOut::Media, 0),
            MessagePart::Unknown => (LeftOut::Unknown, 0),
        };
        taken.leave(why, bytes);
    }
}

/// `text`, or both ends of it if it is longer than [`LONGEST_TEXT`].
fn shortened(mut text: String, taken: &mut ChatTaken) -> String {
    if text.len() <= LONGEST_TEXT {
        return text;
    }
    let half = (LONGEST_TEXT - BETWEEN.len()) / 2;
    let (mut head, mut tail) = (half, text.len() - half);
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    taken.leave(LeftOut::TooLong, tail - head);
    text.replace_range(head..tail, BETWEEN);
    text
}

impl ChatTaken {
    /// Takes back parts that [`ChatTaken::leave`] counted.
    fn unleave(&mut self, why: LeftOut, parts: usize, bytes: usize) {
        if let Some(count) = self.left_out.get_mut(&why) {
            count.parts = count.parts.saturating_sub(parts);
            count.bytes = count.bytes.saturating_sub(bytes);
            if count.parts == 0 {
                self.left_out.remove(&why);
            }
        }
    }
}
