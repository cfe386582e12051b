//! From sums to what is served: a Gaussian for each model, with one covariance for all.
//!
//! With x = q / STEPS / sqrt(L) a prompt's vector, of length 1, n and s a model's count and sum of x, c
//! its card vector and d its domain:
//!
//! ```text
//! S    = (1 - A) S_within + A tr(S_within) / width I
//! G_d  = mean of the domain's prompts and PSEUDO more of the mean of all
//! R    = ridge regression of s / n - G_d on c - mean card of d, weights n / (n + 1), RIDGE
//! p    = G_d + R (c - mean card of d)             what it is asked before any prompt came
//! mu   = (s + KAPPA p) / (n + KAPPA)
//! score(x) = mu^T S^-1 x - mu^T S^-1 mu / 2       up to what is the same for all models
//! ```
//!
//! That is linear discriminant analysis with an empirical Bayes prior of each class's mean. S_within is
//! over prompts about their own model's mean. With L L^T = S and D the rows mu - mean of mu, scores are
//! those between D L^-T and (x - mean of mu) L^-T; both are projected on the R orthonormal rows
//! V that [`POWERS`] steps of subspace iteration find for the largest variance of D L^-T (Halko,
//! Martinsson and Tropp, "Finding structure with randomness", 2011), from rows of fixed signs. So
//! P = V L^-1, and a model's key is P (mu - mean of mu).

use serde::{Deserialize, Serialize};

use super::Memory;
use crate::device::cpu::Cpu;
use crate::device::cpu::dense::{
    self, Part, View, cholesky, orthonormal, solve_lower, solve_lower_transposed,
};
use crate::error::Result;
use crate::generation::seen::STEPS;
use crate::hub::{Domains, Hub};

/// How much the covariance is drawn to a sphere: A.
const SHRINK: f64 = 0.7;

/// Prompts of the mean of all that each domain begins with.
const PSEUDO: f64 = 2.0;

/// Of the regression on cards.
const RIDGE: f64 = 0.5;

/// Prompts that a model's prior mean counts for.
const KAPPA: f64 = 6.0;

/// Steps of subspace iteration.
const POWERS: usize = 3;

/// How often the sphere is widened, fourfold each time, until the covariance is positive definite.
const WIDENED: usize = 12;

/// Of the covariance when no model has two prompts: prompts of a model lie this far apart.
const ALONE: f64 = 0.5;

/// What a model's mean in the memory is drawn to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PriorMean {
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

/// What is served of a memory.
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
        let columns = View::rows(&whitened, rank);
        let mut keys = vec![0.0; models * rank];
        dense::add_product(
            cpu,
            1.0,
            View::rows(&rows, width),
            columns,
            Part::All,
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
    /// Where sums and squares are not of the same vectors any more, by roundings, what is left within
    /// models may be less than nothing in some direction: S is drawn to the sphere until it is not.
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

    /// The lower triangle of S without the sphere, [width, width], and what that adds to its diagonal.
    fn covariance(&self, sums: &[f64]) -> (Vec<f64>, f64) {
        let (width, square) = (self.width, self.scale().powi(2));
        let mut s = vec![0.0; width * width];
        let mut squares = self.memory.squares.iter();
        for (i, row) in s.chunks_exact_mut(width).enumerate() {
            for (value, sum) in row[..=i].iter_mut().zip(&mut squares) {
                *value = *sum as f64 * square;
            }
        }
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
        let scaled = View::rows(&scaled, width);
        dense::add_product(
            self.cpu,
            -1.0,
            scaled.transposed(),
            scaled,
            Part::Lower,
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
        // Squares that were rounded are off by about so much in every direction.
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
        let (a, b) = (View::rows(&a, inputs), View::rows(&b, width));
        let mut normal = vec![0.0; inputs * inputs];
        dense::add_product(cpu, 1.0, a.transposed(), a, Part::Lower, &mut normal);
        (0..inputs).for_each(|i| normal[i * inputs + i] += RIDGE);
        let mut map = vec![0.0; inputs * width];
        dense::add_product(cpu, 1.0, a.transposed(), b, Part::All, &mut map);
        cholesky(cpu, &mut normal, inputs)?;
        solve_lower(cpu, &normal, &mut map, inputs);
        solve_lower_transposed(cpu, &normal, &mut map, inputs);
        // s + KAPPA p, over n + KAPPA
        let (centred, map) = (View::rows(&centred, inputs), View::rows(&map, width));
        dense::add_product(cpu, KAPPA, centred, map, Part::All, rows);
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
        let d = View::rows(rows, width);
        for _ in 0..POWERS {
            let rank = v.len() / width;
            if rank == 0 {
                break;
            }
            solve_lower_transposed(cpu, factor, &mut v, width);
            let mut shares = vec![0.0; models * rank];
            dense::add_product(cpu, 1.0, d, View::rows(&v, rank), Part::All, &mut shares);
            v.fill(0.0);
            let shares = View::rows(&shares, rank);
            dense::add_product(cpu, 1.0, d.transposed(), shares, Part::All, &mut v);
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
    let mut z = (place as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    if (z ^ (z >> 31)) >> 63 == 0 {
        1.0
    } else {
        -1.0
    }
}
