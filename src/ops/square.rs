//! Sums of squared gradients: sums [1, n] from n elements of grad [1, N], which are zeroed: Fisher
//! weights, batch by batch (carve.md section 7).

use std::sync::Arc;

use crate::device::cpu::Cpu;
use crate::device::{Device, Kernel, PartMut, Pass, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{Case, each, framed};
use crate::ops::reference::{noise, wide};

const SHADER: Shader = shader!("square");

/// Lanes of a workgroup, and workgroups at most.
const WG: usize = 64;
const MOST_GROUPS: usize = 4096;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    offset: u32,
    len: u32,
    stride: u32,
    scale: f32,
}

pub(crate) struct Square {
    accumulate: Kernel,
}

/// `grad`: [1, n], zeroed; `sums`: [1, n], `scale` times its squares are added.
pub(crate) struct Accumulate<'t> {
    pub(crate) grad: PartMut<'t>,
    pub(crate) scale: f32,
    pub(crate) sums: &'t mut Tensor,
}

impl Square {
    pub(crate) fn new() -> Self {
        Self {
            accumulate: Kernel::new(&SHADER, "accumulate", &[]),
        }
    }

    pub(crate) fn accumulate(&self, pass: &mut Pass<'_>, mut a: Accumulate<'_>) {
        let n = a.grad.place.columns;
        a.grad.place.expect("square", "grad", 1, n);
        a.sums.expect("square", "sums", 1, n);
        match pass {
            Pass::Gpu(gpu) => {
                let grid = groups(n, WG).min(to_u32(MOST_GROUPS));
                let dims = Dims {
                    offset: to_u32(a.grad.place.offset),
                    len: to_u32(n),
                    stride: grid * to_u32(WG),
                    scale: a.scale,
                };
                let tensors = [("grad", &*a.grad.tensor), ("sums", &*a.sums)];
                gpu.dispatch(&self.accumulate, [grid, 1, 1], &dims, &tensors);
            }
            Pass::Cpu(pass) => {
                let (grad, sums) = (a.grad.f32_mut(), a.sums.f32_mut());
                accumulate_cpu(pass.cpu, a.scale, grad, sums);
            }
        }
    }
}

fn accumulate_cpu(cpu: &Cpu, scale: f32, grad: &mut [f32], sums: &mut [f32]) {
    cpu.lockstep([grad, sums], [1; 2], 3, |_, [grad, sums]| {
        cpu.simd(
            #[inline(always)]
            || {
                for (g, sum) in grad.iter_mut().zip(sums) {
                    *sum += scale * *g * *g;
                    *g = 0.0;
                }
            },
        );
    });
}

/// Onto sums of before, for each of `sizes`.
pub(crate) fn cases(device: &Device, sizes: &[usize]) -> Result<Vec<Case>> {
    let op = Arc::new(Square::new());
    each(sizes, |n| {
        let before: Vec<f32> = noise(n, 1).iter().map(|v| v.abs()).collect();
        Ok([case(device, &op, &noise(n, 2), &before, 1.0 / 3.0)?])
    })
}

/// `gradient` and the sums `before`, [n] each.
fn case(
    device: &Device,
    op: &Arc<Square>,
    gradient: &[f32],
    before: &[f32],
    scale: f32,
) -> Result<Case> {
    let n = gradient.len();
    let (grad, place) = framed(device, "grad", n, gradient, (3, 0))?;
    let sums = device.upload("sums", n, before)?;
    let op = Arc::clone(op);
    let run = move |pass: &mut Pass<'_>, [grad, sums]: &mut [Tensor; 2]| {
        let grad = grad.part_mut(place);
        op.accumulate(pass, Accumulate { grad, scale, sums });
    };
    let (gradient, before) = (wide(gradient), wide(before));
    let case = Case::new("square", [grad, sums], run, move || {
        let pairs = gradient.iter().zip(&before);
        let sums = pairs.map(|(g, sum)| sum + f64::from(scale) * g * g);
        [vec![0.0; n], sums.collect()]
    });
    let n = n as f64;
    Ok(case.at(0, place).work(3.0 * n, 16.0 * n).within(1e-6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check, outputs};

    #[test]
    fn sums_of_squares_match_hand_values_v17() {
        for (gradient, before, after) in [
            ([1.0, -2.0], [0.0, 0.0], [0.5, 2.0]),
            ([3.0, 0.0], [0.5, 2.0], [5.0, 2.0]),
        ] {
            for [_, sums] in
                outputs(|device| case(device, &Square::new().into(), &gradient, &before, 0.5))
            {
                assert_close("V17 Fisher", &sums, &after, 1e-6);
            }
        }
    }

    #[test]
    fn sums_match_f64() {
        check(|device| cases(device, &[1, 65, 100_001]));
    }
}
