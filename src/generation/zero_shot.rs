//! Generations made without learning: rows from model cards, and changes of the registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::encoder::Encoder;
use crate::error::{Result, bail, error};
use crate::generation::cards::{self, CARDS};
use crate::generation::contents::Draft;
use crate::generation::manifest::EncoderPin;
use crate::generation::recall::remember;
use crate::generation::{GenerationId, Store};
use crate::hub::{Hub, Model, ModelCard};
use crate::model::bert::Bert;
use crate::ops::normalize::unit;

/// Divisor of the cosine (carve.md section 10).
const TAU: f32 = 0.08;

/// Cards that are embedded between two reports of progress.
const STRIDE: usize = 64;

/// A model to add, with the texts of its cards.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewModel {
    /// Its record in the registry.
    pub model: Model,
    /// Texts that are encoded into its row.
    pub cards: Vec<String>,
}

impl NewModel {
    /// A model with its cards; without any, its name and domain are the card.
    pub fn new(model: Model, cards: Vec<String>) -> Self {
        let cards = if cards.is_empty() {
            vec![ModelCard::new(model.name.to_string(), model.domain.to_string()).text()]
        } else {
            cards
        };
        Self { model, cards }
    }
}

impl From<&ModelCard> for NewModel {
    fn from(card: &ModelCard) -> Self {
        Self::new(card.model(), vec![card.text()])
    }
}

/// Called with the number of cards done and of all.
pub type Progress<'p> = &'p mut dyn FnMut(usize, usize);

impl Store {
    /// Makes the first generation of an empty store: W is the identity, every row of E the encoded
    /// cards of its model (carve.md section 3, profile `card`). Routes without any training.
    ///
    /// Called again on a store that has this very generation and no other, it makes that current.
    ///
    /// Errors: the store has other generations; no models; two models share a name.
    pub fn build(
        &self,
        encoder: &Arc<Encoder>,
        models: &[NewModel],
        made_by: &str,
        progress: Progress<'_>,
    ) -> Result<GenerationId> {
        let lock = self.lock()?;
        let there = self.ids()?;
        let current = self.current().ok();
        if let Some(other) = there.iter().find(|id| id.sequence() != 1) {
            bail!(
                Refused,
                "{}: expected an empty store, found {other}",
                self.root().display()
            );
        }
        if models.is_empty() {
            bail!(
                InvalidRequest,
                "a hub: expected at least one model, found none"
            );
        }
        let width = encoder.width();
        let mut projection = vec![0.0; width * width];
        projection
            .iter_mut()
            .step_by(width + 1)
            .for_each(|diagonal| *diagonal = 1.0);
        let hub = Hub::default().with(models.iter().map(|new| new.model.clone()))?;
        let embeddings = rows(
            encoder,
            encoder.bert(),
            models,
            &projection,
            width,
            progress,
        )?;
        let draft = Draft {
            sequence: 1,
            parent: None,
            made_by: made_by.to_owned(),
            encoder: EncoderPin {
                name: encoder.name().to_owned(),
                sha256: encoder.revision().to_owned(),
                tokenizer_sha256: encoder.tokenizer_revision().to_owned(),
                width,
            },
            width,
            tau: TAU,
            hub,
            projection,
            embeddings,
            adapter: None,
            learned: None,
            parts: BTreeMap::new(),
        };
        // Killed before it was made current, or before it could say so, the same call goes on there.
        if !there.is_empty() {
            let own = draft.id()?;
            if let Some(other) = there.iter().find(|id| **id != own) {
                let advice = match current {
                    Some(_) => String::new(),
                    None => {
                        format!("; `hubrouter generation rollback --to {other}` makes it current")
                    }
                };
                bail!(
                    Refused,
                    "{}: expected an empty store, found {other}{advice}",
                    self.root().display()
                );
            }
        }
        self.publish(&lock, &draft, Some(encoder))
    }

    /// Adds models to the current generation: a child whose new rows are the encoded cards.
    ///
    /// Errors: a name is taken; `encoder` is not the generation's.
    pub fn add(
        &self,
        encoder: &Arc<Encoder>,
        models: &[NewModel],
        progress: Progress<'_>,
    ) -> Result<GenerationId> {
        let names: Vec<&str> = models.iter().map(|new| &*new.model.name).take(3).collect();
        let more = models.len().saturating_sub(names.len());
        let more = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        let made_by = format!("hub add {}{more}", names.join(" "));
        self.change(&made_by, Some(encoder), |contents| {
            let pin = &contents.manifest.encoder;
            if pin.sha256 != encoder.revision() {
                bail!(
                    Mismatch,
                    "expected encoder {} ({}), found {} ({})",
                    pin.name,
                    pin.sha256,
                    encoder.name(),
                    encoder.revision()
                );
            }
            if contents.parts.contains_key(CARDS) {
                let all = contents.cards_with(encoder, models, &mut |_, _| {})?;
                let bytes = cards::write(&all, encoder.width())?;
                contents.parts.insert(CARDS.to_owned(), bytes);
            }
            let memory = contents.memory()?;
            contents.hub = contents
                .hub
                .with(models.iter().map(|new| new.model.clone()))?;
            if let (Some(mut memory), Some(how)) = (memory, contents.how()?) {
                memory.grow(&contents.hub)?;
                let (hub, cards) = (&contents.hub, contents.cards()?);
                remember(
                    encoder.host(),
                    &mut contents.parts,
                    &memory,
                    hub,
                    &cards,
                    how,
                )?;
            }
            let width = contents.manifest.width;
            let adapted = contents.factors(encoder.config())?;
            let adapted = adapted
                .map(|factors| encoder.merged(&factors))
                .transpose()?;
            let bert = adapted.as_ref().unwrap_or(encoder.bert());
            let new = rows(encoder, bert, models, &contents.projection, width, progress)?;
            contents.embeddings.extend(new);
            Ok(())
        })
    }

    /// Takes a model out of routing; its id stays taken. A child of the current generation.
    pub fn retire(&self, name: &str) -> Result<GenerationId> {
        self.change_hub(&format!("hub retire {name}"), |hub| hub.retire(name))
    }

    /// Renames a model; the old name stays an alias. A child of the current generation.
    pub fn rename(&self, name: &str, new: &str) -> Result<GenerationId> {
        self.change_hub(&format!("hub rename {name} {new}"), |hub| {
            hub.rename(name, new)
        })
    }

    /// Gives a model another name. A child of the current generation.
    pub fn alias(&self, name: &str, alias: &str) -> Result<GenerationId> {
        self.change_hub(&format!("hub alias {name} {alias}"), |hub| {
            hub.alias(name, alias)
        })
    }

    fn change_hub(
        &self,
        made_by: &str,
        change: impl FnOnce(&Hub) -> Result<Hub>,
    ) -> Result<GenerationId> {
        self.change(made_by, None, |contents| {
            contents.hub = change(&contents.hub)?;
            Ok(())
        })
    }
}

/// norm(sum over a model's cards of norm(W h(card))) for each model: [N, D]; `bert`: the network of
/// `encoder`, with the generation's adapter where it has one.
pub(crate) fn rows(
    encoder: &Encoder,
    bert: &Bert,
    models: &[NewModel],
    projection: &[f32],
    width: usize,
    progress: Progress<'_>,
) -> Result<Vec<f32>> {
    let mut rows = Vec::with_capacity(models.len() * width);
    let cards = encoded(encoder, bert, models, progress)?;
    for (new, cards) in models.iter().zip(&cards) {
        rows.extend(card_row(new, projection, cards, width)?);
    }
    Ok(rows)
}

/// h of every card of each model.
pub(crate) fn encoded(
    encoder: &Encoder,
    bert: &Bert,
    models: &[NewModel],
    progress: Progress<'_>,
) -> Result<Vec<Vec<Vec<f32>>>> {
    let texts: Vec<&str> = models
        .iter()
        .flat_map(|new| new.cards.iter().map(String::as_str))
        .collect();
    let mut vectors = Vec::with_capacity(texts.len());
    for chunk in texts.chunks(STRIDE) {
        progress(vectors.len(), texts.len());
        vectors.extend(encoder.embed_documents_by(bert, chunk));
    }
    progress(texts.len(), texts.len());
    let mut vectors = vectors.into_iter();
    let of = |new: &NewModel| {
        let cards = vectors.by_ref().take(new.cards.len());
        cards
            .collect::<Result<_>>()
            .map_err(|e| e.at(format!("card of {:?}", new.model.name)))
    };
    models.iter().map(of).collect()
}

/// norm of the sum of norm(W h) over a model's cards; `vectors`: h of each (carve.md section 3).
///
/// Errors: they add up to nothing.
pub(crate) fn card_row(
    model: &NewModel,
    projection: &[f32],
    vectors: &[Vec<f32>],
    width: usize,
) -> Result<Vec<f32>> {
    let projected = vectors.iter().map(|h| project(projection, h)).collect();
    let row = card_vector(model, projected)?;
    assert_eq!(row.len(), width, "card_row: W has another width");
    Ok(row)
}

/// norm of the sum of norm(h) over a model's cards; `vectors`: h of each, at least one.
///
/// Errors: they add up to nothing.
pub(crate) fn card_vector(model: &NewModel, vectors: Vec<Vec<f32>>) -> Result<Vec<f32>> {
    let mut row = vec![0.0f32; vectors.first().map_or(0, Vec::len)];
    for mut card in vectors {
        unit(&mut card);
        row.iter_mut()
            .zip(&card)
            .for_each(|(row, card)| *row += card);
    }
    unit(&mut row);
    if row.iter().all(|value| *value == 0.0) {
        return Err(error!(
            Numeric,
            "cards of {:?}: their vectors add up to nothing", model.model.name
        ));
    }
    Ok(row)
}

/// W h, summed in f64.
fn project(projection: &[f32], h: &[f32]) -> Vec<f32> {
    let dot = |w: &[f32]| {
        w.iter()
            .zip(h)
            .map(|(w, h)| f64::from(*w) * f64::from(*h))
            .sum::<f64>()
    };
    #[expect(clippy::cast_possible_truncation, reason = "rounded once, at the end")]
    projection
        .chunks_exact(h.len())
        .map(|w| dot(w) as f32)
        .collect()
}
