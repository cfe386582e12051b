//! Where an interrupted update stopped: parameters, moments, counters, mined negatives.

use std::path::PathBuf;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use crate::error::{Result, bail, error};
use crate::files;
use crate::generation::{GenerationId, Store};
use crate::learn::candidates::Hard;
use crate::learn::engine::Values;
use crate::learn::settings::Settings;

/// Keys of the file's metadata: what the state is, and SHA-256 over that and the tensors' bytes.
const META: &str = "hubrouter";
const HASH: &str = "sha256";

/// Parameters and AdamW's moments after some steps.
pub(crate) struct State {
    /// Steps done.
    pub(crate) step: usize,
    pub(crate) values: Values,
    /// Mined negatives.
    pub(crate) hard: Hard,
}

/// What an update is: a state of another one is of no use.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    schema_version: u32,
    parent: GenerationId,
    /// As JSON.
    settings: String,
    update_sha256: String,
    step: usize,
    hard: Hard,
}

/// A torn or flipped file is no state.
fn hash<'t>(text: &str, tensors: impl Iterator<Item = &'t [u8]>) -> String {
    let mut all = text.as_bytes().to_vec();
    tensors.for_each(|tensor| all.extend_from_slice(tensor));
    files::sha256(&all)
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| error!(Format, "the state cannot be written: {e}"))
}

impl State {
    fn path(store: &Store) -> PathBuf {
        store.root().join(crate::generation::RESUME)
    }

    /// Replaces the store's state.
    pub(crate) fn write(
        &self,
        store: &Store,
        parent: &GenerationId,
        settings: &Settings,
        digest: &str,
    ) -> Result<()> {
        let tensors: [(&str, &[u8]); 3] = [
            ("theta", bytemuck::cast_slice(&self.values.theta)),
            ("m", bytemuck::cast_slice(&self.values.m)),
            ("v", bytemuck::cast_slice(&self.values.v)),
        ];
        let meta = Meta {
            schema_version: 1,
            parent: parent.clone(),
            settings: json(settings)?,
            update_sha256: digest.to_owned(),
            step: self.step,
            hard: self.hard.clone(),
        };
        let text = json(&meta)?;
        let sha256 = hash(&text, tensors.iter().map(|tensor| tensor.1));
        let views = tensors.iter().map(|(name, bytes)| {
            TensorView::new(safetensors::Dtype::F32, vec![bytes.len() / 4], bytes)
                .map(|view| (*name, view))
                .map_err(|e| error!(Format, "{name}: cannot be written: {e}"))
        });
        let metadata = Some([(META.to_owned(), text), (HASH.to_owned(), sha256)].into());
        let file = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, metadata)
            .map_err(|e| error!(Format, "the state cannot be written: {e}"))?;
        files::replace(&Self::path(store), &file)
    }

    /// The store's state, if it is one of this very update; another update's is passed over.
    pub(crate) fn read(
        store: &Store,
        parent: &GenerationId,
        settings: &Settings,
        digest: &str,
    ) -> Result<Option<Self>> {
        let path = Self::path(store);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = files::read_bytes(&path, 64 << 30)?;
        let (meta, tensors) = parse(&bytes).map_err(|e| {
            e.at(format!(
                "{} (delete it to start from the beginning)",
                path.display()
            ))
        })?;
        let same = meta.parent == *parent
            && meta.settings == json(settings)?
            && meta.update_sha256 == digest;
        if !same {
            log::warn!(
                "{}: belongs to another update and is passed over",
                path.display()
            );
            return Ok(None);
        }
        let [theta, m, v] = tensors;
        Ok(Some(Self {
            step: meta.step,
            values: Values { theta, m, v },
            hard: meta.hard,
        }))
    }
}

fn parse(bytes: &[u8]) -> Result<(Meta, [Vec<f32>; 3])> {
    let bad = |e: safetensors::SafeTensorError| error!(Format, "not a state: {e}");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(bad)?;
    let file = SafeTensors::deserialize(bytes).map_err(bad)?;
    let metadata = header.metadata().as_ref();
    let named = |key: &str| metadata.and_then(|map| map.get(key));
    let (Some(text), Some(sha256)) = (named(META), named(HASH)) else {
        bail!(Format, "not a state: it does not say what it belongs to")
    };
    let tensor = |name| file.tensor(name).map(|found| found.data()).map_err(bad);
    let tensors = [tensor("theta")?, tensor("m")?, tensor("v")?];
    if hash(text, tensors.into_iter()) != *sha256 {
        bail!(Mismatch, "the state is damaged: its hash is another one");
    }
    let meta: Meta = serde_json::from_str(text).map_err(|e| error!(Format, "not a state: {e}"))?;
    if meta.schema_version != 1 {
        let found = meta.schema_version;
        bail!(Unsupported, "schema_version: expected 1, found {found}");
    }
    let values = |data: &[u8]| -> Vec<f32> {
        let numbers = data.chunks_exact(4);
        numbers
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    };
    Ok((meta, tensors.map(values)))
}
