//! The router's head: pooled features to unit vectors, u = norm(W h).

use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::linear::{self, Weight};
use crate::ops::{Ops, normalize};
use crate::weights::View;

/// `prompt_projection.weight`: W [D, H], without bias.
pub(crate) struct Head {
    projection: Weight,
}

/// z, u: [B, D].
pub(crate) struct Projected {
    z: Tensor,
    pub(crate) u: Tensor,
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

    pub(crate) fn room(&self, device: &Device, prompts: usize) -> Result<Projected> {
        let width = self.width();
        Ok(Projected {
            z: device.scratch("z", prompts, width)?,
            u: device.scratch("u", prompts, width)?,
        })
    }

    /// `h` [B, H] to `room.u` [B, D].
    pub(crate) fn forward(&self, ops: &Ops, pass: &mut Pass<'_>, h: &Tensor, room: &mut Projected) {
        room.z.resize(h.rows());
        room.u.resize(h.rows());
        ops.linear.forward(
            pass,
            linear::Forward {
                x: h,
                w: &self.projection,
                y: &mut room.z,
            },
        );
        ops.normalize.forward(
            pass,
            normalize::Forward {
                z: room.z.part(room.z.place()),
                u: &mut room.u,
            },
        );
    }
}
