//! The router that a host holds, its requests and its decisions.

mod chat;
mod decision;
mod policy;
mod request;
mod router;

#[cfg(feature = "cli")]
pub(crate) use chat::LONGEST_REQUEST;
pub use chat::{
    ChatNeeds, ChatRecord, ChatShape, ChatTaken, LeftOut, LeftOutCount, ResponseFormat, TakenFrom,
};
pub use decision::{Decision, DomainScore, Ranked, Revisions, Timing};
#[cfg(feature = "cli")]
pub(crate) use policy::within;
pub use policy::{
    AttributeTest, Constraint, Deployment, Excluded, ModelPattern, ParetoPoint, Policy,
    PolicyHandle, PolicyRecord, TradeOff,
};
pub use request::Request;
pub use router::Router;
