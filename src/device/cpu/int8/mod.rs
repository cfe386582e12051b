//! Linear maps of bytes: activations of 8 bits with a zero point for each row and [`GROUP`] inputs,
//! weights of 8 bits with a scale for each output, exact sums in i32.
//!
//! `y = w sum_g s_g (acc_g - z_g sum_g) + bias`, g over the groups of inputs in order. A sum is
//! below 2^24, so it is exact in f32 as well, and the operations behind it are spelled with
//! [`Wide`]: an output has the same bits whatever the kernel, the tile, the thread or the number of
//! rows.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub(crate) mod attention;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod rows;
#[cfg(target_arch = "x86_64")]
mod vnni;
pub(crate) mod wide;

use std::fmt;
use std::ops::Range;

pub(crate) use pack::{Arena, Linear};
pub(crate) use rows::Rows;
#[cfg(target_arch = "aarch64")]
use wide::Neon;
#[cfg(target_arch = "x86_64")]
use wide::{Avx2, Avx512};
use wide::{Block, Plain, Scalar, Wide};

/// Inputs that share a scale and a zero point.
pub(crate) const GROUP: usize = 384;

/// Lines of a panel that a group takes.
const GROUP_BLOCKS: usize = GROUP / 64;

/// Outputs of a panel.
pub(crate) const PANEL: usize = 32;

/// Most rows of any kernel's tile.
const TALLEST: usize = 32;

/// Bytes that are loaded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct ByteLine(pub(crate) [u8; 64]);

/// The sums of a tile: rows by the two halves of a panel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Sums([[[i32; 16]; 2]; TALLEST]);

/// How products of bytes are computed.
#[derive(Clone, Copy)]
pub(crate) enum ByteKernel {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(Avx512<amx::Amx>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<vnni::Avx512>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// The reference of the others.
    Scalar,
    /// The code around AMX's instructions over an emulation of them.
    #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
    AmxEmulated,
}

/// Code that is compiled for a kernel's SIMD level.
pub(crate) trait Job {
    type Output;

    /// To be marked `#[inline(always)]`, with all that it calls.
    fn run<W: Wide>(self, w: W) -> Self::Output;
}

/// A job with its level, as `pulp` takes it.
#[cfg(target_arch = "x86_64")]
struct JobAt<J, W>(J, W);

#[cfg(target_arch = "x86_64")]
impl<J: Job, W: Wide> pulp::NullaryFnOnce for JobAt<J, W> {
    type Output = J::Output;

    #[inline(always)]
    fn call(self) -> J::Output {
        self.0.run(self.1)
    }
}

/// Most rows of a kernel's tile.
struct Tall;

impl Job for Tall {
    type Output = usize;

    #[inline(always)]
    fn run<W: Wide>(self, _: W) -> usize {
        W::TALL
    }
}

/// One product: see [`dot`].
struct OneDot<'d> {
    rows: usize,
    a: &'d [ByteLine],
    panel: &'d [ByteLine],
    sums: &'d mut Sums,
}

impl Job for OneDot<'_> {
    type Output = ();

    #[inline(always)]
    fn run<W: Wide>(self, w: W) {
        w.dot(self.rows, self.a, self.panel, self.sums);
    }
}

impl ByteKernel {
    /// What a CPU has that runs any kernel but the reference.
    pub(crate) const EXPECTED: &str = "AVX-512 VNNI, AVX-VNNI or Arm dot products";

    /// The kernels that this machine runs, the fastest first and the reference last; between them
    /// why it does not run the others.
    fn look() -> Vec<Result<Self, String>> {
        let mut found = Vec::new();
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        let absent = |name: &str| format!("{name}: not on this CPU");
        #[cfg(target_arch = "x86_64")]
        {
            #[cfg(target_os = "linux")]
            found.push(match Avx512::new(()) {
                Some(level) => amx::Amx::detect()
                    .map(|amx| Self::Amx(level.with(amx)))
                    .map_err(|why| format!("{AMX}: {why}")),
                None => Err(absent(AMX)),
            });
            let avx512 = vnni::Avx512::detect().and_then(Avx512::new);
            found.push(avx512.map(Self::Avx512).ok_or_else(|| absent(AVX512)));
            let avx2 = vnni::Avx::detect().and_then(Avx2::new);
            found.push(avx2.map(Self::Avx2).ok_or_else(|| absent(AVX2)));
        }
        #[cfg(target_arch = "aarch64")]
        {
            let neon = neon::Dotprod::detect().and_then(Neon::new);
            found.push(neon.map(Self::Neon).ok_or_else(|| absent(NEON)));
        }
        found.push(Ok(Self::Scalar));
        found
    }

    /// The fastest kernel of this CPU that gives the reference's sums, and why it is that; `None`:
    /// the CPU has no instruction for products of bytes, or one that is wrong.
    pub(crate) fn detect() -> (Option<Self>, String) {
        let mut reasons = Vec::new();
        for found in Self::look() {
            match found {
                Ok(Self::Scalar) => break,
                Ok(kernel) if kernel.is_right() => {
                    reasons.push(format!("{kernel}: the reference's sums"));
                    reasons.extend(kernel.caveat().map(str::to_owned));
                    return (Some(kernel), reasons.join("; "));
                }
                Ok(kernel) => {
                    log::warn!("int8: {kernel} does not give the reference's sums on this machine");
                    reasons.push(format!("{kernel}: not the reference's sums"));
                }
                Err(why) => reasons.push(why),
            }
        }
        if reasons.is_empty() {
            reasons.push("a processor without kernels".to_owned());
        }
        (None, reasons.join("; "))
    }

    /// As [`ByteKernel::detect`], the reference itself where no other is right.
    pub(crate) fn right() -> Self {
        Self::detect().0.unwrap_or(Self::Scalar)
    }

    /// Of a kernel that was developed on machines without its instructions.
    fn caveat(self) -> Option<&'static str> {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(_) => Some(
                "developed with an emulation of AMX, checked on this CPU by those sums alone, not \
                 timed yet",
            ),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => Some("developed with an emulator, not timed yet"),
            _ => None,
        }
    }

    /// Whether small products of any number of rows are the reference's.
    fn is_right(self) -> bool {
        const BLOCKS: usize = 2;
        let line = |seed: usize| {
            let mut line = ByteLine([0; 64]);
            for (i, byte) in line.0.iter_mut().enumerate() {
                *byte = (seed * 131 + i * 37).to_le_bytes()[0];
            }
            line
        };
        // A row is the same in all products, so that those of the reference are one.
        let rows_of = |rows: usize| -> Vec<ByteLine> {
            let of_block = |block| (0..rows).map(move |row| line(block * TALLEST + row));
            (0..BLOCKS).flat_map(of_block).collect()
        };
        let panel: Vec<ByteLine> = (7..7 + BLOCKS * PANEL).map(line).collect();
        let tall = self.tall();
        let mut want = Sums::new();
        dot(tall, &rows_of(tall), &panel, &mut want);
        (1..=tall).all(|rows| {
            let mut got = Sums::new();
            self.dot(rows, &rows_of(rows), &panel, &mut got);
            got.0[..rows] == want.0[..rows]
        })
    }

    /// Most rows of a register tile.
    fn tall(self) -> usize {
        self.run(Tall)
    }

    fn dot(self, rows: usize, a: &[ByteLine], panel: &[ByteLine], sums: &mut Sums) {
        self.run(OneDot {
            rows,
            a,
            panel,
            sums,
        });
    }

    /// Runs `job` at this kernel's level.
    pub(crate) fn run<J: Job>(self, job: J) -> J::Output {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(level) => amx::Tiles::with(level.products, |tiles| {
                level.simd.vectorize(JobAt(job, level.with(tiles)))
            }),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(level) => level.simd.vectorize(JobAt(job, level)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(level) => level.simd.vectorize(JobAt(job, level)),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(level) => job.run(level),
            Self::Scalar => job.run(Scalar(Plain)),
            #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
            Self::AmxEmulated => {
                amx::Tiles::with(&amx::Emulation::default(), |tiles| job.run(Scalar(tiles)))
            }
        }
    }
}

#[cfg(test)]
impl ByteKernel {
    /// Those that this machine runs, the fastest first; then the reference, and an emulation.
    pub(crate) fn available() -> Vec<Self> {
        let emulated = [
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::AmxEmulated,
        ];
        Self::look().into_iter().flatten().chain(emulated).collect()
    }

    /// Whether it has to do with few prompts.
    pub(crate) fn is_slow(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::AmxEmulated => true,
            kernel => matches!(kernel, Self::Scalar),
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const AMX: &str = "AMX";
#[cfg(target_arch = "x86_64")]
const AVX512: &str = "AVX-512 VNNI";
#[cfg(target_arch = "x86_64")]
const AVX2: &str = "AVX-VNNI";
#[cfg(target_arch = "aarch64")]
const NEON: &str = "Arm dot products";

impl fmt::Display for ByteKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(_) => AMX,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => AVX512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => AVX2,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => NEON,
            Self::Scalar => "scalar",
            #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
            Self::AmxEmulated => "AMX, emulated",
        })
    }
}

impl Sums {
    fn new() -> Self {
        Self([[[0; 16]; 2]; TALLEST])
    }
}

/// The reference: `a` is [blocks][rows] lines of activations, `panel` [blocks][2][16] lines, each
/// of 16 outputs by 4 inputs; the first rows of `sums` become theirs.
pub(crate) fn dot(rows: usize, a: &[ByteLine], panel: &[ByteLine], sums: &mut Sums) {
    sums.0[..rows].fill([[0; 16]; 2]);
    for (a, panel) in a.chunks_exact(rows).zip(panel.chunks_exact(PANEL)) {
        for (sums, a) in sums.0.iter_mut().zip(a) {
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
    let mut sums = Sums::new();
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
                let of_rows = sums.0.iter().zip(&mut totals).take(count);
                for (r, (sums, totals)) in of_rows.enumerate() {
                    let [s, z] = a.scale(first + r, group);
                    let (s, z) = (w.splat(s), w.splat(z));
                    for v in 0..2 {
                        let sum = w.widen(&sums[v]);
                        let exact = w.neg_mul_add(z, w.load(&of_group[v]), sum);
                        let total = match group {
                            0 => w.mul(exact, s),
                            _ => w.mul_add(exact, s, w.load(&totals[v])),
                        };
                        if group + 1 < groups {
                            totals[v] = w.store(total);
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
    fn the_first_kernel_that_is_right_is_taken_and_the_others_have_a_reason() {
        let (kernel, why) = ByteKernel::detect();
        let name = kernel.map_or("none".to_owned(), |kernel| kernel.to_string());
        if let Ok(want) = std::env::var("HUBROUTER_TEST_INT8") {
            assert_eq!(name, want, "{why}");
        }
        let reasons: Vec<&str> = why.split("; ").collect();
        let looked = ByteKernel::look();
        let absent = looked.iter().take_while(|found| found.is_err());
        let before = absent.clone().count();
        for (found, reason) in absent.zip(&reasons) {
            assert_eq!(found.as_ref().err().map(String::as_str), Some(*reason));
        }
        match kernel {
            Some(_) => assert_eq!(reasons[before], format!("{name}: the reference's sums")),
            None => assert!(matches!(looked[before], Ok(ByteKernel::Scalar))),
        }
        assert_eq!(
            ByteKernel::right().to_string() == "scalar",
            kernel.is_none()
        );
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
                        let (mut got, mut want) = (Sums([[[7; 16]; 2]; TALLEST]), Sums::new());
                        kernel.dot(rows, &a, &panel, &mut got);
                        dot(rows, &a, &panel, &mut want);
                        assert_eq!(got.0[..rows], want.0[..rows], "{kernel}, {rows} rows");
                        assert_eq!(got.0[rows..], [[[7; 16]; 2]; TALLEST][rows..], "{kernel}");
                    }
                }
            }
        }
        let (a, panel) = (lines(&[255; 384]), lines(&[129; 384 * PANEL]));
        let mut sums = Sums::new();
        dot(1, &a, &panel, &mut sums);
        assert_eq!(sums.0[0], [[255 * -127 * 384; 16]; 2]);
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
