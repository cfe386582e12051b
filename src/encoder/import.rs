//! Import of a Hugging Face folder as an encoder bundle.

mod modules;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::Value;

use self::modules::{Modules, json};
use crate::device::cpu::Cpu;
use crate::encoder::bundle::{self, Bundle, BundleManifest, CONFIG_LIMIT, TEXT_LIMIT};
use crate::error::{Result, bail, error};
use crate::files::{self, FileDigest, Staged};
use crate::model::{Config, parameters};
use crate::ops::pool::Pooling;
use crate::weights::{Dtype, Weights, to_safetensors};

/// Settings of an import; those that are `None` are read from the checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportOptions {
    /// Name of the encoder. `None`: the name of the target folder.
    pub name: Option<String>,
    /// `f32`, `f16` or `bf16`. `None`: that of the checkpoint.
    pub dtype: Option<String>,
    /// `mean` or `cls`. `None`: that of the checkpoint's pooling module.
    pub pooling: Option<String>,
    /// Most tokens of a prompt. `None`: the smallest limit that the checkpoint states.
    pub max_tokens: Option<usize>,
    /// Text before a prompt. `None`: the checkpoint's prompt called `query`.
    pub query_prefix: Option<String>,
    /// Text before a model card. `None`: the checkpoint's prompt called `passage` or `document`.
    pub document_prefix: Option<String>,
    /// Licence of the weights. `None`: that of the checkpoint's README.md.
    pub licence: Option<String>,
    /// Where the checkpoint came from. `None`: the source folder's name.
    pub source: Option<String>,
}

/// The bundle that an import wrote.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// The bundle's folder.
    pub folder: PathBuf,
    /// Name of the encoder.
    pub name: String,
    /// Element type of the weights.
    pub dtype: String,
    /// `mean` or `cls`.
    pub pooling: String,
    /// Tokens of a prompt.
    pub max_tokens: usize,
    /// Hidden width.
    pub width: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Bytes of the weights.
    pub bytes: u64,
    /// Licence of the weights.
    pub licence: String,
    /// SHA-256 of the manifest, by which generations name their encoder.
    pub revision: String,
    /// Decisions that the import made by itself, and anything worth a second look.
    pub notes: Vec<String>,
}

/// Writes the checkpoint in the Hugging Face folder `from` as the encoder bundle `to`.
///
/// `to` must not exist. Weights are converted and checked: every tensor that the configuration
/// asks for, its shape, finite values, and with `f16` no overflow. The bundle is opened once
/// before this returns.
///
/// Errors: a file is missing or malformed; the network is of a kind that this crate does not
/// compute.
pub fn import_encoder(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: &ImportOptions,
) -> Result<Imported> {
    let (from, to) = (from.as_ref(), to.as_ref());
    if to.exists() {
        bail!(
            Refused,
            "{}: already exists; bundles are never rewritten",
            to.display()
        );
    }
    let Some(folder_name) = to.file_name().and_then(|name| name.to_str()) else {
        bail!(
            InvalidRequest,
            "{}: expected a folder with a name",
            to.display()
        );
    };
    let mut notes = Vec::new();
    let modules = Modules::read(from)?;
    let checkpoint = Checkpoint::of(from, &modules);
    let (config, config_json) = checkpoint.config()?;
    let [query_prefix, document_prefix] = checkpoint.prefixes(options, &mut notes)?;
    let pooling = modules.pooling(options.pooling.as_deref(), &config, &query_prefix)?;
    notes.extend(modules.note());
    let (tokenizer, parsed) = checkpoint.tokenizer()?;
    modules.check_case(&parsed)?;
    let max_tokens = checkpoint.max_tokens(options.max_tokens, &config, &parsed, &mut notes)?;
    let licence = checkpoint.licence_or_note(options.licence.as_ref(), &mut notes);
    let (weights, dtype) = checkpoint.weights(&config, options.dtype.as_deref())?;
    let name = options.name.as_deref().unwrap_or(folder_name).to_owned();
    let source = options.source.clone();
    let source = source.unwrap_or_else(|| checkpoint.name());
    let note = licence_note(&name, &source, &licence, dtype, from);
    let parts: [(&str, &[u8]); 4] = [
        (bundle::CONFIG, &config_json),
        (bundle::TOKENIZER, &tokenizer),
        (bundle::WEIGHTS, &weights),
        (bundle::LICENCE, note.as_bytes()),
    ];
    let digests = parts
        .iter()
        .map(|(name, bytes)| ((*name).to_owned(), FileDigest::of(bytes)));
    let manifest = BundleManifest {
        schema_version: 1,
        kind: bundle::KIND.into(),
        name: name.clone(),
        pooling,
        max_tokens,
        query_prefix,
        document_prefix,
        dtype: dtype_name(dtype).into(),
        licence: licence.clone(),
        source,
        files: digests.collect(),
    };
    let (folder, revision) = write_bundle(to, folder_name, &parts, &manifest)?;
    Ok(Imported {
        folder,
        name,
        dtype: dtype_name(dtype).into(),
        pooling: match pooling {
            Pooling::Mean => "mean".into(),
            Pooling::Cls => "cls".into(),
        },
        max_tokens,
        width: config.hidden,
        layers: config.layers,
        bytes: weights.len() as u64,
        licence,
        revision,
        notes,
    })
}

/// Writes the bundle `to`, which is called `name`; its folder and the hash of its manifest.
///
/// It is opened under its temporary name: only a bundle that works gets its own.
fn write_bundle(
    to: &Path,
    name: &str,
    parts: &[(&str, &[u8])],
    manifest: &BundleManifest,
) -> Result<(PathBuf, String)> {
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let staged = Staged::new(parent)?;
    for (name, bytes) in parts {
        staged.write(name, bytes)?;
    }
    staged.write(bundle::MANIFEST, &files::to_json(manifest)?)?;
    let opened = Bundle::open(staged.path(), &Cpu::open(Some(1))?, None)?;
    opened.tokenizer.encode("", "a first prompt")?;
    Ok((staged.publish(name)?, opened.revision))
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    }
}

fn licence_note(name: &str, source: &str, licence: &str, dtype: Dtype, from: &Path) -> String {
    let mut note = format!(
        "Encoder weights: {name}\nSource: {source}\nLicence of the weights: {licence}\n\n\
         model.safetensors holds the tensors of the source's encoder, converted to {} by\n\
         `hubrouter encoder import`; tensors that inference does not use (pooler, position ids) were\n\
         left out. config.json and tokenizer.json are the source's own files.\n",
        dtype_name(dtype)
    );
    for file in ["LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE"] {
        if let Ok(text) = files::read_text(&from.join(file), 1 << 20) {
            note.push_str(&format!("\n---- {file} of the source ----\n{text}"));
        }
    }
    note
}

struct Checkpoint<'c> {
    root: &'c Path,
    /// With the configuration, the weights and the tokenizer; the root, but for old checkpoints.
    folder: &'c Path,
    modules: &'c Modules,
}

impl<'c> Checkpoint<'c> {
    fn of(root: &'c Path, modules: &'c Modules) -> Self {
        Self {
            root,
            folder: &modules.transformer,
            modules,
        }
    }

    /// `config.json`, parsed and as it is.
    fn config(&self) -> Result<(Config, Vec<u8>)> {
        let path = self.folder.join("config.json");
        let json = files::read_bytes(&path, CONFIG_LIMIT)?;
        let config = Config::from_json(&json).map_err(|e| e.at(path.display()))?;
        Ok((config, json))
    }

    /// `tokenizer.json`, as it is and parsed.
    fn tokenizer(&self) -> Result<(Vec<u8>, Value)> {
        let path = self.folder.join("tokenizer.json");
        if !path.exists() {
            bail!(
                Format,
                "{}: missing; save it with transformers: \
                 AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
                path.display()
            );
        }
        let bytes = files::read_bytes(&path, TEXT_LIMIT)?;
        let parsed = files::parse_json(&path, &bytes)?;
        Ok((bytes, parsed))
    }

    /// The texts before a prompt and before a model card.
    fn prefixes(&self, options: &ImportOptions, notes: &mut Vec<String>) -> Result<[String; 2]> {
        let ([query, document], note) = self.modules.prefixes()?;
        notes.extend(note.filter(|_| options.query_prefix.is_none()));
        Ok([
            options.query_prefix.clone().unwrap_or(query),
            options.document_prefix.clone().unwrap_or(document),
        ])
    }

    /// The licence: `told`, or else the checkpoint's; without either a note is added.
    fn licence_or_note(&self, told: Option<&String>, notes: &mut Vec<String>) -> String {
        told.cloned().or_else(|| self.licence()).unwrap_or_else(|| {
            let note =
                "no licence is stated in README.md; recorded as unknown (set it with --licence)";
            notes.push(note.into());
            "unknown".into()
        })
    }

    /// The folder's name; empty for one that has none.
    fn name(&self) -> String {
        let path = self.root.canonicalize().ok();
        let name = path.as_deref().and_then(Path::file_name);
        name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// The smallest limit that the checkpoint states anywhere.
    fn max_tokens(
        &self,
        told: Option<usize>,
        config: &Config,
        tokenizer: &Value,
        notes: &mut Vec<String>,
    ) -> Result<usize> {
        let most = config.max_tokens();
        if let Some(told) = told {
            if told > most {
                bail!(
                    InvalidRequest,
                    "max tokens: expected at most {most}, which the position table holds, found {told}"
                );
            }
            return Ok(told);
        }
        let mut stated = vec![("config.json", Some(most as u64))];
        stated.push((
            "tokenizer.json",
            tokenizer
                .pointer("/truncation/max_length")
                .and_then(Value::as_u64),
        ));
        stated.push(self.modules.max_tokens()?);
        let file = "tokenizer_config.json";
        let value = json(&self.folder.join(file))?;
        let limit = value.and_then(|value| value["model_max_length"].as_u64());
        stated.push((file, limit));
        let stated: Vec<(&str, u64)> = stated
            .into_iter()
            .filter_map(|(file, limit)| Some((file, limit?)))
            .collect();
        let smallest = stated
            .iter()
            .map(|(_, limit)| *limit)
            .min()
            .unwrap_or(most as u64);
        if stated.iter().any(|(_, limit)| *limit != smallest) {
            let list: Vec<String> = stated
                .iter()
                .map(|(file, limit)| format!("{file} {limit}"))
                .collect();
            notes.push(format!(
                "max tokens: {smallest}, the smallest of {} (set it with --max-tokens)",
                list.join(", ")
            ));
        }
        usize::try_from(smallest).map_err(|_| error!(Format, "max tokens: {smallest} is too large"))
    }

    /// `license:` in the front matter of README.md.
    fn licence(&self) -> Option<String> {
        let readme = files::read_text(&self.root.join("README.md"), 16 << 20).ok()?;
        let front = readme.strip_prefix("---")?.split("\n---").next()?;
        let line = front
            .lines()
            .find_map(|line| line.strip_prefix("license:"))?;
        Some(line.trim().trim_matches('"').to_owned()).filter(|licence| !licence.is_empty())
    }

    /// The bundle's `model.safetensors`.
    fn weights(&self, config: &Config, dtype: Option<&str>) -> Result<(Vec<u8>, Dtype)> {
        let one = self.folder.join("model.safetensors");
        let index = self.folder.join("model.safetensors.index.json");
        let weights = if one.exists() {
            Weights::open(&one)?
        } else if index.exists() {
            Weights::open(&index)?
        } else {
            let hint = if self.folder.join("adapter_config.json").exists() {
                "; adapter_config.json is that of a PEFT adapter: import the encoder that it was made \
                 for, and then `hubrouter generation adopt` takes the adapter"
            } else if self.folder.join("pytorch_model.bin").exists() {
                "; pytorch_model.bin is a pickle, which is not read: save it with transformers: model.save_pretrained(FOLDER)"
            } else {
                ""
            };
            bail!(
                Io,
                "{}: expected model.safetensors or model.safetensors.index.json, found neither{hint}",
                self.folder.display()
            );
        };
        let names = canonical_names(&weights);
        let mut views = Vec::new();
        for (name, shape) in parameters::expected(config) {
            let own = names.get(&name).map_or(name.as_str(), String::as_str);
            let view = weights.view(own, &shape)?;
            views.push((name, shape, view));
        }
        let dtype = match dtype {
            Some("f32") => Dtype::F32,
            Some("f16") => Dtype::F16,
            Some("bf16") => Dtype::Bf16,
            Some(other) => bail!(
                InvalidRequest,
                "dtype: expected f32, f16 or bf16, found {other:?}"
            ),
            None => views.first().map_or(Dtype::F32, |(_, _, view)| view.dtype),
        };
        let kind = match dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
        };
        let mut converted = Vec::with_capacity(views.len());
        for (name, shape, view) in views {
            let bytes = narrow(&view.to_f32(), dtype).map_err(|e| e.at(&name))?;
            converted.push((name, kind, shape, bytes));
        }
        Ok((
            to_safetensors("model.safetensors", &converted, None)?,
            dtype,
        ))
    }
}

/// Our name of each tensor -> the checkpoint's: with a prefix such as `bert.`, or with the gamma
/// and beta of old files.
fn canonical_names(weights: &Weights) -> HashMap<String, String> {
    let marker = "embeddings.word_embeddings.weight";
    let prefix = weights
        .names()
        .find_map(|name| name.strip_suffix(marker))
        .unwrap_or_default()
        .to_owned();
    weights
        .names()
        .filter_map(|name| {
            let own = name.strip_prefix(&prefix)?;
            let own = match own.strip_suffix("LayerNorm.gamma") {
                Some(stem) => format!("{stem}LayerNorm.weight"),
                None => match own.strip_suffix("LayerNorm.beta") {
                    Some(stem) => format!("{stem}LayerNorm.bias"),
                    None => own.to_owned(),
                },
            };
            Some((own, name.to_owned()))
        })
        .collect()
}

/// Little-endian `values` as `dtype`.
///
/// Errors: a value does not fit.
fn narrow(values: &[f32], dtype: Dtype) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.bytes());
    for (index, value) in values.iter().enumerate() {
        if !value.is_finite() {
            bail!(
                Numeric,
                "element {index}: expected a finite weight, found {value}"
            );
        }
        match dtype {
            Dtype::F32 => bytes.extend(value.to_le_bytes()),
            Dtype::F16 => {
                let half = f16::from_f32(*value);
                if !half.is_finite() {
                    bail!(
                        Numeric,
                        "element {index}: {value} does not fit f16; choose --dtype bf16 or f32"
                    );
                }
                bytes.extend(half.to_le_bytes());
            }
            Dtype::Bf16 => bytes.extend(bf16::from_f32(*value).to_le_bytes()),
        }
    }
    Ok(bytes)
}
