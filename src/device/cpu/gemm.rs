//! GEMM on packed factors: `y [M, N] = A [M, K] . B [K, N]`, f32 sums; `B` is packed once (weights,
//! or their transpose) or in the call (factors that change).
//!
//! `B` is read as panels of some columns, each [K][columns], so that a kernel streams it from
//! front to back. A checkpoint's f16 stays f16 in the panels and is widened in registers: the
//! values are the same and half the bytes come from memory, which bounds short prompts.
//!
//! Every output is one chain of fused multiply-adds over ascending `k` for any number of
//! rows, the tile that the row falls into, the thread, or the SIMD level: a prompt's numbers are
//! the same alone and in any batch.
//!
//! The kernels are safe functions of `std::arch`; `unsafe` is only the step into code compiled for
//! a SIMD level. `pulp`, which makes that step safely, has no f16 load below
//! AVX-512: with f32 panels a pass over MiniLM's weights at 18 rows took 3.2 ms instead of 2.5
//! (benches/README.md).

mod pack;

use std::cell::Cell;
use std::thread::LocalKey;

use crate::device::cpu::{Cpu, RowsMut, Tile, math};
pub(crate) use pack::{Matrix, Packed};
use pack::{PanelLayout, PanelLine};

/// Elements of a row that the kernels take together.
const KB: usize = 16;

/// [`KB`] elements of a row of `A` and one that is not read: the kernels load the same place of many
/// rows one after the other, and places that lie a multiple of 64 bytes apart wait for each other.
type RowPart = [f32; KB + 1];

/// Rows of `A` that one task packs and keeps in cache.
const ROW_BLOCK: usize = 112;

/// Lines of panels that stay in the L2 cache while rows pass by.
const FEW: usize = 2048;

/// Rows of the tallest tile.
const TALLEST: usize = 28;

/// A tile of sums.
type TileSums = [[f32; 32]; TALLEST];

/// The instruction set of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// 14 x 32 tiles in 512-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 6 x 16 tiles in 256-bit registers, with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 4 x 16 tiles in the target's baseline; NEON on 64-bit Arm.
    Portable,
}

impl Level {
    pub(crate) fn detect() -> Self {
        Self::available()[0]
    }

    /// Levels that this machine runs, best first.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("fma")
                && std::arch::is_x86_feature_detected!("f16c");
            if avx2 && std::arch::is_x86_feature_detected!("avx512f") {
                levels.push(Self::Avx512);
            }
            if avx2 {
                levels.push(Self::Avx2);
            }
        }
        levels.push(Self::Portable);
        levels
    }

    /// As `doctor` calls it.
    #[cfg(feature = "cli")]
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            Self::Portable if cfg!(target_arch = "aarch64") => "NEON",
            Self::Portable => "portable",
        }
    }

    /// The same for code that the compiler vectorises.
    pub(super) fn arch(self) -> pulp::Arch {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => pulp::Arch::new(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => pulp::x86::V3::try_new().map_or(pulp::Arch::Scalar, pulp::Arch::V3),
            #[cfg(target_arch = "x86_64")]
            Self::Portable => pulp::Arch::Scalar,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Portable => pulp::Arch::new(),
        }
    }

    /// (largest rows, columns) of a tile.
    fn tile(self) -> (usize, usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => (14, 32),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => (6, 16),
            Self::Portable => (4, 16),
        }
    }

    /// Largest rows of a tile that reads f16 panels, and the rows above which a panel is widened
    /// first. Each tile widens the panel again, so it is as tall as the registers allow: in AVX-512
    /// a column of 28 vectors, which computes 16 columns of a panel and then the other 16.
    fn half_tile(self) -> (usize, usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => (TALLEST, 2 * TALLEST),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => (6, 18),
            Self::Portable => (4, 12),
        }
    }
}

/// The last step of an output: from its sum to `y`.
#[derive(Clone, Copy)]
pub(crate) enum Finish<'f> {
    /// `y = sum + bias`, [N].
    Bias(&'f [f32]),
    /// `y = gelu(sum + bias)`, [N].
    Gelu(&'f [f32]),
    /// `y = scale * sum`
    Set(f32),
    /// `y += scale * sum`
    Add(f32),
}

/// `B`: packed, or a matrix whose panels each task packs for itself.
#[derive(Clone, Copy)]
enum Right<'r> {
    Packed(&'r [PanelLine]),
    Loose(Matrix<'r>),
}

// Each thread keeps its panels: fresh pages cost more than a small product.
thread_local! {
    static ROWS: Cell<Vec<RowPart>> = const { Cell::new(Vec::new()) };
    static PANELS: Cell<Vec<PanelLine>> = const { Cell::new(Vec::new()) };
}

fn with_scratch<T>(scratch: &'static LocalKey<Cell<Vec<T>>>, f: impl FnOnce(&mut Vec<T>)) {
    let mut taken = scratch.take();
    f(&mut taken);
    scratch.set(taken);
}

/// `y` [M, N] from `a` [M, K] . `w` [K, N]
pub(crate) fn multiply(cpu: &Cpu, a: Matrix<'_>, w: &Packed, finish: Finish<'_>, y: RowsMut<'_>) {
    assert_eq!(a.columns, w.inner, "gemm: A is not [M, {}]", w.inner);
    assert_eq!(y.columns, w.columns, "gemm: y is not [M, {}]", w.columns);
    multiply_all(cpu, a, w.layout, Right::Packed(w.lines()), finish, y);
}

/// `y` [M, N] from `a` [M, K] . `b` [K, N]
pub(crate) fn product(cpu: &Cpu, a: Matrix<'_>, b: Matrix<'_>, finish: Finish<'_>, y: RowsMut<'_>) {
    assert_eq!(a.columns, b.rows, "gemm: B is not [{}, N]", a.columns);
    assert_eq!(y.columns, b.columns, "gemm: y is not [M, {}]", b.columns);
    let layout = PanelLayout::full(cpu.level(), b.columns);
    if a.rows <= ROW_BLOCK {
        return multiply_all(cpu, a, layout, Right::Loose(b), finish, y);
    }
    // Several blocks of rows would pack every panel several times.
    with_scratch(&PANELS, |lines| {
        layout.pack_all(cpu, b, lines);
        multiply_all(cpu, a, layout, Right::Packed(lines), finish, y);
    });
}

fn multiply_all(
    cpu: &Cpu,
    a: Matrix<'_>,
    layout: PanelLayout,
    b: Right<'_>,
    finish: Finish<'_>,
    y: RowsMut<'_>,
) {
    assert_eq!(y.rows(), a.rows, "gemm: y is not [{}, N]", a.rows);
    if let Finish::Bias(bias) | Finish::Gelu(bias) = finish {
        assert_eq!(bias.len(), y.columns, "gemm: bias is not [{}]", y.columns);
    }
    let work = a.rows * a.columns * y.columns / 8;
    cpu.tiles_of(y, ROW_BLOCK, layout.width, work, |tile| {
        with_scratch(&ROWS, |rows| {
            with_scratch(&PANELS, |panels| {
                multiply_part(cpu, a, layout, b, finish, tile, rows, panels);
            });
        });
    });
}

/// One thread's part: the rows of `a` and the columns of `b` that are the tile's.
#[expect(clippy::too_many_arguments, reason = "the product and two buffers")]
fn multiply_part(
    cpu: &Cpu,
    a: Matrix<'_>,
    layout: PanelLayout,
    b: Right<'_>,
    finish: Finish<'_>,
    mut tile: Tile<'_>,
    packed: &mut Vec<RowPart>,
    panels: &mut Vec<PanelLine>,
) {
    let all = tile.rows.len();
    let columns = tile.rows.first().map_or(0, |row| row.len());
    let blocks = a.columns.div_ceil(KB);
    let size = layout.size(a.columns);
    // Tiles that take a panel one after the other: few where all panels stay in cache, so that rows
    // of `y` are written in their order; else all, so that a panel is fetched once.
    let small = matches!(b, Right::Packed(_)) && columns.div_ceil(layout.width) * size <= FEW;
    let (tallest, few) = layout.level.half_tile();
    let widened = layout.half && !small && all > few;
    let tallest = match layout.half && !widened {
        true => tallest,
        false => layout.level.tile().0,
    };
    let tiles = all.div_ceil(tallest);
    let together = if small { 1 } else { tiles };
    let mut out = [[0.0; 32]; TALLEST];
    let (mut rows, mut first_row) = (&mut tile.rows[..], tile.first_row);
    for begin in (0..tiles).step_by(together.max(1)) {
        // As even as they go.
        let heights = begin..(begin + together).min(tiles);
        let heights = heights.map(|tile| all / tiles + usize::from(tile < all % tiles));
        pack::pack_rows(a, first_row, heights.clone(), packed);
        let these;
        (these, rows) = rows.split_at_mut(heights.clone().sum());
        first_row += these.len();
        for start in (0..columns).step_by(layout.width) {
            let first = tile.first_column + start;
            let (layout, panel) = match b {
                Right::Packed(lines) => {
                    let panel = &lines[first / layout.width * size..][..size];
                    if widened {
                        layout.widen(cpu, panel, panels)
                    } else {
                        (layout, panel)
                    }
                }
                Right::Loose(b) => (layout, layout.pack_one(b, first, panels)),
            };
            let count = layout.width.min(columns - start);
            let finish = match finish {
                Finish::Bias(bias) => Finish::Bias(&bias[first..first + count]),
                Finish::Gelu(bias) => Finish::Gelu(&bias[first..first + count]),
                other => other,
            };
            let (mut rows, mut x) = (&mut these[..], &packed[..]);
            for height in heights.clone() {
                let y;
                (y, rows) = rows.split_at_mut(height);
                multiply_tile(layout, height, &x[..height * blocks], panel, &mut out);
                cpu.simd(
                    #[inline(always)]
                    || store(finish, &out, y, start, count),
                );
                x = &x[height * blocks..];
            }
        }
    }
}

/// `finish` of a tile's `sums` into the columns `start..start + count` of `rows`.
#[inline(always)]
fn store(finish: Finish<'_>, sums: &TileSums, rows: &mut [&mut [f32]], start: usize, count: usize) {
    for (y, sums) in rows.iter_mut().zip(sums) {
        let y = &mut y[start..start + count];
        // A length that the compiler knows takes a third of the time.
        match count {
            32 => store_row(finish, &sums[..32], &mut y[..32]),
            16 => store_row(finish, &sums[..16], &mut y[..16]),
            _ => store_row(finish, &sums[..count], y),
        }
    }
}

#[inline(always)]
fn store_row(finish: Finish<'_>, sums: &[f32], y: &mut [f32]) {
    match finish {
        Finish::Bias(bias) => {
            let bias = &bias[..y.len()];
            for ((y, sum), bias) in y.iter_mut().zip(sums).zip(bias) {
                *y = sum + bias;
            }
        }
        Finish::Gelu(bias) => {
            let bias = &bias[..y.len()];
            for ((y, sum), bias) in y.iter_mut().zip(sums).zip(bias) {
                *y = math::gelu(sum + bias);
            }
        }
        Finish::Set(scale) => {
            for (y, sum) in y.iter_mut().zip(sums) {
                *y = scale * sum;
            }
        }
        Finish::Add(scale) => {
            for (y, sum) in y.iter_mut().zip(sums) {
                *y += scale * sum;
            }
        }
    }
}

/// One tile of sums: `out[row][column]`, complete over all inputs.
fn multiply_tile(
    layout: PanelLayout,
    height: usize,
    x: &[RowPart],
    panel: &[PanelLine],
    out: &mut TileSums,
) {
    macro_rules! by_height {
        ($kernel:path, $panel:expr, $out:expr, $($n:literal)*) => {
            match height {
                $($n => $kernel(
                    bytemuck::cast_slice::<RowPart, [RowPart; $n]>(x),
                    $panel,
                    $out,
                ),)*
                _ => unreachable!("a tile of {height} rows"),
            }
        };
    }
    match layout.level {
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the step into code compiled for a SIMD level")]
        // SAFETY: a `PanelLayout` carries the level of a `Cpu`; levels come from
        // `Level::available`, which has detected avx512f.
        Level::Avx512 => unsafe {
            match (layout.half, layout.width) {
                (true, _) => {
                    let sides = panel.split_at(panel.len() / 2);
                    let sides =
                        [sides.0, sides.1].map(bytemuck::cast_slice::<PanelLine, x86::HalfLine>);
                    if height <= x86::PAIRED {
                        by_height!(x86::avx512_half_pair, sides, out, 1 2 3 4 5 6 7);
                    } else {
                        for (side, panel) in sides.into_iter().enumerate() {
                            by_height!(
                                x86::avx512_half, panel, (&mut *out, side),
                                8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28
                            );
                        }
                    }
                }
                (false, 32) => {
                    let panel = bytemuck::cast_slice::<PanelLine, [[f32; 16]; 2]>(panel);
                    by_height!(x86::avx512_full, panel, out, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
                }
                (false, _) => {
                    let panel = bytemuck::cast_slice::<PanelLine, [[f32; 16]; 1]>(panel);
                    by_height!(x86::avx512_full, panel, out, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
                }
            }
        },
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the step into code compiled for a SIMD level")]
        // SAFETY: as above; `Level::available` has detected avx2, fma and f16c.
        Level::Avx2 => unsafe {
            if layout.half {
                let panel = bytemuck::cast_slice::<PanelLine, [[u16; 8]; 2]>(panel);
                by_height!(x86::avx2_half, panel, out, 1 2 3 4 5 6);
            } else {
                let panel = bytemuck::cast_slice::<PanelLine, [[f32; 8]; 2]>(panel);
                by_height!(x86::avx2_full, panel, out, 1 2 3 4 5 6);
            }
        },
        Level::Portable => {
            let panel = bytemuck::cast_slice::<PanelLine, [f32; 16]>(panel);
            by_height!(portable, panel, out, 1 2 3 4);
        }
    }
}

/// An f16 panel of two sides of 16 columns as one of f32, which has all 32 side by side.
fn widen_sides(level: Level, panel: &[PanelLine], wide: &mut [PanelLine]) {
    match level {
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the step into code compiled for a SIMD level")]
        Level::Avx512 => {
            let (left, right) = panel.split_at(panel.len() / 2);
            let sides = [left, right].map(bytemuck::cast_slice);
            // SAFETY: as in `multiply_tile`.
            unsafe { x86::avx512_widen(sides, bytemuck::cast_slice_mut(wide)) }
        }
        _ => unreachable!(
            "{level:?} widens no panel: {} lines to {}",
            panel.len(),
            wide.len()
        ),
    }
}

/// Fused where the target has it at every call; two roundings elsewhere.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

fn portable<const R: usize>(x: &[[RowPart; R]], panel: &[[f32; 16]], out: &mut TileSums) {
    let mut sums = [[0.0f32; 16]; R];
    for (x, panel) in x.iter().zip(panel.chunks_exact(KB)) {
        for (k, w) in panel.iter().enumerate() {
            for r in 0..R {
                for c in 0..16 {
                    sums[r][c] = multiply_add(x[r][k], w[c], sums[r][c]);
                }
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(&sums) {
        out[..16].copy_from_slice(sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{KB, RowPart, TileSums};
    use crate::device::cpu::prefetch::prefetch_at;
    use std::arch::x86_64::{
        __m256, __m512, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_set1_ps, _mm512_setzero_ps,
    };

    /// Bytes.
    const AHEAD: usize = 2048;

    /// Asks for the panel's bytes that come [`AHEAD`] later: the hardware's own prefetcher stops at
    /// every page and every panel, and weights of an encoder lie further away than the L2 cache.
    #[inline(always)]
    fn ahead<T>(w: &T) {
        prefetch_at(std::ptr::from_ref(w).cast::<u8>().wrapping_add(AHEAD));
    }

    macro_rules! kernel {
        (
            $name:ident, $features:literal, $vector:ty, $element:ty, $lanes:literal,
            $load:expr, $zero:ident, $splat:ident, $fma:ident
        ) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name<const R: usize, const V: usize>(
                x: &[[RowPart; R]],
                panel: &[[[$element; $lanes]; V]],
                out: &mut TileSums,
            ) {
                let mut sums = [[$zero(); V]; R];
                for (x, panel) in x.iter().zip(panel.chunks_exact(KB)) {
                    for (k, row) in panel.iter().enumerate() {
                        ahead(row);
                        let mut w: [$vector; V] = [$zero(); V];
                        for v in 0..V {
                            w[v] = $load(row[v]);
                        }
                        for r in 0..R {
                            let x = $splat(x[r][k]);
                            for v in 0..V {
                                sums[r][v] = $fma(x, w[v], sums[r][v]);
                            }
                        }
                    }
                }
                for (out, sums) in out.iter_mut().zip(&sums) {
                    let (out, _) = out.as_chunks_mut::<$lanes>();
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out = bytemuck::cast(*sum);
                    }
                }
            }
        };
    }

    /// Rows up to which [`avx512_half_pair`] is taken.
    pub(super) const PAIRED: usize = 7;

    /// Two rows of 16 columns of an f16 panel: a line of the cache.
    pub(super) type HalfLine = [[u16; 16]; 2];

    /// Sums of the 16 columns of an f16 `panel`, which become columns `16 side..` of `out`.
    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512_half<const R: usize>(
        x: &[[RowPart; R]],
        panel: &[HalfLine],
        (out, side): (&mut TileSums, usize),
    ) {
        let mut sums = [_mm512_setzero_ps(); R];
        for (x, panel) in x.iter().zip(panel.chunks_exact(KB / 2)) {
            for (place, line) in panel.iter().enumerate() {
                ahead(line);
                for half in 0..2 {
                    let w = _mm512_cvtph_ps(bytemuck::cast(line[half]));
                    for r in 0..R {
                        let x = _mm512_set1_ps(x[r][2 * place + half]);
                        sums[r] = _mm512_fmadd_ps(x, w, sums[r]);
                    }
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            out.as_chunks_mut::<16>().0[side] = bytemuck::cast(sum);
        }
    }

    /// As [`avx512_half`], of two panels at once: with few rows there are too few sums to hide the
    /// latency of an addition.
    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512_half_pair<const R: usize>(
        x: &[[RowPart; R]],
        [left, right]: [&[HalfLine]; 2],
        out: &mut TileSums,
    ) {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        let panels = left.chunks_exact(KB / 2).zip(right.chunks_exact(KB / 2));
        for (x, (left, right)) in x.iter().zip(panels) {
            for (place, (left, right)) in left.iter().zip(right).enumerate() {
                ahead(left);
                ahead(right);
                for half in 0..2 {
                    let left = _mm512_cvtph_ps(bytemuck::cast(left[half]));
                    let right = _mm512_cvtph_ps(bytemuck::cast(right[half]));
                    for r in 0..R {
                        let x = _mm512_set1_ps(x[r][2 * place + half]);
                        sums[r][0] = _mm512_fmadd_ps(x, left, sums[r][0]);
                        sums[r][1] = _mm512_fmadd_ps(x, right, sums[r][1]);
                    }
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
                *out = bytemuck::cast(sum);
            }
        }
    }

    /// Side by side what is one after the other.
    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512_widen([left, right]: [&[[u16; 16]]; 2], wide: &mut [[[f32; 16]; 2]]) {
        for ((left, right), wide) in left.iter().zip(right).zip(wide) {
            wide[0] = bytemuck::cast(_mm512_cvtph_ps(bytemuck::cast(*left)));
            wide[1] = bytemuck::cast(_mm512_cvtph_ps(bytemuck::cast(*right)));
        }
    }

    kernel!(
        avx512_full,
        "avx512f",
        __m512,
        f32,
        16,
        bytemuck::cast,
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps
    );
    kernel!(
        avx2_half,
        "avx2,fma,f16c",
        __m256,
        u16,
        8,
        |bits| _mm256_cvtph_ps(bytemuck::cast(bits)),
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps
    );
    kernel!(
        avx2_full,
        "avx2,fma,f16c",
        __m256,
        f32,
        8,
        bytemuck::cast,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps
    );
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::reference;
    use crate::weights::View;
    use half::f16;

    /// Values that f16 holds.
    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let halved = |v: &f32| f16::from_f32(v / 2.0).to_f32();
        reference::noise(n, seed).iter().map(halved).collect()
    }

    fn multiply_rows(cpu: &Cpu, x: &[f32], w: &Packed, finish: Finish<'_>, y: &mut [f32]) {
        let y = RowsMut::whole(y, w.columns);
        multiply(cpu, Matrix::of_rows(x, w.inner), w, finish, y);
    }

    fn half_bytes(values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| f16::from_f32(*value).to_le_bytes())
            .collect()
    }

    #[test]
    fn every_level_and_thread_count_agrees_with_f64_and_bit_for_bit_with_itself() {
        for (rows, inputs, outputs) in [
            (1, 1, 1),
            (1, 384, 65),
            (7, 63, 33),
            (18, 64, 257),
            (65, 17, 96),
            (257, 48, 31),
            // Every height of a tile that reads f16.
            (28, 20, 64),
            (56, 20, 40),
            // More panels than stay in cache: f16 ones are widened first.
            (65, 400, 321),
        ] {
            let (x, w, b) = (
                noise(rows * inputs, 1),
                noise(outputs * inputs, 2),
                noise(outputs, 3),
            );
            let bytes = half_bytes(&w);
            let mut fused: Option<Vec<f32>> = None;
            for level in Level::available() {
                for threads in [1, 2, 3] {
                    let cpu = Cpu::with_level(Some(threads), level).unwrap();
                    for view in [View::of_f32(&w, inputs), View::of_half(&bytes, inputs)] {
                        let packed = Packed::new(&cpu, &[("w", view)]).unwrap();
                        let mut y = vec![f32::NAN; rows * outputs];
                        cpu.run(|| multiply_rows(&cpu, &x, &packed, Finish::Bias(&b), &mut y));
                        for (i, y) in y.iter().enumerate() {
                            let (r, c) = (i / outputs, i % outputs);
                            let want: f64 = (0..inputs)
                                .map(|k| {
                                    f64::from(x[r * inputs + k]) * f64::from(w[c * inputs + k])
                                })
                                .sum::<f64>()
                                + f64::from(b[c]);
                            let error = (f64::from(*y) - want).abs();
                            assert!(
                                error < 1e-5 * (1.0 + want.abs()),
                                "{level:?} {r},{c}: {error}"
                            );
                        }
                        if level != Level::Portable {
                            assert_eq!(*fused.get_or_insert_with(|| y.clone()), y, "{level:?}");
                        }
                    }
                }
            }
        }
    }

    /// The chain that the module's head promises, on shapes that are drawn.
    #[test]
    fn fuzzed_products_are_the_scalar_chain_bit_for_bit() {
        let mut state = 1u64;
        let mut draw = |most: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            1 + (state >> 33) as usize % most
        };
        for round in 0..120 {
            let (rows, inner, columns) = (draw(130), draw(100), draw(140));
            let (x, w) = (
                noise(rows * inner, round),
                noise(columns * inner, round + 1),
            );
            let bytes = half_bytes(&w);
            let want: Vec<f32> = (0..rows * columns)
                .map(|i| {
                    let (r, c) = (i / columns, i % columns);
                    let pairs = x[r * inner..][..inner].iter().zip(&w[c * inner..]);
                    pairs.fold(0.0, |sum, (x, w)| x.mul_add(*w, sum))
                })
                .collect();
            for level in Level::available() {
                let cpu = Cpu::with_level(Some(draw(3)), level).unwrap();
                for view in [View::of_f32(&w, inner), View::of_half(&bytes, inner)] {
                    let packed = Packed::new(&cpu, &[("w", view)]).unwrap();
                    let mut y = vec![f32::NAN; rows * columns];
                    cpu.run(|| multiply_rows(&cpu, &x, &packed, Finish::Set(1.0), &mut y));
                    let shape = format!("{level:?} [{rows}, {inner}] . [{inner}, {columns}]");
                    if level == Level::Portable {
                        let near = |(y, want): (&f32, &f32)| (y - want).abs() < 1e-4;
                        assert!(y.iter().zip(&want).all(near), "{shape}");
                    } else {
                        assert!(y == want, "{shape}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_activated_output_has_the_bits_of_gelu_after_the_product() {
        for (rows, inputs, outputs) in [(1, 20, 5), (22, 64, 96), (61, 33, 70)] {
            let (x, w) = (noise(rows * inputs, 1), noise(outputs * inputs, 2));
            let (b, bytes) = (noise(outputs, 3), half_bytes(&w));
            for level in Level::available() {
                let cpu = Cpu::with_level(Some(2), level).unwrap();
                let parts = [("w", View::of_half(&bytes, inputs))];
                let packed = Packed::new(&cpu, &parts).unwrap();
                let run = |finish| {
                    let mut y = vec![f32::NAN; rows * outputs];
                    cpu.run(|| multiply_rows(&cpu, &x, &packed, finish, &mut y));
                    y
                };
                let mut want = run(Finish::Bias(&b));
                want.iter_mut().for_each(|y| *y = math::gelu(*y));
                assert_eq!(run(Finish::Gelu(&b)), want, "{level:?}");
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_company() {
        let (rows, inputs, outputs) = (37, 100, 70);
        let (x, w) = (noise(rows * inputs, 4), noise(outputs * inputs, 5));
        for level in Level::available() {
            let cpu = Cpu::with_level(Some(2), level).unwrap();
            let packed = Packed::new(&cpu, &[("w", View::of_f32(&w, inputs))]).unwrap();
            let mut all = vec![0.0; rows * outputs];
            cpu.run(|| multiply_rows(&cpu, &x, &packed, Finish::Set(1.0), &mut all));
            for (x, want) in x.chunks_exact(inputs).zip(all.chunks_exact(outputs)) {
                let mut alone = vec![0.0; outputs];
                multiply_rows(&cpu, x, &packed, Finish::Set(1.0), &mut alone);
                assert_eq!(alone, want);
            }
        }
    }

    #[test]
    fn transposed_weights_are_those_of_the_transposed_matrix() {
        for (rows, inner, columns) in [(1, 1, 1), (7, 63, 33), (18, 64, 257), (130, 33, 96)] {
            let (x, w) = (noise(rows * inner, 1), noise(inner * columns, 2));
            let turned: Vec<f32> = (0..w.len())
                .map(|i| w[i % inner * columns + i / inner])
                .collect();
            let bytes = half_bytes(&w);
            let (split, half) = (inner / 2 * columns, inner / 2 * columns * 2);
            for level in Level::available() {
                let cpu = Cpu::with_level(Some(1), level).unwrap();
                let run = |packed: &Packed| {
                    let mut y = vec![f32::NAN; rows * columns];
                    multiply_rows(&cpu, &x, packed, Finish::Set(1.0), &mut y);
                    y
                };
                let want = run(&Packed::new(&cpu, &[("w", View::of_f32(&turned, inner))]).unwrap());
                let of_f32 = |w| ("w", View::of_f32(w, columns));
                let of_half = |w| ("w", View::of_half(w, columns));
                for parts in [
                    [of_f32(&w[..split]), of_f32(&w[split..])],
                    [of_half(&bytes[..half]), of_half(&bytes[half..])],
                    [of_half(&bytes[..half]), of_f32(&w[split..])],
                ] {
                    assert_eq!(run(&Packed::transposed(&cpu, &parts)), want, "{level:?}");
                }
            }
        }
    }

    #[test]
    fn parts_are_stacked() {
        let cpu = Cpu::open(Some(1)).unwrap();
        let (a, b) = (noise(5 * 20, 6), noise(40 * 20, 7));
        let parts = [("a", View::of_f32(&a, 20)), ("b", View::of_f32(&b, 20))];
        let stacked = Packed::new(&cpu, &parts).unwrap();
        let whole = [a.clone(), b.clone()].concat();
        let whole = Packed::new(&cpu, &[("w", View::of_f32(&whole, 20))]).unwrap();
        let x = noise(3 * 20, 8);
        let (mut left, mut right) = (vec![0.0; 3 * 45], vec![1.0; 3 * 45]);
        multiply_rows(&cpu, &x, &stacked, Finish::Set(1.0), &mut left);
        multiply_rows(&cpu, &x, &whole, Finish::Set(1.0), &mut right);
        assert_eq!(left, right);
    }

    #[test]
    fn weights_that_are_not_finite_are_refused_by_name() {
        for level in Level::available() {
            let cpu = Cpu::with_level(Some(1), level).unwrap();
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut w = noise(40 * 20, 9);
                w[777] = bad;
                let good = noise(20, 1);
                let bytes = half_bytes(&w);
                for view in [View::of_f32(&w, 20), View::of_half(&bytes, 20)] {
                    let parts = [("good", View::of_f32(&good, 20)), ("bad", view)];
                    let error = Packed::new(&cpu, &parts).err().unwrap();
                    assert!(error.to_string().starts_with("bad: "), "{error}");
                }
            }
        }
    }
}
