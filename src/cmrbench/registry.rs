//! A hub's model embeddings on a plane. They are noted when a cell is done, because its generation
//! is not kept (cmrbench.md section 9, figure 4).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cmrbench::Cell;
use crate::error::{Result, bail};
use crate::files;

/// Most iterations of the power method.
const TURNS: usize = 2000;

/// The state of a method after its last step.
pub(crate) struct LastStep {
    /// By id.
    pub(crate) models: Vec<String>,
    /// E [M, D]
    pub(crate) embeddings: Vec<f32>,
    /// D
    pub(crate) width: usize,
    /// Size of the generation on disk.
    pub(crate) stored_bytes: u64,
}

/// The places of a hub's models; `registry/<method>-s<seed>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RegistryMap {
    /// Version of this form; 1.
    pub schema_version: u32,
    /// The key of its cell.
    pub key: String,
    /// Shares of the variance along x and y.
    pub explained: [f64; 2],
    /// By id.
    pub models: Vec<String>,
    /// Along the first principal axis of the unit rows of E.
    pub x: Vec<f64>,
    /// Along the second.
    pub y: Vec<f64>,
}

impl RegistryMap {
    /// The file of a cell's map.
    pub fn file(out: &Path, method: &str, seed: u64) -> PathBuf {
        out.join("registry").join(format!("{method}-s{seed}.json"))
    }

    pub(super) fn new(kept: LastStep, key: &str) -> Self {
        let plane = plane(&kept.embeddings, kept.width);
        // A millionth of a unit row's length is finer than any figure.
        let along = |axis: usize| {
            let of = |point: &[f64; 2]| (point[axis] * 1e6).round() / 1e6;
            plane.points.iter().map(of).collect()
        };
        Self {
            schema_version: 1,
            key: key.to_owned(),
            explained: plane.explained,
            models: kept.models,
            x: along(0),
            y: along(1),
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            files::make_folder(folder)?;
        }
        files::replace(path, &files::to_json(self)?)
    }

    /// The map of `cell`; `None` where a version without maps ran it, or the file is of another
    /// cell.
    ///
    /// Errors: the file is malformed.
    pub fn read(out: &Path, cell: &Cell) -> Result<Option<Self>> {
        let path = Self::file(out, &cell.method, cell.seed);
        if !path.exists() {
            return Ok(None);
        }
        let map: Self = files::read_json(&path, 1 << 28)?;
        let models = map.models.len();
        if (map.x.len(), map.y.len()) != (models, models) {
            bail!(
                Mismatch,
                "{}: expected x and y of {models} models, found {} and {}",
                path.display(),
                map.x.len(),
                map.y.len()
            );
        }
        Ok((map.key == cell.key).then_some(map))
    }
}

/// Rows on their first two principal axes.
struct Plane {
    points: Vec<[f64; 2]>,
    explained: [f64; 2],
}

/// PCA of the unit rows of `rows` [M, width], in f64.
fn plane(rows: &[f32], width: usize) -> Plane {
    let mut rows: Vec<Vec<f64>> = rows
        .chunks_exact(width.max(1))
        .map(|row| {
            let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let norm = norm.sqrt().max(f64::MIN_POSITIVE);
            row.iter().map(|x| f64::from(*x) / norm).collect()
        })
        .collect();
    let count = rows.len().max(1) as f64;
    for column in 0..width {
        let mean = rows.iter().map(|row| row[column]).sum::<f64>() / count;
        rows.iter_mut().for_each(|row| row[column] -= mean);
    }
    let mut covariance = vec![0.0; width * width];
    for row in &rows {
        for (x, out) in row.iter().zip(covariance.chunks_exact_mut(width)) {
            out.iter_mut().zip(row).for_each(|(out, y)| *out += x * y);
        }
    }
    let variance: f64 = covariance.iter().step_by(width + 1).sum();
    let axes = [0, 1].map(|_| leading(&mut covariance, width));
    let on = |axis: &[f64], row: &Vec<f64>| axis.iter().zip(row).map(|(a, x)| a * x).sum::<f64>();
    let point = |row: &Vec<f64>| [on(&axes[0].1, row), on(&axes[1].1, row)];
    let share = |value: f64| {
        if variance > 0.0 {
            (value / variance).clamp(0.0, 1.0)
        } else {
            0.0
        }
    };
    Plane {
        points: rows.iter().map(point).collect(),
        explained: [share(axes[0].0), share(axes[1].0)],
    }
}

/// The largest eigenvalue of a positive semidefinite `matrix` [n, n] with its unit vector, whose
/// largest entry is positive; both are taken out of the matrix.
fn leading(matrix: &mut [f64], n: usize) -> (f64, Vec<f64>) {
    // The column of the largest diagonal entry is never at a right angle to the axis of a matrix
    // that has one.
    let diagonal = |i: usize| matrix[i * (n + 1)];
    let first = (0..n).max_by(|a, b| diagonal(*a).total_cmp(&diagonal(*b)));
    let mut vector = vec![0.0; n];
    let Some(first) = first.filter(|first| diagonal(*first) > 1e-12) else {
        return (0.0, vector);
    };
    vector.copy_from_slice(&matrix[first * n..(first + 1) * n]);
    let unit = |vector: &mut [f64]| {
        let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        vector.iter_mut().for_each(|x| *x /= norm);
        norm
    };
    unit(&mut vector);
    let mut value = 0.0;
    for _ in 0..TURNS {
        let on = |row: &[f64]| row.iter().zip(&vector).map(|(a, x)| a * x).sum::<f64>();
        let mut next: Vec<f64> = matrix.chunks_exact(n).map(on).collect();
        value = unit(&mut next);
        let change = next.iter().zip(&vector).map(|(a, b)| (a - b).abs());
        let change = change.fold(0.0, f64::max);
        vector = next;
        if change < 1e-12 {
            break;
        }
    }
    let largest = vector.iter().copied().fold(
        0.0,
        |best: f64, x| if x.abs() > best.abs() { x } else { best },
    );
    if largest < 0.0 {
        vector.iter_mut().for_each(|x| *x = -*x);
    }
    for (a, row) in vector.iter().zip(matrix.chunks_exact_mut(n)) {
        let pairs = row.iter_mut().zip(&vector);
        pairs.for_each(|(out, b)| *out -= value * a * b);
    }
    (value, vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-9, "expected {want}, found {got}");
        }
    }

    /// [[2, 1], [1, 2]]: 3 along (1, 1), 1 along (1, -1).
    #[test]
    fn axes_of_a_known_matrix() {
        let mut matrix = [2.0, 1.0, 1.0, 2.0];
        let half = 0.5f64.sqrt();
        let (value, vector) = leading(&mut matrix, 2);
        close(&[value, vector[0], vector[1]], &[3.0, half, half]);
        close(&matrix, &[0.5, -0.5, -0.5, 0.5]);
        let (value, vector) = leading(&mut matrix, 2);
        close(
            &[value, vector[0].abs(), vector[1].abs()],
            &[1.0, half, half],
        );
        assert!(vector[0] * vector[1] < 0.0);
        let (value, vector) = leading(&mut matrix, 2);
        close(&[value, vector[0], vector[1]], &[0.0; 3]);
    }

    /// Three pairs along one direction of a turned space and one pair across it, of any lengths.
    #[test]
    fn rows_on_their_axes() {
        let (a, b) = ([0.6f32, 0.8, 0.0], [-0.8f32, 0.6, 0.0]);
        let mut rows = Vec::new();
        for (direction, lengths) in [
            (a, vec![1.0, -3.0, 0.5, -0.5, 7.0, -1.0]),
            (b, vec![2.0, -9.0]),
        ] {
            for length in lengths {
                rows.extend(direction.map(|x| x * length));
            }
        }
        let plane = plane(&rows, 3);
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-6, "{got} for {want}");
        near(plane.explained[0], 0.75);
        near(plane.explained[1], 0.25);
        for (place, point) in plane.points.iter().enumerate() {
            let sign = if place % 2 == 0 { 1.0 } else { -1.0 };
            let along = if place < 6 { 0 } else { 1 };
            near(point[along].abs(), 1.0);
            near(point[1 - along], 0.0);
            near(point[along] * sign, plane.points[along * 6][along]);
        }
    }

    #[test]
    fn one_model_has_a_place_too() {
        let plane = plane(&[3.0, 4.0], 2);
        assert_eq!(
            (plane.points, plane.explained),
            (vec![[0.0, 0.0]], [0.0, 0.0])
        );
    }
}
