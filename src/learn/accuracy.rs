//! Accuracy on prompts that were not learned, and what is lost of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::hub::{Hub, domain_key};
use crate::learn::experience::Row;

/// Percent of prompts whose model, family and domain were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Accuracy {
    /// The best model is the gold.
    pub model: f64,
    /// It is of the gold's family; a model without one is its own.
    pub family: f64,
    /// It is of the prompt's own domain.
    pub domain: f64,
    /// Prompts that these are percents of.
    pub n: usize,
}

/// Hits of each domain's prompts.
#[derive(Clone, Debug)]
pub(crate) struct Counts(BTreeMap<String, Hits>);

#[derive(Clone, Copy, Debug, Default)]
struct Hits {
    rows: usize,
    model: usize,
    family: usize,
    domain: usize,
}

impl Hits {
    fn percent(self) -> Option<Accuracy> {
        let percent = |hits: usize| 100.0 * hits as f64 / self.rows as f64;
        (self.rows > 0).then(|| Accuracy {
            model: percent(self.model),
            family: percent(self.family),
            domain: percent(self.domain),
            n: self.rows,
        })
    }
}

impl Counts {
    pub(crate) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// `best`: the first model of each row's ranking.
    pub(crate) fn add(&mut self, hub: &Hub, rows: &[&Row], best: &[u32]) {
        let model = |id: u32| hub.get(crate::hub::ModelId(id));
        for (row, best) in rows.iter().zip(best) {
            let (Some(found), Some(gold)) = (model(*best), model(row.gold)) else {
                continue;
            };
            let same_family = match (&found.family, &gold.family) {
                (Some(found), Some(gold)) => found == gold,
                _ => *best == row.gold,
            };
            let hits = self.0.entry(row.domain.clone()).or_default();
            hits.rows += 1;
            hits.model += usize::from(*best == row.gold);
            hits.family += usize::from(same_family);
            hits.domain += usize::from(domain_key(&found.domain) == row.domain);
        }
    }

    /// Over all rows; none without any.
    pub(crate) fn total(&self) -> Option<Accuracy> {
        let sum = self.0.values().fold(Hits::default(), |a, b| Hits {
            rows: a.rows + b.rows,
            model: a.model + b.model,
            family: a.family + b.family,
            domain: a.domain + b.domain,
        });
        sum.percent()
    }

    /// Points of domain accuracy lost from `self` to `after`, by domain.
    pub(crate) fn lost(&self, after: &Self) -> BTreeMap<String, f64> {
        let pairs = self.0.iter().filter_map(|(domain, before)| {
            let (before, after) = (before.percent()?, after.0.get(domain)?.percent()?);
            Some((domain.clone(), before.domain - after.domain))
        });
        pairs.collect()
    }
}

/// Points lost from `before` to `after`; negative where they were won.
pub(crate) fn lost(before: Option<Accuracy>, after: Option<Accuracy>) -> Option<Accuracy> {
    let (before, after) = (before?, after?);
    Some(Accuracy {
        model: before.model - after.model,
        family: before.family - after.family,
        domain: before.domain - after.domain,
        n: before.n,
    })
}
