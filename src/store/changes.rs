//! Changes of a store in one call: its first generation, and models added, retired or renamed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::rows::{NewModel, rows};
use crate::generation::{Contents, EncoderPin, GenerationId, Manifest};
use crate::hub::Hub;
use crate::store::{Lock, Store};

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
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<GenerationId> {
        let lock = self.lock()?;
        self.check_empty()?;
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
            encoder.bert()?,
            models,
            &projection,
            width,
            progress,
        )?;
        let first = Contents {
            manifest: Manifest::first(EncoderPin::of(encoder), width, TAU, made_by),
            hub: Arc::new(hub),
            projection,
            embeddings,
            parts: BTreeMap::new(),
            agreement: None,
            calibration: None,
        };
        self.publish_first(&lock, &first, encoder)
    }

    /// Errors: there are generations that no first one can be.
    pub(crate) fn check_empty(&self) -> Result<()> {
        match self.ids()?.iter().find(|id| id.sequence() != 1) {
            Some(other) => bail!(
                Refused,
                "{}: expected an empty store, found {other}",
                self.root().display()
            ),
            None => Ok(()),
        }
    }

    /// Publishes the first generation of a store. An earlier call that was killed before its end is
    /// completed by the same call.
    ///
    /// Errors: the store has another generation.
    pub(crate) fn publish_first(
        &self,
        lock: &Lock,
        first: &Contents,
        encoder: &Arc<Encoder>,
    ) -> Result<GenerationId> {
        let there = self.ids()?;
        if !there.is_empty() {
            let own = first.id()?;
            if let Some(other) = there.iter().find(|id| **id != own) {
                let advice = match self.current() {
                    Ok(_) => String::new(),
                    Err(_) => {
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
        self.publish(lock, first, Some(encoder))
    }

    /// Adds models to the current generation: a child whose new rows are the encoded cards.
    ///
    /// Errors: a name is taken; `encoder` is not the generation's.
    pub fn add(
        &self,
        encoder: &Arc<Encoder>,
        models: &[NewModel],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<GenerationId> {
        let mut edit = self.edit(false)?;
        edit.add(encoder, models, progress)?;
        edit.commit()
    }

    /// Takes a model out of routing; its id stays taken. A child of the current generation.
    pub fn retire(&self, name: &str) -> Result<GenerationId> {
        let mut edit = self.edit(false)?;
        edit.retire(name)?;
        edit.commit()
    }

    /// Renames a model; the old name stays an alias. A child of the current generation.
    pub fn rename(&self, name: &str, new: &str) -> Result<GenerationId> {
        let mut edit = self.edit(false)?;
        edit.rename(name, new)?;
        edit.commit()
    }

    /// Gives a model another name. A child of the current generation.
    pub fn alias(&self, name: &str, alias: &str) -> Result<GenerationId> {
        let mut edit = self.edit(false)?;
        edit.alias(name, alias)?;
        edit.commit()
    }
}
