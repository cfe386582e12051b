//! The learner: an experience in, a child generation out.

mod consolidate;
mod finish;
mod onto;
mod prepare;
mod saved;
mod sound;
mod start;
mod steps;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::finish::Trained;
use self::onto::Base;
use self::saved::Left;
use self::steps::Ended;
use crate::encoder::Encoder;
use crate::error::{Error, ErrorKind, Result, bail, caught};
use crate::generation::{Contents, GenerationId};
use crate::learn::accuracy::Measurement;
use crate::learn::candidates::Candidates;
use crate::learn::experience::{self, Experience, Row};
use crate::learn::oddities::oddities;
use crate::learn::report::Report;
use crate::learn::settings::Settings;
use crate::learn::state::State;
use crate::memory::Memory;
use crate::options::Options;
use crate::serve::Serving;
use crate::store::{Lock, Store};
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
    /// `encoding`, `measuring before`, `teacher`, `features`, `phase 1`, `learning`, `phase 2`, `fisher`,
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
    /// Publish what forgets nobody knows how much.
    allow_unmeasured: bool,
    /// Take names that are like known ones.
    introduce: bool,
    /// Write no state, publish nothing.
    dry_run: bool,
    /// From one writing of the state to the next.
    pause: Duration,
    /// What a failure leaves.
    left: Left,
    /// The child, with what it was measured by and what it grew from.
    learned: Option<(Contents, Arc<Encoder>, Base)>,
    /// The gate refused that.
    refused: bool,
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
            allow_unmeasured: false,
            introduce: false,
            dry_run: false,
            pause: saved::PAUSE,
            left: Left::Nothing,
            learned: None,
            refused: false,
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

    /// Publishes also where earlier prompts were learned and none is kept to measure on. Without it such an
    /// update is refused.
    pub fn allow_unmeasured(mut self, allow: bool) -> Self {
        self.allow_unmeasured = allow;
        self
    }

    /// Adds models and domains that examples name also where they differ from known ones by no more than
    /// a slip of the keyboard does: without it those are refused, with what was probably meant.
    pub fn introduce(mut self, introduce: bool) -> Self {
        self.introduce = introduce;
        self
    }

    /// Learns and measures alone: no state is written, and nothing can be published.
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// How often the state is written while learning, so that the same call goes on there when this
    /// process was lost; a minute by default, and never more than a hundredth of the time.
    pub fn save_every(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// What is odd about `experience` and will be learned nevertheless, in words: examples with
    /// another domain than their model has, prompts with two models.
    ///
    /// Errors: what of [`Learner::learn`]'s can be known before anything is opened but the parent.
    pub fn look_over(&self, experience: &Experience) -> Result<Vec<String>> {
        let hub = self.store.hub(&self.parent)?;
        let extended = experience::extend(&hub, experience, self.introduce)?;
        Ok(oddities(&extended.hub, &experience.examples))
    }

    /// Learns `experience`; nothing is published before [`Learner::commit`].
    ///
    /// With `budget` the steps end when it is used up, and what was learned by then is the result.
    /// While it learns, and when it has, the store holds the state: whatever fails before
    /// `commit` has published, the same call on another learner goes on there, with the same result.
    ///
    /// Errors: an example names a model that nobody introduced, or a name like a known one; a loss is
    /// not finite, or what was learned cannot be served; the device failed; another process learns into
    /// the same store. Its generations are as they were.
    pub fn learn(
        &mut self,
        experience: &Experience,
        budget: Option<Duration>,
        watch: Watch<'_>,
    ) -> Result<Outcome> {
        caught("learning", || self.learned_from(experience, budget, watch))
    }

    fn learned_from(
        &mut self,
        experience: &Experience,
        budget: Option<Duration>,
        watch: Watch<'_>,
    ) -> Result<Outcome> {
        let began = Instant::now();
        if self.lock.is_none() {
            self.lock = self.out.lock_learning()?;
        }
        let mut update = self.prepare(experience)?;
        let digest = &update.task.update;
        let state = State::read(&self.out, &self.parent, &self.settings, digest)?;
        // What cannot be measured is not: kept as what was seen, by an encoder that is trained now.
        let trains = update.trains;
        let width = update.memory.as_ref().map_or(0, Memory::width);
        update.old.retain(|row| match &row.seen {
            _ if row.tokens().is_some() => true,
            Some(seen) => !trains && seen.layers.len() == width,
            None => false,
        });
        let base = Base::of(&update.contents);
        let encoder = Arc::clone(&update.encoder);
        if !trains {
            let (draft, report) = self.remember(update, began, watch)?;
            self.refused = report.refused;
            self.learned = Some((draft, encoder, base));
            return Ok(Outcome::Learned(Box::new(report)));
        }
        let before = self.measured_before(&update, watch)?;
        let mut engine = self.engine(&update)?;
        let consolidated = self.consolidated(&mut engine, &update)?;
        let steps = update.task.schedule.steps;
        if state.as_ref().is_none_or(|state| state.step < steps) {
            self.teach(&mut engine, &mut update, watch)?;
        }
        let mut candidates = Candidates::new(
            Arc::clone(&update.task.domains),
            self.settings.clone(),
            update.task.experience.into(),
        );
        let started = Instant::now();
        let task = &update.task;
        let done = match self.steps(&mut engine, task, &mut candidates, state, budget, watch)? {
            Ended::Done(done) => done,
            Ended::Stopped(step) => return Ok(Outcome::Stopped { step, steps }),
        };
        self.left = done.left;
        let trained = Trained {
            engine,
            candidates,
            consolidated,
            learning: started.elapsed(),
            steps: done.steps,
            examples: done.examples,
            terms: done.terms,
        };
        let finished = self.finish(update, trained, began, &before, watch);
        let (draft, report) = finished.map_err(|e| self.unpublished(e))?;
        self.refused = report.refused;
        self.learned = Some((draft, encoder, base));
        Ok(Outcome::Learned(Box::new(report)))
    }

    /// Publishes what was learned and makes it current.
    ///
    /// Errors: nothing was learned; the gate refused ([`crate::ErrorKind::Refused`]); the store cannot be
    /// written, and its generations are as they were; another generation has become current meanwhile,
    /// and the child is published beside it, unless models were retired, renamed or given aliases and
    /// nothing else was changed: then the child has these changes, and grew from that generation. Where it is not published the state stays, and the same
    /// update goes on behind its last step.
    pub fn commit(self) -> Result<GenerationId> {
        caught("publishing", || self.committed())
    }

    fn committed(mut self) -> Result<GenerationId> {
        let (draft, encoder, parent) = self.publishable()?;
        if self.refused {
            bail!(
                Refused,
                "{}: the update forgets more than max-forgetting allows, or nothing is there to measure \
                 that; nothing was published, and Learner::keep_beside keeps it to be looked at",
                self.parent
            );
        }
        let base = self.base.as_ref();
        let grew_here = base == Some(&self.parent) && self.out.root() == self.store.root();
        let carry = |id: &GenerationId, now: &Contents| {
            grew_here.then(|| parent.carry(&draft, id, now)).flatten()
        };
        match self.out.publish_after(base, &draft, &encoder, carry) {
            Ok(id) => {
                self.out.clear_resume();
                Ok(id)
            }
            Err(error) if self.is_beside(&error) => Err(error),
            Err(error) => Err(self.unpublished(error)),
        }
    }

    /// Publishes what was learned without making it current, refused or not: to be looked at and, with
    /// [`Store::set_current`], taken. `prune` removes it like any other that is not current.
    ///
    /// Errors: nothing was learned; the store cannot be written.
    pub fn keep_beside(mut self) -> Result<GenerationId> {
        let (draft, encoder, _) = self.publishable()?;
        let written = self.out.publish_beside(&draft, Some(&encoder));
        written.map_err(|e| self.unpublished(e))
    }

    /// What was learned, to be published.
    fn publishable(&mut self) -> Result<(Contents, Arc<Encoder>, Base)> {
        match self.learned.take() {
            _ if self.dry_run => bail!(InvalidRequest, "a dry run publishes nothing"),
            Some(learned) => Ok(learned),
            None => bail!(
                InvalidRequest,
                "nothing was learned that could be published"
            ),
        }
    }

    /// The error says that the child is whole, beside another one that has become current.
    fn is_beside(&self, error: &Error) -> bool {
        error.kind() == ErrorKind::Refused && self.out.current().ok() != self.base
    }

    /// A generation as it would serve.
    fn serving(&self, contents: &Contents, encoder: &Arc<Encoder>) -> Result<Serving> {
        let (id, encoder) = (self.parent.clone(), Arc::clone(encoder));
        Serving::new(id, contents, encoder, None)
    }

    /// Accuracy on each of `sets`.
    fn measure<const N: usize>(
        &self,
        serving: &Serving,
        sets: [&[Row]; N],
        stage: &'static str,
        watch: Watch<'_>,
    ) -> Result<[Measurement; N]> {
        let mut measured = [const { Measurement::new_empty() }; N];
        for (measured, rows) in measured.iter_mut().zip(sets) {
            let (rows, prompts): (Vec<&Row>, Vec<&Tokens>) = rows
                .iter()
                .filter_map(|row| Some((row, row.tokens()?)))
                .unzip();
            let best = serving.best(&prompts, &mut |done| {
                watch(&Status::of(stage, done, rows.len()));
            })?;
            *measured = Measurement::new(&serving.hub, &rows, &best);
        }
        Ok(measured)
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
