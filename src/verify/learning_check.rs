//! Whether a recorded learning run is one that this program can make again: a bundle is input that
//! nobody vouches for.

use super::form::{ParityLearning, ParityMemory, ParityStep};
use super::tensors::ParityTensors;
use crate::error::{Result, bail};
use crate::generation::TAU;
use crate::generation::memory::check_strengths;

/// Largest rank of an adapter.
const MOST_RANK: usize = 4096;

/// Errors: a number out of range, an id of nothing, an optimiser that this program does not have.
pub(super) fn check(form: &ParityLearning, plan: &ParityTensors) -> Result<()> {
    numbers(form)?;
    let width = width(plan)?;
    let mut models = Vec::with_capacity(form.experiences.min(form.steps.len() + 1));
    let mut known = 0;
    for experience in 0..form.experiences {
        known += plan.rows(&format!("{experience}.rows"), width)?;
        if known == 0 {
            bail!(Mismatch, "0.rows: expected at least one model, found none");
        }
        models.push(known);
    }
    if known != form.names.len() || known != form.domains.len() {
        bail!(
            Mismatch,
            "names, domains: expected {known}, as there are rows of E, found {} and {}",
            form.names.len(),
            form.domains.len()
        );
    }
    for (i, row) in form.rows.iter().enumerate() {
        let most = models.get(row.experience).copied().unwrap_or(0);
        if row.model as usize >= most {
            bail!(
                Mismatch,
                "row {i}: expected a model below {most} of an experience below {}, found {} of {}",
                form.experiences,
                row.model,
                row.experience
            );
        }
    }
    let mut last = 0;
    for (i, step) in form.steps.iter().enumerate() {
        let at = |e: crate::Error| e.at(format!("step {i}"));
        if step.experience < last || step.experience >= form.experiences {
            bail!(
                Format,
                "step {i}: expected an experience from {last} to {}, found {}",
                form.experiences.saturating_sub(1),
                step.experience
            );
        }
        last = step.experience;
        check_step(step, form.rows.len(), models[last]).map_err(at)?;
    }
    Ok(())
}

/// D
fn width(plan: &ParityTensors) -> Result<usize> {
    let shape = plan.get("0.rows").map(|tensor| &tensor.shape[..]);
    match shape {
        Some([_, width]) if *width > 0 => Ok(*width),
        other => bail!(
            Mismatch,
            "0.rows: expected [models, width], found {other:?}"
        ),
    }
}

fn numbers(form: &ParityLearning) -> Result<()> {
    if !["intended", "reference"].contains(&form.profile.as_str()) {
        bail!(
            Unsupported,
            "profile: expected intended or reference, found {:?}",
            form.profile
        );
    }
    if !["mean", "sum"].contains(&form.switches.accumulation.as_str()) {
        bail!(
            Unsupported,
            "accumulation: expected mean or sum, found {:?}",
            form.switches.accumulation
        );
    }
    if form.adam != [0.9, 0.999, 1e-8] {
        bail!(
            Unsupported,
            "adam: expected betas 0.9 and 0.999 and eps 1e-8, found {:?}",
            form.adam
        );
    }
    for (name, value, most) in [
        ("rank", form.rank, MOST_RANK),
        ("experiences", form.experiences, 1 << 16),
    ] {
        if !(1..=most).contains(&value) {
            bail!(Format, "{name}: expected 1 to {most}, found {value}");
        }
    }
    for (name, value, least, most) in [
        ("alpha", form.alpha, 0.0, 1e6),
        (
            "tau",
            form.tau,
            f64::from(*TAU.start()),
            f64::from(*TAU.end()),
        ),
        ("clip", form.clip, 1e-12, 1e12),
        ("weight_decay", form.weight_decay, 0.0, 1.0),
    ] {
        range(name, value, least, most)?;
    }
    Ok(())
}

fn check_step(step: &ParityStep, rows: usize, models: usize) -> Result<()> {
    let rates = &step.rates;
    for rate in [rates.lora, Some(rates.projection), Some(rates.embeddings)] {
        range("rates", rate.unwrap_or(0.0), 0.0, 1e3)?;
    }
    if let Some(anchors) = &step.anchors {
        range("anchors.embedding", anchors.embedding, 0.0, 1e12)?;
        range("anchors.projection", anchors.projection, 0.0, 1e12)?;
    }
    if step.batches.iter().all(Vec::is_empty) {
        bail!(Format, "batches: expected rows, found none");
    }
    for item in step.batches.iter().flatten() {
        if item.row >= rows {
            bail!(
                Mismatch,
                "row: expected a number below {rows}, found {}",
                item.row
            );
        }
        range("weight", item.weight, 0.0, 1e6)?;
        let targets = item.targets.iter().map(|(id, _)| id);
        let ids = targets.chain(item.candidates.iter().flatten());
        if let Some(id) = ids.clone().find(|id| **id as usize >= models) {
            bail!(
                Mismatch,
                "row {}: expected models below {models}, found {id}",
                item.row
            );
        }
        for (_, mass) in &item.targets {
            range("target", *mass, 0.0, 1.0)?;
        }
        if item.targets.is_empty() {
            bail!(Format, "row {}: expected a target, found none", item.row);
        }
        if let Some(candidates) = &item.candidates {
            let mut sorted = candidates.clone();
            sorted.sort_unstable();
            sorted.dedup();
            let present = |id: &u32| sorted.binary_search(id).is_ok();
            if sorted.len() != candidates.len() || !item.targets.iter().all(|(id, _)| present(id)) {
                bail!(
                    Format,
                    "row {}: expected different candidates with all targets among them",
                    item.row
                );
            }
        }
    }
    Ok(())
}

/// Errors: `memory` names layers that an encoder of `layers` does not have.
pub(super) fn check_memory(memory: &ParityMemory, layers: usize) -> Result<()> {
    let own = &memory.layers;
    let known = own.iter().all(|layer| *layer < layers) && own.is_sorted_by(|a, b| a < b);
    if own.is_empty() || !known {
        bail!(
            Mismatch,
            "memory.layers: expected some below {layers} in order, found {own:?}"
        );
    }
    if memory.rank == 0 {
        bail!(Format, "memory.rank: expected at least 1, found 0");
    }
    check_strengths(&memory.strengths)
}

fn range(name: &str, value: f64, least: f64, most: f64) -> Result<()> {
    if !(least..=most).contains(&value) {
        bail!(
            Numeric,
            "{name}: expected a number from {least} to {most}, found {value}"
        );
    }
    Ok(())
}
