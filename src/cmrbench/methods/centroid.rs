//! The continual floor: a router without a network (cmrbench.md section 7).
//!
//! A model's score is the cosine of the prompt with the centroid of its training prompts plus the
//! cosine with its nearest card, both over TF-IDF of words, pairs of words and runs of letters.
//! Vocabulary and idf are those of the first experience; centroids of new models are appended, an
//! old one changes only by new rows of its model. Its forgetting is the work of the growing hub
//! alone.

use std::collections::BTreeMap;

use super::retrieval::{Owners, card_text};
use super::tfidf::{Postings, Sparse, Terms, TfIdf, normalize};
use super::{Common, Method, Named, Progressed, StepReport, Watching};
use crate::error::Result;
use crate::learn::Control;

pub(super) struct Centroids<'c> {
    common: &'c Common<'c>,
    learned: usize,
    models: Vec<TfIdf>,
    owners: Owners,
    /// The sum of the rows' vectors of each model, by id.
    sums: Vec<BTreeMap<u32, f64>>,
    centroids: Postings,
    cards: Postings,
}

impl<'c> Centroids<'c> {
    pub(super) fn new(common: &'c Common<'c>) -> Self {
        Self {
            common,
            learned: 0,
            models: Vec::new(),
            owners: Owners::default(),
            sums: Vec::new(),
            centroids: Postings::default(),
            cards: Postings::default(),
        }
    }

    /// The concatenated vectors of all vocabularies, scaled to length 1.
    fn vector(&self, text: &str) -> Sparse {
        let mut joined = Sparse::new();
        let mut first = 0;
        for model in &self.models {
            joined.extend(
                model
                    .vector(text)
                    .into_iter()
                    .map(|(term, x)| (first + term, x)),
            );
            first += u32::try_from(model.len()).unwrap_or(u32::MAX);
        }
        normalize(&mut joined);
        joined
    }
}

impl Method for Centroids<'_> {
    fn learn(&mut self, step: usize, _watch: Watching<'_>) -> Result<Progressed> {
        let experience = &self.common.data.experiences[step - 1];
        if self.learned == 0 {
            let rows = || experience.train.iter().map(|row| row.instruction.as_str());
            let fit = |terms| TfIdf::fit(terms, rows());
            self.models = vec![fit(Terms::AllWords), fit(Terms::Letters)];
        }
        self.owners = Owners::new(self.common.data, step)?;
        self.sums.resize(self.owners.models(), BTreeMap::new());
        for row in &experience.train {
            let vector = self.vector(&row.instruction);
            if let Some(id) = self.owners.id(&row.model_name) {
                for (term, x) in vector {
                    *self.sums[id].entry(term).or_default() += x;
                }
            }
        }
        let centroid = |sum: &BTreeMap<u32, f64>| {
            let mut vector: Sparse = sum.iter().map(|(term, x)| (*term, *x)).collect();
            normalize(&mut vector);
            vector
        };
        let centroids: Vec<Sparse> = self.sums.iter().map(centroid).collect();
        self.centroids = Postings::new(&centroids);
        for card in &experience.cards {
            let vector = self.vector(&card_text(card));
            self.cards.push(&vector);
        }
        self.learned = step;
        Ok(Progressed::Done(StepReport::nothing("cpu")))
    }

    fn resume(&mut self, step: usize, _state: &str) -> Result<()> {
        *self = Self::new(self.common);
        for step in 1..=step {
            self.learn(step, &mut |_, _| Control::Continue)?;
        }
        Ok(())
    }

    fn rank(&mut self, prompts: &[&str]) -> Result<Vec<Vec<Named>>> {
        let rank = |prompt: &&str| {
            let query = self.vector(prompt);
            let mut scores = self.centroids.scores(&query);
            let cards = self.owners.of_models(&self.cards.scores(&query));
            for (score, card) in scores.iter_mut().zip(cards) {
                // Products of such vectors are not negative; a model without a card has 0.
                *score += card.max(0.0);
            }
            self.owners.best(&scores)
        };
        Ok(prompts.iter().map(rank).collect())
    }
}
