//! Where the model stands in the JSON of a chat request.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The key `model` of the outermost object; everything else is passed over.
#[derive(Deserialize)]
struct Outermost<'j> {
    #[serde(borrow)]
    model: Option<&'j RawValue>,
}

/// The model of a request, and the bytes of its value in the body, quotation marks included.
pub(super) struct NamedModel<'j> {
    pub(super) name: Cow<'j, str>,
    pub(super) place: Range<usize>,
}

/// The model that `body` names. `None` if it is no JSON object, has no model or several, or one
/// that is no text.
pub(super) fn find(body: &[u8]) -> Option<NamedModel<'_>> {
    let outermost: Outermost<'_> = serde_json::from_slice(body).ok()?;
    let value = outermost.model?.get();
    // The value is a part of the body, so that addresses say where it begins.
    let begin = (value.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let place = begin..begin + value.len();
    (body.get(place.clone())? == value.as_bytes()).then_some(())?;
    let name = match value.contains('\\') {
        true => Cow::Owned(serde_json::from_str(value).ok()?),
        false => Cow::Borrowed(serde_json::from_str(value).ok()?),
    };
    Some(NamedModel { name, place })
}

/// `body` with `model` as the value at `place`; every other byte is as it was.
pub(super) fn replaced(body: &[u8], place: Range<usize>, model: &str) -> Bytes {
    let model = serde_json::Value::from(model).to_string();
    let mut bytes = BytesMut::with_capacity(body.len() - place.len() + model.len());
    bytes.extend_from_slice(&body[..place.start]);
    bytes.extend_from_slice(model.as_bytes());
    bytes.extend_from_slice(&body[place.end..]);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn named(body: &str) -> Option<String> {
        find(body.as_bytes()).map(|found| found.name.into_owned())
    }

    #[test]
    fn the_model_of_the_outermost_object_is_found() {
        for body in [
            r#"{"model":"auto"}"#,
            r#"{"a":{"model":"no"},"model" : "auto" , "b":["model"]}"#,
            "{\"messages\":[{\"model\":\"no\"}],\n\t\"mod\\u0065l\":\"a\\u0075to\"}",
        ] {
            assert_eq!(named(body).as_deref(), Some("auto"), "{body}");
        }
    }

    #[test]
    fn what_names_no_model_is_left_alone() {
        for body in [
            "",
            "auto",
            "[]",
            r#"["model"]"#,
            "{}",
            r#"{"model":null}"#,
            r#"{"model":7}"#,
            r#"{"model":["auto"]}"#,
            r#"{"x":{"model":"auto"}}"#,
            r#"{"model":"auto""#,
            r#"{"model":"auto"} x"#,
            r#"{"model":"auto","model":"gpt"}"#,
        ] {
            assert_eq!(named(body), None, "{body}");
        }
        assert!(find(b"{\"model\":\"auto\",\"x\":\"\xff\"}").is_some());
        assert!(find(b"{\"model\":\"\xff\"}").is_none());
    }

    #[test]
    fn only_the_value_is_replaced() {
        let body = r#"{ "x": 1.50e1,  "model" : "auto" , "é": "\u00e9", "x": 2 }"#;
        let place = find(body.as_bytes()).unwrap().place;
        let new = replaced(body.as_bytes(), place, "a \"quoted\"\n/name");
        let want = body.replace("\"auto\"", r#""a \"quoted\"\n/name""#);
        assert_eq!(std::str::from_utf8(&new).unwrap(), want);
    }
}
