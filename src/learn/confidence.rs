//! Measures how sure a generation's answers are, on prompts whose right answers are known.

use std::sync::Arc;

use crate::device::cpu::Cpu;
use crate::encoder::Encoder;
use crate::encoder::seen::Seen;
use crate::error::{Result, bail};
use crate::generation::confidence::CalibrationRow;
use crate::generation::{Calibration, Contents, GenerationId};
use crate::hub::{ModelId, domain_key};
use crate::learn::data::examples::Example;
use crate::learn::data::rows::{PromptRow, kept_rows};
use crate::learn::kept::forget::kept;
use crate::learn::kept::replay::HELD_OUT;
use crate::learn::precision::{of_examples, spread};
use crate::options::Options;
use crate::serve::index::Ranking;
use crate::serve::landmarks::Landmarks;
use crate::serve::{Narrowing, Serving};
use crate::store::{Store, open_encoder};
use crate::text::tokenizer::Tokens;

/// The right answer for a prompt.
struct RightAnswer {
    model: Option<u32>,
    /// A domain's key.
    domain: String,
}

/// Measures how often the answers of generation `id` are right by their probability, and how far
/// prompts are from those that it learned. Records it beside the generation's manifest, so that
/// decisions have a [`crate::Confidence`]. The id stays as it is.
///
/// Measured on the held-out prompts that the generation keeps, in whichever form, if they are at
/// least 64; else on `examples`: those of them that it held out, if they are 64, else all. Of
/// more than 2,048 prompts as many are taken evenly.
///
/// Errors: fewer than 64 prompts; the encoder is not found; the store is read-only, or has no such
/// generation.
pub fn measure_confidence(
    store: &Store,
    id: &GenerationId,
    examples: Option<&[Example]>,
    options: &Options,
) -> Result<Calibration> {
    let contents = store.contents(id)?;
    let held_out = kept(&contents, HELD_OUT)?;
    let options = options.clone().device("cpu");
    let host = Arc::new(Cpu::open_at(options.threads, options.cpu)?);
    let encoder = open_encoder(store.root(), &contents.manifest.encoder, host, &options)?;
    let encoder = Arc::new(encoder);
    let serving = Serving::new(id.clone(), &contents, Arc::clone(&encoder), None)?;
    let rows = kept_rows(&encoder, &held_out, &contents.hub)?;
    let rankings = of_rows(&serving, rows.iter().map(|row| (row, row.seen.as_ref())))?;
    let calibration = if rankings.len() >= Calibration::FEWEST {
        calibrate(&serving, &rankings, true)?
    } else {
        let kept = rankings.len();
        let Some(examples) = examples else {
            bail!(
                InvalidRequest,
                "{id}: expected at least {} held-out prompts to measure confidence on, found \
                 {kept}; give examples (--examples FILE)",
                Calibration::FEWEST
            );
        };
        let (labelled, are_held_out) = of_examples(examples, &held_out, &contents.hub);
        let labelled = labelled.into_iter().filter_map(|prompt| {
            let (model, domain) = (prompt.model, prompt.domain?);
            Some((prompt.text, RightAnswer { model, domain }))
        });
        let (texts, answers): (Vec<String>, Vec<RightAnswer>) = labelled.unzip();
        let texts: Vec<&str> = spread(&texts).into_iter().map(String::as_str).collect();
        let tokens = encoder.tokenize_prompts(&texts).into_iter();
        let tokens = tokens.collect::<Result<Vec<Tokens>>>()?;
        let tokens: Vec<&Tokens> = tokens.iter().collect();
        let rankings: Vec<(&RightAnswer, Ranking)> = spread(&answers)
            .into_iter()
            .zip(by_tokens(&serving, &tokens)?)
            .collect();
        calibrate(&serving, &rankings, are_held_out).map_err(|e| e.at(id))?
    };
    store.record_calibration(id, &calibration)?;
    Ok(calibration)
}

/// As [`measure_confidence`], of a child that is to be published, on its held-out rows. `seen`:
/// their features by the child's encoder; empty without a memory.
///
/// `None`: there are too few, or the child cannot be opened; the log says which.
pub(super) fn of_child<'r>(
    id: &GenerationId,
    child: &Contents,
    encoder: &Arc<Encoder>,
    rows: impl Iterator<Item = &'r PromptRow>,
    seen: impl Iterator<Item = &'r Seen>,
) -> Option<Calibration> {
    let seen = seen.map(Some).chain(std::iter::repeat(None));
    let rows: Vec<(&PromptRow, Option<&Seen>)> = rows.zip(seen).collect();
    if rows.len() < Calibration::FEWEST {
        log::info!(
            "confidence is not measured: {} prompts are held out",
            rows.len()
        );
        return None;
    }
    let measured = || -> Result<Calibration> {
        let serving = Serving::new(id.clone(), child, Arc::clone(encoder), None)?;
        let rankings = of_rows(&serving, rows.into_iter())?;
        calibrate(&serving, &rankings, true)
    };
    match measured() {
        Ok(calibration) => Some(calibration),
        Err(error) => {
            log::info!(
                "confidence is not measured: {error}; `hubrouter generation measure` does it later"
            );
            None
        }
    }
}

/// The rankings of rows by what was seen of them, where there is a memory, else by their tokens;
/// rows that have neither are left out.
fn of_rows<'r>(
    serving: &Serving,
    rows: impl Iterator<Item = (&'r PromptRow, Option<&'r Seen>)>,
) -> Result<Vec<(RightAnswer, Ranking)>> {
    let rows: Vec<(&PromptRow, Option<&Seen>)> = rows.collect();
    let rows = spread(&rows).into_iter();
    let has_memory = serving.index.recall().is_some();
    let (mut looked, mut read) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for (row, seen) in rows {
        let answer = RightAnswer {
            model: Some(row.gold),
            domain: row.domain.clone(),
        };
        match (seen.filter(|_| has_memory), row.tokens()) {
            (Some(seen), _) => {
                looked.0.push(answer);
                looked.1.push(seen);
            }
            (None, Some(tokens)) => {
                read.0.push(answer);
                read.1.push(tokens);
            }
            (None, None) => {}
        }
    }
    let rankings = serving.rank_seen(&looked.1)?;
    let mut all: Vec<(RightAnswer, Ranking)> = looked.0.into_iter().zip(rankings).collect();
    all.extend(read.0.into_iter().zip(by_tokens(serving, &read.1)?));
    Ok(all)
}

fn by_tokens(serving: &Serving, tokens: &[&Tokens]) -> Result<Vec<Ranking>> {
    let ranked = serving.rank_all(tokens, 1, Narrowing::default());
    ranked
        .into_iter()
        .map(|ranked| Ok(ranked?.ranking))
        .collect()
}

fn calibrate<A: std::borrow::Borrow<RightAnswer>>(
    serving: &Serving,
    rankings: &[(A, Ranking)],
    held_out: bool,
) -> Result<Calibration> {
    let landmarks = Landmarks::new(&serving.index);
    let rows = rankings
        .iter()
        .filter_map(|(answer, ranking)| row(serving, &landmarks, answer.borrow(), ranking));
    Calibration::new(&rows.collect::<Vec<_>>(), held_out)
}

/// `None`: every model is retired.
fn row(
    serving: &Serving,
    landmarks: &Landmarks,
    right: &RightAnswer,
    ranking: &Ranking,
) -> Option<CalibrationRow> {
    let (id, score) = *ranking.best.first()?;
    let best = serving.hub.get(ModelId(id))?;
    let [model, domain] = serving.index.probabilities(ranking, id, score);
    let distance = landmarks.distance(&serving.index, ranking);
    Some(CalibrationRow {
        domain,
        model,
        domain_right: domain_key(&best.domain) == right.domain,
        model_right: right.model == Some(id),
        distance: distance.memory,
        unknown_words: distance.words,
    })
}
