//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Forward, Keys, Remembered, Score};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{Case, each};
use crate::ops::normalize;
use crate::ops::reference::{self, noise, wide};
use crate::weights::View;

/// For each of `sizes`, prompts, models and two widths: cosines alone, and with a memory.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize, [usize; 2])]) -> Result<Vec<Case>> {
    let op = Arc::new(Score::new());
    each(sizes, |(prompts, models, [width, rank])| {
        let learned = ScoreInputs {
            rows: noise(prompts * width, 11),
            keys: unit_rows(&noise(models * width, 12), width),
            factor: 12.5,
        };
        let memory = ScoreInputs {
            rows: noise(prompts * rank, 14),
            keys: noise(models * rank, 15),
            factor: 0.5,
        };
        let offsets = reference::offsets(models);
        let alone = case(device, &op, &offsets, learned.clone(), None)?;
        let both = case(device, &op, &offsets, learned, Some(memory))?;
        let label = format!("{prompts} of {models}x{width}");
        Ok([
            alone.of(&label),
            both.of(&format!("{label}, memory {rank}")),
        ])
    })
}

/// `rows` [B, D] and `keys` [M, D].
#[derive(Clone)]
struct ScoreInputs {
    rows: Vec<f32>,
    keys: Vec<f32>,
    factor: f32,
}

impl ScoreInputs {
    fn keys(&self, device: &Device, models: usize) -> Result<(Tensor, Keys)> {
        let width = self.keys.len() / models;
        let rows = device.upload("rows", width, &self.rows)?;
        let keys = Keys::new(device, View::of_f32(&self.keys, width))?;
        Ok((rows, keys))
    }

    /// Without offsets; `unit`: of unit rows.
    fn want(&self, models: usize, unit: bool) -> Vec<f64> {
        let (width, rows) = (self.keys.len() / models, wide(&self.rows));
        let rows = match unit {
            true => reference::normalize(&rows, width),
            false => rows,
        };
        reference::score(&rows, &wide(&self.keys), width, self.factor.into())
    }
}

fn unit_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let mut rows = rows.to_vec();
    rows.chunks_exact_mut(width).for_each(normalize::unit);
    rows
}

fn case(
    device: &Device,
    op: &Arc<Score>,
    offsets: &[f32],
    learned: ScoreInputs,
    memory: Option<ScoreInputs>,
) -> Result<Case> {
    let models = offsets.len();
    let (mut z, keys) = learned.keys(device, models)?;
    let recalled = memory.as_ref().map(|memory| memory.keys(device, models));
    let recalled = recalled.transpose()?;
    let s = device.scratch("s", z.rows(), models)?;
    let offset_list = device.upload("offsets", 1, offsets)?;
    let (op, n) = (Arc::clone(op), s.len() as f64);
    let width = z.columns() + recalled.as_ref().map_or(0, |(y, _)| y.columns());
    let scale = learned.factor;
    let strength = memory.as_ref().map_or(0.0, |memory| memory.factor);
    let run = move |pass: &mut Pass<'_>, [s]: &mut [Tensor; 1]| {
        let memory = recalled.as_ref();
        let f = Forward {
            z: &mut z,
            keys: &keys,
            scale,
            memory: memory.map(|(y, keys)| Remembered { y, keys, strength }),
            offsets: &offset_list,
            s,
        };
        op.forward(pass, f);
    };
    let offsets = wide(offsets);
    let case = Case::new("score", [s], run, move || {
        let mut s = learned.want(models, true);
        if let Some(memory) = &memory {
            let more = memory.want(models, false);
            s.iter_mut().zip(more).for_each(|(s, more)| *s += more);
        }
        [reference::offset(&s, &offsets)]
    });
    let bytes = 4.0 * (n + (models * width) as f64);
    Ok(case.work(2.0 * width as f64 * n, bytes))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::testing::{assert_close, check, devices, outputs, run};

    #[test]
    fn scores_match_hand_values_v2() {
        let keys = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 2.0, -1.0, -1.0, 1.0, 0.5];
        let inputs = ScoreInputs {
            rows: vec![1.0, 2.0, -1.0],
            keys: unit_rows(&keys, 3),
            factor: 12.5,
        };
        let want = [5.1031036, 10.2062073, 12.5, 1.7010345];
        for [s] in outputs(|device| {
            let op = Score::new().into();
            case(device, &op, &[0.0; 4], inputs.clone(), None)
        }) {
            assert_close("V2", &s, &want, 1e-6);
        }
    }

    /// A row without a direction scores 0 wherever it points.
    #[test]
    fn a_row_of_zeros_has_no_cosine() {
        for width in [3, 4] {
            let inputs = ScoreInputs {
                rows: vec![0.0; width],
                keys: unit_rows(&noise(5 * width, 18), width),
                factor: 12.5,
            };
            for [s] in outputs(|device| {
                let op = Score::new().into();
                case(device, &op, &[0.25; 5], inputs.clone(), None)
            }) {
                assert_eq!(s, [0.25; 5]);
            }
        }
    }

    /// The scores of three prompts by `keys`, all of which may be returned.
    fn scores(device: &Device, u: &[f32], width: usize, keys: &Keys) -> Vec<f32> {
        let mut z = device.upload("z", width, u).unwrap();
        let mut s = device.scratch("s", z.rows(), keys.models()).unwrap();
        let offsets = vec![0.0; keys.models()];
        let offsets = device.upload("offsets", 1, &offsets).unwrap();
        let (read, outputs) = run(device, |pass| {
            let f = Forward {
                z: &mut z,
                keys,
                scale: 12.5,
                memory: None,
                offsets: &offsets,
                s: &mut s,
            };
            Score::new().forward(pass, f);
            pass.read(&s)
        });
        outputs.f32(read).to_vec()
    }

    /// On the CPU, in f32 and f16 panels of several widths.
    #[test]
    fn gathered_rows_have_the_bits_that_they_have_among_all() {
        let (prompts, models, width) = (3, 77, 37);
        let ids = [76, 0, 31, 32, 5, 64];
        let u = noise(prompts * width, 16);
        let keys = noise(models * width, 17);
        let half = crate::weights::half_bytes(&keys);
        for device in devices() {
            for view in [View::of_f32(&keys, width), View::of_half(&half, width)] {
                let all = Keys::new(&device, view).unwrap();
                let Some(some) = all.gathered(&ids) else {
                    assert!(matches!(device, Device::Gpu(_)));
                    continue;
                };
                let all = scores(&device, &u, width, &all);
                let some = scores(&device, &u, width, &some);
                for (all, some) in all.chunks(models).zip(some.chunks(ids.len())) {
                    for (id, score) in ids.iter().zip(some) {
                        assert_eq!(score.to_bits(), all[*id as usize].to_bits(), "{id}");
                    }
                }
            }
        }
    }

    /// One prompt, four, and the kernel for more of them; widths of one step and of several, and
    /// such that are no multiple of 4.
    #[test]
    fn all_models_match_f64_and_ineligible_ones_are_lowest() {
        let sizes = [
            (1, 1, [1, 3]),
            (1, 9, [4, 8]),
            (3, 65, [17, 5]),
            (4, 33, [384, 384]),
            (5, 257, [64, 400]),
            (9, 12, [772, 2]),
            (33, 100, [384, 8]),
        ];
        check(|device| all(device, &sizes));
    }

    /// A prompt has the bits of its scores alone in any company.
    #[test]
    fn few_prompts_and_many_give_the_same_bits() {
        let (models, width) = (21, 384);
        let u = noise(18 * width, 19);
        let keys = noise(models * width, 20);
        for device in devices() {
            let keys = Keys::new(&device, View::of_f32(&keys, width)).unwrap();
            let all = scores(&device, &u, width, &keys);
            let some = scores(&device, &u[7 * width..10 * width], width, &keys);
            let bits = |s: &[f32]| -> Vec<u32> { s.iter().map(|s| s.to_bits()).collect() };
            assert_eq!(bits(&some), bits(&all[7 * models..10 * models]));
        }
    }

    /// All keys of a lane and all of its prompts' numbers are on their way before it waits.
    #[cfg(feature = "gpu")]
    #[test]
    fn loads_of_a_lane_fly_together() {
        use crate::device::gpu::flight::fly;
        let dims = |prompts: u32, rank: u32| super::super::Dims {
            prompts,
            models: 2127,
            width: 384,
            rank,
            across: 266,
            scale: 12.5,
            strength: 0.04,
        };
        let op = Score::new();
        for (kernel, prompts, turns) in [(&op.few, 1, 1), (&op.many, 32, 4)] {
            for rank in [384, 0] {
                let dims = dims(prompts, rank);
                let dims = bytemuck::cast_slice(bytemuck::bytes_of(&dims));
                let trace = fly(kernel, dims, [17, 0, 0], 70, &|_, _| 0);
                let each = if rank > 0 { [6, 6, 3, 3] } else { [6, 0, 3, 0] };
                let found = ["keys", "recalled", "z", "y"].map(|name| {
                    assert_eq!(trace.not_of(name, 4), 0, "{name} is not read by fours");
                    trace.in_flight(0, name, 4)
                });
                assert_eq!(found, each);
                // The prompts of each turn, and the offsets at its end.
                assert!(trace.rounds <= 2 * turns, "{}", trace.rounds);
                assert!(trace.scratch <= 16_352, "{}", trace.scratch);
            }
        }
    }
}
