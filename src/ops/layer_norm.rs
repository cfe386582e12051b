//! Layer norm of each row, after an optional residual branch: x, branch [T, H] -> y [T, H].

use crate::device::cpu::math;
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, shader, small};
use crate::error::Result;

const SHADER: Shader = shader!("layer_norm", "reduce");

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    hidden: u32,
    eps: f32,
}

pub(crate) struct LayerNorm {
    forward: Kernel,
    forward_branch: Kernel,
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

impl LayerNorm {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            forward: device.kernel(&SHADER, "forward", &[])?,
            forward_branch: device.kernel(&SHADER, "forward_branch", &[])?,
        })
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
                    hidden: small(hidden),
                    eps: f.eps,
                };
                let grid = [small(rows), 1, 1];
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::reference;
    use crate::ops::testing::{BOUND, assert_close, devices, noise, run, wide};

    fn outputs(
        x: &[f32],
        branch: Option<&[f32]>,
        gamma: &[f32],
        beta: &[f32],
        eps: f32,
    ) -> Vec<Vec<f32>> {
        let hidden = gamma.len();
        devices()
            .iter()
            .map(|device| {
                let op = LayerNorm::new(device).unwrap();
                let x = device.upload("x", hidden, x).unwrap();
                let branch = branch.map(|branch| device.upload("branch", hidden, branch).unwrap());
                let gamma = device.upload("gamma", hidden, gamma).unwrap();
                let beta = device.upload("beta", hidden, beta).unwrap();
                let mut y = device.scratch("y", x.rows(), hidden).unwrap();
                let (read, outcome) = run(device, |pass| {
                    let branch = branch.as_ref();
                    op.forward(
                        pass,
                        Forward {
                            x: &x,
                            branch,
                            gamma: &gamma,
                            beta: &beta,
                            eps,
                            y: &mut y,
                        },
                    );
                    pass.read(&y)
                });
                outcome.f32(read).to_vec()
            })
            .collect()
    }

    #[test]
    fn v14() {
        let want = [-1.3416408, -0.4472136, 0.4472136, 1.3416408];
        for y in outputs(&[1.0, 2.0, 3.0, 4.0], None, &[1.0; 4], &[0.0; 4], 1e-12) {
            assert_close("V14", &y, &want, 1e-6);
        }
    }

    #[test]
    fn rows_match_f64_with_and_without_a_branch() {
        // A mean far from zero shows a variance taken as E[x^2] - E[x]^2.
        for (rows, hidden, offset) in [(1, 2, 0.0), (7, 63, 100.0), (64, 384, 0.0), (65, 257, 10.0)]
        {
            let x: Vec<f32> = noise(rows * hidden, 3).iter().map(|v| v + offset).collect();
            let branch = noise(rows * hidden, 4);
            let (gamma, beta) = (noise(hidden, 5), noise(hidden, 6));
            let alone = wide(&x);
            let both: Vec<f64> = x
                .iter()
                .zip(&branch)
                .map(|(x, b)| f64::from(x + b))
                .collect();
            for (branch, input) in [(None, alone), (Some(branch.as_slice()), both)] {
                let want = reference::layer_norm(&input, &wide(&gamma), &wide(&beta), 1e-5);
                for y in outputs(&x, branch, &gamma, &beta, 1e-5) {
                    assert_close("layer_norm", &y, &want, 3.0 * BOUND);
                }
            }
        }
    }
}
