#![doc = include_str!("../README.md")]
//!
//! `docs/architecture.md` says what each module is for, in which order they use each other, and what
//! holds everywhere; `tests/structure.rs` checks it.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

#[cfg(feature = "capi")]
#[doc(hidden)]
pub mod capi;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "cmrbench")]
pub mod cmrbench;
mod device;
#[cfg(feature = "cli")]
pub mod diagnostics;
mod encoder;
mod error;
pub mod exchange;
pub mod feedback;
mod files;
mod generation;
mod hub;
mod huge;
#[cfg(feature = "tower")]
pub mod layer;
pub mod learn;
mod memory;
mod model;
mod num;
mod ops;
mod options;
mod route;
mod serve;
mod store;
#[cfg(test)]
mod testing;
mod text;
#[cfg(feature = "cli")]
mod verify;
mod weights;

pub use device::{CpuLevel, DeviceChoice, DeviceVariant};
pub use encoder::Encoder;
#[doc(hidden)]
pub use encoder::{ImportOptions, Imported, Trace, import_encoder};
pub use error::{Error, ErrorKind, Result};
pub use generation::{
    Agreement, Calibrated, Calibration, EncoderPin, GenerationId, Learned, Manifest, NewModel,
    RiskPoint,
};
pub use hub::{Hub, Model, ModelCard, ModelId, read_models};
pub use learn::Learner;
pub use memory::{Parts, Strengths};
pub use options::{Options, Precision, SessionOptions};
#[cfg(feature = "tokio")]
pub use route::AsyncRouter;
pub use route::{
    AbstainReason, AbstainRule, Abstention, AttributeTest, CacheStats, ChatModel, ChatNeeds,
    ChatRecord, ChatShape, ChatTaken, Confidence, Constraint, Decision, Deployment, DomainScore,
    Excluded, Explanation, Introduced, LeftOut, LeftOutCount, ModelPattern, NearDomain, NearModel,
    ParetoPoint, Policy, PolicyHandle, PolicyRecord, QueueStats, Ranked, Request, ResponseFormat,
    Revisions, Router, RouterStats, RunnerUp, SessionKey, SessionOutcome, SessionRecord,
    StoreWatch, TakenFrom, Timing, TradeOff,
};
pub use store::{Difference, Edit, GenerationReport, Pruned, Store};

/// The examples of `docs/library.md` compile.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct LibraryPage;

/// The example of `docs/chat.md` compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../docs/chat.md")]
struct ChatPage;

/// The example of `docs/feedback.md` compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../docs/feedback.md")]
struct FeedbackPage;

/// The example of `docs/confidence.md` compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../docs/confidence.md")]
struct ConfidencePage;

/// The example of `docs/policy.md` compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../docs/policy.md")]
struct PolicyPage;

/// The examples of `docs/serving.md` compile and run.
#[cfg(doctest)]
#[doc = include_str!("../docs/serving.md")]
struct ServingPage;
