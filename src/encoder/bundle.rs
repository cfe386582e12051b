//! An encoder bundle: a folder with weights, tokenizer, configuration and a manifest of hashes.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::cpu::Cpu;
use crate::error::{Error, Result, bail, error};
use crate::files;
use crate::model::Config;
use crate::ops::pool::Pooling;
use crate::text::tokenizer::Tokenizer;
use crate::weights::Weights;

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const CONFIG: &str = "config.json";
pub(super) const LICENCE: &str = "LICENSE.txt";
pub(super) const KIND: &str = "hubrouter-encoder";

/// Largest tokenizer that is read.
pub(super) const TEXT_LIMIT: u64 = 256 << 20;

/// Largest manifest or configuration that is read: JSON takes many times its bytes in memory.
pub(super) const CONFIG_LIMIT: u64 = 1 << 20;

/// `manifest.json` of a bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    /// `hubrouter-encoder`
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) pooling: Pooling,
    /// Tokens of a prompt, special ones included; longer prompts are cut.
    pub(crate) max_tokens: usize,
    /// What the checkpoint wants in front of a prompt.
    pub(crate) query_prefix: String,
    /// What the checkpoint wants in front of a model card.
    pub(crate) document_prefix: String,
    /// Element type of the weights.
    pub(crate) dtype: String,
    pub(crate) licence: String,
    /// Where the checkpoint came from.
    pub(crate) source: String,
    pub(crate) files: BTreeMap<String, Digest>,
}

/// Size and SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Digest {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            sha256: files::sha256(bytes),
        }
    }

    /// The file at `path`, which must be what was recorded, and of at most `limit` bytes: before it is
    /// read.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>> {
        let (file, length) = files::open_file(path)?;
        self.check_length(path, length)?;
        if length > limit {
            bail!(
                Format,
                "{}: expected at most {limit} bytes, found {length}",
                path.display()
            );
        }
        let mut bytes = Vec::new();
        file.take(self.bytes)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(path, "read", e))?;
        self.check(path, &bytes)?;
        Ok(bytes)
    }

    fn check_length(&self, path: &Path, length: u64) -> Result<()> {
        if length != self.bytes {
            bail!(
                Mismatch,
                "{}: expected {} bytes, found {length}",
                path.display(),
                self.bytes
            );
        }
        Ok(())
    }

    /// Errors unless `bytes`, read from `path`, are what was recorded.
    pub(crate) fn check(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.check_length(path, bytes.len() as u64)?;
        let path = path.display();
        let found = files::sha256(bytes);
        if found != self.sha256 {
            bail!(
                Mismatch,
                "{path}: expected SHA-256 {}, found {found}",
                self.sha256
            );
        }
        Ok(())
    }
}

/// A checked bundle, not yet on a device.
pub(crate) struct Bundle {
    pub(crate) manifest: Manifest,
    pub(crate) config: Config,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) weights: Arc<Weights>,
    /// SHA-256 of `manifest.json`, which holds the hashes of everything else.
    pub(crate) revision: String,
}

impl Bundle {
    /// Opens `folder`; every file is checked against the manifest, whose limit on the tokens of a
    /// text `max_tokens` replaces.
    pub(crate) fn open(folder: &Path, cpu: &Cpu, max_tokens: Option<usize>) -> Result<Self> {
        let (manifest, revision) = read_manifest(folder)?;
        let digest = |name: &str| match manifest.files.get(name) {
            Some(digest) => Ok((folder.join(name), digest)),
            None => bail!(
                Format,
                "{}: files: expected {name}, found none",
                folder.join(MANIFEST).display()
            ),
        };
        let (path, recorded) = digest(CONFIG)?;
        let json = recorded.read(&path, CONFIG_LIMIT)?;
        let config = Config::from_json(&json).map_err(|e| e.at(path.display()))?;
        if manifest.max_tokens > config.max_tokens() {
            bail!(
                Mismatch,
                "{}: max_tokens: expected at most {}, found {}",
                folder.join(MANIFEST).display(),
                config.max_tokens(),
                manifest.max_tokens
            );
        }
        let limit = max_tokens.unwrap_or(manifest.max_tokens);
        if limit > config.max_tokens() {
            bail!(
                InvalidRequest,
                "max_tokens: expected at most {}, for which encoder {} has positions, found {limit}",
                config.max_tokens(),
                manifest.name
            );
        }
        // The two slow parts side by side.
        let (tokenizer, weights) = cpu.join(
            || -> Result<Tokenizer> {
                let (path, recorded) = digest(TOKENIZER)?;
                let json = recorded.read(&path, TEXT_LIMIT)?;
                let tokenizer = |limit| Tokenizer::from_json(&json, limit, config.vocabulary);
                tokenizer(limit).map_err(|e| match max_tokens {
                    // The host's own limit is to blame, and no file.
                    Some(_) if tokenizer(manifest.max_tokens).is_ok() => {
                        error!(InvalidRequest, "max_tokens: {e}")
                    }
                    _ => e.at(path.display()),
                })
            },
            || -> Result<Weights> {
                let (path, recorded) = digest(WEIGHTS)?;
                let weights = Weights::open(&path)?;
                for (path, bytes) in weights.mapped_files() {
                    recorded.check(path, bytes)?;
                }
                Ok(weights)
            },
        );
        Ok(Self {
            tokenizer: tokenizer?,
            weights: Arc::new(weights?),
            config,
            manifest,
            revision,
        })
    }
}

/// The manifest of the bundle in `folder` and its SHA-256.
pub(crate) fn read_manifest(folder: &Path) -> Result<(Manifest, String)> {
    let path: PathBuf = folder.join(MANIFEST);
    let bytes = files::read_bytes(&path, CONFIG_LIMIT)?;
    let manifest = files::parse_form(&path, &bytes, KIND)?;
    Ok((manifest, files::sha256(&bytes)))
}
