//! The learner: an experience in, a child generation out.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::device::cpu::Cpu;
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::cards::{self, CARDS};
use crate::generation::exemplars::EXEMPLARS;
use crate::generation::serving::{Serving, open_encoder};
use crate::generation::{
    ADAPTER, Contents, Draft, GenerationId, Learned, Lock, NewModel, Store, card_row,
};
use crate::hub::{Hub, domain_key};
use crate::learn::accuracy::{Counts, lost};
use crate::learn::batches;
use crate::learn::candidates::{Candidates, MINED_EXAMPLES};
use crate::learn::domains::Domains;
use crate::learn::draws::{Draws, Stream, stream_key};
use crate::learn::engine::{Anchors, Engine, Hold, Input, Item, Layout, Rates, Shape};
use crate::learn::ewc::{self, Consolidated, FISHER, Held};
use crate::learn::experience::{self, Experience, Row, RowInput};
use crate::learn::hybrid;
use crate::learn::memory::kept;
use crate::learn::replay::{HELD_OUT, REPLAY};
use crate::learn::report::{self, Kept, LossTerms, Measured, Report};
use crate::learn::rows;
use crate::learn::schedule::Schedule;
use crate::learn::settings::{
    AdamwRows, AnchorForm, AnchorRows, Batching, CandidateMode, ClipScope, EwcScope, InitProfile,
    InitRows, MiningScore, Privacy, Regulariser, ReplayStrategy, Settings,
};
use crate::learn::state::State;
use crate::learn::targets::{Softness, target};
use crate::learn::teacher::Teacher;
use crate::model::lora::{Adapter, Factors, Lora};
use crate::options::Options;
use crate::text::tokenizer::Tokens;

/// What a callback wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Stop before the next step, in a state that the same call resumes.
    Stop,
}

/// Where learning is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// `measuring before`, `teacher`, `features`, `phase 1`, `learning`, `phase 2`, `fisher`,
    /// `measuring after`.
    pub stage: &'static str,
    /// Steps (or prompts) done in this stage's unit, and of how many.
    pub done: usize,
    /// As `done`.
    pub total: usize,
    /// Mean loss of the last steps; none outside steps.
    pub loss: Option<f64>,
    /// Examples a second since learning began; none outside steps.
    pub examples_per_second: Option<f64>,
}

/// Called after each step, which [`Control::Stop`] makes the last, and while something is measured or
/// encoded, where nothing is stopped.
pub type Watch<'w> = &'w mut dyn FnMut(&Status) -> Control;

/// How [`Learner::learn`] ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// [`Learner::commit`] publishes it, unless the gate refused.
    Learned(Box<Report>),
    /// The callback stopped it after this step; the same call goes on there.
    Stopped {
        /// Steps done.
        step: usize,
        /// Of how many.
        steps: usize,
    },
}

/// Learns new models and labelled prompts into a child of a generation.
///
/// Owns its tensors and never blocks a [`crate::Router`], which goes on serving the parent until
/// it is told to install the child.
pub struct Learner {
    store: Store,
    parent: GenerationId,
    /// Where the child is published, and what is left of an interruption.
    out: Store,
    /// What was current there.
    base: Option<GenerationId>,
    /// Keeps other learners out of it.
    lock: Option<Lock>,
    settings: Settings,
    recipe: String,
    options: Options,
    /// Most points of domain accuracy that the old held-out prompts may lose.
    max_forgetting: Option<f64>,
    learned: Option<(Draft, bool)>,
}

/// What the steps need, made once.
struct Task {
    rows: Vec<Row>,
    hub: Hub,
    domains: Arc<Domains>,
    experience: u32,
    schedule: Schedule,
    /// What is distilled of the parent.
    teacher: Teacher,
    /// Micro-batches of an epoch.
    epoch: usize,
    /// SHA-256 over the examples.
    digest: String,
    /// SHA-256 over examples and new models: whose state another one may go on from.
    update: String,
}

impl Learner {
    /// A learner for a child of `parent`, or of the store's current generation.
    ///
    /// Errors: the store or the settings are not good.
    pub fn open(
        store: impl AsRef<Path>,
        parent: Option<&GenerationId>,
        settings: Settings,
        options: Options,
    ) -> Result<Self> {
        settings.validate()?;
        let store = Store::open(store)?;
        let parent = match parent {
            Some(parent) => parent.clone(),
            None => store.current()?,
        };
        Ok(Self {
            out: store.clone(),
            base: store.current().ok(),
            lock: None,
            store,
            parent,
            settings,
            recipe: "custom".to_owned(),
            options,
            max_forgetting: None,
            learned: None,
        })
    }

    /// Notes where the settings came from, for the manifest.
    pub fn recipe(mut self, name: impl Into<String>) -> Self {
        self.recipe = name.into();
        self
    }

    /// Publishes into another store, which is made if missing, and leaves its parent's as it is.
    ///
    /// Errors: the folder holds something else; it cannot be made.
    pub fn into_store(mut self, store: impl AsRef<Path>) -> Result<Self> {
        self.out = Store::create(store)?;
        self.base = self.out.current().ok();
        Ok(self)
    }

    /// Finds out whether the child could be published: before long work is begun.
    ///
    /// Errors: the store is read-only, or has no room for as much as the parent takes.
    pub fn check_writable(&self) -> Result<()> {
        let parent = self.store.check(&self.parent)?;
        self.out
            .check_writable(parent.files().map(|(_, bytes, _)| bytes).sum())
    }

    /// Refuses to publish when the old held-out prompts lose more than this many points of domain
    /// accuracy.
    pub fn max_forgetting(mut self, points: f64) -> Self {
        self.max_forgetting = Some(points);
        self
    }

    /// Learns `experience`; nothing is published before [`Learner::commit`].
    ///
    /// With `budget` the steps end when it is used up, and what was learned by then is the result.
    ///
    /// Errors: an example names a model that nobody introduced; a loss is not finite; the device
    /// failed; another process learns into the same store. The store is as it was.
    pub fn learn(
        &mut self,
        experience: &Experience,
        budget: Option<Duration>,
        watch: Watch<'_>,
    ) -> Result<Outcome> {
        let began = Instant::now();
        if self.lock.is_none() {
            self.lock = self.out.lock_learning()?;
        }
        let contents = self.store.contents(&self.parent)?;
        let host = Arc::new(Cpu::open(self.options.threads)?);
        let pin = contents.manifest.encoder.clone();
        let encoder = Arc::new(open_encoder(self.store.root(), &pin, host, &self.options)?);

        let number = contents
            .manifest
            .learned
            .as_ref()
            .map_or(1, |l| l.experience.saturating_add(1));
        let settings = &self.settings;
        let (hub, new_models) = experience::extend(&contents.hub, experience)?;
        let (learned, measured) = experience::split(&experience.examples, settings);
        let mut replay = kept(&contents, REPLAY)?;
        let mut held_out = kept(&contents, HELD_OUT)?;
        let old = experience::kept_rows(&encoder, &held_out, &hub)?;
        let new = experience::rows(&encoder, &measured, &hub)?;
        let mut rows = experience::rows(&encoder, &learned, &hub)?;
        let fresh = rows.len();
        if fresh == 0 {
            bail!(
                InvalidRequest,
                "expected examples to learn from, found none"
            );
        }
        if settings.replay_strategy != ReplayStrategy::None {
            rows.extend(experience::kept_rows(&encoder, &replay, &hub)?);
        }
        let [before] = self.measure(&contents, &encoder, [&old], "measuring before", watch)?;

        let mut task = self.task(rows, hub, number, experience::digest(&experience.examples));
        task.update = experience::digest_of_update(&task.digest, &new_models);
        let mixed = settings.rows() == InitRows::CardMix;
        let mixes = settings.hybrid && contents.has_cards();
        if settings.hybrid && !mixes {
            log::warn!(
                "{}: no {CARDS}: it was learned without hybrid = true, and so are its children",
                self.parent
            );
        }
        let cards = (mixed || mixes || contents.parts.contains_key(CARDS))
            .then(|| contents.cards_with(&encoder, &new_models, &mut |_, _| {}))
            .transpose()?;
        let mut engine = self.engine(&encoder, &contents, &task, &new_models, &cards)?;
        let consolidated = self.consolidated(&mut engine, &contents, task.experience)?;
        if settings.lwf_alpha > 0.0 && number > 1 {
            let parent = (contents.hub.len(), contents.manifest.tau);
            let mut say = |done, total| {
                watch(&Status::of("teacher", done, total));
            };
            task.teacher = Teacher::new(&mut engine, &task.rows, parent, settings, &mut say)?;
        }
        let mut candidates = Candidates::new(
            Arc::clone(&task.domains),
            settings.clone(),
            task.experience.into(),
        );
        let started = Instant::now();
        let (steps, done, terms) =
            match self.steps(&mut engine, &task, &mut candidates, budget, watch)? {
                Ended::Done {
                    steps,
                    examples,
                    terms,
                } => (steps, examples, terms),
                Ended::Stopped(step) => {
                    return Ok(Outcome::Stopped {
                        step,
                        steps: task.schedule.steps,
                    });
                }
            };
        let learning = started.elapsed().as_secs_f64();

        let values = engine.parameters()?;
        let layout = engine.layout().clone();
        let fisher = match settings.regulariser {
            Regulariser::Anchors => contents.parts.get(FISHER).cloned(),
            Regulariser::Ewc => {
                let new = self.fisher(&mut engine, &task, &mut candidates, &values, watch)?;
                let all = consolidated.with(new, settings);
                Some(all.write(&layout, settings)?)
            }
        };
        drop(engine);
        let centroids = mixes && settings.replay_privacy != Privacy::Hashes;
        let replayed = settings.replay_strategy != ReplayStrategy::None;
        let vectors = if centroids || replayed {
            experience::frozen_vectors(&encoder, &learned)?
        } else {
            Vec::new()
        };
        if replayed {
            let rows = &task.rows[..fresh];
            let chosen = experience::choose(&learned, rows, &vectors, settings, number.into());
            replay.entries.extend(chosen);
        }
        let keep = experience::keep(&measured, &new, settings, number.into());
        held_out.entries.extend(keep);
        let remembered = replay.to_bytes()?;
        let sizes = Kept {
            kept: replay.entries.len(),
            bytes: remembered.len(),
        };
        let mut parts = vec![(REPLAY, remembered), (HELD_OUT, held_out.to_bytes()?)];
        parts.extend(fisher.map(|bytes| (FISHER, bytes)));
        if let Some(cards) = &cards {
            parts.push((CARDS, cards::write(cards, encoder.width())?));
        }
        if centroids {
            let rows = &task.rows[..fresh];
            let all = hybrid::exemplars(&contents, task.hub.len(), rows, &vectors)?;
            parts.push((EXEMPLARS, all.write()?));
        }
        let device = encoder.device_name();
        let mut draft = self.draft(contents.clone(), &task, &layout, &values, parts, device)?;
        let calibration = mixes.then(|| {
            let held: Vec<&Row> = old.iter().chain(&new).collect();
            let fitted = contents.calibration()?;
            hybrid::calibrate(&mut draft, &self.parent, &encoder, &held, fitted)
        });
        let calibration = calibration.transpose()?;

        let child = draft.contents();
        let [after, gained] =
            self.measure(&child, &encoder, [&old, &new], "measuring after", watch)?;
        let forgetting = lost(before.total(), after.total());
        let refused = match (self.max_forgetting, &forgetting) {
            (Some(most), Some(lost)) => lost.domain > most,
            _ => false,
        };
        let old_rows = &contents.embeddings;
        let report = Report {
            schema_version: 1,
            generation: None,
            parent: self.parent.clone(),
            models_added: new_models.len(),
            examples: fresh,
            replayed: task.rows.len() - fresh,
            steps,
            seconds: began.elapsed().as_secs_f64(),
            examples_per_second: done as f64 / learning.max(1e-9),
            losses: terms,
            accuracy: Measured {
                old_before: before.total(),
                old_after: after.total(),
                new_after: gained.total(),
            },
            forgetting,
            forgetting_by_domain: before.lost(&after),
            refused,
            replay: sizes,
            hybrid: calibration,
            projection_drift: report::projection_drift(&contents.projection, &child.projection),
            row_drift_degrees: report::row_drift(old_rows, &child.embeddings, layout.w.rows),
            peak_memory_bytes: report::peak_memory(),
            device: device.to_owned(),
        };
        self.learned = Some((draft, refused));
        Ok(Outcome::Learned(Box::new(report)))
    }

    /// Publishes what was learned and makes it current.
    ///
    /// Errors: nothing was learned; the gate refused ([`crate::ErrorKind::Refused`]); the store cannot be
    /// written, and is as it was; another generation has become current meanwhile, and the child is
    /// published beside it.
    pub fn commit(self) -> Result<GenerationId> {
        match &self.learned {
            Some((draft, false)) => {
                let id = self.out.publish_after(self.base.as_ref(), draft);
                if id.is_ok() {
                    self.out.clear_resume();
                }
                id
            }
            Some((_, true)) => bail!(
                Refused,
                "{}: the update forgets more than max-forgetting allows; nothing was published",
                self.parent
            ),
            None => bail!(
                InvalidRequest,
                "nothing was learned that could be published"
            ),
        }
    }

    fn task(&self, rows: Vec<Row>, hub: Hub, experience: u32, digest: String) -> Task {
        let domains = Arc::new(Domains::new(&hub));
        let mut task = Task {
            schedule: Schedule::new(&self.settings, experience.into(), 0),
            rows,
            hub,
            domains,
            experience,
            teacher: Teacher::default(),
            epoch: 0,
            update: digest.clone(),
            digest,
        };
        task.epoch = self.batches(&task, 0).len();
        task.schedule = Schedule::new(&self.settings, experience.into(), task.epoch);
        task
    }

    /// The micro-batches of an epoch.
    fn batches(&self, task: &Task, epoch: usize) -> Vec<Vec<usize>> {
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

    /// What EWC holds on to, which `engine` does from now on; nothing with anchors.
    fn consolidated(
        &self,
        engine: &mut Engine,
        contents: &Contents,
        experience: u32,
    ) -> Result<Consolidated> {
        if self.settings.regulariser == Regulariser::Anchors {
            return Ok(Consolidated::default());
        }
        let consolidated = match contents.parts.get(FISHER) {
            Some(bytes) => Consolidated::read(bytes, engine.layout(), contents.hub.len())
                .map_err(|e| e.at(format!("{}: {FISHER}", self.parent)))?,
            None if experience > 1 => {
                log::warn!(
                    "{}: no {FISHER}: it was not learned with regulariser = ewc, and nothing holds \
                     it in this update",
                    self.parent
                );
                Consolidated::default()
            }
            None => Consolidated::default(),
        };
        let w = engine.layout().w.offset;
        let router = self.settings.ewc_scope == EwcScope::Router;
        let held = consolidated.held.iter().map(|held| match router {
            true => held.behind(w),
            false => held.clone(),
        });
        engine.consolidate(&held.collect::<Vec<_>>())?;
        Ok(consolidated)
    }

    /// What was learned, with its Fisher weights over all rows, in their order (carve.md section 7).
    fn fisher(
        &self,
        engine: &mut Engine,
        task: &Task,
        candidates: &mut Candidates,
        theta: &[f32],
        watch: Watch<'_>,
    ) -> Result<Held> {
        let rows = &task.rows;
        let router = self.settings.ewc_scope == EwcScope::Router;
        // W and E see the encoder's output alone.
        let (first, pooled) = if router {
            let pooled = features(engine, rows, watch)?;
            (engine.layout().w.offset, pooled)
        } else {
            (0, Vec::new())
        };
        let places: Vec<usize> = (0..rows.len()).collect();
        let batches: Vec<&[usize]> = places.chunks(ewc::BATCH).collect();
        let draw = Draw {
            // No step's: the sets are fresh.
            step: task.schedule.steps,
            softness: self.settings.softness(),
            replayed: 1.0,
            teacher: None,
        };
        let fisher = engine.fisher(first, batches.len(), |i| {
            watch(&Status::of("fisher", i + 1, batches.len()));
            let items = self.items(task, candidates, draw, &[batches[i].to_vec()], |row| {
                input(&rows[row], router.then(|| &pooled[row][..]))
            });
            items.into_iter().flatten().collect()
        })?;
        Ok(Held {
            first,
            theta: theta[first..].to_vec(),
            fisher,
        })
    }

    /// The engine with parameters as they are at the start of the experience.
    fn engine(
        &self,
        encoder: &Arc<Encoder>,
        contents: &Contents,
        task: &Task,
        new_models: &[NewModel],
        cards: &Option<Vec<f32>>,
    ) -> Result<Engine> {
        let settings = &self.settings;
        let inputs = encoder.width();
        let number = task.experience.into();
        let anew = number == 1 && settings.init_profile == InitProfile::Random;
        let width = match settings.width {
            Some(width) if anew => width,
            _ if anew => inputs,
            _ => contents.manifest.width,
        };
        settings.check_width(width, inputs)?;
        let factors = match contents.factors(encoder.config())? {
            Some(factors) => factors,
            None => {
                let mut draws = Draws::new(settings.seed, Stream::Init, &[number, 0]);
                let adapter = Adapter::new(&settings.lora(), encoder.config());
                Factors::fresh(adapter, || draws.float())
            }
        };
        let models = task.hub.len();
        let layout = Layout::new(factors.adapter, width, inputs, models);
        let mut values = factors.values;
        let mut draws = Draws::new(settings.seed, Stream::Init, &[number, 1]);
        if anew {
            values.extend(rows::xavier(width, inputs, &mut draws));
            values.extend(rows::xavier(models, width, &mut draws));
        } else {
            values.extend(&contents.projection);
            values.extend(&contents.embeddings);
            values.extend(rows::xavier(new_models.len(), width, &mut draws));
        }
        let shape = Shape {
            examples: settings.batch,
            candidates: (settings.candidates == CandidateMode::Sampled)
                .then(|| settings.candidates_k.min(models)),
            targets: 1 + settings.soft_k,
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        let tau = settings.tau as f32;
        let mut engine = Engine::new(Arc::clone(encoder), layout, shape, &values, tau)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        engine.set_dropout(settings.lora_dropout as f32);
        if !anew && !new_models.is_empty() {
            self.new_rows(&mut engine, &mut values, contents, new_models, cards)?;
        }
        if number > 1 {
            engine.anchor_to(&contents.embeddings, &contents.projection)?;
            engine.set_priors(&self.priors(task, contents.hub.len()))?;
        }
        Ok(engine)
    }

    /// The shift of each model's logits; the first `old` models are those of the parent.
    fn priors(&self, task: &Task, old: usize) -> Vec<f32> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        let absent = self.settings.prior_old as f32;
        let mut priors = vec![absent; old];
        priors.resize(task.hub.len(), 0.0);
        for row in task.rows.iter().filter(|row| !row.replay) {
            priors[row.gold as usize] = 0.0;
        }
        priors
    }

    /// Gives the rows of new models, which are random, what `init.rows` says.
    fn new_rows(
        &self,
        engine: &mut Engine,
        values: &mut [f32],
        contents: &Contents,
        new_models: &[NewModel],
        cards: &Option<Vec<f32>>,
    ) -> Result<()> {
        let (width, old) = (contents.manifest.width, contents.hub.len());
        let e = engine.layout().e.offset;
        let domains: Vec<String> = contents
            .hub
            .iter()
            .map(|(_, m)| domain_key(&m.domain))
            .collect();
        let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
        let of_domain = |model: &NewModel| {
            let domain = domain_key(&model.model.domain);
            rows::domain_row(&contents.embeddings, width, &domains, &domain)
        };
        let new: Vec<Vec<f32>> = match self.settings.rows() {
            InitRows::Domain => new_models.iter().map(of_domain).collect(),
            InitRows::Card => {
                let cards = engine.card_vectors(new_models)?;
                let cards = new_models.iter().zip(&cards);
                let row = |(model, vectors): (&NewModel, &Vec<Vec<f32>>)| {
                    card_row(model, &contents.projection, vectors, width)
                };
                cards.map(row).collect::<Result<_>>()?
            }
            InitRows::CardMix => {
                let h = contents.manifest.encoder.width;
                let vectors = cards.iter().flat_map(|cards| cards.chunks_exact(h));
                let vectors: Vec<&[f32]> = vectors.collect();
                let (known, added) = vectors.split_at(old);
                let row = |(model, card): (&NewModel, &&[f32])| {
                    let cosine = |of: &&[f32]| card.iter().zip(*of).map(|(a, b)| a * b).sum();
                    let cosines: Vec<f32> = known.iter().map(cosine).collect();
                    rows::mixed_row(&contents.embeddings, width, &cosines, rows::MIXED)
                        .unwrap_or_else(|| of_domain(model))
                };
                new_models.iter().zip(added).map(row).collect()
            }
            _ => return Ok(()),
        };
        for (i, row) in new.iter().enumerate() {
            values[e + (old + i) * width..][..width].copy_from_slice(row);
        }
        engine.set(values)
    }

    /// All steps; the number done, or the step before which the callback stopped.
    fn steps(
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
    fn items<'i>(
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

    /// Accuracy of a generation on each of `sets`, as it would serve.
    fn measure<const N: usize>(
        &self,
        contents: &Contents,
        encoder: &Arc<Encoder>,
        sets: [&[Row]; N],
        stage: &'static str,
        watch: Watch<'_>,
    ) -> Result<[Counts; N]> {
        let mut counts = [const { Counts::new() }; N];
        if sets.iter().all(|rows| rows.is_empty()) {
            return Ok(counts);
        }
        let serving = Serving::new(
            self.parent.clone(),
            contents.clone(),
            Arc::clone(encoder),
            None,
        )?;
        for (counts, rows) in counts.iter_mut().zip(sets) {
            let (rows, prompts): (Vec<&Row>, Vec<Tokens>) = rows
                .iter()
                .filter_map(|row| Some((row, row.tokens()?.clone())))
                .unzip();
            let best = serving.best(prompts, &mut |done| {
                watch(&Status::of(stage, done, rows.len()));
            })?;
            counts.add(&contents.hub, &rows, &best);
        }
        Ok(counts)
    }

    fn draft(
        &self,
        contents: Contents,
        task: &Task,
        layout: &Layout,
        values: &[f32],
        parts: Vec<(&str, Vec<u8>)>,
        device: &str,
    ) -> Result<Draft> {
        let factors = Factors {
            adapter: layout.adapter.clone(),
            values: values[..layout.adapter.len].to_vec(),
        };
        let mut draft = contents.child(self.parent.clone(), format!("learn {}", self.recipe));
        draft.projection = values[layout.w.offset..layout.w.end()].to_vec();
        draft.embeddings = values[layout.e.offset..layout.e.end()].to_vec();
        draft.width = layout.w.rows;
        draft.hub = task.hub.clone();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        {
            draft.tau = self.settings.tau as f32;
        }
        draft.adapter = None;
        let named = |(name, bytes): (&str, Vec<u8>)| (name.to_owned(), bytes);
        draft.parts = parts.into_iter().map(named).collect();
        if layout.adapter.len > 0 {
            draft.adapter = Some(layout.adapter.lora.clone());
            draft.parts.insert(ADAPTER.to_owned(), factors.write()?);
        }
        draft.learned = Some(Learned {
            experience: task.experience,
            recipe: self.recipe.clone(),
            settings: self
                .settings
                .written()
                .into_iter()
                .map(|(key, value)| (key, value.to_string()))
                .collect(),
            examples_sha256: task.digest.clone(),
            device: device.to_owned(),
        });
        Ok(draft)
    }
}

impl Status {
    fn of(stage: &'static str, done: usize, total: usize) -> Self {
        Self {
            stage,
            done,
            total,
            loss: None,
            examples_per_second: None,
        }
    }
}

/// What the items of a batch depend on besides their rows.
#[derive(Clone, Copy)]
struct Draw<'t> {
    step: usize,
    softness: Softness,
    /// Weight of a replayed row.
    replayed: f32,
    /// None where the routing loss stands alone.
    teacher: Option<&'t Teacher>,
}

/// How the steps ended.
enum Ended {
    Done {
        steps: usize,
        examples: usize,
        terms: LossTerms,
    },
    /// Before this step, by the callback.
    Stopped(usize),
}

/// What enters for `row`; `pooled`: its vector, while the encoder is frozen.
fn input<'r>(row: &'r Row, pooled: Option<&'r [f32]>) -> Input<'r> {
    match (&row.input, pooled) {
        (RowInput::Pooled(vector), _) => Input::Pooled(vector),
        (RowInput::Tokens(_), Some(vector)) => Input::Pooled(vector),
        (RowInput::Tokens(tokens), None) => Input::Tokens(tokens),
    }
}

/// The pooled vector of each row that has tokens, by the encoder as it is.
fn features(engine: &mut Engine, rows: &[Row], watch: Watch<'_>) -> Result<Vec<Vec<f32>>> {
    let tokens: Vec<&Tokens> = rows.iter().filter_map(Row::tokens).collect();
    let vectors = engine.features(&tokens, &mut |done| {
        watch(&Status::of("features", done, tokens.len()));
    })?;
    let mut vectors = vectors.chunks_exact(vectors.len() / tokens.len().max(1));
    let next = |row: &Row| row.tokens().and_then(|_| vectors.next());
    let owned = |vector: Option<&[f32]>| vector.unwrap_or_default().to_vec();
    Ok(rows.iter().map(next).map(owned).collect())
}

impl Settings {
    /// The adapter that they ask for; without targets where none is trained.
    fn lora(&self) -> Lora {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        Lora {
            r: self.lora_r,
            alpha: self.lora_alpha as f32,
            targets: if self.lora_train {
                self.lora_targets.clone()
            } else {
                Vec::new()
            },
        }
    }
}
