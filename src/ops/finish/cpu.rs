//! The CPU twin: words, mask, domains and ranks, one after the other.

use super::{AnswerRow, Forward};
use crate::device::cpu::math;
use crate::device::{CpuPass, Tensor};
use crate::num::to_u32;
use crate::ops::LOWEST;

pub(super) fn forward(pass: &CpuPass<'_>, f: Forward<'_>, row: AnswerRow) {
    let groups = f.groups;
    let [members, offsets, own] = [&groups.members, &groups.offsets, &groups.own].map(Tensor::u32);
    let (models, s) = (f.groups.models, f.s.f32_mut());
    if let Some(words) = f.words {
        let (scores, count) = (words.scores.f32(), words.scores.columns());
        add_words(pass, words.strength, (scores, count), own, s);
    }
    if let Some(mask) = f.mask {
        apply_mask(pass, models, mask.u32(), s);
    }
    let (s, y) = (&*s, f.y.map_or(&[][..], |y| y.f32()));
    let (cpu, results) = (pass.cpu, f.results.u32_mut());
    cpu.rows(results, row.width(), models * 4, |first, rows| {
        let mut group = Vec::new();
        for (i, out) in rows.chunks_exact_mut(row.width().max(1)).enumerate() {
            let b = first + i;
            let s = &s[b * models..][..models];
            let (ids, rest) = out.split_at_mut(row.k);
            let rest: &mut [f32] = bytemuck::cast_slice_mut(rest);
            let (scores, rest) = rest.split_at_mut(row.k);
            let (domains, own_y) = rest.split_at_mut(row.domains);
            own_y.copy_from_slice(&y[b * row.rank..][..row.rank]);
            for (out, pair) in domains.iter_mut().zip(offsets.windows(2)) {
                let ids = &members[pair[0] as usize..pair[1] as usize];
                group.clear();
                group.extend(ids.iter().map(|id| s[*id as usize]));
                *out = cpu.simd(
                    #[inline(always)]
                    || log_sum_exp(&group),
                );
            }
            let ranks = ids.iter_mut().zip(scores);
            for ((id, score), (best, best_score)) in ranks.zip(best(s, row.k)) {
                (*id, *score) = (best, best_score);
            }
        }
    });
}

fn add_words(
    pass: &CpuPass<'_>,
    strength: f32,
    (words, count): (&[f32], usize),
    own: &[u32],
    s: &mut [f32],
) {
    let models = own.len();
    pass.cpu.rows(s, models, models, |first, rows| {
        for (i, s) in rows.chunks_exact_mut(models.max(1)).enumerate() {
            let words = &words[(first + i) * count..][..count];
            for (s, own) in s.iter_mut().zip(own) {
                if *s > LOWEST {
                    *s += strength * words[*own as usize];
                }
            }
        }
    });
}

fn apply_mask(pass: &CpuPass<'_>, models: usize, mask: &[u32], s: &mut [f32]) {
    let words = models.div_ceil(32);
    pass.cpu.rows(s, models, models, |first, rows| {
        for (i, s) in rows.chunks_exact_mut(models.max(1)).enumerate() {
            let mask = &mask[(first + i) * words..][..words];
            for (s, word) in s.chunks_mut(32).zip(mask) {
                for (bit, s) in s.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *s = LOWEST;
                    }
                }
            }
        }
    });
}

/// [`LOWEST`] of no score.
#[inline(always)]
fn log_sum_exp(scores: &[f32]) -> f32 {
    if scores.is_empty() {
        return LOWEST;
    }
    let peak = math::max(scores).max(LOWEST);
    peak + math::sum(scores, |score| math::exp(score - peak)).ln()
}

/// The `k` best of `scores` with their places, best first, equal scores by the smaller place.
fn best(scores: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(k + 1);
    if k == 0 {
        return best;
    }
    let mut bar = f32::NEG_INFINITY;
    for (block, scores) in scores.chunks(16).enumerate() {
        // Most blocks have none, and vector code sees that at once.
        let none = scores
            .iter()
            .fold(true, |none, score| none & (*score <= bar));
        if none && best.len() == k {
            continue;
        }
        for (i, score) in scores.iter().enumerate() {
            // Ids ascend, so an equal score ranks below what is there.
            if *score > bar || best.len() < k {
                let place = best.partition_point(|(_, other)| other >= score);
                best.insert(place, (to_u32(16 * block + i), *score));
                best.truncate(k);
                if best.len() == k {
                    bar = best[k - 1].1;
                }
            }
        }
    }
    best
}
