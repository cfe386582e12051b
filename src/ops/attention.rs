//! Attention within each prompt and head: qkv [T, 3H], offsets -> y [T, H]; and its gradient.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;
mod cpu;

use crate::device::{Device, Kernel, Pass, Shader, Tensor, shader};
use crate::error::{Result, bail};
use crate::num::to_u32;

const SHADER: Shader = shader!("attention");

/// Query rows of one workgroup.
pub(crate) const QUERIES: usize = 16;

/// Keys that the shader stages at a time.
const KEYS: usize = 8;

/// Keys that `forward_quads` stages at a time.
const STAGED: usize = 32;

/// The widest head of `forward_quads`.
const WIDEST: usize = 64;

/// Rows of a workgroup of the backward entries, and rows that it stages at a time.
const SIDE: usize = 8;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    hidden: u32,
    scale: f32,
}

/// First row and prompt of each tile of at most [`QUERIES`] rows, pair by pair.
pub(crate) fn query_tiles(offsets: &[u32]) -> Vec<u32> {
    let mut tiles = Vec::new();
    for (prompt, pair) in offsets.windows(2).enumerate() {
        for first in (pair[0]..pair[1]).step_by(QUERIES) {
            tiles.extend([first, to_u32(prompt)]);
        }
    }
    tiles
}

pub(crate) struct Attention {
    pub(super) forward: Kernel,
    /// Whether that one reads vectors of four.
    quads: bool,
    backward_queries: Kernel,
    backward_keys: Kernel,
    width: usize,
}

/// `qkv`: [T, 3H], a row is query, key, value, each [heads, width]; `offsets`: [B + 1]; `tiles`:
/// [J, 2], first row and prompt of each query tile; `y`: [T, H], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) qkv: &'t Tensor,
    pub(crate) offsets: &'t Tensor,
    pub(crate) tiles: &'t Tensor,
    pub(crate) y: &'t mut Tensor,
}

/// `qkv`, `offsets`, `tiles`: the forward's; `dy`: [T, H]; `statistics`: [T, 3 heads], scratch,
/// which only a GPU uses; `dqkv`: [T, 3H], overwritten.
pub(crate) struct Backward<'t> {
    pub(crate) qkv: &'t Tensor,
    pub(crate) offsets: &'t Tensor,
    pub(crate) tiles: &'t Tensor,
    pub(crate) dy: &'t Tensor,
    pub(crate) statistics: &'t mut Tensor,
    pub(crate) dqkv: &'t mut Tensor,
}

impl Attention {
    /// `width`: elements of a head.
    pub(crate) fn new(device: &Device, width: usize) -> Result<Self> {
        if let Device::Gpu(gpu) = device {
            let forward = 4 * (2 * QUERIES * width + 2 * KEYS * width + QUERIES * KEYS);
            let backward = 8 * (2 * SIDE * (width + 1) + SIDE * SIDE + SIDE * width);
            let scratch = forward.max(backward);
            if scratch > gpu.most_scratch() as usize {
                bail!(
                    Limits,
                    "{}: attention with heads of {width}: needs {scratch} bytes of \
                     workgroup memory, the adapter allows {}",
                    gpu.name(),
                    gpu.most_scratch()
                );
            }
        }
        let staged = 16 * 2 * STAGED * (width / 4 + 1);
        let quads = width.is_multiple_of(4)
            && width <= WIDEST
            && matches!(device, Device::Gpu(gpu) if staged <= gpu.most_scratch() as usize);
        let kernel = |entry| Kernel::new(&SHADER, entry, &[("WIDTH", width as f64)]);
        Ok(Self {
            forward: kernel(if quads { "forward_quads" } else { "forward" }),
            quads,
            backward_queries: kernel("backward_queries"),
            backward_keys: kernel("backward_keys"),
            width,
        })
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (tokens, hidden) = (f.qkv.rows(), f.y.columns());
        assert_eq!(
            hidden % self.width,
            0,
            "attention: {hidden} is not whole heads of {}",
            self.width
        );
        f.qkv.expect("attention", "qkv", tokens, 3 * hidden);
        f.y.expect("attention", "y", tokens, hidden);
        let scale = 1.0 / (self.width as f32).sqrt();
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.forward,
                [to_u32(f.tiles.rows()), to_u32(hidden / self.width), 1],
                &Dims {
                    hidden: to_u32(hidden),
                    scale,
                },
                &[
                    (if self.quads { "qkv4" } else { "qkv" }, f.qkv),
                    ("offsets", f.offsets),
                    ("tiles", f.tiles),
                    (if self.quads { "y4" } else { "y" }, f.y),
                ],
            ),
            Pass::Cpu(pass) => {
                let shape = cpu::HeadShape {
                    hidden,
                    width: self.width,
                    scale,
                };
                cpu::forward(pass, shape, f.qkv.f32(), f.offsets.u32(), f.y.f32_mut());
            }
        }
    }

    pub(crate) fn backward(&self, pass: &mut Pass<'_>, b: Backward<'_>) {
        let (tokens, hidden) = (b.qkv.rows(), b.dy.columns());
        assert_eq!(
            hidden % self.width,
            0,
            "attention: {hidden} is not whole heads of {}",
            self.width
        );
        let heads = hidden / self.width;
        b.qkv.expect("attention", "qkv", tokens, 3 * hidden);
        b.dy.expect("attention", "dy", tokens, hidden);
        b.statistics
            .expect("attention", "statistics", tokens, 3 * heads);
        b.dqkv.expect("attention", "dqkv", tokens, 3 * hidden);
        let scale = 1.0 / (self.width as f32).sqrt();
        match pass {
            Pass::Gpu(gpu) => {
                let grid = [
                    to_u32(b.tiles.rows()),
                    to_u32(heads),
                    to_u32(QUERIES / SIDE),
                ];
                let dims = Dims {
                    hidden: to_u32(hidden),
                    scale,
                };
                let tensors = [
                    ("qkv", b.qkv),
                    ("offsets", b.offsets),
                    ("tiles", b.tiles),
                    ("dy", b.dy),
                    ("statistics", &*b.statistics),
                    ("dqkv", &*b.dqkv),
                ];
                gpu.dispatch(&self.backward_queries, grid, &dims, &tensors);
                gpu.dispatch(&self.backward_keys, grid, &dims, &tensors);
            }
            Pass::Cpu(pass) => {
                let shape = cpu::HeadShape {
                    hidden,
                    width: self.width,
                    scale,
                };
                let (qkv, offsets, dy) = (b.qkv.f32(), b.offsets.u32(), b.dy.f32());
                cpu::backward(pass, shape, qkv, offsets, dy, b.dqkv.f32_mut());
            }
        }
    }
}
