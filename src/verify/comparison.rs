//! Two runs of one stage, number by number.

use super::bounds::ParityBound;
use super::report::{Divergence, ErrorMeasure, StageReport};

/// A stage while it is compared.
pub(super) struct StageComparison {
    report: StageReport,
    least: f64,
}

impl StageComparison {
    pub(super) fn new(stage: &str, measure: ErrorMeasure, bound: ParityBound) -> Self {
        Self {
            least: bound.cosine.unwrap_or(f64::NEG_INFINITY),
            report: StageReport {
                stage: stage.to_owned(),
                layer: None,
                compared: 0,
                max_abs_error: 0.0,
                max_rel_error: 0.0,
                cosine: 1.0,
                tolerance: bound.limit,
                least_cosine: bound.cosine,
                measure,
                why: bound.why,
                ok: true,
                divergence: None,
            },
        }
    }

    /// A stage that is equal or not.
    pub(super) fn exact(stage: &str, why: &str) -> Self {
        Self::new(stage, ErrorMeasure::Equal, ParityBound::equal(why))
    }

    /// As [`StageComparison::new`], of the encoder's layer `layer`, from 1; 0: the embeddings.
    pub(super) fn of_layer(layer: usize, bound: ParityBound) -> Self {
        let stage = match layer {
            0 => "embeddings".to_owned(),
            layer => format!("layer {layer}"),
        };
        let mut own = Self::new(&stage, ErrorMeasure::Elements, bound);
        own.report.layer = (layer > 0).then_some(layer);
        own
    }

    /// Notes that the two part at `index`.
    pub(super) fn part(&mut self, index: usize, place: impl Into<String>) {
        let report = &mut self.report;
        report.ok = false;
        if report.divergence.is_none() {
            report.divergence = Some(Divergence {
                stage: report.stage.clone(),
                layer: report.layer,
                index,
                place: place.into(),
            });
        }
    }

    fn note(&mut self, absolute: f64, relative: f64) {
        let report = &mut self.report;
        report.max_abs_error = report.max_abs_error.max(absolute);
        report.max_rel_error = report.max_rel_error.max(relative);
    }

    /// Compares lists element by element; `index`: that of the prompt or row, `place`: the words
    /// for the place of an element.
    pub(super) fn elements<F: Copy + Into<f64>, E: Copy + Into<f64>>(
        &mut self,
        index: usize,
        place: impl Fn(usize) -> String,
        found: &[F],
        expected: &[E],
    ) {
        if self.lengths_differ(index, found.len(), expected.len()) {
            return;
        }
        let mut first = None;
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            let (found, expected): (f64, f64) = ((*found).into(), (*expected).into());
            let error = distance(found, expected);
            let relative = error / (1.0 + expected.abs());
            self.note(error, relative);
            if relative > self.report.tolerance && first.is_none() {
                first = Some((at, found, expected));
            }
        }
        let cosine = cosine(found, expected);
        self.report.cosine = self.report.cosine.min(cosine);
        if let Some((at, found, expected)) = first {
            let place = format!("{}: expected {expected:e}, found {found:e}", place(at));
            self.part(index, place);
        } else if cosine < self.least {
            self.part(index, format!("{}: a cosine of {cosine:.6}", place(0)));
        }
    }

    /// Compares the tensor `name` as a whole.
    pub(super) fn tensor<F: Copy + Into<f64>, E: Copy + Into<f64>>(
        &mut self,
        index: usize,
        name: &str,
        found: &[F],
        expected: &[E],
    ) {
        if self.lengths_differ(index, found.len(), expected.len()) {
            return;
        }
        let (mut squares, mut whole) = (0.0, 0.0);
        for (found, expected) in found.iter().zip(expected) {
            let (found, expected): (f64, f64) = ((*found).into(), (*expected).into());
            let error = distance(found, expected);
            self.report.max_abs_error = self.report.max_abs_error.max(error);
            squares += error * error;
            whole += expected * expected;
        }
        let relative = match whole > 0.0 {
            true => (squares / whole).sqrt(),
            false => squares.sqrt(),
        };
        self.note(0.0, relative);
        self.report.cosine = self.report.cosine.min(cosine(found, expected));
        if relative > self.report.tolerance {
            self.part(index, format!("{name}: a relative error of {relative:.1e}"));
        }
    }

    /// Compares one number.
    pub(super) fn number(&mut self, index: usize, place: &str, found: f64, expected: f64) {
        let error = distance(found, expected);
        let relative = match self.report.measure {
            ErrorMeasure::Absolute => error,
            _ if error == 0.0 => 0.0,
            _ => error / expected.abs().max(1e-12),
        };
        self.report.compared += 1;
        self.note(error, relative);
        if relative > self.report.tolerance {
            self.part(
                index,
                format!("{place}: expected {expected}, found {found}"),
            );
        }
    }

    /// Compares two values that should be equal.
    pub(super) fn equal<T: PartialEq + ToString>(
        &mut self,
        index: usize,
        place: &str,
        found: &T,
        expected: &T,
    ) {
        self.report.compared += 1;
        if found != expected {
            self.note(1.0, 1.0);
            let (found, expected) = (found.to_string(), expected.to_string());
            self.part(
                index,
                format!("{place}: expected {expected}, found {found}"),
            );
        }
    }

    /// Notes that `count` numbers are equal in every bit, or where they are not.
    pub(super) fn bits(&mut self, index: usize, place: &str, found: &[f32], expected: &[f32]) {
        if self.lengths_differ(index, found.len(), expected.len()) {
            return;
        }
        let mut pairs = found.iter().zip(expected);
        let at = pairs.position(|(found, expected)| found.to_bits() != expected.to_bits());
        if let Some(at) = at {
            let error = distance(f64::from(found[at]), f64::from(expected[at]));
            self.note(error, 1.0);
            let (found, expected) = (found[at], expected[at]);
            let text = format!("{place}, element {at}: expected {expected:e}, found {found:e}");
            self.part(index, text);
        }
    }

    /// Counts the numbers of two lists; true when there is nothing to compare.
    fn lengths_differ(&mut self, index: usize, found: usize, expected: usize) -> bool {
        self.report.compared += expected;
        if found != expected {
            self.note(1.0, 1.0);
            self.part(index, format!("expected {expected} numbers, found {found}"));
        }
        found != expected
    }

    /// `None`: nothing was compared.
    pub(super) fn finish(self) -> Option<StageReport> {
        (self.report.compared > 0 || !self.report.ok).then_some(self.report)
    }
}

/// |a - b|; a number that is none is as far as can be.
fn distance(a: f64, b: f64) -> f64 {
    let error = (a - b).abs();
    if error.is_nan() {
        f64::MAX
    } else {
        error.min(f64::MAX)
    }
}

/// 1 for two vectors without a direction, 0 for one.
fn cosine<F: Copy + Into<f64>, E: Copy + Into<f64>>(a: &[F], b: &[E]) -> f64 {
    let (mut product, mut left, mut right) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b): (f64, f64) = ((*a).into(), (*b).into());
        product += a * b;
        left += a * a;
        right += b * b;
    }
    match (left > 0.0, right > 0.0) {
        (false, false) => 1.0,
        (true, true) => product / (left.sqrt() * right.sqrt()),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn comparison(limit: f64) -> StageComparison {
        let bound = ParityBound {
            limit,
            cosine: None,
            why: "a test".into(),
        };
        StageComparison::new("pooled", ErrorMeasure::Elements, bound)
    }

    #[test]
    fn the_first_place_over_the_bound_is_named() {
        let mut own = comparison(0.01);
        let place = |at: usize| format!("element {at}");
        own.elements(0, place, &[1.0f32, 2.0], &[1.0f32, 2.0]);
        own.elements(3, place, &[1.0f32, 2.1, 9.0], &[1.0f32, 2.0, 3.0]);
        own.elements(4, place, &[0.0f32], &[9.0f32]);
        let report = own.finish().unwrap();
        let at = report.divergence.unwrap();
        assert_eq!((at.index, report.compared, report.ok), (3, 6, false));
        assert!(
            at.place.starts_with("element 1: expected 2e0, found 2.0"),
            "{at:?}"
        );
        assert_eq!((report.max_abs_error, report.max_rel_error), (9.0, 1.5));
    }

    #[test]
    fn tensors_are_measured_as_a_whole() {
        let mut own = comparison(0.1);
        own.tensor(0, "w", &[3.0f32, 4.4], &[3.0f64, 4.0]);
        let report = own.finish().unwrap();
        assert!(
            report.ok && (report.max_rel_error - 0.08).abs() < 1e-6,
            "{report:?}"
        );
        let mut own = comparison(0.05);
        own.tensor(7, "w", &[3.0f64, 4.4], &[3.0f64, 4.0]);
        assert_eq!(own.finish().unwrap().divergence.unwrap().index, 7);
    }

    #[test]
    fn bits_lengths_and_cosines_tell() {
        let mut own = StageComparison::exact("repeat", "bits");
        own.bits(1, "prompt 1", &[0.0, -0.0], &[0.0, 0.0]);
        let report = own.finish().unwrap();
        assert_eq!(
            report.divergence.unwrap().index,
            1,
            "-0 is another number of bits"
        );
        let mut own = comparison(1.0);
        own.elements(2, |_| String::new(), &[1.0f32], &[1.0f32, 2.0]);
        let place = own.finish().unwrap().divergence.unwrap().place;
        assert_eq!(place, "expected 2 numbers, found 1");
        let bound = ParityBound {
            limit: 10.0,
            cosine: Some(0.9),
            why: String::new(),
        };
        let mut own = StageComparison::new("pooled", ErrorMeasure::Elements, bound);
        own.elements(5, |_| "prompt 5".into(), &[1.0f32, 0.0], &[1.0f32, 1.0]);
        let place = own.finish().unwrap().divergence.unwrap().place;
        assert_eq!(place, "prompt 5: a cosine of 0.707107");
        assert_eq!(
            (cosine(&[0.0f32], &[0.0f32]), cosine(&[0.0f32], &[1.0f32])),
            (1.0, 0.0)
        );
        assert_eq!(distance(f64::NAN, 1.0), f64::MAX);
        assert!(comparison(1.0).finish().is_none());
    }
}
