//! Strengths of a hybrid, fitted on held-out prompts: the most likely ones, drawn to w0, which are the
//! defaults, or the parent's where fewer prompts are at hand than those were fitted on (and then as
//! many times as strongly as all these prompts are more than those at hand).
//!
//! A hybrid score (`hub::hybrid`) makes the probability of a model that of its domain, times its own
//! among the domain's models:
//!
//! ```text
//! -ln P(m) = -beta L_d + ln sum over d' of exp(beta L_d')  +  L_d - s_m,     beta = 1 + prior
//! L_d = ln sum over d's models of exp(s)
//! ```
//!
//! The sum of that over the prompts' models, each counted exp(b_m) times so that experiences count the
//! same, plus `(ln w - ln w0)^2 / (2 SPREAD^2)` for each of the five strengths w and for beta, is made
//! least by Fisher scoring in the logarithms. There are six numbers to find, so a few dozen prompts do;
//! the second term keeps what they do not tell.

use crate::device::cpu::gemm::{self, Finish, Matrix, Packed};
use crate::device::cpu::{Cpu, RowsMut};
use crate::error::{Result, bail};
use crate::generation::Calibration;
use crate::hub::Strengths;
use crate::hub::hybrid::Memory;
use crate::weights::View;

/// Standard deviation of the logarithm of a strength around its default.
const SPREAD: f64 = 0.25;

/// How strongly strengths are drawn to the defaults.
const PULL: f64 = 1.0 / (SPREAD * SPREAD);

/// Steps at most; it takes about eight.
const MOST_STEPS: usize = 40;

/// Scores of all prompts that are looked at, at most: prompts are left out of very large hubs.
const MOST_SCORES: usize = 1 << 24;

/// Strengths of what a score is the sum of; beta is one more number.
const PARTS: usize = 5;

/// Logarithms of the strengths and of beta.
type Logs = [f64; PARTS + 1];

/// A prompt of which the model is known.
pub(crate) struct Known {
    /// Its unit vector by the learned router, [D].
    pub(crate) u: Vec<f32>,
    /// Its unit vector by the frozen encoder, [H].
    pub(crate) x: Vec<f32>,
    pub(crate) gold: u32,
}

/// What prompts are compared with.
pub(crate) struct Hub<'h> {
    /// E [M, D], unit rows.
    pub(crate) rows: &'h [f32],
    pub(crate) tau: f32,
    pub(crate) memory: &'h Memory,
    /// Models that may be named, [M].
    pub(crate) eligible: &'h [bool],
}

/// Of so many prompts every how many are looked at, in a hub of so many models.
pub(crate) fn stride(prompts: usize, models: usize) -> usize {
    let most = (MOST_SCORES / models.max(1)).max(1);
    prompts.div_ceil(most).max(1)
}

/// The strengths for `known`; without prompts those of `parent`, or the defaults.
///
/// Errors: a vector is not finite.
pub(crate) fn fit(
    cpu: &Cpu,
    hub: &Hub<'_>,
    known: &[Known],
    parent: Option<&Calibration>,
) -> Result<Calibration> {
    let known: Vec<&Known> = known
        .iter()
        .filter(|known| hub.eligible.get(known.gold as usize) == Some(&true))
        .collect();
    // What it was fitted on was not kept.
    let parent = parent.filter(|parent| parent.rows > known.len());
    if known.is_empty() {
        let defaults = || Calibration::new(Strengths::default(), 0, None);
        return Ok(parent.cloned().unwrap_or_else(defaults));
    }
    let start = logs(parent.map_or_else(Strengths::default, |parent| parent.strengths));
    let rows = parent.map_or(0, |parent| parent.rows);
    let rows = known.len().saturating_add(rows);
    let pull = PULL * (rows as f64 / known.len() as f64);
    let problem = Problem::new(cpu, hub, &known, start, pull)?;
    let (mut best, mut at) = (start, problem.at(&start));
    let before = at.likelihood;
    if !before.is_finite() {
        bail!(
            Numeric,
            "held-out prompts: expected finite vectors, found a loss of {before}"
        );
    }
    for _ in 0..MOST_STEPS {
        let step = solve(at.curvature, at.gradient);
        let tries = (0..20).map(|halvings| {
            let length = 0.5f64.powi(halvings);
            std::array::from_fn(|k| best[k] - length * step[k])
        });
        let found = tries
            .map(|logs: Logs| (logs, problem.at(&logs)))
            .find(|(_, there)| there.loss < at.loss);
        let Some((logs, there)) = found else { break };
        let gained = at.loss - there.loss;
        (best, at) = (logs, there);
        if gained < 1e-9 * at.loss.abs() {
            break;
        }
    }
    let weights: f64 = (0..known.len()).map(|prompt| problem.weight(prompt)).sum();
    let losses = (before / weights, at.likelihood / weights);
    Ok(Calibration::new(strengths(&best), rows, Some(losses)))
}

/// Where there is none, that of the default.
fn logs(strengths: Strengths) -> Logs {
    let factors = |s: Strengths| {
        let beta = 1.0 + s.prior;
        [s.learned, s.card, s.exemplar, s.domain, s.balance, beta]
    };
    let own = factors(strengths);
    let defaults = factors(Strengths::default());
    std::array::from_fn(|k| {
        if own[k] > 0.0 {
            own[k].ln()
        } else {
            defaults[k].ln()
        }
    })
}

fn strengths(logs: &Logs) -> Strengths {
    let [learned, card, exemplar, domain, balance, beta] = logs.map(f64::exp);
    Strengths {
        learned,
        card,
        exemplar,
        domain,
        balance,
        prior: beta - 1.0,
    }
}

struct Problem<'p> {
    hub: &'p Hub<'p>,
    /// Logarithms of w0.
    center: Logs,
    /// How strongly strengths are drawn to them.
    pull: f64,
    golds: Vec<u32>,
    /// Of each prompt: for each model the learned score and the cosines with its cards, its prompts and
    /// its domain. [n, M] each; the last [n, N].
    products: [Vec<f32>; 4],
    domains: usize,
}

/// The objective at a point.
struct At {
    /// -ln P, over all prompts, each with its weight.
    likelihood: f64,
    /// The same with the second term.
    loss: f64,
    gradient: Logs,
    curvature: [Logs; PARTS + 1],
}

impl<'p> Problem<'p> {
    fn new(cpu: &Cpu, hub: &'p Hub<'p>, known: &[&Known], center: Logs, pull: f64) -> Result<Self> {
        let memory = hub.memory;
        let us: Vec<f32> = known.iter().flat_map(|k| k.u.iter().copied()).collect();
        let xs: Vec<f32> = known.iter().flat_map(|k| k.x.iter().copied()).collect();
        let products = |queries: &[f32], rows: &[f32], scale: f32| -> Result<Vec<f32>> {
            let width = queries.len() / known.len();
            let count = rows.len() / width.max(1);
            let mut all = vec![0.0; known.len() * count];
            cpu.run(|| -> Result<()> {
                let keys = Packed::new(cpu, &[("rows", View::of_f32(rows, width))])?;
                let y = RowsMut::whole(&mut all, count);
                gemm::multiply(
                    cpu,
                    Matrix::of_rows(queries, width),
                    &keys,
                    Finish::Set(scale),
                    y,
                );
                Ok(())
            })?;
            Ok(all)
        };
        Ok(Self {
            hub,
            center,
            pull,
            golds: known.iter().map(|known| known.gold).collect(),
            products: [
                products(&us, hub.rows, 1.0 / hub.tau)?,
                products(&xs, &memory.cards, 1.0)?,
                products(&xs, &memory.exemplars, 1.0)?,
                products(&xs, &memory.domains, 1.0)?,
            ],
            domains: memory.domains.len() / memory.width.max(1),
        })
    }

    fn at(&self, logs: &Logs) -> At {
        let [w @ .., beta] = logs.map(f64::exp);
        let mut at = At {
            likelihood: 0.0,
            loss: 0.0,
            gradient: [0.0; PARTS + 1],
            curvature: [[0.0; PARTS + 1]; PARTS + 1],
        };
        for prompt in 0..self.golds.len() {
            self.add(prompt, w, beta, &mut at);
        }
        at.loss = at.likelihood;
        // From the strengths to their logarithms, and the pull.
        let scale = logs.map(f64::exp);
        for i in 0..=PARTS {
            let away = logs[i] - self.center[i];
            at.loss += self.pull * away * away / 2.0;
            at.gradient[i] = at.gradient[i] * scale[i] + self.pull * away;
            for (j, value) in at.curvature[i].iter_mut().enumerate() {
                *value *= scale[i] * scale[j];
            }
            at.curvature[i][i] += self.pull;
        }
        at
    }

    /// How often a prompt is counted.
    fn weight(&self, prompt: usize) -> f64 {
        let gold = self.golds[prompt] as usize;
        f64::from(self.hub.memory.balance[gold]).exp()
    }

    /// Adds one prompt's part of the likelihood, with its derivatives by the strengths and beta.
    #[expect(clippy::needless_range_loop, reason = "indices of matrices")]
    fn add(&self, prompt: usize, w: [f64; PARTS], beta: f64, at: &mut At) {
        let Memory { of, balance, .. } = self.hub.memory;
        let models = of.len();
        let weight = self.weight(prompt);
        let rows = self.products.each_ref().map(|part| {
            let width = part.len() / self.golds.len();
            &part[prompt * width..][..width]
        });
        let part = |m: usize| {
            let own = of[m] as usize;
            [rows[0][m], rows[1][m], rows[2][m], rows[3][own], balance[m]].map(f64::from)
        };
        let score = |a: [f64; PARTS]| (0..PARTS).map(|k| w[k] * a[k]).sum::<f64>();
        let eligible = || (0..models).filter(|m| self.hub.eligible[*m]);
        let mut domains = vec![Domain::default(); self.domains];
        for m in eligible() {
            let domain = &mut domains[of[m] as usize];
            domain.peak = domain.peak.max(score(part(m)));
        }
        for m in eligible() {
            domains[of[m] as usize].add(part(m), score(part(m)));
        }
        let domains: Vec<Domain> = domains.into_iter().map(Domain::finished).collect();
        let gold = self.golds[prompt] as usize;
        let own = &domains[of[gold] as usize];

        let peak = domains
            .iter()
            .map(|d| beta * d.level)
            .fold(f64::MIN, f64::max);
        let total: f64 = domains.iter().map(|d| (beta * d.level - peak).exp()).sum();
        let loss = peak + total.ln() - beta * own.level + own.level - score(part(gold));
        at.likelihood += weight * loss;

        // Derivatives of beta L_d by the strengths and beta.
        let slope = |d: &Domain| -> Logs {
            let mut slope = [d.level; PARTS + 1];
            for (slope, mean) in slope.iter_mut().zip(d.mean) {
                *slope = beta * mean;
            }
            slope
        };
        let mut mean = [0.0; PARTS + 1];
        let mut square = [[0.0; PARTS + 1]; PARTS + 1];
        for d in domains.iter().filter(|d| d.level.is_finite()) {
            let share = (beta * d.level - peak).exp() / total;
            outer(&slope(d), share, &mut mean, &mut square);
        }
        let (own_slope, a) = (slope(own), part(gold));
        for i in 0..=PARTS {
            at.gradient[i] += weight * (mean[i] - own_slope[i]);
            for j in 0..=PARTS {
                at.curvature[i][j] += weight * (square[i][j] - mean[i] * mean[j]);
            }
        }
        for i in 0..PARTS {
            at.gradient[i] += weight * (own.mean[i] - a[i]);
            for j in 0..PARTS {
                at.curvature[i][j] += weight * (own.square[i][j] - own.mean[i] * own.mean[j]);
            }
        }
    }
}

/// Sums over the models of one domain.
#[derive(Clone)]
struct Domain {
    peak: f64,
    sum: f64,
    /// L
    level: f64,
    mean: [f64; PARTS],
    square: [[f64; PARTS]; PARTS],
}

impl Default for Domain {
    fn default() -> Self {
        Self {
            peak: f64::NEG_INFINITY,
            sum: 0.0,
            level: f64::NEG_INFINITY,
            mean: [0.0; PARTS],
            square: [[0.0; PARTS]; PARTS],
        }
    }
}

impl Domain {
    fn add(&mut self, a: [f64; PARTS], score: f64) {
        let weight = (score - self.peak).exp();
        self.sum += weight;
        outer(&a, weight, &mut self.mean, &mut self.square);
    }

    fn finished(mut self) -> Self {
        if self.sum > 0.0 {
            self.level = self.peak + self.sum.ln();
            self.mean = self.mean.map(|mean| mean / self.sum);
            self.square = self.square.map(|row| row.map(|value| value / self.sum));
        }
        self
    }
}

/// Adds `weight a` to `mean` and `weight a a^T` to `square`.
fn outer<const N: usize>(
    a: &[f64; N],
    weight: f64,
    mean: &mut [f64; N],
    square: &mut [[f64; N]; N],
) {
    for i in 0..N {
        mean[i] += weight * a[i];
        for j in 0..N {
            square[i][j] += weight * a[i] * a[j];
        }
    }
}

/// x with `a` x = `b`, by elimination; `a` is symmetric and positive definite.
#[expect(clippy::needless_range_loop, reason = "indices of matrices")]
fn solve(mut a: [Logs; PARTS + 1], mut b: Logs) -> Logs {
    for pivot in 0..=PARTS {
        for row in pivot + 1..=PARTS {
            let factor = a[row][pivot] / a[pivot][pivot];
            for column in pivot..=PARTS {
                a[row][column] -= factor * a[pivot][column];
            }
            b[row] -= factor * b[pivot];
        }
    }
    for row in (0..=PARTS).rev() {
        let known: f64 = (row + 1..=PARTS)
            .map(|column| a[row][column] * b[column])
            .sum();
        b[row] = (b[row] - known) / a[row][row];
    }
    b
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::device::small;
    use crate::ops::normalize::unit;
    use crate::ops::testing::noise;

    const WIDTH: usize = 6;
    const MODELS: usize = 9;

    fn units(rows: usize, seed: u64) -> Vec<f32> {
        let mut rows = noise(rows * WIDTH, seed);
        rows.chunks_exact_mut(WIDTH).for_each(unit);
        rows
    }

    fn memory() -> Memory {
        Memory {
            width: WIDTH,
            cards: units(MODELS, 1),
            exemplars: units(MODELS, 2),
            domains: units(3, 3),
            balance: noise(MODELS, 7),
            of: vec![0, 0, 0, 1, 1, 1, 1, 2, 2],
        }
    }

    fn hub<'h>(rows: &'h [f32], memory: &'h Memory, eligible: &'h [bool]) -> Hub<'h> {
        Hub {
            rows,
            tau: 0.5,
            memory,
            eligible,
        }
    }

    fn cpu() -> Cpu {
        Cpu::open(Some(1)).unwrap()
    }

    fn known(count: usize) -> Vec<Known> {
        let rows = (units(count, 5), units(count, 6));
        let vector = |rows: &[f32], i: usize| rows[i * WIDTH..][..WIDTH].to_vec();
        (0..count)
            .map(|i| Known {
                u: vector(&rows.0, i),
                x: vector(&rows.1, i),
                gold: [0, 4, 8, 3][i % 4],
            })
            .collect()
    }

    /// The gradient is that of the loss, a retired model counts nowhere.
    #[test]
    fn derivatives_match_finite_differences() {
        let (memory, rows, cpu) = (memory(), units(MODELS, 4), cpu());
        let mut eligible = [true; MODELS];
        eligible[1] = false;
        let hub = hub(&rows, &memory, &eligible);
        let known = known(7);
        let known: Vec<&Known> = known.iter().collect();
        let center = logs(Strengths::default());
        let problem = Problem::new(&cpu, &hub, &known, center, PULL).unwrap();
        let point: Logs = [0.1, -0.3, 0.7, 0.2, -0.2, 0.4];
        let at = problem.at(&point);
        for k in 0..=PARTS {
            let moved = |by: f64| {
                let mut point = point;
                point[k] += by;
                problem.at(&point).loss
            };
            let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((at.gradient[k] - want).abs() < 1e-6, "{k}: {want}");
        }
        // Independently: the probabilities of all models of the first prompt add up to one.
        let total: f64 = (0..small(MODELS))
            .filter(|m| *m != 1)
            .map(|gold| {
                let one = Known {
                    u: known[0].u.clone(),
                    x: known[0].x.clone(),
                    gold,
                };
                let problem = Problem::new(&cpu, &hub, &[&one], center, PULL).unwrap();
                (-problem.at(&point).likelihood / problem.weight(0)).exp()
            })
            .sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
    }

    /// A prompt of weight 2 counts as two: the same balance of all models changes no probability.
    #[test]
    fn prompts_count_by_the_balance_of_their_models() {
        let (rows, cpu) = (units(MODELS, 4), cpu());
        let known = known(5);
        let known: Vec<&Known> = known.iter().collect();
        let point: Logs = [0.1, -0.3, 0.7, 0.2, -0.2, 0.4];
        let [one, two] = [0.0f32, 2.0f32.ln()].map(|balance| {
            let memory = Memory {
                balance: vec![balance; MODELS],
                ..memory()
            };
            let hub = hub(&rows, &memory, &[true; MODELS]);
            let center = logs(Strengths::default());
            let problem = Problem::new(&cpu, &hub, &known, center, PULL);
            problem.unwrap().at(&point)
        });
        assert!((two.likelihood / one.likelihood - 2.0).abs() < 1e-6);
        let pull = |k: usize| PULL * (point[k] - logs(Strengths::default())[k]);
        for k in 0..PARTS - 1 {
            let [one, two] = [&one, &two].map(|at| at.gradient[k] - pull(k));
            assert!((two / one - 2.0).abs() < 1e-5, "{k}: {one} {two}");
        }
    }

    /// Prompts that the learned score tells apart and memory does not make it count for more, and the
    /// other way round.
    #[test]
    fn the_part_that_knows_counts_for_more() {
        let (memory, rows, cpu) = (memory(), units(MODELS, 4), cpu());
        let hub = hub(&rows, &memory, &[true; MODELS]);
        let fitted = |source: &dyn Fn(u32, &mut Known)| {
            let mut known = known(200);
            for (i, known) in known.iter_mut().enumerate() {
                known.gold = small(i % MODELS);
                source(known.gold, known);
            }
            fit(&cpu, &hub, &known, None).unwrap()
        };
        let row = |rows: &[f32], m: u32| rows[m as usize * WIDTH..][..WIDTH].to_vec();
        let learned = fitted(&|gold, known| known.u = row(&rows, gold));
        let exemplar = fitted(&|gold, known| known.x = row(&memory.exemplars, gold));
        assert!(learned.strengths.learned > 1.3 * exemplar.strengths.learned);
        assert!(exemplar.strengths.exemplar > 1.3 * learned.strengths.exemplar);
        for calibration in [learned, exemplar] {
            assert_eq!(calibration.rows, 200);
            assert!(calibration.loss_after < calibration.loss_before);
        }
    }

    /// A few prompts do not undo what many told that were not kept; as many do.
    #[test]
    fn few_prompts_are_drawn_to_what_many_told() {
        let (memory, rows) = (memory(), units(MODELS, 4));
        let hub = hub(&rows, &memory, &[true; MODELS]);
        let fitted = Strengths {
            exemplar: 2.5,
            balance: 0.0,
            ..Strengths::default()
        };
        let with = |rows: usize| {
            let parent = Calibration::new(fitted, rows, None);
            fit(&cpu(), &hub, &known(2), Some(&parent)).unwrap()
        };
        let few = with(800);
        assert_eq!(few.rows, 802);
        assert_eq!(with(usize::MAX).rows, usize::MAX);
        assert!((few.strengths.exemplar / 2.5).ln().abs() < 0.01, "{few:?}");
        // It had none of this yet.
        assert!(few.strengths.balance > 0.5, "{few:?}");
        let alone = fit(&cpu(), &hub, &known(2), None).unwrap();
        assert!(alone.strengths.exemplar > 3.0, "{alone:?}");
        assert_eq!(with(2), alone);
    }

    #[test]
    fn without_prompts_the_defaults_or_the_parents_stay() {
        let (memory, rows) = (memory(), units(MODELS, 4));
        let hub = hub(&rows, &memory, &[false; MODELS]);
        for known in [Vec::new(), known(3)] {
            let calibration = fit(&cpu(), &hub, &known, None).unwrap();
            assert_eq!(calibration.strengths, Strengths::default());
            assert_eq!(calibration.rows, 0);
            let fitted = Strengths {
                exemplar: 2.5,
                ..Strengths::default()
            };
            let parent = Calibration::new(fitted, 800, None);
            assert_eq!(fit(&cpu(), &hub, &known, Some(&parent)).unwrap(), parent);
        }
    }
}
