//! Two learning runs, stage by stage.

use super::bounds::{ParityBound, learning};
use super::compare::Sides;
use super::comparison::StageComparison;
use super::form::{NumericMode, ParityLearning, ParityStep};
use super::report::{CurvePoint, ErrorMeasure, VerifyReport};
use super::tensors::{ParityTensors, ParityValues};
use crate::error::{Result, bail};

/// Relative error of a gradient's tensor at the first step of a run, where both have the same
/// parameters.
const GRADIENTS: f64 = 1e-4;

/// The same at later steps, where the parameters have parted a little.
const LATER_GRADIENTS: f64 = 1e-3;

/// Relative error of a loss in the first experience.
const LOSSES: f64 = 1e-3;

/// The same in later ones.
const LATER_LOSSES: f64 = 1e-2;

/// Relative error of a parameter's tensor after an experience.
const PARAMETERS: f64 = 5e-3;

/// Error of the memory's keys over 1 + |key|, where both have the same sums.
const KEYS: f64 = 1e-4;

/// Relative error of the products of keys with each other, where an element of a vector was rounded
/// to the other of two steps of 1/64: then the directions may turn, which no score depends on.
const KEYS_OF_OTHER_SUMS: f64 = 2e-2;

/// Largest difference of two sums of steps of 1/64.
const SUMS: f64 = 4.0;

/// Points of percent between two accuracies.
const POINTS: f64 = 0.5;

/// Compares what both runs learned.
///
/// Errors: they are runs of different steps, or a tensor has another shape.
pub(super) fn compare(sides: &Sides<'_>, report: &mut VerifyReport) -> Result<()> {
    let of = |run: &super::bundle::ParityRun| {
        let form = run.manifest.learning.clone();
        form.zip(run.learning.clone())
    };
    let ((own, found), (form, expected)) = match (of(sides.found), of(sides.expected)) {
        (Some(found), Some(expected)) => (found, expected),
        (None, None) => return Ok(()),
        _ => {
            report.not_compared.push("learning: not in both".into());
            return Ok(());
        }
    };
    if own.steps.len() != form.steps.len() || own.experiences != form.experiences {
        bail!(
            Mismatch,
            "learning: expected runs of as many steps and experiences, found {} and {}, {} and {}",
            form.steps.len(),
            own.steps.len(),
            form.experiences,
            own.experiences
        );
    }
    let two = LearnedTwice {
        own: &own,
        form: &form,
        found: &found,
        expected: &expected,
        mode: sides.expected.manifest.made_by.mode,
    };
    two.start(report);
    two.gradients(report);
    two.losses(report);
    two.parameters(report);
    two.memory(report);
    two.matrix(report);
    Ok(())
}

struct LearnedTwice<'l> {
    own: &'l ParityLearning,
    form: &'l ParityLearning,
    found: &'l ParityTensors,
    expected: &'l ParityTensors,
    mode: NumericMode,
}

impl LearnedTwice<'_> {
    fn bound(&self, limit: f64, why: &str) -> ParityBound {
        learning(limit, why, self.mode)
    }

    /// Tensors of both whose names begin with `prefix`, with the rest of the name.
    fn pairs(&self, prefix: &str) -> Vec<(String, Vec<f64>, Vec<f64>)> {
        let names = self.expected.names().filter_map(|name| {
            let rest = name.strip_prefix(prefix)?;
            let (found, expected) = (self.found.get(name)?, self.expected.get(name)?);
            Some((rest.to_owned(), found.values.wide(), expected.values.wide()))
        });
        names.collect()
    }

    fn start(&self, report: &mut VerifyReport) {
        let mut stage = StageComparison::exact("start", "the same bits: nothing was computed yet");
        let rows = (0..self.form.experiences).map(|e| (e, format!("{e}.rows")));
        for (index, prefix) in [(0, "start.".to_owned())].into_iter().chain(rows) {
            for (name, found, expected) in self.pairs(&prefix) {
                let narrow = |values: &[f64]| -> Vec<f32> {
                    values
                        .iter()
                        .map(|value| crate::num::to_f32(*value))
                        .collect()
                };
                let name = format!("{prefix}{name}");
                stage.bits(index, &name, &narrow(&found), &narrow(&expected));
            }
        }
        report.stages.extend(stage.finish());
    }

    fn gradients(&self, report: &mut VerifyReport) {
        let why = "by tensor; the first step has the same parameters on both sides";
        let mut stage = StageComparison::new(
            "gradients",
            ErrorMeasure::Tensors,
            self.bound(GRADIENTS, why),
        );
        let why = "by tensor; AdamW has made the parameters part a little";
        let bound = self.bound(LATER_GRADIENTS, why);
        let mut later = StageComparison::new("gradients.later", ErrorMeasure::Tensors, bound);
        for (at, _) in self.form.steps.iter().enumerate() {
            let stage = if at == 0 { &mut stage } else { &mut later };
            for (name, found, expected) in self.pairs(&format!("gradient.{at}.")) {
                stage.tensor(at, &format!("step {at}, {name}"), &found, &expected);
            }
        }
        report.stages.extend(stage.finish());
        report.stages.extend(later.finish());
    }

    fn losses(&self, report: &mut VerifyReport) {
        let why = "the first experience";
        let mut first =
            StageComparison::new("losses", ErrorMeasure::Relative, self.bound(LOSSES, why));
        let why = "later experiences, whose parameters have parted a little";
        let bound = self.bound(LATER_LOSSES, why);
        let mut later = StageComparison::new("losses.later", ErrorMeasure::Relative, bound);
        let steps = self.own.steps.iter().zip(&self.form.steps).enumerate();
        let mut worst = 0.0f64;
        for (step, (own, form)) in steps {
            let stage = if form.experience == 0 {
                &mut first
            } else {
                &mut later
            };
            let (found, expected) = (own.losses.total, form.losses.total);
            stage.number(step, &format!("step {step}, total"), found, expected);
            let error = (found - expected).abs() / expected.abs().max(1e-12);
            worst = worst.max(error);
            report.loss_curve.push(point(step, form, found));
        }
        report.loss_curve_max_rel_error = Some(worst);
        report.stages.extend(first.finish());
        report.stages.extend(later.finish());
    }

    fn parameters(&self, report: &mut VerifyReport) {
        let why = "by tensor, after an experience; AdamW makes a step of the learning rate of \
                   every gradient, however small";
        let mut stage = StageComparison::new(
            "parameters",
            ErrorMeasure::Tensors,
            self.bound(PARAMETERS, why),
        );
        for e in 0..self.form.experiences {
            for (name, found, expected) in self.pairs(&format!("end.{e}.")) {
                stage.tensor(e, &format!("experience {e}, {name}"), &found, &expected);
            }
        }
        report.stages.extend(stage.finish());
    }

    fn memory(&self, report: &mut VerifyReport) {
        let mut counts = StageComparison::exact("memory.counts", "numbers of prompts");
        let why = "elements of a prompt's vector are rounded to 1/64; one near the middle may fall \
                   on either side";
        let bound = ParityBound {
            limit: SUMS,
            cosine: None,
            why: why.into(),
        };
        let mut sums = StageComparison::new("memory.sums", ErrorMeasure::Absolute, bound);
        let why = "the sums are the same";
        let mut keys =
            StageComparison::new("memory", ErrorMeasure::Elements, self.bound(KEYS, why));
        let bound = self.bound(KEYS_OF_OTHER_SUMS, why_other());
        let mut others = StageComparison::new("memory.other_sums", ErrorMeasure::Tensors, bound);
        for e in 0..self.form.experiences {
            let at = |name: &str| format!("memory.{e}.{name}");
            for (name, found, expected) in self.pairs(&at("counts")) {
                let place = |model: usize| format!("experience {e}, model {model}{name}");
                for (model, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    counts.equal(model, &place(model), found, expected);
                }
            }
            let same = self.sums(e, &mut sums);
            let bias = self.expected.get(&at("bias"));
            let directions = bias.map_or(1, |bias| bias.shape[0].max(1));
            for (_, found, expected) in self.pairs(&at("keys")) {
                if same {
                    let place = |at: usize| {
                        let (model, direction) = (at / directions, at % directions);
                        format!("experience {e}, model {model}, direction {direction}")
                    };
                    keys.elements(e, place, &found, &expected);
                } else {
                    let [found, expected] =
                        [found, expected].map(|keys| products(&keys, directions));
                    let name = format!("experience {e}, products of keys");
                    others.tensor(e, &name, &found, &expected);
                }
            }
        }
        let all = [counts, sums, keys, others];
        report
            .stages
            .extend(all.into_iter().filter_map(StageComparison::finish));
    }

    /// Compares the sums of experience `e`; true if they are equal.
    fn sums(&self, e: usize, stage: &mut StageComparison) -> bool {
        let name = format!("memory.{e}.sums");
        let (Some(found), Some(expected)) = (self.found.get(&name), self.expected.get(&name))
        else {
            return true;
        };
        let (ParityValues::I32(a), ParityValues::I32(b)) = (&found.values, &expected.values) else {
            stage.part(e, format!("{name}: expected int32, found another type"));
            return false;
        };
        if found.shape != expected.shape {
            let (expected, found) = (&expected.shape, &found.shape);
            stage.part(e, format!("{name}: expected {expected:?}, found {found:?}"));
            return false;
        }
        let columns = expected.shape.get(1).copied().unwrap_or(1).max(1);
        let pairs = a.iter().zip(b).enumerate();
        for (at, (found, expected)) in pairs.filter(|(_, (a, b))| a != b) {
            let place = format!(
                "experience {e}, model {}, element {}",
                at / columns,
                at % columns
            );
            stage.number(e, &place, f64::from(*found), f64::from(*expected));
        }
        stage.number(e, &name, 0.0, 0.0);
        a == b
    }

    fn matrix(&self, report: &mut VerifyReport) {
        let bound = ParityBound {
            limit: POINTS,
            cosine: None,
            why: "points of percent".into(),
        };
        let mut stage = StageComparison::new("matrix", ErrorMeasure::Absolute, bound);
        let mut worst = 0.0f64;
        let both = [
            (
                "learned",
                &self.own.matrix.learned,
                &self.form.matrix.learned,
            ),
            ("served", &self.own.matrix.served, &self.form.matrix.served),
        ];
        for (name, found, expected) in both {
            if found.is_empty() || expected.is_empty() {
                continue;
            }
            for (t, (found, expected)) in found.iter().zip(expected).enumerate() {
                for (e, (found, expected)) in found.iter().zip(expected).enumerate() {
                    let place = format!("{name}, after experience {t}, on experience {e}");
                    stage.number(t, &place, *found, *expected);
                    worst = worst.max((found - expected).abs());
                }
            }
        }
        report.matrix_max_abs_points = Some(worst);
        report.stages.extend(stage.finish());
    }
}

fn why_other() -> &'static str {
    "an element of a prompt's vector was rounded to the other of two steps of 1/64; products of keys \
     with each other, since directions may turn"
}

/// The products of all rows of `keys` with each other.
fn products(keys: &[f64], columns: usize) -> Vec<f64> {
    let rows = || keys.chunks_exact(columns);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
    rows()
        .flat_map(|a| rows().map(move |b| dot(a, b)))
        .collect()
}

fn point(step: usize, form: &ParityStep, found: f64) -> CurvePoint {
    CurvePoint {
        step,
        experience: form.experience,
        expected: form.losses.total,
        found,
    }
}
