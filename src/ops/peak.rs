//! The peaks of a device: copies and multiply-adds, for benches to compare with.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::{CpuPass, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::num::to_u32;

const SHADER: Shader = shader!("peak");

/// Lanes of a workgroup.
const WG: usize = 256;

/// Chains of multiply-adds of one lane.
pub(crate) const CHAINS: usize = 32;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    n: u32,
    turns: u32,
}

pub(crate) struct Peak {
    copy: Kernel,
    multiply_add: Kernel,
}

impl Peak {
    pub(crate) fn new() -> Self {
        Self {
            copy: Kernel::new(&SHADER, "copy", &[]),
            multiply_add: Kernel::new(&SHADER, "multiply_add", &[]),
        }
    }

    /// `y = x`, both [n, 1].
    pub(crate) fn copy(&self, pass: &mut Pass<'_>, x: &Tensor, y: &mut Tensor) {
        match pass {
            Pass::Gpu(gpu) => {
                let dims = Dims {
                    n: to_u32(x.len()),
                    turns: 0,
                };
                gpu.dispatch(
                    &self.copy,
                    [groups(x.len(), WG), 1, 1],
                    &dims,
                    &[("x", x), ("y", y)],
                );
            }
            Pass::Cpu(pass) => {
                let x = x.f32();
                pass.cpu.rows(y.f32_mut(), 1, 1, |first, y| {
                    y.copy_from_slice(&x[first..first + y.len()])
                });
            }
        }
    }

    /// `y` [n, 1]: `x` after `turns` steps of `v * 0.999 + 0.001`, in [`CHAINS`] chains a lane.
    /// On the CPU neighbours share a register, so they must be equal.
    pub(crate) fn multiply_add(
        &self,
        pass: &mut Pass<'_>,
        x: &Tensor,
        turns: usize,
        y: &mut Tensor,
    ) {
        match pass {
            Pass::Gpu(gpu) => {
                let dims = Dims {
                    n: to_u32(x.len()),
                    turns: to_u32(turns),
                };
                gpu.dispatch(
                    &self.multiply_add,
                    [groups(x.len(), WG), 1, 1],
                    &dims,
                    &[("x", x), ("y", y)],
                );
            }
            Pass::Cpu(cpu) => multiply_add_cpu(cpu, x.f32(), turns, y.f32_mut()),
        }
    }
}

fn multiply_add_cpu(pass: &CpuPass<'_>, x: &[f32], turns: usize, y: &mut [f32]) {
    let cpu = pass.cpu;
    cpu.rows(y, 1, turns * CHAINS, |first, y| {
        cpu.dispatch(Chains {
            x: &x[first..first + y.len()],
            turns,
            y,
        });
    });
}

/// Registers of a step: enough to hide the latency of a multiply-add.
const ROWS: usize = 12;

struct Chains<'c> {
    x: &'c [f32],
    turns: usize,
    y: &'c mut [f32],
}

impl pulp::WithSimd for Chains<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        // A step of ROWS registers does the work of this many elements.
        let step = (ROWS * S::F32_LANES / CHAINS).max(1);
        let (gain, shift) = (simd.splat_f32s(0.999), simd.splat_f32s(0.001));
        for (x, y) in self.x.chunks(step).zip(self.y.chunks_mut(step)) {
            let mut rows = [simd.splat_f32s(x[0]); ROWS];
            for _ in 0..self.turns {
                for row in &mut rows {
                    *row = simd.mul_add_f32s(*row, gain, shift);
                }
            }
            let last = rows.into_iter().reduce(
                #[inline(always)]
                |a, b| simd.max_f32s(a, b),
            );
            y.fill(last.map_or(
                0.0,
                #[inline(always)]
                |last| simd.reduce_max_f32s(last),
            ));
        }
    }
}
