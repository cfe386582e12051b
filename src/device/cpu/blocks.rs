//! Products of f32 matrices that change at every step: nothing is packed.
//!
//! Every output is one sum in an order that depends on its length alone: an output of [`combine`]
//! is a chain over ascending rows, one of [`dots`] has a lane for each place in a vector.

use pulp::{Simd, WithSimd};

use crate::device::cpu::Cpu;

/// Rows of a register tile.
const ROWS: usize = 4;

/// Columns of a register tile: rows of `b` in [`dots`], vectors in [`combine`].
const COLUMNS: usize = 2;

/// Rows of `x` that [`combine`] keeps in cache for all rows of `y`.
const DEPTH: usize = 128;

/// `y` [R, C] = `a` [R, W] . `b` [C, W]^T
pub(crate) fn dots(cpu: &Cpu, a: &[f32], b: &[f32], width: usize, y: &mut [f32]) {
    let (rows, columns) = (a.len() / width, b.len() / width);
    assert_eq!(
        y.len(),
        rows * columns,
        "dots: y is not [{rows}, {columns}]"
    );
    if y.is_empty() {
        return;
    }
    cpu.tiles(y, columns, usize::MAX, 32, a.len() * columns, |mut tile| {
        let count = tile.rows.first().map_or(0, |row| row.len());
        cpu.dispatch(Dots {
            a,
            b: &b[tile.first_column * width..][..count * width],
            width,
            rows: &mut tile.rows,
        });
    });
}

struct Dots<'a, 'y> {
    a: &'a [f32],
    b: &'a [f32],
    width: usize,
    rows: &'a mut [&'y mut [f32]],
}

impl WithSimd for Dots<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, b, width, rows } = self;
        let columns = b.len() / width;
        for first_column in (0..columns).step_by(COLUMNS) {
            // Past the edge the last row is taken again, and nothing is kept.
            let mut right = [&[][..]; COLUMNS];
            for (c, right) in right.iter_mut().enumerate() {
                *right = &b[(first_column + c).min(columns - 1) * width..][..width];
            }
            for first_row in (0..rows.len()).step_by(ROWS) {
                let mut left = [&[][..]; ROWS];
                for (r, left) in left.iter_mut().enumerate() {
                    *left = &a[(first_row + r).min(rows.len() - 1) * width..][..width];
                }
                let sums = dot_tile(simd, left, right);
                for (row, sums) in rows[first_row..].iter_mut().zip(&sums) {
                    for (y, sum) in row[first_column..].iter_mut().zip(sums) {
                        *y = *sum;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn dot_tile<S: Simd>(simd: S, a: [&[f32]; ROWS], b: [&[f32]; COLUMNS]) -> [[f32; COLUMNS]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); COLUMNS]; ROWS];
    let whole = a[0].len() / S::F32_LANES;
    let (mut a_whole, mut a_rest) = ([&[][..]; ROWS], [&[][..]; ROWS]);
    for r in 0..ROWS {
        let (vectors, rest) = S::as_simd_f32s(a[r]);
        (a_whole[r], a_rest[r]) = (&vectors[..whole], rest);
    }
    let (mut b_whole, mut b_rest) = ([&[][..]; COLUMNS], [&[][..]; COLUMNS]);
    for c in 0..COLUMNS {
        let (vectors, rest) = S::as_simd_f32s(b[c]);
        (b_whole[c], b_rest[c]) = (&vectors[..whole], rest);
    }
    for i in 0..whole {
        for r in 0..ROWS {
            for c in 0..COLUMNS {
                sums[r][c] = simd.mul_add_f32s(a_whole[r][i], b_whole[c][i], sums[r][c]);
            }
        }
    }
    let mut out = [[0.0; COLUMNS]; ROWS];
    for r in 0..ROWS {
        let a = simd.partial_load_f32s(a_rest[r]);
        for c in 0..COLUMNS {
            let b = simd.partial_load_f32s(b_rest[c]);
            out[r][c] = simd.reduce_sum_f32s(simd.mul_add_f32s(a, b, sums[r][c]));
        }
    }
    out
}

/// Multipliers of rows of `x` for rows of `y`: element `r * row_step + k * step` for row `r` and
/// `k`.
#[derive(Clone, Copy)]
pub(crate) struct Multipliers<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_step: usize,
    pub(crate) step: usize,
}

/// `y` [R, W] = sum over k of factor(r, k) `x` [K, W]; threads split the columns.
pub(crate) fn combine(cpu: &Cpu, factors: Multipliers<'_>, x: &[f32], width: usize, y: &mut [f32]) {
    let work = x.len() * (y.len() / width);
    cpu.tiles(y, width, usize::MAX, 32, work, |mut tile| {
        let first_column = tile.first_column;
        combine_rows(cpu, factors, x, width, first_column, &mut tile.rows);
    });
}

/// As [`combine`], on this thread: `rows` are the columns from `first_column` on of rows of `y`.
pub(crate) fn combine_rows(
    cpu: &Cpu,
    factors: Multipliers<'_>,
    x: &[f32],
    width: usize,
    first_column: usize,
    rows: &mut [&mut [f32]],
) {
    rows.iter_mut().for_each(|row| row.fill(0.0));
    cpu.dispatch(Combine {
        factors,
        x,
        width,
        first_column,
        rows,
    });
}

struct Combine<'a, 'y> {
    factors: Multipliers<'a>,
    x: &'a [f32],
    width: usize,
    first_column: usize,
    rows: &'a mut [&'y mut [f32]],
}

impl WithSimd for Combine<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            factors,
            x,
            width,
            first_column,
            rows,
        } = self;
        let columns = rows.first().map_or(0, |row| row.len());
        let span = COLUMNS * S::F32_LANES;
        for (block, x) in x.chunks(DEPTH * width).enumerate() {
            for (tile, rows) in rows.chunks_mut(ROWS).enumerate() {
                let mut picked = [[0.0; ROWS]; DEPTH];
                for (k, picked) in picked[..x.len() / width].iter_mut().enumerate() {
                    let at = tile * ROWS * factors.row_step + (block * DEPTH + k) * factors.step;
                    for (r, factor) in picked[..rows.len()].iter_mut().enumerate() {
                        *factor = factors.values[at + r * factors.row_step];
                    }
                }
                for start in (0..columns).step_by(span) {
                    let end = columns.min(start + span);
                    let x = &x[first_column + start..];
                    combine_tile(simd, &picked, x, width, start..end, rows);
                }
            }
        }
    }
}

/// `rows[r][columns] += picked[k][r] x[k]`, x[k] beginning at `k * width`.
#[inline(always)]
fn combine_tile<S: Simd>(
    simd: S,
    picked: &[[f32; ROWS]],
    x: &[f32],
    width: usize,
    columns: std::ops::Range<usize>,
    rows: &mut [&mut [f32]],
) {
    let (lanes, count) = (S::F32_LANES, columns.len());
    let mut sums = [[simd.splat_f32s(0.0); COLUMNS]; ROWS];
    for (sums, row) in sums.iter_mut().zip(rows.iter()) {
        for (sum, part) in sums.iter_mut().zip(row[columns.clone()].chunks(lanes)) {
            *sum = simd.partial_load_f32s(part);
        }
    }
    for (x, factors) in x.chunks(width).zip(picked) {
        let x = &x[..count];
        let vectors = match S::as_simd_f32s(x).0.first_chunk::<COLUMNS>() {
            Some(vectors) => *vectors,
            None => {
                let mut vectors = [simd.splat_f32s(0.0); COLUMNS];
                for (vector, part) in vectors.iter_mut().zip(x.chunks(lanes)) {
                    *vector = simd.partial_load_f32s(part);
                }
                vectors
            }
        };
        for r in 0..ROWS {
            let factor = simd.splat_f32s(factors[r]);
            for c in 0..COLUMNS {
                sums[r][c] = simd.mul_add_f32s(factor, vectors[c], sums[r][c]);
            }
        }
    }
    for (sums, row) in sums.iter().zip(rows.iter_mut()) {
        for (sum, part) in sums.iter().zip(row[columns.clone()].chunks_mut(lanes)) {
            simd.partial_store_f32s(part, *sum);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::device::cpu::math;
    use crate::ops::reference::noise;
    use crate::ops::testing::{assert_close, wide};

    #[test]
    fn products_match_f64_and_do_not_depend_on_threads() {
        for (rows, depth, width) in [
            (1, 1, 1),
            (3, 7, 5),
            (4, 65, 63),
            (33, 257, 65),
            (9, 300, 384),
        ] {
            let (a, b) = (noise(rows * width, 1), noise(depth * width, 2));
            let f = noise(rows * depth, 3);
            let (a64, b64, f64s) = (wide(&a), wide(&b), wide(&f));
            let mut products = vec![0.0; rows * depth];
            let mut sums = vec![0.0; rows * width];
            for r in 0..rows {
                for k in 0..depth {
                    for c in 0..width {
                        products[r * depth + k] += a64[r * width + c] * b64[k * width + c];
                        sums[r * width + c] += f64s[r * depth + k] * b64[k * width + c];
                    }
                }
            }
            let mut turned = vec![0.0; f.len()];
            for (i, value) in f.iter().enumerate() {
                turned[i % depth * rows + i / depth] = *value;
            }
            let results = [1, 2, 3].map(|threads| {
                let cpu = Cpu::open(Some(threads)).unwrap();
                let mut y = vec![f32::NAN; rows * depth];
                let mut sum = vec![f32::NAN; rows * width];
                let mut other = sum.clone();
                cpu.run(|| {
                    dots(&cpu, &a, &b, width, &mut y);
                    let mut factors = Multipliers {
                        values: &f,
                        row_step: depth,
                        step: 1,
                    };
                    combine(&cpu, factors, &b, width, &mut sum);
                    factors = Multipliers {
                        values: &turned,
                        row_step: 1,
                        step: rows,
                    };
                    combine(&cpu, factors, &b, width, &mut other);
                });
                assert_close("dots", &y, &products, 1e-5);
                assert_close("combine", &sum, &sums, 1e-5);
                assert_eq!(sum, other, "the steps of the factors");
                (y, sum)
            });
            assert!(results.iter().all(|result| *result == results[0]));
            let one = math::dot(&a[..width], &b[..width]);
            assert_close("dot", &[one], &products[..1], 1e-5);
        }
    }
}
