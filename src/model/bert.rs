//! BERT-family encoders: a flat list of op calls.

use crate::device::{Pass, Read, Tensor};
use crate::model::Config;
use crate::model::activations::Activations;
use crate::model::parameters::{Layer, Norm, Parameters};
use crate::ops::pool::{self, Pooling};
use crate::ops::{Ops, attention, embed, gelu, layer_norm, linear};

pub(crate) struct Bert {
    pub(crate) config: Config,
    pub(crate) parameters: Parameters,
    pub(crate) pooling: Pooling,
}

impl Bert {
    /// Encodes the batch that `a` holds into `a.pooled` [B, H].
    ///
    /// Where `a.layers` is there it has every layer's mean behind it, as unit vectors. With `trace` the
    /// embeddings' and every layer's output are read back as well, in order.
    pub(crate) fn forward(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        a: &mut Activations,
        mut trace: Option<&mut Vec<Read>>,
    ) {
        let e = &self.parameters.embeddings;
        ops.embed.forward(
            pass,
            embed::Forward {
                ids: &a.ids,
                positions: &a.positions,
                words: &e.words,
                places: &e.places,
                x: &mut a.middle,
            },
        );
        self.norm(ops, pass, &e.norm, &a.middle, None, &mut a.x);
        if let Some(trace) = trace.as_deref_mut() {
            trace.push(pass.read(&a.x));
        }
        for (place, layer) in self.parameters.layers.iter().enumerate() {
            self.layer(ops, pass, layer, a);
            if let Some((layers, place)) = a.layers.as_mut().and_then(|layers| {
                let place = layers.place(place)?;
                Some((layers, place))
            }) {
                let f = pool::Forward {
                    pooling: Pooling::Mean,
                    x: &a.x,
                    offsets: &a.offsets,
                    h: layers.means.part_mut(place),
                };
                ops.pool.forward(pass, f);
            }
            if let Some(trace) = trace.as_deref_mut() {
                trace.push(pass.read(&a.x));
            }
        }
        if let Some(layers) = &mut a.layers {
            layers.finish(ops, pass);
        }
        let whole = a.pooled.place();
        ops.pool.forward(
            pass,
            pool::Forward {
                pooling: self.pooling,
                x: &a.x,
                offsets: &a.offsets,
                h: a.pooled.part_mut(whole),
            },
        );
    }

    /// `a.x` becomes the layer's output; eight dispatches.
    fn layer(&self, ops: &Ops, pass: &mut Pass<'_>, layer: &Layer, a: &mut Activations) {
        ops.linear.forward(
            pass,
            linear::Forward {
                x: &a.x,
                w: &layer.qkv,
                y: &mut a.qkv,
            },
        );
        ops.attention.forward(
            pass,
            attention::Forward {
                qkv: &a.qkv,
                offsets: &a.offsets,
                tiles: &a.tiles,
                y: &mut a.context,
            },
        );
        ops.linear.forward(
            pass,
            linear::Forward {
                x: &a.context,
                w: &layer.attention_output,
                y: &mut a.branch,
            },
        );
        self.norm(
            ops,
            pass,
            &layer.attention_norm,
            &a.x,
            Some(&a.branch),
            &mut a.middle,
        );
        ops.linear.forward(
            pass,
            linear::Forward {
                x: &a.middle,
                w: &layer.intermediate,
                y: &mut a.wide,
            },
        );
        ops.gelu.forward(
            pass,
            gelu::Forward {
                x: &a.wide,
                y: &mut a.activated,
            },
        );
        ops.linear.forward(
            pass,
            linear::Forward {
                x: &a.activated,
                w: &layer.output,
                y: &mut a.branch,
            },
        );
        self.norm(
            ops,
            pass,
            &layer.output_norm,
            &a.middle,
            Some(&a.branch),
            &mut a.x,
        );
    }

    /// `y = layer_norm(x + branch)`
    fn norm(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        norm: &Norm,
        x: &Tensor,
        branch: Option<&Tensor>,
        y: &mut Tensor,
    ) {
        let Norm { gamma, beta } = norm;
        let eps = self.config.eps;
        ops.layer_norm.forward(
            pass,
            layer_norm::Forward {
                x,
                branch,
                gamma,
                beta,
                eps,
                y,
            },
        );
    }
}
