//! Scores of all models: scale u [B, D] . keys [M, D]^T + offsets [M] -> s [B, M].

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

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

    /// The rows `ids` in this order; `None` on a GPU, where a mask does the same.
    pub(crate) fn gathered(&self, ids: &[u32]) -> Option<Self> {
        let values = match &self.values {
            KeyValues::Cpu(keys, offsets) => {
                let offsets = ids.iter().map(|id| offsets[*id as usize]).collect();
                KeyValues::Cpu(keys.gathered(ids), offsets)
            }
            KeyValues::Gpu(..) => return None,
        };
        Some(Self {
            values,
            models: ids.len(),
            width: self.width,
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
