//! Where an interrupted update stopped: parameters, moments, counters, mined negatives.

use std::collections::BTreeMap;
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

/// Key of the file's metadata.
const META: &str = "hubrouter";

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
    settings: Settings,
    examples_sha256: String,
    step: usize,
    hard: Hard,
    /// Over the tensors' bytes: a torn or flipped file is no state.
    sha256: String,
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
        let bytes = |values: &[f32]| -> Vec<u8> { bytemuck::cast_slice(values).to_vec() };
        let tensors = [
            ("theta", bytes(&self.values.theta)),
            ("m", bytes(&self.values.m)),
            ("v", bytes(&self.values.v)),
        ];
        let meta = Meta {
            schema_version: 1,
            parent: parent.clone(),
            settings: settings.clone(),
            examples_sha256: digest.to_owned(),
            step: self.step,
            hard: self.hard.clone(),
            sha256: files::sha256(
                &tensors
                    .iter()
                    .flat_map(|t| t.1.clone())
                    .collect::<Vec<u8>>(),
            ),
        };
        let text = serde_json::to_string(&meta)
            .map_err(|e| error!(Format, "the state cannot be written: {e}"))?;
        let views = tensors.iter().map(|(name, bytes)| {
            TensorView::new(safetensors::Dtype::F32, vec![bytes.len() / 4], bytes)
                .map(|view| (*name, view))
                .map_err(|e| error!(Format, "{name}: cannot be written: {e}"))
        });
        let metadata = Some([(META.to_owned(), text)].into());
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
        let same =
            meta.parent == *parent && meta.settings == *settings && meta.examples_sha256 == digest;
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
    let text = header.metadata().as_ref().and_then(|map| map.get(META));
    let Some(text) = text else {
        bail!(Format, "not a state: it does not say what it belongs to")
    };
    let meta: Meta = serde_json::from_str(text).map_err(|e| error!(Format, "not a state: {e}"))?;
    let mut all = Vec::new();
    let mut tensors = BTreeMap::new();
    for name in ["theta", "m", "v"] {
        let data = file.tensor(name).map_err(bad)?.data();
        all.extend_from_slice(data);
        let values: Vec<f32> = data
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        tensors.insert(name, values);
    }
    if meta.schema_version != 1 || files::sha256(&all) != meta.sha256 {
        bail!(Mismatch, "the state is damaged: its hash is another one");
    }
    let mut take = |name| tensors.remove(name).unwrap_or_default();
    Ok((meta, [take("theta"), take("m"), take("v")]))
}
