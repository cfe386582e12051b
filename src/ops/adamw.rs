//! AdamW over flat buffers, with the gradients of a range clipped by their norm (carve.md section
//! 10): theta, m, v [1, N] from grad [1, N], which is zeroed.
//!
//! Of one matrix it may move some rows alone, at a cost that does not depend on the others.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use std::ops::Range;

use crate::device::cpu::{Cpu, math, pick_rows};
use crate::device::{Device, Kernel, Pass, Place, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;

const SHADER: Shader = shader!("adamw", "reduce");

const B1: f64 = 0.9;
const B2: f64 = 0.999;
const EPS: f32 = 1e-8;

/// Partial sums of the norm on a GPU, of each span; a range has two at most.
const PARTS: usize = 64;
const SPANS: usize = 2;

/// Lanes of a workgroup, and workgroups of `step` at most.
const WG: usize = 64;
const MOST_GROUPS: usize = 4096;

/// Elements of a partial sum of the norm on the CPU.
const CHUNK: usize = 4096;

#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    offset: u32,
    len: u32,
    width: u32,
    stride: u32,
    part: u32,
    rate: f32,
    keep: f32,
    c1: f32,
    c2: f32,
    limit: f32,
}

pub(crate) struct AdamW {
    squares: Kernel,
    length: Kernel,
    step: Kernel,
    shrink: Kernel,
}

/// Parameters that share a rate. Parameters outside of all segments do not change.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) range: Range<usize>,
    pub(crate) rate: f64,
    /// Decoupled weight decay.
    pub(crate) decay: f64,
    /// Steps of this segment, this one included.
    pub(crate) count: usize,
}

/// Gradients in `range` are scaled down together when their norm is above `limit`.
#[derive(Clone, Debug)]
pub(crate) struct Clip {
    pub(crate) range: Range<usize>,
    pub(crate) limit: f32,
}

/// Some rows of a matrix in the flat buffers.
#[derive(Clone, Copy)]
pub(crate) struct Listed<'t> {
    /// Consecutive rows: one segment, and the end of a clipped range that contains it.
    pub(crate) matrix: Place,
    /// [R, 1], different ones, ascending.
    pub(crate) ids: &'t Tensor,
}

/// Elements that a kernel walks: consecutive ones from `offset` on, or the listed rows there.
struct Span<'t> {
    offset: usize,
    len: usize,
    /// Of a row, where rows are listed.
    width: usize,
    ids: Option<&'t Tensor>,
}

/// The norm of the clipped gradients, before they are.
pub(crate) struct NormWorkspace {
    partials: Tensor,
    /// Stands for ids where none are listed.
    none: Tensor,
    /// [1, 1]
    pub(crate) norm: Tensor,
}

impl NormWorkspace {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            partials: device.scratch("partials", SPANS, PARTS)?,
            none: device.ids("no ids", 1, 1)?,
            norm: device.upload("norm", 1, &[0.0])?,
        })
    }
}

/// `theta`, `m`, `v`: [1, N], changed in place; `grad`: [1, N], zeroed in the segments. With
/// `listed` the other rows of its matrix are in no segment, and have no gradient that counts for a
/// norm.
pub(crate) struct Step<'t> {
    pub(crate) theta: &'t mut Tensor,
    pub(crate) grad: &'t mut Tensor,
    pub(crate) m: &'t mut Tensor,
    pub(crate) v: &'t mut Tensor,
    pub(crate) segments: &'t [Segment],
    pub(crate) listed: Option<Listed<'t>>,
    pub(crate) clip: Option<Clip>,
    pub(crate) workspace: &'t mut NormWorkspace,
}

impl AdamW {
    pub(crate) fn new() -> Self {
        Self {
            squares: Kernel::new(&SHADER, "squares", &[]),
            length: Kernel::new(&SHADER, "length", &[]),
            step: Kernel::new(&SHADER, "step", &[]),
            shrink: Kernel::new(&SHADER, "shrink", &[]),
        }
    }

    pub(crate) fn step(&self, pass: &mut Pass<'_>, s: Step<'_>) {
        let len = s.theta.len();
        for (name, tensor) in [("grad", &*s.grad), ("m", &*s.m), ("v", &*s.v)] {
            tensor.expect("adamw", name, 1, len);
        }
        let clip = s.clip.as_ref();
        let ranges = s.segments.iter().map(|s| &s.range);
        for range in ranges.chain(clip.map(|c| &c.range)) {
            assert!(range.end <= len, "adamw: {range:?} is not inside {len}");
        }
        let clipped = clip.map_or(Vec::new(), |clip| spans(&clip.range, s.listed));
        let segments = s.segments.iter().flat_map(|segment| {
            let spans = spans(&segment.range, s.listed);
            spans
                .into_iter()
                .map(move |span| (segment.dims(clip), span))
        });
        match pass {
            Pass::Gpu(gpu) => {
                let grad = ("grad", &*s.grad);
                let (partials, norm) = (
                    ("partials", &s.workspace.partials),
                    ("norm", &s.workspace.norm),
                );
                let none = &s.workspace.none;
                for (place, span) in clipped.iter().enumerate() {
                    let mut dims = span.dims(Dims::default());
                    dims.part = to_u32(place * PARTS);
                    let tensors = [grad, ("ids", span.ids.unwrap_or(none)), partials];
                    gpu.dispatch(&self.squares, [to_u32(PARTS), 1, 1], &dims, &tensors);
                }
                if !clipped.is_empty() {
                    let dims = Dims {
                        len: to_u32(clipped.len() * PARTS),
                        ..Dims::default()
                    };
                    gpu.dispatch(&self.length, [1, 1, 1], &dims, &[partials, norm]);
                }
                let (theta, m, v) = (("theta", &*s.theta), ("m", &*s.m), ("v", &*s.v));
                for (dims, span) in segments {
                    let dims = span.dims(dims);
                    let tensors = [grad, ("ids", span.ids.unwrap_or(none)), theta, m, v, norm];
                    gpu.dispatch(&self.step, span.grid(), &dims, &tensors);
                }
            }
            Pass::Cpu(pass) => {
                let cpu = pass.cpu;
                let grad = s.grad.f32_mut();
                if clip.is_some() {
                    s.workspace.norm.f32_mut()[0] = norm(cpu, grad, &clipped);
                }
                let norm = s.workspace.norm.f32()[0];
                let (theta, m, v) = (s.theta.f32_mut(), s.m.f32_mut(), s.v.f32_mut());
                for (dims, span) in segments {
                    let all = [&mut *theta, &mut *grad, &mut *m, &mut *v];
                    step_cpu(cpu, all, &span, ElementStep::new(dims, norm));
                }
            }
        }
    }

    /// `theta` [1, N] of the listed rows is multiplied by `factor`.
    pub(crate) fn shrink(
        &self,
        pass: &mut Pass<'_>,
        theta: &mut Tensor,
        listed: Listed<'_>,
        factor: f32,
    ) {
        let span = listed.span();
        match pass {
            Pass::Gpu(gpu) => {
                let dims = span.dims(Dims {
                    keep: factor,
                    ..Dims::default()
                });
                let tensors = [("theta", &*theta), ("ids", listed.ids)];
                gpu.dispatch(&self.shrink, span.grid(), &dims, &tensors);
            }
            Pass::Cpu(_) => {
                let table = &mut theta.f32_mut()[span.offset..];
                for (_, row) in pick_rows(table, listed.ids.u32(), span.width) {
                    row.iter_mut().for_each(|value| *value *= factor);
                }
            }
        }
    }
}

impl<'t> Listed<'t> {
    fn span(self) -> Span<'t> {
        let (rows, width) = (self.ids.rows(), self.matrix.columns);
        assert_eq!(self.matrix.stride, width, "adamw: rows are not consecutive");
        self.ids.expect("adamw", "ids", rows, 1);
        Span {
            offset: self.matrix.offset,
            len: rows * width,
            width,
            ids: Some(self.ids),
        }
    }
}

/// The spans of `range`: one, or the part before a matrix and the listed rows of the matrix.
fn spans<'t>(range: &Range<usize>, listed: Option<Listed<'t>>) -> Vec<Span<'t>> {
    let whole = |range: Range<usize>| Span {
        offset: range.start,
        len: range.len(),
        width: 0,
        ids: None,
    };
    match listed {
        Some(listed) if range.end > listed.matrix.offset => {
            let Place { offset, .. } = listed.matrix;
            assert!(
                range.start <= offset && range.end == listed.matrix.end(),
                "adamw: {range:?} does not end with the listed rows' matrix {:?}",
                listed.matrix
            );
            let before = Some(range.start..offset).filter(|before| !before.is_empty());
            before
                .map(whole)
                .into_iter()
                .chain([listed.span()])
                .collect()
        }
        _ => vec![whole(range.clone())],
    }
}

impl Span<'_> {
    fn dims(&self, dims: Dims) -> Dims {
        Dims {
            offset: to_u32(self.offset),
            len: to_u32(self.len),
            width: to_u32(self.width),
            stride: self.grid()[0] * to_u32(WG),
            ..dims
        }
    }

    /// Workgroups of a kernel that takes turns.
    fn grid(&self) -> [u32; 3] {
        [groups(self.len, WG).min(to_u32(MOST_GROUPS)), 1, 1]
    }

    /// Of `values`, in pieces that do not depend on the number of threads.
    fn pieces<'v>(&self, values: &'v [f32]) -> Vec<&'v [f32]> {
        let values = &values[self.offset..];
        match self.ids {
            None => values[..self.len].chunks(CHUNK).collect(),
            Some(ids) => {
                let row = |id: &u32| &values[*id as usize * self.width..][..self.width];
                ids.u32().iter().map(row).collect()
            }
        }
    }
}

impl Segment {
    /// A segment is clipped when it lies in the clipped range.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "f32 is what is computed in"
    )]
    fn dims(&self, clip: Option<&Clip>) -> Dims {
        let count = self.count as f64;
        let inside =
            |clip: &&Clip| clip.range.start <= self.range.start && self.range.end <= clip.range.end;
        Dims {
            rate: self.rate as f32,
            keep: self.keep(),
            c1: (1.0 - B1.powf(count)) as f32,
            c2: (1.0 - B2.powf(count)) as f32,
            limit: clip.filter(inside).map_or(0.0, |clip| clip.limit),
            ..Dims::default()
        }
    }

    /// The factor of weight decay.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "f32 is what is computed in"
    )]
    pub(crate) fn keep(&self) -> f32 {
        (1.0 - self.rate * self.decay) as f32
    }
}

/// Partial sums are of [`CHUNK`] elements or of a listed row, for any number of threads.
#[expect(clippy::cast_possible_truncation, reason = "rounded once, at the end")]
fn norm(cpu: &Cpu, grad: &[f32], spans: &[Span<'_>]) -> f32 {
    let pieces: Vec<&[f32]> = spans.iter().flat_map(|span| span.pieces(grad)).collect();
    let mut partials = vec![0.0f32; pieces.len()];
    cpu.rows(&mut partials, 1, CHUNK, |first, partials| {
        cpu.simd(
            #[inline(always)]
            || {
                for (partial, piece) in partials.iter_mut().zip(&pieces[first..]) {
                    *partial = math::sum(piece, |g| g * g);
                }
            },
        );
    });
    partials
        .iter()
        .map(|sum| f64::from(*sum))
        .sum::<f64>()
        .sqrt() as f32
}

/// The step of one element.
#[derive(Clone, Copy)]
struct ElementStep {
    dims: Dims,
    /// Of the gradient.
    scale: f32,
}

impl ElementStep {
    fn new(dims: Dims, norm: f32) -> Self {
        let scale = match dims.limit > 0.0 {
            true => (dims.limit / (norm + 1e-6)).min(1.0),
            false => 1.0,
        };
        Self { dims, scale }
    }

    #[inline(always)]
    fn apply(self, [theta, grad, m, v]: [&mut [f32]; 4]) {
        let Dims {
            rate, keep, c1, c2, ..
        } = self.dims;
        #[expect(clippy::cast_possible_truncation, reason = "constants")]
        let (b1, b2) = (B1 as f32, B2 as f32);
        let moments = m.iter_mut().zip(v.iter_mut());
        let parameters = theta.iter_mut().zip(grad.iter_mut());
        for ((theta, grad), (m, v)) in parameters.zip(moments) {
            let g = self.scale * *grad;
            *grad = 0.0;
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *theta = *theta * keep - rate * (*m / c1) / ((*v / c2).sqrt() + EPS);
        }
    }
}

/// `all`: theta, grad, m, v.
fn step_cpu(cpu: &Cpu, all: [&mut [f32]; 4], span: &Span<'_>, update: ElementStep) {
    let Some(ids) = span.ids else {
        let parts = all.map(|values| &mut values[span.offset..][..span.len]);
        return cpu.lockstep(parts, [1; 4], 8, |_, parts| {
            cpu.simd(
                #[inline(always)]
                || update.apply(parts),
            );
        });
    };
    let picked = all.map(|values| pick_rows(&mut values[span.offset..], ids.u32(), span.width));
    let [theta, grad, m, v] = picked.map(Vec::into_iter);
    let rows = theta.zip(grad).zip(m.zip(v));
    let mut rows: Vec<[&mut [f32]; 4]> = rows
        .map(|((theta, grad), (m, v))| [theta.1, grad.1, m.1, v.1])
        .collect();
    cpu.rows(&mut rows, 1, 8 * span.width, |_, rows| {
        cpu.simd(
            #[inline(always)]
            || {
                for row in rows {
                    update.apply(row.each_mut().map(|part| &mut **part));
                }
            },
        );
    });
}
