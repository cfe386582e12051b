//! The weights of a BERT-family encoder on a device; field paths follow the checkpoint's names.

use std::sync::Arc;

use crate::device::{Device, Tensor};
use crate::error::{Result, bail};
use crate::model::Config;
use crate::ops::embed::Words;
use crate::ops::linear::Weight;
use crate::weights::Weights;

pub(crate) struct Parameters {
    pub(crate) embeddings: Embeddings,
    pub(crate) layers: Vec<Layer>,
}

pub(crate) struct Embeddings {
    /// [V, H]
    pub(crate) words: Words,
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
    pub(crate) fn open(device: &Device, weights: &Arc<Weights>, config: &Config) -> Result<Self> {
        let read = Reader {
            device,
            weights,
            config,
        };
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
        let words = weights.table("embeddings.word_embeddings.weight", config.vocabulary, h)?;
        let embeddings = Embeddings {
            words: Words::new(device, words)?,
            places: device.upload("places", h, &places)?,
            norm: read.norm("embeddings.LayerNorm")?,
        };
        let layers = (0..config.layers)
            .map(|layer| read.layer(layer))
            .collect::<Result<_>>()?;
        Ok(Self { embeddings, layers })
    }
}

struct Reader<'r> {
    device: &'r Device,
    weights: &'r Arc<Weights>,
    config: &'r Config,
}

impl Reader<'_> {
    fn finite(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let values = self.weights.view(name, shape)?.to_f32();
        if !values.iter().all(|value| value.is_finite()) {
            bail!(
                Numeric,
                "{name}: expected finite weights, found infinity or NaN"
            );
        }
        Ok(values)
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        let h = self.config.hidden;
        let read = |part: &str| self.finite(&format!("{name}.{part}"), &[h]);
        Ok(Norm {
            gamma: self.device.upload("gamma", h, &read("weight")?)?,
            beta: self.device.upload("beta", h, &read("bias")?)?,
        })
    }

    /// The maps `names` stacked, each [outputs, inputs].
    fn linear(&self, names: &[String], outputs: usize, inputs: usize) -> Result<Weight> {
        let mut parts = Vec::with_capacity(names.len());
        let mut bias = Vec::with_capacity(names.len() * outputs);
        for name in names {
            parts.push((
                name.as_str(),
                self.weights
                    .view(&format!("{name}.weight"), &[outputs, inputs])?,
            ));
            bias.extend(self.finite(&format!("{name}.bias"), &[outputs])?);
        }
        Weight::new(self.device, &parts, &bias)
    }

    fn layer(&self, layer: usize) -> Result<Layer> {
        let (h, f) = (self.config.hidden, self.config.feed_forward);
        let at = |name: &str| format!("encoder.layer.{layer}.{name}");
        let qkv = [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
        ]
        .map(at);
        Ok(Layer {
            qkv: self.linear(&qkv, h, h)?,
            attention_output: self.linear(&[at("attention.output.dense")], h, h)?,
            attention_norm: self.norm(&at("attention.output.LayerNorm"))?,
            intermediate: self.linear(&[at("intermediate.dense")], f, h)?,
            output: self.linear(&[at("output.dense")], h, f)?,
            output_norm: self.norm(&at("output.LayerNorm"))?,
        })
    }
}
