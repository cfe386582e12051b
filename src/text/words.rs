//! Hashes of a prompt's words and pairs of words: the features of naive Bayes over domains.
//!
//! A word is a token that begins one, with the tokens that continue it. So case and accents are
//! those that the tokenizer sees, a punctuation mark is a word, and text that was cut off does not
//! count.

use crate::num::mix;

/// Separates the two words of a pair while they are hashed; no token has this id.
const BETWEEN: u32 = u32::MAX;

/// Hashes of the words among `ids` and of each two that follow each other, each once, ascending;
/// `continues`: the token goes on with the word before it.
pub(crate) fn words(ids: &[u32], continues: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut all = Vec::with_capacity(2 * ids.len());
    let mut before: Option<u64> = None;
    for word in ids.chunk_by(|_, next| continues(*next)) {
        let state = fnv(START, word);
        all.push(finished(state));
        all.extend(before.map(|before| finished(fnv(fnv(before, &[BETWEEN]), word))));
        before = Some(state);
    }
    all.sort_unstable();
    all.dedup();
    all
}

const START: u64 = 0xcbf2_9ce4_8422_2325;

/// 64-bit FNV-1a over ids, going on from `state`.
fn fnv(state: u64, ids: &[u32]) -> u64 {
    let add = |h: u64, id: &u32| (h ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3);
    ids.iter().fold(state, add)
}

/// The upper half of `state` behind the finisher of splitmix64. It is the same everywhere and keeps
/// nothing secret: who has a hash can try words.
fn finished(state: u64) -> u32 {
    (mix(state) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(ids: &[u32]) -> u32 {
        finished(fnv(START, ids))
    }

    /// Odd ids continue a word.
    fn found(ids: &[u32]) -> Vec<u32> {
        words(ids, |id| id % 2 == 1)
    }

    #[test]
    fn words_and_pairs_count_once() {
        // Words 2, 4, 2, 4; pairs (2, 4) and (4, 2).
        assert_eq!(found(&[2, 4, 2, 4]).len(), 4);
        assert!(found(&[2, 4, 2, 4]).is_sorted_by(|a, b| a < b));
        assert_ne!(found(&[2, 4]), found(&[4, 2]));
        assert!(found(&[]).is_empty());
    }

    #[test]
    fn tokens_that_continue_a_word_are_part_of_it() {
        assert_eq!(found(&[2, 3, 5]), [hash(&[2, 3, 5])]);
        let three = found(&[2, 3, 4]);
        assert!(three.contains(&hash(&[2, 3])) && three.contains(&hash(&[2, 3, BETWEEN, 4])));
        assert!(!three.contains(&hash(&[2])) && !three.contains(&hash(&[3])));
        // A text may begin in the middle of a word.
        assert_eq!(found(&[3, 5]), [hash(&[3, 5])]);
    }
}
