//! The served form of a memory: a Gaussian for each model over the encoder's layers, and naive
//! Bayes over the words of a prompt.
//!
//! ```text
//! score = learned cos(u, e_m) / tau + memory (k_m . y - |k_m|^2 / 2)
//!         + words ln P(d | words) + newcomer
//! y     = P x + b
//! ```
//!
//! x [L H] is the mean over the prompt's tokens of each remembered layer's output, as unit vectors.
//! P, b and k_m are solved from sums when a generation is published (`memory/solve.rs`). P(d |
//! words) is the probability of the model's domain given the prompt's words, up to a factor that is
//! the same for all domains. `newcomer` applies to models without a prompt.
//!
//! One pass of the encoder gives everything, and only the first part was trained by gradients.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::cpu::prefetch::prefetch;
use crate::huge::HugeSlice;
use crate::num::to_u32;
use crate::weights::View;

/// The weight of each part of a score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Strengths {
    /// Weight of the learned score.
    pub learned: f64,
    /// Weight of the log-likelihood under the memory's Gaussians.
    pub memory: f64,
    /// Weight of the log-probability of the model's domain given the prompt's words.
    pub words: f64,
    /// Added to the score of a model without a learned prompt, which would otherwise lose to the
    /// others.
    pub newcomer: f64,
}

impl Default for Strengths {
    /// Chosen on the development split of CMRBench (benches/README.md), where accuracy is level
    /// from half to twice these values. Log-likelihoods are overconfident, since neither elements
    /// nor words are independent; hence the small weights.
    fn default() -> Self {
        Self {
            learned: 0.2,
            memory: 0.04,
            words: 0.06,
            newcomer: 0.5,
        }
    }
}

/// The three parts that add up to a score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Parts {
    /// The learned score times its strength.
    pub learned: f32,
    /// How well the prompt fits the model's earlier prompts, times its strength.
    pub memory: f32,
    /// How well its words fit the model's domain, 0 for the best domain, times its strength.
    pub words: f32,
}

/// Additive smoothing: each word counts as if so many more prompts of each domain had it, so that
/// no word makes a domain impossible.
const SMOOTHING: f64 = 0.05;

/// The served form of a generation's memory, ready for a device.
#[derive(Clone, Debug)]
pub(crate) struct Recall {
    pub(crate) strengths: Strengths,
    /// Layers that x is made of, from 0.
    pub(crate) layers: Vec<usize>,
    /// L H
    pub(crate) width: usize,
    /// R
    pub(crate) rank: usize,
    /// P [R, L H], f16.
    pub(crate) projection: Vec<u8>,
    /// b [R]
    pub(crate) bias: Vec<f32>,
    /// k [M, R], f16.
    pub(crate) keys: Vec<u8>,
    /// -|k|^2 / 2, [M].
    pub(crate) offsets: Vec<f32>,
    /// Prompts of each model, [M].
    pub(crate) prompts: Vec<u32>,
    /// Domain of each model, [M].
    pub(crate) of: Vec<u32>,
    pub(crate) words: Arc<Bayes>,
}

impl Recall {
    /// The part of each model's score that does not depend on the prompt, [M].
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    pub(crate) fn offsets(&self) -> Vec<f32> {
        let Strengths {
            memory, newcomer, ..
        } = self.strengths;
        let each = self.offsets.iter().zip(&self.prompts);
        each.map(|(offset, prompts)| {
            let new = if *prompts == 0 { newcomer } else { 0.0 };
            (memory * f64::from(*offset) + new) as f32
        })
        .collect()
    }

    /// The mean key of each domain's models, weighted by their prompts and a half, [N, R]: where
    /// the domain's prompts are in the memory's space.
    #[expect(clippy::cast_possible_truncation, reason = "distances are of f32")]
    pub(crate) fn centroids(&self) -> Vec<f32> {
        let mut sums = vec![0.0; self.words.domains() * self.rank];
        let mut weights = vec![0.0; self.words.domains()];
        let keys = View::of_half(&self.keys, self.rank).to_f32();
        for (model, key) in keys.chunks_exact(self.rank).enumerate() {
            let domain = self.of[model] as usize;
            let weight = f64::from(self.prompts[model]) + 0.5;
            weights[domain] += weight;
            let sum = sums[domain * self.rank..].iter_mut();
            sum.zip(key)
                .for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        let rows = sums.chunks_exact(self.rank).zip(weights);
        let mean = |(row, weight): (&[f64], f64)| -> Vec<f32> {
            row.iter()
                .map(|x| (x / f64::max(weight, 0.5)) as f32)
                .collect()
        };
        rows.flat_map(mean).collect()
    }

    /// The models `ids` alone, in this order; without the projection, which is the same.
    pub(crate) fn gathered(&self, ids: &[u32]) -> Self {
        let ids = || ids.iter().map(|id| *id as usize);
        let row = 2 * self.rank;
        Self {
            strengths: self.strengths,
            layers: self.layers.clone(),
            width: self.width,
            rank: self.rank,
            projection: Vec::new(),
            bias: self.bias.clone(),
            keys: ids()
                .flat_map(|id| &self.keys[id * row..][..row])
                .copied()
                .collect(),
            offsets: ids().map(|id| self.offsets[id]).collect(),
            prompts: ids().map(|id| self.prompts[id]).collect(),
            of: ids().map(|id| self.of[id]).collect(),
            words: Arc::clone(&self.words),
        }
    }
}

/// A word of learned prompts.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct KnownWord {
    hash: u32,
    /// The index of its first entry.
    start: u32,
}

/// A domain that has a word.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct DomainCount {
    domain: u32,
    /// ln((prompts + SMOOTHING) / SMOOTHING)
    more: f32,
}

/// Naive Bayes over domains by the words of learned prompts.
#[derive(Debug)]
pub(crate) struct Bayes {
    /// By hash, ascending, and at last one of no prompt, where the entries of the last word end.
    words: HugeSlice<KnownWord>,
    /// For each value of a hash's upper bits, about as many as there are words, the place of the
    /// first word from it on; and at last the number of words.
    buckets: HugeSlice<u32>,
    /// Those of each word, one behind the other.
    entries: HugeSlice<DomainCount>,
    /// ln of the domain's share of prompts, [N].
    prior: Vec<f64>,
    /// ln(SMOOTHING / (word counts of the domain + SMOOTHING words)), [N].
    missing: Vec<f64>,
}

impl Bayes {
    /// `prompts`: of each domain, [N]; `counts`: word, domain and number of prompts, by word.
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    pub(crate) fn new(prompts: &[u32], counts: impl Iterator<Item = (u32, u32, u32)>) -> Self {
        let all: f64 = prompts.iter().map(|n| f64::from(*n)).sum();
        let share = |n: &u32| ((f64::from(*n) + 0.5) / (all + 0.5 * prompts.len() as f64)).ln();
        let mut totals = vec![0.0; prompts.len()];
        let (mut words, mut entries): (Vec<KnownWord>, Vec<DomainCount>) = Default::default();
        for (hash, domain, count) in counts {
            if words.last().map(|word| word.hash) != Some(hash) {
                let start = to_u32(entries.len());
                words.push(KnownWord { hash, start });
            }
            totals[domain as usize] += f64::from(count);
            let more = ((f64::from(count) + SMOOTHING) / SMOOTHING).ln() as f32;
            entries.push(DomainCount { domain, more });
        }
        let bits = bucket_bits(words.len());
        let mut buckets = vec![0; (1 << bits) + 1];
        for word in &words {
            buckets[bucket(word.hash, bits) + 1] += 1;
        }
        for place in 1..buckets.len() {
            buckets[place] += buckets[place - 1];
        }
        let different = SMOOTHING * words.len() as f64;
        words.push(KnownWord {
            hash: u32::MAX,
            start: to_u32(entries.len()),
        });
        let missing = |total: f64| (SMOOTHING / (total + different).max(SMOOTHING)).ln();
        Self {
            words: HugeSlice::copy_of(&words),
            buckets: HugeSlice::copy_of(&buckets),
            entries: HugeSlice::copy_of(&entries),
            prior: prompts.iter().map(share).collect(),
            missing: totals.into_iter().map(missing).collect(),
        }
    }

    /// N
    pub(crate) fn domains(&self) -> usize {
        self.prior.len()
    }

    /// The bucket of a word of this hash, and where the next begins.
    fn bucket(&self, hash: u32) -> &[u32] {
        let bucket = bucket(hash, bucket_bits(self.words.len() - 1));
        &self.buckets[bucket..bucket + 2]
    }

    /// The words of a bucket, of which there is about one since hashes are even, and the next word.
    fn words(&self, bucket: &[u32]) -> &[KnownWord] {
        &self.words[bucket[0] as usize..=bucket[1] as usize]
    }

    /// The entries of the word of this hash, which is of the bucket of these `words`.
    fn entries(&self, hash: u32, words: &[KnownWord]) -> Option<&[DomainCount]> {
        let mut pairs = words.windows(2);
        let pair = pairs.find(|pair| pair[0].hash == hash)?;
        Some(&self.entries[pair[0].start as usize..pair[1].start as usize])
    }

    /// The entries of each word of these hashes that a learned prompt has.
    ///
    /// A word takes three reads of memory that is in no cache, one after the other: each is asked
    /// for for all words before the first is waited for.
    fn find(&self, hashes: &[u32]) -> Vec<&[DomainCount]> {
        for hash in hashes {
            prefetch(self.bucket(*hash));
        }
        let buckets = hashes.iter().map(|hash| self.bucket(*hash));
        let words: Vec<&[KnownWord]> = buckets.map(|bucket| self.words(bucket)).collect();
        for words in &words {
            prefetch(words);
        }
        let found = hashes.iter().zip(words);
        let found: Vec<&[DomainCount]> = found
            .filter_map(|(hash, words)| self.entries(*hash, words))
            .collect();
        for entries in &found {
            // The CPU follows a list by itself.
            prefetch(&entries[..entries.len().min(16)]);
        }
        found
    }

    /// ln P(d | words) of each domain, [N], shifted so that the largest is 0. Words that no learned
    /// prompt has are ignored; with the number of the others.
    pub(crate) fn scores(&self, words: &[u32]) -> (Vec<f64>, f64) {
        let mut scores = self.prior.clone();
        let found = self.find(words);
        for entry in found.iter().copied().flatten() {
            scores[entry.domain as usize] += f64::from(entry.more);
        }
        let known = found.len() as f64;
        for (score, missing) in scores.iter_mut().zip(&self.missing) {
            *score += known * missing;
        }
        let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores.iter_mut().for_each(|score| *score -= best);
        (scores, known)
    }
}

/// The `bits` upper bits of a hash.
fn bucket(hash: u32, bits: u32) -> usize {
    hash.checked_shr(u32::BITS - bits).unwrap_or(0) as usize
}

/// Upper bits of a hash that give about one bucket for each of `words`.
fn bucket_bits(words: usize) -> u32 {
    (usize::BITS - words.leading_zeros()).min(24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_found_and_no_other() {
        let noise = |n: u32| n.wrapping_mul(2_654_435_761);
        for count in [0u32, 1, 2, 3, 100, 1000] {
            let ends = [0, u32::MAX].into_iter().take(count as usize);
            let mut words: Vec<u32> = (2..count).map(noise).chain(ends).collect();
            words.sort_unstable();
            words.dedup();
            // Each word is of a domain of its own.
            let counts = words
                .iter()
                .zip(0..)
                .map(|(word, domain)| (*word, domain, 1));
            let bayes = Bayes::new(&vec![1; words.len()], counts);
            let found = |word| {
                bayes
                    .find(&[word])
                    .first()
                    .map(|found| found[0].domain as usize)
            };
            for word in &words {
                assert_eq!(
                    found(*word),
                    words.binary_search(word).ok(),
                    "{count} words"
                );
            }
            for word in (count..count + 2000).map(noise).chain([1, u32::MAX - 1]) {
                assert_eq!(found(word), words.binary_search(&word).ok());
            }
        }
    }

    /// By hand: three prompts of domain 0, one of domain 1, none of domain 2.
    #[test]
    fn words_make_their_domains_likely() {
        let counts = [(3, 0, 2), (7, 0, 1), (7, 1, 1)];
        let bayes = Bayes::new(&[3, 1, 0], counts.into_iter());
        let (found, known) = bayes.scores(&[3, 5, 7]);
        assert_eq!(known, 2.0);
        // Two of the words are known; 3 counts in domain 0, 1 in domain 1, of 2 words.
        let p = |share: f64, counts: [f64; 2], total: f64| {
            let words = counts.map(|n| ((n + SMOOTHING) / (total + 2.0 * SMOOTHING)).ln());
            ((share + 0.5) / 5.5).ln() + words.iter().sum::<f64>()
        };
        let want = [
            p(3.0, [2.0, 1.0], 3.0),
            p(1.0, [0.0, 1.0], 1.0),
            p(0.0, [0.0; 2], 0.0),
        ];
        for d in 0..3 {
            let want = want[d] - want[0];
            assert!((found[d] - want).abs() < 1e-6, "{found:?}, {want}");
        }
        // Unknown words alone leave the shares.
        let (shares, known) = bayes.scores(&[5]);
        assert_eq!(known, 0.0);
        assert!(
            (shares[1] - (1.5f64 / 3.5).ln()).abs() < 1e-12,
            "{shares:?}"
        );
    }

    #[test]
    fn without_prompts_all_domains_are_alike() {
        let bayes = Bayes::new(&[0, 0], std::iter::empty());
        assert_eq!(bayes.scores(&[1, 2, 3]).0, [0.0, 0.0]);
    }

    /// By hand: models of 3 prompts and of none in domain 0, of 1 in domain 1; none in domain 2.
    #[test]
    fn centroids_are_weighted_by_prompts() {
        let half = |values: &[f32]| -> Vec<u8> {
            let halves = values.iter().map(|x| half::f16::from_f32(*x).to_le_bytes());
            halves.flatten().collect()
        };
        let recall = Recall {
            strengths: Strengths::default(),
            layers: vec![0],
            width: 2,
            rank: 2,
            projection: Vec::new(),
            bias: vec![0.0; 2],
            keys: half(&[1.0, 0.0, -6.0, 4.0, 2.0, 2.0]),
            offsets: vec![0.0; 3],
            prompts: vec![3, 0, 1],
            of: vec![0, 0, 1],
            words: Arc::new(Bayes::new(&[3, 1, 0], std::iter::empty())),
        };
        assert_eq!(recall.centroids(), [0.125, 0.5, 2.0, 2.0, 0.0, 0.0]);
    }
}
