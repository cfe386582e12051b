//! An encoder bundle: a folder with weights, tokenizer, configuration and a manifest of hashes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::device::cpu::Cpu;
use crate::error::{Result, bail, error};
use crate::files::{self, FileDigest};
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
pub(crate) struct BundleManifest {
    pub(crate) schema_version: u32,
    /// `hubrouter-encoder`
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) pooling: Pooling,
    /// Tokens of a prompt, special ones included; longer prompts are cut.
    pub(crate) max_tokens: usize,
    /// The text that the checkpoint expects before a prompt.
    pub(crate) query_prefix: String,
    /// The text that the checkpoint expects before a model card.
    pub(crate) document_prefix: String,
    /// Element type of the weights.
    pub(crate) dtype: String,
    pub(crate) licence: String,
    /// Where the checkpoint came from.
    pub(crate) source: String,
    pub(crate) files: BTreeMap<String, FileDigest>,
}

/// A checked bundle, not yet on a device.
pub(crate) struct Bundle {
    pub(crate) manifest: BundleManifest,
    pub(crate) config: Config,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) weights: Weights,
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
            weights: weights?,
            config,
            manifest,
            revision,
        })
    }
}

/// The manifest of the bundle in `folder` and its SHA-256.
pub(crate) fn read_manifest(folder: &Path) -> Result<(BundleManifest, String)> {
    let path: PathBuf = folder.join(MANIFEST);
    let bytes = files::read_bytes(&path, CONFIG_LIMIT)?;
    let manifest = files::parse_form(&path, &bytes, KIND)?;
    Ok((manifest, files::sha256(&bytes)))
}
