//! GEMM against weights packed once: `y = x W^T + b`, f32 sums.
//!
//! `W` [out, in] is kept as panels of `NR` outputs, each [in][NR], so that a kernel streams it from
//! front to back. A checkpoint's f16 stays f16 in the panels and is widened in registers: the
//! values are the same and half the bytes come from memory, which bounds short prompts.
//!
//! Every output is one chain of fused multiply-adds over ascending `k`, whatever the number of
//! rows, the tile that the row falls into, the thread, or the SIMD level: a prompt's numbers are
//! the same alone and in any batch.
//!
//! The kernels are safe functions of `std::arch`; `unsafe` is only the step into code compiled
//! for a SIMD level, and a prefetch. `pulp`, which makes that step safely, has no f16 load below AVX-512: with f32
//! panels a pass over MiniLM's weights at 18 rows took 3.2 ms instead of 2.5 (benches/README.md).

use crate::device::cpu::{Cpu, Tile};
use crate::error::{Result, bail};
use crate::weights::{Dtype, View};

/// Inputs that a block of a packed row holds.
const KB: usize = 16;

/// Rows of `x` that one task packs and keeps in cache.
const ROW_BLOCK: usize = 112;

/// Bytes that are loaded together; also the alignment of every panel row.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// 14 x 32 tiles in 512-bit registers.
    Avx512,
    /// 6 x 16 tiles in 256-bit registers, with FMA and F16C.
    Avx2,
    /// 4 x 16 tiles in whatever the target has; NEON on 64-bit Arm.
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

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2",
            Self::Portable if cfg!(target_arch = "aarch64") => "NEON",
            Self::Portable => "portable",
        }
    }

    /// (largest rows, columns) of a tile.
    fn tile(self) -> (usize, usize) {
        match self {
            Self::Avx512 => (14, 32),
            Self::Avx2 => (6, 16),
            Self::Portable => (4, 16),
        }
    }
}

/// Weights [out, in] in the order in which the kernels read them.
pub(crate) struct Packed {
    level: Level,
    /// Panels hold f16 bits; otherwise f32.
    half: bool,
    outputs: usize,
    inputs: usize,
    lines: Vec<Line>,
}

impl Packed {
    /// Packs `parts`, stacked along the outputs; all have the same number of columns.
    ///
    /// Errors: [`crate::ErrorKind::Numeric`] names the first part with an element that is not
    /// finite.
    pub(crate) fn new(cpu: &Cpu, parts: &[(&str, View<'_>)]) -> Result<Self> {
        let level = cpu.level();
        let inputs = parts.first().map_or(0, |(_, view)| view.columns);
        assert!(
            parts.iter().all(|(_, view)| view.columns == inputs),
            "packed parts differ in their inputs"
        );
        let outputs = parts.iter().map(|(_, view)| view.rows()).sum();
        let half = level != Level::Portable && parts.iter().all(|(_, v)| v.dtype == Dtype::F16);
        let (_, columns) = level.tile();
        let panel = inputs.next_multiple_of(KB) * columns * if half { 2 } else { 4 } / 64;
        let panels = usize::div_ceil(outputs, columns);
        let mut lines = vec![Line([0; 64]); panel * panels];
        let bad = std::sync::Mutex::new(None);
        cpu.rows(
            &mut lines,
            panel.max(1),
            usize::MAX / panels.max(1),
            |first, block| {
                for (i, lines) in block.chunks_exact_mut(panel.max(1)).enumerate() {
                    let rows = rows_of(parts, (first + i) * columns, columns);
                    let finite = match (half, columns) {
                        (true, 32) => pack_half::<32>(&rows, bytemuck::cast_slice_mut(lines)),
                        (true, _) => pack_half::<16>(&rows, bytemuck::cast_slice_mut(lines)),
                        (false, 32) => pack_full::<32>(&rows, bytemuck::cast_slice_mut(lines)),
                        (false, _) => pack_full::<16>(&rows, bytemuck::cast_slice_mut(lines)),
                    };
                    if let Some(row) = finite {
                        let mut bad = bad
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner);
                        let name = rows[row].2;
                        *bad = Some(bad.take().map_or(name, |other: &str| other.min(name)));
                    }
                }
            },
        );
        if let Some(name) = bad
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            bail!(
                Numeric,
                "{name}: expected finite weights, found infinity or NaN"
            );
        }
        Ok(Self {
            level,
            half,
            outputs,
            inputs,
            lines,
        })
    }

    fn panel(&self, index: usize) -> &[Line] {
        let (_, columns) = self.level.tile();
        let size = self.lines.len() / self.outputs.div_ceil(columns);
        &self.lines[index * size..][..size]
    }
}

/// The rows `first..first + count` of the stacked `parts` that exist: view, row in it, name.
fn rows_of<'p>(
    parts: &'p [(&'p str, View<'p>)],
    first: usize,
    count: usize,
) -> Vec<(View<'p>, usize, &'p str)> {
    let mut rows = Vec::with_capacity(count);
    let mut start = 0;
    for (name, view) in parts {
        let end = start + view.rows();
        let wanted = first.max(start)..(first + count).min(end);
        rows.extend(wanted.map(|row| (*view, row - start, *name)));
        start = end;
    }
    rows
}

type Rows<'r, 'p> = &'r [(View<'p>, usize, &'p str)];

/// Returns the index of a row that is not finite.
fn pack_half<const NR: usize>(rows: Rows<'_, '_>, panel: &mut [[u16; NR]]) -> Option<usize> {
    const EXPONENT: u16 = 0x7c00;
    let mut bad = None;
    for (column, (view, row, _)) in rows.iter().enumerate() {
        let mut finite = true;
        for (place, bytes) in panel.iter_mut().zip(view.row_bytes(*row).chunks_exact(2)) {
            let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
            finite &= bits & EXPONENT != EXPONENT;
            place[column] = bits;
        }
        if !finite {
            bad = Some(column);
        }
    }
    bad
}

/// Returns the index of a row that is not finite.
fn pack_full<const NR: usize>(rows: Rows<'_, '_>, panel: &mut [[f32; NR]]) -> Option<usize> {
    let mut bad = None;
    let mut values = vec![0.0; rows.first().map_or(0, |(view, ..)| view.columns)];
    for (column, (view, row, _)) in rows.iter().enumerate() {
        view.read_row(*row, &mut values);
        for (place, value) in panel.iter_mut().zip(&values) {
            place[column] = *value;
        }
        if !values.iter().all(|value| value.is_finite()) {
            bad = Some(column);
        }
    }
    bad
}

/// `y` [T, out] = `x` [T, in] . `W` [out, in]^T + `bias` [out]; an empty `bias` is zero.
pub(crate) fn multiply(cpu: &Cpu, x: &[f32], w: &Packed, bias: &[f32], y: &mut [f32]) {
    let (inputs, outputs) = (w.inputs, w.outputs);
    if inputs == 0 || outputs == 0 {
        return y.fill(0.0);
    }
    let rows = x.len() / inputs;
    assert_eq!(x.len(), rows * inputs, "gemm: x is not [T, {inputs}]");
    assert_eq!(
        y.len(),
        rows * outputs,
        "gemm: y is not [{rows}, {outputs}]"
    );
    assert!(
        bias.is_empty() || bias.len() == outputs,
        "gemm: bias is not [{outputs}]"
    );

    let (_, width) = w.level.tile();
    cpu.tiles(
        y,
        outputs,
        ROW_BLOCK,
        width,
        rows * inputs * outputs / 8,
        |tile| {
            let x = &x[tile.first_row * inputs..][..tile.rows.len() * inputs];
            multiply_part(x, w, bias, tile);
        },
    );
}

/// One thread's part: the rows `x` of the tile.
fn multiply_part(x: &[f32], w: &Packed, bias: &[f32], tile: Tile<'_>) {
    let (tallest, width) = w.level.tile();
    let Tile {
        first_column,
        mut rows,
        ..
    } = tile;
    let heights = tile_heights(rows.len(), tallest);
    let packed = pack_rows(x, w.inputs, &heights);
    let blocks = w.inputs.div_ceil(KB);
    let columns = rows.first().map_or(0, |row| row.len());
    let mut out = [[0.0; 32]; 14];
    for start in (0..columns).step_by(width) {
        let panel = w.panel((first_column + start) / width);
        let count = width.min(columns - start);
        let bias = bias.get(first_column + start..).unwrap_or(&[]);
        let (mut row, mut place) = (0, 0);
        for &height in &heights {
            let x = &packed[place..place + blocks * height * KB];
            multiply_tile(w.level, w.half, height, x, panel, &mut out);
            for (y, sums) in rows[row..row + height].iter_mut().zip(&out) {
                let y = &mut y[start..start + count];
                if bias.is_empty() {
                    y.copy_from_slice(&sums[..count]);
                } else {
                    for ((y, sum), bias) in y.iter_mut().zip(sums).zip(bias) {
                        *y = sum + bias;
                    }
                }
            }
            row += height;
            place += x.len();
        }
    }
}

/// Splits `rows` into the fewest tiles, as even as they go.
fn tile_heights(rows: usize, tallest: usize) -> Vec<usize> {
    let count = rows.div_ceil(tallest);
    (0..count)
        .map(|i| rows / count + usize::from(i < rows % count))
        .collect()
}

/// `x` [T, in] in the order of the kernels: tile by tile, in each [in / KB][rows][KB], zeros past
/// the last input.
fn pack_rows(x: &[f32], inputs: usize, heights: &[usize]) -> Vec<f32> {
    let blocks = inputs.div_ceil(KB);
    let mut packed = Vec::with_capacity(x.len() / inputs * blocks * KB);
    let mut rows = x;
    for height in heights {
        let (tile, rest) = rows.split_at(height * inputs);
        for block in 0..blocks {
            for row in tile.chunks_exact(inputs) {
                let values = &row[block * KB..];
                match values.first_chunk::<KB>() {
                    Some(values) => packed.extend_from_slice(values),
                    None => {
                        packed.extend_from_slice(values);
                        packed.resize(packed.len() + KB - values.len(), 0.0);
                    }
                }
            }
        }
        rows = rest;
    }
    packed
}

/// One tile of sums: `out[row][column]`, complete over all inputs.
fn multiply_tile(
    level: Level,
    half: bool,
    height: usize,
    x: &[f32],
    panel: &[Line],
    out: &mut [[f32; 32]; 14],
) {
    macro_rules! by_height {
        ($kernel:path, $($n:literal)*) => {
            match height {
                $($n => $kernel(bytemuck::cast_slice::<f32, [[f32; KB]; $n]>(x), bytemuck::cast_slice(panel), out),)*
                _ => unreachable!("a tile of {height} rows"),
            }
        };
    }
    match level {
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the step into code compiled for a SIMD level")]
        // SAFETY: a `Packed` carries the level of its `Cpu`; levels come from
        // `Level::available`, which has detected avx512f.
        Level::Avx512 => unsafe {
            if half {
                by_height!(x86::avx512_half, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            } else {
                by_height!(x86::avx512_full, 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            }
        },
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the step into code compiled for a SIMD level")]
        // SAFETY: as above; `Level::available` has detected avx2, fma and f16c.
        Level::Avx2 => unsafe {
            if half {
                by_height!(x86::avx2_half, 1 2 3 4 5 6);
            } else {
                by_height!(x86::avx2_full, 1 2 3 4 5 6);
            }
        },
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx512 | Level::Avx2 => unreachable!("not a level of this machine"),
        Level::Portable => by_height!(portable, 1 2 3 4),
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

fn portable<const R: usize>(x: &[[[f32; KB]; R]], panel: &[[f32; 16]], out: &mut [[f32; 32]; 14]) {
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
    use super::KB;
    use std::arch::x86_64::{
        __m256, __m512, _MM_HINT_T0, _mm_prefetch, _mm256_cvtph_ps, _mm256_fmadd_ps,
        _mm256_set1_ps, _mm256_setzero_ps, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_set1_ps,
        _mm512_setzero_ps,
    };

    /// Bytes.
    const AHEAD: usize = 2048;

    /// Asks for the panel's bytes that come [`AHEAD`] later: the hardware's own prefetcher stops at
    /// every page and every panel, and weights of an encoder lie further away than the L2 cache.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a hint to the cache")]
    fn ahead<T>(w: &T) {
        let place = std::ptr::from_ref(w).cast::<i8>().wrapping_add(AHEAD);
        // SAFETY: a prefetch reads nothing into the program and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place) };
    }

    macro_rules! kernel {
        (
            $name:ident, $features:literal, $vector:ty, $element:ty, $lanes:literal,
            $load:expr, $zero:ident, $splat:ident, $fma:ident
        ) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name<const R: usize>(
                x: &[[[f32; KB]; R]],
                panel: &[[[$element; $lanes]; 2]],
                out: &mut [[f32; 32]; 14],
            ) {
                let mut sums = [[$zero(); 2]; R];
                for (x, panel) in x.iter().zip(panel.chunks_exact(KB)) {
                    for (k, w) in panel.iter().enumerate() {
                        ahead(w);
                        let w: [$vector; 2] = [$load(w[0]), $load(w[1])];
                        for r in 0..R {
                            let x = $splat(x[r][k]);
                            sums[r][0] = $fma(x, w[0], sums[r][0]);
                            sums[r][1] = $fma(x, w[1], sums[r][1]);
                        }
                    }
                }
                for (out, sums) in out.iter_mut().zip(&sums) {
                    let sums: [[f32; $lanes]; 2] =
                        [bytemuck::cast(sums[0]), bytemuck::cast(sums[1])];
                    out[..2 * $lanes].copy_from_slice(sums.as_flattened());
                }
            }
        };
    }

    kernel!(
        avx512_half,
        "avx512f",
        __m512,
        u16,
        16,
        |bits| _mm512_cvtph_ps(bytemuck::cast(bits)),
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps
    );
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
    use half::f16;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f16::from_f32((state >> 8) as f32 / 16_777_216.0 - 0.5).to_f32()
        };
        (0..n).map(|_| next()).collect()
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
                        cpu.run(|| multiply(&cpu, &x, &packed, &b, &mut y));
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

    #[test]
    fn a_row_is_the_same_alone_and_in_company() {
        let (rows, inputs, outputs) = (37, 100, 70);
        let (x, w) = (noise(rows * inputs, 4), noise(outputs * inputs, 5));
        for level in Level::available() {
            let cpu = Cpu::with_level(Some(2), level).unwrap();
            let packed = Packed::new(&cpu, &[("w", View::of_f32(&w, inputs))]).unwrap();
            let mut all = vec![0.0; rows * outputs];
            cpu.run(|| multiply(&cpu, &x, &packed, &[], &mut all));
            for (x, want) in x.chunks_exact(inputs).zip(all.chunks_exact(outputs)) {
                let mut alone = vec![0.0; outputs];
                multiply(&cpu, x, &packed, &[], &mut alone);
                assert_eq!(alone, want);
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
        multiply(&cpu, &x, &stacked, &[], &mut left);
        multiply(&cpu, &x, &whole, &[], &mut right);
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
