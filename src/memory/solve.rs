//! Turns a memory's sums into the scorer that is served: a Gaussian for each model, with one
//! covariance for all.
//!
//! x = q / STEPS / sqrt(L) is a prompt's vector, of length 1. A model has n prompts with sum s, a
//! card vector c and a domain d:
//!
//! ```text
//! S    = (1 - A) S_within + A tr(S_within) / width I
//! G_d  = mean of the domain's prompts and PSEUDO more of the mean of all
//! R    = ridge regression of s / n - G_d on c - mean card of d, weights n / (n + 1), RIDGE
//! p    = G_d + R (c - mean card of d)             prior mean of the model's prompts
//! mu   = (s + KAPPA p) / (n + KAPPA)
//! score(x) = mu^T S^-1 x - mu^T S^-1 mu / 2       up to a constant over models
//! ```
//!
//! That is linear discriminant analysis with an empirical Bayes prior of each class's mean.
//! S_within is over prompts about their own model's mean. With L L^T = S and D the rows mu - mean
//! of mu, scores are those between D L^-T and (x - mean of mu) L^-T; both are projected on the R
//! orthonormal rows V that [`POWERS`] steps of subspace iteration find for the largest variance of
//! D L^-T (Halko, Martinsson and Tropp, "Finding structure with randomness", 2011), from rows of
//! fixed signs. So P = V L^-1, and a model's key is P (mu - mean of mu).

use serde::{Deserialize, Serialize};

use super::Memory;
use crate::device::cpu::Cpu;
use crate::device::cpu::dense::{
    self, DenseView, Region, cholesky, orthonormal, solve_lower, solve_lower_transposed,
};
use crate::encoder::seen::STEPS;
use crate::error::Result;
use crate::hub::{Domains, Hub};
use crate::num::mix;

/// How much the covariance is drawn to a sphere: A.
const SHRINK: f64 = 0.7;

/// Prompts of the mean of all that each domain begins with.
const PSEUDO: f64 = 2.0;

/// Ridge strength of the regression on cards.
const RIDGE: f64 = 0.5;

/// Prompts that a model's prior mean counts for.
const KAPPA: f64 = 6.0;

/// Steps of subspace iteration.
const POWERS: usize = 3;

/// Attempts to make the covariance positive definite; each adds four times the sphere of the last.
const WIDENED: usize = 12;

/// Variance within a model where no model has two prompts.
const ALONE: f64 = 0.5;

/// The prior of a model's mean in the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PriorMean {
    /// The mean of its domain, moved by what its card says.
    Card,
    /// The mean of its domain.
    Domain,
    /// The mean of all prompts.
    All,
}

/// How a memory is solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Solving {
    /// Directions that are kept, at most.
    pub(crate) rank: usize,
    pub(crate) prior: PriorMean,
}

/// The served form of a memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Solved {
    /// R: directions.
    pub(crate) rank: usize,
    /// P [R, L H], for vectors whose layers are unit vectors.
    pub(crate) projection: Vec<f64>,
    /// -P mean of mu, [R].
    pub(crate) bias: Vec<f64>,
    /// [M, R]
    pub(crate) keys: Vec<f64>,
    /// -|key|^2 / 2, [M].
    pub(crate) offsets: Vec<f64>,
}

/// `cards`: a unit vector of each model's cards, [M, C].
///
/// Errors: the parts of `memory` contradict each other.
pub(crate) fn solve(
    cpu: &Cpu,
    memory: &Memory,
    hub: &Hub,
    cards: &[f32],
    how: Solving,
) -> Result<Solved> {
    cpu.run(|| Problem::new(cpu, memory, hub, how).solve(cards))
}

struct Problem<'p> {
    cpu: &'p Cpu,
    memory: &'p Memory,
    domains: Domains,
    width: usize,
    models: usize,
    how: Solving,
}

impl<'p> Problem<'p> {
    fn new(cpu: &'p Cpu, memory: &'p Memory, hub: &Hub, how: Solving) -> Self {
        Self {
            cpu,
            memory,
            domains: Domains::new(hub),
            width: memory.width(),
            models: hub.len(),
            how,
        }
    }

    fn solve(&self, cards: &[f32]) -> Result<Solved> {
        let (cpu, width, models) = (self.cpu, self.width, self.models);
        let mut rows = self.sums()?;
        let factor = self.factor(&rows)?;
        self.means(&mut rows, cards)?;
        let mean = mean_row(&rows, width);
        for row in rows.chunks_exact_mut(width) {
            for (value, mean) in row.iter_mut().zip(&mean) {
                *value -= mean;
            }
        }
        // L^-T V^T [width, R]
        let whitened = self.directions(&rows, &factor)?;
        let (rank, whitened) = match whitened.len() / width {
            // Nothing tells the models apart.
            0 => (1, vec![0.0; width]),
            rank => (rank, whitened),
        };
        let columns = DenseView::rows(&whitened, rank);
        let mut keys = vec![0.0; models * rank];
        dense::add_product(
            cpu,
            1.0,
            DenseView::rows(&rows, width),
            columns,
            Region::All,
            &mut keys,
        );
        let mut bias = vec![0.0; rank];
        for (row, mean) in whitened.chunks_exact(rank).zip(&mean) {
            for (bias, value) in bias.iter_mut().zip(row) {
                *bias -= mean * value;
            }
        }
        let squares = |key: &[f64]| -key.iter().map(|x| x * x).sum::<f64>() / 2.0;
        let offsets = keys.chunks_exact(rank).map(squares).collect();
        // x has layers of length 1 / sqrt(L), serving has units.
        let unit = 1.0 / (self.memory.layers().len() as f64).sqrt();
        let projection = (0..rank).flat_map(|r| whitened.iter().skip(r).step_by(rank));
        Ok(Solved {
            rank,
            projection: projection.map(|value| value * unit).collect(),
            bias,
            keys,
            offsets,
        })
    }

    /// The sum of each model's x, [M, width].
    fn sums(&self) -> Result<Vec<f64>> {
        let scale = self.scale();
        let mut all = Vec::with_capacity(self.models * self.width);
        for model in 0..self.models {
            let sum = self.memory.sum(model)?;
            all.extend(sum.into_iter().map(|sum| sum as f64 * scale));
        }
        Ok(all)
    }

    /// From steps to x.
    fn scale(&self) -> f64 {
        1.0 / (STEPS as f64 * (self.memory.layers().len() as f64).sqrt())
    }

    /// L of S = L L^T, [width, width].
    ///
    /// Rounding can make the sums and the squares disagree. The variance within models is then
    /// negative in some direction, and more of the sphere is added until S is positive definite.
    fn factor(&self, sums: &[f64]) -> Result<Vec<f64>> {
        let (s, mut sphere) = self.covariance(sums);
        for _ in 1..WIDENED {
            if let Ok(factor) = self.factored(s.clone(), sphere) {
                return Ok(factor);
            }
            sphere *= 4.0;
        }
        self.factored(s, sphere)
    }

    fn factored(&self, mut s: Vec<f64>, sphere: f64) -> Result<Vec<f64>> {
        let width = self.width;
        (0..width).for_each(|i| s[i * width + i] += sphere);
        cholesky(self.cpu, &mut s, width)?;
        Ok(s)
    }

    /// The lower triangle of S without the sphere, [width, width], and the value that the sphere
    /// adds to its diagonal.
    fn covariance(&self, sums: &[f64]) -> (Vec<f64>, f64) {
        let (width, square) = (self.width, self.scale().powi(2));
        let mut s = self.memory.square_rows();
        s.iter_mut().for_each(|value| *value *= square);
        let counts = self.memory.counts().iter();
        let mut with_prompts = 0;
        let mut scaled = Vec::new();
        for (row, count) in sums.chunks_exact(width).zip(counts) {
            if *count > 0 {
                with_prompts += 1;
                let share = f64::from(*count).sqrt();
                scaled.extend(row.iter().map(|value| value / share));
            }
        }
        let scaled = DenseView::rows(&scaled, width);
        dense::add_product(
            self.cpu,
            -1.0,
            scaled.transposed(),
            scaled,
            Region::Lower,
            &mut s,
        );
        let free = self.memory.prompts() - with_prompts;
        let trace: f64 = (0..width).map(|i| s[i * width + i]).sum();
        let (share, sphere) = match free {
            0 => (0.0, ALONE / width as f64),
            _ => (
                (1.0 - SHRINK) / free as f64,
                SHRINK * trace / (free * width) as f64,
            ),
        };
        s.iter_mut().for_each(|value| *value *= share);
        // The rounding error of the squares, about the same in every direction.
        let rounded = share * square * (width as f64).sqrt();
        (s, sphere.max(rounded).max(1e-9))
    }

    /// Makes mu of the sums in `rows` [M, width].
    fn means(&self, rows: &mut [f64], cards: &[f32]) -> Result<()> {
        let (cpu, width) = (self.cpu, self.width);
        let counts: Vec<f64> = self.memory.counts().iter().map(|n| f64::from(*n)).collect();
        let domains = self.domain_means(rows, &counts);
        let of = |model: usize| self.domains.of[model] as usize;
        let centred = match self.how.prior {
            PriorMean::Card => self.centred(cards),
            _ => vec![0.0; self.models],
        };
        let inputs = centred.len() / self.models.max(1);
        // Rows with their weights' roots.
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (model, n) in counts.iter().enumerate().filter(|(_, n)| **n > 0.0) {
            let root = (n / (n + 1.0)).sqrt();
            a.extend(centred[model * inputs..][..inputs].iter().map(|x| x * root));
            let (row, domain) = (
                &rows[model * width..][..width],
                &domains[of(model) * width..],
            );
            b.extend(row.iter().zip(domain).map(|(sum, g)| (sum / n - g) * root));
        }
        let (a, b) = (DenseView::rows(&a, inputs), DenseView::rows(&b, width));
        let mut normal = vec![0.0; inputs * inputs];
        dense::add_product(cpu, 1.0, a.transposed(), a, Region::Lower, &mut normal);
        (0..inputs).for_each(|i| normal[i * inputs + i] += RIDGE);
        let mut map = vec![0.0; inputs * width];
        dense::add_product(cpu, 1.0, a.transposed(), b, Region::All, &mut map);
        cholesky(cpu, &mut normal, inputs)?;
        solve_lower(cpu, &normal, &mut map, inputs);
        solve_lower_transposed(cpu, &normal, &mut map, inputs);
        // s + KAPPA p, over n + KAPPA
        let (centred, map) = (
            DenseView::rows(&centred, inputs),
            DenseView::rows(&map, width),
        );
        dense::add_product(cpu, KAPPA, centred, map, Region::All, rows);
        for (model, row) in rows.chunks_exact_mut(width).enumerate() {
            let whole = counts[model] + KAPPA;
            for (value, g) in row.iter_mut().zip(&domains[of(model) * width..]) {
                *value = (*value + KAPPA * g) / whole;
            }
        }
        Ok(())
    }

    /// G, [N, width].
    fn domain_means(&self, sums: &[f64], counts: &[f64]) -> Vec<f64> {
        let (width, all) = (self.width, counts.iter().sum::<f64>());
        let mut mean = vec![0.0; width];
        for row in sums.chunks_exact(width) {
            mean.iter_mut()
                .zip(row)
                .for_each(|(mean, sum)| *mean += sum);
        }
        mean.iter_mut().for_each(|mean| *mean /= all.max(1.0));
        let mut domains = Vec::with_capacity(self.domains.members.len() * width);
        for members in &self.domains.members {
            if self.how.prior == PriorMean::All {
                domains.extend(&mean);
                continue;
            }
            let mut sum: Vec<f64> = mean.iter().map(|mean| PSEUDO * mean).collect();
            let mut n = PSEUDO;
            for model in members.iter().map(|id| *id as usize) {
                n += counts[model];
                let row = &sums[model * width..][..width];
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            domains.extend(sum.into_iter().map(|sum| sum / n));
        }
        domains
    }

    /// c - mean card of d, [M, C].
    fn centred(&self, cards: &[f32]) -> Vec<f64> {
        let inputs = cards.len() / self.models.max(1);
        let mut all: Vec<f64> = cards.iter().map(|value| f64::from(*value)).collect();
        for members in &self.domains.members {
            for column in 0..inputs {
                let places = members.iter().map(|id| *id as usize * inputs + column);
                let sum: f64 = places.clone().map(|place| all[place]).sum();
                let mean = sum / members.len() as f64;
                places.for_each(|place| all[place] -= mean);
            }
        }
        all
    }

    /// L^-T V^T, [width, R]; `rows`: D; `factor`: L.
    fn directions(&self, rows: &[f64], factor: &[f64]) -> Result<Vec<f64>> {
        let (cpu, width, models) = (self.cpu, self.width, self.models);
        let rank = self.how.rank.min(width).min(models.saturating_sub(1));
        let mut v: Vec<f64> = (0..width * rank).map(sign).collect();
        let d = DenseView::rows(rows, width);
        for _ in 0..POWERS {
            let rank = v.len() / width;
            if rank == 0 {
                break;
            }
            solve_lower_transposed(cpu, factor, &mut v, width);
            let mut shares = vec![0.0; models * rank];
            dense::add_product(
                cpu,
                1.0,
                d,
                DenseView::rows(&v, rank),
                Region::All,
                &mut shares,
            );
            v.fill(0.0);
            let shares = DenseView::rows(&shares, rank);
            dense::add_product(cpu, 1.0, d.transposed(), shares, Region::All, &mut v);
            solve_lower(cpu, factor, &mut v, width);
            let q = orthonormal(cpu, transposed(&v, rank), width)?;
            v = transposed(&q, width);
        }
        if v.is_empty() {
            return Ok(v);
        }
        solve_lower_transposed(cpu, factor, &mut v, width);
        Ok(v)
    }
}

/// The mean of rows of `width`.
fn mean_row(rows: &[f64], width: usize) -> Vec<f64> {
    let count = (rows.len() / width.max(1)).max(1) as f64;
    let mut mean = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
    }
    mean.iter_mut().for_each(|mean| *mean /= count);
    mean
}

/// Rows of `columns` as columns.
fn transposed(values: &[f64], columns: usize) -> Vec<f64> {
    let mut all = Vec::with_capacity(values.len());
    for column in 0..columns {
        all.extend(values.iter().skip(column).step_by(columns));
    }
    all
}

/// 1 or -1: the highest bit of the `place`th output of splitmix64 (Steele et al., 2014), from 0.
fn sign(place: usize) -> f64 {
    let z = (place as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    if mix(z) >> 63 == 0 { 1.0 } else { -1.0 }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )]
    use super::*;
    use crate::encoder::seen::Seen;
    use crate::hub::Model;
    use crate::memory::Prompt;
    use crate::ops::reference::noise;

    const LAYERS: usize = 2;
    const HIDDEN: usize = 5;
    const WIDTH: usize = LAYERS * HIDDEN;
    /// Elements of a card's vector.
    const CARD: usize = 3;

    /// Models in their domains, prompts of some of them.
    struct Case {
        hub: Hub,
        prompts: Vec<(u32, Seen)>,
        cards: Vec<f32>,
    }

    /// The nearest steps to a vector whose layers of `hidden` are unit vectors.
    fn steps(values: &[f32], hidden: usize) -> Vec<i16> {
        let layers = values.chunks_exact(hidden).flat_map(|layer| {
            let length = layer.iter().map(|x| x * x).sum::<f32>().sqrt();
            layer.iter().map(move |x| x / length * STEPS as f32)
        });
        layers.map(|x| x.round_ties_even() as i16).collect()
    }

    fn seen(layers: Vec<i16>) -> Seen {
        Seen {
            layers,
            ..Seen::default()
        }
    }

    impl Case {
        /// `counts`: prompts of each model; `domains`: of each.
        fn new(counts: &[usize], domains: &[&str]) -> Self {
            let models = domains.iter().enumerate();
            let models = models.map(|(i, domain)| Model::new(&format!("m{i}"), domain));
            let mut prompts = Vec::new();
            for (model, count) in counts.iter().enumerate() {
                let own = noise(WIDTH, 100 + model as u64);
                for n in 0..*count {
                    let other = noise(WIDTH, (1000 * model + n) as u64);
                    let mixed: Vec<f32> = own.iter().zip(&other).map(|(a, b)| a + b).collect();
                    prompts.push((model as u32, seen(steps(&mixed, HIDDEN))));
                }
            }
            Self {
                hub: Hub::default().with(models).unwrap(),
                prompts,
                cards: noise(CARD * domains.len(), 7),
            }
        }

        fn memory(&self, cpu: &Cpu) -> Memory {
            let domains = Domains::new(&self.hub);
            let mut memory = Memory::new(vec![0, 1], HIDDEN, &self.hub).unwrap();
            let prompts = self.prompts.iter().enumerate();
            let prompts: Vec<Prompt<'_>> = prompts
                .map(|(i, (model, seen))| Prompt {
                    model: *model,
                    domain: domains.of[*model as usize],
                    digest: [i as u8; 16],
                    seen,
                })
                .collect();
            memory.add(cpu, &prompts).unwrap();
            memory
        }

        fn solved(&self, prior: PriorMean, rank: usize, threads: usize) -> Solved {
            let cpu = Cpu::open(Some(threads)).unwrap();
            let how = Solving { rank, prior };
            solve(&cpu, &self.memory(&cpu), &self.hub, &self.cards, how).unwrap()
        }

        /// Scores of all models for a prompt, served and by the module's formulas.
        fn scores(&self, prior: PriorMean, q: &[i16]) -> [Vec<f64>; 2] {
            let served = served(&self.solved(prior, usize::MAX, 1), q);
            [served, Reference::new(self, prior).scores(q)]
        }
    }

    /// What [`Solved`] scores with, as serving does.
    fn served(solved: &Solved, q: &[i16]) -> Vec<f64> {
        let units: Vec<f64> = q.iter().map(|q| f64::from(*q) / STEPS as f64).collect();
        let rows = solved
            .projection
            .chunks_exact(units.len())
            .zip(&solved.bias);
        let y: Vec<f64> = rows.map(|(row, bias)| dot(row, &units) + bias).collect();
        let keys = solved.keys.chunks_exact(solved.rank).zip(&solved.offsets);
        keys.map(|(key, offset)| dot(key, &y) + offset).collect()
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    type Matrix = Vec<Vec<f64>>;

    /// By Gauss and Jordan.
    fn inverse(a: &Matrix) -> Matrix {
        let n = a.len();
        let mut left = a.clone();
        let mut right: Matrix = (0..n)
            .map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect())
            .collect();
        for i in 0..n {
            let largest = (i..n).max_by(|a, b| left[*a][i].abs().total_cmp(&left[*b][i].abs()));
            let largest = largest.unwrap();
            left.swap(i, largest);
            right.swap(i, largest);
            let pivot = left[i][i];
            left[i].iter_mut().for_each(|x| *x /= pivot);
            right[i].iter_mut().for_each(|x| *x /= pivot);
            let own = (left[i].clone(), right[i].clone());
            for k in (0..n).filter(|k| *k != i) {
                let factor = left[k][i];
                for j in 0..n {
                    left[k][j] -= factor * own.0[j];
                    right[k][j] -= factor * own.1[j];
                }
            }
        }
        right
    }

    /// The module's formulas, step by step.
    struct Reference {
        /// mu
        means: Matrix,
        /// p
        priors: Matrix,
        /// S^-1
        inverse: Matrix,
    }

    impl Reference {
        fn new(case: &Case, prior: PriorMean) -> Self {
            let models = case.hub.len();
            let of: Vec<&str> = case.hub.iter().map(|(_, model)| &*model.domain).collect();
            let mut rows: Vec<Matrix> = vec![Vec::new(); models];
            for (model, seen) in &case.prompts {
                rows[*model as usize].push(unit(&seen.layers));
            }
            let mean_of = |rows: &[&Vec<f64>], more: &[f64], weight: f64| -> Vec<f64> {
                let count = rows.len() as f64 + weight;
                (0..WIDTH)
                    .map(|j| (rows.iter().map(|x| x[j]).sum::<f64>() + weight * more[j]) / count)
                    .collect()
            };
            let all: Vec<&Vec<f64>> = rows.iter().flatten().collect();
            let none = vec![0.0; WIDTH];
            let overall = mean_of(&all, &none, if all.is_empty() { 1.0 } else { 0.0 });
            // S
            let free = all.len() - rows.iter().filter(|rows| !rows.is_empty()).count();
            let mut s = vec![vec![0.0; WIDTH]; WIDTH];
            for rows in rows.iter().filter(|rows| !rows.is_empty()) {
                let mean = mean_of(&rows.iter().collect::<Vec<_>>(), &none, 0.0);
                for x in rows {
                    for i in 0..WIDTH {
                        for j in 0..WIDTH {
                            s[i][j] += (x[i] - mean[i]) * (x[j] - mean[j]) / free.max(1) as f64;
                        }
                    }
                }
            }
            let trace: f64 = (0..WIDTH).map(|i| s[i][i]).sum();
            let (share, sphere) = match free {
                0 => (0.0, ALONE / WIDTH as f64),
                _ => (1.0 - SHRINK, SHRINK * trace / WIDTH as f64),
            };
            for (i, row) in s.iter_mut().enumerate() {
                row.iter_mut().for_each(|x| *x *= share);
                row[i] += sphere;
            }
            // G_d of each model
            let domain = |model: usize| -> Vec<f64> {
                let own = (0..models).filter(|other| of[*other] == of[model]);
                let own: Vec<&Vec<f64>> = own.flat_map(|other| &rows[other]).collect();
                match prior {
                    PriorMean::All => overall.clone(),
                    _ => mean_of(&own, &overall, PSEUDO),
                }
            };
            let domains: Matrix = (0..models).map(domain).collect();
            // c - mean card of d
            let card = |model: usize| -> Vec<f64> {
                let of_model =
                    |m: usize| case.cards[m * CARD..][..CARD].iter().map(|x| f64::from(*x));
                let own: Vec<usize> = (0..models).filter(|m| of[*m] == of[model]).collect();
                let mean = |k: usize| {
                    own.iter()
                        .map(|m| of_model(*m).nth(k).unwrap())
                        .sum::<f64>()
                        / own.len() as f64
                };
                of_model(model)
                    .enumerate()
                    .map(|(k, x)| x - mean(k))
                    .collect()
            };
            let cards: Matrix = (0..models).map(card).collect();
            // R = (sum w c c^T + RIDGE I)^-1 (sum w c (s / n - G_d)^T)
            let mut normal = vec![vec![0.0; CARD]; CARD];
            let mut right = vec![vec![0.0; WIDTH]; CARD];
            for model in (0..models).filter(|model| !rows[*model].is_empty()) {
                let n = rows[model].len() as f64;
                let mean = mean_of(&rows[model].iter().collect::<Vec<_>>(), &none, 0.0);
                for i in 0..CARD {
                    let weighted = n / (n + 1.0) * cards[model][i];
                    (0..CARD).for_each(|j| normal[i][j] += weighted * cards[model][j]);
                    for j in 0..WIDTH {
                        right[i][j] += weighted * (mean[j] - domains[model][j]);
                    }
                }
            }
            (0..CARD).for_each(|i| normal[i][i] += RIDGE);
            let normal = inverse(&normal);
            let map: Matrix = normal
                .iter()
                .map(|row| {
                    let column = |j: usize| row.iter().zip(&right).map(|(a, b)| a * b[j]).sum();
                    (0..WIDTH).map(column).collect()
                })
                .collect();
            let moved = |model: usize, j: usize| -> f64 {
                match prior {
                    PriorMean::Card => (0..CARD).map(|k| cards[model][k] * map[k][j]).sum(),
                    _ => 0.0,
                }
            };
            let priors: Matrix = (0..models)
                .map(|m| (0..WIDTH).map(|j| domains[m][j] + moved(m, j)).collect())
                .collect();
            let means = (0..models)
                .map(|m| mean_of(&rows[m].iter().collect::<Vec<_>>(), &priors[m], KAPPA))
                .collect();
            Self {
                means,
                priors,
                inverse: inverse(&s),
            }
        }

        fn scores(&self, q: &[i16]) -> Vec<f64> {
            let x = unit(q);
            let score = |mean: &Vec<f64>| {
                let key: Vec<f64> = self.inverse.iter().map(|row| dot(row, mean)).collect();
                dot(&key, &x) - dot(&key, mean) / 2.0
            };
            self.means.iter().map(score).collect()
        }
    }

    /// x of q
    fn unit(q: &[i16]) -> Vec<f64> {
        let scale = STEPS as f64 * (LAYERS as f64).sqrt();
        q.iter().map(|q| f64::from(*q) / scale).collect()
    }

    /// Up to what is the same for all models; the largest difference.
    #[track_caller]
    fn apart([served, want]: &[Vec<f64>; 2]) -> f64 {
        assert_eq!(served.len(), want.len());
        let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len() as f64;
        let (a, b) = (mean(served), mean(want));
        let size = want.iter().map(|x| (x - b).abs()).fold(1e-300, f64::max);
        let pairs = served.iter().zip(want);
        pairs
            .map(|(x, y)| ((x - a) - (y - b)).abs() / size)
            .fold(0.0, f64::max)
    }

    fn usual() -> Case {
        Case::new(&[4, 3, 0, 5, 1, 0], &["a", "b", "a", "a", "b", "c"])
    }

    #[test]
    fn the_formulas_are_those_of_a_naive_reference() {
        let case = usual();
        for prior in [PriorMean::Card, PriorMean::Domain, PriorMean::All] {
            for seed in 0..5 {
                let q = steps(&noise(WIDTH, 50 + seed), HIDDEN);
                let both = case.scores(prior, &q);
                assert!(apart(&both) < 1e-9, "{prior:?}: {both:?}");
                // It would be seen.
                let [_, other] = Case::new(&[4, 3, 0, 5, 2, 0], &["a", "b", "a", "a", "b", "c"])
                    .scores(prior, &q);
                assert!(apart(&[both[0].clone(), other]) > 1e-3, "cannot fail");
            }
        }
    }

    #[test]
    fn a_prompt_is_that_of_its_model() {
        let case = usual();
        let solved = case.solved(PriorMean::Card, usize::MAX, 1);
        let found = case.prompts.iter().filter(|(model, seen)| {
            let scores = served(&solved, &seen.layers);
            let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            best == Some(*model as usize)
        });
        let found = found.count();
        assert!(
            found >= case.prompts.len() - 2,
            "{found} of {}",
            case.prompts.len()
        );
    }

    #[test]
    fn threads_change_no_bit() {
        let case = usual();
        for rank in [2, usize::MAX] {
            let [one, three] = [1, 3].map(|threads| case.solved(PriorMean::Card, rank, threads));
            assert_eq!(one, three);
            // All means are mixtures of the four models' that have prompts.
            assert_eq!(one.rank, rank.min(3));
        }
        assert_ne!(
            case.solved(PriorMean::Card, 2, 1),
            case.solved(PriorMean::Domain, 2, 1)
        );
    }

    /// Fewer directions than models: the largest differences are kept.
    #[test]
    fn the_rank_bounds_what_is_kept() {
        let case = usual();
        let q = steps(&noise(WIDTH, 50), HIDDEN);
        let off = |rank: usize| {
            let solved = case.solved(PriorMean::Card, rank, 1);
            assert_eq!(solved.keys.len(), case.hub.len() * solved.rank);
            apart(&[
                served(&solved, &q),
                Reference::new(&case, PriorMean::Card).scores(&q),
            ])
        };
        assert!(off(1) > 1e-3 && off(2) > 1e-6, "{} {}", off(1), off(2));
        assert!(off(3) < 1e-9, "{}", off(3));
    }

    #[test]
    fn a_model_without_prompts_has_its_prior_mean() {
        for prior in [PriorMean::Card, PriorMean::Domain, PriorMean::All] {
            let case = usual();
            let reference = Reference::new(&case, prior);
            for (model, count) in [4, 3, 0, 5, 1, 0].into_iter().enumerate() {
                let apart: f64 = reference.means[model]
                    .iter()
                    .zip(&reference.priors[model])
                    .map(|(a, b)| (a - b).abs())
                    .sum();
                assert_eq!(apart < 1e-12, count == 0, "{model}");
            }
            // Its key is where p is.
            let solved = case.solved(prior, usize::MAX, 1);
            let unit = 1.0 / (LAYERS as f64).sqrt();
            let key = |model: usize| -> Vec<f64> {
                let x: Vec<f64> = reference.priors[model].iter().map(|x| x / unit).collect();
                let rows = solved.projection.chunks_exact(WIDTH).zip(&solved.bias);
                rows.map(|(row, bias)| dot(row, &x) + bias).collect()
            };
            for model in [2, 5] {
                let own = &solved.keys[model * solved.rank..][..solved.rank];
                for (a, b) in own.iter().zip(key(model)) {
                    assert!((a - b).abs() < 1e-9, "{prior:?} {model}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn hubs_in_which_nothing_is_to_tell_apart_are_solved() {
        let finite = |solved: &Solved| {
            [
                &solved.projection,
                &solved.bias,
                &solved.keys,
                &solved.offsets,
            ]
            .into_iter()
            .flatten()
            .all(|value| value.is_finite())
        };
        let q = steps(&noise(WIDTH, 50), HIDDEN);
        for (counts, domains) in [
            // One model, with prompts and without; none with two prompts; none at all.
            (&[3][..], &["a"][..]),
            (&[0], &["a"]),
            (&[1, 1, 1], &["a", "a", "b"]),
            (&[0, 0, 0], &["a", "a", "b"]),
        ] {
            let case = Case::new(counts, domains);
            for prior in [PriorMean::Card, PriorMean::Domain, PriorMean::All] {
                let solved = case.solved(prior, 384, 2);
                assert!(finite(&solved), "{counts:?} {prior:?}: {solved:?}");
                let both = [served(&solved, &q), Reference::new(&case, prior).scores(&q)];
                let [served, want] = &both;
                let spread = want
                    .iter()
                    .fold(0.0, |most: f64, x| most.max((x - want[0]).abs()));
                match spread > 1e-9 {
                    true => assert!(apart(&both) < 1e-9, "{counts:?} {prior:?}: {both:?}"),
                    false => assert!(
                        served.iter().all(|x| (x - served[0]).abs() < 1e-9),
                        "{counts:?} {prior:?}: {both:?}"
                    ),
                }
            }
        }
        // All with the same prompts and the same card.
        let mut case = Case::new(&[2, 2, 2], &["a", "a", "a"]);
        for place in 2..6 {
            case.prompts[place].1 = case.prompts[place % 2].1.clone();
        }
        case.cards = case.cards[..CARD].repeat(3);
        let solved = case.solved(PriorMean::Card, 384, 1);
        assert!(finite(&solved));
        let scores = served(&solved, &q);
        assert!(
            scores.iter().all(|x| (x - scores[0]).abs() < 1e-6),
            "{scores:?}"
        );
    }

    /// What moved with an encoder is rounded, in few prompts of a wide encoder more than they lie
    /// apart.
    #[test]
    fn a_moved_memory_of_few_prompts_is_solved() {
        let (layers, hidden, models) = (4, 64, 9);
        let width = layers * hidden;
        let cpu = Cpu::open(Some(2)).unwrap();
        let all = (0..models).map(|i| Model::new(&format!("m{i}"), "a"));
        let hub = Hub::default().with(all).unwrap();
        let cards = noise(CARD * models, 7);
        // Prompts of a model are nearly the same.
        let prompts: Vec<Seen> = (0..2 * models)
            .map(|i| {
                let mut own = noise(width, i as u64 / 2);
                let other = noise(width, 100 + i as u64);
                own.iter_mut().zip(&other).for_each(|(a, b)| *a += 0.1 * b);
                seen(steps(&own, hidden))
            })
            .collect();
        let prompts = prompts.iter().enumerate().map(|(i, seen)| Prompt {
            model: i as u32 / 2,
            domain: 0,
            digest: [i as u8; 16],
            seen,
        });
        let mut memory = Memory::new((0..layers).collect(), hidden, &hub).unwrap();
        memory.add(&cpu, &prompts.collect::<Vec<_>>()).unwrap();
        let how = Solving {
            rank: 384,
            prior: PriorMean::Card,
        };
        let before = solve(&cpu, &memory, &hub, &cards, how).unwrap();
        for round in 0..3 {
            let mut map: Vec<f64> = noise(width * width, 20 + round)
                .iter()
                .map(|x| f64::from(*x) * 0.02)
                .collect();
            (0..width).for_each(|i| map[i * width + i] += 1.0);
            cpu.run(|| memory.transform(&cpu, &map)).unwrap();
            let after = solve(&cpu, &memory, &hub, &cards, how).unwrap();
            assert_eq!(after.rank, before.rank);
            assert!(after.keys.iter().all(|key| key.is_finite()));
        }
    }
}
