//! Maps with low-rank additions on a GPU, four of a layer at a time: W + s Lb La [out, in], and the
//! gradients of La [r, in] and Lb [r, out] (transposed) from x [T, in] and dy [T, out].
//!
//! It does for a layer what `matmul` does product by product: the CPU, inputs with dropout and
//! adapters whose sizes are no multiples of four have those. Its kernels bind up to
//! [`BUFFERS`] buffers.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::gpu::GpuPass;
use crate::device::{Device, Kernel, Place, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;

const SHADER: Shader = shader!("low_rank");

/// Storage buffers of a kernel.
const BUFFERS: u32 = 11;

/// Maps of a layer.
pub(crate) const MAPS: usize = 4;

/// Rows of a factor in a tile, and columns of it in the blocks.
const TILE: usize = 16;

/// Numbers of a job.
const FIELDS: usize = 8;

const LANES: usize = 128;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    rows: u32,
    blocks: u32,
    first: u32,
    scale: f32,
}

pub(crate) struct LowRank {
    merge: Kernel,
    thin: Kernel,
    factors: Kernel,
}

/// Some outputs of a map, with their factors if they have an addition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Branch {
    /// From 0 to 3.
    pub(crate) map: usize,
    pub(crate) first_output: usize,
    pub(crate) outputs: usize,
    /// La [r, in] and Lb [r, out] in the flat buffer.
    pub(crate) factors: Option<[Place; 2]>,
}

/// The jobs of one layer's kernels, on the device.
pub(crate) struct LayerJobs {
    /// [J, FIELDS]: branches, tiles of `thin`, tiles of `factors`.
    jobs: Tensor,
    /// (in, out) of each map.
    widths: [(usize, usize); MAPS],
    /// Numbers of theta up to the end of the last factor.
    factors_end: usize,
    branches: usize,
    tiles: usize,
    /// Groups of the largest branch and of the widest tile.
    branch_groups: u32,
    tile_groups: u32,
    scale: f32,
}

/// `theta`: [1, N]; `w`, `merged`: [out, in] of each map, `merged` is overwritten.
pub(crate) struct Merge<'t> {
    pub(crate) jobs: &'t LayerJobs,
    pub(crate) theta: &'t Tensor,
    pub(crate) w: [&'t Tensor; MAPS],
    pub(crate) merged: [&'t mut Tensor; MAPS],
}

/// `x`: [T, in] and `dy`: [T, out] of each map; `theta`, `grad`: [1, N], the gradients of the
/// factors are added; `blocks`: [T, [`LayerJobs::blocks`]], scratch.
pub(crate) struct Gradients<'t> {
    pub(crate) jobs: &'t LayerJobs,
    pub(crate) x: [&'t Tensor; MAPS],
    pub(crate) dy: [&'t Tensor; MAPS],
    pub(crate) theta: &'t Tensor,
    pub(crate) blocks: &'t mut Tensor,
    pub(crate) grad: &'t mut Tensor,
}

impl LayerJobs {
    /// For maps of these (in, out), of which `branches` are all outputs. `None` where the kernels
    /// cannot be taken.
    pub(crate) fn new(
        device: &Device,
        widths: [(usize, usize); MAPS],
        branches: &[Branch],
        scale: f32,
    ) -> Result<Option<Self>> {
        let Device::Gpu(gpu) = device else {
            return Ok(None);
        };
        let factors = branches.iter().filter_map(|branch| branch.factors);
        let factors = factors.flatten();
        let factors_end = factors.clone().map(Place::end).max().unwrap_or(0);
        let mut sizes: Vec<usize> = widths.iter().flat_map(|w| [w.0, w.1]).collect();
        sizes.extend(branches.iter().flat_map(|b| [b.first_output, b.outputs]));
        sizes.extend(factors.map(|place| place.offset));
        let fours = sizes.iter().all(|size| size.is_multiple_of(4));
        if !fours || gpu.most_buffers() < BUFFERS {
            return Ok(None);
        }
        let mut jobs = JobTable::default();
        for branch in branches {
            jobs.add(branch, widths[branch.map]);
        }
        let tiles = jobs.thin.len();
        let rows = [&jobs.branches[..], &jobs.thin, &jobs.factors].concat();
        Ok(Some(Self {
            branches: jobs.branches.len(),
            tiles,
            branch_groups: jobs.branch_groups,
            tile_groups: jobs.tile_groups,
            jobs: device.upload_ids("jobs", FIELDS, &rows.concat())?,
            widths,
            factors_end,
            scale,
        }))
    }

    /// Asserts that the buffer of factors holds all of them.
    fn expect_factors(&self, name: &str, factors: &Tensor) {
        assert!(
            factors.len() >= self.factors_end,
            "low_rank: {name}: expected {} numbers or more, found {}",
            self.factors_end,
            factors.len()
        );
    }

    /// Columns of the blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.tiles * TILE
    }

    fn dims(&self, rows: usize, first: usize) -> Dims {
        Dims {
            rows: to_u32(rows),
            blocks: to_u32(self.blocks()),
            first: to_u32(first),
            scale: self.scale,
        }
    }
}

/// Jobs as the shader reads them.
#[derive(Default)]
struct JobTable {
    branches: Vec<[u32; FIELDS]>,
    thin: Vec<[u32; FIELDS]>,
    factors: Vec<[u32; FIELDS]>,
    branch_groups: u32,
    tile_groups: u32,
}

impl JobTable {
    fn add(&mut self, branch: &Branch, (inputs, outputs): (usize, usize)) {
        let Branch {
            map,
            first_output,
            outputs: own,
            factors,
        } = *branch;
        let (a, b, rank) = factors.map_or((0, 0, 0), |[a, b]| (a.offset, b.offset, a.rows));
        let row = [map, first_output, own, inputs / 4, a / 4, b / 4, rank, 0];
        self.branches.push(row.map(to_u32));
        let vectors = own / 4 * (inputs / 4);
        self.branch_groups = self.branch_groups.max(groups(vectors, LANES));
        for first in (0..rank).step_by(TILE) {
            let rows = (rank - first).min(TILE);
            let block = self.thin.len();
            // x with La, and dy with Lb.
            let ends = [
                (map, 0, inputs, inputs, a),
                (MAPS + map, first_output, outputs, own, b),
            ];
            for (i, (tensor, column, stride, width, factor)) in ends.into_iter().enumerate() {
                let place = (factor + first * width) / 4;
                let job = |block: usize, scaled: usize| {
                    let (column, stride) = (column / 4, stride / 4);
                    [
                        tensor,
                        column,
                        stride,
                        width / 4,
                        place,
                        rows,
                        block,
                        scaled,
                    ]
                    .map(to_u32)
                };
                self.thin.push(job(block + i, i));
                // The gradient of a factor is of the other's block.
                self.factors.push(job(block + 1 - i, i));
                self.tile_groups = self.tile_groups.max(groups(width / 4, 8));
            }
        }
    }
}

impl LowRank {
    pub(crate) fn new() -> Self {
        let kernel = |entry| Kernel::new(&SHADER, entry, &[]);
        Self {
            merge: kernel("merge"),
            thin: kernel("thin"),
            factors: kernel("factors"),
        }
    }

    /// `merged = w + s Lb La`
    pub(crate) fn merge(&self, gpu: &mut GpuPass<'_>, m: Merge<'_>) {
        let LayerJobs {
            jobs,
            branches,
            branch_groups,
            ..
        } = m.jobs;
        let (w, merged) = (m.w, m.merged.map(|merged| &*merged));
        m.jobs.expect_factors("theta", m.theta);
        for (map, (inputs, outputs)) in m.jobs.widths.into_iter().enumerate() {
            w[map].expect("low_rank", "w", outputs, inputs);
            merged[map].expect("low_rank", "merged", outputs, inputs);
        }
        let tensors = [
            ("theta", m.theta),
            ("jobs", jobs),
            ("w0", w[0]),
            ("w1", w[1]),
            ("w2", w[2]),
            ("w3", w[3]),
            ("merged0", merged[0]),
            ("merged1", merged[1]),
            ("merged2", merged[2]),
            ("merged3", merged[3]),
        ];
        let grid = [*branch_groups, to_u32(*branches), 1];
        gpu.dispatch(&self.merge, grid, &m.jobs.dims(0, 0), &tensors);
    }

    /// Adds the gradients of the factors.
    pub(crate) fn gradients(&self, gpu: &mut GpuPass<'_>, g: Gradients<'_>) {
        let LayerJobs {
            jobs,
            branches,
            tiles,
            tile_groups,
            ..
        } = g.jobs;
        let tokens = g.x[0].rows();
        g.jobs.expect_factors("theta", g.theta);
        g.jobs.expect_factors("grad", g.grad);
        for (map, (inputs, outputs)) in g.jobs.widths.into_iter().enumerate() {
            g.x[map].expect("low_rank", "x", tokens, inputs);
            g.dy[map].expect("low_rank", "dy", tokens, outputs);
        }
        g.blocks
            .expect("low_rank", "blocks", tokens, g.jobs.blocks());
        let (blocks, jobs) = (("blocks", &*g.blocks), ("jobs", jobs));
        let [x0, x1, x2, x3] = g.x;
        let [y0, y1, y2, y3] = g.dy;
        let all = [
            ("x0", x0),
            ("x1", x1),
            ("x2", x2),
            ("x3", x3),
            ("y0", y0),
            ("y1", y1),
            ("y2", y2),
            ("y3", y3),
        ];
        let with = |factors| {
            let mut tensors = vec![jobs, blocks, factors];
            tensors.extend(all);
            tensors
        };
        let dims = g.jobs.dims(tokens, *branches);
        let grid = [groups(tokens, 16), to_u32(*tiles), 1];
        gpu.dispatch(&self.thin, grid, &dims, &with(("theta", g.theta)));
        let dims = g.jobs.dims(tokens, branches + tiles);
        let grid = [*tile_groups, to_u32(*tiles), 1];
        gpu.dispatch(&self.factors, grid, &dims, &with(("grad", &*g.grad)));
    }
}
