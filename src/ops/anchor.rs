//! Anchors: the pull of parameters back to the parent's (carve.md section 6), added to the gradient.
//!
//! Rows by direction, in the form that is exactly zero where nothing moved (6.5); rows of E or W by
//! value; any parameters by value with Fisher weights, which is EWC (section 7).

use crate::device::cpu::{Cpu, math};
use crate::device::{Device, Kernel, Part, PartMut, Pass, Shader, Tensor, shader};
use crate::error::Result;
use crate::num::to_u32;

const SHADER: Shader = shader!("anchor", "reduce");

/// Workgroups of a kernel that walks rows.
const MOST_GROUPS: usize = 32_768;

/// Elements of one loss of the weighted form.
const CHUNK: usize = 1024;

#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    offset: u32,
    rows: u32,
    width: u32,
    listed: u32,
    stride: u32,
    strength: f32,
    skip: u32,
    len: u32,
}

pub(crate) struct Anchor {
    normalized: Kernel,
    raw: Kernel,
    weighted: Kernel,
}

/// What distance a pull lessens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// 1 - cos(e, r) of a row.
    Normalized,
    /// |e - r|^2 of a row.
    Raw,
}

/// `rows`: [R, width] of theta, consecutive; `reference`: [R, width]; `touched`: ids of the rows to
/// hold, or all; `grad`: as `rows`, `strength` times the distance's gradient is added; `losses`:
/// [touched or R, 1], overwritten with each row's distance.
pub(crate) struct Pull<'t> {
    pub(crate) form: Form,
    pub(crate) rows: Part<'t>,
    pub(crate) reference: &'t Tensor,
    pub(crate) touched: Option<&'t Tensor>,
    pub(crate) strength: f32,
    pub(crate) grad: PartMut<'t>,
    pub(crate) losses: &'t mut Tensor,
}

/// `theta`, `reference`, `weights`: [1, n] of flat buffers; `grad`: as `theta`, `strength` times the
/// gradient of sum f (theta - reference)^2 is added; `losses`: [[`Weighted::losses`], 1],
/// overwritten with parts of that sum.
pub(crate) struct Weighted<'t> {
    pub(crate) theta: Part<'t>,
    pub(crate) reference: Part<'t>,
    pub(crate) weights: Part<'t>,
    pub(crate) strength: f32,
    pub(crate) grad: PartMut<'t>,
    pub(crate) losses: &'t mut Tensor,
}

impl Weighted<'_> {
    /// Rows of `losses` for `n` elements.
    pub(crate) fn losses(n: usize) -> usize {
        n.div_ceil(CHUNK)
    }
}

impl Anchor {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            normalized: device.kernel(&SHADER, "normalized", &[])?,
            raw: device.kernel(&SHADER, "raw", &[])?,
            weighted: device.kernel(&SHADER, "weighted", &[])?,
        })
    }

    pub(crate) fn weighted(&self, pass: &mut Pass<'_>, mut w: Weighted<'_>) {
        let n = w.theta.place.columns;
        w.theta.place.expect("anchor", "theta", 1, n);
        w.reference.place.expect("anchor", "reference", 1, n);
        assert_eq!(
            w.weights.place, w.reference.place,
            "anchor: weights are not laid out as reference"
        );
        assert_eq!(
            w.grad.place, w.theta.place,
            "anchor: grad is not laid out as theta"
        );
        let items = Weighted::losses(n);
        w.losses.resize(items);
        w.losses.expect("anchor", "losses", items, 1);
        match pass {
            Pass::Gpu(gpu) => {
                let groups = to_u32(items.min(MOST_GROUPS));
                let dims = Dims {
                    offset: to_u32(w.theta.place.offset),
                    rows: to_u32(items),
                    width: to_u32(CHUNK),
                    stride: groups,
                    strength: w.strength,
                    skip: to_u32(w.reference.place.offset),
                    len: to_u32(n),
                    ..Dims::default()
                };
                let tensors = [
                    ("theta", w.theta.tensor),
                    ("reference", w.reference.tensor),
                    ("grad", &*w.grad.tensor),
                    ("losses", &*w.losses),
                    ("weights", w.weights.tensor),
                ];
                gpu.dispatch(&self.weighted, [groups, 1, 1], &dims, &tensors);
            }
            Pass::Cpu(pass) => {
                let held = [w.theta.f32(), w.reference.f32(), w.weights.f32()];
                let (grad, losses) = (w.grad.f32_mut(), w.losses.f32_mut());
                weighted_cpu(pass.cpu, w.strength, held, grad, losses);
            }
        }
    }

    pub(crate) fn pull(&self, pass: &mut Pass<'_>, mut p: Pull<'_>) {
        let (rows, width) = (p.rows.place.rows, p.rows.place.columns);
        assert_eq!(
            p.rows.place.stride, width,
            "anchor: rows are not consecutive"
        );
        assert_eq!(
            p.grad.place, p.rows.place,
            "anchor: grad is not laid out as rows"
        );
        p.reference.expect("anchor", "reference", rows, width);
        let items = p.touched.map_or(rows, Tensor::rows);
        p.losses.resize(items);
        p.losses.expect("anchor", "losses", items, 1);
        match pass {
            Pass::Gpu(gpu) => {
                let groups = to_u32(items.min(MOST_GROUPS));
                let dims = Dims {
                    offset: to_u32(p.rows.place.offset),
                    rows: to_u32(items),
                    width: to_u32(width),
                    listed: u32::from(p.touched.is_some()),
                    stride: groups,
                    strength: p.strength,
                    ..Dims::default()
                };
                let kernel = match p.form {
                    Form::Normalized => &self.normalized,
                    Form::Raw => &self.raw,
                };
                let tensors = [
                    ("theta", p.rows.tensor),
                    ("reference", p.reference),
                    // Bound and not read where all rows are held.
                    ("ids", p.touched.unwrap_or(p.reference)),
                    ("grad", &*p.grad.tensor),
                    ("losses", &*p.losses),
                ];
                gpu.dispatch(kernel, [groups, 1, 1], &dims, &tensors);
            }
            Pass::Cpu(pass) => {
                let (e, r) = (p.rows.f32(), p.reference.f32());
                let (grad, losses) = (p.grad.f32_mut(), p.losses.f32_mut());
                let step = Row {
                    form: p.form,
                    strength: p.strength,
                };
                match p.touched {
                    None => all_rows(pass.cpu, step, width, e, r, grad, losses),
                    Some(ids) => {
                        for (id, loss) in ids.u32().iter().zip(losses) {
                            let row = *id as usize * width..(*id as usize + 1) * width;
                            let (e, r) = (&e[row.clone()], &r[row.clone()]);
                            *loss = pass.cpu.simd(|| step.pull(e, r, &mut grad[row]));
                        }
                    }
                }
            }
        }
    }
}

fn all_rows(
    cpu: &Cpu,
    step: Row,
    width: usize,
    e: &[f32],
    r: &[f32],
    grad: &mut [f32],
    losses: &mut [f32],
) {
    cpu.lockstep(
        [grad, losses],
        [width, 1],
        8 * width,
        |first, [grad, losses]| {
            cpu.simd(
                #[inline(always)]
                || {
                    let rows = grad.chunks_exact_mut(width).zip(losses);
                    for (i, (grad, loss)) in rows.enumerate() {
                        let row = (first + i) * width..(first + i + 1) * width;
                        *loss = step.pull(&e[row.clone()], &r[row], grad);
                    }
                },
            );
        },
    );
}

/// In chunks of [`CHUNK`] elements, whatever the number of threads; the last may be shorter.
fn weighted_cpu(
    cpu: &Cpu,
    strength: f32,
    [theta, reference, weights]: [&[f32]; 3],
    grad: &mut [f32],
    losses: &mut [f32],
) {
    cpu.lockstep(
        // The losses first: their number is that of the chunks.
        [losses, grad],
        [1, CHUNK],
        4 * CHUNK,
        |first, [losses, grad]| {
            cpu.simd(
                #[inline(always)]
                || {
                    let begin = first * CHUNK;
                    let chunks = grad.chunks_mut(CHUNK).zip(losses);
                    for (i, (grad, loss)) in chunks.enumerate() {
                        let range = begin + i * CHUNK..begin + i * CHUNK + grad.len();
                        let held = theta[range.clone()].iter().zip(&reference[range.clone()]);
                        let weights = &weights[range];
                        let mut sums = [0.0f32; math::LANES];
                        for (n, ((g, f), (e, r))) in
                            grad.iter_mut().zip(weights).zip(held).enumerate()
                        {
                            let d = e - r;
                            let pull = f * d;
                            sums[n % math::LANES] += pull * d;
                            *g += 2.0 * strength * pull;
                        }
                        *loss = sums.iter().sum();
                    }
                },
            );
        },
    );
}

#[derive(Clone, Copy)]
struct Row {
    form: Form,
    strength: f32,
}

impl Row {
    /// Adds to `grad`; the distance.
    #[inline(always)]
    fn pull(self, e: &[f32], r: &[f32], grad: &mut [f32]) -> f32 {
        let strength = self.strength;
        match self.form {
            Form::Raw => {
                let mut square = 0.0;
                for ((g, e), r) in grad.iter_mut().zip(e).zip(r) {
                    let d = e - r;
                    square += d * d;
                    *g += 2.0 * strength * d;
                }
                square
            }
            Form::Normalized => {
                let length = |x: &[f32]| math::sum(x, |v| v * v).sqrt().max(1e-12);
                let (e_length, r_length) = (length(e), length(r));
                let (mut dd, mut de) = ([0.0f32; math::LANES], [0.0f32; math::LANES]);
                for (n, (e, r)) in e.iter().zip(r).enumerate() {
                    let unit = e / e_length;
                    let d = r / r_length - unit;
                    dd[n % math::LANES] += d * d;
                    de[n % math::LANES] += d * unit;
                }
                let along: f32 = de.iter().sum();
                for ((g, e), r) in grad.iter_mut().zip(e).zip(r) {
                    let unit = e / e_length;
                    let d = r / r_length - unit;
                    *g -= strength * (d - along * unit) / e_length;
                }
                0.5 * dd.iter().sum::<f32>()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::device::Place;
    use crate::ops::testing::{assert_close, devices, finite_differences, noise, run, wide};

    /// Gradient and distances on every device; `e` stands at an offset.
    fn pull(
        form: Form,
        width: usize,
        e: &[f32],
        r: &[f32],
        touched: Option<&[u32]>,
        strength: f32,
    ) -> Vec<(Vec<f32>, Vec<f32>)> {
        const BEFORE: usize = 3;
        let each = |device: &Device| {
            let op = Anchor::new(device).unwrap();
            let n = BEFORE + e.len();
            let theta = [vec![9.0; BEFORE], e.to_vec()].concat();
            let theta = device.upload("theta", n, &theta).unwrap();
            let mut grad = device.upload("grad", n, &vec![0.0; n]).unwrap();
            let reference = device.upload("reference", width, r).unwrap();
            let ids = touched.map(|ids| device.upload_ids("ids", 1, ids).unwrap());
            let rows = e.len() / width;
            let mut losses = device.scratch("losses", rows, 1).unwrap();
            let place = Place::flat(BEFORE, rows, width);
            let (reads, outcome) = run(device, |pass| {
                op.pull(
                    pass,
                    Pull {
                        form,
                        rows: theta.part(place),
                        reference: &reference,
                        touched: ids.as_ref(),
                        strength,
                        grad: grad.part_mut(place),
                        losses: &mut losses,
                    },
                );
                (pass.read(&grad), pass.read(&losses))
            });
            let grad = outcome.f32(reads.0);
            assert_eq!(grad[..BEFORE], [0.0; BEFORE]);
            (grad[BEFORE..].to_vec(), outcome.f32(reads.1).to_vec())
        };
        devices().iter().map(each).collect()
    }

    #[test]
    fn both_anchors_match_hand_values_v11() {
        let r = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0];
        let e = [2.0, 1.0, 0.0, 0.0, 3.0, 3.0];
        for (grad, losses) in pull(Form::Normalized, 3, &e, &r, None, 0.5) {
            let want = [-0.044_721_4, 0.089_442_7, 0.0, 0.0, 0.0, 0.0];
            assert_close("V11 dE", &grad, &want, 1e-6);
            assert_close("V11", &losses, &[0.105_572_8, 0.0], 1e-6);
        }
        for (grad, losses) in pull(Form::Normalized, 3, &e, &r, Some(&[0]), 1.0) {
            let want = [-0.089_442_7, 0.178_885_4, 0.0, 0.0, 0.0, 0.0];
            assert_close("V11 touched", &grad, &want, 1e-6);
            assert_close("V11 touched", &losses, &[0.105_572_8], 1e-6);
        }
        for (grad, losses) in pull(Form::Raw, 3, &e, &r, None, 1.0 / 6.0) {
            let want = [0.333_333_3, 0.333_333_3, 0.0, 0.0, 0.666_666_7, 0.666_666_7];
            assert_close("V11 raw", &grad, &want, 1e-6);
            let loss: f32 = losses.iter().sum::<f32>() / 6.0;
            assert_close("V11 raw", &[loss], &[1.666_666_7], 1e-6);
        }
        // L_proj: W ((1,2),(3,4)), W0 ((1,1),(3,2)).
        for (grad, losses) in pull(
            Form::Raw,
            2,
            &[1., 2., 3., 4.],
            &[1., 1., 3., 2.],
            None,
            0.25,
        ) {
            assert_close("V11 proj", &grad, &[0.0, 0.5, 0.0, 1.0], 1e-6);
            assert_close("V11 proj", &losses, &[1.0, 4.0], 1e-6);
        }
    }

    #[test]
    fn a_row_that_did_not_move_has_no_gradient_at_all() {
        let e = noise(40 * 384, 7);
        for (grad, losses) in pull(Form::Normalized, 384, &e, &e, None, 1e4) {
            assert!(grad.iter().chain(&losses).all(|value| *value == 0.0));
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for (rows, width) in [(1, 1), (7, 63), (3, 257)] {
            let (e, r) = (noise(rows * width, 1), noise(rows * width, 2));
            for form in [Form::Normalized, Form::Raw] {
                if form == Form::Normalized && width == 1 {
                    continue;
                }
                let distance = |e: &[f64]| -> f64 {
                    let pairs = e.chunks(width).zip(r.chunks(width));
                    let of = |(e, r): (&[f64], &[f32])| -> f64 {
                        let r = wide(r);
                        let dot =
                            |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                        match form {
                            Form::Normalized => 1.0 - dot(e, &r) / (dot(e, e) * dot(&r, &r)).sqrt(),
                            Form::Raw => e.iter().zip(&r).map(|(e, r)| (e - r).powi(2)).sum(),
                        }
                    };
                    pairs.map(of).sum()
                };
                let want = finite_differences(&wide(&e), distance);
                for (grad, _) in pull(form, width, &e, &r, None, 1.0) {
                    assert_close("anchor", &grad, &want, 1e-4);
                }
            }
        }
    }

    /// Gradient and loss of the weighted form on every device; theta stands at an offset, and so
    /// do reference and weights at another.
    fn weighted(
        theta: &[f32],
        reference: &[f32],
        f: &[f32],
        strength: f32,
    ) -> Vec<(Vec<f32>, f64)> {
        const BEFORE: usize = 3;
        const SKIP: usize = 5;
        let n = theta.len();
        let each = |device: &Device| {
            let op = Anchor::new(device).unwrap();
            let flat = |label, before: usize, values: &[f32]| {
                let values = [vec![9.0; before], values.to_vec(), vec![8.0]].concat();
                device.upload(label, values.len(), &values).unwrap()
            };
            let theta = flat("theta", BEFORE, theta);
            let mut grad = flat("grad", BEFORE, &vec![0.5; n]);
            let (reference, weights) = (flat("reference", SKIP, reference), flat("f", SKIP, f));
            let mut losses = device
                .scratch("losses", Weighted::losses(n) + 1, 1)
                .unwrap();
            let (place, held) = (Place::flat(BEFORE, 1, n), Place::flat(SKIP, 1, n));
            let (reads, outcome) = run(device, |pass| {
                op.weighted(
                    pass,
                    Weighted {
                        theta: theta.part(place),
                        reference: reference.part(held),
                        weights: weights.part(held),
                        strength,
                        grad: grad.part_mut(place),
                        losses: &mut losses,
                    },
                );
                (pass.read(&grad), pass.read(&losses))
            });
            let grad = outcome.f32(reads.0);
            assert_eq!(
                (&grad[..BEFORE], grad[BEFORE + n]),
                (&[9.0; BEFORE][..], 8.0)
            );
            let added = grad[BEFORE..BEFORE + n].iter().map(|g| g - 0.5).collect();
            let losses = outcome.f32(reads.1).iter().map(|loss| f64::from(*loss));
            (added, f64::from(strength) * losses.sum::<f64>())
        };
        devices().iter().map(each).collect()
    }

    #[test]
    fn fisher_weighted_pull_matches_hand_values_v17() {
        for (grad, loss) in weighted(&[1.5, -1.0], &[0.5, 1.0], &[0.5, 2.0], 10.0) {
            assert_close("V17", &grad, &[10.0, -80.0], 1e-6);
            assert!((loss - 85.0).abs() < 1e-4, "{loss}");
        }
    }

    #[test]
    fn weighted_gradients_match_f64_and_finite_differences() {
        for n in [1, 63, 1024, 1025, 3 * 1024 + 257] {
            let (theta, r) = (noise(n, 3), noise(n, 4));
            let f: Vec<f32> = noise(n, 5).iter().map(|f| f * f).collect();
            let (reference, weights) = (wide(&r), wide(&f));
            let total = |theta: &[f64]| -> f64 {
                let held = reference.iter().zip(&weights).zip(theta);
                3.0 * held.map(|((r, f), e)| f * (e - r).powi(2)).sum::<f64>()
            };
            let held = reference.iter().zip(&weights).zip(wide(&theta));
            let exact: Vec<f64> = held.map(|((r, f), e)| 6.0 * f * (e - r)).collect();
            let mut first: Option<Vec<f32>> = None;
            for (device, (grad, loss)) in weighted(&theta, &r, &f, 3.0).into_iter().enumerate() {
                assert_close("weighted", &grad, &exact, 1e-5);
                if n <= 1025 {
                    let differences = finite_differences(&wide(&theta), total);
                    assert_close("weighted differences", &grad, &differences, 1e-4);
                }
                let want = total(&wide(&theta));
                assert!(
                    (loss - want).abs() < 1e-5 * (1.0 + want),
                    "{loss}, not {want}"
                );
                if device < 2 {
                    assert_eq!(
                        *first.get_or_insert_with(|| grad.clone()),
                        grad,
                        "threads show"
                    );
                }
            }
        }
    }

    #[test]
    fn what_has_no_weight_or_did_not_move_has_no_gradient() {
        let (theta, r) = (noise(2000, 6), noise(2000, 7));
        for (grad, loss) in weighted(&theta, &r, &vec![0.0; 2000], 1e4) {
            assert!(grad.iter().all(|g| *g == 0.0) && loss == 0.0);
        }
        for (grad, loss) in weighted(&theta, &theta, &vec![7.0; 2000], 1e4) {
            assert!(grad.iter().all(|g| *g == 0.0) && loss == 0.0);
        }
    }
}
