//! What an update adds to a hybrid: centroids of the prompts that were learned, strengths fitted on
//! the prompts that were not.

use std::sync::Arc;

use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::files;
use crate::generation::calibration::CALIBRATION;
use crate::generation::exemplars::Exemplars;
use crate::generation::serving::Serving;
use crate::generation::{Calibration, Contents, Draft, GenerationId};
use crate::hub::Strengths;
use crate::learn::calibrate::{self, Known};
use crate::learn::experience::Row;
use crate::ops::normalize::unit;
use crate::text::tokenizer::Tokens;

/// The parent's centroids with the prompts of `rows`; `vectors`: of the frozen encoder, one for each.
pub(crate) fn exemplars(
    parent: &Contents,
    models: usize,
    rows: &[Row],
    vectors: &[Vec<f32>],
) -> Result<Exemplars> {
    let mut exemplars = parent.exemplars()?;
    exemplars.grow(models);
    let prompts = rows.iter().zip(vectors);
    exemplars.learn(prompts.map(|(row, vector)| (row.gold, &vector[..])));
    Ok(exemplars)
}

/// Fits the strengths of `draft`'s hybrid on `held`, whose prompts it never learned, and keeps them
/// in it; `fitted`: its parent's. Also says how many prompts these were: fewer than strengths count
/// where they were drawn to the parent's.
pub(crate) fn calibrate(
    draft: &mut Draft,
    parent: &GenerationId,
    encoder: &Arc<Encoder>,
    held: &[&Row],
    fitted: Option<Calibration>,
) -> Result<(Calibration, usize)> {
    keep(draft, &Calibration::new(Strengths::default(), 0, None))?;
    let mut rows = draft.embeddings.clone();
    rows.chunks_exact_mut(draft.width).for_each(unit);
    let eligible: Vec<bool> = draft.hub.iter().map(|(_, model)| !model.retired).collect();
    let serving = Serving::new(parent.clone(), draft.contents(), Arc::clone(encoder), None)?;
    let Some(memory) = serving.index.memory() else {
        bail!(Format, "a hybrid: expected vectors of cards, found none");
    };
    let held: Vec<(u32, &Tokens)> = held
        .iter()
        .filter_map(|row| Some((row.gold, row.tokens()?)))
        .collect();
    let stride = calibrate::stride(held.len(), eligible.len());
    let looked_at = held.into_iter().step_by(stride);
    let (golds, prompts): (Vec<u32>, Vec<Tokens>) = looked_at
        .map(|(gold, tokens)| (gold, tokens.clone()))
        .unzip();
    let known: Vec<Known> = serving
        .vectors(prompts)?
        .into_iter()
        .zip(golds)
        .map(|((u, x), gold)| Known { u, x, gold })
        .collect();
    let hub = calibrate::Hub {
        rows: &rows,
        tau: draft.tau,
        memory,
        eligible: &eligible,
    };
    let calibration = calibrate::fit(encoder.host(), &hub, &known, fitted.as_ref())?;
    keep(draft, &calibration)?;
    let prompts = known.iter().filter(|known| eligible[known.gold as usize]);
    Ok((calibration, prompts.count()))
}

fn keep(draft: &mut Draft, calibration: &Calibration) -> Result<()> {
    let bytes = files::to_json(calibration)?;
    draft.parts.insert(CALIBRATION.to_owned(), bytes);
    Ok(())
}
