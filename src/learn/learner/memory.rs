//! The memory in an update: what is added to it, and how it follows an encoder that is trained.

use std::collections::BTreeMap;

use crate::device::cpu::Cpu;
use crate::device::cpu::dense::{
    self, DenseView, Region, cholesky, solve_lower, solve_lower_transposed,
};
use crate::encoder::Encoder;
use crate::encoder::seen::{STEPS, Seen, usual_layers};
use crate::error::{Result, bail};
use crate::generation::Contents;
use crate::generation::memory::{How, remember};
use crate::hub::{Domains, Hub};
use crate::learn::data::examples::Example;
use crate::learn::data::rows::PromptRow;
use crate::learn::settings::Settings;
use crate::memory::{Memory, Prompt, PromptDigest, Solving};
use crate::text::query::query_digest;

/// Ridge that pulls the map between two encoders to the identity, in prompts of one unit vector
/// each.
const RIDGE: f64 = 0.1;

/// The parent's memory with the models of `hub`, or an empty one.
///
/// Errors: the settings name layers that the encoder does not have, or other layers than the
/// parent's.
pub(super) fn inherited(
    contents: &Contents,
    settings: &Settings,
    encoder: &Encoder,
    hub: &Hub,
) -> Result<Memory> {
    let count = encoder.config().layers;
    let asked = &settings.memory_layers;
    if let Some(layer) = asked.iter().find(|layer| **layer > count) {
        bail!(
            InvalidRequest,
            "memory.layers: expected numbers from 1 to {count}, found {layer}"
        );
    }
    let asked: Vec<usize> = asked.iter().map(|layer| layer - 1).collect();
    let Some(mut memory) = contents.memory()? else {
        let layers = match asked.is_empty() {
            true => usual_layers(count, encoder.width()),
            false => asked,
        };
        return Memory::new(layers, encoder.width(), hub);
    };
    if !asked.is_empty() && asked != memory.layers() {
        let own: Vec<usize> = memory.layers().iter().map(|layer| layer + 1).collect();
        bail!(
            InvalidRequest,
            "memory.layers: expected {own:?}, which the store's memory has, found {:?}",
            settings.memory_layers
        );
    }
    memory.grow(hub)?;
    Ok(memory)
}

/// Adds the prompts of `rows`; `seen`: of each.
pub(super) fn add(
    memory: &mut Memory,
    cpu: &Cpu,
    hub: &Hub,
    examples: &[Example],
    rows: &[PromptRow],
    seen: &[Seen],
) -> Result<()> {
    let domains = Domains::new(hub);
    let all = examples.iter().zip(rows).zip(seen);
    let prompts: Vec<Prompt<'_>> = all
        .map(|((example, row), seen)| Prompt {
            model: row.gold,
            domain: domains.of[row.gold as usize],
            digest: digest(&query_digest(&example.prompt)),
            seen,
        })
        .collect();
    memory.add(cpu, &prompts)
}

/// The first 16 bytes of a SHA-256 in hexadecimal digits.
pub(crate) fn digest(sha256: &str) -> PromptDigest {
    let mut bytes = [0; 16];
    for (byte, digits) in bytes.iter_mut().zip(sha256.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    bytes
}

/// Solves `memory` into the parts that are served.
pub(super) fn publish(
    memory: &Memory,
    settings: &Settings,
    cpu: &Cpu,
    hub: &Hub,
    cards: &[f32],
    parts: &mut BTreeMap<String, Vec<u8>>,
) -> Result<()> {
    let how = How {
        strengths: settings.strengths(),
        solving: Solving {
            rank: settings.memory_rank,
            prior: settings.memory_prior,
        },
    };
    remember(cpu, parts, memory, hub, cards, how)
}

/// Moves `memory` to an encoder that was trained, by the linear map near the identity that best
/// moves what the encoder saw of some prompts before to what it sees of them now (ridge
/// regression).
pub(crate) fn follow(memory: &mut Memory, cpu: &Cpu, was: &[Seen], is: &[Seen]) -> Result<()> {
    if memory.prompts() == 0 {
        return Ok(());
    }
    if was.is_empty() {
        bail!(
            InvalidRequest,
            "the encoder was trained, and no prompt is at hand to move the memory with it"
        );
    }
    let width = memory.width();
    let unit = 1.0 / (STEPS as f64 * (memory.layers().len() as f64).sqrt());
    let rows = |seen: &[Seen]| -> Vec<f64> {
        let all = seen.iter().flat_map(|seen| &seen.layers);
        all.map(|q| f64::from(*q) * unit).collect()
    };
    let x = rows(was);
    let change: Vec<f64> = rows(is).iter().zip(&x).map(|(is, was)| is - was).collect();
    let (x, change) = (DenseView::rows(&x, width), DenseView::rows(&change, width));
    cpu.run(|| -> Result<()> {
        let mut normal = vec![0.0; width * width];
        dense::add_product(cpu, 1.0, x.transposed(), x, Region::Lower, &mut normal);
        (0..width).for_each(|i| normal[i * width + i] += RIDGE);
        cholesky(cpu, &mut normal, width)?;
        let mut map = vec![0.0; width * width];
        dense::add_product(cpu, 1.0, x.transposed(), change, Region::All, &mut map);
        solve_lower(cpu, &normal, &mut map, width);
        solve_lower_transposed(cpu, &normal, &mut map, width);
        (0..width).for_each(|i| map[i * width + i] += 1.0);
        memory.transform(cpu, &map)
    })
}
