//! The tensors between the ops of one batch.

use crate::device::{Device, NewTensor, Pass, Place, Sizes, Tensor};
use crate::error::{Result, bail};
use crate::model::Config;
use crate::model::adapted::AdapterActivations;
use crate::model::deferred::DeferredStream;
use crate::ops::attention::{self, query_tiles};
use crate::ops::{Ops, normalize};
use crate::text::batch::PackedBatch;

/// A batch and the network's tensors for it.
pub(crate) struct Activations {
    /// [T]
    pub(super) ids: Tensor,
    /// [T]
    pub(super) positions: Tensor,
    /// [B + 1]
    pub(super) offsets: Tensor,
    /// [J, 2]: first row and prompt of each query tile.
    pub(super) tiles: Tensor,
    /// [T, H] each: the first layer's input and every layer's output. For serving there is one
    /// tensor, which each layer overwrites.
    pub(super) states: Vec<Tensor>,
    /// The tensors inside each layer; for serving one set, which each layer overwrites.
    pub(super) kept: Vec<LayerActivations>,
    /// [B, H]
    pub(crate) pooled: Tensor,
    /// Each prompt's means of some layers' outputs, where they are wanted.
    pub(crate) layers: Option<Layers>,
    /// The residual stream where its norms are deferred.
    pub(super) deferred: Option<DeferredStream>,
    /// The products of an adapter, where one is trained.
    pub(super) adapter: Option<AdapterActivations>,
}

/// The tensors inside one layer.
pub(super) struct LayerActivations {
    /// [T, 3H]
    pub(super) qkv: Tensor,
    /// [T, H]
    pub(super) context: Tensor,
    /// [T, H]: attention's addition to the residual stream.
    pub(super) attention_branch: Tensor,
    /// [T, H]: after attention's residual and norm.
    pub(super) middle: Tensor,
    /// [T, F]: before GELU.
    pub(super) wide: Tensor,
    /// [T, F]: after GELU.
    pub(super) activated: Tensor,
    /// [T, H]: the feed-forward part's addition.
    pub(super) output_branch: Tensor,
}

impl LayerActivations {
    /// `apart`: tokens for which sums, GELU and norms are ops of their own; 0 where each is the end of a
    /// product.
    fn new(device: &Device, config: &Config, tokens: usize, apart: usize) -> Result<Self> {
        let (h, f) = (config.hidden, config.feed_forward);
        Ok(Self {
            qkv: device.scratch("qkv", tokens, 3 * h)?,
            context: device.scratch("context", tokens, h)?,
            attention_branch: device.scratch("attention branch", apart, h)?,
            middle: device.scratch("middle", tokens, h)?,
            wide: device.scratch("wide", apart, f)?,
            activated: device.scratch("activated", tokens, f)?,
            output_branch: device.scratch("output branch", apart, h)?,
        })
    }

    fn resize(&mut self, tokens: usize) {
        for tensor in [
            &mut self.qkv,
            &mut self.context,
            &mut self.middle,
            &mut self.activated,
        ] {
            tensor.resize(tokens);
        }
        for tensor in [
            &mut self.attention_branch,
            &mut self.wide,
            &mut self.output_branch,
        ] {
            tensor.resize(tokens.min(tensor.capacity()));
        }
    }
}

/// Means over a prompt's tokens of some layers' outputs.
pub(crate) struct Layers {
    /// [B L, H]: the rows of a prompt's layers follow each other.
    pub(crate) means: Tensor,
    /// The same as unit vectors; behind a forward pass [B, L H], one row a prompt.
    pub(crate) units: Tensor,
    /// Which layers these are, from 0, ascending.
    which: Vec<usize>,
}

impl Layers {
    fn new(device: &Device, config: &Config, which: &[usize], prompts: usize) -> Result<Self> {
        if let Some(layer) = which.iter().find(|layer| **layer >= config.layers) {
            bail!(
                Mismatch,
                "layers: expected numbers below {}, found {layer}",
                config.layers
            );
        }
        let rows = prompts * which.len();
        Ok(Self {
            means: device.scratch("layer means", rows, config.hidden)?,
            units: device.scratch("layer units", rows, config.hidden)?,
            which: which.to_vec(),
        })
    }

    /// Takes unit vectors that were made before, in place of a forward pass.
    pub(crate) fn upload(&mut self, pass: &mut Pass<'_>, units: &[f32]) {
        self.units.regroup(self.which.len() * self.means.columns());
        pass.upload_f32(&mut self.units, units);
    }

    fn resize(&mut self, prompts: usize) {
        self.units.regroup(self.means.columns());
        self.means.resize(prompts * self.which.len());
        self.units.resize(prompts * self.which.len());
    }

    /// Where the means of `layer` belong, if it is one of these.
    pub(crate) fn place(&self, layer: usize) -> Option<Place> {
        let (of, hidden) = (self.which.len(), self.means.columns());
        let number = self.which.iter().position(|which| *which == layer)?;
        Some(Place {
            offset: number * hidden,
            stride: of * hidden,
            rows: self.means.rows() / of,
            columns: hidden,
        })
    }

    /// The layers, and their means [B, L, H] to be written.
    pub(crate) fn means_mut(&mut self) -> (&[usize], &mut [f32]) {
        (&self.which, self.means.f32_mut())
    }

    /// Makes unit vectors of the means.
    pub(crate) fn finish(&mut self, ops: &Ops, pass: &mut Pass<'_>) {
        let (z, u) = (self.means.part(self.means.place()), &mut self.units);
        ops.normalize.forward(pass, normalize::Forward { z, u });
        self.as_rows();
    }

    /// Gives the unit vectors one row a prompt.
    pub(super) fn as_rows(&mut self) {
        self.units.regroup(self.which.len() * self.means.columns());
    }
}

/// Query tiles that `sizes` may need: each prompt can leave one unfinished.
fn most_tiles(sizes: Sizes) -> usize {
    sizes.tokens / attention::QUERIES + sizes.prompts
}

impl Activations {
    /// Bytes that [`Activations::upload`] sends at most.
    pub(crate) fn upload_bytes(sizes: Sizes) -> usize {
        4 * (2 * sizes.tokens + sizes.prompts + 1 + 2 * most_tiles(sizes))
    }

    /// For serving: one layer's tensors, and those for the means of the layers `which`.
    pub(crate) fn new(
        device: &Device,
        ops: &Ops,
        config: &Config,
        sizes: Sizes,
        which: &[usize],
    ) -> Result<Self> {
        let layers = match which {
            [] => None,
            which => Some(Layers::new(device, config, which, sizes.prompts)?),
        };
        let deferred = DeferredStream::new(device, ops, config, sizes, which)?;
        let apart = if deferred.is_some() { 0 } else { sizes.tokens };
        Ok(Self {
            layers,
            deferred,
            ..Self::of_layers(device, config, sizes, [1, 1], apart)?
        })
    }

    /// For learning: the tensors of every layer, and those of an adapter.
    pub(super) fn for_learning(
        device: &Device,
        config: &Config,
        sizes: Sizes,
        adapter: AdapterActivations,
    ) -> Result<Self> {
        let counts = [config.layers + 1, config.layers];
        Ok(Self {
            adapter: Some(adapter),
            ..Self::of_layers(device, config, sizes, counts, sizes.tokens)?
        })
    }

    fn of_layers(
        device: &Device,
        config: &Config,
        sizes: Sizes,
        [states, kept]: [usize; 2],
        apart: usize,
    ) -> Result<Self> {
        let Sizes { tokens, prompts } = sizes;
        let state = |_| device.scratch("state", tokens, config.hidden);
        let layer = |_| LayerActivations::new(device, config, tokens, apart);
        Ok(Self {
            ids: device.input(NewTensor::ids("ids", tokens, 1)),
            positions: device.input(NewTensor::ids("positions", tokens, 1)),
            offsets: device.input(NewTensor::ids("offsets", prompts + 1, 1)),
            tiles: device.input(NewTensor::ids("tiles", most_tiles(sizes), 2)),
            states: (0..states).map(state).collect::<Result<_>>()?,
            kept: (0..kept).map(layer).collect::<Result<_>>()?,
            pooled: device.scratch("pooled", prompts, config.hidden)?,
            layers: None,
            deferred: None,
            adapter: None,
        })
    }

    /// Which of `states` is the input of layer `index` and the output of the one before.
    pub(super) fn state_place(&self, index: usize) -> usize {
        index % self.states.len()
    }

    /// Which of `kept` layer `index` uses.
    pub(super) fn kept_place(&self, index: usize) -> usize {
        index % self.kept.len()
    }

    /// Sends `batch` and gives every tensor its rows.
    pub(crate) fn upload(&mut self, pass: &mut Pass<'_>, batch: &PackedBatch) {
        pass.upload(&mut self.ids, &batch.ids);
        pass.upload(&mut self.positions, &batch.positions);
        pass.upload(&mut self.offsets, &batch.offsets);
        pass.upload(&mut self.tiles, &query_tiles(&batch.offsets));
        let tokens = batch.tokens();
        self.states
            .iter_mut()
            .for_each(|state| state.resize(tokens));
        self.kept.iter_mut().for_each(|layer| layer.resize(tokens));
        self.pooled.resize(batch.prompts());
        if let Some(layers) = &mut self.layers {
            layers.resize(batch.prompts());
        }
        if let Some(stream) = &mut self.deferred {
            stream.resize(tokens);
        }
        if let Some(adapter) = &mut self.adapter {
            adapter.resize(tokens);
        }
    }
}
