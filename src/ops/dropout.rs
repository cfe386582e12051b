//! Inverted dropout: x [T, F] -> y [T, F], and its gradient.
//!
//! An element's fate is a hash of its token's key, of the use's salt and of its column: the same on
//! every device, for any number of threads, in any batch.

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

    /// What elements of the token with this key are multiplied by, column by column.
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

/// What every element is multiplied by, [T, F], for who compares with it.
pub(crate) fn factors(keys: &[u32], using: u32, rate: f32, columns: usize) -> Vec<f32> {
    let dims = Dims::new(using, rate, columns);
    keys.iter().flat_map(|key| dims.factors(*key)).collect()
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::device::Device;
    use crate::ops::testing::{assert_close, devices, noise, run};

    /// Forward, and backward onto ones, on every device.
    fn both(keys: &[u32], using: u32, rate: f32, x: &[f32]) -> Vec<[Vec<f32>; 2]> {
        let columns = x.len() / keys.len();
        let each = |device: &Device| {
            let op = Dropout::new();
            let keys = device.upload_ids("keys", 1, keys).unwrap();
            let x = device.upload("x", columns, x).unwrap();
            let mut y = device.scratch("y", x.rows(), columns).unwrap();
            let ones = vec![1.0; x.len()];
            let mut dx = device.upload("dx", columns, &ones).unwrap();
            let mask = Mask {
                keys: &keys,
                using,
                rate,
            };
            let (reads, outcome) = run(device, |pass| {
                let (dy, y, dx) = (&x, &mut y, &mut dx);
                op.forward(pass, Forward { mask, x: &x, y });
                op.backward(pass, Backward { mask, dy, dx });
                [pass.read(y), pass.read(dx)]
            });
            reads.map(|read| outcome.f32(read).to_vec())
        };
        devices().iter().map(each).collect()
    }

    fn keys(count: usize, seed: u32) -> Vec<u32> {
        (0..to_u32(count)).map(|i| hash(hash(seed) ^ i)).collect()
    }

    fn kept(keys: &[u32], using: u32, rate: f32, columns: usize) -> Vec<bool> {
        let factors = factors(keys, using, rate, columns);
        factors.into_iter().map(|factor| factor != 0.0).collect()
    }

    #[test]
    fn devices_and_directions_share_one_mask() {
        for (rows, columns) in [(1, 1), (7, 63), (3, 257), (65, 384)] {
            let (keys, x) = (keys(rows, 1), noise(rows * columns, 2));
            let found = both(&keys, 5, 0.25, &x);
            let want: Vec<f64> = kept(&keys, 5, 0.25, columns)
                .iter()
                .zip(&x)
                .map(|(kept, x)| if *kept { f64::from(*x) / 0.75 } else { 0.0 })
                .collect();
            for [y, dx] in &found {
                assert_eq!(*y, found[0][0], "the same bits everywhere");
                assert_close("dropout", y, &want, 1e-6);
                let added: Vec<f64> = want.iter().map(|d| 1.0 + d).collect();
                assert_close("dropout backward", dx, &added, 1e-6);
            }
        }
    }

    #[test]
    fn the_share_and_the_mean_are_right_in_rows_and_columns() {
        let (rows, columns) = (400, 300);
        for rate in [0.05, 0.5, 0.9] {
            let mask = kept(&keys(rows, 3), 0, rate, columns);
            let share = |kept: usize, of: usize| {
                let found = kept as f64 / of as f64;
                let expected = 1.0 - f64::from(rate);
                // Five standard deviations.
                let bound = 5.0 * (expected * f64::from(rate) / of as f64).sqrt();
                assert!((found - expected).abs() < bound, "{found}, not {expected}");
            };
            share(mask.iter().filter(|kept| **kept).count(), rows * columns);
            for row in mask.chunks(columns) {
                share(row.iter().filter(|kept| **kept).count(), columns);
            }
            for c in 0..columns {
                share((0..rows).filter(|r| mask[r * columns + c]).count(), rows);
            }
        }
    }

    /// Two masks that have nothing to do with each other agree where both keep or both drop: half
    /// of the elements at a rate of a half.
    #[test]
    fn other_keys_uses_and_columns_have_other_masks() {
        let (one, n) = (keys(1, 4), 10_000);
        let mask = kept(&one, 0, 0.5, n);
        let shifted: Vec<bool> = mask[1..].iter().chain(&mask[..1]).copied().collect();
        for other in [
            kept(&keys(1, 5), 0, 0.5, n),
            kept(&[one[0] + 1], 0, 0.5, n),
            kept(&one, 1, 0.5, n),
            shifted,
        ] {
            let agree = mask.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((4750..5250).contains(&agree), "{agree} of {n} agree");
        }
        assert_eq!(kept(&one, 0, 0.5, n), mask);
    }

    #[test]
    fn nothing_is_dropped_at_zero() {
        let x = noise(7 * 65, 6);
        for [y, _] in both(&keys(7, 7), 2, 0.0, &x) {
            assert_eq!(y, x, "bit for bit");
        }
    }
}
