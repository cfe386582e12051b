//! Which rows of an update are replayed later (carve.md section 9).

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use crate::learn::method::draws::{Draws, Stream};
use crate::learn::settings::{ReplayStrategy, Settings};
use crate::num::dot;

/// A row to choose from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoresetRow<'i> {
    /// Pooled vector, of any length but zero; `None` if the text is missing.
    pub(crate) vector: Option<&'i [f32]>,
    /// Normalised domain of the row.
    pub(crate) domain: &'i str,
    /// Id of its model.
    pub(crate) model: u32,
}

/// The share `ratio` of `rows`, rounded down: at least one, unless the ratio is 0.
#[expect(clippy::cast_possible_truncation, reason = "a share of a count")]
pub(crate) fn budget(ratio: f64, rows: usize) -> usize {
    let share = (ratio * rows as f64).floor() as usize;
    if ratio > 0.0 {
        share.max(1).min(rows)
    } else {
        0
    }
}

/// The rows of experience `experience` to replay, by the strategy of the settings.
///
/// The draws depend only on the seed and the experience.
pub(crate) fn select(items: &[CoresetRow<'_>], settings: &Settings, experience: u64) -> Vec<usize> {
    let budget = budget(settings.replay_ratio, items.len());
    let mut draws = Draws::new(settings.seed, Stream::Replay, &[experience]);
    match settings.replay_strategy {
        ReplayStrategy::None => Vec::new(),
        ReplayStrategy::Random => draws.sample(items.len(), budget),
        ReplayStrategy::Coreset => {
            let quotas = Quotas {
                budget,
                per_domain: settings.replay_min_per_domain,
                per_model: settings.replay_per_model,
            };
            coreset(items, quotas, &mut |n| draws.below(n))
        }
    }
}

/// Numbers of rows of a coreset.
#[derive(Clone, Copy)]
struct Quotas {
    /// In all.
    budget: usize,
    /// Of a domain, at least, before all are cut to the budget.
    per_domain: usize,
    /// Of a model, at most, if others can take the place.
    per_model: usize,
}

impl Quotas {
    /// Rows of a domain with `size` of all `rows`; halves are rounded to even.
    #[expect(clippy::cast_possible_truncation, reason = "a share of a count")]
    fn of_domain(self, size: usize, rows: usize) -> usize {
        let share = (self.budget as f64 * size as f64 / rows as f64).round_ties_even();
        self.per_domain.max(share as usize).min(size)
    }
}

/// `draw`: a number below its argument.
fn coreset(
    items: &[CoresetRow<'_>],
    quotas: Quotas,
    draw: &mut dyn FnMut(usize) -> usize,
) -> Vec<usize> {
    let fps = Fps::new(items);
    let mut chosen = Vec::new();
    for domain in grouped(0..items.len(), |row| items[row].domain) {
        let quota = quotas.of_domain(domain.len(), items.len());
        let mut of_domain = Vec::new();
        for model in grouped(domain.iter().copied(), |row| items[row].model) {
            of_domain.extend(fps.pick(&model, quotas.per_model, &[], draw));
        }
        if of_domain.len() > quota {
            of_domain = fps.pick(&of_domain, quota, &[], draw);
        } else {
            let taken: HashSet<usize> = of_domain.iter().copied().collect();
            let rest = domain.into_iter().filter(|row| !taken.contains(row));
            let rest: Vec<usize> = rest.collect();
            let missing = quota - of_domain.len();
            of_domain.extend(fps.pick(&rest, missing, &of_domain, draw));
        }
        chosen.extend(of_domain);
    }
    fps.pick(&chosen, quotas.budget, &[], draw)
}

/// Groups rows with the same key, in the order of their first rows.
fn grouped<K: Eq + Hash>(
    rows: impl Iterator<Item = usize>,
    key: impl Fn(usize) -> K,
) -> Vec<Vec<usize>> {
    let mut places = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for row in rows {
        let place = *places.entry(key(row)).or_insert(groups.len());
        if place == groups.len() {
            groups.push(Vec::new());
        }
        groups[place].push(row);
    }
    groups
}

/// Farthest-point sampling by cosine.
struct Fps<'i> {
    items: &'i [CoresetRow<'i>],
    /// 1 / (norm + 1e-8) of each vector.
    scales: Vec<f64>,
}

impl<'i> Fps<'i> {
    fn new(items: &'i [CoresetRow<'i>]) -> Self {
        let scale = |item: &CoresetRow<'_>| {
            let vector = item.vector.unwrap_or_default();
            1.0 / (dot(vector, vector).sqrt() + 1e-8)
        };
        let scales = items.iter().map(scale).collect();
        Self { items, scales }
    }

    /// `k` of `rows`, far from each other and from `existing`, in the order in which they are
    /// picked; all of them, in their order, if there are no more. Rows without a vector come last,
    /// at random.
    fn pick(
        &self,
        rows: &[usize],
        k: usize,
        existing: &[usize],
        draw: &mut dyn FnMut(usize) -> usize,
    ) -> Vec<usize> {
        if rows.len() <= k {
            return rows.to_vec();
        }
        let has_vector = |row: &usize| self.items[*row].vector.is_some();
        // What is left, each with its largest cosine to what is picked or existing.
        let (seen, mut unseen): (Vec<usize>, Vec<usize>) =
            rows.iter().copied().partition(has_vector);
        let mut left: Vec<(usize, f64)> = seen.into_iter().map(|row| (row, f64::MIN)).collect();
        for row in existing.iter().filter(|row| has_vector(row)) {
            self.approach(&mut left, *row);
        }
        let mut picked = Vec::with_capacity(k);
        while picked.len() < k && !left.is_empty() {
            let at = if picked.is_empty() && existing.is_empty() {
                draw(left.len())
            } else {
                // `min_by` takes the first of equals.
                let nearest = left
                    .iter()
                    .enumerate()
                    .min_by(|a, b| a.1.1.total_cmp(&b.1.1));
                nearest.map_or(0, |(at, _)| at)
            };
            let (row, _) = left.remove(at);
            self.approach(&mut left, row);
            picked.push(row);
        }
        while picked.len() < k {
            picked.push(unseen.remove(draw(unseen.len())));
        }
        picked
    }

    fn approach(&self, left: &mut [(usize, f64)], to: usize) {
        let vector = |row: usize| self.items[row].vector.unwrap_or_default();
        for (row, largest) in left {
            let cosine = dot(vector(*row), vector(to)) * self.scales[*row] * self.scales[to];
            *largest = largest.max(cosine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(_: usize) -> usize {
        0
    }

    fn items(vectors: &[[f32; 2]]) -> Vec<CoresetRow<'_>> {
        let item = |vector| CoresetRow {
            vector: Some(vector),
            domain: "d",
            model: 0,
        };
        vectors.iter().map(|vector| item(&vector[..])).collect()
    }

    /// The points of carve.md V19.
    #[test]
    fn farthest_points_match_hand_picks_v19() {
        let points = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0], [0.5, 0.5]];
        let items = items(&points);
        let fps = Fps::new(&items);
        let all = [0, 1, 2, 3, 4];
        assert_eq!(fps.pick(&all, 4, &[], &mut first), [0, 3, 2, 4]);
        assert_eq!(fps.pick(&all, 5, &[], &mut first), all);
        assert_eq!(fps.pick(&all[1..], 2, &[0], &mut first), [3, 2]);
        assert!(fps.pick(&all, 0, &[], &mut first).is_empty());
        let last = |n| n - 1;
        assert_eq!(fps.pick(&all, 1, &[], &mut { last }), [4]);
    }

    /// The quotas of carve.md V19.
    #[test]
    fn quotas_match_hand_values_v19() {
        let quotas = |budget, per_domain| Quotas {
            budget,
            per_domain,
            per_model: 3,
        };
        let found = [70, 20, 8, 2].map(|size| quotas(10, 5).of_domain(size, 100));
        assert_eq!(found, [7, 5, 5, 2]);
        for (size, want) in [(1, 0), (3, 2), (5, 2), (7, 4)] {
            assert_eq!(quotas(1, 0).of_domain(size, 2), want.min(size));
        }
    }

    /// cmrbench.md section 8.1
    #[test]
    fn budgets() {
        for (ratio, want) in [
            (0.05, [58, 34, 135]),
            (0.1, [117, 68, 270]),
            (0.2, [234, 137, 541]),
            (1.0, [1174, 688, 2708]),
            (0.0, [0, 0, 0]),
        ] {
            assert_eq!([1174, 688, 2708].map(|rows| budget(ratio, rows)), want);
        }
        assert_eq!([budget(0.1, 9), budget(0.1, 0)], [1, 0]);
    }

    /// carve.md V20
    #[test]
    fn coreset_matches_hand_picks_v20() {
        let rows: [(f32, &str, u32); 12] = [
            (0.0, "A", 1),
            (10.0, "A", 1),
            (80.0, "A", 1),
            (40.0, "A", 2),
            (45.0, "A", 2),
            (100.0, "B", 1),
            (110.0, "B", 1),
            (150.0, "B", 1),
            (170.0, "B", 1),
            (200.0, "B", 2),
            (210.0, "B", 2),
            (300.0, "B", 2),
        ];
        let vectors =
            rows.map(|(degrees, ..)| [degrees.to_radians().cos(), degrees.to_radians().sin()]);
        let mut items = items(&vectors);
        for (item, (_, domain, model)) in items.iter_mut().zip(rows) {
            (item.domain, item.model) = (domain, model);
        }
        let coreset = |ratio, per_domain, per_model| {
            let quotas = Quotas {
                budget: budget(ratio, 12),
                per_domain,
                per_model,
            };
            coreset(&items, quotas, &mut first)
        };
        assert_eq!(coreset(0.5, 2, 1), [0, 3, 5, 9, 11, 7]);
        assert_eq!(coreset(0.34, 3, 2), [0, 9, 5, 11]);
        let mut all = coreset(1.0, 3, 2);
        all.sort_unstable();
        assert!(all.into_iter().eq(0..12));
    }

    #[test]
    fn rows_without_a_vector_come_last() {
        let points = [[1.0, 0.0], [0.0, 1.0]];
        let mut items = items(&points);
        let bare = CoresetRow {
            vector: None,
            ..items[0]
        };
        items.splice(0..0, [bare; 3]);
        let fps = Fps::new(&items);
        let picked = fps.pick(&[0, 1, 2, 3, 4], 4, &[], &mut first);
        assert_eq!(picked, [3, 4, 0, 1]);
    }

    #[test]
    fn strategies() {
        let points: Vec<[f32; 2]> = (0..100u8).map(|i| [1.0, f32::from(i)]).collect();
        let items = items(&points);
        let mut settings = Settings::base();
        let chosen = |settings: &Settings, experience| {
            let mut rows = select(&items, settings, experience);
            let drawn = rows.clone();
            rows.sort_unstable();
            rows.dedup();
            assert_eq!(rows.len(), drawn.len());
            drawn
        };
        for strategy in [ReplayStrategy::Coreset, ReplayStrategy::Random] {
            settings.replay_strategy = strategy;
            let one = chosen(&settings, 1);
            assert_eq!((one.len(), &one), (10, &chosen(&settings, 1)));
            assert_ne!(one, chosen(&settings, 2));
        }
        settings.replay_strategy = ReplayStrategy::None;
        assert!(chosen(&settings, 1).is_empty());
    }
}
