//! BERT-family encoders: a flat list of op calls, for serving and for learning alike.

use crate::device::{Pass, Read, Tensor};
use crate::model::Config;
use crate::model::activations::{Activations, LayerActivations};
use crate::model::adapted::{Adapted, MapForward};
use crate::model::parameters::{Layer, Norm, Parameters};
use crate::ops::pool::{self, Pooling};
use crate::ops::{Ops, attention, embed, gelu, layer_norm, linear};

pub(crate) struct Bert {
    pub(crate) config: Config,
    pub(crate) parameters: Parameters,
    pub(crate) pooling: Pooling,
}

impl Bert {
    /// Encodes the batch that `a` holds into `a.pooled` [B, H]. With `adapted` an adapter's
    /// products are added to each linear map; `a` then has the tensors for them, and none for a
    /// deferred stream.
    ///
    /// If `a.layers` is `Some`, it holds the layers' means afterwards, as unit vectors. With
    /// `trace` the embeddings' and every layer's output are read back as well, in order.
    pub(crate) fn forward(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        a: &mut Activations,
        adapted: Option<Adapted<'_>>,
        mut trace: Option<&mut Vec<Read>>,
    ) {
        if a.deferred.is_some() {
            return self.forward_deferred(ops, pass, a, trace);
        }
        self.embed(ops, pass, a);
        if let Some(trace) = trace.as_deref_mut() {
            trace.push(pass.read(&a.states[0]));
        }
        for index in 0..self.parameters.layers.len() {
            self.layer(ops, pass, a, adapted, index);
            let output = a.state_place(index + 1);
            if let Some((layers, place)) = a.layers.as_mut().and_then(|layers| {
                let place = layers.place(index)?;
                Some((layers, place))
            }) {
                let f = pool::Forward {
                    pooling: Pooling::Mean,
                    x: &a.states[output],
                    offsets: &a.offsets,
                    h: layers.means.part_mut(place),
                };
                ops.pool.forward(pass, f);
            }
            if let Some(trace) = trace.as_deref_mut() {
                trace.push(pass.read(&a.states[output]));
            }
        }
        if let Some(layers) = &mut a.layers {
            layers.finish(ops, pass);
        }
        let (whole, last) = (
            a.pooled.place(),
            a.state_place(self.parameters.layers.len()),
        );
        let f = pool::Forward {
            pooling: self.pooling,
            x: &a.states[last],
            offsets: &a.offsets,
            h: a.pooled.part_mut(whole),
        };
        ops.pool.forward(pass, f);
    }

    /// The first layer's input: rows of tokens and positions, after their norm.
    fn embed(&self, ops: &Ops, pass: &mut Pass<'_>, a: &mut Activations) {
        let e = &self.parameters.embeddings;
        // The first layer overwrites it.
        let sum = &mut a.kept[0].middle;
        let whole = sum.place();
        let f = embed::Forward {
            ids: &a.ids,
            positions: &a.positions,
            words: &e.words,
            places: &e.places,
            x: sum.part_mut(whole),
        };
        ops.embed.forward(pass, f);
        self.norm(
            ops,
            pass,
            &e.norm,
            (&a.kept[0].middle, None),
            &mut a.states[0],
        );
    }

    /// From state `index` to the next one; seven dispatches without an adapter.
    fn layer(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        a: &mut Activations,
        adapted: Option<Adapted<'_>>,
        index: usize,
    ) {
        let layer: &Layer = &self.parameters.layers[index];
        let (input, output) = (a.state_place(index), a.state_place(index + 1));
        let kept = a.kept_place(index);
        let serving = adapted.is_none() && a.adapter.is_none();
        let mut map = MapForward::new(ops, adapted, a.adapter.as_mut(), index);
        let (x, k) = (&a.states[input], &mut a.kept[kept]);
        map.apply(pass, &layer.qkv, |maps| &maps.qkv, x, &mut k.qkv);
        let f = attention::Forward {
            qkv: &k.qkv,
            offsets: &a.offsets,
            tiles: &a.tiles,
            y: &mut k.context,
        };
        ops.attention.forward(pass, f);
        let (w, y) = (&layer.attention_output, &mut k.attention_branch);
        map.apply(pass, w, |maps| &maps.attention_output, &k.context, y);
        let sum = (x, Some(&k.attention_branch));
        self.norm(ops, pass, &layer.attention_norm, sum, &mut k.middle);
        if serving {
            let f = linear::Forward {
                x: &k.middle,
                w: &layer.intermediate,
                y: &mut k.activated,
            };
            ops.linear.forward_gelu(pass, f);
        } else {
            // Learning needs what GELU got.
            let (w, y) = (&layer.intermediate, &mut k.wide);
            map.apply(pass, w, |maps| &maps.intermediate, &k.middle, y);
            let f = gelu::Forward {
                x: &k.wide,
                y: &mut k.activated,
            };
            ops.gelu.forward(pass, f);
        }
        let (w, y) = (&layer.output, &mut k.output_branch);
        map.apply(pass, w, |maps| &maps.output, &k.activated, y);
        let LayerActivations {
            middle,
            output_branch,
            ..
        } = &a.kept[kept];
        let sum = (middle, Some(output_branch));
        self.norm(ops, pass, &layer.output_norm, sum, &mut a.states[output]);
    }

    /// `y = layer_norm(x + branch)`
    fn norm(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        Norm { gamma, beta }: &Norm,
        (x, branch): (&Tensor, Option<&Tensor>),
        y: &mut Tensor,
    ) {
        let f = layer_norm::Forward {
            x: x.part(x.place()),
            branch,
            gamma,
            beta,
            eps: self.config.eps,
            y,
        };
        ops.layer_norm.forward(pass, f);
    }
}
