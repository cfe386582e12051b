//! Attention within each prompt and head: qkv [T, 3H], offsets -> y [T, H]; and its gradient.

use pulp::{Simd, WithSimd};

use crate::device::cpu::{Tile, math};
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, shader};
use crate::error::{Result, bail};
use crate::num::to_u32;

const SHADER: Shader = shader!("attention");

/// Query rows of one workgroup.
pub(crate) const QUERIES: usize = 16;

/// Keys that the shader stages at a time.
const KEYS: usize = 8;

/// Rows of a workgroup of the backward entries, and rows that it stages at a time.
const SIDE: usize = 8;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    hidden: u32,
    scale: f32,
}

/// First row and prompt of each tile of at most [`QUERIES`] rows, pair by pair.
pub(crate) fn query_tiles(offsets: &[u32]) -> Vec<u32> {
    let mut tiles = Vec::new();
    for (prompt, pair) in offsets.windows(2).enumerate() {
        for first in (pair[0]..pair[1]).step_by(QUERIES) {
            tiles.extend([first, to_u32(prompt)]);
        }
    }
    tiles
}

pub(crate) struct Attention {
    forward: Kernel,
    backward_queries: Kernel,
    backward_keys: Kernel,
    width: usize,
}

/// `qkv`: [T, 3H], a row is query, key, value, each [heads, width]; `offsets`: [B + 1]; `tiles`:
/// [J, 2], first row and prompt of each query tile; `y`: [T, H], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) qkv: &'t Tensor,
    pub(crate) offsets: &'t Tensor,
    pub(crate) tiles: &'t Tensor,
    pub(crate) y: &'t mut Tensor,
}

/// `qkv`, `offsets`, `tiles`: the forward's; `dy`: [T, H]; `statistics`: [T, 3 heads], scratch, which
/// only a GPU uses; `dqkv`: [T, 3H], overwritten.
pub(crate) struct Backward<'t> {
    pub(crate) qkv: &'t Tensor,
    pub(crate) offsets: &'t Tensor,
    pub(crate) tiles: &'t Tensor,
    pub(crate) dy: &'t Tensor,
    pub(crate) statistics: &'t mut Tensor,
    pub(crate) dqkv: &'t mut Tensor,
}

impl Attention {
    /// `width`: elements of a head.
    pub(crate) fn new(device: &Device, width: usize) -> Result<Self> {
        if let Device::Gpu(gpu) = device {
            let forward = 4 * (2 * QUERIES * width + 2 * KEYS * width + QUERIES * KEYS);
            let backward = 8 * (2 * SIDE * (width + 1) + SIDE * SIDE + SIDE * width);
            let scratch = forward.max(backward);
            if scratch > gpu.most_scratch() as usize {
                bail!(
                    Limits,
                    "{}: attention with heads of {width}: needs {scratch} bytes of workgroup memory, the adapter allows {}",
                    gpu.name(),
                    gpu.most_scratch()
                );
            }
        }
        let kernel = |entry| device.kernel(&SHADER, entry, &[("WIDTH", width as f64)]);
        Ok(Self {
            forward: kernel("forward")?,
            backward_queries: kernel("backward_queries")?,
            backward_keys: kernel("backward_keys")?,
            width,
        })
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (tokens, hidden) = (f.qkv.rows(), f.y.columns());
        assert_eq!(
            hidden % self.width,
            0,
            "attention: {hidden} is not whole heads of {}",
            self.width
        );
        f.qkv.expect("attention", "qkv", tokens, 3 * hidden);
        f.y.expect("attention", "y", tokens, hidden);
        let scale = 1.0 / (self.width as f32).sqrt();
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.forward,
                [to_u32(f.tiles.rows()), to_u32(hidden / self.width), 1],
                &Dims {
                    hidden: to_u32(hidden),
                    scale,
                },
                &[
                    ("qkv", f.qkv),
                    ("offsets", f.offsets),
                    ("tiles", f.tiles),
                    ("y", f.y),
                ],
            ),
            Pass::Cpu(pass) => {
                let shape = Shape {
                    hidden,
                    width: self.width,
                    scale,
                };
                forward_cpu(pass, shape, f.qkv.f32(), f.offsets.u32(), f.y.f32_mut());
            }
        }
    }

    pub(crate) fn backward(&self, pass: &mut Pass<'_>, b: Backward<'_>) {
        let (tokens, hidden) = (b.qkv.rows(), b.dy.columns());
        assert_eq!(
            hidden % self.width,
            0,
            "attention: {hidden} is not whole heads of {}",
            self.width
        );
        let heads = hidden / self.width;
        b.qkv.expect("attention", "qkv", tokens, 3 * hidden);
        b.dy.expect("attention", "dy", tokens, hidden);
        b.statistics
            .expect("attention", "statistics", tokens, 3 * heads);
        b.dqkv.expect("attention", "dqkv", tokens, 3 * hidden);
        let scale = 1.0 / (self.width as f32).sqrt();
        match pass {
            Pass::Gpu(gpu) => {
                let grid = [
                    to_u32(b.tiles.rows()),
                    to_u32(heads),
                    to_u32(QUERIES / SIDE),
                ];
                let dims = Dims {
                    hidden: to_u32(hidden),
                    scale,
                };
                let tensors = [
                    ("qkv", b.qkv),
                    ("offsets", b.offsets),
                    ("tiles", b.tiles),
                    ("dy", b.dy),
                    ("statistics", &*b.statistics),
                    ("dqkv", &*b.dqkv),
                ];
                gpu.dispatch(&self.backward_queries, grid, &dims, &tensors);
                gpu.dispatch(&self.backward_keys, grid, &dims, &tensors);
            }
            Pass::Cpu(pass) => {
                let shape = Shape {
                    hidden,
                    width: self.width,
                    scale,
                };
                let (qkv, offsets, dy) = (b.qkv.f32(), b.offsets.u32(), b.dy.f32());
                backward_cpu(pass, shape, qkv, offsets, dy, b.dqkv.f32_mut());
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Shape {
    hidden: usize,
    width: usize,
    scale: f32,
}

/// Threads split the heads, so a single prompt is shared between them.
fn forward_cpu(pass: &CpuPass<'_>, shape: Shape, qkv: &[f32], offsets: &[u32], y: &mut [f32]) {
    let cpu = pass.cpu;
    let lengths = offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
    let work = lengths.map(|n| 2 * n * n * shape.hidden).sum();
    cpu.tiles(y, shape.hidden, usize::MAX, shape.width, work, |tile| {
        let Tile {
            first_column,
            mut rows,
            ..
        } = tile;
        let mut head = Head::default();
        for pair in offsets.windows(2) {
            let (begin, end) = (pair[0] as usize, pair[1] as usize);
            let qkv = &qkv[begin * 3 * shape.hidden..end * 3 * shape.hidden];
            let rows = &mut rows[begin..end];
            cpu.dispatch(Attend {
                shape,
                qkv,
                first_column,
                rows,
                head: &mut head,
            });
        }
    });
}

/// Some heads of one prompt.
struct Attend<'a, 'y> {
    shape: Shape,
    /// [n, 3H], the whole prompt.
    qkv: &'a [f32],
    /// The column that the parts of the rows begin with.
    first_column: usize,
    /// [n], of each row the columns of these heads.
    rows: &'a mut [&'y mut [f32]],
    head: &'a mut Head,
}

/// Keys and values of one head of one prompt, in the order in which the loops read them; L is
/// the number of lanes of a vector.
#[derive(Default)]
struct Head {
    /// [n / L][width][L]: L keys side by side, zeros past n.
    keys: Vec<f32>,
    /// [width / L][n][L]: L elements of a value, zeros past the width.
    values: Vec<f32>,
    /// [queries][n / L][L]
    scores: Vec<f32>,
}

impl Head {
    #[inline(always)]
    fn load(&mut self, lanes: usize, shape: Shape, qkv: &[f32], start: usize) {
        let Shape { hidden, width, .. } = shape;
        let n = qkv.len() / (3 * hidden);
        self.keys.clear();
        self.keys.resize(n.div_ceil(lanes) * width * lanes, 0.0);
        self.values.clear();
        self.values.resize(width.div_ceil(lanes) * n * lanes, 0.0);
        for (j, row) in qkv.chunks_exact(3 * hidden).enumerate() {
            let block = &mut self.keys[j / lanes * width * lanes..][..width * lanes];
            for (places, key) in block.chunks_exact_mut(lanes).zip(&row[hidden + start..]) {
                places[j % lanes] = *key;
            }
            for (c, value) in row[2 * hidden + start..][..width].chunks(lanes).enumerate() {
                self.values[(c * n + j) * lanes..][..value.len()].copy_from_slice(value);
            }
        }
    }
}

/// Queries that go through the keys together, at most.
const TOGETHER: usize = 6;

impl WithSimd for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            shape,
            qkv,
            first_column,
            rows,
            head,
        } = self;
        let (n, columns) = (rows.len(), rows.first().map_or(0, |row| row.len()));
        let tiles = n.div_ceil(TOGETHER);
        for start in (0..columns).step_by(shape.width) {
            head.load(S::F32_LANES, shape, qkv, first_column + start);
            let mut done = 0;
            for tile in 0..tiles {
                // As even as they go.
                let count = n / tiles + usize::from(tile < n % tiles);
                let queries = &qkv[done * 3 * shape.hidden + first_column + start..];
                let y = &mut rows[done..done + count];
                match count {
                    1 => tile_of::<S, 1>(simd, shape, queries, y, start, head),
                    2 => tile_of::<S, 2>(simd, shape, queries, y, start, head),
                    3 => tile_of::<S, 3>(simd, shape, queries, y, start, head),
                    4 => tile_of::<S, 4>(simd, shape, queries, y, start, head),
                    5 => tile_of::<S, 5>(simd, shape, queries, y, start, head),
                    _ => tile_of::<S, TOGETHER>(simd, shape, queries, y, start, head),
                }
                done += count;
            }
        }
    }
}

/// R query rows, 3H apart in `queries`, against the keys and values of `head`; `y` has their parts,
/// in which the head begins at `start`.
#[inline(always)]
fn tile_of<S: Simd, const R: usize>(
    simd: S,
    shape: Shape,
    queries: &[f32],
    y: &mut [&mut [f32]],
    start: usize,
    head: &mut Head,
) {
    let Shape {
        hidden,
        width,
        scale,
    } = shape;
    let lanes = S::F32_LANES;
    let padded = head.keys.len() / width;
    let n = head.values.len() / width.next_multiple_of(lanes);
    head.scores.resize(R * padded, 0.0);

    let mut query = [&[][..]; R];
    for (r, query) in query.iter_mut().enumerate() {
        *query = &queries[r * 3 * hidden..][..width];
    }
    let scale = simd.splat_f32s(scale);
    for (b, keys) in head.keys.chunks_exact(width * lanes).enumerate() {
        let (keys, _) = S::as_simd_f32s(keys);
        let mut sums = [simd.splat_f32s(0.0); R];
        for (d, keys) in keys.iter().enumerate() {
            for r in 0..R {
                sums[r] = simd.mul_add_f32s(simd.splat_f32s(query[r][d]), *keys, sums[r]);
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let (place, _) =
                S::as_mut_simd_f32s(&mut head.scores[r * padded + b * lanes..][..lanes]);
            place[0] = simd.mul_f32s(sums, scale);
        }
    }

    let mut totals = [0.0; R];
    for (scores, total) in head.scores.chunks_exact_mut(padded).zip(&mut totals) {
        let peak = math::max(&scores[..n]);
        for score in scores.iter_mut() {
            *score = math::exp(*score - peak);
        }
        *total = math::sum(&scores[..n], |weight| weight);
    }

    let mut weights = [&[][..]; R];
    for (r, weights) in weights.iter_mut().enumerate() {
        *weights = &head.scores[r * padded..][..n];
    }
    for (c, values) in head.values.chunks_exact(n * lanes).enumerate() {
        let (values, _) = S::as_simd_f32s(values);
        let mut sums = [simd.splat_f32s(0.0); R];
        for (j, values) in values.iter().enumerate() {
            for r in 0..R {
                sums[r] = simd.mul_add_f32s(simd.splat_f32s(weights[r][j]), *values, sums[r]);
            }
        }
        let used = lanes.min(width - c * lanes);
        for (r, sums) in sums.into_iter().enumerate() {
            let sums = simd.div_f32s(sums, simd.splat_f32s(totals[r]));
            simd.partial_store_f32s(&mut y[r][start + c * lanes..][..used], sums);
        }
    }
}

/// Threads split the heads, as forward.
fn backward_cpu(
    pass: &CpuPass<'_>,
    shape: Shape,
    qkv: &[f32],
    offsets: &[u32],
    dy: &[f32],
    dqkv: &mut [f32],
) {
    let Shape { hidden, width, .. } = shape;
    let cpu = pass.cpu;
    let heads = hidden / width;
    // Of each head and token the columns of dq, dk and dv, in this order.
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    parts.resize_with(heads, || Vec::with_capacity(dqkv.len() / hidden));
    for row in dqkv.chunks_exact_mut(3 * hidden) {
        for (c, part) in row.chunks_exact_mut(width).enumerate() {
            parts[c % heads].push(part);
        }
    }
    let lengths = offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
    let work = lengths.map(|n| 5 * n * n * width).sum();
    cpu.rows(&mut parts, 1, work, |first, parts| {
        let mut packed = Packed::default();
        for (i, parts) in parts.iter_mut().enumerate() {
            for pair in offsets.windows(2) {
                let (begin, end) = (pair[0] as usize, pair[1] as usize);
                cpu.dispatch(Differentiate {
                    shape,
                    qkv: &qkv[begin * 3 * hidden..end * 3 * hidden],
                    dy: &dy[begin * hidden..end * hidden],
                    column: (first + i) * width,
                    parts: &mut parts[3 * begin..3 * end],
                    packed: &mut packed,
                });
            }
        }
    });
}

/// The gradient of one head of one prompt.
struct Differentiate<'a, 'd> {
    shape: Shape,
    /// [n, 3H]
    qkv: &'a [f32],
    /// [n, H]
    dy: &'a [f32],
    /// The head's first.
    column: usize,
    /// [3n]: dq, dk and dv of each token.
    parts: &'a mut [&'d mut [f32]],
    packed: &'a mut Packed,
}

/// One head of one prompt in the order in which the loops read it; L is the number of lanes of a
/// vector.
#[derive(Default)]
struct Packed {
    /// [n / L][width][L]: L rows side by side, zeros past n.
    keys_beside: Vec<f32>,
    values_beside: Vec<f32>,
    /// [width / L][n][L]: L elements of a row, zeros past the width.
    queries: Vec<f32>,
    keys: Vec<f32>,
    dy: Vec<f32>,
    /// [n, n], n rounded up to whole tiles and vectors: softmax, and the gradient of the scores.
    p: Vec<f32>,
    ds: Vec<f32>,
}

impl WithSimd for Differentiate<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            shape,
            qkv,
            dy,
            column,
            parts,
            packed,
        } = self;
        let Shape {
            hidden,
            width,
            scale,
        } = shape;
        let lanes = S::F32_LANES;
        let n = parts.len() / 3;
        let columns = n.next_multiple_of(lanes);
        let query = |i: usize| &qkv[i * 3 * hidden + column..][..width];
        let key = |i: usize| &qkv[(i * 3 + 1) * hidden + column..][..width];
        let value = |i: usize| &qkv[(i * 3 + 2) * hidden + column..][..width];
        let dy = |i: usize| &dy[i * hidden + column..][..width];
        beside(&mut packed.keys_beside, lanes, n, width, key);
        beside(&mut packed.values_beside, lanes, n, width, value);
        along(&mut packed.queries, lanes, n, width, query);
        along(&mut packed.keys, lanes, n, width, key);
        along(&mut packed.dy, lanes, n, width, dy);

        // The last tile may read past its last column.
        let room = n.next_multiple_of(TOGETHER) * columns + TOGETHER;
        packed.p.resize(room, 0.0);
        packed.ds.resize(room, 0.0);
        for first in (0..n).step_by(TOGETHER) {
            let tile = first * columns..(first + TOGETHER) * columns;
            let row = |r: usize| (first + r).min(n - 1);
            let p = &mut packed.p[tile.clone()];
            products(simd, |r| query(row(r)), &packed.keys_beside, width, p);
            let ds = &mut packed.ds[tile];
            products(simd, |r| dy(row(r)), &packed.values_beside, width, ds);
        }
        let rows = packed.p.chunks_exact_mut(columns);
        for (p, dp) in rows.zip(packed.ds.chunks_exact_mut(columns)).take(n) {
            let (p, dp) = (&mut p[..n], &mut dp[..n]);
            let peak = math::max(p);
            for p in p.iter_mut() {
                *p = math::exp((*p - peak) * scale);
            }
            let whole = 1.0 / math::sum(p, |weight| weight);
            for p in p.iter_mut() {
                *p *= whole;
            }
            let mean = math::dot(p, dp);
            for (dp, p) in dp.iter_mut().zip(p) {
                *dp = *p * (*dp - mean) * scale;
            }
        }
        combine(simd, &packed.ds, (columns, 1), &packed.keys, parts, 0);
        combine(simd, &packed.ds, (1, columns), &packed.queries, parts, 1);
        combine(simd, &packed.p, (1, columns), &packed.dy, parts, 2);
    }
}

/// `out`: [n / L][width][L] of n rows.
#[inline(always)]
fn beside<'r>(
    out: &mut Vec<f32>,
    lanes: usize,
    n: usize,
    width: usize,
    row: impl Fn(usize) -> &'r [f32],
) {
    out.clear();
    out.resize(n.next_multiple_of(lanes) * width, 0.0);
    for (b, block) in out.chunks_exact_mut(width * lanes).enumerate() {
        for j in 0..lanes.min(n - b * lanes) {
            for (places, value) in block.chunks_exact_mut(lanes).zip(row(b * lanes + j)) {
                places[j] = *value;
            }
        }
    }
}

/// `out`: [width / L][n][L] of n rows.
#[inline(always)]
fn along<'r>(
    out: &mut Vec<f32>,
    lanes: usize,
    n: usize,
    width: usize,
    row: impl Fn(usize) -> &'r [f32],
) {
    out.clear();
    out.resize(width.next_multiple_of(lanes) * n, 0.0);
    for j in 0..n {
        for (c, values) in row(j).chunks(lanes).enumerate() {
            out[(c * n + j) * lanes..][..values.len()].copy_from_slice(values);
        }
    }
}

/// Products of [`TOGETHER`] rows with all those in `beside`, to `out`: [TOGETHER, n].
#[inline(always)]
fn products<'r, S: Simd>(
    simd: S,
    row: impl Fn(usize) -> &'r [f32],
    beside: &[f32],
    width: usize,
    out: &mut [f32],
) {
    let lanes = S::F32_LANES;
    let columns = out.len() / TOGETHER;
    let mut rows = [&[][..]; TOGETHER];
    for (r, place) in rows.iter_mut().enumerate() {
        *place = &row(r)[..width];
    }
    for (b, block) in beside.chunks_exact(width * lanes).enumerate() {
        let (block, _) = S::as_simd_f32s(block);
        let mut sums = [simd.splat_f32s(0.0); TOGETHER];
        for (d, block) in block.iter().enumerate() {
            for r in 0..TOGETHER {
                sums[r] = simd.mul_add_f32s(simd.splat_f32s(rows[r][d]), *block, sums[r]);
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let (place, _) = S::as_mut_simd_f32s(&mut out[r * columns + b * lanes..][..lanes]);
            place[0] = sums;
        }
    }
}

/// Gradient `part` of each token i: the sum over j of `weights[i * step.0 + j * step.1]` times row j
/// of `along`.
#[inline(always)]
fn combine<S: Simd>(
    simd: S,
    weights: &[f32],
    step: (usize, usize),
    along: &[f32],
    parts: &mut [&mut [f32]],
    part: usize,
) {
    let lanes = S::F32_LANES;
    let n = parts.len() / 3;
    for first in (0..n).step_by(TOGETHER) {
        for (c, values) in along.chunks_exact(n * lanes).enumerate() {
            let (values, _) = S::as_simd_f32s(values);
            let mut sums = [simd.splat_f32s(0.0); TOGETHER];
            for (j, values) in values.iter().enumerate() {
                let weights = &weights[first * step.0 + j * step.1..];
                let weights = &weights[..(TOGETHER - 1) * step.0 + 1];
                for r in 0..TOGETHER {
                    let weight = simd.splat_f32s(weights[r * step.0]);
                    sums[r] = simd.mul_add_f32s(weight, *values, sums[r]);
                }
            }
            for (r, sums) in sums.into_iter().enumerate().take(n - first) {
                let out = &mut parts[3 * (first + r) + part][c * lanes..];
                let used = lanes.min(out.len());
                simd.partial_store_f32s(&mut out[..used], sums);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::reference;
    use crate::ops::testing::{BOUND, assert_close, devices, finite_differences, noise, run, wide};

    fn check(lengths: &[usize], heads: usize, width: usize, gain: f32, bound: f64) {
        let hidden = heads * width;
        let offsets = offsets_of(lengths);
        let tokens: usize = lengths.iter().sum();
        let qkv: Vec<f32> = noise(tokens * 3 * hidden, 7)
            .iter()
            .map(|v| v * gain)
            .collect();
        let want = reference::attention(&wide(&qkv), &offsets, hidden, width);
        for device in devices() {
            let op = Attention::new(&device, width).unwrap();
            let qkv = device.upload("qkv", 3 * hidden, &qkv).unwrap();
            let rows = device.upload_ids("offsets", 1, &offsets).unwrap();
            let list = query_tiles(&offsets);
            let mut tiles = device.ids("tiles", list.len() / 2, 2).unwrap();
            let mut y = device.scratch("y", tokens, hidden).unwrap();
            let (read, outcome) = run(&device, |pass| {
                pass.upload(&mut tiles, &list);
                op.forward(
                    pass,
                    Forward {
                        qkv: &qkv,
                        offsets: &rows,
                        tiles: &tiles,
                        y: &mut y,
                    },
                );
                pass.read(&y)
            });
            assert_close("attention", outcome.f32(read), &want, bound);
        }
    }

    #[test]
    fn ragged_prompts_match_f64() {
        check(&[1], 1, 4, 1.0, BOUND);
        check(&[3, 1, 16, 17, 2], 3, 32, 1.0, BOUND);
        check(&[65, 7], 2, 64, 1.0, BOUND);
        check(&[130], 1, 5, 1.0, BOUND);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        check(&[33, 5], 2, 16, 30.0, 2e-4);
    }

    #[test]
    fn forward_matches_hand_values_v16() {
        // Q, K, V of the two real keys; the third row is masked there and absent here.
        let qkv = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 2.0];
        let want = [0.6697615, 0.6604769, 0.5, 1.0];
        for device in devices() {
            let op = Attention::new(&device, 2).unwrap();
            let qkv = device.upload("qkv", 6, &qkv).unwrap();
            let offsets = device.upload_ids("offsets", 1, &[0, 2]).unwrap();
            let mut tiles = device.ids("tiles", 1, 2).unwrap();
            let mut y = device.scratch("y", 2, 2).unwrap();
            let (read, outcome) = run(&device, |pass| {
                pass.upload(&mut tiles, &[0, 0]);
                op.forward(
                    pass,
                    Forward {
                        qkv: &qkv,
                        offsets: &offsets,
                        tiles: &tiles,
                        y: &mut y,
                    },
                );
                pass.read(&y)
            });
            assert_close("V16", outcome.f32(read), &want, 1e-6);
        }
    }

    /// Heads and width of a head, ragged prompts, and what `Backward` gives on each device.
    fn gradients(
        heads: usize,
        width: usize,
        offsets: &[u32],
        qkv: &[f32],
        dy: &[f32],
    ) -> Vec<Vec<f32>> {
        let hidden = heads * width;
        devices()
            .iter()
            .map(|device| {
                let op = Attention::new(device, width).unwrap();
                let qkv = device.upload("qkv", 3 * hidden, qkv).unwrap();
                let dy = device.upload("dy", hidden, dy).unwrap();
                let tiles = device
                    .upload_ids("tiles", 2, &query_tiles(offsets))
                    .unwrap();
                let offsets = device.upload_ids("offsets", 1, offsets).unwrap();
                let mut statistics = device.scratch("statistics", qkv.rows(), 3 * heads).unwrap();
                let mut dqkv = device.scratch("dqkv", qkv.rows(), 3 * hidden).unwrap();
                let (read, outcome) = run(device, |pass| {
                    op.backward(
                        pass,
                        Backward {
                            qkv: &qkv,
                            offsets: &offsets,
                            tiles: &tiles,
                            dy: &dy,
                            statistics: &mut statistics,
                            dqkv: &mut dqkv,
                        },
                    );
                    pass.read(&dqkv)
                });
                outcome.f32(read).to_vec()
            })
            .collect()
    }

    fn offsets_of(lengths: &[usize]) -> Vec<u32> {
        let mut offsets = vec![0u32];
        for length in lengths {
            offsets.push(offsets[offsets.len() - 1] + to_u32(*length));
        }
        offsets
    }

    fn check_gradients(lengths: &[usize], heads: usize, width: usize, gain: f32, bound: f64) {
        let (offsets, hidden) = (offsets_of(lengths), heads * width);
        let tokens: usize = lengths.iter().sum();
        let qkv: Vec<f32> = noise(tokens * 3 * hidden, 7)
            .iter()
            .map(|v| v * gain)
            .collect();
        let dy = noise(tokens * hidden, 14);
        let want = reference::attention_backward(&wide(&qkv), &offsets, hidden, width, &wide(&dy));
        let found = gradients(heads, width, &offsets, &qkv, &dy);
        for dqkv in &found {
            assert_close("attention backward", dqkv, &want, bound);
        }
        assert_eq!(found[0], found[1], "the number of threads changes bits");
        assert_eq!(found[2], found[3], "scratch is read before it is written");
    }

    #[test]
    fn gradients_of_ragged_prompts_match_f64() {
        check_gradients(&[1], 1, 4, 1.0, BOUND);
        check_gradients(&[3, 1, 16, 17, 2], 3, 32, 1.0, BOUND);
        check_gradients(&[65, 7], 2, 64, 1.0, BOUND);
        check_gradients(&[130], 1, 5, 1.0, BOUND);
    }

    #[test]
    fn gradients_of_large_scores_match_f64() {
        check_gradients(&[33, 5], 2, 16, 30.0, 2e-3);
    }

    #[test]
    fn gradients_match_differences() {
        let (heads, width, offsets) = (2, 5, offsets_of(&[7, 1, 9]));
        let hidden = heads * width;
        let (qkv, dy) = (noise(17 * 3 * hidden, 7), noise(17 * hidden, 14));
        let want = finite_differences(&wide(&qkv), |qkv| {
            let y = reference::attention(qkv, &offsets, hidden, width);
            reference::dot(&y, &wide(&dy))
        });
        for dqkv in gradients(heads, width, &offsets, &qkv, &dy) {
            assert_close("attention differences", &dqkv, &want, 1e-4);
        }
    }

    #[test]
    fn a_prompt_has_the_same_gradient_in_any_company() {
        let (heads, width) = (2, 16);
        let row = 3 * heads * width;
        let (qkv, dy) = (noise(50 * row, 7), noise(50 * row / 3, 14));
        let together = gradients(heads, width, &offsets_of(&[19, 27, 4]), &qkv, &dy);
        let middle = (&qkv[19 * row..46 * row], &dy[19 * row / 3..46 * row / 3]);
        let alone = gradients(heads, width, &[0, 27], middle.0, middle.1);
        for (together, alone) in together.iter().zip(&alone) {
            assert_eq!(together[19 * row..46 * row], *alone);
        }
    }

    #[test]
    fn backward_matches_hand_values_v16() {
        // Three queries see two keys there: the reference can, packed prompts cannot.
        let q = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        let (k, v) = ([1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0]);
        let dy = [1.0, 0.0, 0.0, 1.0, 1.0, -1.0];
        let [dq, dk, dv] = reference::head_backward(&q, &k, &v, &dy, 2);
        let given = [0.1563986, 0.0, -0.3535534, 0.0, 0.4691958, 0.0];
        assert_close("V16 dQ", &given, &dq, 1e-6);
        let given = [0.6255944, 0.1156424, -0.6255944, -0.1156424];
        assert_close("V16 dK", &given, &dk, 1e-6);
        let given = [1.3395231, -0.1697615, 0.6604769, 0.1697615];
        assert_close("V16 dV", &given, &dv, 1e-6);

        let qkv = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 2.0];
        let dy = [1.0, 0.0, 0.0, 1.0];
        let want = reference::attention_backward(&wide(&qkv), &[0, 2], 2, 2, &wide(&dy));
        for dqkv in gradients(1, 2, &[0, 2], &qkv, &dy) {
            let dq = [dqkv[0], dqkv[1], dqkv[6], dqkv[7]];
            assert_close("V16 dQ", &dq, &[0.1563986, 0.0, -0.3535534, 0.0], 1e-6);
            assert_close("V16 of two tokens", &dqkv, &want, 1e-6);
        }
    }
}
