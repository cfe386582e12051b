//! Gradients of micro-batches: through the encoder, or from pooled vectors where it is frozen.

use std::sync::Arc;

use crate::device::{Outputs, Pass, Plan, Sizes, Tensor};
use crate::encoder::Encoder;
use crate::error::Result;
use crate::learn::engine::distill::DistillConfig;
use crate::learn::engine::head::{HeadPass, HeadReads, HeadWorkspace, PackedItems};
use crate::learn::engine::optimiser::StepPass;
use crate::learn::engine::parameters::TrainedParameters;
use crate::learn::engine::{Capacity, Item, Losses, RowInput};
use crate::learn::method::draws::Draws;
use crate::learn::method::layout::ParameterLayout;
use crate::model::activations::Activations;
use crate::model::bert::Bert;
use crate::model::training::{Training, TrainingTensors};
use crate::ops::contrastive::NONE;
use crate::text::batch::PackedBatch;
use crate::text::tokenizer::Tokens;

/// Tokens of a micro-batch, at most, but for a single longer prompt: bounds the activations.
const MOST_TOKENS: usize = 1024;

/// The encoder and the head on their way forward and back.
pub(super) struct Gradients {
    encoder: Arc<Encoder>,
    bert: Bert,
    capacity: Capacity,
    tau: f32,
    /// Added to the logits of each model: [M, 1].
    priors: Tensor,
    /// Share of the adapters' inputs that is dropped in a step.
    dropout: f32,
    distill: Option<DistillConfig>,
    /// Made when first used.
    through_encoder: Option<Plan<EncoderPass>>,
    from_pooled: Option<Plan<PooledPass>>,
    /// Bytes that the end of a step uploads and reads at most.
    end: [usize; 2],
    /// Of the last step.
    pub(super) cost: PassCost,
    /// Projected queries of the last micro-batch, in the order of its items.
    pub(super) queries: Vec<Vec<f32>>,
}

/// What a step gave a GPU to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PassCost {
    pub(crate) dispatches: usize,
    pub(crate) submits: usize,
}

/// Examples that go through one pass: their places among the items of a micro-batch, all with
/// tokens or all with pooled vectors.
struct StepPiece {
    batch: usize,
    places: Vec<usize>,
    tokens: bool,
}

/// The tensors of a micro-batch through the encoder.
struct EncoderPass {
    tensors: TrainingTensors,
    head: HeadWorkspace,
}

/// The tensors of a micro-batch whose pooled vectors come from the host.
struct PooledPass {
    /// [B, H]
    pooled: Tensor,
    head: HeadWorkspace,
}

impl Gradients {
    /// `models`: rows of E.
    pub(super) fn new(
        encoder: Arc<Encoder>,
        capacity: Capacity,
        models: usize,
        tau: f32,
    ) -> Result<Self> {
        Ok(Self {
            bert: encoder.for_learning()?,
            capacity,
            tau,
            priors: encoder.device().upload("priors", 1, &vec![0.0; models])?,
            dropout: 0.0,
            distill: None,
            through_encoder: None,
            from_pooled: None,
            end: [0; 2],
            cost: PassCost::default(),
            queries: Vec::new(),
            encoder,
        })
    }

    /// Passes have room for the end of a step that uploads and reads so many bytes.
    pub(super) fn reserve(&mut self, end: [usize; 2]) {
        self.end = end;
        // Made without room for it.
        (self.through_encoder, self.from_pooled) = (None, None);
    }

    /// Steps drop this share of the adapters' inputs from now on.
    pub(super) fn set_dropout(&mut self, rate: f32) {
        self.dropout = rate;
        // Made without room for it.
        self.through_encoder = None;
    }

    /// Shifts the logits of each model from now on: [M].
    pub(super) fn set_priors(&mut self, priors: &[f32]) -> Result<()> {
        self.priors = self.encoder.device().upload("priors", 1, priors)?;
        Ok(())
    }

    /// Items may be distilled from now on.
    pub(super) fn set_distill(&mut self, config: DistillConfig) {
        self.distill = Some(config);
        // Made without room for it.
        (self.through_encoder, self.from_pooled) = (None, None);
    }

    /// Models that a teacher knows; 0 without one.
    pub(super) fn teacher_models(&self) -> usize {
        self.distill.map_or(0, |config| config.models)
    }

    /// Scores of the teacher's models at temperature `tau`, by the parameters as they are: a row
    /// for each of `pooled`, the encoder's vectors [H].
    pub(super) fn teacher_scores(
        &mut self,
        parameters: &TrainedParameters,
        pooled: &[&[f32]],
        tau: f32,
    ) -> Result<Vec<f32>> {
        let models = self.teacher_models();
        let encoder = Arc::clone(&self.encoder);
        let reads = 4 * self.capacity.examples * models;
        let mut plan = self.make_from_pooled(&parameters.layout, reads)?;
        let head = HeadPass::new(encoder.ops(), &parameters.layout, tau, &self.priors);
        let theta = &parameters.theta;
        let mut scores = Vec::with_capacity(pooled.len() * models);
        for rows in pooled.chunks(self.capacity.examples) {
            let (read, outputs) = encoder.device().run(&mut plan, |pass, t| {
                pass.upload_f32(&mut t.pooled, &rows.concat());
                head.teacher_scores(pass, theta, &t.pooled, &mut t.head)
            })?;
            scores.extend_from_slice(read.map_or(&[], |read| outputs.f32(read)));
        }
        Ok(scores)
    }

    /// Pooled vectors [rows, H] of the encoder with its adapters as they are, without dropout.
    ///
    /// `progress`: called with the number of rows done.
    pub(super) fn features(
        &mut self,
        parameters: &TrainedParameters,
        rows: &[&Tokens],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        let encoder = Arc::clone(&self.encoder);
        let mut vectors = Vec::with_capacity(rows.len() * encoder.width());
        let mut plan = self.take_through_encoder(&parameters.layout)?;
        let theta = &parameters.theta;
        let mut done = 0;
        for count in chunks(rows, self.capacity.examples) {
            let batch = pack(&encoder, &rows[done..done + count]);
            let training = self.training(&encoder, parameters, 0.0);
            let (read, outputs) = encoder.device().run(&mut plan, |pass, t| {
                t.tensors.upload(pass, &batch);
                training.forward(pass, theta, &mut t.tensors);
                pass.read(&t.tensors.activations.pooled)
            })?;
            vectors.extend_from_slice(outputs.f32(read));
            done += count;
            progress(done);
        }
        self.through_encoder = Some(plan);
        Ok(vectors)
    }

    fn training<'t>(
        &'t self,
        encoder: &'t Encoder,
        parameters: &'t TrainedParameters,
        dropout: f32,
    ) -> Training<'t> {
        Training {
            ops: encoder.ops(),
            bert: &self.bert,
            adapter: &parameters.layout.adapter,
            dropout,
        }
    }

    fn take_through_encoder(&mut self, layout: &ParameterLayout) -> Result<Plan<EncoderPass>> {
        if let Some(plan) = self.through_encoder.take() {
            return Ok(plan);
        }
        let (encoder, capacity) = (&self.encoder, self.capacity);
        let sizes = Sizes {
            tokens: MOST_TOKENS.max(encoder.max_tokens()),
            prompts: capacity.examples,
        };
        let inputs = encoder.width();
        let tensors = EncoderPass {
            tensors: TrainingTensors::new(
                encoder.device(),
                &self.bert,
                &layout.adapter,
                sizes,
                self.dropout > 0.0,
            )?,
            head: HeadWorkspace::new(encoder.device(), capacity, layout, self.distill)?,
        };
        let keys = 4 * sizes.tokens;
        let head = HeadWorkspace::upload_bytes(capacity, inputs, self.distill);
        let uploads = Activations::upload_bytes(sizes) + head + keys;
        let features = 4 * capacity.examples * inputs;
        let reads = HeadWorkspace::read_bytes(capacity, layout).max(features);
        let [more_uploads, more_reads] = self.end;
        let (uploads, reads) = (uploads + more_uploads, reads + more_reads);
        Plan::new(encoder.device(), tensors, uploads, reads)
    }

    fn take_from_pooled(&mut self, layout: &ParameterLayout) -> Result<Plan<PooledPass>> {
        match self.from_pooled.take() {
            Some(plan) => Ok(plan),
            None => {
                let reads = HeadWorkspace::read_bytes(self.capacity, layout);
                self.make_from_pooled(layout, reads)
            }
        }
    }

    /// `reads`: bytes that a pass brings back at most.
    fn make_from_pooled(&self, layout: &ParameterLayout, reads: usize) -> Result<Plan<PooledPass>> {
        let (device, inputs) = (self.encoder.device(), self.encoder.width());
        let tensors = PooledPass {
            pooled: device.scratch("pooled", self.capacity.examples, inputs)?,
            head: HeadWorkspace::new(device, self.capacity, layout, self.distill)?,
        };
        let uploads = HeadWorkspace::upload_bytes(self.capacity, inputs, self.distill);
        let [more_uploads, more_reads] = self.end;
        Plan::new(device, tensors, uploads + more_uploads, reads + more_reads)
    }

    /// Adds up the gradients of the loss of all micro-batches of a step; returns its terms.
    ///
    /// `train`: with dropout. `step` begins in the first pass and ends in the last one, unless a
    /// loss before that one is not finite.
    pub(super) fn add(
        &mut self,
        parameters: &mut TrainedParameters,
        batches: &[Vec<Item<'_>>],
        train: bool,
        mut step: Option<&mut StepPass<'_>>,
    ) -> Result<Losses> {
        let mut losses = Losses::default();
        let dropout = if train { self.dropout } else { 0.0 };
        self.cost = PassCost::default();
        let pieces = self.pieces(batches);
        assert!(
            step.is_none() || !pieces.is_empty(),
            "engine: a step without examples"
        );
        let mut batch = usize::MAX;
        for (number, piece) in pieces.iter().enumerate() {
            let items = &batches[piece.batch];
            if piece.batch != batch {
                batch = piece.batch;
                self.queries = vec![Vec::new(); items.len()];
            }
            let last = number + 1 == pieces.len();
            if last && step.is_some() {
                losses.check()?;
            }
            let of = PieceOfStep {
                step: step.as_deref_mut(),
                last,
            };
            losses += match piece.tokens {
                false => self.add_pooled(parameters, items, &piece.places, of)?,
                true => self.add_tokens(parameters, items, &piece.places, dropout, of)?,
            };
        }
        let PassCost {
            dispatches,
            submits,
        } = self.cost;
        log::debug!("{dispatches} dispatches in {submits} submissions");
        Ok(losses)
    }

    /// The passes of `batches`.
    fn pieces(&self, batches: &[Vec<Item<'_>>]) -> Vec<StepPiece> {
        let mut pieces = Vec::new();
        for (batch, items) in batches.iter().enumerate() {
            let (tokens, pooled): (Vec<usize>, Vec<usize>) =
                (0..items.len()).partition(|i| matches!(items[*i].input, RowInput::Tokens(_)));
            let mut piece = |places: &[usize], tokens| {
                pieces.push(StepPiece {
                    batch,
                    places: places.to_vec(),
                    tokens,
                });
            };
            for places in pooled.chunks(self.capacity.examples) {
                piece(places, false);
            }
            let rows: Vec<&Tokens> = tokens.iter().filter_map(|i| items[*i].tokens()).collect();
            let mut rest = &tokens[..];
            for count in chunks(&rows, self.capacity.examples) {
                let (places, later) = rest.split_at(count);
                piece(places, true);
                rest = later;
            }
        }
        pieces
    }

    /// Of items that enter as pooled vectors: the encoder has no gradient.
    fn add_pooled(
        &mut self,
        parameters: &mut TrainedParameters,
        items: &[Item<'_>],
        places: &[usize],
        mut of: PieceOfStep<'_, '_>,
    ) -> Result<Losses> {
        let mut plan = self.take_from_pooled(&parameters.layout)?;
        let packed = self.pack_items(items, places);
        let mut pooled = Vec::with_capacity(places.len() * self.encoder.width());
        for place in places {
            if let RowInput::Pooled(vector) = &items[*place].input {
                pooled.extend_from_slice(vector);
            }
        }
        let encoder = Arc::clone(&self.encoder);
        let head = HeadPass::new(encoder.ops(), &parameters.layout, self.tau, &self.priors);
        let (reads, outputs) = encoder.device().run(&mut plan, |pass, t| {
            of.begin(pass, parameters);
            t.head.upload(pass, &packed);
            pass.upload_f32(&mut t.pooled, &pooled);
            let (theta, grad) = (&parameters.theta, &mut parameters.grad);
            let reads = head.gradients(pass, theta, grad, &t.pooled, None, &mut t.head);
            of.end(pass, parameters, t.head.losses());
            reads
        })?;
        self.from_pooled = Some(plan);
        of.finish(&outputs, &parameters.layout);
        Ok(self.note(places, &outputs, reads))
    }

    /// Of items that go through the encoder.
    fn add_tokens(
        &mut self,
        parameters: &mut TrainedParameters,
        items: &[Item<'_>],
        places: &[usize],
        dropout: f32,
        mut of: PieceOfStep<'_, '_>,
    ) -> Result<Losses> {
        let mut plan = self.take_through_encoder(&parameters.layout)?;
        let packed = self.pack_items(items, places);
        let encoder = Arc::clone(&self.encoder);
        let rows = places.iter().filter_map(|place| items[*place].tokens());
        let rows: Vec<&Tokens> = rows.collect();
        let batch = pack(&encoder, &rows);
        let head = HeadPass::new(encoder.ops(), &parameters.layout, self.tau, &self.priors);
        let bert = &self.bert;
        let keys = (dropout > 0.0).then(|| dropout_keys(items, places, &rows));
        let (reads, outputs) = encoder.device().run(&mut plan, |pass, t| {
            of.begin(pass, parameters);
            let TrainedParameters {
                layout,
                theta,
                grad,
                ..
            } = &mut *parameters;
            let training = Training {
                ops: encoder.ops(),
                bert,
                adapter: &layout.adapter,
                dropout,
            };
            let EncoderPass {
                tensors,
                head: workspace,
            } = t;
            tensors.upload(pass, &batch);
            if let Some(keys) = &keys {
                tensors.upload_keys(pass, keys);
            }
            workspace.upload(pass, &packed);
            training.forward(pass, theta, tensors);
            let dh = Some(&mut tensors.d_pooled);
            let h = &tensors.activations.pooled;
            let reads = head.gradients(pass, theta, grad, h, dh, workspace);
            training.backward(pass, theta, grad, tensors);
            of.end(pass, parameters, workspace.losses());
            reads
        })?;
        self.through_encoder = Some(plan);
        of.finish(&outputs, &parameters.layout);
        Ok(self.note(places, &outputs, reads))
    }

    fn pack_items(&self, items: &[Item<'_>], places: &[usize]) -> PackedItems {
        let fill = |ids: &[u32], columns: usize, to: &mut Vec<u32>| {
            assert!(
                ids.len() <= columns,
                "engine: {} ids in {columns}",
                ids.len()
            );
            to.extend_from_slice(ids);
            to.extend(std::iter::repeat_n(NONE, columns - ids.len()));
        };
        let mut packed = PackedItems::default();
        for item in places.iter().map(|place| &items[*place]) {
            let slots = self.capacity.targets;
            fill(&item.target.ids, slots, &mut packed.target_ids);
            packed.target_mass.extend_from_slice(&item.target.mass);
            packed.target_mass.resize(packed.target_ids.len(), 0.0);
            packed.weights.push(item.weight);
            if let (Some(columns), Some(ids)) = (self.capacity.candidates, &item.candidates) {
                fill(ids, columns, &mut packed.candidates);
            }
        }
        let distilled = places.iter().map(|place| items[*place].distilled);
        if distilled.clone().any(|distilled| distilled.is_some()) {
            let models = self.teacher_models();
            for distilled in distilled {
                let scores = distilled.map_or(&[][..], |distilled| distilled.scores);
                packed.teacher.extend_from_slice(scores);
                let share = distilled.map_or(0.0, |distilled| distilled.share);
                packed.shares.push(share);
                packed.teacher.resize(packed.shares.len() * models, 0.0);
            }
        }
        packed
    }

    /// Keeps the queries of the items at `places`; returns the sums of their losses.
    fn note(&mut self, places: &[usize], outputs: &Outputs, reads: HeadReads) -> Losses {
        self.cost.dispatches += outputs.counts.dispatches;
        self.cost.submits += outputs.counts.passes.min(1);
        let queries = outputs.f32(reads.z);
        let width = queries.len() / places.len().max(1);
        for (place, query) in places.iter().zip(queries.chunks_exact(width.max(1))) {
            self.queries[*place] = query.to_vec();
        }
        let sum = |read| outputs.f32(read).iter().map(|loss| f64::from(*loss)).sum();
        Losses {
            route: sum(reads.losses),
            distill: reads.distill.map_or(0.0, sum),
            ..Losses::default()
        }
    }
}

/// What a piece has to do for its step, if there is one.
struct PieceOfStep<'s, 'o> {
    step: Option<&'s mut StepPass<'o>>,
    /// Of the pieces.
    last: bool,
}

impl PieceOfStep<'_, '_> {
    fn begin(&mut self, pass: &mut Pass<'_>, parameters: &mut TrainedParameters) {
        if let Some(step) = &mut self.step {
            step.begin(pass, parameters);
        }
    }

    fn end(
        &mut self,
        pass: &mut Pass<'_>,
        parameters: &mut TrainedParameters,
        losses: [Option<&Tensor>; 2],
    ) {
        if let Some(step) = self.step.as_mut().filter(|_| self.last) {
            step.end(pass, parameters, losses);
        }
    }

    fn finish(&mut self, outputs: &Outputs, layout: &ParameterLayout) {
        if let Some(step) = self.step.as_mut().filter(|_| self.last) {
            step.finish(outputs, layout);
        }
    }
}

/// A key for each token, which its dropout depends on.
fn dropout_keys(items: &[Item<'_>], places: &[usize], rows: &[&Tokens]) -> Vec<u32> {
    let mut keys = Vec::new();
    for (place, tokens) in places.iter().zip(rows) {
        let mut draws = Draws::of(items[*place].key);
        keys.extend(tokens.ids.iter().map(|_| draws.word()));
    }
    keys
}

/// How many rows each micro-batch has: by tokens, and at most `most`.
fn chunks(rows: &[&Tokens], most: usize) -> Vec<usize> {
    let mut counts = Vec::new();
    let (mut count, mut tokens) = (0, 0);
    for row in rows {
        if count > 0 && (tokens + row.ids.len() > MOST_TOKENS || count == most) {
            counts.push(count);
            (count, tokens) = (0, 0);
        }
        count += 1;
        tokens += row.ids.len();
    }
    if count > 0 {
        counts.push(count);
    }
    counts
}

fn pack(encoder: &Encoder, rows: &[&Tokens]) -> PackedBatch {
    let ids = rows.iter().map(|tokens| tokens.ids.as_slice());
    PackedBatch::new(ids, encoder.config().first_position)
}
