//! GELU with erf: x [T, F] -> y [T, F], and its gradient.

use crate::device::cpu::math;
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::Result;
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
    forward: Kernel,
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
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            forward: device.kernel(&SHADER, "forward", &[])?,
            backward: device.kernel(&SHADER, "backward", &[])?,
        })
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::reference;
    use crate::ops::testing::{BOUND, assert_close, devices, noise, run, wide};

    fn outputs(columns: usize, x: &[f32]) -> Vec<Vec<f32>> {
        devices()
            .iter()
            .map(|device| {
                let op = Gelu::new(device).unwrap();
                let x = device.upload("x", columns, x).unwrap();
                let mut y = device.scratch("y", x.rows(), columns).unwrap();
                let (read, outcome) = run(device, |pass| {
                    op.forward(pass, Forward { x: &x, y: &mut y });
                    pass.read(&y)
                });
                outcome.f32(read).to_vec()
            })
            .collect()
    }

    #[test]
    fn forward_matches_hand_values_v15() {
        for y in outputs(3, &[1.0, -0.5, 2.0]) {
            assert_close("V15", &y, &[0.8413447, -0.1542688, 1.9544997], 1e-6);
        }
    }

    #[test]
    fn matches_f64() {
        for (rows, columns) in [(1, 1), (7, 65), (33, 257)] {
            let x: Vec<f32> = noise(rows * columns, 8).iter().map(|v| v * 5.9).collect();
            let want = reference::gelu(&wide(&x));
            for y in outputs(columns, &x) {
                assert_close("gelu", &y, &want, BOUND);
            }
        }
    }

    fn gradients(columns: usize, x: &[f32], dy: &[f32]) -> Vec<Vec<f32>> {
        devices()
            .iter()
            .map(|device| {
                let op = Gelu::new(device).unwrap();
                let x = device.upload("x", columns, x).unwrap();
                let dy = device.upload("dy", columns, dy).unwrap();
                let mut dx = device.scratch("dx", x.rows(), columns).unwrap();
                let (read, outcome) = run(device, |pass| {
                    let (x, dy, dx) = (&x, &dy, &mut dx);
                    op.backward(pass, Backward { x, dy, dx });
                    pass.read(dx)
                });
                outcome.f32(read).to_vec()
            })
            .collect()
    }

    #[test]
    fn backward_matches_hand_values_v15() {
        for dx in gradients(3, &[1.0, -0.5, 2.0], &[1.0, 1.0, -2.0]) {
            assert_close("V15", &dx, &[1.0833155, 0.1325049, -2.1704636], 1e-6);
        }
    }

    #[test]
    fn gradients_match_f64() {
        for (rows, columns) in [(1, 1), (7, 65), (33, 257)] {
            let n = rows * columns;
            let x: Vec<f32> = noise(n, 8).iter().map(|v| v * 5.9).collect();
            let dy = noise(n, 11);
            let want = reference::gelu_backward(&wide(&x), &wide(&dy));
            // Each element depends on its own alone: all are moved at once.
            let moved = |by: f64| -> Vec<f64> {
                reference::gelu(&wide(&x).iter().map(|x| x + by).collect::<Vec<_>>())
            };
            let differences: Vec<f64> = moved(1e-5)
                .iter()
                .zip(&moved(-1e-5))
                .zip(&dy)
                .map(|((more, less), dy)| (more - less) / 2e-5 * f64::from(*dy))
                .collect();
            for dx in gradients(columns, &x, &dy) {
                assert_close("gelu backward", &dx, &want, BOUND);
                assert_close("gelu differences", &dx, &differences, 1e-4);
            }
        }
    }

    #[test]
    fn far_from_zero_the_gradient_is_that_of_relu() {
        let x = [-30.0, 30.0, -1e4, 1e4, -1e18, 1e18];
        for dx in gradients(6, &x, &[1.0; 6]) {
            assert_close("gelu backward", &dx, &[0.0, 1.0, 0.0, 1.0, 0.0, 1.0], 1e-6);
        }
    }
}
