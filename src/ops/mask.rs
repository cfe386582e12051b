//! Gives the lowest score to the models that may not answer a prompt: s [B, M] by bits.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::{CpuPass, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::num::to_u32;
use crate::ops::LOWEST;

const SHADER: Shader = shader!("mask");

/// Lanes of a workgroup.
const WG: usize = 64;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    models: u32,
    words: u32,
}

pub(crate) struct Mask {
    pub(super) forward: Kernel,
}

/// `mask`: [B, ceil(M / 32)], bit m % 32 of word m / 32 is set where model m may answer; `s`:
/// [B, M], the other models' scores become the lowest.
pub(crate) struct Forward<'t> {
    pub(crate) mask: &'t Tensor,
    pub(crate) s: &'t mut Tensor,
}

impl Mask {
    pub(crate) fn new() -> Self {
        Self {
            forward: Kernel::new(&SHADER, "forward", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (prompts, models, words) = (f.s.rows(), f.s.columns(), f.mask.columns());
        f.mask.expect("mask", "mask", prompts, models.div_ceil(32));
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.forward,
                [groups(models, WG), to_u32(prompts), 1],
                &Dims {
                    models: to_u32(models),
                    words: to_u32(words),
                },
                &[("mask", f.mask), ("s", f.s)],
            ),
            Pass::Cpu(cpu) => forward_cpu(cpu, models, f.mask.u32(), f.s.f32_mut()),
        }
    }
}

fn forward_cpu(pass: &CpuPass<'_>, models: usize, mask: &[u32], s: &mut [f32]) {
    let words = models.div_ceil(32);
    pass.cpu.rows(s, models, models, |first, rows| {
        for (i, s) in rows.chunks_exact_mut(models).enumerate() {
            let mask = &mask[(first + i) * words..][..words];
            for (s, word) in s.chunks_mut(32).zip(mask) {
                for (bit, s) in s.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *s = LOWEST;
                    }
                }
            }
        }
    });
}
