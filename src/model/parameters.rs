//! The weights of a BERT-family encoder on a device; field paths follow the checkpoint's names.

use std::sync::Arc;

use crate::device::{Device, Tensor};
use crate::error::{Error, Result, error};
use crate::model::Config;
use crate::model::lora::{Factors, Target, map_of};
use crate::ops::embed::WordRows;
use crate::ops::linear::Weight;
use crate::weights::{Dtype, View, Weights, half_bytes};

pub(crate) struct Parameters {
    pub(crate) embeddings: Embeddings,
    pub(crate) layers: Vec<Layer>,
    /// [2 layers, H]: gamma and beta of each layer's output; on a GPU.
    pub(crate) output_norms: Option<Tensor>,
}

pub(crate) struct Embeddings {
    /// [V, H]; no adapter touches them, so the networks of an encoder share them.
    pub(crate) words: Arc<WordRows>,
    /// [P, H]: position rows with the row of token type 0 added.
    pub(crate) places: Tensor,
    pub(crate) norm: Norm,
}

pub(crate) struct Layer {
    /// [3H, H]: query, key, value stacked.
    pub(crate) qkv: Weight,
    /// [H, H]
    pub(crate) attention_output: Weight,
    pub(crate) attention_norm: Norm,
    /// [F, H]
    pub(crate) intermediate: Weight,
    /// [H, F]
    pub(crate) output: Weight,
    pub(crate) output_norm: Norm,
}

impl Layer {
    /// The linear maps, in the order of the network.
    pub(crate) fn maps(&self) -> [&Weight; 4] {
        [
            &self.qkv,
            &self.attention_output,
            &self.intermediate,
            &self.output,
        ]
    }
}

/// gamma, beta: [1, H] each.
pub(crate) struct Norm {
    pub(crate) gamma: Tensor,
    pub(crate) beta: Tensor,
}

/// Every tensor that a checkpoint of `config` must hold, with its shape.
pub(crate) fn expected(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (h, f) = (config.hidden, config.feed_forward);
    let mut list = vec![
        (
            "embeddings.word_embeddings.weight".to_owned(),
            vec![config.vocabulary, h],
        ),
        (
            "embeddings.position_embeddings.weight".to_owned(),
            vec![config.positions, h],
        ),
    ];
    if config.types > 0 {
        list.push((
            "embeddings.token_type_embeddings.weight".to_owned(),
            vec![config.types, h],
        ));
    }
    let mut pair = |name: String, outputs: usize, inputs: Option<usize>| {
        let weight = inputs.map_or(vec![outputs], |inputs| vec![outputs, inputs]);
        list.push((format!("{name}.weight"), weight));
        list.push((format!("{name}.bias"), vec![outputs]));
    };
    pair("embeddings.LayerNorm".to_owned(), h, None);
    for layer in 0..config.layers {
        let at = |name: &str| format!("encoder.layer.{layer}.{name}");
        pair(at("attention.self.query"), h, Some(h));
        pair(at("attention.self.key"), h, Some(h));
        pair(at("attention.self.value"), h, Some(h));
        pair(at("attention.output.dense"), h, Some(h));
        pair(at("attention.output.LayerNorm"), h, None);
        pair(at("intermediate.dense"), f, Some(h));
        pair(at("output.dense"), h, Some(f));
        pair(at("output.LayerNorm"), h, None);
    }
    list
}

impl Parameters {
    /// Brings `weights` to `device`.
    ///
    /// Errors: a tensor is missing, has another shape or dtype, or is not finite.
    pub(crate) fn open(
        device: &Device,
        weights: &Weights,
        config: &Config,
        words: &Arc<WordRows>,
    ) -> Result<Self> {
        Self::read(&Reader {
            device,
            weights,
            config,
            weight: Weight::new,
            factors: None,
            words,
        })
    }

    /// The rows of tokens, which the networks of an encoder share.
    pub(crate) fn words(
        device: &Device,
        weights: &Weights,
        config: &Config,
    ) -> Result<Arc<WordRows>> {
        let name = "embeddings.word_embeddings.weight";
        let table = weights.table(name, config.vocabulary, config.hidden)?;
        Ok(Arc::new(WordRows::new(device, table)?))
    }

    /// As [`Parameters::open`], with `factors` added to the weights: W + s Lb La, in the
    /// checkpoint's dtype where that is f16, so that it is served as fast.
    pub(crate) fn open_merged(
        device: &Device,
        weights: &Weights,
        config: &Config,
        words: &Arc<WordRows>,
        factors: &Factors,
    ) -> Result<Self> {
        Self::read(&Reader {
            device,
            weights,
            config,
            weight: Weight::new,
            factors: Some(factors),
            words,
        })
    }

    /// As [`Parameters::open`], with linear maps that gradients go back through.
    pub(crate) fn open_for_learning(
        device: &Device,
        weights: &Weights,
        config: &Config,
        words: &Arc<WordRows>,
    ) -> Result<Self> {
        Self::read(&Reader {
            device,
            weights,
            config,
            weight: Weight::for_learning,
            factors: None,
            words,
        })
    }

    fn read(read: &Reader<'_>) -> Result<Self> {
        let Reader { device, config, .. } = *read;
        let h = config.hidden;
        let mut places = read.finite(
            "embeddings.position_embeddings.weight",
            &[config.positions, h],
        )?;
        if config.types > 0 {
            let types = read.finite(
                "embeddings.token_type_embeddings.weight",
                &[config.types, h],
            )?;
            for row in places.chunks_exact_mut(h) {
                for (place, value) in row.iter_mut().zip(&types[..h]) {
                    *place += value;
                }
            }
        }
        let embeddings = Embeddings {
            words: Arc::clone(read.words),
            places: device.upload("places", h, &places)?,
            norm: read.norm("embeddings.LayerNorm")?,
        };
        let mut layers: Vec<Option<Result<Layer>>> = (0..config.layers).map(|_| None).collect();
        let each = |layer: usize, place: &mut [Option<Result<Layer>>]| {
            place.fill_with(|| Some(read.layer(layer)));
        };
        match device {
            // Work that is worth a thread for each layer.
            Device::Cpu(cpu) => cpu.each(&mut layers, 1, h * h * h, each),
            Device::Gpu(_) => layers
                .chunks_mut(1)
                .enumerate()
                .for_each(|(n, l)| each(n, l)),
        }
        let layers = layers.into_iter().flatten().collect::<Result<_>>()?;
        Ok(Self {
            embeddings,
            layers,
            output_norms: read.output_norms()?,
        })
    }
}

struct Reader<'r> {
    device: &'r Device,
    weights: &'r Weights,
    config: &'r Config,
    /// The constructor of linear maps.
    weight: MakeWeight,
    /// The adapter that is merged into them.
    factors: Option<&'r Factors>,
    /// Rows of tokens that are there already.
    words: &'r Arc<WordRows>,
}

type MakeWeight = fn(&Device, &[(&str, View<'_>)], &[f32]) -> Result<Weight>;

/// The tensor `name`, widened to f32.
///
/// Errors: it is missing, has another shape or dtype, or is not finite.
pub(crate) fn finite(weights: &Weights, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let values = weights.view(name, shape)?.to_f32();
    if !values.iter().all(|value| value.is_finite()) {
        return Err(not_finite(name));
    }
    Ok(values)
}

/// Of the tensor `name`.
pub(crate) fn not_finite(name: &str) -> Error {
    error!(
        Numeric,
        "{name}: expected finite weights, found infinity or NaN"
    )
}

impl Reader<'_> {
    fn finite(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        finite(self.weights, name, shape)
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        let h = self.config.hidden;
        let read = |part: &str| self.finite(&format!("{name}.{part}"), &[h]);
        Ok(Norm {
            gamma: self.device.upload("gamma", h, &read("weight")?)?,
            beta: self.device.upload("beta", h, &read("bias")?)?,
        })
    }

    fn output_norms(&self) -> Result<Option<Tensor>> {
        if matches!(self.device, Device::Cpu(_)) {
            return Ok(None);
        }
        let h = self.config.hidden;
        let mut rows = Vec::new();
        for layer in 0..self.config.layers {
            for part in ["weight", "bias"] {
                let name = format!("encoder.layer.{layer}.output.LayerNorm.{part}");
                rows.extend(self.finite(&name, &[h])?);
            }
        }
        self.device.upload("output norms", h, &rows).map(Some)
    }

    /// The maps `targets` of `layer` stacked.
    fn linear(&self, layer: usize, targets: &[Target]) -> Result<Weight> {
        let (inputs, outputs) = targets[0].shape(self.config);
        let mut maps = Vec::with_capacity(targets.len());
        let mut bias = Vec::with_capacity(targets.len() * outputs);
        for target in targets {
            let name = format!("encoder.layer.{layer}.{}", target.path());
            let view = self
                .weights
                .view(&format!("{name}.weight"), &[outputs, inputs])?;
            bias.extend(self.finite(&format!("{name}.bias"), &[outputs])?);
            let merged = self
                .factors
                .map(|factors| merged(factors, layer, *target, view));
            maps.push((name, view, merged));
        }
        let parts: Vec<(&str, View<'_>)> = maps
            .iter()
            .map(|(name, view, merged)| {
                let view = match merged {
                    None => *view,
                    Some(Merged::Half(bytes)) => View::of_half(bytes, inputs),
                    Some(Merged::Full(values)) => View::of_f32(values, inputs),
                };
                (name.as_str(), view)
            })
            .collect();
        (self.weight)(self.device, &parts, &bias)
    }

    fn layer(&self, layer: usize) -> Result<Layer> {
        let at = |name: &str| format!("encoder.layer.{layer}.{name}");
        Ok(Layer {
            qkv: self.linear(layer, &[Target::Query, Target::Key, Target::Value])?,
            attention_output: self.linear(layer, &[Target::AttentionOutput])?,
            attention_norm: self.norm(&at("attention.output.LayerNorm"))?,
            intermediate: self.linear(layer, &[Target::Intermediate])?,
            output: self.linear(layer, &[Target::Output])?,
            output_norm: self.norm(&at("output.LayerNorm"))?,
        })
    }
}

/// The tensor `name` as it is served in f32: with the change that `factors` make, rounded to f16
/// where the checkpoint has f16.
///
/// Errors: as [`finite`].
pub(crate) fn served(
    weights: &Weights,
    factors: Option<&Factors>,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>> {
    let map = name.strip_suffix(".weight").and_then(map_of);
    let (Some(factors), Some((layer, target))) = (factors, map) else {
        return finite(weights, name, shape);
    };
    let values = match merged(factors, layer, target, weights.view(name, shape)?) {
        Merged::Half(bytes) => View::of_half(&bytes, shape[1]).to_f32(),
        Merged::Full(values) => values,
    };
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(not_finite(name)),
    }
}

/// The weights `view` of a map with the change that `factors` make.
fn merged(factors: &Factors, layer: usize, target: Target, view: View<'_>) -> Merged {
    let mut values = view.to_f32();
    factors.merge(layer, target, &mut values);
    match view.dtype {
        Dtype::F16 => Merged::Half(half_bytes(&values)),
        _ => Merged::Full(values),
    }
}

/// A weight that is not the mapped file's.
enum Merged {
    /// f16 bytes.
    Half(Vec<u8>),
    Full(Vec<f32>),
}
