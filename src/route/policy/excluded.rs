//! What a policy excluded, and why.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::route::policy::ParetoPoint;

/// How many models one part of a policy excluded. A model that fails several parts counts in each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Excluded {
    /// The part: a condition of `where` in its text form, `allow`, `deny PATTERN`, `retired`, or
    /// what a chat request needs, as `needs tools`.
    pub by: Arc<str>,
    /// Models that fail it; with candidates, deployments.
    pub models: usize,
    /// Of them, those whose attributes do not say whether they meet it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unknown: usize,
    /// Of them, those that fail nothing else.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub alone: usize,
}

/// What a policy did for one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct PolicyRecord {
    /// Models that could answer.
    pub eligible: usize,
    /// The fallback that admitted them, in its text form, where nothing met the constraint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Arc<str>>,
    /// What was excluded, by the part of the policy.
    #[serde(default)]
    pub excluded: Vec<Excluded>,
    /// The eligible models that no other beats in score, cost and latency at once, the best score
    /// first; empty without [`crate::Policy::prefer`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pareto: Vec<ParetoPoint>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// The parts of a policy, and how each went for the models that were looked at.
#[derive(Default)]
pub(super) struct Exclusions {
    parts: Vec<Excluded>,
    /// Places in `parts` that the current model failed.
    failed: Vec<usize>,
}

impl Exclusions {
    /// One more part; parts are told apart by the order in which they are added.
    pub(super) fn part(&mut self, by: impl Into<Arc<str>>) {
        self.parts.push(Excluded {
            by: by.into(),
            models: 0,
            unknown: 0,
            alone: 0,
        });
    }

    /// The current model does not pass the part, `None` if its attributes do not say.
    pub(super) fn failed(&mut self, part: usize, holds: Option<bool>) {
        self.parts[part].models += 1;
        self.parts[part].unknown += usize::from(holds.is_none());
        self.failed.push(part);
    }

    /// Goes on to the next model. True if this one passed all parts.
    pub(super) fn next(&mut self) -> bool {
        if let [only] = self.failed[..] {
            self.parts[only].alone += 1;
        }
        let passed = self.failed.is_empty();
        self.failed.clear();
        passed
    }

    /// The parts that excluded a model.
    pub(super) fn finish(self) -> Vec<Excluded> {
        let some = self.parts.into_iter().filter(|part| part.models > 0);
        some.collect()
    }
}

/// The parts and their counts in words, for an error.
pub(super) fn in_words(excluded: &[Excluded]) -> String {
    let each = excluded.iter().map(|part| match part.unknown {
        0 => format!("{} ({})", part.by, part.models),
        unknown => format!("{} ({}, {unknown} of them unknown)", part.by, part.models),
    });
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_counts_its_own_models() {
        let mut exclusions = Exclusions::default();
        for part in ["a", "b", "c"] {
            exclusions.part(part);
        }
        exclusions.failed(0, Some(false));
        exclusions.failed(1, None);
        assert!(!exclusions.next());
        exclusions.failed(0, Some(false));
        assert!(!exclusions.next());
        assert!(exclusions.next());
        let found = exclusions.finish();
        let counts: Vec<_> = found
            .iter()
            .map(|x| (&*x.by, x.models, x.unknown, x.alone))
            .collect();
        assert_eq!(counts, [("a", 2, 0, 1), ("b", 1, 1, 0)]);
        assert_eq!(in_words(&found), "a (2); b (1, 1 of them unknown)");
    }
}
