//! Dense linear algebra in f64 on the CPU: products, Cholesky factors, triangular solves,
//! orthonormal rows.
//!
//! Products are blocked (Goto and van de Geijn, "Anatomy of high-performance matrix
//! multiplication", 2008). Every sum has one order for any number of threads, and no multiplication
//! is fused with an addition, so the bits are the same on every CPU.

use pulp::{Simd, WithSimd};

use crate::device::cpu::Cpu;
use crate::error::{Result, bail};

/// Rows and columns of C that are computed together, products that are added before the next, rows
/// of which one thread has a copy.
const MR: usize = 4;
const NR: usize = 16;
const KC: usize = 256;
const MC: usize = 64;

/// Columns of a factor that are found together.
const NB: usize = 64;

/// A pivot below this share of what it was is rounding: its row depends on those before it.
const DEPENDENT: f64 = 1e-12;

/// A matrix to be read: element (i, j) is `values[i * row + j * column]`.
#[derive(Clone, Copy)]
pub(crate) struct DenseView<'v> {
    values: &'v [f64],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'v> DenseView<'v> {
    /// Row-major rows of `columns`.
    pub(crate) fn rows(values: &'v [f64], columns: usize) -> Self {
        Self {
            values,
            rows: values.len() / columns.max(1),
            columns,
            row: columns,
            column: 1,
        }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row: self.column,
            column: self.row,
            ..self
        }
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.row + j * self.column]
    }
}

/// Which elements of C are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    All,
    /// Those on and below the diagonal; others may hold anything.
    Lower,
}

/// C += `alpha` A B; `c`: row-major, as many rows and columns as the product.
pub(crate) fn add_product(
    cpu: &Cpu,
    alpha: f64,
    a: DenseView<'_>,
    b: DenseView<'_>,
    part: Region,
    c: &mut [f64],
) {
    let columns = b.columns;
    add_inside(cpu, alpha, a, b, part, c, columns, 0);
}

/// The same into columns `first..` of rows that are `stride` apart.
#[expect(clippy::too_many_arguments, reason = "a product and its place")]
fn add_inside(
    cpu: &Cpu,
    alpha: f64,
    a: DenseView<'_>,
    b: DenseView<'_>,
    part: Region,
    c: &mut [f64],
    stride: usize,
    first: usize,
) {
    assert_eq!(a.columns, b.rows, "dense: inner sizes differ");
    let (n, panels) = (b.columns, b.columns.div_ceil(NR));
    if n == 0 || a.rows == 0 {
        return;
    }
    let mut packed = Vec::new();
    for k in (0..a.columns).step_by(KC) {
        let depth = KC.min(a.columns - k);
        packed.clear();
        packed.resize(panels * depth * NR, 0.0);
        cpu.rows(&mut packed, depth * NR, depth * NR, |first, block| {
            for (p, panel) in block.chunks_exact_mut(depth * NR).enumerate() {
                let j = (first + p) * NR;
                for (t, row) in panel.chunks_exact_mut(NR).enumerate() {
                    for (x, value) in row.iter_mut().take(n - j).enumerate() {
                        *value = alpha * b.at(k + t, j + x);
                    }
                }
            }
        });
        let packed = &packed[..];
        cpu.each(c, stride * MC, stride * MC * depth, |block, rows| {
            let begin = block * MC;
            let height = MC.min(a.rows.saturating_sub(begin));
            let mut left = vec![0.0; height.next_multiple_of(MR) * depth];
            for (quad, panel) in left.chunks_exact_mut(MR * depth).enumerate() {
                for (t, values) in panel.chunks_exact_mut(MR).enumerate() {
                    for (y, value) in values.iter_mut().enumerate() {
                        let i = quad * MR + y;
                        *value = if i < height {
                            a.at(begin + i, k + t)
                        } else {
                            0.0
                        };
                    }
                }
            }
            // A panel of B stays in the first cache while it meets all rows of the block.
            for (p, right) in packed.chunks_exact(depth * NR).enumerate() {
                let j = p * NR;
                for (quad, left) in left.chunks_exact(MR * depth).enumerate() {
                    let i = quad * MR;
                    if part == Region::Lower && j >= begin + i + MR {
                        continue;
                    }
                    let sums = cpu.dispatch(DenseTile { left, right });
                    let width = NR.min(n - j);
                    let rows = rows[i * stride..].chunks_mut(stride);
                    for (row, sums) in rows.zip(&sums).take(height - i) {
                        let row = &mut row[first + j..][..width];
                        for (value, sum) in row.iter_mut().zip(sums) {
                            *value += sum;
                        }
                    }
                }
            }
        });
    }
}

/// The product of `left` [k, MR], transposed, and `right` [k, NR].
struct DenseTile<'t> {
    left: &'t [f64],
    right: &'t [f64],
}

impl WithSimd for DenseTile<'_> {
    type Output = [[f64; NR]; MR];

    /// Two vectors of each row at a time: their sums stay in registers.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let (left, _) = self.left.as_chunks::<MR>();
        let (right, _) = self.right.as_chunks::<NR>();
        let mut tile = [[0.0; NR]; MR];
        let columns = (2 * S::F64_LANES).min(NR);
        for first in (0..NR).step_by(columns) {
            let mut sums = [[simd.splat_f64s(0.0); 2]; MR];
            for (left, right) in left.iter().zip(right) {
                let (b, _) = S::as_simd_f64s(&right[first..first + columns]);
                for (sums, a) in sums.iter_mut().zip(left) {
                    let a = simd.splat_f64s(*a);
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = simd.add_f64s(*sum, simd.mul_f64s(a, *b));
                    }
                }
            }
            for (row, sums) in tile.iter_mut().zip(sums) {
                let (places, _) = S::as_mut_simd_f64s(&mut row[first..first + columns]);
                places
                    .iter_mut()
                    .zip(sums)
                    .for_each(|(place, sum)| *place = sum);
            }
        }
        tile
    }
}

/// The treatment of a pivot that is not positive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pivot {
    /// An error.
    Refused,
    /// Its row and column of the factor are zero, and 1 on the diagonal.
    Dropped,
}

/// The lower factor L of a symmetric positive definite matrix, L L^T = `a` [n, n], in its place;
/// what is above the diagonal is zero. Of `a` the lower triangle is read.
///
/// Errors: `a` is not positive definite.
pub(crate) fn cholesky(cpu: &Cpu, a: &mut [f64], n: usize) -> Result<()> {
    factor(cpu, a, n, Pivot::Refused).map(|_| ())
}

/// Also says which rows were kept.
fn factor(cpu: &Cpu, a: &mut [f64], n: usize, pivot: Pivot) -> Result<Vec<bool>> {
    let before: Vec<f64> = (0..n).map(|i| a[i * n + i]).collect();
    let mut kept = vec![true; n];
    for begin in (0..n).step_by(NB) {
        let width = NB.min(n - begin);
        for j in begin..begin + width {
            let (above, row) = a.split_at_mut(j * n);
            for t in begin..j {
                let other = &above[t * n + begin..t * n + t];
                let sum: f64 = other.iter().zip(&row[begin..t]).map(|(x, y)| x * y).sum();
                row[t] = if kept[t] {
                    (row[t] - sum) / above[t * n + t]
                } else {
                    0.0
                };
            }
            let own = row[begin..j].iter().map(|x| x * x).sum::<f64>();
            let left = row[j] - own;
            if left > DEPENDENT * before[j] {
                row[j] = left.sqrt();
            } else if pivot == Pivot::Dropped {
                kept[j] = false;
                row[..j].fill(0.0);
                row[j] = 1.0;
            } else {
                bail!(
                    Numeric,
                    "a covariance: expected a positive definite matrix, \
                     found a pivot of {left:e} in row {j}"
                );
            }
        }
        let below = begin + width;
        if below == n {
            break;
        }
        let (above, rest) = a.split_at_mut(below * n);
        // The block's factor by columns, for rows of the panel x with x L^T = a.
        let mut columns = vec![0.0; width * width];
        for (t, column) in columns.chunks_exact_mut(width).enumerate() {
            for (j, value) in column.iter_mut().enumerate() {
                *value = above[(begin + j) * n + begin + t];
            }
        }
        let own = &kept[begin..below];
        cpu.rows(rest, n, width * width, |_, rows| {
            for row in rows.chunks_exact_mut(n) {
                solve_row(&mut row[begin..below], &columns, own);
            }
        });
        let panel: Vec<f64> = rest
            .chunks_exact(n)
            .flat_map(|row| &row[begin..below])
            .copied()
            .collect();
        let panel = DenseView::rows(&panel, width);
        add_inside(
            cpu,
            -1.0,
            panel,
            panel.transposed(),
            Region::Lower,
            rest,
            n,
            below,
        );
    }
    for (i, row) in a.chunks_exact_mut(n.max(1)).enumerate() {
        row[i + 1..].fill(0.0);
    }
    Ok(kept)
}

/// x with x L^T = `row`, in its place; `columns`: those of L, one after the other.
fn solve_row(row: &mut [f64], columns: &[f64], kept: &[bool]) {
    let width = row.len();
    for t in 0..width {
        let column = &columns[t * width..][..width];
        row[t] = if kept[t] { row[t] / column[t] } else { 0.0 };
        let (done, rest) = row.split_at_mut(t + 1);
        let x = done[t];
        for (value, l) in rest.iter_mut().zip(&column[t + 1..]) {
            *value -= x * l;
        }
    }
}

/// X with L X = `x` [n, m], in its place.
pub(crate) fn solve_lower(cpu: &Cpu, l: &[f64], x: &mut [f64], n: usize) {
    let m = x.len() / n.max(1);
    for begin in (0..n).step_by(NB) {
        let width = NB.min(n - begin);
        let (above, rest) = x.split_at_mut(begin * m);
        let block = &mut rest[..width * m];
        let left = DenseView {
            values: &l[begin * n..],
            rows: width,
            columns: begin,
            row: n,
            column: 1,
        };
        add_product(
            cpu,
            -1.0,
            left,
            DenseView::rows(above, m),
            Region::All,
            block,
        );
        for i in 0..width {
            let (before, row) = block.split_at_mut(i * m);
            let row = &mut row[..m];
            let factors = &l[(begin + i) * n + begin..];
            for (other, factor) in before.chunks_exact(m).zip(factors) {
                for (value, other) in row.iter_mut().zip(other) {
                    *value -= factor * other;
                }
            }
            row.iter_mut().for_each(|value| *value /= factors[i]);
        }
    }
}

/// X with L^T X = `x` [n, m], in its place.
pub(crate) fn solve_lower_transposed(cpu: &Cpu, l: &[f64], x: &mut [f64], n: usize) {
    let m = x.len() / n.max(1);
    let blocks = (0..n).step_by(NB).rev();
    for begin in blocks {
        let width = NB.min(n - begin);
        let (upper, below) = x.split_at_mut((begin + width) * m);
        let block = &mut upper[begin * m..];
        if begin + width < n {
            let left = DenseView {
                values: &l[(begin + width) * n + begin..],
                rows: n - begin - width,
                columns: width,
                row: n,
                column: 1,
            };
            let left = left.transposed();
            add_product(
                cpu,
                -1.0,
                left,
                DenseView::rows(below, m),
                Region::All,
                block,
            );
        }
        for i in (0..width).rev() {
            let (row, after) = block[i * m..].split_at_mut(m);
            for (t, other) in after.chunks_exact(m).enumerate() {
                let factor = l[(begin + i + 1 + t) * n + begin + i];
                for (value, other) in row.iter_mut().zip(other) {
                    *value -= factor * other;
                }
            }
            let own = l[(begin + i) * n + begin + i];
            row.iter_mut().for_each(|value| *value /= own);
        }
    }
}

/// Rows that are orthonormal and span what those of `v` [r, n] do: at most r, fewer where some
/// depend on others.
///
/// By Cholesky factors of their products, twice (Yamamoto et al., "Roundoff error analysis of the
/// CholeskyQR2 algorithm", 2015).
pub(crate) fn orthonormal(cpu: &Cpu, mut v: Vec<f64>, n: usize) -> Result<Vec<f64>> {
    for _ in 0..2 {
        let r = v.len() / n.max(1);
        let mut products = vec![0.0; r * r];
        let rows = DenseView::rows(&v, n);
        add_product(
            cpu,
            1.0,
            rows,
            rows.transposed(),
            Region::Lower,
            &mut products,
        );
        let kept = factor(cpu, &mut products, r, Pivot::Dropped)?;
        solve_lower(cpu, &products, &mut v, r);
        let rows = v.chunks_exact(n).zip(kept);
        v = rows
            .filter(|(_, kept)| *kept)
            .flat_map(|(row, _)| row)
            .copied()
            .collect();
    }
    Ok(v)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::testing::noise;

    fn values(rows: usize, columns: usize, seed: u64) -> Vec<f64> {
        noise(rows * columns, seed)
            .into_iter()
            .map(f64::from)
            .collect()
    }

    fn product(a: DenseView<'_>, b: DenseView<'_>) -> Vec<f64> {
        let mut c = Vec::new();
        for i in 0..a.rows {
            for j in 0..b.columns {
                c.push((0..a.columns).map(|k| a.at(i, k) * b.at(k, j)).sum());
            }
        }
        c
    }

    fn close(found: &[f64], want: &[f64], bound: f64) {
        assert_eq!(found.len(), want.len());
        for (i, (a, b)) in found.iter().zip(want).enumerate() {
            assert!((a - b).abs() <= bound, "element {i}: {a}, expected {b}");
        }
    }

    fn cpus() -> [Cpu; 2] {
        [1, 3].map(|threads| Cpu::open(Some(threads)).unwrap())
    }

    #[test]
    fn products_of_ugly_shapes_are_the_same_on_all_threads() {
        for (m, k, n) in [
            (1, 1, 1),
            (3, 300, 17),
            (70, 5, 33),
            (37, 257, 40),
            (5, 0, 3),
        ] {
            let (a, b) = (values(m, k, 1), values(n, k, 2));
            let (a, b) = (DenseView::rows(&a, k), DenseView::rows(&b, k).transposed());
            let (a, b) = (DenseView { rows: m, ..a }, DenseView { columns: n, ..b });
            let want: Vec<f64> = product(a, b).iter().map(|c| 2.0 - 0.5 * c).collect();
            let found = cpus().map(|cpu| {
                let mut c = vec![2.0; m * n];
                add_product(&cpu, -0.5, a, b, Region::All, &mut c);
                c
            });
            close(&found[0], &want, 1e-10);
            assert_eq!(found[0], found[1]);
        }
    }

    #[test]
    fn the_lower_part_is_that_of_the_whole() {
        let a = values(50, 30, 1);
        let a = DenseView::rows(&a, 30);
        let cpu = Cpu::open(Some(2)).unwrap();
        let mut c = vec![0.0; 50 * 50];
        add_product(&cpu, 1.0, a, a.transposed(), Region::Lower, &mut c);
        let want = product(a, a.transposed());
        for i in 0..50 {
            close(&c[i * 50..=i * 51], &want[i * 50..=i * 51], 1e-10);
        }
    }

    /// [n, n], symmetric, positive definite.
    fn definite(n: usize) -> Vec<f64> {
        let a = values(n, n + 5, 3);
        let a = DenseView::rows(&a, n + 5);
        let mut c = product(a, a.transposed());
        (0..n).for_each(|i| c[i * n + i] += 0.1);
        c
    }

    #[test]
    fn factors_and_solves_undo_each_other() {
        for n in [1, 2, 63, 64, 65, 150] {
            let a = definite(n);
            let found = cpus().map(|cpu| {
                let mut l = a.clone();
                cholesky(&cpu, &mut l, n).unwrap();
                l
            });
            assert_eq!(found[0], found[1]);
            let l = &found[0];
            let factor = DenseView::rows(l, n);
            close(&product(factor, factor.transposed()), &a, 1e-9);
            let (cpu, b) = (Cpu::open(Some(2)).unwrap(), values(n, 7, 4));
            let mut x = b.clone();
            solve_lower(&cpu, l, &mut x, n);
            close(&product(factor, DenseView::rows(&x, 7)), &b, 1e-8);
            let mut x = b.clone();
            solve_lower_transposed(&cpu, l, &mut x, n);
            close(
                &product(factor.transposed(), DenseView::rows(&x, 7)),
                &b,
                1e-8,
            );
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused() {
        let cpu = Cpu::open(Some(1)).unwrap();
        for bad in [[1.0, 0.0, 2.0, 1.0], [1.0, 0.0, f64::NAN, 1.0], [0.0; 4]] {
            let error = cholesky(&cpu, &mut bad.clone(), 2).unwrap_err();
            assert!(error.to_string().contains("positive definite"), "{error}");
        }
    }

    #[test]
    fn orthonormal_rows_span_the_same() {
        let (cpu, n) = (Cpu::open(Some(2)).unwrap(), 40);
        let mut v = values(5, n, 5);
        // Rows 2 and 4 depend on others.
        for j in 0..n {
            v[2 * n + j] = v[j] - 3.0 * v[n + j];
            v[4 * n + j] = 0.0;
        }
        let q = orthonormal(&cpu, v.clone(), n).unwrap();
        assert_eq!(q.len(), 3 * n);
        let q = DenseView::rows(&q, n);
        let want: Vec<f64> = (0..9).map(|i| f64::from(u8::from(i % 4 == 0))).collect();
        close(&product(q, q.transposed()), &want, 1e-12);
        // v Q^T Q = v
        let v = DenseView::rows(&v, n);
        let shares = product(v, q.transposed());
        close(&product(DenseView::rows(&shares, 3), q), v.values, 1e-9);
    }
}
