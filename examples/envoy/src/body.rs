//! Where the model of a chat request stands in its JSON, so that it can be replaced without touching
//! another byte.

use std::ops::Range;

/// The value of `model` of the outermost object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NamedModel {
    pub(crate) name: String,
    /// Its bytes in the body, with the quotes.
    pub(crate) place: Range<usize>,
}

/// The model that `body` names. `None`: it is no object, does not end, or has no model, more than
/// one, or one that is no string.
pub(crate) fn named_model(body: &[u8]) -> Option<NamedModel> {
    let mut scan = Scan { body, at: 0 };
    let mut found = None;
    scan.expect(b'{')?;
    if scan.peek()? == b'}' {
        return None;
    }
    loop {
        let key = scan.string()?;
        let key = text(&body[key])?;
        scan.expect(b':')?;
        let value = scan.value()?;
        if key == "model" && found.replace(value).is_some() {
            return None;
        }
        match scan.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    let place = found?;
    let name = text(&body[place.clone()])?;
    Some(NamedModel { name, place })
}

/// `body` with the model `name` at `place`.
pub(crate) fn with_model(body: &[u8], place: &Range<usize>, name: &str) -> Vec<u8> {
    let name = serde_json::Value::from(name).to_string();
    let (before, after) = (&body[..place.start], &body[place.end..]);
    [before, name.as_bytes(), after].concat()
}

/// The text of a JSON string, quotes included.
fn text(json: &[u8]) -> Option<String> {
    serde_json::from_slice(json).ok()
}

struct Scan<'b> {
    body: &'b [u8],
    at: usize,
}

impl Scan<'_> {
    /// The next byte that is no space, which stays.
    fn peek(&mut self) -> Option<u8> {
        let rest = self.body.get(self.at..)?;
        let space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.at += rest.iter().position(|byte| !space(byte))?;
        Some(self.body[self.at])
    }

    /// The next byte that is no space.
    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    /// The bytes of a string, with its quotes.
    fn string(&mut self) -> Option<Range<usize>> {
        self.expect(b'"')?;
        let start = self.at - 1;
        loop {
            let rest = self.body.get(self.at..)?;
            self.at += rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))? + 1;
            match self.body[self.at - 1] {
                b'"' => return Some(start..self.at),
                _ => self.at += 1,
            }
        }
    }

    /// The bytes of any value.
    fn value(&mut self) -> Option<Range<usize>> {
        let first = self.peek()?;
        let start = self.at;
        match first {
            b'"' => return self.string(),
            b'{' | b'[' => self.nested()?,
            _ => {
                let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']');
                self.at += self.body[self.at..].iter().position(ends)?;
            }
        }
        Some(start..self.at)
    }

    /// Goes behind an object or a list. What kind of bracket closes is not looked at.
    fn nested(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            let rest = self.body.get(self.at..)?;
            let marks = |byte: &u8| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']');
            self.at += rest.iter().position(marks)?;
            match self.body[self.at] {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                _ => depth -= 1,
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn name(body: &str) -> Option<String> {
        named_model(body.as_bytes()).map(|model| model.name)
    }

    #[test]
    fn the_model_of_the_outermost_object_is_found() {
        let body = r#" {"a": {"model": "x"}, "b": [1, "}\"", {}], "model" : "auto", "c": -1e3 }"#;
        let model = named_model(body.as_bytes()).unwrap();
        assert_eq!(model.name, "auto");
        assert_eq!(&body[model.place], "\"auto\"");
        assert_eq!(
            name(r#"{"mod\u0065l":"\u0061uto"}"#).as_deref(),
            Some("auto")
        );
        assert_eq!(
            name(r#"{"n":null,"model":"auto"} "#).as_deref(),
            Some("auto")
        );
    }

    #[test]
    fn what_has_no_single_model_is_left_alone() {
        for body in [
            "",
            "  ",
            "null",
            "[]",
            "{}",
            "{",
            r#"{"model""#,
            r#"{"model":"#,
            r#"{"model":"auto"#,
            r#"{"model":"auto""#,
            r#"{"model":"auto\"#,
            r#"{"model":3}"#,
            r#"{"model":null}"#,
            r#"{"model":{"model":"auto"}}"#,
            r#"{"model":"auto","model":"auto"}"#,
            r#"{"model":"auto";"a":1}"#,
            r#"{"a":[1,2,"model":"auto"}"#,
            r#"{a:1,"model":"auto"}"#,
        ] {
            assert_eq!(name(body), None, "{body}");
        }
        assert_eq!(named_model(b"{\"model\":\"\xff\"}"), None);
        assert_eq!(named_model(b"\xff\xfe{\"model\":\"auto\"}"), None);
    }

    #[test]
    fn every_beginning_of_a_body_is_read_to_its_end() {
        let body = r#"{"messages":[{"content":"é \\ \" 𝄞"}],"stream":true,"model":"auto"}"#;
        for end in 0..body.len() {
            assert_eq!(named_model(&body.as_bytes()[..end]), None);
        }
        assert_eq!(name(body).as_deref(), Some("auto"));
    }

    #[test]
    fn nothing_but_the_model_changes() {
        let body = br#"{"z":1.0, "model": "auto" , "a":"\u00e9"}"#;
        let place = named_model(body).unwrap().place;
        let changed = with_model(body, &place, "acme/\"x\"");
        assert_eq!(
            changed,
            br#"{"z":1.0, "model": "acme/\"x\"" , "a":"\u00e9"}"#
        );
    }
}
