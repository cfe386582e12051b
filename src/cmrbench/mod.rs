//! CMRBench as a library: data, metrics, the methods that it compares, the report.

mod bootstrap;
mod bundled;
mod chat;
mod data;
mod grid;
mod matrix;
mod methods;
mod metrics;
mod own;
mod predictions;
mod recall;
mod registry;
mod report;
mod results;

pub use crate::text::query::{Prefix, query_text};
pub use bootstrap::{Comparison, DRAWS, Quantity, compare};
pub use bundled::{BundledScore, measure_bundled};
pub use chat::{Ask, Chat, DomainList};
pub use data::{BenchExperience, BenchRow, Data, EvalRows};
pub use grid::{BenchPlan, Cell, CellSettings, GridStatus, GridWatch, StepNote, run};
pub use matrix::{AccuracyMatrix, mean_and_deviation};
pub use methods::{Group, MethodInfo, Named, method, methods, select};
pub use metrics::{CarveHits, CarveRule, Hits, Percent, Tables};
pub use own::OwnHub;
pub use predictions::{Prediction, predictions_file, read_predictions};
pub use recall::{LastRun, passed_over, recall};
pub use registry::RegistryMap;
#[cfg(feature = "cli")]
pub(crate) use report::page;
pub use report::{REPORT_FILES, write_report};
pub use results::{MethodOutcome, Metric, Results, SeedOutcome};
