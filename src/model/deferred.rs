//! The forward pass of a route on a GPU: five dispatches a layer, and two around them.
//!
//! The residual stream is kept before its norms. Whoever reads it applies the norm, and leaves each
//! row's mean and deviation for the addition that follows. So no norm is a dispatch, or a round of
//! the stream through memory, of its own.

use crate::device::gpu::GpuPass;
use crate::device::{Device, Pass, Place, Read, Sizes, Tensor};
use crate::error::Result;
use crate::model::Config;
use crate::model::activations::Activations;
use crate::model::bert::Bert;
use crate::model::parameters::Norm;
use crate::num::to_u32;
use crate::ops::linear::{Joined, NormOf, Normed};
use crate::ops::pool::NormedStates;
use crate::ops::{Ops, attention, embed, layer_norm};

/// The residual stream of a batch, before its norms.
pub(crate) struct DeferredStream {
    /// [S T, H]: the outputs of the layers that are wanted, in order, and behind them a state that
    /// each of the others overwrites.
    states: Tensor,
    /// [T, 2]: mean and 1 / sqrt(var + eps) of the state that was read last.
    state_scale: Tensor,
    /// [T, 2]: of the stream behind the attention.
    middle_scale: Tensor,
    /// [Z + 1, 2]: place among `states` and layer, of each wanted layer's output and of the last
    /// one's.
    sources: Tensor,
    /// In place of unit vectors where no layer is wanted.
    nothing: Tensor,
    /// The wanted layers, ascending.
    which: Vec<usize>,
    tokens: usize,
}

impl DeferredStream {
    /// `None` where a norm cannot be deferred: on the CPU, and for widths that are no multiples of
    /// four.
    pub(super) fn new(
        device: &Device,
        ops: &Ops,
        config: &Config,
        sizes: Sizes,
        which: &[usize],
    ) -> Result<Option<Self>> {
        let h = config.hidden;
        let gpu = matches!(device, Device::Gpu(_));
        if !gpu || !ops.defers(h, config.feed_forward) {
            return Ok(None);
        }
        let mut stream = Self {
            states: device.scratch("states", (which.len() + 1) * sizes.tokens, h)?,
            state_scale: device.scratch("state scale", sizes.tokens, 2)?,
            middle_scale: device.scratch("middle scale", sizes.tokens, 2)?,
            sources: device.ids("sources", 1, 2)?,
            nothing: device.scratch("no units", 1, h)?,
            which: which.to_vec(),
            tokens: sizes.tokens,
        };
        let last = config.layers - 1;
        let layers = which.iter().chain([&last]);
        let sources = layers.flat_map(|layer| [to_u32(stream.slot(layer + 1)), to_u32(*layer)]);
        let sources: Vec<u32> = sources.collect();
        stream.sources = device.upload_ids("sources", 2, &sources)?;
        Ok(Some(stream))
    }

    pub(super) fn resize(&mut self, tokens: usize) {
        self.tokens = tokens;
        self.states.resize((self.which.len() + 1) * tokens);
        self.state_scale.resize(tokens);
        self.middle_scale.resize(tokens);
    }

    /// Which of `states` the input of layer `index` is, the output of the one before.
    fn slot(&self, index: usize) -> usize {
        let wanted = self.which.iter().position(|layer| layer + 1 == index);
        wanted.unwrap_or(self.which.len())
    }

    /// Where the input of layer `index` is among the states.
    fn place(&self, index: usize) -> Place {
        let h = self.states.columns();
        Place::flat(self.slot(index) * self.tokens * h, self.tokens, h)
    }
}

impl Bert {
    /// As [`Bert::forward`] without an adapter, by the stream that `a` has.
    pub(super) fn forward_deferred(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        a: &mut Activations,
        mut trace: Option<&mut Vec<Read>>,
    ) {
        let e = &self.parameters.embeddings;
        let Some(stream) = &mut a.deferred else {
            unreachable!("bert: no tensors for a deferred stream");
        };
        let place = stream.place(0);
        let f = embed::Forward {
            ids: &a.ids,
            positions: &a.positions,
            words: &e.words,
            places: &e.places,
            x: stream.states.part_mut(place),
        };
        ops.embed.forward(pass, f);
        self.trace(ops, pass, a, 0, trace.as_deref_mut());
        for index in 0..self.parameters.layers.len() {
            self.layer_deferred(ops, pass, a, index);
            self.trace(ops, pass, a, index + 1, trace.as_deref_mut());
        }
        self.pool_deferred(ops, gpu(pass), a);
        if let Some(layers) = &mut a.layers {
            layers.as_rows();
        }
    }

    /// The norm of the input of layer `index`.
    fn norm_of(&self, index: usize) -> NormOf<'_> {
        let norm = match index.checked_sub(1) {
            None => &self.parameters.embeddings.norm,
            Some(before) => &self.parameters.layers[before].output_norm,
        };
        self.deferred_norm(norm)
    }

    fn deferred_norm<'n>(&self, Norm { gamma, beta }: &'n Norm) -> NormOf<'n> {
        NormOf {
            gamma,
            beta,
            eps: self.config.eps,
        }
    }

    /// From state `index` to the next one.
    fn layer_deferred(&self, ops: &Ops, pass: &mut Pass<'_>, a: &mut Activations, index: usize) {
        let layer = &self.parameters.layers[index];
        let (Some(stream), [k]) = (&mut a.deferred, &mut a.kept[..]) else {
            unreachable!("bert: no tensors for a deferred stream");
        };
        let (input, output) = (stream.place(index), stream.place(index + 1));
        let norm = self.norm_of(index);
        let f = Normed {
            x: stream.states.part(input),
            norm,
            scale: &mut stream.state_scale,
            w: &layer.qkv,
            y: &mut k.qkv,
        };
        ops.linear.normed(gpu(pass), f, false);
        let f = attention::Forward {
            qkv: &k.qkv,
            offsets: &a.offsets,
            tiles: &a.tiles,
            y: &mut k.context,
        };
        ops.attention.forward(pass, f);
        let whole = k.middle.place();
        let f = Joined {
            x: &k.context,
            w: &layer.attention_output,
            residual: stream.states.part(input),
            norm,
            scale: &stream.state_scale,
            y: k.middle.part_mut(whole),
        };
        ops.linear.joined(gpu(pass), f);
        let norm = self.deferred_norm(&layer.attention_norm);
        let f = Normed {
            x: k.middle.part(whole),
            norm,
            scale: &mut stream.middle_scale,
            w: &layer.intermediate,
            y: &mut k.activated,
        };
        ops.linear.normed(gpu(pass), f, true);
        let f = Joined {
            x: &k.activated,
            w: &layer.output,
            residual: k.middle.part(whole),
            norm,
            scale: &stream.middle_scale,
            y: stream.states.part_mut(output),
        };
        ops.linear.joined(gpu(pass), f);
    }

    /// The pooled vector, and the wanted layers' means as unit vectors.
    fn pool_deferred(&self, ops: &Ops, pass: &mut GpuPass<'_>, a: &mut Activations) {
        let (Some(stream), Some(norms)) = (&mut a.deferred, &self.parameters.output_norms) else {
            unreachable!("bert: no tensors for a deferred stream");
        };
        let units = match &mut a.layers {
            Some(layers) => &mut layers.units,
            None => &mut stream.nothing,
        };
        let f = NormedStates {
            pooling: self.pooling,
            tokens: stream.tokens,
            states: &stream.states,
            norms,
            eps: self.config.eps,
            sources: &stream.sources,
            offsets: &a.offsets,
            pooled: &mut a.pooled,
            units,
        };
        ops.pool.normed(pass, f);
    }

    /// Reads the norm of the input of layer `index`.
    fn trace(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        a: &mut Activations,
        index: usize,
        trace: Option<&mut Vec<Read>>,
    ) {
        let (Some(stream), Some(trace)) = (&a.deferred, trace) else {
            return;
        };
        let NormOf { gamma, beta, eps } = self.norm_of(index);
        let f = layer_norm::Forward {
            x: stream.states.part(stream.place(index)),
            branch: None,
            gamma,
            beta,
            eps,
            y: &mut a.states[0],
        };
        ops.layer_norm.forward(pass, f);
        trace.push(pass.read(&a.states[0]));
    }
}

/// The pass, which is on a GPU.
fn gpu<'a, 'p>(pass: &'a mut Pass<'p>) -> &'a mut GpuPass<'p> {
    match pass {
        Pass::Gpu(pass) => pass,
        Pass::Cpu(_) => unreachable!("bert: a norm is deferred on a GPU alone"),
    }
}
