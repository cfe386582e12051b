//! A store: a folder of generations, one of them current, and the changes made to it.

mod changes;
mod encoders;
mod lock;
mod folder;

pub(crate) use encoders::open_encoder;
pub(crate) use lock::Lock;
pub(crate) use folder::RESUME;
pub use folder::{Difference, GenerationReport, Pruned, Store};
