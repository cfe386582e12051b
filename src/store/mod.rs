//! A store: a folder of generations, one of which is current; and changes of it.

mod changes;
mod edit;
mod encoders;
mod folder;
mod lock;

pub use edit::Edit;
pub(crate) use encoders::{find_encoder, open_encoder};
pub(crate) use folder::RESUME;
pub use folder::{Difference, GenerationReport, Pruned, Store};
pub(crate) use lock::Lock;
