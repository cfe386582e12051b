//! Generations: trained routers on disk, each a folder that is whole or absent.

pub(crate) mod cards;
mod contents;
mod lock;
mod manifest;
pub(crate) mod memory;
pub(crate) mod recall;
pub(crate) mod seen;
pub(crate) mod serving;
mod store;
mod zero_shot;

pub(crate) use contents::{Contents, Draft};
pub(crate) use lock::Lock;
pub(crate) use manifest::{ADAPTER, HUB};
pub use manifest::{EncoderPin, GenerationId, Learned, Manifest};
pub(crate) use store::RESUME;
pub use store::{Difference, GenerationReport, Pruned, Store};
pub use zero_shot::{NewModel, Progress};
pub(crate) use zero_shot::{card_row, rows as zero_shot_rows};
