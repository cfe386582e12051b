//! The input of an update: labelled examples, new models, and prompts as rows of tokens.

pub(crate) mod examples;
pub(crate) mod experience;
pub(crate) mod observed;
pub(crate) mod oddities;
pub(crate) mod rows;
