//! An adapter, or a router's weights, that another program trained, as a child of a store's current
//! generation.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::form::{ROUTER, RouterFolder};
use super::import::learned_elsewhere;
use super::{check_encoder, name_of, peft};
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::cards::{self, CARDS};
use crate::generation::rows::rows;
use crate::generation::{ADAPTER, Contents, GenerationId, NewModel};
use crate::hub::{ModelCard, ModelId};
use crate::learn::{FollowedPrompts, follow_encoder};
use crate::model::lora::Factors;
use crate::options::Options;
use crate::serve::ask;
use crate::store::Store;

/// The result of [`adopt`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Adopted {
    /// The child; `None` in a dry run.
    pub generation: Option<GenerationId>,
    /// The generation that it was made of.
    pub parent: GenerationId,
    /// Rank of the adapter; `None`: the encoder is as it came.
    pub rank: Option<usize>,
    /// Names of the maps of each layer that have an adapter.
    pub targets: Vec<String>,
    /// Where W and E are from.
    pub head: AdoptedHead,
    /// Rows of E that were made anew of model cards.
    pub rows: usize,
    /// What became of the memory and of the held-out prompts.
    pub prompts: FollowedPrompts,
    /// What is worth a second look.
    pub notes: Vec<String>,
}

/// Where the child's W and E are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AdoptedHead {
    /// They are the parent's.
    Parent,
    /// They came with the folder.
    Folder,
}

/// What a folder brings.
struct Brought {
    /// The adapter; `None`: none.
    factors: Option<Factors>,
    /// The rest of the router, if it is one.
    router: Option<RouterFolder>,
    notes: Vec<String>,
}

/// Takes the adapter in the folder `from` into a child of the store's current generation, and makes
/// it current. `from` is an adapter in PEFT's form, or a router's folder (`router.json`), whose W,
/// E and temperature come in too.
///
/// The hub stays as it is. The memory is moved to the new encoder by the kept prompts, or dropped
/// if no text of one is kept. Held-out prompts are seen anew. `cards`: the models whose rows of E
/// are made of their cards anew, by the new encoder; other rows stay. A dry run does all but
/// publish.
///
/// Errors: the adapter is no plain LoRA or belongs to another encoder; the router lacks a model of
/// the hub; the parent has these weights already; the store cannot be written.
pub fn adopt(
    store: &Store,
    from: impl AsRef<Path>,
    cards: &[ModelCard],
    dry_run: bool,
    options: &Options,
) -> Result<Adopted> {
    let from = from.as_ref();
    let mut edit = store.edit(dry_run)?;
    let parent = edit.parent().clone();
    let encoder = Arc::new(edit.open_encoder(options)?);
    let brought = Brought::read(from, &encoder)?;
    let mut change = Change {
        contents: edit.contents(),
        encoder: &encoder,
    };
    let adopted = change.make(brought, cards, parent.clone())?;
    let contents = change.contents;
    contents.check_rows()?;
    if dry_run {
        ask(&parent, contents, &encoder)?;
        return Ok(adopted);
    }
    let id = edit.commit_anew(&encoder, format!("generation adopt {}", name_of(from)))?;
    Ok(Adopted {
        generation: Some(id),
        ..adopted
    })
}

impl Brought {
    fn read(from: &Path, encoder: &Encoder) -> Result<Self> {
        let config = encoder.config();
        if from.join(ROUTER).exists() {
            let router = RouterFolder::read(from)?;
            let mut notes = Vec::new();
            check_encoder(&router.file.encoder, encoder, &mut notes)
                .map_err(|e| e.at(from.display()))?;
            let name = &router.file.encoder.name;
            let adapter = router.adapter()?;
            let adapter = adapter.map(|folder| peft::read(&folder, config, name));
            let adapter = adapter.transpose()?;
            let factors = adapter.map(|adapter| {
                notes.extend(adapter.notes);
                adapter.factors
            });
            return Ok(Self {
                factors,
                router: Some(router),
                notes,
            });
        }
        if !from.join(peft::CONFIG).exists() {
            bail!(
                Format,
                "{}: expected {} of PEFT, or {ROUTER}, found neither",
                from.display(),
                peft::CONFIG
            );
        }
        let adapter = peft::read(from, config, encoder.name())?;
        Ok(Self {
            factors: Some(adapter.factors),
            router: None,
            notes: adapter.notes,
        })
    }
}

/// The child's contents, still the parent's at first.
struct Change<'c> {
    contents: &'c mut Contents,
    encoder: &'c Arc<Encoder>,
}

impl Change<'_> {
    fn make(
        &mut self,
        brought: Brought,
        cards: &[ModelCard],
        parent: GenerationId,
    ) -> Result<Adopted> {
        let (encoder, mut notes) = (self.encoder, brought.notes);
        let before = self.contents.factors(encoder.config())?;
        let before = before.map(|factors| encoder.merged(&factors)).transpose()?;
        let was = (self.contents.head_bytes(), self.adapter_bytes());
        self.keep_cards()?;
        let (mut rank, mut targets) = (None, Vec::new());
        self.contents.parts.remove(ADAPTER);
        self.contents.manifest.adapter = None;
        if let Some(factors) = &brought.factors {
            let lora = &factors.adapter.lora;
            rank = Some(lora.r);
            targets.extend(lora.targets.iter().map(ToString::to_string));
            let bytes = factors.write()?;
            self.contents.parts.insert(ADAPTER.to_owned(), bytes);
            self.contents.manifest.adapter = Some(lora.clone());
        }
        let head = match &brought.router {
            Some(router) => self.take_head(router, &mut notes)?,
            None => AdoptedHead::Parent,
        };
        let is_same_encoder = self.adapter_bytes() == was.1;
        if is_same_encoder && self.contents.head_bytes() == was.0 && cards.is_empty() {
            bail!(
                InvalidRequest,
                "{parent} has these weights already: nothing was changed"
            );
        }
        let after = brought.factors.as_ref().map(|f| encoder.merged(f));
        let after = after.transpose()?;
        let (before, after) = (
            encoder.or_own(before.as_ref())?,
            encoder.or_own(after.as_ref())?,
        );
        let mut prompts = FollowedPrompts::default();
        if !is_same_encoder {
            prompts = follow_encoder(self.contents, encoder, before, after)?;
        }
        let rows = self.card_rows(after, cards)?;
        if rows == 0 && head == AdoptedHead::Parent {
            let note = "W and E are the parent's, made with its encoder: --models makes rows of \
                        E anew of model cards";
            notes.push(note.to_owned());
        }
        Ok(Adopted {
            generation: None,
            parent,
            rank,
            targets,
            head,
            rows,
            prompts,
            notes,
        })
    }

    fn adapter_bytes(&self) -> Option<(f32, Vec<u8>)> {
        let lora = self.contents.manifest.adapter.as_ref()?;
        let bytes = self.contents.parts.get(ADAPTER)?;
        Some((lora.scale(), bytes.clone()))
    }

    /// Vectors of cards, which stay those of the encoder without an adapter, become a part: rows of
    /// E are not these vectors any more.
    fn keep_cards(&mut self) -> Result<()> {
        let contents = &mut *self.contents;
        if contents.has_cards() && !contents.parts.contains_key(CARDS) {
            let bytes = cards::write(&contents.cards()?, self.encoder.width())?;
            contents.parts.insert(CARDS.to_owned(), bytes);
        }
        Ok(())
    }

    /// W, E and the temperature of `router`. Rows go by the names of models.
    ///
    /// Errors: a model of the hub has no row.
    fn take_head(&mut self, router: &RouterFolder, notes: &mut Vec<String>) -> Result<AdoptedHead> {
        let contents = &mut *self.contents;
        let (file, width) = (&router.file, router.file.width);
        let mut row_of: Vec<Option<usize>> = vec![None; contents.hub.len()];
        let mut strangers = 0;
        for (row, model) in file.models.iter().enumerate() {
            match contents.hub.find(&model.name) {
                Some(ModelId(id)) => row_of[id as usize] = Some(row),
                None => strangers += 1,
            }
        }
        let mut embeddings = Vec::with_capacity(row_of.len() * width);
        for ((_, model), row) in contents.hub.iter().zip(row_of) {
            let Some(row) = row else {
                bail!(
                    Mismatch,
                    "{ROUTER}: models: expected {:?}, which is in the hub, found none of that name",
                    model.name
                );
            };
            embeddings.extend(&router.embeddings[row * width..][..width]);
        }
        if strangers > 0 {
            notes.push(format!(
                "models of the folder that the hub does not have: {strangers}; `hub add` adds \
                 models"
            ));
        }
        contents.embeddings = embeddings;
        contents.projection.clone_from(&router.projection);
        contents.manifest.width = width;
        contents.manifest.tau = file.tau;
        let learned = &mut contents.manifest.learned;
        match learned {
            Some(learned) => learned.trained |= file.trained,
            // From here on updates are later ones, which hold on to these weights.
            None => *learned = Some(learned_elsewhere(file.trained)),
        }
        Ok(AdoptedHead::Folder)
    }

    /// Makes the rows of the models of `cards` anew by `network`. Returns how many.
    ///
    /// Errors: a card is of no model, or two are of one.
    fn card_rows(
        &mut self,
        network: &crate::model::bert::Bert,
        cards: &[ModelCard],
    ) -> Result<usize> {
        let contents = &mut *self.contents;
        let width = contents.manifest.width;
        let (mut ids, mut seen) = (Vec::with_capacity(cards.len()), HashSet::new());
        for card in cards {
            let id = contents.hub.resolve(&card.model_name)?;
            if !seen.insert(id) {
                bail!(
                    InvalidRequest,
                    "{:?}: expected one card of each model, found two",
                    card.model_name
                );
            }
            ids.push(id.0 as usize);
        }
        let models: Vec<NewModel> = cards.iter().map(NewModel::from).collect();
        let (encoder, w) = (self.encoder, &contents.projection);
        let new = rows(encoder, network, &models, w, width, &mut |_, _| {})?;
        for (id, row) in ids.iter().zip(new.chunks_exact(width)) {
            contents.embeddings[id * width..][..width].copy_from_slice(row);
        }
        Ok(ids.len())
    }
}

impl Contents {
    /// W, E and the temperature, to see whether they changed.
    fn head_bytes(&self) -> (Vec<f32>, Vec<f32>, f32) {
        let (w, e) = (self.projection.clone(), self.embeddings.clone());
        (w, e, self.manifest.tau)
    }
}
