//! A generation on a device, ready to rank prompts.

pub(crate) mod index;
mod serving;

pub(crate) use serving::{Serving, ask, int8_kernel};
