//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Anchor, CHUNK, Distance, Pull, Weighted};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{Case, each, framed};
use crate::ops::reference::{self, noise, wide};

/// Both forms of a pull and the weighted one, for each of `sizes`: rows, their width and elements
/// before them. One pull is of every third row alone.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(Anchor::new());
    each(sizes, |(rows, width, before)| {
        let n = rows * width;
        let all = PullInputs {
            form: Distance::Normalized,
            width,
            e: noise(n, 1),
            r: noise(n, 2),
            touched: None,
            strength: 3.0,
            before,
        };
        let third = PullInputs {
            touched: Some((0..to_u32(rows)).step_by(3).collect()),
            ..all.clone()
        };
        let raw = PullInputs {
            form: Distance::Raw,
            ..all.clone()
        };
        let weights: Vec<f32> = noise(n, 5).iter().map(|f| f * f).collect();
        let weighted = weighted_case(device, &op, [&all.e, &all.r, &weights], 3.0, before)?;
        let label = |rows: usize| format!("{rows} of {n}x{width}", n = all.e.len() / width);
        Ok([
            all.case(device, &op)?.of(&label(rows)),
            third.case(device, &op)?.of(&label(rows.div_ceil(3))),
            raw.case(device, &op)?.of(&format!("raw {}", label(rows))),
            weighted.of("weighted"),
        ])
    })
}

/// Rows `e` at an offset and their references `r`, [R, width].
#[derive(Clone)]
struct PullInputs {
    form: Distance,
    width: usize,
    e: Vec<f32>,
    r: Vec<f32>,
    touched: Option<Vec<u32>>,
    strength: f32,
    before: usize,
}

impl PullInputs {
    /// Outputs: the gradient and the distances.
    fn case(&self, device: &Device, op: &Arc<Anchor>) -> Result<Case> {
        let (form, width, strength) = (self.form, self.width, self.strength);
        let gap = (self.before, 0);
        let (theta, place) = framed(device, "theta", width, &self.e, gap)?;
        let (grad, _) = framed(device, "grad", width, &vec![0.0; self.e.len()], gap)?;
        let reference = device.upload("reference", width, &self.r)?;
        let touched = self.touched.as_ref();
        let touched = touched.map(|ids| device.upload_ids("ids", 1, ids));
        let touched = touched.transpose()?;
        let losses = device.scratch("losses", place.rows, 1)?;
        let pulled = touched.as_ref().map_or(place.rows, Tensor::rows);
        let op = Arc::clone(op);
        let run = move |pass: &mut Pass<'_>, [grad, losses]: &mut [Tensor; 2]| {
            let p = Pull {
                form,
                rows: theta.part(place),
                reference: &reference,
                touched: touched.as_ref(),
                strength,
                grad: grad.part_mut(place),
                losses,
                other: None,
            };
            op.pull(pass, p);
        };
        let inputs = self.clone();
        let case = Case::new("anchor", [grad, losses], run, move || inputs.in_f64());
        let n = (pulled * width) as f64;
        Ok(case.at(0, place).work(17.0 * n, 16.0 * n))
    }

    /// A row's distance is |e - r|^2 / 2 of unit rows or |e - r|^2 of the rows as they are.
    fn in_f64(&self) -> [Vec<f64>; 2] {
        let (e, r, width) = (wide(&self.e), wide(&self.r), self.width);
        let all = || (0..to_u32(e.len() / width)).collect();
        let (mut grad, mut losses) = (vec![0.0; e.len()], Vec::new());
        let length = |row: &[f64]| reference::dot(row, row).sqrt().max(1e-12);
        for id in self.touched.clone().unwrap_or_else(all) {
            let row = id as usize * width..(id as usize + 1) * width;
            let (e, r, grad) = (&e[row.clone()], &r[row.clone()], &mut grad[row]);
            let (e_by, r_by) = match self.form {
                Distance::Normalized => (length(e), length(r)),
                Distance::Raw => (1.0, 1.0),
            };
            let d: Vec<f64> = e.iter().zip(r).map(|(e, r)| r / r_by - e / e_by).collect();
            let (factor, along) = match self.form {
                Distance::Normalized => (1.0, reference::dot(&d, e) / e_by),
                Distance::Raw => (2.0, 0.0),
            };
            losses.push(0.5 * factor * reference::dot(&d, &d));
            for ((g, d), e) in grad.iter_mut().zip(&d).zip(e) {
                *g -= f64::from(self.strength) * factor * (d - along * e / e_by) / e_by;
            }
        }
        [grad, losses]
    }
}

/// `theta`, the reference and its weights [n]; onto halves. Outputs: the gradient and parts of the
/// sum.
fn weighted_case(
    device: &Device,
    op: &Arc<Anchor>,
    inputs: [&[f32]; 3],
    strength: f32,
    before: usize,
) -> Result<Case> {
    let n = inputs[0].len();
    let (theta, place) = framed(device, "theta", n, inputs[0], (before, 0))?;
    let (grad, _) = framed(device, "grad", n, &vec![0.5; n], (before, 0))?;
    // The reference stands at another offset.
    let gap = (before * 2, 0);
    let (reference, held) = framed(device, "reference", n, inputs[1], gap)?;
    let (weights, _) = framed(device, "weights", n, inputs[2], gap)?;
    let losses = device.scratch("losses", Weighted::losses(n) + 1, 1)?;
    let op = Arc::clone(op);
    let run = move |pass: &mut Pass<'_>, [grad, losses]: &mut [Tensor; 2]| {
        let w = Weighted {
            theta: theta.part(place),
            reference: reference.part(held),
            weights: weights.part(held),
            strength,
            grad: grad.part_mut(place),
            losses,
        };
        op.weighted(pass, w);
    };
    let [theta, held, weights] = inputs.map(wide);
    let case = Case::new("anchor", [grad, losses], run, move || {
        let strength = f64::from(strength);
        let d: Vec<f64> = theta.iter().zip(&held).map(|(e, r)| e - r).collect();
        let pulls = d.iter().zip(&weights);
        let grad = pulls.map(|(d, f)| 0.5 + 2.0 * strength * f * d).collect();
        let parts = d.chunks(CHUNK).zip(weights.chunks(CHUNK));
        let part = |(d, f): (&[f64], &[f64])| d.iter().zip(f).map(|(d, f)| f * d * d).sum();
        [grad, parts.map(part).collect()]
    });
    let n = n as f64;
    Ok(case.at(0, place).work(6.0 * n, 20.0 * n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check, finite_differences, outputs};

    /// Gradient and distances on every device.
    fn pull(
        form: Distance,
        width: usize,
        e: &[f32],
        r: &[f32],
        touched: Option<&[u32]>,
        strength: f32,
    ) -> Vec<[Vec<f32>; 2]> {
        let inputs = PullInputs {
            form,
            width,
            e: e.to_vec(),
            r: r.to_vec(),
            touched: touched.map(<[u32]>::to_vec),
            strength,
            before: 3,
        };
        outputs(|device| inputs.case(device, &Anchor::new().into()))
    }

    #[test]
    fn both_anchors_match_hand_values_v11() {
        let r = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0];
        let e = [2.0, 1.0, 0.0, 0.0, 3.0, 3.0];
        for [grad, losses] in pull(Distance::Normalized, 3, &e, &r, None, 0.5) {
            let want = [-0.044_721_4, 0.089_442_7, 0.0, 0.0, 0.0, 0.0];
            assert_close("V11 dE", &grad, &want, 1e-6);
            assert_close("V11", &losses, &[0.105_572_8, 0.0], 1e-6);
        }
        for [grad, losses] in pull(Distance::Normalized, 3, &e, &r, Some(&[0]), 1.0) {
            let want = [-0.089_442_7, 0.178_885_4, 0.0, 0.0, 0.0, 0.0];
            assert_close("V11 touched", &grad, &want, 1e-6);
            assert_close("V11 touched", &losses, &[0.105_572_8], 1e-6);
        }
        for [grad, losses] in pull(Distance::Raw, 3, &e, &r, None, 1.0 / 6.0) {
            let want = [0.333_333_3, 0.333_333_3, 0.0, 0.0, 0.666_666_7, 0.666_666_7];
            assert_close("V11 raw", &grad, &want, 1e-6);
            let loss: f32 = losses.iter().sum::<f32>() / 6.0;
            assert_close("V11 raw", &[loss], &[1.666_666_7], 1e-6);
        }
        // L_proj: W ((1,2),(3,4)), W0 ((1,1),(3,2)).
        for [grad, losses] in pull(
            Distance::Raw,
            2,
            &[1., 2., 3., 4.],
            &[1., 1., 3., 2.],
            None,
            0.25,
        ) {
            assert_close("V11 proj", &grad, &[0.0, 0.5, 0.0, 1.0], 1e-6);
            assert_close("V11 proj", &losses, &[1.0, 4.0], 1e-6);
        }
    }

    #[test]
    fn a_row_that_did_not_move_has_no_gradient_at_all() {
        let e = noise(40 * 384, 7);
        for [grad, losses] in pull(Distance::Normalized, 384, &e, &e, None, 1e4) {
            assert!(grad.iter().chain(&losses).all(|value| *value == 0.0));
        }
    }

    #[test]
    fn gradients_match_f64() {
        check(|device| all(device, &[(1, 1, 3), (7, 63, 3), (3, 257, 3), (13, 257, 3)]));
    }

    #[test]
    fn the_gradients_in_f64_are_those_of_the_distances() {
        let (e, r) = (noise(3 * 9, 1), noise(3 * 9, 2));
        for form in [Distance::Normalized, Distance::Raw] {
            let distance = |e: &[f64]| -> f64 {
                let pairs = e.chunks(9).zip(r.chunks(9));
                let of = |(e, r): (&[f64], &[f32])| -> f64 {
                    let r = wide(r);
                    let (ee, rr) = (reference::dot(e, e), reference::dot(&r, &r));
                    match form {
                        Distance::Normalized => 1.0 - reference::dot(e, &r) / (ee * rr).sqrt(),
                        Distance::Raw => e.iter().zip(&r).map(|(e, r)| (e - r).powi(2)).sum(),
                    }
                };
                pairs.map(of).sum()
            };
            let inputs = PullInputs {
                form,
                width: 9,
                e: e.clone(),
                r: r.clone(),
                touched: None,
                strength: 1.0,
                before: 0,
            };
            let [grad, losses] = inputs.in_f64();
            assert!((losses.iter().sum::<f64>() - distance(&wide(&e))).abs() < 1e-12);
            for (g, want) in grad.iter().zip(finite_differences(&wide(&e), distance)) {
                assert!((g - want).abs() < 1e-8, "{g}, not {want}");
            }
        }
    }

    /// Gradient, less what it was added to, and the sum on every device.
    fn weighted(theta: &[f32], r: &[f32], f: &[f32], strength: f32) -> Vec<(Vec<f32>, f64)> {
        let all = outputs(|device| {
            weighted_case(device, &Anchor::new().into(), [theta, r, f], strength, 3)
        });
        let sum = |losses: Vec<f32>| f64::from(strength) * wide(&losses).iter().sum::<f64>();
        let less = |grad: Vec<f32>| grad.iter().map(|g| g - 0.5).collect();
        let all = all.into_iter();
        all.map(|[grad, losses]| (less(grad), sum(losses)))
            .collect()
    }

    #[test]
    fn fisher_weighted_pull_matches_hand_values_v17() {
        for (grad, loss) in weighted(&[1.5, -1.0], &[0.5, 1.0], &[0.5, 2.0], 10.0) {
            assert_close("V17", &grad, &[10.0, -80.0], 1e-6);
            assert!((loss - 85.0).abs() < 1e-4, "{loss}");
        }
    }

    #[test]
    fn weighted_gradients_match_f64() {
        for n in [1, 63, 1024, 1025, 3 * 1024 + 257] {
            let (theta, r) = (noise(n, 3), noise(n, 4));
            let f: Vec<f32> = noise(n, 5).iter().map(|f| f * f).collect();
            check(|device| {
                let op = Anchor::new().into();
                Ok(vec![weighted_case(device, &op, [&theta, &r, &f], 3.0, 3)?])
            });
        }
    }

    #[test]
    fn what_has_no_weight_or_did_not_move_has_no_gradient() {
        let (theta, r) = (noise(2000, 6), noise(2000, 7));
        for (grad, loss) in weighted(&theta, &r, &vec![0.0; 2000], 1e4) {
            assert!(grad.iter().all(|g| *g == 0.0) && loss == 0.0);
        }
        for (grad, loss) in weighted(&theta, &theta, &vec![7.0; 2000], 1e4) {
            assert!(grad.iter().all(|g| *g == 0.0) && loss == 0.0);
        }
    }
}
