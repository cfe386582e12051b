//! An update before its first step: what it learns, what it measures, what it grows from.

use std::sync::Arc;

use super::{Learner, Status, Watch};
use crate::device::cpu::Cpu;
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::cards::CARDS;
use crate::generation::{Contents, NewModel};
use crate::hub::Hub;
use crate::learn::data::Example;
use crate::learn::domains::DomainGroups;
use crate::learn::engine::Engine;
use crate::learn::experience::{self, Experience, Extended, Row};
use crate::learn::forget::kept;
use crate::learn::oddities::oddities;
use crate::learn::remember;
use crate::learn::replay::{HELD_OUT, REPLAY, Replay};
use crate::learn::schedule::Schedule;
use crate::learn::settings::{InitRows, ReplayStrategy, Train};
use crate::learn::teacher::Teacher;
use crate::memory::Memory;
use crate::store::open_encoder;

/// What the steps need, made once.
pub(super) struct Task {
    pub(super) rows: Vec<Row>,
    pub(super) hub: Hub,
    pub(super) domains: Arc<DomainGroups>,
    pub(super) experience: u32,
    pub(super) schedule: Schedule,
    /// What is distilled of the parent.
    pub(super) teacher: Teacher,
    /// Micro-batches of an epoch.
    pub(super) epoch: usize,
    /// SHA-256 over the examples.
    pub(super) digest: String,
    /// SHA-256 over examples and new models: whose state another one may go on from.
    pub(super) update: String,
}

/// An update before its first step.
pub(super) struct Update {
    /// The parent.
    pub(super) contents: Contents,
    pub(super) encoder: Arc<Encoder>,
    pub(super) task: Task,
    pub(super) new_models: Vec<NewModel>,
    /// Names of those among them that came with an example alone.
    pub(super) introduced: Vec<String>,
    pub(super) oddities: Vec<String>,
    /// Examples to learn: the first rows of the task.
    pub(super) learned: Vec<Example>,
    /// Examples to measure, with their rows.
    pub(super) measured: Vec<Example>,
    pub(super) new: Vec<Row>,
    /// What the parent keeps of earlier prompts, with the rows to measure.
    pub(super) replay: Replay,
    pub(super) held_out: Replay,
    pub(super) old: Vec<Row>,
    /// Vectors of all models' cards, where they are needed.
    pub(super) cards: Option<Vec<f32>>,
    /// The parent's memory, grown; none: the child has none.
    pub(super) memory: Option<Memory>,
    /// Adapters, W and E are trained.
    pub(super) trains: bool,
}

impl Learner {
    /// Reads and tokenizes what the update needs.
    pub(super) fn prepare(&self, experience: &Experience) -> Result<Update> {
        let settings = &self.settings;
        let contents = self.store.contents(&self.parent)?;
        let host = Arc::new(Cpu::open(self.options.threads)?);
        let pin = &contents.manifest.encoder;
        let encoder = Arc::new(open_encoder(self.store.root(), pin, host, &self.options)?);
        let Extended {
            hub,
            new: new_models,
            introduced,
        } = experience::extend(&contents.hub, experience, self.introduce)?;
        // Refused here rather than behind the last step.
        contents.how().map_err(|e| e.at(&self.parent))?;
        let learned_before = contents.manifest.learned.as_ref();
        let number = learned_before.map_or(1, |l| l.experience.saturating_add(1));
        let trained = learned_before.is_some_and(|learned| learned.trained);
        let memory = match self.remembers(&contents)? {
            true => Some(remember::inherited(&contents, settings, &encoder, &hub)?),
            false => None,
        };
        let known = |name: &str| match (hub.find(name), &memory) {
            (Some(id), Some(memory)) => memory.counts()[id.0 as usize] > 0,
            (Some(id), None) => learned_before.is_some() && (id.0 as usize) < contents.hub.len(),
            (None, _) => false,
        };
        let (learned, measured) = experience::split(&experience.examples, settings, known);
        let (replay, held_out) = (kept(&contents, REPLAY)?, kept(&contents, HELD_OUT)?);
        let old = experience::kept_rows(&encoder, &held_out, &hub)?;
        let new = experience::rows(&encoder, &measured, &hub, number.into())?;
        let mut rows = experience::rows(&encoder, &learned, &hub, number.into())?;
        if rows.is_empty() {
            bail!(
                InvalidRequest,
                "expected examples to learn from, found none"
            );
        }
        let trains = match settings.train {
            Train::Never => false,
            // Without a memory nothing else would learn.
            Train::First => memory.is_none() || !trained && rows.len() >= settings.train_least,
            _ => true,
        };
        if trains && settings.replay_strategy != ReplayStrategy::None {
            rows.extend(experience::kept_rows(&encoder, &replay, &hub)?);
        }
        let mixed = trains && settings.rows() == InitRows::CardMix;
        let cards = (mixed || memory.is_some() || contents.parts.contains_key(CARDS))
            .then(|| contents.cards_with(&encoder, &new_models, &mut |_, _| {}))
            .transpose()?;
        let digest = experience::digest(&experience.examples);
        let whole = experience::digest_of_update(&digest, &new_models);
        Ok(Update {
            oddities: oddities(&hub, &experience.examples),
            task: self.task(rows, hub, number, [digest, whole]),
            contents,
            encoder,
            new_models,
            introduced,
            learned,
            measured,
            new,
            replay,
            held_out,
            old,
            cards,
            memory,
            trains,
        })
    }

    /// Whether the child of `contents` has a memory.
    ///
    /// Errors: nothing but a memory is to learn, and it cannot.
    fn remembers(&self, contents: &Contents) -> Result<bool> {
        let there = self.settings.memory && contents.has_cards();
        if self.settings.memory && !there {
            let why = format!(
                "{}: no {CARDS}: it was learned without memory = true, and so are its children",
                self.parent
            );
            if self.settings.train == Train::Never {
                bail!(
                    InvalidRequest,
                    "{why}; a store built anew from the hub's cards can have one"
                );
            }
            log::warn!("{why}");
        }
        Ok(there)
    }

    fn task(&self, rows: Vec<Row>, hub: Hub, experience: u32, digests: [String; 2]) -> Task {
        let [digest, update] = digests;
        let mut task = Task {
            schedule: Schedule::new(&self.settings, experience.into(), 0),
            rows,
            domains: Arc::new(DomainGroups::new(&hub)),
            hub,
            experience,
            teacher: Teacher::default(),
            epoch: 0,
            digest,
            update,
        };
        task.epoch = self.batches(&task, 0).len();
        task.schedule = Schedule::new(&self.settings, experience.into(), task.epoch);
        task
    }

    /// Takes the scores that are distilled, if some are.
    pub(super) fn teach(
        &self,
        engine: &mut Engine,
        update: &mut Update,
        watch: Watch<'_>,
    ) -> Result<()> {
        if self.settings.lwf_alpha == 0.0 || update.task.experience == 1 {
            return Ok(());
        }
        let parent = (update.contents.hub.len(), update.contents.manifest.tau);
        let mut say = |done, total| {
            watch(&Status::of("teacher", done, total));
        };
        let rows = &update.task.rows;
        update.task.teacher = Teacher::new(engine, rows, parent, &self.settings, &mut say)?;
        Ok(())
    }
}
