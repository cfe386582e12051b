//! The hub: which models there are, and the index that scores them.

pub(crate) mod cards;
pub(crate) mod index;
mod lifecycle;
mod registry;

pub use cards::{ModelCard, read_models};
pub use registry::{Hub, Model, ModelId};

/// A domain as it is compared: trimmed, lower-case, runs of white space one space; `unknown` for
/// none (carve.md section 1).
pub(crate) fn domain_key(domain: &str) -> String {
    let words: Vec<String> = domain.split_whitespace().map(str::to_lowercase).collect();
    if words.is_empty() {
        "unknown".to_owned()
    } else {
        words.join(" ")
    }
}
