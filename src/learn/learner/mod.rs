//! The learner: an experience in, a child generation out.
//!
//! [`Learner::learn`] runs one [`update::Update`]: prepare, train, remember, assemble, judge.

#![expect(clippy::disallowed_types, reason = "a budget, speeds, when to save")]

mod assemble;
mod blame;
mod carry;
mod consolidate;
mod judge;
mod memory;
mod prepare;
mod remember;
mod saved;
mod start;
mod state;
mod steps;
mod teacher;
mod train;
mod update;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::carry::Base;
pub(crate) use self::memory::{digest, follow as move_memory};
use self::saved::Left;
use self::train::TrainingEnd;
use self::update::{Update, UpdateConfig};
use crate::encoder::Encoder;
use crate::error::{Error, ErrorKind, Result, bail, caught};
use crate::generation::{Contents, GenerationId};
use crate::learn::data::experience::{self, Experience};
use crate::learn::data::oddities::oddities;
use crate::learn::report::Report;
use crate::learn::settings::Settings;
use crate::options::Options;
use crate::store::{Lock, Store};

/// The answer of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Continue.
    Continue,
    /// Stop before the next step; the same call resumes there.
    Stop,
}

/// Progress of an update.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// `encoding`, `measuring before`, `teacher`, `features`, `phase 1`, `learning`, `phase 2`,
    /// `fisher` or `measuring after`.
    pub stage: &'static str,
    /// Steps done; in a stage without steps, prompts.
    pub done: usize,
    /// Steps or prompts of this stage.
    pub total: usize,
    /// Moving average of the loss; `None` outside of steps.
    pub loss: Option<f64>,
    /// Examples per second since the steps began; `None` outside of steps.
    pub examples_per_second: Option<f64>,
}

/// Called after each step and while prompts are measured or encoded. [`Control::Stop`] ends the
/// steps; in other stages it has no effect.
pub type Watch<'w> = &'w mut dyn FnMut(&Status) -> Control;

/// How [`Learner::learn`] ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// The child is ready. [`Learner::commit`] publishes it, unless the gate refused.
    Learned(Box<Report>),
    /// The callback stopped it. The same call resumes there.
    Stopped {
        /// Steps done.
        step: usize,
        /// Steps in all.
        steps: usize,
    },
}

/// Learns new models and labelled prompts into a child of a generation.
///
/// It owns its tensors and never blocks a [`crate::Router`], which serves the parent until it is
/// told to install the child.
pub struct Learner {
    config: UpdateConfig,
    /// Keeps other learners out of the store.
    lock: Option<Lock>,
    /// The state that a failure leaves.
    left: Left,
    learned: Option<LearnedChild>,
}

/// A child that can be published.
struct LearnedChild {
    contents: Contents,
    /// The encoder that it was measured with.
    encoder: Arc<Encoder>,
    base: Base,
    /// The gate refused it.
    refused: bool,
}

impl fmt::Debug for Learner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Learner")
            .field("store", &self.config.store.root())
            .field("parent", &self.config.parent)
            .field("recipe", &self.config.recipe)
            .field("learned", &self.learned.is_some())
            .finish_non_exhaustive()
    }
}

impl Learner {
    /// A learner for a child of `parent`, or of the store's current generation.
    ///
    /// Errors: the store cannot be opened or has no such generation; the settings are invalid.
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
            config: UpdateConfig::new(store, parent, settings, options),
            lock: None,
            left: Left::Nothing,
            learned: None,
        })
    }

    /// Sets the recipe's name, which the manifest records.
    pub fn recipe(mut self, name: impl Into<String>) -> Self {
        self.config.recipe = name.into();
        self
    }

    /// Publishes into another store, which is created if it is missing. The parent's store stays as
    /// it is.
    ///
    /// Errors: the folder holds something else, or it cannot be created.
    pub fn into_store(mut self, store: impl AsRef<Path>) -> Result<Self> {
        self.config.out = Store::create(store)?;
        self.config.base = self.config.out.current().ok();
        Ok(self)
    }

    /// Checks before any long work that the child could be published.
    ///
    /// Errors: the store is read-only, or has less free space than the parent takes.
    pub fn check_writable(&self) -> Result<()> {
        let config = &self.config;
        let parent = config.store.manifest(&config.parent)?;
        let bytes = parent.files().map(|(_, bytes, _)| bytes).sum();
        config.out.check_writable(bytes)
    }

    /// Refuses to publish if old held-out prompts lose more than this many points of domain
    /// accuracy.
    pub fn max_forgetting(mut self, points: f64) -> Self {
        self.config.max_forgetting = Some(points);
        self
    }

    /// Publishes even if earlier prompts were learned and none is kept to measure with. Without
    /// this such an update is refused.
    pub fn allow_unmeasured(mut self, allow: bool) -> Self {
        self.config.allow_unmeasured = allow;
        self
    }

    /// Adds models and domains that examples name even if they differ from known ones by no more
    /// than a typing error. Without this they are refused, with the known name.
    pub fn introduce(mut self, introduce: bool) -> Self {
        self.config.introduce = introduce;
        self
    }

    /// Learns and measures only: no state is written, and nothing can be published.
    pub fn dry_run(mut self) -> Self {
        self.config.dry_run = true;
        self
    }

    /// Time between two writes of the state, from which the same call resumes if the process is
    /// lost. One minute by default. Writing takes at most a hundredth of the time.
    pub fn save_every(mut self, pause: Duration) -> Self {
        self.config.pause = pause;
        self
    }

    /// Remarks on odd examples, which are learned nevertheless: examples whose domain is not their
    /// model's, prompts with two models.
    ///
    /// Errors: those of [`Learner::learn`] that need only the parent and the examples.
    pub fn look_over(&self, experience: &Experience) -> Result<Vec<String>> {
        let hub = self.config.store.hub(&self.config.parent)?;
        let extended = experience::extend(&hub, experience, self.config.introduce)?;
        Ok(oddities(&extended.hub, &experience.examples))
    }

    /// Learns `experience`. Nothing is published before [`Learner::commit`].
    ///
    /// With `budget` the steps end after that time, and the result is what was learned by then. The
    /// store holds the state during the steps and after them: whatever fails before `commit` has
    /// published, the same call on another learner resumes there, with the same result.
    ///
    /// Errors: an example names an unknown model that nobody introduced, or a name close to a known
    /// one; a loss is not finite, or the child cannot be served; the device failed; another process
    /// learns into the same store. The store's generations stay as they were.
    pub fn learn(
        &mut self,
        experience: &Experience,
        budget: Option<Duration>,
        watch: Watch<'_>,
    ) -> Result<Outcome> {
        caught("learning", || self.updated(experience, budget, watch))
    }

    fn updated(
        &mut self,
        experience: &Experience,
        budget: Option<Duration>,
        watch: Watch<'_>,
    ) -> Result<Outcome> {
        if self.lock.is_none() {
            self.lock = self.config.out.lock_learning()?;
        }
        let mut update = Update::prepare(&self.config, experience)?;
        let (encoder, base) = (Arc::clone(&update.encoder), Base::of(&update.parent));
        update.measure_parent(watch)?;
        let trained = match update.train(budget, watch)? {
            TrainingEnd::Stopped { step, steps } => return Ok(Outcome::Stopped { step, steps }),
            TrainingEnd::NotNeeded => None,
            TrainingEnd::Done(trained, left) => {
                self.left = left;
                Some(*trained)
            }
        };
        let stepped = trained.is_some();
        let (contents, report) = match update.finish(trained, watch) {
            Err(error) if stepped => return Err(self.unpublished(error)),
            finished => finished?,
        };
        self.learned = Some(LearnedChild {
            contents,
            encoder,
            base,
            refused: report.refused,
        });
        Ok(Outcome::Learned(Box::new(report)))
    }

    /// Publishes the child and makes it current.
    ///
    /// Errors: nothing was learned; the gate refused ([`crate::ErrorKind::Refused`]); the store
    /// cannot be written, and its generations stay as they were; another generation has become
    /// current since the update began. Then the child is published beside it. If only models were
    /// retired, renamed or given aliases since then, the child takes these changes and becomes
    /// current. If the child is not published, the state stays, and the same update resumes after
    /// its last step.
    pub fn commit(self) -> Result<GenerationId> {
        caught("publishing", || self.committed())
    }

    fn committed(mut self) -> Result<GenerationId> {
        let child = self.publishable()?;
        let config = &self.config;
        if child.refused {
            bail!(
                Refused,
                "{}: the update forgets more than max-forgetting allows, or no kept prompt can \
                 measure that; nothing was published, and Learner::keep_beside keeps the child",
                config.parent
            );
        }
        let grew_here = config.base.as_ref() == Some(&config.parent)
            && config.out.root() == config.store.root();
        let (contents, base) = (&child.contents, &child.base);
        let carry = |id: &GenerationId, now: &Contents| {
            grew_here.then(|| base.carry(contents, id, now)).flatten()
        };
        let published =
            config
                .out
                .publish_after(config.base.as_ref(), contents, &child.encoder, carry);
        match published {
            Ok(id) => {
                config.out.clear_resume();
                Ok(id)
            }
            Err(error) if self.is_beside(&error) => Err(error),
            Err(error) => Err(self.unpublished(error)),
        }
    }

    /// Publishes the child without making it current, also if the gate refused it. It can be
    /// inspected and then made current with [`Store::set_current`]. `prune` removes it like any
    /// other generation that is not current.
    ///
    /// Errors: nothing was learned; the store cannot be written.
    pub fn keep_beside(mut self) -> Result<GenerationId> {
        let child = self.publishable()?;
        let encoder = Some(&child.encoder);
        let written = self.config.out.publish_beside(&child.contents, encoder);
        written.map_err(|e| self.unpublished(e))
    }

    /// The child, to be published.
    fn publishable(&mut self) -> Result<LearnedChild> {
        match self.learned.take() {
            _ if self.config.dry_run => bail!(InvalidRequest, "a dry run publishes nothing"),
            Some(learned) => Ok(learned),
            None => bail!(
                InvalidRequest,
                "expected a child to publish, found none: call Learner::learn first"
            ),
        }
    }

    /// True if the error says that the child is whole, beside another one that became current.
    fn is_beside(&self, error: &Error) -> bool {
        let config = &self.config;
        error.kind() == ErrorKind::Refused && config.out.current().ok() != config.base
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
