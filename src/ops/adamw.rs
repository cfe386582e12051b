//! AdamW over flat buffers, with the gradients of a range clipped by their norm (carve.md section
//! 10): theta, m, v [1, N] from grad [1, N], which is zeroed.

use std::ops::Range;

use crate::device::cpu::{Cpu, math};
use crate::device::{Device, Kernel, Pass, Shader, Tensor, groups, shader, small};
use crate::error::Result;

const SHADER: Shader = shader!("adamw", "reduce");

const B1: f64 = 0.9;
const B2: f64 = 0.999;
const EPS: f32 = 1e-8;

/// Partial sums of the norm on a GPU.
const PARTS: usize = 64;

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
    stride: u32,
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

/// The norm of the clipped gradients, before they are.
pub(crate) struct Room {
    partials: Tensor,
    /// [1, 1]
    pub(crate) norm: Tensor,
}

impl Room {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            partials: device.scratch("partials", 1, PARTS)?,
            norm: device.upload("norm", 1, &[0.0])?,
        })
    }
}

/// `theta`, `m`, `v`: [1, N], changed in place; `grad`: [1, N], zeroed in the segments.
pub(crate) struct Step<'t> {
    pub(crate) theta: &'t mut Tensor,
    pub(crate) grad: &'t mut Tensor,
    pub(crate) m: &'t mut Tensor,
    pub(crate) v: &'t mut Tensor,
    pub(crate) segments: &'t [Segment],
    pub(crate) clip: Option<Clip>,
    pub(crate) room: &'t mut Room,
}

impl AdamW {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            squares: device.kernel(&SHADER, "squares", &[])?,
            length: device.kernel(&SHADER, "length", &[])?,
            step: device.kernel(&SHADER, "step", &[])?,
        })
    }

    pub(crate) fn step(&self, pass: &mut Pass<'_>, s: Step<'_>) {
        let len = s.theta.len();
        for (name, tensor) in [("grad", &*s.grad), ("m", &*s.m), ("v", &*s.v)] {
            tensor.expect("adamw", name, 1, len);
        }
        for range in s
            .segments
            .iter()
            .map(|s| &s.range)
            .chain(s.clip.as_ref().map(|c| &c.range))
        {
            assert!(range.end <= len, "adamw: {range:?} is not inside {len}");
        }
        match pass {
            Pass::Gpu(gpu) => {
                let grad = ("grad", &*s.grad);
                let (partials, norm) = (("partials", &s.room.partials), ("norm", &s.room.norm));
                if let Some(clip) = &s.clip {
                    let dims = Dims {
                        offset: small(clip.range.start),
                        len: small(clip.range.len()),
                        ..Dims::default()
                    };
                    gpu.dispatch(
                        &self.squares,
                        [small(PARTS), 1, 1],
                        &dims,
                        &[grad, partials],
                    );
                    gpu.dispatch(&self.length, [1, 1, 1], &dims, &[partials, norm]);
                }
                let (theta, m, v) = (("theta", &*s.theta), ("m", &*s.m), ("v", &*s.v));
                for segment in s.segments {
                    let grid = groups(segment.range.len(), WG).min(small(MOST_GROUPS));
                    let mut dims = segment.dims(s.clip.as_ref());
                    dims.stride = grid * small(WG);
                    let tensors = [grad, theta, m, v, norm];
                    gpu.dispatch(&self.step, [grid, 1, 1], &dims, &tensors);
                }
            }
            Pass::Cpu(pass) => {
                let cpu = pass.cpu;
                let grad = s.grad.f32_mut();
                if let Some(clip) = &s.clip {
                    s.room.norm.f32_mut()[0] = norm(cpu, &grad[clip.range.clone()]);
                }
                let norm = s.room.norm.f32()[0];
                for segment in s.segments {
                    let range = segment.range.clone();
                    let parts = [
                        &mut s.theta.f32_mut()[range.clone()],
                        &mut grad[range.clone()],
                        &mut s.m.f32_mut()[range.clone()],
                        &mut s.v.f32_mut()[range],
                    ];
                    step_cpu(cpu, parts, segment.dims(s.clip.as_ref()), norm);
                }
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
            offset: small(self.range.start),
            len: small(self.range.len()),
            stride: 0,
            rate: self.rate as f32,
            keep: (1.0 - self.rate * self.decay) as f32,
            c1: (1.0 - B1.powf(count)) as f32,
            c2: (1.0 - B2.powf(count)) as f32,
            limit: clip.filter(inside).map_or(0.0, |clip| clip.limit),
        }
    }
}

/// In partial sums of [`CHUNK`] elements, whatever the number of threads.
#[expect(clippy::cast_possible_truncation, reason = "rounded once, at the end")]
fn norm(cpu: &Cpu, grad: &[f32]) -> f32 {
    let mut partials = vec![0.0f32; grad.len().div_ceil(CHUNK)];
    cpu.rows(&mut partials, 1, CHUNK, |first, partials| {
        cpu.simd(
            #[inline(always)]
            || {
                for (partial, chunk) in partials.iter_mut().zip(grad.chunks(CHUNK).skip(first)) {
                    *partial = math::sum(chunk, |g| g * g);
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

fn step_cpu(cpu: &Cpu, parts: [&mut [f32]; 4], dims: Dims, norm: f32) {
    let scale = match dims.limit > 0.0 {
        true => (dims.limit / (norm + 1e-6)).min(1.0),
        false => 1.0,
    };
    let Dims {
        rate, keep, c1, c2, ..
    } = dims;
    #[expect(clippy::cast_possible_truncation, reason = "constants")]
    let (b1, b2) = (B1 as f32, B2 as f32);
    cpu.lockstep(parts, [1; 4], 8, |_, [theta, grad, m, v]| {
        cpu.simd(
            #[inline(always)]
            || {
                let moments = m.iter_mut().zip(v.iter_mut());
                let parameters = theta.iter_mut().zip(grad.iter_mut());
                for ((theta, grad), (m, v)) in parameters.zip(moments) {
                    let g = scale * *grad;
                    *grad = 0.0;
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    *theta = *theta * keep - rate * (*m / c1) / ((*v / c2).sqrt() + EPS);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::testing::{assert_close, devices, noise, run};

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
    fn v21() {
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
    fn v22_and_what_is_outside_stays() {
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
