//! The CPU's attention: each thread takes some heads, and loops over the prompts.
//!
//! A head's rows are first packed in the order in which the loops read them; queries then go
//! through the keys and values a few at a time, whose sums stay in registers.

use pulp::{Simd, WithSimd};

use crate::device::CpuPass;
use crate::device::cpu::{Tile, math};

#[derive(Clone, Copy)]
pub(super) struct HeadShape {
    pub(super) hidden: usize,
    pub(super) width: usize,
    pub(super) scale: f32,
}

/// Threads split the heads, so a single prompt is shared between them.
pub(super) fn forward(
    pass: &CpuPass<'_>,
    shape: HeadShape,
    qkv: &[f32],
    offsets: &[u32],
    y: &mut [f32],
) {
    let cpu = pass.cpu;
    let lengths = offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
    let work = lengths.map(|n| 2 * n * n * shape.hidden).sum();
    cpu.tiles(y, shape.hidden, usize::MAX, shape.width, work, |tile| {
        let Tile {
            first_column,
            mut rows,
            ..
        } = tile;
        let mut head = ForwardHead::default();
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
    shape: HeadShape,
    /// [n, 3H], the whole prompt.
    qkv: &'a [f32],
    /// The column that the parts of the rows begin with.
    first_column: usize,
    /// [n], of each row the columns of these heads.
    rows: &'a mut [&'y mut [f32]],
    head: &'a mut ForwardHead,
}

/// Keys and values of one head of one prompt, in the order in which the loops read them; L is
/// the number of lanes of a vector.
#[derive(Default)]
struct ForwardHead {
    /// [n / L][width][L]: L keys side by side, zeros past n.
    keys: Vec<f32>,
    /// [width / L][n][L]: L elements of a value, zeros past the width.
    values: Vec<f32>,
    /// [queries][n / L][L]
    scores: Vec<f32>,
}

impl ForwardHead {
    #[inline(always)]
    fn load(&mut self, lanes: usize, shape: HeadShape, qkv: &[f32], start: usize) {
        let HeadShape { hidden, width, .. } = shape;
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
    shape: HeadShape,
    queries: &[f32],
    y: &mut [&mut [f32]],
    start: usize,
    head: &mut ForwardHead,
) {
    let HeadShape {
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
pub(super) fn backward(
    pass: &CpuPass<'_>,
    shape: HeadShape,
    qkv: &[f32],
    offsets: &[u32],
    dy: &[f32],
    dqkv: &mut [f32],
) {
    let HeadShape { hidden, width, .. } = shape;
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
        let mut packed = BackwardHead::default();
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
    shape: HeadShape,
    /// [n, 3H]
    qkv: &'a [f32],
    /// [n, H]
    dy: &'a [f32],
    /// The head's first.
    column: usize,
    /// [3n]: dq, dk and dv of each token.
    parts: &'a mut [&'d mut [f32]],
    packed: &'a mut BackwardHead,
}

/// One head of one prompt in the order in which the loops read it; L is the number of lanes of a
/// vector.
#[derive(Default)]
struct BackwardHead {
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
        let HeadShape {
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

/// Gradient `part` of each token i: the sum over j of `weights[i * step.0 + j * step.1]` times row
/// j of `along`.
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
