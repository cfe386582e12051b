//! BERT by burn's tensors on its wgpu backend, with kernels in SPIR-V, autotuned and fused. Weights are f32.

#[path = "../../pipe.rs"]
mod pipe;

use std::collections::BTreeMap;

use burn::backend::wgpu::{Wgpu, WgpuDevice};
use burn::tensor::activation::{gelu, softmax};
use burn::tensor::{Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use tokenizers::Encoding;

use pipe::Result;

type Floats<const D: usize> = Tensor<Wgpu, D>;

fn main() -> Result<()> {
    let usage = "usage: burn-peer BUNDLE [software]";
    let folder = std::env::args().nth(1).ok_or(usage)?;
    let device = match std::env::args().nth(2).as_deref() {
        None => WgpuDevice::DefaultDevice,
        Some("software") => WgpuDevice::Cpu,
        Some(_) => return Err(usage.into()),
    };
    let model = Bert::load(&folder, device)?;
    pipe::answer(&folder, |encodings| {
        // Waits for the device.
        let pooled = model.encode(encodings).into_data();
        pooled.into_vec().map_err(|error| format!("{error:?}").into())
    })
}

/// A map, turned to [in, out].
struct Linear {
    weight: Floats<2>,
    bias: Floats<1>,
}

impl Linear {
    fn forward(&self, x: Floats<3>) -> Floats<3> {
        x.matmul(self.weight.clone().unsqueeze()) + self.bias.clone().unsqueeze()
    }
}

struct Norm {
    gamma: Floats<1>,
    beta: Floats<1>,
    epsilon: f64,
}

impl Norm {
    fn forward(&self, x: Floats<3>) -> Floats<3> {
        let (variance, mean) = x.clone().var_mean_bias(2);
        let unit = (x - mean) / (variance + self.epsilon).sqrt();
        unit * self.gamma.clone().unsqueeze() + self.beta.clone().unsqueeze()
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

struct Bert {
    device: WgpuDevice,
    words: Floats<2>,
    positions: Floats<2>,
    kind: Floats<1>,
    norm: Norm,
    layers: Vec<Layer>,
    heads: usize,
}

impl Bert {
    fn load(folder: &str, device: WgpuDevice) -> Result<Self> {
        let config: serde_json::Value = serde_json::from_slice(&std::fs::read(format!("{folder}/config.json"))?)?;
        let number = |key: &str| config[key].as_u64().ok_or(format!("config.json: no {key}"));
        let epsilon = config["layer_norm_eps"].as_f64().unwrap_or(1e-12);
        let file = std::fs::read(format!("{folder}/model.safetensors"))?;
        let values = numbers(&SafeTensors::deserialize(&file)?)?;
        let find = |name: &str| values.get(name).ok_or(format!("model.safetensors: no {name}"));
        let data = |name: &str| -> Result<TensorData> {
            let (shape, values) = find(name)?;
            Ok(TensorData::new(values.clone(), shape.clone()))
        };
        let row = |name: &str| -> Result<Floats<1>> { Ok(Tensor::from_data(data(name)?, &device)) };
        let table = |name: &str| -> Result<Floats<2>> { Ok(Tensor::from_data(data(name)?, &device)) };
        let linear = |name: &str| -> Result<Linear> {
            // Turned once, so that no call does it.
            let (shape, values) = find(&format!("{name}.weight"))?;
            let [outputs, inputs] = shape[..] else { return Err(format!("{name}: not a matrix").into()) };
            let turned = (0..values.len()).map(|i| values[i % outputs * inputs + i / outputs]).collect();
            let weight = Tensor::from_data(TensorData::new(turned, [inputs, outputs]), &device);
            Ok(Linear { weight, bias: row(&format!("{name}.bias"))? })
        };
        let norm = |name: &str| -> Result<Norm> {
            let (gamma, beta) = (row(&format!("{name}.weight"))?, row(&format!("{name}.bias"))?);
            Ok(Norm { gamma, beta, epsilon })
        };
        let layer = |i: u64| -> Result<Layer> {
            let own = |part: &str| format!("encoder.layer.{i}.{part}");
            Ok(Layer {
                query: linear(&own("attention.self.query"))?,
                key: linear(&own("attention.self.key"))?,
                value: linear(&own("attention.self.value"))?,
                attention: linear(&own("attention.output.dense"))?,
                attention_norm: norm(&own("attention.output.LayerNorm"))?,
                up: linear(&own("intermediate.dense"))?,
                down: linear(&own("output.dense"))?,
                norm: norm(&own("output.LayerNorm"))?,
            })
        };
        let layers = (0..number("num_hidden_layers")?).map(layer).collect::<Result<_>>()?;
        Ok(Self {
            words: table("embeddings.word_embeddings.weight")?,
            positions: table("embeddings.position_embeddings.weight")?,
            kind: table("embeddings.token_type_embeddings.weight")?.slice([0..1]).squeeze_dim(0),
            norm: norm("embeddings.LayerNorm")?,
            layers,
            heads: number("num_attention_heads")?.try_into()?,
            device,
        })
    }

    /// The mean over tokens of the last layer, [prompts, hidden].
    fn encode(&self, encodings: &[Encoding]) -> Floats<2> {
        let (prompts, tokens) = (encodings.len(), encodings[0].len());
        let hidden = self.words.dims()[1];
        let ids: Vec<i32> = encodings.iter().flat_map(Encoding::get_ids).map(|id| *id as i32).collect();
        let mask: Vec<f32> = encodings.iter().flat_map(Encoding::get_attention_mask).map(|m| *m as f32).collect();
        let ids = Tensor::<Wgpu, 1, Int>::from_data(TensorData::new(ids, [prompts * tokens]), &self.device);
        let mask: Floats<2> = Tensor::from_data(TensorData::new(mask, [prompts, tokens]), &self.device);

        let words = self.words.clone().select(0, ids).reshape([prompts, tokens, hidden]);
        let positions = self.positions.clone().slice([0..tokens]).unsqueeze();
        let mut x = self.norm.forward(words + positions + self.kind.clone().unsqueeze());
        let hidden_keys = ((mask.clone() - 1.0) * 1e9).reshape([prompts, 1, 1, tokens]);
        for layer in &self.layers {
            x = self.layer(layer, x, &hidden_keys);
        }
        let mask = mask.reshape([prompts, tokens, 1]);
        let sum = (x * mask.clone()).sum_dim(1);
        (sum / mask.sum_dim(1)).reshape([prompts, hidden])
    }

    fn layer(&self, layer: &Layer, x: Floats<3>, hidden_keys: &Floats<4>) -> Floats<3> {
        let [prompts, tokens, hidden] = x.dims();
        let width = hidden / self.heads;
        let split = |x: Floats<3>| x.reshape([prompts, tokens, self.heads, width]).swap_dims(1, 2);
        let query = split(layer.query.forward(x.clone()));
        let key = split(layer.key.forward(x.clone()));
        let value = split(layer.value.forward(x.clone()));
        let scores = query.matmul(key.transpose()) / (width as f64).sqrt() + hidden_keys.clone();
        let mixed = softmax(scores, 3).matmul(value);
        let mixed = mixed.swap_dims(1, 2).reshape([prompts, tokens, hidden]);
        let x = layer.attention_norm.forward(layer.attention.forward(mixed) + x);
        let y = layer.down.forward(gelu(layer.up.forward(x.clone())));
        layer.norm.forward(y + x)
    }
}

/// Shape and values of every tensor of numbers.
fn numbers(file: &SafeTensors<'_>) -> Result<BTreeMap<String, (Vec<usize>, Vec<f32>)>> {
    let mut all = BTreeMap::new();
    for (name, view) in file.iter() {
        let bytes = view.data();
        let values = match view.dtype() {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            _ => continue,
        };
        all.insert(name.to_owned(), (view.shape().to_vec(), values));
    }
    Ok(all)
}
