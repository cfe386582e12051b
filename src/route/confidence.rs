//! How sure a decision is, and from where on a router abstains.

use serde::{Deserialize, Serialize};

use crate::error::{Result, bail, error};
use crate::generation::{Calibration, GenerationId};
use crate::num::to_f32;
use crate::route::{AbstainReason, Abstention};
use crate::serve::index::{Index, Ranking};
use crate::serve::landmarks::Confidences;

/// How sure a decision is, by the record of its generation (`docs/confidence.md`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Confidence {
    /// Probability that the best model is of the prompt's domain.
    pub domain: f32,
    /// Probability that the best model is the right one.
    pub model: f32,
    /// How far the prompt is from the learned ones: the share of held-out prompts that are nearer,
    /// by both of the next.
    pub out_of_distribution: f32,
    /// The share of held-out prompts that are nearer in the memory's space; without a memory, to
    /// the best model.
    pub far: f32,
    /// The share of held-out prompts with fewer words that no learned prompt has; 0 without a
    /// memory.
    pub strange_words: f32,
}

impl Confidence {
    /// Of the answer `id` with this score, by `index`.
    pub(crate) fn new(
        confidences: &Confidences,
        index: &Index,
        ranking: &Ranking,
        (id, score): (u32, f32),
    ) -> Self {
        let Confidences {
            calibration,
            landmarks,
        } = confidences;
        let [model, domain] = index.probabilities(ranking, id, score);
        let distance = landmarks.distance(index, ranking);
        let below = calibration.shares_below(distance.memory, distance.words);
        Self {
            domain: to_f32(calibration.domain.probability(domain)),
            model: to_f32(calibration.model.probability(model)),
            out_of_distribution: to_f32(calibration.out_of_distribution(below)),
            far: to_f32(below[0]),
            strange_words: to_f32(below[1]),
        }
    }
}

/// When a router abstains. Empty, it does so only where nothing is eligible.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AbstainRule {
    /// Most percent of wrong domains among the answers, 0 to 100: the least confidence that keeps
    /// it is read from the generation's curve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub risk: Option<f64>,
    /// Least [`Confidence::domain`], 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_confidence: Option<f64>,
    /// Most [`Confidence::out_of_distribution`], 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ood: Option<f64>,
}

impl AbstainRule {
    /// Errors: a threshold is out of its range.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, value, most) in [
            ("risk", self.risk, 100.0),
            ("min_confidence", self.min_confidence, 1.0),
            ("max_ood", self.max_ood, 1.0),
        ] {
            if let Some(value) = value.filter(|value| !(0.0..=most).contains(value)) {
                bail!(
                    InvalidRequest,
                    "abstain.{name}: expected a number from 0 to {most}, found {value}"
                );
            }
        }
        Ok(())
    }

    /// The rule for the generation `id` with this record.
    ///
    /// Errors: a threshold needs a record, and there is none.
    pub(crate) fn limits(
        &self,
        id: &GenerationId,
        calibration: Option<&Calibration>,
    ) -> Result<AbstainLimits> {
        self.check()?;
        if *self == Self::default() {
            return Ok(AbstainLimits::default());
        }
        let calibration = calibration.ok_or_else(|| {
            error!(
                InvalidRequest,
                "abstain: expected a generation whose confidence was measured, found {id}; \
                 `hubrouter generation measure` does that"
            )
        })?;
        Ok(AbstainLimits {
            by_risk: self
                .risk
                .map(|risk| (risk, calibration.least_confidence(risk))),
            min_confidence: self.min_confidence,
            max_ood: self.max_ood,
        })
    }
}

/// An [`AbstainRule`] for one generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct AbstainLimits {
    /// The risk in percent, and the least confidence that keeps it.
    by_risk: Option<(f64, f64)>,
    min_confidence: Option<f64>,
    max_ood: Option<f64>,
}

impl AbstainLimits {
    /// Whether an answer with this confidence is withheld, and why. Being out of distribution comes
    /// first: a confidence means little there.
    pub(crate) fn abstention(&self, confidence: &Confidence) -> Option<Abstention> {
        let ood = f64::from(confidence.out_of_distribution);
        if let Some(most) = self.max_ood.filter(|most| ood > *most) {
            return Some(Abstention {
                reason: AbstainReason::OutOfDistribution,
                detail: format!("{ood:.3}, at most {most} was asked for"),
            });
        }
        let domain = f64::from(confidence.domain);
        let detail = match (self.min_confidence, self.by_risk) {
            (Some(least), _) if domain < least => {
                format!("confidence {domain:.3}, at least {least} was asked for")
            }
            (_, Some((risk, least))) if domain < least => {
                format!("confidence {domain:.3}, a risk of {risk} % needs {least:.3}")
            }
            _ => return None,
        };
        Some(Abstention {
            reason: AbstainReason::LowConfidence,
            detail,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn sure(domain: f32, out_of_distribution: f32) -> Confidence {
        Confidence {
            domain,
            model: 0.5,
            out_of_distribution,
            far: 0.5,
            strange_words: 0.5,
        }
    }

    #[test]
    fn each_limit_is_held() {
        let limits = AbstainLimits {
            by_risk: Some((10.0, 0.6)),
            min_confidence: Some(0.4),
            max_ood: Some(0.9),
        };
        let reason = |limits: &AbstainLimits, confidence: Confidence| {
            limits.abstention(&confidence).map(|found| found.reason)
        };
        let low = Some(AbstainReason::LowConfidence);
        assert_eq!(reason(&limits, sure(0.7, 0.5)), None);
        assert_eq!(reason(&limits, sure(0.5, 0.5)), low);
        let text = limits.abstention(&sure(0.5, 0.5)).unwrap().detail;
        assert_eq!(text, "confidence 0.500, a risk of 10 % needs 0.600");
        let text = limits.abstention(&sure(0.25, 0.5)).unwrap().detail;
        assert_eq!(text, "confidence 0.250, at least 0.4 was asked for");
        let out = Some(AbstainReason::OutOfDistribution);
        assert_eq!(reason(&limits, sure(0.7, 0.95)), out);
        assert_eq!(reason(&limits, sure(0.1, 0.95)), out);
        assert_eq!(reason(&AbstainLimits::default(), sure(0.0, 1.0)), None);
    }

    #[test]
    fn rules_are_checked_and_need_a_record() {
        let id: GenerationId = "g0001-0123456789ab".parse().unwrap();
        let limits = |json: &str| {
            let rule: AbstainRule = serde_json::from_str(json).unwrap();
            rule.limits(&id, None)
        };
        assert_eq!(limits("{}").unwrap(), AbstainLimits::default());
        for (json, want) in [
            (
                r#"{"risk": 101}"#,
                "abstain.risk: expected a number from 0 to 100",
            ),
            (r#"{"min_confidence": -0.1}"#, "abstain.min_confidence"),
            (r#"{"max_ood": 2}"#, "from 0 to 1, found 2"),
            (
                r#"{"risk": 10}"#,
                "whose confidence was measured, found g0001",
            ),
        ] {
            let error = limits(json).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        assert!(serde_json::from_str::<AbstainRule>(r#"{"riks": 1}"#).is_err());
    }
}
