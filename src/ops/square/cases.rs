//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Accumulate, Square};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{Case, each, framed};
use crate::ops::reference::{noise, wide};

/// Onto sums of before, for each of `sizes`.
pub(crate) fn all(device: &Device, sizes: &[usize]) -> Result<Vec<Case>> {
    let op = Arc::new(Square::new());
    each(sizes, |n| {
        let before: Vec<f32> = noise(n, 1).iter().map(|v| v.abs()).collect();
        Ok([case(device, &op, &noise(n, 2), &before, 1.0 / 3.0)?])
    })
}

/// `gradient` and the sums `before`, [n] each.
fn case(
    device: &Device,
    op: &Arc<Square>,
    gradient: &[f32],
    before: &[f32],
    scale: f32,
) -> Result<Case> {
    let n = gradient.len();
    let (grad, place) = framed(device, "grad", n, gradient, (3, 0))?;
    let sums = device.upload("sums", n, before)?;
    let op = Arc::clone(op);
    let run = move |pass: &mut Pass<'_>, [grad, sums]: &mut [Tensor; 2]| {
        let grad = grad.part_mut(place);
        op.accumulate(pass, Accumulate { grad, scale, sums });
    };
    let (gradient, before) = (wide(gradient), wide(before));
    let case = Case::new("square", [grad, sums], run, move || {
        let pairs = gradient.iter().zip(&before);
        let sums = pairs.map(|(g, sum)| sum + f64::from(scale) * g * g);
        [vec![0.0; n], sums.collect()]
    });
    let n = n as f64;
    Ok(case.at(0, place).work(3.0 * n, 16.0 * n).within(1e-6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check, outputs};

    #[test]
    fn sums_of_squares_match_hand_values_v17() {
        for (gradient, before, after) in [
            ([1.0, -2.0], [0.0, 0.0], [0.5, 2.0]),
            ([3.0, 0.0], [0.5, 2.0], [5.0, 2.0]),
        ] {
            for [_, sums] in
                outputs(|device| case(device, &Square::new().into(), &gradient, &before, 0.5))
            {
                assert_close("V17 Fisher", &sums, &after, 1e-6);
            }
        }
    }

    #[test]
    fn sums_match_f64() {
        check(|device| all(device, &[1, 65, 100_001]));
    }
}
