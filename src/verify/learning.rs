//! A recorded learning run, made again: the same start, batches, candidates and rates, with the
//! engine of `learn` driven step by step, so that nothing is drawn.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::form::{
    ClipOver, ParityItem, ParityLearning, ParityLosses, ParityMemory, ParitySplit, ParityStep,
};
use super::learning_check::{check, check_memory};
use super::tensors::{ParityTensors, ParityValues};
use crate::encoder::Encoder;
use crate::encoder::seen::{Seen, look};
use crate::error::{Result, bail, error};
use crate::generation::memory::{How, remember};
use crate::generation::{ADAPTER, Contents, EMBEDDINGS, EncoderPin, Manifest, PROJECTION};
use crate::hub::{Domains, Hub, Model};
use crate::learn::{
    Anchors, Capacity, Engine, Item, ParameterLayout, Penalty, RowInput, SoftTarget, StepRates,
    digest,
};
use crate::memory::{Memory, PriorMean, Prompt, Solved, Solving, solve};
use crate::model::bert::Bert;
use crate::model::lora::{Adapter, Factors, Lora, Target};
use crate::num::{dot, to_f32, to_u32};
use crate::serve::Serving;
use crate::text::query::query_digest;
use crate::text::tokenizer::Tokens;
use crate::weights::ANY;

/// Prompts of a batch that is evaluated.
const BATCH: usize = 64;

/// Makes the run of `form` and `plan` again; the manifest's part and the tensors of this one.
///
/// `progress`: called with the number of steps done.
///
/// Errors: the run is not one that this program can make, or names what is not there; the device
/// failed; a loss is not finite.
pub(super) fn run(
    encoder: &Arc<Encoder>,
    form: &ParityLearning,
    plan: &ParityTensors,
    progress: &mut dyn FnMut(usize),
) -> Result<(ParityLearning, ParityTensors)> {
    check(form, plan)?;
    if let Some(memory) = &form.memory {
        check_memory(memory, encoder.config().layers)?;
    }
    let texts: Vec<&str> = form.rows.iter().map(|row| row.text.as_str()).collect();
    let tokens = encoder.tokenize_prompts(&texts).into_iter().enumerate();
    let tokens = tokens.map(|(i, tokens)| {
        let tokens = tokens.map_err(|e| e.at(format!("row {i}")))?;
        Ok(Arc::new(tokens))
    });
    let mut replay = Replayed {
        encoder,
        form,
        plan,
        tokens: tokens.collect::<Result<_>>()?,
        made: ParityTensors::default(),
        own: form.clone(),
        memory: None,
    };
    replay.own.matrix = Default::default();
    replay.own.predictions = Default::default();
    let mut state = replay.start()?;
    for experience in 0..form.experiences {
        state = replay.experience(experience, state, progress)?;
    }
    Ok((replay.own, replay.made))
}

/// A run while it is made again.
struct Replayed<'r> {
    encoder: &'r Arc<Encoder>,
    form: &'r ParityLearning,
    plan: &'r ParityTensors,
    tokens: Vec<Arc<Tokens>>,
    made: ParityTensors,
    own: ParityLearning,
    memory: Option<Memory>,
}

/// The parameters between two experiences.
struct LearnedState {
    adapter: Vec<f32>,
    /// W [D, H]
    projection: Vec<f32>,
    /// E [M, D]
    embeddings: Vec<f32>,
    /// D
    width: usize,
}

impl Replayed<'_> {
    fn lora(&self) -> Lora {
        Lora {
            r: self.form.rank,
            alpha: to_f32(self.form.alpha),
            targets: Target::ALL.to_vec(),
        }
    }

    /// The parameters before the first step; E has no rows yet.
    fn start(&mut self) -> Result<LearnedState> {
        let (encoder, plan) = (self.encoder, self.plan);
        let adapter = Adapter::new(&self.lora(), encoder.config());
        let inputs = encoder.width();
        let width = plan.rows(&format!("start.{PROJECTION}"), inputs)?;
        let projection = plan.f32(&format!("start.{PROJECTION}"), &[width, inputs])?;
        let mut values = vec![0.0; adapter.len];
        for (name, place, shape, transposed) in factors(&adapter) {
            let tensor = plan.f32(&format!("start.{name}"), &shape)?;
            put(&mut values[place], tensor, shape, transposed);
        }
        let layout = ParameterLayout::new(adapter, width, inputs, 0);
        let all = [&values[..], projection].concat();
        self.record("start.", &layout, &all);
        Ok(LearnedState {
            adapter: values,
            projection: projection.to_vec(),
            embeddings: Vec::new(),
            width,
        })
    }

    /// Puts parameters, or their gradients, in the order of `layout` among the tensors made.
    fn record(&mut self, prefix: &str, layout: &ParameterLayout, flat: &[f32]) {
        for (name, place, shape, transposed) in factors(&layout.adapter) {
            let mut values = flat[place].to_vec();
            if transposed {
                values = columns(&values, shape);
            }
            self.made.put_f32(format!("{prefix}{name}"), &shape, values);
        }
        for (name, place) in [(PROJECTION, layout.w), (EMBEDDINGS, layout.e)] {
            if place.rows > 0 {
                let values = flat[place.offset..place.end()].to_vec();
                let shape = [place.rows, place.columns];
                self.made.put_f32(format!("{prefix}{name}"), &shape, values);
            }
        }
    }

    /// One experience: its steps, and what is known after them.
    fn experience(
        &mut self,
        number: usize,
        before: LearnedState,
        progress: &mut dyn FnMut(usize),
    ) -> Result<LearnedState> {
        let (width, inputs) = (before.width, self.encoder.width());
        let name = format!("{number}.rows");
        let rows = self.plan.f32(&name, &[ANY, width])?;
        self.made
            .put_f32(&name, &[rows.len() / width, width], rows.to_vec());
        let models = (before.embeddings.len() + rows.len()) / width;
        let adapter = Adapter::new(&self.lora(), self.encoder.config());
        let layout = ParameterLayout::new(adapter, width, inputs, models);
        let LearnedState {
            adapter,
            projection,
            embeddings,
            ..
        } = &before;
        let values = [&adapter[..], projection, embeddings, rows].concat();
        let steps = self.form.steps.iter().enumerate();
        let steps: Vec<(usize, &ParityStep)> = steps
            .filter(|(_, step)| step.experience == number)
            .collect();
        let capacity = capacity(steps.iter().map(|(_, step)| *step))?;
        let tau = to_f32(self.form.tau);
        let encoder = Arc::clone(self.encoder);
        let mut engine = Engine::new(encoder, layout.clone(), capacity, &values, tau)?;
        engine.watch();
        if number > 0 {
            engine.anchor_to(embeddings, projection)?;
        }
        let mut pooled = BTreeMap::new();
        for (at, step) in steps {
            self.step(at, step, &mut engine, &mut pooled)?;
            progress(at + 1);
        }
        let theta = engine.parameters()?;
        self.record(&format!("end.{number}."), &layout, &theta);
        let after = LearnedState {
            adapter: theta[..layout.adapter.len].to_vec(),
            projection: theta[layout.w.offset..layout.w.end()].to_vec(),
            embeddings: theta[layout.e.offset..].to_vec(),
            width,
        };
        self.evaluate(number, &after)?;
        Ok(after)
    }

    /// `pooled`: vectors of rows by the encoder as it is; emptied when a step trains it.
    fn step(
        &mut self,
        at: usize,
        step: &ParityStep,
        engine: &mut Engine,
        pooled: &mut BTreeMap<usize, Arc<[f32]>>,
    ) -> Result<()> {
        let frozen = step.rates.lora.is_none();
        if frozen {
            let rows = step.batches.iter().flatten().map(|item| item.row);
            let missing = rows.filter(|row| !pooled.contains_key(row));
            let mut missing: Vec<usize> = missing.collect();
            missing.sort_unstable();
            missing.dedup();
            let tokens: Vec<&Tokens> = missing.iter().map(|row| &*self.tokens[*row]).collect();
            let vectors = engine.features(&tokens, &mut |_| {})?;
            let vectors = vectors.chunks_exact(self.encoder.width());
            pooled.extend(missing.into_iter().zip(vectors.map(Arc::from)));
        } else {
            pooled.clear();
        }
        let batches = self.batches(step, pooled);
        let rates = self.rates(step);
        let penalty = step.anchors.as_ref().map(|anchors| {
            Penalty::Anchors(Anchors {
                embedding: to_f32(anchors.embedding),
                raw: false,
                projection: to_f32(anchors.projection),
                touched: false,
            })
        });
        let losses = engine
            .step(&batches, &rates, penalty)
            .map_err(|e| e.at(format!("step {at}")))?;
        self.own.steps[at].losses = ParityLosses {
            route: losses.route,
            embedding: losses.embedding,
            projection: losses.projection,
            total: losses.total(),
        };
        let layout = engine.layout().clone();
        let mut gradients = engine.watched().to_vec();
        if step.gradients {
            self.record(&format!("gradient.{at}."), &layout, &gradients);
        }
        if !self.form.switches.grad_reset {
            // Those of W and E stay, and the next step adds to them.
            gradients[..layout.w.offset].fill(0.0);
            engine.carry(&gradients)?;
        }
        Ok(())
    }

    /// The micro-batches of `step`; a row of which `pooled` has the vector enters as that.
    fn batches(
        &self,
        step: &ParityStep,
        pooled: &BTreeMap<usize, Arc<[f32]>>,
    ) -> Vec<Vec<Item<'static>>> {
        let input = |row: usize| match pooled.get(&row) {
            Some(vector) => RowInput::Pooled(Arc::clone(vector)),
            None => RowInput::Tokens(Arc::clone(&self.tokens[row])),
        };
        let item = |item: &ParityItem| Item {
            input: input(item.row),
            target: SoftTarget {
                ids: item.targets.iter().map(|(id, _)| *id).collect(),
                mass: item.targets.iter().map(|(_, mass)| to_f32(*mass)).collect(),
            },
            candidates: item.candidates.clone(),
            weight: to_f32(item.weight),
            key: 0,
            distilled: None,
        };
        let batches = step.batches.iter();
        batches
            .map(|batch| batch.iter().map(item).collect())
            .collect()
    }

    fn rates(&self, step: &ParityStep) -> StepRates {
        let (rates, counters) = (&step.rates, &step.counters);
        let count = |counter: Option<usize>| counter.unwrap_or(1).max(1);
        StepRates {
            lora: rates.lora.map(|rate| (rate, count(counters.lora))),
            w: rates.projection,
            e: rates.embeddings,
            counter: count(counters.router),
            decay: self.form.weight_decay,
            clip: to_f32(self.form.clip),
            clip_all: self.form.clip_scope == ClipOver::All,
            touched: false,
        }
    }

    /// Accuracy by the cosine alone and with the memory, and the memory itself; by the network as
    /// it would be served.
    fn evaluate(&mut self, number: usize, after: &LearnedState) -> Result<()> {
        let encoder = Arc::clone(self.encoder);
        let factors = Factors {
            adapter: Adapter::new(&self.lora(), encoder.config()),
            values: after.adapter.clone(),
        };
        let merged = encoder.merged(&factors)?;
        let rows = self.form.rows.iter().enumerate();
        let measured =
            rows.filter(|(_, row)| row.split == ParitySplit::Eval && row.experience <= number);
        let measured: Vec<usize> = measured.map(|(at, _)| at).collect();
        let tokens = measured.iter().map(|at| Arc::clone(&self.tokens[*at]));
        let tokens: Vec<Arc<Tokens>> = tokens.collect();
        let tokens: Vec<&Tokens> = tokens.iter().map(|tokens| &**tokens).collect();
        let mut features = Vec::with_capacity(tokens.len() * encoder.width());
        for batch in encoder.batches(&tokens, BATCH) {
            features.extend(encoder.embed_batch(&merged, batch)?);
        }
        let best = self.by_cosine(&features, after);
        self.own
            .matrix
            .learned
            .push(self.accuracy(number, &measured, &best));
        self.own.predictions.learned.push(best);
        let Some(settings) = self.form.memory.clone() else {
            return Ok(());
        };
        let contents = self.remember(number, after, &settings, &factors, &merged)?;
        let (id, _) = contents.manifest.seal()?;
        let serving = Serving::new(id, &contents, encoder, None)?;
        let best = serving.best(&tokens, &mut |_| {})?;
        self.own
            .matrix
            .served
            .push(self.accuracy(number, &measured, &best));
        self.own.predictions.served.push(best);
        Ok(())
    }

    /// The model with the largest cosine for each of `features` [rows, H].
    fn by_cosine(&self, features: &[f32], after: &LearnedState) -> Vec<u32> {
        let (inputs, width) = (self.encoder.width(), after.width);
        let lengths = after
            .embeddings
            .chunks_exact(width)
            .map(|row| dot(row, row).sqrt());
        let lengths: Vec<f64> = lengths.collect();
        let best = |pooled: &[f32]| {
            let rows = after.projection.chunks_exact(inputs);
            let query: Vec<f32> = rows.map(|row| to_f32(dot(row, pooled))).collect();
            let rows = after.embeddings.chunks_exact(width).zip(&lengths);
            let scores = rows.map(|(row, length)| dot(row, &query) / length.max(1e-12));
            let best = scores.enumerate().fold((0, f64::MIN), |best, (id, score)| {
                if score > best.1 { (id, score) } else { best }
            });
            to_u32(best.0)
        };
        features.chunks_exact(inputs).map(best).collect()
    }

    /// Percent right by experience; `best`: of each of the rows `measured`.
    fn accuracy(&self, number: usize, measured: &[usize], best: &[u32]) -> Vec<f64> {
        let of = |experience: usize| {
            let pairs = measured.iter().zip(best);
            let own = pairs.filter(|(at, _)| self.form.rows[**at].experience == experience);
            let (hits, all) = own.fold((0, 0), |(hits, all), (at, best)| {
                (
                    hits + usize::from(self.form.rows[*at].model == *best),
                    all + 1,
                )
            });
            100.0 * f64::from(to_u32(hits)) / f64::from(to_u32(all.max(1)))
        };
        (0..=number).map(of).collect()
    }

    /// The models of the first `count` ids.
    fn hub(&self, count: usize) -> Result<Hub> {
        let models = self.form.names.iter().zip(&self.form.domains).take(count);
        Hub::default().with(models.map(|(name, domain)| Model::new(name, domain)))
    }

    /// Adds the experience's rows to the memory and solves it; the generation that serves it.
    fn remember(
        &mut self,
        number: usize,
        after: &LearnedState,
        settings: &ParityMemory,
        factors: &Factors,
        merged: &Bert,
    ) -> Result<Contents> {
        let encoder = Arc::clone(self.encoder);
        let models = after.embeddings.len() / after.width;
        let hub = self.hub(models)?;
        let cards = self.cards(models, settings)?;
        let mut memory = match self.memory.take() {
            Some(mut memory) => {
                memory.grow(&hub)?;
                memory
            }
            None => Memory::new(settings.layers.clone(), encoder.width(), &hub)?,
        };
        let rows = self.form.rows.iter().enumerate();
        let learned =
            rows.filter(|(_, row)| row.split == ParitySplit::Train && row.experience == number);
        let learned: Vec<usize> = learned.map(|(at, _)| at).collect();
        let tokens: Vec<&Tokens> = learned.iter().map(|at| &*self.tokens[*at]).collect();
        let seen = look(&encoder, merged, &settings.layers, &tokens, &mut |_| {})?;
        memory.add(encoder.host(), &self.prompts(&hub, &learned, &seen))?;
        let how = How {
            strengths: settings.strengths,
            solving: Solving {
                rank: settings.rank,
                prior: settings.prior,
            },
        };
        let solved = solve(encoder.host(), &memory, &hub, &cards, how.solving)?;
        self.record_memory(number, &memory, &solved)?;
        let mut parts = BTreeMap::from([(ADAPTER.to_owned(), factors.write()?)]);
        remember(encoder.host(), &mut parts, &memory, &hub, &cards, how)?;
        self.memory = Some(memory);
        let pin = EncoderPin::of(&encoder);
        let tau = to_f32(self.form.tau);
        let mut manifest = Manifest::first(pin, after.width, tau, "verify");
        manifest.adapter = Some(self.lora());
        Ok(Contents {
            manifest,
            hub: Arc::new(hub),
            projection: after.projection.clone(),
            embeddings: after.embeddings.clone(),
            parts,
            agreement: None,
            calibration: None,
        })
    }

    /// The unit vectors of the cards of the first `models` models, [models, H]; empty where the
    /// prior does not look at them.
    fn cards(&mut self, models: usize, settings: &ParityMemory) -> Result<Vec<f32>> {
        if settings.prior != PriorMean::Card {
            return Ok(Vec::new());
        }
        let (all, width) = (self.form.names.len(), self.encoder.width());
        let cards = self.plan.f32("cards", &[all, width])?;
        self.made.put_f32("cards", &[all, width], cards.to_vec());
        Ok(cards[..models * width].to_vec())
    }

    fn prompts<'s>(&self, hub: &Hub, rows: &[usize], seen: &'s [Seen]) -> Vec<Prompt<'s>> {
        let domains = Domains::new(hub);
        let prompt = |(at, seen): (&usize, &'s Seen)| {
            let row = &self.form.rows[*at];
            Prompt {
                model: row.model,
                domain: domains.of[row.model as usize],
                digest: digest(&query_digest(&row.text)),
                seen,
            }
        };
        rows.iter().zip(seen).map(prompt).collect()
    }

    fn record_memory(&mut self, number: usize, memory: &Memory, solved: &Solved) -> Result<()> {
        let (models, width) = (memory.counts().len(), memory.width());
        let mut sums = Vec::with_capacity(models * width);
        for model in 0..models {
            for sum in memory.sum(model)? {
                let sum = i32::try_from(sum);
                sums.push(sum.map_err(|e| error!(Numeric, "memory.{number}.sums: {e}"))?);
            }
        }
        let at = |name: &str| format!("memory.{number}.{name}");
        let (rank, made) = (solved.rank, &mut self.made);
        made.put_ids(at("counts"), &[models], memory.counts());
        made.put(at("sums"), &[models, width], ParityValues::I32(sums));
        let wide = |values: &[f64]| ParityValues::F64(values.to_vec());
        made.put(at("keys"), &[models, rank], wide(&solved.keys));
        made.put(at("projection"), &[rank, width], wide(&solved.projection));
        made.put(at("bias"), &[rank], wide(&solved.bias));
        Ok(())
    }
}

/// A factor: its name, its place in the flat buffer, its shape on disk, and whether it is stored
/// transposed here.
type Factor = (String, std::ops::Range<usize>, [usize; 2], bool);

/// The factors of `adapter`, in the names of PyTorch.
fn factors(adapter: &Adapter) -> Vec<Factor> {
    let each = adapter.branches().flat_map(|(layer, branch)| {
        let path = branch.target.path();
        let at = |part: &str| format!("encoder.layer.{layer}.{path}.lora_{part}.weight");
        let (a, b) = (branch.a, branch.b);
        [
            (at("A"), a.offset..a.end(), [a.rows, a.columns], false),
            (at("B"), b.offset..b.end(), [b.columns, b.rows], true),
        ]
    });
    each.collect()
}

/// Copies a tensor [rows, columns] to `to`, `transposed` if asked.
fn put(to: &mut [f32], tensor: &[f32], [rows, columns]: [usize; 2], transposed: bool) {
    match transposed {
        false => to.copy_from_slice(tensor),
        true => {
            for (i, row) in tensor.chunks_exact(columns).enumerate() {
                for (j, value) in row.iter().enumerate() {
                    to[j * rows + i] = *value;
                }
            }
        }
    }
}

/// `values` [columns, rows] as [rows, columns].
fn columns(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let all = (0..rows).flat_map(|i| (0..columns).map(move |j| values[j * rows + i]));
    all.collect()
}

/// The room that the steps of an experience need.
///
/// Errors: some items have candidates and others have none.
fn capacity<'s>(steps: impl Iterator<Item = &'s ParityStep>) -> Result<Capacity> {
    let mut capacity = Capacity {
        examples: 1,
        candidates: None,
        targets: 1,
    };
    let (mut with, mut without) = (0, 0);
    for batch in steps.flat_map(|step| &step.batches) {
        capacity.examples = capacity.examples.max(batch.len()).min(BATCH);
        for item in batch {
            capacity.targets = capacity.targets.max(item.targets.len());
            match &item.candidates {
                Some(ids) => {
                    with += 1;
                    let most = capacity.candidates.unwrap_or(1).max(ids.len());
                    capacity.candidates = Some(most);
                }
                None => without += 1,
            }
        }
    }
    if with > 0 && without > 0 {
        bail!(
            Unsupported,
            "candidates: expected all rows of an experience to have some, or none, found {with} \
             with and {without} without"
        );
    }
    Ok(capacity)
}
