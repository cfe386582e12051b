//! Scores of all models: scale u [B, D] . keys [M, D]^T + offsets [M] -> s [B, M].

use crate::device::cpu::RowsMut;
use crate::device::cpu::gemm::{self, Finish, Matrix, Packed};
use crate::device::{Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::{Result, bail};
use crate::num::to_u32;
use crate::ops::LOWEST;
use crate::weights::View;

const SHADER: Shader = shader!("score");

/// Lanes of a workgroup.
const WG: usize = 64;

/// Prompts of a workgroup.
const PROMPTS: usize = 8;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    prompts: u32,
    models: u32,
    width: u32,
    scale: f32,
}

pub(crate) struct Score {
    forward: Kernel,
    forward_add: Kernel,
}

/// The models' rows, and what is added to their scores.
pub(crate) struct Keys {
    values: Values,
    models: usize,
    width: usize,
}

enum Values {
    /// And the offsets, [M].
    Cpu(Packed, Vec<f32>),
    /// Transposed [D, M], and the offsets [M].
    Gpu(Tensor, Tensor),
}

impl Keys {
    /// `rows`: [M, D]; `offsets`: one for each row, [`LOWEST`] where the model may not be returned.
    pub(crate) fn new(device: &Device, rows: View<'_>, offsets: &[f32]) -> Result<Self> {
        let (models, width) = (offsets.len(), rows.columns);
        assert_eq!(
            rows.rows(),
            models,
            "score: keys are not [{models}, {width}]"
        );
        let values = match device {
            Device::Cpu(cpu) => Values::Cpu(
                cpu.run(|| Packed::new(cpu, &[("model_embeddings", rows)]))?,
                offsets.to_vec(),
            ),
            Device::Gpu(gpu) => {
                if groups(models, WG) > gpu.most_groups() {
                    bail!(
                        Limits,
                        "{}: {models} models: the adapter allows {} workgroups of {WG}",
                        gpu.name(),
                        gpu.most_groups()
                    );
                }
                let rows = rows.to_f32();
                if !rows.iter().all(|value| value.is_finite()) {
                    bail!(
                        Numeric,
                        "model_embeddings: expected finite weights, found infinity or NaN"
                    );
                }
                let mut transposed = vec![0.0; rows.len()];
                for (m, row) in rows.chunks_exact(width).enumerate() {
                    for (d, value) in row.iter().enumerate() {
                        transposed[d * models + m] = *value;
                    }
                }
                let keys = device.upload("keys", models.max(1), &transposed)?;
                Values::Gpu(keys, device.upload("offsets", 1, offsets)?)
            }
        };
        Ok(Self {
            values,
            models,
            width,
        })
    }

    pub(crate) fn models(&self) -> usize {
        self.models
    }
}

/// `u`: [B, D]; `s`: [B, M], overwritten or added to.
pub(crate) struct Forward<'t> {
    pub(crate) u: &'t Tensor,
    pub(crate) keys: &'t Keys,
    pub(crate) scale: f32,
    pub(crate) s: &'t mut Tensor,
}

impl Score {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            forward: device.kernel(&SHADER, "forward", &[])?,
            forward_add: device.kernel(&SHADER, "forward_add", &[])?,
        })
    }

    /// Overwrites s.
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        score(pass, &self.forward, f, Finish::Set);
    }

    /// Adds to s, in which another call has written.
    pub(crate) fn forward_add(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        score(pass, &self.forward_add, f, Finish::Add);
    }
}

fn score(pass: &mut Pass<'_>, kernel: &Kernel, f: Forward<'_>, finish: fn(f32) -> Finish<'static>) {
    let (prompts, models) = (f.u.rows(), f.keys.models);
    f.u.expect("score", "u", prompts, f.keys.width);
    f.s.expect("score", "s", prompts, models);
    match (pass, &f.keys.values) {
        (Pass::Gpu(gpu), Values::Gpu(keys, offsets)) => gpu.dispatch(
            kernel,
            [groups(models, WG), groups(prompts, PROMPTS), 1],
            &Dims {
                prompts: to_u32(prompts),
                models: to_u32(models),
                width: to_u32(f.keys.width),
                scale: f.scale,
            },
            &[("u", f.u), ("keys", keys), ("offsets", offsets), ("s", f.s)],
        ),
        (Pass::Cpu(pass), Values::Cpu(keys, offsets)) => {
            let s = f.s.f32_mut();
            let u = Matrix::of_rows(f.u.f32(), f.keys.width);
            let y = RowsMut::whole(s, models);
            gemm::multiply(pass.cpu, u, keys, finish(f.scale), y);
            pass.cpu.rows(s, models, models, |_, rows| {
                for s in rows.chunks_exact_mut(models.max(1)) {
                    for (s, offset) in s.iter_mut().zip(offsets) {
                        *s = if *offset > LOWEST {
                            *s + offset
                        } else {
                            LOWEST
                        };
                    }
                }
            });
        }
        _ => unreachable!("score: keys live on another device"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::normalize::unit;
    use crate::ops::reference;
    use crate::ops::testing::{BOUND, assert_close, devices, noise, run, wide};

    fn unit_rows(rows: &[f32], width: usize) -> Vec<f32> {
        let mut rows = rows.to_vec();
        rows.chunks_exact_mut(width).for_each(unit);
        rows
    }

    fn outputs(u: &[f32], keys: &[f32], width: usize, offsets: &[f32]) -> Vec<Vec<f32>> {
        devices()
            .iter()
            .map(|device| {
                let op = Score::new(device).unwrap();
                let keys = Keys::new(device, View::of_f32(keys, width), offsets).unwrap();
                let u = device.upload("u", width, u).unwrap();
                let mut s = device.scratch("s", u.rows(), offsets.len()).unwrap();
                let (read, outcome) = run(device, |pass| {
                    op.forward(
                        pass,
                        Forward {
                            u: &u,
                            keys: &keys,
                            scale: 12.5,
                            s: &mut s,
                        },
                    );
                    pass.read(&s)
                });
                outcome.f32(read).to_vec()
            })
            .collect()
    }

    #[test]
    fn scores_match_hand_values_v2() {
        let z = unit_rows(&[1.0, 2.0, -1.0], 3);
        let e = unit_rows(
            &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 2.0, -1.0, -1.0, 1.0, 0.5],
            3,
        );
        let want = [5.1031036, 10.2062073, 12.5, 1.7010345];
        for s in outputs(&z, &e, 3, &[0.0; 4]) {
            assert_close("V2", &s, &want, 1e-6);
        }
    }

    #[test]
    fn all_models_match_f64_and_ineligible_ones_are_lowest() {
        for (prompts, models, width) in [(1, 1, 1), (3, 65, 17), (9, 257, 64), (17, 100, 384)] {
            let u = unit_rows(&noise(prompts * width, 11), width);
            let keys = unit_rows(&noise(models * width, 12), width);
            let offsets = reference::offsets(models);
            let want = reference::score(&wide(&u), &wide(&keys), width, &wide(&offsets), 0.08);
            for s in outputs(&u, &keys, width, &offsets) {
                assert_close("score", &s, &want, BOUND);
            }
        }
    }

    #[test]
    fn a_second_call_adds_and_ineligible_models_stay_lowest() {
        for (prompts, models, widths) in [(1, 1, [1, 3]), (3, 65, [17, 5]), (9, 257, [64, 40])] {
            let offsets = reference::offsets(models);
            let parts = widths.map(|width| {
                let seed = width as u64;
                (
                    noise(prompts * width, seed),
                    noise(models * width, seed + 100),
                )
            });
            let scales = [12.5, 0.5];
            let each = |(u, keys): &(Vec<f32>, Vec<f32>), width: usize, scale: f64| {
                reference::score(&wide(u), &wide(keys), width, &wide(&offsets), 1.0 / scale)
            };
            let first = each(&parts[0], widths[0], 12.5);
            let second = each(&parts[1], widths[1], 0.5);
            let want: Vec<f64> = first
                .iter()
                .zip(&second)
                .map(|(a, b)| (a + b).max(LOWEST.into()))
                .collect();
            for device in &devices() {
                let op = Score::new(device).unwrap();
                let keys = parts
                    .each_ref()
                    .map(|(_, keys)| keys)
                    .iter()
                    .zip(widths)
                    .map(|(keys, width)| {
                        Keys::new(device, View::of_f32(keys, width), &offsets).unwrap()
                    })
                    .collect::<Vec<_>>();
                let u = [0, 1].map(|i| device.upload("u", widths[i], &parts[i].0).unwrap());
                let mut s = device.scratch("s", prompts, models).unwrap();
                let (read, outcome) = run(device, |pass| {
                    for i in [0, 1] {
                        let f = Forward {
                            u: &u[i],
                            keys: &keys[i],
                            scale: scales[i],
                            s: &mut s,
                        };
                        if i == 0 {
                            op.forward(pass, f);
                        } else {
                            op.forward_add(pass, f);
                        }
                    }
                    pass.read(&s)
                });
                assert_close("score, added", outcome.f32(read), &want, BOUND);
            }
        }
    }
}
