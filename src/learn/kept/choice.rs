//! Which prompts of an update the child keeps: some that were learned, to replay them, and those
//! that were held out, to measure later updates.

use crate::encoder::Encoder;
use crate::encoder::seen::Seen;
use crate::error::Result;
use crate::learn::data::examples::Example;
use crate::learn::data::rows::PromptRow;
use crate::learn::kept::coreset::{self, CoresetRow};
use crate::learn::kept::replay::ReplayEntry;
use crate::learn::settings::{Privacy, Settings};
use crate::ops::normalize::unit;

/// Pooled vectors of the encoder without adapters, by which an update that trains chooses its
/// coreset.
pub(crate) fn frozen_vectors(encoder: &Encoder, examples: &[Example]) -> Result<Vec<Vec<f32>>> {
    let prompts: Vec<&str> = examples.iter().map(|e| e.prompt.as_str()).collect();
    encoder.embed(&prompts).into_iter().collect()
}

/// The rows just learned that later updates replay. `vectors`: of each, [H].
pub(crate) fn choose(
    examples: &[Example],
    rows: &[PromptRow],
    vectors: &[Vec<f32>],
    settings: &Settings,
    experience: u64,
) -> Vec<ReplayEntry> {
    let units: Vec<Vec<f32>> = vectors
        .iter()
        .map(|vector| {
            let mut vector = vector.clone();
            unit(&mut vector);
            vector
        })
        .collect();
    let items: Vec<CoresetRow<'_>> = rows
        .iter()
        .enumerate()
        .map(|(i, row)| CoresetRow {
            vector: units.get(i).map(Vec::as_slice),
            domain: &row.domain,
            model: row.gold,
        })
        .collect();
    let chosen = coreset::select(&items, settings, experience);
    let entry = |i: usize| {
        let (row, prompt) = (&rows[i], &examples[i].prompt);
        ReplayEntry::new(
            experience,
            row.gold,
            &row.domain,
            prompt,
            &vectors[i],
            settings.replay_privacy,
        )
    };
    chosen.into_iter().map(entry).collect()
}

/// The held-out rows, as far as privacy allows to keep them. `seen`: what the child's encoder sees
/// of each; empty without a memory.
pub(crate) fn keep(
    examples: &[Example],
    rows: &[PromptRow],
    seen: &[Seen],
    settings: &Settings,
    experience: u64,
) -> Vec<ReplayEntry> {
    let privacy = settings.replay_privacy;
    let entry = |(place, (row, example)): (usize, (&PromptRow, &Example))| {
        let text = match privacy {
            Privacy::Text => Privacy::Text,
            // A vector of the encoder without adapters cannot measure one that was trained.
            _ => Privacy::Hashes,
        };
        let (domain, prompt) = (&row.domain, &example.prompt);
        let mut entry = ReplayEntry::new(experience, row.gold, domain, prompt, &[], text);
        entry.seen = seen
            .get(place)
            .filter(|_| privacy != Privacy::Hashes)
            .cloned();
        (entry.text.is_some() || entry.seen.is_some()).then_some(entry)
    };
    rows.iter()
        .zip(examples)
        .enumerate()
        .filter_map(entry)
        .collect()
}
