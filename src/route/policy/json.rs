//! The JSON form of constraints.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::error::{Result, bail};
use crate::route::policy::constraint::{AttributeTest, Constraint};
use crate::route::policy::parser::DEEPEST;

impl Serialize for Constraint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        value_of(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Constraint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        read(&value, "", 0).map_err(D::Error::custom)
    }
}

fn value_of(constraint: &Constraint) -> Value {
    use AttributeTest::{AtLeast, AtMost, Exists, Has, In, Is, IsNot, Less, Matches, More};
    match constraint {
        Constraint::All(parts) => json!({"all": parts.iter().map(value_of).collect::<Vec<_>>()}),
        Constraint::Any(parts) => json!({"any": parts.iter().map(value_of).collect::<Vec<_>>()}),
        Constraint::Not(inner) => json!({"not": value_of(inner)}),
        Constraint::Test { attribute, test } => {
            let (op, value) = match test {
                Exists => return json!({"attribute": attribute, "op": "exists"}),
                Is(value) => ("=", value.clone()),
                IsNot(value) => ("!=", value.clone()),
                Less(n) => ("<", json!(n)),
                AtMost(n) => ("<=", json!(n)),
                More(n) => (">", json!(n)),
                AtLeast(n) => (">=", json!(n)),
                In(values) => ("in", json!(values)),
                Has(value) => ("has", value.clone()),
                Matches(pattern) => ("matches", json!(pattern)),
            };
            json!({"attribute": attribute, "op": op, "value": value})
        }
    }
}

/// Reads the value at `path`, which begins with a dot, inside of the constraint.
fn read(value: &Value, path: &str, depth: usize) -> Result<Constraint> {
    let place = || format!("constraint{path}");
    if depth > DEEPEST {
        bail!(
            InvalidRequest,
            "{}: expected at most {DEEPEST} conditions inside one another, found more",
            place()
        );
    }
    match value {
        Value::String(text) => text.parse().map_err(|e: crate::Error| e.at(place())),
        Value::Object(entries) if entries.contains_key("attribute") => test(entries, path),
        Value::Object(entries) => match entries.iter().next() {
            Some((key, parts)) if entries.len() == 1 && matches!(key.as_str(), "all" | "any") => {
                let path = format!("{path}.{key}");
                let Some(parts) = parts.as_array() else {
                    bail!(
                        InvalidRequest,
                        "constraint{path}: expected a list, found {parts}"
                    );
                };
                let part = |(n, value)| read(value, &format!("{path}[{n}]"), depth + 1);
                let parts = parts.iter().enumerate().map(part).collect::<Result<_>>()?;
                Ok(match key.as_str() {
                    "all" => Constraint::All(parts),
                    _ => Constraint::Any(parts),
                })
            }
            Some((key, inner)) if entries.len() == 1 && key == "not" => {
                let inner = read(inner, &format!("{path}.not"), depth + 1)?;
                Ok(Constraint::Not(Box::new(inner)))
            }
            _ => bail!(
                InvalidRequest,
                "{}: expected one of the keys all, any, not, or attribute with op and value, found \
                 {}",
                place(),
                keys(entries)
            ),
        },
        other => bail!(
            InvalidRequest,
            "{}: expected a text or an object, found {other}",
            place()
        ),
    }
}

fn keys(entries: &Map<String, Value>) -> String {
    match entries.is_empty() {
        true => "an empty object".to_owned(),
        false => entries.keys().cloned().collect::<Vec<_>>().join(", "),
    }
}

fn test(entries: &Map<String, Value>, path: &str) -> Result<Constraint> {
    use AttributeTest::{AtLeast, AtMost, Exists, Has, In, Is, IsNot, Less, Matches, More};
    const OPERATORS: &str = "exists, =, !=, <, <=, >, >=, in, has or matches";
    let wrong = |key: &str, expected: &str| {
        let found = entries.get(key).map_or("none".to_owned(), Value::to_string);
        crate::error::error!(
            InvalidRequest,
            "constraint{path}.{key}: expected {expected}, found {found}"
        )
    };
    let known = ["attribute", "op", "value"];
    if let Some(key) = entries.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(wrong(key, "attribute, op and value alone"));
    }
    let text = |key: &str, expected: &str| {
        let text = entries.get(key).and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(|| wrong(key, expected))
    };
    let attribute = text("attribute", "the name of an attribute")?;
    let op = text("op", OPERATORS)?;
    let value = entries.get("value");
    let number = || {
        let number = value.and_then(Value::as_f64);
        number.ok_or_else(|| wrong("value", "a number"))
    };
    let scalar = |value: &Value| value.is_number() || value.is_string() || value.is_boolean();
    let one = || {
        let value = value.filter(|value| scalar(value)).cloned();
        value.ok_or_else(|| wrong("value", "a number, a text, true or false"))
    };
    let test = match op.as_str() {
        "exists" if value.is_none() => Exists,
        "exists" => return Err(wrong("value", "none beside exists")),
        "=" | "==" => Is(one()?),
        "!=" => IsNot(one()?),
        "<" => Less(number()?),
        "<=" => AtMost(number()?),
        ">" => More(number()?),
        ">=" => AtLeast(number()?),
        "has" => Has(one()?),
        "matches" => Matches(text("value", "a pattern as a text")?),
        "in" => match value.and_then(Value::as_array) {
            Some(values) if values.iter().all(scalar) => In(values.clone()),
            _ => return Err(wrong("value", "a list of numbers, texts, true or false")),
        },
        _ => return Err(wrong("op", OPERATORS)),
    };
    Ok(Constraint::Test { attribute, test })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn objects_and_texts_mean_the_same() {
        let text = "(price <= 2 or not licence in [mit]) and exists tools and name matches 'a*'";
        let parsed: Constraint = text.parse().unwrap();
        let json = json!({"all": [
            {"any": [
                "price <= 2",
                {"not": {"attribute": "licence", "op": "in", "value": ["mit"]}}]},
            {"attribute": "tools", "op": "exists"},
            {"attribute": "name", "op": "matches", "value": "a*"}]});
        let read: Constraint = serde_json::from_value(json).unwrap();
        assert_eq!(read, parsed);
        let back = serde_json::to_value(&read).unwrap();
        assert_eq!(serde_json::from_value::<Constraint>(back).unwrap(), read);
    }

    #[test]
    fn errors_name_the_path() {
        for (json, want) in [
            (
                json!(3),
                "constraint: expected a text or an object, found 3",
            ),
            (
                json!({}),
                "constraint: expected one of the keys all, any, not, or attribute with op and \
                 value, found an empty object",
            ),
            (
                json!({"all": 1}),
                "constraint.all: expected a list, found 1",
            ),
            (
                json!({"all": ["a = 1", "a ="]}),
                "constraint.all[1]: column 4: expected",
            ),
            (
                json!({"not": {"some": []}}),
                "constraint.not: expected one of the keys",
            ),
            (
                json!({"attribute": "a"}),
                "constraint.op: expected exists, =, ",
            ),
            (
                json!({"attribute": "a", "op": "~"}),
                "constraint.op: expected exists, =, ",
            ),
            (
                json!({"attribute": "a", "op": "<", "value": "1"}),
                "constraint.value: expected a number, found \"1\"",
            ),
            (
                json!({"attribute": "a", "op": "=", "value": [1]}),
                "constraint.value: expected a number, a text, true or false, found [1]",
            ),
            (
                json!({"attribute": "a", "op": "exists", "value": 1}),
                "constraint.value: expected none",
            ),
            (
                json!({"attribute": "a", "op": "in", "value": [[]]}),
                "constraint.value: expected a list",
            ),
            (
                json!({"attribute": "a", "op": "=", "value": 1, "or": 2}),
                "constraint.or: expected attribute, op and value alone",
            ),
        ] {
            let error = serde_json::from_value::<Constraint>(json).unwrap_err();
            assert!(error.to_string().starts_with(want), "{error}");
        }
        let mut deep = json!("a");
        for _ in 0..100 {
            deep = json!({"not": deep});
        }
        let error = serde_json::from_value::<Constraint>(deep).unwrap_err();
        assert!(
            error.to_string().contains("at most 64 conditions"),
            "{error}"
        );
    }
}
