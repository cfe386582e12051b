//! The router's head: pooled features to the models' space, z = W h.

use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::Ops;
use crate::ops::linear::{self, Weight};
use crate::weights::View;

/// `prompt_projection.weight`: W [D, H], without bias.
pub(crate) struct Head {
    projection: Weight,
}

impl Head {
    /// `projection`: [D, H].
    pub(crate) fn new(device: &Device, projection: View<'_>) -> Result<Self> {
        let rows = projection.rows();
        let parts = [("prompt_projection.weight", projection)];
        Ok(Self {
            projection: Weight::new(device, &parts, &vec![0.0; rows])?,
        })
    }

    /// D
    pub(crate) fn width(&self) -> usize {
        self.projection.outputs()
    }

    /// `h` [B, H] to `z` [B, D].
    pub(crate) fn forward(&self, ops: &Ops, pass: &mut Pass<'_>, h: &Tensor, z: &mut Tensor) {
        z.resize(h.rows());
        let (x, w) = (h, &self.projection);
        ops.linear.forward(pass, linear::Forward { x, w, y: z });
    }
}
