//! A generation on a device: what a route computes.

pub(crate) mod index;
mod serving;

pub(crate) use serving::{Serving, ask};
