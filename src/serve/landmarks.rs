//! How far a prompt is from those that a generation knows, and what it has measured of its
//! confidence.

use crate::generation::Calibration;
use crate::num::square;
use crate::serve::index::{Index, PromptPlace, Ranking};

/// Where a generation's prompts are: the mean key of each domain's models.
#[derive(Debug)]
pub(crate) struct Landmarks {
    /// [N, R]; empty without a memory.
    centroids: Vec<f32>,
    rank: usize,
}

/// How far a prompt is from those that a generation knows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PromptDistance {
    /// Squared distance in the memory's space to the nearest domain. Without a memory: 1 less the
    /// cosine of prompt and best model.
    pub(crate) memory: f64,
    /// Share of its words and pairs of words that no learned prompt has; 0 without a memory.
    pub(crate) words: f64,
}

/// A generation's record of its confidence, ready for prompts.
#[derive(Debug)]
pub(crate) struct Confidences {
    pub(crate) calibration: Calibration,
    pub(crate) landmarks: Landmarks,
}

impl Landmarks {
    pub(crate) fn new(index: &Index) -> Self {
        match index.recall() {
            Some(recall) => Self {
                centroids: recall.centroids(),
                rank: recall.rank,
            },
            None => Self {
                centroids: Vec::new(),
                rank: 1,
            },
        }
    }

    /// Of the prompt of `ranking`, which is by `index`.
    pub(crate) fn distance(&self, index: &Index, ranking: &Ranking) -> PromptDistance {
        if let Some(place) = &ranking.place {
            return PromptDistance {
                memory: f64::from(self.nearest(place)),
                words: f64::from(place.unknown),
            };
        }
        let best = ranking.best.first();
        let cosine = best.map_or(-1.0, |(_, score)| index.cosine(*score, None));
        PromptDistance {
            memory: 1.0 - f64::from(cosine),
            words: 0.0,
        }
    }

    /// Squared distances to each domain, [N].
    pub(crate) fn squares(&self, place: &PromptPlace) -> impl Iterator<Item = f32> {
        let rows = self.centroids.chunks_exact(self.rank);
        rows.map(|row| square(row, &place.y))
    }

    fn nearest(&self, place: &PromptPlace) -> f32 {
        self.squares(place).fold(f32::MAX, f32::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_of_domains_by_hand() {
        let a: Vec<f32> = (0..11u8).map(f32::from).collect();
        let b = vec![1.0; 11];
        let landmarks = Landmarks {
            centroids: [a.clone(), b.clone()].concat(),
            rank: 11,
        };
        let place = PromptPlace {
            y: vec![1.5; 11],
            unknown: 0.25,
        };
        let want: f32 = a.iter().map(|x| (x - 1.5) * (x - 1.5)).sum();
        let found: Vec<f32> = landmarks.squares(&place).collect();
        assert_eq!(found, [want, 11.0 * 0.25]);
        assert_eq!(landmarks.nearest(&place), 11.0 * 0.25);
    }
}
