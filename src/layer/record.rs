//! What became of a request: for the services behind the layer, and for headers of the response.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::error::{Error, ErrorKind};
use crate::route::{AbstainReason, Decision, SessionOutcome};

/// Why a request goes to its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouteReason {
    /// The router computed it.
    Decided,
    /// The router had decided it before.
    Cached,
    /// The conversation kept its model.
    Session,
    /// A fallback of the policy answered: nothing met the policy, the router abstained, or the
    /// deadline passed.
    PolicyFallback,
    /// The router abstained, and the policy has no fallback.
    Abstained,
    /// The deadline passed, and the policy has no fallback.
    Deadline,
    /// The queue was full.
    Overloaded,
    /// No model may answer.
    NoCandidate,
    /// The body is no chat request, or has no text.
    InvalidRequest,
    /// The router failed otherwise.
    Failed,
}

impl RouteReason {
    /// All of them, for metrics that begin with zeros.
    pub const ALL: [Self; 10] = [
        Self::Decided,
        Self::Cached,
        Self::Session,
        Self::PolicyFallback,
        Self::Abstained,
        Self::Deadline,
        Self::Overloaded,
        Self::NoCandidate,
        Self::InvalidRequest,
        Self::Failed,
    ];

    /// In headers and labels of metrics: `decided`, `policy_fallback`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decided => "decided",
            Self::Cached => "cached",
            Self::Session => "session",
            Self::PolicyFallback => "policy_fallback",
            Self::Abstained => "abstained",
            Self::Deadline => "deadline",
            Self::Overloaded => "overloaded",
            Self::NoCandidate => "no_candidate",
            Self::InvalidRequest => "invalid_request",
            Self::Failed => "failed",
        }
    }

    fn of_error(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Deadline => Self::Deadline,
            ErrorKind::Overloaded => Self::Overloaded,
            ErrorKind::NoCandidate => Self::NoCandidate,
            ErrorKind::InvalidRequest | ErrorKind::Format => Self::InvalidRequest,
            _ => Self::Failed,
        }
    }
}

/// What became of a request that asked for a routed model. It is in the extensions of the request
/// and of the response, and in `x-hubrouter-*` headers of the response.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RouteRecord {
    /// The name that the client asked for: `auto`.
    pub requested: String,
    /// The model that is in the body now; `None` if the name that was asked for still is.
    pub model: Option<Arc<str>>,
    /// Why.
    pub reason: RouteReason,
    /// True if `model` is the layer's fallback and not the router's.
    pub fallback: bool,
    /// The decision, also one that is not acted on; `None` after an error.
    pub decision: Option<Arc<Decision>>,
    /// The error, if there is no decision.
    pub error: Option<Error>,
    /// From when the body was read until the model was known.
    pub elapsed: Duration,
}

impl RouteRecord {
    /// The record of `answer`; `fallback` takes the place of a decision that is none.
    pub(super) fn new(
        requested: String,
        answer: crate::error::Result<Decision>,
        fallback: Option<&Arc<str>>,
    ) -> Self {
        let (model, reason) = match &answer {
            Ok(decision) => chosen(decision),
            Err(error) => (None, RouteReason::of_error(error)),
        };
        let (decision, error) = match answer {
            Ok(decision) => (Some(Arc::new(decision)), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            requested,
            fallback: model.is_none() && fallback.is_some(),
            model: model.or_else(|| fallback.cloned()),
            reason,
            decision,
            error,
            elapsed: Duration::ZERO,
        }
    }

    /// Puts the record into `headers`. A text that fits no header is left out.
    pub(super) fn describe(&self, headers: &mut HeaderMap) {
        let mut put = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        if let Some(model) = &self.model {
            put("x-hubrouter-model", model);
        }
        put("x-hubrouter-reason", self.reason.as_str());
        put(
            "x-hubrouter-fallback",
            if self.fallback { "true" } else { "false" },
        );
        put(
            "x-hubrouter-route-us",
            &self.elapsed.as_micros().to_string(),
        );
        let Some(decision) = &self.decision else {
            return;
        };
        put(
            "x-hubrouter-generation",
            decision.revisions.generation.as_str(),
        );
        if let Some(first) = decision.ranked.first() {
            put("x-hubrouter-domain", &first.domain);
            put(
                "x-hubrouter-probability",
                &format!("{:.4}", first.probability),
            );
        }
        if let Some(confidence) = &decision.confidence {
            put(
                "x-hubrouter-confidence",
                &format!("{:.4}", confidence.domain),
            );
        }
    }
}

/// The model of a decision that is to be acted on, by the gateway's name for it, and why.
fn chosen(decision: &Decision) -> (Option<Arc<str>>, RouteReason) {
    let first = decision.ranked.first();
    let name = first.map(|first| first.deployments.first().unwrap_or(&first.model));
    let by_fallback = decision
        .policy
        .as_ref()
        .is_some_and(|p| p.fallback.is_some());
    let kept = decision.session.as_ref();
    let kept = kept.is_some_and(|session| session.outcome == SessionOutcome::Kept);
    match (&decision.abstained, name) {
        (_, Some(name)) if by_fallback => (Some(Arc::clone(name)), RouteReason::PolicyFallback),
        (Some(why), _) => match why.reason {
            AbstainReason::Deadline => (None, RouteReason::Deadline),
            AbstainReason::NothingEligible => (None, RouteReason::NoCandidate),
            _ => (None, RouteReason::Abstained),
        },
        (None, None) => (None, RouteReason::NoCandidate),
        (None, Some(name)) => {
            let reason = match (kept, decision.cached) {
                (true, _) => RouteReason::Session,
                (false, true) => RouteReason::Cached,
                (false, false) => RouteReason::Decided,
            };
            (Some(Arc::clone(name)), reason)
        }
    }
}
