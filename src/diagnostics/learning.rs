//! The ops that only learning uses, for the self-test.

use std::sync::Arc;

use super::cases::{Case, Shape, case};
use crate::device::{Device, Pass, Place};
use crate::error::Result;
use crate::ops::adamw::{self, Segment, Step};
use crate::ops::anchor::{Form, Pull, Weighted};
use crate::ops::contrastive::{Candidates, LossAndGradients, Room, Targets};
use crate::ops::distill::Slopes;
use crate::ops::dropout::{self, Mask};
use crate::ops::matmul::Product;
use crate::ops::reference::{noise, wide};
use crate::ops::square::Accumulate;
use crate::ops::{Ops, reference};

/// Temperature of the losses.
const TAU: f64 = 0.5;

/// Every op of an update at `shape`; each changes its output, so it runs once.
pub(super) fn all(device: &Device, ops: &Arc<Ops>, shape: Shape) -> Result<Vec<Case>> {
    let Shape {
        tokens,
        prompts,
        hidden,
        models,
        ..
    } = shape;
    Ok(vec![
        matmul(device, ops, tokens, hidden)?,
        contrastive(device, ops, prompts, models / 9, hidden)?,
        distill(device, ops, prompts, models / 9)?,
        anchor(device, ops, models / 9, hidden)?,
        weighted_anchor(device, ops, models / 9 * hidden)?,
        square(device, ops, models / 9 * hidden)?,
        dropout(device, ops, tokens, hidden)?,
        adamw(device, ops, tokens * hidden)?,
    ])
}

/// a [T, H] . b [16, H]^T
fn matmul(device: &Device, ops: &Arc<Ops>, tokens: usize, hidden: usize) -> Result<Case> {
    const R: usize = 16;
    let (a, b) = (noise(tokens * hidden, 21), noise(R * hidden, 22));
    let (x, w) = (
        device.upload("a", hidden, &a)?,
        device.upload("b", hidden, &b)?,
    );
    let y = device.scratch("y", tokens, R)?;
    let ops = Arc::clone(ops);
    let run = move |pass: &mut Pass<'_>, y: &mut crate::device::Tensor| {
        let place = y.place();
        ops.matmul.nt(
            pass,
            Product {
                a: x.part(x.place()),
                b: w.part(w.place()),
                scale: 1.0,
                y: y.part_mut(place),
                add: false,
            },
        );
    };
    let want = move || reference::linear(&wide(&a), &wide(&b), &[0.0; R]);
    Ok(case(
        "matmul",
        "",
        2.0 * hidden as f64,
        4.0,
        tokens * R,
        y,
        run,
        want,
    ))
}

/// dz [B, D] of hard targets over all M models.
fn contrastive(
    device: &Device,
    ops: &Arc<Ops>,
    prompts: usize,
    models: usize,
    width: usize,
) -> Result<Case> {
    let (queries, rows) = (noise(prompts * width, 23), noise(models * width, 24));
    let shifts = noise(models, 25);
    let golds: Vec<u32> = (0..crate::num::to_u32(prompts)).collect();
    let z = device.upload("z", width, &queries)?;
    let e = device.upload("e", width, &rows)?;
    let mut grad = device.upload("grad", width, &vec![0.0; models * width])?;
    let ids = device.upload_ids("ids", 1, &golds)?;
    let ones = device.upload("ones", 1, &vec![1.0; prompts])?;
    let priors = device.upload("priors", 1, &shifts)?;
    let mut losses = device.scratch("losses", prompts, 1)?;
    let mut room = Room::all(device, prompts, models, width)?;
    let dz = device.scratch("dz", prompts, width)?;
    let ops = Arc::clone(ops);
    let run = move |pass: &mut Pass<'_>, dz: &mut _| {
        let place = grad.place();
        ops.contrastive.loss_and_gradients(
            pass,
            LossAndGradients {
                z: &z,
                rows: e.part(place),
                #[expect(clippy::cast_possible_truncation, reason = "a constant")]
                tau: TAU as f32,
                priors: &priors,
                candidates: Candidates::All,
                targets: Targets {
                    ids: &ids,
                    mass: &ones,
                    weights: &ones,
                },
                room: &mut room,
                losses: &mut losses,
                dz,
                d_rows: grad.part_mut(place),
            },
        );
    };
    let want = move || dz_in_f64(&wide(&queries), &wide(&rows), &wide(&shifts), width);
    let n = prompts * width;
    Ok(case(
        "contrastive",
        "",
        6.0 * models as f64,
        8.0,
        n,
        dz,
        run,
        want,
    ))
}

/// dz_i = (1 / (tau |z_i|)) sum_j (p_ij - [j = i]) (v_j - c_ij u_i) (carve.md section 6.5)
fn dz_in_f64(z: &[f64], e: &[f64], priors: &[f64], width: usize) -> Vec<f64> {
    let (u, v) = (
        reference::normalize(z, width),
        reference::normalize(e, width),
    );
    let mut all = Vec::with_capacity(z.len());
    for (i, (z, u)) in z.chunks_exact(width).zip(u.chunks_exact(width)).enumerate() {
        let cosines: Vec<f64> = v
            .chunks_exact(width)
            .map(|v| reference::dot(u, v))
            .collect();
        let logits = cosines.iter().zip(priors).map(|(c, prior)| c / TAU + prior);
        let weights: Vec<f64> = logits.map(f64::exp).collect();
        let total: f64 = weights.iter().sum();
        let length = reference::dot(z, z).sqrt();
        let mut dz = vec![0.0; width];
        for (j, v) in v.chunks_exact(width).enumerate() {
            let slope = weights[j] / total - if i == j { 1.0 } else { 0.0 };
            for (d, (v, u)) in dz.iter_mut().zip(v.iter().zip(u)) {
                *d += slope * (v - cosines[j] * u) / (TAU * length);
            }
        }
        all.extend(dz);
    }
    all
}

/// T^2 KL(teacher, scores) of each example.
fn distill(device: &Device, ops: &Arc<Ops>, prompts: usize, models: usize) -> Result<Case> {
    const T: f64 = 2.0;
    let (wanted, found) = (noise(prompts * models, 34), noise(prompts * models, 35));
    let teacher = device.upload("teacher", models, &wanted)?;
    let mut scores = device.upload("scores", models, &found)?;
    let weights = device.upload("weights", 1, &vec![1.0; prompts])?;
    let losses = device.scratch("losses", prompts, 1)?;
    let ops = Arc::clone(ops);
    let run = move |pass: &mut Pass<'_>, losses: &mut _| {
        ops.distill.slopes(
            pass,
            Slopes {
                teacher: &teacher,
                weights: &weights,
                #[expect(clippy::cast_possible_truncation, reason = "a constant")]
                temperature: T as f32,
                scores: &mut scores,
                losses,
            },
        );
    };
    let want = move || {
        let (wanted, found) = (wide(&wanted), wide(&found));
        let rows = wanted.chunks_exact(models).zip(found.chunks_exact(models));
        rows.map(|(teacher, scores)| T * T * reference::divergence(teacher, scores, T))
            .collect()
    };
    let each = models as f64;
    Ok(case(
        "distill",
        "",
        20.0 * each,
        12.0 * each,
        prompts,
        losses,
        run,
        want,
    ))
}

/// The gradient of |e - r|^2.
fn anchor(device: &Device, ops: &Arc<Ops>, models: usize, width: usize) -> Result<Case> {
    let n = models * width;
    let (rows, anchored) = (noise(n, 25), noise(n, 26));
    let e = device.upload("e", n, &rows)?;
    let r = device.upload("r", width, &anchored)?;
    let mut losses = device.scratch("losses", models, 1)?;
    let grad = device.upload("grad", n, &vec![0.0; n])?;
    let ops = Arc::clone(ops);
    let run = move |pass: &mut Pass<'_>, grad: &mut crate::device::Tensor| {
        let place = Place::flat(0, models, width);
        ops.anchor.pull(
            pass,
            Pull {
                form: Form::Raw,
                rows: e.part(place),
                reference: &r,
                touched: None,
                strength: 1.0,
                grad: grad.part_mut(place),
                losses: &mut losses,
            },
        );
    };
    let want = move || {
        let pairs = rows.iter().zip(&anchored);
        pairs
            .map(|(e, r)| 2.0 * (f64::from(*e) - f64::from(*r)))
            .collect()
    };
    Ok(case("anchor", "", 5.0, 16.0, n, grad, run, want))
}

/// The gradient of sum f (theta - theta*)^2.
fn weighted_anchor(device: &Device, ops: &Arc<Ops>, n: usize) -> Result<Case> {
    let (moved, held, f) = (noise(n, 29), noise(n, 30), noise(n, 31));
    let theta = device.upload("theta", n, &moved)?;
    let reference = device.upload("reference", n, &held)?;
    let weights = device.upload("weights", n, &f)?;
    let mut losses = device.scratch("losses", Weighted::losses(n), 1)?;
    let grad = device.upload("grad", n, &vec![0.0; n])?;
    let ops = Arc::clone(ops);
    let run = move |pass: &mut Pass<'_>, grad: &mut crate::device::Tensor| {
        let place = Place::flat(0, 1, n);
        ops.anchor.weighted(
            pass,
            Weighted {
                theta: theta.part(place),
                reference: reference.part(place),
                weights: weights.part(place),
                strength: 1.0,
                grad: grad.part_mut(place),
                losses: &mut losses,
            },
        );
    };
    let want = move || {
        let pairs = wide(&moved).into_iter().zip(wide(&held)).zip(wide(&f));
        pairs.map(|((e, r), f)| 2.0 * f * (e - r)).collect()
    };
    Ok(case("anchor", "weighted", 6.0, 20.0, n, grad, run, want))
}

/// g^2
fn square(device: &Device, ops: &Arc<Ops>, n: usize) -> Result<Case> {
    let gradient = noise(n, 32);
    let mut grad = device.upload("grad", n, &gradient)?;
    let sums = device.upload("sums", n, &vec![0.0; n])?;
    let ops = Arc::clone(ops);
    let run = move |pass: &mut Pass<'_>, sums: &mut _| {
        let grad = grad.part_mut(Place::flat(0, 1, n));
        let scale = 1.0;
        ops.square
            .accumulate(pass, Accumulate { grad, scale, sums });
    };
    let want = move || wide(&gradient).iter().map(|g| g * g).collect();
    Ok(case("square", "", 3.0, 16.0, n, sums, run, want))
}

/// Half of x, twice.
fn dropout(device: &Device, ops: &Arc<Ops>, tokens: usize, hidden: usize) -> Result<Case> {
    let values = noise(tokens * hidden, 33);
    let ids: Vec<u32> = (0..crate::num::to_u32(tokens)).collect();
    let x = device.upload("x", hidden, &values)?;
    let keys = device.upload_ids("keys", 1, &ids)?;
    let y = device.scratch("y", tokens, hidden)?;
    let ops = Arc::clone(ops);
    let run = move |pass: &mut Pass<'_>, y: &mut crate::device::Tensor| {
        let mask = Mask {
            keys: &keys,
            using: 0,
            rate: 0.5,
        };
        let x = &x;
        ops.dropout.forward(pass, dropout::Forward { mask, x, y });
    };
    let want = move || {
        let factors = dropout::factors(&ids, 0, 0.5, hidden);
        let pairs = wide(&values).into_iter().zip(factors);
        pairs.map(|(x, factor)| x * f64::from(factor)).collect()
    };
    let n = tokens * hidden;
    Ok(case("dropout", "", 12.0, 8.0, n, y, run, want))
}

/// The first step from zero moments: theta (1 - rate decay) - rate g / (|g| + eps).
fn adamw(device: &Device, ops: &Arc<Ops>, n: usize) -> Result<Case> {
    const RATE: f64 = 0.1;
    const DECAY: f64 = 0.01;
    let (start, gradient) = (noise(n, 27), noise(n, 28));
    let zeros = vec![0.0; n];
    let theta = device.upload("theta", n, &start)?;
    let mut grad = device.upload("grad", n, &gradient)?;
    let mut m = device.upload("m", n, &zeros)?;
    let mut v = device.upload("v", n, &zeros)?;
    let mut room = adamw::Room::new(device)?;
    let ops = Arc::clone(ops);
    let run = move |pass: &mut Pass<'_>, theta: &mut _| {
        ops.adamw.step(
            pass,
            Step {
                theta,
                grad: &mut grad,
                m: &mut m,
                v: &mut v,
                segments: &[Segment {
                    range: 0..n,
                    rate: RATE,
                    decay: DECAY,
                    count: 1,
                }],
                listed: None,
                clip: None,
                room: &mut room,
            },
        );
    };
    let want = move || {
        let step = |(theta, g): (&f32, &f32)| {
            let g = f64::from(*g);
            f64::from(*theta) * (1.0 - RATE * DECAY) - RATE * g / (g.abs() + 1e-8)
        };
        start.iter().zip(&gradient).map(step).collect()
    };
    Ok(case("adamw", "", 15.0, 28.0, n, theta, run, want))
}
