//! Model, family and domain accuracy by the baseline rule (cmrbench.md sections 1.6, 2.1, 3.1).

use std::collections::HashMap;
use std::ops::AddAssign;

use serde::Serialize;

use crate::cmrbench::{Data, Row};

/// Domain and family of every model that was taught up to a step; the last row wins.
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

    fn of<'r>(rows: impl Iterator<Item = &'r Row>) -> Self {
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
    pub fn hits(&self, prediction: &str, row: &Row) -> Hits {
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
    /// Hits over `rows`, in percent; nothing of nothing is 0.
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
    /// The plain mean, each experience with weight 1 whatever its size.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(model: &str, domain: &str, family: &str) -> Row {
        Row {
            model_name: model.into(),
            model_family: family.into(),
            created_at: None,
            instruction: String::new(),
            domain: domain.into(),
        }
    }

    /// The worked example of cmrbench.md section 4: tables per step, hits of each cell.
    #[test]
    fn worked_example() {
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
        let eval = |test: usize| match test {
            0 => taught[0].clone(),
            1 => taught[1].clone(),
            _ => taught[2][..2].to_vec(),
        };
        for (step, test, predictions, want) in [
            (1, 0, vec![a, a, r, d], (3, 4, 4)),
            (2, 0, vec![a, a, f, d], (2, 3, 2)),
            (2, 1, vec![f, f, d], (2, 2, 2)),
            (3, 0, vec![b, a, r, d], (2, 2, 3)),
            (3, 1, vec![x, big_f, r], (1, 1, 2)),
            (3, 2, vec![a, a], (1, 2, 2)),
        ] {
            let tables = Tables::of(taught.iter().take(step).flatten());
            let mut hits = Hits::default();
            for (prediction, row) in predictions.iter().zip(eval(test)) {
                hits += tables.hits(prediction, &row);
            }
            assert_eq!(
                (hits.model, hits.family, hits.domain),
                want,
                "step {step}, test {test}"
            );
        }
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
