//! TIES merging: one router for each experience, merged at every step (carve.md section 12.6).

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::trained::{self, Recipe};
use super::{Common, Method, Named, Progressed, Watching};
use crate::cmrbench::registry::LastStep;
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::generation::{ADAPTER, Contents, GenerationId, NewModel};
use crate::hub::Hub;
use crate::learn::{Experience, InitProfile, Settings};
use crate::model::Config;
use crate::model::lora::{Adapter, Factors, Lora};
use crate::ops::normalize::unit;
use crate::route::Router;
use crate::store::Store;

/// Share of a tensor's entries that are kept.
const KEEP: f64 = 0.3;

/// The parts of the adapters that are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MergeForm {
    /// La with La and Lb with Lb, as in the reference. The product of merged factors is not the
    /// merge of products.
    Factors,
    /// The products s Lb La.
    Product,
}

/// The settings of each experience's router.
pub(super) fn settings(common: &Common<'_>, seed: u64, step: usize) -> Result<Settings> {
    let settings = Recipe::plain("0").settings(common, seed, step)?;
    if settings.init_profile != InitProfile::Card {
        bail!(
            Unsupported,
            "init.profile: expected card for TIES merging, whose routers begin with the same W"
        );
    }
    Ok(settings)
}

pub(super) struct Ties<'c> {
    common: &'c Common<'c>,
    form: MergeForm,
    seed: u64,
    folder: PathBuf,
    router: Option<Router>,
}

impl<'c> Ties<'c> {
    pub(super) fn new(common: &'c Common<'c>, form: MergeForm, seed: u64, folder: &Path) -> Self {
        Self {
            common,
            form,
            seed,
            folder: folder.to_owned(),
            router: None,
        }
    }

    /// The store of the router of one experience, from 1.
    fn member(&self, step: usize) -> PathBuf {
        self.folder.join(format!("E{step}"))
    }

    fn merged(&self) -> PathBuf {
        self.folder.join("merged")
    }

    /// The models that the experience of `step` teaches.
    fn taught(&self, step: usize) -> Vec<NewModel> {
        let rows = &self.common.data.experiences[step - 1].train;
        let names: BTreeSet<&str> = rows.iter().map(|row| row.model_name.as_str()).collect();
        let mut hub = self.common.data.hub(step);
        hub.retain(|new| names.contains(&*new.model.name));
        hub
    }

    /// Merges the routers of the experiences up to `step` and publishes the result.
    fn merge(&self, encoder: &Encoder, step: usize) -> Result<GenerationId> {
        let mut members = Vec::with_capacity(step);
        for member in 1..=step {
            let store = Store::open(self.member(member))?;
            members.push(store.contents(&store.current()?)?);
        }
        let first = &members[0];
        let width = first.manifest.width;
        let factors = merge_factors(&members, encoder.config(), self.form)?;
        let hub = self.common.data.hub(step);
        let hub = Hub::default().with(hub.into_iter().map(|new| new.model))?;

        let mut draft = first
            .clone()
            .child(store_id(&self.member(1))?, "cmrbench ties".to_owned());
        draft.manifest.parent = None;
        draft.manifest.sequence = u32::try_from(step).unwrap_or(u32::MAX);
        draft.manifest.learned = None;
        draft.projection = merge_projections(&members, width);
        draft.embeddings = merge_rows(&members, &hub, width)?;
        draft.hub = Arc::new(hub);
        draft.parts.clear();
        draft.manifest.adapter = factors.as_ref().map(|factors| factors.adapter.lora.clone());
        if let Some(factors) = factors {
            draft.parts.insert(ADAPTER.to_owned(), factors.write()?);
        }
        let store = Store::create(self.merged())?;
        store.publish(&store.lock()?, &draft, None)
    }
}

fn store_id(folder: &Path) -> Result<GenerationId> {
    Store::open(folder)?.current()
}

impl Method for Ties<'_> {
    fn learn(&mut self, step: usize, watch: Watching<'_>) -> Result<Progressed> {
        self.router = None;
        let settings = settings(self.common, self.seed, step)?;
        let encoder = Arc::new(Encoder::open(self.common.encoder, self.common.options)?);
        let models = self.taught(step);
        trained::start(&encoder, &self.member(step), &models)?;
        let examples = trained::experience(self.common.data, step - 1, step).examples;
        let experience = Experience { models, examples };
        let learned = trained::learn(
            self.common,
            &self.member(step),
            settings,
            &experience,
            watch,
        )?;
        let Some(mut learned) = learned else {
            return Ok(Progressed::Stopped);
        };
        learned.state = self.merge(&encoder, step)?.to_string();
        self.router = Some(trained::open(self.common, &self.merged())?);
        Ok(Progressed::Done(learned))
    }

    fn resume(&mut self, _step: usize, state: &str) -> Result<()> {
        self.router = Some(trained::resume(self.common, &self.merged(), state)?);
        Ok(())
    }

    fn rank(&mut self, prompts: &[&str]) -> Result<Vec<Vec<Named>>> {
        trained::rank(self.router.as_ref(), prompts)
    }

    fn kept(&self) -> Result<Option<LastStep>> {
        trained::kept(&self.merged()).map(Some)
    }
}

/// Trims each tensor to its largest entries, elects a sign for each place, takes the mean of the
/// entries that have it.
fn merge(tensors: &[Vec<f32>], keep: f64) -> Vec<f32> {
    let trimmed: Vec<Vec<f32>> = tensors.iter().map(|tensor| trim(tensor, keep)).collect();
    let size = tensors.first().map_or(0, Vec::len);
    let place = |i: usize| {
        let entries = || trimmed.iter().map(|tensor| tensor[i]);
        let positive = entries().map(f64::from).sum::<f64>() >= 0.0;
        let chosen = entries().filter(|x| *x != 0.0 && (*x > 0.0) == positive);
        let (sum, count) = chosen.fold((0.0, 0.0), |(sum, count), x| (sum + x, count + 1.0));
        if count > 0.0 { sum / count } else { 0.0 }
    };
    (0..size).map(place).collect()
}

/// Keeps the entries of largest magnitude, the first ones among ties; the others become 0.
fn trim(tensor: &[f32], keep: f64) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "a share of a count")]
    let count = (keep * tensor.len() as f64).floor() as usize;
    let mut order: Vec<usize> = (0..tensor.len()).collect();
    order.sort_by(|a, b| tensor[*b].abs().total_cmp(&tensor[*a].abs()).then(a.cmp(b)));
    let mut trimmed = vec![0.0; tensor.len()];
    for place in order.into_iter().take(count) {
        trimmed[place] = tensor[place];
    }
    trimmed
}

/// One adapter for all; a single member's stays as it is.
fn merge_factors(
    members: &[Contents],
    config: &Config,
    form: MergeForm,
) -> Result<Option<Factors>> {
    let factors: Vec<Factors> = members
        .iter()
        .filter_map(|member| member.factors(config).transpose())
        .collect::<Result<_>>()?;
    match factors.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        all => Ok(Some(match form {
            MergeForm::Factors => merged_factors(all, KEEP),
            MergeForm::Product => merged_products(all, config, KEEP),
        })),
    }
}

fn merged_factors(all: &[Factors], keep: f64) -> Factors {
    let mut adapter = all[0].adapter.clone();
    let mut values = vec![0.0; adapter.len];
    for (_, branch) in adapter.branches() {
        for range in [
            branch.a.offset..branch.a.end(),
            branch.b.offset..branch.b.end(),
        ] {
            let weighted = |factors: &Factors| -> Vec<f32> {
                let weight = factors.adapter.lora.scale().sqrt();
                factors.values[range.clone()]
                    .iter()
                    .map(|x| weight * x)
                    .collect()
            };
            let tensors: Vec<Vec<f32>> = all.iter().map(weighted).collect();
            values[range.clone()].copy_from_slice(&merge(&tensors, keep));
        }
    }
    adapter.lora.alpha = adapter.lora.r as f32;
    Factors { adapter, values }
}

/// The merged matrix of every map as an adapter whose rank is the encoder's width: one factor is
/// the matrix, the other the identity.
fn merged_products(all: &[Factors], config: &Config, keep: f64) -> Factors {
    let r = config.hidden;
    let lora = Lora {
        r,
        alpha: r as f32,
        targets: all[0].adapter.lora.targets.clone(),
    };
    let adapter = Adapter::new(&lora, config);
    let mut values = vec![0.0; adapter.len];
    for (layer, branch) in adapter.branches() {
        let (inputs, outputs) = (branch.a.columns, branch.b.columns);
        let product = |factors: &Factors| {
            let mut matrix = vec![0.0; outputs * inputs];
            factors.merge(layer, branch.target, &mut matrix);
            matrix
        };
        let tensors: Vec<Vec<f32>> = all.iter().map(product).collect();
        let matrix = merge(&tensors, keep);
        let (identity, other) = if inputs == r {
            (branch.a, branch.b)
        } else {
            (branch.b, branch.a)
        };
        for k in 0..r {
            values[identity.offset + k * identity.columns + k] = 1.0;
        }
        let place = &mut values[other.offset..other.end()];
        if inputs == r {
            // Lb transposed, [r, out].
            for (o, row) in matrix.chunks_exact(inputs).enumerate() {
                for (k, x) in row.iter().enumerate() {
                    place[k * outputs + o] = *x;
                }
            }
        } else {
            place.copy_from_slice(&matrix);
        }
    }
    Factors { adapter, values }
}

/// The identity, which all members start from, plus the merge of their changes.
fn merge_projections(members: &[Contents], width: usize) -> Vec<f32> {
    if let [one] = members {
        return one.projection.clone();
    }
    let identity = |i: usize| {
        if i.is_multiple_of(width + 1) {
            1.0
        } else {
            0.0
        }
    };
    let added = |member: &Contents| -> Vec<f32> {
        let all = member.projection.iter().enumerate();
        all.map(|(i, x)| x - identity(i)).collect()
    };
    let tensors: Vec<Vec<f32>> = members.iter().map(added).collect();
    let merged = merge(&tensors, KEEP).into_iter().enumerate();
    merged.map(|(i, x)| x + identity(i)).collect()
}

/// For each model of `hub`, the unit mean of its unit rows in the members that trained it.
fn merge_rows(members: &[Contents], hub: &Hub, width: usize) -> Result<Vec<f32>> {
    let mut rows: HashMap<&str, Vec<f32>> = HashMap::new();
    for member in members {
        for ((_, model), row) in member.hub.iter().zip(member.embeddings.chunks_exact(width)) {
            let mut row = row.to_vec();
            unit(&mut row);
            let sum = rows.entry(&model.name).or_insert_with(|| vec![0.0; width]);
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }
    let mut merged = Vec::with_capacity(hub.len() * width);
    for (_, model) in hub.iter() {
        let Some(mut row) = rows.get(&*model.name).cloned() else {
            bail!(
                Mismatch,
                "{}: expected an experience that teaches it, found none",
                model.name
            );
        };
        unit(&mut row);
        merged.extend(row);
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "expected {want}, found {got}");
        }
    }

    /// carve.md V25.
    #[test]
    fn merge_matches_hand_values_v25() {
        let tensors = [
            vec![0.9, -0.2, 0.1, 0.8, -0.7, 0.05, 0.0, 0.3, -0.1, 0.2],
            vec![-0.5, 0.6, 0.1, 0.4, -0.3, 0.02, 0.7, -0.3, 0.1, 0.0],
        ];
        close(
            &merge(&tensors, 0.3),
            &[0.9, 0.6, 0.0, 0.8, -0.7, 0.0, 0.7, 0.0, 0.0, 0.0],
        );
    }

    /// carve.md V25: rank 1, s = 2, on the one map of a toy whose width is 4.
    #[test]
    fn factors_and_products_match_hand_values_v25() {
        let config = Config {
            layers: 1,
            heads: 1,
            feed_forward: 4,
            ..Config::toy()
        };
        let lora = Lora {
            r: 1,
            alpha: 2.0,
            targets: vec![crate::model::lora::Target::Query],
        };
        let factors = |a: [f32; 4], b: [f32; 4]| Factors {
            adapter: Adapter::new(&lora, &config),
            values: [a, b].concat(),
        };
        let all = [
            factors([1.0, -0.1, 0.5, 0.2], [2.0, 0.1, -1.0, 0.3]),
            factors([-0.4, 0.9, 0.1, -0.8], [0.5, -1.5, 0.2, 1.0]),
        ];
        let product = |factors: &Factors| {
            let mut matrix = vec![0.0; 16];
            factors.merge(0, crate::model::lora::Target::Query, &mut matrix);
            matrix
        };
        let by_factors = merged_factors(&all, 0.5);
        // Entries are weighted by the square root of s.
        let merged = [1.0, 0.9, 0.5, -0.8, 2.0, -1.5, -1.0, 1.0].map(|x| x * 2f32.sqrt());
        close(&by_factors.values, &merged);
        close(
            &product(&by_factors),
            &[
                4.0, 3.6, 2.0, -3.2, -3.0, -2.7, -1.5, 2.4, -2.0, -1.8, -1.0, 1.6, 2.0, 1.8, 1.0,
                -1.6,
            ],
        );
        close(
            &product(&merged_products(&all, &config, 0.5)),
            &[
                4.0, 0.9, 2.0, 0.8, 1.2, -2.7, 0.0, 2.4, -2.0, 0.0, -1.0, -0.4, -0.8, 1.8, 0.0,
                -1.6,
            ],
        );
    }
}
