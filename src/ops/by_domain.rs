//! Adds the score of its domain to each model's score: s [B, M] += strength domains [B, N].

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::{CpuPass, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::num::to_u32;
use crate::ops::LOWEST;

const SHADER: Shader = shader!("by_domain");

/// Lanes of a workgroup.
const WG: usize = 64;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    models: u32,
    domains: u32,
    strength: f32,
}

pub(crate) struct ByDomain {
    pub(super) forward: Kernel,
}

/// `domains`: [B, N]; `own`: [M], each below N; `s`: [B, M], added to; models that may not be
/// returned keep the lowest score.
pub(crate) struct Forward<'t> {
    pub(crate) domains: &'t Tensor,
    pub(crate) own: &'t Tensor,
    pub(crate) strength: f32,
    pub(crate) s: &'t mut Tensor,
}

impl ByDomain {
    pub(crate) fn new() -> Self {
        Self {
            forward: Kernel::new(&SHADER, "forward", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (prompts, models, domains) = (f.s.rows(), f.s.columns(), f.domains.columns());
        f.domains.expect("by_domain", "domains", prompts, domains);
        f.own.expect("by_domain", "own", models, 1);
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.forward,
                [groups(models, WG), to_u32(prompts), 1],
                &Dims {
                    models: to_u32(models),
                    domains: to_u32(domains),
                    strength: f.strength,
                },
                &[("domains", f.domains), ("own", f.own), ("s", f.s)],
            ),
            Pass::Cpu(cpu) => {
                let own = f.own.u32();
                forward_cpu(
                    cpu,
                    f.strength,
                    f.domains.f32(),
                    domains,
                    own,
                    f.s.f32_mut(),
                );
            }
        }
    }
}

fn forward_cpu(
    pass: &CpuPass<'_>,
    strength: f32,
    domains: &[f32],
    count: usize,
    own: &[u32],
    s: &mut [f32],
) {
    let models = own.len();
    pass.cpu.rows(s, models, models, |first, rows| {
        for (i, s) in rows.chunks_exact_mut(models).enumerate() {
            let domains = &domains[(first + i) * count..][..count];
            for (s, own) in s.iter_mut().zip(own) {
                if *s > LOWEST {
                    *s += strength * domains[*own as usize];
                }
            }
        }
    });
}
