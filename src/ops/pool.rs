//! One row of each prompt's rows: x [T, H], offsets -> h [B, H]; and its gradient.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::device::gpu::GpuPass;
use crate::device::{CpuPass, Kernel, PartMut, Pass, Place, Shader, Tensor, shader};
use crate::num::to_u32;

const SHADER: Shader = shader!("pool", "reduce");

/// Lanes of a workgroup of `normed`, and most vectors of four that a lane has of a row.
const LANES: usize = 128;
const MOST_PIECES: usize = 8;

/// How a checkpoint makes one vector of a prompt's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pooling {
    /// The mean over all tokens, `[CLS]` and `[SEP]` included.
    Mean,
    /// The state of the first token, `[CLS]`.
    Cls,
}

#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    hidden: u32,
    /// Of h: its first element, and from one row to the next.
    first: u32,
    stride: u32,
    /// Of `normed`.
    tokens: u32,
    layers: u32,
    eps: f32,
}

pub(crate) struct Pool {
    pub(super) mean: Kernel,
    pub(super) first: Kernel,
    normed: Mutex<BTreeMap<(usize, bool), Kernel>>,
    backward_mean: Kernel,
    backward_first: Kernel,
}

/// `x`: [T, H]; `offsets`: [B + 1]; `h`: [B, H], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) pooling: Pooling,
    pub(crate) x: &'t Tensor,
    pub(crate) offsets: &'t Tensor,
    pub(crate) h: PartMut<'t>,
}

/// Of layer norms, on a GPU: `states` [S T, H], tensors [T, H] before their norms; `norms`: [N 2, H],
/// gamma and beta of each; `sources`: [Z + 1, 2], place among the states and norm of each of Z
/// layers, and of the output; `offsets`: [B + 1]; `pooled`: [B, H], of the output, and `units`:
/// [B Z, H], of each layer its mean as a unit vector, both overwritten.
pub(crate) struct NormedStates<'t> {
    pub(crate) pooling: Pooling,
    pub(crate) tokens: usize,
    pub(crate) states: &'t Tensor,
    pub(crate) norms: &'t Tensor,
    pub(crate) eps: f32,
    pub(crate) sources: &'t Tensor,
    pub(crate) offsets: &'t Tensor,
    pub(crate) pooled: &'t mut Tensor,
    pub(crate) units: &'t mut Tensor,
}

/// `dh`: [B, H]; `offsets`: [B + 1], no prompt empty; `dx`: [T, H], overwritten.
pub(crate) struct Backward<'t> {
    pub(crate) pooling: Pooling,
    pub(crate) dh: &'t Tensor,
    pub(crate) offsets: &'t Tensor,
    pub(crate) dx: &'t mut Tensor,
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self {
            mean: Kernel::new(&SHADER, "mean", &[]),
            first: Kernel::new(&SHADER, "first", &[]),
            normed: Mutex::default(),
            backward_mean: Kernel::new(&SHADER, "backward_mean", &[]),
            backward_first: Kernel::new(&SHADER, "backward_first", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, mut f: Forward<'_>) {
        let (place, hidden) = (f.h.place, f.x.columns());
        let prompts = place.rows;
        f.offsets.expect("pool", "offsets", prompts + 1, 1);
        place.expect("pool", "h", prompts, hidden);
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                match f.pooling {
                    Pooling::Mean => &self.mean,
                    Pooling::Cls => &self.first,
                },
                [to_u32(prompts), 1, 1],
                &Dims {
                    hidden: to_u32(hidden),
                    first: to_u32(place.offset),
                    stride: to_u32(place.stride),
                    ..Dims::default()
                },
                &[("offsets", f.offsets), ("x", f.x), ("h", f.h.tensor)],
            ),
            Pass::Cpu(cpu) => {
                let (x, offsets) = (f.x.f32(), f.offsets.u32());
                forward_cpu(cpu, f.pooling, place, x, offsets, f.h.f32_mut());
            }
        }
    }

    /// Whether [`Pool::normed`] takes rows of `hidden`.
    pub(crate) fn norms(hidden: usize) -> bool {
        hidden.is_multiple_of(4) && hidden <= 4 * LANES * MOST_PIECES
    }

    /// The kernel of [`Pool::normed`] for rows of `hidden`.
    pub(crate) fn of_norms(&self, hidden: usize, pooling: Pooling) -> Kernel {
        let first = pooling == Pooling::Cls;
        let mut kernels = self.normed.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = kernels.entry((hidden, first)).or_insert_with(|| {
            let constants = [
                ("WG", LANES as f64),
                ("PIECES", (hidden / 4).div_ceil(LANES) as f64),
                ("FIRST", f64::from(u8::from(first))),
            ];
            Kernel::new(&SHADER, "normed", &constants)
        });
        kernel.clone()
    }

    pub(crate) fn normed(&self, pass: &mut GpuPass<'_>, f: NormedStates<'_>) {
        let (hidden, prompts) = (f.states.columns(), f.pooled.rows());
        let layers = f.sources.rows() - 1;
        f.norms.expect("pool", "norms", f.norms.rows(), hidden);
        f.sources.expect("pool", "sources", layers + 1, 2);
        f.offsets.expect("pool", "offsets", prompts + 1, 1);
        f.pooled.expect("pool", "pooled", prompts, hidden);
        if layers > 0 {
            f.units.expect("pool", "units", prompts * layers, hidden);
        }
        let dims = Dims {
            hidden: to_u32(hidden),
            tokens: to_u32(f.tokens),
            layers: to_u32(layers),
            eps: f.eps,
            ..Dims::default()
        };
        let tensors = [
            ("offsets", f.offsets),
            ("states", f.states),
            ("norms", f.norms),
            ("sources", f.sources),
            ("pooled", &*f.pooled),
            ("units", &*f.units),
        ];
        let kernel = self.of_norms(hidden, f.pooling);
        let grid = [to_u32(prompts), to_u32(layers + 1), 1];
        pass.dispatch(&kernel, grid, &dims, &tensors);
    }

    pub(crate) fn backward(&self, pass: &mut Pass<'_>, b: Backward<'_>) {
        let (prompts, hidden) = (b.dh.rows(), b.dh.columns());
        b.offsets.expect("pool", "offsets", prompts + 1, 1);
        b.dx.expect("pool", "dx", b.dx.rows(), hidden);
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                match b.pooling {
                    Pooling::Mean => &self.backward_mean,
                    Pooling::Cls => &self.backward_first,
                },
                [to_u32(prompts), 1, 1],
                &Dims {
                    hidden: to_u32(hidden),
                    first: 0,
                    stride: to_u32(hidden),
                    ..Dims::default()
                },
                &[("offsets", b.offsets), ("dh", b.dh), ("dx", b.dx)],
            ),
            Pass::Cpu(cpu) => {
                let (dh, offsets) = (b.dh.f32(), b.offsets.u32());
                backward_cpu(cpu, b.pooling, hidden, dh, offsets, b.dx.f32_mut());
            }
        }
    }
}

/// `h`: from the first element of `place` on.
fn forward_cpu(
    pass: &CpuPass<'_>,
    pooling: Pooling,
    place: Place,
    x: &[f32],
    offsets: &[u32],
    h: &mut [f32],
) {
    let (cpu, hidden) = (pass.cpu, place.columns);
    let work = x.len() / offsets.len().max(1);
    cpu.rows(h, place.stride, work, |first, rows| {
        cpu.simd(
            #[inline(always)]
            || {
                for (i, row) in rows.chunks_mut(place.stride).enumerate() {
                    let h = &mut row[..hidden];
                    let (begin, end) =
                        (offsets[first + i] as usize, offsets[first + i + 1] as usize);
                    let x = &x[begin * hidden..end * hidden];
                    h.copy_from_slice(&x[..hidden]);
                    if pooling == Pooling::Mean {
                        for x in x.chunks_exact(hidden).skip(1) {
                            for (h, x) in h.iter_mut().zip(x) {
                                *h += x;
                            }
                        }
                        for h in h.iter_mut() {
                            *h /= (end - begin) as f32;
                        }
                    }
                }
            },
        );
    });
}

fn backward_cpu(
    pass: &CpuPass<'_>,
    pooling: Pooling,
    hidden: usize,
    dh: &[f32],
    offsets: &[u32],
    dx: &mut [f32],
) {
    let cpu = pass.cpu;
    cpu.rows(dx, hidden, hidden, |first, rows| {
        for (i, dx) in rows.chunks_exact_mut(hidden).enumerate() {
            let token = to_u32(first + i);
            let prompt = offsets.partition_point(|begin| *begin <= token) - 1;
            let dh = &dh[prompt * hidden..][..hidden];
            match pooling {
                Pooling::Mean => {
                    let count = (offsets[prompt + 1] - offsets[prompt]) as f32;
                    for (dx, dh) in dx.iter_mut().zip(dh) {
                        *dx = dh / count;
                    }
                }
                Pooling::Cls if token == offsets[prompt] => dx.copy_from_slice(dh),
                Pooling::Cls => dx.fill(0.0),
            }
        }
    });
}
