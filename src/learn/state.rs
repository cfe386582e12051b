//! Where an interrupted update stopped: parameters, moments, counters, mined negatives.

use std::path::PathBuf;

use safetensors::Dtype::{self, F32, F64, U32};
use serde::{Deserialize, Serialize};

use crate::error::{Result, bail, error};
use crate::files;
use crate::generation::GenerationId;
use crate::learn::candidates::{Candidates, Hard};
use crate::learn::engine::{Engine, Values};
use crate::learn::settings::Settings;
use crate::store::Store;
use crate::weights::{ANY, Tensors, to_safetensors};

/// Keys of the file's metadata: what the state is, and SHA-256 over that and the tensors' bytes.
const META: &str = "hubrouter";
const HASH: &str = "sha256";

/// Parameters, AdamW's moments and the rows that it moves after some steps.
pub(crate) struct State {
    /// Steps done.
    pub(crate) step: usize,
    pub(crate) values: Values,
    /// Mined negatives.
    pub(crate) hard: Hard,
    /// A budget ended learning there: with one, no more steps are made.
    pub(crate) ended: bool,
}

/// What an update is: a state of another one is of no use.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    schema_version: u32,
    parent: GenerationId,
    /// As JSON, but for what changes nothing.
    settings: String,
    update_sha256: String,
    step: usize,
    hard: Hard,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ended: bool,
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
        store.root().join(crate::store::RESUME)
    }

    /// Where `engine` and `candidates` are before `step`.
    pub(crate) fn of(engine: &mut Engine, candidates: &Candidates, step: usize) -> Result<Self> {
        Ok(Self {
            step,
            values: engine.values()?,
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
            ("awake", U32, bytemuck::cast_slice(&values.awake)),
            ("decayed", F64, bytemuck::bytes_of(&values.decayed)),
        ];
        let meta = Meta {
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
        let same = meta.parent == *parent
            && meta.settings == json(&settings.written())?
            && meta.update_sha256 == digest;
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
            ended: meta.ended,
        }))
    }
}

fn parse(bytes: &[u8]) -> Result<(Meta, Values)> {
    read(bytes).map_err(|e| e.at("not a state"))
}

fn read(bytes: &[u8]) -> Result<(Meta, Values)> {
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
    let values = Values {
        theta: floats("theta")?,
        m: floats("m")?,
        v: floats("v")?,
        awake: file.u32("awake", &[ANY])?,
        decayed: decayed[0],
    };
    Ok((meta, values))
}
