//! Prompts through the encoder: tokens, every layer, pooled vectors.

use std::sync::Arc;

use super::form::NumericMode;
use super::tensors::ParityTensors;
use crate::device::cpu::low::LowFormat;
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::model::low::LowBert;
use crate::options::Precision;
use crate::serve::gate::Choice;
use crate::text::tokenizer::Tokens;

/// An encoder in the numbers that were asked for.
pub(super) struct ProbedEncoder {
    pub(super) encoder: Arc<Encoder>,
    low: Option<LowBert>,
}

impl ProbedEncoder {
    /// Errors: the device has no kernel for `precision`.
    pub(super) fn new(encoder: Arc<Encoder>, precision: Precision) -> Result<Self> {
        let choice = Choice::new(precision, &encoder, || Ok(None))?;
        let low = choice.kernel.map(|kernel| encoder.low(kernel, None));
        Ok(Self {
            low: low.transpose()?,
            encoder,
        })
    }

    pub(super) fn mode(&self) -> NumericMode {
        match self.low.as_ref().map(LowBert::format) {
            None => NumericMode::F32,
            Some(LowFormat::Bf16) => NumericMode::Bf16,
            Some(LowFormat::Int8) => NumericMode::Int8,
        }
    }

    /// The pooled vectors of one batch.
    pub(super) fn pooled(&self, batch: &[Tokens]) -> Result<Vec<Vec<f32>>> {
        let encoder = &self.encoder;
        let rows = match &self.low {
            None => encoder.embed_batch(encoder.bert()?, batch)?,
            Some(low) => encoder.embed_batch_low(low, batch)?,
        };
        if let Some(value) = rows.iter().find(|value| !value.is_finite()) {
            bail!(
                Numeric,
                "the encoder's vector: expected finite numbers, found {value}"
            );
        }
        Ok(rows
            .chunks_exact(encoder.width())
            .map(<[f32]>::to_vec)
            .collect())
    }
}

/// The tokens of `prompts` by this encoder's tokenizer.
pub(super) fn tokenized(encoder: &Encoder, prompts: &[String]) -> Result<Vec<Tokens>> {
    let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let tokens = encoder.tokenize_prompts(&texts).into_iter().enumerate();
    tokens
        .map(|(i, tokens)| tokens.map_err(|e| e.at(format!("prompt {i}"))))
        .collect()
}

/// The tokens of `own` with the ids that `plan` has, so that a stage behind the tokenizer is
/// compared by itself.
///
/// Errors: an id that the encoder has no row for, or more of them than it has positions.
pub(super) fn planned(
    encoder: &Encoder,
    own: &[Tokens],
    plan: Option<&ParityTensors>,
) -> Result<Vec<Tokens>> {
    let Some(plan) = plan else {
        return Ok(own.to_vec());
    };
    let config = encoder.config();
    let of = |(i, own): (usize, &Tokens)| {
        let name = format!("{i}.ids");
        let ids = plan.ids(&name, &[crate::weights::ANY])?;
        if !(1..=config.max_tokens()).contains(&ids.len()) {
            bail!(
                Mismatch,
                "{name}: expected 1 to {} tokens, found {}",
                config.max_tokens(),
                ids.len()
            );
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= config.vocabulary) {
            bail!(
                Mismatch,
                "{name}: expected ids below {}, found {id}",
                config.vocabulary
            );
        }
        Ok(Tokens { ids, ..own.clone() })
    };
    own.iter().enumerate().map(of).collect()
}

/// The tensors of the forward pass of `tokens`; `own`: the tokens as this tokenizer has them;
/// `plan`: a bundle's tensors, which name the token rows to keep.
///
/// Errors: `plan` has rows that a prompt does not have; the device failed.
pub(super) fn run(
    probed: &ProbedEncoder,
    own: &[Tokens],
    tokens: &[Tokens],
    plan: Option<&ParityTensors>,
    progress: &mut dyn FnMut(usize),
) -> Result<ParityTensors> {
    let (encoder, mut made) = (&probed.encoder, ParityTensors::default());
    let width = encoder.width();
    for (i, tokens) in tokens.iter().enumerate() {
        let count = tokens.ids.len();
        let rows = match plan {
            Some(plan) => plan.ids(&format!("{i}.rows"), &[crate::weights::ANY])?,
            None => (0..crate::num::to_u32(count)).collect(),
        };
        if let Some(row) = rows.iter().find(|row| **row as usize >= count) {
            bail!(
                Mismatch,
                "{i}.rows: expected rows below {count}, found {row}"
            );
        }
        made.put_ids(format!("{i}.ids"), &[own[i].ids.len()], &own[i].ids);
        made.put_ids(format!("{i}.rows"), &[rows.len()], &rows);
        let pooled = if probed.low.is_none() {
            let trace = encoder.trace_tokens(tokens.clone())?;
            let kept = trace.layers.iter().flat_map(|layer| {
                let row = |row: &u32| &layer[*row as usize * width..][..width];
                rows.iter().flat_map(row).copied()
            });
            let shape = [trace.layers.len(), rows.len(), width];
            made.put_f32(format!("{i}.layers"), &shape, kept.collect());
            trace.pooled
        } else {
            probed.pooled(std::slice::from_ref(tokens))?.concat()
        };
        made.put_f32(format!("{i}.pooled"), &[width], pooled);
        progress(i + 1);
    }
    Ok(made)
}
