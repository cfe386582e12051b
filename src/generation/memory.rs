//! The parts of a generation's memory on disk.
//!
//! | part | read by | content |
//! |---|---|---|
//! | `memory.safetensors` | learning | sums, counts and digests of the prompts (`memory/mod.rs`) |
//! | `words.safetensors` | both | prompts by word and domain |
//! | `cards.safetensors` | learning | a vector of each model's cards |
//! | `recall.safetensors` | serving | projection and keys, solved when the generation is published |
//! | `memory.json` | both | the weights of a score's parts, the settings of the solver |

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::device::cpu::Cpu;
use crate::error::{Result, bail};
use crate::files;
use crate::generation::Contents;
use crate::hub::{Domains, Hub};
use crate::memory::Strengths;
use crate::memory::served::{Bayes, Recall};
use crate::memory::{MEMORY, Memory, Solved, Solving, WORDS, domain_keys, entries, solve};
use crate::weights::{ANY, Tensors, half_bytes, to_safetensors};

/// Names in a generation.
const RECALL: &str = "recall.safetensors";
const SERVED: &str = "memory.json";

/// A part of the version before memories, which encoded each prompt twice.
const CALIBRATION: &str = "calibration.json";

const LAYERS: &str = "layers";
const PROJECTION: &str = "projection";
const BIAS: &str = "bias";
const KEYS: &str = "keys";
const OFFSETS: &str = "offsets";
const PROMPTS: &str = "prompt_counts";

/// Largest strength for which the sum of a score's parts is still exact enough in f32.
const STRONGEST: f64 = 1e3;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryFile {
    /// Version of this form; 1.
    schema_version: u32,
    strengths: Strengths,
    solving: Solving,
}

/// The settings of a memory's served form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct How {
    pub(crate) strengths: Strengths,
    pub(crate) solving: Solving,
}

/// Errors: a strength is out of range.
pub(crate) fn check_strengths(s: &Strengths) -> Result<()> {
    for (name, value, least) in [
        // The cosine is computed from this part.
        ("learned", s.learned, 1e-6),
        ("memory", s.memory, 0.0),
        ("words", s.words, 0.0),
        ("newcomer", s.newcomer, -STRONGEST),
    ] {
        if !(least..=STRONGEST).contains(&value) {
            bail!(
                Numeric,
                "strengths.{name}: expected a number from {least} to {STRONGEST}, found {value}"
            );
        }
    }
    Ok(())
}

/// Solves `memory` and puts its parts, but for the cards, among `parts`.
///
/// `cards`: a unit vector of each model's cards, [M, H].
pub(crate) fn remember(
    cpu: &Cpu,
    parts: &mut BTreeMap<String, Vec<u8>>,
    memory: &Memory,
    hub: &Hub,
    cards: &[f32],
    how: How,
) -> Result<()> {
    let How { strengths, solving } = how;
    check_strengths(&strengths)?;
    // Rounded as on disk, so that solving the same sums later gives the same bits.
    let kept = |card: &f32| half::f16::from_f32(*card).to_f32();
    let cards: Vec<f32> = cards.iter().map(kept).collect();
    let solved = solve(cpu, memory, hub, &cards, solving).map_err(|e| e.at(MEMORY))?;
    let file = MemoryFile {
        schema_version: 1,
        strengths,
        solving,
    };
    let bytes = [
        (MEMORY, memory.write()?),
        (WORDS, memory.write_words()?),
        (RECALL, write(&solved, memory)?),
        (SERVED, files::to_json(&file)?),
    ];
    parts.extend(bytes.map(|(name, bytes)| (name.to_owned(), bytes)));
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "served in f16 and f32")]
fn write(solved: &Solved, memory: &Memory) -> Result<Vec<u8>> {
    let floats = |values: &[f64]| -> Vec<f32> { values.iter().map(|x| *x as f32).collect() };
    let (projection, keys) = (floats(&solved.projection), floats(&solved.keys));
    let (bias, offsets) = (floats(&solved.bias), floats(&solved.offsets));
    let layers = memory
        .layers()
        .iter()
        .map(|layer| crate::num::to_u32(*layer));
    let layers: Vec<u32> = layers.collect();
    let (rank, models) = (solved.rank, memory.counts().len());
    let bytes = |values: &[f32]| bytemuck::cast_slice::<f32, u8>(values).to_vec();
    let ids = |values: &[u32]| bytemuck::cast_slice::<u32, u8>(values).to_vec();
    let tensors = [
        (LAYERS, Dtype::U32, vec![layers.len()], ids(&layers)),
        (
            PROJECTION,
            Dtype::F16,
            vec![rank, memory.width()],
            half_bytes(&projection),
        ),
        (BIAS, Dtype::F32, vec![rank], bytes(&bias)),
        (KEYS, Dtype::F16, vec![models, rank], half_bytes(&keys)),
        (OFFSETS, Dtype::F32, vec![models], bytes(&offsets)),
        (PROMPTS, Dtype::U32, vec![models], ids(memory.counts())),
    ];
    to_safetensors(RECALL, &tensors, None)
}

impl Contents {
    /// The memory that learning adds to, if the generation has one.
    ///
    /// Errors: one of its parts is missing or malformed.
    pub(crate) fn memory(&self) -> Result<Option<Memory>> {
        let (Some(memory), Some(words)) = (self.parts.get(MEMORY), self.parts.get(WORDS)) else {
            return match self.parts.contains_key(SERVED) {
                true => bail!(Format, "{SERVED}: expected {MEMORY} and {WORDS} beside it"),
                false => Ok(None),
            };
        };
        Memory::read(memory, words, &self.hub, self.manifest.encoder.width).map(Some)
    }

    /// Takes the memory out, if there is one. The vectors of cards stay.
    pub(crate) fn drop_memory(&mut self) {
        for name in [MEMORY, WORDS, RECALL, SERVED] {
            self.parts.remove(name);
        }
    }

    /// How the memory is served, if the generation has one.
    ///
    /// Errors: the file is malformed; the generation is of the version before memories.
    pub(crate) fn how(&self) -> Result<Option<How>> {
        if self.parts.contains_key(CALIBRATION) {
            bail!(
                InvalidRequest,
                "{CALIBRATION}: this generation was learned by an earlier version, whose scores need the \
                 prompt to be encoded twice; this version keeps a memory instead. Learn its examples \
                 anew: `hubrouter hub build` into another store, then `hubrouter learn`; or go back \
                 to a generation without it (`hubrouter generation list`)"
            );
        }
        let Some(bytes) = self.parts.get(SERVED) else {
            return Ok(None);
        };
        let file: MemoryFile = files::parse_form(SERVED.as_ref(), bytes, "")?;
        check_strengths(&file.strengths).map_err(|e| e.at(SERVED))?;
        Ok(Some(How {
            strengths: file.strengths,
            solving: file.solving,
        }))
    }

    /// The served form of the memory, if the generation has one.
    ///
    /// Errors: as [`Contents::how`]; a part is missing or malformed.
    pub(crate) fn recall(&self) -> Result<Option<Recall>> {
        let Some(How { strengths, .. }) = self.how()? else {
            return Ok(None);
        };
        let (Some(recall), Some(words)) = (self.parts.get(RECALL), self.parts.get(WORDS)) else {
            bail!(Format, "{SERVED}: expected {RECALL} and {WORDS} beside it");
        };
        let words = entries(words, &domain_keys(&self.hub)).map_err(|e| e.at(WORDS))?;
        let read = read(
            recall,
            words,
            &self.hub,
            strengths,
            self.manifest.encoder.width,
        );
        read.map(Some).map_err(|e| e.at(RECALL))
    }
}

fn read(
    bytes: &[u8],
    words: Vec<(u32, u32, u32)>,
    hub: &Hub,
    strengths: Strengths,
    hidden: usize,
) -> Result<Recall> {
    let file = Tensors::parse(bytes)?;
    let models = hub.len();
    let layers = file.u32(LAYERS, &[ANY])?.into_iter();
    let layers: Vec<usize> = layers.map(|layer| layer as usize).collect();
    if layers.is_empty() || !layers.is_sorted_by(|a, b| a < b) {
        bail!(Format, "{LAYERS}: expected some in order, found {layers:?}");
    }
    let width = layers.len().saturating_mul(hidden);
    let rank = file
        .shape(PROJECTION)
        .and_then(|shape| shape.first().copied());
    let rank = rank.unwrap_or(0);
    let projection = file.f16(PROJECTION, [rank, width])?;
    if rank == 0 {
        bail!(
            Mismatch,
            "{PROJECTION}: expected at least one row, found none"
        );
    }
    let domains = Domains::new(hub);
    let prompts = file.u32(PROMPTS, &[models])?;
    let of_domain = |members: &Vec<u32>| {
        let prompts = members.iter().map(|id| prompts[*id as usize]);
        prompts.fold(0u32, u32::saturating_add)
    };
    let by_domain: Vec<u32> = domains.members.iter().map(of_domain).collect();
    Ok(Recall {
        strengths,
        projection: projection.bytes().to_vec(),
        bias: file.f32(BIAS, &[rank])?,
        keys: file.f16(KEYS, [models, rank])?.bytes().to_vec(),
        offsets: file.f32(OFFSETS, &[models])?,
        words: Arc::new(Bayes::new(&by_domain, words.into_iter())),
        of: domains.of,
        prompts,
        layers,
        width,
        rank,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn strengths_are_checked() {
        check_strengths(&Strengths::default()).unwrap();
        let refused = |change: &dyn Fn(&mut Strengths), want: &str| {
            let mut bad = Strengths::default();
            change(&mut bad);
            let error = check_strengths(&bad).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
            assert_eq!(error.kind(), ErrorKind::Numeric);
        };
        refused(&|s| s.memory = -0.1, "strengths.memory: ");
        refused(&|s| s.learned = 0.0, "strengths.learned: ");
        refused(&|s| s.words = f64::NAN, "found NaN");
        refused(&|s| s.newcomer = -1e4, "from -1000 to 1000");
    }
}
