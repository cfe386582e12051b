//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Forward, Keys, Score};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::LOWEST;
use crate::ops::case::{Case, each};
use crate::ops::normalize;
use crate::ops::reference::{self, noise, wide};
use crate::weights::View;

/// For each of `sizes`, prompts, models and two widths: the scores of unit rows, and a second call
/// that adds to them.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize, [usize; 2])]) -> Result<Vec<Case>> {
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
    #![expect(clippy::unwrap_used, reason = "tests")]
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

    /// On the CPU, in f32 and f16 panels of several widths.
    #[test]
    fn gathered_rows_have_the_bits_that_they_have_among_all() {
        let (prompts, models, width) = (3, 77, 37);
        let ids = [76, 0, 31, 32, 5, 64];
        let u = noise(prompts * width, 16);
        let keys = noise(models * width, 17);
        let half = crate::weights::half_bytes(&keys);
        for device in crate::ops::testing::devices() {
            for view in [View::of_f32(&keys, width), View::of_half(&half, width)] {
                let all = Keys::new(&device, view, &reference::offsets(models)).unwrap();
                let Some(some) = all.gathered(&ids) else {
                    assert!(matches!(device, Device::Gpu(_)));
                    continue;
                };
                let scores = |keys: &Keys| {
                    let u = device.upload("u", width, &u).unwrap();
                    let mut s = device.scratch("s", prompts, keys.models()).unwrap();
                    let (read, outputs) = crate::ops::testing::run(&device, |pass| {
                        let (u, s) = (&u, &mut s);
                        let scale = 12.5;
                        let f = Forward {
                            u,
                            keys,
                            scale,
                            s: &mut *s,
                        };
                        Score::new().forward(pass, f);
                        pass.read(s)
                    });
                    outputs.f32(read).to_vec()
                };
                let (all, some) = (scores(&all), scores(&some));
                for (all, some) in all.chunks(models).zip(some.chunks(ids.len())) {
                    for (id, score) in ids.iter().zip(some) {
                        assert_eq!(score.to_bits(), all[*id as usize].to_bits(), "{id}");
                    }
                }
            }
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
        check(|device| all(device, &sizes));
    }
}
