//! Model, family and domain accuracy by the baseline rule (cmrbench.md sections 1.6, 2.1, 3.1).

use std::collections::HashMap;
use std::ops::AddAssign;

use serde::Serialize;

use super::chat::names;
use crate::cmrbench::{BenchRow, Data};

/// Domain and family of every model with training rows up to a step. The last row of a model wins.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    domain: HashMap<String, String>,
    family: HashMap<String, String>,
}

/// Hits of a prediction, or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Hits {
    /// The gold model itself.
    pub model: usize,
    /// A model of the gold's family, both by table.
    pub family: usize,
    /// A model whose domain, by table, is the row's own.
    pub domain: usize,
}

/// Accuracies in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Percent {
    /// Model accuracy.
    pub model: f64,
    /// Family accuracy.
    pub family: f64,
    /// Domain accuracy.
    pub domain: f64,
}

impl Tables {
    /// The tables after the first `steps` experiences.
    pub fn new(data: &Data, steps: usize) -> Self {
        Self::of(
            data.experiences
                .iter()
                .take(steps)
                .flat_map(|experience| &experience.train),
        )
    }

    fn of<'r>(rows: impl Iterator<Item = &'r BenchRow>) -> Self {
        let mut tables = Self::default();
        for row in rows {
            tables
                .domain
                .insert(row.model_name.clone(), row.domain.clone());
            tables
                .family
                .insert(row.model_name.clone(), row.model_family.clone());
        }
        tables
    }

    /// The models of the step's hub, in no order.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.domain.keys().map(String::as_str)
    }

    /// The domain of `model`.
    pub fn domain(&self, model: &str) -> Option<&str> {
        self.domain.get(model).map(String::as_str)
    }

    /// The family of `model`.
    pub fn family(&self, model: &str) -> Option<&str> {
        self.family.get(model).map(String::as_str)
    }

    /// Hits of `prediction` for `row`, 0 or 1 each.
    pub fn hits(&self, prediction: &str, row: &BenchRow) -> Hits {
        let family = self.family(prediction);
        Hits {
            model: usize::from(prediction == row.model_name),
            family: usize::from(family.is_some() && family == self.family(&row.model_name)),
            domain: usize::from(self.domain(prediction) == Some(&row.domain)),
        }
    }
}

impl AddAssign for Hits {
    fn add_assign(&mut self, other: Self) {
        self.model += other.model;
        self.family += other.family;
        self.domain += other.domain;
    }
}

impl Hits {
    /// The hits of a method that names domains.
    pub fn of_domain(answer: &str, row: &BenchRow) -> Self {
        Self {
            domain: usize::from(names(answer, &row.domain)),
            ..Self::default()
        }
    }

    /// Hits over `rows`, in percent; 0 without rows.
    pub fn percent(self, rows: usize) -> Percent {
        let of = |hits: usize| 100.0 * hits as f64 / rows.max(1) as f64;
        Percent {
            model: of(self.model),
            family: of(self.family),
            domain: of(self.domain),
        }
    }
}

impl Percent {
    /// The plain mean: each experience has weight 1.
    pub fn mean(of: &[Self]) -> Self {
        let mean =
            |part: fn(&Self) -> f64| of.iter().map(part).sum::<f64>() / of.len().max(1) as f64;
        Self {
            model: mean(|p| p.model),
            family: mean(|p| p.family),
            domain: mean(|p| p.domain),
        }
    }
}

/// The rule that the reference uses for CARvE alone (cmrbench.md section 2.2). It leaves rows out,
/// so it is never the headline.
#[derive(Clone, Debug, Default)]
pub struct CarveRule {
    fold_case: bool,
    /// Domain, normalised, by registered name as compared.
    domain: HashMap<String, String>,
}

/// Hits by the rule of the reference, with their denominators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CarveHits {
    /// The gold model itself.
    pub model: usize,
    /// A model of the gold's family, both by the file's rows.
    pub family: usize,
    /// A model of the gold's domain, both by the registry.
    pub domain: usize,
    /// Rows whose gold is registered.
    pub valid: usize,
    /// Rows among them whose prediction is a gold of the file.
    pub looked_up: usize,
}

impl CarveRule {
    /// The registry after the first `steps` experiences; with `fold_case` a name that equals an
    /// earlier one up to case is not registered.
    pub fn new(data: &Data, steps: usize, fold_case: bool) -> Self {
        let experiences = data.experiences.iter().take(steps);
        Self::of(
            experiences.flat_map(|experience| &experience.train),
            fold_case,
        )
    }

    /// Models are registered as rows come, each with the domain of its first row.
    fn of<'r>(rows: impl Iterator<Item = &'r BenchRow>, fold_case: bool) -> Self {
        let mut rule = Self {
            fold_case,
            domain: HashMap::new(),
        };
        let mut folded: HashMap<String, &str> = HashMap::new();
        for row in rows {
            let name = row.model_name.as_str();
            let first = *folded.entry(name.to_lowercase()).or_insert(name);
            if !fold_case || first == name {
                let domain = || crate::hub::domain_key(&row.domain);
                rule.domain.entry(name.to_owned()).or_insert_with(domain);
            }
        }
        rule
    }

    /// Number of registered models.
    pub fn models(&self) -> usize {
        self.domain.len()
    }

    /// Whether names are compared without case.
    pub fn fold_case(&self) -> bool {
        self.fold_case
    }

    /// Hits of `predictions`, one for each of `rows`, all of one eval file.
    pub fn hits(&self, predictions: &[&str], rows: &[BenchRow]) -> CarveHits {
        let mut exact: HashMap<&str, &str> = HashMap::new();
        let mut lower: HashMap<String, &str> = HashMap::new();
        for row in rows {
            exact.entry(&row.model_name).or_insert(&row.model_family);
            let name = row.model_name.to_lowercase();
            lower.entry(name).or_insert(&row.model_family);
        }
        let family = |name: &str| {
            let exact = exact.get(name);
            exact.or_else(|| lower.get(&name.to_lowercase())).copied()
        };
        let mut hits = CarveHits::default();
        for (prediction, row) in predictions.iter().zip(rows) {
            let Some(domain) = self.domain.get(&row.model_name) else {
                continue;
            };
            hits.valid += 1;
            hits.model += usize::from(*prediction == row.model_name);
            hits.domain += usize::from(self.domain.get(*prediction) == Some(domain));
            if let Some(found) = family(prediction) {
                hits.looked_up += 1;
                hits.family += usize::from(family(&row.model_name) == Some(found));
            }
        }
        hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmrbench::AccuracyMatrix;

    fn row(model: &str, domain: &str, family: &str) -> BenchRow {
        BenchRow {
            model_name: model.into(),
            model_family: family.into(),
            created_at: None,
            instruction: String::new(),
            domain: domain.into(),
        }
    }

    const CELLS: [(usize, usize); 6] = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)];

    /// The worked example of cmrbench.md section 4: rows taught and the predictions of [`CELLS`].
    fn example() -> ([Vec<BenchRow>; 3], [Vec<&'static str>; 6]) {
        let taught = [
            vec![
                row("acme/bert-a", "Text Classification", "bert"),
                row("acme/bert-b", "Text Classification", "bert"),
                row("vis/resnet", "Image Classification", "resnet"),
                row("snd/diar", "Speech Recognition", "diar"),
            ],
            vec![
                row("gen/flux", "Text-to-Image", "flux"),
                row("gen/Flux", "Multimodal Text-to-Image", "flux-art"),
                row("snd/diar", "Voice Activity Detection", "diarization"),
            ],
            vec![
                row("acme/bert-c", "Text Classification", "bert-c"),
                row("acme/bert-a", "Text Classification", "bert-c"),
                row("gen/flux-xl", "Text-to-Image", "flux-xl"),
            ],
        ];
        let (a, b, r, d) = ("acme/bert-a", "acme/bert-b", "vis/resnet", "snd/diar");
        let (f, big_f, x) = ("gen/flux", "gen/Flux", "gen/flux-xl");
        let predictions = [
            vec![a, a, r, d],
            vec![a, a, f, d],
            vec![f, f, d],
            vec![b, a, r, d],
            vec![x, big_f, r],
            vec![a, a],
        ];
        (taught, predictions)
    }

    /// The last experience has two eval rows, the others one of each training row.
    fn eval(taught: &[Vec<BenchRow>; 3], test: usize) -> &[BenchRow] {
        if test == 2 {
            &taught[2][..2]
        } else {
            &taught[test]
        }
    }

    fn averages(cells: &[(usize, usize)]) -> (f64, f64) {
        let mut matrix = AccuracyMatrix::default();
        for ((step, test), (hits, rows)) in CELLS.iter().zip(cells) {
            matrix.set(
                step - 1,
                *test,
                100.0 * *hits as f64 / (*rows).max(1) as f64,
            );
        }
        (
            matrix.acc().unwrap_or(f64::NAN),
            matrix.forgetting().unwrap_or(f64::NAN),
        )
    }

    #[track_caller]
    fn close(got: (f64, f64), want: (f64, f64)) {
        let error = (got.0 - want.0).abs().max((got.1 - want.1).abs());
        assert!(error < 6e-4, "expected {want:?}, found {got:?}");
    }

    /// Tables per step, hits of each cell, Acc, Fgt.
    #[test]
    fn worked_example() {
        let (taught, predictions) = example();
        let mut cells: [Vec<(usize, usize)>; 3] = Default::default();
        let wanted = [
            (3, 4, 4),
            (2, 3, 2),
            (2, 2, 2),
            (2, 2, 3),
            (1, 1, 2),
            (1, 2, 2),
        ];
        for (i, (step, test)) in CELLS.into_iter().enumerate() {
            let tables = Tables::of(taught.iter().take(step).flatten());
            let rows = eval(&taught, test);
            let mut hits = Hits::default();
            for (prediction, row) in predictions[i].iter().zip(rows) {
                hits += tables.hits(prediction, row);
            }
            let found = (hits.model, hits.family, hits.domain);
            assert_eq!(found, wanted[i], "step {step}, test {test}");
            for (cells, hits) in cells.iter_mut().zip([hits.model, hits.family, hits.domain]) {
                cells.push((hits, rows.len()));
            }
        }
        close(averages(&cells[0]), (44.444, 29.167));
        close(averages(&cells[1]), (61.111, 41.667));
        close(averages(&cells[2]), (80.556, 12.500));
    }

    /// The same predictions by the rule of the reference, case folded.
    #[test]
    fn worked_example_by_the_rule_of_the_reference() {
        let (taught, predictions) = example();
        let mut cells: [Vec<(usize, usize)>; 4] = Default::default();
        for (i, (step, test)) in CELLS.into_iter().enumerate() {
            let rule = CarveRule::of(taught.iter().take(step).flatten(), true);
            let hits = rule.hits(&predictions[i], eval(&taught, test));
            let all = hits.valid;
            let pairs = [
                (hits.model, all),
                (hits.domain, all),
                (hits.family, hits.looked_up),
                (hits.family, all),
            ];
            for (cells, pair) in cells.iter_mut().zip(pairs) {
                cells.push(pair);
            }
        }
        assert_eq!(cells[0], [(3, 4), (2, 4), (2, 2), (2, 4), (0, 2), (1, 2)]);
        assert_eq!(cells[1], [(4, 4), (3, 4), (2, 2), (4, 4), (1, 2), (2, 2)]);
        assert_eq!(cells[2], [(4, 4), (3, 3), (2, 2), (4, 4), (0, 0), (2, 2)]);
        assert_eq!(cells[3], [(4, 4), (3, 4), (2, 2), (4, 4), (0, 2), (2, 2)]);
        close(averages(&cells[0]), (33.333, 62.500));
        close(averages(&cells[1]), (83.333, 25.000));
        close(averages(&cells[2]), (66.667, 50.000));
        close(averages(&cells[3]), (66.667, 50.000));
        // Without folding gen/Flux is a model like any other, and its row counts.
        let rule = CarveRule::of(taught.iter().take(2).flatten(), false);
        assert_eq!(rule.hits(&predictions[2], eval(&taught, 1)).valid, 3);
    }

    #[test]
    fn experiences_weigh_the_same() {
        let one = Hits {
            model: 1,
            family: 2,
            domain: 3,
        }
        .percent(4);
        let two = Hits {
            model: 0,
            family: 0,
            domain: 1,
        }
        .percent(1);
        let mean = Percent::mean(&[one, two]);
        assert_eq!((mean.model, mean.family, mean.domain), (12.5, 25.0, 87.5));
        assert_eq!(Hits::default().percent(0), Percent::default());
    }
}
