//! candle's BERT on the CPU. Weights are f32.

#[path = "../../pipe.rs"]
mod pipe;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use tokenizers::Encoding;

use pipe::Result;

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).ok_or("usage: candle-peer BUNDLE")?;
    let config: Config = serde_json::from_slice(&std::fs::read(format!("{folder}/config.json"))?)?;
    let weights = std::fs::read(format!("{folder}/model.safetensors"))?;
    let variables = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu)?;
    let model = BertModel::load(variables, &config)?;
    pipe::answer(&folder, |encodings| Ok(encode(&model, encodings)?.flatten_all()?.to_vec1()?))
}

fn encode(model: &BertModel, encodings: &[Encoding]) -> Result<Tensor> {
    let row = |values: &[u32]| Tensor::new(values, &Device::Cpu);
    let ids: Vec<Tensor> = encodings.iter().map(|e| row(e.get_ids())).collect::<candle_core::Result<_>>()?;
    let masks: Vec<Tensor> = encodings.iter().map(|e| row(e.get_attention_mask())).collect::<candle_core::Result<_>>()?;
    let (ids, mask) = (Tensor::stack(&ids, 0)?, Tensor::stack(&masks, 0)?);
    let types = ids.zeros_like()?;
    let states = model.forward(&ids, &types, Some(&mask))?;
    let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
    let sum = states.broadcast_mul(&mask)?.sum(1)?;
    Ok(sum.broadcast_div(&mask.sum(1)?)?)
}
