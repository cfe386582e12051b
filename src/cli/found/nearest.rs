//! Domains by the nearest cards of a hub.

use crate::error::{Result, bail};
use crate::generation::Contents;
use crate::hub::{Domains, domain_key};
use crate::num::cosine;
use crate::{Encoder, Model, ModelCard};

/// The temperature of a generation that was never trained.
const TEMPERATURE: f64 = 0.08;

/// A generation whose cards are compared.
pub(crate) struct Nearest<'n> {
    contents: &'n Contents,
    encoder: &'n Encoder,
}

/// Whether the model's domain can be that of another.
fn counts(model: &Model) -> bool {
    !model.retired && domain_key(&model.domain) != super::UNKNOWN
}

impl<'n> Nearest<'n> {
    /// Errors: `encoder` is not the generation's; it keeps no vectors of its cards, or has no active
    /// model of a known domain.
    pub(crate) fn new(contents: &'n Contents, encoder: &'n Encoder) -> Result<Self> {
        let pin = &contents.manifest.encoder;
        if pin.sha256 != encoder.revision() {
            bail!(
                Mismatch,
                "--nearest-domain: expected encoder {} ({}), found {} ({}); pass --domain",
                pin.name,
                pin.sha256,
                encoder.name(),
                encoder.revision()
            );
        }
        let mut models = contents.hub.iter().map(|(_, model)| model);
        if !contents.has_cards() || !models.any(counts) {
            bail!(
                InvalidRequest,
                "--nearest-domain: expected a generation with models of known domains and vectors \
                 of their cards, found none; pass --domain"
            );
        }
        Ok(Self { contents, encoder })
    }

    /// The domain of each card: that of the model with the same name; without one the domain with
    /// the largest sum of exp(cosine / temperature) over the cards of its active models, as a hub
    /// that was never trained scores its domains. Of equals the first by name.
    pub(super) fn domains(&self, cards: &[&ModelCard]) -> Result<Vec<String>> {
        let hub = &self.contents.hub;
        let vectors = self.contents.cards()?;
        let known = Domains::new(hub);
        let mut domains = Vec::with_capacity(cards.len());
        for card in cards {
            let same = hub.find(&card.model_name).and_then(|id| hub.get(id));
            if let Some(same) = same.filter(|same| counts(same)) {
                domains.push(same.domain.to_string());
                continue;
            }
            // Its name and what it does; the domain is the question.
            let mut asked = (*card).clone();
            asked.domain.clear();
            let mut encoded = self.encoder.embed_documents(&[&asked.text()]);
            let Some(vector) = encoded.pop() else {
                bail!(InvalidRequest, "{}: expected a vector", card.model_name)
            };
            let vector = vector.map_err(|error| error.at(&card.model_name))?;
            let mut sums = vec![0.0; known.names.len()];
            let rows = vectors.chunks_exact(self.encoder.width());
            for (((_, model), row), domain) in hub.iter().zip(rows).zip(&known.of) {
                if counts(model) {
                    sums[*domain as usize] += (cosine(&vector, row) / TEMPERATURE).exp();
                }
            }
            let mut best = 0;
            for (at, sum) in sums.iter().enumerate() {
                if *sum > sums[best] {
                    best = at;
                }
            }
            domains.push(known.names[best].to_string());
        }
        Ok(domains)
    }
}
