//! The encoder while it learns: the forward pass with LoRA apart and every input kept, and the same
//! list of calls mirrored.
//!
//! The base is frozen. A token keeps `16 H + targets r` numbers of each layer with F = 4 H: 24 kB for
//! MiniLM with r = 16, 145 kB for its six layers.

use crate::device::{Device, Part, Pass, Place, Sizes, Tensor};
use crate::error::Result;
use crate::model::Config;
use crate::model::activations::most_tiles;
use crate::model::bert::Bert;
use crate::model::lora::{self, Adapter};
use crate::model::parameters::{Layer, Norm};
use crate::num::to_u32;
use crate::ops::attention::{self, query_tiles};
use crate::ops::dropout::{self, Mask};
use crate::ops::linear::Weight;
use crate::ops::matmul::Product;
use crate::ops::{Ops, embed, gelu, layer_norm, linear, pool};
use crate::text::batch::PackedBatch;

/// What one micro-batch leaves behind on its way forward, and the gradients on the way back.
pub(crate) struct Kept {
    ids: Tensor,
    positions: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    /// [T, H]: the embeddings before their norm.
    embedded: Tensor,
    layers: Vec<LayerKept>,
    /// [T, H]: the last layer's output.
    last: Tensor,
    /// [B, H]
    pub(crate) pooled: Tensor,
    /// [B, H]
    pub(crate) d_pooled: Tensor,
    /// [T, H]: gradient of what leaves a layer, then of what enters it.
    d_x: Tensor,
    /// [T, H]: gradient of the residual stream inside a layer.
    d_residual: Tensor,
    /// [T, F]
    d_activated: Tensor,
    /// [T, F]
    d_wide: Tensor,
    /// [T, 3H]
    d_qkv: Tensor,
    /// [T, 3r] at most: gradient of x La^T.
    d_thin: Tensor,
    /// [T, 3 heads]: what the attention's gradient keeps on a GPU.
    statistics: Tensor,
    /// Where adapters are trained with dropout.
    dropped: Option<Dropped>,
}

/// Room for what goes into an adapter with elements dropped, or for its gradient: needed again on the
/// way back, it is made again rather than kept.
struct Dropped {
    /// [T, 1]: what decides about the elements of a token.
    keys: Tensor,
    /// [T, H]
    hidden: Tensor,
    /// [T, F]
    wide: Tensor,
}

/// One map's mask, with room for what comes out of it.
struct Thinned<'d> {
    mask: Mask<'d>,
    room: &'d mut Tensor,
}

impl Dropped {
    /// For the map `number` with inputs as wide as `x`.
    fn of(&mut self, map: &lora::Map, rate: f32, x: &Tensor) -> Thinned<'_> {
        let room = match x.columns() == self.hidden.columns() {
            true => &mut self.hidden,
            false => &mut self.wide,
        };
        let mask = Mask {
            keys: &self.keys,
            using: to_u32(map.number),
            rate,
        };
        Thinned { mask, room }
    }
}

/// Inputs of one layer's ops.
struct LayerKept {
    /// [T, H]
    x: Tensor,
    /// [T, 3H]
    qkv: Tensor,
    /// [T, H]
    context: Tensor,
    /// [T, H]: what attention adds to the residual stream.
    attention_branch: Tensor,
    /// [T, H]
    middle: Tensor,
    /// [T, F]
    wide: Tensor,
    /// [T, F]
    activated: Tensor,
    /// [T, H]: what the feed-forward part adds.
    output_branch: Tensor,
    /// [T, targets r]: x La^T of each target.
    thin: Tensor,
}

impl Kept {
    pub(crate) fn new(
        device: &Device,
        config: &Config,
        adapter: &Adapter,
        sizes: Sizes,
        dropout: bool,
    ) -> Result<Self> {
        let Sizes { tokens, prompts } = sizes;
        let (h, f) = (config.hidden, config.feed_forward);
        let thin = adapter.thin().max(1);
        let layers = (0..config.layers).map(|_| {
            Ok(LayerKept {
                x: device.scratch("x", tokens, h)?,
                qkv: device.scratch("qkv", tokens, 3 * h)?,
                context: device.scratch("context", tokens, h)?,
                attention_branch: device.scratch("attention_branch", tokens, h)?,
                middle: device.scratch("middle", tokens, h)?,
                wide: device.scratch("wide", tokens, f)?,
                activated: device.scratch("activated", tokens, f)?,
                output_branch: device.scratch("output_branch", tokens, h)?,
                thin: device.scratch("thin", tokens, thin)?,
            })
        });
        Ok(Self {
            ids: device.ids("ids", tokens, 1)?,
            positions: device.ids("positions", tokens, 1)?,
            offsets: device.ids("offsets", prompts + 1, 1)?,
            tiles: device.ids("tiles", most_tiles(sizes), 2)?,
            embedded: device.scratch("embedded", tokens, h)?,
            layers: layers.collect::<Result<_>>()?,
            last: device.scratch("last", tokens, h)?,
            pooled: device.scratch("pooled", prompts, h)?,
            d_pooled: device.scratch("d_pooled", prompts, h)?,
            d_x: device.scratch("d_x", tokens, h)?,
            d_residual: device.scratch("d_residual", tokens, h)?,
            d_activated: device.scratch("d_activated", tokens, f)?,
            d_wide: device.scratch("d_wide", tokens, f)?,
            d_qkv: device.scratch("d_qkv", tokens, 3 * h)?,
            d_thin: device.scratch("d_thin", tokens, thin)?,
            statistics: device.scratch("statistics", tokens, 3 * config.heads)?,
            dropped: match dropout {
                false => None,
                true => Some(Dropped {
                    keys: device.ids("keys", tokens, 1)?,
                    hidden: device.scratch("dropped hidden", tokens, h)?,
                    wide: device.scratch("dropped wide", tokens, f)?,
                }),
            },
        })
    }

    /// Sends `batch` and gives every tensor its rows.
    pub(crate) fn upload(&mut self, pass: &mut Pass<'_>, batch: &PackedBatch) {
        pass.upload(&mut self.ids, &batch.ids);
        pass.upload(&mut self.positions, &batch.positions);
        pass.upload(&mut self.offsets, &batch.offsets);
        pass.upload(&mut self.tiles, &query_tiles(&batch.offsets));
        let tokens = batch.tokens();
        for kept in &mut self.layers {
            for tensor in [
                &mut kept.x,
                &mut kept.qkv,
                &mut kept.context,
                &mut kept.attention_branch,
                &mut kept.middle,
                &mut kept.wide,
                &mut kept.activated,
                &mut kept.output_branch,
                &mut kept.thin,
            ] {
                tensor.resize(tokens);
            }
        }
        for tensor in [
            &mut self.embedded,
            &mut self.last,
            &mut self.d_x,
            &mut self.d_residual,
            &mut self.d_activated,
            &mut self.d_wide,
            &mut self.d_qkv,
            &mut self.d_thin,
            &mut self.statistics,
        ] {
            tensor.resize(tokens);
        }
        self.pooled.resize(batch.prompts());
        self.d_pooled.resize(batch.prompts());
    }

    /// Sends a key for each token of the batch that was uploaded.
    ///
    /// # Panics
    /// Without room for dropout: a bug.
    pub(crate) fn upload_keys(&mut self, pass: &mut Pass<'_>, keys: &[u32]) {
        let Some(dropped) = &mut self.dropped else {
            panic!("dropout: no room was made for it");
        };
        pass.upload(&mut dropped.keys, keys);
        dropped.hidden.resize(keys.len());
        dropped.wide.resize(keys.len());
    }
}

/// The encoder with an adapter whose factors are at the beginning of the flat buffer.
pub(crate) struct Training<'n> {
    pub(crate) ops: &'n Ops,
    pub(crate) bert: &'n Bert,
    pub(crate) adapter: &'n Adapter,
    /// Share of an adapter's inputs that is dropped, by the keys that were uploaded; 0 in evaluation.
    pub(crate) dropout: f32,
}

impl Training<'_> {
    /// Encodes the batch in `k` into `k.pooled` [B, H].
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, theta: &Tensor, k: &mut Kept) {
        let e = &self.bert.parameters.embeddings;
        self.ops.embed.forward(
            pass,
            embed::Forward {
                ids: &k.ids,
                positions: &k.positions,
                words: &e.words,
                places: &e.places,
                x: &mut k.embedded,
            },
        );
        let first = k
            .layers
            .first_mut()
            .map_or(&mut k.last, |layer| &mut layer.x);
        self.norm(pass, &e.norm, &k.embedded, None, first);
        let layers = self.bert.parameters.layers.iter();
        for (index, (layer, factors)) in layers.zip(&self.adapter.layers).enumerate() {
            let (kept, later) = k.layers[index..].split_at_mut(1);
            let next = later.first_mut().map_or(&mut k.last, |next| &mut next.x);
            let batch = (&k.offsets, &k.tiles);
            let dropped = k.dropped.as_mut();
            let kept = &mut kept[0];
            self.layer(pass, theta, layer, factors, batch, dropped, kept, next);
        }
        let whole = k.pooled.place();
        self.ops.pool.forward(
            pass,
            pool::Forward {
                pooling: self.bert.pooling,
                x: &k.last,
                offsets: &k.offsets,
                h: k.pooled.part_mut(whole),
            },
        );
    }

    #[expect(clippy::too_many_arguments, reason = "the layer's parts")]
    fn layer(
        &self,
        pass: &mut Pass<'_>,
        theta: &Tensor,
        layer: &Layer,
        factors: &lora::Layer,
        (offsets, tiles): (&Tensor, &Tensor),
        mut dropped: Option<&mut Dropped>,
        k: &mut LayerKept,
        y: &mut Tensor,
    ) {
        let ops = self.ops;
        self.map(
            pass,
            theta,
            &layer.qkv,
            &factors.qkv,
            dropped.as_deref_mut(),
            &k.x,
            &mut k.thin,
            &mut k.qkv,
        );
        ops.attention.forward(
            pass,
            attention::Forward {
                qkv: &k.qkv,
                offsets,
                tiles,
                y: &mut k.context,
            },
        );
        let map = &factors.attention_output;
        let branch = &mut k.attention_branch;
        self.map(
            pass,
            theta,
            &layer.attention_output,
            map,
            dropped.as_deref_mut(),
            &k.context,
            &mut k.thin,
            branch,
        );
        self.norm(
            pass,
            &layer.attention_norm,
            &k.x,
            Some(&k.attention_branch),
            &mut k.middle,
        );
        let map = &factors.intermediate;
        self.map(
            pass,
            theta,
            &layer.intermediate,
            map,
            dropped.as_deref_mut(),
            &k.middle,
            &mut k.thin,
            &mut k.wide,
        );
        ops.gelu.forward(
            pass,
            gelu::Forward {
                x: &k.wide,
                y: &mut k.activated,
            },
        );
        let branch = &mut k.output_branch;
        self.map(
            pass,
            theta,
            &layer.output,
            &factors.output,
            dropped,
            &k.activated,
            &mut k.thin,
            branch,
        );
        self.norm(
            pass,
            &layer.output_norm,
            &k.middle,
            Some(&k.output_branch),
            y,
        );
    }

    /// `y = x W^T + b + s (drop(x) La^T) Lb^T`; `thin` keeps drop(x) La^T.
    #[expect(clippy::too_many_arguments, reason = "the map's parts")]
    fn map(
        &self,
        pass: &mut Pass<'_>,
        theta: &Tensor,
        w: &Weight,
        map: &lora::Map,
        dropped: Option<&mut Dropped>,
        x: &Tensor,
        thin: &mut Tensor,
        y: &mut Tensor,
    ) {
        self.ops.linear.forward(pass, linear::Forward { x, w, y });
        if map.branches.is_empty() {
            return;
        }
        let window = thin.columns_at(map.thin, map.a.rows);
        let a = self.thinned(pass, map, dropped, x);
        self.ops.matmul.nt(
            pass,
            Product {
                a,
                b: theta.part(map.a),
                scale: 1.0,
                y: thin.part_mut(window),
                add: false,
            },
        );
        for (place, branch) in self.windows(thin, map) {
            let columns = y.columns_at(branch.first_output, branch.b.columns);
            self.ops.matmul.nn(
                pass,
                Product {
                    a: thin.part(place),
                    b: theta.part(branch.b),
                    scale: self.adapter.lora.scale(),
                    y: y.part_mut(columns),
                    add: true,
                },
            );
        }
    }

    /// drop(x): `x` itself without dropout.
    fn thinned<'x>(
        &self,
        pass: &mut Pass<'_>,
        map: &lora::Map,
        dropped: Option<&'x mut Dropped>,
        x: &'x Tensor,
    ) -> Part<'x> {
        let Some(dropped) = dropped.filter(|_| self.dropout > 0.0) else {
            return x.part(x.place());
        };
        let Thinned { mask, room } = dropped.of(map, self.dropout, x);
        let y = &mut *room;
        self.ops
            .dropout
            .forward(pass, dropout::Forward { mask, x, y });
        room.part(room.place())
    }

    /// Each branch with its columns of `thin`, whose first column is the map's.
    fn windows<'m>(&self, thin: &Tensor, map: &'m lora::Map) -> Vec<(Place, &'m lora::Branch)> {
        let r = self.adapter.lora.r;
        let place = |i: usize| thin.columns_at(map.thin + i * r, r);
        let branches = map.branches.iter().enumerate();
        branches.map(|(i, branch)| (place(i), branch)).collect()
    }

    /// Adds the factors' gradients for `k.d_pooled` to `grad`.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        theta: &Tensor,
        grad: &mut Tensor,
        k: &mut Kept,
    ) {
        self.ops.pool.backward(
            pass,
            pool::Backward {
                pooling: self.bert.pooling,
                dh: &k.d_pooled,
                offsets: &k.offsets,
                dx: &mut k.d_x,
            },
        );
        let layers = self.bert.parameters.layers.iter().zip(&self.adapter.layers);
        for (index, (layer, factors)) in layers.enumerate().rev() {
            self.layer_backward(pass, theta, grad, layer, factors, k, index);
        }
    }

    /// `k.d_x` becomes the gradient of the layer's input; nobody needs the first layer's.
    #[expect(clippy::too_many_arguments, reason = "the layer's parts")]
    fn layer_backward(
        &self,
        pass: &mut Pass<'_>,
        theta: &Tensor,
        grad: &mut Tensor,
        layer: &Layer,
        factors: &lora::Layer,
        k: &mut Kept,
        index: usize,
    ) {
        let ops = self.ops;
        let kept = &k.layers[index];
        let (norm, branch) = (&layer.output_norm, &kept.output_branch);
        self.norm_backward(pass, norm, &kept.middle, branch, &k.d_x, &mut k.d_residual);
        let mut map = MapBackward {
            training: self,
            theta,
            grad,
            thin: &kept.thin,
            d_thin: &mut k.d_thin,
            dropped: k.dropped.as_mut(),
        };
        map.factors(pass, &factors.output, &kept.activated, &k.d_residual);
        map.input(
            pass,
            &layer.output,
            &factors.output,
            &k.d_residual,
            &mut k.d_activated,
            false,
        );
        ops.gelu.backward(
            pass,
            gelu::Backward {
                x: &kept.wide,
                dy: &k.d_activated,
                dx: &mut k.d_wide,
            },
        );
        map.factors(pass, &factors.intermediate, &kept.middle, &k.d_wide);
        let w = &layer.intermediate;
        map.input(
            pass,
            w,
            &factors.intermediate,
            &k.d_wide,
            &mut k.d_residual,
            true,
        );
        let (norm, branch) = (&layer.attention_norm, &kept.attention_branch);
        self.norm_backward(pass, norm, &kept.x, branch, &k.d_residual, &mut k.d_x);
        map.factors(pass, &factors.attention_output, &kept.context, &k.d_x);
        let (w, d_context) = (&layer.attention_output, &mut k.d_residual);
        map.input(pass, w, &factors.attention_output, &k.d_x, d_context, false);
        ops.attention.backward(
            pass,
            attention::Backward {
                qkv: &kept.qkv,
                offsets: &k.offsets,
                tiles: &k.tiles,
                dy: &k.d_residual,
                statistics: &mut k.statistics,
                dqkv: &mut k.d_qkv,
            },
        );
        map.factors(pass, &factors.qkv, &kept.x, &k.d_qkv);
        if index > 0 {
            map.input(pass, &layer.qkv, &factors.qkv, &k.d_qkv, &mut k.d_x, true);
        }
    }

    fn norm(
        &self,
        pass: &mut Pass<'_>,
        norm: &Norm,
        x: &Tensor,
        branch: Option<&Tensor>,
        y: &mut Tensor,
    ) {
        let Norm { gamma, beta } = norm;
        let eps = self.bert.config.eps;
        let forward = layer_norm::Forward {
            x,
            branch,
            gamma,
            beta,
            eps,
            y,
        };
        self.ops.layer_norm.forward(pass, forward);
    }

    fn norm_backward(
        &self,
        pass: &mut Pass<'_>,
        norm: &Norm,
        x: &Tensor,
        branch: &Tensor,
        dy: &Tensor,
        dx: &mut Tensor,
    ) {
        let backward = layer_norm::Backward {
            x,
            branch: Some(branch),
            gamma: &norm.gamma,
            eps: self.bert.config.eps,
            dy,
            dx,
        };
        self.ops.layer_norm.backward(pass, backward);
    }
}

/// The way back through one linear map: first [`MapBackward::factors`], then
/// [`MapBackward::input`], which needs what the first left in `d_thin`.
struct MapBackward<'b> {
    training: &'b Training<'b>,
    theta: &'b Tensor,
    grad: &'b mut Tensor,
    thin: &'b Tensor,
    d_thin: &'b mut Tensor,
    dropped: Option<&'b mut Dropped>,
}

impl MapBackward<'_> {
    /// dLb += s dY^T (drop(x) La^T); d_thin = s dY Lb; dLa += d_thin^T drop(x).
    fn factors(&mut self, pass: &mut Pass<'_>, map: &lora::Map, x: &Tensor, dy: &Tensor) {
        if map.branches.is_empty() {
            return;
        }
        let matmul = &self.training.ops.matmul;
        let scale = self.training.adapter.lora.scale();
        let r = self.training.adapter.lora.r;
        for (i, (thin, branch)) in self
            .training
            .windows(self.thin, map)
            .into_iter()
            .enumerate()
        {
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
                    b: self.theta.part(branch.b),
                    scale,
                    y: self.d_thin.part_mut(d_thin),
                    add: false,
                },
            );
        }
        let d_thin = self.d_thin.columns_at(0, map.a.rows);
        let dropped = self.dropped.as_deref_mut();
        let x = self.training.thinned(pass, map, dropped, x);
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
    fn input(
        &mut self,
        pass: &mut Pass<'_>,
        w: &Weight,
        map: &lora::Map,
        dy: &Tensor,
        dx: &mut Tensor,
        add: bool,
    ) {
        let ops = self.training.ops;
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
        let rate = self.training.dropout;
        let mut product = |y: &mut Tensor, add: bool| {
            let product = Product {
                a: self.d_thin.part(d_thin),
                b: self.theta.part(map.a),
                scale: 1.0,
                y: y.part_mut(place),
                add,
            };
            ops.matmul.nn(pass, product);
        };
        match self.dropped.as_deref_mut().filter(|_| rate > 0.0) {
            None => product(dx, true),
            Some(dropped) => {
                let Thinned { mask, room } = dropped.of(map, rate, dx);
                product(room, false);
                let dy = &*room;
                ops.dropout
                    .backward(pass, dropout::Backward { mask, dy, dx });
            }
        }
    }
}
