//! Model cards: descriptions of models, known before any labelled prompt; one JSON object per line.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::{Error, Result, bail};
use crate::hub::Model;
use crate::text::lines::{Lines, json_line};

/// One line of a `models.jsonl` (cmrbench.md section 10).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ModelCard {
    /// The model's name.
    pub model_name: String,
    /// The task of the model.
    pub domain: String,
    /// The lineage of the model, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// What the model does, in words.
    #[serde(
        default,
        deserialize_with = "text_or_list",
        skip_serializing_if = "Option::is_none"
    )]
    pub functionality: Option<String>,
    /// More words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Unix milliseconds; a file may also give an ISO 8601 date or time.
    #[serde(
        default,
        deserialize_with = "time",
        skip_serializing_if = "Option::is_none"
    )]
    pub created_at: Option<i64>,
    /// Every other key of the line.
    #[serde(flatten)]
    pub attributes: BTreeMap<String, Value>,
}

impl ModelCard {
    /// A card with a name and a domain alone.
    pub fn new(model_name: impl Into<String>, domain: impl Into<String>) -> Self {
        Self {
            model_name: model_name.into(),
            domain: domain.into(),
            family: None,
            functionality: None,
            description: None,
            created_at: None,
            attributes: BTreeMap::new(),
        }
    }

    /// The text that is encoded: name, domain, functionality, description, those that are there,
    /// joined by ". " (carve.md section 3).
    pub fn text(&self) -> String {
        [
            Some(self.model_name.as_str()),
            Some(self.domain.as_str()),
            self.functionality.as_deref(),
            self.description.as_deref(),
        ]
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(". ")
    }

    /// The registry's record of this card; `license` is read as `licence`.
    pub fn model(&self) -> Model {
        let mut model = Model::new(&self.model_name, &self.domain);
        model.family = self.family.as_deref().map(Into::into);
        model.created_at = self.created_at;
        model.attributes = self
            .attributes
            .iter()
            .map(|(key, value)| {
                (
                    if key == "license" { "licence" } else { key }.to_owned(),
                    value.clone(),
                )
            })
            .collect();
        model
    }
}

/// Text, or a list of texts joined by ", ".
fn text_or_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        Value::Array(parts) => Some(parts.iter().map(plain).collect::<Vec<_>>().join(", ")),
        other => Some(plain(&other)),
    })
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let expected = |found: &Value| {
        serde::de::Error::custom(format!(
            "created_at: expected Unix milliseconds or ISO 8601, found {found}"
        ))
    };
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Number(number) => number
            .as_i64()
            .map(Some)
            .ok_or_else(|| expected(&Value::Number(number))),
        Value::String(text) => match text.parse::<jiff::Timestamp>() {
            Ok(time) => Ok(Some(time.as_millisecond())),
            Err(_) => {
                let date = text.parse::<jiff::civil::Date>().ok();
                let midnight = date.and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok());
                let midnight = midnight.ok_or_else(|| expected(&Value::String(text)))?;
                Ok(Some(midnight.timestamp().as_millisecond()))
            }
        },
        other => Err(expected(&other)),
    }
}

/// Calls `each` with every line of the JSON Lines file at `path`; blank lines are passed over.
///
/// An error names the file and the line.
pub(crate) fn for_each_line<T: serde::de::DeserializeOwned>(
    path: &Path,
    mut each: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    for_each_text(path, |line| each(json_line(line)?))
}

/// As [`for_each_line`], with the line's own bytes.
pub(crate) fn for_each_text(path: &Path, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut lines = Lines::new(BufReader::new(file));
    while let Some(line) = lines.next().map_err(|error| error.at(path.display()))? {
        let place = format!("{}:{}", path.display(), line.number);
        let text = line.text.map_err(|error| error.at(&place))?;
        each(text.trim_ascii()).map_err(|error| error.at(&place))?;
    }
    Ok(())
}

/// The cards of a `models.jsonl`: of a repeated name the later line, in the earlier one's place.
///
/// Returns the cards and the names that were repeated.
pub fn read_models(path: impl AsRef<Path>) -> Result<(Vec<ModelCard>, Vec<String>)> {
    let path = path.as_ref();
    let mut cards: Vec<ModelCard> = Vec::new();
    let mut places = std::collections::HashMap::new();
    let mut repeated = Vec::new();
    for_each_line(path, |card: ModelCard| {
        match places.get(&card.model_name) {
            Some(&place) => {
                repeated.push(card.model_name.clone());
                cards[place] = card;
            }
            None => {
                places.insert(card.model_name.clone(), cards.len());
                cards.push(card);
            }
        }
        Ok(())
    })?;
    if cards.is_empty() {
        bail!(
            Format,
            "{}: expected at least one model, found none",
            path.display()
        );
    }
    Ok((cards, repeated))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::Folder;

    fn card(json: &str) -> Result<ModelCard, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn the_text_has_the_parts_that_are_there() {
        let full = card(
            r#"{"model_name":"m","domain":"d","functionality":["x","y"],"description":"Finds names.","price":0.2,"license":"mit"}"#,
        );
        let full = full.unwrap();
        assert_eq!(full.text(), "m. d. x, y. Finds names.");
        assert_eq!(
            full.model().attributes.keys().collect::<Vec<_>>(),
            ["licence", "price"]
        );
        let bare = card(r#"{"model_name":"m","domain":"d","functionality":null,"description":""}"#)
            .unwrap();
        assert_eq!(bare.text(), "m. d");
    }

    #[test]
    fn times_come_in_three_forms() {
        for (form, want) in [
            ("1726000000000", Some(1_726_000_000_000)),
            ("\"2024-09-10T20:26:40Z\"", Some(1_726_000_000_000)),
            ("\"1970-01-02\"", Some(86_400_000)),
            ("null", None),
        ] {
            let json = format!(r#"{{"model_name":"m","domain":"d","created_at":{form}}}"#);
            assert_eq!(card(&json).unwrap().created_at, want);
        }
        let error = card(r#"{"model_name":"m","domain":"d","created_at":"soon"}"#).unwrap_err();
        assert!(error.to_string().contains("ISO 8601"), "{error}");
    }

    #[test]
    fn files_name_the_line_of_an_error() {
        let folder = Folder::new("cards");
        let path = folder.join("cards.jsonl");
        let good = r#"{"model_name":"m","domain":"d"}"#;
        let later = r#"{"model_name":"m","domain":"e"}"#;
        std::fs::write(&path, format!("{good}\n\n{later}\n")).unwrap();
        let (cards, repeated) = read_models(&path).unwrap();
        assert_eq!(
            (cards.len(), cards[0].domain.as_str(), repeated.len()),
            (1, "e", 1)
        );
        std::fs::write(&path, format!("{good}\n{{\"model_name\":\"x\"}}\n")).unwrap();
        let error = read_models(&path).unwrap_err().to_string();
        assert!(
            error.contains(".jsonl:2: missing field `domain`"),
            "{error}"
        );
        std::fs::write(&path, "\n").unwrap();
        assert!(
            read_models(&path)
                .unwrap_err()
                .to_string()
                .contains("at least one model")
        );
    }
}
