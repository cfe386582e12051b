//! Adds the score of its domain to each model's score: s [B, M] += strength domains [B, N].

use std::sync::Arc;

use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::LOWEST;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

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

/// Every seventh model is retired, for each of `sizes`: prompts, models and domains.
pub(crate) fn cases(device: &Device, sizes: &[(usize, usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(ByDomain::new());
    each(sizes, |(prompts, models, domains)| {
        let mut scores = noise(prompts * models, 21);
        let retired = |n: &usize| n % models % 7 == 5;
        (0..scores.len())
            .filter(retired)
            .for_each(|n| scores[n] = LOWEST);
        let own: Vec<u32> = (0..models).map(|m| to_u32(m * 13 % domains)).collect();
        let of_prompts = noise(prompts * domains, 22);
        let case = |strength: f32| -> Result<Case> {
            let s = device.upload("s", models, &scores)?;
            let added = device.upload("domains", domains, &of_prompts)?;
            let own_list = device.upload_ids("own", 1, &own)?;
            let op = Arc::clone(&op);
            let run = move |pass: &mut Pass<'_>, [s]: &mut [Tensor; 1]| {
                let f = Forward {
                    domains: &added,
                    own: &own_list,
                    strength,
                    s,
                };
                op.forward(pass, f);
            };
            let (scores, of_prompts, own) = (wide(&scores), wide(&of_prompts), own.clone());
            let n = scores.len() as f64;
            let case = Case::new("by_domain", [s], run, move || {
                let strength = f64::from(strength);
                [reference::by_domain(
                    &scores,
                    &of_prompts,
                    &own,
                    domains,
                    strength,
                )]
            });
            Ok(case.work(2.0 * n, 12.0 * n))
        };
        Ok([case(0.6)?, case(-0.3)?])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::check;

    #[test]
    fn models_get_their_domains_and_retired_ones_stay_lowest() {
        check(|device| cases(device, &[(1, 1, 1), (3, 65, 4), (5, 700, 9)]));
    }
}
