//! Anchors: the pull of parameters back to the parent's (carve.md section 6), added to the
//! gradient.
//!
//! Rows by direction, in the form that is exactly zero where nothing moved (6.5); rows of E or W by
//! value; any parameters by value with Fisher weights, which is EWC (section 7).

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::cpu::{Cpu, math};
use crate::device::gpu::GpuPass;
use crate::device::{Kernel, Part, PartMut, Pass, Shader, Tensor, shader};
use crate::num::to_u32;
use crate::ops::normalize::length_of;

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
    by_value: u32,
    w_offset: u32,
    w_rows: u32,
    w_width: u32,
    w_strength: f32,
}

pub(crate) struct Anchor {
    pull: Kernel,
    weighted: Kernel,
}

/// The distance that a pull reduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distance {
    /// 1 - cos(e, r) of a row.
    Normalized,
    /// |e - r|^2 of a row.
    Raw,
}

/// `rows`: [R, width] of theta, consecutive; `reference`: [R, width]; `touched`: ids of the rows to
/// hold, or all; `grad`: as `rows`, `strength` times the distance's gradient is added; `losses`:
/// [touched or R, 1], overwritten with each row's distance.
pub(crate) struct Pull<'t> {
    pub(crate) form: Distance,
    pub(crate) rows: Part<'t>,
    pub(crate) reference: &'t Tensor,
    pub(crate) touched: Option<&'t Tensor>,
    pub(crate) strength: f32,
    pub(crate) grad: PartMut<'t>,
    pub(crate) losses: &'t mut Tensor,
    /// A whole matrix of theta that is pulled by value at the same time.
    pub(crate) other: Option<OtherPull<'t>>,
}

/// `rows`: [R, width] of theta, consecutive; `reference`: [R, width]; `losses`: [R, 1], overwritten
/// with |e - r|^2 of each row. The gradient goes to the same place of [`Pull::grad`]'s tensor.
pub(crate) struct OtherPull<'t> {
    pub(crate) rows: Part<'t>,
    pub(crate) reference: &'t Tensor,
    pub(crate) strength: f32,
    pub(crate) losses: &'t mut Tensor,
}

/// `theta`, `reference`, `weights`: [1, n] of flat buffers; `grad`: as `theta`, `strength` times
/// the gradient of sum f (theta - reference)^2 is added; `losses`: [[`Weighted::losses`], 1],
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
    pub(crate) fn new() -> Self {
        Self {
            pull: Kernel::new(&SHADER, "pull", &[]),
            weighted: Kernel::new(&SHADER, "weighted", &[]),
        }
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
        assert_eq!(
            p.grad.place, p.rows.place,
            "anchor: grad is not laid out as rows"
        );
        fit(p.rows, p.reference, p.touched, p.losses);
        if let Some(other) = &mut p.other {
            fit(other.rows, other.reference, None, other.losses);
        }
        match pass {
            Pass::Gpu(gpu) => self.record(gpu, &p),
            Pass::Cpu(pass) => compute(pass.cpu, p),
        }
    }

    fn record(&self, gpu: &mut GpuPass<'_>, p: &Pull<'_>) {
        let (items, other) = (p.losses.rows(), p.other.as_ref());
        let w_rows = other.map_or(0, |other| other.losses.rows());
        let groups = to_u32((items + w_rows).min(MOST_GROUPS));
        let mut dims = Dims {
            offset: to_u32(p.rows.place.offset),
            rows: to_u32(items),
            width: to_u32(p.rows.place.columns),
            listed: u32::from(p.touched.is_some()),
            stride: groups,
            strength: p.strength,
            by_value: u32::from(p.form == Distance::Raw),
            w_rows: to_u32(w_rows),
            ..Dims::default()
        };
        // Bound and not read without another matrix.
        let (mut reference, mut losses) = (p.reference, &*p.losses);
        if let Some(other) = other {
            dims.w_offset = to_u32(other.rows.place.offset);
            dims.w_width = to_u32(other.rows.place.columns);
            dims.w_strength = other.strength;
            (reference, losses) = (other.reference, &*other.losses);
        }
        let tensors = [
            ("theta", p.rows.tensor),
            ("reference", p.reference),
            // Bound and not read where all rows are held.
            ("ids", p.touched.unwrap_or(p.reference)),
            ("grad", &*p.grad.tensor),
            ("losses", &*p.losses),
            ("w_reference", reference),
            ("w_losses", losses),
        ];
        gpu.dispatch(&self.pull, [groups, 1, 1], &dims, &tensors);
    }
}

/// Gives the losses their rows, and checks every shape.
fn fit(rows: Part<'_>, reference: &Tensor, touched: Option<&Tensor>, losses: &mut Tensor) {
    let place = rows.place;
    assert_eq!(
        place.stride, place.columns,
        "anchor: rows are not consecutive"
    );
    reference.expect("anchor", "reference", place.rows, place.columns);
    let items = touched.map_or(place.rows, Tensor::rows);
    losses.resize(items);
    losses.expect("anchor", "losses", items, 1);
}

fn compute(cpu: &Cpu, mut p: Pull<'_>) {
    let width = p.rows.place.columns;
    let (e, r) = (p.rows.f32(), p.reference.f32());
    let (grad, losses) = (p.grad.f32_mut(), p.losses.f32_mut());
    let step = RowPull {
        form: p.form,
        strength: p.strength,
    };
    match p.touched {
        None => all_rows(cpu, step, width, e, r, grad, losses),
        Some(ids) => {
            for (id, loss) in ids.u32().iter().zip(losses) {
                let row = *id as usize * width..(*id as usize + 1) * width;
                let (e, r) = (&e[row.clone()], &r[row.clone()]);
                *loss = cpu.simd(|| step.pull(e, r, &mut grad[row]));
            }
        }
    }
    if let Some(other) = p.other {
        let place = other.rows.place;
        let step = RowPull {
            form: Distance::Raw,
            strength: other.strength,
        };
        let (e, r) = (other.rows.f32(), other.reference.f32());
        let mut grad = p.grad.tensor.part_mut(place);
        let (grad, losses) = (grad.f32_mut(), other.losses.f32_mut());
        all_rows(cpu, step, place.columns, e, r, grad, losses);
    }
}

fn all_rows(
    cpu: &Cpu,
    step: RowPull,
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

/// Runs in chunks of [`CHUNK`] elements for any number of threads; the last may be shorter.
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
struct RowPull {
    form: Distance,
    strength: f32,
}

impl RowPull {
    /// Adds to `grad`; the distance.
    #[inline(always)]
    fn pull(self, e: &[f32], r: &[f32], grad: &mut [f32]) -> f32 {
        let strength = self.strength;
        match self.form {
            Distance::Raw => {
                let mut square = 0.0;
                for ((g, e), r) in grad.iter_mut().zip(e).zip(r) {
                    let d = e - r;
                    square += d * d;
                    *g += 2.0 * strength * d;
                }
                square
            }
            Distance::Normalized => {
                let (e_length, r_length) = (length_of(e), length_of(r));
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
