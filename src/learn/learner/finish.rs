//! What follows the last step: what the child keeps of prompts, its memory, how well it serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::prepare::{Task, Update};
use super::{Learner, Status, Watch};
use crate::encoder::seen::{Seen, look};
use crate::error::Result;
use crate::generation::cards::{self, CARDS};
use crate::generation::{ADAPTER, Contents, Learned, rows};
use crate::learn::accuracy::{Accuracy, Measurement};
use crate::learn::candidates::Candidates;
use crate::learn::engine::{Engine, Layout};
use crate::learn::ewc::{Consolidated, FISHER};
use crate::learn::experience::{self, Row};
use crate::learn::privacy::{Withheld, withhold};
use crate::learn::remember;
use crate::learn::replay::{HELD_OUT, REPLAY, ReplayEntry};
use crate::learn::report::{self, FIRST, Kept, LossTerms, Measured, Report, UNKNOWN};
use crate::learn::settings::{Regulariser, ReplayStrategy};
use crate::memory::Memory;
use crate::model::bert::Bert;
use crate::model::lora::Factors;
use crate::serve::{Serving, ask};
use crate::text::tokenizer::Tokens;

/// An update behind its last step.
pub(super) struct Trained {
    pub(super) engine: Engine,
    pub(super) candidates: Candidates,
    /// What EWC held on to.
    pub(super) consolidated: Consolidated,
    /// How long the steps took.
    pub(super) learning: Duration,
    pub(super) steps: usize,
    pub(super) examples: usize,
    pub(super) terms: LossTerms,
}

/// Parts of a generation by name.
type Parts = Vec<(&'static str, Vec<u8>)>;

/// What the child keeps of prompts.
struct Prompts {
    parts: Parts,
    kept: Kept,
    withheld: Withheld,
}

/// What was learned, [N], and where what is.
struct Parameters {
    values: Vec<f32>,
    layout: Layout,
}

/// What the child's router sees of prompts, where it has a memory.
#[derive(Default)]
pub(super) struct Looked {
    /// Of the examples that are learned.
    pub(super) learned: Vec<Seen>,
    /// Of those that are measured, and of the held-out rows.
    pub(super) new: Vec<Seen>,
    pub(super) old: Vec<Seen>,
}

impl Learner {
    /// The child of an update that trained, and what is to be said of it; `before`: the parent.
    pub(super) fn finish(
        &self,
        mut update: Update,
        trained: Trained,
        began: Instant,
        before: &Measurement,
        watch: Watch<'_>,
    ) -> Result<(Contents, Report)> {
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
        let looked = self.follow(&mut update, &parameters, watch)?;
        let mut prompts = self.prompts(&mut update, &looked)?;
        prompts.parts.extend(fisher.map(|bytes| (FISHER, bytes)));
        let device = update.encoder.device_name().to_owned();
        let parts = std::mem::take(&mut prompts.parts);
        let contents = update.contents.clone();
        let mut draft = self.trained(contents, &update.task, &parameters, parts, &device)?;
        draft.check_rows()?;
        self.publish_memory(&mut draft, &mut update, &looked)?;
        let child = &draft;
        let (after, gained) = self.served(child, &update, &looked, watch)?;
        let mut report = self.report(&update, &prompts, [before, &after, &gained]);
        let parent = &update.contents;
        report.projection_drift = report::projection_drift(&parent.projection, &child.projection);
        report.row_drift_degrees =
            report::row_drift(&parent.embeddings, &child.embeddings, layout.w.rows);
        report.steps = trained.steps;
        report.losses = trained.terms;
        report.examples_per_second =
            trained.examples as f64 / trained.learning.as_secs_f64().max(1e-9);
        report.seconds = began.elapsed().as_secs_f64();
        Ok((draft, report))
    }

    /// The child of an update that trains nothing: its memory takes the prompts.
    pub(super) fn remember(
        &self,
        mut update: Update,
        began: Instant,
        watch: Watch<'_>,
    ) -> Result<(Contents, Report)> {
        let encoder = Arc::clone(&update.encoder);
        let parent = self.serving(&update.contents, &encoder)?;
        let looked = self.look(&update, parent.network(), watch)?;
        let learning = began.elapsed();
        let before = self.best_of(&parent, &update.old, &looked.old)?;
        let mut prompts = self.prompts(&mut update, &looked)?;
        let made_by = format!("learn {}", self.recipe);
        let new_rows = self.card_rows(&update, &parent)?;
        drop(parent);
        let mut draft = update.contents.clone().child(self.parent.clone(), made_by);
        draft.embeddings.extend(new_rows);
        draft.hub = Arc::new(update.task.hub.clone());
        let parts = std::mem::take(&mut prompts.parts).into_iter();
        draft
            .parts
            .extend(parts.map(|(name, bytes)| (name.to_owned(), bytes)));
        let trained = update.contents.manifest.learned.as_ref();
        let trained = trained.is_some_and(|learned| learned.trained);
        draft.manifest.learned =
            Some(self.learned_by(&update.task, encoder.device_name(), trained));
        draft.check_rows()?;
        self.publish_memory(&mut draft, &mut update, &looked)?;
        let child = self.serving(&draft, &encoder)?;
        let after = self.best_of(&child, &update.old, &looked.old)?;
        let gained = self.best_of(&child, &update.new, &looked.new)?;
        let mut report = self.report(&update, &prompts, [&before, &after, &gained]);
        report.examples_per_second = report.examples as f64 / learning.as_secs_f64().max(1e-9);
        report.seconds = began.elapsed().as_secs_f64();
        Ok((draft, report))
    }

    /// What `serving` finds for rows that were looked at.
    fn best_of(&self, serving: &Serving, rows: &[Row], seen: &[Seen]) -> Result<Measurement> {
        let seen: Vec<&Seen> = seen.iter().collect();
        let best = serving.best_of(&seen)?;
        let rows: Vec<&Row> = rows.iter().collect();
        Ok(Measurement::new(&serving.hub, &rows, &best))
    }

    /// Looks at the prompts of an update with `bert`. What an earlier update saw of its held-out
    /// prompts counts where the encoder stays.
    fn look(&self, update: &Update, bert: &Bert, watch: Watch<'_>) -> Result<Looked> {
        let learned = &update.task.rows[..update.learned.len()];
        let all = learned.iter().chain(&update.new).chain(&update.old);
        let all: Vec<&Row> = all.collect();
        let mut seen = self
            .look_at(update, &all, bert, !update.trains, watch)?
            .into_iter();
        let mut take = |count: usize| seen.by_ref().take(count).collect();
        Ok(Looked {
            learned: take(learned.len()),
            new: take(update.new.len()),
            old: take(update.old.len()),
        })
    }

    /// Looks at `rows` with `bert`, at those alone that were not seen before where `seen_counts`.
    /// Empty where the child has no memory.
    fn look_at(
        &self,
        update: &Update,
        rows: &[&Row],
        bert: &Bert,
        seen_counts: bool,
        watch: Watch<'_>,
    ) -> Result<Vec<Seen>> {
        let Some(memory) = &update.memory else {
            return Ok(Vec::new());
        };
        let width = memory.width();
        let kept = |row: &&Row| {
            let kept = row.seen.as_ref().filter(|seen| seen.layers.len() == width);
            kept.filter(|_| seen_counts).cloned()
        };
        let mut seen: Vec<Option<Seen>> = rows.iter().map(kept).collect();
        let missing: Vec<&Tokens> = rows
            .iter()
            .zip(&seen)
            .filter_map(|(row, seen)| row.tokens().filter(|_| seen.is_none()))
            .collect();
        let mut say = |done| {
            watch(&Status::of("encoding", done, missing.len()));
        };
        let layers = memory.layers();
        let found = look(&update.encoder, bert, layers, &missing, &mut say)?;
        let mut found = found.into_iter();
        for (row, seen) in rows.iter().zip(&mut seen) {
            if seen.is_none() && row.tokens().is_some() {
                *seen = found.next();
            }
        }
        // Rows of which nothing can be seen were taken out of `old`: they are not measured.
        Ok(seen.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// What an update that trains is measured against: its parent on earlier held-out prompts.
    pub(super) fn measured_before(&self, update: &Update, watch: Watch<'_>) -> Result<Measurement> {
        if update.old.is_empty() {
            return Ok(Measurement::default());
        }
        let parent = self.serving(&update.contents, &update.encoder)?;
        if update.memory.is_none() {
            let [before] = self.measure(&parent, [&update.old], "measuring before", watch)?;
            return Ok(before);
        }
        let old: Vec<&Row> = update.old.iter().collect();
        let seen = self.look_at(update, &old, parent.network(), true, watch)?;
        self.best_of(&parent, &update.old, &seen)
    }

    /// Looks at the prompts with the trained encoder, and moves the memory after it.
    fn follow(
        &self,
        update: &mut Update,
        parameters: &Parameters,
        watch: Watch<'_>,
    ) -> Result<Looked> {
        let Some(mut memory) = update.memory.take() else {
            return Ok(Looked::default());
        };
        let encoder = Arc::clone(&update.encoder);
        let merged =
            |factors: Option<Factors>| factors.map(|factors| encoder.merged(&factors)).transpose();
        let is = merged(parameters.factors())?;
        let is = is.as_ref().unwrap_or(encoder.bert());
        if memory.prompts() > 0 {
            let was = merged(update.contents.factors(encoder.config())?)?;
            let was = was.as_ref().unwrap_or(encoder.bert());
            let replayed = update.task.rows.iter().filter(|row| row.replay);
            let mut tokens: Vec<&Tokens> = replayed.filter_map(Row::tokens).collect();
            if tokens.is_empty() {
                tokens.extend(update.task.rows.iter().filter_map(Row::tokens));
            }
            let layers = memory.layers();
            let was = look(&encoder, was, layers, &tokens, &mut |_| {})?;
            let is = look(&encoder, is, layers, &tokens, &mut |_| {})?;
            remember::follow(&mut memory, encoder.host(), &was, &is)?;
        }
        update.memory = Some(memory);
        self.look(update, is, watch)
    }

    /// Adds the update's prompts to the memory, and what is served of it to `draft`.
    fn publish_memory(
        &self,
        draft: &mut Contents,
        update: &mut Update,
        looked: &Looked,
    ) -> Result<()> {
        let (Some(memory), Some(cards)) = (&mut update.memory, &update.cards) else {
            return Ok(());
        };
        let (cpu, hub) = (update.encoder.host(), &update.task.hub);
        let rows = &update.task.rows[..update.learned.len()];
        remember::add(memory, cpu, hub, &update.learned, rows, &looked.learned)?;
        let (settings, began) = (&self.settings, Instant::now());
        remember::publish(memory, settings, cpu, hub, cards, &mut draft.parts)?;
        log::debug!("the memory was solved in {:?}", began.elapsed());
        Ok(())
    }

    /// Rows of new models where no step makes them: from their cards.
    fn card_rows(&self, update: &Update, parent: &Serving) -> Result<Vec<f32>> {
        let (contents, new) = (&update.contents, &update.new_models);
        let (projection, width) = (&contents.projection, contents.manifest.width);
        let bert = parent.network();
        rows::rows(
            &update.encoder,
            bert,
            new,
            projection,
            width,
            &mut |_, _| {},
        )
    }

    /// Adds to what the parent keeps of prompts, and takes from it what may not be kept.
    fn prompts(&self, update: &mut Update, looked: &Looked) -> Result<Prompts> {
        let settings = &self.settings;
        let number = update.task.experience.into();
        let rows = &update.task.rows[..update.learned.len()];
        let (replay, held_out) = (&mut update.replay, &mut update.held_out);
        if update.trains {
            // Of an encoder that is no more.
            held_out
                .entries
                .iter_mut()
                .for_each(|entry| entry.seen = None);
        }
        for (row, seen) in update.old.iter().zip(&looked.old) {
            held_out.entries[row.place].seen = Some(seen.clone());
        }
        let before = held_out.entries.len();
        let there = |entry: &ReplayEntry| entry.text.is_some() || entry.seen.is_some();
        held_out.entries.retain(there);
        let lost = before - held_out.entries.len();
        let mut withheld = withhold(replay, held_out, settings.replay_privacy, &update.encoder)?;
        withheld.held_out += lost;
        if settings.replay_strategy != ReplayStrategy::None {
            let vectors = match update.trains {
                true => experience::frozen_vectors(&update.encoder, &update.learned)?,
                // The memory has looked at them already.
                false => looked
                    .learned
                    .iter()
                    .map(|seen| seen.pooled.clone())
                    .collect(),
            };
            let chosen = experience::choose(&update.learned, rows, &vectors, settings, number);
            replay.entries.extend(chosen);
        }
        let (new, seen) = (&update.new, &looked.new);
        let keep = experience::keep(&update.measured, new, seen, settings, number);
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
        Ok(Prompts {
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
        looked: &Looked,
        watch: Watch<'_>,
    ) -> Result<(Measurement, Measurement)> {
        let sets = [&update.old[..], &update.new];
        if sets.iter().all(|rows| rows.is_empty()) {
            ask(&self.parent, child, &update.encoder)?;
            return Ok(Default::default());
        }
        let serving = self.serving(child, &update.encoder)?;
        if update.memory.is_some() {
            let after = self.best_of(&serving, &update.old, &looked.old)?;
            let gained = self.best_of(&serving, &update.new, &looked.new)?;
            return Ok((after, gained));
        }
        let [after, gained] = self.measure(&serving, sets, "measuring after", watch)?;
        Ok((after, gained))
    }

    /// Without what the steps were; `measured`: the parent on earlier prompts, the child on these and
    /// on those of this experience.
    fn report(&self, update: &Update, prompts: &Prompts, measured: [&Measurement; 3]) -> Report {
        let [before, after, gained] = measured;
        let lost = before.lost(after);
        let forgetting = lost.map(|lost| lost.points);
        let taught = update.contents.manifest.learned.is_some();
        let unmeasured = taught && lost.is_none();
        let gate = |lost: Accuracy| self.max_forgetting.is_some_and(|most| lost.domain > most);
        let refused = match forgetting {
            Some(lost) => gate(lost),
            None => unmeasured && !self.allow_unmeasured,
        };
        let known = update.contents.hub.len();
        let fresh = update.learned.len();
        Report {
            schema_version: 2,
            generation: None,
            kept_beside: None,
            parent: self.parent.clone(),
            trained: update.trains,
            models_added: update.new_models.len(),
            models_introduced: update.introduced.clone(),
            remarks: update.oddities.clone(),
            examples: fresh,
            replayed: update.task.rows.len() - fresh,
            remembered: update.memory.as_ref().map(Memory::prompts),
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
            forgetting_interval: lost.map(|lost| lost.interval),
            forgetting_unknown: lost.is_none().then(|| match taught {
                true => UNKNOWN.to_owned(),
                false => FIRST.to_owned(),
            }),
            forgetting_by_domain: before.lost_by_domain(after),
            taken_by_new_models: after.share_from(known),
            refused,
            replay: prompts.kept,
            held_out: update.held_out.entries.len(),
            withheld: (!prompts.withheld.is_nothing()).then_some(prompts.withheld),
            projection_drift: 0.0,
            row_drift_degrees: (0.0, 0.0),
            peak_memory_bytes: report::peak_memory(),
            device: update.encoder.device_name().to_owned(),
        }
    }

    fn trained(
        &self,
        contents: Contents,
        task: &Task,
        parameters: &Parameters,
        parts: Parts,
        device: &str,
    ) -> Result<Contents> {
        let Parameters { values, layout } = parameters;
        let mut draft = contents.child(self.parent.clone(), format!("learn {}", self.recipe));
        draft.projection = values[layout.w.offset..layout.w.end()].to_vec();
        draft.embeddings = values[layout.e.offset..layout.e.end()].to_vec();
        draft.manifest.width = layout.w.rows;
        draft.hub = Arc::new(task.hub.clone());
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an f32 is what is asked for"
        )]
        {
            draft.manifest.tau = self.settings.tau as f32;
        }
        draft.manifest.adapter = None;
        let named = |(name, bytes): (&str, Vec<u8>)| (name.to_owned(), bytes);
        draft.parts = parts.into_iter().map(named).collect();
        if let Some(factors) = parameters.factors() {
            draft.manifest.adapter = Some(layout.adapter.lora.clone());
            draft.parts.insert(ADAPTER.to_owned(), factors.write()?);
        }
        draft.manifest.learned = Some(self.learned_by(task, device, true));
        Ok(draft)
    }

    fn learned_by(&self, task: &Task, device: &str, trained: bool) -> Learned {
        let written = self.settings.written().into_iter();
        Learned {
            experience: task.experience,
            recipe: self.recipe.clone(),
            settings: written
                .map(|(key, value)| (key, value.to_string()))
                .collect(),
            examples_sha256: task.digest.clone(),
            device: device.to_owned(),
            trained,
        }
    }
}

impl Parameters {
    /// The encoder's factors, if it has some.
    fn factors(&self) -> Option<Factors> {
        let adapter = &self.layout.adapter;
        (adapter.len > 0).then(|| Factors {
            adapter: adapter.clone(),
            values: self.values[..adapter.len].to_vec(),
        })
    }
}
