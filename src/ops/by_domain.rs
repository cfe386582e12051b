//! What is known of its domain, added to a model's score: s [B, M] += strength domains [B, N] of each.

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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::reference;
    use crate::ops::testing::{BOUND, assert_close, devices, noise, run, wide};

    #[test]
    fn models_get_their_domains_and_retired_ones_stay_lowest() {
        for (prompts, models, domains) in [(1, 1, 1), (3, 65, 4), (5, 700, 9)] {
            let mut s = noise(prompts * models, 21);
            for m in (0..s.len()).filter(|n| n % models % 7 == 5) {
                s[m] = LOWEST;
            }
            let own: Vec<u32> = (0..models).map(|m| to_u32(m * 13 % domains)).collect();
            let of_prompts = noise(prompts * domains, 22);
            for strength in [0.6, -0.3] {
                let want = reference::by_domain(
                    &wide(&s),
                    &wide(&of_prompts),
                    &own,
                    domains,
                    strength.into(),
                );
                for device in &devices() {
                    let op = ByDomain::new();
                    let domains = device.upload("domains", domains, &of_prompts).unwrap();
                    let own = device.upload_ids("own", 1, &own).unwrap();
                    let mut s = device.upload("s", models, &s).unwrap();
                    let (read, outcome) = run(device, |pass| {
                        let f = Forward {
                            domains: &domains,
                            own: &own,
                            strength,
                            s: &mut s,
                        };
                        op.forward(pass, f);
                        pass.read(&s)
                    });
                    assert_close("by_domain", outcome.f32(read), &want, BOUND);
                }
            }
        }
    }
}
