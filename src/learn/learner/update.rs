//! One update on its way from examples to a child generation.
//!
//! | step | file | result |
//! |---|---|---|
//! | [`Update::prepare`] | `prepare.rs` | parent, hub, rows to learn and to measure, memory |
//! | [`Update::measure_parent`] | `judge.rs` | the parent's accuracy on earlier held-out prompts |
//! | [`Update::train`] | `train.rs` | the parameters after the last step, where the update trains |
//! | [`Update::remember`] | `remember.rs` | the grown memory; prompts that the child keeps |
//! | [`Update::assemble`] | `assemble.rs` | the child's contents |
//! | [`Update::judge`] | `judge.rs` | the child's accuracy, the gate, the report |

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Watch;
use super::saved;
use super::state::State;
use super::train::TrainingResult;
use crate::encoder::Encoder;
use crate::error::Result;
use crate::generation::{Contents, GenerationId, NewModel};
use crate::hub::Hub;
use crate::learn::accuracy::Measurement;
use crate::learn::data::examples::Example;
use crate::learn::data::rows::PromptRow;
use crate::learn::kept::replay::Replay;
use crate::learn::method::domains::DomainGroups;
use crate::learn::method::schedule::Schedule;
use crate::learn::report::Report;
use crate::learn::settings::Settings;
use crate::learn::{confidence, precision};
use crate::memory::Memory;
use crate::options::Options;
use crate::store::Store;

/// How a host wants updates to be made.
pub(super) struct UpdateConfig {
    pub(super) store: Store,
    pub(super) parent: GenerationId,
    /// Where the child is published, and where an interrupted update leaves its state.
    pub(super) out: Store,
    /// The generation that was current there.
    pub(super) base: Option<GenerationId>,
    pub(super) settings: Settings,
    pub(super) recipe: String,
    pub(super) options: Options,
    /// Most points of domain accuracy that the old held-out prompts may lose.
    pub(super) max_forgetting: Option<f64>,
    /// Publish although forgetting cannot be measured.
    pub(super) allow_unmeasured: bool,
    /// Accept names that are close to known ones.
    pub(super) introduce: bool,
    /// Write no state, publish nothing.
    pub(super) dry_run: bool,
    /// Time between two writes of the state.
    pub(super) pause: Duration,
}

impl UpdateConfig {
    /// Updates of `parent` that are published into its own store.
    pub(super) fn new(
        store: Store,
        parent: GenerationId,
        settings: Settings,
        options: Options,
    ) -> Self {
        Self {
            out: store.clone(),
            base: store.current().ok(),
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
        }
    }
}

/// The rows and the order in which steps learn them.
pub(super) struct Task {
    pub(super) rows: Vec<PromptRow>,
    pub(super) hub: Arc<Hub>,
    pub(super) domains: Arc<DomainGroups>,
    /// Number of the update, from 1.
    pub(super) experience: u32,
    pub(super) schedule: Schedule,
    /// Micro-batches of an epoch.
    pub(super) epoch: usize,
    /// SHA-256 over the examples.
    pub(super) digest: String,
    /// SHA-256 over examples and new models: only a state of the same update is resumed.
    pub(super) update: String,
}

/// An update, from examples to a child.
pub(super) struct Update<'c> {
    pub(super) config: &'c UpdateConfig,
    pub(super) began: Instant,
    pub(super) parent: Contents,
    pub(super) encoder: Arc<Encoder>,
    pub(super) task: Task,
    /// Where the same update was interrupted.
    pub(super) state: Option<State>,
    pub(super) new_models: Vec<NewModel>,
    /// Names of the new models that came with an example and without a card.
    pub(super) introduced: Vec<String>,
    pub(super) oddities: Vec<String>,
    /// Examples to learn: the first rows of the task.
    pub(super) learned: Vec<Example>,
    /// Examples to measure, with their rows.
    pub(super) measured: Vec<Example>,
    pub(super) new: Vec<PromptRow>,
    /// Earlier prompts that the parent keeps, with the rows to measure.
    pub(super) replay: Replay,
    pub(super) held_out: Replay,
    pub(super) old: Vec<PromptRow>,
    /// Vectors of all models' cards, where they are needed.
    pub(super) cards: Option<Vec<f32>>,
    /// The parent's memory, grown to the hub; `None` if the child has none.
    pub(super) memory: Option<Memory>,
    /// Adapters, W and E are trained.
    pub(super) trains: bool,
    /// The parent on the rows of `old`.
    pub(super) before: Measurement,
}

impl Update<'_> {
    /// Makes the child and its report of what the steps left, if there were any.
    pub(super) fn finish(
        mut self,
        trained: Option<TrainingResult>,
        watch: Watch<'_>,
    ) -> Result<(Contents, Report)> {
        let cost = trained.as_ref().map(TrainingResult::cost);
        let weights = match trained {
            Some(trained) => Some(self.weights(trained, watch)?),
            None => None,
        };
        let mut kept = self.remember(weights.as_ref(), watch)?;
        let mut child = self.assemble(weights, &mut kept)?;
        let report = self.judge(&child, &kept, cost, watch)?;
        if !report.refused && !self.config.dry_run {
            let rows = self.old.iter().chain(&self.new);
            let id = &self.config.parent;
            child.agreement = precision::of_child(id, &child, &self.encoder, rows);
            if child.agreement.is_none() && !self.trains {
                child.agreement = self.config.store.inherited_agreement(id);
            }
            let seen = kept.seen.old.iter().chain(&kept.seen.new);
            let rows = self.old.iter().chain(&self.new);
            let encoder = &self.encoder;
            child.calibration = confidence::of_child(id, &child, encoder, rows, seen);
            if child.calibration.is_none() && !self.trains {
                child.calibration = self.config.store.inherited_calibration(id);
            }
        }
        Ok((child, report))
    }
}
