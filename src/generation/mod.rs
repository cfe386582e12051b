//! A generation: one trained router on disk, a folder that is whole or absent.

mod beside;
pub(crate) mod cards;
pub(crate) mod confidence;
mod contents;
mod grow;
mod manifest;
pub(crate) mod memory;
pub(crate) mod precision;
pub(crate) mod rows;

pub use confidence::{Calibrated, Calibration, RiskPoint};
pub(crate) use contents::{Contents, EMBEDDINGS, PROJECTION};
pub(crate) use manifest::{ADAPTER, HUB, TAU};
pub use manifest::{EncoderPin, GenerationId, Learned, Manifest};
pub use precision::Agreement;
pub use rows::NewModel;
