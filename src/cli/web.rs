//! Requests over HTTP: the one agent, and how a server's refusal is shown.
#![expect(clippy::disallowed_types, reason = "the sockets of the command")]

use std::time::Duration;

use serde_json::Value;

use crate::error::{Result, bail};

/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(20);

/// A server that the command line names.
pub(super) struct Server<'u> {
    host: &'u str,
}

impl<'u> Server<'u> {
    /// The server of `url`, the value of `option`; `key_option` is the way to pass a key.
    ///
    /// Errors: `url` is no URL, or contains a user name, which is not shown.
    pub(super) fn of(url: &'u str, option: &str, key_option: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"));
        let host = |rest: &'u str| rest.split(['/', '?', '#']).next();
        if rest
            .or(Some(url))
            .and_then(host)
            .unwrap_or("")
            .contains('@')
        {
            bail!(
                InvalidRequest,
                "{option}: expected a URL without a user name; put a key into a variable and name \
                 it with {key_option}"
            );
        }
        match rest.and_then(host).filter(|host| !host.is_empty()) {
            Some(host) => Ok(Self { host }),
            None => bail!(
                InvalidRequest,
                "{option}: expected a URL such as http://localhost:8080, found {url:?}"
            ),
        }
    }

    /// Whether it is on this machine.
    pub(super) fn is_local(&self) -> bool {
        let name = self
            .host
            .rsplit_once(':')
            .map_or(self.host, |(name, _)| name);
        name == "localhost" || name == "[::1]" || name.starts_with("127.")
    }

    /// An agent that asks it, with `timeout` for a whole answer. It follows no redirect, so that
    /// nothing goes to another server than the one that is named.
    pub(super) fn agent(&self, timeout: Duration) -> ureq::Agent {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("hubrouter/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(timeout.min(CONNECT)))
            .timeout_global(Some(timeout));
        if self.is_local() {
            config = config.proxy(None);
        }
        config.build().new_agent()
    }
}

/// The key in the variable `name`, the value of `option`.
///
/// Errors: it is not set, or its text cannot be a key. The text is not shown.
pub(super) fn key(name: Option<&str>, option: &str) -> Result<Option<String>> {
    let Some(name) = name else { return Ok(None) };
    #[expect(
        clippy::disallowed_methods,
        reason = "a variable that the command line names"
    )]
    let key = std::env::var(name).unwrap_or_default();
    let key = key.trim();
    if key.is_empty() {
        bail!(
            InvalidRequest,
            "{option}: expected a key in the variable {name:?}, found none"
        );
    }
    if !key.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
        bail!(
            InvalidRequest,
            "{option}: expected a key of visible ASCII characters in the variable {name:?}, found \
             others"
        );
    }
    Ok(Some(key.to_owned()))
}

/// The server's message of an error in brackets, from OpenAI's form or as it is.
pub(super) fn said(text: &str) -> String {
    let value: Option<Value> = serde_json::from_str(text).ok();
    let message = value.as_ref().and_then(|value| {
        let places = ["/error/message", "/error", "/detail", "/message"];
        let mut found = places.iter().filter_map(|place| value.pointer(place));
        found.find_map(Value::as_str)
    });
    match start(message.unwrap_or(text).trim()) {
        "" => String::new(),
        text => format!(" ({text})"),
    }
}

/// The first 200 characters of a text.
pub(super) fn start(text: &str) -> &str {
    let end = text
        .char_indices()
        .nth(200)
        .map_or(text.len(), |(at, _)| at);
    &text[..end]
}
