//! The router on a device while it learns: one optimiser step, features, and what comes back.
//!
//! Trained parameters lie in one flat buffer: LoRA factors, W [D, H], E [M, D]; gradients and
//! AdamW's moments in three more of the same order. Of E a step looks at the rows that it has to
//! alone, so that its cost need not depend on M: those that were ever candidates, or are now.

mod distill;
mod head;
mod hold;

use std::sync::Arc;

use self::distill::Teaching;
use self::head::{Head, Packed, Reads, Router};
pub(crate) use self::hold::{Anchors, Hold};
use self::hold::{Consolidated, References};
use crate::device::{Outcome, Place, Plan, Read, Sizes, Tensor};
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::NewModel;
use crate::learn::awake::Awake;
use crate::learn::draws::Draws;
use crate::learn::ewc::Held;
use crate::learn::targets::Target;
use crate::model::activations::Activations;
use crate::model::bert::Bert;
use crate::model::lora::Adapter;
use crate::model::training::{Training, TrainingTensors};
use crate::num::to_u32;
use crate::ops::adamw::{self, Clip, Listed, Segment};
use crate::ops::anchor::Weighted;
use crate::ops::contrastive::NONE;
use crate::ops::square::Accumulate;
use crate::text::batch::PackedBatch;
use crate::text::tokenizer::Tokens;

/// Tokens of a micro-batch, at most, but for a single longer prompt: bounds the activations.
const MOST_TOKENS: usize = 1024;

/// E's place among the segments of a step.
const E: usize = 1;

/// Where the trained parameters are in the flat buffers.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) adapter: Adapter,
    /// W [D, H]
    pub(crate) w: Place,
    /// E [M, D]
    pub(crate) e: Place,
}

impl Layout {
    pub(crate) fn new(adapter: Adapter, width: usize, inputs: usize, models: usize) -> Self {
        let w = Place::flat(adapter.len, width, inputs);
        let e = Place::flat(w.end(), models, width);
        Self { adapter, w, e }
    }

    pub(crate) fn len(&self) -> usize {
        self.e.end()
    }
}

/// One labelled prompt of a micro-batch.
#[derive(Clone)]
pub(crate) struct Item<'i> {
    pub(crate) input: Input<'i>,
    pub(crate) target: Target,
    /// Models that it is scored against, the gold first; none: all.
    pub(crate) candidates: Option<Vec<u32>>,
    /// Weight in the step's loss: w_i over the valid examples of its micro-batch and over the step's
    /// micro-batches.
    pub(crate) weight: f32,
    /// What its dropout depends on: of the step and the row, not of its place in a batch.
    pub(crate) key: u64,
    /// What a teacher says of it, if it is distilled.
    pub(crate) taught: Option<Taught<'i>>,
}

/// What a teacher says of an example.
#[derive(Clone, Copy)]
pub(crate) struct Taught<'i> {
    /// Scores of the models that [`Engine::teach`] named.
    pub(crate) scores: &'i [f32],
    /// Share of T^2 KL in the step's loss.
    pub(crate) share: f32,
}

/// What enters: tokens where the encoder is trained, its pooled vector where it is frozen.
#[derive(Clone, Copy)]
pub(crate) enum Input<'i> {
    Tokens(&'i Tokens),
    Pooled(&'i [f32]),
}

/// Capacity of the engine's tensors.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Examples of a micro-batch, at most.
    pub(crate) examples: usize,
    /// Candidates of an example, at most; none: all models.
    pub(crate) candidates: Option<usize>,
    /// Models with mass in a target, at most.
    pub(crate) targets: usize,
}

/// AdamW's rates and counters of one step.
#[derive(Clone, Copy)]
pub(crate) struct Rates {
    /// (rate, counter); none: the adapters are frozen.
    pub(crate) lora: Option<(f64, usize)>,
    pub(crate) w: f64,
    pub(crate) e: f64,
    pub(crate) counter: usize,
    pub(crate) decay: f64,
    pub(crate) clip: f32,
    /// One norm over everything instead of the adapters' alone.
    pub(crate) clip_all: bool,
    /// Rows of E that are no candidates stay as they are.
    pub(crate) touched: bool,
}

/// Losses of one step, as they were added up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Losses {
    pub(crate) route: f64,
    pub(crate) distill: f64,
    pub(crate) embedding: f64,
    pub(crate) projection: f64,
    pub(crate) ewc: f64,
}

impl Losses {
    pub(crate) fn total(self) -> f64 {
        self.route + self.distill + self.embedding + self.projection + self.ewc
    }
}

impl std::ops::AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        self.route += other.route;
        self.distill += other.distill;
        self.embedding += other.embedding;
        self.projection += other.projection;
        self.ewc += other.ewc;
    }
}

/// Trained parameters and AdamW's moments, on the host.
pub(crate) struct Values {
    /// As it is on the device: rows that sleep are behind.
    pub(crate) theta: Vec<f32>,
    pub(crate) m: Vec<f32>,
    pub(crate) v: Vec<f32>,
    /// Rows of E that are awake, and what the others are behind by.
    pub(crate) awake: Vec<u32>,
    pub(crate) decayed: f64,
}

/// Parameters, gradients and moments on the device: [1, N] each.
struct Flat {
    theta: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
}

pub(crate) struct Engine {
    encoder: Arc<Encoder>,
    bert: Bert,
    layout: Layout,
    shape: Shape,
    tau: f32,
    /// Added to the logits of each model: [M, 1].
    priors: Tensor,
    /// Share of the adapters' inputs that is dropped in a step.
    dropout: f32,
    flat: Flat,
    awake: Awake,
    references: Option<References>,
    consolidated: Vec<Consolidated>,
    teaching: Option<Teaching>,
    /// Of the way through the encoder, and of the way from pooled vectors; made when first used.
    full: Option<Plan<Full>>,
    head: Option<Plan<FromPooled>>,
    end: Plan<End>,
    /// Ids of rows that wake.
    waking: Plan<Tensor>,
    /// Projected queries of the last micro-batch, in the order of its items.
    z: Vec<Vec<f32>>,
    norm: f32,
}

/// The tensors of a micro-batch through the encoder.
struct Full {
    tensors: TrainingTensors,
    head: Head,
}

/// The tensors of a micro-batch whose pooled vectors come from the host.
struct FromPooled {
    /// [B, H]
    pooled: Tensor,
    head: Head,
}

/// The tensors of a step's end.
struct End {
    adamw: adamw::NormWorkspace,
    /// Distances of E's anchored rows, and of W's.
    row_losses: Tensor,
    w_losses: Tensor,
    /// Old rows that anchors look at, and rows that AdamW moves, where it is not all.
    touched: Tensor,
    /// Parts of EWC's penalty.
    ewc_losses: Tensor,
    moved: Tensor,
}

impl Engine {
    /// `values`: of all trained parameters, in the order of `layout`.
    pub(crate) fn new(
        encoder: Arc<Encoder>,
        layout: Layout,
        shape: Shape,
        values: &[f32],
        tau: f32,
    ) -> Result<Self> {
        assert_eq!(values.len(), layout.len(), "engine: values do not fit");
        let device = encoder.device();
        let bert = encoder.for_learning()?;
        let zeros = vec![0.0; layout.len()];
        let flat = |label, values: &[f32]| device.upload(label, layout.len(), values);
        let end = End {
            adamw: adamw::NormWorkspace::new(device)?,
            row_losses: device.scratch("row losses", layout.e.rows, 1)?,
            w_losses: device.scratch("w losses", layout.w.rows, 1)?,
            touched: device.ids("touched", layout.e.rows, 1)?,
            ewc_losses: device.scratch("ewc losses", Weighted::losses(layout.len()), 1)?,
            moved: device.ids("moved", layout.e.rows, 1)?,
        };
        let list = 4 * layout.e.rows;
        let reads = 4 * (3 * layout.len() + layout.e.rows + layout.w.rows + 1);
        let end = Plan::new(device, end, 2 * list, reads)?;
        let waking = device.ids("waking", layout.e.rows, 1)?;
        Ok(Self {
            flat: Flat {
                theta: flat("theta", values)?,
                grad: flat("grad", &zeros)?,
                m: flat("m", &zeros)?,
                v: flat("v", &zeros)?,
            },
            bert,
            shape,
            tau,
            priors: device.upload("priors", 1, &vec![0.0; layout.e.rows])?,
            dropout: 0.0,
            awake: Awake::new(layout.e.rows),
            references: None,
            consolidated: Vec::new(),
            teaching: None,
            full: None,
            head: None,
            end,
            waking: Plan::new(device, waking, list, 0)?,
            z: Vec::new(),
            norm: 0.0,
            layout,
            encoder,
        })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Steps drop this share of the adapters' inputs from now on.
    pub(crate) fn set_dropout(&mut self, rate: f32) {
        self.dropout = rate;
        // Made without room for it.
        self.full = None;
    }

    /// Anchors hold on to these from now on: R [M_old, D] and W0 [D, H].
    pub(crate) fn anchor_to(&mut self, rows: &[f32], w: &[f32]) -> Result<()> {
        let device = self.encoder.device();
        self.references = Some(References {
            rows: device.upload("reference rows", self.layout.e.columns, rows)?,
            w: device.upload("reference w", self.layout.w.columns, w)?,
        });
        Ok(())
    }

    /// Items may be [`Taught`] from now on: scores of the first `models` models, softened by
    /// `temperature`.
    pub(crate) fn teach(&mut self, models: usize, temperature: f32) {
        self.teaching = Some(Teaching {
            models,
            temperature,
        });
        // Made without room for it.
        (self.full, self.head) = (None, None);
    }

    /// What the parameters score the models of [`Engine::teach`] with, at temperature `tau`: a row
    /// for each of `pooled`, the encoder's vectors [H].
    pub(crate) fn teacher_scores(&mut self, pooled: &[&[f32]], tau: f32) -> Result<Vec<f32>> {
        let models = self.teaching.map_or(0, |teaching| teaching.models);
        let encoder = Arc::clone(&self.encoder);
        let reads = 4 * self.shape.examples * models;
        let mut plan = self.make_head(reads)?;
        let router = Router::new(encoder.ops(), &self.layout, tau, &self.priors);
        let theta = &self.flat.theta;
        let mut scores = Vec::with_capacity(pooled.len() * models);
        for rows in pooled.chunks(self.shape.examples) {
            let (read, outcome) = encoder.device().run(&mut plan, |pass, t| {
                pass.upload_f32(&mut t.pooled, &rows.concat());
                router.teacher_scores(pass, theta, &t.pooled, &mut t.head)
            })?;
            scores.extend_from_slice(read.map_or(&[], |read| outcome.f32(read)));
        }
        Ok(scores)
    }

    /// Shifts the logits of each model from now on: [M]; none are shifted before.
    pub(crate) fn set_priors(&mut self, priors: &[f32]) -> Result<()> {
        self.priors = self.encoder.device().upload("priors", 1, priors)?;
        Ok(())
    }

    /// EWC holds on to these from now on.
    pub(crate) fn consolidate(&mut self, held: &[Held]) -> Result<()> {
        let device = self.encoder.device();
        let upload = |held: &Held| {
            Ok(Consolidated {
                first: held.first,
                theta: device.upload("held theta", held.theta.len(), &held.theta)?,
                fisher: device.upload("fisher", held.fisher.len(), &held.fisher)?,
            })
        };
        self.consolidated = held.iter().map(upload).collect::<Result<_>>()?;
        Ok(())
    }

    /// Fisher weights of the parameters from `first` on: the mean over `count` batches of the square
    /// of a batch's gradient, in evaluation mode. Parameters stay as they are.
    ///
    /// Errors: a loss is not finite.
    pub(crate) fn fisher<'i>(
        &mut self,
        first: usize,
        count: usize,
        mut batch: impl FnMut(usize) -> Vec<Item<'i>>,
    ) -> Result<Vec<f32>> {
        // A gradient by E depends on the lengths of its rows.
        self.wake_all()?;
        let encoder = Arc::clone(&self.encoder);
        let (device, ops) = (encoder.device(), encoder.ops());
        let (all, n) = (self.layout.len(), self.layout.len() - first);
        let place = Place::flat(first, 1, n);
        self.flat.grad = device.upload("grad", all, &vec![0.0; all])?;
        let mut sums = device.upload("fisher", n, &vec![0.0; n])?;
        let scale = 1.0 / count.max(1) as f32;
        for i in 0..count {
            let losses = self.add_gradients(&[batch(i)], 0.0)?;
            check_finite("Fisher weights: routing loss", losses.route)?;
            let grad = &mut self.flat.grad;
            device.run(&mut self.end, |pass, _| {
                let (grad, sums) = (grad.part_mut(place), &mut sums);
                ops.square
                    .accumulate(pass, Accumulate { grad, scale, sums });
            })?;
        }
        let (read, outcome) = device.run(&mut self.end, |pass, _| pass.read(&sums))?;
        Ok(outcome.f32(read).to_vec())
    }

    /// Replaces all parameters before the first step.
    pub(crate) fn set(&mut self, theta: &[f32]) -> Result<()> {
        let device = self.encoder.device();
        self.flat.theta = device.upload("theta", self.layout.len(), theta)?;
        Ok(())
    }

    /// Takes over what another engine had.
    ///
    /// Errors: the sizes differ.
    pub(crate) fn restore(&mut self, values: &Values) -> Result<()> {
        let n = self.layout.len();
        for (name, part) in [("theta", &values.theta), ("m", &values.m), ("v", &values.v)] {
            if part.len() != n {
                bail!(
                    Mismatch,
                    "{name}: expected {n} values, found {}",
                    part.len()
                );
            }
        }
        self.set(&values.theta)?;
        let device = self.encoder.device();
        self.flat.m = device.upload("m", n, &values.m)?;
        self.flat.v = device.upload("v", n, &values.v)?;
        let models = self.layout.e.rows;
        if let Some(id) = values.awake.iter().find(|id| **id as usize >= models) {
            bail!(Mismatch, "awake: expected rows of {models}, found {id}");
        }
        if !values.awake.is_sorted_by(|a, b| a < b) {
            bail!(Mismatch, "awake: expected ids that ascend");
        }
        self.awake = Awake::restored(models, values.awake.clone(), values.decayed);
        Ok(())
    }

    /// The parameters as they are.
    pub(crate) fn parameters(&mut self) -> Result<Vec<f32>> {
        let theta = &self.flat.theta;
        let device = self.encoder.device();
        let (read, outcome) = device.run(&mut self.end, |pass, _| pass.read(theta))?;
        let mut theta = outcome.f32(read).to_vec();
        self.awake.catch_up(&mut theta[self.layout.e.offset..]);
        Ok(theta)
    }

    /// Parameters and moments, for [`Engine::restore`].
    pub(crate) fn values(&mut self) -> Result<Values> {
        let Flat { theta, m, v, .. } = &self.flat;
        let (reads, outcome) = self
            .encoder
            .device()
            .run(&mut self.end, |pass, _| [theta, m, v].map(|t| pass.read(t)))?;
        let [theta, m, v] = reads.map(|read| outcome.f32(read).to_vec());
        Ok(Values {
            theta,
            m,
            v,
            awake: self.awake.ids().to_vec(),
            decayed: self.awake.decayed(),
        })
    }

    /// From now on no row of E sleeps.
    pub(crate) fn wake_all(&mut self) -> Result<()> {
        self.wake(None, false)
    }

    #[cfg(test)]
    pub(crate) fn gradient_values(&mut self) -> Result<Vec<f32>> {
        let grad = &self.flat.grad;
        let device = self.encoder.device();
        let (read, outcome) = device.run(&mut self.end, |pass, _| pass.read(grad))?;
        Ok(outcome.f32(read).to_vec())
    }

    /// One optimiser step on the mean over `batches`, whose items bring their weights.
    ///
    /// Errors: a loss is not finite; where it is the routing loss or what is distilled, the parameters
    /// are those of the step before.
    pub(crate) fn step(
        &mut self,
        batches: &[Vec<Item<'_>>],
        rates: &Rates,
        hold: Option<Hold>,
    ) -> Result<Losses> {
        let named = self.named(batches);
        if !rates.touched {
            let taught = batches.iter().flatten().any(|item| item.taught.is_some());
            let all_old = taught || hold.is_some_and(Hold::moves_sleepers);
            self.wake(named.as_deref(), all_old)?;
        }
        let mut losses = self.add_gradients(batches, self.dropout)?;
        check_finite("routing loss", losses.route)?;
        check_finite("distillation", losses.distill)?;
        let (anchors, lambda) = match hold {
            Some(Hold::Anchors(anchors)) => (Some(anchors), None),
            Some(Hold::Ewc(lambda)) => (None, Some(lambda)),
            None => (None, None),
        };
        // A frozen adapter's gradients would wait for the phase in which it is trained.
        let from = rates.lora.map_or(self.layout.w.offset, |_| 0);
        let consolidated = &self.consolidated;
        let touched = anchors.and_then(|anchors| self.held(anchors, named.as_deref()));
        let moved = match rates.touched {
            true => named.filter(|ids| ids.len() < self.layout.e.rows),
            false => self.awake.some().map(<[u32]>::to_vec),
        };
        let encoder = Arc::clone(&self.encoder);
        let ops = encoder.ops();
        let layout = &self.layout;
        let (segments, clip) = self.segments(rates);
        let Flat { theta, grad, m, v } = &mut self.flat;
        let references = self.references.as_ref();
        let held = anchors.zip(references);
        let (reads, outcome) = encoder.device().run(&mut self.end, |pass, end| {
            let reads = held.map(|(anchors, references)| {
                if let Some(ids) = &touched {
                    pass.upload(&mut end.touched, ids);
                }
                anchors.pull(
                    ops,
                    pass,
                    layout,
                    theta,
                    references,
                    touched.is_some(),
                    grad,
                    end,
                );
                (pass.read(&end.row_losses), pass.read(&end.w_losses))
            });
            let ewc: Vec<Read> = lambda.map_or_else(Vec::new, |lambda| {
                let losses = &mut end.ewc_losses;
                let pull = |held: &Consolidated| {
                    held.pull(ops, pass, from, lambda, (&*theta, &mut *grad), losses)
                };
                consolidated.iter().map(pull).collect()
            });
            if let Some(ids) = &moved {
                pass.upload(&mut end.moved, ids);
            }
            ops.adamw.step(
                pass,
                adamw::Step {
                    theta,
                    grad,
                    m,
                    v,
                    segments: &segments,
                    listed: moved.as_ref().map(|_| Listed {
                        matrix: layout.e,
                        ids: &end.moved,
                    }),
                    clip,
                    workspace: &mut end.adamw,
                },
            );
            (reads, ewc, pass.read(&end.adamw.norm))
        })?;
        let (anchored, ewc, norm) = reads;
        self.norm = outcome.f32(norm)[0];
        if !rates.touched {
            self.awake.step(segments[E].keep());
        }
        let sum = |read: Read| {
            outcome
                .f32(read)
                .iter()
                .map(|loss| f64::from(*loss))
                .sum::<f64>()
        };
        if let (Some((rows, w)), Some(anchors)) = (anchored, anchors) {
            let items = match (anchors.touched, references) {
                (false, Some(references)) => references.rows.rows(),
                _ => outcome.f32(rows).len(),
            };
            losses.embedding = f64::from(anchors.row_strength(items, &self.layout)) * sum(rows);
            losses.projection = f64::from(anchors.w_strength(&self.layout)) * sum(w);
        }
        if let Some(lambda) = lambda {
            losses.ewc = f64::from(lambda) * ewc.into_iter().map(sum).sum::<f64>();
        }
        check_finite("what holds the parameters", losses.total())?;
        Ok(losses)
    }

    /// Norm of the clipped gradients in the last step.
    #[cfg(test)]
    pub(crate) fn norm(&self) -> f32 {
        self.norm
    }

    /// W's first, then E's at place [`E`].
    fn segments(&self, rates: &Rates) -> (Vec<Segment>, Option<Clip>) {
        let Layout { adapter, w, e } = &self.layout;
        let segment = |range, rate, count| Segment {
            range,
            rate,
            decay: rates.decay,
            count,
        };
        let mut segments = vec![
            segment(w.offset..w.end(), rates.w, rates.counter),
            segment(e.offset..e.end(), rates.e, rates.counter),
        ];
        if let Some((rate, count)) = rates.lora.filter(|_| adapter.len > 0) {
            segments.push(segment(0..adapter.len, rate, count));
        }
        let range = match (rates.clip_all, rates.lora) {
            (true, Some(_)) => Some(0..e.end()),
            (true, None) => Some(w.offset..e.end()),
            (false, Some(_)) if adapter.len > 0 => Some(0..adapter.len),
            _ => None,
        };
        let limit = rates.clip;
        (segments, range.map(|range| Clip { range, limit }))
    }

    /// Models that the items name, ascending; none: all.
    fn named(&self, batches: &[Vec<Item<'_>>]) -> Option<Vec<u32>> {
        let lists = batches.iter().flatten().map(|item| &item.candidates);
        let lists: Option<Vec<&Vec<u32>>> = lists.map(Option::as_ref).collect();
        let mut ids: Vec<u32> = lists?.into_iter().flatten().copied().collect();
        ids.sort_unstable();
        ids.dedup();
        Some(ids)
    }

    /// Wakes the rows that are to have a gradient: `named` (none: all), and with `all_old` those of
    /// the parent.
    fn wake(&mut self, named: Option<&[u32]>, all_old: bool) -> Result<()> {
        let before = self.awake.sleepers();
        let held = self.references.as_ref().map_or(0, |r| r.rows.rows());
        let old = to_u32(self.teaching.map_or(held, |t| held.max(t.models)));
        let mut new = match named {
            Some(named) => self.awake.wake(named.iter().copied()),
            None => self.awake.wake(0..to_u32(self.layout.e.rows)),
        };
        if all_old {
            new.extend(self.awake.wake(0..old));
            new.sort_unstable();
        }
        // Before the first step that decays they are behind by nothing.
        if new.is_empty() || before == 1.0 {
            return Ok(());
        }
        let encoder = Arc::clone(&self.encoder);
        let (ops, matrix, theta) = (encoder.ops(), self.layout.e, &mut self.flat.theta);
        encoder.device().run(&mut self.waking, |pass, ids| {
            pass.upload(ids, &new);
            ops.adamw
                .shrink(pass, theta, Listed { matrix, ids }, before);
        })?;
        Ok(())
    }

    /// Old rows that anchors look at, ascending; none: all.
    ///
    /// A row that only decayed has its reference's direction, and no gradient in the normalised form.
    fn held(&self, anchors: Anchors, named: Option<&[u32]>) -> Option<Vec<u32>> {
        let old = self
            .references
            .as_ref()
            .map_or(0, |r| to_u32(r.rows.rows()));
        let ids = match (anchors.touched, anchors.raw) {
            (true, _) => named,
            (false, true) => None,
            (false, false) => self.awake.some(),
        }?;
        Some(ids[..ids.partition_point(|id| *id < old)].to_vec())
    }

    /// Scores of `models` for item `place` of the last micro-batch: cosines, or dot products.
    pub(crate) fn scores(
        &mut self,
        place: usize,
        models: &[u32],
        cosine: bool,
    ) -> Result<Vec<f32>> {
        let (table, width) = (self.flat.theta.part(self.layout.e), self.layout.w.rows);
        let (read, outcome) = self
            .encoder
            .device()
            .run(&mut self.end, |pass, _| pass.read_rows(table, models))?;
        let z = &self.z[place];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let length = |x: &[f32]| dot(x, x).sqrt().max(1e-12);
        let of = |(id, row): (&u32, &[f32])| {
            let product = dot(z, row);
            if cosine {
                product / (length(z) * length(row))
            } else {
                product * self.awake.factor(*id)
            }
        };
        let rows = outcome.f32(read).chunks_exact(width);
        Ok(models.iter().zip(rows).map(of).collect())
    }

    /// Pooled vectors of each model's cards, by the encoder with its adapters as they are.
    pub(crate) fn card_vectors(&mut self, models: &[NewModel]) -> Result<Vec<Vec<Vec<f32>>>> {
        let cards = models.iter().flat_map(|model| &model.cards);
        let texts: Vec<&str> = cards.map(String::as_str).collect();
        let tokens: Vec<Tokens> = self
            .encoder
            .tokenize_documents(&texts)
            .into_iter()
            .collect::<Result<_>>()?;
        let rows: Vec<&Tokens> = tokens.iter().collect();
        let vectors = self.features(&rows, &mut |_| {})?;
        let mut vectors = vectors
            .chunks_exact(self.encoder.width())
            .map(<[f32]>::to_vec);
        let of = |model: &NewModel| vectors.by_ref().take(model.cards.len()).collect();
        Ok(models.iter().map(of).collect())
    }

    /// Pooled vectors [rows, H] of the encoder with its adapters as they are.
    pub(crate) fn features(
        &mut self,
        rows: &[&Tokens],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        let encoder = Arc::clone(&self.encoder);
        let mut vectors = Vec::with_capacity(rows.len() * encoder.width());
        let mut plan = self.take_full()?;
        let mut done = 0;
        for count in chunks(rows, self.shape.examples) {
            let batch = pack(&encoder, &rows[done..done + count]);
            let training = Training {
                ops: encoder.ops(),
                bert: &self.bert,
                adapter: &self.layout.adapter,
                dropout: 0.0,
            };
            let theta = &self.flat.theta;
            let (read, outcome) = encoder.device().run(&mut plan, |pass, full| {
                full.tensors.upload(pass, &batch);
                training.forward(pass, theta, &mut full.tensors);
                pass.read(&full.tensors.activations.pooled)
            })?;
            vectors.extend_from_slice(outcome.f32(read));
            done += count;
            progress(done);
        }
        self.full = Some(plan);
        Ok(vectors)
    }

    fn take_full(&mut self) -> Result<Plan<Full>> {
        if let Some(plan) = self.full.take() {
            return Ok(plan);
        }
        let (encoder, shape) = (&self.encoder, self.shape);
        let sizes = Sizes {
            tokens: MOST_TOKENS.max(encoder.max_tokens()),
            prompts: shape.examples,
        };
        let inputs = encoder.width();
        let full = Full {
            tensors: TrainingTensors::new(
                encoder.device(),
                encoder.config(),
                &self.layout.adapter,
                sizes,
                self.dropout > 0.0,
            )?,
            head: Head::new(encoder.device(), shape, &self.layout, self.teaching)?,
        };
        let keys = 4 * sizes.tokens;
        let head = Head::upload_bytes(shape, inputs, self.teaching);
        let uploads = Activations::upload_bytes(sizes) + head + keys;
        let reads = Head::read_bytes(shape, &self.layout).max(4 * shape.examples * inputs);
        Plan::new(encoder.device(), full, uploads, reads)
    }

    fn take_head(&mut self) -> Result<Plan<FromPooled>> {
        match self.head.take() {
            Some(plan) => Ok(plan),
            None => self.make_head(Head::read_bytes(self.shape, &self.layout)),
        }
    }

    /// `reads`: bytes that a pass brings back at most.
    fn make_head(&self, reads: usize) -> Result<Plan<FromPooled>> {
        let (device, shape, inputs) = (self.encoder.device(), self.shape, self.encoder.width());
        let tensors = FromPooled {
            pooled: device.scratch("pooled", shape.examples, inputs)?,
            head: Head::new(device, shape, &self.layout, self.teaching)?,
        };
        let uploads = Head::upload_bytes(shape, inputs, self.teaching);
        Plan::new(device, tensors, uploads, reads)
    }

    #[cfg(test)]
    pub(crate) fn gradients(&mut self, batches: &[Vec<Item<'_>>]) -> Result<f64> {
        Ok(self.add_gradients(batches, self.dropout)?.total())
    }

    /// Gradients of the micro-batches' loss are added up; its terms.
    fn add_gradients(&mut self, batches: &[Vec<Item<'_>>], dropout: f32) -> Result<Losses> {
        let mut losses = Losses::default();
        for items in batches {
            self.z = vec![Vec::new(); items.len()];
            let (tokens, pooled): (Vec<usize>, Vec<usize>) =
                (0..items.len()).partition(|i| matches!(items[*i].input, Input::Tokens(_)));
            for places in pooled.chunks(self.shape.examples) {
                losses += self.pooled_gradients(items, places)?;
            }
            let rows: Vec<&Tokens> = tokens.iter().filter_map(|i| items[*i].tokens()).collect();
            let mut done = 0;
            for count in chunks(&rows, self.shape.examples) {
                let range = done..done + count;
                let (places, rows) = (&tokens[range.clone()], &rows[range]);
                losses += self.token_gradients(items, places, rows, dropout)?;
                done += count;
            }
        }
        Ok(losses)
    }

    /// Of items that enter as pooled vectors: the encoder has no gradient.
    fn pooled_gradients(&mut self, items: &[Item<'_>], places: &[usize]) -> Result<Losses> {
        let mut plan = self.take_head()?;
        let packed = self.pack_items(items, places);
        let mut pooled = Vec::with_capacity(places.len() * self.encoder.width());
        for place in places {
            if let Input::Pooled(vector) = items[*place].input {
                pooled.extend_from_slice(vector);
            }
        }
        let encoder = Arc::clone(&self.encoder);
        let router = Router::new(encoder.ops(), &self.layout, self.tau, &self.priors);
        let Flat { theta, grad, .. } = &mut self.flat;
        let (reads, outcome) = encoder.device().run(&mut plan, |pass, t| {
            t.head.upload(pass, &packed);
            pass.upload_f32(&mut t.pooled, &pooled);
            router.gradients(pass, theta, grad, &t.pooled, None, &mut t.head)
        })?;
        self.head = Some(plan);
        Ok(self.note(places, &outcome, reads))
    }

    /// Of items that go through the encoder.
    fn token_gradients(
        &mut self,
        items: &[Item<'_>],
        places: &[usize],
        rows: &[&Tokens],
        dropout: f32,
    ) -> Result<Losses> {
        let mut plan = self.take_full()?;
        let packed = self.pack_items(items, places);
        let encoder = Arc::clone(&self.encoder);
        let batch = pack(&encoder, rows);
        let router = Router::new(encoder.ops(), &self.layout, self.tau, &self.priors);
        let training = Training {
            ops: encoder.ops(),
            bert: &self.bert,
            adapter: &self.layout.adapter,
            dropout,
        };
        let keys = (dropout > 0.0).then(|| {
            let pairs = places.iter().zip(rows);
            let of = |(place, tokens): (&usize, &&Tokens)| {
                let mut draws = Draws::of(items[*place].key);
                tokens
                    .ids
                    .iter()
                    .map(move |_| draws.word())
                    .collect::<Vec<u32>>()
            };
            pairs.flat_map(of).collect::<Vec<u32>>()
        });
        let Flat { theta, grad, .. } = &mut self.flat;
        let (reads, outcome) = encoder.device().run(&mut plan, |pass, t| {
            let Full { tensors, head } = t;
            tensors.upload(pass, &batch);
            if let Some(keys) = &keys {
                tensors.upload_keys(pass, keys);
            }
            head.upload(pass, &packed);
            training.forward(pass, theta, tensors);
            let dh = Some(&mut tensors.d_pooled);
            let h = &tensors.activations.pooled;
            let reads = router.gradients(pass, theta, grad, h, dh, head);
            training.backward(pass, theta, grad, tensors);
            reads
        })?;
        self.full = Some(plan);
        Ok(self.note(places, &outcome, reads))
    }

    fn pack_items(&self, items: &[Item<'_>], places: &[usize]) -> Packed {
        let fill = |ids: &[u32], columns: usize, to: &mut Vec<u32>| {
            assert!(
                ids.len() <= columns,
                "engine: {} ids in {columns}",
                ids.len()
            );
            to.extend_from_slice(ids);
            to.extend(std::iter::repeat_n(NONE, columns - ids.len()));
        };
        let mut packed = Packed::default();
        for item in places.iter().map(|place| &items[*place]) {
            let slots = self.shape.targets;
            fill(&item.target.ids, slots, &mut packed.target_ids);
            packed.target_mass.extend_from_slice(&item.target.mass);
            packed.target_mass.resize(packed.target_ids.len(), 0.0);
            packed.weights.push(item.weight);
            if let (Some(columns), Some(ids)) = (self.shape.candidates, &item.candidates) {
                fill(ids, columns, &mut packed.candidates);
            }
        }
        let taught = places.iter().map(|place| items[*place].taught);
        if taught.clone().any(|taught| taught.is_some()) {
            let models = self.teaching.map_or(0, |teaching| teaching.models);
            for taught in taught {
                let scores = taught.map_or(&[][..], |taught| taught.scores);
                packed.teacher.extend_from_slice(scores);
                packed
                    .shares
                    .push(taught.map_or(0.0, |taught| taught.share));
                packed.teacher.resize(packed.shares.len() * models, 0.0);
            }
        }
        packed
    }

    /// Keeps the queries of the items at `places`; the sums of their losses.
    fn note(&mut self, places: &[usize], outcome: &Outcome, reads: Reads) -> Losses {
        let z = outcome.f32(reads.z).chunks_exact(self.layout.w.rows);
        for (place, z) in places.iter().zip(z) {
            self.z[*place] = z.to_vec();
        }
        let sum = |read| outcome.f32(read).iter().map(|loss| f64::from(*loss)).sum();
        Losses {
            route: sum(reads.losses),
            distill: reads.distill.map_or(0.0, sum),
            ..Losses::default()
        }
    }
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

fn check_finite(what: &str, loss: f64) -> Result<()> {
    if !loss.is_finite() {
        bail!(Numeric, "{what}: expected a finite number, found {loss}");
    }
    Ok(())
}

fn pack(encoder: &Encoder, rows: &[&Tokens]) -> PackedBatch {
    let ids = rows.iter().map(|tokens| tokens.ids.as_slice());
    PackedBatch::new(ids, encoder.config().first_position)
}

impl<'i> Item<'i> {
    pub(crate) fn tokens(&self) -> Option<&'i Tokens> {
        match self.input {
            Input::Tokens(tokens) => Some(tokens),
            Input::Pooled(_) => None,
        }
    }
}
