//! A generation as a folder that transformers with PEFT, and sentence-transformers, load.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use serde::Serialize;
use serde_json::json;

use super::form::{self, RouterEncoder, RouterFile};
use super::peft;
use crate::device::cpu::Cpu;
use crate::encoder::{Encoder, ExportedWeights};
use crate::error::{Result, bail};
use crate::files::{self, FileDigest, Staged};
use crate::generation::cards::CARDS;
use crate::generation::{Contents, EMBEDDINGS, GenerationId, PROJECTION};
use crate::model::bert::Bert;
use crate::model::lora::Factors;
use crate::num::{dot, to_f32};
use crate::ops::normalize::unit;
use crate::options::Options;
use crate::store::{Store, find_encoder};
use crate::weights::to_safetensors;

const BASE: &str = "base";
const ADAPTER: &str = "adapter";
const SENTENCE_TRANSFORMERS: &str = "sentence-transformers";
const SAMPLES: &str = "samples.safetensors";
const POOLING: &str = "1_Pooling";
const DENSE: &str = "2_Dense";

/// The prompts of the samples; [`REPEATED`], [`LONG`] times, is one more.
const PROMPTS: [&str; 8] = [
    "Hi",
    "Which model is right for this?",
    "Translate this letter into Spanish and keep its tone.",
    "Who is speaking in this recording, and what do they want?",
    "Was zeigt dieses Bild? Zähle die Straßenlaternen und die Häuser.",
    "これは何の写真ですか。",
    "def add(a, b):\n    return a - b  # find the bug",
    "  Predict tomorrow's temperature from these 1,024 rows: 12.5, 13.1, 11.9, ...  ",
];
const REPEATED: &str = "Compare these two translations of the letter, word by word. ";
const LONG: usize = 64;

/// `README.md` of the folder.
const README: &str = "# Router GENERATION

Written by hubrouter. `router.json` has the models by id, the temperature tau and the digests of all
files. `samples.safetensors` has the vectors of the prompts in `router.json`.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(\"sentence-transformers\")
u = model.encode([\"Which bird is singing?\"])
```

u is the unit query. The learned score of model j is u . E[j] / |E[j]| / tau, with E
(`model_embeddings.weight`) in `router.safetensors`. `base` is the encoder without an adapter.
";

/// What a README says more where there is an adapter.
const ADAPTED: &str = "
The adapter apart, for further training:

```python
from peft import PeftModel
from transformers import AutoModel

encoder = AutoModel.from_pretrained(\"base\")
encoder = PeftModel.from_pretrained(encoder, \"adapter\", is_trainable=True)
```
";

/// The folder that [`export`] wrote.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExportedGeneration {
    /// The generation.
    pub generation: GenerationId,
    /// The folder.
    pub folder: PathBuf,
    /// The encoder's name.
    pub encoder: String,
    /// Models with an id, retired ones included.
    pub models: usize,
    /// Width D of the router.
    pub width: usize,
    /// The adapter, if the encoder was trained.
    pub adapter: Option<ExportedAdapter>,
    /// Bytes of all files.
    pub bytes: u64,
    /// What the folder does not have, or has in another form.
    pub notes: Vec<String>,
}

/// An adapter of LoRA.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExportedAdapter {
    /// Rank r.
    pub r: usize,
    /// alpha; the scale is alpha / r.
    pub alpha: f32,
    /// Names of the maps in each layer.
    pub targets: Vec<String>,
}

/// Writes generation `id` as the folder `to`, which must not exist: the encoder as a checkpoint of
/// transformers, the adapter in PEFT's form, a sentence-transformers folder whose vectors are the
/// router's unit queries `[D]`, W and E as safetensors, and sample prompts with their vectors.
///
/// The folder has no memory, no kept prompts and no settings. It appears whole, by rename. The
/// vectors are computed on the CPU in f32. `options` say where the encoder is, and the threads.
///
/// Errors: `to` exists or cannot be written; the generation is damaged; its encoder is not found.
pub fn export(
    store: &Store,
    id: &GenerationId,
    to: impl AsRef<Path>,
    options: &Options,
) -> Result<ExportedGeneration> {
    let to = to.as_ref();
    let Some(name) = to.file_name().and_then(|name| name.to_str()) else {
        bail!(
            InvalidRequest,
            "{}: expected a folder with a name",
            to.display()
        );
    };
    if to.symlink_metadata().is_ok() {
        bail!(
            Refused,
            "{}: already exists; name a new folder",
            to.display()
        );
    }
    let contents = store.contents(id)?;
    let bundle = find_encoder(store.root(), &contents.manifest.encoder, options)?;
    let host = Arc::new(Cpu::open_at(options.threads, options.cpu)?);
    let options = options.clone().device("cpu");
    let encoder = Encoder::open_lazily(&bundle, host, &options)?;
    let export = Export {
        id,
        contents: &contents,
        encoder: &encoder,
        bundle: &bundle,
    };
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut folder = Folder {
        staged: Staged::new(parent)?,
        files: BTreeMap::new(),
    };
    let report = export.write(&mut folder)?;
    Ok(ExportedGeneration {
        folder: folder.staged.publish(name)?,
        ..report
    })
}

/// The folder under construction, with the digests of what is in it.
struct Folder {
    staged: Staged,
    files: BTreeMap<String, FileDigest>,
}

impl Folder {
    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.staged.write(name, bytes)?;
        self.files.insert(name.to_owned(), FileDigest::of(bytes));
        Ok(())
    }

    fn add_folder<N: AsRef<str>>(&mut self, name: &str, files: &[(N, Vec<u8>)]) -> Result<()> {
        self.staged.write_folder(name, files)?;
        let digests = files.iter().map(|(file, bytes)| {
            let path = format!("{name}/{}", file.as_ref());
            (path, FileDigest::of(bytes))
        });
        self.files.extend(digests);
        Ok(())
    }
}

struct Export<'e> {
    id: &'e GenerationId,
    contents: &'e Contents,
    encoder: &'e Encoder,
    /// The encoder's folder.
    bundle: &'e Path,
}

impl Export<'_> {
    fn write(&self, folder: &mut Folder) -> Result<ExportedGeneration> {
        let Self {
            contents, encoder, ..
        } = *self;
        let manifest = &contents.manifest;
        let factors = contents.factors(encoder.config())?;
        let factors = factors.filter(|factors| !factors.adapter.lora.targets.is_empty());
        self.write_encoders(folder, factors.as_ref())?;
        folder.add(form::HEAD, &self.head()?)?;
        let network = factors.as_ref().map(|factors| encoder.merged(factors));
        let network = network.transpose()?;
        let (prompts, samples) = self.samples(encoder.or_own(network.as_ref())?)?;
        folder.add(SAMPLES, &samples)?;
        folder.add("README.md", self.readme(factors.is_some()).as_bytes())?;
        let rounded = if encoder.merges_in_f16() {
            "f16"
        } else {
            "f32"
        };
        let file = RouterFile {
            schema_version: 1,
            kind: form::KIND.to_owned(),
            made_by: format!("hubrouter {} generation export", env!("CARGO_PKG_VERSION")),
            generation: Some(self.id.to_string()),
            encoder: RouterEncoder {
                name: encoder.name().to_owned(),
                width: encoder.width(),
                pooling: encoder.pooling_name().to_owned(),
                query_prefix: Some(encoder.query_prefix().to_owned()),
                max_tokens: Some(encoder.max_tokens()),
                revision: Some(encoder.revision().to_owned()),
                tokenizer_sha256: Some(encoder.tokenizer_revision().to_owned()),
            },
            width: manifest.width,
            tau: manifest.tau,
            trained: self.is_trained(),
            base: Some(BASE.to_owned()),
            adapter: factors.as_ref().map(|_| ADAPTER.to_owned()),
            sentence_transformers: Some(SENTENCE_TRANSFORMERS.to_owned()),
            samples: Some(SAMPLES.to_owned()),
            prompts,
            merged_in: factors.as_ref().map(|_| rounded.to_owned()),
            models: contents.hub.iter().map(|(_, model)| model.into()).collect(),
            files: folder.files.clone(),
        };
        folder.staged.write(form::ROUTER, &files::to_json(&file)?)?;
        let adapter = factors.as_ref().map(|factors| {
            let lora = &factors.adapter.lora;
            ExportedAdapter {
                r: lora.r,
                alpha: lora.alpha,
                targets: lora.targets.iter().map(ToString::to_string).collect(),
            }
        });
        Ok(ExportedGeneration {
            generation: self.id.clone(),
            folder: PathBuf::new(),
            encoder: encoder.name().to_owned(),
            models: contents.hub.len(),
            width: manifest.width,
            bytes: folder.files.values().map(|digest| digest.bytes).sum(),
            notes: self.notes(adapter.is_some())?,
            adapter,
        })
    }

    /// The encoder, its adapter, and both merged.
    fn write_encoders(&self, folder: &mut Folder, factors: Option<&Factors>) -> Result<()> {
        let encoder = self.encoder;
        let base = encoder.checkpoint(self.bundle, &ExportedWeights::Stored, &[])?;
        folder.add_folder(BASE, &base)?;
        drop(base);
        let pooling = [("config.json", encoder.pooling_config()?)];
        folder.add_folder(&format!("{BASE}/{POOLING}"), &pooling)?;
        if let Some(factors) = factors {
            folder.add_folder(ADAPTER, &peft::files(factors, encoder.name())?)?;
        }
        let is_identity = is_identity(&self.contents.projection, self.contents.manifest.width);
        let more: &[(&str, &str)] = match is_identity {
            true => &[("Normalize", "2_Normalize")],
            false => &[("Dense", DENSE), ("Normalize", "3_Normalize")],
        };
        let served = ExportedWeights::Served(factors);
        let merged = encoder.checkpoint(self.bundle, &served, more)?;
        folder.add_folder(SENTENCE_TRANSFORMERS, &merged)?;
        drop(merged);
        folder.add_folder(&format!("{SENTENCE_TRANSFORMERS}/{POOLING}"), &pooling)?;
        if !is_identity {
            let dense = format!("{SENTENCE_TRANSFORMERS}/{DENSE}");
            folder.add_folder(&dense, &self.dense()?)?;
        }
        Ok(())
    }

    fn is_trained(&self) -> bool {
        let manifest = &self.contents.manifest;
        let learned = manifest.learned.as_ref();
        manifest.adapter.is_some() || learned.is_some_and(|learned| learned.trained)
    }

    fn notes(&self, is_adapted: bool) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        if self.contents.how()?.is_some() {
            let note = "the memory stays behind: the folder has the learned part of a score alone";
            notes.push(note.to_owned());
        }
        if is_adapted && self.encoder.merges_in_f16() {
            let note = "the encoder is stored in f16, so weights with the adapter are served \
                        rounded to f16; base with the adapter apart differs by that rounding";
            notes.push(note.to_owned());
        }
        Ok(notes)
    }

    /// The folder of the module that multiplies by W.
    fn dense(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let (width, inputs) = (self.contents.manifest.width, self.encoder.width());
        let config = json!({
            "in_features": inputs,
            "out_features": width,
            "bias": false,
            "activation_function": "torch.nn.modules.linear.Identity",
        });
        let bytes: &[u8] = bytemuck::cast_slice(&self.contents.projection);
        let tensor = ("linear.weight", Dtype::F32, vec![width, inputs], bytes);
        let format = [("format".to_owned(), "pt".to_owned())].into();
        let weights = to_safetensors("model.safetensors", &[tensor], Some(format))?;
        Ok(vec![
            ("config.json", files::to_json(&config)?),
            ("model.safetensors", weights),
        ])
    }

    /// W, E, and the vectors of cards where the generation has them as a part.
    fn head(&self) -> Result<Vec<u8>> {
        let contents = self.contents;
        let (width, inputs, models) = (
            contents.manifest.width,
            self.encoder.width(),
            contents.hub.len(),
        );
        let cards = contents.parts.contains_key(CARDS);
        let cards = cards.then(|| contents.cards()).transpose()?;
        let mut tensors = vec![
            (PROJECTION, [width, inputs], &contents.projection),
            (EMBEDDINGS, [models, width], &contents.embeddings),
        ];
        tensors.extend(cards.as_ref().map(|c| (form::CARDS, [models, inputs], c)));
        let tensor = |(name, shape, values): (&'static str, [usize; 2], &Vec<f32>)| {
            let bytes: Vec<u8> = bytemuck::cast_slice(values).to_vec();
            (name, Dtype::F32, shape.to_vec(), bytes)
        };
        let tensors: Vec<_> = tensors.into_iter().map(tensor).collect();
        let format = [("format".to_owned(), "pt".to_owned())].into();
        to_safetensors(form::HEAD, &tensors, Some(format))
    }

    /// Prompts, and their tokens and vectors by `network`. A prompt that the tokenizer does not
    /// know is left out.
    fn samples(&self, network: &Bert) -> Result<(Vec<String>, Vec<u8>)> {
        let mut prompts: Vec<String> = PROMPTS.map(str::to_owned).into();
        prompts.push(REPEATED.repeat(LONG));
        let tokens = {
            let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
            self.encoder.token_ids(&texts)
        };
        let mut good = tokens.iter().map(Result::is_ok);
        prompts.retain(|_| good.next() == Some(true));
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let pooled = self.encoder.embed_by(network, &texts);
        let pooled = pooled.into_iter().collect::<Result<Vec<_>>>()?;
        let contents = self.contents;
        let (width, models) = (contents.manifest.width, contents.hub.len());
        let rows = contents.embeddings.chunks_exact(width);
        let keys: Vec<Vec<f32>> = rows.map(as_unit).collect();
        let (mut queries, mut learned) = (Vec::new(), Vec::new());
        for h in &pooled {
            let w = contents.projection.chunks_exact(h.len());
            let query = as_unit(&w.map(|w| to_f32(dot(w, h))).collect::<Vec<_>>());
            let tau = f64::from(contents.manifest.tau);
            learned.extend(keys.iter().map(|key| to_f32(dot(key, &query) / tau)));
            queries.extend(query);
        }
        let pooled = pooled.concat();
        let floats = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = [
            ("pooled", self.encoder.width(), &pooled),
            ("queries", width, &queries),
            ("learned", models, &learned),
        ]
        .into_iter()
        .map(|(name, columns, values)| {
            let shape = vec![prompts.len(), columns];
            (name.to_owned(), Dtype::F32, shape, floats(values))
        })
        .collect();
        for (place, ids) in tokens.into_iter().flatten().enumerate() {
            let bytes = bytemuck::cast_slice(&ids).to_vec();
            tensors.push((format!("{place}.ids"), Dtype::I32, vec![ids.len()], bytes));
        }
        Ok((prompts, to_safetensors(SAMPLES, &tensors, None)?))
    }

    /// How to load the folder, for people.
    fn readme(&self, is_adapted: bool) -> String {
        let mut text = README.replace("GENERATION", self.id.as_str());
        if is_adapted {
            text.push_str(ADAPTED);
        }
        text
    }
}

fn as_unit(row: &[f32]) -> Vec<f32> {
    let mut row = row.to_vec();
    unit(&mut row);
    row
}

/// Whether W [D, H] leaves every vector as it is.
pub(super) fn is_identity(projection: &[f32], width: usize) -> bool {
    let is_one = |(at, value): (usize, &f32)| {
        let diagonal = at / width.max(1) == at % width.max(1);
        *value == if diagonal { 1.0 } else { 0.0 }
    };
    projection.len() == width * width && projection.iter().enumerate().all(is_one)
}
