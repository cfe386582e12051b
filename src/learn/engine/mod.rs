//! The router on a device while it learns, in three parts: the trained parameters with their
//! moments ([`parameters`]), the gradients of micro-batches ([`gradients`]), and the end of a step,
//! which are penalties, clipping and AdamW ([`optimiser`]).
//!
//! A step looks only at the rows of E that have had a gradient, so that its cost need not depend on
//! M ([`lazy_rows`]).

mod distill;
mod gradients;
mod head;
pub(crate) mod lazy_rows;
mod optimiser;
mod parameters;
mod penalty;

use std::sync::Arc;

use self::distill::DistillConfig;
use self::gradients::Gradients;
#[cfg(all(test, feature = "gpu"))]
pub(crate) use self::gradients::PassCost;
use self::optimiser::Optimiser;
pub(crate) use self::parameters::ParameterState;
use self::parameters::TrainedParameters;
pub(crate) use self::penalty::{Anchors, Penalty};
use crate::device::Place;
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::NewModel;
pub(crate) use crate::learn::data::rows::RowInput;
use crate::learn::method::ewc::FisherSnapshot;
use crate::learn::method::layout::ParameterLayout;
use crate::learn::method::targets::SoftTarget;
use crate::num::to_u32;
use crate::ops::square::Accumulate;
use crate::text::tokenizer::Tokens;

/// One labelled prompt of a micro-batch.
#[derive(Clone)]
pub(crate) struct Item<'i> {
    pub(crate) input: RowInput,
    pub(crate) target: SoftTarget,
    /// Models that it is scored against, the gold first; `None`: all.
    pub(crate) candidates: Option<Vec<u32>>,
    /// Weight in the step's loss: w_i over the valid examples of its micro-batch and over the
    /// step's micro-batches.
    pub(crate) weight: f32,
    /// The key of its dropout: of the step and the row, not of its place in a batch.
    pub(crate) key: u64,
    /// A teacher's scores, if it is distilled.
    pub(crate) distilled: Option<Distilled<'i>>,
}

impl Item<'_> {
    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        self.input.tokens()
    }
}

/// A teacher's scores of an example.
#[derive(Clone, Copy)]
pub(crate) struct Distilled<'i> {
    /// Scores of the models that [`Engine::set_distill`] named.
    pub(crate) scores: &'i [f32],
    /// Share of T^2 KL in the step's loss.
    pub(crate) share: f32,
}

/// Capacity of the engine's tensors.
#[derive(Clone, Copy)]
pub(crate) struct Capacity {
    /// Examples of a micro-batch, at most.
    pub(crate) examples: usize,
    /// Candidates of an example, at most; `None`: all models.
    pub(crate) candidates: Option<usize>,
    /// Models with mass in a target, at most.
    pub(crate) targets: usize,
}

/// AdamW's rates and counters of one step.
#[derive(Clone, Copy)]
pub(crate) struct StepRates {
    /// (rate, counter); `None`: the adapters are frozen.
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

/// The terms of the loss of one step.
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

    /// Errors: a loss of the examples is not finite.
    fn check(self) -> Result<()> {
        check_finite("routing loss", self.route)?;
        check_finite("distillation", self.distill)
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

/// The router on a device while it learns.
pub(crate) struct Engine {
    encoder: Arc<Encoder>,
    parameters: TrainedParameters,
    gradients: Gradients,
    optimiser: Optimiser,
}

impl Engine {
    /// `values`: of all trained parameters, in the order of `layout`.
    pub(crate) fn new(
        encoder: Arc<Encoder>,
        layout: ParameterLayout,
        capacity: Capacity,
        values: &[f32],
        tau: f32,
    ) -> Result<Self> {
        let shared = || Arc::clone(&encoder);
        let optimiser = Optimiser::new(shared(), &layout)?;
        let mut gradients = Gradients::new(shared(), capacity, layout.e.rows, tau)?;
        gradients.reserve(optimiser.bytes(&layout));
        Ok(Self {
            gradients,
            parameters: TrainedParameters::new(shared(), layout, values)?,
            optimiser,
            encoder,
        })
    }

    pub(crate) fn layout(&self) -> &ParameterLayout {
        &self.parameters.layout
    }

    /// Steps drop this share of the adapters' inputs from now on.
    pub(crate) fn set_dropout(&mut self, rate: f32) {
        self.gradients.set_dropout(rate);
    }

    /// Shifts the logits of each model from now on: [M]. They are 0 before.
    pub(crate) fn set_priors(&mut self, priors: &[f32]) -> Result<()> {
        self.gradients.set_priors(priors)
    }

    /// Items may be [`Distilled`] from now on: scores of the first `models` models, softened by
    /// `temperature`.
    pub(crate) fn set_distill(&mut self, models: usize, temperature: f32) {
        self.gradients.set_distill(DistillConfig {
            models,
            temperature,
        });
    }

    /// Anchors pull to these from now on: R [M_old, D] and W0 [D, H].
    pub(crate) fn anchor_to(&mut self, rows: &[f32], w: &[f32]) -> Result<()> {
        self.optimiser.anchor_to(&self.parameters.layout, rows, w)
    }

    /// EWC pulls to these from now on.
    pub(crate) fn consolidate(&mut self, snapshots: &[FisherSnapshot]) -> Result<()> {
        self.optimiser.consolidate(snapshots)?;
        let bytes = self.optimiser.bytes(&self.parameters.layout);
        self.gradients.reserve(bytes);
        Ok(())
    }

    /// Replaces all parameters before the first step.
    pub(crate) fn set(&mut self, theta: &[f32]) -> Result<()> {
        self.parameters.set(theta)
    }

    /// Replaces parameters and moments by another engine's.
    ///
    /// Errors: the sizes differ.
    pub(crate) fn restore(&mut self, state: &ParameterState) -> Result<()> {
        self.parameters.restore(state)
    }

    /// Parameters and moments, for [`Engine::restore`].
    pub(crate) fn state(&mut self) -> Result<ParameterState> {
        self.parameters.state()
    }

    /// The parameters as they are, in the order of the layout.
    pub(crate) fn parameters(&mut self) -> Result<Vec<f32>> {
        self.parameters.current()
    }

    /// One optimiser step on the mean over `batches`, whose items bring their weights.
    ///
    /// A GPU makes it in one submission, or in one for each micro-batch; the last one has the end
    /// of the step.
    ///
    /// Errors: a loss or the norm of the gradients is not finite. If it is the routing loss, the
    /// distillation loss or the norm, the parameters are those of the step before.
    pub(crate) fn step(
        &mut self,
        batches: &[Vec<Item<'_>>],
        rates: &StepRates,
        penalty: Option<Penalty>,
    ) -> Result<Losses> {
        let Self {
            parameters,
            gradients,
            optimiser,
            ..
        } = self;
        let named = named(batches);
        let activated = match rates.touched {
            true => None,
            false => {
                let mut items = batches.iter().flatten();
                let distilled = items.any(|item| item.distilled.is_some());
                let all_old = distilled || penalty.is_some_and(Penalty::moves_decayed_rows);
                let old = match gradients.teacher_models() {
                    _ if !all_old => 0,
                    models => models.max(optimiser.old_rows()),
                };
                parameters.activate(named.as_deref(), to_u32(old))
            }
        };
        let mut step = optimiser.step(parameters, rates, penalty, named, activated);
        let mut losses = gradients.add(parameters, batches, true, Some(&mut step))?;
        losses.check()?;
        losses += step.penalties;
        let keep = step.keep();
        let norm = f64::from(optimiser.norm);
        // Nothing moved otherwise, so no decay is due.
        if !rates.touched && norm.is_finite() {
            parameters.rows.step(keep);
        }
        check_finite("loss with its penalties", losses.total())?;
        check_finite("norm of the gradients", norm)?;
        Ok(losses)
    }

    /// Every row of E is active from now on.
    pub(crate) fn activate_all(&mut self) -> Result<()> {
        self.parameters.activate_all()
    }

    /// Fisher weights of the parameters from `first` on: the mean over `count` batches of the
    /// square of a batch's gradient, without dropout. Parameters stay as they are.
    ///
    /// Errors: a loss is not finite.
    pub(crate) fn fisher<'i>(
        &mut self,
        first: usize,
        count: usize,
        mut batch: impl FnMut(usize) -> Vec<Item<'i>>,
    ) -> Result<Vec<f32>> {
        // A gradient by E depends on the lengths of its rows.
        self.activate_all()?;
        let n = self.layout().len() - first;
        let place = Place::flat(first, 1, n);
        self.parameters.clear_gradients()?;
        let mut sums = self.encoder.device().upload("fisher", n, &vec![0.0; n])?;
        let scale = 1.0 / count.max(1) as f32;
        for i in 0..count {
            let losses = self
                .gradients
                .add(&mut self.parameters, &[batch(i)], false, None)?;
            check_finite("Fisher weights: routing loss", losses.route)?;
            let square = &self.encoder.ops().square;
            self.parameters.with_gradients(|pass, grad| {
                let (grad, sums) = (grad.part_mut(place), &mut sums);
                square.accumulate(pass, Accumulate { grad, scale, sums });
            })?;
        }
        self.parameters.read(&sums)
    }

    /// Scores of `models` for item `place` of the last micro-batch: cosines, or dot products.
    pub(crate) fn scores(
        &mut self,
        place: usize,
        models: &[u32],
        cosine: bool,
    ) -> Result<Vec<f32>> {
        let width = self.layout().w.rows;
        let (read, outputs) = self.parameters.rows_of(models)?;
        let z = &self.gradients.queries[place];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let length = |x: &[f32]| dot(x, x).sqrt().max(1e-12);
        let of = |(id, row): (&u32, &[f32])| {
            let product = dot(z, row);
            if cosine {
                product / (length(z) * length(row))
            } else {
                product * self.parameters.rows.factor(*id)
            }
        };
        let rows = outputs.f32(read).chunks_exact(width);
        Ok(models.iter().zip(rows).map(of).collect())
    }

    /// Scores of a teacher's models at temperature `tau`: a row for each of `pooled`, the encoder's
    /// vectors [H].
    pub(crate) fn teacher_scores(&mut self, pooled: &[&[f32]], tau: f32) -> Result<Vec<f32>> {
        self.gradients.teacher_scores(&self.parameters, pooled, tau)
    }

    /// Pooled vectors [rows, H] of the encoder with its adapters as they are.
    ///
    /// `progress`: called with the number of rows done.
    pub(crate) fn features(
        &mut self,
        rows: &[&Tokens],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        self.gradients.features(&self.parameters, rows, progress)
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

    /// Steps keep their gradients from now on, for [`Engine::watched`].
    #[cfg(feature = "cli")]
    pub(crate) fn watch(&mut self) {
        self.optimiser.watch();
        let bytes = self.optimiser.bytes(&self.parameters.layout);
        self.gradients.reserve(bytes);
    }

    /// The gradients of the last step, penalties included, before clipping; in the order of the
    /// layout, empty if [`Engine::watch`] was not called before.
    #[cfg(feature = "cli")]
    pub(crate) fn watched(&self) -> &[f32] {
        self.optimiser.watched.as_deref().unwrap_or_default()
    }

    /// The next step adds to `gradients`, in the order of the layout, in place of zeros.
    #[cfg(feature = "cli")]
    pub(crate) fn carry(&mut self, gradients: &[f32]) -> Result<()> {
        self.parameters.set_gradients(gradients)
    }

    /// The loss of micro-batches, whose gradients are added up.
    #[cfg(test)]
    pub(crate) fn gradients(&mut self, batches: &[Vec<Item<'_>>]) -> Result<f64> {
        let losses = self
            .gradients
            .add(&mut self.parameters, batches, true, None)?;
        Ok(losses.total())
    }

    #[cfg(test)]
    pub(crate) fn gradient_values(&mut self) -> Result<Vec<f32>> {
        self.parameters.gradients()
    }

    /// Kernels that the last step dispatched, and its submissions; none on the CPU.
    #[cfg(all(test, feature = "gpu"))]
    pub(crate) fn cost(&self) -> PassCost {
        self.gradients.cost
    }

    /// Norm of the clipped gradients in the last step.
    #[cfg(test)]
    pub(crate) fn norm(&self) -> f32 {
        self.optimiser.norm
    }
}

/// Models that the items name, ascending; `None`: all.
fn named(batches: &[Vec<Item<'_>>]) -> Option<Vec<u32>> {
    let lists = batches.iter().flatten().map(|item| &item.candidates);
    let lists: Option<Vec<&Vec<u32>>> = lists.map(Option::as_ref).collect();
    let mut ids: Vec<u32> = lists?.into_iter().flatten().copied().collect();
    ids.sort_unstable();
    ids.dedup();
    Some(ids)
}

fn check_finite(what: &str, loss: f64) -> Result<()> {
    if !loss.is_finite() {
        bail!(Numeric, "{what}: expected a finite number, found {loss}");
    }
    Ok(())
}
