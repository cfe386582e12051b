//! A sentence-transformers folder beside its encoder: modules, pooling, prompts, lower case.
//!
//! A folder without `modules.json` is a plain Hugging Face checkpoint, which may have `1_Pooling`
//! all the same.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::encoder::bundle::CONFIG_LIMIT;
use crate::error::{Result, bail, error};
use crate::files;
use crate::model::Config;
use crate::ops::pool::Pooling;

const MODULES: &str = "modules.json";
const PROMPTS: &str = "config_sentence_transformers.json";
const LENGTHS: &str = "sentence_bert_config.json";

/// The places of a folder's modules.
pub(super) struct Modules {
    root: PathBuf,
    /// The folder with `config.json`, weights and tokenizer.
    pub(super) transformer: PathBuf,
    /// The folder with the configuration of the pooling, below the root.
    pooling: String,
    /// The vectors are made unit vectors there.
    normalizes: bool,
}

/// The file at `path` as JSON, `None` where there is none.
pub(super) fn json(path: &Path) -> Result<Option<Value>> {
    if path.exists() {
        files::read_json(path, CONFIG_LIMIT).map(Some)
    } else {
        Ok(None)
    }
}

impl Modules {
    /// The modules of the folder `root`.
    ///
    /// Errors: one of them is no encoder, pooling or normalisation, or they come in another order.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut modules = Self {
            root: root.to_owned(),
            transformer: root.to_owned(),
            pooling: "1_Pooling".to_owned(),
            normalizes: false,
        };
        let path = root.join(MODULES);
        let Some(list) = json(&path)? else {
            return Ok(modules);
        };
        modules.follow(&list).map_err(|e| e.at(path.display()))?;
        Ok(modules)
    }

    fn follow(&mut self, list: &Value) -> Result<()> {
        let Some(entries) = list.as_array() else {
            bail!(Format, "expected a list of modules, found none");
        };
        let mut seen: Vec<&str> = Vec::new();
        for entry in entries {
            let kind = entry["type"].as_str().unwrap_or_default();
            let kind = kind.rsplit('.').next().unwrap_or_default();
            let place = || plain(entry["path"].as_str().unwrap_or_default());
            match (kind, seen.as_slice()) {
                ("Transformer", []) => self.transformer = self.root.join(place()?),
                ("Pooling", ["Transformer"]) => self.pooling = place()?.to_owned(),
                ("Normalize", [.., "Pooling" | "Normalize"]) => self.normalizes = true,
                ("Transformer" | "Pooling" | "Normalize", before) => bail!(
                    Unsupported,
                    "expected Transformer, Pooling and Normalize in this order, found {kind} \
                     behind {before:?}"
                ),
                ("Dense", _) => bail!(
                    Unsupported,
                    "expected Transformer, Pooling and Normalize, found \"Dense\": a bundle ends \
                     with the pooling. Of an export of hubrouter `hubrouter generation import` \
                     takes the whole folder above, and base is the encoder alone"
                ),
                (other, _) => bail!(
                    Unsupported,
                    "expected Transformer, Pooling and Normalize, found {other:?}"
                ),
            }
            seen.push(kind);
        }
        if seen.is_empty() {
            bail!(
                Format,
                "expected at least the module Transformer, found none"
            );
        }
        Ok(())
    }

    /// What of them a bundle leaves out.
    pub(super) fn note(&self) -> Option<String> {
        let note = "modules.json normalises vectors: those of a bundle keep their length, on which no \
                    score depends";
        self.normalizes.then(|| note.to_owned())
    }

    /// The pooling: `told`, or that of the folder. `prefix`: the text before a prompt.
    ///
    /// Errors: it is neither the mean nor the first token's; it is of another width; it leaves the
    /// text before a prompt out.
    pub(super) fn pooling(
        &self,
        told: Option<&str>,
        config: &Config,
        prefix: &str,
    ) -> Result<Pooling> {
        if let Some(told) = told {
            return parse_pooling(told).ok_or_else(|| {
                error!(
                    InvalidRequest,
                    "pooling: expected mean or cls, found {told:?}"
                )
            });
        }
        let path = self.root.join(&self.pooling).join("config.json");
        let Some(pooling) = json(&path)? else {
            bail!(
                Format,
                "{}: expected {}/config.json, found none; say --pooling mean or --pooling cls",
                self.root.display(),
                self.pooling
            );
        };
        for key in ["word_embedding_dimension", "embedding_dimension"] {
            let stated = pooling[key].as_u64();
            if let Some(width) = stated.filter(|width| *width != config.hidden as u64) {
                bail!(
                    Mismatch,
                    "{}: {key}: expected {}, the encoder's width, found {width}",
                    path.display(),
                    config.hidden
                );
            }
        }
        if pooling["include_prompt"] == Value::Bool(false) && !prefix.is_empty() {
            bail!(
                Unsupported,
                "{}: include_prompt: expected true, found false: the mean is taken over all \
                 tokens, and {prefix:?} is before each prompt. --query-prefix \"\" leaves it out",
                path.display()
            );
        }
        mode(&pooling).map_err(|e| e.at(path.display()))
    }

    /// The texts before a prompt and before a model card, as the folder states them; and a remark
    /// where a prompt has another name.
    pub(super) fn prefixes(&self) -> Result<([String; 2], Option<String>)> {
        let Some(stated) = json(&self.root.join(PROMPTS))? else {
            return Ok(Default::default());
        };
        let prompt = |name: &str| stated["prompts"][name].as_str();
        let named = |names: &[&str]| names.iter().find_map(|name| prompt(name));
        let document = named(&["passage", "document"]).unwrap_or_default();
        let default = stated["default_prompt_name"].as_str();
        let (query, note) = match (prompt("query"), default.and_then(prompt)) {
            (Some(query), _) => (query, None),
            (None, Some(text)) => {
                let note = format!(
                    "{PROMPTS}: no prompt is called query; {text:?}, the default, is before each \
                     prompt (set it with --query-prefix)"
                );
                (text, Some(note))
            }
            (None, None) => ("", None),
        };
        Ok(([query.to_owned(), document.to_owned()], note))
    }

    /// Most tokens of a text, if the folder states it.
    pub(super) fn max_tokens(&self) -> Result<(&'static str, Option<u64>)> {
        let stated = json(&self.transformer.join(LENGTHS))?;
        let limit = stated.and_then(|stated| stated["max_seq_length"].as_u64());
        Ok((LENGTHS, limit))
    }

    /// Errors: texts are put in lower case before the tokenizer, which keeps capitals.
    pub(super) fn check_case(&self, tokenizer: &Value) -> Result<()> {
        let path = self.transformer.join(LENGTHS);
        let stated = json(&path)?;
        let lowers = stated.is_some_and(|stated| stated["do_lower_case"] == Value::Bool(true));
        if lowers && !lower_cases(&tokenizer["normalizer"]) {
            bail!(
                Unsupported,
                "{}: do_lower_case: expected false, or a tokenizer that puts texts in lower case, \
                 found true and one that does not",
                path.display()
            );
        }
        Ok(())
    }
}

/// `path`, which must not lead out of the folder.
fn plain(path: &str) -> Result<&str> {
    let mut parts = Path::new(path).components();
    if !parts.all(|part| matches!(part, Component::Normal(_))) {
        bail!(
            Format,
            "path: expected a folder below this one, found {path:?}"
        );
    }
    Ok(path)
}

/// Whether the normalizer of a `tokenizer.json` puts texts in lower case.
fn lower_cases(normalizer: &Value) -> bool {
    let parts = normalizer["normalizers"].as_array();
    normalizer["type"] == "Lowercase"
        || normalizer["lowercase"] == Value::Bool(true)
        || parts.is_some_and(|parts| parts.iter().any(lower_cases))
}

/// The one mode of a pooling's configuration, of the old form or of the new one.
fn mode(pooling: &Value) -> Result<Pooling> {
    let modes = match &pooling["pooling_mode"] {
        Value::String(mode) => vec![mode.as_str()],
        Value::Array(modes) => modes.iter().filter_map(Value::as_str).collect(),
        _ => {
            let on: Vec<&str> = pooling
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(_, value)| **value == Value::Bool(true))
                .filter(|(key, _)| key.starts_with("pooling_mode_"))
                .map(|(key, _)| key.as_str())
                .collect();
            return match on.as_slice() {
                ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
                ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
                other => bail!(
                    Unsupported,
                    "expected pooling_mode_mean_tokens or pooling_mode_cls_token alone, found \
                     {other:?}"
                ),
            };
        }
    };
    let one = match modes.as_slice() {
        [one] => parse_pooling(one),
        _ => None,
    };
    one.ok_or_else(|| {
        error!(
            Unsupported,
            "pooling_mode: expected mean or cls alone, found {modes:?}"
        )
    })
}

fn parse_pooling(text: &str) -> Option<Pooling> {
    match text {
        "mean" => Some(Pooling::Mean),
        "cls" => Some(Pooling::Cls),
        _ => None,
    }
}
