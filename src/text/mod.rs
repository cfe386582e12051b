//! Prompts to tokens to one packed batch; the normal forms in which texts are compared.

pub(crate) mod batch;
pub(crate) mod encoding;
pub(crate) mod lines;
pub(crate) mod query;
pub(crate) mod tokenizer;
pub(crate) mod words;
