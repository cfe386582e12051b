//! Accuracy on held-out prompts, its loss by an update, and the confidence interval of that.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::hub::{Hub, ModelId, domain_key};
use crate::learn::data::rows::PromptRow;

/// Percent of held-out prompts that get the right model, family and domain. Updates with at least
/// 64 held-out prompts have equal weight; smaller ones are weighted by their prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Accuracy {
    /// The best model is the right one.
    pub model: f64,
    /// The best model is of the right model's family. A model without a family is its own.
    pub family: f64,
    /// The best model is of the prompt's domain.
    pub domain: f64,
    /// Held-out prompts.
    pub n: usize,
}

/// Held-out prompts from which on updates have equal weight.
const ENOUGH: f64 = 64.0;

/// A prompt that was measured.
#[derive(Clone, Debug)]
struct Hit {
    experience: u64,
    domain: String,
    /// Id of the best model.
    best: u32,
    /// Whether model, family and domain are right.
    found: [bool; 3],
}

/// The results of held-out prompts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measurement(Vec<Hit>);

impl Measurement {
    /// `best`: the first model of each row's ranking.
    pub(crate) fn new(hub: &Hub, rows: &[&PromptRow], best: &[u32]) -> Self {
        let model = |id: u32| hub.get(ModelId(id));
        let hit = |(row, best): (&&PromptRow, &u32)| {
            let (found, gold) = (model(*best)?, model(row.gold)?);
            let same_family = match (&found.family, &gold.family) {
                (Some(found), Some(gold)) => found == gold,
                _ => *best == row.gold,
            };
            Some(Hit {
                experience: row.experience,
                domain: row.domain.clone(),
                best: *best,
                found: [
                    *best == row.gold,
                    same_family,
                    domain_key(&found.domain) == row.domain,
                ],
            })
        };
        Self(rows.iter().zip(best).filter_map(hit).collect())
    }

    /// Accuracy over all prompts; `None` without any.
    pub(crate) fn total(&self) -> Option<Accuracy> {
        let weights = self.weights();
        let percent = |k: usize| -> f64 {
            let hits = self.0.iter().zip(&weights).filter(|(hit, _)| hit.found[k]);
            // The sum of nothing is -0.
            100.0 * (0.0 + hits.map(|(_, weight)| weight).sum::<f64>())
        };
        (!self.0.is_empty()).then(|| Accuracy {
            model: percent(0),
            family: percent(1),
            domain: percent(2),
            n: self.0.len(),
        })
    }

    /// Weight of each prompt; the sum is 1. Updates have equal weight, except small ones, whose few
    /// prompts would dominate.
    fn weights(&self) -> Vec<f64> {
        let mut counts: BTreeMap<u64, f64> = BTreeMap::new();
        for hit in &self.0 {
            *counts.entry(hit.experience).or_default() += 1.0;
        }
        let whole: f64 = counts.values().map(|count| count.min(ENOUGH)).sum();
        let weight = |hit: &Hit| {
            let count = counts[&hit.experience];
            count.min(ENOUGH) / (whole * count)
        };
        self.0.iter().map(weight).collect()
    }

    /// Loss from `self` to `after`, on the same prompts; `None` without any.
    pub(crate) fn lost(&self, after: &Self) -> Option<Lost> {
        let (before, now) = (self.total()?, after.total()?);
        let points = Accuracy {
            model: before.model - now.model,
            family: before.family - now.family,
            domain: before.domain - now.domain,
            n: before.n,
        };
        // Each prompt loses 1, 0 or -1. The largest weight stands for prompts that were not drawn.
        let (mut variance, mut largest) = (0.0, 0.0f64);
        for ((a, b), w) in self.0.iter().zip(&after.0).zip(self.weights()) {
            let change = f64::from(u8::from(a.found[2])) - f64::from(u8::from(b.found[2]));
            variance += (w * (change - points.domain / 100.0)).powi(2);
            largest = largest.max(w);
        }
        let half = 1.96 * 100.0 * (variance + largest * largest).sqrt();
        Some(Lost {
            points,
            interval: (points.domain - half, points.domain + half),
        })
    }

    /// Points of domain accuracy lost from `self` to `after`, by domain.
    pub(crate) fn lost_by_domain(&self, after: &Self) -> BTreeMap<String, f64> {
        let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for (a, b) in self.0.iter().zip(&after.0) {
            let (lost, n) = sums.entry(a.domain.clone()).or_default();
            *lost += f64::from(u8::from(a.found[2])) - f64::from(u8::from(b.found[2]));
            *n += 1.0;
        }
        let points = |(domain, (lost, n))| (domain, 100.0 * lost / n);
        sums.into_iter().map(points).collect()
    }

    /// Percent of the prompts whose best model has an id from `first` on; `None` without any.
    pub(crate) fn share_from(&self, first: usize) -> Option<f64> {
        let hits = self.0.iter().zip(self.weights());
        let to_new = hits.filter(|(hit, _)| hit.best as usize >= first);
        let share = 0.0 + to_new.map(|(_, weight)| weight).sum::<f64>();
        (!self.0.is_empty()).then_some(100.0 * share)
    }
}

/// Loss of accuracy by an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lost {
    /// Points; negative for a gain.
    pub(crate) points: Accuracy,
    /// 95 % confidence interval of the points of domain accuracy.
    pub(crate) interval: (f64, f64),
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn measured(hits: &[(u64, u32, bool)]) -> Measurement {
        let hit = |(experience, best, domain): &(u64, u32, bool)| Hit {
            experience: *experience,
            domain: "d".to_owned(),
            best: *best,
            found: [false, false, *domain],
        };
        Measurement(hits.iter().map(hit).collect())
    }

    /// 640 prompts of one experience, 64 of another, one of a third.
    #[test]
    fn experiences_count_the_same_unless_they_are_small() {
        let hits = |lost: u64| -> Measurement {
            let of = |experience: u64, count: usize| {
                let best = if experience == lost { 7 } else { 0 };
                vec![(experience, best, experience != lost); count]
            };
            measured(&[of(1, 640), of(2, 64), of(3, 1)].concat())
        };
        let before = hits(0);
        assert!((before.total().unwrap().domain - 100.0).abs() < 1e-9);
        for (lost, want) in [(1, 64.0 / 129.0), (2, 64.0 / 129.0), (3, 1.0 / 129.0)] {
            let after = hits(lost);
            let lost = before.lost(&after).unwrap();
            assert!((lost.points.domain - 100.0 * want).abs() < 1e-9, "{lost:?}");
            assert!(lost.interval.0 < 100.0 * want && lost.interval.1 > 100.0 * want);
            let share = after.share_from(7).unwrap();
            assert!((share - 100.0 * want).abs() < 1e-9, "{share}");
        }
        let by_domain = before.lost_by_domain(&hits(2));
        assert!((by_domain["d"] - 6400.0 / 705.0).abs() < 1e-9);
    }

    #[test]
    fn more_prompts_are_surer_and_none_tell_nothing() {
        let many = |n: usize| measured(&vec![(1, 0, true); n]);
        let width = |n: usize| {
            let (low, high) = many(n).lost(&many(n)).unwrap().interval;
            high - low
        };
        assert!(width(10) > 3.0 * width(100) && width(100) > 0.0);
        let none = Measurement::default();
        assert!(none.total().is_none() && none.lost(&none).is_none());
        assert!(none.share_from(0).is_none());
        // Nothing is shown with a sign.
        let nobody = many(3).share_from(7).unwrap();
        assert!(nobody == 0.0 && nobody.is_sign_positive());
    }
}
