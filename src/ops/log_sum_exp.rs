//! The logarithm of the sum of exponentials over groups of models: s [B, M] -> out [B, N].

use crate::device::cpu::math;
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, shader};
use crate::error::Result;
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
    forward: Kernel,
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
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            forward: device.kernel(&SHADER, "forward", &[])?,
        })
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::reference;
    use crate::ops::testing::{BOUND, assert_close, devices, noise, run, wide};

    #[test]
    fn groups_match_f64_with_retired_members() {
        for (prompts, models, groups) in [(1, 1, 1), (3, 65, 4), (5, 700, 9)] {
            let mut s: Vec<f32> = noise(prompts * models, 13)
                .iter()
                .map(|v| v * 12.5)
                .collect();
            for (n, s) in s.iter_mut().enumerate() {
                if n % models % 7 == 5 {
                    *s = LOWEST;
                }
            }
            // Group 0 has one member, the rest are spread over the others.
            let group = |m: usize| {
                if m == 0 || groups == 1 {
                    0
                } else {
                    1 + m % (groups - 1)
                }
            };
            let mut members = Vec::new();
            let mut offsets = vec![0u32];
            for g in 0..groups {
                members.extend((0..models).filter(|m| group(*m) == g).map(to_u32));
                offsets.push(to_u32(members.len()));
            }
            let want = reference::log_sum_exp(&wide(&s), models, &members, &offsets);
            for device in devices() {
                let op = LogSumExp::new(&device).unwrap();
                let s = device.upload("s", models, &s).unwrap();
                let members = device.upload_ids("members", 1, &members).unwrap();
                let offsets = device.upload_ids("offsets", 1, &offsets).unwrap();
                let mut out = device.scratch("out", prompts, groups).unwrap();
                let (read, outcome) = run(&device, |pass| {
                    op.forward(
                        pass,
                        Forward {
                            s: &s,
                            members: &members,
                            offsets: &offsets,
                            out: &mut out,
                        },
                    );
                    pass.read(&out)
                });
                assert_close("log_sum_exp", outcome.f32(read), &want, BOUND);
            }
        }
    }

    #[test]
    fn probabilities_match_hand_values_v2() {
        let s = [5.1031036f32, 10.206_207, 12.5, 1.7010345];
        let want = [0.000556644, 0.0915856, 0.9078392, 0.0000185390];
        for device in devices() {
            let op = LogSumExp::new(&device).unwrap();
            let scores = device.upload("s", 4, &s).unwrap();
            let members = device.upload_ids("members", 1, &[0, 1, 2, 3]).unwrap();
            let offsets = device.upload_ids("offsets", 1, &[0, 4]).unwrap();
            let mut out = device.scratch("out", 1, 1).unwrap();
            let (read, outcome) = run(&device, |pass| {
                op.forward(
                    pass,
                    Forward {
                        s: &scores,
                        members: &members,
                        offsets: &offsets,
                        out: &mut out,
                    },
                );
                pass.read(&out)
            });
            let total = outcome.f32(read)[0];
            for (s, want) in s.iter().zip(want) {
                let p = f64::from(s - total).exp();
                assert!((p - want).abs() < 1e-6 + 1e-5 * want, "{p}, not {want}");
            }
        }
    }

    #[test]
    fn a_group_without_eligible_members_stays_lowest() {
        for device in devices() {
            let op = LogSumExp::new(&device).unwrap();
            let s = device.upload("s", 2, &[LOWEST, LOWEST]).unwrap();
            let members = device.upload_ids("members", 1, &[0, 1]).unwrap();
            let offsets = device.upload_ids("offsets", 1, &[0, 2]).unwrap();
            let mut out = device.scratch("out", 1, 1).unwrap();
            let (read, outcome) = run(&device, |pass| {
                op.forward(
                    pass,
                    Forward {
                        s: &s,
                        members: &members,
                        offsets: &offsets,
                        out: &mut out,
                    },
                );
                pass.read(&out)
            });
            assert!(outcome.f32(read)[0] < -1e38);
        }
    }
}
