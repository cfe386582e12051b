//! AdamW over flat buffers, with the gradients of a range clipped by their norm (carve.md section
//! 10): theta, m, v [1, N] from grad [1, N], which is zeroed.
//!
//! Of one matrix it may move some rows alone, at a cost that does not depend on the others.

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

/// Parameters with a rate of their own; those of no segment stay as they are.
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
    /// Consecutive rows; a segment of its own, and the end of a clipped range that it is in.
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
pub(crate) struct Room {
    partials: Tensor,
    /// Stands for ids where none are listed.
    none: Tensor,
    /// [1, 1]
    pub(crate) norm: Tensor,
}

impl Room {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            partials: device.scratch("partials", SPANS, PARTS)?,
            none: device.ids("no ids", 1, 1)?,
            norm: device.upload("norm", 1, &[0.0])?,
        })
    }
}

/// `theta`, `m`, `v`: [1, N], changed in place; `grad`: [1, N], zeroed in the segments. With `listed`
/// the other rows of its matrix are in no segment, and have no gradient that counts for a norm.
pub(crate) struct Step<'t> {
    pub(crate) theta: &'t mut Tensor,
    pub(crate) grad: &'t mut Tensor,
    pub(crate) m: &'t mut Tensor,
    pub(crate) v: &'t mut Tensor,
    pub(crate) segments: &'t [Segment],
    pub(crate) listed: Option<Listed<'t>>,
    pub(crate) clip: Option<Clip>,
    pub(crate) room: &'t mut Room,
}

impl AdamW {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            squares: device.kernel(&SHADER, "squares", &[])?,
            length: device.kernel(&SHADER, "length", &[])?,
            step: device.kernel(&SHADER, "step", &[])?,
            shrink: device.kernel(&SHADER, "shrink", &[])?,
        })
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
                let (partials, norm) = (("partials", &s.room.partials), ("norm", &s.room.norm));
                let none = &s.room.none;
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
                    s.room.norm.f32_mut()[0] = norm(cpu, grad, &clipped);
                }
                let norm = s.room.norm.f32()[0];
                let (theta, m, v) = (s.theta.f32_mut(), s.m.f32_mut(), s.v.f32_mut());
                for (dims, span) in segments {
                    let all = [&mut *theta, &mut *grad, &mut *m, &mut *v];
                    step_cpu(cpu, all, &span, Update::new(dims, norm));
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

/// What there is of `range`: all, or what is before a matrix and its listed rows.
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

    /// What weight decay multiplies a parameter by.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "f32 is what is computed in"
    )]
    pub(crate) fn keep(&self) -> f32 {
        (1.0 - self.rate * self.decay) as f32
    }
}

/// In partial sums of [`CHUNK`] elements or a listed row, whatever the number of threads.
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
struct Update {
    dims: Dims,
    /// Of the gradient.
    scale: f32,
}

impl Update {
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
fn step_cpu(cpu: &Cpu, all: [&mut [f32]; 4], span: &Span<'_>, update: Update) {
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::testing::{assert_close, devices, noise, run, wide, worst};

    struct State {
        theta: Tensor,
        grad: Tensor,
        m: Tensor,
        v: Tensor,
        room: Room,
    }

    fn state(device: &Device, theta: &[f32]) -> State {
        let n = theta.len();
        let zeros = vec![0.0; n];
        let upload = |label, values: &[f32]| device.upload(label, n, values).unwrap();
        State {
            theta: upload("theta", theta),
            grad: upload("grad", &zeros),
            m: upload("m", &zeros),
            v: upload("v", &zeros),
            room: Room::new(device).unwrap(),
        }
    }

    /// theta, grad, m, v and the norm after a step with gradient `g`.
    fn step(
        device: &Device,
        s: &mut State,
        g: &[f32],
        segments: &[Segment],
        clip: Option<Clip>,
    ) -> [Vec<f32>; 5] {
        let op = AdamW::new(device).unwrap();
        s.grad = device.upload("grad", g.len(), g).unwrap();
        let (reads, outcome) = run(device, |pass| {
            op.step(
                pass,
                Step {
                    theta: &mut s.theta,
                    grad: &mut s.grad,
                    m: &mut s.m,
                    v: &mut s.v,
                    segments,
                    listed: None,
                    clip,
                    room: &mut s.room,
                },
            );
            [&s.theta, &s.grad, &s.m, &s.v, &s.room.norm].map(|tensor| pass.read(tensor))
        });
        reads.map(|read| outcome.f32(read).to_vec())
    }

    fn segment(range: Range<usize>, rate: f64, decay: f64, count: usize) -> Segment {
        Segment {
            range,
            rate,
            decay,
            count,
        }
    }

    #[test]
    fn steps_match_hand_values_v21() {
        for device in devices() {
            let mut s = state(&device, &[1.0, -2.0]);
            let segments = |count| [segment(0..2, 0.1, 0.01, count)];
            let [theta, grad, ..] = step(&device, &mut s, &[0.5, -1.0], &segments(1), None);
            assert_close("V21", &theta, &[0.899_000_002, -1.898_000_001], 1e-6);
            assert_eq!(grad, [0.0, 0.0]);
            let [theta, _, m, v, _] = step(&device, &mut s, &[0.25, 1.0], &segments(2), None);
            assert_close("V21", &theta, &[0.804_883_04, -1.901_365_16], 1e-6);
            assert_close("V21 m", &m, &[0.07, 0.01], 1e-6);
            assert_close("V21 v", &v, &[0.000_312_25, 0.001_999], 1e-6);

            // Momentum and decay act without a gradient.
            let mut s = state(&device, &[1.0, -2.0]);
            step(&device, &mut s, &[0.5, 0.0], &segments(1), None);
            let [theta, ..] = step(&device, &mut s, &[0.0, 0.0], &segments(2), None);
            assert_close("V21 still", &theta, &[0.831_095_18, -1.996_002], 1e-6);
        }
    }

    #[test]
    fn clip_matches_hand_values_and_spares_the_rest_v22() {
        for device in devices() {
            let mut s = state(&device, &[0.0; 5]);
            let clip = Some(Clip {
                range: 1..3,
                limit: 1.0,
            });
            let segments = [segment(1..3, 0.1, 0.0, 1), segment(3..4, 0.1, 0.0, 1)];
            let g = [7.0, 3.0, 4.0, 5.0, 6.0];
            let [theta, grad, m, _, norm] = step(&device, &mut s, &g, &segments, clip);
            assert_close("norm", &norm, &[5.0], 1e-6);
            let want = [0.0, 0.059_999_988, 0.079_999_984, 0.5, 0.0];
            assert_close("V22", &m, &want, 1e-6);
            assert_eq!(grad, [7.0, 0.0, 0.0, 0.0, 6.0]);
            assert_eq!((theta[0], theta[4]), (0.0, 0.0));
        }
    }

    /// theta, m, v after a step in f64, of the elements that `moves` says; the norm is `scale`d away.
    struct Reference {
        theta: Vec<f64>,
        m: Vec<f64>,
        v: Vec<f64>,
    }

    impl Reference {
        fn step(
            &mut self,
            g: &[f64],
            segment: &Segment,
            scale: f64,
            moves: impl Fn(usize) -> bool,
        ) {
            let (c1, c2) = (
                1.0 - B1.powf(segment.count as f64),
                1.0 - B2.powf(segment.count as f64),
            );
            for i in segment.range.clone().filter(|i| moves(*i)) {
                let g = scale * g[i];
                self.m[i] = B1 * self.m[i] + (1.0 - B1) * g;
                self.v[i] = B2 * self.v[i] + (1.0 - B2) * g * g;
                self.theta[i] *= 1.0 - segment.rate * segment.decay;
                self.theta[i] -= segment.rate * (self.m[i] / c1) / ((self.v[i] / c2).sqrt() + 1e-8);
            }
        }
    }

    /// Elements before the matrix.
    const BEFORE: usize = 5;

    /// Two steps with gradients on the rows `ids` alone; the second with another list.
    fn listed_steps(
        device: &Device,
        matrix: Place,
        lists: [Option<&[u32]>; 2],
        gradients: &[Vec<f32>; 2],
        clip_all: bool,
    ) -> [Vec<f32>; 5] {
        let op = AdamW::new(device).unwrap();
        let n = matrix.end();
        let mut s = state(device, &noise(n, 1));
        let mut ids = device.ids("ids", matrix.rows, 1).unwrap();
        let clip = Clip {
            range: if clip_all { 0..n } else { 0..BEFORE },
            limit: 0.5,
        };
        let mut last = None;
        for (count, (list, g)) in lists.into_iter().zip(gradients).enumerate() {
            s.grad = device.upload("grad", n, g).unwrap();
            let segments = [
                segment(0..BEFORE, 0.2, 0.1, count + 1),
                segment(matrix.offset..n, 0.1, 0.01, count + 1),
            ];
            let (reads, outcome) = run(device, |pass| {
                if let Some(list) = list {
                    pass.upload(&mut ids, list);
                }
                let ids = &ids;
                op.step(
                    pass,
                    Step {
                        theta: &mut s.theta,
                        grad: &mut s.grad,
                        m: &mut s.m,
                        v: &mut s.v,
                        segments: &segments,
                        listed: list.map(|_| Listed { matrix, ids }),
                        clip: Some(clip.clone()),
                        room: &mut s.room,
                    },
                );
                [&s.theta, &s.grad, &s.m, &s.v, &s.room.norm].map(|tensor| pass.read(tensor))
            });
            last = Some(reads.map(|read| outcome.f32(read).to_vec()));
        }
        last.unwrap()
    }

    #[test]
    fn listed_rows_match_f64_and_the_others_stay() {
        for (rows, width) in [
            (1, 1),
            (9, 1),
            (7, 63),
            (64, 7),
            (5, 65),
            (33, 257),
            (4, 384),
        ] {
            let matrix = Place::flat(BEFORE, rows, width);
            let every: Vec<u32> = (0..to_u32(rows)).collect();
            let third: Vec<u32> = (0..to_u32(rows)).step_by(3).collect();
            let last = vec![to_u32(rows) - 1];
            for (first, second) in [(&third, &last), (&every, &third), (&vec![], &third)] {
                let lists = [first, second];
                let gradient = |step: usize| -> Vec<f32> {
                    let noise = noise(matrix.end(), 7 + step as u64);
                    let listed = |i: usize| {
                        i < BEFORE || lists[step].contains(&to_u32((i - BEFORE) / width))
                    };
                    let values = noise.into_iter().enumerate();
                    values
                        .map(|(i, g)| if listed(i) { g } else { 0.0 })
                        .collect()
                };
                let gradients = [gradient(0), gradient(1)];
                for clip_all in [false, true] {
                    let want = |lists: [&Vec<u32>; 2]| {
                        let n = matrix.end();
                        let mut want = Reference {
                            theta: wide(&noise(n, 1)),
                            m: vec![0.0; n],
                            v: vec![0.0; n],
                        };
                        let mut norm = 0.0;
                        for (step, list) in lists.into_iter().enumerate() {
                            let g = wide(&gradients[step]);
                            let clipped = if clip_all { &g[..] } else { &g[..BEFORE] };
                            norm = clipped.iter().map(|g| g * g).sum::<f64>().sqrt();
                            let scale = (0.5 / (norm + 1e-6)).min(1.0);
                            let before = segment(0..BEFORE, 0.2, 0.1, step + 1);
                            want.step(&g, &before, scale, |_| true);
                            let matrix = segment(BEFORE..n, 0.1, 0.01, step + 1);
                            let scale = if clip_all { scale } else { 1.0 };
                            want.step(&g, &matrix, scale, |i| {
                                list.contains(&to_u32((i - BEFORE) / width))
                            });
                        }
                        (want, norm)
                    };
                    let (right, norm) = want(lists);
                    let lists = lists.map(|list| Some(list.as_slice()));
                    let mut seen: Vec<[Vec<f32>; 5]> = Vec::new();
                    for device in devices() {
                        let found = listed_steps(&device, matrix, lists, &gradients, clip_all);
                        let [theta, grad, m, v, length] = &found;
                        assert_close("theta", theta, &right.theta, 1e-5);
                        assert_close("m", m, &right.m, 1e-6);
                        assert_close("v", v, &right.v, 1e-6);
                        assert_close("norm", length, &[norm], 1e-5);
                        assert!(grad.iter().all(|g| *g == 0.0));
                        seen.push(found);
                    }
                    assert_eq!(seen[0], seen[1], "threads show");
                    // Not what a step of all rows gives, unless all are listed.
                    let (dense, _) = want([&every, &every]);
                    let differs = worst(&seen[0][0], &dense.theta) > 1e-5;
                    assert_eq!(differs, [first, second] != [&every, &every]);
                }
            }
        }
    }

    #[test]
    fn a_list_of_all_rows_has_the_bits_of_none() {
        let matrix = Place::flat(BEFORE, 37, 65);
        let every: Vec<u32> = (0..37).collect();
        let gradients = [noise(matrix.end(), 7), noise(matrix.end(), 8)];
        for device in devices() {
            let steps = |list| listed_steps(&device, matrix, [list; 2], &gradients, false);
            assert_eq!(steps(Some(&every[..])), steps(None));
            assert_ne!(steps(Some(&every[1..])), steps(None));
        }
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
                let op = AdamW::new(&device).unwrap();
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
    fn long_buffers_match_f64_and_threads_do_not_show() {
        let n = 100_001;
        let (theta, g) = (noise(n, 1), noise(n, 2));
        let clip = Some(Clip {
            range: 0..n,
            limit: 1.0,
        });
        let norm: f64 = g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let mut first: Option<Vec<f32>> = None;
        for (i, device) in devices().into_iter().enumerate() {
            let mut s = state(&device, &theta);
            let segments = [segment(0..n, 0.01, 0.1, 1)];
            let [got, _, m, _, found] = step(&device, &mut s, &g, &segments, clip.clone());
            assert_close("norm", &found, &[norm], 1e-5);
            let want: Vec<f64> = g
                .iter()
                .map(|g| 0.1 * f64::from(*g) / (norm + 1e-6))
                .collect();
            assert_close("m", &m, &want, 1e-6);
            if i < 2 {
                assert_eq!(*first.get_or_insert_with(|| got.clone()), got);
            }
        }
    }
}
