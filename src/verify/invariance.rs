//! What may not change a bit: a second run, the company in the batch, the order, the threads. On a
//! GPU that chooses its kernels by the rows of a batch, company and order may change the last bits.

use super::bounds::ParityBound;
use super::bundle::open;
use super::comparison::StageComparison;
use super::forward::ProbedEncoder;
use super::report::{ErrorMeasure, VerifyReport};
use crate::device::{Device, DeviceVariant};
use crate::error::Result;
use crate::options::Options;
use crate::text::tokenizer::Tokens;
use std::path::Path;

/// Most prompts that are looked at.
const MOST: usize = 32;

/// Threads of the CPU that are compared.
const THREADS: [usize; 3] = [1, 2, 4];

/// Adds the stages of invariance to `report`; `folder`: of the encoder's bundle.
///
/// Errors: the device failed; the encoder cannot be opened again.
pub(super) fn compare(
    probed: &ProbedEncoder,
    folder: &Path,
    options: &Options,
    prompts: &[Tokens],
    report: &mut VerifyReport,
) -> Result<()> {
    let prompts = &prompts[..prompts.len().min(MOST)];
    if prompts.is_empty() {
        return Ok(());
    }
    let alone = |prompt: &Tokens| Ok(probed.pooled(std::slice::from_ref(prompt))?.concat());
    let first: Vec<Vec<f32>> = prompts.iter().map(alone).collect::<Result<_>>()?;
    let why = "every sum has one order, which depends on its own length alone";
    let gpu = matches!(probed.encoder.device(), Device::Gpu(_));
    let near = gpu && options.device_variant == DeviceVariant::Auto;
    let mut stage = |name: &str, vectors: Vec<Vec<f32>>, near: bool| {
        let mut own = match near {
            true => StageComparison::new(name, ErrorMeasure::Elements, by_other_kernels()),
            false => StageComparison::exact(name, why),
        };
        for (i, (found, expected)) in vectors.iter().zip(&first).enumerate() {
            let prompt = format!("prompt {i}");
            match near {
                true => own.elements(i, |at| format!("{prompt}, {at}"), found, expected),
                false => own.bits(i, &prompt, found, expected),
            }
        }
        report.stages.extend(own.finish());
    };
    let again = prompts.iter().map(alone).collect::<Result<_>>()?;
    stage("repeat", again, false);
    stage("batch", in_batches(probed, prompts)?, near);
    let reversed: Vec<Tokens> = prompts.iter().rev().cloned().collect();
    let mut vectors = in_batches(probed, &reversed)?;
    vectors.reverse();
    stage("order", vectors, near);
    if gpu {
        let why = "threads: the device is a GPU, on which they compute nothing";
        report.not_compared.push(why.into());
        return Ok(());
    }
    let mut own = StageComparison::exact("threads", why);
    for threads in THREADS {
        let mut options = options.clone().threads(threads);
        options.max_tokens = Some(probed.encoder.max_tokens());
        let other = ProbedEncoder::new(open(folder, &options)?, options.precision)?;
        for (i, (found, expected)) in in_batches(&other, prompts)?.iter().zip(&first).enumerate() {
            own.bits(
                i,
                &format!("{threads} threads, prompt {i}"),
                found,
                expected,
            );
        }
    }
    report.stages.extend(own.finish());
    Ok(())
}

/// Vectors of one prompt by a GPU's kernels for few rows and for many.
fn by_other_kernels() -> ParityBound {
    ParityBound {
        limit: 1e-4,
        cosine: Some(1.0 - 2e-6),
        why: "a large batch takes other kernels, which add in another order".into(),
    }
}

fn in_batches(probed: &ProbedEncoder, prompts: &[Tokens]) -> Result<Vec<Vec<f32>>> {
    let mut all = Vec::with_capacity(prompts.len());
    for batch in probed.encoder.batches(prompts, usize::MAX) {
        all.extend(probed.pooled(batch)?);
    }
    Ok(all)
}
