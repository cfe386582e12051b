//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Distill, Slopes};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{Case, each};
use crate::ops::reference::{divergence, noise, softmax, wide};

/// Some examples are left out, for each of `sizes`: examples and models.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(Distill::new());
    each(sizes, |(examples, models)| {
        // As far apart as cosines over a sharp temperature are.
        let spread = |seed| -> Vec<f32> {
            let values = noise(examples * models, seed);
            values.iter().map(|s| 9.0 * s).collect()
        };
        let weights: Vec<f32> = (0..examples)
            .map(|b| if b % 3 == 1 { 0.0 } else { 0.3 + b as f32 })
            .collect();
        let case = case(device, &op, [&spread(41), &spread(42)], &weights, 2.0)?;
        Ok([case.of(&format!("{examples}x{models}"))])
    })
}

/// `teacher` and `scores` [B, M], `weights` [B]. Outputs: the derivatives by the scores and the
/// losses.
fn case(
    device: &Device,
    op: &Arc<Distill>,
    [wanted, found]: [&[f32]; 2],
    weights: &[f32],
    temperature: f32,
) -> Result<Case> {
    let models = wanted.len() / weights.len();
    let teacher = device.upload("teacher", models, wanted)?;
    let scores = device.upload("scores", models, found)?;
    let shares = device.upload("weights", 1, weights)?;
    let losses = device.scratch("losses", weights.len(), 1)?;
    let (op, n) = (Arc::clone(op), scores.len() as f64);
    let run = move |pass: &mut Pass<'_>, [scores, losses]: &mut [Tensor; 2]| {
        let f = Slopes {
            teacher: &teacher,
            weights: &shares,
            temperature,
            scores,
            losses,
        };
        op.slopes(pass, f);
    };
    let (wanted, found, weights) = (wide(wanted), wide(found), wide(weights));
    let case = Case::new("distill", [scores, losses], run, move || {
        let t = f64::from(temperature);
        let rows = wanted.chunks_exact(models).zip(found.chunks_exact(models));
        let (mut slopes, mut losses) = (Vec::new(), Vec::new());
        for ((teacher, scores), weight) in rows.zip(&weights) {
            losses.push(weight * t * t * divergence(teacher, scores, t));
            let (p, q) = (softmax(teacher, t), softmax(scores, t));
            slopes.extend(p.iter().zip(&q).map(|(p, q)| weight * t * (q - p)));
        }
        [slopes, losses]
    });
    Ok(case.work(20.0 * n, 12.0 * n))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::testing::{assert_close, check, devices, finite_differences, outputs, run};

    /// Derivatives and losses on every device.
    fn slopes(
        teacher: &[f32],
        scores: &[f32],
        weights: &[f32],
        temperature: f32,
    ) -> Vec<[Vec<f32>; 2]> {
        outputs(|device| {
            let op = Distill::new().into();
            case(device, &op, [teacher, scores], weights, temperature)
        })
    }

    #[test]
    fn loss_and_slopes_match_hand_values_v24() {
        for [slopes, losses] in slopes(&[2.0, 0.0, -1.0], &[1.0, 1.0, 0.0], &[1.0], 2.0) {
            let want = [-0.489_760_0, 0.304_855_7, 0.184_904_3];
            assert_close("V24 ds", &slopes, &want, 1e-6);
            assert_close("V24", &losses, &[0.488_732_1], 1e-6);
        }
    }

    #[test]
    fn losses_and_slopes_match_f64() {
        check(|device| all(device, &[(1, 1), (3, 7), (5, 65), (2, 257)]));
        for temperature in [0.5, 3.0] {
            let (teacher, scores) = (noise(3 * 66, 41), noise(3 * 66, 42));
            check(|device| {
                let op = Distill::new().into();
                let inputs: [&[f32]; 2] = [&teacher, &scores];
                let case = case(device, &op, inputs, &[1.0, 0.0, 0.3], temperature)?;
                Ok(vec![case])
            });
        }
    }

    #[test]
    fn the_derivatives_in_f64_are_those_of_the_divergence() {
        for t in [0.5, 2.0] {
            let (teacher, scores) = (wide(&noise(9, 41)), wide(&noise(9, 42)));
            let want = finite_differences(&scores, |s| t * t * divergence(&teacher, s, t));
            let (p, q) = (softmax(&teacher, t), softmax(&scores, t));
            for ((p, q), want) in p.iter().zip(&q).zip(want) {
                assert!((t * (q - p) - want).abs() < 1e-8);
            }
        }
    }

    #[test]
    fn an_example_of_weight_zero_is_left_out_to_the_last_bit() {
        let (teacher, scores) = (noise(2 * 65, 41), noise(2 * 65, 42));
        for [slopes, losses] in slopes(&teacher, &scores, &[0.5, 0.0], 2.0) {
            assert!(slopes[..65].iter().any(|s| *s != 0.0));
            assert!(slopes[65..].iter().all(|s| *s == 0.0));
            assert_eq!(losses[1], 0.0);
        }
    }

    #[test]
    fn a_student_that_says_what_its_teacher_says_has_no_gradient() {
        let scores: Vec<f32> = noise(4 * 129, 43).iter().map(|s| 12.0 * s).collect();
        for [slopes, losses] in slopes(&scores, &scores, &[1.0; 4], 2.0) {
            let largest = slopes
                .iter()
                .chain(&losses)
                .fold(0.0f32, |m, s| m.max(s.abs()));
            assert!(largest < 1e-7, "{largest:e}");
        }
        // A shift of all scores is none, and another temperature is another term.
        let shifted: Vec<f32> = scores.iter().map(|s| s + 0.5).collect();
        for [_, losses] in slopes(&scores, &shifted, &[1.0; 4], 2.0) {
            assert!(losses.iter().all(|loss| loss.abs() < 1e-5), "{losses:?}");
        }
        let sharper: Vec<f32> = scores.iter().map(|s| 2.0 * s).collect();
        for [_, losses] in slopes(&scores, &sharper, &[1.0; 4], 2.0) {
            assert!(losses.iter().all(|loss| *loss > 0.1), "{losses:?}");
        }
    }

    #[test]
    #[should_panic(expected = "distill: teacher (teacher): expected [2, 3], found [2, 2]")]
    fn a_wrong_shape_is_named() {
        let device = &devices()[0];
        let op = Distill::new();
        let teacher = device.upload("teacher", 2, &[0.0; 4]).unwrap();
        let weights = device.upload("weights", 1, &[1.0; 2]).unwrap();
        let mut scores = device.upload("scores", 3, &[0.0; 6]).unwrap();
        let mut losses = device.scratch("losses", 2, 1).unwrap();
        run(device, |pass| {
            op.slopes(
                pass,
                Slopes {
                    teacher: &teacher,
                    weights: &weights,
                    temperature: 1.0,
                    scores: &mut scores,
                    losses: &mut losses,
                },
            );
        });
    }
}
