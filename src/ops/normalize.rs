//! Unit rows: z [B, D] -> u [B, D].

use crate::device::cpu::math;
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, shader};
use crate::error::Result;
use crate::num::to_u32;

const SHADER: Shader = shader!("normalize", "reduce");

/// A shorter row is divided by this instead of its length.
const LEAST: f32 = 1e-12;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    width: u32,
}

pub(crate) struct Normalize {
    forward: Kernel,
}

/// `z`: [B, D]; `u`: [B, D], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) z: &'t Tensor,
    pub(crate) u: &'t mut Tensor,
}

impl Normalize {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            forward: device.kernel(&SHADER, "forward", &[])?,
        })
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (rows, width) = (f.z.rows(), f.z.columns());
        f.u.expect("normalize", "u", rows, width);
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.forward,
                [to_u32(rows), 1, 1],
                &Dims {
                    width: to_u32(width),
                },
                &[("z", f.z), ("u", f.u)],
            ),
            Pass::Cpu(cpu) => forward_cpu(cpu, width, f.z.f32(), f.u.f32_mut()),
        }
    }
}

fn forward_cpu(pass: &CpuPass<'_>, width: usize, z: &[f32], u: &mut [f32]) {
    let cpu = pass.cpu;
    cpu.rows(u, width, width * 2, |first, rows| {
        cpu.simd(
            #[inline(always)]
            || {
                for (i, u) in rows.chunks_exact_mut(width).enumerate() {
                    u.copy_from_slice(&z[(first + i) * width..][..width]);
                    unit(u);
                }
            },
        );
    });
}

/// Makes `row` a unit vector.
#[inline(always)]
pub(crate) fn unit(row: &mut [f32]) {
    let length = math::sum(row, |v| v * v).sqrt().max(LEAST);
    for value in row {
        *value /= length;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::reference;
    use crate::ops::testing::{BOUND, assert_close, devices, noise, run, wide};

    fn outputs(width: usize, z: &[f32]) -> Vec<Vec<f32>> {
        devices()
            .iter()
            .map(|device| {
                let op = Normalize::new(device).unwrap();
                let z = device.upload("z", width, z).unwrap();
                let mut u = device.scratch("u", z.rows(), width).unwrap();
                let (read, outcome) = run(device, |pass| {
                    op.forward(pass, Forward { z: &z, u: &mut u });
                    pass.read(&u)
                });
                outcome.f32(read).to_vec()
            })
            .collect()
    }

    #[test]
    fn unit_rows_match_hand_values_and_zeros_stay_v12() {
        for u in outputs(2, &[3.0, 4.0, 0.0, 0.0]) {
            assert_close("V12", &u, &[0.6, 0.8, 0.0, 0.0], 1e-6);
        }
    }

    #[test]
    fn rows_match_f64() {
        for (rows, width) in [(1, 1), (7, 65), (64, 384)] {
            let z = noise(rows * width, 10);
            let want = reference::normalize(&wide(&z), width);
            for u in outputs(width, &z) {
                assert_close("normalize", &u, &want, BOUND);
            }
        }
    }
}
