//! Routing without training: the model whose card is nearest (carve.md section 12.7).

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::bm25::Bm25;
use super::tfidf::{Postings, Terms, TfIdf};
use super::{Common, Method, NAMED, Named, Progressed, StepReport, Watching};
use crate::cmrbench::Data;
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::hub::cards::ModelCard;
use crate::learn::Control;
use crate::num::dot;
use crate::ops::normalize::unit;

/// Texts that are encoded together.
const BATCH: usize = 32;
/// Share of the dense score in a hybrid one.
const DENSE: f64 = 0.7;

/// The models of a step's hub by id, and the owner of each document.
#[derive(Default)]
pub(super) struct Owners {
    names: Vec<String>,
    ids: HashMap<String, usize>,
    /// The owner of each document of the step.
    owners: Vec<usize>,
}

impl Owners {
    pub(super) fn new(data: &Data, step: usize) -> Result<Self> {
        let hub = data.hub(step);
        let names: Vec<String> = hub.iter().map(|new| new.model.name.to_string()).collect();
        let ids: HashMap<String, usize> = names.iter().cloned().zip(0..).collect();
        let mut owners = Vec::new();
        for card in data.experiences[..step].iter().flat_map(|e| &e.cards) {
            match ids.get(&card.model_name) {
                Some(id) => owners.push(*id),
                None => bail!(
                    Mismatch,
                    "a card of {:?}: expected a model with training rows up to E{step}, found none",
                    card.model_name
                ),
            }
        }
        Ok(Self { names, ids, owners })
    }

    pub(super) fn id(&self, model: &str) -> Option<usize> {
        self.ids.get(model).copied()
    }

    pub(super) fn models(&self) -> usize {
        self.names.len()
    }

    /// The best score among the documents of each model; negative infinity for a model without one.
    pub(super) fn of_models(&self, documents: &[f64]) -> Vec<f64> {
        let mut scores = vec![f64::NEG_INFINITY; self.names.len()];
        for (owner, score) in self.owners.iter().zip(documents) {
            scores[*owner] = scores[*owner].max(*score);
        }
        scores
    }

    /// The best models; ties go by id.
    pub(super) fn best(&self, scores: &[f64]) -> Vec<Named> {
        let mut order: Vec<usize> = (0..scores.len())
            .filter(|id| scores[*id].is_finite())
            .collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        order.truncate(NAMED);
        let named = |id: usize| Named {
            model: self.names[id].clone(),
            score: scores[id],
        };
        order.into_iter().map(named).collect()
    }
}

/// Domain, functionality, name and description of a card as one text.
pub(super) fn card_text(card: &ModelCard) -> String {
    let parts = [
        Some(card.domain.as_str()),
        card.functionality.as_deref(),
        Some(card.model_name.as_str()),
        card.description.as_deref(),
    ];
    let parts: Vec<&str> = parts
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .collect();
    parts.join(" ")
}

/// The score that compares documents with a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CardScorer {
    Bm25,
    TfIdf,
    Dense,
    Hybrid,
}

/// An index of the cards of the first experiences.
#[derive(Default)]
struct CardIndex<'c> {
    owners: Owners,
    bm25: Option<Bm25>,
    words: Option<(TfIdf, Postings)>,
    vectors: Option<Vec<Vec<f32>>>,
    /// The cards as in the file.
    documents: Vec<&'c str>,
}

pub(super) struct Retrieval<'c> {
    common: &'c Common<'c>,
    scorer: CardScorer,
    index: CardIndex<'c>,
}

impl<'c> Retrieval<'c> {
    pub(super) fn new(common: &'c Common<'c>, scorer: CardScorer) -> Self {
        let index = CardIndex::default();
        Self {
            common,
            scorer,
            index,
        }
    }

    /// The nearest document to each prompt; ties go to the first.
    pub(super) fn nearest(&self, prompts: &[&str]) -> Result<Vec<&'c str>> {
        let best = |scores: Vec<f64>| {
            let scored = scores.into_iter().enumerate().rev();
            let best = scored.max_by(|a, b| a.1.total_cmp(&b.1));
            best.and_then(|(place, _)| self.index.documents.get(place).copied())
        };
        let of_prompt = |scores| match best(scores) {
            Some(document) => Ok(document),
            None => bail!(NoCandidate, "expected a card to be nearest, found none"),
        };
        self.all_scores(prompts)?
            .into_iter()
            .map(of_prompt)
            .collect()
    }

    /// The score of every document for each prompt.
    fn all_scores(&self, prompts: &[&str]) -> Result<Vec<Vec<f64>>> {
        let vectors = match self.scorer {
            CardScorer::Dense | CardScorer::Hybrid => {
                self.common.frozen.queries(self.common, prompts)?
            }
            _ => Vec::new(),
        };
        let score = |(place, prompt): (usize, &&str)| self.scores(prompt, vectors.get(place));
        Ok(prompts.iter().enumerate().map(score).collect())
    }

    fn scores(&self, prompt: &str, vector: Option<&Vec<f32>>) -> Vec<f64> {
        let index = &self.index;
        let sparse = || {
            index
                .bm25
                .as_ref()
                .map_or_else(Vec::new, |bm25| bm25.scores(prompt))
        };
        let dense = || match (&index.vectors, vector) {
            (Some(documents), Some(vector)) => documents
                .iter()
                .map(|document| dot(document, vector))
                .collect(),
            _ => Vec::new(),
        };
        match self.scorer {
            CardScorer::Bm25 => sparse(),
            CardScorer::Dense => dense(),
            CardScorer::Hybrid => hybrid(&dense(), &sparse()),
            CardScorer::TfIdf => match &index.words {
                Some((model, postings)) => postings.scores(&model.vector(prompt)),
                None => Vec::new(),
            },
        }
    }
}

impl Method for Retrieval<'_> {
    fn learn(&mut self, step: usize, watch: Watching<'_>) -> Result<Progressed> {
        let experiences = &self.common.data.experiences[..step];
        let mut index = CardIndex {
            owners: Owners::new(self.common.data, step)?,
            ..CardIndex::default()
        };
        let documents = experiences.iter().flat_map(|e| &e.documents);
        let documents: Vec<&str> = documents.map(String::as_str).collect();
        if matches!(self.scorer, CardScorer::Bm25 | CardScorer::Hybrid) {
            index.bm25 = Some(Bm25::new(&documents));
        }
        if self.scorer == CardScorer::TfIdf {
            let cards = experiences.iter().flat_map(|e| &e.cards);
            let texts: Vec<String> = cards.map(card_text).collect();
            let model = TfIdf::fit(Terms::Words, texts.iter().map(String::as_str));
            let vectors: Vec<_> = texts.iter().map(|text| model.vector(text)).collect();
            index.words = Some((model, Postings::new(&vectors)));
        }
        if matches!(self.scorer, CardScorer::Dense | CardScorer::Hybrid) {
            let vectors = self
                .common
                .frozen
                .documents(self.common, &documents, watch)?;
            let Some(vectors) = vectors else {
                return Ok(Progressed::Stopped);
            };
            index.vectors = Some(vectors);
        }
        index.documents = documents;
        self.index = index;
        let encoder = self.common.frozen.encoder.borrow();
        let device = encoder.as_ref().filter(|_| self.index.vectors.is_some());
        let device = device.map_or("cpu", |encoder| encoder.device_name());
        Ok(Progressed::Done(StepReport::nothing(device)))
    }

    fn resume(&mut self, step: usize, _state: &str) -> Result<()> {
        self.learn(step, &mut |_, _| Control::Continue).map(|_| ())
    }

    fn rank(&mut self, prompts: &[&str]) -> Result<Vec<Vec<Named>>> {
        let owners = &self.index.owners;
        let rank = |documents: Vec<f64>| owners.best(&owners.of_models(&documents));
        Ok(self.all_scores(prompts)?.into_iter().map(rank).collect())
    }
}

/// Both scores scaled to [0, 1] over the documents, then mixed. Equal sparse scores are ignored.
fn hybrid(dense: &[f64], sparse: &[f64]) -> Vec<f64> {
    let scaled = |scores: &[f64]| -> (Vec<f64>, bool) {
        let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let scale = |score: &f64| (score - low) / (high - low + 1e-8);
        (scores.iter().map(scale).collect(), high > low)
    };
    let ((dense, _), (sparse, says)) = (scaled(dense), scaled(sparse));
    let share = if says { 1.0 - DENSE } else { 0.0 };
    dense
        .iter()
        .zip(&sparse)
        .map(|(d, s)| DENSE * d + share * s)
        .collect()
}

/// Unit vectors of the frozen encoder, each text encoded once.
#[derive(Default)]
pub(crate) struct Frozen {
    encoder: RefCell<Option<Arc<Encoder>>>,
    documents: RefCell<HashMap<String, Vec<f32>>>,
    queries: RefCell<HashMap<String, Vec<f32>>>,
}

impl Frozen {
    fn encoder(&self, common: &Common<'_>) -> Result<Arc<Encoder>> {
        let mut held = self.encoder.borrow_mut();
        if let Some(encoder) = &*held {
            return Ok(Arc::clone(encoder));
        }
        let encoder = Arc::new(Encoder::open(common.encoder, common.options)?);
        *held = Some(Arc::clone(&encoder));
        Ok(encoder)
    }

    /// Tokens that the encoder has positions for.
    pub(super) fn positions(&self, common: &Common<'_>) -> Result<usize> {
        Ok(self.encoder(common)?.config().max_tokens())
    }

    /// `None`: the callback stopped it.
    fn documents(
        &self,
        common: &Common<'_>,
        texts: &[&str],
        watch: Watching<'_>,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        let encoder = self.encoder(common)?;
        let mut known = self.documents.borrow_mut();
        let new: Vec<&str> = texts
            .iter()
            .copied()
            .filter(|text| !known.contains_key(*text))
            .collect();
        for (i, batch) in new.chunks(BATCH).enumerate() {
            let done = (i * BATCH) as f64 / new.len() as f64;
            if watch("encoding cards", done) == Control::Stop {
                return Ok(None);
            }
            keep(&mut known, batch, encoder.embed_documents(batch))?;
        }
        Ok(Some(
            texts
                .iter()
                .filter_map(|text| known.get(*text).cloned())
                .collect(),
        ))
    }

    fn queries(&self, common: &Common<'_>, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let encoder = self.encoder(common)?;
        let mut known = self.queries.borrow_mut();
        let new: Vec<&str> = texts
            .iter()
            .copied()
            .filter(|text| !known.contains_key(*text))
            .collect();
        for batch in new.chunks(BATCH) {
            keep(&mut known, batch, encoder.embed(batch))?;
        }
        Ok(texts
            .iter()
            .filter_map(|text| known.get(*text).cloned())
            .collect())
    }
}

fn keep(
    known: &mut HashMap<String, Vec<f32>>,
    texts: &[&str],
    vectors: Vec<Result<Vec<f32>>>,
) -> Result<()> {
    for (text, vector) in texts.iter().zip(vectors) {
        let mut vector = vector.map_err(|e| e.at("a text of the benchmark"))?;
        unit(&mut vector);
        known.insert((*text).to_owned(), vector);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::bm25::tests::{DOCUMENTS, close};
    use super::*;

    /// carve.md V26.
    #[test]
    fn hybrid_scores_match_hand_values_v26() {
        let sparse = Bm25::new(&DOCUMENTS).scores("translation model english");
        let mixed = hybrid(&[0.8, 0.1, 0.2, 0.9], &sparse);
        close(
            &mixed,
            &[0.912_500_0, 0.003_557_1, 0.091_057_1, 0.700_000_0],
        );
        let silent = hybrid(&[0.0, 1.0], &[3.0, 3.0]);
        assert!(
            silent[0] == 0.0 && (silent[1] - 0.7).abs() < 1e-7,
            "{silent:?}"
        );
    }

    #[test]
    fn of_equals_the_lower_id_is_first() {
        let owners = Owners {
            names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            ids: HashMap::new(),
            owners: vec![2, 1, 1],
        };
        let scores = owners.of_models(&[0.5, 0.1, 0.5]);
        let best = owners.best(&scores);
        let names: Vec<&str> = best.iter().map(|named| named.model.as_str()).collect();
        assert_eq!(names, ["b", "c"], "a has no card");
    }
}
