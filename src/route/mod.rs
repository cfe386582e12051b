//! Requests in, decisions out: the router that a host holds.

mod decision;
mod request;
mod router;

pub use decision::{Decision, DomainScore, Ranked, Revisions, Timing};
pub use request::Request;
pub use router::Router;
