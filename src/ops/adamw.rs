//! AdamW over flat buffers, with the gradients of a range clipped by their norm (carve.md section
//! 10): theta, m, v [1, N] from grad [1, N], which is zeroed.
//!
//! Of one matrix it may move some rows alone, at a cost that does not depend on the others.

use std::sync::Arc;

use std::ops::Range;

use crate::device::cpu::{Cpu, math, pick_rows};
use crate::device::{Device, Kernel, Pass, Place, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

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

/// A step of some parameters and a matrix behind them, for each of `sizes`: elements before the
/// matrix, its rows and their width. First all rows move, then every third alone, with gradients
/// clipped before the matrix and everywhere.
pub(crate) fn cases(device: &Device, sizes: &[(usize, usize, usize)]) -> Result<Vec<Case>> {
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

    /// Outputs: theta, grad, m, v and the norm.
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
        let norm = device.upload("norm", 1, &[0.0])?;
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
        [theta, grad, m, v, vec![norm]]
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::testing::{assert_close, check, devices, outputs, run};

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
            assert_close("norm", &norm, &[5.0], 1e-6);
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
        check(|device| cases(device, &shapes.map(|(rows, width)| (BEFORE, rows, width))));
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
                let (read, outcome) = run(&device, |pass| {
                    op.shrink(pass, &mut theta, Listed { matrix, ids: &ids }, 0.75);
                    pass.read(&theta)
                });
                assert_eq!(outcome.f32(read), want);
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
