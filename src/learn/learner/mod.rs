//! The learner: an experience in, a child generation out.

mod consolidate;
mod start;
mod steps;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::steps::Ended;
use crate::device::cpu::Cpu;
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::cards::{self, CARDS};
use crate::generation::exemplars::EXEMPLARS;
use crate::generation::serving::{Serving, open_encoder};
use crate::generation::{ADAPTER, Contents, Draft, GenerationId, Learned, Lock, Store};
use crate::hub::Hub;
use crate::learn::accuracy::{Counts, lost};
use crate::learn::candidates::Candidates;
use crate::learn::domains::Domains;
use crate::learn::engine::Layout;
use crate::learn::ewc::FISHER;
use crate::learn::experience::{self, Experience, Row};
use crate::learn::hybrid;
use crate::learn::memory::kept;
use crate::learn::replay::{HELD_OUT, REPLAY};
use crate::learn::report::{self, Kept, Measured, Report};
use crate::learn::schedule::Schedule;
use crate::learn::settings::{InitRows, Privacy, Regulariser, ReplayStrategy, Settings};
use crate::learn::teacher::Teacher;
use crate::model::lora::Factors;
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
    /// With what it was measured by, and whether the gate refused.
    learned: Option<(Draft, Arc<Encoder>, bool)>,
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
        let parent = self.store.manifest(&self.parent)?;
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
        self.learned = Some((draft, encoder, refused));
        Ok(Outcome::Learned(Box::new(report)))
    }

    /// Publishes what was learned and makes it current.
    ///
    /// Errors: nothing was learned; the gate refused ([`crate::ErrorKind::Refused`]); the store cannot be
    /// written, and is as it was; another generation has become current meanwhile, and the child is
    /// published beside it.
    pub fn commit(self) -> Result<GenerationId> {
        match &self.learned {
            Some((draft, encoder, false)) => {
                let id = self.out.publish_after(self.base.as_ref(), draft, encoder);
                if id.is_ok() {
                    self.out.clear_resume();
                }
                id
            }
            Some((_, _, true)) => bail!(
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
