//! Whether a generation is served in int8: how far its answers move is measured and recorded, and a
//! router that may choose takes int8 where the record is good and the CPU has a kernel.

use std::sync::Arc;

use crate::device::Device;
use crate::device::cpu::int8::ByteKernel;
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
    kernel: ByteKernel,
    questions: &[Question<'_>],
    held_out: bool,
) -> Result<Agreement> {
    let open = |kernel: Option<ByteKernel>| {
        Serving::with_kernel(id.clone(), contents, Arc::clone(encoder), None, kernel)
    };
    let (full, bytes) = (open(None)?, open(Some(kernel))?);
    let mut agreement = Agreement {
        prompts: questions.len(),
        held_out,
        same_model: 0,
        same_domain: 0,
        model_hits: [0; 2],
        domain_hits: [0; 2],
        worst_cosine: 1.0,
        vector_sha256: bytes.vector_sha256()?,
        measured_on: None,
    };
    for questions in questions.chunks(BATCH) {
        let prompts: Vec<&Tokens> = questions.iter().map(|q| q.tokens).collect();
        let both = [full.look(&prompts)?, bytes.look(&prompts)?];
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
    /// Of int8; none: f32.
    pub(crate) kernel: Option<ByteKernel>,
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
        let on_gpu = matches!(encoder.device(), Device::Gpu(_));
        match precision {
            Precision::F32 => Ok(Self::f32("f32 was asked for")),
            Precision::Int8 if on_gpu => bail!(
                Unsupported,
                "precision int8: expected the device cpu, found {}",
                encoder.device_name()
            ),
            Precision::Int8 => match ByteKernel::detect() {
                (Some(kernel), _) => Ok(Self {
                    kernel: Some(kernel),
                    reason: format!("int8 was asked for; by {kernel}"),
                    vector_sha256: None,
                }),
                (None, why) => bail!(
                    Unsupported,
                    "precision int8: expected a CPU with {}, found {why}",
                    ByteKernel::EXPECTED
                ),
            },
            Precision::Auto if on_gpu => Ok(Self::f32("the GPU computes in f32")),
            Precision::Auto => Ok(Self::auto(record)),
        }
    }

    fn auto(record: impl FnOnce() -> Result<Option<Agreement>>) -> Self {
        let (kernel, why) = ByteKernel::detect();
        let Some(kernel) = kernel else {
            return Self::f32(format!("no kernel for int8: {why}"));
        };
        let agreement = match record() {
            Ok(Some(agreement)) => agreement,
            Ok(None) => {
                return Self::f32(
                    "how near int8 is was not measured for this generation; `hubrouter \
                     generation measure` does that",
                );
            }
            Err(error) => {
                log::warn!("int8 is not taken: {error}");
                return Self::f32(format!("the record of int8 is damaged: {error}"));
            }
        };
        match agreement.missed() {
            Some(missed) => Self::f32(format!("int8 missed a bar: {missed}")),
            None => Self {
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
            },
        }
    }
}
