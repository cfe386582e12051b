//! Predicts the time of every dispatch of a pass on a named card, from its work: bytes, operations,
//! and loads that wait for each other.
//!
//! ```text
//! t = launch + latency + max(rounds load, bytes / dram, reads / l2, operations / (peak share even),
//!     products / (matrices share even))
//! ```
//!
//! `bytes` are read or written once, `reads` by all workgroups together; `rounds` are the loads of a
//! lane that wait for each other, beyond the first; `products` are operations on matrix units; `share` is the part of the peak that a kernel of
//! this kind reaches, and `even` that of the cores that have work while the last workgroups run.
//! `benches/cards.json` has the constants.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::device::noted::{Dispatched, noting};
use crate::error::{Result, error};

/// The constants of one card.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct GpuCard {
    /// As people call it.
    pub name: String,
    /// Parts of the names that its drivers give it.
    pub names: Vec<String>,
    sms: f64,
    lanes: f64,
    clock: f64,
    dram: f64,
    l2: f64,
    load: f64,
    launch: f64,
    latency: f64,
    matrices: f64,
    /// Where they come from.
    pub origin: String,
}

#[derive(Deserialize)]
struct CardsFile {
    cards: Vec<GpuCard>,
}

/// All cards of `benches/cards.json`.
pub fn cards() -> Result<Vec<GpuCard>> {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/cards.json"));
    let file: CardsFile =
        serde_json::from_str(text).map_err(|e| error!(Format, "benches/cards.json: {e}"))?;
    Ok(file.cards)
}

/// The dispatches of one pass of a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct PassShape(Vec<Dispatched>);

/// What `calls` returns, and the passes that it ran on a GPU, in their order.
pub fn passes_of<R>(calls: impl FnOnce() -> R) -> (R, Vec<PassShape>) {
    let (value, all) = noting(calls);
    let mut passes: Vec<PassShape> = Vec::new();
    for dispatched in all {
        match passes.last_mut() {
            Some(pass) if dispatched.place > 0 => pass.0.push(dispatched),
            _ => passes.push(PassShape(Vec::from([dispatched]))),
        }
    }
    (value, passes)
}

/// All dispatches of one kernel in a pass.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PredictedKernel {
    /// Entry and grid, `linear_skinny::normed [72, 2, 1]`.
    pub kernel: String,
    /// Its dispatches.
    pub count: usize,
    /// Predicted for all of them.
    pub seconds: f64,
    /// The longest of the terms: `rounds`, `dram`, `l2`, `operations` or `matrices`; `launch` where launch
    /// and latency are longer.
    pub bound: &'static str,
    /// Of one: bytes that are read or written once, operations, and loads that wait for each other.
    pub work: [f64; 3],
}

impl PassShape {
    /// The same pass by matrix units of 16 x 16: products of many rows by `linear_matrix`.
    #[must_use]
    pub fn on_matrices(&self) -> Self {
        let each = self.0.iter().map(|dispatched| Dispatched {
            kernel: match dispatched.kernel.strip_prefix("linear_tiled::") {
                Some(entry) if !entry.starts_with("backward") => format!("linear_matrix::{entry}"),
                _ => dispatched.kernel.clone(),
            },
            ..dispatched.clone()
        });
        Self(each.collect())
    }

    /// Its dispatches.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.0.len()
    }

    /// Dispatches of one kernel, grid and work together, in the order of the first.
    #[must_use]
    pub fn predict(&self, card: &GpuCard) -> Vec<PredictedKernel> {
        let mut places = BTreeMap::new();
        let mut all: Vec<PredictedKernel> = Vec::new();
        for dispatched in &self.0 {
            let kernel = format!("{} {:?}", dispatched.kernel, dispatched.groups);
            let work = work_of(dispatched);
            let (seconds, bound) = work.on(card);
            let key = (kernel.clone(), work.bytes.to_bits());
            let place = *places.entry(key).or_insert(all.len());
            if place == all.len() {
                all.push(PredictedKernel {
                    kernel,
                    bound,
                    work: [work.bytes, work.operations + work.products, work.rounds],
                    ..PredictedKernel::default()
                });
            }
            all[place].count += 1;
            all[place].seconds += seconds;
        }
        all
    }
}

/// What one dispatch has to do.
#[derive(Clone, Copy, Debug)]
struct KernelWork {
    workgroups: f64,
    bytes: f64,
    reads: f64,
    operations: f64,
    products: f64,
    share: f64,
    rounds: f64,
}

impl KernelWork {
    fn on(self, card: &GpuCard) -> (f64, &'static str) {
        let turns = (self.workgroups / card.sms).ceil().max(1.0);
        let even = self.workgroups / (turns * card.sms);
        let peak = card.sms * card.lanes * 2.0 * card.clock;
        let terms = [
            (card.launch + card.latency, "launch"),
            (self.rounds * card.load, "rounds"),
            (self.bytes / card.dram, "dram"),
            (self.reads / card.l2, "l2"),
            (self.operations / (peak * self.share * even), "operations"),
            (
                self.products / (card.matrices * self.share * even),
                "matrices",
            ),
        ];
        let longest = |terms: &[(f64, &'static str)]| {
            let first = (0.0, "launch");
            terms
                .iter()
                .copied()
                .fold(first, |a, b| if b.0 > a.0 { b } else { a })
        };
        let time = terms[0].0 + longest(&terms[1..]).0;
        (time, longest(&terms).1)
    }
}

/// The work of each kernel of a route and of the products of a step. Of others, all their tensors
/// once.
fn work_of(d: &Dispatched) -> KernelWork {
    let grid = d.groups.map(f64::from);
    let workgroups = grid.iter().product::<f64>();
    let tensors = d.tensors.iter();
    let all: f64 = tensors
        .map(|(_, rows, columns)| (4 * rows * columns) as f64)
        .sum();
    let plain = KernelWork {
        workgroups,
        bytes: all,
        reads: all,
        operations: 0.0,
        products: 0.0,
        share: 0.3,
        rounds: 1.0,
    };
    let (op, entry) = d.kernel.split_once("::").unwrap_or((&d.kernel, ""));
    match op {
        "linear_skinny" => few_rows(d, entry, plain),
        "linear_tiled" => many_rows(d, entry, plain),
        "linear_matrix" => on_matrices(d, entry, plain),
        "matmul" => product(d, plain),
        "attention" => attention(d, plain),
        "embed" => {
            let [tokens, hidden] = [d.number("tokens"), d.number("hidden")];
            let bytes = 12.0 * tokens * hidden;
            KernelWork {
                bytes,
                reads: bytes,
                ..plain
            }
        }
        "pool" => {
            let [rows, hidden] = [d.number("tokens"), d.number("hidden")];
            let bytes = 4.0 * rows * hidden * grid[1];
            // Statistics of eight tokens, then their sums.
            let rounds = 2.0 + 2.0 * (rows / grid[0] / 8.0).ceil();
            KernelWork {
                bytes,
                reads: 2.0 * bytes,
                rounds,
                ..plain
            }
        }
        "score" => score(d, plain),
        "finish" => KernelWork {
            // Scores, words, y, offsets, members; a rank is two barriers and 41 reads of workgroup
            // memory, as long as a load.
            rounds: 5.0 + d.number("k"),
            ..plain
        },
        _ => plain,
    }
}

/// A lane has all its weights of a chunk in flight, then waits for the rows; a norm reads gamma and
/// beta behind them.
fn few_rows(d: &Dispatched, entry: &str, plain: KernelWork) -> KernelWork {
    let [rows, inputs] = [d.number("rows"), 4.0 * d.number("inputs4")];
    let outputs = d.number("outputs");
    let [high, chunk] = [d.number("ROWS").max(1.0), 4.0 * d.number("CHUNK").max(1.0)];
    let across = f64::from(d.groups[0]);
    let down = f64::from(d.groups[1]);
    let chunks = (inputs / chunk).ceil();
    let staged = (high * chunk / 4.0 / (128.0 * 12.0)).ceil();
    let weights = 4.0 * outputs * inputs;
    KernelWork {
        bytes: weights + 4.0 * rows * (inputs + outputs),
        reads: weights * down + 4.0 * across * rows * inputs,
        operations: 2.0 * high * down * outputs * inputs,
        share: 0.6,
        // A norm's gamma and beta are read behind the row, as many at a time.
        rounds: chunks * staged * if entry == "normed" { 2.0 } else { 1.0 },
        ..plain
    }
}

/// The next step of 16 terms is loaded behind the arithmetic of this one. Before them a norm reads
/// each row twice, two lanes a row with 12 vectors of four on their way.
fn many_rows(d: &Dispatched, entry: &str, plain: KernelWork) -> KernelWork {
    let [rows, inputs] = [d.number("rows"), 4.0 * d.number("inputs4")];
    let outputs = d.number("outputs");
    let side = 64.0;
    let [across, down] = [f64::from(d.groups[0]), f64::from(d.groups[1])];
    KernelWork {
        bytes: 4.0 * (outputs * inputs + rows * (inputs + outputs)),
        reads: 4.0 * across * down * 2.0 * side * inputs,
        operations: 2.0 * across * down * side * side * inputs,
        share: 0.55,
        rounds: inputs / 16.0
            + if entry == "normed" {
                2.0 * (inputs / 96.0).ceil()
            } else {
                0.0
            },
        ..plain
    }
}

/// As [`many_rows`] with steps of 32 terms: three products of matrices, and halves as many bytes as
/// weights in f32.
fn on_matrices(d: &Dispatched, entry: &str, plain: KernelWork) -> KernelWork {
    let tiled = many_rows(d, entry, plain);
    KernelWork {
        operations: 0.0,
        products: 3.0 * tiled.operations,
        share: 0.38,
        rounds: tiled.rounds - 2.0 * d.number("inputs4") / 16.0,
        ..tiled
    }
}

fn product(d: &Dispatched, plain: KernelWork) -> KernelWork {
    let [rows, inner] = [d.number("rows"), d.number("inner")];
    let columns = d.number("columns");
    let bytes = 4.0 * (rows * inner + inner * columns + rows * columns);
    KernelWork {
        bytes,
        reads: bytes,
        operations: 2.0 * rows * inner * columns,
        share: 0.25,
        // A step of 16 terms has 8 loads one after the other.
        rounds: inner / 2.0,
        ..plain
    }
}

fn attention(d: &Dispatched, plain: KernelWork) -> KernelWork {
    let hidden = d.number("hidden");
    let [rows, _] = match d.shape("qkv4") {
        [0.0, _] => d.shape("qkv"),
        shape => shape,
    };
    let prompts = (d.shape("offsets")[0] - 1.0).max(1.0);
    let keys = rows / prompts;
    KernelWork {
        bytes: 16.0 * rows * hidden,
        reads: 16.0 * rows * hidden * (keys / 16.0).ceil(),
        operations: 4.0 * rows * keys.max(32.0) * hidden,
        // Eight keys and values at a time, each behind the barriers of the last.
        rounds: 2.0 + 2.0 * (keys / 8.0).ceil(),
        ..plain
    }
}

fn score(d: &Dispatched, plain: KernelWork) -> KernelWork {
    let [prompts, models] = [d.number("prompts"), d.number("models")];
    let width = d.number("width") + d.number("rank");
    let turns = d.number("TURNS").max(1.0);
    let tiles = f64::from(d.groups[0]) * f64::from(d.groups[2]);
    let keys = 4.0 * models * width;
    KernelWork {
        bytes: keys + 4.0 * prompts * (width + models),
        reads: keys * f64::from(d.groups[1]) + 4.0 * tiles * prompts * width,
        operations: 2.0 * f64::from(d.groups[1]) * 4.0 * turns * models * width,
        rounds: 2.0 * turns,
        ..plain
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn named(name: &str) -> GpuCard {
        let cards = cards().unwrap();
        cards.into_iter().find(|card| card.name == name).unwrap()
    }

    /// 384 -> 1,152 for 18 rows, as `linear_skinny` runs it.
    fn dispatched() -> Dispatched {
        let number = |(name, value): (&str, f64)| (name.to_owned(), value);
        let numbers = [
            ("ROWS", 16.0),
            ("CHUNK", 96.0),
            ("rows", 18.0),
            ("inputs4", 96.0),
            ("outputs", 1152.0),
        ];
        Dispatched {
            kernel: "linear_skinny::normed".into(),
            place: 0,
            groups: [72, 2, 1],
            numbers: numbers.map(number).into(),
            tensors: Vec::new(),
        }
    }

    #[test]
    fn a_product_is_predicted_by_hand() {
        let card = named("H100 SXM");
        let work = work_of(&dispatched());
        assert_eq!(work.operations, 2.0 * 32.0 * 1152.0 * 384.0);
        assert_eq!(work.bytes, 4.0 * (1152.0 * 384.0 + 18.0 * 1536.0));
        // 144 workgroups are two turns of 132 cores: 0.545 of them have work.
        let even = 144.0 / 264.0;
        let peak = 132.0 * 128.0 * 2.0 * 1.75e9;
        let arithmetic = work.operations / (peak * 0.6 * even);
        let rounds = 2.0 * 0.25e-6;
        let (seconds, bound) = work.on(&card);
        let want = 4.2e-6 + arithmetic.max(rounds);
        assert!((seconds - want).abs() < 1e-12, "{seconds}, not {want}");
        assert_eq!(bound, "launch");
    }

    #[test]
    fn matrix_units_take_three_products_for_one_of_many_rows() {
        let tiled = Dispatched {
            kernel: "linear_tiled::bare".into(),
            groups: [18, 10, 1],
            ..dispatched()
        };
        let backward = Dispatched {
            kernel: "linear_tiled::backward".into(),
            ..tiled.clone()
        };
        let pass = PassShape(vec![tiled.clone(), backward.clone()]).on_matrices();
        assert_eq!(pass.0[0].kernel, "linear_matrix::bare");
        assert_eq!(pass.0[1], backward);
        let [before, after] = [work_of(&tiled), work_of(&pass.0[0])];
        assert_eq!(after.products, 3.0 * before.operations);
        assert_eq!((after.operations, after.bytes), (0.0, before.bytes));
        // 384 inputs: 24 steps of 16 terms, 12 of 32.
        assert_eq!((before.rounds, after.rounds), (24.0, 12.0));
        let card = named("H100 SXM");
        assert!(after.on(&card).0 < before.on(&card).0);
        assert_eq!(after.on(&card).1, "matrices");
    }

    #[test]
    fn more_bandwidth_is_no_slower_and_passes_stay_apart() {
        let second = Dispatched {
            place: 1,
            ..dispatched()
        };
        let pass = PassShape(Vec::from([dispatched(), second]));
        let [h100, h200] = ["H100 SXM", "H200"].map(|name| pass.predict(&named(name)));
        assert_eq!((h100.len(), h100[0].count), (1, 2));
        assert!(h200[0].seconds <= h100[0].seconds);
    }
}
