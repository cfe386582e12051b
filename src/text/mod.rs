//! Prompts to tokens to one packed batch.

pub(crate) mod batch;
pub(crate) mod tokenizer;
