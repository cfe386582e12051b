//! Labelled prompts, tokenized: what training, replay and measuring work on.

use std::collections::HashSet;
use std::sync::Arc;

use crate::encoder::Encoder;
use crate::encoder::seen::Seen;
use crate::error::{Result, error};
use crate::hub::{Hub, domain_key};
use crate::learn::data::examples::Example;
use crate::learn::kept::replay::Replay;
use crate::text::tokenizer::Tokens;

/// A labelled prompt.
#[derive(Clone)]
pub(crate) struct PromptRow {
    pub(crate) input: RowInput,
    /// Id of its model.
    pub(crate) gold: u32,
    /// The example's domain, normalised.
    pub(crate) domain: String,
    pub(crate) replay: bool,
    /// The update that brought it, from 1.
    pub(crate) experience: u64,
    /// Its features, if they were kept.
    pub(crate) seen: Option<Seen>,
    /// Its place among the kept prompts; 0 for an example.
    pub(crate) place: usize,
}

/// The input of a row: tokens for the encoder, or a pooled vector in its place.
#[derive(Clone)]
pub(crate) enum RowInput {
    Tokens(Arc<Tokens>),
    /// The pooled vector [H] that was kept in place of the text, or that a frozen encoder gives.
    Pooled(Arc<[f32]>),
}

impl RowInput {
    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        match self {
            Self::Tokens(tokens) => Some(tokens),
            Self::Pooled(_) => None,
        }
    }
}

impl PromptRow {
    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        self.input.tokens()
    }
}

fn gold(hub: &Hub, example: &Example) -> Result<(u32, String)> {
    let id = hub.resolve(&example.model_name)?;
    let registered = hub.get(id).map_or("", |model| &model.domain);
    let domain = example.domain.as_deref().unwrap_or(registered);
    Ok((id.0, domain_key(domain)))
}

/// Rows of `examples`.
///
/// Errors: a prompt cannot be tokenized; the example is named.
pub(crate) fn rows(
    encoder: &Encoder,
    examples: &[Example],
    hub: &Hub,
    experience: u64,
) -> Result<Vec<PromptRow>> {
    let prompts: Vec<&str> = examples.iter().map(|e| e.prompt.as_str()).collect();
    let tokens = encoder.tokenize_prompts(&prompts);
    let mut rows = Vec::with_capacity(examples.len());
    for (place, (example, tokens)) in examples.iter().zip(tokens).enumerate() {
        let tokens = tokens.map_err(|e| e.at(format!("example {}", place + 1)))?;
        let (gold, domain) = gold(hub, example)?;
        rows.push(PromptRow {
            input: RowInput::Tokens(Arc::new(tokens)),
            gold,
            domain,
            replay: false,
            experience,
            seen: None,
            place: 0,
        });
    }
    Ok(rows)
}

/// Rows of the prompts that a generation keeps, without those that are only hashes or whose model
/// is retired.
pub(crate) fn kept_rows(encoder: &Encoder, kept: &Replay, hub: &Hub) -> Result<Vec<PromptRow>> {
    let retired: HashSet<u32> = hub
        .iter()
        .filter(|(_, model)| model.retired)
        .map(|(id, _)| id.0)
        .collect();
    let mut rows = Vec::new();
    for (place, entry) in kept.entries.iter().enumerate() {
        let input = match (&entry.text, &entry.embedding, &entry.seen) {
            _ if retired.contains(&entry.model) => continue,
            (Some(text), ..) => {
                let tokens = encoder.tokenize_prompts(&[text]).pop();
                let tokens = tokens.ok_or_else(|| error!(Tokenizer, "no tokens"))??;
                RowInput::Tokens(Arc::new(tokens))
            }
            (None, Some(vector), _) => {
                RowInput::Pooled(vector.iter().map(|value| value.to_f32()).collect())
            }
            (None, None, Some(seen)) => RowInput::Pooled(seen.pooled.as_slice().into()),
            (None, None, None) => continue,
        };
        rows.push(PromptRow {
            input,
            gold: entry.model,
            domain: entry.domain.clone(),
            replay: true,
            experience: entry.experience,
            seen: entry.seen.clone(),
            place,
        });
    }
    Ok(rows)
}
