//! The tensors between the ops of one batch.

use crate::device::{Device, Pass, Place, Sizes, Tensor};
use crate::error::{Result, bail};
use crate::model::Config;
use crate::ops::attention::{self, query_tiles};
use crate::ops::{Ops, normalize};
use crate::text::batch::PackedBatch;

pub(crate) struct Activations {
    /// [T]
    pub(crate) ids: Tensor,
    /// [T]
    pub(crate) positions: Tensor,
    /// [B + 1]
    pub(crate) offsets: Tensor,
    /// [J, 2]: first row and prompt of each query tile.
    pub(crate) tiles: Tensor,
    /// [T, H]: what enters and leaves a layer.
    pub(crate) x: Tensor,
    /// [T, H]: after attention's residual and norm.
    pub(crate) middle: Tensor,
    /// [T, 3H]
    pub(crate) qkv: Tensor,
    /// [T, H]
    pub(crate) context: Tensor,
    /// [T, H]: what is added to the residual stream.
    pub(crate) branch: Tensor,
    /// [T, F]: before GELU.
    pub(crate) wide: Tensor,
    /// [T, F]: after GELU.
    pub(crate) activated: Tensor,
    /// [B, H]
    pub(crate) pooled: Tensor,
    /// What each layer says of a prompt, where it is asked for.
    pub(crate) layers: Option<Layers>,
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
    pub(crate) fn new(
        device: &Device,
        config: &Config,
        which: &[usize],
        prompts: usize,
    ) -> Result<Self> {
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

    /// Makes unit vectors of the means.
    pub(crate) fn finish(&mut self, ops: &Ops, pass: &mut Pass<'_>) {
        let (z, u) = (&self.means, &mut self.units);
        ops.normalize.forward(pass, normalize::Forward { z, u });
        self.units.regroup(self.which.len() * self.means.columns());
    }
}

/// Query tiles that `sizes` may need: each prompt can leave one unfinished.
pub(crate) fn most_tiles(sizes: Sizes) -> usize {
    sizes.tokens / attention::QUERIES + sizes.prompts
}

impl Activations {
    /// Bytes that [`Activations::upload`] sends at most.
    pub(crate) fn upload_bytes(sizes: Sizes) -> usize {
        4 * (2 * sizes.tokens + sizes.prompts + 1 + 2 * most_tiles(sizes))
    }

    pub(crate) fn new(device: &Device, config: &Config, sizes: Sizes) -> Result<Self> {
        let Sizes { tokens, prompts } = sizes;
        let (h, f) = (config.hidden, config.feed_forward);
        Ok(Self {
            ids: device.ids("ids", tokens, 1)?,
            positions: device.ids("positions", tokens, 1)?,
            offsets: device.ids("offsets", prompts + 1, 1)?,
            tiles: device.ids("tiles", most_tiles(sizes), 2)?,
            x: device.scratch("x", tokens, h)?,
            middle: device.scratch("middle", tokens, h)?,
            qkv: device.scratch("qkv", tokens, 3 * h)?,
            context: device.scratch("context", tokens, h)?,
            branch: device.scratch("branch", tokens, h)?,
            wide: device.scratch("wide", tokens, f)?,
            activated: device.scratch("activated", tokens, f)?,
            pooled: device.scratch("pooled", prompts, h)?,
            layers: None,
        })
    }

    /// Sends `batch` and gives every tensor its rows.
    pub(crate) fn upload(&mut self, pass: &mut Pass<'_>, batch: &PackedBatch) {
        pass.upload(&mut self.ids, &batch.ids);
        pass.upload(&mut self.positions, &batch.positions);
        pass.upload(&mut self.offsets, &batch.offsets);
        pass.upload(&mut self.tiles, &query_tiles(&batch.offsets));
        for tensor in [
            &mut self.x,
            &mut self.middle,
            &mut self.qkv,
            &mut self.context,
            &mut self.branch,
            &mut self.wide,
            &mut self.activated,
        ] {
            tensor.resize(batch.tokens());
        }
        self.pooled.resize(batch.prompts());
        if let Some(layers) = &mut self.layers {
            layers.resize(batch.prompts());
        }
    }
}
