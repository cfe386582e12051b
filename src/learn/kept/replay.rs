//! Files of kept prompts: `replay.jsonl` and `held_out.jsonl`.

use half::f16;
use serde::{Deserialize, Serialize};

use crate::encoder::seen::{STEPS, Seen};
use crate::error::{Result, bail, error};
use crate::files;
use crate::learn::settings::Privacy;
use crate::text::query::query_digest;

/// The file of prompts to replay.
pub(crate) const REPLAY: &str = "replay.jsonl";
/// The file of held-out prompts, of the same format.
pub(crate) const HELD_OUT: &str = "held_out.jsonl";
const KIND: &str = "hubrouter-replay";

/// Kept prompts, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Replay {
    pub(crate) entries: Vec<ReplayEntry>,
}

/// One kept prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ReplayEntry {
    /// The update that brought it, from 1.
    pub experience: u64,
    /// Id of its model.
    pub model: u32,
    /// The prompt's domain, trimmed and in lower case.
    pub domain: String,
    /// SHA-256 of the normalised query.
    pub query_sha256: String,
    /// The prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its pooled vector, [H]: by the encoder as it came, or by the router's encoder where the
    /// update trained nothing.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hexadecimal")]
    pub(crate) embedding: Option<Vec<f16>>,
    /// Its features by the generation's router.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "seen")]
    pub(crate) seen: Option<Seen>,
}

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    schema_version: u32,
    kind: String,
}

impl ReplayEntry {
    /// An entry with as much of `prompt` as `privacy` allows. `embedding`: its pooled vector.
    pub(crate) fn new(
        experience: u64,
        model: u32,
        domain: &str,
        prompt: &str,
        embedding: &[f32],
        privacy: Privacy,
    ) -> Self {
        let mut entry = Self {
            experience,
            model,
            domain: domain.to_owned(),
            query_sha256: query_digest(prompt),
            text: (privacy == Privacy::Text).then(|| prompt.to_owned()),
            embedding: None,
            seen: None,
        };
        if privacy == Privacy::Embeddings {
            entry.set_embedding(embedding);
        }
        entry
    }

    /// Stores the prompt's pooled vector in half precision.
    pub(crate) fn set_embedding(&mut self, vector: &[f32]) {
        let half = vector.iter().map(|value| f16::from_f32(*value));
        self.embedding = Some(half.collect());
    }

    fn check(&self, models: usize, width: usize) -> Result<()> {
        if self.model as usize >= models {
            bail!(
                Mismatch,
                "model: expected an id below {models}, found {}",
                self.model
            );
        }
        let hash = &self.query_sha256;
        if !files::is_sha256(hash) {
            bail!(
                Format,
                "query_sha256: expected 64 lower-case hexadecimal digits, found {hash:?}"
            );
        }
        if let Some(seen) = &self.seen {
            if seen.pooled.len() != width || !seen.layers.len().is_multiple_of(width) {
                bail!(
                    Mismatch,
                    "seen: expected vectors of {width}, found {} and {} numbers",
                    seen.pooled.len(),
                    seen.layers.len()
                );
            }
            if !seen.pooled.iter().all(|value| value.is_finite()) {
                bail!(Numeric, "seen: expected finite numbers");
            }
        }
        match (&self.text, &self.embedding) {
            (Some(_), Some(_)) => bail!(Format, "expected text or embedding, found both"),
            (Some(text), _) if query_digest(text) != *hash => bail!(
                Mismatch,
                "query_sha256: expected that of the text, found {hash}"
            ),
            (_, Some(embedding)) if embedding.len() != width => bail!(
                Mismatch,
                "embedding: expected {width} numbers, found {}",
                embedding.len()
            ),
            (_, Some(embedding)) if !embedding.iter().all(|value| value.is_finite()) => {
                bail!(Numeric, "embedding: expected finite numbers")
            }
            _ => Ok(()),
        }
    }
}

impl Replay {
    /// The bytes of the file: a header, then one entry per line.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        fn line<T: Serialize>(bytes: &mut Vec<u8>, value: &T) -> Result<()> {
            serde_json::to_writer(&mut *bytes, value)
                .map_err(|e| error!(Format, "{REPLAY}: cannot be written: {e}"))?;
            bytes.push(b'\n');
            Ok(())
        }
        let mut bytes = Vec::new();
        let header = Header {
            schema_version: 1,
            kind: KIND.to_owned(),
        };
        line(&mut bytes, &header)?;
        for entry in &self.entries {
            line(&mut bytes, entry)?;
        }
        Ok(bytes)
    }

    /// Reads the file's bytes, of a generation with `models` models and an encoder of `width`.
    ///
    /// Errors name the file and the line.
    pub(crate) fn from_bytes(bytes: &[u8], models: usize, width: usize) -> Result<Self> {
        let mut lines = bytes.split(|byte| *byte == b'\n').enumerate();
        let first = lines.next().map_or(&[][..], |(_, line)| line);
        let _: Header = files::parse_form(format!("{REPLAY}:1").as_ref(), first, KIND)?;
        let mut replay = Self::default();
        for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let place = format!("{REPLAY}:{}", number + 1);
            let entry: ReplayEntry =
                serde_json::from_slice(line).map_err(|e| error!(Format, "{place}: {e}"))?;
            entry.check(models, width).map_err(|e| e.at(&place))?;
            replay.entries.push(entry);
        }
        Ok(replay)
    }

    /// Removes and returns the entries of the query with this SHA-256.
    pub(crate) fn remove_hash(&mut self, query_sha256: &str) -> Vec<ReplayEntry> {
        let of_it = |entry: &mut ReplayEntry| entry.query_sha256.eq_ignore_ascii_case(query_sha256);
        self.entries.extract_if(.., of_it).collect()
    }
}

/// [`Seen`] as hexadecimal digits of little-endian bytes: the pooled vector in half precision, the
/// layers' steps, the words.
mod seen {
    use half::f16;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::{Seen, digits_of, from_digits};

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Text {
        pooled: String,
        layers: String,
        words: String,
    }

    pub(super) fn serialize<S: Serializer>(
        seen: &Option<Seen>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = |seen: &Seen| Text {
            pooled: digits_of(seen.pooled.iter().map(|x| f16::from_f32(*x).to_le_bytes())),
            layers: digits_of(seen.layers.iter().map(|q| {
                #[expect(clippy::cast_possible_truncation, reason = "at most STEPS")]
                let step = *q as i8;
                step.to_le_bytes()
            })),
            words: digits_of(seen.words.iter().map(|word| word.to_le_bytes())),
        };
        seen.as_ref().map(text).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Seen>, D::Error> {
        let Some(text) = Option::<Text>::deserialize(deserializer)? else {
            return Ok(None);
        };
        let wrong = || D::Error::custom("seen: expected hexadecimal digits of whole numbers");
        let pooled = from_digits::<2>(&text.pooled).ok_or_else(wrong)?;
        let layers = from_digits::<1>(&text.layers).ok_or_else(wrong)?;
        let words = from_digits::<4>(&text.words).ok_or_else(wrong)?;
        let words: Vec<u32> = words.into_iter().map(u32::from_le_bytes).collect();
        let layers: Vec<i16> = layers
            .into_iter()
            .map(|b| i8::from_le_bytes(b).into())
            .collect();
        let steps = -STEPS..=STEPS;
        if !words.is_sorted_by(|a, b| a < b) || !layers.iter().all(|q| steps.contains(q)) {
            return Err(D::Error::custom(
                "seen: expected words in order and steps up to 64",
            ));
        }
        Ok(Some(Seen {
            pooled: pooled
                .into_iter()
                .map(|b| f16::from_le_bytes(b).to_f32())
                .collect(),
            layers,
            words,
        }))
    }

    #[expect(clippy::cast_possible_truncation, reason = "64")]
    const STEPS: i16 = super::STEPS as i16;
}

fn digits_of<const N: usize>(numbers: impl Iterator<Item = [u8; N]>) -> String {
    numbers
        .flatten()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// `None` if these are not the digits of whole numbers of `N` bytes.
fn from_digits<const N: usize>(text: &str) -> Option<Vec<[u8; N]>> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some((digit(high)? << 4) | digit(low)?);
    let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    let (numbers, rest) = bytes.as_chunks::<N>();
    (odd.is_empty() && rest.is_empty()).then(|| numbers.to_vec())
}

/// Half-precision numbers as the hexadecimal digits of their little-endian bytes.
mod hexadecimal {
    use half::f16;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::{digits_of, from_digits};

    pub(super) fn serialize<S: Serializer>(
        values: &Option<Vec<f16>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let digits = |values: &Vec<f16>| digits_of(values.iter().map(|value| value.to_le_bytes()));
        values.as_ref().map(digits).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<f16>>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        let wrong = || D::Error::custom("embedding: expected four hexadecimal digits a number");
        let numbers = from_digits::<2>(&text).ok_or_else(wrong)?;
        Ok(Some(numbers.into_iter().map(f16::from_le_bytes).collect()))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;

    const VECTOR: [f32; 3] = [0.5, -1.25, 1.0 / 3.0];

    fn replay() -> Replay {
        let entry =
            |model, prompt, privacy| ReplayEntry::new(2, model, "graph", prompt, &VECTOR, privacy);
        Replay {
            entries: vec![
                entry(0, "###Instruction: Find\n\"it\" é", Privacy::Text),
                entry(1, "find \"it\"  É", Privacy::Embeddings),
                entry(1, "secret", Privacy::Hashes),
            ],
        }
    }

    #[test]
    fn the_file_keeps_everything() {
        let bytes = replay().to_bytes().unwrap();
        assert_eq!(Replay::from_bytes(&bytes, 2, 3).unwrap(), replay());
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 4);
        let none = Replay::default();
        let bytes = none.to_bytes().unwrap();
        assert_eq!(Replay::from_bytes(&bytes, 0, 0).unwrap(), none);
    }

    #[test]
    fn privacy_decides_what_is_kept() {
        let [text, embedding, hash] = replay().entries.try_into().unwrap();
        assert!(text.text.is_some() && text.embedding.is_none());
        let kept = embedding.embedding.unwrap();
        assert!(embedding.text.is_none() && (kept[2].to_f32() - VECTOR[2]).abs() < 1e-3);
        assert_eq!((kept[0].to_f32(), kept[1].to_f32()), (0.5, -1.25));
        assert!(hash.text.is_none() && hash.embedding.is_none());
        let bytes = replay().to_bytes().unwrap();
        assert!(!String::from_utf8(bytes).unwrap().contains("secret"));
    }

    #[test]
    fn entries_are_removed_by_text_or_hash() {
        let mut left = replay();
        let same = left.remove_hash(&query_digest(" FIND \"it\" é "));
        assert_eq!(same.len(), 2, "the same query");
        assert!(left.remove_hash(&query_digest("find it")).is_empty());
        let hash = query_digest("Secret");
        assert_eq!(left.remove_hash(&hash).len(), 1);
        assert!(left.entries.is_empty());
    }

    #[test]
    fn errors_name_the_line() {
        let good = String::from_utf8(replay().to_bytes().unwrap()).unwrap();
        let other = query_digest("other");
        let own = query_digest("secret");
        for (from, to, kind, want) in [
            (
                "\"model\":0",
                "\"model\":7",
                ErrorKind::Mismatch,
                ":2: model: expected an id below 2",
            ),
            (
                "\"model\":0",
                "\"note\":0",
                ErrorKind::Format,
                ":2: unknown field `note`",
            ),
            (
                "0038",
                "003",
                ErrorKind::Format,
                ":3: embedding: expected four",
            ),
            (
                "003800bd",
                "003x00bd",
                ErrorKind::Format,
                ":3: embedding: expected four",
            ),
            (
                "003800bd",
                "003800bd0000",
                ErrorKind::Mismatch,
                ":3: embedding: expected 3",
            ),
            (
                "003800bd",
                "007c00bd",
                ErrorKind::Numeric,
                ":3: embedding: expected finite",
            ),
            (
                "Find",
                "Found",
                ErrorKind::Mismatch,
                ":2: query_sha256: expected that of the text",
            ),
            (
                &own,
                &other[1..],
                ErrorKind::Format,
                ":4: query_sha256: expected 64",
            ),
            (
                "replay\"",
                "play\"",
                ErrorKind::Format,
                ":1: kind: expected",
            ),
            (
                "version\":1",
                "version\":2",
                ErrorKind::Unsupported,
                ":1: schema_version",
            ),
        ] {
            assert!(good.contains(from), "{from}");
            let bad = good.replacen(from, to, 1);
            let error = Replay::from_bytes(bad.as_bytes(), 2, 3).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert_eq!(error.kind(), kind);
        }
        assert!(Replay::from_bytes(b"", 2, 3).is_err());
    }
}
