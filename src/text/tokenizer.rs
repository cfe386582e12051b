//! The checkpoint's own tokenizer: special tokens and truncation, single-threaded.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value;
use tokenizers::{ModelWrapper, PostProcessor as _, TruncationParams};

use crate::error::{ErrorKind, Result, bail, caught, error};
use crate::text::wordpiece::{Encoded, WordPiece};
use crate::text::words::words;

/// Bytes that a token takes at most in ordinary text; only a first guess, see
/// [`Tokenizer::encode`].
const BYTES_PER_TOKEN: usize = 16;

/// Bytes that are read of a text for each token of the limit.
const READ_PER_TOKEN: usize = 512;

/// Bytes that are read of a text for limits of many tokens.
const READ_AT_MOST: usize = 1 << 20;

/// Most times that a normalizer may make a text longer.
const GROWTH: f64 = 256.0;

/// Tokenized once when a tokenizer is built: some panic only then.
const PROBE: &str = "Hello, w\u{f6}rld! \u{6f22} \u{1f426}";

/// What of a `tokenizer.json` says which kind it is.
#[derive(serde::Deserialize)]
pub(crate) struct TokenizerFile {
    #[serde(default)]
    pub(crate) normalizer: Value,
    #[serde(default)]
    pub(crate) pre_tokenizer: Value,
}

pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same for most prompts, faster.
    fast: Option<WordPiece>,
    max_tokens: usize,
    vocabulary: usize,
    /// Special tokens that every prompt gets.
    added: usize,
    /// The token for text that is not in the vocabulary.
    unknown: Option<u32>,
    /// By id: the token goes on with the word before it.
    continues: Vec<bool>,
}

/// The tokens of one prompt, special ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    /// True when tokens past the limit were cut off on the right.
    pub(crate) truncated: bool,
    /// How many of the ids stand for text that the vocabulary does not have.
    pub(crate) unknown: usize,
    /// Hashes of its words and pairs of words ([`crate::text::words`]).
    pub(crate) words: Vec<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` for an encoder of `vocabulary` rows. Padding and truncation of the
    /// file are replaced by `max_tokens`.
    pub(crate) fn from_json(json: &[u8], max_tokens: usize, vocabulary: usize) -> Result<Self> {
        let file: TokenizerFile =
            serde_json::from_slice(json).map_err(|e| error!(Tokenizer, "not a tokenizer: {e}"))?;
        check_growth(&file.normalizer)?;
        let inner = caught("reading the tokenizer", || {
            tokenizers::Tokenizer::from_bytes(json)
                .map_err(|e| error!(Tokenizer, "not a tokenizer: {e}"))
        })?;
        let tokenizer = Self::limited(inner, &file, max_tokens, vocabulary)?;
        match tokenizer.encode_all(PROBE) {
            // The probe's words need not be known.
            Err(e) if e.kind() != ErrorKind::InvalidRequest => Err(e),
            _ => Ok(tokenizer),
        }
    }

    fn limited(
        mut inner: tokenizers::Tokenizer,
        file: &TokenizerFile,
        max_tokens: usize,
        vocabulary: usize,
    ) -> Result<Self> {
        let added = inner
            .get_post_processor()
            .map_or(0, |processor| processor.added_tokens(false));
        if max_tokens <= added {
            bail!(
                Tokenizer,
                "a limit of {max_tokens} tokens leaves no room beside {added} special ones"
            );
        }
        let truncation = TruncationParams {
            max_length: max_tokens,
            ..TruncationParams::default()
        };
        inner
            .with_padding(None)
            .with_truncation(Some(truncation))
            .map_err(|e| error!(Tokenizer, "cannot limit to {max_tokens} tokens: {e}"))?;
        let pieces = inner.get_vocab(true);
        let fast = caught("trying the tokenizer", || {
            Ok(WordPiece::of(&inner, &pieces, file, max_tokens))
        })?;
        let unknown = unknown_token(&inner);
        let continues = continues(&inner, &pieces, vocabulary);
        Ok(Self {
            inner,
            fast,
            max_tokens,
            vocabulary,
            added,
            unknown,
            continues,
        })
    }

    /// Most tokens of a prompt, special ones included.
    pub(crate) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Special tokens that every text gets.
    pub(crate) fn added(&self) -> usize {
        self.added
    }

    /// Bytes that are read of a text; the rest is cut.
    fn most_bytes(&self) -> usize {
        let read = (self.max_tokens * READ_PER_TOKEN).min(READ_AT_MOST);
        read.max(self.max_tokens * BYTES_PER_TOKEN)
    }

    /// The tokens of `prefix` and `text` after [`clean`]; a text without any is an error.
    ///
    /// Time and memory do not depend on what lies behind the tokens that are kept: at most
    /// [`READ_PER_TOKEN`] bytes for each token of the limit are read, 64 KiB for 128 tokens, and of
    /// these only as many as can matter. A beginning of the text that is over the limit by itself
    /// stands for the whole where it ends at a space before a letter or digit, and has the whole's
    /// tokens then; without such a place, where a shorter beginning has the same tokens.
    pub(crate) fn encode(&self, prefix: &str, text: &str) -> Result<Tokens> {
        let text = text.trim();
        if text.is_empty() {
            bail!(
                InvalidRequest,
                "the prompt is empty: expected text, found nothing but white space"
            );
        }
        let most = self.most_bytes();
        let read = match word_boundary(text, most) {
            Some(cut) => &text[..cut],
            None => beginning(text, most),
        };
        let cut = read.len() < text.len();
        let text = clean(read);
        let text = if prefix.is_empty() {
            text
        } else {
            Cow::Owned(format!("{prefix}{text}"))
        };
        let mut tokens = match self.encode_beginning(&text)? {
            Some(tokens) => tokens,
            None => self.encode_all(&text)?,
        };
        tokens.truncated |= cut;
        Ok(tokens)
    }

    /// The tokens of a beginning of `text` that gives the same tokens as the whole; `None` if the
    /// whole is needed.
    fn encode_beginning(&self, text: &str) -> Result<Option<Tokens>> {
        let mut limit = self.max_tokens * BYTES_PER_TOKEN;
        while limit + 1 < text.len() {
            let word = word_boundary(text, limit);
            let start = beginning(text, word.unwrap_or(limit));
            // What the tokenizer does not know at all may be followed by what it knows.
            let tokens = self.encode_some(start)?;
            if let Some(tokens) = tokens.filter(|tokens| tokens.truncated) {
                let shorter = beginning(start, start.len() / 4 * 3);
                if word.is_some() || self.encode_some(shorter)?.as_ref() == Some(&tokens) {
                    return Ok(Some(tokens));
                }
            }
            limit *= 4;
        }
        Ok(None)
    }

    fn encode_all(&self, text: &str) -> Result<Tokens> {
        match self.encode_some(text)? {
            Some(tokens) => Ok(tokens),
            None => bail!(
                InvalidRequest,
                "the prompt is empty: expected text, found nothing that the tokenizer knows"
            ),
        }
    }

    /// The tokens of `text`; `None` if it has only special ones.
    fn encode_some(&self, text: &str) -> Result<Option<Tokens>> {
        let fast = self.fast.as_ref();
        let encoded = match fast.and_then(|fast| fast.encode(text, self.max_tokens)) {
            Some(encoded) => encoded,
            None => self.encode_by_the_crate(text)?,
        };
        let Encoded {
            ids,
            own,
            truncated,
        } = encoded;
        if ids.len() <= self.added {
            return Ok(None);
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) {
            bail!(
                Mismatch,
                "the tokenizer gave id {id}, the encoder has {} rows: they do not belong together",
                self.vocabulary
            );
        }
        let unknown = ids.iter().filter(|id| Some(**id) == self.unknown).count();
        let continues = |id: u32| self.continues.get(id as usize) == Some(&true);
        Ok(Some(Tokens {
            words: words(&own, continues),
            ids,
            truncated,
            unknown,
        }))
    }

    fn encode_by_the_crate(&self, text: &str) -> Result<Encoded> {
        let encoding = caught("the tokenizer", || {
            self.inner
                .encode_fast(text, true)
                .map_err(|e| error!(Tokenizer, "cannot tokenize: {e}"))
        })?;
        let ids = encoding.get_ids();
        let marked = ids.iter().zip(encoding.get_special_tokens_mask());
        let own = marked.filter(|(_, special)| **special == 0);
        Ok(Encoded {
            own: own.map(|(id, _)| *id).collect(),
            ids: ids.to_vec(),
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }
}

/// The id of the token for text that is not in the vocabulary.
fn unknown_token(tokenizer: &tokenizers::Tokenizer) -> Option<u32> {
    let token = match tokenizer.get_model() {
        ModelWrapper::WordPiece(model) => model.unk_token.clone(),
        ModelWrapper::WordLevel(model) => model.unk_token.clone(),
        ModelWrapper::BPE(model) => model.unk_token.clone()?,
        // Its unknown token is private, and `<unk>` in every checkpoint that this crate reads.
        ModelWrapper::Unigram(_) => "<unk>".to_owned(),
    };
    tokenizer.token_to_id(&token)
}

/// By id, whether a token goes on with the word before it: WordPiece marks those that do, others
/// those that begin a word.
fn continues(
    tokenizer: &tokenizers::Tokenizer,
    pieces: &HashMap<String, u32>,
    vocabulary: usize,
) -> Vec<bool> {
    let piece = match tokenizer.get_model() {
        ModelWrapper::WordPiece(model) => Some(model.continuing_subword_prefix.as_str()),
        ModelWrapper::WordLevel(_) => Some(""),
        _ => None,
    };
    let mut all = vec![false; vocabulary];
    for (token, id) in pieces {
        if let Some(continues) = all.get_mut(*id as usize) {
            *continues = match piece {
                Some(prefix) => !prefix.is_empty() && token.starts_with(prefix),
                None => !token.starts_with(['\u{2581}', '\u{120}']),
            };
        }
    }
    all
}

/// Refuses a `tokenizer.json` whose normalizers, one after the other, make text longer without
/// bounds: each `Replace` of one letter by ten makes ten times as much.
fn check_growth(normalizer: &Value) -> Result<()> {
    let growth = growth_of(normalizer);
    if growth > GROWTH {
        bail!(
            Tokenizer,
            "normalizer: expected one that makes a text at most {GROWTH} times as long, found {growth:.0} times"
        );
    }
    Ok(())
}

/// How many times as long `normalizer` may make a text.
fn growth_of(normalizer: &Value) -> f64 {
    let bytes = |value: &Value| value.as_str().map_or(0, str::len) as f64;
    let list = normalizer["normalizers"].as_array();
    let own = match normalizer["type"].as_str() {
        // A pattern of unknown length may match a single byte.
        Some("Replace") => {
            let pattern = bytes(&normalizer["pattern"]["String"]).max(1.0);
            (bytes(&normalizer["content"]) / pattern).max(1.0)
        }
        _ => 1.0,
    };
    list.into_iter()
        .flatten()
        .map(growth_of)
        .fold(own, |a, b| a * b)
}

/// CRLF becomes LF and both ends are trimmed, as in training.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains("\r\n") {
        Cow::Owned(text.replace("\r\n", "\n").trim().to_owned())
    } else {
        Cow::Borrowed(text.trim())
    }
}

/// At most `bytes` of `text`, whole characters.
fn beginning(text: &str, bytes: usize) -> &str {
    let mut cut = bytes.min(text.len());
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    &text[..cut]
}

/// The last place up to `limit` where a space is followed by an ASCII letter or digit.
fn word_boundary(text: &str, limit: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes.len() <= limit + 1 {
        return None;
    }
    let is_boundary = |i: &usize| bytes[*i] == b' ' && bytes[i + 1].is_ascii_alphanumeric();
    (limit / 2..=limit).rev().find(is_boundary)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    const BUNDLED: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/weights/all-MiniLM-L6-v2/tokenizer.json"
    );

    fn bundled(max_tokens: usize) -> Tokenizer {
        Tokenizer::from_json(&std::fs::read(BUNDLED).unwrap(), max_tokens, 30522).unwrap()
    }

    #[test]
    fn special_tokens_and_truncation() {
        let tokenizer = bundled(128);
        let short = tokenizer.encode("", "  hello\r\nworld ").unwrap();
        assert_eq!(
            short,
            Tokens {
                ids: vec![101, 7592, 2088, 102],
                truncated: false,
                unknown: 0,
                words: words(&[7592, 2088], |_| false),
            }
        );
        let one = tokenizer.encode("", "tokenizers").unwrap();
        assert!(one.ids.len() > 3, "in pieces: {:?}", one.ids);
        assert_eq!(one.words.len(), 1);
        let long = tokenizer.encode("", &"hello ".repeat(5000)).unwrap();
        assert_eq!((long.ids.len(), long.truncated), (128, true));
        assert_eq!((long.ids[0], long.ids[127]), (101, 102));
        let full = tokenizer.encode("", &"hello ".repeat(126)).unwrap();
        assert_eq!((full.ids.len(), full.truncated), (128, false));
    }

    #[test]
    fn empty_prompts_are_errors() {
        let tokenizer = bundled(128);
        for text in ["", " \t\r\n ", "\u{0}\u{1}", "\u{200b}\u{200b}"] {
            let error = tokenizer
                .encode("", text)
                .err()
                .unwrap_or_else(|| panic!("{text:?} has tokens"));
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(
            Tokenizer::from_json(b"{}", 128, 9).err().unwrap().kind(),
            ErrorKind::Tokenizer
        );
        let json = std::fs::read(BUNDLED).unwrap();
        let error = Tokenizer::from_json(&json, 2, 30522).err().unwrap();
        assert!(error.to_string().contains("special"), "{error}");
        assert_eq!(
            Tokenizer::from_json(&json, 128, 2000).err().unwrap().kind(),
            ErrorKind::Mismatch
        );
    }

    /// The bundled tokenizer with another `part`.
    fn changed(part: &str, change: impl FnOnce(&mut Value)) -> Result<Tokenizer> {
        let mut file: Value = serde_json::from_slice(&std::fs::read(BUNDLED).unwrap()).unwrap();
        change(&mut file[part]);
        Tokenizer::from_json(file.to_string().as_bytes(), 128, 30522)
    }

    fn normalized(by: Value) -> Result<Tokenizer> {
        changed("normalizer", |normalizer| *normalizer = by)
    }

    #[test]
    fn a_normalizer_that_blows_text_up_is_refused() {
        let replace = |content: &str| serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
        let sequence =
            |steps: Vec<Value>| serde_json::json!({"type": "Sequence", "normalizers": steps});
        normalized(sequence(vec![replace("aa"); 8])).unwrap();
        let error = normalized(sequence(vec![replace("aaaaaaaaaa"); 8]))
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::Tokenizer);
        assert!(error.to_string().contains("at most 256 times"), "{error}");
    }

    #[test]
    fn a_panic_of_the_tokenizer_is_an_error() {
        // While it is read.
        let bad = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": 5});
        let error = normalized(bad).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Panic, "{error}");
        // While it tokenizes: its template has a second text, of which there is none.
        let error = changed("post_processor", |template| {
            template["single"][1] = serde_json::json!({"Sequence": {"id": "B", "type_id": 0}});
        });
        assert_eq!(error.err().unwrap().kind(), ErrorKind::Panic);
    }

    /// What a prompt of many `letters` becomes, and of what stands for it cut by hand.
    fn long(letters: &str) -> (Tokens, Tokens) {
        let tokenizer = bundled(128);
        let by_hand = letters.repeat(6_000 / letters.len());
        let text = letters.repeat((8 << 20) / letters.len());
        let found = tokenizer.encode("", &text).unwrap();
        (found, tokenizer.encode_all(by_hand.trim()).unwrap())
    }

    #[test]
    fn what_lies_behind_the_kept_tokens_is_not_read() {
        for letters in ["!", "! ", "漢", "é ", "some words ", "\u{1f426} ", "a, "] {
            let (found, by_hand) = long(letters);
            assert_eq!(found, by_hand, "{letters:?}");
            assert!(found.truncated);
        }
        // A single word, unknown for its length: nothing but the mark that it was cut differs.
        for letters in ["a", "é", "\u{1f426}"] {
            let (found, by_hand) = long(letters);
            assert_eq!(
                (&found.ids, found.unknown),
                (&by_hand.ids, 1),
                "{letters:?}"
            );
            assert!(found.truncated && !by_hand.truncated);
        }
    }

    #[test]
    fn white_space_at_the_end_is_not_cut_off() {
        let text = format!("hello{}", " ".repeat(1 << 20));
        let tokens = bundled(128).encode("", &text).unwrap();
        assert_eq!((tokens.ids.len(), tokens.truncated), (3, false));
    }

    #[test]
    fn unknown_tokens_are_counted() {
        let tokenizer = bundled(128);
        for (text, unknown, tokens) in [
            ("hello world", 0, 4),
            ("\u{1f426}\u{1f3b5}?", 1, 4),
            ("x\u{1f426} \u{1f426} hello", 2, 5),
        ] {
            let found = tokenizer.encode("", text).unwrap();
            assert_eq!(
                (found.unknown, found.ids.len()),
                (unknown, tokens),
                "{text}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn reading_a_prefix_gives_the_tokens_of_the_whole(
            words in prop::collection::vec("[a-zA-Z0-9é漢,.!\u{301}-]{1,9}", 1..300),
            between in prop::sample::select(vec![" ", "", ",", "\n", "。"]),
        ) {
            let tokenizer = bundled(16);
            let text = words.join(between);
            prop_assert_eq!(tokenizer.encode("", &text).ok(), tokenizer.encode_all(&clean(&text)).ok());
        }
    }
}
