//! Learning: new models and labelled prompts become a child generation.
//!
//! | room | content |
//! |---|---|
//! | `data/` | the input of an update: examples, new models, prompts as rows |
//! | `method/` | the method on the host: candidates, targets, schedule, initialisation, EWC |
//! | `engine/` | the method on a device: parameters, gradients, the end of a step |
//! | `learner/` | [`Learner`]: one update from its examples to a published child |
//! | `kept/` | kept prompts: replay, held-out prompts, privacy, forgetting |
//! | `settings/` | every number of the method, by name |

mod accuracy;
mod confidence;
mod data;
mod engine;
mod kept;
mod learner;
mod method;
mod precision;
mod report;
mod settings;
#[cfg(test)]
mod tests;

pub use accuracy::Accuracy;
pub use confidence::measure_confidence;
pub use data::examples::{Example, Label, group_experiences, read_examples};
pub use data::experience::Experience;
pub use data::observed::{ObservedExamples, is_feedback, read_observed};
pub use kept::forget::{Remembered, check, forget, remembered, would_forget};
pub(crate) use kept::moved::follow_encoder;
pub use kept::moved::{FollowedPrompts, MemoryFate};
pub use kept::privacy::Withheld;
pub use kept::replay::ReplayEntry;
pub use learner::{Control, Learner, Outcome, Status, Watch};
pub use precision::measure_precision;
pub use report::{Kept, LossTerms, Measured, Report};
pub use settings::{Privacy, Settings};

#[cfg(feature = "cmrbench")]
pub(crate) use {
    data::examples::for_each_example,
    method::draws::{Draws, Stream},
    report::{forget_peak_memory, peak_memory},
    settings::{CandidateMode, EwcScope, InitProfile, Regulariser, ReplayStrategy, Train},
};
#[cfg(feature = "cli")]
pub(crate) use {
    data::rows::RowInput,
    engine::{Anchors, Capacity, Engine, Item, Penalty, StepRates},
    kept::{forget::kept, replay::HELD_OUT},
    learner::digest,
    method::{layout::ParameterLayout, targets::SoftTarget},
};
