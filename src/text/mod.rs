//! Prompts to tokens to one packed batch; the normal forms in which texts are compared.

pub(crate) mod batch;
pub(crate) mod encoding;
pub(crate) mod lines;
#[cfg_attr(
    not(feature = "cmrbench"),
    expect(unreachable_pub, reason = "public in `cmrbench`")
)]
pub(crate) mod query;
pub(crate) mod tokenizer;
mod wordpiece;
pub(crate) mod words;
