//! Scores of all models: scale u [B, D] . keys [M, D]^T + offsets [M] -> s [B, M].

use std::sync::Arc;

use crate::device::cpu::RowsMut;
use crate::device::cpu::gemm::{self, Finish, Matrix, Packed};
use crate::device::{Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::{Result, bail};
use crate::num::to_u32;
use crate::ops::LOWEST;
use crate::ops::case::{Case, each};
use crate::ops::normalize;
use crate::ops::reference::{self, noise, wide};
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
    pub(super) forward: Kernel,
    pub(super) forward_add: Kernel,
}

/// The models' rows and the offsets of their scores.
pub(crate) struct Keys {
    values: KeyValues,
    models: usize,
    width: usize,
}

enum KeyValues {
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
            Device::Cpu(cpu) => KeyValues::Cpu(
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
                KeyValues::Gpu(keys, device.upload("offsets", 1, offsets)?)
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
    pub(crate) fn new() -> Self {
        Self {
            forward: Kernel::new(&SHADER, "forward", &[]),
            forward_add: Kernel::new(&SHADER, "forward_add", &[]),
        }
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
        (Pass::Gpu(gpu), KeyValues::Gpu(keys, offsets)) => gpu.dispatch(
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
        (Pass::Cpu(pass), KeyValues::Cpu(keys, offsets)) => {
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

/// For each of `sizes`, prompts, models and two widths: the scores of unit rows, and a second call
/// that adds to them.
pub(crate) fn cases(device: &Device, sizes: &[(usize, usize, [usize; 2])]) -> Result<Vec<Case>> {
    let op = Arc::new(Score::new());
    each(sizes, |(prompts, models, [width, second])| {
        let (u, keys) = (noise(prompts * width, 11), noise(models * width, 12));
        let first = ScoreInputs {
            u: unit_rows(&u, width),
            keys: unit_rows(&keys, width),
            scale: 12.5,
        };
        let added = ScoreInputs {
            u: noise(prompts * second, 14),
            keys: noise(models * second, 15),
            scale: 0.5,
        };
        let offsets = reference::offsets(models);
        let alone = case(device, &op, &offsets, vec![first.clone()])?;
        let both = case(device, &op, &offsets, vec![first, added])?;
        let label = format!("{prompts} of {models}x{width}");
        Ok([alone.of(&label), both.of(&format!("{label}, added"))])
    })
}

/// `u` [B, D] and `keys` [M, D].
#[derive(Clone)]
struct ScoreInputs {
    u: Vec<f32>,
    keys: Vec<f32>,
    scale: f32,
}

fn unit_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let mut rows = rows.to_vec();
    rows.chunks_exact_mut(width).for_each(normalize::unit);
    rows
}

/// The sum of the scores of all `inputs`.
fn case(
    device: &Device,
    op: &Arc<Score>,
    offsets: &[f32],
    inputs: Vec<ScoreInputs>,
) -> Result<Case> {
    let models = offsets.len();
    let mut calls = Vec::new();
    for ScoreInputs { u, keys, scale } in &inputs {
        let width = keys.len() / models;
        let keys = Keys::new(device, View::of_f32(keys, width), offsets)?;
        calls.push((device.upload("u", width, u)?, keys, *scale));
    }
    let s = device.scratch("s", calls[0].0.rows(), models)?;
    let (op, n) = (Arc::clone(op), s.len() as f64);
    let width: usize = calls.iter().map(|(u, ..)| u.columns()).sum();
    let run = move |pass: &mut Pass<'_>, [s]: &mut [Tensor; 1]| {
        for (number, (u, keys, scale)) in calls.iter().enumerate() {
            let (scale, s) = (*scale, &mut *s);
            let f = Forward { u, keys, scale, s };
            match number {
                0 => op.forward(pass, f),
                _ => op.forward_add(pass, f),
            }
        }
    };
    let offsets = wide(offsets);
    let case = Case::new("score", [s], run, move || {
        let scores = inputs.iter().map(|ScoreInputs { u, keys, scale }| {
            let (width, tau) = (keys.len() / models, 1.0 / f64::from(*scale));
            reference::score(&wide(u), &wide(keys), width, &offsets, tau)
        });
        let sum = scores.reduce(|a, b| {
            let pairs = a.iter().zip(&b);
            pairs.map(|(a, b)| (a + b).max(LOWEST.into())).collect()
        });
        [sum.unwrap_or_default()]
    });
    let bytes = 4.0 * (n + (models * width) as f64);
    Ok(case.work(2.0 * width as f64 * n, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check, outputs};

    #[test]
    fn scores_match_hand_values_v2() {
        let keys = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 2.0, -1.0, -1.0, 1.0, 0.5];
        let inputs = ScoreInputs {
            u: unit_rows(&[1.0, 2.0, -1.0], 3),
            keys: unit_rows(&keys, 3),
            scale: 12.5,
        };
        let want = [5.1031036, 10.2062073, 12.5, 1.7010345];
        for [s] in outputs(|device| {
            let op = Score::new().into();
            case(device, &op, &[0.0; 4], vec![inputs.clone()])
        }) {
            assert_close("V2", &s, &want, 1e-6);
        }
    }

    #[test]
    fn all_models_match_f64_and_ineligible_ones_are_lowest() {
        let sizes = [
            (1, 1, [1, 3]),
            (3, 65, [17, 5]),
            (9, 257, [64, 40]),
            (17, 100, [384, 7]),
        ];
        check(|device| cases(device, &sizes));
    }
}
