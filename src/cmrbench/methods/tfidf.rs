//! TF-IDF vectors of words and of pairs of words, and products of many of them with one.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

/// A sparse vector: terms in ascending order, with their weights.
pub(crate) type Sparse = Vec<(u32, f64)>;

/// Words that say nothing about a task.
static STOP_WORDS: LazyLock<HashSet<&str>> = LazyLock::new(|| STOPS.split(' ').collect());

const STOPS: &str = "a about above across after again against all almost alone along already also \
 although always am \
among an and another any anyone anything anywhere are around as at back be became because been before behind being below \
between both but by can cannot could did do does doing done down during each either else enough etc even ever every everyone \
everything everywhere except few for former from further get give go had has have having he hence her here hers herself him \
himself his how however i if in indeed into is it its itself just last least less made many may me might mine more moreover \
most mostly much must my myself namely neither never nevertheless next no nobody none nor not nothing now nowhere of off often \
on once one only onto or other others otherwise our ours ourselves out over own per perhaps please put rather re same see seem \
seems several she should show since so some someone something sometimes somewhere still such take than that the their theirs \
them themselves then there therefore these they this those through throughout thus to together too toward towards under until \
up upon us very was we well were what whatever when where whereas whether which while who whoever whole whom whose why will \
with within without would yet you your yours yourself yourselves";

/// The terms that a text is split into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terms {
    /// Words of two letters or more that are no stop words, and pairs of neighbours among them.
    Words,
    /// The same, stop words included.
    AllWords,
    /// Runs of 3, 4 and 5 letters inside words, each word between two spaces.
    Letters,
}

/// Terms with their idf, fitted to texts once.
pub(crate) struct TfIdf {
    terms: Terms,
    /// Place and idf of each term.
    vocabulary: HashMap<String, (u32, f64)>,
}

impl TfIdf {
    /// The vocabulary of `texts`: idf = ln((1 + n) / (1 + texts with the term)) + 1.
    pub(crate) fn fit<'t>(terms: Terms, texts: impl IntoIterator<Item = &'t str>) -> Self {
        let mut places: HashMap<String, (u32, f64)> = HashMap::new();
        let mut all = 0.0;
        for text in texts {
            all += 1.0;
            for (term, _) in counted(terms, text) {
                let next = u32::try_from(places.len()).unwrap_or(u32::MAX);
                places.entry(term).or_insert((next, 0.0)).1 += 1.0;
            }
        }
        for (_, weight) in places.values_mut() {
            *weight = ((1.0 + all) / (1.0 + *weight)).ln() + 1.0;
        }
        Self {
            terms,
            vocabulary: places,
        }
    }

    /// The vector of `text`, of length 1, or empty: (1 + ln count) idf of each known term.
    pub(crate) fn vector(&self, text: &str) -> Sparse {
        let weigh = |(term, count): (String, f64)| {
            let (place, idf) = self.vocabulary.get(&term)?;
            Some((*place, (1.0 + count.ln()) * idf))
        };
        let mut vector: Sparse = counted(self.terms, text)
            .into_iter()
            .filter_map(weigh)
            .collect();
        vector.sort_unstable_by_key(|(place, _)| *place);
        normalize(&mut vector);
        vector
    }

    /// Number of terms.
    pub(crate) fn len(&self) -> usize {
        self.vocabulary.len()
    }
}

/// Divides by the length, where there is one.
pub(crate) fn normalize(vector: &mut Sparse) {
    let length = vector.iter().map(|(_, x)| x * x).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|(_, x)| *x /= length);
    }
}

/// The terms of `text` with how often each occurs, in the order of their first occurrence.
fn counted(terms: Terms, text: &str) -> Vec<(String, f64)> {
    let text = text.to_lowercase();
    let mut counts: Vec<(String, f64)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut add = |term: String| {
        let place = *places.entry(term.clone()).or_insert(counts.len());
        if place == counts.len() {
            counts.push((term, 0.0));
        }
        counts[place].1 += 1.0;
    };
    match terms {
        Terms::Words | Terms::AllWords => {
            let stops = |word: &str| terms == Terms::Words && STOP_WORDS.contains(word);
            let words: Vec<&str> = text
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .filter(|word| word.chars().nth(1).is_some())
                .filter(|word| !stops(word))
                .collect();
            words.iter().for_each(|word| add((*word).to_owned()));
            words.windows(2).for_each(|pair| add(pair.join(" ")));
        }
        Terms::Letters => {
            for word in text.split_whitespace() {
                let letters: Vec<char> = format!(" {word} ").chars().collect();
                for length in 3..=5 {
                    // A word shorter than a run counts once, whole.
                    if letters.len() <= length {
                        add(letters.iter().collect());
                        break;
                    }
                    letters
                        .windows(length)
                        .for_each(|run| add(run.iter().collect()));
                }
            }
        }
    }
    counts
}

/// Vectors by term: products of all of them with one.
#[derive(Default)]
pub(crate) struct Postings {
    by_term: Vec<Vec<(u32, f64)>>,
    vectors: usize,
}

impl Postings {
    pub(crate) fn new<'v>(vectors: impl IntoIterator<Item = &'v Sparse>) -> Self {
        let mut postings = Self::default();
        for vector in vectors {
            postings.push(vector);
        }
        postings
    }

    pub(crate) fn push(&mut self, vector: &Sparse) {
        let place = u32::try_from(self.vectors).unwrap_or(u32::MAX);
        for (term, weight) in vector {
            let term = *term as usize;
            if self.by_term.len() <= term {
                self.by_term.resize_with(term + 1, Vec::new);
            }
            self.by_term[term].push((place, *weight));
        }
        self.vectors += 1;
    }

    /// The product of each vector with `query`.
    pub(crate) fn scores(&self, query: &Sparse) -> Vec<f64> {
        let mut scores = vec![0.0; self.vectors];
        for (term, weight) in query {
            for (place, other) in self.by_term.get(*term as usize).into_iter().flatten() {
                scores[*place as usize] += weight * other;
            }
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(of: Terms, text: &str) -> Vec<String> {
        counted(of, text)
            .into_iter()
            .map(|(term, _)| term)
            .collect()
    }

    #[test]
    fn texts_are_taken_apart() {
        assert_eq!(
            terms(Terms::Words, "Translate the acme/bert-x text, translate!"),
            [
                "translate",
                "acme",
                "bert",
                "text",
                "translate acme",
                "acme bert",
                "bert text",
                "text translate"
            ]
        );
        assert_eq!(terms(Terms::AllWords, "is A cat"), ["is", "cat", "is cat"]);
        assert_eq!(terms(Terms::Letters, "ab"), [" ab", "ab ", " ab "]);
        assert_eq!(terms(Terms::Letters, "a"), [" a "]);
    }

    /// Two texts by hand: "cat" is in both, "dog" in one.
    #[test]
    fn vectors_by_hand() {
        let model = TfIdf::fit(Terms::Words, ["cat dog", "cat"]);
        assert_eq!(model.len(), 3);
        let rare = (3.0f64 / 2.0).ln() + 1.0;
        let length = (1.0 + 2.0 * rare * rare).sqrt();
        let vector = model.vector("cat dog");
        let want = [1.0 / length, rare / length, rare / length];
        for ((_, got), want) in vector.iter().zip(want) {
            assert!((got - want).abs() < 1e-12);
        }
        let twice = model.vector("cat cat dog");
        assert!((twice[0].1 / twice[1].1 - (1.0 + 2f64.ln()) / rare).abs() < 1e-12);
        assert!(model.vector("fish").is_empty());
        let postings = Postings::new([&vector, &model.vector("cat")]);
        let scores = postings.scores(&model.vector("cat"));
        assert!((scores[0] - 1.0 / length).abs() < 1e-12 && (scores[1] - 1.0).abs() < 1e-12);
    }
}
