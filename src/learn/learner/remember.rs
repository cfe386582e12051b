//! The prompts of an update in the child: sums in the memory, prompts to replay, held-out prompts.

use std::sync::Arc;
use std::time::Duration;

use super::train::LearnedWeights;
use super::update::Update;
use super::{Status, Watch, memory};
use crate::encoder::seen::{Seen, look};
use crate::error::Result;
use crate::generation::cards::{self, CARDS};
use crate::generation::rows;
use crate::learn::data::rows::PromptRow;
use crate::learn::kept::choice;
use crate::learn::kept::privacy::{Withheld, withhold};
use crate::learn::kept::replay::{HELD_OUT, REPLAY, ReplayEntry};
use crate::learn::report::Kept;
use crate::learn::settings::ReplayStrategy;
use crate::model::bert::Bert;
use crate::text::tokenizer::Tokens;

/// Features of prompts by the child's encoder; empty without a memory.
#[derive(Default)]
pub(super) struct SeenPrompts {
    /// Of the examples that are learned.
    pub(super) learned: Vec<Seen>,
    /// Of the examples that are measured, and of earlier held-out prompts.
    pub(super) new: Vec<Seen>,
    pub(super) old: Vec<Seen>,
}

/// The prompts that the child keeps.
pub(super) struct KeptPrompts {
    /// Parts of the generation by name.
    pub(super) parts: Vec<(&'static str, Vec<u8>)>,
    pub(super) replay: Kept,
    pub(super) withheld: Withheld,
    pub(super) seen: SeenPrompts,
    /// Rows of new models, made of their cards, where no step makes them: [new models, D].
    pub(super) new_rows: Vec<f32>,
    /// Time from the start of the update until all prompts were encoded.
    pub(super) encoded: Duration,
}

impl Update<'_> {
    /// Encodes the prompts with the child's encoder, adds them to the memory, and chooses those
    /// that the child keeps.
    pub(super) fn remember(
        &mut self,
        weights: Option<&LearnedWeights>,
        watch: Watch<'_>,
    ) -> Result<KeptPrompts> {
        let encoder = Arc::clone(&self.encoder);
        let (mut seen, mut new_rows) = (SeenPrompts::default(), Vec::new());
        // Nobody else needs the child's network here.
        if self.memory.is_some() {
            let factors = match weights {
                Some(weights) => weights.factors(),
                None => self.parent.factors(encoder.config())?,
            };
            let merged = factors.map(|f| encoder.merged(&f)).transpose()?;
            let network = encoder.or_own(merged.as_ref())?;
            if self.trains {
                self.follow(network)?;
            } else {
                new_rows = self.card_rows(network)?;
            }
            seen = self.look(network, watch)?;
        }
        let encoded = self.began.elapsed();
        let mut kept = self.keep(seen)?;
        (kept.new_rows, kept.encoded) = (new_rows, encoded);
        if let Some(memory) = &mut self.memory {
            let (examples, rows) = (&self.learned, &self.task.rows[..self.learned.len()]);
            let (cpu, seen) = (encoder.host(), &kept.seen.learned);
            memory::add(memory, cpu, &self.task.hub, examples, rows, seen)?;
        }
        Ok(kept)
    }

    /// Moves the memory to `network`, which was trained.
    fn follow(&mut self, network: &Bert) -> Result<()> {
        let Some(mut memory) = self.memory.take() else {
            return Ok(());
        };
        if memory.prompts() > 0 {
            let encoder = &self.encoder;
            let factors = self.parent.factors(encoder.config())?;
            let before = factors.map(|f| encoder.merged(&f)).transpose()?;
            let before = encoder.or_own(before.as_ref())?;
            let rows = &self.task.rows;
            let replayed = rows.iter().filter(|row| row.replay);
            let mut tokens: Vec<&Tokens> = replayed.filter_map(PromptRow::tokens).collect();
            if tokens.is_empty() {
                tokens.extend(rows.iter().filter_map(PromptRow::tokens));
            }
            let layers = memory.layers();
            let was = look(encoder, before, layers, &tokens, &mut |_| {})?;
            let is = look(encoder, network, layers, &tokens, &mut |_| {})?;
            memory::follow(&mut memory, encoder.host(), &was, &is)?;
        }
        self.memory = Some(memory);
        Ok(())
    }

    /// Rows of new models, made of their cards by `network`.
    fn card_rows(&self, network: &Bert) -> Result<Vec<f32>> {
        let (projection, width) = (&self.parent.projection, self.parent.manifest.width);
        let (encoder, new) = (&self.encoder, &self.new_models);
        rows::rows(encoder, network, new, projection, width, &mut |_, _| {})
    }

    /// Features of the update's prompts by `network`. Earlier held-out prompts are not encoded
    /// again if the encoder stays as it is.
    fn look(&self, network: &Bert, watch: Watch<'_>) -> Result<SeenPrompts> {
        let learned = &self.task.rows[..self.learned.len()];
        let all = learned.iter().chain(&self.new).chain(&self.old);
        let all: Vec<&PromptRow> = all.collect();
        let mut seen = self
            .look_at(&all, network, !self.trains, watch)?
            .into_iter();
        let mut take = |count: usize| seen.by_ref().take(count).collect();
        Ok(SeenPrompts {
            learned: take(learned.len()),
            new: take(self.new.len()),
            old: take(self.old.len()),
        })
    }

    /// Features of `rows` by `network`; with `use_kept` only those are encoded of which an earlier
    /// update kept nothing. Empty without a memory.
    pub(super) fn look_at(
        &self,
        rows: &[&PromptRow],
        network: &Bert,
        use_kept: bool,
        watch: Watch<'_>,
    ) -> Result<Vec<Seen>> {
        let Some(memory) = &self.memory else {
            return Ok(Vec::new());
        };
        let width = memory.width();
        let kept = |row: &&PromptRow| {
            let kept = row.seen.as_ref().filter(|seen| seen.layers.len() == width);
            kept.filter(|_| use_kept).cloned()
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
        let found = look(&self.encoder, network, memory.layers(), &missing, &mut say)?;
        let mut found = found.into_iter();
        for (row, seen) in rows.iter().zip(&mut seen) {
            if seen.is_none() && row.tokens().is_some() {
                *seen = found.next();
            }
        }
        // `prepare` removed rows that have neither tokens nor anything seen.
        Ok(seen.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Adds to what the parent keeps of prompts, and removes what privacy does not allow.
    fn keep(&mut self, seen: SeenPrompts) -> Result<KeptPrompts> {
        let settings = &self.config.settings;
        let number = self.task.experience.into();
        let lost = self.update_held_out(&seen);
        let rows = &self.task.rows[..self.learned.len()];
        let (replay, held_out) = (&mut self.replay, &mut self.held_out);
        let mut withheld = withhold(replay, held_out, settings.replay_privacy, &self.encoder)?;
        withheld.held_out += lost;
        if settings.replay_strategy != ReplayStrategy::None {
            let vectors = match self.trains {
                true => choice::frozen_vectors(&self.encoder, &self.learned)?,
                // The memory has them already.
                false => seen
                    .learned
                    .iter()
                    .map(|seen| seen.pooled.clone())
                    .collect(),
            };
            let chosen = choice::choose(&self.learned, rows, &vectors, settings, number);
            replay.entries.extend(chosen);
        }
        let keep = choice::keep(&self.measured, &self.new, &seen.new, settings, number);
        held_out.entries.extend(keep);
        let bytes = replay.to_bytes()?;
        let kept = Kept {
            kept: replay.entries.len(),
            bytes: bytes.len(),
        };
        let mut parts = vec![(REPLAY, bytes), (HELD_OUT, held_out.to_bytes()?)];
        if let Some(cards) = &self.cards {
            parts.push((CARDS, cards::write(cards, self.encoder.width())?));
        }
        Ok(KeptPrompts {
            parts,
            replay: kept,
            withheld,
            seen,
            new_rows: Vec::new(),
            encoded: Duration::ZERO,
        })
    }

    /// Replaces what was seen of the parent's held-out prompts, and removes those that nothing can
    /// measure any more. Returns how many were removed.
    fn update_held_out(&mut self, seen: &SeenPrompts) -> usize {
        let entries = &mut self.held_out.entries;
        if self.trains {
            // It was seen by an encoder that no longer exists.
            entries.iter_mut().for_each(|entry| entry.seen = None);
        }
        for (row, seen) in self.old.iter().zip(&seen.old) {
            entries[row.place].seen = Some(seen.clone());
        }
        let before = entries.len();
        let there = |entry: &ReplayEntry| entry.text.is_some() || entry.seen.is_some();
        entries.retain(there);
        before - entries.len()
    }
}
