//! GELU with erf: x [T, F] -> y [T, F], and its gradient.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::cpu::math;
use crate::device::{CpuPass, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::num::to_u32;

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
                    *y = math::gelu(*x);
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
