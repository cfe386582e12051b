//! The folder of a router: `router.json` says what it is, `router.safetensors` has W and E.
//!
//! Exports have this form, and so have checkpoints of the reference after their conversion.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Result, bail};
use crate::files::{self, FileDigest};
use crate::generation::{EMBEDDINGS, PROJECTION, TAU};
use crate::hub::{Hub, Model, ModelCard};
use crate::weights::Weights;

pub(super) const ROUTER: &str = "router.json";
pub(super) const HEAD: &str = "router.safetensors";
pub(super) const KIND: &str = "hubrouter-router";

/// The name of a tensor in [`HEAD`], beside W and E.
pub(super) const CARDS: &str = "card_vectors";

/// Largest `router.json` that is read.
const LIMIT: u64 = 64 << 20;

/// Largest file of the folder that is read whole.
const PART_LIMIT: u64 = 4 << 30;

/// `router.json`
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouterFile {
    /// Version of this form; 1.
    pub(super) schema_version: u32,
    /// `hubrouter-router`
    pub(super) kind: String,
    /// The program, for people.
    pub(super) made_by: String,
    /// The generation that was exported.
    #[serde(default)]
    pub(super) generation: Option<String>,
    pub(super) encoder: RouterEncoder,
    /// D
    pub(super) width: usize,
    pub(super) tau: f32,
    /// W, E or an adapter was trained.
    #[serde(default = "yes")]
    pub(super) trained: bool,
    /// The encoder without the adapter: a folder.
    #[serde(default)]
    pub(super) base: Option<String>,
    /// The adapter in PEFT's form: a folder.
    #[serde(default)]
    pub(super) adapter: Option<String>,
    /// The encoder with the adapter merged in, and W: a folder.
    #[serde(default)]
    pub(super) sentence_transformers: Option<String>,
    /// Vectors of `prompts`.
    #[serde(default)]
    pub(super) samples: Option<String>,
    #[serde(default)]
    pub(super) prompts: Vec<String>,
    /// `f16` or `f32`: what weights with the adapter are rounded to before they serve.
    #[serde(default)]
    pub(super) merged_in: Option<String>,
    /// By id.
    pub(super) models: Vec<RouterModel>,
    /// Every other file that is read or was written.
    pub(super) files: BTreeMap<String, FileDigest>,
}

fn yes() -> bool {
    true
}

/// The encoder that W was made for.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouterEncoder {
    pub(super) name: String,
    /// H
    pub(super) width: usize,
    /// `mean` or `cls`
    pub(super) pooling: String,
    #[serde(default)]
    pub(super) query_prefix: Option<String>,
    #[serde(default)]
    pub(super) max_tokens: Option<usize>,
    /// SHA-256 of a bundle's manifest.
    #[serde(default)]
    pub(super) revision: Option<String>,
    #[serde(default)]
    pub(super) tokenizer_sha256: Option<String>,
}

/// A model; its id is its place.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouterModel {
    pub(super) name: String,
    #[serde(default)]
    pub(super) domain: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) family: Option<String>,
    /// What it does, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<i64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) attributes: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) aliases: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) retired: bool,
}

impl From<&Model> for RouterModel {
    fn from(model: &Model) -> Self {
        Self {
            name: model.name.to_string(),
            domain: Some(model.domain.to_string()),
            family: model.family.as_deref().map(str::to_owned),
            description: None,
            created_at: model.created_at,
            attributes: model.attributes.clone(),
            aliases: model.aliases.iter().map(ToString::to_string).collect(),
            retired: model.retired,
        }
    }
}

impl RouterModel {
    /// Its card: `told`, or what is stated here.
    pub(super) fn card(&self, told: Option<&ModelCard>) -> ModelCard {
        let domain = self.domain.as_deref().unwrap_or("unknown");
        let mut card = ModelCard::new(self.name.clone(), domain);
        card.family.clone_from(&self.family);
        card.description.clone_from(&self.description);
        card.created_at = self.created_at;
        card.attributes.clone_from(&self.attributes);
        told.cloned().unwrap_or(card)
    }

    /// The registry's record of it, with what `card` says.
    pub(super) fn model(&self, card: &ModelCard) -> Model {
        let mut model = card.model();
        model.aliases = self.aliases.iter().map(|alias| (&**alias).into()).collect();
        model.retired = self.retired;
        model
    }
}

/// A router's folder, read and checked.
pub(super) struct RouterFolder {
    folder: PathBuf,
    pub(super) file: RouterFile,
    /// W [D, H]
    pub(super) projection: Vec<f32>,
    /// E [M, D]
    pub(super) embeddings: Vec<f32>,
    /// A unit vector of each model's cards by the encoder without an adapter, [M, H].
    pub(super) cards: Option<Vec<f32>>,
}

impl RouterFolder {
    /// Reads the router in `folder`.
    ///
    /// Errors: a file is missing or malformed, or is not the one that `router.json` names; W, E or
    /// the temperature is none.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(ROUTER);
        let bytes = files::read_bytes(&path, LIMIT)?;
        let file: RouterFile = files::parse_form(&path, &bytes, KIND)?;
        file.check().map_err(|e| e.at(path.display()))?;
        let head = read_part(folder, &file, HEAD)?;
        let weights = Weights::from_bytes(&folder.join(HEAD), head)?;
        let (d, h, m) = (file.width, file.encoder.width, file.models.len());
        let projection = weights.view(PROJECTION, &[d, h])?.to_f32();
        let embeddings = weights.view(EMBEDDINGS, &[m, d])?.to_f32();
        let cards = weights.shape(CARDS).is_some();
        let cards = cards.then(|| weights.view(CARDS, &[m, h])).transpose()?;
        let cards = cards.map(|view| view.to_f32());
        let finite = cards.iter().flatten().all(|value| value.is_finite());
        if !finite {
            bail!(Numeric, "{HEAD}: {CARDS}: expected finite numbers");
        }
        Ok(Self {
            folder: folder.to_owned(),
            projection,
            embeddings,
            cards,
            file,
        })
    }

    /// The folder of the adapter, if there is one; its files are those that `router.json` names.
    pub(super) fn adapter(&self) -> Result<Option<PathBuf>> {
        let Some(adapter) = &self.file.adapter else {
            return Ok(None);
        };
        for name in [super::peft::CONFIG, super::peft::WEIGHTS] {
            read_part(&self.folder, &self.file, &format!("{adapter}/{name}"))?;
        }
        Ok(Some(self.folder.join(adapter)))
    }

    /// The hub of its models; `cards`: what is known of each beyond the file, by id.
    pub(super) fn hub(&self, cards: &[ModelCard]) -> Result<Hub> {
        let models = self.file.models.iter().zip(cards);
        Hub::default().with(models.map(|(model, card)| model.model(card)))
    }
}

impl RouterFile {
    fn check(&self) -> Result<()> {
        for (name, size) in [
            ("width", self.width),
            ("encoder.width", self.encoder.width),
            ("models", self.models.len()),
        ] {
            if size == 0 {
                bail!(Format, "{name}: expected at least 1, found 0");
            }
        }
        if !TAU.contains(&self.tau) {
            bail!(
                Format,
                "tau: expected a number from {} to {}, found {}",
                TAU.start(),
                TAU.end(),
                self.tau
            );
        }
        Ok(())
    }
}

/// The bytes of the file `name` of `folder`, which `file` must list.
fn read_part(folder: &Path, file: &RouterFile, name: &str) -> Result<Vec<u8>> {
    let mut parts = Path::new(name).components();
    if !parts.all(|part| matches!(part, Component::Normal(_))) {
        bail!(
            Format,
            "{}: expected the name of a file in this folder, found {name:?}",
            folder.join(ROUTER).display()
        );
    }
    let Some(digest) = file.files.get(name) else {
        bail!(
            Format,
            "{}: files: expected {name}, found none",
            folder.join(ROUTER).display()
        );
    };
    digest.read(&folder.join(name), PART_LIMIT)
}
