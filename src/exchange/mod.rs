//! In and out: generations as folders that PyTorch loads, and adapters and routers that were
//! trained there.
//!
//! `docs/exchange.md` has the forms. Nothing here reads a pickle.

mod adopt;
mod export;
mod form;
mod import;
mod peft;

pub use adopt::{Adopted, AdoptedHead, adopt};
pub use export::{ExportedAdapter, ExportedGeneration, export};
pub use import::{ImportedGeneration, import};

use std::path::Path;

use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::hub::ModelCard;
use form::{RouterEncoder, RouterFolder};

/// Compares the encoder of a router's folder with `encoder`, and adds what differs and is no error
/// to `notes`.
///
/// Errors: another width, pooling, tokenizer or text before prompts.
fn check_encoder(stated: &RouterEncoder, encoder: &Encoder, notes: &mut Vec<String>) -> Result<()> {
    let differ = |what: &str, want: &str, found: &str| -> Result<()> {
        bail!(
            Mismatch,
            "{what}: expected {want:?}, for which the router was made, found {found:?} of \
             encoder {}",
            encoder.name()
        )
    };
    if stated.width != encoder.width() {
        differ(
            "width",
            &stated.width.to_string(),
            &encoder.width().to_string(),
        )?;
    }
    if stated.pooling != encoder.pooling_name() {
        differ("pooling", &stated.pooling, encoder.pooling_name())?;
    }
    for (what, want, found) in [
        (
            "tokenizer",
            &stated.tokenizer_sha256,
            encoder.tokenizer_revision(),
        ),
        (
            "text before prompts",
            &stated.query_prefix,
            encoder.query_prefix(),
        ),
    ] {
        if let Some(want) = want.as_deref().filter(|want| *want != found) {
            differ(what, want, found)?;
        }
    }
    let limit = encoder.max_tokens();
    if let Some(tokens) = stated.max_tokens.filter(|tokens| *tokens != limit) {
        notes.push(format!(
            "the router was made with prompts of at most {tokens} tokens; the encoder here reads \
             {limit}"
        ));
    }
    match &stated.revision {
        Some(revision) if revision != encoder.revision() => notes.push(format!(
            "the router was exported with another bundle of encoder {}; that its weights are the \
             same is not checked",
            stated.name
        )),
        None => notes.push(format!(
            "the router was made with encoder {:?}; that its weights are those of {:?} is not \
             checked",
            stated.name,
            encoder.name()
        )),
        Some(_) => {}
    }
    Ok(())
}

/// The last name of the folder `from`, for the record of what made a generation; "" if it has none.
fn name_of(from: &Path) -> String {
    let folder = from.canonicalize().ok();
    let name = folder.as_deref().and_then(Path::file_name);
    name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The card of each model of `folder`, by id: that of `cards` with its name, or what is stated
/// there; and how many are of `cards`.
///
/// Errors: a card is of no model.
fn cards_of(folder: &RouterFolder, cards: &[ModelCard]) -> Result<(Vec<ModelCard>, usize)> {
    let mut told: std::collections::HashMap<&str, &ModelCard> = std::collections::HashMap::new();
    for card in cards {
        told.insert(&card.model_name, card);
    }
    let (given, mut used) = (told.len(), 0);
    let models = folder.file.models.iter();
    let all = models.map(|model| {
        let own = told.remove(model.name.as_str());
        used += usize::from(own.is_some());
        model.card(own)
    });
    let all = all.collect();
    if let Some(name) = told.keys().min() {
        bail!(
            InvalidRequest,
            "cards: expected models of the router, found {} others of {given}, such as {name:?}",
            told.len()
        );
    }
    Ok((all, used))
}
