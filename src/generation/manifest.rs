//! `manifest.json` of a generation: the hash of every part, the encoder it belongs to, its parent.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::encoder::Encoder;
use crate::error::{Error, Result, bail};
use crate::files::{self, FileDigest};
use crate::model::lora::Lora;

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const HEAD: &str = "head.safetensors";
pub(crate) const HUB: &str = "hub.json";
pub(crate) const ADAPTER: &str = "adapter.safetensors";
const KIND: &str = "hubrouter-generation";
/// Largest manifest that is read. The manifest states the length of every other file.
const MANIFEST_LIMIT: u64 = 16 << 20;

/// Temperatures for which a softmax of cosines is neither flat nor infinite in f32.
pub(crate) const TAU: RangeInclusive<f32> = 1e-4..=1e4;

/// The name of a generation: its place in the line of descent and the beginning of its manifest's
/// hash. Ids are ordered by place, then by hash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(
    feature = "cli",
    derive(schemars::JsonSchema),
    schemars(with = "String")
)]
#[serde(try_from = "String", into = "String")]
pub struct GenerationId {
    sequence: u32,
    text: String,
}

impl GenerationId {
    /// `g0001-` and twelve hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its place in the line of descent, from 1.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for GenerationId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.strip_prefix('g').and_then(|rest| rest.split_once('-'));
        let sequence = parts.and_then(|(number, _)| number.parse().ok());
        let good = parts
            .zip(sequence)
            .is_some_and(|((number, digest), sequence)| {
                number == format!("{sequence:04}")
                    && digest.len() == 12
                    && digest
                        .bytes()
                        .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            });
        match sequence {
            Some(sequence) if good => Ok(Self {
                sequence,
                text: text.to_owned(),
            }),
            _ => bail!(
                InvalidRequest,
                "generation: expected an id such as g0001-0123456789ab, found {text:?}"
            ),
        }
    }
}

impl TryFrom<String> for GenerationId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<GenerationId> for String {
    fn from(id: GenerationId) -> Self {
        id.text
    }
}

/// The manifest of a generation: its parts, its encoder and its parent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Manifest {
    /// Version of this form; 1.
    pub schema_version: u32,
    /// `hubrouter-generation`
    pub kind: String,
    /// Place in the line of descent, from 1.
    pub sequence: u32,
    /// The generation that it was made from.
    pub parent: Option<GenerationId>,
    /// How it was made, for people: `hub build`, `hub retire gpt2`, ...
    pub made_by: String,
    /// The encoder that the head was made for.
    pub encoder: EncoderPin,
    /// Router width D.
    pub width: usize,
    /// Temperature of the scores.
    pub tau: f32,
    /// Models with an id, retired ones included.
    pub models: usize,
    /// The adapter in `adapter.safetensors`, if the encoder was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) adapter: Option<Lora>,
    /// How the weights were learned, if they were; kept by children that only change the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<Learned>,
    /// Every other file of the generation.
    pub(crate) files: BTreeMap<String, FileDigest>,
}

/// The last update of a generation's weights: all that is needed to repeat it from its parent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Learned {
    /// Updates so far, this one included.
    pub experience: u32,
    /// The recipe that the settings began with.
    pub recipe: String,
    /// All settings by name, but for later ones that changed nothing; `seed` is one of them.
    pub settings: BTreeMap<String, String>,
    /// SHA-256 over the examples, in order.
    pub examples_sha256: String,
    /// The device that computed. Random draws are the same on every device; sums differ by
    /// rounding.
    pub device: String,
    /// Some update has trained the encoder's adapters, W and E.
    #[serde(default = "trained")]
    pub trained: bool,
}

/// Before memories existed, every update trained.
fn trained() -> bool {
    true
}

/// An encoder bundle, by hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EncoderPin {
    /// The bundle's name; also the folder's, beside the store.
    pub name: String,
    /// SHA-256 of the bundle's manifest.
    pub sha256: String,
    /// SHA-256 of the tokenizer's file.
    pub tokenizer_sha256: String,
    /// Hidden width H.
    pub width: usize,
}

impl EncoderPin {
    pub(crate) fn of(encoder: &Encoder) -> Self {
        Self {
            name: encoder.name().to_owned(),
            sha256: encoder.revision().to_owned(),
            tokenizer_sha256: encoder.tokenizer_revision().to_owned(),
            width: encoder.width(),
        }
    }
}

impl Manifest {
    /// The manifest of a store's first generation; `models` and `files` are set when it is written.
    pub(crate) fn first(encoder: EncoderPin, width: usize, tau: f32, made_by: &str) -> Self {
        Self {
            schema_version: 1,
            kind: KIND.to_owned(),
            sequence: 1,
            parent: None,
            made_by: made_by.to_owned(),
            encoder,
            width,
            tau,
            models: 0,
            adapter: None,
            learned: None,
            files: BTreeMap::new(),
        }
    }

    /// Name, bytes and SHA-256 of every other file of the generation.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64, &str)> {
        self.files
            .iter()
            .map(|(name, digest)| (name.as_str(), digest.bytes, digest.sha256.as_str()))
    }

    /// The id that this manifest gives its generation, and the file's bytes.
    pub(crate) fn seal(&self) -> Result<(GenerationId, Vec<u8>)> {
        let bytes = files::to_json(self)?;
        Ok((id_of(self.sequence, &bytes), bytes))
    }

    /// Reads and checks the manifest of the generation in `folder`, whose name must be its id.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        Self::read_as(folder, folder.file_name())
    }

    /// As [`Manifest::read`], for a folder with a temporary name; `name`: the generation's.
    pub(crate) fn read_as(folder: &Path, name: Option<&OsStr>) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let bytes = files::read_bytes(&path, MANIFEST_LIMIT)?;
        let manifest: Self = files::parse_form(&path, &bytes, KIND)?;
        let place = path.display();
        let id = id_of(manifest.sequence, &bytes);
        if name.is_none_or(|name| name != id.as_str()) {
            bail!(
                Mismatch,
                "{place}: its content makes it {id}: the manifest was changed or the folder renamed"
            );
        }
        let encoder = &manifest.encoder;
        let files = manifest.files.iter();
        let files = files.map(|(name, digest)| (name.as_str(), digest.sha256.as_str()));
        for (name, hash) in files.chain([
            ("encoder", encoder.sha256.as_str()),
            ("tokenizer", encoder.tokenizer_sha256.as_str()),
        ]) {
            if !files::is_sha256(hash) {
                bail!(
                    Format,
                    "{place}: {name}: expected 64 lower-case hexadecimal digits, found {hash:?}"
                );
            }
        }
        for (name, size) in [("width", manifest.width), ("models", manifest.models)] {
            if size == 0 {
                bail!(Format, "{place}: {name}: expected at least 1, found 0");
            }
        }
        if !TAU.contains(&manifest.tau) {
            bail!(
                Format,
                "{place}: tau: expected a number from {} to {}, found {}",
                TAU.start(),
                TAU.end(),
                manifest.tau
            );
        }
        Ok(manifest)
    }
}

fn id_of(sequence: u32, bytes: &[u8]) -> GenerationId {
    let text = format!("g{sequence:04}-{}", &files::sha256(bytes)[..12]);
    GenerationId { sequence, text }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn ids_have_one_form() {
        assert!("g0001-0123456789ab".parse::<GenerationId>().is_ok());
        for bad in [
            "",
            "g1-0123456789ab",
            "g0001-0123456789a",
            "g0001-0123456789aG",
            "../g0001-0123456789ab",
            "g000a-0123456789ab",
            "g00001-0123456789ab",
            "g99999999999-0123456789ab",
            "g+001-0123456789ab",
        ] {
            assert!(bad.parse::<GenerationId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_ordered_by_their_number() {
        let id = |text: &str| text.parse::<GenerationId>().unwrap();
        assert!(id("g9999-0123456789ab") < id("g10000-0123456789ab"));
        assert!(id("g0002-0000000000ab") < id("g0002-0000000000ac"));
    }
}
