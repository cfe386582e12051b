//! Training of an encoder's adapter: a forward pass that keeps every layer's tensors, and the
//! backward pass, which mirrors its list of calls.
//!
//! The base is frozen. With F = 4 H a token keeps `16 H + targets r` numbers of each layer: 24 kB
//! for MiniLM with r = 16, 145 kB for its six layers.

use crate::device::{Device, Pass, Sizes, Tensor};
use crate::error::Result;
use crate::model::Config;
use crate::model::activations::Activations;
use crate::model::adapted::{Adapted, AdapterActivations, MapBackward};
use crate::model::bert::Bert;
use crate::model::lora::Adapter;
use crate::model::parameters::Norm;
use crate::ops::{Ops, attention, gelu, layer_norm, pool};
use crate::text::batch::PackedBatch;

/// The activations of one micro-batch, and the gradients on the way back.
pub(crate) struct TrainingTensors {
    pub(crate) activations: Activations,
    /// [B, H]
    pub(crate) d_pooled: Tensor,
    /// [T, H]: gradient of a layer's output, then of its input.
    d_state: Tensor,
    /// [T, H]: gradient of the residual stream inside a layer.
    d_residual: Tensor,
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
        config: &Config,
        adapter: &Adapter,
        sizes: Sizes,
        dropout: bool,
    ) -> Result<Self> {
        let Sizes { tokens, prompts } = sizes;
        let (h, f) = (config.hidden, config.feed_forward);
        let tensors = AdapterActivations::new(device, config, adapter, tokens, dropout)?;
        Ok(Self {
            activations: Activations::for_learning(device, config, sizes, tensors)?,
            d_pooled: device.scratch("d_pooled", prompts, h)?,
            d_state: device.scratch("d_state", tokens, h)?,
            d_residual: device.scratch("d_residual", tokens, h)?,
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
        for tensor in [
            &mut self.d_state,
            &mut self.d_residual,
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
    fn adapted<'a>(&'a self, theta: &'a Tensor) -> Adapted<'a> {
        Adapted {
            adapter: self.adapter,
            theta,
            dropout: self.dropout,
        }
    }

    /// Encodes the batch in `t` into its pooled rows [B, H].
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, theta: &Tensor, t: &mut TrainingTensors) {
        let adapted = Some(self.adapted(theta));
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
        let b = pool::Backward {
            pooling: self.bert.pooling,
            dh: &t.d_pooled,
            offsets: &t.activations.offsets,
            dx: &mut t.d_state,
        };
        self.ops.pool.backward(pass, b);
        for index in (0..self.bert.parameters.layers.len()).rev() {
            self.layer_backward(pass, theta, grad, t, index);
        }
    }

    /// `t.d_state` becomes the gradient of the layer's input; the first layer's is not needed.
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
        let maps = &self.adapter.layers[index];
        let (k, x) = (&t.activations.kept[index], &t.activations.states[index]);
        let Some(adapter) = &mut t.activations.adapter else {
            panic!("adapter: no tensors were made for it");
        };
        let mut map = MapBackward {
            ops,
            adapted: self.adapted(theta),
            grad,
            thin: &adapter.thin[index],
            d_thin: &mut t.d_thin,
            dropped: adapter.dropped.as_mut(),
        };
        // The feed-forward part.
        let sum = (&k.middle, &k.output_branch);
        self.norm_backward(pass, &layer.output_norm, sum, &t.d_state, &mut t.d_residual);
        map.factors(pass, &maps.output, &k.activated, &t.d_residual);
        let (w, d_activated) = (&layer.output, &mut t.d_activated);
        map.input(pass, w, &maps.output, &t.d_residual, d_activated, false);
        let b = gelu::Backward {
            x: &k.wide,
            dy: &t.d_activated,
            dx: &mut t.d_wide,
        };
        ops.gelu.backward(pass, b);
        map.factors(pass, &maps.intermediate, &k.middle, &t.d_wide);
        let (w, d_residual) = (&layer.intermediate, &mut t.d_residual);
        map.input(pass, w, &maps.intermediate, &t.d_wide, d_residual, true);
        // The attention.
        let sum = (x, &k.attention_branch);
        self.norm_backward(
            pass,
            &layer.attention_norm,
            sum,
            &t.d_residual,
            &mut t.d_state,
        );
        map.factors(pass, &maps.attention_output, &k.context, &t.d_state);
        let (w, d_context) = (&layer.attention_output, &mut t.d_residual);
        map.input(
            pass,
            w,
            &maps.attention_output,
            &t.d_state,
            d_context,
            false,
        );
        let b = attention::Backward {
            qkv: &k.qkv,
            offsets: &t.activations.offsets,
            tiles: &t.activations.tiles,
            dy: &t.d_residual,
            statistics: &mut t.statistics,
            dqkv: &mut t.d_qkv,
        };
        ops.attention.backward(pass, b);
        map.factors(pass, &maps.qkv, x, &t.d_qkv);
        if index > 0 {
            map.input(pass, &layer.qkv, &maps.qkv, &t.d_qkv, &mut t.d_state, true);
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
