//! Policies: which models may answer a request, and at which price.
//!
//! | file | job |
//! |---|---|
//! | `constraint.rs`, `json.rs` | a condition on a model's attributes, its text and its JSON |
//! | `lexer.rs`, `parser.rs` | the text form |
//! | `pattern.rs` | names, globs, domains and families to allow or deny |
//! | `facts.rs`, `truth.rs` | what is known of a model; whether a condition holds of it |
//! | `needs.rs` | what a chat request demands, as conditions |
//! | `deployment.rs` | a name that a gateway serves, and the model behind it |
//! | `policy.rs`, `file.rs` | all of this as data; its files |
//! | `compile.rs`, `handle.rs` | a policy against the hub that is served, as masks |
//! | `excluded.rs` | how many models were excluded, and why |
//! | `trade.rs` | quality against cost and latency |

mod compile;
mod constraint;
mod deployment;
mod excluded;
mod facts;
mod file;
mod handle;
mod json;
mod lexer;
mod needs;
mod parser;
mod pattern;
#[expect(clippy::module_inception, reason = "the policy itself")]
mod policy;
mod trade;
mod truth;

pub(super) use compile::{Admitted, CompiledPolicy};
pub use constraint::{AttributeTest, Constraint};
pub use deployment::Deployment;
pub use excluded::{Excluded, PolicyRecord};
#[cfg(feature = "cli")]
pub(crate) use facts::within;
pub use handle::PolicyHandle;
pub use pattern::ModelPattern;
pub use policy::Policy;
use trade::Weighed;
pub use trade::{ParetoPoint, TradeOff};
