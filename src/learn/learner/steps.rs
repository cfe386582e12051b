//! The steps of an update: micro-batches, rates, penalties, mined negatives, and where to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::saved::{Left, Saved};
use super::state::State;
use super::teacher::Teacher;
use super::train::TrainingRun;
use super::update::Task;
use super::{Control, Status, Watch};
use crate::error::Result;
use crate::learn::data::rows::{PromptRow, RowInput};
use crate::learn::engine::{Anchors, Engine, Item, Losses, Penalty, StepRates};
use crate::learn::method::candidates::{Candidates, MINED_EXAMPLES};
use crate::learn::method::draws::{Stream, stream_key};
use crate::learn::method::schedule::Schedule;
use crate::learn::method::targets::{Softness, target};
use crate::learn::report::LossTerms;
use crate::learn::settings::{
    AdamwRows, AnchorForm, AnchorRows, CandidateMode, ClipScope, MiningScore, Regulariser, Settings,
};
use crate::num::to_f32;
use crate::text::tokenizer::Tokens;

/// How the steps ended.
pub(super) enum StepsEnd {
    Done(Box<StepsDone>),
    /// By the callback, before this step.
    Stopped(usize),
}

/// The steps in numbers, and the state that they left.
pub(super) struct StepsDone {
    pub(super) steps: usize,
    /// Examples and losses of this call alone.
    pub(super) examples: usize,
    pub(super) terms: LossTerms,
    pub(super) left: Left,
}

/// The steps that a call has to make.
struct Range {
    first: usize,
    last: usize,
    resumed: bool,
}

/// An epoch and its micro-batches, the last that was asked for.
type Epoch = (usize, Vec<Vec<usize>>);

impl TrainingRun<'_> {
    /// All steps from `state` on, or those before the callback or the budget ends them.
    pub(super) fn steps(
        &mut self,
        state: Option<State>,
        budget: Option<Duration>,
        watch: Watch<'_>,
    ) -> Result<StepsEnd> {
        let schedule = &self.task.schedule;
        let mut range = self.resume(state, budget.is_some())?;
        let first = range.first;
        // While the encoder is frozen nothing before W changes.
        let mut pooled = Vec::new();
        if first < range.last && schedule.rates(first).lora.is_none() {
            pooled = features(&mut self.engine, &self.task.rows, watch)?;
        }
        log::info!("learning begins: {} steps", schedule.steps);
        let mut saved = Saved::new(self.config, self.task, first);
        let mut course = Course::begin();
        let mut order: Epoch = (usize::MAX, Vec::new());
        for step in first..range.last {
            if budget.is_some_and(|budget| course.began.elapsed() >= budget) {
                log::warn!(
                    "the budget ended learning at step {step} of {}",
                    schedule.steps
                );
                range.last = step;
                break;
            }
            saved.now_and_then(&mut self.engine, &self.candidates, step)?;
            let window = window(&self.config.settings, self.task, &mut order, step);
            let losses = self.step(step, window, &pooled)?;
            let status = course.add(losses, window, schedule, step);
            if watch(&status) == Control::Stop && step + 1 < schedule.steps {
                let state = State::of(&mut self.engine, &self.candidates, step + 1)?;
                self.config.save(&state, &self.task.update)?;
                return Ok(StepsEnd::Stopped(step + 1));
            }
        }
        Ok(StepsEnd::Done(Box::new(StepsDone {
            steps: range.last,
            examples: course.examples,
            terms: LossTerms::mean(&course.terms),
            left: self.save_last(&mut saved, &range)?,
        })))
    }

    /// Takes over `state`, if there is one.
    fn resume(&mut self, state: Option<State>, has_budget: bool) -> Result<Range> {
        let steps = self.task.schedule.steps;
        let Some(state) = state else {
            return Ok(Range {
                first: 0,
                last: steps,
                resumed: false,
            });
        };
        self.engine.restore(&state.values)?;
        self.candidates.restore(state.hard)?;
        log::info!("resuming at step {} of {steps}", state.step);
        Ok(Range {
            first: state.step,
            last: match state.ended && has_budget {
                true => state.step,
                false => steps,
            },
            resumed: true,
        })
    }

    /// Writes the state after the last step.
    fn save_last(&mut self, saved: &mut Saved<'_>, range: &Range) -> Result<Left> {
        if self.config.dry_run {
            return Ok(Left::Nothing);
        }
        if range.first < range.last {
            let state = State::of(&mut self.engine, &self.candidates, range.last)?;
            return Ok(saved.at_the_end(State {
                ended: range.last < self.task.schedule.steps,
                ..state
            }));
        }
        Ok(match range.resumed {
            true => Left::Written,
            false => Left::Nothing,
        })
    }

    /// One step on the micro-batches of `window`. `pooled`: the rows' vectors while the encoder is
    /// frozen.
    fn step(&mut self, step: usize, window: &[Vec<usize>], pooled: &[RowInput]) -> Result<Losses> {
        let (settings, task) = (&self.config.settings, self.task);
        let schedule = &task.schedule;
        let frozen = schedule.rates(step).lora.is_none();
        let draw = Draw {
            step,
            softness: schedule.softness(step),
            replayed: schedule.replay_weight(step),
            teacher: Some(&self.teacher),
        };
        let inputs = if frozen { pooled } else { &[] };
        let items = items(settings, task, &mut self.candidates, draw, window, inputs);
        let rates = rates(settings, schedule, step);
        let penalty = penalty(settings, &self.engine, schedule, step);
        let losses = self
            .engine
            .step(&items, &rates, penalty)
            .map_err(|e| settings.blame(e).at(format!("step {step}")))?;
        self.mine(step, window)?;
        Ok(losses)
    }

    /// Looks for hard negatives of the step's examples, when it is time.
    fn mine(&mut self, step: usize, window: &[Vec<usize>]) -> Result<()> {
        let (settings, task) = (&self.config.settings, self.task);
        if settings.candidates != CandidateMode::Sampled || !task.schedule.mines(step) {
            return Ok(());
        }
        let Some(last) = window.last() else {
            return Ok(());
        };
        let cosine = settings.mining_score == MiningScore::Cosine;
        let (engine, candidates) = (&mut self.engine, &mut self.candidates);
        for (i, &place) in last.iter().take(MINED_EXAMPLES).enumerate() {
            let row = &task.rows[place];
            let pool = candidates.mining_pool(&row.domain, row.gold, step as u64, place as u64);
            if let Some(pool) = pool {
                let scores = engine.scores(i, &pool, cosine)?;
                candidates.remember(&row.domain, row.gold, &pool, &scores);
            }
        }
        Ok(())
    }
}

/// The micro-batches of `step`.
fn window<'o>(
    settings: &Settings,
    task: &Task,
    order: &'o mut Epoch,
    step: usize,
) -> &'o [Vec<usize>] {
    let accumulate = settings.accumulate;
    let windows = task.epoch.div_ceil(accumulate);
    let (epoch, window) = (step / windows, step % windows);
    if order.0 != epoch {
        *order = (epoch, task.batches(settings, epoch));
    }
    let begin = window * accumulate;
    let end = order.1.len().min(begin + accumulate);
    &order.1[begin..end]
}

/// The inputs of a batch's items besides their rows.
#[derive(Clone, Copy)]
pub(super) struct Draw<'t> {
    pub(super) step: usize,
    pub(super) softness: Softness,
    /// Weight of a replayed row.
    pub(super) replayed: f32,
    /// `None` where only the routing loss counts.
    pub(super) teacher: Option<&'t Teacher>,
}

/// The items of a window's micro-batches. `inputs`: of each row, empty where rows enter as they
/// are.
pub(super) fn items<'t>(
    settings: &Settings,
    task: &Task,
    candidates: &mut Candidates,
    draw: Draw<'t>,
    window: &[Vec<usize>],
    inputs: &[RowInput],
) -> Vec<Vec<Item<'t>>> {
    let Draw {
        step,
        softness,
        replayed,
        teacher,
    } = draw;
    let mut batches = Vec::with_capacity(window.len());
    for batch in window {
        let share = 1.0 / (batch.len() * window.len()) as f32;
        let distilled = teacher.map_or_else(Vec::new, |t| t.distilled(batch, window.len()));
        let mut items = Vec::with_capacity(batch.len());
        for (i, &place) in batch.iter().enumerate() {
            let row = &task.rows[place];
            let parts = [task.experience.into(), step as u64, place as u64];
            let set = (settings.candidates == CandidateMode::Sampled)
                .then(|| candidates.set(&row.domain, row.gold, step as u64, place as u64));
            items.push(Item {
                input: inputs.get(place).unwrap_or(&row.input).clone(),
                target: target(&task.domains, row.gold, set.as_deref(), softness),
                candidates: set,
                weight: share * if row.replay { replayed } else { 1.0 },
                key: stream_key(settings.seed, Stream::Dropout, &parts),
                distilled: distilled.get(i).copied().flatten(),
            });
        }
        batches.push(items);
    }
    batches
}

fn rates(settings: &Settings, schedule: &Schedule, step: usize) -> StepRates {
    let rates = schedule.rates(step);
    StepRates {
        lora: rates.lora.map(|rate| (rate, schedule.lora_count(step))),
        w: rates.w,
        e: rates.e,
        counter: schedule.router_count(step),
        decay: settings.weight_decay,
        clip: to_f32(settings.clip),
        clip_all: settings.clip_scope == ClipScope::All,
        touched: settings.adamw_rows == AdamwRows::Touched,
    }
}

fn penalty(
    settings: &Settings,
    engine: &Engine,
    schedule: &Schedule,
    step: usize,
) -> Option<Penalty> {
    let w = engine.layout().w;
    let (width, inputs) = (w.rows, w.columns);
    schedule.anchored(step).then(|| match settings.regulariser {
        Regulariser::Ewc => Penalty::Ewc(to_f32(settings.ewc_lambda)),
        Regulariser::Anchors => Penalty::Anchors(Anchors {
            embedding: to_f32(settings.embedding_strength(width)),
            raw: settings.anchor_form == AnchorForm::Raw,
            projection: to_f32(settings.projection_strength(width, inputs)),
            touched: settings.anchor_rows == AnchorRows::Touched,
        }),
    })
}

/// Progress of the steps of this call.
struct Course {
    began: Instant,
    examples: usize,
    smooth: Option<f64>,
    terms: Vec<Losses>,
}

impl Course {
    fn begin() -> Self {
        Self {
            began: Instant::now(),
            examples: 0,
            smooth: None,
            terms: Vec::new(),
        }
    }

    /// Notes the losses of `step`.
    fn add(
        &mut self,
        losses: Losses,
        window: &[Vec<usize>],
        schedule: &Schedule,
        step: usize,
    ) -> Status {
        self.terms.push(losses);
        self.examples += window.iter().map(Vec::len).sum::<usize>();
        let total = losses.total();
        self.smooth = Some(self.smooth.map_or(total, |mean| 0.9 * mean + 0.1 * total));
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        Status {
            loss: self.smooth,
            examples_per_second: Some(self.examples as f64 / seconds),
            ..Status::of(schedule.phase(step).name(), step + 1, schedule.steps)
        }
    }
}

/// The pooled vector of each row, by the encoder as it is.
pub(super) fn features(
    engine: &mut Engine,
    rows: &[PromptRow],
    watch: Watch<'_>,
) -> Result<Vec<RowInput>> {
    let tokens: Vec<&Tokens> = rows.iter().filter_map(PromptRow::tokens).collect();
    let vectors = engine.features(&tokens, &mut |done| {
        watch(&Status::of("features", done, tokens.len()));
    })?;
    let width = vectors.len() / tokens.len().max(1);
    let mut vectors = vectors.chunks_exact(width.max(1));
    let pooled = |row: &PromptRow| match &row.input {
        RowInput::Tokens(_) => RowInput::Pooled(Arc::from(vectors.next().unwrap_or_default())),
        kept @ RowInput::Pooled(_) => kept.clone(),
    };
    Ok(rows.iter().map(pooled).collect())
}
