//! Prompts that could not be routed, in groups of similar ones, and the nearest cards of each.

use std::collections::VecDeque;

use serde::Serialize;

use super::measure::{MOST_UNROUTED, UnroutedLine};
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::error::Result;
use crate::num::dot;
use crate::{Encoder, GenerationId, Hub, Options, Store};

/// Cosine from which on two prompts are alike. Of the bundled encoder, prompts of one task have
/// about 0.4 to 0.7, of different ones 0 to 0.3.
const ALIKE: f64 = 0.5;

/// Clusters that are reported.
const MOST_CLUSTERS: usize = 20;

/// Nearest cards of a cluster.
const CARDS: usize = 3;

/// Prompts that are encoded together.
const BATCH: usize = 32;

/// Prompts that could not be routed.
#[derive(Default, Serialize)]
pub(super) struct Unrouted {
    pub(super) lines: usize,
    pub(super) no_answer: usize,
    pub(super) out_of_distribution: usize,
    pub(super) abstained: usize,
    pub(super) unsure: usize,
    /// The newest lines, which are clustered if they have text or a vector.
    pub(super) kept: usize,
    pub(super) clustered: usize,
    pub(super) clusters: Vec<PromptCluster>,
    /// Prompts in clusters that are not listed.
    pub(super) in_others: usize,
    /// Why some or all of the prompts are in no cluster.
    pub(super) remarks: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct PromptCluster {
    pub(super) prompts: usize,
    /// The prompt in its middle: the text if it is kept, and the id.
    pub(super) example: Option<String>,
    pub(super) prompt_id: String,
    /// The model that most of its decisions would have named.
    pub(super) best: Option<String>,
    pub(super) nearest: Vec<NearCard>,
}

#[derive(Serialize)]
pub(super) struct NearCard {
    pub(super) model: String,
    pub(super) domain: String,
    /// Of the card and the middle of the cluster.
    pub(super) cosine: f64,
}

/// `vector` with length 1; `None` if it has no direction.
fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let length = dot(vector, vector).sqrt();
    let scale = |element: &f32| crate::num::to_f32(f64::from(*element) / length);
    (length > 0.0 && length.is_finite()).then(|| vector.iter().map(scale).collect())
}

/// Groups of unit vectors, the largest first; the first member of each is its middle, to which all
/// others have a cosine of at least `alike` (Butina, 1999).
fn groups(units: &[Vec<f32>], alike: f64) -> Vec<Vec<usize>> {
    let mut near: Vec<Vec<usize>> = vec![Vec::new(); units.len()];
    for a in 0..units.len() {
        for b in a + 1..units.len() {
            if dot(&units[a], &units[b]) >= alike {
                near[a].push(b);
                near[b].push(a);
            }
        }
    }
    let mut order: Vec<usize> = (0..units.len()).collect();
    order.sort_by_key(|place| (std::cmp::Reverse(near[*place].len()), *place));
    let mut taken = vec![false; units.len()];
    let mut groups = Vec::new();
    for middle in order {
        if std::mem::replace(&mut taken[middle], true) {
            continue;
        }
        let mut group = vec![middle];
        for member in &near[middle] {
            if !std::mem::replace(&mut taken[*member], true) {
                group.push(*member);
            }
        }
        groups.push(group);
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    groups
}

/// The models whose cards are nearest to the mean of `group`; `cards`: unit vectors, row by row.
fn nearest(group: &[usize], units: &[Vec<f32>], cards: &[f32], hub: &Hub) -> Vec<NearCard> {
    let width = units[group[0]].len();
    let mut mean = vec![0.0_f32; width];
    for member in group {
        for (sum, element) in mean.iter_mut().zip(&units[*member]) {
            *sum += element;
        }
    }
    let Some(mean) = unit(&mean) else {
        return Vec::new();
    };
    let models = hub.iter().zip(cards.chunks_exact(width));
    let models = models.filter(|((_, model), _)| !model.retired);
    let mut all: Vec<NearCard> = models
        .map(|((_, model), card)| NearCard {
            model: model.name.to_string(),
            domain: model.domain.to_string(),
            cosine: dot(&mean, card),
        })
        .collect();
    all.sort_by(|a, b| b.cosine.total_cmp(&a.cosine));
    all.truncate(CARDS);
    all
}

/// Clusters `lines`, which could not be routed, with the encoder and cards of the generation `id`.
pub(super) fn cluster(
    unrouted: &mut Unrouted,
    lines: &VecDeque<UnroutedLine>,
    store: &Store,
    id: &GenerationId,
    options: &Options,
) -> Result<()> {
    let has = |line: &UnroutedLine| line.text.is_some() || line.vector.is_some();
    let bare = lines.iter().filter(|line| !has(line)).count();
    if bare > 0 {
        unrouted.remarks.push(format!(
            "{} without text and vector cannot be clustered",
            output::counted(bare, "prompt")
        ));
    }
    if unrouted.lines > lines.len() {
        unrouted
            .remarks
            .push(format!("only the newest {MOST_UNROUTED} are clustered"));
    }
    if bare == lines.len() {
        return Ok(());
    }
    let encoder = store.encoder(id, options)?;
    let found = vectors(lines, &encoder)?;
    let foreign = lines.len() - bare - found.len();
    if foreign > 0 {
        unrouted.remarks.push(format!(
            "{} without a vector by the encoder {}",
            output::counted(foreign, "prompt"),
            encoder.name()
        ));
    }
    let (places, units): (Vec<usize>, Vec<Vec<f32>>) = found.into_iter().unzip();
    unrouted.clustered = units.len();
    let contents = store.contents(id)?;
    let cards = match contents.has_cards() {
        true => contents.cards()?,
        false => {
            let remark = format!("{id} keeps no vectors of cards, so none are nearest");
            unrouted.remarks.push(remark);
            Vec::new()
        }
    };
    for (rank, group) in groups(&units, ALIKE).iter().enumerate() {
        if rank >= MOST_CLUSTERS {
            unrouted.in_others += group.len();
            continue;
        }
        let middle = &lines[places[group[0]]];
        let best = group
            .iter()
            .filter_map(|member| lines[places[*member]].best.as_deref());
        unrouted.clusters.push(PromptCluster {
            prompts: group.len(),
            example: middle.text.clone(),
            prompt_id: middle.prompt_id.clone(),
            best: most_frequent(best),
            nearest: nearest(group, &units, &cards, &contents.hub),
        });
    }
    Ok(())
}

fn most_frequent<'n>(names: impl Iterator<Item = &'n str>) -> Option<String> {
    let mut counts = std::collections::BTreeMap::new();
    for name in names {
        *counts.entry(name).or_insert(0usize) += 1;
    }
    // Of equals the first by name.
    let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    most.map(|(name, _)| name.to_owned())
}

/// The places and unit vectors of the lines that have a vector by `encoder`, or text to encode.
fn vectors(lines: &VecDeque<UnroutedLine>, encoder: &Encoder) -> Result<Vec<(usize, Vec<f32>)>> {
    let mut found: Vec<(usize, Vec<f32>)> = Vec::new();
    let mut texts: Vec<(usize, &str)> = Vec::new();
    for (place, line) in lines.iter().enumerate() {
        match (&line.vector, &line.text) {
            (Some((vector, revision)), _)
                if revision == encoder.revision() && vector.len() == encoder.width() =>
            {
                found.extend(unit(vector).map(|unit| (place, unit)));
            }
            (_, Some(text)) => texts.push((place, text)),
            _ => {}
        }
    }
    let mut progress = Progress::new("encoding prompts", texts.len() as u64);
    let mut done = 0;
    for batch in texts.chunks(BATCH) {
        let prompts: Vec<&str> = batch.iter().map(|(_, text)| *text).collect();
        for ((place, _), vector) in batch.iter().zip(encoder.embed(&prompts)) {
            // A prompt of which no token is left has no vector.
            if let Ok(vector) = vector {
                found.extend(unit(&vector).map(|unit| (*place, unit)));
            }
        }
        done += batch.len() as u64;
        progress.set(done);
    }
    found.sort_by_key(|(place, _)| *place);
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn units(angles: &[f32]) -> Vec<Vec<f32>> {
        let at = |angle: &f32| vec![angle.cos(), angle.sin()];
        angles.iter().map(at).collect()
    }

    #[test]
    fn prompts_that_are_alike_are_one_group() {
        // 0, 0.3, 0.6 rad around the second; 2.0 and 2.2; 4.5 alone. cos 0.4 = 0.92.
        let units = units(&[0.0, 0.3, 0.6, 2.0, 4.5, 2.2]);
        let found = groups(&units, f64::from(0.4_f32.cos()));
        assert_eq!(found, [vec![1, 0, 2], vec![3, 5], vec![4]]);
        assert!(groups(&[], ALIKE).is_empty());
    }

    #[test]
    fn the_nearest_cards_are_those_of_the_mean() {
        let hub: Hub = serde_json::from_value(serde_json::json!({
            "schema_version": 1,
            "models": [
                {"name": "up", "domain": "d"}, {"name": "right", "domain": "d"},
                {"name": "gone", "domain": "d", "retired": true},
                {"name": "left", "domain": "d"}, {"name": "down", "domain": "d"},
            ],
        }))
        .unwrap();
        let cards = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0, -1.0];
        let units = units(&[0.2, -0.1]);
        let found = nearest(&[0, 1], &units, &cards, &hub);
        let names: Vec<&str> = found.iter().map(|card| card.model.as_str()).collect();
        assert_eq!(names, ["right", "up", "down"]);
        assert!((found[0].cosine - 0.05_f64.cos()).abs() < 1e-4);
    }

    #[test]
    fn vectors_without_direction_are_left_out() {
        assert_eq!(unit(&[0.0, 0.0]), None);
        assert_eq!(unit(&[3.0, 4.0]), Some(vec![0.6, 0.8]));
        assert_eq!(
            most_frequent(["b", "a", "b", "a"].into_iter()).as_deref(),
            Some("a")
        );
    }
}
