//! The YAML at the head of a model card, as JSON. Its depth and its size are bounded, aliases
//! included.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

use crate::error::{Result, bail, caught, error};

/// Most nodes within each other.
const DEEPEST: usize = 32;

/// Bytes of all texts, and [`NODE`] of each node; an alias counts as much as what it stands for.
const LARGEST: usize = 4 << 20;
const NODE: usize = 16;

/// The front matter of a card and the text below it; `None`: the card has none.
pub(super) fn split(card: &str) -> Option<(&str, &str)> {
    let card = card.strip_prefix('\u{feff}').unwrap_or(card);
    let (first, rest) = card.split_once('\n')?;
    if first.trim_end() != "---" {
        return None;
    }
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some((&rest[..at], &rest[at + line.len()..]));
        }
        at += line.len();
    }
    None
}

/// The first document of `text`.
///
/// Errors: it is no YAML, or more than the bounds admit.
pub(super) fn parse(text: &str) -> Result<Value> {
    let read = || {
        let mut tree = Tree {
            events: Parser::new_from_str(text),
            anchors: HashMap::new(),
        };
        loop {
            match tree.next()? {
                Event::StreamEnd => return Ok(Value::Null),
                Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => (),
                event => return Ok(tree.node(event, 0)?.0),
            }
        }
    };
    caught("the YAML parser", read)
}

struct Tree<'t> {
    events: Parser<'t, saphyr_parser::StrInput<'t>>,
    /// What each anchor stands for, with its size.
    anchors: HashMap<usize, (Value, usize)>,
}

impl<'t> Tree<'t> {
    fn next(&mut self) -> Result<Event<'t>> {
        match self.events.next_event() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(e)) => bail!(Format, "expected YAML, found {e}"),
            None => Ok(Event::StreamEnd),
        }
    }

    /// The node that begins with `event`, and its size.
    fn node(&mut self, event: Event<'t>, depth: usize) -> Result<(Value, usize)> {
        if depth > DEEPEST {
            bail!(
                Format,
                "expected YAML of at most {DEEPEST} levels, found more"
            );
        }
        let mut size = NODE;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                size += text.len();
                (scalar(&text, style, tag.as_deref()), anchor)
            }
            Event::Alias(of) => {
                let known = self.anchors.get(&of).cloned();
                return known
                    .ok_or_else(|| error!(Format, "an alias stands within its own anchor"));
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => break (Value::Array(items), anchor),
                        event => items.push(self.part(event, depth, &mut size)?),
                    }
                }
            }
            Event::MappingStart(anchor, _) => {
                let mut entries = Map::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => break (Value::Object(entries), anchor),
                        event => self.part(event, depth, &mut size)?,
                    };
                    let event = self.next()?;
                    let value = self.part(event, depth, &mut size)?;
                    let key = match key {
                        Value::String(text) => text,
                        Value::Array(_) | Value::Object(_) => {
                            bail!(Format, "expected keys of text, found {key}")
                        }
                        other => other.to_string(),
                    };
                    entries.insert(key, value);
                }
            }
            other => bail!(Format, "expected a value, found {other:?}"),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, (value.clone(), size));
        }
        Ok((value, size))
    }

    /// As [`Tree::node`], one level deeper; its size is added to `size`.
    fn part(&mut self, event: Event<'t>, depth: usize, size: &mut usize) -> Result<Value> {
        let (value, own) = self.node(event, depth + 1)?;
        *size += own;
        if *size > LARGEST {
            bail!(
                Format,
                "expected YAML of at most {LARGEST} bytes with its aliases written out, found more"
            );
        }
        Ok(value)
    }
}

/// By YAML 1.2's core schema, so `no` is a text and may be a language.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let told = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
    if style != ScalarStyle::Plain || told {
        return text.into();
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return true.into(),
        "false" | "False" | "FALSE" => return false.into(),
        _ => (),
    }
    let numeric = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    if text.chars().all(numeric) {
        let whole = text.parse().map(Number::from_i128);
        let broken = || text.parse().map(Number::from_f64);
        if let Some(number) = whole.ok().flatten().or_else(|| broken().ok().flatten()) {
            return Value::Number(number);
        }
    }
    text.into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_front_matter_is_between_two_lines() {
        let card = "\u{feff}---\r\na: 1\r\n---\r\n# Title\n---\nmore";
        assert_eq!(split(card), Some(("a: 1\r\n", "# Title\n---\nmore")));
        assert_eq!(split("---\n---"), Some(("", "")));
        for none in [
            "",
            "# Title\n",
            "---\na: 1\n",
            "a\n---\n---\n",
            "--- x\n---\n",
        ] {
            assert_eq!(split(none), None, "{none:?}");
        }
    }

    #[test]
    fn values_are_those_of_yaml_1_2() {
        let text = "
license: apache-2.0
language: [en, no, \"de\"]
n: 12
x: -1.5e3
version: 1.2.3
date: 2024-09-10
on: yes
none: ~
flag: true
quoted: '12'
told: !!str 12
folded: >-
  two
  lines
literal: |
  a: b
model-index:
- name: m
  results:
  - task: {type: translation}
    metrics: [{type: bleu, value: 31.5}]
5: five
nan: .nan
";
        let want = json!({
            "license": "apache-2.0", "language": ["en", "no", "de"], "n": 12, "x": -1500.0,
            "version": "1.2.3", "date": "2024-09-10", "on": "yes", "none": null, "flag": true,
            "quoted": "12", "told": "12", "folded": "two lines", "literal": "a: b\n",
            "model-index": [{"name": "m", "results": [
                {"task": {"type": "translation"}, "metrics": [{"type": "bleu", "value": 31.5}]}]}],
            "5": "five", "nan": ".nan",
        });
        assert_eq!(parse(text).unwrap(), want);
        assert_eq!(parse("").unwrap(), Value::Null);
        assert_eq!(parse("# a comment\n").unwrap(), Value::Null);
    }

    #[test]
    fn aliases_are_written_out() {
        let text = "a: &x {name: squad}\nb: *x\n";
        assert_eq!(parse(text).unwrap()["b"], json!({"name": "squad"}));
    }

    #[test]
    fn what_is_too_large_or_no_yaml_is_an_error() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let many = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb += &format!("a{i}: &a{i} [{many}]\n");
        }
        let deep = "[".repeat(100_000);
        let nested: String = (0..40)
            .map(|i| format!("{}- \n", " ".repeat(2 * i)))
            .collect();
        for (text, says) in [
            (&*bomb, "aliases written out"),
            (&deep, ""),
            (&nested, "32 levels"),
            ("a: &x [*x]", "alias"),
            ("a: [1, 2", "expected YAML, found"),
            ("a: b: c", "expected YAML, found"),
            ("? [a]\n: b", "expected keys of text"),
            ("a: *nowhere", "expected YAML, found"),
            ("\u{0}", ""),
            ("%TAG ! tag:x\n--- a", ""),
        ] {
            let begin: String = text.chars().take(40).collect();
            let error = match parse(text) {
                Err(error) => error.to_string(),
                Ok(value) => {
                    assert!(says.is_empty(), "{begin}: {value}");
                    continue;
                }
            };
            assert!(error.contains(says), "{begin}: {error}");
            assert!(!error.contains("panicked"), "{begin}: {error}");
        }
    }
}
