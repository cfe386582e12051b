//! Deciding beside the router that acts.

use std::sync::Arc;

use super::{Feedback, FeedbackLog, KeepPrompt};
use crate::error::Result;
use crate::route::{Decision, PolicyHandle, Request, Router};

/// A router that decides and records, and on whose decisions nobody acts: to see what it would have
/// done before it does it. `hubrouter report` reads its log.
///
/// ```
/// use std::sync::Arc;
///
/// use hubrouter::feedback::{Feedback, FeedbackLog, FeedbackOptions, Shadow};
/// use hubrouter::{Options, Request, Router};
///
/// let router = Router::open("weights/cmrbench", Options::default().device("cpu"))?;
/// let folder = std::env::temp_dir().join("hubrouter-shadow-example");
/// let log = FeedbackLog::open(&folder, FeedbackOptions::default())?;
/// let shadow = Shadow::new(Arc::new(router), log);
/// // The gateway has used gpt2, as it always does.
/// shadow.observe(&Request::new("Which bird is singing?"), &Feedback::used("gpt2"))?;
/// # std::fs::remove_dir_all(folder).ok();
/// # Ok::<(), hubrouter::Error>(())
/// ```
#[derive(Debug)]
pub struct Shadow {
    router: Arc<Router>,
    log: FeedbackLog,
    policy: Option<PolicyHandle>,
}

impl Shadow {
    /// A shadow that routes with `router` and records in `log`. If the log keeps vectors and has no
    /// encoder, it gets the router's.
    pub fn new(router: Arc<Router>, log: FeedbackLog) -> Self {
        let log = log.in_shadow();
        let lacks = log.options().keep == KeepPrompt::Vector && !log.has_encoder();
        let log = match lacks {
            true => log.encoder(router.encoder()),
            false => log,
        };
        Self {
            router,
            log,
            policy: None,
        }
    }

    /// The shadow with a policy of its router.
    pub fn within(mut self, policy: PolicyHandle) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Decides for `request`, and records the decision and what was really used. It takes the time
    /// of a route: a gateway calls it when its own answer is on its way.
    ///
    /// Errors: the line could not be written; the router has no answer, which is recorded.
    pub fn observe(&self, request: &Request, feedback: &Feedback) -> Result<Decision> {
        let decided = match &self.policy {
            Some(policy) => self.router.route_within(request, policy),
            None => self.router.route(request),
        };
        match &decided {
            Ok(decision) => self.log.observe(request, decision, feedback)?,
            Err(error) => self.log.observe_failure(request, error, feedback)?,
        }
        decided
    }

    /// The log.
    pub fn log(&self) -> &FeedbackLog {
        &self.log
    }
}
