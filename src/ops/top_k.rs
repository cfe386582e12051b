//! The k best of each row, exact: s [B, M] -> ids, scores [B, k].

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;

const SHADER: Shader = shader!("top_k");

/// Scores of one workgroup of the first kernel.
const CHUNK: usize = 1024;

/// Above this the kernels, which take one turn for each rank, lose to reading the scores back.
pub(crate) const MOST: usize = 128;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    models: u32,
    chunks: u32,
    k: u32,
}

pub(crate) struct TopK {
    pub(super) chunks: Kernel,
    pub(super) merge: Kernel,
}

/// The best of each chunk, between the two kernels; empty on the CPU.
pub(crate) struct TopKWorkspace {
    scores: Tensor,
    ids: Tensor,
}

impl TopKWorkspace {
    /// For `prompts` rows of `models` scores.
    pub(crate) fn new(device: &Device, prompts: usize, models: usize) -> Result<Self> {
        let room = match device {
            Device::Cpu(_) => 0,
            Device::Gpu(_) => prompts * models.div_ceil(CHUNK) * MOST,
        };
        Ok(Self {
            scores: device.scratch("found scores", room, 1)?,
            ids: device.ids("found ids", room, 1)?,
        })
    }
}

/// `s`: [B, M]; `scores`, `ids`: [B k, 1], overwritten; `k` at most [`MOST`] and M.
pub(crate) struct Forward<'t> {
    pub(crate) s: &'t Tensor,
    pub(crate) k: usize,
    pub(crate) found: &'t mut TopKWorkspace,
    pub(crate) scores: &'t mut Tensor,
    pub(crate) ids: &'t mut Tensor,
}

impl TopK {
    pub(crate) fn new() -> Self {
        Self {
            chunks: Kernel::new(&SHADER, "chunks", &[]),
            merge: Kernel::new(&SHADER, "merge", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (prompts, models, k) = (f.s.rows(), f.s.columns(), f.k);
        assert!(k <= MOST.min(models), "top_k: k of {k} among {models}");
        f.scores.expect("top_k", "scores", prompts * k, 1);
        f.ids.expect("top_k", "ids", prompts * k, 1);
        match pass {
            Pass::Gpu(gpu) => {
                let chunks = groups(models, CHUNK);
                let dims = Dims {
                    models: to_u32(models),
                    chunks,
                    k: to_u32(k),
                };
                let (scores, ids) = (
                    ("found_scores", &f.found.scores),
                    ("found_ids", &f.found.ids),
                );
                gpu.dispatch(
                    &self.chunks,
                    [chunks, to_u32(prompts), 1],
                    &dims,
                    &[("s", f.s), scores, ids],
                );
                let grid = [to_u32(prompts), 1, 1];
                gpu.dispatch(
                    &self.merge,
                    grid,
                    &dims,
                    &[scores, ids, ("scores", f.scores), ("ids", f.ids)],
                );
            }
            Pass::Cpu(cpu) => forward_cpu(
                cpu,
                models,
                k,
                f.s.f32(),
                f.scores.f32_mut(),
                f.ids.u32_mut(),
            ),
        }
    }
}

fn forward_cpu(
    _: &CpuPass<'_>,
    models: usize,
    k: usize,
    s: &[f32],
    scores: &mut [f32],
    ids: &mut [u32],
) {
    if k == 0 {
        return;
    }
    let rows = s
        .chunks_exact(models)
        .zip(scores.chunks_exact_mut(k))
        .zip(ids.chunks_exact_mut(k));
    for ((s, scores), ids) in rows {
        for ((id, score), (best, best_score)) in
            best(s, k).into_iter().zip(ids.iter_mut().zip(scores))
        {
            (*best, *best_score) = (id, score);
        }
    }
}

/// The `k` best of `scores` with their places, best first, equal scores by the smaller place.
pub(crate) fn best(scores: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(k + 1);
    let mut bar = f32::NEG_INFINITY;
    for (id, score) in scores.iter().enumerate() {
        // Ids ascend, so an equal score ranks below what is there.
        if *score > bar || best.len() < k {
            let place = best.partition_point(|(_, other)| other >= score);
            best.insert(place, (to_u32(id), *score));
            best.truncate(k);
            if best.len() == k {
                bar = best[k - 1].1;
            }
        }
    }
    best
}
