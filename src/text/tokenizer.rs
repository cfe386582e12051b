//! The checkpoint's own tokenizer: special tokens, truncation, and nothing in parallel.

use std::borrow::Cow;

use tokenizers::{PostProcessor as _, TruncationParams};

use crate::error::{Result, bail, error};

/// Bytes that a token takes at most in ordinary text; only a first guess, see [`Tokenizer::encode`].
const BYTES_PER_TOKEN: usize = 16;

pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    max_tokens: usize,
    vocabulary: usize,
    /// Special tokens that every prompt gets.
    added: usize,
}

/// The tokens of one prompt, special ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    /// True when tokens past the limit were cut off on the right.
    pub(crate) truncated: bool,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` for an encoder of `vocabulary` rows. Padding and truncation of the
    /// file are replaced by `max_tokens`.
    pub(crate) fn from_json(json: &[u8], max_tokens: usize, vocabulary: usize) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|e| error!(Tokenizer, "not a tokenizer: {e}"))?;
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
        Ok(Self {
            inner,
            max_tokens,
            vocabulary,
            added,
        })
    }

    /// Most tokens of a prompt, special ones included.
    pub(crate) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The tokens of `prefix` and `text` after [`clean`]; a text without any is an error.
    ///
    /// Only as much of a long text is read as can matter: a prefix that ends at a space before a
    /// letter or digit has the tokens of the whole text's beginning, so when the prefix alone is
    /// over the limit, the rest is not looked at.
    pub(crate) fn encode(&self, prefix: &str, text: &str) -> Result<Tokens> {
        let text = clean(text);
        if text.is_empty() {
            bail!(
                InvalidRequest,
                "the prompt is empty: expected text, found nothing but white space"
            );
        }
        let text = if prefix.is_empty() {
            text
        } else {
            Cow::Owned(format!("{prefix}{text}"))
        };
        let mut limit = self.max_tokens * BYTES_PER_TOKEN;
        while let Some(cut) = word_boundary(&text, limit) {
            let tokens = self.encode_all(&text[..cut])?;
            if tokens.truncated {
                return Ok(tokens);
            }
            limit *= 4;
        }
        self.encode_all(&text)
    }

    fn encode_all(&self, text: &str) -> Result<Tokens> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|e| error!(Tokenizer, "cannot tokenize: {e}"))?;
        let ids = encoding.get_ids().to_vec();
        if ids.len() <= self.added {
            bail!(
                InvalidRequest,
                "the prompt is empty: expected text, found nothing that the tokenizer knows"
            );
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) {
            bail!(
                Mismatch,
                "the tokenizer gave id {id}, the encoder has {} rows: they do not belong together",
                self.vocabulary
            );
        }
        Ok(Tokens {
            ids,
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }
}

/// CRLF becomes LF and both ends are trimmed, as in training.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains("\r\n") {
        Cow::Owned(text.replace("\r\n", "\n").trim().to_owned())
    } else {
        Cow::Borrowed(text.trim())
    }
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

    fn bundled(max_tokens: usize) -> Tokenizer {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/weights/all-MiniLM-L6-v2/tokenizer.json"
        );
        Tokenizer::from_json(&std::fs::read(path).unwrap(), max_tokens, 30522).unwrap()
    }

    #[test]
    fn special_tokens_and_truncation() {
        let tokenizer = bundled(128);
        let short = tokenizer.encode("", "  hello\r\nworld ").unwrap();
        assert_eq!(
            short,
            Tokens {
                ids: vec![101, 7592, 2088, 102],
                truncated: false
            }
        );
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
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/weights/all-MiniLM-L6-v2/tokenizer.json"
        );
        let json = std::fs::read(path).unwrap();
        let error = Tokenizer::from_json(&json, 2, 30522).err().unwrap();
        assert!(error.to_string().contains("special"), "{error}");
        let small = Tokenizer::from_json(&json, 128, 2000).unwrap();
        assert_eq!(
            small.encode("", "hello").err().unwrap().kind(),
            ErrorKind::Mismatch
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn reading_a_prefix_gives_the_tokens_of_the_whole(
            words in prop::collection::vec("[a-zA-Z0-9é漢,.!\u{301}-]{1,9}", 1..300),
        ) {
            let tokenizer = bundled(16);
            let text = words.join(" ");
            prop_assert_eq!(tokenizer.encode("", &text).ok(), tokenizer.encode_all(&clean(&text)).ok());
        }
    }
}
