//! Whether a generation is served in low precision: how far its answers move in int8 is measured
//! and recorded, and a router that may choose takes int8 where the record is good and the CPU has a
//! kernel, else bf16 where the CPU has tiles.

use std::sync::Arc;

use crate::device::Device;
use crate::device::cpu::low::{LowFormat, LowKernel};
use crate::encoder::Encoder;
use crate::error::{Result, bail, error};
use crate::files;
use crate::generation::precision::Agreement;
use crate::generation::{Contents, GenerationId};
use crate::hub::{Hub, ModelId, domain_key};
use crate::num::cosine;
use crate::options::Precision;
use crate::serve::serving::{QUESTION, Serving};
use crate::text::tokenizer::Tokens;

/// Prompts of a batch.
const BATCH: usize = 32;

/// A prompt, and its right model and domain as far as they are known.
#[derive(Clone, Copy)]
pub(crate) struct Question<'q> {
    pub(crate) tokens: &'q Tokens,
    pub(crate) model: Option<u32>,
    pub(crate) domain: Option<&'q str>,
}

/// How near the answers of generation `id` by `kernel` are to those in f32. `encoder`: on the CPU.
/// `held_out`: the generation never learned these prompts.
///
/// Errors: the generation cannot be opened with `encoder`; every model is retired.
pub(crate) fn measure(
    id: &GenerationId,
    contents: &Contents,
    encoder: &Arc<Encoder>,
    kernel: LowKernel,
    questions: &[Question<'_>],
    held_out: bool,
) -> Result<Agreement> {
    let open = |kernel: Option<LowKernel>| {
        Serving::with_kernel(id.clone(), contents, Arc::clone(encoder), None, kernel)
    };
    let (full, low) = (open(None)?, open(Some(kernel))?);
    let mut agreement = Agreement {
        prompts: questions.len(),
        held_out,
        same_model: 0,
        same_domain: 0,
        model_hits: [0; 2],
        domain_hits: [0; 2],
        worst_cosine: 1.0,
        vector_sha256: low.vector_sha256()?,
        measured_on: None,
    };
    for questions in questions.chunks(BATCH) {
        let prompts: Vec<&Tokens> = questions.iter().map(|q| q.tokens).collect();
        let both = [full.look(&prompts)?, low.look(&prompts)?];
        for (place, question) in questions.iter().enumerate() {
            let best = [both[0][place].0, both[1][place].0];
            let domains = best.map(|id| domain_of(&contents.hub, id));
            agreement.same_model += usize::from(best[0] == best[1]);
            agreement.same_domain += usize::from(domains[0] == domains[1]);
            for at in 0..2 {
                let right = question.model == Some(best[at]);
                agreement.model_hits[at] += usize::from(right);
                let right = question.domain.is_some_and(|domain| domain == domains[at]);
                agreement.domain_hits[at] += usize::from(right);
            }
            let cosine = cosine(&both[0][place].1, &both[1][place].1);
            if cosine.is_nan() {
                bail!(Numeric, "{id}: a prompt's vector has no direction");
            }
            agreement.worst_cosine = agreement.worst_cosine.min(cosine);
        }
    }
    Ok(agreement)
}

fn domain_of(hub: &Hub, id: u32) -> String {
    hub.get(ModelId(id))
        .map_or_else(String::new, |model| domain_key(&model.domain))
}

impl Serving {
    /// SHA-256 of the vector of [`QUESTION`].
    pub(crate) fn vector_sha256(&self) -> Result<String> {
        let tokens = self.encoder.tokenize_prompts(&[QUESTION]).pop();
        let tokens = tokens.ok_or_else(|| error!(Tokenizer, "no tokens"))??;
        let looked = self.look(&[&tokens])?;
        let values = looked.iter().flat_map(|(_, vector)| vector);
        let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
        Ok(files::sha256(&bytes))
    }
}

/// The numbers that a generation is served in, and why.
pub(crate) struct Choice {
    /// Of int8 or bf16; none: f32.
    pub(crate) kernel: Option<LowKernel>,
    pub(crate) reason: String,
    /// [`Agreement::vector_sha256`] that must be computed here, where that is why.
    pub(crate) vector_sha256: Option<String>,
}

impl Choice {
    pub(crate) fn f32(reason: impl Into<String>) -> Self {
        Self {
            kernel: None,
            reason: reason.into(),
            vector_sha256: None,
        }
    }

    /// For `precision` on the encoder's device; `record`: what is recorded of the generation.
    ///
    /// Errors: there is no kernel for the `precision` that was asked for.
    pub(crate) fn new(
        precision: Precision,
        encoder: &Encoder,
        record: impl FnOnce() -> Result<Option<Agreement>>,
    ) -> Result<Self> {
        let format = match (precision, encoder.device()) {
            (Precision::F32, _) => return Ok(Self::f32("f32 was asked for")),
            (Precision::Auto, Device::Gpu(_)) => return Ok(Self::f32("the GPU computes in f32")),
            (Precision::Auto, Device::Cpu(cpu)) => {
                let detect = |format| cpu.low_kernel(format);
                return Ok(Self::auto(detect, record));
            }
            (Precision::Bf16, _) => LowFormat::Bf16,
            (Precision::Int8, _) => LowFormat::Int8,
        };
        let Device::Cpu(cpu) = encoder.device() else {
            bail!(
                Unsupported,
                "precision {format}: expected the device cpu, found {}",
                encoder.device_name()
            );
        };
        match cpu.low_kernel(format) {
            (Some(kernel), _) => Ok(Self {
                kernel: Some(kernel),
                reason: format!("{format} was asked for; by {kernel}"),
                vector_sha256: None,
            }),
            (None, why) => bail!(
                Unsupported,
                "precision {format}: expected a CPU with {}, found {why}",
                LowKernel::expected(format)
            ),
        }
    }

    /// int8 if the record is good, else what [`Choice::without_int8`] takes.
    fn auto(
        detect: impl Fn(LowFormat) -> (Option<LowKernel>, String),
        record: impl FnOnce() -> Result<Option<Agreement>>,
    ) -> Self {
        let (kernel, why) = detect(LowFormat::Int8);
        let why = match (kernel, record()) {
            (None, _) => format!("no kernel for int8: {why}"),
            (_, Ok(None)) => "how near int8 is was not measured for this generation; `hubrouter \
                              generation measure` does that"
                .to_owned(),
            (_, Err(error)) => {
                log::warn!("int8 is not taken: {error}");
                format!("the record of int8 is damaged: {error}")
            }
            (Some(kernel), Ok(Some(agreement))) => match agreement.missed() {
                Some(missed) => format!("int8 missed a bar: {missed}"),
                None => {
                    return Self {
                        kernel: Some(kernel),
                        reason: format!(
                            "the same domain as f32 for {} of {} prompts{}; by {kernel}",
                            agreement.same_domain,
                            agreement.prompts,
                            match &agreement.measured_on {
                                Some(ancestor) => format!(", measured on {ancestor}"),
                                None => String::new(),
                            }
                        ),
                        vector_sha256: Some(agreement.vector_sha256),
                    };
                }
            },
        };
        let (kernel, _) = detect(LowFormat::Bf16);
        Self::without_int8(kernel, why)
    }

    /// bf16 by `kernel` if it has tiles, else f32; `why`: why not int8. Other instructions for bf16
    /// are not always faster than those for f32.
    pub(crate) fn without_int8(kernel: Option<LowKernel>, why: impl Into<String>) -> Self {
        let why = why.into();
        match kernel.filter(|kernel| kernel.has_tiles()) {
            Some(kernel) => Self {
                kernel: Some(kernel),
                reason: format!("{why}; bf16 by {kernel}"),
                vector_sha256: None,
            },
            None => Self::f32(why),
        }
    }
}

// An emulation stands for a CPU with tiles.
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::error;

    /// An agreement with these prompts of the same domain, of 100.
    fn agreement(same_domain: usize) -> Agreement {
        serde_json::from_value(serde_json::json!({
            "prompts": 100, "held_out": true, "same_model": 90, "same_domain": same_domain,
            "model_hits": [30, 30], "domain_hits": [70, 70], "worst_cosine": 0.996,
            "vector_sha256": "0".repeat(64),
        }))
        .unwrap()
    }

    /// The kernels of tests, the emulated one last.
    fn kernels(format: LowFormat) -> [LowKernel; 2] {
        let all = LowKernel::available(format);
        let scalar = all.iter().position(|kernel| kernel.to_string() == "scalar");
        [all[scalar.unwrap()], *all.last().unwrap()]
    }

    #[test]
    fn auto_takes_int8_then_bf16_with_tiles_then_f32() {
        let ([bytes, _], [halves, tiles]) = (kernels(LowFormat::Int8), kernels(LowFormat::Bf16));
        let choose = |int8: Option<LowKernel>, bf16: Option<LowKernel>, record| {
            let detect = |format| {
                let kernel = if format == LowFormat::Int8 {
                    int8
                } else {
                    bf16
                };
                (kernel, "a reason".to_owned())
            };
            let choice = Choice::auto(detect, || record);
            let format = choice.kernel.map(LowKernel::format);
            assert_eq!(
                choice.vector_sha256.is_some(),
                format == Some(LowFormat::Int8)
            );
            (format, choice.reason)
        };
        let good = || Ok(Some(agreement(99)));
        let bad = || Ok(Some(agreement(90)));
        let (format, _) = choose(Some(bytes), Some(tiles), good());
        assert_eq!(format, Some(LowFormat::Int8));
        // Int8 is not to be had, for one reason or another.
        for (int8, record, why) in [
            (None, good(), "no kernel for int8: a reason"),
            (Some(bytes), bad(), "int8 missed a bar: same domain"),
            (Some(bytes), Ok(None), "was not measured"),
            (Some(bytes), Err(error!(Format, "torn")), "damaged: torn"),
        ] {
            let (format, reason) = choose(int8, Some(tiles), record);
            assert_eq!(format, Some(LowFormat::Bf16), "{reason}");
            assert!(reason.contains(why), "{reason}");
            assert!(reason.ends_with("; bf16 by AMX, emulated"), "{reason}");
        }
        for bf16 in [Some(halves), None] {
            let (format, reason) = choose(Some(bytes), bf16, bad());
            assert_eq!(format, None, "{reason}");
            assert!(!reason.contains("bf16"), "{reason}");
        }
    }
}
