//! A tower layer that routes chat requests: `model: "auto"` in the body becomes a model of the hub.
//!
//! [`RouteLayer`] reads the body of a POST to one of three APIs (OpenAI chat completions, OpenAI
//! responses, Anthropic messages). If its `model` is `auto`, the router decides, and the layer
//! replaces that value and nothing else. Every other request passes as it came, and so do all
//! bodies of responses. The layer never refuses a request: without a decision the named fallback
//! takes its place or, without one, the request goes on with `auto`.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use hubrouter::layer::RouteLayer;
//! use hubrouter::{AsyncRouter, Options, Router};
//!
//! let options = Options::default().device("cpu").threads(1).cache_bytes(64 << 20);
//! let router = AsyncRouter::new(Arc::new(Router::open("weights/cmrbench", options)?));
//! let layer = RouteLayer::new(router)
//!     .fallback("google/flan-t5-xxl")
//!     .deadline(Duration::from_millis(50));
//! // With axum: `axum::Router::new().fallback(proxy).layer(layer)`.
//! # let _ = layer;
//! # Ok::<(), hubrouter::Error>(())
//! ```
//!
//! `examples/gateway` is a gateway that is made with it.

mod body;
mod plan;
mod record;
mod service;

pub use body::RoutedBody;
pub use plan::RouteLayer;
pub use record::{RouteReason, RouteRecord};
pub use service::RouteService;
