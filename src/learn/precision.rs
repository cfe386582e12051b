//! Measures how near a generation's answers in int8 are to those in f32.

use std::sync::Arc;

use crate::device::Device;
use crate::device::cpu::Cpu;
use crate::device::cpu::low::{LowFormat, LowKernel};
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::precision::{Agreement, FEWEST};
use crate::generation::{Contents, GenerationId};
use crate::hub::{Hub, domain_key};
use crate::learn::data::examples::Example;
use crate::learn::data::rows::PromptRow;
use crate::learn::kept::forget::kept;
use crate::learn::kept::replay::{HELD_OUT, Replay};
use crate::options::Options;
use crate::serve::gate::{Question, measure};
use crate::store::{Store, open_encoder};
use crate::text::query::query_digest;
use crate::text::tokenizer::Tokens;

/// Most prompts that are measured; of more, as many are taken evenly.
const MOST: usize = 2048;

/// A prompt to measure, and its right model and domain as far as they are known.
pub(super) struct Labelled {
    pub(super) text: String,
    pub(super) model: Option<u32>,
    pub(super) domain: Option<String>,
}

/// Measures how near the answers of generation `id` in int8 are to those in f32, and records it
/// beside the generation's manifest, so that [`crate::Precision::Auto`] takes int8 where that
/// passed. The id stays as it is.
///
/// Measured on the examples that the generation held out, if `examples` has at least 64 of them;
/// else on all `examples`. Without examples: on the held-out prompts that it keeps as text. Of more
/// than 2,048 prompts as many are taken evenly. On a CPU without a kernel the scalar reference computes
/// the same bits, slowly.
///
/// Errors: fewer than 64 prompts; the encoder is not found; the store is read-only, or has no such
/// generation.
pub fn measure_precision(
    store: &Store,
    id: &GenerationId,
    examples: Option<&[Example]>,
    options: &Options,
) -> Result<Agreement> {
    let contents = store.contents(id)?;
    let held_out = kept(&contents, HELD_OUT)?;
    let (prompts, are_held_out) = match examples {
        Some(examples) => of_examples(examples, &held_out, &contents.hub),
        None => (of_kept(&held_out), true),
    };
    if prompts.len() < FEWEST {
        let advice = match examples {
            Some(_) => "give more examples",
            None => "give examples (--examples FILE): it keeps no more prompts as text",
        };
        bail!(
            InvalidRequest,
            "{id}: expected at least {FEWEST} prompts to measure int8 on, found {}; {advice}",
            prompts.len()
        );
    }
    let prompts: Vec<&Labelled> = spread(&prompts);
    let options = options.clone().device("cpu");
    let host = Arc::new(Cpu::open_at(options.threads, options.cpu)?);
    let encoder = open_encoder(store.root(), &contents.manifest.encoder, host, &options)?;
    let texts: Vec<&str> = prompts.iter().map(|prompt| &*prompt.text).collect();
    let tokens = encoder.tokenize_prompts(&texts).into_iter();
    let tokens = tokens.collect::<Result<Vec<Tokens>>>()?;
    let questions: Vec<Question<'_>> = prompts
        .iter()
        .zip(&tokens)
        .map(|(prompt, tokens)| Question {
            tokens,
            model: prompt.model,
            domain: prompt.domain.as_deref(),
        })
        .collect();
    let kernel = LowKernel::right_int8(options.cpu);
    let (encoder, of) = (Arc::new(encoder), are_held_out);
    let agreement = measure(id, &contents, &encoder, kernel, &questions, of)?;
    store.record(id, &agreement)?;
    Ok(agreement)
}

/// As [`measure_precision`], of a child that is to be published, on held-out rows that have tokens.
///
/// `None`: there are too few, `encoder` is on a GPU, this CPU has no kernel for int8, or the child
/// cannot be opened; the log says which.
pub(crate) fn of_child<'r>(
    id: &GenerationId,
    child: &Contents,
    encoder: &Arc<Encoder>,
    rows: impl Iterator<Item = &'r PromptRow>,
) -> Option<Agreement> {
    let questions: Vec<Question<'_>> = rows
        .filter_map(|row| {
            Some(Question {
                tokens: row.tokens()?,
                model: Some(row.gold),
                domain: Some(&row.domain),
            })
        })
        .collect();
    let why = match (encoder.device(), encoder.host().low_kernel(LowFormat::Int8)) {
        _ if questions.len() < FEWEST => {
            format!("{} held-out prompts have their text", questions.len())
        }
        (Device::Gpu(_), _) => "the GPU computes in f32".to_owned(),
        (_, (None, why)) => why,
        (_, (Some(kernel), _)) => {
            let questions: Vec<Question<'_>> = spread(&questions).into_iter().copied().collect();
            match measure(id, child, encoder, kernel, &questions, true) {
                Ok(agreement) => return Some(agreement),
                Err(error) => error.to_string(),
            }
        }
    };
    log::info!("int8 is not measured: {why}; `hubrouter generation measure` does it later");
    None
}

/// At most [`MOST`] of `all`, evenly.
pub(super) fn spread<T>(all: &[T]) -> Vec<&T> {
    let count = all.len().min(MOST);
    (0..count).map(|i| &all[i * all.len() / count]).collect()
}

/// The examples that were held out if they are enough, or else all; and whether they were.
pub(super) fn of_examples(
    examples: &[Example],
    held_out: &Replay,
    hub: &Hub,
) -> (Vec<Labelled>, bool) {
    let label = |example: &Example| {
        let model = hub.find(&example.model_name);
        let registered = model.and_then(|id| hub.get(id));
        let domain = match (&example.domain, registered) {
            (Some(domain), _) => Some(domain_key(domain)),
            (None, Some(model)) => Some(domain_key(&model.domain)),
            (None, None) => None,
        };
        Labelled {
            text: example.prompt.clone(),
            model: model.map(|id| id.0),
            domain,
        }
    };
    let hashes: std::collections::HashSet<&str> = held_out
        .entries
        .iter()
        .map(|entry| entry.query_sha256.as_str())
        .collect();
    let mut seen = std::collections::HashSet::new();
    let own: Vec<Labelled> = examples
        .iter()
        .filter(|example| {
            let hash = query_digest(&example.prompt);
            hashes.contains(hash.as_str()) && seen.insert(hash)
        })
        .map(label)
        .collect();
    match own.len() {
        FEWEST.. => (own, true),
        _ => (examples.iter().map(label).collect(), false),
    }
}

/// The held-out prompts that are kept as text.
fn of_kept(held_out: &Replay) -> Vec<Labelled> {
    let entries = held_out.entries.iter();
    let labelled = entries.filter_map(|entry| {
        Some(Labelled {
            text: entry.text.clone()?,
            model: Some(entry.model),
            domain: Some(entry.domain.clone()),
        })
    });
    labelled.collect()
}
