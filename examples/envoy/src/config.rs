//! The configuration of the filter: JSON, from `filter_config` of Envoy's configuration.

use std::path::PathBuf;
use std::time::Duration;

use hubrouter::{Options, Policy};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Most bytes of a body that a configuration may hold.
const LONGEST_BODY: usize = 64 << 20;

/// Most threads.
const MOST_THREADS: usize = 64;

/// See `README.md` for what each field means.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) store: PathBuf,
    #[serde(default = "options", deserialize_with = "with_options")]
    pub(crate) options: Options,
    #[serde(default, deserialize_with = "policy")]
    pub(crate) policy: Option<Policy>,
    #[serde(default = "models")]
    pub(crate) models: Vec<String>,
    #[serde(default = "paths")]
    pub(crate) paths: Vec<String>,
    #[serde(default)]
    pub(crate) headers: Headers,
    #[serde(default = "max_body_bytes")]
    pub(crate) max_body_bytes: usize,
    #[serde(default = "deadline_ms")]
    deadline_ms: u64,
    #[serde(default = "threads")]
    pub(crate) threads: usize,
    #[serde(default = "queue")]
    pub(crate) queue: usize,
    #[serde(default = "watch_ms")]
    watch_ms: u64,
    #[serde(default)]
    pub(crate) fallback_model: Option<String>,
}

/// Names of the headers that are set on a routed request.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Headers {
    pub(crate) model: String,
    pub(crate) reason: String,
    pub(crate) fallback: String,
    pub(crate) generation: String,
    pub(crate) domain: String,
    pub(crate) probability: String,
}

impl Default for Headers {
    fn default() -> Self {
        Self {
            model: "x-hubrouter-model".to_owned(),
            reason: "x-hubrouter-reason".to_owned(),
            fallback: "x-hubrouter-fallback".to_owned(),
            generation: "x-hubrouter-generation".to_owned(),
            domain: "x-hubrouter-domain".to_owned(),
            probability: "x-hubrouter-probability".to_owned(),
        }
    }
}

impl Headers {
    pub(crate) fn all(&self) -> [&str; 6] {
        let Self {
            model,
            reason,
            fallback,
            generation,
            domain,
            probability,
        } = self;
        [model, reason, fallback, generation, domain, probability].map(String::as_str)
    }
}

/// A thread of the module computes a prompt by itself, and the cache answers what comes again.
fn options() -> Options {
    Options::default()
        .device("cpu")
        .threads(1)
        .cache_bytes(64 << 20)
}

fn with_options<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Options, D::Error> {
    use serde::de::Error;
    let given = Map::<String, Value>::deserialize(deserializer)?;
    let mut whole = serde_json::to_value(options()).map_err(D::Error::custom)?;
    if let Value::Object(fields) = &mut whole {
        fields.extend(given);
    }
    serde_json::from_value(whole).map_err(|e| D::Error::custom(format!("options: {e}")))
}

/// A policy, or the path of a file with one.
fn policy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Policy>, D::Error> {
    use serde::de::Error;
    let policy = match Value::deserialize(deserializer)? {
        Value::Null => return Ok(None),
        Value::String(path) => Policy::read(path).map_err(D::Error::custom)?,
        given => {
            serde_json::from_value(given).map_err(|e| D::Error::custom(format!("policy: {e}")))?
        }
    };
    Ok(Some(policy))
}

fn models() -> Vec<String> {
    vec!["auto".to_owned()]
}

fn paths() -> Vec<String> {
    let paths = ["/v1/chat/completions", "/v1/responses", "/v1/messages"];
    paths.map(str::to_owned).to_vec()
}

fn max_body_bytes() -> usize {
    4 << 20
}

fn deadline_ms() -> u64 {
    1000
}

fn threads() -> usize {
    2
}

fn queue() -> usize {
    256
}

fn watch_ms() -> u64 {
    1000
}

impl Config {
    /// Errors, for people: it is not JSON; a field is unknown, missing or out of its range.
    pub(crate) fn read(json: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        within("threads", self.threads, 1, MOST_THREADS)?;
        within("max_body_bytes", self.max_body_bytes, 1, LONGEST_BODY)?;
        if self.models.is_empty() || self.paths.is_empty() {
            return Err("expected models and paths, found an empty list".to_owned());
        }
        for name in self.headers.all() {
            let allowed =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
            if name.is_empty() || !name.bytes().all(allowed) {
                return Err(format!(
                    "headers: expected names of small letters, digits, - and _, found {name:?}"
                ));
            }
        }
        Ok(())
    }

    /// How long after its body has come a prompt must be in computation.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        (self.deadline_ms > 0).then(|| Duration::from_millis(self.deadline_ms))
    }

    /// How often the store is looked at.
    pub(crate) fn watch(&self) -> Option<Duration> {
        (self.watch_ms > 0).then(|| Duration::from_millis(self.watch_ms))
    }
}

fn within(name: &str, value: usize, least: usize, most: usize) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{name}: expected {least} to {most}, found {value}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn error(json: &str) -> String {
        Config::read(json.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_store_is_enough() {
        let config = Config::read(br#"{"store": "s"}"#).unwrap();
        assert_eq!(config.options, options());
        assert_eq!(config.models, ["auto"]);
        assert_eq!(config.deadline(), Some(Duration::from_secs(1)));
        assert_eq!(config.watch(), Some(Duration::from_secs(1)));
        assert!(config.policy.is_none() && config.fallback_model.is_none());
    }

    #[test]
    fn options_replace_the_module_s_one_by_one() {
        let json = br#"{"store": "s", "options": {"cache_bytes": 1024}, "deadline_ms": 0}"#;
        let config = Config::read(json).unwrap();
        assert_eq!(config.options, options().cache_bytes(1024));
        assert_eq!(config.deadline(), None);
    }

    #[test]
    fn errors_say_what_was_expected() {
        assert!(error("{}").contains("store"));
        assert!(error("x").contains("expected value"));
        assert!(error(r#"{"store": "s", "stores": 1}"#).contains("unknown field `stores`"));
        assert!(error(r#"{"store": "s", "options": {"thread": 1}}"#).contains("thread"));
        assert!(error(r#"{"store": "s", "policy": "/no/policy.json"}"#).contains("/no/policy"));
        assert!(error(r#"{"store": "s", "policy": {"were": ""}}"#).contains("were"));
        assert!(error(r#"{"store": "s", "threads": 0}"#).contains("expected 1 to 64, found 0"));
        assert!(error(r#"{"store": "s", "max_body_bytes": 0}"#).contains("max_body_bytes"));
        assert!(error(r#"{"store": "s", "models": []}"#).contains("empty list"));
        let bad = r#"{"store": "s", "headers": {"model": "X: y"}}"#;
        assert!(error(bad).contains(r#"found "X: y""#));
    }
}
