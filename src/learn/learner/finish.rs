//! What follows the last step: what the child keeps of prompts, its strengths, how well it serves.

use std::time::{Duration, Instant};

use super::prepare::{Task, Update};
use super::{Learner, Watch};
use crate::error::Result;
use crate::generation::cards::{self, CARDS};
use crate::generation::exemplars::EXEMPLARS;
use crate::generation::serving::ask;
use crate::generation::{ADAPTER, Calibration, Contents, Draft, Learned};
use crate::learn::accuracy::{Accuracy, Counts, lost};
use crate::learn::candidates::Candidates;
use crate::learn::engine::{Engine, Layout};
use crate::learn::ewc::{Consolidated, FISHER};
use crate::learn::experience::{self, Row};
use crate::learn::hybrid;
use crate::learn::privacy::{Withheld, withhold};
use crate::learn::replay::{HELD_OUT, REPLAY};
use crate::learn::report::{self, Kept, LossTerms, Measured, Report, UNKNOWN};
use crate::learn::settings::{Privacy, Regulariser, ReplayStrategy};
use crate::model::lora::Factors;

/// An update behind its last step.
pub(super) struct Trained {
    pub(super) engine: Engine,
    pub(super) candidates: Candidates,
    /// What EWC held on to.
    pub(super) consolidated: Consolidated,
    /// When the call began, and how long its steps took.
    pub(super) began: Instant,
    pub(super) learning: Duration,
    pub(super) steps: usize,
    pub(super) examples: usize,
    pub(super) terms: LossTerms,
}

/// Parts of a generation by name.
type Parts = Vec<(&'static str, Vec<u8>)>;

/// What the child keeps of prompts.
struct Memory {
    parts: Parts,
    kept: Kept,
    withheld: Withheld,
}

/// What was learned, [N], and where what is.
struct Parameters {
    values: Vec<f32>,
    layout: Layout,
}

impl Learner {
    /// The child, which was served once, and what is to be said of it; `before`: of the parent.
    pub(super) fn finish(
        &self,
        mut update: Update,
        trained: Trained,
        before: &Counts,
        watch: Watch<'_>,
    ) -> Result<(Draft, Report)> {
        let Trained {
            mut engine,
            mut candidates,
            consolidated,
            ..
        } = trained;
        let parameters = Parameters {
            values: engine.parameters()?,
            layout: engine.layout().clone(),
        };
        let (values, layout) = (&parameters.values, &parameters.layout);
        let task = &update.task;
        let fisher = match self.settings.regulariser {
            Regulariser::Anchors => update.contents.parts.get(FISHER).cloned(),
            Regulariser::Ewc => {
                let new = self.fisher(&mut engine, task, &mut candidates, values, watch)?;
                let all = consolidated.with(new, &self.settings);
                Some(all.write(layout, &self.settings)?)
            }
        };
        drop(engine);
        let mut memory = self.memory(&mut update)?;
        memory.parts.extend(fisher.map(|bytes| (FISHER, bytes)));
        let Update {
            contents,
            encoder,
            task,
            old,
            new,
            ..
        } = &update;
        let device = encoder.device_name();
        let parts = std::mem::take(&mut memory.parts);
        let mut draft = self.draft(contents.clone(), task, &parameters, parts, device)?;
        draft.check_rows()?;
        let fitted = update.mixes.then(|| {
            let held: Vec<&Row> = old.iter().chain(new).collect();
            let parents = contents.calibration()?;
            hybrid::calibrate(&mut draft, &self.parent, encoder, &held, parents)
        });
        let fitted = fitted.transpose()?;

        let child = draft.contents();
        let (after, gained) = self.served(&child, &update, watch)?;
        let measured = [before, &after, &gained];
        let mut report = self.report(&update, &memory, measured, fitted);
        report.projection_drift = report::projection_drift(&contents.projection, &child.projection);
        report.row_drift_degrees =
            report::row_drift(&contents.embeddings, &child.embeddings, layout.w.rows);
        report.steps = trained.steps;
        report.losses = trained.terms;
        report.examples_per_second =
            trained.examples as f64 / trained.learning.as_secs_f64().max(1e-9);
        report.seconds = trained.began.elapsed().as_secs_f64();
        Ok((draft, report))
    }

    /// Adds to what the parent remembers of prompts, and takes from it what may not be kept.
    fn memory(&self, update: &mut Update) -> Result<Memory> {
        let settings = &self.settings;
        let number = update.task.experience.into();
        let rows = &update.task.rows[..update.learned.len()];
        let centroids = update.mixes && settings.replay_privacy != Privacy::Hashes;
        let replayed = settings.replay_strategy != ReplayStrategy::None;
        let vectors = if centroids || replayed {
            experience::frozen_vectors(&update.encoder, &update.learned)?
        } else {
            Vec::new()
        };
        let (replay, held_out) = (&mut update.replay, &mut update.held_out);
        let mut withheld = withhold(replay, held_out, settings.replay_privacy, &update.encoder)?;
        if replayed {
            let chosen = experience::choose(&update.learned, rows, &vectors, settings, number);
            replay.entries.extend(chosen);
        }
        let keep = experience::keep(&update.measured, &update.new, settings, number);
        held_out.entries.extend(keep);
        let remembered = replay.to_bytes()?;
        let kept = Kept {
            kept: replay.entries.len(),
            bytes: remembered.len(),
        };
        let mut parts = vec![(REPLAY, remembered), (HELD_OUT, held_out.to_bytes()?)];
        if let Some(cards) = &update.cards {
            parts.push((CARDS, cards::write(cards, update.encoder.width())?));
        }
        if centroids {
            let models = update.task.hub.len();
            let all = hybrid::exemplars(&update.contents, models, rows, &vectors)?;
            parts.push((EXEMPLARS, all.write()?));
        } else if settings.replay_privacy == Privacy::Hashes {
            let exemplars = update.contents.exemplars()?;
            withheld.centroids = exemplars.each().filter(|(_, count)| *count > 0).count();
        }
        Ok(Memory {
            parts,
            kept,
            withheld,
        })
    }

    /// Accuracy of the child on earlier and new held-out prompts, as it would serve. Without any it is
    /// asked once: to be published it would have to answer.
    fn served(
        &self,
        child: &Contents,
        update: &Update,
        watch: Watch<'_>,
    ) -> Result<(Counts, Counts)> {
        let sets = [&update.old[..], &update.new];
        if sets.iter().all(|rows| rows.is_empty()) {
            ask(&self.parent, child.clone(), &update.encoder)?;
            return Ok((Counts::new(), Counts::new()));
        }
        let serving = self.serving(child, &update.encoder)?;
        let [after, gained] = self.measure(&serving, sets, "measuring after", watch)?;
        Ok((after, gained))
    }

    /// Without what the steps were; `measured`: the parent on earlier prompts, the child on these and
    /// on those of this experience.
    fn report(
        &self,
        update: &Update,
        memory: &Memory,
        measured: [&Counts; 3],
        fitted: Option<(Calibration, usize)>,
    ) -> Report {
        let [before, after, gained] = measured;
        let forgetting = lost(before.total(), after.total());
        let gate = |lost: &Accuracy| self.max_forgetting.is_some_and(|most| lost.domain > most);
        let refused = forgetting.as_ref().is_some_and(gate);
        let fresh = update.learned.len();
        let (hybrid, hybrid_prompts) = fitted.unzip();
        Report {
            schema_version: 1,
            generation: None,
            kept_beside: None,
            parent: self.parent.clone(),
            models_added: update.new_models.len(),
            models_introduced: update.introduced.clone(),
            remarks: update.oddities.clone(),
            examples: fresh,
            replayed: update.task.rows.len() - fresh,
            steps: 0,
            seconds: 0.0,
            examples_per_second: 0.0,
            losses: LossTerms::default(),
            accuracy: Measured {
                old_before: before.total(),
                old_after: after.total(),
                new_after: gained.total(),
            },
            forgetting,
            forgetting_unknown: forgetting.is_none().then(|| UNKNOWN.to_owned()),
            forgetting_by_domain: before.lost(after),
            refused,
            replay: memory.kept,
            withheld: (!memory.withheld.is_nothing()).then_some(memory.withheld),
            hybrid,
            hybrid_prompts,
            projection_drift: 0.0,
            row_drift_degrees: (0.0, 0.0),
            peak_memory_bytes: report::peak_memory(),
            device: update.encoder.device_name().to_owned(),
        }
    }

    fn draft(
        &self,
        contents: Contents,
        task: &Task,
        parameters: &Parameters,
        parts: Parts,
        device: &str,
    ) -> Result<Draft> {
        let Parameters { values, layout } = parameters;
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
