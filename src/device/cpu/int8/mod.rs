//! Linear maps of bytes: activations of 8 bits with a zero point for each row and [`GROUP`] inputs,
//! weights of 8 bits with a scale for each output, exact sums in i32.
//!
//! `y = w sum_g s_g (acc_g - z_g sum_g) + bias`, g over the groups of inputs in order. A sum is
//! below 2^24, so it is exact in f32 as well, and the operations behind it are spelled with
//! [`Wide`]: an output has the same bits whatever the kernel, the tile, the thread or the number of
//! rows.

pub(crate) mod attention;
mod pack;
mod rows;
mod vnni;
pub(crate) mod wide;

use std::fmt;
use std::ops::Range;

use pulp::NullaryFnOnce;

pub(crate) use pack::{Arena, Linear};
pub(crate) use rows::Rows;
#[cfg(target_arch = "x86_64")]
use wide::{Avx2, Avx512};
use wide::{Block, Scalar, Wide};

/// Inputs that share a scale and a zero point.
pub(crate) const GROUP: usize = 384;

/// Lines of a panel that a group takes.
const GROUP_BLOCKS: usize = GROUP / 64;

/// Outputs of a panel.
pub(crate) const PANEL: usize = 32;

/// Most rows of any kernel's tile.
const TALLEST: usize = 14;

/// Bytes that are loaded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct ByteLine(pub(crate) [u8; 64]);

/// The sums of a tile: rows by the two halves of a panel.
pub(crate) type Sums = [[[i32; 16]; 2]; TALLEST];

/// How products of bytes are computed.
#[derive(Clone, Copy)]
pub(crate) enum ByteKernel {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// The reference of the others.
    Scalar,
}

/// Code that is compiled for a kernel's SIMD level.
pub(crate) trait Job {
    type Output;

    /// To be marked `#[inline(always)]`, with all that it calls.
    fn run<W: Wide>(self, w: W) -> Self::Output;
}

/// A job with its level, as `pulp` takes it.
struct JobAt<J, W>(J, W);

impl<J: Job, W: Wide> NullaryFnOnce for JobAt<J, W> {
    type Output = J::Output;

    #[inline(always)]
    fn call(self) -> J::Output {
        self.0.run(self.1)
    }
}

impl ByteKernel {
    /// Those that this machine runs, the fastest first.
    pub(crate) fn available() -> Vec<Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            kernels.extend(Avx512::detect().map(Self::Avx512));
            kernels.extend(Avx2::detect().map(Self::Avx2));
        }
        kernels.push(Self::Scalar);
        kernels
    }

    /// The fastest kernel of this CPU that gives the reference's sums, and why it is that; `None`:
    /// the CPU has no instruction for products of bytes, or one that is wrong.
    pub(crate) fn detect() -> (Option<Self>, String) {
        let mut wrong = String::new();
        for kernel in Self::available() {
            if matches!(kernel, Self::Scalar) {
                break;
            }
            if kernel.is_right() {
                return (
                    Some(kernel),
                    format!("{wrong}{kernel}: the reference's sums"),
                );
            }
            log::warn!("int8: {kernel} does not give the reference's sums on this machine");
            wrong.push_str(&format!("{kernel}: not the reference's sums; "));
        }
        let none = "a CPU without AVX-512 VNNI and AVX-VNNI";
        match wrong.strip_suffix("; ") {
            Some(wrong) => (None, wrong.to_owned()),
            None => (None, none.to_owned()),
        }
    }

    /// As [`ByteKernel::detect`], the reference itself where no other is right.
    pub(crate) fn right() -> Option<Self> {
        Self::available()
            .into_iter()
            .find(|kernel| kernel.is_right())
    }

    /// Whether a small product is the reference's.
    fn is_right(self) -> bool {
        let line = |seed: usize| {
            let mut line = ByteLine([0; 64]);
            for (i, byte) in line.0.iter_mut().enumerate() {
                *byte = (seed * 131 + i * 37).to_le_bytes()[0];
            }
            line
        };
        (1..=self.tall()).all(|rows| {
            let a: Vec<ByteLine> = (0..2 * rows).map(line).collect();
            let panel: Vec<ByteLine> = (7..7 + 2 * PANEL).map(line).collect();
            let (mut got, mut want) = ([[[0; 16]; 2]; TALLEST], [[[0; 16]; 2]; TALLEST]);
            self.dot(rows, &a, &panel, &mut got);
            dot(rows, &a, &panel, &mut want);
            got == want
        })
    }

    /// Most rows of a register tile.
    pub(crate) fn tall(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Avx512::TALL,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => Avx2::TALL,
            Self::Scalar => Scalar::TALL,
        }
    }

    fn dot(self, rows: usize, a: &[ByteLine], panel: &[ByteLine], sums: &mut Sums) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(level) => level.dot(rows, a, panel, sums),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(level) => level.dot(rows, a, panel, sums),
            Self::Scalar => Scalar.dot(rows, a, panel, sums),
        }
    }

    /// Runs `job` at this kernel's level.
    pub(crate) fn run<J: Job>(self, job: J) -> J::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(level) => level.simd.vectorize(JobAt(job, level)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(level) => level.simd.vectorize(JobAt(job, level)),
            Self::Scalar => job.run(Scalar),
        }
    }
}

impl fmt::Display for ByteKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "AVX-VNNI",
            Self::Scalar => "scalar",
        })
    }
}

/// The reference: `a` is [blocks][rows] lines of activations, `panel` [blocks][2][16] lines, each
/// of 16 outputs by 4 inputs; `sums` becomes [rows][2][16].
pub(crate) fn dot(rows: usize, a: &[ByteLine], panel: &[ByteLine], sums: &mut Sums) {
    *sums = [[[0; 16]; 2]; TALLEST];
    for (a, panel) in a.chunks_exact(rows).zip(panel.chunks_exact(PANEL)) {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (half, panel) in panel.chunks_exact(16).enumerate() {
                for (x, line) in a.0.chunks_exact(4).zip(panel) {
                    for (sum, w) in sums[half].iter_mut().zip(line.0.chunks_exact(4)) {
                        let products = x.iter().zip(w);
                        *sum += products
                            .map(|(x, w)| i32::from(*x) * i32::from(w.cast_signed()))
                            .sum::<i32>();
                    }
                }
            }
        }
    }
}

/// The outputs `panels` of the rows of the tiles `tiles`, handed to `sink(row, column, values)` in
/// sixteens; a column is counted from the first of all panels.
#[inline(always)]
pub(crate) fn multiply<W: Wide>(
    w: W,
    a: &Rows,
    tiles: Range<usize>,
    weights: (&Linear, &[ByteLine]),
    panels: Range<usize>,
    mut sink: impl FnMut(usize, usize, W::F),
) {
    let (b, lines) = weights;
    let mut sums: Sums = [[[0; 16]; 2]; TALLEST];
    let mut totals = [[[0.0; 16]; 2]; TALLEST];
    for panel in panels {
        let of_panel = b.panel(lines, panel);
        let (scale, bias) = (&b.scales[panel], &b.biases[panel]);
        for tile in tiles.clone() {
            let (first, count, of_tile) = a.tile(tile);
            let groups = b.groups();
            for group in 0..groups {
                let from = group * GROUP_BLOCKS;
                let to = (from + GROUP_BLOCKS).min(b.blocks());
                w.dot(
                    count,
                    &of_tile[from * count..to * count],
                    &of_panel[from * PANEL..to * PANEL],
                    &mut sums,
                );
                let of_group = &b.sums[panel * groups + group];
                for r in 0..count {
                    let [s, z] = a.scale(first + r, group);
                    let (s, z) = (w.splat(s), w.splat(z));
                    for v in 0..2 {
                        let sum = w.widen(&sums[r][v]);
                        let exact = w.neg_mul_add(z, w.load(&of_group[v]), sum);
                        let total = match group {
                            0 => w.mul(exact, s),
                            _ => w.mul_add(exact, s, w.load(&totals[r][v])),
                        };
                        if group + 1 < groups {
                            totals[r][v] = w.store(total);
                        } else {
                            let y = w.mul_add(total, w.load(&scale[v]), w.load(&bias[v]));
                            sink(first + r, panel * PANEL + v * 16, y);
                        }
                    }
                }
            }
        }
    }
}

/// Sixteens that hold `n` numbers.
pub(crate) fn sixteens(n: usize) -> usize {
    n.div_ceil(16)
}

/// `values` in sixteens, the last filled up with zeros.
pub(crate) fn blocks(values: &[f32]) -> Vec<Block> {
    let mut out = vec![[0.0; 16]; sixteens(values.len())];
    for (out, values) in out.iter_mut().zip(values.chunks(16)) {
        out[..values.len()].copy_from_slice(values);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::error::error;

    /// Bytes that look random.
    pub(super) fn bytes(count: usize, seed: u32) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        };
        (0..count).map(|_| next()).collect()
    }

    /// Numbers between -1 and 1 that look random.
    pub(super) fn noise(count: usize, seed: u32) -> Vec<f32> {
        let two = |pair: &[u8]| f32::from(u16::from_le_bytes([pair[0], pair[1]])) / 32_768.0 - 1.0;
        bytes(2 * count, seed).chunks_exact(2).map(two).collect()
    }

    fn lines(bytes: &[u8]) -> Vec<ByteLine> {
        let line = |chunk: &[u8; 64]| ByteLine(*chunk);
        bytes.as_chunks::<64>().0.iter().map(line).collect()
    }

    #[test]
    fn every_kernel_gives_the_reference_sums() {
        let extremes = [255u8, 129, 127, 0];
        for kernel in ByteKernel::available() {
            for rows in 1..=kernel.tall() {
                for blocks in 1..=GROUP_BLOCKS {
                    let (of_a, of_panel) = (rows * blocks * 64, blocks * PANEL * 64);
                    let mut cases = vec![(bytes(of_a, 1), bytes(of_panel, 2))];
                    for x in extremes {
                        // 129 is -127 as a signed byte.
                        cases.extend([129, 127].map(|w| (vec![x; of_a], vec![w; of_panel])));
                    }
                    for (a, panel) in cases {
                        let (a, panel) = (lines(&a), lines(&panel));
                        let (mut got, mut want) =
                            ([[[7; 16]; 2]; TALLEST], [[[0; 16]; 2]; TALLEST]);
                        kernel.dot(rows, &a, &panel, &mut got);
                        dot(rows, &a, &panel, &mut want);
                        assert_eq!(got[..rows], want[..rows], "{kernel}, {rows} rows");
                    }
                }
            }
        }
        let (a, panel) = (lines(&[255; 384]), lines(&[129; 384 * PANEL]));
        let mut sums = [[[0; 16]; 2]; TALLEST];
        dot(1, &a, &panel, &mut sums);
        assert_eq!(sums[0], [[255 * -127 * 384; 16]; 2]);
    }

    /// A map of bytes applied to rows of f32.
    struct Apply<'a> {
        x: &'a [f32],
        inputs: usize,
        map: &'a Linear,
        lines: &'a [ByteLine],
        y: &'a mut [f32],
        outputs: usize,
    }

    impl Job for Apply<'_> {
        type Output = ();

        #[inline(always)]
        fn run<W: Wide>(self, w: W) {
            let mut rows = Rows::default();
            rows.reset(self.x.len() / self.inputs, self.map.blocks(), W::TALL);
            for (r, x) in self.x.chunks_exact(self.inputs).enumerate() {
                for (group, values) in x.chunks(GROUP).enumerate() {
                    rows.put(w, r, group, &blocks(values));
                }
            }
            let all = (0..rows.tiles(), 0..self.map.panels());
            multiply(w, &rows, all.0, (self.map, self.lines), all.1, |r, c, y| {
                for (i, y) in w.store(y).into_iter().enumerate() {
                    if c + i < self.outputs {
                        self.y[r * self.outputs + c + i] = y;
                    }
                }
            });
        }
    }

    /// The map in f64, of inputs and weights that were rounded to bytes in f64 as well.
    fn reference(x: &[f32], w: &[f32], bias: &[f32], inputs: usize) -> Vec<f64> {
        let rounded: Vec<f64> = x
            .chunks_exact(inputs)
            .flat_map(|row| row.chunks(GROUP))
            .flat_map(|group| {
                let low = group.iter().copied().fold(0.0, f32::min);
                let high = group.iter().copied().fold(0.0, f32::max);
                let scale = ((high - low) / 255.0).max(1e-12);
                let zero = (-low * (1.0 / scale)).round_ties_even();
                let step = move |x: &f32| {
                    let byte = x.mul_add(1.0 / scale, zero).round_ties_even();
                    byte.clamp(0.0, 255.0) - zero
                };
                group
                    .iter()
                    .map(move |x| f64::from(step(x)) * f64::from(scale))
            })
            .collect();
        let mut y = Vec::new();
        for x in rounded.chunks_exact(inputs) {
            for (w, bias) in w.chunks_exact(inputs).zip(bias) {
                let scale = w.iter().fold(0.0f32, |most, w| most.max(w.abs())) / 127.0;
                let step = |w: &f32| (w * (1.0 / scale)).round_ties_even();
                let products = x.iter().zip(w).map(|(x, w)| x * f64::from(step(w)));
                y.push(products.sum::<f64>() * f64::from(scale) + f64::from(*bias));
            }
        }
        y
    }

    #[test]
    fn maps_of_every_shape_agree_with_f64_and_bit_for_bit_between_kernels() {
        let cpu = Cpu::open(Some(2)).expect("a pool");
        let few = [1, 2, 3, 5, 7, 14, 15, 29, 40];
        for (inputs, outputs, counts) in [
            (384, 64, &(1..=40).collect::<Vec<usize>>()[..]),
            (40, 72, &few),
            (36, 50, &few),
            (50, 36, &few),
            (1, 1, &few),
            (1000, 33, &few),
            (1536, 96, &few),
        ] {
            let (w, bias) = (noise(inputs * outputs, 3), noise(outputs, 4));
            let mut arena = Arena::new(Linear::size(inputs, outputs)).expect("a map");
            let map = Linear::pack(&cpu, &mut arena, inputs, outputs, |output, row| {
                row[..inputs].copy_from_slice(&w[output * inputs..][..inputs]);
                Ok((bias[output], 1.0))
            });
            let map = map.expect("good weights");
            for rows in counts {
                let x = noise(rows * inputs, 5);
                let want = reference(&x, &w, &bias, inputs);
                let mut first: Option<Vec<f32>> = None;
                for kernel in ByteKernel::available() {
                    let mut y = vec![f32::NAN; rows * outputs];
                    kernel.run(Apply {
                        x: &x,
                        inputs,
                        map: &map,
                        lines: arena.lines(),
                        y: &mut y,
                        outputs,
                    });
                    for (y, want) in y.iter().zip(&want) {
                        let error = (f64::from(*y) - want).abs();
                        assert!(error < 1e-4 * (1.0 + want.abs()), "{kernel}: {error}");
                    }
                    assert_eq!(
                        *first.get_or_insert_with(|| y.clone()),
                        y,
                        "{kernel}, {rows}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_of_zeros_and_of_one_sign_keep_their_zero() {
        let cpu = Cpu::open(Some(1)).expect("a pool");
        let mut arena = Arena::new(Linear::size(64, 1)).expect("a map");
        let map = Linear::pack(&cpu, &mut arena, 64, 1, |_, row| {
            row.fill(0.5);
            Ok((0.25, 2.0))
        });
        let map = map.expect("good weights");
        for (value, want) in [(0.0, 0.5), (1.0, 64.5), (-1.0, -63.5)] {
            for kernel in ByteKernel::available() {
                let mut y = [f32::NAN];
                kernel.run(Apply {
                    x: &[value; 64],
                    inputs: 64,
                    map: &map,
                    lines: arena.lines(),
                    y: &mut y,
                    outputs: 1,
                });
                assert!((y[0] - want).abs() < 1e-4, "{kernel}: {value}: {}", y[0]);
            }
        }
    }

    #[test]
    fn an_output_that_cannot_be_read_is_an_error() {
        for threads in [1, 2] {
            let cpu = Cpu::open(Some(threads)).expect("a pool");
            let mut arena = Arena::new(Linear::size(384, 96)).expect("a map");
            let map = Linear::pack(&cpu, &mut arena, 384, 96, |output, _| match output {
                40 | 70 => Err(error!(Numeric, "output {output}")),
                _ => Ok((0.0, 1.0)),
            });
            let error = map.err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| error.contains("output 40")));
        }
    }
}
