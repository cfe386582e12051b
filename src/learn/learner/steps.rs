//! The steps of an update: micro-batches, rates, anchors, mined negatives, and where it was stopped.

use std::time::{Duration, Instant};

use super::{Control, Learner, Status, Task, Watch};
use crate::error::Result;
use crate::learn::batches;
use crate::learn::candidates::{Candidates, MINED_EXAMPLES};
use crate::learn::draws::{Draws, Stream, stream_key};
use crate::learn::engine::{Anchors, Engine, Hold, Input, Item, Rates};
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

    /// All steps; the number done, or the step before which the callback stopped.
    pub(super) fn steps(
        &self,
        engine: &mut Engine,
        task: &Task,
        candidates: &mut Candidates,
        budget: Option<Duration>,
        watch: Watch<'_>,
    ) -> Result<Ended> {
        let settings = &self.settings;
        let schedule = &task.schedule;
        let mut first = 0;
        if let Some(state) = State::read(&self.out, &self.parent, settings, &task.update)? {
            engine.restore(&state.values)?;
            candidates.restore(state.hard)?;
            first = state.step;
            log::info!("resuming at step {first} of {}", schedule.steps);
        }
        // While the encoder is frozen nothing before W changes.
        let mut pooled = Vec::new();
        if schedule.rates(first).lora.is_none() {
            pooled = features(engine, &task.rows, watch)?;
        }
        log::info!("learning begins: {} steps", schedule.steps);
        let began = Instant::now();
        let windows = task.epoch.div_ceil(settings.accumulate);
        let mut order = (usize::MAX, Vec::new());
        let mut examples = 0;
        let mut smooth: Option<f64> = None;
        let mut terms = Vec::new();
        for step in first..schedule.steps {
            if budget.is_some_and(|budget| began.elapsed() >= budget) {
                log::warn!(
                    "the budget ended learning at step {step} of {}",
                    schedule.steps
                );
                return Ok(Ended::Done {
                    steps: step,
                    examples,
                    terms: LossTerms::mean(&terms),
                });
            }
            let (epoch, window) = (step / windows, step % windows);
            if order.0 != epoch {
                order = (epoch, self.batches(task, epoch));
            }
            let begin = window * settings.accumulate;
            let end = order.1.len().min(begin + settings.accumulate);
            let frozen = schedule.rates(step).lora.is_none();
            let window = &order.1[begin..end];
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
                .map_err(|e| e.at(format!("step {step}")))?;
            self.mine(engine, task, candidates, step, window)?;
            terms.push(losses);
            examples += window.iter().map(Vec::len).sum::<usize>();
            let total = losses.total();
            smooth = Some(smooth.map_or(total, |mean| 0.9 * mean + 0.1 * total));
            let status = Status {
                loss: smooth,
                examples_per_second: Some(
                    examples as f64 / began.elapsed().as_secs_f64().max(1e-9),
                ),
                ..Status::of(schedule.phase(step).name(), step + 1, schedule.steps)
            };
            if watch(&status) == Control::Stop && step + 1 < schedule.steps {
                let state = State {
                    step: step + 1,
                    values: engine.values()?,
                    hard: candidates.hard(),
                };
                state.write(&self.out, &self.parent, settings, &task.update)?;
                return Ok(Ended::Stopped(step + 1));
            }
        }
        Ok(Ended::Done {
            steps: schedule.steps,
            examples,
            terms: LossTerms::mean(&terms),
        })
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
    Done {
        steps: usize,
        examples: usize,
        terms: LossTerms,
    },
    /// Before this step, by the callback.
    Stopped(usize),
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
