//! Gradients and steps of the whole router against PyTorch (`tests/fixtures/make_learn.py`).
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "tests"
)]

use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::device::CpuLevel;
use crate::device::Place;
use crate::device::cpu::low::{LowFormat, LowKernel};
use crate::encoder::{ENCODED, Encoder, ImportOptions, import_encoder};
use crate::generation::{GenerationId, NewModel};
use crate::hub::Model;
use crate::learn::engine::{
    Anchors, Capacity, Distilled, Engine, Item, Penalty, RowInput, StepRates,
};
use crate::learn::method::draws::{Draws, Stream};
use crate::learn::method::layout::ParameterLayout;
use crate::learn::method::targets::SoftTarget;
use crate::learn::settings::Train;
use crate::learn::{
    Accuracy, Control, Example, Experience, Learner, Outcome, Settings, measure_confidence,
    measure_precision,
};
use crate::model::lora::{Adapter, Lora, Target as Map};
use crate::ops::reference::{dot, normalize};
#[cfg(feature = "gpu")]
use crate::ops::testing::adapter_name;
use crate::ops::testing::{assert_close, noise, wide};
use crate::options::Options;
#[cfg(feature = "gpu")]
use crate::serve::Serving;
use crate::store::Store;
use crate::testing::Folder;
use crate::text::tokenizer::Tokens;

struct Golden {
    bytes: Vec<u8>,
    json: Value,
}

impl Golden {
    fn open(name: &str) -> Self {
        let path = Path::new("tests/fixtures").join(name);
        Self {
            bytes: std::fs::read(path.with_extension("safetensors")).unwrap(),
            json: serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap())
                .unwrap(),
        }
    }

    fn find(&self, name: &str) -> Option<Vec<f32>> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).ok()?;
        let chunks = tensor.data().chunks_exact(4);
        Some(
            chunks
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        )
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        self.find(name)
            .unwrap_or_else(|| panic!("{name} is missing"))
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.tensor(name)
            .iter()
            .map(|value| value.to_bits())
            .collect()
    }

    fn number(&self, path: &str) -> f64 {
        self.json.pointer(path).and_then(Value::as_f64).unwrap()
    }

    /// The flat buffer in the order of `layout`, of the tensors `prefix<name><suffix>`; none where
    /// the fixture has none.
    fn flat(&self, layout: &ParameterLayout, prefix: &str, suffix: &str) -> Vec<Option<f32>> {
        let mut values = vec![None; layout.len()];
        let mut put = |offset: usize, found: Option<Vec<f32>>| {
            for (i, value) in found.into_iter().flatten().enumerate() {
                values[offset + i] = Some(value);
            }
        };
        for (layer, branch) in layout.adapter.branches() {
            let at = |part: &str| {
                let path = branch.target.path();
                format!("{prefix}encoder.layer.{layer}.{path}.lora_{part}.weight{suffix}")
            };
            put(branch.a.offset, self.find(&at("A")));
            let (r, outputs) = (branch.b.rows, branch.b.columns);
            let transposed = self.find(&at("B")).map(|b| {
                let places = (0..r).flat_map(|k| (0..outputs).map(move |o| o * r + k));
                places.map(|place| b[place]).collect()
            });
            put(branch.b.offset, transposed);
        }
        let named = |name: &str| self.find(&format!("{prefix}{name}.weight{suffix}"));
        put(layout.w.offset, named("prompt_projection"));
        put(layout.e.offset, named("model_embeddings"));
        values
    }
}

fn toy(options: &Options) -> Arc<Encoder> {
    let folder = Folder::new("toy");
    let to = folder.join("toy-bert");
    import_encoder("tests/fixtures/toy-bert", &to, &ImportOptions::default()).unwrap();
    Arc::new(Encoder::open(&to, options).unwrap())
}

fn minilm(options: &Options) -> Arc<Encoder> {
    Arc::new(Encoder::open("weights/all-MiniLM-L6-v2", options).unwrap())
}

fn devices() -> Vec<(Options, f64)> {
    let cpu = |threads| Options::default().device("cpu").threads(threads);
    Vec::from([
        (cpu(1), 1e-4),
        (cpu(2), 1e-4),
        #[cfg(feature = "gpu")]
        (Options::default().device(adapter_name().as_str()), 1e-3),
    ])
}

/// The case `name` (`all` or `sampled`) of a golden on an encoder.
struct GoldenCase {
    engine: Engine,
    tokens: Vec<Arc<Tokens>>,
    targets: Vec<SoftTarget>,
    candidates: Option<Vec<Vec<u32>>>,
    weights: Vec<f32>,
}

impl GoldenCase {
    fn new(golden: &Golden, name: &str, encoder: Arc<Encoder>) -> Self {
        let count = golden.json["gold"].as_array().unwrap().len();
        let tokens: Vec<Arc<Tokens>> = (0..count)
            .map(|i| Tokens {
                ids: golden.ids(&format!("{i}.ids")),
                truncated: false,
                unknown: 0,
                words: Vec::new(),
            })
            .map(Arc::new)
            .collect();
        let weights: Vec<f32> = golden.tensor("weights");
        let lora = Lora {
            r: golden.json["rank"].as_u64().unwrap() as usize,
            alpha: golden.number("/alpha") as f32,
            targets: Map::ALL.to_vec(),
        };
        let adapter = Adapter::new(&lora, encoder.config());
        let inputs = encoder.width();
        let width = golden.tensor("prompt_projection.weight").len() / inputs;
        let models = golden.tensor("model_embeddings.weight").len() / width;
        let layout = ParameterLayout::new(adapter, width, inputs, models);
        let theta = golden.flat(&layout, "", "");
        let theta: Vec<f32> = theta.into_iter().map(Option::unwrap).collect();
        let mass = golden.tensor(&format!("targets.{name}"));
        let columns = mass.len() / count;
        let candidates = (name == "sampled").then(|| {
            let ids = golden.ids("candidates.sampled");
            ids.chunks(columns).map(<[u32]>::to_vec).collect::<Vec<_>>()
        });
        let targets = mass
            .chunks(columns)
            .enumerate()
            .map(|(i, mass)| {
                let id = |j: usize| candidates.as_ref().map_or(j as u32, |ids| ids[i][j]);
                let some = (0..columns).filter(|j| mass[*j] > 0.0);
                let pairs: Vec<(u32, f32)> = some.map(|j| (id(j), mass[j])).collect();
                SoftTarget {
                    ids: pairs.iter().map(|pair| pair.0).collect(),
                    mass: pairs.iter().map(|pair| pair.1).collect(),
                }
            })
            .collect();
        let capacity = Capacity {
            examples: count,
            candidates: candidates.as_ref().map(|_| columns),
            targets: columns,
        };
        let tau = golden.number("/tau") as f32;
        Self {
            engine: Engine::new(encoder, layout, capacity, &theta, tau).unwrap(),
            tokens,
            targets,
            candidates,
            weights,
        }
    }

    fn parts(&mut self) -> (&mut Engine, Vec<Item<'_>>) {
        let count = self.tokens.len() as f32;
        let items = self
            .tokens
            .iter()
            .enumerate()
            .map(|(i, tokens)| Item {
                input: RowInput::Tokens(Arc::clone(tokens)),
                target: self.targets[i].clone(),
                candidates: self.candidates.as_ref().map(|ids| ids[i].clone()),
                weight: self.weights[i] / count,
                key: i as u64,
                distilled: None,
            })
            .collect();
        (&mut self.engine, items)
    }
}

/// The largest error of a tensor over its largest element.
fn relative(got: &[f32], want: &[f32]) -> f64 {
    let largest = want.iter().fold(0.0f64, |m, w| m.max(f64::from(w.abs())));
    let errors = got.iter().zip(want).map(|(g, w)| f64::from(g - w).abs());
    errors.fold(
        0.0,
        |m, e| if e.is_nan() { f64::INFINITY } else { m.max(e) },
    ) / largest
}

fn check_gradients(golden: &Golden, open: fn(&Options) -> Arc<Encoder>) {
    for (options, bound) in devices() {
        let encoder = open(&options);
        for name in ["all", "sampled"] {
            let mut case = GoldenCase::new(golden, name, Arc::clone(&encoder));
            let (engine, items) = case.parts();
            let loss = engine.gradients(&[items]).unwrap();
            let want = golden.number(&format!("/loss/{name}"));
            assert!(
                (loss - want).abs() < bound * want,
                "{name}: {loss}, not {want}"
            );
            let got = engine.gradient_values().unwrap();
            let layout = engine.layout().clone();
            let want = golden.flat(&layout, "", &format!(".grad.{name}"));
            let want: Vec<f32> = want.into_iter().map(Option::unwrap).collect();
            let mut worst: f64 = 0.0;
            let mut compare = |what: String, place: crate::device::Place| {
                let range = place.offset..place.end();
                let error = relative(&got[range.clone()], &want[range.clone()]);
                assert!(error < bound, "{what} ({name}): {error:e}");
                worst = worst.max(error);
                let mut zeroed = got[range.clone()].to_vec();
                zeroed.fill(0.0);
                assert!(
                    relative(&zeroed, &want[range]) > bound,
                    "{what}: cannot fail"
                );
            };
            for (layer, branch) in layout.adapter.branches() {
                compare(format!("layer {layer} {} A", branch.target), branch.a);
                compare(format!("layer {layer} {} B", branch.target), branch.b);
            }
            compare("W".into(), layout.w);
            compare("E".into(), layout.e);
            println!(
                "{} {name}: gradients within {worst:.1e}",
                encoder.device_name()
            );
        }
    }
}

#[test]
fn gradients_of_a_toy_equal_pytorch() {
    check_gradients(&Golden::open("learn-toy"), toy);
}

#[test]
fn gradients_of_minilm_equal_pytorch() {
    check_gradients(&Golden::open("learn-minilm"), minilm);
}

#[test]
fn ten_steps_equal_pytorch() {
    let (start, golden) = (Golden::open("learn-toy"), Golden::open("learn-steps"));
    for (options, _) in devices() {
        let mut case = GoldenCase::new(&start, "all", toy(&options));
        let rows = golden.tensor("reference.model_embeddings.weight");
        let w = golden.tensor("reference.prompt_projection.weight");
        case.engine.anchor_to(&rows, &w).unwrap();
        let rate = |group: &str| golden.number(&format!("/learning_rate/{group}"));
        for (step, want) in golden.json["history"]
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
        {
            let factor = want["schedule"].as_f64().unwrap();
            let rates = StepRates {
                lora: Some((rate("lora") * factor, step + 1)),
                w: rate("projection") * factor,
                e: rate("embeddings") * factor,
                counter: step + 1,
                decay: golden.number("/weight_decay"),
                clip: golden.number("/clip") as f32,
                clip_all: false,
                touched: false,
            };
            let anchors = Anchors {
                embedding: golden.number("/lambda_embedding") as f32,
                raw: false,
                projection: golden.number("/lambda_projection") as f32,
                touched: false,
            };
            let (engine, items) = case.parts();
            let losses = engine
                .step(&[items], &rates, Some(Penalty::Anchors(anchors)))
                .unwrap();
            let total = want["total"].as_f64().unwrap();
            let error = (losses.total() - total).abs() / total;
            assert!(error < 1e-4, "step {step}: {losses:?}, not {want}");
            let norm = want["gradient_norms"]["lora"].as_f64().unwrap();
            let found = f64::from(engine.norm());
            assert!(
                (found - norm).abs() < 1e-3 * norm,
                "step {step}: norm {found}, not {norm}"
            );
        }
        let layout = case.engine.layout().clone();
        let theta = case.engine.state().unwrap().theta;
        let want = golden.flat(&layout, "final.", "");
        let pairs = theta.iter().zip(&want);
        let worst = pairs.filter_map(|(g, w)| w.map(|w| f64::from((g - w).abs())));
        let worst = worst.fold(0.0, f64::max);
        println!("{options:?}: parameters within {worst:.1e}");
        assert!(worst < 2e-4, "parameters differ by {worst:e}");
    }
}

/// Rates of a first step that trains everything.
fn first_rates(clip_all: bool) -> StepRates {
    StepRates {
        lora: Some((1e-3, 1)),
        w: 1e-3,
        e: 1e-3,
        counter: 1,
        decay: 1e-3,
        clip: 1.0,
        clip_all,
        touched: false,
    }
}

/// Of an encoder of L layers: merging 1, forward 8 and backward 11 a layer, the first layer's input
/// having no gradient; embedding 2, pooling 2, the head 6, anchors 1, AdamW 3.
#[cfg(feature = "gpu")]
#[test]
fn a_step_is_one_submission_of_20_kernels_a_layer() {
    let options = Options::default().device(adapter_name().as_str());
    for (golden, encoder) in [
        ("learn-toy", toy(&options)),
        ("learn-minilm", minilm(&options)),
    ] {
        let golden = Golden::open(golden);
        let layers = encoder.config().layers;
        let mut case = GoldenCase::new(&golden, "all", encoder);
        let rows = golden.tensor("model_embeddings.weight");
        let w = golden.tensor("prompt_projection.weight");
        case.engine.anchor_to(&rows, &w).unwrap();
        let penalty = Some(Penalty::Anchors(anchors(false, false)));
        let (engine, items) = case.parts();
        let count = items.len();
        let made = |engine: &mut Engine, batches: &[Vec<Item<'_>>]| {
            engine.step(batches, &first_rates(true), penalty).unwrap();
            engine.cost()
        };
        let whole = made(engine, std::slice::from_ref(&items));
        assert_eq!(whole.submits, 1);
        assert_eq!(whole.dispatches, 20 * layers + 13);
        assert!(layers != 6 || whole.dispatches <= 140);
        // Each micro-batch is one, and the last has the end of the step.
        let (first, second) = items.split_at(count / 2);
        let halves = made(engine, &[first.to_vec(), second.to_vec()]);
        assert_eq!(halves.submits, 2);
        assert_eq!(halves.dispatches, 2 * whole.dispatches - 4);
    }
}

/// Of the routing loss, in the last micro-batch or before it, and of the gradients.
#[test]
fn a_step_with_a_number_that_is_not_finite_moves_nothing() {
    for (options, _) in devices() {
        for (weight, place, micro, what) in [
            (f32::NAN, 0, 2, "routing loss"),
            (f32::INFINITY, 3, 2, "routing loss"),
            (f32::NAN, 1, 1, "routing loss"),
            (1e25, 1, 1, "norm of the gradients"),
        ] {
            let mut case = toy_case(&options, 0.0);
            let (engine, mut items) = case.parts();
            let before = engine.state().unwrap().theta;
            items[place].weight = weight;
            let batches: Vec<Vec<Item<'_>>> = match micro {
                1 => vec![items],
                _ => vec![items[..2].to_vec(), items[2..].to_vec()],
            };
            let error = engine.step(&batches, &first_rates(true), None).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
            assert_eq!(engine.state().unwrap().theta, before, "{what}");
        }
    }
}

/// A toy's case with dropout, or without.
fn toy_case(options: &Options, dropout: f32) -> GoldenCase {
    let mut case = GoldenCase::new(&Golden::open("learn-toy"), "all", toy(options));
    case.engine.set_dropout(dropout);
    case
}

#[test]
fn fisher_weights_are_the_mean_of_squared_gradients_of_batches() {
    for (options, bound) in devices() {
        // Dropout is off while they are taken.
        let mut case = toy_case(&options, 0.3);
        let count = case.tokens.len();
        let batches: Vec<Vec<usize>> = (0..count)
            .collect::<Vec<_>>()
            .chunks(2)
            .map(<[usize]>::to_vec)
            .collect();
        assert!(batches.len() > 1 && batches.iter().any(|batch| batch.len() == 2));
        let mut want = vec![0.0f64; case.engine.layout().len()];
        for batch in &batches {
            let mut fresh = toy_case(&options, 0.0);
            let (engine, items) = fresh.parts();
            let items = batch.iter().map(|i| items[*i].clone()).collect();
            engine.gradients(&[items]).unwrap();
            let gradient = engine.gradient_values().unwrap();
            for (sum, g) in want.iter_mut().zip(gradient) {
                *sum += f64::from(g).powi(2) / batches.len() as f64;
            }
        }
        let (engine, items) = case.parts();
        let before = engine.parameters().unwrap();
        // What a step left behind is not counted.
        engine.gradients(std::slice::from_ref(&items)).unwrap();
        let w = engine.layout().w.offset;
        for first in [0, w] {
            let of = |i: usize| batches[i].iter().map(|i| items[*i].clone()).collect();
            let found = engine.fisher(first, batches.len(), of).unwrap();
            let wanted: Vec<f32> = want[first..].iter().map(|f| *f as f32).collect();
            let error = relative(&found, &wanted);
            assert!(error < 2.0 * bound, "from {first}: {error:e}");
            assert!(found.iter().all(|f| *f >= 0.0));
        }
        assert_eq!(engine.parameters().unwrap(), before);
    }
}

#[test]
fn a_prompt_is_thinned_out_alike_in_any_batch_on_any_device() {
    let mut all = Vec::new();
    for (options, bound) in devices() {
        let mut case = toy_case(&options, 0.3);
        let (engine, items) = case.parts();
        let tokens: Vec<&Tokens> = items.iter().filter_map(Item::tokens).collect();
        let features = engine.features(&tokens, &mut |_| {}).unwrap();
        let together = engine.gradients(std::slice::from_ref(&items)).unwrap();
        let alone: Vec<Vec<Item<'_>>> = items.iter().map(|item| vec![item.clone()]).collect();
        assert_eq!(engine.gradients(&alone).unwrap(), together);
        let mut reversed = items.clone();
        reversed.reverse();
        let other = engine.gradients(&[reversed]).unwrap();
        assert!((other - together).abs() < 1e-9 * together);
        // Another step's key.
        let mut later = items.clone();
        later[0].key += 100;
        assert_ne!(engine.gradients(&[later]).unwrap(), together);
        all.push((together, bound));

        let mut without = toy_case(&options, 0.0);
        let (engine, items) = without.parts();
        assert_ne!(engine.gradients(&[items]).unwrap(), together);
        // Features are in evaluation mode.
        assert_eq!(engine.features(&tokens, &mut |_| {}).unwrap(), features);
    }
    assert_eq!(all[0].0, all[1].0, "threads show");
    // Without the feature there is no third device.
    assert_eq!(all.len(), 2 + usize::from(cfg!(feature = "gpu")));
    for (gpu, bound) in &all[2..] {
        assert!((gpu - all[0].0).abs() < bound * gpu, "{all:?}");
    }
}

/// With the masks fixed, the slope along a part's own gradient is that gradient's length.
#[test]
fn gradients_with_dropout_match_finite_differences() {
    for (options, _) in devices() {
        let slope = |dropout: f32, direction: Option<&[f32]>, part: &str| -> (f64, Vec<f32>) {
            const STEP: f32 = 1e-2;
            let mut case = toy_case(&options, dropout);
            let (engine, items) = case.parts();
            let batch = std::slice::from_ref(&items);
            engine.gradients(batch).unwrap();
            let gradient = engine.gradient_values().unwrap();
            let layout = engine.layout().clone();
            let mut own = vec![0.0f32; layout.len()];
            for (_, branch) in layout.adapter.branches() {
                let place = if part == "A" { branch.a } else { branch.b };
                let range = place.offset..place.end();
                own[range.clone()].copy_from_slice(&gradient[range]);
            }
            let along = direction.unwrap_or(&own);
            let length = along
                .iter()
                .map(|g| f64::from(*g).powi(2))
                .sum::<f64>()
                .sqrt();
            let theta = engine.parameters().unwrap();
            let mut at = |step: f32| {
                let scale = step / length as f32;
                let moved: Vec<f32> = theta
                    .iter()
                    .zip(along)
                    .map(|(t, d)| t + scale * d)
                    .collect();
                engine.set(&moved).unwrap();
                engine.gradients(batch).unwrap()
            };
            let slope = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
            (slope / length, own)
        };
        for part in ["A", "B"] {
            let (found, own) = slope(0.3, None, part);
            println!("{part}: {found}");
            assert!(
                (found - 1.0).abs() < 1e-2,
                "{part}: {found} of the gradient's length"
            );
            // The same direction under no mask is another slope.
            let (other, _) = slope(0.0, Some(&own), part);
            assert!((other - 1.0).abs() > 2e-2, "{part}: cannot fail: {other}");
        }
    }
}

/// A head without adapters on forty models, of which thirty are old, fed with pooled vectors.
struct Forty {
    engine: Engine,
    pooled: Vec<Vec<f32>>,
    start: Vec<f32>,
    /// A teacher's scores of the old models for each vector; empty without one.
    teacher: Vec<Vec<f32>>,
}

const MODELS: usize = 40;
const OLD: usize = 30;
const STEPS: usize = 12;
const DECAY: f64 = 0.5;

impl Forty {
    fn new(encoder: &Arc<Encoder>, candidates: usize) -> Self {
        let lora = Lora {
            r: 1,
            alpha: 1.0,
            targets: Vec::new(),
        };
        let inputs = encoder.width();
        let layout = ParameterLayout::new(
            Adapter::new(&lora, encoder.config()),
            inputs,
            inputs,
            MODELS,
        );
        let start = noise(layout.len(), 3);
        let capacity = Capacity {
            examples: 4,
            candidates: Some(candidates),
            targets: 1,
        };
        let e = layout.e.offset;
        let mut engine = Engine::new(Arc::clone(encoder), layout, capacity, &start, 0.08).unwrap();
        let width = inputs * OLD;
        engine.anchor_to(&start[e..e + width], &start[..e]).unwrap();
        let pooled = (0..4).map(|i| noise(inputs, 10 + i)).collect();
        Self {
            engine,
            pooled,
            start,
            teacher: Vec::new(),
        }
    }

    /// A step whose candidates are `lists`.
    fn step(&mut self, step: usize, lists: &[Vec<u32>], anchors: Option<Anchors>, touched: bool) {
        let teacher = &self.teacher;
        let pairs = self.pooled.iter().zip(lists).enumerate();
        let items = pairs.map(|(i, (vector, list))| Item {
            input: RowInput::Pooled(vector.as_slice().into()),
            target: SoftTarget {
                ids: vec![list[0]],
                mass: vec![1.0],
            },
            candidates: Some(list.clone()),
            weight: 0.25,
            key: 0,
            distilled: teacher
                .get(i)
                .map(|scores| Distilled { scores, share: 0.1 }),
        });
        let batch: Vec<Item<'_>> = items.collect();
        let rates = StepRates {
            lora: None,
            w: 1e-3,
            e: rate(step),
            counter: step + 1,
            decay: DECAY,
            clip: 1.0,
            clip_all: true,
            touched,
        };
        let penalty = anchors.map(Penalty::Anchors);
        self.engine.step(&[batch], &rates, penalty).unwrap();
    }

    /// W and E.
    fn parameters(&mut self) -> (Vec<f32>, Vec<f32>) {
        let e = self.engine.layout().e.offset;
        let mut w = self.engine.parameters().unwrap();
        let rows = w.split_off(e);
        (w, rows)
    }
}

fn rate(step: usize) -> f64 {
    5e-3 * step as f64 / STEPS as f64
}

/// Four lists of five of the first twenty models, or of twenty-eight from the middle of the steps
/// on.
fn lists(step: usize) -> Vec<Vec<u32>> {
    let models = if step < STEPS / 2 { 20 } else { 28 };
    let list = |i: usize| {
        let mut draws = Draws::new(7, Stream::Candidates, &[step as u64, i as u64]);
        let drawn = draws.sample(models, 5);
        drawn.into_iter().map(|id| id as u32).collect()
    };
    (0..4).map(list).collect()
}

fn anchors(raw: bool, touched: bool) -> Anchors {
    Anchors {
        embedding: 10.0,
        raw,
        projection: 1.0,
        touched,
    }
}

/// Rows of E that were no candidate of any step.
fn never() -> Vec<usize> {
    let seen: Vec<u32> = (0..STEPS).flat_map(lists).flatten().collect();
    (0..MODELS)
        .filter(|id| !seen.contains(&(*id as u32)))
        .collect()
}

/// The dense rule's value of a row without any gradient, in f64: its weight decay.
fn decayed(value: &f32) -> f64 {
    let keep = |step| f64::from((1.0 - rate(step) * DECAY) as f32);
    (0..STEPS).map(keep).product::<f64>() * f64::from(*value)
}

#[test]
fn lazy_rows_are_where_the_dense_rule_has_them() {
    let never = never();
    assert!(
        never.len() >= 5 && never.iter().any(|id| *id < OLD),
        "{never:?}"
    );
    for (options, _) in devices() {
        let encoder = toy(&options);
        let width = encoder.width();
        for held in [
            None,
            Some(anchors(false, true)),
            Some(anchors(false, false)),
            Some(anchors(true, false)),
        ] {
            let run = |dense: bool| {
                let mut forty = Forty::new(&encoder, 5);
                if dense {
                    forty.engine.activate_all().unwrap();
                }
                for step in 0..STEPS {
                    forty.step(step, &lists(step), held, false);
                }
                (forty.parameters(), forty.start)
            };
            let ((w, rows), start) = run(false);
            let ((dense_w, dense_rows), _) = run(true);
            let worst = |a: &[f32], b: &[f32]| {
                let pairs = a.iter().zip(b);
                pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
            };
            let found = (worst(&w, &dense_w), worst(&rows, &dense_rows));
            println!("{held:?} {options:?}: {found:?}");
            // Anchored to all rows in f32 the dense rule has gradients of rounding, and AdamW makes
            // steps of them: lazy rows are nearer to the rule in f64.
            let noisy = held.is_some_and(|anchors| !anchors.raw && !anchors.touched);
            let bounds = if noisy { (1e-5, 1e-2) } else { (2e-6, 2e-6) };
            assert!(found.0 < bounds.0 && found.1 < bounds.1, "{found:?}");
            let e = start.len() - rows.len();
            // Decay was worth more.
            assert!(worst(&rows, &start[e..]) > 1.1e-2);
            let all_old_move = held.is_some_and(|anchors| anchors.raw);
            for &id in never.iter().filter(|id| **id >= OLD || !all_old_move) {
                let row = id * width..(id + 1) * width;
                let want: Vec<f64> = start[e..][row.clone()].iter().map(decayed).collect();
                let error = |rows: &[f32]| {
                    let pairs = rows[row.clone()].iter().zip(&want);
                    let relative = pairs.map(|(got, want)| (f64::from(*got) - want) / want);
                    relative.fold(0.0, |worst: f64, error| worst.max(error.abs()))
                };
                // Two roundings; the dense rule's are one a step.
                let (lazy, dense) = (error(&rows), error(&dense_rows));
                assert!(lazy <= 2.0 * 2f64.powi(-24), "row {id}: {lazy:e}");
                let all = (STEPS as f64) * 2f64.powi(-24);
                assert_eq!(dense <= all, !(noisy && id < OLD), "row {id}: {dense:e}");
            }
        }
    }
}

#[test]
fn touched_rows_alone_have_the_bits_of_all_where_all_are_touched() {
    for (options, _) in devices() {
        let encoder = toy(&options);
        let run = |candidates: usize, touched: bool| {
            let mut forty = Forty::new(&encoder, candidates);
            for step in 0..3 {
                let list = |i: u32| {
                    (0..candidates as u32)
                        .map(|j| (i * 9 + j) % MODELS as u32)
                        .collect()
                };
                let lists: Vec<Vec<u32>> = (0..4).map(list).collect();
                forty.step(step, &lists, Some(anchors(false, true)), touched);
            }
            (forty.parameters(), forty.engine.norm())
        };
        assert_eq!(run(MODELS, true), run(MODELS, false));
        assert_ne!(run(5, true), run(5, false));
    }
}

#[test]
fn rows_that_are_not_touched_stay_as_they_are() {
    for (options, _) in devices() {
        let encoder = toy(&options);
        let mut forty = Forty::new(&encoder, 5);
        for step in 0..STEPS {
            forty.step(step, &lists(step), Some(anchors(false, true)), true);
        }
        let ((_, rows), width) = (forty.parameters(), encoder.width());
        let start = &forty.start[forty.start.len() - rows.len()..];
        let stayed = |id: usize| rows[id * width..][..width] == start[id * width..][..width];
        let never = never();
        assert!((0..MODELS).all(|id| stayed(id) == never.contains(&id)));
        let left = forty.engine.gradient_values().unwrap();
        assert!(left.iter().all(|gradient| *gradient == 0.0));
    }
}

#[test]
fn scores_are_of_rows_as_they_are() {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for (options, _) in devices() {
        let encoder = toy(&options);
        let width = encoder.width();
        let mut forty = Forty::new(&encoder, 5);
        for step in 0..STEPS - 1 {
            forty.step(step, &lists(step), None, false);
        }
        // The last step's queries are those before it.
        let (w, _) = forty.parameters();
        let h = wide(&forty.pooled[1]);
        let z: Vec<f64> = w.chunks(width).map(|row| dot(&wide(row), &h)).collect();
        forty.step(STEPS - 1, &lists(STEPS - 1), None, false);
        let (_, rows) = forty.parameters();
        // In runs and alone; active and lazy.
        let models = [3, 4, 5, 39, 0, 38, 20];
        for cosine in [true, false] {
            let found = forty.engine.scores(1, &models, cosine).unwrap();
            let want = models.map(|id| {
                let row = wide(&rows[id as usize * width..][..width]);
                let length = if cosine {
                    (dot(&row, &row) * dot(&z, &z)).sqrt()
                } else {
                    1.0
                };
                dot(&row, &z) / length
            });
            assert_close("scores", &found, &want, 1e-5);
        }
    }
}

/// Parts of a layout by name.
fn parts(layout: &ParameterLayout) -> [(&'static str, Vec<Place>); 4] {
    let branches = || layout.adapter.branches().map(|(_, branch)| branch);
    [
        ("A", branches().map(|branch| branch.a).collect()),
        ("B", branches().map(|branch| branch.b).collect()),
        ("W", vec![layout.w]),
        ("E", vec![layout.e]),
    ]
}

/// The slope of what is distilled along each part's own gradient is that gradient's length.
#[test]
fn what_is_distilled_has_the_gradients_of_finite_differences() {
    const STEP: f32 = 1e-2;
    let golden = Golden::open("learn-toy");
    for (options, _) in devices() {
        let encoder = toy(&options);
        for name in ["all", "sampled"] {
            let mut case = GoldenCase::new(&golden, name, Arc::clone(&encoder));
            let layout = case.engine.layout().clone();
            let old = layout.e.rows - 2;
            let said: Vec<Vec<f32>> = (0..case.tokens.len() as u64)
                .map(|i| noise(old, 60 + i).iter().map(|s| 8.0 * s).collect())
                .collect();
            case.engine.set_distill(old, 2.0);
            let (engine, mut items) = case.parts();
            for (i, item) in items.iter_mut().enumerate() {
                // Nothing is routed, and not all is distilled.
                item.weight = 0.0;
                item.distilled = (i % 3 != 1).then_some(Distilled {
                    scores: &said[i],
                    share: 0.4,
                });
            }
            let batch = std::slice::from_ref(&items);
            let term = engine.gradients(batch).unwrap();
            assert!(term > 0.1, "{term}");
            let gradient = engine.gradient_values().unwrap();
            assert!(
                gradient[layout.e.offset + old * layout.w.rows..]
                    .iter()
                    .all(|g| *g == 0.0)
            );
            let theta = engine.parameters().unwrap();
            let slope = |engine: &mut Engine, own: &[f32], length: f64| {
                let mut at = |step: f32| {
                    let scale = step / length as f32;
                    let pairs = theta.iter().zip(own);
                    let moved: Vec<f32> = pairs.map(|(t, d)| t + scale * d).collect();
                    engine.set(&moved).unwrap();
                    engine.gradients(batch).unwrap()
                };
                (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP) / length
            };
            let mut found = Vec::new();
            for (part, places) in parts(&layout) {
                let mut own = vec![0.0f32; gradient.len()];
                for place in places {
                    let range = place.offset..place.end();
                    own[range.clone()].copy_from_slice(&gradient[range]);
                }
                let length = wide(&own).iter().map(|g| g * g).sum::<f64>().sqrt();
                let share = slope(engine, &own, length);
                assert!(
                    (share - 1.0).abs() < 2e-2,
                    "{name} {part}: {share} of its length"
                );
                found.push((part, own, length));
            }
            // Softened otherwise it is another term, with other slopes.
            engine.set_distill(old, 1.0);
            for (part, own, length) in found {
                let other = slope(engine, &own, length);
                assert!((other - 1.0).abs() > 4e-2, "{part}: cannot fail: {other}");
            }
        }
    }
}

#[test]
fn a_teacher_scores_as_the_router_does_and_teaches_itself_nothing() {
    for (options, _) in devices() {
        let golden = Golden::open("learn-toy");
        let mut case = GoldenCase::new(&golden, "sampled", toy(&options));
        let layout = case.engine.layout().clone();
        let (width, old) = (layout.w.rows, layout.e.rows - 2);
        case.engine.set_distill(old, 2.0);
        let (engine, mut items) = case.parts();
        let tokens: Vec<&Tokens> = items.iter().filter_map(Item::tokens).collect();
        let features = engine.features(&tokens, &mut |_| {}).unwrap();
        let inputs = features.len() / tokens.len();
        let pooled: Vec<&[f32]> = features.chunks_exact(inputs).collect();
        let tau = 0.3;
        let said = engine.teacher_scores(&pooled, tau).unwrap();
        // Alone, to the last bit.
        assert_eq!(
            engine.teacher_scores(&pooled[1..2], tau).unwrap(),
            said[old..2 * old]
        );
        let theta = wide(&engine.parameters().unwrap());
        let (w, e) = (
            &theta[layout.w.offset..layout.w.end()],
            &theta[layout.e.offset..],
        );
        let rows = normalize(&e[..old * width], width);
        let mut want = Vec::new();
        for h in &pooled {
            let z: Vec<f64> = w
                .chunks_exact(inputs)
                .map(|row| dot(row, &wide(h)))
                .collect();
            let u = normalize(&z, width);
            want.extend(
                rows.chunks_exact(width)
                    .map(|v| dot(&u, v) / f64::from(tau)),
            );
        }
        assert_close("teacher", &said, &want, 1e-5);

        // At its own temperature.
        let tau = golden.number("/tau") as f32;
        let said = engine.teacher_scores(&pooled, tau).unwrap();
        for (item, scores) in items.iter_mut().zip(said.chunks_exact(old)) {
            item.weight = 0.0;
            item.distilled = Some(Distilled { scores, share: 1.0 });
        }
        let term = engine.gradients(std::slice::from_ref(&items)).unwrap();
        let gradient = engine.gradient_values().unwrap();
        assert!(term.abs() < 1e-6, "{term:e}");
        assert!(gradient.iter().all(|g| g.abs() < 1e-5));
    }
}

/// With distillation every old row has a gradient, whatever the candidates: none is lazy.
#[test]
fn a_teacher_activates_the_models_that_it_knows() {
    let never = never();
    for (options, _) in devices() {
        let encoder = toy(&options);
        let width = encoder.width();
        let run = |dense: bool, distilled: bool| {
            let mut forty = Forty::new(&encoder, 5);
            if distilled {
                forty.engine.set_distill(OLD, 2.0);
                forty.teacher = (0..3).map(|i| noise(OLD, 80 + i)).collect();
            }
            if dense {
                forty.engine.activate_all().unwrap();
            }
            for step in 0..STEPS {
                forty.step(step, &lists(step), None, false);
            }
            (forty.parameters(), forty.start)
        };
        let ((w, rows), start) = run(false, true);
        let ((dense_w, dense_rows), _) = run(true, true);
        assert_close("W", &w, &wide(&dense_w), 2e-6);
        assert_close("E", &rows, &wide(&dense_rows), 2e-6);
        let e = start.len() - rows.len();
        let decayed_alone = |rows: &[f32], id: usize| {
            let row = id * width..(id + 1) * width;
            let mut pairs = rows[row.clone()].iter().zip(&start[e..][row]);
            pairs.all(|(got, start)| {
                let want = decayed(start);
                (f64::from(*got) - want).abs() < 1e-6 * want.abs()
            })
        };
        let ((_, untaught), _) = run(false, false);
        for &id in &never {
            assert_eq!(decayed_alone(&rows, id), id >= OLD, "row {id}");
            assert!(decayed_alone(&untaught, id), "row {id}");
        }
    }
}

/// A store of a generation of the models `a` and `b`, in a folder that goes away.
fn two_models(name: &str, encoder: &Arc<Encoder>) -> (Folder, Store, GenerationId) {
    let folder = Folder::new(name);
    let bundle = folder.join("toy-bert");
    import_encoder(
        "tests/fixtures/toy-bert",
        &bundle,
        &ImportOptions::default(),
    )
    .unwrap();
    let store = Store::create(folder.join("store")).unwrap();
    let models = ["a", "b"].map(|name| NewModel::new(Model::new(name, "d"), Vec::new()));
    let first = store.build(encoder, &models, "test", &mut |_, _| {});
    let first = first.unwrap();
    (folder, store, first)
}

/// Prompts of the two models with these numbers.
fn prompts(numbers: std::ops::Range<usize>) -> Experience {
    let example = |i| Example::new(format!("prompt {i}"), ["a", "b"][i % 2]);
    Experience {
        models: Vec::new(),
        examples: numbers.map(example).collect(),
    }
}

/// A route with a memory encodes its prompt once.
#[cfg(feature = "gpu")]
#[test]
fn a_memory_takes_one_encoding() {
    let options = Options::default().device(adapter_name().as_str());
    let encoder = toy(&options);
    let (_folder, store, first) = two_models("one", &encoder);
    let mut learner = Learner::open(store.root(), None, Settings::memory(), options).unwrap();
    let mut go_on = |_: &_| Control::Continue;
    learner.learn(&prompts(0..8), None, &mut go_on).unwrap();
    let second = learner.commit().unwrap();
    let layers = encoder.config().layers;
    // The memory adds a projection.
    for (id, more) in [(first, 0), (second, 1)] {
        let contents = store.contents(&id).unwrap();
        let serving = Serving::new(id, &contents, Arc::clone(&encoder), None).unwrap();
        let tokens = encoder.tokenize_prompts(&["count the dispatches"]);
        let tokens = tokens.into_iter().map(Result::unwrap);
        let ranked = serving.rank(&tokens.collect::<Vec<_>>(), 2).unwrap();
        assert_eq!(ranked.counts.dispatches, 5 * layers + 5 + more);
    }
}

/// What an update encodes besides its steps: its own prompts once by the router's encoder, once
/// more by the encoder as it came where it chooses a coreset by that, and earlier ones where it
/// trains.
#[test]
fn an_update_encodes_no_prompt_twice() {
    let options = Options::default().device("cpu").threads(1);
    let encoder = toy(&options);
    for privacy in ["text", "embeddings", "hashes"] {
        let (_folder, store, _) = two_models("twice", &encoder);
        let mut settings = Settings::edge();
        for (key, value) in [
            ("train.least", "1"),
            ("epochs", "1"),
            ("lora.r", "2"),
            ("replay.privacy", privacy),
        ] {
            settings.set(key, value).unwrap();
        }
        let learn = |numbers: std::ops::Range<usize>, settings: &Settings| {
            let mut learner =
                Learner::open(store.root(), None, settings.clone(), options.clone()).unwrap();
            learner = learner.allow_unmeasured(true);
            let before = ENCODED.get();
            let outcome = learner.learn(&prompts(numbers), None, &mut |_| Control::Continue);
            let encoded = ENCODED.get() - before;
            let Outcome::Learned(report) = outcome.unwrap() else {
                panic!("stopped");
            };
            learner.commit().unwrap();
            (*report, encoded)
        };
        let n = |accuracy: Option<Accuracy>| accuracy.map_or(0, |accuracy| accuracy.n);

        let (report, encoded) = learn(0..40, &settings);
        assert!(report.trained && n(report.accuracy.new_after) == 8);
        assert_eq!(encoded, 40 + report.examples, "{privacy}: the first trains");

        let (report, encoded) = learn(40..80, &settings);
        assert!(!report.trained && report.replay.kept > 0);
        assert_eq!(
            n(report.accuracy.old_before),
            if privacy == "hashes" { 0 } else { 8 }
        );
        assert_eq!(encoded, 40, "{privacy}: later ones do not");

        settings.train = Train::Always;
        let (report, encoded) = learn(80..120, &settings);
        assert!(report.trained);
        // A text is looked at before and after the steps, so that the memory can follow.
        let (own, earlier) = (40 + report.examples, n(report.accuracy.old_after));
        let followed = match privacy {
            "text" => report.replayed,
            _ => report.examples,
        };
        assert_eq!(encoded, own + earlier + 2 * followed, "{privacy}");
        assert_eq!(earlier, if privacy == "text" { 16 } else { 0 });
    }
}

/// 512 examples have 64 that are held out, on which int8 is measured; the id does not depend on it.
#[test]
fn int8_is_measured_and_recorded_by_learning_and_on_request() {
    let options = Options::default().device("cpu").threads(1);
    let encoder = toy(&options);
    let (_folder, store, first) = two_models("int8", &encoder);
    let measure = |id: &GenerationId, examples: &[Example]| {
        measure_precision(&store, id, Some(examples), &options)
    };
    assert_eq!(store.agreement(&first).unwrap(), None);
    let few = measure(&first, &prompts(0..63).examples).unwrap_err();
    assert!(few.to_string().contains("found 63"), "{few}");
    let none = measure_precision(&store, &first, None, &options).unwrap_err();
    assert!(none.to_string().contains("--examples"), "{none}");
    let learn = |numbers: std::ops::Range<usize>| {
        let settings = Settings::memory();
        let mut learner = Learner::open(store.root(), None, settings, options.clone()).unwrap();
        let outcome = learner.learn(&prompts(numbers), None, &mut |_| Control::Continue);
        outcome.unwrap();
        learner.commit().unwrap()
    };
    let second = learn(0..512);
    let examples = prompts(0..512).examples;
    let recorded = store.agreement(&second).unwrap();
    let measured = measure(&second, &examples).unwrap();
    assert!(measured.held_out && measured.prompts == 64, "{measured:?}");
    assert!(measured.worst_cosine > 0.99 && measured.worst_cosine < 1.0);
    assert_eq!(store.agreement(&second).unwrap(), Some(measured.clone()));
    // They are kept as text.
    let kept = measure_precision(&store, &second, None, &options).unwrap();
    assert_eq!(kept, measured);
    let has_kernel = LowKernel::detect(LowFormat::Int8, CpuLevel::Auto)
        .0
        .is_some();
    assert_eq!(recorded, has_kernel.then_some(measured));
    assert!(store.check(&second).is_ok());
    // Of others all are taken.
    let others = measure(&second, &prompts(600..700).examples).unwrap();
    assert!(!others.held_out && others.prompts == 100, "{others:?}");
    // Earlier held-out prompts count as well.
    let third = store.agreement(&learn(512..520)).unwrap();
    assert_eq!(third.map(|a| a.prompts), has_kernel.then_some(66));
}

/// As int8: the id does not depend on it, and the command finds what learning found.
#[test]
fn confidence_is_measured_and_recorded_by_learning_and_on_request() {
    let options = Options::default().device("cpu").threads(1);
    let encoder = toy(&options);
    let (_folder, store, first) = two_models("confidence", &encoder);
    let measure = |id: &GenerationId, examples: Option<&[Example]>| {
        measure_confidence(&store, id, examples, &options)
    };
    assert_eq!(store.calibration(&first).unwrap(), None);
    let few = measure(&first, Some(&prompts(0..63).examples)).unwrap_err();
    assert!(few.to_string().contains("found 63"), "{few}");
    let none = measure(&first, None).unwrap_err();
    assert!(none.to_string().contains("--examples"), "{none}");
    let learn = |numbers: std::ops::Range<usize>| {
        let settings = Settings::memory();
        let mut learner = Learner::open(store.root(), None, settings, options.clone()).unwrap();
        let outcome = learner.learn(&prompts(numbers), None, &mut |_| Control::Continue);
        outcome.unwrap();
        learner.commit().unwrap()
    };
    let second = learn(0..512);
    let recorded = store.calibration(&second).unwrap().unwrap();
    assert!(recorded.held_out && recorded.prompts == 64);
    let measured = measure(&second, None).unwrap();
    // What is kept of a prompt's vector is in half precision.
    assert_eq!(measured.prompts, 64);
    assert!(measured.domain.right.abs_diff(recorded.domain.right) <= 1);
    assert!((measured.domain.slope - recorded.domain.slope).abs() < 0.05);
    assert!((measured.distances[50] - recorded.distances[50]).abs() < 1e-3);
    assert_eq!(store.calibration(&second).unwrap(), Some(measured));
    assert!(store.check(&second).is_ok());
    // Without a memory or held-out prompts, by examples.
    let others = measure(&first, Some(&prompts(600..700).examples)).unwrap();
    assert!(!others.held_out && others.prompts == 100, "{others:?}");
    assert_eq!(others.unknown_words, [0.0; 101]);
    // Earlier held-out prompts count as well; few are too few.
    let third = store.calibration(&learn(512..520)).unwrap();
    assert_eq!(third.map(|c| c.prompts), Some(66));
}
