//! Decisions: accessors, and JSON.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use crate::capi::error::{Called, FailedCall, call, free, hubrouter_error, needed};
use crate::capi::status::hubrouter_status;
use crate::capi::strings::{Growing, copy, fill, hubrouter_str, json};
use crate::route::Decision;

/// The answer to a request. It never changes. The caller frees it; it does not need its router.
#[derive(Debug)]
pub struct hubrouter_decision(pub(super) Decision);

/// A decision without its lists. Set `size` to `sizeof(hubrouter_summary)` before the call.
///
/// The texts live as long as the decision.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hubrouter_summary {
    /// The size of this struct, by the caller.
    pub size: usize,
    /// Ranked models.
    pub ranked: usize,
    /// Domains with an eligible model.
    pub domains: usize,
    /// Models that could answer, if there was a policy; else 0.
    pub eligible: usize,
    /// Tokens that were encoded, special ones included.
    pub tokens: usize,
    /// 1 if the prompt was longer than the encoder's limit and was cut, else 0.
    pub truncated: i32,
    /// 1 if the answer was made before, for an equal prompt, and kept in the cache; else 0.
    pub cached: i32,
    /// Share of the prompt's tokens that the tokenizer does not know, 0 to 1.
    pub unknown: f32,
    /// Best score minus the runner-up's, or best utility if the policy trades; NaN with one model.
    pub margin: f32,
    /// Probability that the best model is of the prompt's domain; NaN if the generation has no
    /// measurement of it, as the next two.
    pub domain_confidence: f32,
    /// Probability that the best model is the right one.
    pub model_confidence: f32,
    /// How far the prompt is from the learned ones: the share of held-out prompts that are nearer.
    pub out_of_distribution: f32,
    /// From the call to the answer, in microseconds.
    pub total_us: f64,
    /// The id of the request, "" if it had none.
    pub prompt_id: hubrouter_str,
    /// The generation that answered.
    pub generation: hubrouter_str,
    /// The device that computed: `cpu`, or the adapter's name.
    pub device: hubrouter_str,
    /// Why another device or generation answered than the one asked for, if one did.
    pub degraded: hubrouter_str,
    /// The fallback of the policy that admitted the models, if one did.
    pub fallback: hubrouter_str,
    /// Why the answer is not the router's own choice, if a policy or a deadline says so. A gateway
    /// then does without the answer, unless `fallback` is there.
    pub abstained: hubrouter_str,
}

impl Growing for hubrouter_summary {
    const FIRST: usize = size_of::<Self>();
}

/// One ranked model. Set `size` to `sizeof(hubrouter_ranked)` before the call.
///
/// The texts live as long as the decision.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hubrouter_ranked {
    /// The size of this struct, by the caller.
    pub size: usize,
    /// Its name.
    pub model: hubrouter_str,
    /// Its domain.
    pub domain: hubrouter_str,
    /// Its family, if known.
    pub family: hubrouter_str,
    /// The first of its deployments that may answer, if the policy has candidates.
    pub deployment: hubrouter_str,
    /// Deployments that may answer; the others are read with `hubrouter_decision_deployment`.
    pub deployments: usize,
    /// Its id in the registry.
    pub id: u32,
    /// The score.
    pub score: f32,
    /// Cosine of prompt and model embedding, -1 to 1.
    pub cosine: f32,
    /// Softmax of the scores over all eligible models.
    pub probability: f32,
    /// Score less cost and latency if the policy trades; NaN if there is none.
    pub utility: f64,
}

impl Growing for hubrouter_ranked {
    const FIRST: usize = size_of::<Self>();
}

/// The score of a domain. Set `size` to `sizeof(hubrouter_domain)` before the call.
///
/// The text lives as long as the decision.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hubrouter_domain {
    /// The size of this struct, by the caller.
    pub size: usize,
    /// The domain.
    pub domain: hubrouter_str,
    /// Log-sum-exp of its eligible members' scores.
    pub score: f32,
    /// The members' probabilities, added.
    pub probability: f32,
}

impl Growing for hubrouter_domain {
    const FIRST: usize = size_of::<Self>();
}

/// The item of a list at the caller's index. `name`: what it is an item of.
fn item<'a, T>(list: &'a [T], index: usize, name: &str) -> Called<&'a T> {
    let outside = || {
        let count = list.len();
        FailedCall::argument(format!(
            "index: expected less than {count}, the number of {name}, found {index}"
        ))
    };
    list.get(index).ok_or_else(outside)
}

/// Fills `summary`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_decision_summary(
    decision: Option<&hubrouter_decision>,
    summary: *mut hubrouter_summary,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_decision_summary", error, || {
        let decision = &needed(decision, "decision")?.0;
        let policy = decision.policy.as_ref();
        let abstained = decision.abstained.as_ref();
        let confidence = decision.confidence.as_ref();
        let value = |size| hubrouter_summary {
            size,
            ranked: decision.ranked.len(),
            domains: decision.domains.len(),
            eligible: policy.map_or(0, |policy| policy.eligible),
            tokens: decision.tokens,
            truncated: decision.truncated.into(),
            cached: decision.cached.into(),
            unknown: decision.unknown,
            margin: decision.margin.unwrap_or(f32::NAN),
            domain_confidence: confidence.map_or(f32::NAN, |sure| sure.domain),
            model_confidence: confidence.map_or(f32::NAN, |sure| sure.model),
            out_of_distribution: confidence.map_or(f32::NAN, |sure| sure.out_of_distribution),
            total_us: decision.timing.total,
            prompt_id: hubrouter_str::new(&decision.prompt_id),
            generation: hubrouter_str::new(decision.revisions.generation.as_str()),
            device: hubrouter_str::new(&decision.device),
            degraded: hubrouter_str::maybe(decision.degraded.as_deref()),
            fallback: hubrouter_str::maybe(policy.and_then(|p| p.fallback.as_deref())),
            abstained: hubrouter_str::maybe(abstained.map(|why| why.detail.as_str())),
        };
        // SAFETY: the contract of the header.
        unsafe { fill(summary, "summary", value) }
    })
}

/// Fills `ranked` with the model at `index`; 0 is the best.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_decision_ranked(
    decision: Option<&hubrouter_decision>,
    index: usize,
    ranked: *mut hubrouter_ranked,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_decision_ranked", error, || {
        let decision = &needed(decision, "decision")?.0;
        let model = item(&decision.ranked, index, "ranked models")?;
        let value = |size| hubrouter_ranked {
            size,
            model: hubrouter_str::new(&model.model),
            domain: hubrouter_str::new(&model.domain),
            family: hubrouter_str::maybe(model.family.as_deref()),
            deployment: hubrouter_str::maybe(model.deployments.first().map(|first| &**first)),
            deployments: model.deployments.len(),
            id: model.id.0,
            score: model.score,
            cosine: model.cosine,
            probability: model.probability,
            utility: model.utility.unwrap_or(f64::NAN),
        };
        // SAFETY: the contract of the header.
        unsafe { fill(ranked, "ranked", value) }
    })
}

/// Writes the deployment at `deployment` of the ranked model at `index`: with a trade-off the
/// cheapest first, else in the order of the policy.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_decision_deployment(
    decision: Option<&hubrouter_decision>,
    index: usize,
    deployment: usize,
    name: Option<&mut MaybeUninit<hubrouter_str>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_decision_deployment", error, || {
        let name = needed(name, "name")?;
        name.write(hubrouter_str::maybe(None));
        let decision = &needed(decision, "decision")?.0;
        let model = item(&decision.ranked, index, "ranked models")?;
        let found = item(&model.deployments, deployment, "deployments")?;
        name.write(hubrouter_str::new(found));
        Ok(())
    })
}

/// Fills `domain` with the domain at `index`; 0 is the best.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_decision_domain(
    decision: Option<&hubrouter_decision>,
    index: usize,
    domain: *mut hubrouter_domain,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_decision_domain", error, || {
        let decision = &needed(decision, "decision")?.0;
        let found = item(&decision.domains, index, "domains")?;
        let value = |size| hubrouter_domain {
            size,
            domain: hubrouter_str::new(&found.domain),
            score: found.score,
            probability: found.probability,
        };
        // SAFETY: the contract of the header.
        unsafe { fill(domain, "domain", value) }
    })
}

/// Copies the decision as JSON into `buffer`, the form of `hubrouter route --json`, and its length
/// to `length`. With NULL and 0 as a buffer only the length is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hubrouter_decision_json(
    decision: Option<&hubrouter_decision>,
    buffer: *mut c_char,
    capacity: usize,
    length: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
) -> hubrouter_status {
    call("hubrouter_decision_json", error, || {
        let text = json(&needed(decision, "decision")?.0)?;
        // SAFETY: the contract of the header.
        unsafe { copy(&text, buffer, capacity, length) }
    })
}

/// Frees a decision and its texts. NULL is allowed.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_decision_free(decision: Option<Box<hubrouter_decision>>) {
    free(decision);
}
