//! AdamW over flat buffers, with the gradients of a range clipped by their norm (carve.md section
//! 10): theta, m, v [1, N] from grad [1, N], which is zeroed.
//!
//! Of one matrix it may move some rows alone, at a cost that does not depend on the others.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use std::ops::Range;

use crate::device::cpu::{Cpu, math, pick_rows};
use crate::device::gpu::GpuPass;
use crate::device::{Device, Kernel, Pass, Place, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;

const SHADER: Shader = shader!("adamw", "reduce");

const B1: f64 = 0.9;
const B2: f64 = 0.999;
const EPS: f32 = 1e-8;

/// Elements that a lane takes in a turn, lanes of a workgroup, and workgroups at most: of the norm,
/// whose partial sums are one a workgroup, and of a step.
const TURN: usize = 4;
const WIDE: usize = 256;
const PARTIALS: usize = 256;
const WG: usize = 64;
const MOST_GROUPS: usize = 4096;

/// Spans of a step at most, and numbers of each.
const MOST_SPANS: usize = 8;
const FIELDS: usize = 8;

/// Elements of a partial sum of the norm on the CPU.
const CHUNK: usize = 4096;

#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    offset: u32,
    len: u32,
    width: u32,
    stride: u32,
    spans: u32,
    partials: u32,
    losses: u32,
    others: u32,
    limit: f32,
    keep: f32,
}

/// How the parameters of a segment move.
#[derive(Clone, Copy)]
struct Rule {
    rate: f32,
    keep: f32,
    c1: f32,
    c2: f32,
    /// Largest norm of the gradients; 0 leaves them as they are.
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
    /// What the segments and the clipped range are, [MOST_SPANS, FIELDS] each.
    segments: Tensor,
    clipped: Tensor,
    /// Stands for ids and for losses where there are none.
    none: Tensor,
    /// [1, 2]: the norm, and 1, or 0 where it or a loss was not finite.
    pub(crate) norm: Tensor,
}

impl NormWorkspace {
    /// Bytes that a step uploads at most.
    pub(crate) const UPLOADS: usize = 4 * 2 * MOST_SPANS * FIELDS;

    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            partials: device.scratch("partials", 1, PARTIALS)?,
            segments: device.ids("segments", MOST_SPANS, FIELDS)?,
            clipped: device.ids("clipped", MOST_SPANS, FIELDS)?,
            none: device.ids("none", 1, 1)?,
            norm: device.upload("norm", 2, &[0.0, 1.0])?,
        })
    }
}

/// `theta`, `m`, `v`: [1, N], changed in place; `grad`: [1, N], zeroed in the segments. With
/// `listed` the other rows of its matrix are in no segment, and have no gradient that counts for a
/// norm. Nothing changes if an element of `losses` or the norm is not finite.
pub(crate) struct Step<'t> {
    pub(crate) theta: &'t mut Tensor,
    pub(crate) grad: &'t mut Tensor,
    pub(crate) m: &'t mut Tensor,
    pub(crate) v: &'t mut Tensor,
    pub(crate) segments: &'t [Segment],
    pub(crate) listed: Option<Listed<'t>>,
    pub(crate) clip: Option<Clip>,
    pub(crate) losses: [Option<&'t Tensor>; 2],
    pub(crate) workspace: &'t mut NormWorkspace,
}

impl AdamW {
    pub(crate) fn new() -> Self {
        let wide = |entry| Kernel::new(&SHADER, entry, &[("WG", WIDE as f64)]);
        Self {
            squares: wide("squares"),
            length: wide("length"),
            step: Kernel::new(&SHADER, "step", &[]),
            shrink: Kernel::new(&SHADER, "shrink", &[]),
        }
    }

    pub(crate) fn step(&self, pass: &mut Pass<'_>, mut s: Step<'_>) {
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
            let rule = segment.rule(clip);
            let spans = spans(&segment.range, s.listed).into_iter();
            spans.map(move |span| (rule, span))
        });
        let segments: Vec<(Rule, Span<'_>)> = segments.collect();
        match pass {
            Pass::Gpu(gpu) => {
                let clipped = clipped.into_iter().map(|span| (Rule::NONE, span));
                self.record(gpu, &mut s, [segments, clipped.collect()]);
            }
            Pass::Cpu(pass) => {
                let cpu = pass.cpu;
                let grad = s.grad.f32_mut();
                let norm = match clip {
                    Some(_) => norm(cpu, grad, &clipped),
                    None => 0.0,
                };
                let losses = s.losses.iter().flatten();
                let finite = losses.flat_map(|l| l.f32()).all(|loss| loss.is_finite());
                let moves = finite && norm.is_finite();
                let flag = if moves { 1.0 } else { 0.0 };
                s.workspace.norm.f32_mut().copy_from_slice(&[norm, flag]);
                let (theta, m, v) = (s.theta.f32_mut(), s.m.f32_mut(), s.v.f32_mut());
                for (rule, span) in segments.into_iter().filter(|_| moves) {
                    let all = [&mut *theta, &mut *grad, &mut *m, &mut *v];
                    step_cpu(cpu, all, &span, ElementStep::new(rule, norm));
                }
            }
        }
    }

    /// `segments` and `clipped`: the spans that move, and those of the norm.
    fn record(
        &self,
        gpu: &mut GpuPass<'_>,
        s: &mut Step<'_>,
        [segments, clipped]: [Vec<(Rule, Span<'_>)>; 2],
    ) {
        let room = &mut *s.workspace;
        for (tensor, spans) in [
            (&mut room.segments, &segments),
            (&mut room.clipped, &clipped),
        ] {
            assert!(spans.len() <= MOST_SPANS, "adamw: too many segments");
            let rows = spans.iter().flat_map(|(rule, span)| span.row(*rule));
            gpu.upload(tensor, &rows.collect::<Vec<u32>>());
        }
        let room = &*s.workspace;
        let (grad, norm) = (("grad", &*s.grad), ("norm", &room.norm));
        let partials = ("partials", &room.partials);
        let ids = s.listed.map_or(&room.none, |listed| listed.ids);
        let total = |spans: &[(Rule, Span<'_>)]| spans.iter().map(|(_, span)| span.len).sum();
        let parts = groups(total(&clipped), WIDE * TURN).min(to_u32(PARTIALS));
        let mut dims = Dims {
            stride: parts * to_u32(WIDE),
            spans: to_u32(clipped.len()),
            partials: parts,
            limit: s.clip.as_ref().map_or(0.0, |clip| clip.limit),
            ..Dims::default()
        };
        let tensors = [grad, ("ids", ids), partials, ("spans", &room.clipped)];
        gpu.dispatch(&self.squares, [parts, 1, 1], &dims, &tensors);
        let [losses, others] = s.losses.map(|losses| losses.unwrap_or(&room.none));
        let [count, more] = s.losses.map(|losses| losses.map_or(0, Tensor::len));
        (dims.losses, dims.others) = (to_u32(count), to_u32(more));
        let tensors = [partials, norm, ("losses", losses), ("others", others)];
        gpu.dispatch(&self.length, [1, 1, 1], &dims, &tensors);
        let grid = groups(total(&segments), WG * TURN).min(to_u32(MOST_GROUPS));
        dims.stride = grid * to_u32(WG);
        dims.spans = to_u32(segments.len());
        let (theta, m, v) = (("theta", &*s.theta), ("m", &*s.m), ("v", &*s.v));
        let spans = ("spans", &room.segments);
        let tensors = [grad, ("ids", ids), theta, m, v, norm, spans];
        gpu.dispatch(&self.step, [grid, 1, 1], &dims, &tensors);
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
                let grid = groups(span.len, WG).min(to_u32(MOST_GROUPS));
                let dims = Dims {
                    offset: to_u32(span.offset),
                    len: to_u32(span.len),
                    width: to_u32(span.width),
                    stride: grid * to_u32(WG),
                    keep: factor,
                    ..Dims::default()
                };
                let tensors = [("theta", &*theta), ("ids", listed.ids)];
                gpu.dispatch(&self.shrink, [grid, 1, 1], &dims, &tensors);
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
    /// As the shader reads it.
    fn row(&self, rule: Rule) -> [u32; FIELDS] {
        let Rule {
            rate, keep, c1, c2, ..
        } = rule;
        [
            to_u32(self.offset),
            to_u32(self.len),
            to_u32(self.width),
            u32::from(rule.limit > 0.0),
            rate.to_bits(),
            keep.to_bits(),
            c1.to_bits(),
            c2.to_bits(),
        ]
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

impl Rule {
    /// Of a span that is only summed over.
    const NONE: Self = Self {
        rate: 0.0,
        keep: 1.0,
        c1: 1.0,
        c2: 1.0,
        limit: 0.0,
    };
}

impl Segment {
    /// A segment is clipped when it lies in the clipped range.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "f32 is what is computed in"
    )]
    fn rule(&self, clip: Option<&Clip>) -> Rule {
        let count = self.count as f64;
        let inside =
            |clip: &&Clip| clip.range.start <= self.range.start && self.range.end <= clip.range.end;
        Rule {
            rate: self.rate as f32,
            keep: self.keep(),
            c1: (1.0 - B1.powf(count)) as f32,
            c2: (1.0 - B2.powf(count)) as f32,
            limit: clip.filter(inside).map_or(0.0, |clip| clip.limit),
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
    rule: Rule,
    /// Of the gradient.
    scale: f32,
}

impl ElementStep {
    fn new(rule: Rule, norm: f32) -> Self {
        let scale = match rule.limit > 0.0 {
            true => (rule.limit / (norm + 1e-6)).min(1.0),
            false => 1.0,
        };
        Self { rule, scale }
    }

    #[inline(always)]
    fn apply(self, [theta, grad, m, v]: [&mut [f32]; 4]) {
        let Rule {
            rate, keep, c1, c2, ..
        } = self.rule;
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
