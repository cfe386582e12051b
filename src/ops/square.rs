//! Sums of squared gradients: sums [1, n] from n elements of grad [1, N], which are zeroed: Fisher
//! weights, batch by batch (carve.md section 7).

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::cpu::Cpu;
use crate::device::{Kernel, PartMut, Pass, Shader, Tensor, groups, shader};
use crate::num::to_u32;

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
