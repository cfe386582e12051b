//! Quality against cost and latency.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Result, bail};
use crate::route::policy::facts::Facts;

/// How many points of score a unit of cost and of latency are worth.
///
/// A model's utility is `quality * score - cost * price - latency * latency_ms`, of its cheapest
/// eligible deployment in that sense. The order of two models does not depend on which others there
/// are. A score is a logarithm: one point more is a probability e times as high.
///
/// A model that does not state an attribute whose factor is not 0 ranks behind all that do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TradeOff {
    /// The factor of the score, 1 unless it is given.
    pub quality: f64,
    /// Points for one unit of the attribute `cost_attribute`.
    pub cost: f64,
    /// Points for one unit of the attribute `latency_attribute`.
    pub latency: f64,
    /// The attribute that is the cost: `price` unless another is named.
    pub cost_attribute: String,
    /// The attribute that is the latency: `latency_ms` unless another is named.
    pub latency_attribute: String,
}

impl Default for TradeOff {
    /// Quality alone.
    fn default() -> Self {
        Self {
            quality: 1.0,
            cost: 0.0,
            latency: 0.0,
            cost_attribute: "price".to_owned(),
            latency_attribute: "latency_ms".to_owned(),
        }
    }
}

/// A model that no other eligible one beats in score, cost and latency at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ParetoPoint {
    /// The model.
    pub model: Arc<str>,
    /// Its score.
    pub score: f32,
    /// Its cost, if it states one.
    pub cost: Option<f64>,
    /// Its latency, if it states one.
    pub latency: Option<f64>,
    /// Its utility; `None` if it does not state what the trade-off needs.
    pub utility: Option<f64>,
}

/// The cost and latency that a model or a deployment states.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Stated {
    pub(super) cost: Option<f64>,
    pub(super) latency: Option<f64>,
}

/// A model with its score, and what it costs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weighed {
    /// Its place among the models by score.
    pub(crate) place: usize,
    pub(crate) utility: Option<f64>,
    stated: Stated,
    score: f32,
}

impl TradeOff {
    /// Errors: a factor is negative or not finite, or all are 0.
    pub(super) fn check(&self) -> Result<()> {
        let factors = [
            ("quality", self.quality),
            ("cost", self.cost),
            ("latency", self.latency),
        ];
        for (name, factor) in factors {
            if !(0.0..=1e9).contains(&factor) {
                bail!(
                    InvalidRequest,
                    "prefer.{name}: expected a number from 0 to 1e9, found {factor}"
                );
            }
        }
        if factors.iter().all(|(_, factor)| *factor == 0.0) {
            bail!(
                InvalidRequest,
                "prefer: expected a factor above 0, found none"
            );
        }
        Ok(())
    }

    /// What the model states; an attribute whose factor is 0 is not looked at.
    pub(super) fn stated(&self, facts: &Facts<'_>) -> Stated {
        let number = |factor: f64, name: &str| {
            let number = facts.number(name).filter(|n| n.is_finite());
            number.filter(|_| factor != 0.0)
        };
        Stated {
            cost: number(self.cost, &self.cost_attribute),
            latency: number(self.latency, &self.latency_attribute),
        }
    }

    /// What the score of a model is lowered by; `None`: it does not state what is needed.
    pub(super) fn penalty(&self, stated: Stated) -> Option<f64> {
        let part = |factor: f64, value: Option<f64>| match factor == 0.0 {
            true => Some(0.0),
            false => value.map(|value| factor * value),
        };
        Some(part(self.cost, stated.cost)? + part(self.latency, stated.latency)?)
    }

    /// The models by utility, of equals the one of the better score; `scores`: best first, with
    /// what the model states.
    pub(super) fn weigh(&self, scores: impl Iterator<Item = (f32, Stated)>) -> Vec<Weighed> {
        let weighed = scores.enumerate().map(|(place, (score, stated))| Weighed {
            place,
            utility: self
                .penalty(stated)
                .map(|penalty| self.quality * f64::from(score) - penalty),
            stated,
            score,
        });
        let mut all: Vec<Weighed> = weighed.collect();
        let key = |weighed: &Weighed| weighed.utility.unwrap_or(f64::NEG_INFINITY);
        // Stable: equals stay in the order of their scores.
        all.sort_by(|a, b| key(b).total_cmp(&key(a)));
        all
    }
}

/// The models that no other beats, the best score first. An attribute that is not stated is worse
/// than any that is.
pub(super) fn pareto(weighed: &[Weighed]) -> Vec<&Weighed> {
    let mut by_score: Vec<&Weighed> = weighed.iter().collect();
    let value = |stated: Option<f64>| stated.unwrap_or(f64::INFINITY);
    by_score.sort_by(|a, b| {
        let score = b.score.total_cmp(&a.score);
        let cost = value(a.stated.cost).total_cmp(&value(b.stated.cost));
        let latency = value(a.stated.latency).total_cmp(&value(b.stated.latency));
        score.then(cost).then(latency).then(a.place.cmp(&b.place))
    });
    let mut front: Vec<&Weighed> = Vec::new();
    for point in by_score {
        // Those before it have its score at least.
        let beaten = front.iter().any(|other| {
            let (cost, latency) = (value(other.stated.cost), value(other.stated.latency));
            let no_worse =
                cost <= value(point.stated.cost) && latency <= value(point.stated.latency);
            let better = other.score > point.score
                || cost < value(point.stated.cost)
                || latency < value(point.stated.latency);
            no_worse && better
        });
        if !beaten {
            front.push(point);
        }
    }
    front
}

impl Weighed {
    /// The model as a point of the front.
    pub(super) fn point(&self, model: &Arc<str>) -> ParetoPoint {
        ParetoPoint {
            model: Arc::clone(model),
            score: self.score,
            cost: self.stated.cost,
            latency: self.stated.latency,
            utility: self.utility,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::num::mix;

    fn stated(cost: Option<f64>, latency: Option<f64>) -> Stated {
        Stated { cost, latency }
    }

    #[test]
    fn utility_is_score_less_what_is_paid() {
        let prefer = TradeOff {
            cost: 2.0,
            ..TradeOff::default()
        };
        let scores = [
            (5.0, stated(Some(2.0), None)),
            (4.0, stated(Some(1.0), None)),
            (3.0, stated(None, None)),
            (2.0, stated(Some(0.0), None)),
        ];
        let weighed = prefer.weigh(scores.into_iter());
        let found: Vec<_> = weighed.iter().map(|w| (w.place, w.utility)).collect();
        // 5 - 4, 4 - 2, nothing, 2 - 0: equals by their scores.
        assert_eq!(
            found,
            [(1, Some(2.0)), (3, Some(2.0)), (0, Some(1.0)), (2, None)]
        );
        let front: Vec<usize> = pareto(&weighed).iter().map(|w| w.place).collect();
        assert_eq!(front, [0, 1, 3]);
    }

    #[test]
    fn the_front_is_that_of_brute_force() {
        for seed in 0..200u64 {
            let draw = |n: u64, most: u64| mix(seed * 1000 + n) % most;
            let count = 1 + draw(0, 12);
            let some = |n: u64| (draw(n, 5) > 0).then(|| draw(n + 500, 4) as f64);
            let scores: Vec<(f32, Stated)> = (0..count)
                .map(|n| {
                    (
                        draw(3 * n + 1, 5) as f32,
                        stated(some(3 * n + 2), some(3 * n + 3)),
                    )
                })
                .collect();
            let prefer = TradeOff {
                cost: 1.0,
                latency: 1.0,
                ..TradeOff::default()
            };
            let weighed = prefer.weigh(scores.iter().copied());
            let mut front: Vec<usize> = pareto(&weighed).iter().map(|w| w.place).collect();
            front.sort_unstable();
            let triple = |(score, stated): &(f32, Stated)| {
                let worst = f64::INFINITY;
                [
                    -f64::from(*score),
                    stated.cost.unwrap_or(worst),
                    stated.latency.unwrap_or(worst),
                ]
            };
            let beats = |a: [f64; 3], b: [f64; 3]| {
                a.iter().zip(&b).all(|(a, b)| a <= b) && a.iter().zip(&b).any(|(a, b)| a < b)
            };
            let want = (0..scores.len()).filter(|place| {
                let own = triple(&scores[*place]);
                !scores.iter().any(|other| beats(triple(other), own))
            });
            assert_eq!(front, want.collect::<Vec<_>>(), "seed {seed}");
        }
    }

    #[test]
    fn factors_are_checked() {
        let check = |change: fn(&mut TradeOff)| {
            let mut prefer = TradeOff::default();
            change(&mut prefer);
            prefer.check()
        };
        check(|_| ()).unwrap();
        for (change, want) in [
            (
                (|p| p.cost = -1.0) as fn(&mut TradeOff),
                "prefer.cost: expected",
            ),
            (|p| p.latency = f64::NAN, "found NaN"),
            (|p| p.quality = 0.0, "expected a factor above 0"),
        ] {
            let error = check(change).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
