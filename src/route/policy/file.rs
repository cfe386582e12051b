//! A policy as a file: TOML or JSON.

use std::path::Path;

use crate::error::{Error, Result, error};
use crate::files::read_text;
use crate::route::policy::Policy;

/// Longest file of a policy, bytes: a million deployments.
const LONGEST_FILE: u64 = 64 << 20;

impl Policy {
    /// Reads a policy from a file: TOML if its name ends with `.toml`, else JSON.
    ///
    /// Errors name the line: the file cannot be read; it is not TOML or JSON; a field is unknown;
    /// a constraint or a pattern is not one.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = read_text(path, LONGEST_FILE)?;
        let is_toml = path.extension().is_some_and(|ending| ending == "toml");
        let policy = match is_toml {
            true => Self::from_toml(&text),
            false => Self::from_json(&text),
        };
        policy.map_err(|e| e.at(path.display()))
    }

    /// Reads a policy from TOML.
    ///
    /// Errors: as [`Policy::read`].
    ///
    /// ```
    /// let policy = hubrouter::Policy::from_toml(r#"
    ///     where = "context_length >= 32768 and price <= 2"
    ///     fallbacks = ["price <= 10"]
    ///     deny = ["family:gpt2"]
    ///     prefer = { cost = 0.5 }
    /// "#)?;
    /// assert_eq!(policy.fallbacks.len(), 1);
    /// # Ok::<(), hubrouter::Error>(())
    /// ```
    pub fn from_toml(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e: toml::de::Error| {
            // The span of a list; the text that is wrong is somewhere in it.
            let line = e.span().map(|span| {
                let quoted = e
                    .message()
                    .split('"')
                    .nth(1)
                    .filter(|part| !part.is_empty());
                let list = text.get(span.clone()).unwrap_or_default();
                let inside = quoted.and_then(|part| list.find(part)).unwrap_or(0);
                line_at(text, span.start + inside)
            });
            located(line, e.message())
        })
    }

    /// Reads a policy from JSON.
    ///
    /// Errors: as [`Policy::read`].
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| {
            let message = e.to_string();
            let place = format!(" at line {} column {}", e.line(), e.column());
            let message = message.strip_suffix(&place).unwrap_or(&message);
            located(Some(e.line()), message)
        })
    }
}

/// The line of the byte `at`, from 1.
fn line_at(text: &str, at: usize) -> usize {
    let before = text.bytes().take(at);
    1 + before.filter(|byte| *byte == b'\n').count()
}

fn located(line: Option<usize>, message: &str) -> Error {
    let message = message.trim();
    match line {
        Some(line) => error!(Format, "line {line}: {message}"),
        None => error!(Format, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;

    const TOML: &str = r#"
# of the chat service
where = "price <= 2"
fallbacks = ["price <= 9"]
allow = ["google/*"]
deny = ["id:3"]
chat_needs = true

[prefer]
cost = 0.5

[[candidates]]
name = "a"

[[candidates]]
name = "b"
model = "google/b"
attributes = { price = 0.5, tools = true }
"#;

    #[test]
    fn toml_and_json_are_the_same_policy() {
        let json = r#"{"where":"price <= 2","fallbacks":["price <= 9"],"allow":["google/*"],"deny":["id:3"],
            "chat_needs":true,"prefer":{"cost":0.5},
            "candidates":["a",{"name":"b","model":"google/b","attributes":{"price":0.5,"tools":true}}]}"#;
        let policy = Policy::from_toml(TOML).unwrap();
        assert_eq!(policy, Policy::from_json(json).unwrap());
    }

    #[test]
    fn errors_name_the_line() {
        for (toml, want) in [
            (
                "where = \"price <\"\n",
                "line 1: constraint: column 8: expected a number",
            ),
            ("\n\nalow = []\n", "line 3: unknown field `alow`"),
            (
                "deny = [\n\"gpt2\",\n\"id:x\"]\n",
                "line 3: \"id:x\": expected id: and a number",
            ),
            ("[prefer]\ncost = \"much\"\n", "line 2: invalid type"),
            ("where = [\n", "line "),
            ("schema_version = 2\n", "line 1: schema_version: expected 1"),
        ] {
            let error = Policy::from_toml(toml).unwrap_err().to_string();
            assert!(error.contains(want), "{toml}: {error}");
        }
        for (json, want) in [
            (
                "{\"deny\":\n[\"id:x\"]}",
                "line 2: \"id:x\": expected id: and a number",
            ),
            ("{\n\n\"alow\":1}", "line 3: unknown field `alow`"),
            ("{", "line 1: EOF"),
        ] {
            let error = Policy::from_json(json).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Format);
            let error = error.to_string();
            assert!(error.starts_with(want), "{json}: {error}");
            assert!(!error.contains(" at line"), "{error}");
        }
    }
}
