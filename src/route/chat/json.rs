//! JSON of a request: borrowed where it can be, bounded, with errors that name the path.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result, error};

/// Longest request that is read, in bytes.
pub(super) const MOST_BYTES: usize = 64 << 20;

/// Most values of a request: a bound on the memory that its structure takes.
const MOST_VALUES: usize = 1 << 19;

/// A value. Text without escapes is not copied.
#[derive(Debug)]
pub(super) enum Json<'j> {
    Null,
    Bool,
    Number(f64),
    Text(Cow<'j, str>),
    List(Vec<Json<'j>>),
    Object(Vec<(Cow<'j, str>, Json<'j>)>),
}

/// The place of a value, written only where an error needs it.
#[derive(Clone, Copy)]
pub(super) enum JsonPath<'p> {
    Root,
    Key(&'p JsonPath<'p>, &'p str),
    Index(&'p JsonPath<'p>, usize),
}

impl<'p> JsonPath<'p> {
    pub(super) fn key(&'p self, key: &'p str) -> Self {
        Self::Key(self, key)
    }

    pub(super) fn index(&'p self, index: usize) -> Self {
        Self::Index(self, index)
    }

    /// The error for `json` here, where `expected` should be.
    pub(super) fn wrong(&self, expected: &str, json: &Json<'_>) -> Error {
        error!(
            InvalidRequest,
            "{self}: expected {expected}, found {}",
            json.kind()
        )
    }
}

impl fmt::Display for JsonPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => write!(f, "the request"),
            Self::Key(Self::Root, key) => write!(f, "{key}"),
            Self::Key(before, key) => write!(f, "{before}.{key}"),
            Self::Index(before, index) => write!(f, "{before}[{index}]"),
        }
    }
}

impl<'j> Json<'j> {
    /// Errors: longer than [`MOST_BYTES`], not JSON, nested too deeply for the parser, or of more
    /// than [`MOST_VALUES`] values.
    pub(super) fn read(bytes: &'j [u8]) -> Result<Self> {
        if bytes.len() > MOST_BYTES {
            return Err(error!(
                InvalidRequest,
                "expected a request of at most {MOST_BYTES} bytes, found {}",
                bytes.len()
            ));
        }
        let left = Cell::new(MOST_VALUES);
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let json = Reading(&left).deserialize(&mut reader);
        json.and_then(|json| reader.end().map(|()| json))
            .map_err(|e| error!(Format, "expected the JSON of a chat request: {e}"))
    }

    /// The last value under `key` of an object; `None` without it, or where it is `null`.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Self::Object(entries) = self else {
            return None;
        };
        let found = entries.iter().rev().find(|(name, _)| name == key);
        found
            .map(|(_, value)| value)
            .filter(|value| !matches!(value, Self::Null))
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The text under `key`, if there is one.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Self::as_text)
    }

    /// The elements of a list; none of anything else.
    pub(super) fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }

    /// The kind of the value, for errors.
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// Reads one value while values are left.
struct Reading<'c>(&'c Cell<usize>);

impl<'j> DeserializeSeed<'j> for Reading<'_> {
    type Value = Json<'j>;

    fn deserialize<D: serde::Deserializer<'j>>(self, reader: D) -> Result<Json<'j>, D::Error> {
        let left = self.0.get().checked_sub(1);
        let left = left.ok_or_else(|| {
            D::Error::custom(format!("expected at most {MOST_VALUES} values, found more"))
        })?;
        self.0.set(left);
        reader.deserialize_any(self)
    }
}

impl<'j> Visitor<'j> for Reading<'_> {
    type Value = Json<'j>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json<'j>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _value: bool) -> Result<Json<'j>, E> {
        Ok(Json::Bool)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'j>, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'j>, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'j>, E> {
        Ok(Json::Number(value))
    }

    fn visit_borrowed_str<E>(self, text: &'j str) -> Result<Json<'j>, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'j>, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'j>>(self, mut all: A) -> Result<Json<'j>, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = all.next_element_seed(Reading(self.0))? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'j>>(self, mut all: A) -> Result<Json<'j>, A::Error> {
        let mut entries = Vec::new();
        while let Some(Json::Text(key)) = all.next_key_seed(Reading(self.0))? {
            entries.push((key, all.next_value_seed(Reading(self.0))?));
        }
        Ok(Json::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn text_without_escapes_is_borrowed() {
        let json = Json::read(br#"{"a": ["plain", "a\nb"], "a": ["\u00e9", "x"]}"#).unwrap();
        let list = json.get("a").unwrap().list();
        assert_eq!(
            list[0].as_text(),
            Some("é"),
            "the last of equal keys counts"
        );
        assert!(matches!(&list[0], Json::Text(Cow::Owned(_))));
        assert!(matches!(&list[1], Json::Text(Cow::Borrowed("x"))));
    }

    #[test]
    fn structure_is_bounded() {
        let many = format!("[{}0]", "0,".repeat(MOST_VALUES));
        let error = Json::read(many.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("524288 values"), "{error}");
        let deep = "[".repeat(1 << 20);
        assert!(Json::read(deep.as_bytes()).is_err());
        let long = vec![b' '; MOST_BYTES + 1];
        let error = Json::read(&long).unwrap_err();
        assert!(error.to_string().contains("at most 67108864 bytes"));
    }

    #[test]
    fn paths_are_written_as_in_code() {
        let root = JsonPath::Root;
        let list = root.key("messages");
        let one = list.index(3);
        let error = one.key("role").wrong("a string", &Json::Number(1.0));
        assert_eq!(
            error.to_string(),
            "messages[3].role: expected a string, found a number"
        );
        let error = root.wrong("an object", &Json::Null).to_string();
        assert_eq!(error, "the request: expected an object, found null");
    }
}
