//! Attention within each prompt and head: qkv [T, 3H], offsets -> y [T, H].

use pulp::{Simd, WithSimd};

use crate::device::cpu::{Tile, math};
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, shader, small};
use crate::error::{Result, bail};

const SHADER: Shader = shader!("attention");

/// Query rows of one workgroup.
pub(crate) const QUERIES: usize = 16;

/// Keys that the shader stages at a time.
const KEYS: usize = 8;

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
            tiles.extend([first, small(prompt)]);
        }
    }
    tiles
}

pub(crate) struct Attention {
    forward: Kernel,
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

impl Attention {
    /// `width`: elements of a head.
    pub(crate) fn new(device: &Device, width: usize) -> Result<Self> {
        if let Device::Gpu(gpu) = device {
            let scratch = 4 * (2 * QUERIES * width + 2 * KEYS * width + QUERIES * KEYS);
            if scratch > gpu.most_scratch() as usize {
                bail!(
                    Limits,
                    "{}: attention with heads of {width}: needs {scratch} bytes of workgroup memory, the adapter allows {}",
                    gpu.name(),
                    gpu.most_scratch()
                );
            }
        }
        let forward = device.kernel(&SHADER, "forward", &[("WIDTH", width as f64)])?;
        Ok(Self { forward, width })
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
                [small(f.tiles.rows()), small(hidden / self.width), 1],
                &Dims {
                    hidden: small(hidden),
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::reference;
    use crate::ops::testing::{BOUND, assert_close, devices, noise, run, wide};

    fn check(lengths: &[usize], heads: usize, width: usize, gain: f32, bound: f64) {
        let hidden = heads * width;
        let mut offsets = vec![0u32];
        for length in lengths {
            offsets.push(offsets[offsets.len() - 1] + small(*length));
        }
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
    fn v16() {
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
}
