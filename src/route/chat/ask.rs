//! The words of a human in a text of a user's turn, without the agent's blocks around them.

use std::ops::Range;

use crate::route::chat::harness::{
    BLOCKS, TagKind, TextKind, behind_heading, behind_interruption, tag, text_kind,
};
use crate::route::chat::record::LeftOut;

/// Longest name and longest attributes of a tag, in bytes.
const LONGEST_NAME: usize = 48;
const LONGEST_ATTRIBUTES: usize = 512;

/// A text of a user's turn, taken apart.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Stripped<'t> {
    /// The human's words in order, without white space around them; none is empty.
    pub(super) words: Vec<&'t str>,
    /// What was left out: why, and its bytes.
    pub(super) left: Vec<(LeftOut, usize)>,
    /// A summary of an earlier conversation, which no human wrote.
    pub(super) summary: Option<&'t str>,
    /// The text is the heading of a tool's result, whose body is the next part.
    pub(super) heads_result: bool,
}

/// A tag that is known, as it stands in the text.
struct Tag {
    at: Range<usize>,
    kind: TagKind,
    name: usize,
    closes: bool,
}

/// A tag with its end.
#[derive(Clone)]
struct TaggedBlock {
    /// With its tags.
    whole: Range<usize>,
    /// Between its tags.
    inside: Range<usize>,
    kind: TagKind,
}

/// Takes `text` apart. `is_result`: the part before it was the heading of a tool's result.
///
/// Time grows with the length of `text` alone.
pub(super) fn stripped(text: &str, is_result: bool) -> Stripped<'_> {
    let mut found = Stripped::default();
    let (mut text, mut whole) = (text, text.trim());
    if let Some(rest) = behind_interruption(whole) {
        found
            .left
            .push((LeftOut::Harness, whole.len() - rest.len()));
        (text, whole) = (rest, rest.trim());
    }
    let kind = match text_kind(whole) {
        TextKind::Plain if is_result => TextKind::ToolResult(false),
        kind => kind,
    };
    let blocks = blocks(text);
    let result = match kind {
        TextKind::Plain => None,
        TextKind::Summary => {
            found.summary = Some(whole);
            found.left.push((LeftOut::Harness, whole.len()));
            return found;
        }
        TextKind::Harness => {
            found.left.push((LeftOut::Harness, whole.len()));
            return found;
        }
        TextKind::ToolResult(heads) => {
            found.heads_result = heads;
            Some(TagKind::Feedback)
        }
    };
    let wanted = result.unwrap_or(TagKind::Ask);
    let dropped = dropped(text, &blocks);
    let asks = blocks.iter().filter(|block| block.kind == wanted);
    let asks: Vec<Range<usize>> = asks
        .filter(|block| !inside_any(&dropped, block.whole.start))
        .map(|block| block.inside.clone())
        .collect();
    if result.is_some() || !asks.is_empty() {
        let outside = match result {
            Some(_) => LeftOut::ToolResult,
            None => LeftOut::Harness,
        };
        found.take_only(text, &asks, &dropped, outside);
    } else {
        found.take_all_but(text, &blocks, dropped);
    }
    found
}

impl<'t> Stripped<'t> {
    /// Takes what is in `asks` and not in `dropped`; the rest is left out as `outside`.
    fn take_only(
        &mut self,
        text: &'t str,
        asks: &[Range<usize>],
        dropped: &[(Range<usize>, LeftOut)],
        outside: LeftOut,
    ) {
        let mut end = 0;
        for ask in asks.iter().filter(|ask| !ask.is_empty()) {
            if ask.start < end {
                continue;
            }
            end = ask.end;
            let mut from = ask.start;
            let first = dropped.partition_point(|(block, _)| block.end <= ask.start);
            let within = dropped[first..].iter();
            for (block, _) in within.take_while(|(block, _)| block.start < ask.end) {
                self.take(text, from..block.start.max(from));
                from = block.end;
            }
            self.take(text, from..ask.end.max(from));
        }
        let taken: usize = self.words.iter().map(|words| words.len()).sum();
        let rest = text.trim().len().saturating_sub(taken);
        if rest > 0 {
            self.left.push((outside, rest));
        }
    }

    /// Takes all but `dropped`, the tags around a human's words, and what stands before a heading
    /// of the request.
    fn take_all_but(
        &mut self,
        text: &'t str,
        blocks: &[TaggedBlock],
        mut dropped: Vec<(Range<usize>, LeftOut)>,
    ) {
        let mut start = behind_heading(text).unwrap_or(0);
        if inside_any(&dropped, start) {
            start = 0;
        }
        if start > 0 {
            self.left.push((LeftOut::Harness, start));
        }
        for block in blocks.iter().filter(|block| block.kind == TagKind::Words) {
            let by_itself =
                begins_line(text, block.whole.start) && ends_line(text, block.whole.end);
            if by_itself && !inside_any(&dropped, block.whole.start) {
                let tags = [
                    block.whole.start..block.inside.start,
                    block.inside.end..block.whole.end,
                ];
                dropped.extend(tags.map(|tag| (tag, LeftOut::Harness)));
            }
        }
        dropped.sort_by_key(|(block, _)| block.start);
        for (block, why) in dropped {
            if block.end <= start {
                continue;
            }
            self.take(text, start..block.start.max(start));
            self.left.push((why, block.end - block.start.max(start)));
            start = block.end;
        }
        self.take(text, start..text.len());
    }

    fn take(&mut self, text: &'t str, range: Range<usize>) {
        let words = text[range].trim();
        if !words.is_empty() {
            self.words.push(words);
        }
    }
}

/// The blocks of `text` that no human wrote, in order; none inside another.
fn dropped(text: &str, blocks: &[TaggedBlock]) -> Vec<(Range<usize>, LeftOut)> {
    let of_tags = blocks.iter().filter_map(|block| match block.kind {
        TagKind::Harness => Some((block.whole.clone(), LeftOut::Harness)),
        TagKind::ToolResult => Some((block.whole.clone(), LeftOut::ToolResult)),
        _ => None,
    });
    let mut all: Vec<(Range<usize>, LeftOut)> = of_tags.collect();
    for (first, last) in BLOCKS {
        let mut from = 0;
        while let Some(start) = text[from..].find(first).map(|at| from + at) {
            let Some(end) = text[start..].find(last).map(|at| start + at + last.len()) else {
                break;
            };
            all.push((start..end, LeftOut::Harness));
            from = end;
        }
    }
    all.sort_by_key(|(block, _)| block.start);
    let mut end = 0;
    all.retain(|(block, _)| {
        let apart = block.start >= end;
        end = end.max(block.end);
        apart
    });
    all
}

/// Whether a block of `sorted` holds the byte `at`.
fn inside_any(sorted: &[(Range<usize>, LeftOut)], at: usize) -> bool {
    let place = sorted.partition_point(|(block, _)| block.end <= at);
    sorted
        .get(place)
        .is_some_and(|(block, _)| block.start <= at)
}

/// Known tags with their ends, by their beginnings. Each end belongs to the last beginning of its
/// name that has none; what has no end is text.
fn blocks(text: &str) -> Vec<TaggedBlock> {
    let mut open: Vec<Tag> = Vec::new();
    let mut blocks = Vec::new();
    for tag in tags(text) {
        if !tag.closes {
            open.push(tag);
            continue;
        }
        // Few names are open at once in a text of tags that fit; others are not looked for far.
        const DEEPEST: usize = 64;
        let place = open
            .iter()
            .rev()
            .take(DEEPEST)
            .position(|one| one.name == tag.name);
        if let Some(place) = place {
            let start = open.remove(open.len() - 1 - place);
            blocks.push(TaggedBlock {
                whole: start.at.start..tag.at.end,
                inside: start.at.end..tag.at.start,
                kind: start.kind,
            });
        }
    }
    blocks.sort_by_key(|block| block.whole.start);
    blocks
}

fn tags(text: &str) -> impl Iterator<Item = Tag> {
    text.match_indices('<').filter_map(|(at, _)| {
        // Quoted: somebody speaks of the tag.
        if text[..at].ends_with('`') {
            return None;
        }
        let rest = &text[at + 1..];
        let (closes, name_at) = match rest.strip_prefix('/') {
            Some(name) => (true, name),
            None => (false, rest),
        };
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let bytes = name_at.as_bytes();
        let length = bytes.iter().take(LONGEST_NAME).take_while(|b| is_name(**b));
        let length = length.count();
        let (kind, name) = tag(&name_at[..length])?;
        let mut behind = bytes[length..].iter().take(LONGEST_ATTRIBUTES);
        let end = behind.position(|byte| matches!(byte, b'>' | b'<'))?;
        let end = length + end;
        if bytes[end] == b'<' || bytes[end - 1] == b'/' {
            return None;
        }
        let start = at + 1 + usize::from(closes);
        Some(Tag {
            at: at..start + end + 1,
            kind,
            name,
            closes,
        })
    })
}

fn begins_line(text: &str, at: usize) -> bool {
    let before = text[..at].trim_end_matches([' ', '\t']);
    before.is_empty() || before.ends_with('\n')
}

fn ends_line(text: &str, at: usize) -> bool {
    let behind = text[at..].trim_start_matches([' ', '\t', '\r']);
    behind.is_empty() || behind.starts_with('\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        stripped(text, false).words
    }

    #[test]
    fn blocks_of_agents_are_left_out() {
        let text = "<system-reminder>Today is Monday.</system-reminder>\nFix the test.\n\
                    <system-reminder a=\"b\">x <system-reminder>y</system-reminder>\
                    </system-reminder>";
        assert_eq!(words(text), ["Fix the test."]);
        let left = stripped(text, false).left;
        assert_eq!(left.len(), 2);
        assert!(left.iter().all(|(why, _)| *why == LeftOut::Harness));
        assert_eq!(words("a <env>b</env>"), ["a <env>b</env>"], "not known");
    }

    #[test]
    fn a_tag_without_an_end_is_text() {
        for text in [
            "What does <system-reminder> mean?",
            "</system-reminder> is what I see",
            "`<system-reminder>x</system-reminder>` is noise",
            "<system-reminder/> x </system-reminder>",
            "<task>a</task> is bad XML",
        ] {
            assert_eq!(words(text), [text]);
        }
    }

    #[test]
    fn a_marked_ask_is_all_that_counts() {
        let text = "Open files: a.rs\n<user_query>\nName the <gitStatus>main</gitStatus> bird\n\
                    </user_query>\nmore";
        assert_eq!(words(text), ["Name the", "bird"]);
        assert_eq!(
            words("<task>\nName it\n</task>\nSoon."),
            ["Name it", "Soon."]
        );
        let result =
            "[attempt_completion] Result:\nConsider:\n<feedback>\nSing louder\n</feedback>";
        assert_eq!(words(result), ["Sing louder"]);
        assert_eq!(words("[ask for 'x'] Result:\n<task>\na\n</task>"), [""; 0]);
        assert!(stripped("[list_files for '.'] Result:", false).heads_result);
        assert!(stripped("a.rs", true).words.is_empty());
    }

    #[test]
    fn an_ask_may_follow_an_interruption() {
        let text = "[Request interrupted by user for tool use]\nUse the other folder.";
        assert_eq!(words(text), ["Use the other folder."]);
        assert!(words("[Request interrupted by user]").is_empty());
        assert_eq!(
            words("[Request interrupted by user"),
            ["[Request interrupted by user"]
        );
    }

    #[test]
    fn many_tags_take_linear_time() {
        for tag in [
            "<task>",
            "</task>",
            "<task></feedback>",
            "<",
            "<task ",
            "<user_query>x",
        ] {
            let text = tag.repeat((4 << 20) / tag.len());
            let found = stripped(&text, false);
            assert!(found.words.len() <= 1, "{tag}");
        }
        let pairs = "<user_query>x</user_query>".repeat(100_000);
        assert_eq!(words(&pairs).len(), 100_000);
    }
}
