//! GELU with erf: x [T, F] -> y [T, F], and its gradient.

use std::sync::Arc;

use crate::device::cpu::math;
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

const SHADER: Shader = shader!("gelu", "math");

/// Lanes of a workgroup.
const WG: usize = 64;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    columns: u32,
}

pub(crate) struct Gelu {
    pub(super) forward: Kernel,
    backward: Kernel,
}

/// `x`: [T, F]; `y`: [T, F], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) x: &'t Tensor,
    pub(crate) y: &'t mut Tensor,
}

/// `x`: [T, F], the forward's; `dy`: [T, F]; `dx`: [T, F], overwritten.
pub(crate) struct Backward<'t> {
    pub(crate) x: &'t Tensor,
    pub(crate) dy: &'t Tensor,
    pub(crate) dx: &'t mut Tensor,
}

impl Gelu {
    pub(crate) fn new() -> Self {
        Self {
            forward: Kernel::new(&SHADER, "forward", &[]),
            backward: Kernel::new(&SHADER, "backward", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, Forward { x, y }: Forward<'_>) {
        y.expect("gelu", "y", x.rows(), x.columns());
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.forward,
                [groups(x.columns(), WG), to_u32(x.rows()), 1],
                &Dims {
                    columns: to_u32(x.columns()),
                },
                &[("x", x), ("y", y)],
            ),
            Pass::Cpu(cpu) => forward_cpu(cpu, x.columns(), x.f32(), y.f32_mut()),
        }
    }

    pub(crate) fn backward(&self, pass: &mut Pass<'_>, Backward { x, dy, dx }: Backward<'_>) {
        let (rows, columns) = (x.rows(), x.columns());
        dy.expect("gelu", "dy", rows, columns);
        dx.expect("gelu", "dx", rows, columns);
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.backward,
                [groups(columns, WG), to_u32(rows), 1],
                &Dims {
                    columns: to_u32(columns),
                },
                &[("x", x), ("dy", dy), ("dx", dx)],
            ),
            Pass::Cpu(cpu) => backward_cpu(cpu, columns, x.f32(), dy.f32(), dx.f32_mut()),
        }
    }
}

fn forward_cpu(pass: &CpuPass<'_>, columns: usize, x: &[f32], y: &mut [f32]) {
    let cpu = pass.cpu;
    cpu.rows(y, columns, columns * 8, |first, rows| {
        let x = &x[first * columns..][..rows.len()];
        cpu.simd(
            #[inline(always)]
            || {
                for (y, x) in rows.iter_mut().zip(x) {
                    *y = 0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
                }
            },
        );
    });
}

fn backward_cpu(pass: &CpuPass<'_>, columns: usize, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    /// 1 / sqrt(2 pi)
    const PEAK: f32 = 0.398_942_3;
    let cpu = pass.cpu;
    cpu.rows(dx, columns, columns * 16, |first, rows| {
        let x = &x[first * columns..][..rows.len()];
        let dy = &dy[first * columns..][..rows.len()];
        cpu.simd(
            #[inline(always)]
            || {
                for ((dx, x), dy) in rows.iter_mut().zip(x).zip(dy) {
                    let below = 0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
                    let density = PEAK * math::exp(-0.5 * x * x);
                    *dx = dy * (below + x * density);
                }
            },
        );
    });
}

/// Forward and backward for each of `sizes` [T, F], where erf is steep and where it is flat.
pub(crate) fn cases(device: &Device, sizes: &[(usize, usize)]) -> Result<Vec<Case>> {
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
        check(|device| cases(device, &[(1, 1), (7, 65), (33, 257)]));
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
