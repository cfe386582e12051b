//! Whether a constraint holds of a model: true, false, or unknown.

use serde_json::Value;

use crate::hub::domain_key;
use crate::route::policy::constraint::{AttributeTest, Constraint};
use crate::route::policy::facts::{Fact, Facts};

/// What separates the words of a text.
const BETWEEN_WORDS: &str = ",+|/>;";

impl Constraint {
    /// Whether the constraint holds of the model; `None`: its attributes do not say.
    pub(super) fn holds(&self, facts: &Facts<'_>) -> Option<bool> {
        match self {
            Self::All(parts) => fold(parts, facts, false),
            Self::Any(parts) => fold(parts, facts, true),
            Self::Not(inner) => inner.holds(facts).map(|holds| !holds),
            Self::Test { attribute, test } => {
                let fact = facts.get(attribute);
                if *test == AttributeTest::Exists {
                    return Some(fact.is_some());
                }
                let domain = attribute == "domain";
                match fact? {
                    Fact::Value(value) => test.of(&value, domain),
                    Fact::Names(names) => Some(test.of_names(&names)),
                }
            }
        }
    }
}

/// `decides` if a part is; else unknown if a part is; else the opposite.
fn fold(parts: &[Constraint], facts: &Facts<'_>, decides: bool) -> Option<bool> {
    let mut unknown = false;
    for part in parts {
        match part.holds(facts) {
            Some(holds) if holds == decides => return Some(decides),
            Some(_) => (),
            None => unknown = true,
        }
    }
    (!unknown).then_some(!decides)
}

impl AttributeTest {
    /// `None`: `value` is of another kind than the test.
    fn of(&self, value: &Value, domain: bool) -> Option<bool> {
        let same = |wanted: &Value| same(value, wanted, domain);
        match self {
            Self::Exists => Some(true),
            Self::Is(wanted) => same(wanted),
            Self::IsNot(wanted) => same(wanted).map(|same| !same),
            Self::Less(n) => value.as_f64().map(|found| found < *n),
            Self::AtMost(n) => value.as_f64().map(|found| found <= *n),
            Self::More(n) => value.as_f64().map(|found| found > *n),
            Self::AtLeast(n) => value.as_f64().map(|found| found >= *n),
            Self::In(all) => {
                // Wanted values of another kind are none of the found one.
                let of_a_kind = all.iter().filter_map(same);
                let any = of_a_kind.fold(None, |any, same| Some(any.unwrap_or(false) || same));
                any.or_else(|| all.is_empty().then_some(false))
            }
            Self::Has(wanted) => match value {
                Value::Array(list) => Some(
                    list.iter()
                        .any(|value| self::same(value, wanted, false) == Some(true)),
                ),
                Value::String(text) => wanted.as_str().map(|wanted| has_word(text, wanted)),
                Value::Object(entries) => wanted.as_str().map(|key| entries.contains_key(key)),
                _ => None,
            },
            Self::Matches(pattern) => match value {
                Value::Array(list) => Some(list.iter().any(|value| {
                    let text = value.as_str();
                    text.is_some_and(|text| glob(&lower(pattern), &lower(text)))
                })),
                Value::String(text) => Some(glob(&lower(pattern), &lower(text))),
                _ => None,
            },
        }
    }

    /// Whether the test holds of one of the names; other kinds of tests do not.
    fn of_names(&self, names: &[&str]) -> bool {
        let named = |wanted: &Value| {
            let wanted = wanted.as_str();
            wanted.is_some_and(|wanted| names.iter().any(|name| lower(name) == lower(wanted)))
        };
        match self {
            Self::Exists => true,
            Self::Is(wanted) | Self::Has(wanted) => named(wanted),
            Self::IsNot(wanted) => !named(wanted),
            Self::In(all) => all.iter().any(named),
            Self::Matches(pattern) => {
                let pattern = lower(pattern);
                names.iter().any(|name| glob(&pattern, &lower(name)))
            }
            Self::Less(_) | Self::AtMost(_) | Self::More(_) | Self::AtLeast(_) => false,
        }
    }
}

fn lower(text: &str) -> String {
    text.trim().to_lowercase()
}

/// `None`: the two are of different kinds.
fn same(found: &Value, wanted: &Value, domain: bool) -> Option<bool> {
    match (found, wanted) {
        (Value::String(a), Value::String(b)) if domain => Some(domain_key(a) == domain_key(b)),
        (Value::String(a), Value::String(b)) => Some(lower(a) == lower(b)),
        (Value::Number(a), Value::Number(b)) => Some(a.as_f64() == b.as_f64()),
        (Value::Bool(a), Value::Bool(b)) => Some(a == b),
        _ => None,
    }
}

/// Whether `wanted` is a word of `text`.
fn has_word(text: &str, wanted: &str) -> bool {
    let wanted = lower(wanted);
    let separates = |c: char| c.is_whitespace() || BETWEEN_WORDS.contains(c);
    let words = text.split(separates);
    lower(text) == wanted
        || words
            .map(|word| lower(word.trim_matches('-')))
            .any(|word| !word.is_empty() && word == wanted)
}

/// Whether `text` fits `pattern`; `*` is any text, `?` any character. Time grows with the product
/// of both at most.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // The last `*`, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (p, t) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::hub::Model;

    fn model() -> Model {
        let mut model = Model::new(
            "google/flan-t5-xl",
            "Natural  Language Processing Translation",
        );
        model.family = Some("flan-t5".into());
        model.aliases = vec!["flan".into()];
        let attributes = json!({
            "context_length": 512, "licence": "Apache-2.0", "modality": ["text", "Image"],
            "kind": "text+image->text", "tools": true, "nothing": null,
            "price": {"input": 0.5, "output": 1.5}, "cheap": "yes",
        });
        model.attributes = serde_json::from_value(attributes).unwrap();
        model
    }

    fn holds(text: &str, own: &BTreeMap<String, Value>) -> Option<bool> {
        let model = model();
        let facts = Facts {
            id: 7,
            model: &model,
            deployment: Some(("eu-1", own)),
        };
        text.parse::<Constraint>().unwrap().holds(&facts)
    }

    #[test]
    fn tests_of_each_kind() {
        for (text, want) in [
            ("context_length >= 512", Some(true)),
            ("context_length > 512", Some(false)),
            ("context_length < 512.5", Some(true)),
            ("context_length = 512", Some(true)),
            ("context_length = '512'", None),
            ("licence = apache-2.0", Some(true)),
            ("licence != mit", Some(true)),
            ("licence in [mit, apache-2.0]", Some(true)),
            ("licence in [mit]", Some(false)),
            ("licence in []", Some(false)),
            ("licence in [1, 2]", None),
            ("licence not in [mit, 3]", Some(true)),
            ("modality has image", Some(true)),
            ("modality has audio", Some(false)),
            ("modality = image", None),
            ("kind has image", Some(true)),
            ("kind has text", Some(true)),
            ("kind has tex", Some(false)),
            ("price has input", Some(true)),
            ("context_length has 5", None),
            ("modality matches 'im*'", Some(true)),
            ("licence matches 'apache?2*'", Some(true)),
            ("context_length matches '5*'", None),
            ("tools", Some(true)),
            ("not tools", Some(false)),
            ("price.input <= 0.5", Some(true)),
            ("price <= 2", None),
            ("cheap < 3", None),
            ("id = 7", Some(true)),
            ("name = flan", Some(true)),
            ("name = eu-1", Some(true)),
            ("name = other", Some(false)),
            ("name != flan", Some(false)),
            ("name in [other, FLAN]", Some(true)),
            ("name matches 'google/*'", Some(true)),
            ("name < 3", Some(false)),
            (
                "domain = 'natural language processing translation'",
                Some(true),
            ),
            ("group = 'natural language processing'", Some(true)),
            ("family = flan-t5", Some(true)),
            ("created_at > 0", None),
        ] {
            assert_eq!(holds(text, &BTreeMap::new()), want, "{text}");
        }
    }

    #[test]
    fn unknown_stays_unknown_under_not_and_where_it_would_decide() {
        for (text, want) in [
            ("missing <= 2", None),
            ("not missing <= 2", None),
            ("nothing = 1", None),
            ("exists missing", Some(false)),
            ("exists nothing", Some(false)),
            ("not exists missing or missing <= 2", Some(true)),
            ("missing <= 2 and tools", None),
            ("missing <= 2 and not tools", Some(false)),
            ("missing <= 2 or tools", Some(true)),
            ("missing <= 2 or not tools", None),
            ("not (missing <= 2 and not tools)", Some(true)),
        ] {
            assert_eq!(holds(text, &BTreeMap::new()), want, "{text}");
        }
    }

    #[test]
    fn a_deployment_states_its_own_attributes() {
        let own: BTreeMap<String, Value> =
            serde_json::from_value(json!({"context_length": 4096, "tools": null})).unwrap();
        assert_eq!(holds("context_length = 4096", &own), Some(true));
        assert_eq!(
            holds("exists tools", &own),
            Some(false),
            "null takes it away"
        );
        assert_eq!(holds("licence = apache-2.0", &own), Some(true));
    }

    #[test]
    fn globs() {
        for (pattern, text, want) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*", "a", true),
            ("*a", "ba", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("?", "é", true),
            ("??", "é", false),
            ("*x*y", "xxyzy", true),
            ("a", "A", false),
        ] {
            assert_eq!(glob(pattern, text), want, "{pattern} {text}");
        }
        // Many stars take no exponential time.
        assert!(!glob(&"*a".repeat(200), &"b".repeat(20_000)));
    }
}
