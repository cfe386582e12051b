//! `confidence.json` of a generation: how often answers with a given probability were right, and
//! how far its held-out prompts are from those that it learned.
//!
//! The file stands beside the manifest and is no part of it, so a generation's id does not depend
//! on it, and a generation of an earlier version can get one.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Result, bail};
use crate::generation::GenerationId;
use crate::generation::beside::Beside;

pub(crate) const CONFIDENCE: &str = "confidence.json";
const KIND: &str = "hubrouter-confidence";
const LIMIT: u64 = 1 << 20;

/// Points of the curve: coverages of 2.5 %, 5 %, ..., 100 %.
const POINTS: usize = 40;

/// Knots of a distribution: its quantiles at 0, 1 %, ..., 100 %.
const KNOTS: usize = 101;

/// Bins of the calibration error, of the same number of prompts each.
const BINS: usize = 15;

/// Parts of the cross-validation: every eighth prompt is in the same one.
const FOLDS: usize = 8;

/// Softmax probabilities are cut to this distance from 0 and 1, where f32 scores tell no more.
const CUT: f64 = 1e-6;

/// One prompt whose right answer is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CalibrationRow {
    /// Softmax probability of the best model's domain.
    pub(crate) domain: f64,
    /// Softmax probability of the best model.
    pub(crate) model: f64,
    pub(crate) domain_right: bool,
    pub(crate) model_right: bool,
    /// Distance to the learned prompts, in any unit that grows.
    pub(crate) distance: f64,
    /// Share of unknown words, 0 to 1.
    pub(crate) unknown_words: f64,
}

/// How sure the answers of a generation are, measured on prompts whose right answers are known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Calibration {
    /// Prompts.
    pub prompts: usize,
    /// Prompts that the generation held out, so that it never learned them; else any others.
    pub held_out: bool,
    /// Of the domain of the best model.
    pub domain: Calibrated,
    /// Of the best model.
    pub model: Calibrated,
    /// The error of the domain by the share of prompts that are answered, the surest first.
    pub curve: Vec<RiskPoint>,
    /// Quantiles of the prompts' distance to the learned ones, at 0, 1 %, ..., 100 %.
    pub distances: Vec<f64>,
    /// The same of the share of words that no learned prompt has.
    pub unknown_words: Vec<f64>,
    /// The same of both together: -ln of the shares of prompts that are as far in one and in the
    /// other.
    pub strangeness: Vec<f64>,
    /// The ancestor that was measured, if it is another generation with the same vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_on: Option<GenerationId>,
}

/// The map from a softmax probability p to the probability of being right: the logistic function of
/// `slope` ln(p / (1 - p)) + `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Calibrated {
    /// Below 1: the softmax is too sure.
    pub slope: f64,
    /// Below 0: it is too high everywhere.
    pub offset: f64,
    /// Prompts that were right.
    pub right: usize,
    /// Expected calibration error in points, 15 bins of equal size, of probabilities for prompts
    /// that the map was not fitted on (cross-validation in 8 parts).
    pub error: f64,
    /// The same of the softmax itself.
    pub softmax_error: f64,
    /// Area under the ROC curve of the probability against being right; `None` if all or none are.
    pub auroc: Option<f64>,
}

/// A point of the curve of coverage and risk.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RiskPoint {
    /// Share of the prompts that are answered, 0 to 1.
    pub coverage: f64,
    /// The smallest confidence among them.
    pub least: f64,
    /// Percent of wrong domains among them by their confidence.
    pub expected: f64,
    /// Percent of wrong domains among them, counted.
    pub observed: f64,
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn log_odds(p: f64) -> f64 {
    let p = p.clamp(CUT, 1.0 - CUT);
    (p / (1.0 - p)).ln()
}

/// Slope and offset that make `rows`, log odds and whether right, most likely; with Platt's
/// targets, a step away from 0 and 1, so that few rows do not make it sure (J. Platt, "Probabilistic outputs
/// for support vector machines", 1999). By Newton's method with halved steps (Lin, Lin and Weng,
/// 2007). A slope below 0 becomes 0: a higher probability is never worse.
fn fitted(rows: &[(f64, bool)]) -> (f64, f64) {
    let right = rows.iter().filter(|(_, right)| *right).count() as f64;
    let wrong = rows.len() as f64 - right;
    let (high, low) = ((right + 1.0) / (right + 2.0), 1.0 / (wrong + 2.0));
    let target = |right: bool| if right { high } else { low };
    let loss = |a: f64, b: f64| -> f64 {
        let each = rows.iter().map(|(x, right)| {
            let z = a * x + b;
            // ln(1 + e^z) - t z, without an overflow.
            z.max(0.0) + (-z.abs()).exp().ln_1p() - target(*right) * z
        });
        each.sum()
    };
    let (mut a, mut b) = (1.0, 0.0);
    let mut now = loss(a, b);
    for _ in 0..100 {
        let (mut ga, mut gb, mut haa, mut hab, mut hbb) = (0.0, 0.0, 1e-9, 0.0, 1e-9);
        for (x, right) in rows {
            let p = logistic(a * x + b);
            let (d, w) = (p - target(*right), p * (1.0 - p));
            ga += d * x;
            gb += d;
            haa += w * x * x;
            hab += w * x;
            hbb += w;
        }
        let determinant = haa * hbb - hab * hab;
        let (da, db) = (
            (hab * gb - hbb * ga) / determinant,
            (hab * ga - haa * gb) / determinant,
        );
        let slope = ga * da + gb * db;
        let steps = (0..40).map(|halved| 0.5f64.powi(halved));
        let step = steps
            .map(|step| (step, loss(a + step * da, b + step * db)))
            .find(|(step, after)| *after < now + 1e-4 * step * slope);
        let Some((step, after)) = step else {
            break;
        };
        (a, b, now) = (a + step * da, b + step * db, after);
    }
    if a >= 0.0 {
        return (a, b);
    }
    let mean = rows.iter().map(|(_, right)| target(*right)).sum::<f64>() / rows.len().max(1) as f64;
    (0.0, log_odds(mean))
}

/// Expected calibration error in points: the mean distance of probability and share of right ones
/// over 15 bins of neighbouring probabilities with the same number of rows each. 0 without rows.
pub(crate) fn calibration_error(rows: &[(f64, bool)]) -> f64 {
    let mut sorted = rows.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let n = sorted.len();
    let bins = (0..BINS).map(|bin| &sorted[bin * n / BINS..(bin + 1) * n / BINS]);
    let apart = bins.map(|rows| {
        let sum: f64 = rows
            .iter()
            .map(|(p, right)| p - f64::from(u8::from(*right)))
            .sum();
        sum.abs()
    });
    100.0 * apart.sum::<f64>() / n.max(1) as f64
}

/// Area under the ROC curve: the probability that a row that is true has a higher value than one
/// that is false, equal values counted half. `None` without rows of both kinds.
pub(crate) fn auroc(rows: &[(f64, bool)]) -> Option<f64> {
    let mut sorted = rows.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut wins, mut below) = (0.0, 0.0);
    for same in sorted.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let yes = same.iter().filter(|(_, yes)| *yes).count() as f64;
        let no = same.len() as f64 - yes;
        wins += yes * (below + no / 2.0);
        below += no;
    }
    let yes = sorted.len() as f64 - below;
    (yes > 0.0 && below > 0.0).then(|| wins / (yes * below))
}

/// The curve of confidences and whether the domain was right, the surest first, at `points` even
/// coverages. Of equal confidences either all are in or the wrong ones are spread evenly.
pub(crate) fn risk_curve(rows: &[(f64, bool)], points: usize) -> Vec<RiskPoint> {
    let mut sorted = rows.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let n = sorted.len();
    // Sums over the first rows: of 1 - confidence, and of wrong ones.
    let mut sums = vec![(0.0, 0.0)];
    for same in sorted.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let wrong = same.iter().filter(|(_, right)| !right).count() as f64 / same.len() as f64;
        for (p, _) in same {
            let (expected, observed) = sums[sums.len() - 1];
            sums.push((expected + 1.0 - p, observed + wrong));
        }
    }
    let point = |place: usize| {
        let count = (place * n).div_ceil(points);
        let (expected, observed) = sums[count];
        let percent = |sum: f64| 100.0 * sum / count as f64;
        RiskPoint {
            coverage: count as f64 / n as f64,
            least: sorted[count - 1].0,
            expected: percent(expected),
            observed: percent(observed),
        }
    };
    match n {
        0 => Vec::new(),
        _ => (1..=points).map(point).collect(),
    }
}

/// The quantiles of `values` at 0, 1 %, ..., 100 %, between neighbours linearly.
fn quantiles(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let knot = |knot: usize| {
        let (whole, rest) = (knot * last / (KNOTS - 1), knot * last % (KNOTS - 1));
        let (low, high) = (sorted[whole], sorted[(whole + 1).min(last)]);
        low + (high - low) * rest as f64 / (KNOTS - 1) as f64
    };
    (0..KNOTS).map(knot).collect()
}

/// The share of a distribution with these knots that is below `value`.
fn share_below(knots: &[f64], value: f64) -> f64 {
    let place = knots.partition_point(|knot| *knot < value);
    match (place.checked_sub(1), knots.get(place)) {
        (None, _) => 0.0,
        (_, None) => 1.0,
        (Some(before), Some(knot)) => {
            let within = (value - knots[before]) / (knot - knots[before]);
            (before as f64 + within) / (KNOTS - 1) as f64
        }
    }
}

impl Calibrated {
    /// `rows`: softmax probability, and whether right.
    fn new(rows: &[(f64, bool)]) -> Self {
        let odds: Vec<(f64, bool)> = rows
            .iter()
            .map(|(p, right)| (log_odds(*p), *right))
            .collect();
        let (slope, offset) = fitted(&odds);
        let mut checked = Vec::with_capacity(odds.len());
        for fold in 0..FOLDS {
            let place = |own: bool| {
                let all = odds.iter().enumerate();
                all.filter(move |(row, _)| (row % FOLDS == fold) == own)
            };
            let others: Vec<(f64, bool)> = place(false).map(|(_, row)| *row).collect();
            let (slope, offset) = fitted(&others);
            checked
                .extend(place(true).map(|(_, (x, right))| (logistic(slope * x + offset), *right)));
        }
        Self {
            slope,
            offset,
            right: rows.iter().filter(|(_, right)| *right).count(),
            error: calibration_error(&checked),
            softmax_error: calibration_error(rows),
            auroc: auroc(rows),
        }
    }

    /// The probability of being right, for the softmax probability `p`.
    pub(crate) fn probability(&self, p: f64) -> f64 {
        logistic(self.slope * log_odds(p) + self.offset)
    }

    fn check(&self, prompts: usize) -> Result<()> {
        let numbers = [self.offset, self.error, self.softmax_error];
        let finite = numbers.iter().all(|x| x.is_finite()) && self.slope >= 0.0;
        if !finite || !self.slope.is_finite() || self.right > prompts {
            bail!(
                Format,
                "expected a finite map that rises, and a count of prompts"
            );
        }
        Ok(())
    }
}

impl Calibration {
    /// Fewest prompts that it is made of, as for int8.
    pub(crate) const FEWEST: usize = super::precision::FEWEST;

    /// Errors: fewer than 64 rows; a number is not finite.
    pub(crate) fn new(rows: &[CalibrationRow], held_out: bool) -> Result<Self> {
        if rows.len() < Self::FEWEST {
            bail!(
                InvalidRequest,
                "expected at least {} prompts to measure confidence on, found {}",
                Self::FEWEST,
                rows.len()
            );
        }
        let numbers = |row: &CalibrationRow| {
            [row.domain, row.model, row.distance, row.unknown_words]
                .iter()
                .all(|x| x.is_finite())
        };
        if !rows.iter().all(numbers) {
            bail!(
                Numeric,
                "confidence: expected finite probabilities and distances"
            );
        }
        let of = |part: fn(&CalibrationRow) -> (f64, bool)| -> Vec<(f64, bool)> {
            rows.iter().map(part).collect()
        };
        let domains = of(|row| (row.domain, row.domain_right));
        let domain = Calibrated::new(&domains);
        let sure: Vec<(f64, bool)> = domains
            .iter()
            .map(|(p, right)| (domain.probability(*p), *right))
            .collect();
        let mut calibration = Self {
            prompts: rows.len(),
            held_out,
            domain,
            model: Calibrated::new(&of(|row| (row.model, row.model_right))),
            curve: risk_curve(&sure, POINTS),
            distances: quantiles(rows.iter().map(|row| row.distance)),
            unknown_words: quantiles(rows.iter().map(|row| row.unknown_words)),
            strangeness: Vec::new(),
            measured_on: None,
        };
        let strange = rows.iter().map(|row| {
            let shares = calibration.shares_below(row.distance, row.unknown_words);
            calibration.strangeness(shares)
        });
        calibration.strangeness = quantiles(strange.collect::<Vec<_>>().into_iter());
        Ok(calibration)
    }

    /// As a child's, whose vectors are those of `parent`.
    pub(crate) fn inherited(mut self, parent: &GenerationId) -> Self {
        self.measured_on.get_or_insert_with(|| parent.clone());
        self
    }

    /// The shares of the measured prompts that are nearer by distance, and by words.
    pub(crate) fn shares_below(&self, distance: f64, unknown_words: f64) -> [f64; 2] {
        [
            share_below(&self.distances, distance),
            share_below(&self.unknown_words, unknown_words),
        ]
    }

    /// Fisher's sum of -ln of the shares that are as far or farther (R. Fisher, "Statistical
    /// methods for research workers", 1932): large if either is small.
    fn strangeness(&self, below: [f64; 2]) -> f64 {
        let least = 0.5 / (self.prompts as f64 + 1.0);
        below
            .iter()
            .map(|below| -(1.0 - below).max(least).ln())
            .sum()
    }

    /// The share of the measured prompts that are nearer to the learned ones in both together.
    pub(crate) fn out_of_distribution(&self, below: [f64; 2]) -> f64 {
        share_below(&self.strangeness, self.strangeness(below))
    }

    /// The confidence from which on at most `risk` percent of the domains are wrong, by the curve.
    /// Below the curve's lowest risk it is 1 - `risk`, which keeps it as well.
    pub fn least_confidence(&self, risk: f64) -> f64 {
        let place = self.curve.partition_point(|point| point.expected <= risk);
        match (place.checked_sub(1), self.curve.get(place)) {
            (None, _) => 1.0 - risk / 100.0,
            (Some(_), None) => 0.0,
            (Some(before), Some(next)) => {
                let before = &self.curve[before];
                let within = (risk - before.expected) / (next.expected - before.expected);
                before.least + within * (next.least - before.least)
            }
        }
    }

    /// Errors: figures that no measurement has.
    fn check(&self) -> Result<()> {
        self.domain
            .check(self.prompts)
            .map_err(|e| e.at("domain"))?;
        self.model.check(self.prompts).map_err(|e| e.at("model"))?;
        for (name, knots) in [
            ("distances", &self.distances),
            ("unknown_words", &self.unknown_words),
            ("strangeness", &self.strangeness),
        ] {
            if knots.len() != KNOTS || !knots.is_sorted() || !knots.iter().all(|x| x.is_finite()) {
                bail!(Format, "{name}: expected {KNOTS} quantiles in order");
            }
        }
        let rising = self.curve.is_sorted_by(|a, b| {
            a.coverage <= b.coverage && a.least >= b.least && a.expected <= b.expected + 1e-9
        });
        let first = self.curve.first().map(|point| point.expected);
        if self.prompts == 0
            || self.curve.len() != POINTS
            || !rising
            || first.is_none_or(f64::is_nan)
        {
            bail!(
                Format,
                "curve: expected {POINTS} points of rising coverage and risk"
            );
        }
        Ok(())
    }
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfidenceFile {
    schema_version: u32,
    kind: String,
    generation: GenerationId,
    /// SHA-256 of the encoder's manifest.
    encoder: String,
    calibration: Calibration,
    /// Of this file with an empty text here.
    sha256: String,
}

impl Beside for ConfidenceFile {
    const NAME: &str = CONFIDENCE;
    const KIND: &str = KIND;
    const LIMIT: u64 = LIMIT;

    fn belongs_to(&self) -> (&GenerationId, &str) {
        (&self.generation, &self.encoder)
    }

    fn sha256(&mut self) -> &mut String {
        &mut self.sha256
    }
}

/// The file's bytes for generation `id`, whose encoder has the hash `encoder`.
pub(crate) fn to_bytes(
    id: &GenerationId,
    encoder: &str,
    calibration: &Calibration,
) -> Result<Vec<u8>> {
    let file = ConfidenceFile {
        schema_version: 1,
        kind: KIND.to_owned(),
        generation: id.clone(),
        encoder: encoder.to_owned(),
        calibration: calibration.clone(),
        sha256: String::new(),
    };
    file.sealed()
}

/// The calibration that is recorded in `folder`, which is generation `id` with the encoder
/// `encoder`; `None`: nothing is.
///
/// Errors: the file is damaged, or belongs to another generation or encoder.
pub(crate) fn read(folder: &Path, id: &GenerationId, encoder: &str) -> Result<Option<Calibration>> {
    let Some(file) = ConfidenceFile::read(folder, id, encoder)? else {
        return Ok(None);
    };
    let place = folder.join(CONFIDENCE);
    file.calibration
        .check()
        .map_err(|e| e.at(place.display()))?;
    Ok(Some(file.calibration))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::files;
    use crate::num::mix;
    use crate::testing::Folder;

    /// A number in (0, 1), by its place.
    fn draw(place: u64) -> f64 {
        (mix(place.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Rows whose softmax is too sure: right with the logistic of 0.5 log odds - 0.3.
    fn overconfident(n: u64) -> Vec<CalibrationRow> {
        let row = |i: u64| {
            let odds = 12.0 * draw(3 * i + 1) - 4.0;
            let right = draw(3 * i + 2) < logistic(0.5 * odds - 0.3);
            CalibrationRow {
                domain: logistic(odds),
                model: logistic(odds - 2.0),
                domain_right: right,
                model_right: right && draw(3 * i + 3) < 0.5,
                distance: 100.0 * draw(3 * i + 3),
                unknown_words: draw(3 * i + 4).powi(2),
            }
        };
        (0..n).map(row).collect()
    }

    fn rights(calibration: &Calibrated, rows: &[(f64, bool)]) -> Vec<(f64, bool)> {
        let each = rows.iter();
        each.map(|(p, right)| (calibration.probability(*p), *right))
            .collect()
    }

    #[test]
    fn the_map_is_found_and_makes_the_error_small() {
        let (rows, others) = (overconfident(4000), overconfident(8000).split_off(4000));
        let calibration = Calibration::new(&rows, true).unwrap();
        let Calibrated { slope, offset, .. } = calibration.domain;
        assert!((slope - 0.5).abs() < 0.05 && (offset + 0.3).abs() < 0.1);
        let others: Vec<(f64, bool)> = others.iter().map(|r| (r.domain, r.domain_right)).collect();
        let error = calibration_error(&rights(&calibration.domain, &others));
        assert!(error < 2.0, "{error}");
        assert!(calibration_error(&others) > 8.0);
        assert!(calibration.domain.softmax_error > 8.0 && calibration.domain.error < 2.0);
        // A chosen risk is kept by prompts that were not fitted on.
        let least = calibration.least_confidence(10.0);
        let kept: Vec<bool> = rights(&calibration.domain, &others)
            .into_iter()
            .filter_map(|(p, right)| (p >= least).then_some(right))
            .collect();
        let wrong = kept.iter().filter(|right| !**right).count() as f64 / kept.len() as f64;
        assert!((wrong - 0.1).abs() < 0.02 && kept.len() > 1000, "{wrong}");
    }

    /// With labels of other prompts nothing can be told from the softmax.
    #[test]
    fn shuffled_labels_leave_no_confidence() {
        let rows = overconfident(4000);
        let mut shuffled = rows.clone();
        for (row, other) in shuffled.iter_mut().zip(rows.iter().cycle().skip(1237)) {
            row.domain_right = other.domain_right;
        }
        let good = Calibration::new(&rows, true).unwrap().domain;
        let bad = Calibration::new(&shuffled, true).unwrap().domain;
        assert!(good.auroc.unwrap() > 0.8 && (bad.auroc.unwrap() - 0.5).abs() < 0.05);
        assert!(good.slope > 0.4 && bad.slope < 0.1);
        // The map of one does not fit the other.
        let of = |rows: &[CalibrationRow]| -> Vec<(f64, bool)> {
            rows.iter().map(|r| (r.domain, r.domain_right)).collect()
        };
        assert!(calibration_error(&rights(&good, &of(&shuffled))) > 10.0);
    }

    #[test]
    fn few_and_separate_rows_have_finite_maps() {
        let row = |right: bool, p: f64| CalibrationRow {
            domain: p,
            model: p,
            domain_right: right,
            model_right: right,
            distance: 1.0,
            unknown_words: 0.0,
        };
        let mut rows: Vec<CalibrationRow> = (0..64)
            .map(|i| row(i < 40, if i < 40 { 1.0 } else { 0.1 }))
            .collect();
        let split = Calibration::new(&rows, false).unwrap();
        assert!(split.domain.probability(1.0) > 0.95 && split.domain.probability(0.1) < 0.05);
        assert_eq!(split.domain.auroc, Some(1.0));
        split.check().unwrap();
        rows.iter_mut().for_each(|row| row.domain_right = true);
        let all = Calibration::new(&rows, false).unwrap();
        let sure = all.domain.probability(0.5);
        assert!(
            all.domain.auroc.is_none() && sure > 0.9 && sure < 1.0,
            "{sure}"
        );
        // The wrong way round: no order at all.
        rows.iter_mut()
            .for_each(|row| row.domain_right = row.domain < 0.5);
        let reversed = Calibration::new(&rows, false).unwrap().domain;
        assert_eq!(reversed.slope, 0.0);
        assert_eq!(reversed.probability(0.9), reversed.probability(0.1));
        assert!((reversed.probability(0.5) - 24.0 / 64.0).abs() < 0.02);
        let few = Calibration::new(&rows[..63], false).unwrap_err();
        assert!(few.to_string().contains("at least 64 prompts"), "{few}");
        rows[3].distance = f64::NAN;
        assert!(Calibration::new(&rows, false).is_err());
    }

    /// Errors 0, 1, 0, 1 from the surest on; the confidences expect 0.1, 0.2, 0.4, 0.5 of them.
    #[test]
    fn a_curve_and_an_area_by_hand() {
        let rows = [(0.6, true), (0.9, true), (0.5, false), (0.8, false)];
        let curve = risk_curve(&rows, 4);
        let found: Vec<_> = curve.iter().map(|p| (p.coverage, p.least)).collect();
        assert_eq!(found, [(0.25, 0.9), (0.5, 0.8), (0.75, 0.6), (1.0, 0.5)]);
        for (point, (expected, observed)) in curve.iter().zip([
            (10.0, 0.0),
            (15.0, 50.0),
            (70.0 / 3.0, 100.0 / 3.0),
            (30.0, 50.0),
        ]) {
            assert!((point.expected - expected).abs() < 1e-9);
            assert!((point.observed - observed).abs() < 1e-9);
        }
        // Of the pairs of right and wrong 0.9 wins both, 0.6 wins one.
        assert_eq!(auroc(&rows), Some(0.75));
        assert_eq!(auroc(&[(0.5, true), (0.5, false)]), Some(0.5));
        assert_eq!(auroc(&rows[..2]), None);
        assert!(risk_curve(&[], 4).is_empty());
        let level = risk_curve(&[(0.5, true), (0.5, false)], 2);
        assert_eq!(level[0].observed, 50.0);
        // 15 bins of one: |0.8 - 1| for each.
        assert!((calibration_error(&[(0.8, true); 15]) - 20.0).abs() < 1e-9);
    }

    #[test]
    fn risks_between_the_points_are_interpolated() {
        let calibration = Calibration::new(&overconfident(400), true).unwrap();
        let curve = &calibration.curve;
        let middle = (curve[10].expected + curve[11].expected) / 2.0;
        let least = calibration.least_confidence(middle);
        assert!((least - (curve[10].least + curve[11].least) / 2.0).abs() < 1e-9);
        assert_eq!(calibration.least_confidence(100.0), 0.0);
        assert_eq!(calibration.least_confidence(0.0), 1.0);
        let lower = curve[0].expected / 2.0;
        assert!(calibration.least_confidence(lower) > curve[0].least);
    }

    #[test]
    fn far_prompts_are_out_of_distribution() {
        let calibration = Calibration::new(&overconfident(4000), true).unwrap();
        let out = |distance: f64, words: f64| {
            calibration.out_of_distribution(calibration.shares_below(distance, words))
        };
        assert_eq!(calibration.shares_below(-1.0, 0.0), [0.0, 0.0]);
        let [distance, words] = calibration.shares_below(50.0, 0.25);
        assert!((distance - 0.5).abs() < 0.03 && (words - 0.5).abs() < 0.03);
        assert_eq!(out(200.0, 2.0), 1.0);
        assert!(out(1.0, 0.001) < 0.05 && out(99.0, 0.001) > 0.6);
        assert!(out(60.0, 0.3) < out(60.0, 0.6) && out(60.0, 0.6) < out(90.0, 0.6));
        // A tenth of the measured prompts are beyond 0.9.
        let beyond = overconfident(4000);
        let beyond = beyond
            .iter()
            .filter(|r| out(r.distance, r.unknown_words) > 0.9);
        assert!((380..=420).contains(&beyond.count()));
    }

    #[test]
    fn a_record_that_is_damaged_or_of_another_generation_is_an_error() {
        let folder = Folder::new("confidence");
        let id: GenerationId = "g0001-0123456789ab".parse().unwrap();
        let path = folder.join(CONFIDENCE);
        assert_eq!(read(&folder, &id, "e").unwrap(), None);
        let good = Calibration::new(&overconfident(100), true).unwrap();
        let bytes = to_bytes(&id, "e", &good).unwrap();
        files::replace(&path, &bytes).unwrap();
        assert_eq!(read(&folder, &id, "e").unwrap(), Some(good.clone()));
        let other: GenerationId = "g0002-0123456789ab".parse().unwrap();
        let error = |id: &GenerationId, encoder: &str| {
            let error = read(&folder, id, encoder).unwrap_err();
            error.to_string()
        };
        assert!(error(&other, "e").contains("expected a record of g0002"));
        assert!(error(&id, "f").contains("encoder f"));
        let text = String::from_utf8(bytes.clone()).unwrap();
        for (from, to, why) in [
            ("\"prompts\": 100", "\"prompts\": 99", "sha256"),
            ("hubrouter-confidence", "hubrouter-other", "kind"),
            ("\"prompts\"", "\"promptz\"", "promptz"),
        ] {
            let damaged = text.replacen(from, to, 1);
            assert_ne!(damaged, text);
            files::replace(&path, damaged.as_bytes()).unwrap();
            let error = error(&id, "e");
            assert!(error.contains(why), "{error}");
        }
        files::replace(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(error(&id, "e").contains(CONFIDENCE));
        for (change, why) in [
            ((|c| c.domain.right = 101) as fn(&mut Calibration), "domain"),
            (|c| c.model.slope = -0.5, "model"),
            (|c| c.curve.reverse(), "curve"),
            (|c| c.curve.truncate(3), "curve"),
            (|c| c.strangeness.truncate(3), "strangeness"),
            (|c| c.distances.reverse(), "distances"),
        ] {
            let mut odd = good.clone();
            change(&mut odd);
            files::replace(&path, &to_bytes(&id, "e", &odd).unwrap()).unwrap();
            let error = error(&id, "e");
            assert!(error.contains(why), "{error}");
        }
    }
}
