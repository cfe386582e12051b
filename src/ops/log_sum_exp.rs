//! The logarithm of the sum of exponentials over groups of models: s [B, M] -> out [B, N].

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::cpu::math;
use crate::device::{CpuPass, Kernel, Pass, Shader, Tensor, shader};
use crate::num::to_u32;
use crate::ops::LOWEST;

const SHADER: Shader = shader!("log_sum_exp", "reduce");

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    models: u32,
    groups: u32,
}

pub(crate) struct LogSumExp {
    pub(super) forward: Kernel,
}

/// `s`: [B, M]; `members`: [L], ids of group 0, then 1, ...; `offsets`: [N + 1]; `out`: [B, N],
/// overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) s: &'t Tensor,
    pub(crate) members: &'t Tensor,
    pub(crate) offsets: &'t Tensor,
    pub(crate) out: &'t mut Tensor,
}

impl LogSumExp {
    pub(crate) fn new() -> Self {
        Self {
            forward: Kernel::new(&SHADER, "forward", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (prompts, models, groups) = (f.s.rows(), f.s.columns(), f.out.columns());
        f.offsets.expect("log_sum_exp", "offsets", groups + 1, 1);
        f.out.expect("log_sum_exp", "out", prompts, groups);
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.forward,
                [to_u32(groups), to_u32(prompts), 1],
                &Dims {
                    models: to_u32(models),
                    groups: to_u32(groups),
                },
                &[
                    ("s", f.s),
                    ("members", f.members),
                    ("offsets", f.offsets),
                    ("out", f.out),
                ],
            ),
            Pass::Cpu(cpu) => {
                forward_cpu(
                    cpu,
                    models,
                    f.s.f32(),
                    f.members.u32(),
                    f.offsets.u32(),
                    f.out.f32_mut(),
                );
            }
        }
    }
}

fn forward_cpu(
    pass: &CpuPass<'_>,
    models: usize,
    s: &[f32],
    members: &[u32],
    offsets: &[u32],
    out: &mut [f32],
) {
    let (cpu, groups) = (pass.cpu, offsets.len() - 1);
    cpu.rows(out, groups, models * 4, |first, rows| {
        let mut scores = Vec::new();
        for (i, out) in rows.chunks_exact_mut(groups).enumerate() {
            let s = &s[(first + i) * models..][..models];
            for (out, pair) in out.iter_mut().zip(offsets.windows(2)) {
                let group = &members[pair[0] as usize..pair[1] as usize];
                scores.clear();
                scores.extend(group.iter().map(|id| s[*id as usize]));
                *out = cpu.simd(
                    #[inline(always)]
                    || {
                        let peak = math::max(&scores).max(LOWEST);
                        peak + math::sum(&scores, |score| math::exp(score - peak)).ln()
                    },
                );
            }
        }
    });
}
