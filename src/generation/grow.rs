//! New models in a generation's contents, known by their cards alone.

use std::sync::Arc;

use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::Contents;
use crate::generation::cards::{self, CARDS};
use crate::generation::memory::remember;
use crate::generation::rows::{NewModel, rows};

impl Contents {
    /// Adds models: their rows are their encoded cards, and a memory is solved again.
    ///
    /// Errors: a name is taken; `encoder` is not the generation's.
    pub(crate) fn grow(
        &mut self,
        encoder: &Encoder,
        models: &[NewModel],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let pin = &self.manifest.encoder;
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
        let hub = self.hub.with(models.iter().map(|new| new.model.clone()))?;
        if self.parts.contains_key(CARDS) {
            let all = self.cards_with(encoder, models, &mut |_, _| {})?;
            let bytes = cards::write(&all, encoder.width())?;
            self.parts.insert(CARDS.to_owned(), bytes);
        }
        let memory = self.memory()?;
        self.hub = Arc::new(hub);
        if let (Some(mut memory), Some(how)) = (memory, self.how()?) {
            memory.grow(&self.hub)?;
            let (hub, cards) = (&self.hub, self.cards()?);
            let cpu = encoder.host();
            remember(cpu, &mut self.parts, &memory, hub, &cards, how)?;
        }
        let width = self.manifest.width;
        let adapted = self.factors(encoder.config())?;
        let adapted = adapted
            .map(|factors| encoder.merged(&factors))
            .transpose()?;
        let bert = encoder.or_own(adapted.as_ref())?;
        let new = rows(encoder, bert, models, &self.projection, width, progress)?;
        self.embeddings.extend(new);
        Ok(())
    }
}
