//! The steps of an update: micro-batches, rates, anchors, mined negatives, and where it was stopped.

use std::time::{Duration, Instant};

use super::prepare::Task;
use super::saved::Left;
use super::{Control, Learner, Status, Watch};
use crate::error::Result;
use crate::learn::batches;
use crate::learn::candidates::{Candidates, MINED_EXAMPLES};
use crate::learn::draws::{Draws, Stream, stream_key};
use crate::learn::engine::{Anchors, Engine, Hold, Input, Item, Losses, Rates};
use crate::learn::experience::{Row, RowInput};
use crate::learn::report::LossTerms;
use crate::learn::schedule::Schedule;
use crate::learn::settings::{
    AdamwRows, AnchorForm, AnchorRows, Batching, CandidateMode, ClipScope, MiningScore, Regulariser,
};
use crate::learn::state::State;
use crate::learn::targets::{Softness, target};
use crate::learn::teacher::Teacher;
use crate::text::tokenizer::Tokens;

impl Learner {
    /// The micro-batches of an epoch.
    pub(super) fn batches(&self, task: &Task, epoch: usize) -> Vec<Vec<usize>> {
        let parts = [task.experience.into(), epoch as u64];
        let draws = &mut Draws::new(self.settings.seed, Stream::Order, &parts);
        match self.settings.batching {
            Batching::Domain => {
                let domains: Vec<&str> = task.rows.iter().map(|row| row.domain.as_str()).collect();
                batches::by_domain(&domains, self.settings.batch, draws)
            }
            _ => batches::shuffled(task.rows.len(), self.settings.batch, draws),
        }
    }

    /// All steps from `state` on, or those before the callback stopped it.
    pub(super) fn steps(
        &self,
        engine: &mut Engine,
        task: &Task,
        candidates: &mut Candidates,
        state: Option<State>,
        budget: Option<Duration>,
        watch: Watch<'_>,
    ) -> Result<Ended> {
        let schedule = &task.schedule;
        let (mut first, mut last) = (0, schedule.steps);
        let resumed = state.is_some();
        if let Some(state) = state {
            engine.restore(&state.values)?;
            candidates.restore(state.hard)?;
            first = state.step;
            if state.ended && budget.is_some() {
                last = first;
            }
            log::info!("resuming at step {first} of {}", schedule.steps);
        }
        // While the encoder is frozen nothing before W changes.
        let mut pooled = Vec::new();
        if first < last && schedule.rates(first).lora.is_none() {
            pooled = features(engine, &task.rows, watch)?;
        }
        log::info!("learning begins: {} steps", schedule.steps);
        let mut saved = self.saved(task, first);
        let mut course = Course::begin();
        let mut order = (usize::MAX, Vec::new());
        for step in first..last {
            if budget.is_some_and(|budget| course.began.elapsed() >= budget) {
                log::warn!(
                    "the budget ended learning at step {step} of {}",
                    schedule.steps
                );
                last = step;
                break;
            }
            saved.now_and_then(engine, candidates, step)?;
            let window = self.window(task, &mut order, step);
            let frozen = schedule.rates(step).lora.is_none();
            let draw = Draw {
                step,
                softness: schedule.softness(step),
                replayed: schedule.replay_weight(step),
                teacher: Some(&task.teacher),
            };
            let items = self.items(task, candidates, draw, window, |row| {
                input(&task.rows[row], frozen.then(|| &pooled[row][..]))
            });
            let hold = self.hold(engine, schedule, step);
            let losses = engine
                .step(&items, &self.rates(schedule, step), hold)
                .map_err(|e| self.blame(e).at(format!("step {step}")))?;
            self.mine(engine, task, candidates, step, window)?;
            let status = course.add(losses, window, schedule, step);
            if watch(&status) == Control::Stop && step + 1 < schedule.steps {
                let state = State::of(engine, candidates, step + 1)?;
                self.save(&state, &task.update)?;
                return Ok(Ended::Stopped(step + 1));
            }
        }
        let left = match (self.dry_run, first < last, resumed) {
            (false, true, _) => saved.at_the_end(State {
                ended: last < schedule.steps,
                ..State::of(engine, candidates, last)?
            }),
            (false, false, true) => Left::Written,
            _ => Left::Nothing,
        };
        Ok(Ended::Done(Box::new(Done {
            steps: last,
            examples: course.examples,
            terms: LossTerms::mean(&course.terms),
            left,
        })))
    }

    /// The micro-batches of `step`; `order`: an epoch and its micro-batches, the last that was asked for.
    fn window<'o>(
        &self,
        task: &Task,
        order: &'o mut (usize, Vec<Vec<usize>>),
        step: usize,
    ) -> &'o [Vec<usize>] {
        let accumulate = self.settings.accumulate;
        let windows = task.epoch.div_ceil(accumulate);
        let (epoch, window) = (step / windows, step % windows);
        if order.0 != epoch {
            *order = (epoch, self.batches(task, epoch));
        }
        let begin = window * accumulate;
        let end = order.1.len().min(begin + accumulate);
        &order.1[begin..end]
    }

    /// The items of a window's micro-batches.
    pub(super) fn items<'i>(
        &self,
        task: &Task,
        candidates: &mut Candidates,
        draw: Draw<'i>,
        window: &[Vec<usize>],
        input: impl Fn(usize) -> Input<'i>,
    ) -> Vec<Vec<Item<'i>>> {
        let settings = &self.settings;
        let Draw {
            step,
            softness,
            replayed,
            teacher,
        } = draw;
        let mut batches = Vec::with_capacity(window.len());
        for batch in window {
            let share = 1.0 / (batch.len() * window.len()) as f32;
            let taught = teacher.map_or_else(Vec::new, |t| t.taught(batch, window.len()));
            let mut items = Vec::with_capacity(batch.len());
            for (i, &place) in batch.iter().enumerate() {
                let row = &task.rows[place];
                let parts = [task.experience.into(), step as u64, place as u64];
                let set = (settings.candidates == CandidateMode::Sampled)
                    .then(|| candidates.set(&row.domain, row.gold, step as u64, place as u64));
                items.push(Item {
                    input: input(place),
                    target: target(&task.domains, row.gold, set.as_deref(), softness),
                    candidates: set,
                    weight: share * if row.replay { replayed } else { 1.0 },
                    key: stream_key(settings.seed, Stream::Dropout, &parts),
                    taught: taught.get(i).copied().flatten(),
                });
            }
            batches.push(items);
        }
        batches
    }

    fn rates(&self, schedule: &Schedule, step: usize) -> Rates {
        let settings = &self.settings;
        let rates = schedule.rates(step);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        Rates {
            lora: rates.lora.map(|rate| (rate, schedule.lora_count(step))),
            w: rates.w,
            e: rates.e,
            counter: schedule.router_count(step),
            decay: settings.weight_decay,
            clip: settings.clip as f32,
            clip_all: settings.clip_scope == ClipScope::All,
            touched: settings.adamw_rows == AdamwRows::Touched,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "an f32 is what is asked for"
    )]
    fn hold(&self, engine: &Engine, schedule: &Schedule, step: usize) -> Option<Hold> {
        let settings = &self.settings;
        let w = engine.layout().w;
        let (width, inputs) = (w.rows, w.columns);
        schedule.anchored(step).then(|| match settings.regulariser {
            Regulariser::Ewc => Hold::Ewc(settings.ewc_lambda as f32),
            Regulariser::Anchors => Hold::Anchors(Anchors {
                embedding: settings.embedding_strength(width) as f32,
                raw: settings.anchor_form == AnchorForm::Raw,
                projection: settings.projection_strength(width, inputs) as f32,
                touched: settings.anchor_rows == AnchorRows::Touched,
            }),
        })
    }

    /// Looks for hard negatives of the step's examples, when it is time.
    fn mine(
        &self,
        engine: &mut Engine,
        task: &Task,
        candidates: &mut Candidates,
        step: usize,
        window: &[Vec<usize>],
    ) -> Result<()> {
        if self.settings.candidates != CandidateMode::Sampled || !task.schedule.mines(step) {
            return Ok(());
        }
        let Some(last) = window.last() else {
            return Ok(());
        };
        let cosine = self.settings.mining_score == MiningScore::Cosine;
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

/// What the items of a batch depend on besides their rows.
#[derive(Clone, Copy)]
pub(super) struct Draw<'t> {
    pub(super) step: usize,
    pub(super) softness: Softness,
    /// Weight of a replayed row.
    pub(super) replayed: f32,
    /// None where the routing loss stands alone.
    pub(super) teacher: Option<&'t Teacher>,
}

/// How the steps ended.
pub(super) enum Ended {
    Done(Box<Done>),
    /// Before this step, by the callback.
    Stopped(usize),
}

/// What the steps were.
pub(super) struct Done {
    pub(super) steps: usize,
    /// Examples and losses of this call alone.
    pub(super) examples: usize,
    pub(super) terms: LossTerms,
    pub(super) left: Left,
}

/// How the steps of this call go.
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

    /// Notes what `step` was.
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

/// What enters for `row`; `pooled`: its vector, while the encoder is frozen.
pub(super) fn input<'r>(row: &'r Row, pooled: Option<&'r [f32]>) -> Input<'r> {
    match (&row.input, pooled) {
        (RowInput::Pooled(vector), _) => Input::Pooled(vector),
        (RowInput::Tokens(_), Some(vector)) => Input::Pooled(vector),
        (RowInput::Tokens(tokens), None) => Input::Tokens(tokens),
    }
}

/// The pooled vector of each row that has tokens, by the encoder as it is.
pub(super) fn features(
    engine: &mut Engine,
    rows: &[Row],
    watch: Watch<'_>,
) -> Result<Vec<Vec<f32>>> {
    let tokens: Vec<&Tokens> = rows.iter().filter_map(Row::tokens).collect();
    let vectors = engine.features(&tokens, &mut |done| {
        watch(&Status::of("features", done, tokens.len()));
    })?;
    let mut vectors = vectors.chunks_exact(vectors.len() / tokens.len().max(1));
    let next = |row: &Row| row.tokens().and_then(|_| vectors.next());
    let owned = |vector: Option<&[f32]>| vector.unwrap_or_default().to_vec();
    Ok(rows.iter().map(next).map(owned).collect())
}
