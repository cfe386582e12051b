//! Where an interrupted update stopped: parameters, moments, counters, mined negatives.

use std::path::PathBuf;

use safetensors::Dtype::{F32, F64, U32};
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

/// Parameters, AdamW's moments and the rows that it moves after some steps.
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
        fn bytes<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u8> {
            bytemuck::cast_slice(values).to_vec()
        }
        let values = &self.values;
        let tensors = [
            ("theta", F32, bytes(&values.theta)),
            ("m", F32, bytes(&values.m)),
            ("v", F32, bytes(&values.v)),
            ("awake", U32, bytes(&values.awake)),
            ("decayed", F64, bytes(&[values.decayed])),
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
                    .flat_map(|t| t.2.clone())
                    .collect::<Vec<u8>>(),
            ),
        };
        let text = serde_json::to_string(&meta)
            .map_err(|e| error!(Format, "the state cannot be written: {e}"))?;
        let views = tensors.iter().map(|(name, dtype, bytes)| {
            TensorView::new(*dtype, vec![bytes.len() * 8 / dtype.bitsize()], bytes)
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
        let (meta, values) = parse(&bytes).map_err(|e| {
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
        Ok(Some(Self {
            step: meta.step,
            values,
            hard: meta.hard,
        }))
    }
}

fn parse(bytes: &[u8]) -> Result<(Meta, Values)> {
    let bad = |e: safetensors::SafeTensorError| error!(Format, "not a state: {e}");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(bad)?;
    let file = SafeTensors::deserialize(bytes).map_err(bad)?;
    let text = header.metadata().as_ref().and_then(|map| map.get(META));
    let Some(text) = text else {
        bail!(Format, "not a state: it does not say what it belongs to")
    };
    let meta: Meta = serde_json::from_str(text).map_err(|e| error!(Format, "not a state: {e}"))?;
    let mut all = Vec::new();
    let mut tensor = |name, dtype| {
        let view = file.tensor(name).map_err(bad)?;
        if view.dtype() != dtype {
            bail!(
                Format,
                "not a state: {name}: expected {dtype:?}, found {:?}",
                view.dtype()
            );
        }
        all.extend_from_slice(view.data());
        Ok(view.data().to_vec())
    };
    let mut numbers = |name| Ok(bytemuck::pod_collect_to_vec::<u8, f32>(&tensor(name, F32)?));
    let (theta, m, v) = (numbers("theta")?, numbers("m")?, numbers("v")?);
    let awake = bytemuck::pod_collect_to_vec::<u8, u32>(&tensor("awake", U32)?);
    let decayed = bytemuck::pod_collect_to_vec::<u8, f64>(&tensor("decayed", F64)?);
    if meta.schema_version != 1 || files::sha256(&all) != meta.sha256 {
        bail!(Mismatch, "the state is damaged: its hash is another one");
    }
    let values = Values {
        theta,
        m,
        v,
        awake,
        decayed: decayed.first().copied().unwrap_or(1.0),
    };
    Ok((meta, values))
}
