//! LoRA: y = x W^T + b + s (x La^T) Lb^T, s = alpha / r (carve.md section 2).
//!
//! The places of the factors in the flat buffer of trained parameters, and their names on disk.
//! Both are stored as [r, .]: La [r, in], and Lb transposed [r, out]. With dropout, elements of
//! La's input x are dropped; query, key and value share one mask, as they share x.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::device::Place;
use crate::error::{Error, Result, bail};
use crate::model::Config;
use crate::weights::{ANY, Tensors, to_safetensors};

/// A linear map of an encoder's layer that gets an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Target {
    /// Queries of the attention.
    Query,
    /// Keys of the attention.
    Key,
    /// Values of the attention.
    Value,
    /// The map behind the attention.
    AttentionOutput,
    /// The feed-forward part's first map.
    Intermediate,
    /// The feed-forward part's second map.
    Output,
}

impl Target {
    pub(crate) const ALL: [Self; 6] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionOutput,
        Self::Intermediate,
        Self::Output,
    ];

    /// The map's path inside a layer, as checkpoints have it.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Query => "attention.self.query",
            Self::Key => "attention.self.key",
            Self::Value => "attention.self.value",
            Self::AttentionOutput => "attention.output.dense",
            Self::Intermediate => "intermediate.dense",
            Self::Output => "output.dense",
        }
    }

    /// (in, out) of the map.
    pub(crate) fn shape(self, config: &Config) -> (usize, usize) {
        let (h, f) = (config.hidden, config.feed_forward);
        match self {
            Self::Query | Self::Key | Self::Value | Self::AttentionOutput => (h, h),
            Self::Intermediate => (h, f),
            Self::Output => (f, h),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::AttentionOutput => "attention_output",
            Self::Intermediate => "intermediate",
            Self::Output => "output",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.name().to_owned()
    }
}

impl TryFrom<String> for Target {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        match Self::ALL.into_iter().find(|target| target.name() == text) {
            Some(target) => Ok(target),
            None => bail!(
                InvalidRequest,
                "LoRA target: expected one of {}, found {text:?}",
                Self::ALL.map(Self::name).join(", ")
            ),
        }
    }
}

/// Rank, strength and targets of an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lora {
    pub(crate) r: usize,
    pub(crate) alpha: f32,
    /// Ascending.
    pub(crate) targets: Vec<Target>,
}

impl Lora {
    /// s
    pub(crate) fn scale(&self) -> f32 {
        self.alpha / self.r as f32
    }
}

/// Where an adapter's factors are in the flat buffer, from its beginning.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    pub(crate) lora: Lora,
    /// In the order of the network.
    pub(crate) layers: Vec<LayerMaps>,
    /// Elements of all factors.
    pub(crate) len: usize,
}

/// The adapters of one layer's four linear maps; query, key and value are one.
#[derive(Clone, Debug)]
pub(crate) struct LayerMaps {
    pub(crate) qkv: Map,
    pub(crate) attention_output: Map,
    pub(crate) intermediate: Map,
    pub(crate) output: Map,
}

impl LayerMaps {
    /// In the order of the network.
    pub(crate) fn all(&self) -> [&Map; 4] {
        [
            &self.qkv,
            &self.attention_output,
            &self.intermediate,
            &self.output,
        ]
    }
}

/// The adapters on one (stacked) linear map; none where no target is on it.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    /// Its place in the network, from 0.
    pub(crate) number: usize,
    /// La of all branches stacked, [n r, in].
    pub(crate) a: Place,
    pub(crate) branches: Vec<Branch>,
    /// First column of this map's x La^T in the layer's [T, targets r].
    pub(crate) thin: usize,
}

/// One adapter: columns `first_output..` of the map's output.
#[derive(Clone, Debug)]
pub(crate) struct Branch {
    pub(crate) target: Target,
    pub(crate) first_output: usize,
    /// La [r, in]
    pub(crate) a: Place,
    /// Lb transposed, [r, out].
    pub(crate) b: Place,
}

impl Lora {
    /// Errors: `bytes` are no `adapter.safetensors` of this rank. The encoder does not matter.
    pub(crate) fn check(&self, bytes: &[u8]) -> Result<()> {
        let file = Tensors::parse(bytes)?;
        for name in file.names() {
            let shape = match name.contains(".lora_A.") {
                true => [self.r, ANY],
                false => [ANY, self.r],
            };
            file.f32(&name, &shape)
                .map_err(|e| e.at(format!("a factor of rank {}", self.r)))?;
        }
        Ok(())
    }
}

impl Adapter {
    pub(crate) fn new(lora: &Lora, config: &Config) -> Self {
        let (mut offset, mut number) = (0, 0);
        let mut layers = Vec::with_capacity(config.layers);
        for _ in 0..config.layers {
            let mut thin = 0;
            let mut map = |targets: &[Target]| {
                let chosen: Vec<Target> = targets
                    .iter()
                    .copied()
                    .filter(|target| lora.targets.contains(target))
                    .collect();
                let (inputs, outputs) = targets[0].shape(config);
                let a = Place::flat(offset, chosen.len() * lora.r, inputs);
                let mut next = a.end();
                let mut branches = Vec::new();
                for (i, target) in chosen.iter().enumerate() {
                    let place = targets.iter().position(|t| t == target).unwrap_or(0);
                    let b = Place::flat(next, lora.r, outputs);
                    next = b.end();
                    branches.push(Branch {
                        target: *target,
                        first_output: place * outputs,
                        a: Place::flat(offset + i * lora.r * inputs, lora.r, inputs),
                        b,
                    });
                }
                let map = Map {
                    number,
                    a,
                    branches,
                    thin,
                };
                number += 1;
                thin += map.a.rows;
                offset = next;
                map
            };
            layers.push(LayerMaps {
                qkv: map(&[Target::Query, Target::Key, Target::Value]),
                attention_output: map(&[Target::AttentionOutput]),
                intermediate: map(&[Target::Intermediate]),
                output: map(&[Target::Output]),
            });
        }
        Self {
            lora: lora.clone(),
            layers,
            len: offset,
        }
    }

    /// Columns of a layer's [T, targets r].
    pub(crate) fn thin(&self) -> usize {
        self.lora.targets.len() * self.lora.r
    }

    /// Every adapter with its layer.
    pub(crate) fn branches(&self) -> impl Iterator<Item = (usize, &Branch)> {
        self.layers.iter().enumerate().flat_map(|(index, layer)| {
            let maps = layer.all().into_iter();
            maps.flat_map(move |map| map.branches.iter().map(move |branch| (index, branch)))
        })
    }
}

/// The layer and the map of the path `name`, such as `encoder.layer.0.output.dense`.
pub(crate) fn map_of(name: &str) -> Option<(usize, Target)> {
    let (layer, path) = name.strip_prefix("encoder.layer.")?.split_once('.')?;
    let digits = layer.bytes().all(|byte| byte.is_ascii_digit());
    let target = Target::ALL
        .into_iter()
        .find(|target| target.path() == path)?;
    Some((layer.parse().ok().filter(|_| digits)?, target))
}

/// Name of a factor on disk, as PEFT writes it; `part`: `A` or `B`.
pub(crate) fn factor_name(layer: usize, target: Target, part: &str) -> String {
    let path = target.path();
    format!("base_model.model.encoder.layer.{layer}.{path}.lora_{part}.weight")
}

/// Trained factors: the flat buffer's beginning, by value.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    pub(crate) adapter: Adapter,
    pub(crate) values: Vec<f32>,
}

impl Factors {
    /// La uniform in +-1/sqrt(in), Lb zero (carve.md section 2); `draw` gives numbers in [0, 1).
    pub(crate) fn fresh(adapter: Adapter, mut draw: impl FnMut() -> f32) -> Self {
        let mut values = vec![0.0; adapter.len];
        for (_, branch) in adapter.branches() {
            let bound = 1.0 / (branch.a.columns as f32).sqrt();
            for value in &mut values[branch.a.offset..branch.a.end()] {
                *value = (2.0 * draw() - 1.0) * bound;
            }
        }
        Self { adapter, values }
    }

    /// Reads an `adapter.safetensors`.
    ///
    /// Errors: it is malformed; a factor is missing, has another shape or is not finite.
    pub(crate) fn read(lora: &Lora, bytes: &[u8], config: &Config) -> Result<Self> {
        // Before memory is allocated for it.
        let one = Adapter::new(
            &Lora {
                r: 1,
                ..lora.clone()
            },
            config,
        );
        let wanted = (4 * one.len).checked_mul(lora.r);
        if lora.r == 0 || wanted.is_none_or(|wanted| wanted > bytes.len()) {
            bail!(
                Format,
                "r: expected a rank whose factors fit into {} bytes, found {}",
                bytes.len(),
                lora.r
            );
        }
        let adapter = Adapter::new(lora, config);
        let file = Tensors::parse(bytes)?;
        Self::of_maps(adapter, |layer, branch| {
            let (inputs, outputs) = (branch.a.columns, branch.b.columns);
            let a = file.f32(&factor_name(layer, branch.target, "A"), &[lora.r, inputs])?;
            let b = file.f32(&factor_name(layer, branch.target, "B"), &[outputs, lora.r])?;
            Ok(Some([a, b]))
        })
    }

    /// The factors that `of` gives for each map: La [k, in] and Lb [out, k] for a k of at most r.
    /// The others of the r are zero, and so are both where it gives `None`.
    pub(crate) fn of_maps(
        adapter: Adapter,
        mut of: impl FnMut(usize, &Branch) -> Result<Option<[Vec<f32>; 2]>>,
    ) -> Result<Self> {
        let mut values = vec![0.0; adapter.len];
        for (layer, branch) in adapter.branches() {
            let Some([a, b]) = of(layer, branch)? else {
                continue;
            };
            let (inputs, outputs) = (branch.a.columns, branch.b.columns);
            values[branch.a.offset..][..a.len()].copy_from_slice(&a);
            let place = &mut values[branch.b.offset..branch.b.end()];
            let rank = a.len() / inputs;
            for (o, row) in b.chunks_exact(rank.max(1)).enumerate() {
                for (k, value) in row.iter().enumerate() {
                    place[k * outputs + o] = *value;
                }
            }
        }
        Ok(Self { adapter, values })
    }

    /// An `adapter.safetensors` with PEFT's names and shapes: A [r, in], B [out, r].
    pub(crate) fn write(&self) -> Result<Vec<u8>> {
        let mut tensors = Vec::new();
        for (layer, branch) in self.adapter.branches() {
            let (r, inputs, outputs) = (branch.a.rows, branch.a.columns, branch.b.columns);
            let a = &self.values[branch.a.offset..branch.a.end()];
            let b = &self.values[branch.b.offset..branch.b.end()];
            let columns = (0..outputs).flat_map(|o| (0..r).map(move |k| b[k * outputs + o]));
            for (part, shape, values) in [
                ("A", [r, inputs], a.to_vec()),
                ("B", [outputs, r], columns.collect()),
            ] {
                let name = factor_name(layer, branch.target, part);
                if !values.iter().all(|value| value.is_finite()) {
                    bail!(Numeric, "{name}: expected finite numbers");
                }
                let bytes: Vec<u8> = bytemuck::cast_slice(&values).to_vec();
                tensors.push((name, safetensors::Dtype::F32, shape.to_vec(), bytes));
            }
        }
        to_safetensors("the adapter", &tensors, None)
    }

    /// Adds `s Lb La` to `weight` [out, in], the map `target` of `layer`.
    pub(crate) fn merge(&self, layer: usize, target: Target, weight: &mut [f32]) {
        let Some(delta) = self.delta(layer, target) else {
            return;
        };
        for (o, row) in weight.chunks_exact_mut(delta.inputs).enumerate() {
            delta.add_to(o, row);
        }
    }

    /// The change of the map `target` of `layer`; `None`: it has no adapter.
    pub(crate) fn delta(&self, layer: usize, target: Target) -> Option<Delta<'_>> {
        let (_, branch) = self
            .adapter
            .branches()
            .find(|(index, branch)| *index == layer && branch.target == target)?;
        Some(Delta {
            scale: self.adapter.lora.scale(),
            a: &self.values[branch.a.offset..branch.a.end()],
            b: &self.values[branch.b.offset..branch.b.end()],
            inputs: branch.a.columns,
            outputs: branch.b.columns,
        })
    }
}

/// `s Lb La`, the change of one map.
#[derive(Clone, Copy)]
pub(crate) struct Delta<'f> {
    scale: f32,
    /// La [r, in]
    a: &'f [f32],
    /// Lb transposed, [r, out].
    b: &'f [f32],
    inputs: usize,
    outputs: usize,
}

impl Delta<'_> {
    /// Adds the change of output `o` to its weights `row`.
    #[inline(always)]
    pub(crate) fn add_to(&self, o: usize, row: &mut [f32]) {
        for (k, a) in self.a.chunks_exact(self.inputs).enumerate() {
            let factor = self.scale * self.b[k * self.outputs + o];
            for (w, a) in row.iter_mut().zip(a) {
                *w += factor * a;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn factors_lie_side_by_side_without_gaps() {
        for targets in [
            Target::ALL.to_vec(),
            vec![Target::Key, Target::Output],
            vec![],
        ] {
            let lora = Lora {
                r: 3,
                alpha: 6.0,
                targets: targets.clone(),
            };
            let adapter = Adapter::new(&lora, &Config::toy());
            let mut used = vec![0; adapter.len];
            for (_, branch) in adapter.branches() {
                for place in [branch.a, branch.b] {
                    used[place.offset..place.end()]
                        .iter_mut()
                        .for_each(|n| *n += 1);
                }
            }
            assert!(used.iter().all(|n| *n == 1));
            let sizes = targets.iter().map(|t| {
                let (i, o) = t.shape(&Config::toy());
                2 * 3 * (i + o)
            });
            assert_eq!(adapter.len, sizes.sum::<usize>());
        }
    }

    #[test]
    fn a_file_brings_the_factors_back_and_damage_is_named() {
        let lora = Lora {
            r: 3,
            alpha: 6.0,
            targets: Target::ALL.to_vec(),
        };
        let mut count = 0.0;
        let factors = Factors::fresh(Adapter::new(&lora, &Config::toy()), || {
            count += 0.001;
            count % 1.0
        });
        let mut factors = factors;
        factors.values.iter_mut().for_each(|value| *value += 0.5);
        let bytes = factors.write().unwrap();
        let read = Factors::read(&lora, &bytes, &Config::toy()).unwrap();
        assert_eq!(read.values, factors.values);
        let wider = Lora {
            r: 4,
            ..lora.clone()
        };
        let error = Factors::read(&wider, &bytes, &Config::toy()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("query.lora_A.weight: expected [4, 4]"),
            "{error}"
        );
        assert!(Factors::read(&lora, &bytes[..bytes.len() - 1], &Config::toy()).is_err());
        // No memory is allocated for factors that cannot be there.
        for r in [0, usize::MAX] {
            let other = Lora { r, ..lora.clone() };
            let error = Factors::read(&other, &bytes, &Config::toy()).unwrap_err();
            assert!(error.to_string().contains("r: expected a rank"), "{error}");
        }
        factors.values[7] = f32::NAN;
        assert!(factors.write().is_err());
    }

    #[test]
    fn factors_start_within_xavier_bounds_v4() {
        let config = Config {
            hidden: 384,
            feed_forward: 1536,
            ..Config::toy()
        };
        let lora = Lora {
            r: 1,
            alpha: 2.0,
            targets: vec![Target::Query, Target::Output],
        };
        for (drawn, sign) in [(0.0, -1.0), (1.0, 1.0)] {
            let factors = Factors::fresh(Adapter::new(&lora, &config), || drawn);
            for (_, branch) in factors.adapter.branches() {
                let bound = match branch.target {
                    Target::Query => 0.051_031_0,
                    _ => 0.025_515_5,
                };
                let a = &factors.values[branch.a.offset..branch.a.end()];
                assert!(a.iter().all(|a| (a - sign * bound).abs() < 1e-6));
                let b = &factors.values[branch.b.offset..branch.b.end()];
                assert!(b.iter().all(|b| *b == 0.0));
            }
        }
    }

    #[test]
    fn key_alone_writes_the_keys_columns() {
        let lora = Lora {
            r: 1,
            alpha: 2.0,
            targets: vec![Target::Key],
        };
        let adapter = Adapter::new(&lora, &Config::toy());
        assert_eq!(adapter.layers[1].qkv.branches[0].first_output, 4);
        assert_eq!(adapter.layers[1].output.branches.len(), 0);
        // V13: La (0.5, -1), Lb (2, 1), s 2 on a map of one's own size.
        let mut values = vec![0.0; adapter.len];
        let branch = &adapter.layers[0].qkv.branches[0];
        values[branch.a.offset..][..4].copy_from_slice(&[0.5, -1.0, 0.0, 0.0]);
        values[branch.b.offset..][..4].copy_from_slice(&[2.0, 1.0, 0.0, 0.0]);
        let factors = Factors { adapter, values };
        let mut weight = vec![0.0; 16];
        factors.merge(0, Target::Key, &mut weight);
        // y = W x with x = (1, 2): (-6, -3).
        let y: Vec<f32> = weight.chunks(4).map(|w| w[0] + 2.0 * w[1]).collect();
        assert_eq!(y, [-6.0, -3.0, 0.0, 0.0]);
        let mut untouched = vec![1.0; 16];
        factors.merge(0, Target::Query, &mut untouched);
        assert_eq!(untouched, vec![1.0; 16]);
    }
}
