//! The method (`docs/carve.md`) on the host: what a step learns from, and at which rates.

pub(crate) mod batches;
pub(crate) mod candidates;
pub(crate) mod domains;
pub(crate) mod draws;
pub(crate) mod ewc;
pub(crate) mod init;
pub(crate) mod layout;
pub(crate) mod schedule;
pub(crate) mod targets;
