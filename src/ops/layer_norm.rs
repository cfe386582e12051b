//! Layer norm of each row, after an optional residual branch: x, branch [T, H] -> y [T, H]; and its
//! gradient, for gamma and beta that are not trained.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::cpu::math;
use crate::device::{CpuPass, Kernel, Part, Pass, Shader, Tensor, shader};
use crate::num::to_u32;

const SHADER: Shader = shader!("layer_norm", "reduce");

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    hidden: u32,
    eps: f32,
    /// Of x, its first element.
    first: u32,
}

pub(crate) struct LayerNorm {
    pub(super) forward: Kernel,
    pub(super) forward_branch: Kernel,
    backward: Kernel,
    backward_branch: Kernel,
}

/// `x`, `branch`: [T, H], x whole rows of a tensor; `gamma`, `beta`: [1, H]; `y`: [T, H],
/// overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) x: Part<'t>,
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
        let (rows, hidden) = (f.x.place.rows, f.x.place.columns);
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
                    first: to_u32(f.x.place.offset),
                };
                let grid = [to_u32(rows), 1, 1];
                let (x, gamma, beta, y) = (
                    ("x", f.x.tensor),
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
                    first: 0,
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
    // Two sums over a row, which wait for each other, cost as much as twice its elements do.
    cpu.rows(y, hidden, hidden * 16, |first, rows| {
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
