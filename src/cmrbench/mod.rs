//! CMRBench as a library: its data and its metrics.

mod data;
mod metrics;

pub use data::{Data, Experience, Prefix, Row, query_text};
pub use metrics::{Hits, Percent, Tables};
