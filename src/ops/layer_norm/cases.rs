//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Backward, Forward, LayerNorm};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{BOUND, Case, each};
use crate::ops::reference::{self, noise, wide};

/// Forward and backward with and without a branch, for each of `sizes`: [T, H] and a shift of x. A
/// mean far from zero shows a variance that is computed as E[x^2] - E[x]^2.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize, f32)]) -> Result<Vec<Case>> {
    let op = Arc::new(LayerNorm::new());
    each(sizes, |(rows, hidden, shift)| {
        let n = rows * hidden;
        let x: Vec<f32> = noise(n, 3).iter().map(|v| v + shift).collect();
        let (gamma, beta) = (noise(hidden, 5), noise(hidden, 6));
        let branch = Some(noise(n, 4));
        let forward = |branch| forward_case(device, &op, [&x, &gamma, &beta], branch, 1e-5);
        let dy = noise(n, 6);
        let backward = |branch| backward_case(device, &op, [&x, &gamma, &dy], branch, 1e-5);
        Ok([
            forward(branch.clone())?,
            forward(None)?.of("alone"),
            backward(branch)?.of("backward"),
            backward(None)?.of("backward alone"),
        ])
    })
}

/// x + branch, rounded as the op rounds it.
fn summed(x: &[f32], branch: Option<&[f32]>) -> Vec<f64> {
    match branch {
        None => wide(x),
        Some(branch) => x
            .iter()
            .zip(branch)
            .map(|(x, b)| f64::from(x + b))
            .collect(),
    }
}

fn forward_case(
    device: &Device,
    op: &Arc<LayerNorm>,
    inputs: [&[f32]; 3],
    branch: Option<Vec<f32>>,
    eps: f32,
) -> Result<Case> {
    let hidden = inputs[1].len();
    let [x, gamma, beta] = inputs.map(|values| device.upload("input", hidden, values));
    let (x, gamma, beta) = (x?, gamma?, beta?);
    let added = branch
        .as_deref()
        .map(|b| device.upload("branch", hidden, b));
    let added = added.transpose()?;
    let y = device.scratch("y", x.rows(), hidden)?;
    let (op, n) = (Arc::clone(op), x.len() as f64);
    let run = move |pass: &mut Pass<'_>, [y]: &mut [Tensor; 1]| {
        let f = Forward {
            x: x.part(x.place()),
            branch: added.as_ref(),
            gamma: &gamma,
            beta: &beta,
            eps,
            y,
        };
        op.forward(pass, f);
    };
    let [x, gamma, beta] = inputs.map(<[f32]>::to_vec);
    let case = Case::new("layer_norm", [y], run, move || {
        let x = summed(&x, branch.as_deref());
        [reference::layer_norm(
            &x,
            &wide(&gamma),
            &wide(&beta),
            eps.into(),
        )]
    });
    Ok(case.work(9.0 * n, 12.0 * n).within(3.0 * BOUND))
}

fn backward_case(
    device: &Device,
    op: &Arc<LayerNorm>,
    inputs: [&[f32]; 3],
    branch: Option<Vec<f32>>,
    eps: f32,
) -> Result<Case> {
    let hidden = inputs[1].len();
    let [x, gamma, dy] = inputs.map(|values| device.upload("input", hidden, values));
    let (x, gamma, dy) = (x?, gamma?, dy?);
    let added = branch
        .as_deref()
        .map(|b| device.upload("branch", hidden, b));
    let added = added.transpose()?;
    let dx = device.scratch("dx", x.rows(), hidden)?;
    let (op, n) = (Arc::clone(op), x.len() as f64);
    let run = move |pass: &mut Pass<'_>, [dx]: &mut [Tensor; 1]| {
        let b = Backward {
            x: &x,
            branch: added.as_ref(),
            gamma: &gamma,
            eps,
            dy: &dy,
            dx,
        };
        op.backward(pass, b);
    };
    let [x, gamma, dy] = inputs.map(<[f32]>::to_vec);
    let case = Case::new("layer_norm", [dx], run, move || {
        let x = summed(&x, branch.as_deref());
        [reference::layer_norm_backward(
            &x,
            &wide(&gamma),
            eps.into(),
            &wide(&dy),
        )]
    });
    Ok(case.work(16.0 * n, 16.0 * n).within(3.0 * BOUND))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check, outputs};

    #[test]
    fn rows_and_gradients_match_f64_with_and_without_a_branch() {
        let sizes = [(1, 2, 0.0), (7, 63, 100.0), (64, 384, 0.0), (65, 257, 10.0)];
        check(|device| all(device, &sizes));
    }

    #[test]
    fn both_ways_match_hand_values_v14() {
        let (x, ones, zeros) = ([1.0, 2.0, 3.0, 4.0], [1.0; 4], [0.0; 4]);
        let want = [-1.3416408, -0.4472136, 0.4472136, 1.3416408];
        for [y] in outputs(|device| {
            let op = LayerNorm::new().into();
            forward_case(device, &op, [&x, &ones, &zeros], None, 1e-12)
        }) {
            assert_close("V14", &y, &want, 1e-6);
        }
        let dy = [1.0, 0.0, 0.0, 0.0];
        let want = [0.2683282, -0.3577709, -0.0894427, 0.1788854];
        for [dx] in outputs(|device| {
            let op = LayerNorm::new().into();
            backward_case(device, &op, [&x, &ones, &dy], None, 1e-12)
        }) {
            assert_close("V14", &dx, &want, 1e-6);
        }
    }

    #[test]
    fn a_row_of_equal_values_has_a_finite_gradient() {
        check(|device| {
            let op = LayerNorm::new().into();
            let inputs: [&[f32]; 3] = [&[5.0; 3], &[1.0; 3], &[1.0, 2.0, 4.0]];
            let case = backward_case(device, &op, inputs, None, 1e-2)?;
            Ok(vec![case.within(BOUND)])
        });
    }
}
