//! Inverted dropout: x [T, F] -> y [T, F], and its gradient.
//!
//! An element's fate is a hash of its token's key, of the use's salt and of its column: the same on
//! every device, for any number of threads, in any batch.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::{CpuPass, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::num::to_u32;

const SHADER: Shader = shader!("dropout");

/// Lanes of a workgroup.
const WG: usize = 64;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    columns: u32,
    salt: u32,
    threshold: u32,
    scale: f32,
}

pub(crate) struct Dropout {
    forward: Kernel,
    backward: Kernel,
}

/// How much is dropped, and where.
#[derive(Clone, Copy)]
pub(crate) struct Mask<'t> {
    /// [T, 1]: a key of each token.
    pub(crate) keys: &'t Tensor,
    /// Number of this use: a token's masks differ from one to the next.
    pub(crate) using: u32,
    /// Share of elements that is dropped; below 1.
    pub(crate) rate: f32,
}

/// `x`: [T, F]; `y`: [T, F], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) mask: Mask<'t>,
    pub(crate) x: &'t Tensor,
    pub(crate) y: &'t mut Tensor,
}

/// `dy`: [T, F]; `dx`: [T, F], its gradient is added.
pub(crate) struct Backward<'t> {
    pub(crate) mask: Mask<'t>,
    pub(crate) dy: &'t Tensor,
    pub(crate) dx: &'t mut Tensor,
}

impl Dims {
    fn new(using: u32, rate: f32, columns: usize) -> Self {
        assert!(
            (0.0..1.0).contains(&rate),
            "dropout: expected a rate of [0, 1), found {rate}"
        );
        #[expect(
            clippy::cast_possible_truncation,
            reason = "below 2^32, as the rate is below 1"
        )]
        let threshold = (f64::from(rate) * 4_294_967_296.0) as u32;
        Self {
            columns: to_u32(columns),
            salt: hash(using),
            threshold,
            scale: 1.0 / (1.0 - rate),
        }
    }

    /// The factors of the token with this key, column by column.
    #[inline(always)]
    fn factors(self, key: u32) -> impl Iterator<Item = f32> {
        let base = hash(key ^ self.salt);
        (0..self.columns).map(move |column| {
            match hash(base.wrapping_add(column)) < self.threshold {
                true => 0.0,
                false => self.scale,
            }
        })
    }
}

impl Dropout {
    pub(crate) fn new() -> Self {
        Self {
            forward: Kernel::new(&SHADER, "forward", &[]),
            backward: Kernel::new(&SHADER, "backward", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, Forward { mask, x, y }: Forward<'_>) {
        let (rows, columns) = (x.rows(), x.columns());
        mask.keys.expect("dropout", "keys", rows, 1);
        y.expect("dropout", "y", rows, columns);
        let dims = Dims::new(mask.using, mask.rate, columns);
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.forward,
                [groups(columns, WG), to_u32(rows), 1],
                &dims,
                &[("keys", mask.keys), ("x", x), ("y", y)],
            ),
            Pass::Cpu(cpu) => {
                let set = |y: &mut f32, x: &f32, factor: f32| *y = x * factor;
                masked(cpu, dims, mask.keys.u32(), x.f32(), y.f32_mut(), set);
            }
        }
    }

    pub(crate) fn backward(&self, pass: &mut Pass<'_>, Backward { mask, dy, dx }: Backward<'_>) {
        let (rows, columns) = (dy.rows(), dy.columns());
        mask.keys.expect("dropout", "keys", rows, 1);
        dx.expect("dropout", "dx", rows, columns);
        let dims = Dims::new(mask.using, mask.rate, columns);
        match pass {
            Pass::Gpu(gpu) => gpu.dispatch(
                &self.backward,
                [groups(columns, WG), to_u32(rows), 1],
                &dims,
                &[("keys", mask.keys), ("dy", dy), ("dx", dx)],
            ),
            Pass::Cpu(cpu) => {
                let add = |dx: &mut f32, dy: &f32, factor: f32| *dx += dy * factor;
                masked(cpu, dims, mask.keys.u32(), dy.f32(), dx.f32_mut(), add);
            }
        }
    }
}

/// `write(to, from, factor)` for every element, with the factor of the mask.
fn masked(
    pass: &CpuPass<'_>,
    dims: Dims,
    keys: &[u32],
    from: &[f32],
    to: &mut [f32],
    write: impl Fn(&mut f32, &f32, f32) + Sync + Send + Copy,
) {
    let cpu = pass.cpu;
    let columns = dims.columns as usize;
    cpu.rows(to, columns, columns * 8, |first, rows| {
        cpu.simd(
            #[inline(always)]
            || {
                for (i, to) in rows.chunks_exact_mut(columns).enumerate() {
                    let from = &from[(first + i) * columns..][..columns];
                    let factors = dims.factors(keys[first + i]);
                    for ((to, from), factor) in to.iter_mut().zip(from).zip(factors) {
                        write(to, from, factor);
                    }
                }
            },
        );
    });
}

/// PCG-RXS-M-XS, 32 bits (Jarzynski and Olano, "Hash Functions for GPU Rendering", 2020).
#[inline(always)]
fn hash(value: u32) -> u32 {
    let state = value.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
    (word >> 22) ^ word
}
