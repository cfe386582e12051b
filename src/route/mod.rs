//! The router that a host holds, its requests and its decisions.

mod decision;
mod request;
mod router;

pub use decision::{Decision, DomainScore, Ranked, Revisions, Timing};
pub use request::Request;
pub use router::Router;
