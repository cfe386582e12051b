//! Lists the prompts that a store keeps, and removes one.

use std::sync::Arc;

use crate::device::cpu::Cpu;
use crate::encoder::seen::look;
use crate::error::{Result, bail, error};
use crate::files;
use crate::generation::cards::CARDS;
use crate::generation::memory::remember;
use crate::generation::{Contents, GenerationId, Manifest};
use crate::hub::Domains;
use crate::learn::kept::replay::{HELD_OUT, REPLAY, Replay, ReplayEntry};
use crate::learn::learner::digest;
use crate::learn::method::ewc::{self, FISHER};
use crate::memory::Prompt;
use crate::options::Options;
use crate::store::Store;
use crate::store::open_encoder;
use crate::text::query::query_digest;

/// Prompts that a generation keeps.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Remembered {
    /// Learned; later updates that train replay them.
    pub replay: Vec<ReplayEntry>,
    /// Held out: never learned, used to measure.
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
    contents.memory()?;
    if contents.parts.contains_key(CARDS) {
        contents.cards()?;
    }
    if let Some(bytes) = contents.parts.get(FISHER) {
        ewc::check(bytes).map_err(|e| e.at(FISHER))?;
    }
    store.check_contents(id, &contents)?;
    Ok(contents.manifest)
}

/// Deletes a prompt, named by its text or by its SHA-256, from what the current generation keeps
/// and from its memory: a child without it becomes current. Its ancestors keep it until they are
/// pruned.
///
/// The memory is then as if it had never had the prompt, if the encoder was not trained since and
/// the device is the one that learned it. On another device the sum of squares keeps a rounding
/// error. Adapters, W and E keep their training.
///
/// Errors: no such prompt is kept or remembered; the memory has it, it was named by its SHA-256,
/// and its text is not kept; the encoder cannot be opened.
pub fn forget(store: &Store, prompt: &str, options: &Options) -> Result<GenerationId> {
    let mut edit = store.edit(false)?;
    let taken = take_out(edit.contents(), prompt)?;
    if !taken.owners.is_empty() {
        subtract(store, edit.contents(), &taken, options)?;
    }
    // The prompt's own words have no place in the manifest.
    edit.commit_as("replay forget".to_owned())
}

/// Counts the entries that [`forget`] would delete, and how often it would subtract the prompt from
/// the memory. Nothing is changed.
///
/// Errors: no such prompt is kept or remembered.
pub fn would_forget(store: &Store, prompt: &str) -> Result<(usize, usize)> {
    let taken = take_out(store.edit(true)?.contents(), prompt)?;
    Ok((taken.entries, taken.owners.len()))
}

/// A prompt as [`forget`] found it.
struct Taken {
    /// Entries that were taken out.
    entries: usize,
    sha256: String,
    text: Option<String>,
    /// Models with which the memory has it, once for each time.
    owners: Vec<u32>,
}

/// Removes the prompt's entries from `contents`.
fn take_out(contents: &mut Contents, prompt: &str) -> Result<Taken> {
    let hash = prompt.trim().to_ascii_lowercase();
    let (sha256, mut text) = match files::is_sha256(&hash) {
        true => (hash, None),
        false => (query_digest(prompt), Some(prompt.to_owned())),
    };
    let mut entries = 0;
    for part in [REPLAY, HELD_OUT] {
        let mut kept = kept(contents, part)?;
        let taken = kept.remove_hash(&sha256);
        if !taken.is_empty() {
            contents.parts.insert(part.to_owned(), kept.to_bytes()?);
        }
        entries += taken.len();
        // As it was learned, where it is kept.
        text = taken.into_iter().find_map(|entry| entry.text).or(text);
    }
    let memory = contents.memory()?;
    let owners: Vec<u32> = memory.map_or(Vec::new(), |memory| {
        memory.owners(&digest(&sha256)).collect()
    });
    if entries == 0 && owners.is_empty() {
        bail!(
            InvalidRequest,
            "expected a prompt that is kept or remembered, or its SHA-256; `hubrouter replay list` \
             shows those that are kept"
        );
    }
    Ok(Taken {
        entries,
        sha256,
        text,
        owners,
    })
}

/// Subtracts the prompt from the memory of `contents`.
fn subtract(
    store: &Store,
    contents: &mut Contents,
    taken: &Taken,
    options: &Options,
) -> Result<()> {
    let Some(text) = &taken.text else {
        bail!(
            InvalidRequest,
            "the memory has a sum with this prompt, and its text is not kept: give the prompt \
             itself in place of its SHA-256"
        );
    };
    let (Some(mut memory), Some(how)) = (contents.memory()?, contents.how()?) else {
        return Ok(());
    };
    let host = Arc::new(Cpu::open_at(options.threads, options.cpu)?);
    let encoder = open_encoder(store.root(), &contents.manifest.encoder, host, options)?;
    let factors = contents.factors(encoder.config())?;
    let merged = factors
        .map(|factors| encoder.merged(&factors))
        .transpose()?;
    let bert = encoder.or_own(merged.as_ref())?;
    let tokens = encoder.tokenize_prompts(&[text]).pop();
    let tokens = tokens.ok_or_else(|| error!(Tokenizer, "no tokens"))??;
    let seen = look(&encoder, bert, memory.layers(), &[&tokens], &mut |_| {})?;
    let domains = Domains::new(&contents.hub);
    let prompts: Vec<Prompt<'_>> = taken
        .owners
        .iter()
        .zip(seen.iter().cycle())
        .map(|(model, seen)| Prompt {
            model: *model,
            domain: domains.of[*model as usize],
            digest: digest(&taken.sha256),
            seen,
        })
        .collect();
    memory.subtract(encoder.host(), &prompts)?;
    let cards = contents.cards()?;
    remember(
        encoder.host(),
        &mut contents.parts,
        &memory,
        &contents.hub,
        &cards,
        how,
    )
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
