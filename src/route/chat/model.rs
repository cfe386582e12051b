//! Where the model stands in the JSON of a chat request.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The model that the body of a chat request names. It can be replaced without a change of any
/// other byte.
///
/// ```
/// use hubrouter::ChatModel;
///
/// let body = br#"{"model": "auto", "messages": [], "temperature": 1.0}"#;
/// let asked = ChatModel::find(body).expect("it names a model");
/// assert_eq!(asked.name, "auto");
/// let changed = asked.replaced_in(body, "gpt2").expect("the same body");
/// assert_eq!(changed, br#"{"model": "gpt2", "messages": [], "temperature": 1.0}"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChatModel {
    /// Its name.
    pub name: String,
    /// The bytes of its value in the body, quotation marks included.
    pub place: Range<usize>,
}

/// The key `model` of the outermost object; everything else is passed over.
#[derive(Deserialize)]
struct Outermost<'j> {
    #[serde(borrow)]
    model: Option<&'j RawValue>,
}

impl ChatModel {
    /// The model that `body` names. `None` if `body` is no JSON object, or has no model, several,
    /// or one that is no text.
    pub fn find(body: &[u8]) -> Option<Self> {
        // A list would do for the fields of a struct as well.
        (*body.trim_ascii_start().first()? == b'{').then_some(())?;
        let outermost: Outermost<'_> = serde_json::from_slice(body).ok()?;
        let value = outermost.model?.get();
        // The value is a part of the body, so that addresses say where it begins.
        let begin = (value.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
        let place = begin..begin + value.len();
        (body.get(place.clone())? == value.as_bytes()).then_some(())?;
        let name = serde_json::from_str(value).ok()?;
        Some(Self { name, place })
    }

    /// `body`, in which this model was found, with the model `name` in its place. `None` if `body`
    /// ends before that place.
    pub fn replaced_in(&self, body: &[u8], name: &str) -> Option<Vec<u8>> {
        let name = serde_json::Value::from(name).to_string();
        let before = body.get(..self.place.start)?;
        let after = body.get(self.place.end..)?;
        Some([before, name.as_bytes(), after].concat())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn named(body: &str) -> Option<String> {
        ChatModel::find(body.as_bytes()).map(|found| found.name)
    }

    #[test]
    fn the_model_of_the_outermost_object_is_found() {
        for body in [
            r#"{"model":"auto"}"#,
            r#"{"a":{"model":"no"},"model" : "auto" , "b":["model"]}"#,
            r#" {"a": {"model": "x"}, "b": [1, "}\"", {}], "model" : "auto", "c": -1e3 }"#,
            "{\"messages\":[{\"model\":\"no\"}],\n\t\"mod\\u0065l\":\"a\\u0075to\"}",
            r#"{"n":null,"model":"auto"} "#,
        ] {
            assert_eq!(named(body).as_deref(), Some("auto"), "{body}");
        }
    }

    #[test]
    fn a_body_without_a_single_model_is_left_alone() {
        for body in [
            "",
            "  ",
            "auto",
            "null",
            "[]",
            r#"["model"]"#,
            "{",
            "{}",
            r#"{"model""#,
            r#"{"model":"#,
            r#"{"model":"auto"#,
            r#"{"model":"auto\"#,
            r#"{"model":null}"#,
            r#"{"model":7}"#,
            r#"{"model":["auto"]}"#,
            r#"{"model":{"model":"auto"}}"#,
            r#"{"x":{"model":"auto"}}"#,
            r#"{"model":"auto""#,
            r#"{"model":"auto"} x"#,
            r#"{"model":"auto";"a":1}"#,
            r#"{a:1,"model":"auto"}"#,
            r#"{"model":"auto","model":"gpt"}"#,
        ] {
            assert_eq!(named(body), None, "{body}");
        }
        assert!(ChatModel::find(b"{\"model\":\"auto\",\"x\":\"\xff\"}").is_some());
        assert!(ChatModel::find(b"{\"model\":\"\xff\"}").is_none());
        assert!(ChatModel::find(b"\xff\xfe{\"model\":\"auto\"}").is_none());
    }

    #[test]
    fn every_beginning_of_a_body_is_read_to_its_end() {
        let body = r#"{"messages":[{"content":"é \\ \" 𝄞"}],"stream":true,"model":"auto"}"#;
        for end in 0..body.len() {
            assert_eq!(ChatModel::find(&body.as_bytes()[..end]), None);
        }
        assert_eq!(named(body).as_deref(), Some("auto"));
    }

    #[test]
    fn only_the_value_is_replaced() {
        let body = r#"{ "x": 1.50e1,  "model" : "auto" , "é": "\u00e9", "x": 2 }"#;
        let found = ChatModel::find(body.as_bytes()).unwrap();
        let new = found.replaced_in(body.as_bytes(), "a \"quoted\"\n/name");
        let want = body.replace("\"auto\"", r#""a \"quoted\"\n/name""#);
        assert_eq!(std::str::from_utf8(&new.unwrap()).unwrap(), want);
        assert_eq!(found.replaced_in(b"{\"model\"", "x"), None);
    }
}
