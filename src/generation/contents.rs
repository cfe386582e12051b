//! The contents of a generation (hub, head, other parts), and how they are read and written.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;

use crate::error::{Result, bail};
use crate::files::{self, FileDigest, Staged};
use crate::generation::confidence::{self, CONFIDENCE, Calibration};
use crate::generation::manifest::{ADAPTER, GenerationId, HEAD, HUB, MANIFEST, Manifest};
use crate::generation::precision::{self, Agreement, PRECISION};
use crate::hub::Hub;
use crate::model::Config;
use crate::model::lora::Factors;
use crate::weights::{Weights, to_safetensors};

/// The reference's names of W and E.
pub(crate) const PROJECTION: &str = "prompt_projection.weight";
pub(crate) const EMBEDDINGS: &str = "model_embeddings.weight";

/// Largest part that is read.
const PART_LIMIT: u64 = 4 << 30;

/// Lengths of W and of rows of E whose products with unit vectors are exact enough in f32.
const LENGTHS: RangeInclusive<f64> = 1e-12..=1e12;

/// A generation in memory, checked against its manifest.
#[derive(Clone)]
pub(crate) struct Contents {
    pub(crate) manifest: Manifest,
    pub(crate) hub: Arc<Hub>,
    /// W [D, H]
    pub(crate) projection: Vec<f32>,
    /// E [M, D]
    pub(crate) embeddings: Vec<f32>,
    /// The other parts by name, unparsed: LoRA factors, and the parts that learning keeps.
    pub(crate) parts: BTreeMap<String, Vec<u8>>,
    /// How near its answers in int8 are to those in f32, where that was measured before it is
    /// written; no part of it. Of a generation that was read: `None`, see [`precision::read`].
    pub(crate) agreement: Option<Agreement>,
    /// How sure its answers are; as `agreement`.
    pub(crate) calibration: Option<Calibration>,
}

impl Contents {
    /// Reads the generation in `folder`; every part is checked.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        Self::read_as(folder, folder.file_name())
    }

    /// As [`Contents::read`], for a folder with a temporary name; `name`: the generation's.
    fn read_as(folder: &Path, name: Option<&OsStr>) -> Result<Self> {
        let manifest = Manifest::read_as(folder, name)?;
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
            parts.insert(name.clone(), digest.read(&path, PART_LIMIT)?);
        }
        let mut part = |name: &str| match parts.remove(name) {
            Some(bytes) => Ok((folder.join(name), bytes)),
            None => bail!(
                Format,
                "{}: files: expected {name}, found none",
                folder.join(MANIFEST).display()
            ),
        };
        let (path, bytes) = part(HUB)?;
        let hub: Hub = files::parse_json(&path, &bytes)?;
        if hub.len() != manifest.models {
            bail!(
                Mismatch,
                "{}: expected {} models, found {}",
                path.display(),
                manifest.models,
                hub.len()
            );
        }
        let (width, inputs) = (manifest.width, manifest.encoder.width);
        let (path, bytes) = part(HEAD)?;
        let head = Weights::from_bytes(&path, bytes)?;
        let projection = head.view(PROJECTION, &[width, inputs])?.to_f32();
        let embeddings = head.view(EMBEDDINGS, &[hub.len(), width])?.to_f32();
        check_rows(&projection, &embeddings, width).map_err(|e| e.at(path.display()))?;
        if manifest.adapter.is_some() != parts.contains_key(ADAPTER) {
            bail!(
                Format,
                "{}: adapter: expected its settings here and {ADAPTER}, or neither, found one",
                folder.join(MANIFEST).display()
            );
        }
        Ok(Self {
            manifest,
            hub: Arc::new(hub),
            projection,
            embeddings,
            parts,
            agreement: None,
            calibration: None,
        })
    }

    /// Errors: a part that serving needs cannot be opened. Learning checks its own parts. The
    /// adapter's shapes are checked against the encoder later.
    pub(crate) fn check_parts(&self) -> Result<()> {
        self.recall()?;
        match (&self.manifest.adapter, self.parts.get(ADAPTER)) {
            (Some(lora), Some(bytes)) => lora.check(bytes).map_err(|e| e.at(ADAPTER)),
            _ => Ok(()),
        }
    }

    /// A child of `parent`, which this is, that starts as a copy.
    pub(crate) fn child(mut self, parent: GenerationId, made_by: String) -> Self {
        let manifest = &mut self.manifest;
        manifest.sequence = manifest.sequence.saturating_add(1);
        manifest.parent = Some(parent);
        manifest.made_by = made_by;
        self
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

/// Writing a generation. The manifest's `models` and `files` are counted anew.
impl Contents {
    /// Errors: W or a row of E has no direction.
    pub(crate) fn check_rows(&self) -> Result<()> {
        check_rows(&self.projection, &self.embeddings, self.manifest.width)
    }

    /// The id that it will have.
    pub(crate) fn id(&self) -> Result<GenerationId> {
        let (head, hub) = (self.head()?, files::to_json(&*self.hub)?);
        Ok(self.seal(&self.named(&head, &hub))?.0)
    }

    /// Every file but the manifest: name and bytes.
    fn named<'c>(&'c self, head: &'c [u8], hub: &'c [u8]) -> Vec<(&'c str, &'c [u8])> {
        let others = self.parts.iter();
        let others = others.map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
        [(HEAD, head), (HUB, hub)]
            .into_iter()
            .chain(others)
            .collect()
    }

    /// The id and the manifest's bytes of a generation of these files.
    fn seal(&self, parts: &[(&str, &[u8])]) -> Result<(GenerationId, Vec<u8>)> {
        let files = parts
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), FileDigest::of(bytes)));
        Manifest {
            models: self.hub.len(),
            files: files.collect(),
            ..self.manifest.clone()
        }
        .seal()
    }

    /// Writes the generation into `root`, completely or not at all. The result says whether it is
    /// new there.
    ///
    /// It is read back under its temporary name and must pass `ask` before it gets its own.
    pub(crate) fn write(
        &self,
        root: &Path,
        ask: impl Fn(&GenerationId, &Contents) -> Result<()>,
    ) -> Result<(GenerationId, bool)> {
        let (head, hub) = (self.head()?, files::to_json(&*self.hub)?);
        let parts = self.named(&head, &hub);
        let (id, sealed) = self.seal(&parts)?;
        let folder = root.join(id.as_str());
        if folder.exists() {
            // The name is a hash, so the same content was written before. It may be damaged by now.
            match Self::read(&folder).and_then(|contents| ask(&id, &contents)) {
                Ok(()) => {
                    for (name, record) in self.records(&id)? {
                        files::replace(&folder.join(name), &record)?;
                    }
                    return Ok((id, false));
                }
                Err(error) if error.is_damage() => log::warn!("{error}; {id} is written anew"),
                Err(error) => return Err(error),
            }
            files::remove_folder(&folder)?;
        }
        let staged = Staged::new(root)?;
        for (name, bytes) in &parts {
            // A part that the parent has too becomes a hard link to the parent's file.
            let parent = self.manifest.parent.as_ref();
            let inherited = parent.map(|parent| root.join(parent.as_str()).join(name));
            match inherited.filter(|path| same(path, bytes)) {
                Some(path) => staged.link(name, &path)?,
                None => staged.write(name, bytes)?,
            }
        }
        staged.write(MANIFEST, &sealed)?;
        for (name, record) in self.records(&id)? {
            staged.write(name, &record)?;
        }
        let written = Self::read_as(staged.path(), Some(id.as_str().as_ref()))
            .and_then(|contents| ask(&id, &contents));
        written.map_err(|e| e.at("the new generation cannot be opened"))?;
        staged.publish(id.as_str())?;
        Ok((id, true))
    }

    /// The names and bytes of the records of what was measured.
    fn records(&self, id: &GenerationId) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let encoder = &self.manifest.encoder.sha256;
        let mut records = Vec::new();
        if let Some(agreement) = &self.agreement {
            records.push((PRECISION, precision::to_bytes(id, encoder, agreement)?));
        }
        if let Some(calibration) = &self.calibration {
            records.push((CONFIDENCE, confidence::to_bytes(id, encoder, calibration)?));
        }
        Ok(records)
    }

    fn head(&self) -> Result<Vec<u8>> {
        let (width, inputs) = (self.manifest.width, self.manifest.encoder.width);
        let models = self.hub.len();
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
        }
        self.check_rows()?;
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

/// Errors: W [D, H] or a row of E [M, D] has no direction in f32: not finite, zero, or so long or
/// short that its squares are.
fn check_rows(projection: &[f32], embeddings: &[f32], width: usize) -> Result<()> {
    check_length(projection).map_err(|e| e.at(PROJECTION))?;
    let rows = embeddings.chunks_exact(width.max(1)).enumerate();
    for (id, row) in rows {
        check_length(row).map_err(|e| e.at(format!("{EMBEDDINGS}: row {id}")))?;
    }
    Ok(())
}

fn check_length(values: &[f32]) -> Result<()> {
    let squares = values.iter().map(|value| f64::from(*value).powi(2));
    let length = squares.sum::<f64>().sqrt();
    if !LENGTHS.contains(&length) {
        bail!(
            Numeric,
            "expected a length from {:e} to {:e}, found {length:e}",
            LENGTHS.start(),
            LENGTHS.end()
        );
    }
    Ok(())
}

/// True when the file at `path` holds `bytes`.
fn same(path: &Path, bytes: &[u8]) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.len() == bytes.len() as u64)
        && std::fs::read(path).is_ok_and(|found| found == bytes)
}
