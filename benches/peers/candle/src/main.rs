//! Reads batches of prompts, a JSON array a line; answers each with the seconds that tokenizing and
//! encoding took and the first element of the first pooled vector. Weights are f32.

use std::io::{BufRead, Write};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use tokenizers::{PaddingParams, Tokenizer, TruncationParams};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).ok_or("usage: candle-peer BUNDLE")?;
    let config: Config = serde_json::from_slice(&std::fs::read(format!("{folder}/config.json"))?)?;
    let weights = std::fs::read(format!("{folder}/model.safetensors"))?;
    let variables = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu)?;
    let model = BertModel::load(variables, &config)?;
    let mut tokenizer = Tokenizer::from_file(format!("{folder}/tokenizer.json"))?;
    tokenizer.with_padding(Some(PaddingParams::default()));
    tokenizer.with_truncation(Some(TruncationParams { max_length: 128, ..Default::default() }))?;

    for line in std::io::stdin().lock().lines() {
        let prompts: Vec<String> = serde_json::from_str(&line?)?;
        let began = Instant::now();
        let pooled = encode(&model, &tokenizer, &prompts)?;
        let seconds = began.elapsed().as_secs_f64();
        let first: f32 = pooled.get(0)?.get(0)?.to_scalar()?;
        println!("{}", serde_json::json!({"seconds": seconds, "first": first}));
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn encode(model: &BertModel, tokenizer: &Tokenizer, prompts: &[String]) -> Result<Tensor> {
    let encodings = tokenizer.encode_batch(prompts.to_vec(), true)?;
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
