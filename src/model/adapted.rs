//! An adapter's part of a pass: its products, which each linear map adds, dropout, and gradients.
//!
//! Where a GPU can, and without dropout, the products are merged into a copy of the weights
//! instead, and the gradients of a layer's factors are made together ([`MergedMaps`]).

use crate::device::gpu::GpuPass;
use crate::device::{Device, Part, Pass, Place, Tensor};
use crate::error::Result;
use crate::model::bert::Bert;
use crate::model::lora::{self, Adapter};
use crate::model::training::Training;
use crate::num::to_u32;
use crate::ops::dropout::{self, Mask};
use crate::ops::linear::Weight;
use crate::ops::low_rank::{self, LayerJobs, MAPS};
use crate::ops::matmul::Product;
use crate::ops::{Ops, linear};

/// An adapter with its factors.
#[derive(Clone, Copy)]
pub(crate) struct Adapted<'n> {
    pub(crate) adapter: &'n Adapter,
    /// The flat buffer of trained parameters, which begins with the factors.
    pub(crate) theta: &'n Tensor,
    /// Share of the adapter's inputs that is dropped, by the keys that were uploaded; 0 in
    /// evaluation.
    pub(crate) dropout: f32,
}

/// The tensors of an adapter's products.
pub(super) struct AdapterActivations {
    /// [T, targets r] of each layer: x La^T of each target. None where products are always merged.
    pub(super) thin: Vec<Tensor>,
    /// Where the adapter is trained with dropout.
    pub(super) dropped: Option<Dropped>,
    /// Where a GPU takes them for passes without dropout.
    pub(super) merged: Option<MergedMaps>,
}

/// The layers' maps with an adapter's products in their weights.
pub(super) struct MergedMaps {
    pub(super) layers: Vec<MergedLayer>,
    /// [T, .]: scratch of the factors' gradients.
    pub(super) blocks: Tensor,
}

/// One layer's maps in the order of [`lora::LayerMaps`].
pub(super) struct MergedLayer {
    pub(super) jobs: LayerJobs,
    pub(super) maps: [Weight; MAPS],
}

impl MergedMaps {
    fn new(device: &Device, bert: &Bert, adapter: &Adapter, tokens: usize) -> Result<Option<Self>> {
        if adapter.len == 0 {
            return Ok(None);
        }
        let (h, f) = (bert.config.hidden, bert.config.feed_forward);
        let widths = [(h, 3 * h), (h, h), (h, f), (f, h)];
        let mut layers = Vec::with_capacity(adapter.layers.len());
        for (maps, layer) in adapter.layers.iter().zip(&bert.parameters.layers) {
            let mut branches = Vec::new();
            for (number, (map, (_, outputs))) in maps.all().into_iter().zip(widths).enumerate() {
                // Query, key and value are three.
                let own = if number == 0 { outputs / 3 } else { outputs };
                for first_output in (0..outputs).step_by(own) {
                    let mut factors = map.branches.iter();
                    let factors = factors.find(|branch| branch.first_output == first_output);
                    branches.push(low_rank::Branch {
                        map: number,
                        first_output,
                        outputs: own,
                        factors: factors.map(|branch| [branch.a, branch.b]),
                    });
                }
            }
            let scale = adapter.lora.scale();
            let Some(jobs) = LayerJobs::new(device, widths, &branches, scale)? else {
                return Ok(None);
            };
            let [qkv, attention_output, intermediate, output] = layer.maps();
            let maps = [
                qkv.twin(device)?,
                attention_output.twin(device)?,
                intermediate.twin(device)?,
                output.twin(device)?,
            ];
            layers.push(MergedLayer { jobs, maps });
        }
        let columns = layers.first().map_or(0, |layer| layer.jobs.blocks());
        let blocks = device.scratch("blocks", tokens, columns)?;
        Ok(Some(Self { layers, blocks }))
    }

    /// Makes every layer's weights of the factors in `theta`.
    pub(super) fn merge(&mut self, ops: &Ops, pass: &mut GpuPass<'_>, bert: &Bert, theta: &Tensor) {
        for (merged, layer) in self.layers.iter_mut().zip(&bert.parameters.layers) {
            let m = low_rank::Merge {
                jobs: &merged.jobs,
                theta,
                w: layer.maps().map(Weight::on_gpu),
                merged: merged.maps.each_mut().map(Weight::on_gpu_mut),
            };
            ops.low_rank.merge(pass, m);
        }
    }
}

impl AdapterActivations {
    pub(super) fn new(
        device: &Device,
        bert: &Bert,
        adapter: &Adapter,
        tokens: usize,
        dropout: bool,
    ) -> Result<Self> {
        let config = &bert.config;
        let merged = MergedMaps::new(device, bert, adapter, tokens)?;
        let layers = match merged.is_some() && !dropout {
            true => 0,
            false => config.layers,
        };
        let thin = |_| device.scratch("thin", tokens, adapter.thin().max(1));
        let dropped = || {
            Ok(Dropped {
                keys: device.ids("keys", tokens, 1)?,
                hidden: device.scratch("dropped hidden", tokens, config.hidden)?,
                wide: device.scratch("dropped wide", tokens, config.feed_forward)?,
            })
        };
        Ok(Self {
            thin: (0..layers).map(thin).collect::<Result<_>>()?,
            dropped: dropout.then(dropped).transpose()?,
            merged,
        })
    }

    pub(super) fn resize(&mut self, tokens: usize) {
        self.thin.iter_mut().for_each(|thin| thin.resize(tokens));
        if let Some(merged) = &mut self.merged {
            merged.blocks.resize(tokens);
        }
    }

    /// Sends a key for each token of the batch that was uploaded.
    ///
    /// # Panics
    /// Without tensors for dropout: a bug.
    pub(super) fn upload_keys(&mut self, pass: &mut Pass<'_>, keys: &[u32]) {
        let Some(dropped) = &mut self.dropped else {
            panic!("dropout: no tensors were made for it");
        };
        pass.upload(&mut dropped.keys, keys);
        dropped.hidden.resize(keys.len());
        dropped.wide.resize(keys.len());
    }
}

/// An adapter's input with elements dropped, or the gradient of one. The backward pass needs it
/// again and computes it again, so that no layer keeps its own.
pub(super) struct Dropped {
    /// [T, 1]: decides about the elements of a token.
    keys: Tensor,
    /// [T, H]
    hidden: Tensor,
    /// [T, F]
    wide: Tensor,
}

/// The mask of one map, and the tensor for its result.
struct Thinned<'d> {
    mask: Mask<'d>,
    result: &'d mut Tensor,
}

impl Dropped {
    /// For the map `number` with inputs as wide as `x`.
    fn of(&mut self, map: &lora::Map, rate: f32, x: &Tensor) -> Thinned<'_> {
        let result = match x.columns() == self.hidden.columns() {
            true => &mut self.hidden,
            false => &mut self.wide,
        };
        let mask = Mask {
            keys: &self.keys,
            using: to_u32(map.number),
            rate,
        };
        Thinned { mask, result }
    }
}

impl Adapted<'_> {
    /// drop(x): `x` itself without dropout.
    fn thinned<'x>(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        map: &lora::Map,
        dropped: Option<&'x mut Dropped>,
        x: &'x Tensor,
    ) -> Part<'x> {
        let Some(dropped) = dropped.filter(|_| self.dropout > 0.0) else {
            return x.part(x.place());
        };
        let Thinned { mask, result } = dropped.of(map, self.dropout, x);
        let y = &mut *result;
        ops.dropout.forward(pass, dropout::Forward { mask, x, y });
        result.part(result.place())
    }

    /// Each branch with its columns of `thin`, whose first column is the map's.
    fn windows<'m>(&self, thin: &Tensor, map: &'m lora::Map) -> Vec<(Place, &'m lora::Branch)> {
        let r = self.adapter.lora.r;
        let place = |i: usize| thin.columns_at(map.thin + i * r, r);
        let branches = map.branches.iter().enumerate();
        branches.map(|(i, branch)| (place(i), branch)).collect()
    }
}

/// The linear maps of one layer, with an adapter's products added.
pub(super) struct MapForward<'m> {
    ops: &'m Ops,
    added: Option<Added<'m>>,
}

struct Added<'m> {
    adapted: Adapted<'m>,
    maps: &'m lora::LayerMaps,
    how: Addition<'m>,
}

enum Addition<'m> {
    Merged(&'m [Weight; MAPS]),
    Products {
        thin: &'m mut Tensor,
        dropped: Option<&'m mut Dropped>,
    },
}

impl<'m> MapForward<'m> {
    /// Of layer `index`.
    ///
    /// # Panics
    /// With an adapter and without tensors for it: a bug.
    pub(super) fn new(
        ops: &'m Ops,
        adapted: Option<Adapted<'m>>,
        tensors: Option<&'m mut AdapterActivations>,
        index: usize,
    ) -> Self {
        let added = adapted.map(|adapted| {
            let Some(tensors) = tensors else {
                panic!("adapter: no tensors were made for it");
            };
            let merged = tensors.merged.as_ref();
            let how = match merged.filter(|_| adapted.dropout == 0.0) {
                Some(merged) => Addition::Merged(&merged.layers[index].maps),
                None => Addition::Products {
                    thin: &mut tensors.thin[index],
                    dropped: tensors.dropped.as_mut(),
                },
            };
            Added {
                adapted,
                maps: &adapted.adapter.layers[index],
                how,
            }
        });
        Self { ops, added }
    }

    /// `y = x W^T + b + s (drop(x) La^T) Lb^T`; the layer's `thin` keeps drop(x) La^T.
    pub(super) fn apply(
        &mut self,
        pass: &mut Pass<'_>,
        w: &Weight,
        map: fn(&lora::LayerMaps) -> &lora::Map,
        x: &Tensor,
        y: &mut Tensor,
    ) {
        let ops = self.ops;
        let added = self.added.as_mut();
        let w = match &added {
            Some(Added {
                maps,
                how: Addition::Merged(merged),
                ..
            }) => {
                let merged: &[Weight; MAPS] = merged;
                &merged[map(maps).number % MAPS]
            }
            _ => w,
        };
        let forward = linear::Forward { x, w, y: &mut *y };
        ops.linear.forward(pass, forward);
        let Some(Added { adapted, maps, how }) = added else {
            return;
        };
        let (adapted, map) = (*adapted, map(maps));
        let Addition::Products { thin, dropped } = how else {
            return;
        };
        if map.branches.is_empty() {
            return;
        }
        let window = thin.columns_at(map.thin, map.a.rows);
        let dropped = dropped.as_deref_mut();
        let product = Product {
            a: adapted.thinned(ops, pass, map, dropped, x),
            b: adapted.theta.part(map.a),
            scale: 1.0,
            y: thin.part_mut(window),
            add: false,
        };
        ops.matmul.nt(pass, product);
        for (place, branch) in adapted.windows(thin, map) {
            let columns = y.columns_at(branch.first_output, branch.b.columns);
            let product = Product {
                a: thin.part(place),
                b: adapted.theta.part(branch.b),
                scale: adapted.adapter.lora.scale(),
                y: y.part_mut(columns),
                add: true,
            };
            ops.matmul.nn(pass, product);
        }
    }
}

/// The gradients of one layer's linear maps: of each map first [`LayerBackward::factors`], then
/// [`LayerBackward::input`]; at the end [`LayerBackward::all_factors`].
pub(super) struct LayerBackward<'b> {
    ops: &'b Ops,
    adapted: Adapted<'b>,
    /// In the order of the network.
    maps: [&'b lora::Map; MAPS],
    w: [&'b Weight; MAPS],
    grad: &'b mut Tensor,
    how: GradientOf<'b>,
}

enum GradientOf<'b> {
    Merged {
        jobs: &'b LayerJobs,
        blocks: &'b mut Tensor,
    },
    Products {
        /// x La^T of the layer's targets, from the forward pass.
        thin: &'b Tensor,
        d_thin: &'b mut Tensor,
        dropped: Option<&'b mut Dropped>,
    },
}

impl<'b> LayerBackward<'b> {
    pub(super) fn new(
        training: &'b Training<'_>,
        theta: &'b Tensor,
        grad: &'b mut Tensor,
        tensors: &'b mut AdapterActivations,
        d_thin: &'b mut Tensor,
        index: usize,
    ) -> Self {
        let merged = tensors.merged.as_mut();
        let mut w = training.bert.parameters.layers[index].maps();
        let how = match merged.filter(|_| training.dropout == 0.0) {
            Some(merged) => {
                let MergedMaps { layers, blocks } = merged;
                let MergedLayer { jobs, maps } = &layers[index];
                w = maps.each_ref();
                GradientOf::Merged { jobs, blocks }
            }
            None => GradientOf::Products {
                thin: &tensors.thin[index],
                d_thin,
                dropped: tensors.dropped.as_mut(),
            },
        };
        Self {
            ops: training.ops,
            adapted: training.adapted(theta),
            maps: training.adapter.layers[index].all(),
            w,
            grad,
            how,
        }
    }

    /// Of all maps, in the order of the network, from their inputs `x` and the gradients `dy` of
    /// their results: what [`LayerBackward::factors`] has not made.
    pub(super) fn all_factors(
        &mut self,
        pass: &mut Pass<'_>,
        x: [&Tensor; MAPS],
        dy: [&Tensor; MAPS],
    ) {
        if let (Pass::Gpu(gpu), GradientOf::Merged { jobs, blocks }) = (pass, &mut self.how) {
            let g = low_rank::Gradients {
                jobs,
                x,
                dy,
                theta: self.adapted.theta,
                blocks,
                grad: self.grad,
            };
            self.ops.low_rank.gradients(gpu, g);
        }
    }

    /// dLb += s dY^T (drop(x) La^T); d_thin = s dY Lb; dLa += d_thin^T drop(x).
    pub(super) fn factors(&mut self, pass: &mut Pass<'_>, map: usize, x: &Tensor, dy: &Tensor) {
        let (ops, adapted, map) = (self.ops, self.adapted, self.maps[map]);
        let GradientOf::Products {
            thin,
            d_thin,
            dropped,
        } = &mut self.how
        else {
            return;
        };
        if map.branches.is_empty() {
            return;
        }
        let matmul = &ops.matmul;
        let (scale, r) = (adapted.adapter.lora.scale(), adapted.adapter.lora.r);
        for (i, (place, branch)) in adapted.windows(thin, map).into_iter().enumerate() {
            let columns = dy.columns_at(branch.first_output, branch.b.columns);
            matmul.tn(
                pass,
                Product {
                    a: thin.part(place),
                    b: dy.part(columns),
                    scale,
                    y: self.grad.part_mut(branch.b),
                    add: true,
                },
            );
            let place = d_thin.columns_at(i * r, r);
            matmul.nt(
                pass,
                Product {
                    a: dy.part(columns),
                    b: adapted.theta.part(branch.b),
                    scale,
                    y: d_thin.part_mut(place),
                    add: false,
                },
            );
        }
        let place = d_thin.columns_at(0, map.a.rows);
        let x = adapted.thinned(ops, pass, map, dropped.as_deref_mut(), x);
        matmul.tn(
            pass,
            Product {
                a: d_thin.part(place),
                b: x,
                scale: 1.0,
                y: self.grad.part_mut(map.a),
                add: true,
            },
        );
    }

    /// dX = dY W + drop(d_thin La), and with `base` that much more than it.
    pub(super) fn input(
        &mut self,
        pass: &mut Pass<'_>,
        map: usize,
        dy: &Tensor,
        base: Option<&Tensor>,
        dx: &mut Tensor,
    ) {
        let (ops, w, map) = (self.ops, self.w[map], self.maps[map]);
        let backward = linear::Backward {
            dy,
            w,
            base,
            dx: &mut *dx,
        };
        ops.linear.backward(pass, backward);
        let GradientOf::Products {
            d_thin, dropped, ..
        } = &mut self.how
        else {
            return;
        };
        if map.branches.is_empty() {
            return;
        }
        let (from, place) = (d_thin.columns_at(0, map.a.rows), dx.place());
        let (theta, rate) = (self.adapted.theta, self.adapted.dropout);
        let mut product = |y: &mut Tensor, add: bool| {
            let product = Product {
                a: d_thin.part(from),
                b: theta.part(map.a),
                scale: 1.0,
                y: y.part_mut(place),
                add,
            };
            ops.matmul.nn(pass, product);
        };
        match dropped.as_deref_mut().filter(|_| rate > 0.0) {
            None => product(dx, true),
            Some(dropped) => {
                let Thinned { mask, result } = dropped.of(map, rate, dx);
                product(result, false);
                let dy = &*result;
                ops.dropout
                    .backward(pass, dropout::Backward { mask, dy, dx });
            }
        }
    }
}
