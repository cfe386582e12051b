//! The k best of each row, exact: s [B, M] -> ids, scores [B, k].

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
pub(crate) struct Found {
    scores: Tensor,
    ids: Tensor,
}

impl Found {
    /// Room for `prompts` rows of `models` scores.
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
    pub(crate) found: &'t mut Found,
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::LOWEST;
    use crate::ops::reference;
    use crate::ops::testing::{devices, noise, run};

    fn check(prompts: usize, models: usize, k: usize, s: &[f32]) {
        for device in devices() {
            let op = TopK::new();
            let scores = device.upload("s", models, s).unwrap();
            let mut found = Found::new(&device, prompts, models).unwrap();
            let mut best = device.scratch("scores", prompts * k, 1).unwrap();
            let mut ids = device.ids("ids", prompts * k, 1).unwrap();
            let (reads, outcome) = run(&device, |pass| {
                op.forward(
                    pass,
                    Forward {
                        s: &scores,
                        k,
                        found: &mut found,
                        scores: &mut best,
                        ids: &mut ids,
                    },
                );
                (pass.read(&ids), pass.read(&best))
            });
            let want = reference::top_k(s, models, k);
            let got = (outcome.u32(reads.0).to_vec(), outcome.f32(reads.1).to_vec());
            assert_eq!(got, want, "{k} of {models} on {}", device.name());
        }
    }

    #[test]
    fn ranks_match_a_stable_sort() {
        for (prompts, models, k) in [
            (1, 1, 1),
            (2, 7, 7),
            (3, 65, 10),
            (2, 1024, 3),
            (2, 1025, 65),
            (1, 2500, MOST),
        ] {
            check(prompts, models, k, &noise(prompts * models, 14));
        }
    }

    #[test]
    fn ties_go_to_the_smaller_id() {
        let s: Vec<f32> = noise(2100, 15).iter().map(|v| (v * 3.0).round()).collect();
        check(1, 2100, 20, &s);
        check(1, 2100, 5, &[1.0; 2100]);
    }

    #[test]
    fn the_lowest_score_ranks_last() {
        let mut s = noise(70, 16);
        s[3] = LOWEST;
        s[69] = LOWEST;
        check(1, 70, 70, &s);
    }
}
