//! Answers to requests whose deadline has passed: the policy's last fallback, or an error.
#![expect(clippy::disallowed_types, reason = "how late a request is")]

use std::sync::Arc;
use std::time::Instant;

use crate::error::{Result, error};
use crate::hub::ModelId;
use crate::route::abstain::{AbstainReason, Abstention};
use crate::route::front::Unsettled;
use crate::route::router::{degraded, revisions};
use crate::route::{Decision, PolicyHandle, Ranked, Request, Router, Timing};

impl Router {
    /// The answer to a request that came at `began` and whose deadline has passed.
    ///
    /// Errors: of kind [`crate::ErrorKind::Deadline`] if no fallback admits a model.
    pub(super) fn late(
        &self,
        request: &Request,
        policy: Option<&PolicyHandle>,
        began: Instant,
    ) -> Result<Unsettled> {
        let gone = began.elapsed();
        let within = request.deadline.unwrap_or_default();
        let detail = format!(
            "expected an answer within {:.1} ms, found {:.1} ms gone before the prompt was \
             computed",
            within.as_secs_f64() * 1e3,
            gone.as_secs_f64() * 1e3
        );
        let serving = self.serving.load_full();
        let compiled = policy.map(|policy| policy.against(&serving, &self.store));
        let compiled = compiled.transpose()?;
        let needs = request.chat.as_ref().map(|chat| &chat.needs);
        let resort = compiled.as_ref().and_then(|policy| {
            let (admitted, models) = policy.last_resort(needs)?;
            Some((policy, admitted, models))
        });
        let Some((policy, admitted, models)) = resort else {
            return Err(error!(
                Deadline,
                "{detail}; give the request more time, or a policy whose last fallback admits a \
                 model"
            ));
        };
        let serving = &policy.serving;
        let ranked = models.into_iter().take(request.top).filter_map(|id| {
            let model = serving.hub.get(ModelId(id))?;
            Some(Ranked {
                id: ModelId(id),
                model: Arc::clone(&model.name),
                score: 0.0,
                parts: None,
                cosine: 0.0,
                probability: 0.0,
                domain: Arc::clone(&model.domain),
                family: model.family.clone(),
                deployments: policy.deployments(id, &admitted),
                utility: None,
            })
        });
        let record = policy.record(&admitted);
        let fallback = record.fallback.as_deref().unwrap_or_default();
        let abstained = Abstention {
            reason: AbstainReason::Deadline,
            detail: format!("{detail}; the fallback {fallback} answers"),
        };
        let encoder = &serving.encoder;
        let decision = Decision {
            schema_version: Decision::schema_version(),
            prompt_id: request.prompt_id.clone(),
            ranked: ranked.collect(),
            domains: Vec::new(),
            margin: None,
            tokens: 0,
            truncated: false,
            unknown: 0.0,
            chat: request.chat.clone(),
            policy: Some(record),
            confidence: None,
            abstained: Some(abstained),
            session: None,
            cached: false,
            degraded: degraded(encoder.degraded(), serving.passed_over.as_deref()),
            device: encoder.device_name().to_owned(),
            device_reason: None,
            precision: serving.precision(),
            revisions: revisions(serving),
            timing: Timing {
                queue: gone.as_secs_f64() * 1e6,
                total: gone.as_secs_f64() * 1e6,
                batch: 1,
                ..Timing::default()
            },
        };
        Ok(Unsettled::new(&serving.hub, decision))
    }
}
