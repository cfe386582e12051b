//! What a store remembers of prompts: to be listed, and to be taken back.

use crate::error::{Result, bail};
use crate::generation::exemplars::EXEMPLARS;
use crate::generation::{Contents, GenerationId, Manifest, Store};
use crate::learn::ewc::{self, FISHER};
use crate::learn::replay::{HELD_OUT, REPLAY, Replay, ReplayEntry};

/// Prompts that a generation keeps.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Remembered {
    /// Learned, and learned again with later experiences.
    pub replay: Vec<ReplayEntry>,
    /// Never learned: accuracy is measured on them.
    pub held_out: Vec<ReplayEntry>,
}

/// The prompts that generation `id` keeps.
pub fn remembered(store: &Store, id: &GenerationId) -> Result<Remembered> {
    let contents = store.contents(id)?;
    Ok(Remembered {
        replay: kept(&contents, REPLAY)?.entries,
        held_out: kept(&contents, HELD_OUT)?.entries,
    })
}

/// As [`Store::check`], with the parts that only learning reads.
pub fn check(store: &Store, id: &GenerationId) -> Result<Manifest> {
    let contents = store.contents(id)?;
    for part in [REPLAY, HELD_OUT] {
        kept(&contents, part)?;
    }
    if let Some(bytes) = contents.parts.get(FISHER) {
        ewc::check(bytes).map_err(|e| e.at(FISHER))?;
    }
    store.check_contents(id, contents)
}

/// Deletes a prompt, named by its text or by its SHA-256, from what the current generation keeps:
/// a child without it becomes current. Its ancestors keep it until they are pruned; what was learned
/// from it stays learned. With a prompt that was learned goes the centroid of its model.
///
/// Errors: no such prompt is kept. One that was learned and is not kept cannot be named: it stays a
/// part of its model's centroid, and alone it is all of it.
pub fn forget(store: &Store, prompt: &str) -> Result<GenerationId> {
    // The prompt's own words have no place in the manifest.
    store.change("replay forget", None, |contents| {
        take_out(contents, prompt).map(|_count| ())
    })
}

/// How many entries [`forget`] would delete; nothing is changed.
///
/// Errors: no such prompt is kept.
pub fn would_forget(store: &Store, prompt: &str) -> Result<usize> {
    take_out(&mut store.contents(&store.current()?)?, prompt)
}

/// Takes the prompt's entries out of `contents`; how many there were.
fn take_out(contents: &mut Contents, prompt: &str) -> Result<usize> {
    let mut removed = 0;
    for part in [REPLAY, HELD_OUT] {
        let mut kept = kept(contents, part)?;
        let mut taken = kept.remove_hash(prompt);
        taken.extend(kept.remove_text(prompt));
        if !taken.is_empty() {
            contents.parts.insert(part.to_owned(), kept.to_bytes()?);
        }
        // A centroid of few prompts tells of each of them; one that was held out is in none.
        if part == REPLAY && contents.parts.contains_key(EXEMPLARS) {
            let mut exemplars = contents.exemplars()?;
            taken.iter().for_each(|entry| exemplars.clear(entry.model));
            let bytes = exemplars.write()?;
            contents.parts.insert(EXEMPLARS.to_owned(), bytes);
        }
        removed += taken.len();
    }
    if removed == 0 {
        bail!(
            InvalidRequest,
            "expected a prompt that is kept, or its SHA-256; `hubrouter replay list` shows them"
        );
    }
    Ok(removed)
}

pub(crate) fn kept(contents: &Contents, part: &str) -> Result<Replay> {
    match contents.parts.get(part) {
        Some(bytes) => {
            let manifest = &contents.manifest;
            Replay::from_bytes(bytes, manifest.models, manifest.encoder.width)
                .map_err(|e| e.at(part))
        }
        None => Ok(Replay::default()),
    }
}
