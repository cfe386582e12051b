//! Anchors: the pull of parameters back to the parent's (carve.md section 6), added to the gradient.
//!
//! Rows by direction, in the form that is exactly zero where nothing moved (6.5); rows of E or W by
//! value.

use crate::device::cpu::{Cpu, math};
use crate::device::{Device, Kernel, Part, PartMut, Pass, Shader, Tensor, shader, small};
use crate::error::Result;

const SHADER: Shader = shader!("anchor", "reduce");

/// Workgroups of a kernel that walks rows.
const MOST_GROUPS: usize = 32_768;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    offset: u32,
    rows: u32,
    width: u32,
    listed: u32,
    stride: u32,
    strength: f32,
}

pub(crate) struct Anchor {
    normalized: Kernel,
    raw: Kernel,
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

impl Anchor {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            normalized: device.kernel(&SHADER, "normalized", &[])?,
            raw: device.kernel(&SHADER, "raw", &[])?,
        })
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
                let groups = small(items.min(MOST_GROUPS));
                let dims = Dims {
                    offset: small(p.rows.place.offset),
                    rows: small(items),
                    width: small(width),
                    listed: u32::from(p.touched.is_some()),
                    stride: groups,
                    strength: p.strength,
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
    fn v11() {
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
}
