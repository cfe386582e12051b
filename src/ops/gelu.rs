//! GELU with erf: x [T, F] -> y [T, F].

use crate::device::cpu::math;
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, groups, shader, small};
use crate::error::Result;

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
}

/// `x`: [T, F]; `y`: [T, F], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) x: &'t Tensor,
    pub(crate) y: &'t mut Tensor,
}

impl Gelu {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            forward: device.kernel(&SHADER, "forward", &[])?,
        })
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, Forward { x, y }: Forward<'_>) {
        y.expect("gelu", "y", x.rows(), x.columns());
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.forward,
                [groups(x.columns(), WG), small(x.rows()), 1],
                &Dims {
                    columns: small(x.columns()),
                },
                &[("x", x), ("y", y)],
            ),
            Pass::Cpu(cpu) => forward_cpu(cpu, x.columns(), x.f32(), y.f32_mut()),
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
    fn v15() {
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
}
