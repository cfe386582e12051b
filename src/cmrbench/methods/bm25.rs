//! Okapi BM25 (carve.md section 12.7).

use std::collections::HashMap;

const K1: f64 = 1.5;
const B: f64 = 0.75;
/// Replaces a negative idf, as a share of the mean idf.
const FLOOR: f64 = 0.25;

/// An index of documents. Texts are split at single spaces, and case matters.
pub(crate) struct Bm25 {
    /// For each word its idf, and the documents that contain it with their weight per unit of idf.
    postings: HashMap<String, (f64, Vec<(u32, f64)>)>,
    documents: usize,
}

impl Bm25 {
    pub(crate) fn new(documents: &[&str]) -> Self {
        let mut counts: HashMap<&str, Vec<(u32, f64)>> = HashMap::new();
        let mut lengths = Vec::with_capacity(documents.len());
        for (place, document) in (0u32..).zip(documents) {
            let mut length = 0.0;
            for word in document.split(' ') {
                length += 1.0;
                let places = counts.entry(word).or_default();
                match places.last_mut() {
                    Some((last, count)) if *last == place => *count += 1.0,
                    _ => places.push((place, 1.0)),
                }
            }
            lengths.push(length);
        }
        let all = documents.len() as f64;
        let average = lengths.iter().sum::<f64>() / all.max(1.0);
        let idf = |places: usize| (all - places as f64 + 0.5).ln() - (places as f64 + 0.5).ln();
        // Summed in the order of the words, since the order of a map differs from run to run.
        let mut words: Vec<(&str, Vec<(u32, f64)>)> = counts.into_iter().collect();
        words.sort_unstable_by_key(|(word, _)| *word);
        let sum: f64 = words.iter().map(|(_, places)| idf(places.len())).sum();
        let floor = FLOOR * sum / words.len().max(1) as f64;
        let mut postings = HashMap::new();
        for (word, mut places) in words {
            let idf = Some(idf(places.len()))
                .filter(|idf| *idf >= 0.0)
                .unwrap_or(floor);
            for (place, count) in &mut places {
                let relative = lengths[*place as usize] / average;
                *count = *count * (K1 + 1.0) / (*count + K1 * (1.0 - B + B * relative));
            }
            postings.insert(word.to_owned(), (idf, places));
        }
        Self {
            postings,
            documents: documents.len(),
        }
    }

    /// The score of each document.
    pub(crate) fn scores(&self, query: &str) -> Vec<f64> {
        let mut scores = vec![0.0; self.documents];
        for word in query.split(' ') {
            if let Some((idf, places)) = self.postings.get(word) {
                for (place, gain) in places {
                    scores[*place as usize] += idf * gain;
                }
            }
        }
        scores
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cmrbench::methods) const DOCUMENTS: [&str; 4] = [
        "text translation spanish english model",
        "image classification vision model",
        "speech recognition audio model",
        "text classification english sentiment model",
    ];

    #[track_caller]
    pub(in crate::cmrbench::methods) fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-7, "expected {want}, found {got}");
        }
    }

    /// carve.md V26.
    #[test]
    fn scores_match_hand_values_v26() {
        let index = Bm25::new(&DOCUMENTS);
        close(
            &index.scores("translation model english"),
            &[0.897_846_3, 0.100_464_0, 0.100_464_0, 0.090_896_0],
        );
        close(&index.scores("Model  nothing"), &[0.0; 4]);
        let idf = |word: &str| index.postings[word].0;
        close(
            &[idf("translation"), idf("english"), idf("model")],
            &[0.847_297_9, 0.0, 0.25 * 0.381_763_2],
        );
    }
}
