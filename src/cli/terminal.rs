//! Text on a terminal: control characters, columns, lines.

use std::borrow::Cow;
use std::fmt::Write as _;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns if neither the environment nor a terminal states a number.
const COLUMNS: usize = 80;

/// Least number of columns that output is fitted to.
const LEAST: usize = 20;

/// Marks text that was cut off.
const MORE: char = '…';

/// `text` with all characters that control a terminal escaped: control characters (C0, C1, DEL),
/// line and paragraph separators, and overrides of the writing direction.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

fn steers(c: char) -> bool {
    let separates = matches!(c, '\u{2028}' | '\u{2029}');
    let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || separates || turns
}

/// Columns of a line: `COLUMNS`, else the terminal's width, else 80.
pub(super) fn width() -> usize {
    let terminal = || {
        let (width, _) = terminal_size::terminal_size()?;
        Some(usize::from(width.0))
    };
    let columns = named_width().or_else(terminal).filter(|n| *n > 0);
    columns.unwrap_or(COLUMNS).max(LEAST)
}

/// `COLUMNS`, if it is a positive number.
pub(super) fn named_width() -> Option<usize> {
    #[expect(clippy::disallowed_methods, reason = "reads the environment")]
    let columns = std::env::var("COLUMNS").ok()?.trim().parse().ok()?;
    (columns > 0).then_some(columns)
}

/// Columns that `text` occupies.
pub(super) fn columns(text: &str) -> usize {
    text.width()
}

/// As much of `text` as fits `width` columns, with [`MORE`] if something was cut off.
pub(super) fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if columns(text) <= width {
        return Cow::Borrowed(text);
    }
    let mut shown = String::new();
    let mut left = width.saturating_sub(1);
    for c in text.chars() {
        let taken = c.width().unwrap_or(0);
        if taken > left {
            break;
        }
        left -= taken;
        shown.push(c);
    }
    shown.push(MORE);
    Cow::Owned(shown)
}

/// `text` in lines of at most `width` columns, broken at spaces. All lines but the first begin with
/// `indent` spaces. A word longer than a line is not broken.
pub(super) fn wrapped(text: &str, width: usize, indent: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut empty = true;
    for word in text.split(' ') {
        if !empty && columns(&line) + 1 + columns(word) > width {
            lines.push(std::mem::take(&mut line));
            let _ = write!(line, "{:indent$}", "");
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push(line);
    lines
}

/// `1 model`, `2 models`.
pub(super) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_written_out() {
        assert!(matches!(escaped("é 漢 🐦 plain"), Cow::Borrowed(_)));
        assert_eq!(escaped("a\u{1b}[31mred"), "a\\u{1b}[31mred");
        assert_eq!(escaped("two\nlines\r\t"), "two\\nlines\\r\\t");
        for c in [
            '\0', '\u{7}', '\u{7f}', '\u{80}', '\u{9b}', '\u{202e}', '\u{2066}', '\u{2028}',
        ] {
            let text = format!("a{c}b");
            let shown = escaped(&text);
            assert!(!shown.contains(c) && shown.contains('\\'), "{shown}");
        }
    }

    #[test]
    fn texts_are_cut_by_columns() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("漢字漢字", 5), "漢字…");
        assert_eq!(cut("漢字漢字", 4), "漢…");
        assert!(columns(&cut("🐦🎵🐦🎵", 4)) <= 4);
    }

    #[test]
    fn paragraphs_are_broken_at_spaces() {
        assert_eq!(wrapped("a bc def g", 4, 1), ["a bc", " def", " g"]);
        assert_eq!(
            wrapped("longer-than-that b", 5, 0),
            ["longer-than-that", "b"]
        );
        assert_eq!(wrapped("", 5, 2), [""]);
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!(counted(1, "model"), "1 model");
        assert_eq!(counted(0, "model"), "0 models");
    }
}
