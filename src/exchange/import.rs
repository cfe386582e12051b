//! A router's folder as the first generation of a new store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::export::is_identity;
use super::form::RouterFolder;
use super::{cards_of, check_encoder, name_of, peft};
use crate::encoder::Encoder;
use crate::error::Result;
use crate::files;
use crate::generation::cards::{self, CARDS, card_vectors};
use crate::generation::{ADAPTER, Contents, EncoderPin, GenerationId, Learned, Manifest, NewModel};
use crate::hub::ModelCard;
use crate::serve::ask;
use crate::store::Store;

/// The store that [`import`] made.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ImportedGeneration {
    /// Its first generation.
    pub generation: GenerationId,
    /// Its folder.
    pub store: PathBuf,
    /// Models with an id, retired ones included.
    pub models: usize,
    /// Width D of the router.
    pub width: usize,
    /// Rank of the adapter, if there is one.
    pub rank: Option<usize>,
    /// Models whose card was given, and not made of name and domain.
    pub cards: usize,
    /// What is worth a second look.
    pub notes: Vec<String>,
}

/// Makes the router in the folder `from` the first generation of a new store in the folder `to`: an
/// export of this crate, or a checkpoint of the reference after `tests/reference/convert.py`.
///
/// `encoder` must be the one that the router was made for. `cards` give models domains, families
/// and attributes; a model without a card keeps what the folder states.
///
/// Errors: a file is missing, malformed or not the one that `router.json` names; the encoder has
/// another width, pooling, tokenizer or text before prompts; W, E or the adapter does not fit; a
/// card is of no model; the folder `to` has generations, or files that are none.
pub fn import(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    cards: &[ModelCard],
    encoder: &Arc<Encoder>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<ImportedGeneration> {
    let from = from.as_ref();
    let folder = RouterFolder::read(from)?;
    let mut notes = Vec::new();
    check_encoder(&folder.file.encoder, encoder, &mut notes).map_err(|e| e.at(from.display()))?;
    let (own, given) = cards_of(&folder, cards)?;
    let hub = folder.hub(&own)?;
    let mut contents = first(&folder, encoder, from)?;
    if let Some(adapter) = folder.adapter()? {
        let read = peft::read(&adapter, encoder.config(), &folder.file.encoder.name)?;
        notes.extend(read.notes);
        contents
            .parts
            .insert(ADAPTER.to_owned(), read.factors.write()?);
        contents.manifest.adapter = Some(read.factors.adapter.lora);
    }
    let is_zero_shot = contents.manifest.learned.is_none();
    let vectors = match folder.cards {
        Some(vectors) if given == 0 => Some(vectors),
        None if is_zero_shot => None,
        _ => {
            let new: Vec<NewModel> = own.iter().map(NewModel::from).collect();
            Some(card_vectors(encoder, &new, progress)?)
        }
    };
    if let Some(vectors) = vectors {
        let bytes = cards::write(&vectors, encoder.width())?;
        contents.parts.insert(CARDS.to_owned(), bytes);
    }
    contents.hub = Arc::new(hub);
    let rank = contents.manifest.adapter.as_ref().map(|lora| lora.r);
    contents.check_rows().map_err(|e| e.at(from.display()))?;
    // Before anything is written.
    ask(&contents.id()?, &contents, encoder).map_err(|e| e.at(from.display()))?;
    let store = Store::create(to)?;
    let lock = store.lock()?;
    Ok(ImportedGeneration {
        generation: store.publish_first(&lock, &contents, encoder)?,
        store: store.root().to_owned(),
        models: contents.hub.len(),
        width: contents.manifest.width,
        rank,
        cards: given,
        notes,
    })
}

/// The generation of W and E, without adapter, hub and cards.
fn first(folder: &RouterFolder, encoder: &Encoder, from: &Path) -> Result<Contents> {
    let file = &folder.file;
    let made_by = format!("generation import {}", name_of(from));
    let mut manifest = Manifest::first(EncoderPin::of(encoder), file.width, file.tau, &made_by);
    let is_zero_shot =
        !file.trained && file.adapter.is_none() && is_identity(&folder.projection, file.width);
    // Rows of a generation that was never learned are its cards.
    if !is_zero_shot {
        manifest.learned = Some(learned_elsewhere(file.trained));
    }
    Ok(Contents {
        manifest,
        hub: Arc::default(),
        projection: folder.projection.clone(),
        embeddings: folder.embeddings.clone(),
        parts: BTreeMap::new(),
        agreement: None,
        calibration: None,
    })
}

/// The record of weights that another program trained.
pub(super) fn learned_elsewhere(trained: bool) -> Learned {
    Learned {
        experience: 1,
        recipe: "import".to_owned(),
        settings: BTreeMap::new(),
        examples_sha256: files::sha256(b""),
        device: "another program's".to_owned(),
        trained,
    }
}
