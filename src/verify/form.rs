//! `parity.json`: what a parity bundle says of itself (docs/reproducibility.md).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Result, bail};
use crate::files::FileDigest;
use crate::memory::{PriorMean, Strengths};

pub(super) const MANIFEST: &str = "parity.json";
pub(super) const KIND: &str = "hubrouter-parity";

/// Largest manifest that is read: it holds every prompt and every batch.
pub(super) const MANIFEST_LIMIT: u64 = 256 << 20;

/// The numbers that a run computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NumericMode {
    /// Products and sums in f32.
    F32,
    /// Products of 19 bits of an NVIDIA GPU's tensor cores.
    Tf32,
    F16,
    Bf16,
    Int8,
}

impl fmt::Display for NumericMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityManifest {
    pub(crate) kind: String,
    pub(crate) schema_version: u32,
    pub(crate) name: String,
    pub(crate) made_by: ParityMaker,
    /// Every other file, by its path in the folder.
    pub(crate) files: BTreeMap<String, FileDigest>,
    pub(crate) encoder: ParityEncoder,
    /// Without the encoder's prefix.
    pub(crate) prompts: Vec<String>,
    pub(crate) forward: Option<ParityForward>,
    pub(crate) router: Option<ParityRouter>,
    pub(crate) learning: Option<ParityLearning>,
}

/// The program and the machine of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityMaker {
    pub(crate) program: String,
    #[serde(default)]
    pub(crate) version: Value,
    #[serde(default)]
    pub(crate) versions: Value,
    #[serde(default)]
    pub(crate) device: String,
    #[serde(default)]
    pub(crate) device_name: String,
    pub(crate) mode: NumericMode,
    #[serde(default)]
    pub(crate) flags: Value,
    #[serde(default)]
    pub(crate) threads: Option<usize>,
    #[serde(default)]
    pub(crate) seed: Option<u64>,
}

/// The form of the encoder in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncoderForm {
    /// A Hugging Face folder.
    Checkpoint,
    /// An encoder bundle of this program.
    Bundle,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityEncoder {
    /// `None`: the bundle does not bring it.
    #[serde(default)]
    pub(crate) folder: Option<String>,
    #[serde(default = "bundled")]
    pub(crate) form: EncoderForm,
    pub(crate) name: String,
    /// SHA-256 of an encoder bundle's manifest.
    #[serde(default)]
    pub(crate) revision: Option<String>,
    pub(crate) tokenizer_sha256: String,
    #[serde(default)]
    pub(crate) model_type: Option<String>,
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    #[serde(default)]
    pub(crate) pooling: Option<String>,
    #[serde(default)]
    pub(crate) query_prefix: Option<String>,
    #[serde(default)]
    pub(crate) max_tokens: Option<usize>,
}

fn bundled() -> EncoderForm {
    EncoderForm::Bundle
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityForward {
    pub(crate) file: String,
    /// How far the run's own vectors move in a padded batch.
    #[serde(default)]
    pub(crate) padded: Option<PaddedError>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PaddedError {
    pub(crate) max_abs: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityRouter {
    /// A store in the bundle; `None`: it is elsewhere.
    #[serde(default)]
    pub(crate) folder: Option<String>,
    pub(crate) generation: String,
    pub(crate) file: String,
    /// Models of a ranking.
    pub(crate) top: usize,
    pub(crate) mode: NumericMode,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityLearning {
    pub(crate) file: String,
    pub(crate) profile: String,
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    pub(crate) tau: f64,
    pub(crate) clip: f64,
    pub(crate) clip_scope: ClipOver,
    pub(crate) weight_decay: f64,
    /// Betas and eps; only carve.md's own are computed here.
    pub(crate) adam: [f64; 3],
    pub(crate) switches: ReferenceSwitches,
    /// Of each model, by id.
    pub(crate) domains: Vec<String>,
    pub(crate) names: Vec<String>,
    pub(crate) experiences: usize,
    pub(crate) rows: Vec<ParityRow>,
    pub(crate) steps: Vec<ParityStep>,
    #[serde(default)]
    pub(crate) memory: Option<ParityMemory>,
    pub(crate) matrix: ParityMatrix,
    #[serde(default)]
    pub(crate) predictions: ParityPredictions,
}

/// What is clipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClipOver {
    Lora,
    All,
}

/// Departures of carve.md section 14 that a run can have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReferenceSwitches {
    /// False: the gradients of W and E are never cleared.
    #[serde(rename = "grad.reset")]
    pub(crate) grad_reset: bool,
    /// `mean` or `sum`; the weights of the rows hold it.
    pub(crate) accumulation: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityRow {
    pub(crate) text: String,
    pub(crate) model: u32,
    pub(crate) experience: usize,
    pub(crate) split: ParitySplit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ParitySplit {
    Train,
    Eval,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityStep {
    pub(crate) experience: usize,
    #[serde(default)]
    pub(crate) phase: u32,
    pub(crate) rates: ParityRates,
    pub(crate) counters: ParityCounters,
    pub(crate) batches: Vec<Vec<ParityItem>>,
    #[serde(default)]
    pub(crate) anchors: Option<ParityAnchors>,
    pub(crate) losses: ParityLosses,
    /// Whether the file has this step's gradients.
    #[serde(default)]
    pub(crate) gradients: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityRates {
    /// `None`: the adapters are frozen.
    pub(crate) lora: Option<f64>,
    pub(crate) projection: f64,
    pub(crate) embeddings: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityCounters {
    #[serde(default)]
    pub(crate) lora: Option<usize>,
    #[serde(default)]
    pub(crate) router: Option<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityItem {
    pub(crate) row: usize,
    pub(crate) weight: f64,
    #[serde(default)]
    pub(crate) candidates: Option<Vec<u32>>,
    pub(crate) targets: Vec<(u32, f64)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityAnchors {
    pub(crate) embedding: f64,
    pub(crate) projection: f64,
}

/// The terms of a step's loss, with their strengths.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ParityLosses {
    pub(crate) route: f64,
    #[serde(default)]
    pub(crate) embedding: f64,
    #[serde(default)]
    pub(crate) projection: f64,
    pub(crate) total: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ParityMemory {
    pub(crate) layers: Vec<usize>,
    /// Directions, at most.
    pub(crate) rank: usize,
    pub(crate) prior: PriorMean,
    pub(crate) strengths: Strengths,
}

/// Percent right after experience t on the eval rows of experience e: `[t][e]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ParityMatrix {
    /// By the cosine alone.
    #[serde(default)]
    pub(crate) learned: Vec<Vec<f64>>,
    /// With the memory.
    #[serde(default)]
    pub(crate) served: Vec<Vec<f64>>,
}

/// The best model of every eval row of experiences up to t: `[t][row]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ParityPredictions {
    #[serde(default)]
    pub(crate) learned: Vec<Vec<u32>>,
    #[serde(default)]
    pub(crate) served: Vec<Vec<u32>>,
}

/// Most prompts, rows or steps of a bundle.
const MOST: usize = 1 << 20;

impl ParityManifest {
    /// Errors: a count that no bundle has, or a path that leads out of the folder.
    pub(super) fn check(&self) -> Result<()> {
        let learning = self.learning.as_ref();
        let rows = learning.map_or(0, |learning| learning.rows.len());
        let steps = learning.map_or(0, |learning| learning.steps.len());
        let counts = [
            ("prompts", self.prompts.len()),
            ("rows", rows),
            ("steps", steps),
        ];
        for (name, count) in counts {
            if count > MOST {
                bail!(Format, "{name}: expected at most {MOST}, found {count}");
            }
        }
        let folders = [
            &self.encoder.folder,
            &self.router.as_ref().and_then(|r| r.folder.clone()),
        ]
        .map(|folder| folder.clone());
        for path in self.files.keys().chain(folders.iter().flatten()) {
            check_path(path)?;
        }
        let files = [
            self.forward.as_ref().map(|f| &f.file),
            self.router.as_ref().map(|r| &r.file),
            learning.map(|l| &l.file),
        ];
        for file in files.into_iter().flatten() {
            if !self.files.contains_key(file) {
                bail!(Format, "files: expected {file:?}, found none");
            }
        }
        Ok(())
    }
}

/// Errors: `path` does not stay in its folder.
fn check_path(path: &str) -> Result<()> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if path.len() > 1024 || path.contains(['\\', ':', '\0']) || !path.split('/').all(plain) {
        bail!(
            Format,
            "files: expected a relative path of plain names, found {path:?}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_their_folder() {
        for good in ["a", "encoder/model.safetensors", "a/.b"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/etc/passwd",
            "../a",
            "a/../b",
            "a//b",
            "c:\\x",
            "a/",
            "./a",
        ] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }
}
