//! The router that a host holds, its requests and its decisions.

mod abstain;
mod cache;
mod chat;
mod confidence;
mod deadline;
mod decision;
mod explanation;
mod front;
mod gather;
mod open;
mod policy;
mod queue;
mod request;
mod router;
mod session;
#[cfg(feature = "tokio")]
mod tokio;
mod warm;
mod watch;

pub use abstain::{AbstainReason, Abstention};
pub use cache::CacheStats;
#[cfg(feature = "cli")]
pub(crate) use chat::LONGEST_REQUEST;
pub use chat::{
    ChatModel, ChatNeeds, ChatRecord, ChatShape, ChatTaken, LeftOut, LeftOutCount, ResponseFormat,
    TakenFrom,
};
pub use confidence::{AbstainRule, Confidence};
pub use decision::{Decision, DomainScore, Ranked, Revisions, Timing};
pub use explanation::{Explanation, Introduced, NearDomain, NearModel, RunnerUp};
pub use front::RouterStats;
#[cfg(feature = "cli")]
pub(crate) use policy::within;
pub use policy::{
    AttributeTest, Constraint, Deployment, Excluded, ModelPattern, ParetoPoint, Policy,
    PolicyHandle, PolicyRecord, TradeOff,
};
pub use queue::QueueStats;
pub use request::Request;
pub use router::Router;
pub use session::{SessionKey, SessionOutcome, SessionRecord};
#[cfg(feature = "tokio")]
pub use tokio::AsyncRouter;
pub use watch::StoreWatch;
