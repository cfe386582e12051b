//! Domains by the nearest card of a hub.

use crate::error::{Result, bail};
use crate::generation::Contents;
use crate::num::cosine;
use crate::{Encoder, ModelCard};

/// A generation whose cards are compared.
pub(crate) struct Nearest<'n> {
    contents: &'n Contents,
    encoder: &'n Encoder,
}

impl<'n> Nearest<'n> {
    /// Errors: `encoder` is not the generation's; it keeps no vectors of its cards, or all of its
    /// models are retired.
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
        if !contents.has_cards() || contents.hub.active() == 0 {
            bail!(
                InvalidRequest,
                "--nearest-domain: expected a generation with vectors of its cards, found one \
                 without; pass --domain"
            );
        }
        Ok(Self { contents, encoder })
    }

    /// The domain of each card: that of the active model with the same name, or with the nearest
    /// card by cosine, of equals the first.
    pub(super) fn domains(&self, cards: &[&ModelCard]) -> Result<Vec<String>> {
        let width = self.encoder.width();
        let hub = &self.contents.hub;
        let vectors = self.contents.cards()?;
        let mut domains = Vec::with_capacity(cards.len());
        for card in cards {
            let same = hub.find(&card.model_name).and_then(|id| hub.get(id));
            if let Some(same) = same {
                domains.push(same.domain.to_string());
                continue;
            }
            // Its name and what it does; the domain is the question.
            let mut asked = (*card).clone();
            asked.domain.clear();
            let text = asked.text();
            let [vector] = &self.encoder.embed_documents(&[&text])[..] else {
                bail!(InvalidRequest, "{}: expected one vector", card.model_name)
            };
            let vector = vector.clone().map_err(|error| error.at(&card.model_name))?;
            let mut best = (f64::NEG_INFINITY, None);
            for ((_, model), row) in hub.iter().zip(vectors.chunks_exact(width)) {
                let near = cosine(&vector, row);
                if !model.retired && near > best.0 {
                    best = (near, Some(&model.domain));
                }
            }
            let nearest = best.1.map_or(super::UNKNOWN, |domain| &**domain);
            domains.push(nearest.to_owned());
        }
        Ok(domains)
    }
}
