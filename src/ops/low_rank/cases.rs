//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Branch, Gradients, LayerJobs, LowRank, MAPS, Merge};
use crate::device::{Device, Pass, Place, Tensor};
use crate::error::Result;
use crate::ops::case::Case;
use crate::ops::reference::{self, noise, wide};

/// A layer's merged weights and gradients, for each of `sizes`; none where the kernels cannot be
/// taken.
pub(crate) fn all(device: &Device, sizes: &[LayerSize]) -> Result<Vec<Case>> {
    let op = Arc::new(LowRank::new());
    let mut cases = Vec::new();
    for size in sizes {
        let inputs = LayerInputs::new(*size);
        let label = format!("{}x{} rank {}", size.tokens, size.hidden, size.rank);
        let merge = inputs.merge(device, &op)?;
        cases.extend(merge.map(|case| case.of(&format!("merge {label}"))));
        let gradients = inputs.gradients(device, &op)?;
        cases.extend(gradients.map(|case| case.of(&label)));
    }
    Ok(cases)
}

/// A layer whose maps are [3H, H], [H, H], [F, H] and [H, F].
#[derive(Clone, Copy)]
pub(crate) struct LayerSize {
    pub(crate) tokens: usize,
    /// H
    pub(crate) hidden: usize,
    /// F
    pub(crate) wide: usize,
    pub(crate) rank: usize,
    /// The first map's keys and the second map have no factors.
    pub(crate) some: bool,
}

/// A layer's tensors of noise.
struct LayerInputs {
    size: LayerSize,
    widths: [(usize, usize); MAPS],
    branches: Vec<Branch>,
    theta: Vec<f32>,
}

const SCALE: f32 = 1.5;

/// Elements before the factors.
const BEFORE: usize = 8;

impl LayerInputs {
    fn new(size: LayerSize) -> Self {
        let LayerSize {
            hidden: h,
            wide: f,
            rank,
            some,
            ..
        } = size;
        let widths = [(h, 3 * h), (h, h), (h, f), (f, h)];
        let mut offset = BEFORE;
        let mut branches = Vec::new();
        for (map, (inputs, outputs)) in widths.into_iter().enumerate() {
            let count = if map == 0 { 3 } else { 1 };
            for part in 0..count {
                let own = outputs / count;
                let left_out = some && (map, part) != (0, 0) && (map, part) != (0, 2) && map < 2;
                let mut place = |columns| {
                    let place = Place::flat(offset, rank, columns);
                    offset = place.end();
                    place
                };
                let factors = (!left_out).then(|| [place(inputs), place(own)]);
                branches.push(Branch {
                    map,
                    first_output: part * own,
                    outputs: own,
                    factors,
                });
            }
        }
        Self {
            size,
            widths,
            branches,
            theta: noise(offset + BEFORE, 1),
        }
    }

    fn jobs(&self, device: &Device) -> Result<Option<LayerJobs>> {
        LayerJobs::new(device, self.widths, &self.branches, SCALE)
    }

    /// W [out, in], x [T, in] and dy [T, out] of a map.
    fn of(&self, map: usize) -> [Vec<f32>; 3] {
        let ((inputs, outputs), t) = (self.widths[map], self.size.tokens);
        let seed = 10 * map as u64;
        [
            noise(outputs * inputs, seed + 2),
            noise(t * inputs, seed + 3),
            noise(t * outputs, seed + 4),
        ]
    }

    fn theta(&self, device: &Device) -> Result<Tensor> {
        device.upload("theta", self.theta.len(), &self.theta)
    }

    /// Outputs: the merged weights.
    fn merge(&self, device: &Device, op: &Arc<LowRank>) -> Result<Option<Case>> {
        let Some(jobs) = self.jobs(device)? else {
            return Ok(None);
        };
        let (mut w, mut merged) = (Vec::new(), Vec::new());
        for (map, (inputs, outputs)) in self.widths.into_iter().enumerate() {
            w.push(device.upload("w", inputs, &self.of(map)[0])?);
            merged.push(device.scratch("merged", outputs, inputs)?);
        }
        let theta = self.theta(device)?;
        let op = Arc::clone(op);
        let run = move |pass: &mut Pass<'_>, merged: &mut [Tensor; MAPS]| {
            let Pass::Gpu(gpu) = pass else {
                unreachable!("the jobs are a GPU's")
            };
            let m = Merge {
                jobs: &jobs,
                theta: &theta,
                w: [&w[0], &w[1], &w[2], &w[3]],
                merged: merged.each_mut(),
            };
            op.merge(gpu, m);
        };
        let want = {
            let mut want = [0, 1, 2, 3].map(|map| wide(&self.of(map)[0]));
            for branch in &self.branches {
                let (inputs, w) = (self.widths[branch.map].0, &mut want[branch.map]);
                if let Some([a, b]) = branch.factors {
                    let product = self.product(&self.transposed(b), a, inputs);
                    let w = &mut w[branch.first_output * inputs..];
                    for (w, p) in w.iter_mut().zip(product) {
                        *w += f64::from(SCALE) * p;
                    }
                }
            }
            want
        };
        let merged = merged.try_into().ok();
        let case = merged.map(|merged| Case::new("low_rank", merged, run, move || want.clone()));
        let n: usize = self.widths.iter().map(|(i, o)| i * o).sum();
        let flops = 2.0 * (n * self.size.rank) as f64;
        Ok(case.map(|case| case.work(flops, 8.0 * n as f64)))
    }

    fn factor(&self, place: Place) -> Vec<f64> {
        wide(&self.theta[place.offset..place.end()])
    }

    fn transposed(&self, place: Place) -> Vec<f64> {
        transpose(&self.factor(place), place.columns)
    }

    /// `left` [., r] with the factor at `place`.
    fn product(&self, left: &[f64], place: Place, columns: usize) -> Vec<f64> {
        reference::product(left, &self.factor(place), columns)
    }

    /// Output: the gradients of the factors, added to halves.
    fn gradients(&self, device: &Device, op: &Arc<LowRank>) -> Result<Option<Case>> {
        let Some(jobs) = self.jobs(device)? else {
            return Ok(None);
        };
        let t = self.size.tokens;
        let (mut x, mut dy) = (Vec::new(), Vec::new());
        for (map, (inputs, outputs)) in self.widths.into_iter().enumerate() {
            let [_, own_x, own_dy] = self.of(map);
            x.push(device.upload("x", inputs, &own_x)?);
            dy.push(device.upload("dy", outputs, &own_dy)?);
        }
        let mut blocks = device.scratch("blocks", t, jobs.blocks())?;
        let n = self.theta.len();
        let (theta, grad) = (
            self.theta(device)?,
            device.upload("grad", n, &vec![0.5; n])?,
        );
        let op = Arc::clone(op);
        let run = move |pass: &mut Pass<'_>, [grad]: &mut [Tensor; 1]| {
            let Pass::Gpu(gpu) = pass else {
                unreachable!("the jobs are a GPU's")
            };
            let g = Gradients {
                jobs: &jobs,
                x: [&x[0], &x[1], &x[2], &x[3]],
                dy: [&dy[0], &dy[1], &dy[2], &dy[3]],
                theta: &theta,
                blocks: &mut blocks,
                grad,
            };
            op.gradients(gpu, g);
        };
        let mut want = vec![0.5; n];
        let mut width = 0;
        for branch in &self.branches {
            let (inputs, outputs) = self.widths[branch.map];
            let [_, x, dy] = self.of(branch.map);
            let (x, first) = (wide(&x), branch.first_output);
            let dy: Vec<f64> = wide(&dy)
                .chunks(outputs)
                .flat_map(|row| row[first..first + branch.outputs].to_vec())
                .collect();
            if let Some([a, b]) = branch.factors {
                width += inputs + branch.outputs;
                let rank = a.rows;
                let scaled = |values: Vec<f64>| -> Vec<f64> {
                    values.iter().map(|v| f64::from(SCALE) * v).collect()
                };
                let thin = scaled(reference::product(&x, &self.transposed(a), rank));
                let d_thin = scaled(reference::product(&dy, &self.transposed(b), rank));
                let da = reference::product(&transpose(&d_thin, rank), &x, inputs);
                let db = reference::product(&transpose(&thin, rank), &dy, branch.outputs);
                for (place, gradient) in [(a, da), (b, db)] {
                    for (want, g) in want[place.offset..].iter_mut().zip(gradient) {
                        *want += g;
                    }
                }
            }
        }
        let case = Case::new("low_rank", [grad], run, move || [want.clone()]);
        let (flops, bytes) = (4 * t * width * self.size.rank, 8 * t * width);
        Ok(Some(case.work(flops as f64, bytes as f64).within(3e-5)))
    }
}

/// The transpose of rows of `columns`.
fn transpose(values: &[f64], columns: usize) -> Vec<f64> {
    let rows = values.len() / columns;
    let place = |i: usize| i % rows * columns + i / rows;
    (0..values.len()).map(|i| values[place(i)]).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    #[cfg(feature = "gpu")]
    use crate::ops::testing::check_on_gpus;
    use crate::ops::testing::devices;

    #[cfg(feature = "gpu")]
    #[test]
    fn merged_weights_and_gradients_match_f64() {
        let size = |tokens, hidden, wide, rank, some| LayerSize {
            tokens,
            hidden,
            wide,
            rank,
            some,
        };
        let sizes = [
            size(1, 4, 4, 1, false),
            size(17, 40, 72, 4, true),
            size(70, 36, 132, 17, false),
            size(129, 132, 260, 2, true),
            size(33, 260, 40, 33, false),
        ];
        check_on_gpus(|device| all(device, &sizes));
    }

    #[test]
    fn sizes_that_are_no_fours_are_left_to_others() {
        for device in devices() {
            for (hidden, wide) in [(6, 8), (8, 6)] {
                let size = LayerSize {
                    tokens: 3,
                    hidden,
                    wide,
                    rank: 2,
                    some: false,
                };
                assert!(all(&device, &[size]).unwrap().is_empty());
            }
        }
    }
}
