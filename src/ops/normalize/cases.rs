//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Backward, Forward, Normalize, unit};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{Case, each, framed};
use crate::ops::reference::{self, noise, wide};

/// Forward, and backward onto ones, for each of `sizes`: R, D and elements before the rows.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(Normalize::new());
    each(sizes, |(rows, width, before)| {
        let (z, du) = (noise(rows * width, 10), noise(rows * width, 46));
        let label = format!("{rows}x{width}");
        let back = backward_case(device, &op, width, [&z, &du], before)?;
        Ok([
            forward_case(device, &op, width, &z, before)?.of(&label),
            back.of(&format!("backward {label}")),
        ])
    })
}

fn forward_case(
    device: &Device,
    op: &Arc<Normalize>,
    width: usize,
    values: &[f32],
    before: usize,
) -> Result<Case> {
    let (z, place) = framed(device, "z", width, values, (before, 0))?;
    let u = device.scratch("u", place.rows, width)?;
    let (op, n) = (Arc::clone(op), values.len() as f64);
    let run = move |pass: &mut Pass<'_>, [u]: &mut [Tensor; 1]| {
        let z = z.part(place);
        op.forward(pass, Forward { z, u });
    };
    let values = wide(values);
    let want = move || [reference::normalize(&values, width)];
    Ok(Case::new("normalize", [u], run, want).work(3.0 * n, 8.0 * n))
}

fn backward_case(
    device: &Device,
    op: &Arc<Normalize>,
    width: usize,
    [values, slopes]: [&[f32]; 2],
    before: usize,
) -> Result<Case> {
    let (z, place) = framed(device, "z", width, values, (before, 0))?;
    let mut units = values.to_vec();
    units.chunks_exact_mut(width).for_each(unit);
    let u = device.upload("u", width, &units)?;
    let du = device.upload("du", width, slopes)?;
    let ones = vec![1.0; values.len()];
    let (dz, d_place) = framed(device, "dz", width, &ones, (before / 2, 0))?;
    let (op, n) = (Arc::clone(op), values.len() as f64);
    let run = move |pass: &mut Pass<'_>, [dz]: &mut [Tensor; 1]| {
        let b = Backward {
            z: z.part(place),
            u: &u,
            du: &du,
            dz: dz.part_mut(d_place),
        };
        op.backward(pass, b);
    };
    let (values, slopes) = (wide(values), wide(slopes));
    let case = Case::new("normalize", [dz], run, move || {
        let dz = reference::normalize_backward(&values, width, &slopes);
        [dz.iter().map(|d| 1.0 + d).collect()]
    });
    Ok(case.at(0, d_place).work(8.0 * n, 20.0 * n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check, outputs};

    #[test]
    fn both_ways_match_hand_values_and_zeros_stay_v12() {
        let (z, du) = ([3.0, 4.0, 0.0, 0.0], [1.0, 2.0, 1e-12, 0.0]);
        for [u] in outputs(|device| forward_case(device, &Normalize::new().into(), 2, &z, 0)) {
            assert_close("V12", &u, &[0.6, 0.8, 0.0, 0.0], 1e-6);
        }
        for [dz] in
            outputs(|device| backward_case(device, &Normalize::new().into(), 2, [&z, &du], 0))
        {
            assert_close("V12 dx", &dz, &[0.936, 1.048, 2.0, 1.0], 1e-6);
        }
    }

    #[test]
    fn rows_and_gradients_match_f64() {
        let sizes = [(1, 1, 5), (7, 65, 5), (64, 384, 0), (13, 65, 4)];
        check(|device| all(device, &sizes));
    }

    #[test]
    fn gradients_have_no_part_along_their_rows() {
        let (z, du) = (noise(13 * 65, 44), noise(13 * 65, 47));
        for [dz] in
            outputs(|device| backward_case(device, &Normalize::new().into(), 65, [&z, &du], 5))
        {
            for (z, dz) in z.chunks_exact(65).zip(dz.chunks_exact(65)) {
                let dz: Vec<f64> = wide(dz).iter().map(|d| d - 1.0).collect();
                let along = reference::dot(&wide(z), &dz);
                assert!(along.abs() < 2e-6 * 65.0, "{along:e}");
            }
        }
    }
}
