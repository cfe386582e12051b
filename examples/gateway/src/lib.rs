//! A gateway to start from: OpenAI chat completions, OpenAI responses and Anthropic messages in
//! front of several upstreams. A request for `auto` is routed; any other model passes through.
//!
//! `README.md` beside it has the commands, `docs/gateways.md` the figures.

pub mod admin;
pub mod api;
pub mod changes;
pub mod config;
pub mod gateway;
pub mod guard;
pub mod metrics;
pub mod pages;
pub mod proxy;
pub mod reply;
pub mod server;
pub mod trace;

pub use config::Config;
pub use gateway::Gateway;

use std::fmt;

/// Why the gateway does not start, for people.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<hubrouter::Error> for Failure {
    fn from(error: hubrouter::Error) -> Self {
        Self(error.to_string())
    }
}
