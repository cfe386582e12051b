//! An adapter's part of a pass: its products, which each linear map adds, dropout, and gradients.

use crate::device::{Device, Part, Pass, Place, Tensor};
use crate::error::Result;
use crate::model::Config;
use crate::model::lora::{self, Adapter};
use crate::num::to_u32;
use crate::ops::dropout::{self, Mask};
use crate::ops::linear::Weight;
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
    /// [T, targets r] of each layer: x La^T of each target.
    pub(super) thin: Vec<Tensor>,
    /// Where the adapter is trained with dropout.
    pub(super) dropped: Option<Dropped>,
}

impl AdapterActivations {
    pub(super) fn new(
        device: &Device,
        config: &Config,
        adapter: &Adapter,
        tokens: usize,
        dropout: bool,
    ) -> Result<Self> {
        let thin = |_| device.scratch("thin", tokens, adapter.thin().max(1));
        let dropped = || {
            Ok(Dropped {
                keys: device.ids("keys", tokens, 1)?,
                hidden: device.scratch("dropped hidden", tokens, config.hidden)?,
                wide: device.scratch("dropped wide", tokens, config.feed_forward)?,
            })
        };
        Ok(Self {
            thin: (0..config.layers).map(thin).collect::<Result<_>>()?,
            dropped: dropout.then(dropped).transpose()?,
        })
    }

    pub(super) fn resize(&mut self, tokens: usize) {
        self.thin.iter_mut().for_each(|thin| thin.resize(tokens));
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
    thin: &'m mut Tensor,
    dropped: Option<&'m mut Dropped>,
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
            Added {
                adapted,
                maps: &adapted.adapter.layers[index],
                thin: &mut tensors.thin[index],
                dropped: tensors.dropped.as_mut(),
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
        let forward = linear::Forward { x, w, y: &mut *y };
        ops.linear.forward(pass, forward);
        let Some(added) = &mut self.added else {
            return;
        };
        let (adapted, map, thin) = (added.adapted, map(added.maps), &mut *added.thin);
        if map.branches.is_empty() {
            return;
        }
        let window = thin.columns_at(map.thin, map.a.rows);
        let dropped = added.dropped.as_deref_mut();
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

/// The gradients of one linear map: first [`MapBackward::factors`], then [`MapBackward::input`],
/// which reads `d_thin` of the first.
pub(super) struct MapBackward<'b> {
    pub(super) ops: &'b Ops,
    pub(super) adapted: Adapted<'b>,
    pub(super) grad: &'b mut Tensor,
    /// x La^T of the layer's targets, from the forward pass.
    pub(super) thin: &'b Tensor,
    pub(super) d_thin: &'b mut Tensor,
    pub(super) dropped: Option<&'b mut Dropped>,
}

impl MapBackward<'_> {
    /// dLb += s dY^T (drop(x) La^T); d_thin = s dY Lb; dLa += d_thin^T drop(x).
    pub(super) fn factors(
        &mut self,
        pass: &mut Pass<'_>,
        map: &lora::Map,
        x: &Tensor,
        dy: &Tensor,
    ) {
        if map.branches.is_empty() {
            return;
        }
        let (ops, adapted) = (self.ops, self.adapted);
        let matmul = &ops.matmul;
        let (scale, r) = (adapted.adapter.lora.scale(), adapted.adapter.lora.r);
        let windows = adapted.windows(self.thin, map);
        for (i, (thin, branch)) in windows.into_iter().enumerate() {
            let columns = dy.columns_at(branch.first_output, branch.b.columns);
            matmul.tn(
                pass,
                Product {
                    a: self.thin.part(thin),
                    b: dy.part(columns),
                    scale,
                    y: self.grad.part_mut(branch.b),
                    add: true,
                },
            );
            let d_thin = self.d_thin.columns_at(i * r, r);
            matmul.nt(
                pass,
                Product {
                    a: dy.part(columns),
                    b: self.adapted.theta.part(branch.b),
                    scale,
                    y: self.d_thin.part_mut(d_thin),
                    add: false,
                },
            );
        }
        let d_thin = self.d_thin.columns_at(0, map.a.rows);
        let dropped = self.dropped.as_deref_mut();
        let x = adapted.thinned(ops, pass, map, dropped, x);
        matmul.tn(
            pass,
            Product {
                a: self.d_thin.part(d_thin),
                b: x,
                scale: 1.0,
                y: self.grad.part_mut(map.a),
                add: true,
            },
        );
    }

    /// dX = dY W + drop(d_thin La), or that much more with `add`.
    pub(super) fn input(
        &mut self,
        pass: &mut Pass<'_>,
        w: &Weight,
        map: &lora::Map,
        dy: &Tensor,
        dx: &mut Tensor,
        add: bool,
    ) {
        let ops = self.ops;
        let backward = linear::Backward { dy, w, dx };
        if add {
            ops.linear.backward_add(pass, backward);
        } else {
            ops.linear.backward(pass, backward);
        }
        if map.branches.is_empty() {
            return;
        }
        let d_thin = self.d_thin.columns_at(0, map.a.rows);
        let place = dx.place();
        let rate = self.adapted.dropout;
        let mut product = |y: &mut Tensor, add: bool| {
            let product = Product {
                a: self.d_thin.part(d_thin),
                b: self.adapted.theta.part(map.a),
                scale: 1.0,
                y: y.part_mut(place),
                add,
            };
            ops.matmul.nn(pass, product);
        };
        match self.dropped.as_deref_mut().filter(|_| rate > 0.0) {
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
