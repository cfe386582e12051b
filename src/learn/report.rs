//! What an update did and what it cost.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::generation::GenerationId;
use crate::learn::accuracy::Accuracy;
use crate::learn::engine::Losses;
use crate::learn::privacy::Withheld;

/// Why forgetting is not known.
pub(crate) const UNKNOWN: &str = "no earlier prompt is kept: forgetting cannot be known";

/// The same where nothing was learned before.
pub(crate) const FIRST: &str = "nothing was learned before that could be forgotten";

/// What [`crate::Learner::learn`] did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Version of this form; 2.
    pub schema_version: u32,
    /// The child, once it is published.
    pub generation: Option<GenerationId>,
    /// The child that the gate refused, once it is published beside the current generation.
    pub kept_beside: Option<GenerationId>,
    /// What it grew from.
    pub parent: GenerationId,
    /// Adapters, W and E were trained; else the memory alone took the examples.
    pub trained: bool,
    /// Models that the hub did not know.
    pub models_added: usize,
    /// Those among them that came with an example alone, without a card.
    pub models_introduced: Vec<String>,
    /// What was odd about the examples ([`crate::Learner::look_over`]).
    pub remarks: Vec<String>,
    /// Examples that were learned, replayed ones apart.
    pub examples: usize,
    /// Prompts of earlier experiences that were learned again.
    pub replayed: usize,
    /// Prompts in the memory, those of this update among them; none: it has no memory.
    pub remembered: Option<usize>,
    /// Optimiser steps.
    pub steps: usize,
    /// Of the whole call.
    pub seconds: f64,
    /// While stepping.
    pub examples_per_second: f64,
    /// Terms of the loss, each a mean over the steps.
    pub losses: LossTerms,
    /// On prompts that were never learned, as served.
    pub accuracy: Measured,
    /// `old_before` - `old_after`, in points; none without old prompts.
    pub forgetting: Option<Accuracy>,
    /// Between which points of domain accuracy `forgetting` is, in 95 of 100 samples of as many prompts.
    pub forgetting_interval: Option<(f64, f64)>,
    /// Why `forgetting` is not known, in words; none where it is.
    pub forgetting_unknown: Option<String>,
    /// The same of domain accuracy, by domain.
    pub forgetting_by_domain: BTreeMap<String, f64>,
    /// Percent of earlier held-out prompts that the child gives to models that are new in this update.
    pub taken_by_new_models: Option<f64>,
    /// The gate refused: more was forgotten than allowed, or nothing is there to measure it.
    pub refused: bool,
    /// Prompts kept for the next time.
    pub replay: Kept,
    /// Held-out prompts that are kept to measure the next updates.
    pub held_out: usize,
    /// What the child does not keep of what its parent kept of prompts; none where it keeps all.
    pub withheld: Option<Withheld>,
    /// Frobenius norm of W's change over that of W.
    pub projection_drift: f64,
    /// Mean and largest angle by which old rows of E turned, in degrees.
    pub row_drift_degrees: (f64, f64),
    /// Peak memory of the process, where the system says it.
    pub peak_memory_bytes: Option<u64>,
    /// What computed.
    pub device: String,
}

/// Accuracy in percent; none without held-out prompts.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Measured {
    /// Of the parent on earlier experiences.
    pub old_before: Option<Accuracy>,
    /// Of the child on the same.
    pub old_after: Option<Accuracy>,
    /// Of the child on this experience.
    pub new_after: Option<Accuracy>,
}

/// Means of the loss's terms over the steps of one call; a term is 0 in steps in which it does not
/// act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LossTerms {
    /// The routing loss.
    pub route: f64,
    /// What is distilled from the parent, with its strength.
    pub distill: f64,
    /// The embedding anchor, with its strength.
    pub embedding: f64,
    /// The projection anchor, with its strength.
    pub projection: f64,
    /// EWC's penalty, with its strength.
    pub ewc: f64,
}

impl LossTerms {
    pub(crate) fn mean(steps: &[Losses]) -> Self {
        let count = steps.len().max(1) as f64;
        let mean = |term: fn(&Losses) -> f64| steps.iter().map(term).sum::<f64>() / count;
        Self {
            route: mean(|losses| losses.route),
            distill: mean(|losses| losses.distill),
            embedding: mean(|losses| losses.embedding),
            projection: mean(|losses| losses.projection),
            ewc: mean(|losses| losses.ewc),
        }
    }
}

/// The replay store.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Kept {
    /// Prompts.
    pub kept: usize,
    /// Size of the file.
    pub bytes: usize,
}

/// Frobenius norm of `new - old` over that of `old`.
pub(crate) fn projection_drift(old: &[f32], new: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    if old.len() != new.len() {
        return f64::NAN;
    }
    let change: f64 = old
        .iter()
        .zip(new)
        .map(|(a, b)| square(f64::from(b - a)))
        .sum();
    let size: f64 = old.iter().map(|a| square(f64::from(*a))).sum();
    (change / size.max(f64::MIN_POSITIVE)).sqrt()
}

/// Mean and largest angle between rows of `old` and the same rows of `new`, in degrees.
pub(crate) fn row_drift(old: &[f32], new: &[f32], width: usize) -> (f64, f64) {
    let (mut sum, mut largest, mut rows) = (0.0, 0.0f64, 0usize);
    for (a, b) in old.chunks_exact(width).zip(new.chunks_exact(width)) {
        let dot = |x: &[f32], y: &[f32]| {
            let products = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y));
            products.sum::<f64>()
        };
        let lengths = (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE);
        let angle = (dot(a, b) / lengths).clamp(-1.0, 1.0).acos().to_degrees();
        sum += angle;
        largest = largest.max(angle);
        rows += 1;
    }
    (sum / rows.max(1) as f64, largest)
}

/// `VmHWM` of this process, on Linux.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Has [`peak_memory`] begin anew at what the process holds now; false: the system has no such thing.
#[cfg(feature = "cmrbench")]
pub(crate) fn forget_peak_memory() -> bool {
    crate::files::tell_system(std::path::Path::new("/proc/self/clear_refs"), "5").is_ok()
}
