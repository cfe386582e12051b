//! The state of an interrupted update: parameters, moments, counters, mined negatives.

use std::path::PathBuf;

use safetensors::Dtype::{self, F32, F64, U32};
use serde::{Deserialize, Serialize};

use crate::error::{Result, bail, error};
use crate::files;
use crate::generation::GenerationId;
use crate::learn::engine::{Engine, ParameterState};
use crate::learn::method::candidates::{Candidates, Hard};
use crate::learn::settings::Settings;
use crate::store::Store;
use crate::weights::{ANY, Tensors, to_safetensors};

/// Keys of the file's metadata: a description, and SHA-256 over it and the tensors' bytes.
const META: &str = "hubrouter";
const HASH: &str = "sha256";

/// Parameters, AdamW's moments and active rows after some steps.
pub(crate) struct State {
    /// Steps done.
    pub(crate) step: usize,
    pub(crate) values: ParameterState,
    /// Mined negatives.
    pub(crate) hard: Hard,
    /// A budget ended the steps here. A call with a budget makes no more.
    pub(crate) ended: bool,
}

/// Which update a state belongs to; the state of another one is not used.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateMeta {
    schema_version: u32,
    parent: GenerationId,
    /// As JSON, without keys that change nothing.
    settings: String,
    update_sha256: String,
    step: usize,
    hard: Hard,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ended: bool,
}

/// SHA-256 that reveals a torn or damaged file.
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
        store.root().join(crate::store::RESUME)
    }

    /// Where `engine` and `candidates` are before `step`.
    pub(crate) fn of(engine: &mut Engine, candidates: &Candidates, step: usize) -> Result<Self> {
        Ok(Self {
            step,
            values: engine.state()?,
            hard: candidates.hard(),
            ended: false,
        })
    }

    /// Replaces the store's state.
    pub(crate) fn write(
        &self,
        store: &Store,
        parent: &GenerationId,
        settings: &Settings,
        digest: &str,
    ) -> Result<()> {
        let values = &self.values;
        let tensors: [(&str, Dtype, &[u8]); 5] = [
            ("theta", F32, bytemuck::cast_slice(&values.theta)),
            ("m", F32, bytemuck::cast_slice(&values.m)),
            ("v", F32, bytemuck::cast_slice(&values.v)),
            ("awake", U32, bytemuck::cast_slice(&values.active)),
            ("decayed", F64, bytemuck::bytes_of(&values.decay)),
        ];
        let meta = StateMeta {
            schema_version: 1,
            parent: parent.clone(),
            settings: json(&settings.written())?,
            update_sha256: digest.to_owned(),
            step: self.step,
            hard: self.hard.clone(),
            ended: self.ended,
        };
        let text = json(&meta)?;
        let sha256 = hash(&text, tensors.iter().map(|tensor| tensor.2));
        let tensors = tensors.map(|(name, dtype, bytes)| {
            let shape = vec![bytes.len() * 8 / dtype.bitsize()];
            (name, dtype, shape, bytes)
        });
        let metadata = Some([(META.to_owned(), text), (HASH.to_owned(), sha256)].into());
        let file = to_safetensors("the state", &tensors, metadata)?;
        files::replace(&Self::path(store), &file)
    }

    /// The store's state if it belongs to this update; that of another update is ignored.
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
        let same = meta.parent == *parent
            && meta.settings == json(&settings.written())?
            && meta.update_sha256 == digest;
        if !same {
            log::warn!(
                "{}: belongs to another update and is ignored",
                path.display()
            );
            return Ok(None);
        }
        Ok(Some(Self {
            step: meta.step,
            values,
            hard: meta.hard,
            ended: meta.ended,
        }))
    }
}

fn parse(bytes: &[u8]) -> Result<(StateMeta, ParameterState)> {
    read(bytes).map_err(|e| e.at("not a state"))
}

fn read(bytes: &[u8]) -> Result<(StateMeta, ParameterState)> {
    let file = Tensors::parse(bytes)?;
    let (text, sha256) = (file.note(META)?, file.note(HASH)?);
    let dtypes = [
        ("theta", F32),
        ("m", F32),
        ("v", F32),
        ("awake", U32),
        ("decayed", F64),
    ];
    let bytes = dtypes.map(|(name, dtype)| file.bytes(name, dtype, &[ANY]));
    let bytes = bytes.into_iter().collect::<Result<Vec<_>>>()?;
    let found = hash(text, bytes.into_iter());
    if found != sha256 {
        bail!(
            Mismatch,
            "damaged: expected SHA-256 {sha256}, found {found}"
        );
    }
    let meta = files::parse_form(META.as_ref(), text.as_bytes(), "")?;
    let decayed: Vec<f64> = file.numbers("decayed", F64, &[1])?;
    let floats = |name| file.numbers::<f32>(name, F32, &[ANY]);
    let values = ParameterState {
        theta: floats("theta")?,
        m: floats("m")?,
        v: floats("v")?,
        active: file.u32("awake", &[ANY])?,
        decay: decayed[0],
    };
    Ok((meta, values))
}
