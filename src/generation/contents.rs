//! What is in a generation: the hub, the head, and how a child of it is written.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use crate::encoder::Digest;
use crate::error::{Result, bail};
use crate::files::{self, Staged};
use crate::generation::manifest::{
    ADAPTER, EncoderPin, GenerationId, HEAD, HUB, KIND, Learned, MANIFEST, Manifest, TEXT_LIMIT,
};
use crate::hub::Hub;
use crate::model::Config;
use crate::model::lora::{Factors, Lora};
use crate::weights::{Weights, to_safetensors};

/// The reference's names of W and E.
const PROJECTION: &str = "prompt_projection.weight";
const EMBEDDINGS: &str = "model_embeddings.weight";

/// A generation in memory, checked against its manifest.
#[derive(Clone)]
pub(crate) struct Contents {
    pub(crate) manifest: Manifest,
    pub(crate) hub: Hub,
    /// W [D, H]
    pub(crate) projection: Vec<f32>,
    /// E [M, D]
    pub(crate) embeddings: Vec<f32>,
    /// The other parts by name, as they are: LoRA factors, what learning keeps for the next time.
    pub(crate) parts: BTreeMap<String, Vec<u8>>,
}

impl Contents {
    /// Reads the generation in `folder`; every part is checked.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let manifest = Manifest::read(folder)?;
        for name in [HEAD, HUB] {
            if !manifest.files.contains_key(name) {
                bail!(
                    Format,
                    "{}: files: expected {name}, found none",
                    folder.join(MANIFEST).display()
                );
            }
        }
        let mut hub = None;
        let mut head = None;
        let mut parts = BTreeMap::new();
        for (name, digest) in &manifest.files {
            let path = folder.join(name);
            if path.file_name().is_none_or(|file| file != name.as_str()) {
                bail!(
                    Format,
                    "{}: files: {name:?} is not a plain file name",
                    folder.join(MANIFEST).display()
                );
            }
            if name == HEAD {
                let weights = Weights::open(&path)?;
                for (path, bytes) in weights.mapped_files() {
                    digest.check(path, bytes)?;
                }
                head = Some(weights);
            } else {
                let bytes = files::read_bytes(&path, TEXT_LIMIT)?;
                digest.check(&path, &bytes)?;
                if name == HUB {
                    hub = Some(files::parse_json::<Hub>(&path, &bytes)?);
                } else {
                    parts.insert(name.clone(), bytes);
                }
            }
        }
        let (Some(hub), Some(head)) = (hub, head) else {
            bail!(Format, "{}: a part is missing", folder.display());
        };
        if hub.len() != manifest.models {
            bail!(
                Mismatch,
                "{}: expected {} models, found {}",
                folder.join(HUB).display(),
                manifest.models,
                hub.len()
            );
        }
        if manifest.adapter.is_some() != parts.contains_key(ADAPTER) {
            bail!(
                Format,
                "{}: adapter: expected its settings here and {ADAPTER}, or neither, found one",
                folder.join(MANIFEST).display()
            );
        }
        let (width, inputs) = (manifest.width, manifest.encoder.width);
        let projection = head.view(PROJECTION, &[width, inputs])?.to_f32();
        let embeddings = head.view(EMBEDDINGS, &[hub.len(), width])?.to_f32();
        let contents = Self {
            manifest,
            hub,
            projection,
            embeddings,
            parts,
        };
        contents
            .check_rows()
            .map_err(|e| e.at(folder.join(HEAD).display()))?;
        Ok(contents)
    }

    /// Rows of E have a direction; all values are finite.
    fn check_rows(&self) -> Result<()> {
        if let Some(at) = self.projection.iter().position(|value| !value.is_finite()) {
            bail!(
                Numeric,
                "{PROJECTION}: element {at}: expected a finite number, found {}",
                self.projection[at]
            );
        }
        for (id, row) in self
            .embeddings
            .chunks_exact(self.manifest.width.max(1))
            .enumerate()
        {
            if !row.iter().all(|value| value.is_finite()) {
                bail!(Numeric, "{EMBEDDINGS}: row {id}: expected finite numbers");
            }
        }
        Ok(())
    }

    /// A child that starts as a copy.
    pub(crate) fn child(self, parent: GenerationId, made_by: String) -> Draft {
        Draft {
            sequence: self.manifest.sequence.saturating_add(1),
            parent: Some(parent),
            made_by,
            encoder: self.manifest.encoder,
            width: self.manifest.width,
            tau: self.manifest.tau,
            hub: self.hub,
            projection: self.projection,
            embeddings: self.embeddings,
            adapter: self.manifest.adapter,
            learned: self.manifest.learned,
            parts: self.parts,
        }
    }

    /// The encoder's trained factors, if it was trained.
    pub(crate) fn factors(&self, config: &Config) -> Result<Option<Factors>> {
        match (&self.manifest.adapter, self.parts.get(ADAPTER)) {
            (Some(lora), Some(bytes)) => Factors::read(lora, bytes, config)
                .map(Some)
                .map_err(|e| e.at(ADAPTER)),
            _ => Ok(None),
        }
    }
}

/// A generation to be written.
pub(crate) struct Draft {
    pub(crate) sequence: u32,
    pub(crate) parent: Option<GenerationId>,
    pub(crate) made_by: String,
    pub(crate) encoder: EncoderPin,
    pub(crate) width: usize,
    pub(crate) tau: f32,
    pub(crate) hub: Hub,
    pub(crate) projection: Vec<f32>,
    pub(crate) embeddings: Vec<f32>,
    pub(crate) adapter: Option<Lora>,
    pub(crate) learned: Option<Learned>,
    /// The other parts by name.
    pub(crate) parts: BTreeMap<String, Vec<u8>>,
}

impl Draft {
    /// What the generation will hold when it is written.
    pub(crate) fn contents(&self) -> Contents {
        Contents {
            manifest: self.manifest(BTreeMap::new()),
            hub: self.hub.clone(),
            projection: self.projection.clone(),
            embeddings: self.embeddings.clone(),
            parts: self.parts.clone(),
        }
    }

    fn manifest(&self, files: BTreeMap<String, Digest>) -> Manifest {
        Manifest {
            schema_version: 1,
            kind: KIND.to_owned(),
            sequence: self.sequence,
            parent: self.parent.clone(),
            made_by: self.made_by.clone(),
            encoder: self.encoder.clone(),
            width: self.width,
            tau: self.tau,
            models: self.hub.len(),
            adapter: self.adapter.clone(),
            learned: self.learned.clone(),
            files,
        }
    }

    /// Writes the generation into `root`, whole or not at all; also says whether it is new there.
    pub(crate) fn write(&self, root: &Path) -> Result<(GenerationId, bool)> {
        let head = self.head()?;
        let hub = files::to_json(&self.hub)?;
        let mut parts = vec![(HEAD, &head), (HUB, &hub)];
        parts.extend(
            self.parts
                .iter()
                .map(|(name, bytes)| (name.as_str(), bytes)),
        );
        let files = parts
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), Digest::of(bytes)));
        let manifest = self.manifest(files.collect());
        let (id, sealed) = manifest.seal()?;
        let folder = root.join(id.as_str());
        if folder.exists() {
            // The same content was written before: the name is its hash. It may have been damaged
            // since.
            match Contents::read(&folder) {
                Ok(_) => return Ok((id, false)),
                Err(error) => log::warn!("{error}; {id} is written anew"),
            }
            files::remove_folder(&folder)?;
        }
        let staged = Staged::new(root)?;
        for (name, bytes) in &parts {
            // A part that the parent has already is the same file under two names.
            let inherited = self
                .parent
                .as_ref()
                .map(|parent| root.join(parent.as_str()).join(name));
            match inherited.filter(|path| same(path, bytes)) {
                Some(path) => staged.link(name, &path)?,
                None => staged.write(name, bytes)?,
            }
        }
        staged.write(MANIFEST, &sealed)?;
        staged.publish(id.as_str())?;
        Ok((id, true))
    }

    fn head(&self) -> Result<Vec<u8>> {
        let (width, inputs, models) = (self.width, self.encoder.width, self.hub.len());
        for (name, rows, columns, values) in [
            (PROJECTION, width, inputs, &self.projection),
            (EMBEDDINGS, models, width, &self.embeddings),
        ] {
            if values.len() != rows * columns {
                bail!(
                    Mismatch,
                    "{name}: expected [{rows}, {columns}], found {} values",
                    values.len()
                );
            }
            if !values.iter().all(|value| value.is_finite()) {
                bail!(Numeric, "{name}: expected finite numbers");
            }
        }
        let tensor = |name, rows, columns, values| {
            let bytes: &[u8] = bytemuck::cast_slice(values);
            (name, Dtype::F32, vec![rows, columns], bytes)
        };
        let tensors = [
            tensor(PROJECTION, width, inputs, &self.projection[..]),
            tensor(EMBEDDINGS, models, width, &self.embeddings[..]),
        ];
        to_safetensors(HEAD, &tensors, None)
    }
}

/// True when the file at `path` holds `bytes`.
fn same(path: &Path, bytes: &[u8]) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.len() == bytes.len() as u64)
        && std::fs::read(path).is_ok_and(|found| found == bytes)
}
