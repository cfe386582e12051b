//! The prompts that a generation keeps: some to replay, some to measure with, and how they are
//! removed.

pub(crate) mod choice;
pub(crate) mod coreset;
pub(crate) mod forget;
pub(crate) mod moved;
pub(crate) mod privacy;
pub(crate) mod replay;
