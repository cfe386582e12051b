//! The cost of a method: counts, measurements, and an estimate of its arithmetic from token counts
//! and shapes (carve.md section 15).

use super::figures::{Figure, FigureKind, Labels, lettered, points};
use super::{CsvText, fields, plain};
use crate::cmrbench::grid::StepNote;
use crate::cmrbench::methods::Frozen;
use crate::cmrbench::{
    AccuracyMatrix, BenchExperience, BenchPlan, MethodOutcome, Metric, Results, SeedOutcome,
    mean_and_deviation,
};
use crate::encoder::Encoder;
use crate::encoder::seen::usual_layers;
use crate::error::Result;
use crate::learn::{CandidateMode, EwcScope, Regulariser, ReplayStrategy, Settings, Train};
use crate::options::Options;

/// The encoder's shape and the prompts' lengths.
pub(super) struct Workload {
    shape: EncoderShape,
    /// Lengths of each experience's training rows.
    train: Vec<Lengths>,
    /// Lengths of all eval rows.
    eval: Lengths,
    /// Models after each step.
    models: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
struct EncoderShape {
    layers: f64,
    /// H
    hidden: f64,
    /// F
    feed_forward: f64,
}

/// Sums over rows.
#[derive(Clone, Copy, Debug, Default)]
struct Lengths {
    rows: f64,
    tokens: f64,
    /// Sum of squared token counts, for attention.
    squares: f64,
}

impl Lengths {
    fn add(&mut self, other: Self, weight: f64) {
        self.rows += weight * other.rows;
        self.tokens += weight * other.tokens;
        self.squares += weight * other.squares;
    }

    /// Mean tokens and mean squared tokens of a row.
    fn mean(self) -> (f64, f64) {
        let rows = self.rows.max(1.0);
        (self.tokens / rows, self.squares / rows)
    }
}

impl EncoderShape {
    /// Frozen linear maps, forward, over `n` tokens.
    fn linear(self, n: f64) -> f64 {
        let (h, f) = (self.hidden, self.feed_forward);
        self.layers * 2.0 * n * (4.0 * h * h + 2.0 * h * f)
    }

    /// Attention, forward, where `squares` is n^2.
    fn attention(self, squares: f64) -> f64 {
        self.layers * 4.0 * squares * self.hidden
    }

    /// Forward, adapters folded.
    fn forward(self, (n, squares): (f64, f64)) -> f64 {
        self.linear(n) + self.attention(squares)
    }

    /// Forward and backward, with adapters of so many parameters.
    fn training(self, (n, squares): (f64, f64), adapters: f64) -> f64 {
        2.0 * self.linear(n) + 3.0 * self.attention(squares) + 3.0 * 2.0 * n * adapters
    }
}

/// Whether `step` trains anything.
fn trains(settings: &Settings, step: usize) -> bool {
    match settings.train {
        Train::Never => false,
        Train::First => step == 1,
        _ => true,
    }
}

/// The head, forward and backward, for a row with `k` candidates.
fn head(width: f64, hidden: f64, k: f64) -> f64 {
    3.0 * (2.0 * width * hidden + 2.0 * k * width)
}

impl Workload {
    /// Tokenizes all rows of the plan.
    ///
    /// Errors: the encoder cannot be opened.
    pub(super) fn read(plan: &BenchPlan) -> Result<Self> {
        let options = Options {
            threads: plan.options.threads,
            ..Options::default().device("cpu")
        };
        let encoder = Encoder::open(&plan.encoder, &options)?;
        let config = encoder.config();
        let lengths = |rows: &[crate::cmrbench::BenchRow]| {
            let texts: Vec<&str> = rows.iter().map(|row| row.instruction.as_str()).collect();
            let mut lengths = Lengths::default();
            // A prompt without tokens spoils only itself.
            for ids in encoder.token_ids(&texts).into_iter().flatten() {
                let tokens = ids.len() as f64;
                let one = Lengths {
                    rows: 1.0,
                    tokens,
                    squares: tokens * tokens,
                };
                lengths.add(one, 1.0);
            }
            lengths
        };
        let experiences = &plan.data.experiences;
        let mut eval = Lengths::default();
        for experience in experiences {
            eval.add(lengths(&experience.eval), 1.0);
        }
        Ok(Self {
            shape: EncoderShape {
                layers: config.layers as f64,
                hidden: config.hidden as f64,
                feed_forward: config.feed_forward as f64,
            },
            train: experiences.iter().map(|e| lengths(&e.train)).collect(),
            eval,
            models: (1..=plan.steps())
                .map(|step| plan.data.hub(step).len())
                .collect(),
        })
    }

    /// Parameters of the adapters that `settings` ask for.
    fn adapters(&self, settings: &Settings) -> f64 {
        let EncoderShape {
            layers,
            hidden,
            feed_forward,
        } = self.shape;
        let of = |target: &crate::model::lora::Target| {
            use crate::model::lora::Target::{Intermediate, Output};
            match target {
                Intermediate | Output => hidden + feed_forward,
                _ => 2.0 * hidden,
            }
        };
        let sums: f64 = settings.lora_targets.iter().map(of).sum();
        layers * settings.lora_r as f64 * sums
    }

    fn width(&self, settings: &Settings) -> f64 {
        settings
            .width
            .map_or(self.shape.hidden, |width| width as f64)
    }

    /// Trained at `step`, from 1: adapters, W, E.
    fn trained(&self, settings: &Settings, step: usize) -> f64 {
        if !trains(settings, step) {
            return 0.0;
        }
        let width = self.width(settings);
        let adapters = if settings.lora_train {
            self.adapters(settings)
        } else {
            0.0
        };
        adapters + width * (self.shape.hidden + self.models[step - 1] as f64)
    }

    /// Learning `step` from 1, which saw `rows` rows, `replay` of each earlier experience.
    fn learning(
        &self,
        settings: &Settings,
        step: usize,
        rows: f64,
        replay: f64,
        joint: bool,
    ) -> f64 {
        let mut lengths = self.train[step - 1];
        for earlier in &self.train[..step - 1] {
            lengths.add(*earlier, if joint { 1.0 } else { replay });
        }
        let (mean, shape) = (lengths.mean(), self.shape);
        if !trains(settings, step) {
            return rows * shape.forward(mean) + self.solving(settings, step, rows);
        }
        let adapters = self.adapters(settings);
        let forward = shape.forward(mean) + 2.0 * mean.0 * adapters;
        // A frozen encoder computes its vectors once.
        let frozen = match settings.lora_train {
            true if step == 1 || joint => 0.0,
            true => settings.phase_split,
            false => 1.0,
        };
        let passes = rows * settings.epochs as f64;
        let mut sum = passes * (1.0 - frozen) * shape.training(mean, adapters);
        if frozen > 0.0 {
            sum += rows * forward;
        }
        if settings.replay_strategy == ReplayStrategy::Coreset {
            let own = self.train[step - 1];
            sum += own.rows * shape.forward(own.mean());
        }
        if settings.regulariser == Regulariser::Ewc {
            sum += rows
                * match settings.ewc_scope {
                    EwcScope::Router => forward,
                    _ => shape.training(mean, adapters),
                };
        }
        let candidates = match settings.candidates {
            CandidateMode::All => self.models[step - 1],
            _ => settings.candidates_k,
        };
        if settings.memory {
            sum += rows * shape.forward(mean) + self.solving(settings, step, rows);
        }
        sum + passes * head(self.width(settings), shape.hidden, candidates as f64)
    }

    /// Elements of a prompt's vector in the memory, and directions of its keys; 0 without a memory.
    fn memory(&self, settings: &Settings) -> (f64, f64) {
        #[expect(clippy::cast_possible_truncation, reason = "counts of a configuration")]
        let (layers, hidden) = (self.shape.layers as usize, self.shape.hidden as usize);
        let count = match settings.memory_layers.len() {
            _ if !settings.memory => return (0.0, 0.0),
            0 => usual_layers(layers, hidden).len(),
            count => count,
        };
        let width = (count * hidden) as f64;
        (width, width.min(settings.memory_rank as f64))
    }

    /// The arithmetic that the memory adds to a route.
    fn recall(&self, settings: &Settings, keys: f64) -> f64 {
        let (width, rank) = self.memory(settings);
        2.0 * rank * (width + keys)
    }

    /// Squares of `rows` prompts, and the solve of `step` (`generation/memory/solve.rs`).
    fn solving(&self, settings: &Settings, step: usize, rows: f64) -> f64 {
        let (width, rank) = self.memory(settings);
        let models = self.models[step - 1] as f64;
        let squares = (rows + models) * width * width;
        let powers = 3.0 * (4.0 * models * width * rank + 2.0 * width * width * rank);
        squares + width.powi(3) / 3.0 + powers + 2.0 * models * width * (self.shape.hidden + rank)
    }

    /// One prompt of the mean length among the models of the last step; adapters folded.
    fn route(&self, width: f64, keys: f64, projects: bool) -> f64 {
        let hidden = self.shape.hidden;
        let projection = if projects { 2.0 * width * hidden } else { 0.0 };
        self.shape.forward(self.eval.mean()) + projection + 2.0 * keys * width
    }
}

/// A method's cost: means over its seeds; of peaks the highest.
struct Cost<'r> {
    method: &'r MethodOutcome,
    /// By step, of the first seed.
    updates: Vec<usize>,
    rows: f64,
    learn_seconds: f64,
    predict_seconds: f64,
    prompts_per_second: f64,
    trained: Option<f64>,
    stored_bytes: Option<u64>,
    peak_bytes: Option<u64>,
    learn_flops: Option<f64>,
    route_flops: Option<f64>,
}

/// Prompts that a run was evaluated on.
fn predicted(run: &SeedOutcome) -> usize {
    let steps = run.cell.steps.iter().map(|step| step.step);
    let cells = steps.flat_map(|step| (0..step).map(move |test| (step - 1, test)));
    cells
        .filter_map(|(step, test)| run.rows(step, test))
        .map(<[_]>::len)
        .sum()
}

impl<'r> Cost<'r> {
    fn new(results: &Results, sizes: &Workload, method: &'r MethodOutcome) -> Result<Self> {
        let plan = &results.plan;
        let steps = || method.runs.iter().flat_map(|run| &run.cell.steps);
        let mean = |of: fn(&StepNote) -> f64| {
            let sums = method.runs.iter();
            let sums: Vec<f64> = sums
                .map(|run| run.cell.steps.iter().map(of).sum())
                .collect();
            mean_and_deviation(&sums).map_or(0.0, |(mean, _)| mean)
        };
        let first = method.runs.first();
        let noted = || first.into_iter().flat_map(|run| &run.cell.steps);
        let frozen = Frozen::default();
        let common = plan.common(&frozen);
        let info = method.info;
        let (mut learn_flops, mut trained, mut route_flops) = (None, None, None);
        for step in noted() {
            let seed = first.map_or(0, |run| run.seed);
            let Some(settings) = info.settings(&common, seed, step.step)? else {
                continue;
            };
            let joint = info.last_step_alone();
            let rows = step.rows as f64;
            let flops = sizes.learning(&settings, step.step, rows, info.replay, joint);
            learn_flops = Some(learn_flops.unwrap_or(0.0) + flops);
            trained = Some(sizes.trained(&settings, step.step));
            let keys = sizes.models[step.step - 1] as f64;
            let width = sizes.width(&settings);
            let memory = sizes.recall(&settings, keys);
            route_flops = Some(sizes.route(width, keys, true) + memory);
        }
        if info.encodes() && route_flops.is_none() {
            let cards = |e: &BenchExperience| e.cards.len() as f64;
            let keys = plan.data.experiences.iter().map(cards).sum();
            route_flops = Some(sizes.route(sizes.shape.hidden, keys, false));
        }
        if info.reads_cards() {
            // `Sizes` knows the tokens of prompts alone.
            (learn_flops, route_flops) = (None, None);
        }
        // A peak that other methods may have caused is not shown.
        let own = || steps().filter(|step| step.peak_of_step);
        let whole = steps().all(|step| step.peak_of_step);
        let (prompts, seconds): (usize, f64) = (
            method.runs.iter().map(predicted).sum(),
            steps().map(|step| step.eval_seconds).sum(),
        );
        Ok(Self {
            method,
            updates: noted().map(|step| step.updates).collect(),
            rows: mean(|step| step.rows as f64),
            learn_seconds: mean(|step| step.seconds),
            predict_seconds: mean(|step| step.eval_seconds),
            prompts_per_second: prompts as f64 / seconds.max(1e-9),
            trained,
            stored_bytes: steps().filter_map(|step| step.stored_bytes).max(),
            peak_bytes: own()
                .filter_map(|step| step.peak_memory_bytes)
                .max()
                .filter(|_| whole),
            learn_flops,
            route_flops,
        })
    }
}

/// Three significant digits.
fn three(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 || value == 0.0 => format!("{value:.2}"),
        value => format!("{value:.1e}"),
    }
}

/// The costs of all methods.
pub(super) struct Costs<'r>(Vec<Cost<'r>>);

impl<'r> Costs<'r> {
    pub(super) fn new(results: &'r Results) -> Result<Self> {
        let sizes = Workload::read(&results.plan)?;
        let methods = results.methods.iter();
        let all: Result<_> = methods
            .map(|method| Cost::new(results, &sizes, method))
            .collect();
        all.map(Self)
    }

    pub(super) fn csv(&self) -> Result<String> {
        let mut csv = CsvText::new(
            "method,seeds,updates,rows,learn_seconds,predict_seconds,prompts_per_second,\
             trained_parameters,stored_bytes,peak_memory_bytes,learn_flops,route_flops",
        )?;
        for cost in &self.0 {
            let updates: Vec<String> = cost.updates.iter().map(ToString::to_string).collect();
            csv.row(fields![
                cost.method.info.name,
                cost.method.runs.len(),
                updates.join(" "),
                cost.rows,
                format!("{:.1}", cost.learn_seconds),
                format!("{:.1}", cost.predict_seconds),
                format!("{:.1}", cost.prompts_per_second),
                plain(cost.trained),
                plain(cost.stored_bytes),
                plain(cost.peak_bytes),
                plain(cost.learn_flops.map(f64::round)),
                plain(cost.route_flops.map(f64::round))
            ])?;
        }
        csv.finish()
    }

    pub(super) fn section(&self) -> String {
        let mut text = String::from(
            "\n## Cost\n\nMeans over seeds; updates are those of the first seed, step by step. \
             Parameters are those trained at the last step. \"Stored\" is the generation of the \
             last step on disk, without the encoder. \"Peak\" is the most memory that the process \
             held in any one step, with the encoder and the data in it; cells of versions that \
             did not measure it so have a dash. Retrieval methods share the vectors of cards: the \
             first one computes them.\n\n| | updates | rows | learning, s | prompts/s | \
             parameters | stored, MiB | peak, MiB | learning, TFLOP | a prompt, GFLOP \
             |\n|---|---|---|---|---|---|---|---|---|---|\n",
        );
        let dash = || "–".to_owned();
        let mib = |bytes: Option<u64>| bytes.map_or_else(dash, |b| three(b as f64 / 1_048_576.0));
        for cost in &self.0 {
            let updates: Vec<String> = cost.updates.iter().map(ToString::to_string).collect();
            let cells = [
                cost.method.info.label.to_owned(),
                updates.join(" / "),
                format!("{:.0}", cost.rows),
                format!("{:.0}", cost.learn_seconds),
                format!("{:.0}", cost.prompts_per_second),
                cost.trained
                    .map_or_else(dash, |count| format!("{} M", three(count / 1e6))),
                mib(cost.stored_bytes),
                mib(cost.peak_bytes),
                cost.learn_flops
                    .map_or_else(dash, |flops| three(flops / 1e12)),
                cost.route_flops
                    .map_or_else(dash, |flops| three(flops / 1e9)),
            ];
            text += &format!("| {} |\n", cells.join(" | "));
        }
        text + "\nFLOPs are estimates from token counts and shapes; a multiply-add is two. One \
         forward pass of the encoder over n tokens costs layers × (2n (4 hidden² + 2 hidden × \
         inner) + 4n² hidden). A row that trains costs twice its linear maps, three times its \
         attention and three times its adapters (2n for each of their parameters). A row with a \
         frozen encoder costs one forward pass. The head costs 3 (2 width × hidden + 2 candidates \
         × width). A coreset costs one forward pass for each new row. A prompt costs one forward \
         pass, 2 width × hidden, and 2 width for each model or card. Methods that read cards with \
         the prompts have no estimate. Small parts are left out: the optimiser, anchors, mining, \
         and the cards of new rows.\n"
    }

    pub(super) fn figures(&self, results: &Results) -> Vec<Figure> {
        let spent = |method: &MethodOutcome| {
            let same = |cost: &&Cost<'_>| cost.method.info.name == method.info.name;
            self.0.iter().find(same)?.learn_flops
        };
        let entries: Vec<_> = lettered(results)
            .into_iter()
            .filter_map(|entry| {
                let flops = spent(entry.0)?;
                let (acc, _) = entry.0.over_seeds(Metric::Domain, AccuracyMatrix::acc)?;
                Some((entry, (flops / 1e12, acc)))
            })
            .collect();
        if entries.is_empty() {
            return Vec::new();
        }
        let title = "Acc of the domain against learning; top left is best".to_owned();
        let labels = Labels {
            title: &title,
            across: "learning, TFLOP",
            up: "Acc",
        };
        vec![Figure {
            name: "cost".to_owned(),
            kind: FigureKind::Cost,
            svg: points(&entries, &labels),
            title,
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of carve.md section 15: MiniLM, rank 16 on all maps, 32 tokens, 2127 models.
    #[test]
    fn flops_of_the_table() {
        let sizes = Workload {
            shape: EncoderShape {
                layers: 6.0,
                hidden: 384.0,
                feed_forward: 1536.0,
            },
            train: vec![Lengths {
                rows: 10.0,
                tokens: 320.0,
                squares: 10240.0,
            }],
            eval: Lengths {
                rows: 1.0,
                tokens: 32.0,
                squares: 1024.0,
            },
            models: vec![2127],
        };
        let near = |got: f64, want: f64| {
            assert!(
                (got / want - 1.0).abs() < 0.01,
                "expected {want}, found {got}"
            );
        };
        near(sizes.shape.linear(32.0), 0.679e9);
        near(sizes.shape.attention(1024.0), 0.0094e9);
        let mut settings = Settings::base();
        near(sizes.adapters(&settings), 663_552.0);
        near(
            sizes.trained(&settings, 1),
            663_552.0 + 147_456.0 + 816_768.0,
        );
        near(sizes.route(384.0, 2127.0, true), 0.69e9);
        near(sizes.shape.training((32.0, 1024.0), 663_552.0), 1.51e9);
        near(head(384.0, 384.0, 64.0), 1.03e6);
        // Ten rows, two epochs, and a coreset's one forward; with a frozen encoder one forward
        // more.
        settings.epochs = 2;
        let learning = |settings: &Settings| sizes.learning(settings, 1, 10.0, 0.1, false);
        near(
            learning(&settings),
            20.0 * (1.51e9 + 1.03e6) + 10.0 * 0.689e9,
        );
        settings.lora_train = false;
        near(
            learning(&settings),
            20.0 * 1.03e6 + 10.0 * (0.689e9 + 0.042e9) + 10.0 * 0.689e9,
        );
        settings.replay_strategy = ReplayStrategy::None;
        near(
            learning(&settings),
            20.0 * 1.03e6 + 10.0 * (0.689e9 + 0.042e9),
        );
    }

    #[test]
    fn numbers_have_three_digits() {
        let texts = [0.0, 0.6912, 12.34, 1234.6, 0.00123].map(three);
        assert_eq!(texts, ["0.00", "0.69", "12.3", "1235", "1.2e-3"]);
    }
}
