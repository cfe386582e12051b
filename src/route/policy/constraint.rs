//! Conditions on what a hub states about a model.

use std::fmt;

use serde_json::Value;

use crate::route::policy::parser::is_word;

/// A condition that a model meets, does not meet, or for which its attributes do not say enough.
///
/// A model passes if the condition is true. An attribute that the model lacks, or that is of
/// another kind than the test, makes a test *unknown*. `not` of unknown is unknown, `and` and `or`
/// are unknown where the unknown part would decide (Kleene's three-valued logic), and unknown does
/// not pass. So `not price > 2` excludes models without a price, as `price <= 2` does;
/// `not exists price or price <= 2` admits them.
///
/// The text form is read with [`str::parse`] and written by `Display`; the JSON form is that text,
/// or an object: `{"all": [..]}`, `{"any": [..]}`, `{"not": ..}`, or
/// `{"attribute": "price", "op": "<=", "value": 2}`.
///
/// ```
/// let text = "context_length >= 32768 and licence in [mit] and not modality has audio";
/// let constraint: hubrouter::Constraint = text.parse()?;
/// let json = serde_json::to_string(&constraint)?;
/// assert_eq!(serde_json::from_str::<hubrouter::Constraint>(&json)?, constraint);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Constraint {
    /// All hold; true without any.
    All(Vec<Constraint>),
    /// At least one holds; false without any.
    Any(Vec<Constraint>),
    /// It does not hold.
    Not(Box<Constraint>),
    /// A test of one attribute.
    Test {
        /// Its name: one of `id`, `name`, `domain`, `group`, `family`, `created_at`, or of the
        /// registry's attributes; `a.b` is the entry `b` of an attribute `a` that is an object.
        attribute: String,
        /// What is asked of it.
        test: AttributeTest,
    },
}

/// What is asked of an attribute. Texts are compared without regard to case and outer spaces.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum AttributeTest {
    /// The model has the attribute, and it is not null.
    Exists,
    /// It is this number, text or truth value.
    Is(Value),
    /// It is another one, of the same kind.
    IsNot(Value),
    /// The number is smaller.
    Less(f64),
    /// The number is not larger.
    AtMost(f64),
    /// The number is larger.
    More(f64),
    /// The number is not smaller.
    AtLeast(f64),
    /// It is one of these.
    In(Vec<Value>),
    /// The list has this element, or the text has this word. Words of a text are separated by
    /// spaces and `,`, `+`, `|`, `/`, `>`, `;`.
    Has(Value),
    /// The text, or a text of the list, fits this pattern; `*` is any text, `?` any character.
    Matches(String),
}

impl Constraint {
    /// The parts that must all hold.
    pub(super) fn conjuncts(&self) -> Vec<&Constraint> {
        match self {
            Self::All(all) => all.iter().flat_map(Self::conjuncts).collect(),
            other => vec![other],
        }
    }

    /// How tightly the text form binds: `or` 0, `and` 1, others 2.
    fn strength(&self) -> u8 {
        match self {
            Self::Any(parts) | Self::All(parts) if parts.len() == 1 => parts[0].strength(),
            Self::Any(parts) if !parts.is_empty() => 0,
            Self::All(parts) if !parts.is_empty() => 1,
            _ => 2,
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, least: u8) -> fmt::Result {
        if self.strength() < least {
            f.write_str("(")?;
            self.write(f, 0)?;
            return f.write_str(")");
        }
        match self {
            // Nothing is asked: true of every model, false of every model.
            Self::All(parts) if parts.is_empty() => f.write_str("exists id"),
            Self::Any(parts) if parts.is_empty() => f.write_str("not exists id"),
            Self::All(parts) | Self::Any(parts) => {
                let (word, own) = match self {
                    Self::All(_) => (" and ", 2),
                    _ => (" or ", 1),
                };
                let own = if parts.len() == 1 { least } else { own };
                for (place, part) in parts.iter().enumerate() {
                    f.write_str(if place == 0 { "" } else { word })?;
                    part.write(f, own)?;
                }
                Ok(())
            }
            Self::Not(inner) => {
                f.write_str("not ")?;
                inner.write(f, 2)
            }
            Self::Test { attribute, test } => write_test(f, attribute, test),
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

fn write_test(f: &mut fmt::Formatter<'_>, attribute: &str, test: &AttributeTest) -> fmt::Result {
    use AttributeTest::{AtLeast, AtMost, Exists, Has, In, Is, IsNot, Less, Matches, More};
    let name = match is_word(attribute) {
        true => attribute.to_owned(),
        false => format!("`{attribute}`"),
    };
    let (op, value) = match test {
        Exists => return write!(f, "exists {name}"),
        In(values) => {
            let values: Vec<String> = values.iter().map(literal).collect();
            ("in", format!("[{}]", values.join(", ")))
        }
        Is(value) => ("=", literal(value)),
        IsNot(value) => ("!=", literal(value)),
        // A whole number without a decimal point.
        Less(n) => ("<", n.to_string()),
        AtMost(n) => ("<=", n.to_string()),
        More(n) => (">", n.to_string()),
        AtLeast(n) => (">=", n.to_string()),
        Has(value) => ("has", literal(value)),
        Matches(pattern) => ("matches", literal(&Value::from(pattern.as_str()))),
    };
    write!(f, "{name} {op} {value}")
}

/// A value as the text form has it.
fn literal(value: &Value) -> String {
    match value {
        Value::String(text) if is_word(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_constraint_is_written_with_the_parentheses_that_it_needs() {
        for text in [
            "price <= 2",
            "price <= 0.25 and context_length >= 32768",
            "(a = 1 or b = 2) and c = 3",
            "a = 1 and b = 2 or c = 3",
            "not (a = 1 or b = 2)",
            "not not exists a",
            "licence in [mit, apache-2.0, \"a b\"]",
            "modality has image",
            "name matches google/*",
            "name matches \"a b*\"",
            "`a b` != true",
            "price.input < 3",
        ] {
            let read: Constraint = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
        }
        let all = Constraint::All(Vec::new());
        assert_eq!(all.to_string(), "exists id");
        let none = Constraint::Not(Box::new(Constraint::Any(Vec::new())));
        assert_eq!(none.to_string(), "not not exists id");
    }

    #[test]
    fn conjuncts_are_the_parts_of_a_chain_of_and() {
        let read: Constraint = "a = 1 and (b = 2 and (c = 3 or d = 4))".parse().unwrap();
        let parts: Vec<String> = read.conjuncts().iter().map(ToString::to_string).collect();
        assert_eq!(parts, ["a = 1", "b = 2", "c = 3 or d = 4"]);
    }
}
