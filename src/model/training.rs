//! Training of an encoder's adapter: a forward pass that keeps every layer's tensors, and the
//! backward pass, which mirrors its list of calls.
//!
//! The base is frozen. With F = 4 H a token keeps `16 H + targets r` numbers of each layer: 24 kB
//! for MiniLM with r = 16, 145 kB for its six layers.

use crate::device::{Device, Pass, Sizes, Tensor};
use crate::error::Result;
use crate::model::activations::Activations;
use crate::model::adapted::{Adapted, AdapterActivations, LayerBackward, MergedMaps};
use crate::model::bert::Bert;
use crate::model::lora::Adapter;
use crate::model::parameters::Norm;
use crate::ops::{Ops, attention, gelu, layer_norm, pool};
use crate::text::batch::PackedBatch;

/// The maps of a layer, in the order of the network.
const QKV: usize = 0;
const ATTENTION_OUTPUT: usize = 1;
const INTERMEDIATE: usize = 2;
const OUTPUT: usize = 3;

/// The activations of one micro-batch, and the gradients on the way back.
pub(crate) struct TrainingTensors {
    pub(crate) activations: Activations,
    /// [B, H]
    pub(crate) d_pooled: Tensor,
    /// [T, H] each: gradient of a layer's output in one and of its input in the other, in turn. In
    /// a layer they have gradients of the residual stream.
    d_states: [Tensor; 2],
    /// [T, H]: gradient of the feed-forward part's addition to the residual stream.
    d_output: Tensor,
    /// [T, F]
    d_activated: Tensor,
    /// [T, F]
    d_wide: Tensor,
    /// [T, 3H]
    d_qkv: Tensor,
    /// [T, targets r]: gradient of x La^T.
    d_thin: Tensor,
    /// [T, 3 heads]: scratch of the attention's gradient on a GPU.
    statistics: Tensor,
}

impl TrainingTensors {
    /// `dropout`: whether batches come with keys for it.
    pub(crate) fn new(
        device: &Device,
        bert: &Bert,
        adapter: &Adapter,
        sizes: Sizes,
        dropout: bool,
    ) -> Result<Self> {
        let Sizes { tokens, prompts } = sizes;
        let config = &bert.config;
        let (h, f) = (config.hidden, config.feed_forward);
        let tensors = AdapterActivations::new(device, bert, adapter, tokens, dropout)?;
        let state = || device.scratch("d_state", tokens, h);
        Ok(Self {
            activations: Activations::for_learning(device, config, sizes, tensors)?,
            d_pooled: device.scratch("d_pooled", prompts, h)?,
            d_states: [state()?, state()?],
            d_output: device.scratch("d_output", tokens, h)?,
            d_activated: device.scratch("d_activated", tokens, f)?,
            d_wide: device.scratch("d_wide", tokens, f)?,
            d_qkv: device.scratch("d_qkv", tokens, 3 * h)?,
            d_thin: device.scratch("d_thin", tokens, adapter.thin().max(1))?,
            statistics: device.scratch("statistics", tokens, 3 * config.heads)?,
        })
    }

    /// Sends `batch` and gives every tensor its rows.
    pub(crate) fn upload(&mut self, pass: &mut Pass<'_>, batch: &PackedBatch) {
        self.activations.upload(pass, batch);
        let [d_state, other] = &mut self.d_states;
        for tensor in [
            d_state,
            other,
            &mut self.d_output,
            &mut self.d_activated,
            &mut self.d_wide,
            &mut self.d_qkv,
            &mut self.d_thin,
            &mut self.statistics,
        ] {
            tensor.resize(batch.tokens());
        }
        self.d_pooled.resize(batch.prompts());
    }

    /// Sends a key for each token of the batch that was uploaded.
    pub(crate) fn upload_keys(&mut self, pass: &mut Pass<'_>, keys: &[u32]) {
        if let Some(adapter) = &mut self.activations.adapter {
            adapter.upload_keys(pass, keys);
        }
    }
}

/// The encoder with an adapter whose factors are at the beginning of the flat buffer.
pub(crate) struct Training<'n> {
    pub(crate) ops: &'n Ops,
    pub(crate) bert: &'n Bert,
    pub(crate) adapter: &'n Adapter,
    /// Share of an adapter's inputs that is dropped, by the keys that were uploaded; 0 in
    /// evaluation.
    pub(crate) dropout: f32,
}

impl Training<'_> {
    pub(super) fn adapted<'a>(&'a self, theta: &'a Tensor) -> Adapted<'a> {
        Adapted {
            adapter: self.adapter,
            theta,
            dropout: self.dropout,
        }
    }

    /// Encodes the batch in `t` into its pooled rows [B, H].
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, theta: &Tensor, t: &mut TrainingTensors) {
        let adapted = Some(self.adapted(theta));
        if let (Pass::Gpu(gpu), Some(merged)) = (&mut *pass, self.merged(t)) {
            merged.merge(self.ops, gpu, self.bert, theta);
        }
        self.bert
            .forward(self.ops, pass, &mut t.activations, adapted, None);
    }

    /// Adds the factors' gradients for `t.d_pooled` to `grad`.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        theta: &Tensor,
        grad: &mut Tensor,
        t: &mut TrainingTensors,
    ) {
        let layers = self.bert.parameters.layers.len();
        let b = pool::Backward {
            pooling: self.bert.pooling,
            dh: &t.d_pooled,
            offsets: &t.activations.offsets,
            dx: &mut t.d_states[layers % 2],
        };
        self.ops.pool.backward(pass, b);
        for index in (0..layers).rev() {
            self.layer_backward(pass, theta, grad, t, index);
        }
    }

    /// The maps with merged products, where they are taken.
    fn merged<'t>(&self, t: &'t mut TrainingTensors) -> Option<&'t mut MergedMaps> {
        let adapter = t.activations.adapter.as_mut()?;
        adapter.merged.as_mut().filter(|_| self.dropout == 0.0)
    }

    /// The gradient of the layer's output in `t.d_states` becomes that of its input in the other
    /// one; the first layer's is not needed.
    fn layer_backward(
        &self,
        pass: &mut Pass<'_>,
        theta: &Tensor,
        grad: &mut Tensor,
        t: &mut TrainingTensors,
        index: usize,
    ) {
        let ops = self.ops;
        let layer = &self.bert.parameters.layers[index];
        let (k, x) = (&t.activations.kept[index], &t.activations.states[index]);
        let Some(adapter) = &mut t.activations.adapter else {
            panic!("adapter: no tensors were made for it");
        };
        let mut maps = LayerBackward::new(self, theta, grad, adapter, &mut t.d_thin, index);
        let [even, odd] = &mut t.d_states;
        // The gradient of the output is no longer needed once the norm has read it.
        let (d_middle, d_state) = match index % 2 {
            0 => (even, odd),
            _ => (odd, even),
        };
        let sum = (&k.middle, &k.output_branch);
        self.norm_backward(pass, &layer.output_norm, sum, d_state, &mut t.d_output);
        maps.factors(pass, OUTPUT, &k.activated, &t.d_output);
        maps.input(pass, OUTPUT, &t.d_output, None, &mut t.d_activated);
        let b = gelu::Backward {
            x: &k.wide,
            dy: &t.d_activated,
            dx: &mut t.d_wide,
        };
        ops.gelu.backward(pass, b);
        maps.factors(pass, INTERMEDIATE, &k.middle, &t.d_wide);
        maps.input(pass, INTERMEDIATE, &t.d_wide, Some(&t.d_output), d_middle);
        // The attention.
        let d_attention = d_state;
        let sum = (x, &k.attention_branch);
        self.norm_backward(pass, &layer.attention_norm, sum, d_middle, d_attention);
        maps.factors(pass, ATTENTION_OUTPUT, &k.context, d_attention);
        let d_context = d_middle;
        maps.input(pass, ATTENTION_OUTPUT, d_attention, None, d_context);
        let b = attention::Backward {
            qkv: &k.qkv,
            offsets: &t.activations.offsets,
            tiles: &t.activations.tiles,
            dy: d_context,
            statistics: &mut t.statistics,
            dqkv: &mut t.d_qkv,
        };
        ops.attention.backward(pass, b);
        maps.factors(pass, QKV, x, &t.d_qkv);
        let inputs = [x, &k.context, &k.middle, &k.activated];
        let results = [&t.d_qkv, &*d_attention, &t.d_wide, &t.d_output];
        maps.all_factors(pass, inputs, results);
        if index > 0 {
            maps.input(pass, QKV, &t.d_qkv, Some(&*d_attention), d_context);
        }
    }

    /// From the gradient of a norm's output to that of x and branch, its inputs.
    fn norm_backward(
        &self,
        pass: &mut Pass<'_>,
        norm: &Norm,
        (x, branch): (&Tensor, &Tensor),
        dy: &Tensor,
        dx: &mut Tensor,
    ) {
        let b = layer_norm::Backward {
            x,
            branch: Some(branch),
            gamma: &norm.gamma,
            eps: self.bert.config.eps,
            dy,
            dx,
        };
        self.ops.layer_norm.backward(pass, b);
    }
}
