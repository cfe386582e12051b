//! Routes chat requests inside Envoy: a dynamic module with one HTTP filter.
//!
//! A POST to the path of a chat API is held until its body is whole. If its `model` is one that is
//! to be routed (`auto`), a model of the hub takes its place, headers say which and why, and Envoy
//! picks the route again. Everything else goes on as it came, and bodies of responses are never
//! seen.
//!
//! - [`abi`]: the part of Envoy's C interface that is used, and everything that is `unsafe`.
//! - [`config`]: the configuration of the filter.
//! - [`filter`]: what a stream goes through.
//! - [`pool`]: threads that compute what the cache does not have, so that no worker of Envoy waits.
//! - [`body`]: where a body's model stands.
//! - [`metrics`]: counters and times, among Envoy's own.

mod abi;
mod config;
mod filter;
mod metrics;
mod pool;
