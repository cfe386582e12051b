//! Learning: new models and labelled prompts become a child generation.

mod accuracy;
mod awake;
mod batches;
mod candidates;
mod coreset;
mod data;
mod domains;
mod draws;
mod engine;
mod ewc;
mod experience;
mod forget;
mod learner;
mod near;
mod oddities;
mod privacy;
mod remember;
mod replay;
mod report;
mod rows;
mod schedule;
mod settings;
mod state;
mod targets;
mod teacher;
#[cfg(test)]
mod tests;

pub use accuracy::Accuracy;
pub use data::{Example, Label, group_experiences, read_examples};
pub use experience::Experience;
pub use forget::{Remembered, check, forget, remembered, would_forget};
pub use learner::{Control, Learner, Outcome, Status, Watch};
pub use privacy::Withheld;
pub use replay::ReplayEntry;
pub use report::{Kept, LossTerms, Measured, Report};
pub use settings::{
    AdamwRows, AnchorForm, AnchorPhase, AnchorRows, Batching, CandidateMode, ClipScope, EwcMode,
    EwcScope, InitProfile, InitRows, Leftover, LwfRows, MiningScore, Privacy, Regulariser,
    ReplayStrategy, RouterRate, Settings, Train,
};

pub use crate::memory::PriorMean;

pub use crate::model::lora::Target as LoraTarget;
#[cfg(feature = "cmrbench")]
pub(crate) use {
    data::for_each_example,
    draws::{Draws, Stream},
    report::{forget_peak_memory, peak_memory},
};
