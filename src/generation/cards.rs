//! Card vectors: a unit vector of each model's cards.
//!
//! The memory's prior means are made of them (`memory/solve.rs`), and rows of new models are mixed
//! from old rows by comparing them (carve.md section 3, `card_mix`). The registry keeps no card
//! text, so a generation keeps the vectors. They are those of the frozen encoder: an encoder that
//! learns would need all of them again after every update.
//!
//! A generation that was never learned needs no such part: its W is the identity and its rows are
//! these vectors. Others get the part when they are learned with `memory` or `init.rows =
//! card_mix`, and their children keep it up to date.

use safetensors::Dtype;

use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::Contents;
use crate::generation::rows::{NewModel, card_vector, encoded};
use crate::weights::{Tensors, half_bytes, to_safetensors};

/// The part's name in a generation.
pub(crate) const CARDS: &str = "cards.safetensors";
const VECTORS: &str = "card_vectors";

impl Contents {
    /// Whether [`Contents::cards`] has them.
    pub(crate) fn has_cards(&self) -> bool {
        self.manifest.learned.is_none() || self.parts.contains_key(CARDS)
    }

    /// A unit vector of each model's cards, [M, H].
    ///
    /// Errors: the generation does not have them; the part is malformed or of another hub.
    pub(crate) fn cards(&self) -> Result<Vec<f32>> {
        let (models, width) = (self.hub.len(), self.manifest.encoder.width);
        match self.parts.get(CARDS) {
            Some(bytes) => read(bytes, models, width).map_err(|e| e.at(CARDS)),
            None if self.manifest.learned.is_none() => Ok(self.embeddings.clone()),
            None => bail!(
                InvalidRequest,
                "init.rows = card_mix: expected a generation that was never learned, or one with \
                 {CARDS}, which learning with memory = true or init.rows = card_mix keeps; found \
                 neither"
            ),
        }
    }

    /// [`Contents::cards`] with those of `new` models behind them.
    pub(crate) fn cards_with(
        &self,
        encoder: &Encoder,
        new: &[NewModel],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<f32>> {
        let mut all = self.cards()?;
        all.extend(card_vectors(encoder, new, progress)?);
        Ok(all)
    }
}

/// A unit vector of each model's cards by the encoder without an adapter, [N, H].
pub(crate) fn card_vectors(
    encoder: &Encoder,
    models: &[NewModel],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<f32>> {
    let mut all = Vec::with_capacity(models.len() * encoder.width());
    let cards = encoded(encoder, encoder.bert()?, models, progress)?;
    for (model, vectors) in models.iter().zip(cards) {
        all.extend(card_vector(model, vectors)?);
    }
    Ok(all)
}

/// The bytes of the part; `vectors`: rows of `width`.
pub(crate) fn write(vectors: &[f32], width: usize) -> Result<Vec<u8>> {
    let shape = vec![vectors.len() / width, width];
    let tensor = (VECTORS, Dtype::F16, shape, half_bytes(vectors));
    to_safetensors(CARDS, &[tensor], None)
}

fn read(bytes: &[u8], models: usize, width: usize) -> Result<Vec<f32>> {
    let file = Tensors::parse(bytes)?;
    Ok(file.f16(VECTORS, [models, width])?.to_f32())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;
    use crate::ops::testing::{assert_close, noise, wide};

    #[test]
    fn the_part_keeps_the_vectors_in_half_precision() {
        let vectors = noise(5 * 7, 1);
        let read = read(&write(&vectors, 7).unwrap(), 5, 7).unwrap();
        assert_close("cards", &read, &wide(&vectors), 1e-3);
    }

    #[test]
    fn damage_is_named() {
        let bytes = write(&[0.5; 6], 3).unwrap();
        let refused = |bytes: &[u8], models: usize, kind: ErrorKind, want: &str| {
            let error = read(bytes, models, 3).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert_eq!(error.kind(), kind);
        };
        read(&bytes, 2, 3).unwrap();
        let want = "card_vectors: expected [3, 3] f16, found [2, 3]";
        refused(&bytes, 3, ErrorKind::Mismatch, want);
        let cut = &bytes[..bytes.len() - 1];
        refused(cut, 2, ErrorKind::Format, "not safetensors");
        let infinite = write(&[0.5, 0.5, 1e9, 0.5, 0.5, 0.5], 3).unwrap();
        refused(&infinite, 2, ErrorKind::Numeric, "element 2: expected");
    }
}
