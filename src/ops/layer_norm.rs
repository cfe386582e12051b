//! Layer norm of each row, after an optional residual branch: x, branch [T, H] -> y [T, H]; and its
//! gradient, for gamma and beta that are not trained.

use std::sync::Arc;

use crate::device::cpu::math;
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{BOUND, Case, each};
use crate::ops::reference::{self, noise, wide};

const SHADER: Shader = shader!("layer_norm", "reduce");

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    hidden: u32,
    eps: f32,
}

pub(crate) struct LayerNorm {
    pub(super) forward: Kernel,
    pub(super) forward_branch: Kernel,
    backward: Kernel,
    backward_branch: Kernel,
}

/// `x`, `branch`: [T, H]; `gamma`, `beta`: [1, H]; `y`: [T, H], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) x: &'t Tensor,
    pub(crate) branch: Option<&'t Tensor>,
    pub(crate) gamma: &'t Tensor,
    pub(crate) beta: &'t Tensor,
    pub(crate) eps: f32,
    pub(crate) y: &'t mut Tensor,
}

/// `x`, `branch`, `gamma`: the forward's; `dy`: [T, H]; `dx`: [T, H], overwritten: the gradient of
/// x and of the branch alike.
pub(crate) struct Backward<'t> {
    pub(crate) x: &'t Tensor,
    pub(crate) branch: Option<&'t Tensor>,
    pub(crate) gamma: &'t Tensor,
    pub(crate) eps: f32,
    pub(crate) dy: &'t Tensor,
    pub(crate) dx: &'t mut Tensor,
}

impl LayerNorm {
    pub(crate) fn new() -> Self {
        Self {
            forward: Kernel::new(&SHADER, "forward", &[]),
            forward_branch: Kernel::new(&SHADER, "forward_branch", &[]),
            backward: Kernel::new(&SHADER, "backward", &[]),
            backward_branch: Kernel::new(&SHADER, "backward_branch", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (rows, hidden) = (f.x.rows(), f.x.columns());
        f.gamma.expect("layer_norm", "gamma", 1, hidden);
        f.beta.expect("layer_norm", "beta", 1, hidden);
        f.y.expect("layer_norm", "y", rows, hidden);
        if let Some(branch) = f.branch {
            branch.expect("layer_norm", "branch", rows, hidden);
        }
        match pass {
            Pass::Gpu(gpu) => {
                let dims = Dims {
                    hidden: to_u32(hidden),
                    eps: f.eps,
                };
                let grid = [to_u32(rows), 1, 1];
                let (x, gamma, beta, y) = (
                    ("x", f.x),
                    ("gamma", f.gamma),
                    ("beta", f.beta),
                    ("y", &*f.y),
                );
                match f.branch {
                    None => gpu.dispatch(&self.forward, grid, &dims, &[x, gamma, beta, y]),
                    Some(branch) => {
                        let branch = ("branch", branch);
                        gpu.dispatch(
                            &self.forward_branch,
                            grid,
                            &dims,
                            &[x, branch, gamma, beta, y],
                        );
                    }
                }
            }
            Pass::Cpu(cpu) => {
                let branch = f.branch.map(Tensor::f32);
                forward_cpu(
                    cpu,
                    hidden,
                    f.x.f32(),
                    branch,
                    f.gamma.f32(),
                    f.beta.f32(),
                    f.eps,
                    f.y.f32_mut(),
                );
            }
        }
    }

    pub(crate) fn backward(&self, pass: &mut Pass<'_>, b: Backward<'_>) {
        let (rows, hidden) = (b.x.rows(), b.x.columns());
        b.gamma.expect("layer_norm", "gamma", 1, hidden);
        b.dy.expect("layer_norm", "dy", rows, hidden);
        b.dx.expect("layer_norm", "dx", rows, hidden);
        if let Some(branch) = b.branch {
            branch.expect("layer_norm", "branch", rows, hidden);
        }
        match pass {
            Pass::Gpu(gpu) => {
                let dims = Dims {
                    hidden: to_u32(hidden),
                    eps: b.eps,
                };
                let grid = [to_u32(rows), 1, 1];
                let (x, gamma, dy, dx) =
                    (("x", b.x), ("gamma", b.gamma), ("dy", b.dy), ("dx", &*b.dx));
                match b.branch {
                    None => gpu.dispatch(&self.backward, grid, &dims, &[x, gamma, dy, dx]),
                    Some(branch) => {
                        let tensors = [x, ("branch", branch), gamma, dy, dx];
                        gpu.dispatch(&self.backward_branch, grid, &dims, &tensors);
                    }
                }
            }
            Pass::Cpu(cpu) => {
                let branch = b.branch.map(Tensor::f32);
                let (x, gamma, dy) = (b.x.f32(), b.gamma.f32(), b.dy.f32());
                backward_cpu(cpu, hidden, x, branch, gamma, b.eps, dy, b.dx.f32_mut());
            }
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "the op's tensors")]
fn forward_cpu(
    pass: &CpuPass<'_>,
    hidden: usize,
    x: &[f32],
    branch: Option<&[f32]>,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    y: &mut [f32],
) {
    let cpu = pass.cpu;
    cpu.rows(y, hidden, hidden * 4, |first, rows| {
        cpu.simd(
            #[inline(always)]
            || {
                for (i, y) in rows.chunks_exact_mut(hidden).enumerate() {
                    let row = (first + i) * hidden;
                    y.copy_from_slice(&x[row..row + hidden]);
                    if let Some(branch) = branch {
                        for (y, branch) in y.iter_mut().zip(&branch[row..row + hidden]) {
                            *y += branch;
                        }
                    }
                    let mean = math::sum(y, |v| v) / hidden as f32;
                    let variance = math::sum(y, |v| (v - mean) * (v - mean)) / hidden as f32;
                    let scale = 1.0 / (variance + eps).sqrt();
                    for ((y, gamma), beta) in y.iter_mut().zip(gamma).zip(beta) {
                        *y = (*y - mean) * scale * gamma + beta;
                    }
                }
            },
        );
    });
}

#[expect(clippy::too_many_arguments, reason = "the op's tensors")]
fn backward_cpu(
    pass: &CpuPass<'_>,
    hidden: usize,
    x: &[f32],
    branch: Option<&[f32]>,
    gamma: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
) {
    let cpu = pass.cpu;
    cpu.rows(dx, hidden, hidden * 8, |first, rows| {
        let mut a = vec![0.0; hidden];
        cpu.simd(
            #[inline(always)]
            || {
                for (i, dx) in rows.chunks_exact_mut(hidden).enumerate() {
                    let row = (first + i) * hidden;
                    dx.copy_from_slice(&x[row..row + hidden]);
                    if let Some(branch) = branch {
                        for (dx, branch) in dx.iter_mut().zip(&branch[row..row + hidden]) {
                            *dx += branch;
                        }
                    }
                    let mean = math::sum(dx, |v| v) / hidden as f32;
                    let variance = math::sum(dx, |v| (v - mean) * (v - mean)) / hidden as f32;
                    let scale = 1.0 / (variance + eps).sqrt();
                    for dx in dx.iter_mut() {
                        *dx = (*dx - mean) * scale;
                    }
                    for ((a, dy), gamma) in a.iter_mut().zip(&dy[row..row + hidden]).zip(gamma) {
                        *a = dy * gamma;
                    }
                    let level = math::sum(&a, |a| a) / hidden as f32;
                    let along = math::dot(&a, dx) / hidden as f32;
                    for (dx, a) in dx.iter_mut().zip(&a) {
                        *dx = (a - level - *dx * along) * scale;
                    }
                }
            },
        );
    });
}

/// Forward and backward with and without a branch, for each of `sizes`: [T, H] and a shift of x. A
/// mean far from zero shows a variance that is computed as E[x^2] - E[x]^2.
pub(crate) fn cases(device: &Device, sizes: &[(usize, usize, f32)]) -> Result<Vec<Case>> {
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
            x: &x,
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
        check(|device| cases(device, &sizes));
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
