//! The runner's protocol, for peers in Rust: batches of prompts come in, a JSON array a line; each is answered with
//! the seconds that tokenizing and encoding took and the first pooled vector.

use std::io::{BufRead, Write};
use std::time::Instant;

use tokenizers::{Encoding, PaddingParams, Tokenizer, TruncationParams};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Answers by `encode`: the pooled vectors of a batch, one after the other. `folder` has the tokenizer.
pub fn answer(folder: &str, encode: impl Fn(&[Encoding]) -> Result<Vec<f32>>) -> Result<()> {
    let mut tokenizer = Tokenizer::from_file(format!("{folder}/tokenizer.json"))?;
    tokenizer.with_padding(Some(PaddingParams::default()));
    tokenizer.with_truncation(Some(TruncationParams { max_length: 128, ..Default::default() }))?;

    for line in std::io::stdin().lock().lines() {
        let prompts: Vec<String> = serde_json::from_str(&line?)?;
        let began = Instant::now();
        let encodings = tokenizer.encode_batch(prompts, true)?;
        let pooled = encode(&encodings)?;
        let seconds = began.elapsed().as_secs_f64();
        let first = &pooled[..pooled.len() / encodings.len()];
        println!("{}", serde_json::json!({"seconds": seconds, "first": first}));
        std::io::stdout().flush()?;
    }
    Ok(())
}
