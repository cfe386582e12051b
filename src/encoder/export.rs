//! An encoder as a folder that transformers and sentence-transformers load.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Encoder;
use super::bundle::{self, CONFIG_LIMIT, TEXT_LIMIT, read_manifest};
use crate::error::{Result, bail, error};
use crate::files::{self, FileDigest};
use crate::model::lora::Factors;
use crate::model::parameters;
use crate::ops::pool::Pooling;
use crate::weights::{Dtype, to_safetensors};

/// The numbers of an exported checkpoint.
pub(crate) enum ExportedWeights<'f> {
    /// As the bundle has them, in its element type.
    Stored,
    /// As they are served in f32, with these factors merged in.
    Served(Option<&'f Factors>),
}

impl Encoder {
    /// The files of a sentence-transformers folder, which is a checkpoint of transformers too:
    /// names and bytes. `folder`: that of the bundle. `more`: types and paths of modules behind
    /// the pooling, whose folders are not in the result.
    ///
    /// Errors: a file of the bundle was changed since it was opened; a merged weight is not finite.
    pub(crate) fn checkpoint(
        &self,
        folder: &Path,
        weights: &ExportedWeights<'_>,
        more: &[(&str, &str)],
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let manifest = &self.bundle.manifest;
        let (_, revision) = read_manifest(folder)?;
        if revision != self.bundle.revision {
            bail!(
                Mismatch,
                "{}: was changed since it was opened",
                folder.display()
            );
        }
        let read = |name: &str, limit: u64| -> Result<Vec<u8>> {
            let digest: Option<&FileDigest> = manifest.files.get(name);
            let digest = digest.ok_or_else(|| error!(Format, "files: expected {name}"))?;
            digest.read(&folder.join(name), limit)
        };
        let path = folder.join(bundle::CONFIG);
        let mut config: Map<String, Value> =
            files::parse_json(&path, &read(bundle::CONFIG, CONFIG_LIMIT)?)?;
        let tokenizer = read(bundle::TOKENIZER, TEXT_LIMIT)?;
        let parsed: Value = files::parse_json(&folder.join(bundle::TOKENIZER), &tokenizer)?;
        let pad = pad_token(&config, &parsed);
        // Newer versions of transformers compute in the file's type unless this says otherwise.
        for key in ["dtype", "torch_dtype"] {
            config.insert(key.to_owned(), "float32".into());
        }
        let tokens = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_tokens(),
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": false,
            "pad_token": pad,
        });
        let mut files = vec![
            (bundle::CONFIG.to_owned(), files::to_json(&config)?),
            (bundle::TOKENIZER.to_owned(), tokenizer),
            ("tokenizer_config.json".to_owned(), files::to_json(&tokens)?),
            (bundle::WEIGHTS.to_owned(), self.tensors(weights)?),
        ];
        if let Ok(licence) = read(bundle::LICENCE, TEXT_LIMIT) {
            files.push((bundle::LICENCE.to_owned(), licence));
        }
        let front = format!("---\nlicense: {}\n---\n\n", one_line(&manifest.licence));
        let readme = format!("{front}The encoder {}.\n", one_line(&manifest.name));
        files.push(("README.md".to_owned(), readme.into_bytes()));
        files.extend(self.modules(more)?);
        Ok(files)
    }

    /// The files by which sentence-transformers knows modules, prompts and lengths.
    fn modules(&self, more: &[(&str, &str)]) -> Result<Vec<(String, Vec<u8>)>> {
        let manifest = &self.bundle.manifest;
        let all = [("Transformer", ""), ("Pooling", "1_Pooling")];
        let all = all.iter().chain(more).enumerate();
        let module = |(place, (kind, path)): (usize, &(&str, &str))| {
            json!({
                "idx": place, "name": place.to_string(), "path": path,
                "type": format!("sentence_transformers.models.{kind}"),
            })
        };
        let modules: Vec<Value> = all.map(module).collect();
        let query = &manifest.query_prefix;
        let default = (!query.is_empty()).then_some("query");
        let prompts = json!({
            "prompts": {"query": query, "document": manifest.document_prefix},
            "default_prompt_name": default,
            "similarity_fn_name": "cosine",
        });
        let lengths = json!({"max_seq_length": self.max_tokens(), "do_lower_case": false});
        Ok(vec![
            ("modules.json".to_owned(), files::to_json(&modules)?),
            (
                "config_sentence_transformers.json".to_owned(),
                files::to_json(&prompts)?,
            ),
            (
                "sentence_bert_config.json".to_owned(),
                files::to_json(&lengths)?,
            ),
        ])
    }

    /// `config.json` of the folder `1_Pooling`.
    pub(crate) fn pooling_config(&self) -> Result<Vec<u8>> {
        let mean = self.bundle.manifest.pooling == Pooling::Mean;
        files::to_json(&json!({
            "word_embedding_dimension": self.width(),
            "pooling_mode_cls_token": !mean,
            "pooling_mode_mean_tokens": mean,
            "pooling_mode_max_tokens": false,
            "pooling_mode_mean_sqrt_len_tokens": false,
            "pooling_mode_weightedmean_tokens": false,
            "pooling_mode_lasttoken": false,
            "include_prompt": true,
        }))
    }

    /// `model.safetensors`.
    fn tensors(&self, weights: &ExportedWeights<'_>) -> Result<Vec<u8>> {
        let own = &self.bundle.weights;
        own.check_unchanged()?;
        let mut tensors = Vec::new();
        for (name, shape) in parameters::expected(self.config()) {
            let (dtype, bytes) = match weights {
                ExportedWeights::Stored => {
                    let view = own.view(&name, &shape)?;
                    let dtype = match view.dtype {
                        Dtype::F32 => safetensors::Dtype::F32,
                        Dtype::F16 => safetensors::Dtype::F16,
                        Dtype::Bf16 => safetensors::Dtype::BF16,
                    };
                    (dtype, view.bytes().to_vec())
                }
                ExportedWeights::Served(factors) => {
                    let values = parameters::served(own, *factors, &name, &shape)?;
                    let bytes = bytemuck::cast_slice(&values).to_vec();
                    (safetensors::Dtype::F32, bytes)
                }
            };
            tensors.push((name, dtype, shape, bytes));
        }
        own.release();
        // transformers refuses a file that does not say whose tensors these are.
        let format = [("format".to_owned(), "pt".to_owned())].into();
        to_safetensors(bundle::WEIGHTS, &tensors, Some(format))
    }

    /// True where merged weights are rounded to f16 before they serve.
    pub(crate) fn merges_in_f16(&self) -> bool {
        let config = self.config();
        let name = "encoder.layer.0.attention.self.query.weight";
        let view = self
            .bundle
            .weights
            .view(name, &[config.hidden, config.hidden]);
        view.is_ok_and(|view| view.dtype == Dtype::F16)
    }

    /// How the vectors of tokens become one: `mean` or `cls`.
    pub(crate) fn pooling_name(&self) -> &'static str {
        match self.bundle.manifest.pooling {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
        }
    }

    /// The text before each prompt.
    pub(crate) fn query_prefix(&self) -> &str {
        &self.bundle.manifest.query_prefix
    }
}

/// The token that fills a batch, by the checkpoint's number of it; `None` if that is no token's.
fn pad_token(config: &Map<String, Value>, tokenizer: &Value) -> Option<String> {
    let usual = match config.get("model_type").and_then(Value::as_str) {
        Some("bert") => 0,
        _ => 1,
    };
    let stated = config.get("pad_token_id").and_then(Value::as_u64);
    let id = stated.unwrap_or(usual);
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let mut added = added.filter(|token| token["id"].as_u64() == Some(id));
    if let Some(token) = added.next() {
        return token["content"].as_str().map(str::to_owned);
    }
    match &tokenizer["model"]["vocab"] {
        Value::Object(pieces) => {
            let mut pieces = pieces.iter();
            let of_it = pieces.find(|(_, number)| number.as_u64() == Some(id));
            of_it.map(|(piece, _)| piece.clone())
        }
        Value::Array(pieces) => {
            let piece = usize::try_from(id).ok().and_then(|id| pieces.get(id));
            piece.and_then(|piece| piece[0].as_str()).map(str::to_owned)
        }
        _ => None,
    }
}

/// `text` without line breaks, for the front matter of a README.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
