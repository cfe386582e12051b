//! [`contrastive`](super::contrastive) over all models on a GPU, in three dispatches: z [B, D], E
//! [M, D] -> losses [B], dz, dE. The CPU's part of it is there.
//!
//! D and the places of E and dE in their tensors are multiples of four.

use crate::device::gpu::GpuPass;
use crate::device::{Device, Kernel, Place, Shader, Tensor, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::contrastive::LossAndGradients;

const SHADER: Shader = shader!("contrastive_all", "reduce");

/// Models of a tile.
const TILE: usize = 16;

/// Workgroups at most for one example and for many: each leaves D + 4 numbers of an example.
const MOST_GROUPS: usize = 256;
const MOST_SHARES: usize = 8192;
const LEAST_GROUPS: usize = 16;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    examples: u32,
    width: u32,
    models: u32,
    targets: u32,
    rows_at: u32,
    grad_at: u32,
    groups: u32,
    inverse_tau: f32,
}

pub(crate) struct ContrastiveAll {
    scores: Kernel,
    back: Kernel,
    finish: Kernel,
}

/// Scratch tensors between the kernels.
pub(crate) struct TiledWorkspace {
    /// G, whatever the number of examples: their results do not depend on it.
    groups: usize,
    /// [1 + B, 2 M + 1]
    table: Tensor,
    /// [G B, 4]
    parts: Tensor,
    /// [G B, D + 4]
    shares: Tensor,
}

/// True where the kernels can read a matrix at `place`.
pub(super) fn fits(place: Place) -> bool {
    place.offset.is_multiple_of(4) && place.columns.is_multiple_of(4)
}

impl TiledWorkspace {
    /// For `examples` at most with all of `models` as candidates; `width`: D.
    pub(super) fn new(
        device: &Device,
        examples: usize,
        models: usize,
        width: usize,
    ) -> Result<Self> {
        let most = (MOST_SHARES / examples.max(1)).clamp(LEAST_GROUPS, MOST_GROUPS);
        let groups = models.div_ceil(TILE).min(most);
        Ok(Self {
            groups,
            table: device.scratch("cosines", 1 + examples, 2 * models + 1)?,
            parts: device.scratch("parts", groups * examples, 4)?,
            shares: device.scratch("shares", groups * examples, width + 4)?,
        })
    }

    pub(super) fn resize(&mut self, examples: usize) {
        self.table.resize(1 + examples);
        self.parts.resize(self.groups * examples);
        self.shares.resize(self.groups * examples);
    }
}

impl ContrastiveAll {
    pub(super) fn new() -> Self {
        let kernel = |entry| Kernel::new(&SHADER, entry, &[]);
        Self {
            scores: kernel("scores"),
            back: kernel("back"),
            finish: Kernel::new(&SHADER, "finish", &[("WG", 256.0)]),
        }
    }

    /// As [`contrastive`](super::contrastive) says, for [`CandidateSet::All`].
    ///
    /// [`CandidateSet::All`]: crate::ops::contrastive::CandidateSet::All
    pub(super) fn record(
        &self,
        gpu: &mut GpuPass<'_>,
        f: &LossAndGradients<'_>,
        t: &TiledWorkspace,
    ) {
        let (examples, models, width) = (f.z.rows(), f.rows.place.rows, f.z.columns());
        for (name, place) in [("rows", f.rows.place), ("d_rows", f.d_rows.place)] {
            assert!(
                fits(place),
                "contrastive: {name}: {place:?} is not in fours"
            );
        }
        t.table
            .expect("contrastive", "room of all", 1 + examples, 2 * models + 1);
        t.shares
            .expect("contrastive", "room", t.groups * examples, width + 4);
        let dims = Dims {
            examples: to_u32(examples),
            width: to_u32(width / 4),
            models: to_u32(models),
            targets: to_u32(f.targets.ids.columns()),
            rows_at: to_u32(f.rows.place.offset / 4),
            grad_at: to_u32(f.d_rows.place.offset / 4),
            groups: to_u32(t.groups),
            inverse_tau: 1.0 / f.tau,
        };
        let (z, theta, priors) = (("z", f.z), ("theta", f.rows.tensor), ("priors", f.priors));
        let (ids, mass) = (
            ("target_ids", f.targets.ids),
            ("target_mass", f.targets.mass),
        );
        let weights = ("weights", f.targets.weights);
        let (table, parts) = (("table", &t.table), ("parts", &t.parts));
        let (shares, grad) = (("shares", &t.shares), ("grad", &*f.d_rows.tensor));
        let (dz, losses) = (("dz", &*f.dz), ("losses", &*f.losses));

        let tiles = [to_u32(t.groups), 1, 1];
        let scores = [z, theta, priors, ids, mass, weights, table, parts];
        gpu.dispatch(&self.scores, tiles, &dims, &scores);
        let back = [z, theta, priors, table, parts, shares, grad];
        gpu.dispatch(&self.back, tiles, &dims, &back);
        let finish = [z, table, shares, dz, losses];
        gpu.dispatch(&self.finish, [to_u32(examples), 1, 1], &dims, &finish);
    }
}
