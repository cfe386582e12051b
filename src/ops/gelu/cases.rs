//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Backward, Forward, Gelu};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

/// Forward and backward for each of `sizes` [T, F], where erf is steep and where it is flat.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(Gelu::new());
    each(sizes, |(rows, columns)| {
        let n = rows * columns;
        let x: Vec<f32> = noise(n, 8).iter().map(|v| v * 5.9).collect();
        Ok([
            forward_case(device, &op, columns, &x)?,
            backward_case(device, &op, columns, &x, &noise(n, 11))?.of("backward"),
        ])
    })
}

fn forward_case(device: &Device, op: &Arc<Gelu>, columns: usize, values: &[f32]) -> Result<Case> {
    let x = device.upload("x", columns, values)?;
    let y = device.scratch("y", x.rows(), columns)?;
    let (op, n, values) = (Arc::clone(op), x.len() as f64, values.to_vec());
    let run = move |pass: &mut Pass<'_>, [y]: &mut [Tensor; 1]| {
        op.forward(pass, Forward { x: &x, y });
    };
    let case = Case::new("gelu", [y], run, move || [reference::gelu(&wide(&values))]);
    Ok(case.work(27.0 * n, 8.0 * n))
}

fn backward_case(
    device: &Device,
    op: &Arc<Gelu>,
    columns: usize,
    values: &[f32],
    slopes: &[f32],
) -> Result<Case> {
    let x = device.upload("x", columns, values)?;
    let dy = device.upload("dy", columns, slopes)?;
    let dx = device.scratch("dx", x.rows(), columns)?;
    let (op, n) = (Arc::clone(op), x.len() as f64);
    let (values, slopes) = (values.to_vec(), slopes.to_vec());
    let run = move |pass: &mut Pass<'_>, [dx]: &mut [Tensor; 1]| {
        let (x, dy) = (&x, &dy);
        op.backward(pass, Backward { x, dy, dx });
    };
    let case = Case::new("gelu", [dx], run, move || {
        [reference::gelu_backward(&wide(&values), &wide(&slopes))]
    });
    Ok(case.work(45.0 * n, 12.0 * n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check, outputs};

    #[test]
    fn values_and_gradients_match_f64() {
        check(|device| all(device, &[(1, 1), (7, 65), (33, 257)]));
    }

    fn gradients(x: &[f32], dy: &[f32]) -> Vec<[Vec<f32>; 1]> {
        outputs(|device| backward_case(device, &Gelu::new().into(), x.len(), x, dy))
    }

    #[test]
    fn both_ways_match_hand_values_v15() {
        let x = [1.0, -0.5, 2.0];
        for [y] in outputs(|device| forward_case(device, &Gelu::new().into(), 3, &x)) {
            assert_close("V15", &y, &[0.8413447, -0.1542688, 1.9544997], 1e-6);
        }
        for [dx] in gradients(&x, &[1.0, 1.0, -2.0]) {
            assert_close("V15", &dx, &[1.0833155, 0.1325049, -2.1704636], 1e-6);
        }
    }

    #[test]
    fn far_from_zero_the_gradient_is_that_of_relu() {
        let x = [-30.0, 30.0, -1e4, 1e4, -1e18, 1e18];
        for [dx] in gradients(&x, &[1.0; 6]) {
            assert_close("gelu backward", &dx, &[0.0, 1.0, 0.0, 1.0, 0.0, 1.0], 1e-6);
        }
    }
}
