//! The start of an update: the parent, the examples, and the choice to train or not.

use std::sync::Arc;
use std::time::Instant;

use super::memory;
use super::state::State;
use super::update::{Task, Update, UpdateConfig};
use crate::device::cpu::Cpu;
use crate::error::{Result, bail};
use crate::generation::Contents;
use crate::generation::cards::CARDS;
use crate::hub::Hub;
use crate::learn::accuracy::Measurement;
use crate::learn::data::experience::{self, Experience, Extended};
use crate::learn::data::oddities::oddities;
use crate::learn::data::rows::{self, PromptRow};
use crate::learn::kept::forget::kept;
use crate::learn::kept::replay::{HELD_OUT, REPLAY};
use crate::learn::method::batches;
use crate::learn::method::domains::DomainGroups;
use crate::learn::method::draws::{Draws, Stream};
use crate::learn::method::schedule::Schedule;
use crate::learn::settings::{Batching, InitRows, ReplayStrategy, Settings, Train};
use crate::memory::Memory;
use crate::store::open_encoder;

impl<'c> Update<'c> {
    /// Reads the parent, extends the hub, and tokenizes the prompts.
    ///
    /// Errors: the parent or its encoder cannot be opened; an example cannot be learned; the
    /// settings do not fit the parent; a state is damaged.
    pub(super) fn prepare(config: &'c UpdateConfig, experience: &Experience) -> Result<Self> {
        let (began, settings) = (Instant::now(), &config.settings);
        let parent = config.store.contents(&config.parent)?;
        let host = Arc::new(Cpu::open_at(config.options.threads, config.options.cpu)?);
        let pin = &parent.manifest.encoder;
        let encoder = open_encoder(config.store.root(), pin, host, &config.options)?;
        let Extended {
            hub,
            new: new_models,
            introduced,
        } = experience::extend(&parent.hub, experience, config.introduce)?;
        // Refused here and not after the last step.
        parent.how().map_err(|e| e.at(&config.parent))?;
        let learned_before = parent.manifest.learned.as_ref();
        let number = learned_before.map_or(1, |l| l.experience.saturating_add(1));
        let memory = match has_memory(config, &parent)? {
            true => Some(memory::inherited(&parent, settings, &encoder, &hub)?),
            false => None,
        };
        let known = |name: &str| is_known(name, &hub, memory.as_ref(), &parent);
        let (learned, measured) = experience::split(&experience.examples, settings, known);
        let (replay, held_out) = (kept(&parent, REPLAY)?, kept(&parent, HELD_OUT)?);
        let mut old = rows::kept_rows(&encoder, &held_out, &hub)?;
        let new = rows::rows(&encoder, &measured, &hub, number.into())?;
        let mut rows = rows::rows(&encoder, &learned, &hub, number.into())?;
        if rows.is_empty() {
            bail!(
                InvalidRequest,
                "expected examples to learn from, found none"
            );
        }
        let trains = trains(settings, &parent, memory.as_ref(), rows.len());
        if trains && settings.replay_strategy != ReplayStrategy::None {
            rows.extend(rows::kept_rows(&encoder, &replay, &hub)?);
        }
        old.retain(|row| can_be_measured(row, trains, memory.as_ref()));
        let mixed = trains && settings.rows() == InitRows::CardMix;
        let cards = (mixed || memory.is_some() || parent.parts.contains_key(CARDS))
            .then(|| parent.cards_with(&encoder, &new_models, &mut |_, _| {}))
            .transpose()?;
        let digest = experience::digest(&experience.examples);
        let whole = experience::digest_of_update(&digest, &new_models);
        let task = Task::new(settings, rows, hub, number, [digest, whole]);
        Ok(Self {
            config,
            began,
            state: State::read(&config.out, &config.parent, settings, &task.update)?,
            oddities: oddities(&task.hub, &experience.examples),
            task,
            parent,
            encoder: Arc::new(encoder),
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
            before: Measurement::default(),
        })
    }
}

impl Task {
    /// `digests`: of the examples, and of the whole update.
    fn new(
        settings: &Settings,
        rows: Vec<PromptRow>,
        hub: Hub,
        experience: u32,
        digests: [String; 2],
    ) -> Self {
        let [digest, update] = digests;
        let mut task = Self {
            schedule: Schedule::new(settings, experience.into(), 0),
            rows,
            domains: Arc::new(DomainGroups::new(&hub)),
            hub: Arc::new(hub),
            experience,
            epoch: 0,
            digest,
            update,
        };
        task.epoch = task.batches(settings, 0).len();
        task.schedule = Schedule::new(settings, experience.into(), task.epoch);
        task
    }

    /// The micro-batches of an epoch: places of rows.
    pub(super) fn batches(&self, settings: &Settings, epoch: usize) -> Vec<Vec<usize>> {
        let parts = [self.experience.into(), epoch as u64];
        let draws = &mut Draws::new(settings.seed, Stream::Order, &parts);
        match settings.batching {
            Batching::Domain => {
                let domains: Vec<&str> = self.rows.iter().map(|row| row.domain.as_str()).collect();
                batches::by_domain(&domains, settings.batch, draws)
            }
            _ => batches::shuffled(self.rows.len(), settings.batch, draws),
        }
    }
}

/// Whether the child of `parent` has a memory.
///
/// Errors: only a memory is to learn, and the parent cannot have one.
fn has_memory(config: &UpdateConfig, parent: &Contents) -> Result<bool> {
    let settings = &config.settings;
    let there = settings.memory && parent.has_cards();
    if settings.memory && !there {
        let why = format!(
            "{}: no {CARDS}: it was learned without memory = true, and so are its children",
            config.parent
        );
        if settings.train == Train::Never {
            bail!(
                InvalidRequest,
                "{why}; a store built anew from the hub's cards can have one"
            );
        }
        log::warn!("{why}");
    }
    Ok(there)
}

/// Whether earlier updates had examples of the model called `name`.
fn is_known(name: &str, hub: &Hub, memory: Option<&Memory>, parent: &Contents) -> bool {
    match (hub.find(name), memory) {
        (Some(id), Some(memory)) => memory.counts()[id.0 as usize] > 0,
        (Some(id), None) => parent.manifest.learned.is_some() && (id.0 as usize) < parent.hub.len(),
        (None, _) => false,
    }
}

/// Whether an update with `rows` examples trains adapters, W and E.
fn trains(settings: &Settings, parent: &Contents, memory: Option<&Memory>, rows: usize) -> bool {
    let learned = parent.manifest.learned.as_ref();
    let trained = learned.is_some_and(|learned| learned.trained);
    match settings.train {
        Train::Never => false,
        // Without a memory nothing else would learn.
        Train::First => memory.is_none() || !trained && rows >= settings.train_least,
        _ => true,
    }
}

/// Whether a held-out row can be measured: by its text, or by what an encoder saw of it that stays.
fn can_be_measured(row: &PromptRow, trains: bool, memory: Option<&Memory>) -> bool {
    let width = memory.map_or(0, Memory::width);
    match &row.seen {
        _ if row.tokens().is_some() => true,
        Some(seen) => !trains && seen.layers.len() == width,
        None => false,
    }
}
