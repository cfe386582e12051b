//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{AdamW, B1, B2, Clip, Listed, NormWorkspace, Segment, Step};
use crate::device::{Device, Pass, Place, Tensor};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

/// A step of some parameters and a matrix behind them, for each of `sizes`: elements before the
/// matrix, its rows and their width. First all rows move, then every third alone, with gradients
/// clipped before the matrix and everywhere.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(AdamW::new());
    each(sizes, |(before, rows, width)| {
        let matrix = Place::flat(before, rows, width);
        let third = || Some((0..to_u32(rows)).step_by(3).collect());
        let case = |listed: Option<Vec<u32>>, clip_all| -> Result<Case> {
            let moved = listed.as_ref().map_or(rows, Vec::len);
            let case = StepInputs::of_noise(matrix, listed, clip_all).case(device, &op)?;
            Ok(case.of(&format!("{moved} of {rows} rows")))
        };
        Ok([
            case(None, false)?,
            case(third(), false)?,
            case(third(), true)?,
        ])
    })
}

/// theta, grad, m and v [N] before a step, of which `matrix` is the end.
#[derive(Clone)]
struct StepInputs {
    state: [Vec<f32>; 4],
    segments: Vec<Segment>,
    matrix: Place,
    /// Rows that move; None: all.
    listed: Option<Vec<u32>>,
    clip: Option<Clip>,
}

impl StepInputs {
    /// The third step of both segments; rows that do not move have no gradient.
    fn of_noise(matrix: Place, listed: Option<Vec<u32>>, clip_all: bool) -> Self {
        let (before, n) = (matrix.offset, matrix.end());
        let [theta, mut grad, m] = [1, 2, 3].map(|seed| noise(n, seed));
        let v = noise(n, 4).iter().map(|v| 0.1 + v * v).collect();
        for (row, grad) in grad[before..].chunks_exact_mut(matrix.columns).enumerate() {
            let moves = |ids: &Vec<u32>| ids.contains(&to_u32(row));
            if !listed.as_ref().is_none_or(moves) {
                grad.fill(0.0);
            }
        }
        let segment = |range, rate, decay| Segment {
            range,
            rate,
            decay,
            count: 3,
        };
        Self {
            state: [theta, grad, m, v],
            segments: vec![segment(0..before, 0.2, 0.1), segment(before..n, 0.1, 0.01)],
            matrix,
            listed,
            clip: Some(Clip {
                range: 0..if clip_all { n } else { before },
                limit: 0.5,
            }),
        }
    }

    /// Outputs: theta, grad, m, v, and the norm with 1.
    fn case(&self, device: &Device, op: &Arc<AdamW>) -> Result<Case> {
        let [theta, grad, m, v] = self.state.each_ref().map(|values| {
            let n = values.len();
            device.upload("state", n, values)
        });
        let (theta, grad, m, v) = (theta?, grad?, m?, v?);
        let listed = self.listed.as_ref();
        let ids = listed.map(|ids| device.upload_ids("ids", 1, ids));
        let ids = ids.transpose()?;
        let mut workspace = NormWorkspace::new(device)?;
        let norm = device.upload("norm", 2, &[0.0; 2])?;
        let (op, inputs) = (Arc::clone(op), self.clone());
        let run = move |pass: &mut Pass<'_>, outputs: &mut [Tensor; 5]| {
            let [theta, grad, m, v, norm] = outputs;
            std::mem::swap(&mut workspace.norm, norm);
            let s = Step {
                theta,
                grad,
                m,
                v,
                segments: &inputs.segments,
                listed: ids.as_ref().map(|ids| Listed {
                    matrix: inputs.matrix,
                    ids,
                }),
                clip: inputs.clip.clone(),
                losses: [None, None],
                workspace: &mut workspace,
            };
            op.step(pass, s);
            std::mem::swap(&mut workspace.norm, norm);
        };
        let inputs = self.clone();
        let outputs = [theta, grad, m, v, norm];
        let case = Case::new("adamw", outputs, run, move || inputs.in_f64());
        let rows = listed.map_or(self.matrix.rows, Vec::len);
        let moved = (self.matrix.offset + rows * self.matrix.columns) as f64;
        Ok(case.work(15.0 * moved, 32.0 * moved).within(1e-6))
    }

    fn moves(&self, i: usize) -> bool {
        let row = |matrix: Place| to_u32((i - matrix.offset) / matrix.columns);
        let listed = self.listed.as_ref().filter(|_| i >= self.matrix.offset);
        listed.is_none_or(|ids| ids.contains(&row(self.matrix)))
    }

    fn in_f64(&self) -> [Vec<f64>; 5] {
        let [mut theta, mut grad, mut m, mut v] = self.state.each_ref().map(|x| wide(x));
        let clip = self.clip.as_ref();
        let clipped = clip.map_or(&[][..], |clip| &grad[clip.range.clone()]);
        let norm = reference::dot(clipped, clipped).sqrt();
        for segment in &self.segments {
            let Segment { range, rate, .. } = segment;
            let count = segment.count as f64;
            let (c1, c2) = (1.0 - B1.powf(count), 1.0 - B2.powf(count));
            let inside = |c: &&Clip| c.range.start <= range.start && range.end <= c.range.end;
            let scale = match clip.filter(inside) {
                Some(clip) => (f64::from(clip.limit) / (norm + 1e-6)).min(1.0),
                None => 1.0,
            };
            for i in range.clone().filter(|i| self.moves(*i)) {
                let g = scale * grad[i];
                grad[i] = 0.0;
                m[i] = B1 * m[i] + (1.0 - B1) * g;
                v[i] = B2 * v[i] + (1.0 - B2) * g * g;
                theta[i] *= 1.0 - rate * segment.decay;
                theta[i] -= rate * (m[i] / c1) / ((v[i] / c2).sqrt() + 1e-8);
            }
        }
        [theta, grad, m, v, vec![norm, 1.0]]
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::testing::{assert_close, check, devices, outputs, run};
    use std::ops::Range;

    fn segment(range: Range<usize>, rate: f64, decay: f64, count: usize) -> Segment {
        Segment {
            range,
            rate,
            decay,
            count,
        }
    }

    /// theta, grad, m, v and the norm after a step from `state` without a matrix.
    fn step(state: [&[f32]; 4], segments: &[Segment], clip: Option<Clip>) -> Vec<[Vec<f32>; 5]> {
        let inputs = StepInputs {
            state: state.map(<[f32]>::to_vec),
            segments: segments.to_vec(),
            matrix: Place::flat(state[0].len(), 0, 1),
            listed: None,
            clip,
        };
        outputs(|device| inputs.case(device, &AdamW::new().into()))
    }

    #[test]
    fn steps_match_hand_values_v21() {
        let segments = |count| [segment(0..2, 0.1, 0.01, count)];
        let zeros = &[0.0; 2][..];
        for [theta, grad, m, v, _] in step(
            [&[1.0, -2.0], &[0.5, -1.0], zeros, zeros],
            &segments(1),
            None,
        ) {
            assert_close("V21", &theta, &[0.899_000_002, -1.898_000_001], 1e-6);
            assert_eq!(grad, [0.0, 0.0]);
            for [theta, _, m, v, _] in step([&theta, &[0.25, 1.0], &m, &v], &segments(2), None) {
                assert_close("V21", &theta, &[0.804_883_04, -1.901_365_16], 1e-6);
                assert_close("V21 m", &m, &[0.07, 0.01], 1e-6);
                assert_close("V21 v", &v, &[0.000_312_25, 0.001_999], 1e-6);
            }
        }
        // Momentum and decay act without a gradient.
        for [theta, _, m, v, _] in step(
            [&[1.0, -2.0], &[0.5, 0.0], zeros, zeros],
            &segments(1),
            None,
        ) {
            for [theta, ..] in step([&theta, zeros, &m, &v], &segments(2), None) {
                assert_close("V21 still", &theta, &[0.831_095_18, -1.996_002], 1e-6);
            }
        }
    }

    #[test]
    fn clip_matches_hand_values_and_spares_the_rest_v22() {
        let clip = Some(Clip {
            range: 1..3,
            limit: 1.0,
        });
        let segments = [segment(1..3, 0.1, 0.0, 1), segment(3..4, 0.1, 0.0, 1)];
        let (zeros, g) = (&[0.0; 5][..], [7.0, 3.0, 4.0, 5.0, 6.0]);
        for [theta, grad, m, _, norm] in step([zeros, &g, zeros, zeros], &segments, clip.clone()) {
            assert_close("norm", &norm, &[5.0, 1.0], 1e-6);
            let want = [0.0, 0.059_999_988, 0.079_999_984, 0.5, 0.0];
            assert_close("V22", &m, &want, 1e-6);
            assert_eq!(grad, [7.0, 0.0, 0.0, 0.0, 6.0]);
            assert_eq!((theta[0], theta[4]), (0.0, 0.0));
        }
    }

    /// Elements before the matrix.
    const BEFORE: usize = 5;

    #[test]
    fn steps_match_f64_and_rows_that_are_not_listed_stay() {
        let shapes = [
            (1, 1),
            (9, 1),
            (7, 63),
            (64, 7),
            (5, 65),
            (33, 257),
            (4, 384),
        ];
        check(|device| all(device, &shapes.map(|(rows, width)| (BEFORE, rows, width))));
        for (rows, width) in shapes {
            let matrix = Place::flat(BEFORE, rows, width);
            for listed in [vec![], vec![to_u32(rows) - 1]] {
                for clip_all in [false, true] {
                    let inputs = StepInputs::of_noise(matrix, Some(listed.clone()), clip_all);
                    check(|device| Ok(vec![inputs.case(device, &AdamW::new().into())?]));
                }
            }
        }
    }

    #[test]
    fn a_list_of_all_rows_has_the_bits_of_none() {
        let matrix = Place::flat(BEFORE, 37, 65);
        let step = |listed: Option<Vec<u32>>| {
            let inputs = StepInputs {
                listed,
                ..StepInputs::of_noise(matrix, None, false)
            };
            outputs::<5>(|device| inputs.case(device, &AdamW::new().into()))
        };
        assert_eq!(step(Some((0..37).collect())), step(None));
        assert_ne!(step(Some((1..37).collect())), step(None));
    }

    #[test]
    fn shrinking_touches_listed_rows_alone() {
        for (rows, width) in [(1, 1), (9, 63), (40, 65)] {
            let matrix = Place::flat(BEFORE, rows, width);
            let start = noise(matrix.end(), 1);
            let list: Vec<u32> = (0..to_u32(rows)).step_by(2).collect();
            let want: Vec<f32> = (0..matrix.end())
                .map(|i| {
                    let listed = i >= BEFORE && ((i - BEFORE) / width).is_multiple_of(2);
                    if listed { start[i] * 0.75 } else { start[i] }
                })
                .collect();
            assert_ne!(want, start);
            for device in devices() {
                let op = AdamW::new();
                let mut theta = device.upload("theta", start.len(), &start).unwrap();
                let ids = device.upload_ids("ids", 1, &list).unwrap();
                let (read, outputs) = run(&device, |pass| {
                    op.shrink(pass, &mut theta, Listed { matrix, ids: &ids }, 0.75);
                    pass.read(&theta)
                });
                assert_eq!(outputs.f32(read), want);
            }
        }
    }

    /// Of the losses, of the other losses, of a gradient: one that is not finite holds the step.
    #[test]
    fn nothing_moves_where_a_number_is_not_finite() {
        let range = 1..4;
        let held = |broken: [f32; 3], clipped: bool| {
            let all = devices().into_iter().map(|device| {
                let row = |values: &[f32]| device.upload("row", values.len(), values).unwrap();
                let mut theta = row(&[1.0, 2.0, 3.0, 4.0, 5.0]);
                let (mut m, mut v) = (row(&[0.0; 5]), row(&[0.0; 5]));
                let mut grad = row(&[0.1, 0.2, broken[2], 0.4, 0.5]);
                let losses = row(&[0.5, broken[0], 0.25]);
                let others = row(&[broken[1]]);
                let mut workspace = NormWorkspace::new(&device).unwrap();
                let op = AdamW::new();
                let (reads, outputs) = run(&device, |pass| {
                    let clip = clipped.then(|| Clip {
                        range: range.clone(),
                        limit: 1.0,
                    });
                    op.step(
                        pass,
                        Step {
                            theta: &mut theta,
                            grad: &mut grad,
                            m: &mut m,
                            v: &mut v,
                            segments: &[segment(range.clone(), 0.1, 0.01, 1)],
                            listed: None,
                            clip,
                            losses: [Some(&losses), Some(&others)],
                            workspace: &mut workspace,
                        },
                    );
                    [&theta, &m, &v, &workspace.norm].map(|tensor| pass.read(tensor))
                });
                let [theta, m, v, norm] = reads.map(|read| outputs.f32(read).to_vec());
                let stayed = theta == [1.0, 2.0, 3.0, 4.0, 5.0];
                assert_eq!(stayed, m == [0.0; 5] && v == [0.0; 5]);
                assert_eq!(stayed, norm[1] == 0.0);
                stayed
            });
            let all: Vec<bool> = all.collect();
            assert!(
                all.iter().all(|held| *held == all[0]),
                "{broken:?}: {all:?}"
            );
            all[0]
        };
        assert!(!held([1.0, 1.0, 1.0], true) && !held([1.0, 1.0, 1.0], false));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..3 {
                let mut broken = [1.0; 3];
                broken[place] = bad;
                assert!(held(broken, true), "{broken:?}");
            }
        }
    }

    #[test]
    fn long_buffers_match_f64() {
        let n = 100_001;
        check(|device| {
            let inputs = StepInputs {
                state: [noise(n, 1), noise(n, 2), vec![0.0; n], vec![0.0; n]],
                segments: vec![segment(0..n, 0.01, 0.1, 1)],
                matrix: Place::flat(n, 0, 1),
                listed: None,
                clip: Some(Clip {
                    range: 0..n,
                    limit: 1.0,
                }),
            };
            Ok(vec![
                inputs.case(device, &AdamW::new().into())?.within(1e-5),
            ])
        });
    }
}
