//! The configuration: one TOML file. Keys come from the environment, and never from the file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderValue, Uri};
use hubrouter::{ChatShape, Deployment};
use serde::Deserialize;

use crate::Failure;

/// The file. A path in it is relative to the file's folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where clients connect.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Where reload and rollback are. Whoever reaches it may use them.
    #[serde(default = "admin_listen")]
    pub admin_listen: SocketAddr,
    /// The store of generations.
    pub store: PathBuf,
    /// The encoder bundle, if it is not beside the store.
    pub encoder: Option<PathBuf>,
    /// A policy without candidates: those are the models of the upstreams.
    pub policy: Option<PathBuf>,
    /// A folder for a log of decisions.
    pub feedback: Option<PathBuf>,
    /// The variable with the key that clients must send; without it everybody is served.
    pub client_key_env: Option<String>,
    /// Least level of lines: `error`, `warn`, `info`, `debug`, `trace` or `off`. Spans are `info`.
    #[serde(default = "log_level")]
    pub log_level: String,
    /// Lines for people in place of JSON.
    #[serde(default)]
    pub log_text: bool,
    #[serde(default)]
    pub routing: Routing,
    #[serde(default)]
    pub limits: Limits,
    pub upstreams: Vec<UpstreamConfig>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// Names of models that are routed.
    pub names: Vec<String>,
    /// Models for requests without a decision: of these, the first that the API has.
    pub fallback: Vec<String>,
    pub deadline_ms: Option<u64>,
    pub cache_mib: usize,
    /// Most requests that wait for a computation.
    pub queue: usize,
    pub threads: usize,
    /// Seconds between two looks at the store's `current`; 0: never.
    pub watch_seconds: f64,
    /// The header with the id of a conversation.
    pub session_header: String,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            names: vec!["auto".to_owned()],
            fallback: Vec::new(),
            deadline_ms: None,
            cache_mib: 64,
            queue: 256,
            threads: 1,
            watch_seconds: 5.0,
            session_header: "x-session-id".to_owned(),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub body_mib: usize,
    pub headers: usize,
    pub header_kib: usize,
    pub connections: usize,
    /// For the head of a request, also for the next one of an idle connection.
    pub header_seconds: u64,
    /// Between two pieces of a request's body.
    pub body_seconds: u64,
    pub connect_seconds: u64,
    /// Until an upstream begins to answer.
    pub answer_seconds: u64,
    /// Between two pieces of an upstream's answer.
    pub silence_seconds: u64,
    /// For requests under way when the gateway is told to stop.
    pub drain_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_mib: 16,
            headers: 64,
            header_kib: 32,
            connections: 1024,
            header_seconds: 30,
            body_seconds: 30,
            connect_seconds: 5,
            answer_seconds: 300,
            silence_seconds: 300,
            drain_seconds: 30,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    pub name: String,
    /// What stands before `/v1/...`.
    pub url: String,
    /// The APIs that it speaks.
    pub apis: Vec<ChatShape>,
    /// The variable with its key; without one the client's key goes on.
    pub key_env: Option<String>,
    /// Its models, as deployments of a policy.
    pub models: Vec<Deployment>,
}

fn log_level() -> String {
    "info".to_owned()
}

fn listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8080))
}

fn admin_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8081))
}

impl Config {
    /// Reads `file` and checks all that can be checked without a store.
    pub fn read(file: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|error| Failure(format!("{}: {error}", file.display())))?;
        let parsed: Result<Self, _> = toml::from_str(&text);
        let mut config = parsed.map_err(|error| Failure(format!("{}: {error}", file.display())))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        config.store = folder.join(&config.store);
        for path in [
            &mut config.encoder,
            &mut config.policy,
            &mut config.feedback,
        ] {
            *path = path.take().map(|path| folder.join(path));
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Failure> {
        let fail = |text: String| Err(Failure(text));
        if self.upstreams.is_empty() {
            return fail("upstreams: expected at least one, found none".to_owned());
        }
        let served = self.served();
        for name in &self.routing.names {
            if served.iter().any(|(_, model, _)| model == name) {
                return fail(format!("routing.names: {name} is a model of an upstream"));
            }
        }
        for name in &self.routing.fallback {
            if !served.iter().any(|(_, model, _)| model == name) {
                return fail(format!("routing.fallback: no upstream has {name}"));
            }
        }
        let mut known = BTreeMap::new();
        for (api, model, upstream) in served {
            let before = known.insert((api_name(api), model), upstream);
            if let Some(before) = before {
                return fail(format!(
                    "upstreams: {model} of {} is both {before}'s and {upstream}'s",
                    api_name(api)
                ));
            }
        }
        let positive = [
            ("limits.body_mib", self.limits.body_mib),
            ("limits.headers", self.limits.headers),
            ("limits.header_kib", self.limits.header_kib),
            ("limits.connections", self.limits.connections),
            ("routing.threads", self.routing.threads),
        ];
        for (name, value) in positive {
            if value == 0 {
                return fail(format!("{name}: expected more than 0, found 0"));
            }
        }
        let watch = self.routing.watch_seconds;
        if Duration::try_from_secs_f64(watch).is_err() {
            return fail(format!(
                "routing.watch_seconds: expected seconds, found {watch}"
            ));
        }
        Ok(())
    }

    /// API, model and upstream of everything that is served.
    fn served(&self) -> Vec<(ChatShape, &str, &str)> {
        let mut served = Vec::new();
        for upstream in &self.upstreams {
            for api in &upstream.apis {
                for model in &upstream.models {
                    served.push((*api, model.name.as_str(), upstream.name.as_str()));
                }
            }
        }
        served
    }
}

/// As in `apis` of the configuration and in labels.
pub fn api_name(api: ChatShape) -> &'static str {
    match api {
        ChatShape::OpenAiChat => "openai_chat",
        ChatShape::OpenAiResponses => "openai_responses",
        ChatShape::AnthropicMessages => "anthropic_messages",
        _ => "other",
    }
}

/// The address of an upstream, without a slash at its end.
pub fn base(url: &str) -> Result<String, Failure> {
    let fail = |why: &str| Failure(format!("upstreams.url: {why}, found {url:?}"));
    let uri: Uri = url.parse().map_err(|_| fail("expected an address"))?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    if !known || uri.host().is_none() || uri.query().is_some() {
        return Err(fail("expected http://host or https://host/path"));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

/// The key in the variable `name`, in a header.
pub fn key(name: &str, before: &str) -> Result<HeaderValue, Failure> {
    let value = std::env::var(name).unwrap_or_default();
    if value.trim().is_empty() {
        return Err(Failure(format!(
            "the environment variable {name} has no key"
        )));
    }
    let header = HeaderValue::from_str(&format!("{before}{}", value.trim()));
    let mut header =
        header.map_err(|_| Failure(format!("the key in {name} cannot be a header")))?;
    header.set_sensitive(true);
    Ok(header)
}
