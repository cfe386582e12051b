//! CMRBench as a library: its data and its metrics.

mod data;
mod metrics;

pub use crate::text::query::{Prefix, query_text};
pub use data::{Data, Experience, Row};
pub use metrics::{Hits, Percent, Tables};
