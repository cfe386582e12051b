//! Changes of a store that need no learning: the first generation, models added, retired, renamed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::Draft;
use crate::generation::EncoderPin;
use crate::generation::GenerationId;
use crate::generation::cards::{self, CARDS};
use crate::generation::memory::remember;
use crate::generation::rows::{NewModel, Progress, rows};
use crate::hub::Hub;
use crate::store::Store;

/// Divisor of the cosine (carve.md section 10).
const TAU: f32 = 0.08;

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
