//! Words, texts, numbers and signs of a constraint's text.

use std::fmt;

use serde_json::{Number, Value};

use crate::error::{Result, bail};

/// A piece of the text, and the column where it begins, from 1.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lexeme {
    pub(super) column: usize,
    pub(super) kind: LexemeKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum LexemeKind {
    /// A name, a keyword or a text without quotes.
    Word(String),
    /// A text in quotes.
    Quoted(String),
    /// A name in back quotes.
    Name(String),
    Number(Number),
    /// A bracket, a comma or an operator.
    Sign(&'static str),
    End,
}

impl fmt::Display for LexemeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "{word:?}"),
            Self::Quoted(text) => write!(f, "the text {}", Value::from(text.as_str())),
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::Sign(sign) => write!(f, "{sign:?}"),
            Self::End => f.write_str("the end"),
        }
    }
}

/// Signs, the longer ones first.
const SIGNS: [&str; 13] = [
    "<=", ">=", "!=", "==", "<", ">", "=", "(", ")", "[", "]", ",", "!",
];

/// What a word consists of beside letters and digits.
const IN_WORDS: &str = "_-./:*?+@";

/// Whether `c` may be in a word.
pub(super) fn in_word(c: char) -> bool {
    c.is_alphanumeric() || IN_WORDS.contains(c)
}

/// The pieces of `text`, with [`LexemeKind::End`] last.
///
/// Errors: a character begins no piece; a quote is not closed; a number is out of range.
pub(super) fn lexemes(text: &str) -> Result<Vec<Lexeme>> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let column = text[..text.len() - rest.len()].chars().count() + 1;
        let Some(first) = rest.chars().next() else {
            let kind = LexemeKind::End;
            found.push(Lexeme { column, kind });
            return Ok(found);
        };
        let (kind, length) = match first {
            '"' => double_quoted(rest, column)?,
            '\'' | '`' => {
                let inner = &rest[1..];
                let Some(end) = inner.find(first) else {
                    bail!(
                        InvalidRequest,
                        "column {column}: expected a closing {first}, found the end"
                    );
                };
                let inner_text = inner[..end].to_owned();
                let kind = match first {
                    '`' => LexemeKind::Name(inner_text),
                    _ => LexemeKind::Quoted(inner_text),
                };
                (kind, end + 2)
            }
            _ => match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
                Some(sign) => (LexemeKind::Sign(sign), sign.len()),
                None => word(rest, column)?,
            },
        };
        found.push(Lexeme { column, kind });
        rest = &rest[length..];
    }
}

/// A text with the escapes of JSON.
fn double_quoted(rest: &str, column: usize) -> Result<(LexemeKind, usize)> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => {
                return match serde_json::from_str(&rest[..=at]) {
                    Ok(text) => Ok((LexemeKind::Quoted(text), at + 1)),
                    Err(error) => bail!(
                        InvalidRequest,
                        "column {column}: expected a text as in JSON, found {}: {error}",
                        &rest[..=at]
                    ),
                };
            }
            _ => (),
        }
    }
    bail!(
        InvalidRequest,
        "column {column}: expected a closing \", found the end"
    )
}

/// A word, or a number where the word is one.
fn word(rest: &str, column: usize) -> Result<(LexemeKind, usize)> {
    let end = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
    let word = &rest[..end];
    if word.is_empty() {
        let found: String = rest.chars().take(1).collect();
        bail!(
            InvalidRequest,
            "column {column}: expected a name, a value, an operator or a bracket, found {found:?}"
        );
    }
    // As JSON writes numbers, and with a plus in front.
    let digits = word.trim_start_matches(['-', '+']);
    if digits.starts_with(|c: char| c.is_ascii_digit()) {
        if let Ok(number) = word.trim_start_matches('+').parse::<i64>() {
            return Ok((LexemeKind::Number(number.into()), end));
        }
        if let Ok(number) = word.parse::<f64>() {
            return match Number::from_f64(number) {
                Some(number) => Ok((LexemeKind::Number(number), end)),
                None => bail!(
                    InvalidRequest,
                    "column {column}: expected a number that f64 holds, found {word}"
                ),
            };
        }
    }
    Ok((LexemeKind::Word(word.to_owned()), end))
}
