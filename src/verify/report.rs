//! The result of a comparison: stages, the place where two runs part, a verdict.

use serde::Serialize;

use super::form::NumericMode;

/// The result of `hubrouter verify`.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub(crate) struct VerifyReport {
    /// Version of this form; 1.
    pub(crate) schema_version: u32,
    /// `pass` or `fail`.
    pub(crate) verdict: ParityVerdict,
    /// What was compared: a bundle's folder, two of them, or a store.
    pub(crate) compared: String,
    /// What it was compared with.
    pub(crate) with: String,
    /// The device that computed here; `None` between two bundles.
    pub(crate) device: Option<String>,
    /// The numbers that it computed in here, or those of the first of two bundles.
    pub(crate) mode: String,
    /// The numbers that the bundle claims; `None` without a bundle.
    pub(crate) bundle_mode: Option<String>,
    /// In the order in which data passes them; those of invariance last.
    pub(crate) stages: Vec<StageReport>,
    /// Share of prompts with the same best model; `None` without a router.
    pub(crate) top1_agreement: Option<f64>,
    /// Mean share of the k best models that both have; `None` without a router.
    pub(crate) topk_agreement: Option<f64>,
    /// The first stage over its bound, and the first place in it; `None` if there is none.
    pub(crate) first_divergence: Option<Divergence>,
    /// Largest relative difference of a step's loss; `None` without learning.
    pub(crate) loss_curve_max_rel_error: Option<f64>,
    /// Largest difference of the accuracy matrices, in points; `None` without learning.
    pub(crate) matrix_max_abs_points: Option<f64>,
    /// The losses of each step.
    pub(crate) loss_curve: Vec<CurvePoint>,
    /// What was not compared, and why.
    pub(crate) not_compared: Vec<String>,
    /// Seconds that it took.
    pub(crate) seconds: f64,
}

/// Whether every stage is within its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ParityVerdict {
    Pass,
    Fail,
}

/// One stage of two runs.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub(crate) struct StageReport {
    /// Its name, such as `pooled` or `layer 3`.
    pub(crate) stage: String,
    /// The encoder's layer, from 1; `None` for other stages.
    pub(crate) layer: Option<usize>,
    /// Numbers that were compared.
    pub(crate) compared: usize,
    /// Largest absolute difference.
    pub(crate) max_abs_error: f64,
    /// Largest difference as `measure` has it, which the tolerance bounds.
    pub(crate) max_rel_error: f64,
    /// Smallest cosine of two vectors of this stage; 1 where none were compared.
    pub(crate) cosine: f64,
    /// Largest `max_rel_error` that passes.
    pub(crate) tolerance: f64,
    /// Smallest cosine that passes; `None`: any.
    pub(crate) least_cosine: Option<f64>,
    /// How differences are measured.
    pub(crate) measure: ErrorMeasure,
    /// Why the tolerance is what it is.
    pub(crate) why: String,
    /// True when everything is within its bound.
    pub(crate) ok: bool,
    /// The first place that is not.
    pub(crate) divergence: Option<Divergence>,
}

/// How a difference is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorMeasure {
    /// By element: |found - expected| / (1 + |expected|).
    Elements,
    /// By tensor: ‖found - expected‖ / ‖expected‖.
    Tensors,
    /// |found - expected| / |expected|.
    Relative,
    /// |found - expected|: points of percent, or steps of 1/64 in the memory's sums.
    Absolute,
    /// Equal or not: 0 or 1.
    Equal,
}

/// The place where two runs part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(crate) struct Divergence {
    /// The stage.
    pub(crate) stage: String,
    /// The encoder's layer, from 1; `None` for other stages.
    pub(crate) layer: Option<usize>,
    /// The number of the prompt, step, model, row or experience, from 0.
    pub(crate) index: usize,
    /// The place in words, down to the element.
    pub(crate) place: String,
}

/// The loss of one step.
#[derive(Clone, Copy, Debug, Serialize, schemars::JsonSchema)]
pub(crate) struct CurvePoint {
    /// From 0.
    pub(crate) step: usize,
    /// From 0.
    pub(crate) experience: usize,
    /// Of the bundle.
    pub(crate) expected: f64,
    /// Computed here.
    pub(crate) found: f64,
}

impl VerifyReport {
    /// An empty report, which passes.
    pub(super) fn new(compared: String, with: String, mode: NumericMode) -> Self {
        Self {
            schema_version: 1,
            verdict: ParityVerdict::Pass,
            compared,
            with,
            device: None,
            mode: mode.to_string(),
            bundle_mode: None,
            stages: Vec::new(),
            top1_agreement: None,
            topk_agreement: None,
            first_divergence: None,
            loss_curve_max_rel_error: None,
            matrix_max_abs_points: None,
            loss_curve: Vec::new(),
            not_compared: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Draws the conclusion from the stages.
    pub(super) fn conclude(mut self, seconds: f64) -> Self {
        let failed: Vec<&StageReport> = self.stages.iter().filter(|stage| !stage.ok).collect();
        self.verdict = match failed.is_empty() {
            true => ParityVerdict::Pass,
            false => ParityVerdict::Fail,
        };
        self.first_divergence = failed.first().and_then(|stage| {
            // Gradients are known at some steps and losses at all: the earlier step counts.
            let learned =
                |stage: &str| stage.starts_with("gradients") || stage.starts_with("losses");
            let own = failed.iter().filter(|other| learned(&other.stage));
            let earliest = own.filter_map(|other| other.divergence.as_ref());
            match learned(&stage.stage) {
                true => earliest.min_by_key(|found| found.index).cloned(),
                false => stage.divergence.clone(),
            }
        });
        self.seconds = seconds;
        self
    }
}
