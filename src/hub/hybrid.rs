//! The hybrid of the learned score with what the frozen encoder remembers.
//!
//! With x the unit vector of the prompt by the encoder as it came, and d a model's domain,
//!
//! ```text
//! s_m   = learned cos(u, e_m) / tau + card cos(x, c_m) + exemplar cos(x, g_m) + domain cos(x, G_d)
//!         + balance b_m
//! score = s_m + prior ln p(d),    p(d) = sum over d's models of exp(s) / the same over all models
//! ```
//!
//! c_m is the vector of the model's cards; g_m is that of the prompts it was learned with and of c_m,
//! which counts as one more; G_d is that of all prompts of its domain. Only `learned` was trained; the
//! other parts cannot drift, whatever is learned later.
//!
//! Learning, in whatever order, makes the models of an experience as likely as its prompts were many.
//! b_m = ln(N / N_e) takes that out: N_e prompts came with the largest experience that brought some for
//! m, and N is the mean of N_e over models with prompts. So each experience counts the same, as far as
//! a factor of e goes, to which b_m is cut; it is 0 for a model without prompts.
//!
//! The six strengths are fitted when a generation is learned (`learn::calibrate`) and kept in it.

use serde::{Deserialize, Serialize};

use crate::hub::{Domains, Hub};
use crate::ops::normalize::unit;

/// Strengths of the hybrid's parts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Strengths {
    /// Of the learned score.
    pub learned: f64,
    /// Of the cosine with the model's cards.
    pub card: f64,
    /// Of the cosine with the centroid of the model's prompts and cards.
    pub exemplar: f64,
    /// Of the cosine with the centroid of its domain's prompts.
    pub domain: f64,
    /// Of what makes experiences with few prompts and with many equally likely.
    #[serde(default)]
    pub balance: f64,
    /// Of the logarithm of its domain's probability; above -1.
    pub prior: f64,
}

/// What a hybrid score is the sum of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Parts {
    /// The learned score, with its strength.
    pub learned: f32,
    /// The cosine with the model's cards, with its strength.
    pub card: f32,
    /// The cosine with the centroid of the model's prompts and cards, with its strength.
    pub exemplar: f32,
    /// The cosine with the centroid of its domain's prompts, with its strength.
    pub domain: f32,
    /// Makes up for how many prompts the model's experience brought, the same whatever the prompt, with
    /// its strength.
    pub balance: f32,
    /// The logarithm of its domain's probability by the other parts, with its strength.
    pub prior: f32,
}

impl Default for Strengths {
    /// Chosen on the development split of CMRBench (benches/README.md): what a fit starts from and
    /// is drawn to.
    fn default() -> Self {
        Self {
            learned: 0.8,
            card: 1.0,
            exemplar: 6.0,
            domain: 2.0,
            balance: 0.75,
            prior: 0.5,
        }
    }
}

/// What the frozen encoder's vector of a prompt is compared with.
#[derive(Clone)]
pub(crate) struct Memory {
    pub(crate) width: usize,
    /// c [M, H], unit rows.
    pub(crate) cards: Vec<f32>,
    /// g [M, H], unit rows.
    pub(crate) exemplars: Vec<f32>,
    /// G [N, H], unit rows, or zero for a domain without prompts.
    pub(crate) domains: Vec<f32>,
    /// b [M]
    pub(crate) balance: Vec<f32>,
    /// Domain of each model, [M].
    pub(crate) of: Vec<u32>,
}

/// A generation's hybrid: what it remembers, and how much it counts.
#[derive(Clone)]
pub(crate) struct Hybrid {
    pub(crate) strengths: Strengths,
    pub(crate) memory: Memory,
}

impl Memory {
    /// `cards`: [M, H], unit rows; `exemplars`: the mean [H] of each model's prompts, and how many
    /// they were; `balance`: b [M].
    pub(crate) fn new<'e>(
        hub: &Hub,
        cards: Vec<f32>,
        exemplars: impl Iterator<Item = (&'e [f32], u32)>,
        balance: Vec<f32>,
        width: usize,
    ) -> Self {
        let groups = Domains::new(hub);
        let mut domains = vec![0.0; groups.names.len() * width];
        let mut of_models = cards.clone();
        let rows = of_models.chunks_exact_mut(width.max(1));
        for ((row, (mean, count)), of) in rows.zip(exemplars).zip(&groups.of) {
            let domain = &mut domains[*of as usize * width..][..width];
            for ((own, sum), x) in row.iter_mut().zip(domain).zip(mean) {
                *own += count as f32 * x;
                *sum += count as f32 * x;
            }
            unit(row);
        }
        domains.chunks_exact_mut(width.max(1)).for_each(unit);
        Self {
            width,
            cards,
            exemplars: of_models,
            domains,
            balance,
            of: groups.of,
        }
    }

    /// Cosines of x [H] with the cards, the prompts and the domain of `model`.
    pub(crate) fn cosines(&self, x: &[f32], model: usize) -> [f64; 3] {
        let dot = |rows: &[f32], row: usize| -> f64 {
            let row = &rows[row * self.width..][..self.width];
            let products = row
                .iter()
                .zip(x)
                .map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum()
        };
        [
            dot(&self.cards, model),
            dot(&self.exemplars, model),
            dot(&self.domains, self.of[model] as usize),
        ]
    }
}

impl Hybrid {
    /// A row for each model, [M, H], whose product with x is what s has of cards, prompts and domains.
    pub(crate) fn keys(&self) -> Vec<f32> {
        let Memory {
            width,
            cards,
            exemplars,
            domains,
            of,
            ..
        } = &self.memory;
        let s = &self.strengths;
        #[expect(clippy::cast_possible_truncation, reason = "keys are f32")]
        let [card, exemplar, domain] = [s.card, s.exemplar, s.domain].map(|s| s as f32);
        let mut keys = Vec::with_capacity(cards.len());
        let rows = cards
            .chunks_exact(*width)
            .zip(exemplars.chunks_exact(*width));
        for ((c, g), of) in rows.zip(of) {
            let d = &domains[*of as usize * width..][..*width];
            let parts = c.iter().zip(g).zip(d);
            keys.extend(parts.map(|((c, g), d)| card * c + exemplar * g + domain * d));
        }
        keys
    }

    /// What is added to each model's score whatever the prompt, [M].
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    pub(crate) fn offsets(&self) -> Vec<f32> {
        let strength = self.strengths.balance as f32;
        self.memory.balance.iter().map(|b| strength * b).collect()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::hub::Model;

    fn close(found: &[f32], want: &[f32]) {
        let near = found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near && found.len() == want.len(), "{found:?}, {want:?}");
    }

    /// Three prompts and a card for one model, a card alone for the other.
    fn hybrid() -> Hybrid {
        let models = [Model::new("a", "d"), Model::new("b", "d")];
        let hub = Hub::default().with(models).unwrap();
        let cards = vec![0.0, 1.0, 1.0, 0.0];
        let means = [([0.6f32, 0.2], 3), ([0.0, 0.0], 0)];
        let means = means.iter().map(|(mean, count)| (&mean[..], *count));
        Hybrid {
            strengths: Strengths {
                card: 1.0,
                exemplar: 10.0,
                domain: 100.0,
                ..Strengths::default()
            },
            memory: Memory::new(&hub, cards, means, vec![-0.5, 0.0], 2),
        }
    }

    #[test]
    fn a_card_is_one_more_prompt_of_its_model_and_none_of_its_domain() {
        let memory = hybrid().memory;
        // (3 x 0.6 + 0, 3 x 0.2 + 1) made unit length.
        let length = (1.8f32 * 1.8 + 1.6 * 1.6).sqrt();
        close(&memory.exemplars, &[1.8 / length, 1.6 / length, 1.0, 0.0]);
        let length = (0.6f32 * 0.6 + 0.2 * 0.2).sqrt();
        close(&memory.domains, &[0.6 / length, 0.2 / length]);
    }

    #[test]
    fn keys_and_offsets_are_the_score_without_its_learned_part() {
        let hybrid = hybrid();
        let x = [0.8, -0.6];
        let keys = hybrid.keys();
        let found: Vec<f32> = keys
            .chunks_exact(2)
            .map(|k| k[0] * x[0] + k[1] * x[1])
            .collect();
        let want = [0, 1].map(|model| {
            let [card, exemplar, domain] = hybrid.memory.cosines(&x, model);
            card + 10.0 * exemplar + 100.0 * domain
        });
        let mut pairs = found.iter().zip(want);
        let near = pairs.all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4);
        assert!(near, "{found:?}, {want:?}");
        close(&hybrid.offsets(), &[-0.375, 0.0]);
    }
}
