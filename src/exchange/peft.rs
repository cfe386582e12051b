//! LoRA adapters in PEFT's form: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The tensors say which maps have factors, and their shapes the ranks. The configuration gives the
//! scale; what it asks for beyond plain LoRA is refused by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Result, bail, error};
use crate::files;
use crate::model::Config;
use crate::model::lora::{Adapter, Factors, Lora, Target, map_of};
use crate::num::to_f32;
use crate::weights::Weights;

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";

/// Largest configuration that is read.
const CONFIG_LIMIT: u64 = 1 << 20;

/// Largest rank that is read: all maps get room for it.
const MOST: usize = 1024;

/// Fields that do not change the product of the factors, or that are read.
const KNOWN: [&str; 26] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ephemeral_gpu_offload",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Initial values that leave the weights of the encoder as they are. Others subtract from them what
/// the factors begin with.
const STARTS: [&str; 3] = ["eva", "gaussian", "orthogonal"];

/// An adapter that was read.
pub(super) struct PeftAdapter {
    pub(super) factors: Factors,
    /// What is worth a second look.
    pub(super) notes: Vec<String>,
}

/// The factors of one map as they are in the file: La [k, in], Lb [out, k].
type MapFactors = BTreeMap<(usize, Target), [Vec<f32>; 2]>;

/// Reads the adapter in `folder` for an encoder of `config` with this name.
///
/// Errors: a file is missing or malformed; it is no plain LoRA; a factor belongs to no map of the
/// encoder, has another shape or is not finite.
pub(super) fn read(folder: &Path, config: &Config, encoder: &str) -> Result<PeftAdapter> {
    let path = folder.join(CONFIG);
    let stated: Map<String, Value> = files::read_json(&path, CONFIG_LIMIT)?;
    let settings = PeftSettings::of(&stated).map_err(|e| e.at(path.display()))?;
    let path = folder.join(WEIGHTS);
    if !path.exists() && folder.join("adapter_model.bin").exists() {
        bail!(
            Unsupported,
            "{}: missing; adapter_model.bin is a pickle, which is not read: save the adapter with \
             PEFT's save_pretrained(FOLDER)",
            path.display()
        );
    }
    let weights = Weights::open(&path)?;
    let mut notes = settings.notes(encoder);
    let found = settings.factors(&weights, config, &mut notes)?;
    check_targets(&found, &stated)?;
    let factors = settings.assemble(found, config, &mut notes)?;
    Ok(PeftAdapter { factors, notes })
}

/// What of `adapter_config.json` decides the product.
struct PeftSettings {
    rank: usize,
    /// Other ranks that some maps have.
    ranks: BTreeSet<usize>,
    alpha: f64,
    /// The scale is alpha / sqrt(r).
    by_root: bool,
    /// The encoder that the adapter was made for.
    base: Option<String>,
}

impl PeftSettings {
    fn of(stated: &Map<String, Value>) -> Result<Self> {
        check_kind(stated)?;
        let rank = |value: &Value| value.as_u64().and_then(|r| usize::try_from(r).ok());
        let rank = |field: &str, value: &Value| match rank(value) {
            Some(rank @ 1..=MOST) => Ok(rank),
            _ => bail!(
                Unsupported,
                "{field}: expected a rank from 1 to {MOST}, found {value}"
            ),
        };
        let field = |name: &str| stated.get(name).unwrap_or(&Value::Null);
        let others = field("rank_pattern").as_object();
        let ranks = others.into_iter().flatten();
        let ranks = ranks.map(|(map, value)| rank(&format!("rank_pattern: {map}"), value));
        let alpha = field("lora_alpha");
        let good = alpha.as_f64().filter(|alpha| (1e-6..=1e6).contains(alpha));
        Ok(Self {
            rank: rank("r", field("r"))?,
            ranks: ranks.collect::<Result<_>>()?,
            alpha: good.ok_or_else(|| {
                error!(
                    Unsupported,
                    "lora_alpha: expected a number from 1e-6 to 1e6, found {alpha}"
                )
            })?,
            by_root: *field("use_rslora") == Value::Bool(true),
            base: field("base_model_name_or_path").as_str().map(str::to_owned),
        })
    }

    fn notes(&self, encoder: &str) -> Vec<String> {
        let mut notes = Vec::new();
        let last = |path: &str| {
            let last = path.trim_end_matches('/').rsplit('/').next();
            last.unwrap_or_default().to_lowercase()
        };
        let base = self.base.as_deref().unwrap_or_default();
        if !base.is_empty() && last(base) != last(encoder) {
            notes.push(format!(
                "base_model_name_or_path is {base:?}; the encoder here is {encoder:?}, and only \
                 shapes could be compared"
            ));
        }
        if self.by_root {
            notes.push("use_rslora: the scale is alpha / sqrt(r)".to_owned());
        }
        notes
    }

    /// The factors of every map that has some.
    fn factors(
        &self,
        weights: &Weights,
        config: &Config,
        notes: &mut Vec<String>,
    ) -> Result<MapFactors> {
        let mut found = MapFactors::new();
        let mut unused = false;
        for name in weights.names() {
            let Some((module, part)) = factor(name) else {
                return Err(no_factor(name));
            };
            if module.ends_with("pooler.dense") {
                unused = true;
                continue;
            }
            let at = module.find("encoder.layer.").unwrap_or(0);
            let (before, path) = module.split_at(at);
            let place = map_of(path).filter(|_| before.is_empty() || before.ends_with('.'));
            let Some((layer, target)) = place else {
                return Err(no_factor(name));
            };
            if layer >= config.layers {
                bail!(
                    Mismatch,
                    "{WEIGHTS}: {name}: expected a layer below {}, which the encoder has, found \
                     {layer}",
                    config.layers
                );
            }
            if part == 1 {
                // It is read with its La.
                continue;
            }
            let pair = self.pair(weights, name, target.shape(config))?;
            if found.insert((layer, target), pair).is_some() {
                bail!(
                    Unsupported,
                    "{WEIGHTS}: {name}: expected the factors of one encoder, found those of two"
                );
            }
        }
        if found.is_empty() {
            bail!(
                Mismatch,
                "{WEIGHTS}: expected factors of at least one map, found none"
            );
        }
        Self::check_pairs(weights)?;
        if unused {
            notes.push("pooler.dense: left out; no vector depends on the pooler".to_owned());
        }
        Ok(found)
    }

    /// La [k, in] called `name`, and its Lb [out, k].
    fn pair(
        &self,
        weights: &Weights,
        name: &str,
        (inputs, outputs): (usize, usize),
    ) -> Result<[Vec<f32>; 2]> {
        let rank = weights.shape(name).and_then(|shape| shape.first());
        let rank = rank.copied().unwrap_or(0);
        if rank != self.rank && !self.ranks.contains(&rank) {
            bail!(
                Mismatch,
                "{WEIGHTS}: {name}: expected rank {}, as r says, found {rank}",
                self.rank
            );
        }
        let other = name.replace(".lora_A.", ".lora_B.");
        let a = finite(weights, name, &[rank, inputs])?;
        let b = finite(weights, &other, &[outputs, rank])?;
        Ok([a, b])
    }

    /// Errors: there is an Lb without its La.
    fn check_pairs(weights: &Weights) -> Result<()> {
        let names = weights.names().filter(|name| name.contains(".lora_B."));
        for name in names {
            let other = name.replace(".lora_B.", ".lora_A.");
            if weights.shape(&other).is_none() {
                bail!(
                    Mismatch,
                    "{WEIGHTS}: {other}: expected beside {name}, found no such tensor"
                );
            }
        }
        Ok(())
    }

    /// One rank and one scale for all maps: smaller ranks are filled with zeros.
    fn assemble(
        &self,
        mut found: MapFactors,
        config: &Config,
        notes: &mut Vec<String>,
    ) -> Result<Factors> {
        let rank_of = |target: Target, [a, _]: &[Vec<f32>; 2]| a.len() / target.shape(config).0;
        let ranks: BTreeSet<usize> = found
            .iter()
            .map(|((_, target), pair)| rank_of(*target, pair))
            .collect();
        let r = ranks.last().copied().unwrap_or(1);
        if ranks.len() > 1 {
            notes.push(format!(
                "rank_pattern: maps of smaller rank are filled with zeros up to {r}"
            ));
        }
        let scale = self.scale(r);
        for ((_, target), pair) in &mut found {
            let own = self.scale(rank_of(*target, pair));
            if own != scale {
                let factor = to_f32(own / scale);
                pair[1].iter_mut().for_each(|value| *value *= factor);
            }
        }
        let targets: BTreeSet<Target> = found.keys().map(|(_, target)| *target).collect();
        let lora = Lora {
            r,
            alpha: to_f32(scale * r as f64),
            targets: targets.into_iter().collect(),
        };
        let (maps, there) = (lora.targets.len() * config.layers, found.len());
        if there < maps {
            notes.push(format!(
                "{} of {maps} maps have no factors in the file and stay as the encoder has them",
                maps - there
            ));
        }
        let adapter = Adapter::new(&lora, config);
        Factors::of_maps(adapter, |layer, branch| {
            Ok(found.remove(&(layer, branch.target)))
        })
    }

    fn scale(&self, rank: usize) -> f64 {
        let rank = rank as f64;
        self.alpha / if self.by_root { rank.sqrt() } else { rank }
    }
}

/// Errors: the list `target_modules` names maps of the encoder of which the file has none.
fn check_targets(found: &MapFactors, stated: &Map<String, Value>) -> Result<()> {
    let is_excluding = stated.get("exclude_modules").is_some_and(|v| !is_off(v));
    let Some(Value::Array(list)) = stated.get("target_modules").filter(|_| !is_excluding) else {
        return Ok(());
    };
    let present: BTreeSet<Target> = found.keys().map(|(_, target)| *target).collect();
    for target in Target::ALL {
        let path = format!(".{}", target.path());
        let mut named = list.iter().filter_map(Value::as_str);
        let is_named = named.any(|name| path.ends_with(&format!(".{name}")));
        if is_named && !present.contains(&target) {
            bail!(
                Mismatch,
                "{WEIGHTS}: expected factors of {}, since target_modules has it, found none",
                target.path()
            );
        }
    }
    Ok(())
}

/// Errors: it is no LoRA, or more than the product of two factors.
fn check_kind(stated: &Map<String, Value>) -> Result<()> {
    let field = |name: &str| stated.get(name).unwrap_or(&Value::Null);
    if field("peft_type") != "LORA" {
        bail!(
            Unsupported,
            "peft_type: expected \"LORA\", found {}",
            field("peft_type")
        );
    }
    if !is_off(field("bias")) && field("bias") != "none" {
        bail!(
            Unsupported,
            "bias: expected \"none\", since biases are not trained here, found {}",
            field("bias")
        );
    }
    if !is_off(field("alpha_pattern")) {
        bail!(
            Unsupported,
            "alpha_pattern: expected none, since all maps share one scale here, found {}",
            field("alpha_pattern")
        );
    }
    let start = field("init_lora_weights");
    let good = start.as_str().is_none_or(|start| STARTS.contains(&start));
    if !good {
        bail!(
            Unsupported,
            "init_lora_weights: expected a start that leaves the encoder as it is, found \
             {start}: save the adapter with PEFT's path_initial_model_for_weight_conversion"
        );
    }
    // What later versions of PEFT add is off by default.
    let stranger = stated
        .iter()
        .find(|(name, value)| !KNOWN.contains(&name.as_str()) && !is_off(value));
    if let Some((name, value)) = stranger {
        bail!(
            Unsupported,
            "{name}: expected none, since only plain LoRA is read, found {value}"
        );
    }
    Ok(())
}

/// Whether a field says nothing.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// The module of the factor `name`, and 0 for La, 1 for Lb.
fn factor(name: &str) -> Option<(&str, usize)> {
    let parts = [".lora_A.weight", ".lora_B.weight"];
    let mut parts = parts.iter().enumerate();
    parts.find_map(|(part, end)| Some((name.strip_suffix(end)?, part)))
}

fn no_factor(name: &str) -> crate::Error {
    let maps = Target::ALL.map(Target::path).join(", ");
    error!(
        Unsupported,
        "{WEIGHTS}: {name}: expected lora_A.weight or lora_B.weight of encoder.layer.N.MAP, MAP \
         one of {maps}"
    )
}

fn finite(weights: &Weights, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let values = weights.view(name, shape)?.to_f32();
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => bail!(
            Numeric,
            "{WEIGHTS}: {name}: element {at}: expected a finite number, found {}",
            values[at]
        ),
    }
}

/// The two files of `factors`, which were trained on the encoder called `base`.
pub(super) fn files(factors: &Factors, base: &str) -> Result<[(&'static str, Vec<u8>); 2]> {
    let lora = &factors.adapter.lora;
    let paths: Vec<String> = lora
        .targets
        .iter()
        .map(|target| target.path().replace('.', "\\."))
        .collect();
    // A list would take output.dense for attention.output.dense as well.
    let targets = format!("(.*\\.)?encoder\\.layer\\.\\d+\\.({})", paths.join("|"));
    let config = json!({
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "target_modules": targets,
        "use_dora": false,
        "use_rslora": false,
    });
    Ok([
        (CONFIG, files::to_json(&config)?),
        (WEIGHTS, factors.write()?),
    ])
}
