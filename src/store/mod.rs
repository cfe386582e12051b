//! A store: a folder of generations, one of them current, and the changes made to it.

mod changes;
mod edit;
mod encoders;
mod lock;
mod store;

pub use edit::Edit;
pub(crate) use encoders::open_encoder;
pub(crate) use lock::Lock;
pub(crate) use store::RESUME;
pub use store::{Difference, GenerationReport, Pruned, Store};
