//! The router that a host holds, its requests and its decisions.

mod abstain;
mod chat;
mod confidence;
mod decision;
mod explanation;
mod policy;
mod request;
mod router;

pub use abstain::{AbstainReason, Abstention};
#[cfg(feature = "cli")]
pub(crate) use chat::LONGEST_REQUEST;
pub use chat::{
    ChatNeeds, ChatRecord, ChatShape, ChatTaken, LeftOut, LeftOutCount, ResponseFormat, TakenFrom,
};
pub use confidence::{AbstainRule, Confidence};
pub use decision::{Decision, DomainScore, Ranked, Revisions, Timing};
pub use explanation::{Explanation, Introduced, NearDomain, NearModel, RunnerUp};
pub use policy::{
    AttributeTest, Constraint, Deployment, Excluded, ModelPattern, ParetoPoint, Policy,
    PolicyHandle, PolicyRecord, TradeOff,
};
pub use request::Request;
pub use router::Router;
