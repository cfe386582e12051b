//! A generation on a device, ready to rank prompts.

pub(crate) mod gate;
pub(crate) mod index;
pub(crate) mod landmarks;
mod serving;

pub(crate) use serving::{Narrowing, PromptRanking, Serving, ask, serial};
