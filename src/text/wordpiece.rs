//! BERT's tokenizer for the text that most prompts are: ASCII, accented Latin letters, typographic
//! punctuation.
//!
//! The `tokenizers` crate spends 60 to 120 microseconds on a prompt, of which most goes into
//! keeping track of offsets that nobody asks for. [`WordPiece`] makes one pass over the bytes. It
//! takes only what it is sure of: every character must be in its table, which the crate itself has
//! filled when the tokenizer was opened, and the text must not contain a special token. All else
//! goes to the crate.

use std::collections::HashMap;
use std::ops::Range;

use tokenizers::{
    ModelWrapper, NormalizedString, Normalizer as _, PreTokenizedString, PreTokenizer as _,
};

use crate::num::to_u32;
use crate::text::tokenizer::TokenizerFile;

/// Characters that the table covers: ASCII, Latin-1 and Latin Extended-A; dashes, quotes, bullet,
/// ellipsis.
const COVERED: [Range<u32>; 2] = [0..0x180, 0x2010..0x2028];

/// Every special token begins with it; text with it goes to the crate.
const SPECIAL: char = '[';

/// What becomes of a character.
#[derive(Clone, Debug, PartialEq)]
enum Becomes {
    /// It ends a word: white space.
    Space,
    /// A word by itself.
    Punctuation(Box<str>),
    /// A part of a word; empty where it is dropped.
    Part(Box<str>),
}

pub(crate) struct WordPiece {
    /// By place in [`COVERED`].
    table: Vec<Becomes>,
    pieces: Pieces,
    unknown: u32,
    /// A word of more characters is unknown.
    longest: usize,
    /// Ids before and after the text's.
    around: [u32; 2],
}

/// The tokens of a text.
#[derive(Debug, PartialEq)]
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// Without the special ones.
    pub(crate) own: Vec<u32>,
    /// Tokens past the limit were cut off on the right.
    pub(crate) truncated: bool,
}

impl WordPiece {
    /// The fast way of `inner`, whose `tokenizer.json` is `file` and whose limit is `most` tokens.
    /// `None`: it is another kind of tokenizer, or the two give different ids.
    pub(crate) fn of(
        inner: &tokenizers::Tokenizer,
        vocabulary: &HashMap<String, u32>,
        file: &TokenizerFile,
        most: usize,
    ) -> Option<Self> {
        let bert = file.normalizer["type"] == "BertNormalizer"
            && file.pre_tokenizer["type"] == "BertPreTokenizer";
        let ModelWrapper::WordPiece(model) = inner.get_model() else {
            return None;
        };
        let special = |token: &tokenizers::AddedToken| token.content.contains(SPECIAL);
        if !bert
            || model.continuing_subword_prefix.is_empty()
            || !inner.get_added_tokens_decoder().values().all(special)
        {
            return None;
        }
        let probe = inner.encode_fast("a", true).ok()?;
        let (ids, mask) = (probe.get_ids(), probe.get_special_tokens_mask());
        let (&[first, _, last], &[1, 0, 1]) = (ids, mask) else {
            return None;
        };
        let prefix = &model.continuing_subword_prefix;
        let fast = Self {
            table: COVERED
                .into_iter()
                .flatten()
                .map(|c| becomes(inner, c))
                .collect::<Option<_>>()?,
            pieces: Pieces::of(vocabulary, prefix),
            unknown: inner.token_to_id(&model.unk_token)?,
            longest: model.max_input_chars_per_word,
            around: [first, last],
        };
        let agrees = PROBES.iter().all(|text| {
            let other = inner.encode_fast(*text, true).map(|e| e.get_ids().to_vec());
            fast.encode(text, most).map(|own| own.ids) == other.ok()
        });
        if !agrees {
            log::info!("the tokenizer is read by the tokenizers crate alone: the fast way differs");
        }
        agrees.then_some(fast)
    }

    /// The first `most` tokens of `text`, special ones included. `None`: it is for the crate.
    pub(crate) fn encode(&self, text: &str, most: usize) -> Option<Encoded> {
        let room = most.saturating_sub(self.around.len());
        let mut ids = Vec::with_capacity(most.min(text.len() / 2 + 3));
        ids.push(self.around[0]);
        let (mut word, mut characters) = (Vec::with_capacity(32), 0);
        let end = |word: &mut Vec<u8>, characters: &mut usize, ids: &mut Vec<u32>| {
            if !word.is_empty() {
                self.split(word, *characters, ids);
            }
            word.clear();
            *characters = 0;
        };
        for c in text.chars() {
            match self.look_up(c)? {
                Becomes::Part(part) => {
                    word.extend_from_slice(part.as_bytes());
                    characters += part.chars().count();
                    continue;
                }
                Becomes::Space => end(&mut word, &mut characters, &mut ids),
                Becomes::Punctuation(mark) => {
                    end(&mut word, &mut characters, &mut ids);
                    word.extend_from_slice(mark.as_bytes());
                    characters = mark.chars().count();
                    end(&mut word, &mut characters, &mut ids);
                }
            }
        }
        end(&mut word, &mut characters, &mut ids);
        let truncated = ids.len() > room + 1;
        ids.truncate(room + 1);
        let own = ids[1..].to_vec();
        ids.push(self.around[1]);
        Some(Encoded {
            ids,
            own,
            truncated,
        })
    }

    fn look_up(&self, c: char) -> Option<&Becomes> {
        let code = u32::from(c);
        let [ascii_and_latin, punctuation] = COVERED;
        let place = if code < ascii_and_latin.end {
            code
        } else if punctuation.contains(&code) {
            code - punctuation.start + ascii_and_latin.end
        } else {
            return None;
        };
        (c != SPECIAL).then(|| &self.table[place as usize])
    }

    /// Appends the pieces of `word`, the longest first; one unknown token where a rest has none.
    fn split(&self, word: &[u8], characters: usize, ids: &mut Vec<u32>) {
        let before = ids.len();
        let mut rest = word;
        if characters > self.longest {
            ids.push(self.unknown);
            return;
        }
        while !rest.is_empty() {
            let Some((id, length)) = self.pieces.longest(rest, rest.len() < word.len()) else {
                ids.truncate(before);
                ids.push(self.unknown);
                return;
            };
            ids.push(id);
            rest = &rest[length..];
        }
    }
}

/// Strings that both ways must agree on when a tokenizer is opened.
const PROBES: [&str; 8] = [
    "Summarise this contract, please.",
    "TRANSLATE \"Guten Tag\" to French; don't add notes!",
    "caf\u{e9} na\u{ef}ve \u{c5}ngstr\u{f6}m \u{df} \u{e6} \u{fe} \u{111} \u{142} \u{131} \u{130}",
    "\u{201c}quoted\u{201d} \u{2014} it\u{2019}s\u{2026} 50\u{a0}\u{20}\u{a3}\u{b0}\u{b7}\u{ab}x\u{bb}",
    "tabs\tand\nlines\r\nand \u{1} controls\u{b}joined \u{7f}",
    "https://example.org/a_b?c=d&e=%20 x@y.z {}()<>|\\^~`#$*+=/",
    "antidisestablishmentarianism 3.14159 1e-10 0xDEADBEEF",
    "",
];

/// What the crate makes of the character `code` between two letters.
fn becomes(inner: &tokenizers::Tokenizer, code: u32) -> Option<Becomes> {
    let c = char::from_u32(code)?;
    let (before, after) = ("a", "b");
    let mut text = NormalizedString::from(format!("{before}{c}{after}"));
    inner.get_normalizer()?.normalize(&mut text).ok()?;
    let mut split = PreTokenizedString::from(text);
    inner.get_pre_tokenizer()?.pre_tokenize(&mut split).ok()?;
    let parts = split.get_splits(
        tokenizers::OffsetReferential::Normalized,
        tokenizers::OffsetType::Byte,
    );
    let parts: Vec<&str> = parts.iter().map(|(part, ..)| *part).collect();
    match parts[..] {
        [one] => {
            let middle = one.strip_prefix(before)?.strip_suffix(after)?;
            Some(Becomes::Part(middle.into()))
        }
        [first, last] if (first, last) == (before, after) => Some(Becomes::Space),
        [first, mark, last] if (first, last) == (before, after) => {
            Some(Becomes::Punctuation(mark.into()))
        }
        _ => None,
    }
}

/// A vocabulary by the bytes of its pieces: one table with open addressing.
struct Pieces {
    /// A place in `ends` and the ids, or [`Pieces::EMPTY`]; a power of two.
    slots: Vec<u32>,
    /// Bytes of all pieces, one behind the other, without the mark of those that continue a word.
    bytes: Vec<u8>,
    all: Vec<Piece>,
    /// Bytes of the longest.
    most: usize,
}

struct Piece {
    start: u32,
    length: u32,
    id: u32,
    continues: bool,
}

impl Pieces {
    const EMPTY: u32 = u32::MAX;

    fn of(vocabulary: &HashMap<String, u32>, prefix: &str) -> Self {
        let mut pieces = Self {
            slots: vec![Self::EMPTY; (2 * vocabulary.len()).next_power_of_two().max(2)],
            bytes: Vec::new(),
            all: Vec::with_capacity(vocabulary.len()),
            most: 0,
        };
        for (token, id) in vocabulary {
            // The crate looks for `##x` where a word goes on, and for the whole token where one begins:
            // a word that begins with the prefix itself is punctuation and never gets there.
            match token.strip_prefix(prefix).filter(|rest| !rest.is_empty()) {
                Some(rest) => pieces.insert(rest.as_bytes(), true, *id),
                None => pieces.insert(token.as_bytes(), false, *id),
            }
        }
        pieces
    }

    fn insert(&mut self, piece: &[u8], continues: bool, id: u32) {
        let mut slot = self.slot(hash(piece), continues);
        while self.slots[slot] != Self::EMPTY {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = to_u32(self.all.len());
        self.all.push(Piece {
            start: to_u32(self.bytes.len()),
            length: to_u32(piece.len()),
            id,
            continues,
        });
        self.bytes.extend_from_slice(piece);
        self.most = self.most.max(piece.len());
    }

    fn slot(&self, hash: u32, continues: bool) -> usize {
        let mixed = (hash ^ u32::from(continues)).wrapping_mul(0x9e37_79b1);
        (mixed >> 7) as usize & (self.slots.len() - 1)
    }

    /// The id and the length of the longest piece that `text` begins with.
    fn longest(&self, text: &[u8], continues: bool) -> Option<(u32, usize)> {
        let most = self.most.min(text.len());
        let mut hashes = [0; 64];
        let mut state = START;
        if most > hashes.len() {
            return (1..=most).rev().find_map(|length| {
                let id = self.find(&text[..length], hash(&text[..length]), continues)?;
                Some((id, length))
            });
        }
        for (place, byte) in text[..most].iter().enumerate() {
            state = step(state, *byte);
            hashes[place] = state;
        }
        (1..=most).rev().find_map(|length| {
            let id = self.find(&text[..length], hashes[length - 1], continues)?;
            Some((id, length))
        })
    }

    fn find(&self, piece: &[u8], hash: u32, continues: bool) -> Option<u32> {
        let mut slot = self.slot(hash, continues);
        loop {
            let at = self.slots[slot];
            if at == Self::EMPTY {
                return None;
            }
            let found = &self.all[at as usize];
            let start = found.start as usize;
            if found.continues == continues
                && &self.bytes[start..start + found.length as usize] == piece
            {
                return Some(found.id);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }
}

/// 32-bit FNV-1a.
const START: u32 = 0x811c_9dc5;

fn step(state: u32, byte: u8) -> u32 {
    (state ^ u32::from(byte)).wrapping_mul(0x0100_0193)
}

fn hash(piece: &[u8]) -> u32 {
    piece.iter().fold(START, |state, byte| step(state, *byte))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::sync::LazyLock;

    const BUNDLED: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/weights/all-MiniLM-L6-v2/tokenizer.json"
    );

    /// The bundled file with a change.
    fn opened(change: impl FnOnce(&mut Value)) -> (tokenizers::Tokenizer, Option<WordPiece>) {
        let mut file: Value = serde_json::from_slice(&std::fs::read(BUNDLED).unwrap()).unwrap();
        file["truncation"] = Value::Null;
        file["padding"] = Value::Null;
        change(&mut file);
        let inner = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
        let file = TokenizerFile {
            normalizer: file["normalizer"].take(),
            pre_tokenizer: file["pre_tokenizer"].take(),
        };
        let fast = WordPiece::of(&inner, &inner.get_vocab(true), &file, 512);
        (inner, fast)
    }

    static BOTH: LazyLock<(tokenizers::Tokenizer, WordPiece)> = LazyLock::new(|| {
        let (inner, fast) = opened(|_| ());
        (inner, fast.unwrap())
    });

    fn ids_of_the_crate(text: &str) -> Vec<u32> {
        BOTH.0.encode_fast(text, true).unwrap().get_ids().to_vec()
    }

    #[test]
    fn every_covered_character_is_as_in_the_crate() {
        for code in COVERED.into_iter().flatten() {
            let c = char::from_u32(code).unwrap();
            for text in [
                format!("{c}"),
                format!("x{c}{c}Yz {c}w"),
                format!("{c} {c}"),
            ] {
                match BOTH.1.encode(&text, 512) {
                    Some(own) => assert_eq!(own.ids, ids_of_the_crate(&text), "{text:?}"),
                    None => assert_eq!(c, SPECIAL),
                }
            }
        }
    }

    #[test]
    fn what_is_not_covered_is_for_the_crate() {
        for text in [
            "\u{6f22}",
            "a\u{301}",
            "\u{1f426}",
            "[MASK]",
            "x [SEP] y",
            "\u{3b1}\u{fffd}",
        ] {
            assert_eq!(BOTH.1.encode(text, 512), None, "{text:?}");
        }
    }

    #[test]
    fn words_of_a_hundred_letters_are_known_and_longer_ones_are_not() {
        for letters in [99, 100, 101, 300] {
            for letter in ["a", "\u{e9}", "\u{df}"] {
                let text = format!("x {} y", letter.repeat(letters));
                assert_eq!(
                    BOTH.1.encode(&text, 512).unwrap().ids,
                    ids_of_the_crate(&text)
                );
            }
        }
    }

    #[test]
    fn the_limit_cuts_on_the_right() {
        let text = "hello ".repeat(10);
        let whole = BOTH.1.encode(&text, 12).unwrap();
        assert_eq!((whole.ids.len(), whole.truncated), (12, false));
        let cut = BOTH.1.encode(&text, 11).unwrap();
        assert_eq!((cut.ids.len(), cut.truncated), (11, true));
        assert_eq!((cut.ids[0], cut.ids[10]), (101, 102));
        assert_eq!(cut.ids[..10], whole.ids[..10]);
    }

    #[test]
    fn other_tokenizers_are_left_to_the_crate() {
        let lower = |file: &mut Value| file["normalizer"]["type"] = "Lowercase".into();
        assert!(opened(lower).1.is_none());
        let token = |file: &mut Value| file["added_tokens"][0]["content"] = "PAD".into();
        assert!(opened(token).1.is_none());
        // With case kept it is another table, and still right.
        let (inner, cased) = opened(|file| {
            file["normalizer"]["lowercase"] = false.into();
            file["normalizer"]["strip_accents"] = false.into();
        });
        let text = "Caf\u{e9} AND tea";
        let want = inner.encode_fast(text, true).unwrap().get_ids().to_vec();
        assert_eq!(cased.unwrap().encode(text, 64).unwrap().ids, want);
        assert_ne!(BOTH.1.encode(text, 64).unwrap().ids, want);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn ids_are_those_of_the_crate(text in "[ -~\t\r\n\u{0}-\u{1f}\u{7f}-\u{17f}\u{2010}-\u{2027}]{0,80}") {
            if let Some(own) = BOTH.1.encode(&text, 1_000) {
                prop_assert_eq!(own.ids, ids_of_the_crate(&text));
            } else {
                prop_assert!(text.contains(SPECIAL));
            }
        }

        #[test]
        fn words_are_split_as_in_the_crate(
            words in prop::collection::vec("[a-zA-Z]{1,24}|[0-9.,]{1,9}|[a-z']{2,9}|\u{201c}[A-Z][a-z\u{e0}-\u{ff}]{2,9}\u{201d}", 1..30),
        ) {
            let text = words.join(" ");
            prop_assert_eq!(BOTH.1.encode(&text, 1_000).unwrap().ids, ids_of_the_crate(&text));
        }
    }
}
