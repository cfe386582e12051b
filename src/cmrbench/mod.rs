//! CMRBench as a library: its data and its metrics.

mod data;
mod matrix;
mod metrics;

pub use crate::text::query::{Prefix, query_text};
pub use data::{Data, EvalRows, Experience, Row};
pub use matrix::{Matrix, mean_and_deviation};
pub use metrics::{CarveHits, CarveRule, Hits, Percent, Tables};
