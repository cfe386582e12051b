//! Rows of E from model cards, for models without learned prompts (carve.md section 3, `card`).

use serde::{Deserialize, Serialize};

use crate::encoder::Encoder;
use crate::error::{Result, error};
use crate::hub::{Model, ModelCard};
use crate::model::bert::Bert;
use crate::ops::normalize::unit;

/// Cards that are embedded between two reports of progress.
const STRIDE: usize = 64;

/// A model to add, with the texts of its cards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NewModel {
    /// Its record in the registry.
    pub model: Model,
    /// Texts whose encodings make its row.
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

/// norm(sum over a model's cards of norm(W h(card))) for each model: [N, D]; `bert`: the network of
/// `encoder`, with the generation's adapter where it has one.
pub(crate) fn rows(
    encoder: &Encoder,
    bert: &Bert,
    models: &[NewModel],
    projection: &[f32],
    width: usize,
    progress: &mut dyn FnMut(usize, usize),
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
    progress: &mut dyn FnMut(usize, usize),
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
