//! Prompts to tokens to one packed batch; texts as they are compared.

pub(crate) mod batch;
pub(crate) mod encoding;
pub(crate) mod lines;
pub(crate) mod query;
pub(crate) mod tokenizer;
mod wordpiece;
pub(crate) mod words;
