//! A generation on a device, ready to rank prompts.

pub(crate) mod index;
mod serving;

pub(crate) use serving::{Narrowing, PromptRanking, Serving, ask};
