//! The report of an update: result and cost.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::generation::GenerationId;
use crate::learn::accuracy::Accuracy;
use crate::learn::engine::Losses;
use crate::learn::kept::privacy::Withheld;

/// Why forgetting is unknown after earlier updates.
pub(crate) const UNKNOWN: &str = "no earlier prompt is kept: forgetting cannot be known";

/// Why forgetting is unknown after a first update.
pub(crate) const FIRST: &str = "nothing was learned before that could be forgotten";

/// The result of [`crate::Learner::learn`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Version of this format: 2.
    pub schema_version: u32,
    /// The published child; `None` before [`crate::Learner::commit`].
    pub generation: Option<GenerationId>,
    /// A refused child that was published beside the current generation; else `None`.
    pub kept_beside: Option<GenerationId>,
    /// The parent.
    pub parent: GenerationId,
    /// True if adapters, W and E were trained; false if only the memory learned.
    pub trained: bool,
    /// Models that were new to the hub.
    pub models_added: usize,
    /// Names of new models that came with an example and without a card.
    pub models_introduced: Vec<String>,
    /// Remarks on odd examples ([`crate::Learner::look_over`]).
    pub remarks: Vec<String>,
    /// Examples that were learned, without replayed ones.
    pub examples: usize,
    /// Prompts of earlier updates that were replayed.
    pub replayed: usize,
    /// Prompts in the memory, including this update's; `None` without a memory.
    pub remembered: Option<usize>,
    /// Optimiser steps.
    pub steps: usize,
    /// Duration of the whole call, in seconds.
    pub seconds: f64,
    /// Examples per second during the steps; without steps, until all prompts were encoded.
    pub examples_per_second: f64,
    /// Terms of the loss, means over the steps.
    pub losses: LossTerms,
    /// Accuracy on held-out prompts, as served.
    pub accuracy: Measured,
    /// `old_before` - `old_after`, in points; `None` without old prompts.
    pub forgetting: Option<Accuracy>,
    /// 95 % confidence interval of `forgetting`, in points of domain accuracy.
    pub forgetting_interval: Option<(f64, f64)>,
    /// Why `forgetting` is unknown; `None` if it is known.
    pub forgetting_unknown: Option<String>,
    /// Points of domain accuracy lost, by domain.
    pub forgetting_by_domain: BTreeMap<String, f64>,
    /// Percent of earlier held-out prompts that the child routes to models of this update.
    pub taken_by_new_models: Option<f64>,
    /// The gate refused: the update forgets more than allowed, or that cannot be measured.
    pub refused: bool,
    /// Prompts kept to be replayed.
    pub replay: Kept,
    /// Held-out prompts kept to measure later updates.
    pub held_out: usize,
    /// Kept prompts of the parent that the child drops or shortens; `None` if it keeps all.
    pub withheld: Option<Withheld>,
    /// Frobenius norm of W's change over the norm of W.
    pub projection_drift: f64,
    /// Mean and largest angle between old rows of E before and after, in degrees.
    pub row_drift_degrees: (f64, f64),
    /// Peak memory of the process in bytes; `None` where the system does not report it.
    pub peak_memory_bytes: Option<u64>,
    /// The device's name.
    pub device: String,
}

/// Accuracy in percent; `None` without held-out prompts.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Measured {
    /// The parent on prompts of earlier updates.
    pub old_before: Option<Accuracy>,
    /// The child on the same prompts.
    pub old_after: Option<Accuracy>,
    /// The child on prompts of this update.
    pub new_after: Option<Accuracy>,
}

/// Terms of the loss, means over the steps of one call. A term counts as 0 in steps without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LossTerms {
    /// The routing loss.
    pub route: f64,
    /// The distillation loss, times its strength.
    pub distill: f64,
    /// The embedding anchor, times its strength.
    pub embedding: f64,
    /// The projection anchor, times its strength.
    pub projection: f64,
    /// EWC's penalty, times its strength.
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

/// Size of `replay.jsonl`.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Kept {
    /// Prompts.
    pub kept: usize,
    /// Bytes.
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

/// Resets [`peak_memory`] to the current memory; false if the system cannot.
#[cfg(feature = "cmrbench")]
pub(crate) fn forget_peak_memory() -> bool {
    crate::files::tell_system(std::path::Path::new("/proc/self/clear_refs"), "5").is_ok()
}
