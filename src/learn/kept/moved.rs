//! What a generation keeps of prompts, when its encoder is changed by other means than learning.

use serde::Serialize;

use crate::encoder::Encoder;
use crate::encoder::seen::look;
use crate::error::Result;
use crate::generation::Contents;
use crate::generation::memory::remember;
use crate::learn::kept::forget::kept;
use crate::learn::kept::replay::{HELD_OUT, REPLAY, ReplayEntry};
use crate::learn::learner::move_memory;
use crate::learn::method::ewc::FISHER;
use crate::memory::Memory;
use crate::model::bert::Bert;
use crate::text::tokenizer::Tokens;

/// What became of a memory whose encoder was changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MemoryFate {
    /// There is none, or it has no prompts.
    #[default]
    Absent,
    /// It was moved by the linear map that best takes what the old encoder saw of the kept prompts
    /// to what the new one sees.
    Moved,
    /// No text of a learned prompt is kept to move it by.
    Dropped,
}

/// What a generation keeps of prompts after a change of its encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FollowedPrompts {
    /// Its memory.
    pub memory: MemoryFate,
    /// Prompts that the memory had.
    pub remembered: usize,
    /// Prompts by which it was moved.
    pub moved_by: usize,
    /// Held-out prompts that stay, with what the new encoder sees of them.
    pub held_out: usize,
    /// Held-out prompts that were kept as vectors alone, which the new encoder cannot see.
    pub held_out_dropped: usize,
}

/// Moves what `contents` keeps of prompts from the network `before` of `encoder` to `after`.
///
/// Errors: a part is malformed; a prompt cannot be encoded; the memory cannot be solved.
pub(crate) fn follow_encoder(
    contents: &mut Contents,
    encoder: &Encoder,
    before: &Bert,
    after: &Bert,
) -> Result<FollowedPrompts> {
    // They hold parameters that are gone.
    contents.parts.remove(FISHER);
    let mut followed = FollowedPrompts::default();
    let memory = follow_by_replay(contents, encoder, before, after, &mut followed)?;
    let mut held_out = kept(contents, HELD_OUT)?;
    let there = held_out.entries.len();
    held_out.entries.retain(|entry| entry.text.is_some());
    followed.held_out = held_out.entries.len();
    followed.held_out_dropped = there - followed.held_out;
    let tokens = tokens(encoder, &held_out.entries)?;
    let tokens: Vec<&Tokens> = tokens.iter().collect();
    let seen = match &memory {
        Some(memory) => look(encoder, after, memory.layers(), &tokens, &mut |_| {})?,
        None => Vec::new(),
    };
    let mut seen = seen.into_iter();
    for entry in &mut held_out.entries {
        entry.seen = seen.next();
    }
    if there > 0 {
        let bytes = held_out.to_bytes()?;
        contents.parts.insert(HELD_OUT.to_owned(), bytes);
    }
    Ok(followed)
}

/// Moves the memory, or takes it out where nothing can move it; what is left of it.
fn follow_by_replay(
    contents: &mut Contents,
    encoder: &Encoder,
    before: &Bert,
    after: &Bert,
    followed: &mut FollowedPrompts,
) -> Result<Option<Memory>> {
    let (Some(mut memory), Some(how)) = (contents.memory()?, contents.how()?) else {
        return Ok(None);
    };
    followed.remembered = memory.prompts();
    if memory.prompts() == 0 {
        return Ok(Some(memory));
    }
    let tokens = tokens(encoder, &kept(contents, REPLAY)?.entries)?;
    if tokens.is_empty() {
        followed.memory = MemoryFate::Dropped;
        contents.drop_memory();
        return Ok(None);
    }
    let tokens: Vec<&Tokens> = tokens.iter().collect();
    let layers = memory.layers();
    let was = look(encoder, before, layers, &tokens, &mut |_| {})?;
    let is = look(encoder, after, layers, &tokens, &mut |_| {})?;
    let cpu = encoder.host();
    move_memory(&mut memory, cpu, &was, &is)?;
    (followed.memory, followed.moved_by) = (MemoryFate::Moved, tokens.len());
    let cards = contents.cards()?;
    remember(
        cpu,
        &mut contents.parts,
        &memory,
        &contents.hub,
        &cards,
        how,
    )?;
    Ok(Some(memory))
}

/// The tokens of the entries whose text is kept.
fn tokens(encoder: &Encoder, entries: &[ReplayEntry]) -> Result<Vec<Tokens>> {
    let texts: Vec<&str> = entries.iter().filter_map(|e| e.text.as_deref()).collect();
    encoder.tokenize_prompts(&texts).into_iter().collect()
}
