//! Scores of all models: cosines of z [B, D] and keys [M, D], products of a memory's y [B, R] and its
//! keys [M, R], and offsets [M] -> s [B, M].

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::cpu::RowsMut;
use crate::device::cpu::gemm::{self, Finish, Matrix, Packed};
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::{Result, bail};
use crate::num::to_u32;
use crate::ops::{LOWEST, normalize};
use crate::weights::View;

const SHADER: Shader = shader!("score");

/// Models of a workgroup.
const MODELS: usize = 8;

/// Prompts that a workgroup looks at in one turn.
const TURN: usize = 4;

/// Turns of a workgroup where a batch has more prompts than that.
const TURNS: usize = 4;

/// Workgroups along the first axis; every adapter allows as many.
const MOST_ACROSS: usize = 32_768;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    prompts: u32,
    models: u32,
    width: u32,
    rank: u32,
    across: u32,
    scale: f32,
    strength: f32,
}

pub(crate) struct Score {
    /// For at most [`TURN`] prompts.
    pub(super) few: Kernel,
    pub(super) many: Kernel,
    /// The same where a width is no multiple of 4.
    loose: [Kernel; 2],
}

/// A row for each model, [M, D].
pub(crate) struct Keys {
    values: KeyValues,
    models: usize,
    width: usize,
}

enum KeyValues {
    Cpu(Packed),
    /// Each row is filled up with zeros to a multiple of 4.
    Gpu(Tensor),
}

impl Keys {
    /// `rows`: [M, D]
    pub(crate) fn new(device: &Device, rows: View<'_>) -> Result<Self> {
        let (models, width) = (rows.rows(), rows.columns);
        let values = match device {
            Device::Cpu(cpu) => {
                KeyValues::Cpu(cpu.run(|| Packed::new(cpu, &[("model_embeddings", rows)]))?)
            }
            Device::Gpu(_) => {
                let rows = rows.to_f32();
                if !rows.iter().all(|value| value.is_finite()) {
                    bail!(
                        Numeric,
                        "model_embeddings: expected finite weights, found infinity or NaN"
                    );
                }
                KeyValues::Gpu(device.upload("keys", 4, &in_quads(&rows, width))?)
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
        match &self.values {
            KeyValues::Cpu(keys) => Some(Self {
                values: KeyValues::Cpu(keys.gathered(ids)),
                models: ids.len(),
                width: self.width,
            }),
            KeyValues::Gpu(_) => None,
        }
    }

    pub(crate) fn models(&self) -> usize {
        self.models
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    fn of_gpu(&self) -> &Tensor {
        match &self.values {
            KeyValues::Gpu(keys) => keys,
            KeyValues::Cpu(_) => unreachable!("score: keys live on another device"),
        }
    }

    fn of_cpu(&self) -> &Packed {
        match &self.values {
            KeyValues::Cpu(keys) => keys,
            KeyValues::Gpu(_) => unreachable!("score: keys live on another device"),
        }
    }
}

/// `rows` of `width`, each filled up with zeros to a multiple of 4; one vector of four at least.
fn in_quads(rows: &[f32], width: usize) -> Vec<f32> {
    let padded = width.next_multiple_of(4);
    let mut quads = Vec::with_capacity(rows.len().div_ceil(width.max(1)) * padded);
    for row in rows.chunks_exact(width.max(1)) {
        quads.extend_from_slice(row);
        quads.resize(quads.len() + padded - width, 0.0);
    }
    quads.resize(quads.len().max(4), 0.0);
    quads
}

/// `z`: [B, D], of which the CPU makes unit rows where they are; `offsets`: [M, 1], [`LOWEST`] where
/// the model may not be returned; `s`: [B, M], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) z: &'t mut Tensor,
    pub(crate) keys: &'t Keys,
    /// The factor of cosines.
    pub(crate) scale: f32,
    pub(crate) memory: Option<Remembered<'t>>,
    pub(crate) offsets: &'t Tensor,
    pub(crate) s: &'t mut Tensor,
}

/// `y`: [B, R]; `keys`: [M, R].
pub(crate) struct Remembered<'t> {
    pub(crate) y: &'t Tensor,
    pub(crate) keys: &'t Keys,
    /// The factor of products.
    pub(crate) strength: f32,
}

impl Score {
    pub(crate) fn new() -> Self {
        let kernel = |turns: usize, loose: bool| {
            let constants = [
                ("TURNS", turns as f64),
                ("LOOSE", f64::from(u8::from(loose))),
            ];
            Kernel::new(&SHADER, "forward", &constants)
        };
        Self {
            few: kernel(1, false),
            many: kernel(TURNS, false),
            loose: [kernel(1, true), kernel(TURNS, true)],
        }
    }

    /// The kernels for rows of these widths, for few prompts and for many.
    pub(crate) fn kernels(&self, widths: [usize; 2]) -> [&Kernel; 2] {
        match widths.iter().all(|width| width.is_multiple_of(4)) {
            true => [&self.few, &self.many],
            false => self.loose.each_ref(),
        }
    }

    /// Overwrites s.
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (prompts, models) = (f.z.rows(), f.keys.models);
        f.z.expect("score", "z", prompts, f.keys.width);
        f.offsets.expect("score", "offsets", models, 1);
        f.s.expect("score", "s", prompts, models);
        if let Some(memory) = &f.memory {
            assert_eq!(memory.keys.models, models, "score: models of the memory");
            memory.y.expect("score", "y", prompts, memory.keys.width);
        }
        match pass {
            Pass::Gpu(gpu) => {
                let (y, recalled, rank) = match &f.memory {
                    Some(memory) => (memory.y, memory.keys.of_gpu(), memory.keys.width),
                    None => (&*f.z, f.keys.of_gpu(), 0),
                };
                let width = f.keys.width;
                let [few, many] = self.kernels([width, rank]);
                let (kernel, turns) = match prompts <= TURN {
                    true => (few, 1),
                    false => (many, TURNS),
                };
                let tiles = models.div_ceil(MODELS);
                let across = tiles.min(MOST_ACROSS);
                let grid = [
                    to_u32(across),
                    groups(prompts, turns * TURN),
                    groups(tiles, across.max(1)),
                ];
                let dims = Dims {
                    prompts: to_u32(prompts),
                    models: to_u32(models),
                    width: to_u32(width),
                    rank: to_u32(rank),
                    across: to_u32(across),
                    scale: f.scale,
                    strength: f.memory.as_ref().map_or(0.0, |memory| memory.strength),
                };
                let keys = f.keys.of_gpu();
                // A buffer of numbers may be shorter than one vector of four.
                let loose = !width.is_multiple_of(4) || !rank.is_multiple_of(4);
                let [z_quads, y_quads] = if loose { [keys, keys] } else { [&*f.z, y] };
                let tensors = [
                    ("z", z_quads),
                    ("keys", keys),
                    ("y", y_quads),
                    ("recalled", recalled),
                    ("offsets", f.offsets),
                    ("loose_z", &*f.z),
                    ("loose_y", y),
                    ("s", &*f.s),
                ];
                gpu.dispatch(kernel, grid, &dims, &tensors);
            }
            Pass::Cpu(cpu) => forward_cpu(cpu, f),
        }
    }
}

fn forward_cpu(pass: &CpuPass<'_>, f: Forward<'_>) {
    let (cpu, width, models) = (pass.cpu, f.keys.width, f.keys.models);
    cpu.rows(f.z.f32_mut(), width, width * 2, |_, rows| {
        cpu.simd(
            #[inline(always)]
            || rows.chunks_exact_mut(width).for_each(normalize::unit),
        );
    });
    let s = f.s.f32_mut();
    let u = Matrix::of_rows(f.z.f32(), width);
    let finish = Finish::Set(f.scale);
    gemm::multiply(cpu, u, f.keys.of_cpu(), finish, RowsMut::whole(s, models));
    if let Some(memory) = &f.memory {
        let y = Matrix::of_rows(memory.y.f32(), memory.keys.width);
        let finish = Finish::Add(memory.strength);
        gemm::multiply(
            cpu,
            y,
            memory.keys.of_cpu(),
            finish,
            RowsMut::whole(s, models),
        );
    }
    let offsets = f.offsets.f32();
    cpu.rows(s, models, models, |_, rows| {
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
