//! Linear maps whose factors have low precision, bytes ([`Int8`]) or [`Bf16`], with sums of 32
//! bits.
//!
//! Both are packed alike, in lines of 64 bytes of which a product takes four bytes at a time: four
//! inputs in int8, two in bf16. `y = w sum_g s_g (acc_g - z_g sum_g) + bias`, g over the groups of
//! inputs in order; bf16 has no scales and no zero points. The operations behind the sums are
//! spelled with [`Wide`]. In int8 an output has the same bits whatever the kernel, the tile, the
//! thread or the number of rows, and in bf16 whatever the tile, the thread or the number of rows.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
mod bf16;
mod int8;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod rows;
#[cfg(target_arch = "x86_64")]
mod vnni;
pub(crate) mod wide;

use std::fmt;
use std::ops::Range;

pub(crate) use bf16::Bf16;
pub(crate) use int8::Int8;
pub(crate) use kernel::{Job, LowKernel};
pub(crate) use pack::{Arena, Linear};
pub(crate) use rows::Rows;
use wide::{Block, Wide};

/// Inputs that share a scale and a zero point, and whose products are summed at once.
pub(crate) const GROUP: usize = 384;

/// Outputs of a panel.
pub(crate) const PANEL: usize = 32;

/// Most rows of any kernel's tile.
const TALLEST: usize = 32;

/// Bytes that are loaded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct LowLine(pub(crate) [u8; 64]);

/// The sums of a tile: rows by the two halves of a panel.
#[derive(Clone, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Sums<T>([[[T; 16]; 2]; TALLEST]);

pub(crate) type SumsOf<N> = Sums<<N as Numbers>::Sum>;

/// Numbers of low precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LowFormat {
    Int8,
    Bf16,
}

impl fmt::Display for LowFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::Bf16 => "bf16",
        })
    }
}

/// The numbers of a product's factors: how f32 is rounded to them, and what is made of their sums.
pub(crate) trait Numbers: Copy + 'static {
    const FORMAT: LowFormat;

    /// Inputs of a line.
    const LINE: usize;

    /// Lines of a row that a group takes.
    const GROUP_LINES: usize = GROUP / Self::LINE;

    /// Whether a group of a row has a scale and a zero point.
    const HAS_SCALES: bool;

    /// A sum of products.
    type Sum: bytemuck::Pod + PartialEq + fmt::Debug;

    /// Blocks of a row, each a line: `inputs` filled up with zeros.
    fn blocks(inputs: usize) -> usize {
        inputs.div_ceil(Self::LINE)
    }

    /// Rounds the inputs of a group to its lines. Returns their scale and zero point.
    fn round<'l, W: Wide>(
        w: W,
        values: &[Block],
        lines: impl Iterator<Item = &'l mut LowLine>,
    ) -> [f32; 2];

    /// Rounds an output's weights to bytes. Returns what a step is worth.
    fn round_weights(row: &[f32], bytes: &mut [u8]) -> f32;

    /// A group's sums of a row in f32, of factors that are not scaled by output, and those of the
    /// groups before it. `scale`: of this row and group; `columns`: sums of weights over the group.
    fn add<W: Wide>(
        w: W,
        sums: &[[Self::Sum; 16]; 2],
        scale: [f32; 2],
        columns: &[Block; 2],
        before: Option<&[Block; 2]>,
    ) -> [W::F; 2];

    /// The reference: `sum` and the products of four bytes of activations and weights.
    fn dot_four(sum: Self::Sum, x: [u8; 4], w: [u8; 4]) -> Self::Sum;

    /// A line made of `bytes`; a few hundred products of such are summed exactly in any order.
    fn exact_line(bytes: [u8; 64]) -> LowLine;
}

impl<T: bytemuck::Pod> Sums<T> {
    fn new() -> Self {
        Self([[[T::zeroed(); 16]; 2]; TALLEST])
    }
}

/// The reference: `a` is [blocks][rows] lines of activations, `panel` [blocks][2][16] lines, each
/// of 16 outputs by four bytes; the first rows of `sums` become theirs.
pub(crate) fn dot<N: Numbers>(rows: usize, a: &[LowLine], panel: &[LowLine], sums: &mut SumsOf<N>) {
    sums.0[..rows].fill(Sums::<N::Sum>::new().0[0]);
    for (a, panel) in a.chunks_exact(rows).zip(panel.chunks_exact(PANEL)) {
        for (sums, a) in sums.0.iter_mut().zip(a) {
            for (half, panel) in panel.chunks_exact(16).enumerate() {
                for (x, line) in a.0.as_chunks::<4>().0.iter().zip(panel) {
                    for (sum, w) in sums[half].iter_mut().zip(line.0.as_chunks::<4>().0) {
                        *sum = N::dot_four(*sum, *x, *w);
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
    weights: (&Linear, &[LowLine]),
    panels: Range<usize>,
    mut sink: impl FnMut(usize, usize, W::F),
) {
    let (b, lines) = weights;
    let group_lines = W::Numbers::GROUP_LINES;
    let mut sums = Sums::new();
    let mut totals = [[[0.0; 16]; 2]; TALLEST];
    for panel in panels {
        let of_panel = b.panel(lines, panel);
        let (scale, bias) = (&b.scales[panel], &b.biases[panel]);
        for tile in tiles.clone() {
            let (first, count, of_tile) = a.tile(tile);
            let groups = b.groups();
            for group in 0..groups {
                let from = group * group_lines;
                let to = (from + group_lines).min(b.blocks());
                w.dot(
                    count,
                    &of_tile[from * count..to * count],
                    &of_panel[from * PANEL..to * PANEL],
                    &mut sums,
                );
                let columns = b.columns(panel, group);
                let of_rows = sums.0.iter().zip(&mut totals).take(count);
                for (r, (sums, totals)) in of_rows.enumerate() {
                    let row = a.scale(first + r, group);
                    let before = (group > 0).then_some(&*totals);
                    let sum = W::Numbers::add(w, sums, row, columns, before);
                    for v in 0..2 {
                        if group + 1 < groups {
                            totals[v] = w.store(sum[v]);
                        } else {
                            let y = w.mul_add(sum[v], w.load(&scale[v]), w.load(&bias[v]));
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
    use crate::error::{Result, error};

    const BOTH: [LowFormat; 2] = [LowFormat::Int8, LowFormat::Bf16];

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

    fn lines<N: Numbers>(bytes: &[u8]) -> Vec<LowLine> {
        let line = |chunk: &[u8; 64]| N::exact_line(*chunk);
        bytes.as_chunks::<64>().0.iter().map(line).collect()
    }

    /// Products of lines of bytes, compared with the reference.
    struct Products<'b> {
        rows: usize,
        a: &'b [u8],
        panel: &'b [u8],
    }

    impl Job for Products<'_> {
        type Output = ();

        #[inline(always)]
        fn run<W: Wide>(self, w: W) {
            check_products(w, self);
        }
    }

    fn check_products<W: Wide>(w: W, Products { rows, a, panel }: Products<'_>) {
        let (a, panel) = (lines::<W::Numbers>(a), lines::<W::Numbers>(panel));
        let mut untouched = Sums::new();
        bytemuck::bytes_of_mut(&mut untouched.0).fill(7);
        let (mut got, mut want) = (untouched.clone(), Sums::new());
        w.dot(rows, &a, &panel, &mut got);
        dot::<W::Numbers>(rows, &a, &panel, &mut want);
        assert_eq!(got.0[..rows], want.0[..rows], "{rows} rows");
        assert_eq!(got.0[rows..], untouched.0[rows..], "{rows} rows");
    }

    /// Most rows of a tile.
    struct Tall;

    impl Job for Tall {
        type Output = usize;

        #[inline(always)]
        fn run<W: Wide>(self, _: W) -> usize {
            W::TALL
        }
    }

    #[test]
    fn every_kernel_gives_the_reference_sums() {
        let extremes = [255u8, 129, 127, 0];
        for kernel in BOTH.map(LowKernel::available).concat() {
            for rows in 1..=kernel.run(Tall) {
                for blocks in [1, 2, 5, 6, 11, 12] {
                    let (of_a, of_panel) = (rows * blocks * 64, blocks * PANEL * 64);
                    let mut cases = vec![(bytes(of_a, 1), bytes(of_panel, 2))];
                    for x in extremes {
                        // 129 is -127 as a signed byte.
                        cases.extend([129, 127].map(|w| (vec![x; of_a], vec![w; of_panel])));
                    }
                    for (a, panel) in &cases {
                        kernel.run(Products { rows, a, panel });
                    }
                }
            }
        }
        let (a, panel) = (
            lines::<Int8>(&[255; 384]),
            lines::<Int8>(&[129; 384 * PANEL]),
        );
        let mut sums = Sums::new();
        dot::<Int8>(1, &a, &panel, &mut sums);
        assert_eq!(sums.0[0], [[255 * -127 * 384; 16]; 2]);
        // 32 inputs a line, of 127 / 16 and -127 / 16.
        let (a, panel) = (
            lines::<Bf16>(&[127; 64 * 6]),
            lines::<Bf16>(&[129; 64 * 6 * PANEL]),
        );
        let mut sums = Sums::new();
        dot::<Bf16>(1, &a, &panel, &mut sums);
        assert_eq!(sums.0[0], [[-127.0 * 127.0 / 256.0 * 192.0; 16]; 2]);
    }

    /// A map applied to rows of f32.
    struct Apply<'a> {
        x: &'a [f32],
        inputs: usize,
        map: &'a Linear,
        lines: &'a [LowLine],
        y: &'a mut [f32],
        outputs: usize,
    }

    impl Job for Apply<'_> {
        type Output = ();

        #[inline(always)]
        fn run<W: Wide>(self, w: W) {
            let mut rows = Rows::default();
            rows.reset::<W>(self.x.len() / self.inputs, self.map.blocks());
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

    /// `x` [rows][inputs] rounded as a kernel does, in f64.
    fn rounded_rows(format: LowFormat, x: &[f32], inputs: usize) -> Vec<f64> {
        let groups = x.chunks_exact(inputs).flat_map(|row| row.chunks(GROUP));
        let rounded = groups.flat_map(|group| {
            let low = group.iter().copied().fold(0.0, f32::min);
            let high = group.iter().copied().fold(0.0, f32::max);
            let scale = ((high - low) / 255.0).max(1e-12);
            let zero = (-low * (1.0 / scale)).round_ties_even();
            group.iter().map(move |x| match format {
                LowFormat::Int8 => {
                    let byte = x.mul_add(1.0 / scale, zero).round_ties_even();
                    f64::from(byte.clamp(0.0, 255.0) - zero) * f64::from(scale)
                }
                LowFormat::Bf16 => rounded_half(*x),
            })
        });
        rounded.collect()
    }

    /// To 8 bits, in f64, where every step is exact.
    fn rounded_half(x: f32) -> f64 {
        let x = f64::from(x);
        let step = x.abs().max(1e-30).log2().floor().exp2() / 128.0;
        (x / step).round_ties_even() * step
    }

    /// The map in f64 of inputs and weights that were rounded in f64 as well, and the size of an
    /// output: sum |x w|.
    fn reference(
        format: LowFormat,
        x: &[f32],
        w: &[f32],
        bias: &[f32],
        inputs: usize,
    ) -> Vec<(f64, f64)> {
        let rounded = rounded_rows(format, x, inputs);
        let mut y = Vec::new();
        for x in rounded.chunks_exact(inputs) {
            for (w, bias) in w.chunks_exact(inputs).zip(bias) {
                let scale = w.iter().fold(0.0f32, |most, w| most.max(w.abs())) / 127.0;
                let step = |w: &f32| match format {
                    LowFormat::Int8 => {
                        f64::from((w * (1.0 / scale)).round_ties_even()) * f64::from(scale)
                    }
                    LowFormat::Bf16 => rounded_half(*w),
                };
                let products = x.iter().zip(w).map(|(x, w)| x * step(w));
                let (sum, size) = products.fold((0.0, 0.0), |(sum, size), product| {
                    (sum + product, size + product.abs())
                });
                y.push((sum + f64::from(*bias), size));
            }
        }
        y
    }

    /// Packs for the numbers of `format`.
    fn pack(
        format: LowFormat,
        cpu: &Cpu,
        inputs: usize,
        outputs: usize,
        read: impl Fn(usize, &mut [f32]) -> Result<(f32, f32)> + Sync,
    ) -> Result<(Arena, Linear)> {
        let lines = match format {
            LowFormat::Int8 => Linear::size::<Int8>(inputs, outputs),
            LowFormat::Bf16 => Linear::size::<Bf16>(inputs, outputs),
        };
        let mut arena = Arena::new(lines);
        let map = match format {
            LowFormat::Int8 => Linear::pack::<Int8>(cpu, &mut arena, inputs, outputs, read),
            LowFormat::Bf16 => Linear::pack::<Bf16>(cpu, &mut arena, inputs, outputs, read),
        }?;
        Ok((arena, map))
    }

    /// In int8 bit for bit between kernels as well.
    #[test]
    fn maps_of_every_shape_agree_with_f64() {
        let cpu = Cpu::open(Some(2)).expect("a pool");
        let few = [1, 2, 3, 5, 7, 14, 15, 29, 40];
        for (inputs, outputs, counts) in [
            (384, 64, &(1..=40).collect::<Vec<usize>>()[..]),
            (40, 72, &few),
            (36, 50, &few),
            (50, 36, &few),
            (1, 1, &few),
            (33, 5, &few),
            (1000, 33, &few),
            (1536, 96, &few),
        ] {
            let (w, bias) = (noise(inputs * outputs, 3), noise(outputs, 4));
            for format in BOTH {
                let packed = pack(format, &cpu, inputs, outputs, |output, row| {
                    row[..inputs].copy_from_slice(&w[output * inputs..][..inputs]);
                    Ok((bias[output], 1.0))
                });
                let (arena, map) = packed.expect("good weights");
                for rows in counts {
                    let x = noise(rows * inputs, 5);
                    let want = reference(format, &x, &w, &bias, inputs);
                    let mut first: Option<Vec<f32>> = None;
                    for kernel in LowKernel::available(format) {
                        let mut y = vec![f32::NAN; rows * outputs];
                        kernel.run(Apply {
                            x: &x,
                            inputs,
                            map: &map,
                            lines: arena.lines(),
                            y: &mut y,
                            outputs,
                        });
                        for (y, (want, size)) in y.iter().zip(&want) {
                            let error = (f64::from(*y) - want).abs();
                            let bound = match format {
                                LowFormat::Int8 => 1e-4 * (1.0 + want.abs()),
                                // Of factors that are rounded already, sums in f32 alone.
                                LowFormat::Bf16 => 1e-5 * size + 1e-7,
                            };
                            assert!(error < bound, "{format}, {kernel}: {error}");
                        }
                        let first = first.get_or_insert_with(|| y.clone());
                        if format == LowFormat::Int8 {
                            assert_eq!(*first, y, "{kernel}, {rows}");
                        }
                    }
                }
            }
        }
    }

    /// Of f32 that is not rounded: each factor moves by 2^-9 of itself at most.
    #[test]
    fn bf16_is_within_its_rounding_of_f64() {
        let cpu = Cpu::open(Some(1)).expect("a pool");
        let (inputs, outputs, rows) = (1536, 40, 17);
        let (x, w) = (noise(rows * inputs, 6), noise(inputs * outputs, 7));
        let packed = pack(LowFormat::Bf16, &cpu, inputs, outputs, |output, row| {
            row.copy_from_slice(&w[output * inputs..][..inputs]);
            Ok((0.0, 1.0))
        });
        let (arena, map) = packed.expect("good weights");
        for kernel in LowKernel::available(LowFormat::Bf16) {
            let mut y = vec![f32::NAN; rows * outputs];
            kernel.run(Apply {
                x: &x,
                inputs,
                map: &map,
                lines: arena.lines(),
                y: &mut y,
                outputs,
            });
            let mut worst = 0.0f64;
            for (y, x) in y.chunks_exact(outputs).zip(x.chunks_exact(inputs)) {
                for (y, w) in y.iter().zip(w.chunks_exact(inputs)) {
                    let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (sum, size) = products.fold((0.0, 0.0), |(sum, size), product| {
                        (sum + product, size + product.abs())
                    });
                    worst = worst.max((f64::from(*y) - sum).abs() / size);
                }
            }
            assert!(worst < 2f64.powi(-8), "{kernel}: {worst}");
            // More than f32 would have: it was rounded.
            assert!(worst > 2f64.powi(-17), "{kernel}: {worst}");
        }
    }

    #[test]
    fn bf16_of_one_kernel_is_the_same_for_any_number_of_rows() {
        let cpu = Cpu::open(Some(1)).expect("a pool");
        let (inputs, outputs, most) = (1000, 70, 40);
        let (x, w) = (noise(most * inputs, 8), noise(inputs * outputs, 9));
        let packed = pack(LowFormat::Bf16, &cpu, inputs, outputs, |output, row| {
            row[..inputs].copy_from_slice(&w[output * inputs..][..inputs]);
            Ok((0.5, 3.0))
        });
        let (arena, map) = packed.expect("good weights");
        for kernel in LowKernel::available(LowFormat::Bf16) {
            let apply = |first: usize, rows: usize| {
                let mut y = vec![f32::NAN; rows * outputs];
                kernel.run(Apply {
                    x: &x[first * inputs..][..rows * inputs],
                    inputs,
                    map: &map,
                    lines: arena.lines(),
                    y: &mut y,
                    outputs,
                });
                y
            };
            let all = apply(0, most);
            for (first, rows) in [(0, 1), (39, 1), (3, 2), (20, 17), (7, 33)] {
                assert!(
                    apply(first, rows) == all[first * outputs..][..rows * outputs],
                    "{kernel}"
                );
            }
        }
    }

    #[test]
    fn rows_of_zeros_and_of_one_sign_keep_their_zero() {
        let cpu = Cpu::open(Some(1)).expect("a pool");
        for format in BOTH {
            let packed = pack(format, &cpu, 64, 1, |_, row| {
                row.fill(0.5);
                Ok((0.25, 2.0))
            });
            let (arena, map) = packed.expect("good weights");
            for (value, want) in [(0.0, 0.5), (1.0, 64.5), (-1.0, -63.5)] {
                for kernel in LowKernel::available(format) {
                    let mut y = [f32::NAN];
                    kernel.run(Apply {
                        x: &[value; 64],
                        inputs: 64,
                        map: &map,
                        lines: arena.lines(),
                        y: &mut y,
                        outputs: 1,
                    });
                    let error = (y[0] - want).abs();
                    assert!(error < 1e-4, "{format}, {kernel}: {value}: {}", y[0]);
                }
            }
        }
    }

    #[test]
    fn an_output_that_cannot_be_read_is_an_error() {
        for (threads, format) in [
            (1, LowFormat::Int8),
            (2, LowFormat::Int8),
            (2, LowFormat::Bf16),
        ] {
            let cpu = Cpu::open(Some(threads)).expect("a pool");
            let packed = pack(format, &cpu, 384, 96, |output, _| match output {
                40 | 70 => Err(error!(Numeric, "output {output}")),
                _ => Ok((0.0, 1.0)),
            });
            let error = packed.err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| error.contains("output 40")));
        }
    }
}
