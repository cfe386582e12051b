//! Inverted dropout: x [T, F] -> y [T, F], and its gradient.
//!
//! An element's fate is a hash of its token's key, of the use's salt and of its column: the same on
//! every device, for any number of threads, in any batch.

use std::sync::Arc;

use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{Case, each};
use crate::ops::reference::{noise, wide};

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

/// The factor of every element, [T, F], for comparisons.
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

/// Forward, and backward onto ones, for each of `sizes` [T, F].
pub(crate) fn cases(device: &Device, sizes: &[(usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(Dropout::new());
    each(sizes, |(rows, columns)| {
        let keys: Vec<u32> = (0..to_u32(rows)).map(hash).collect();
        let values = noise(rows * columns, 2);
        Ok([
            forward_case(device, &op, &keys, (5, 0.25), &values)?,
            backward_case(device, &op, &keys, (5, 0.25), &values)?.of("backward"),
        ])
    })
}

fn forward_case(
    device: &Device,
    op: &Arc<Dropout>,
    keys: &[u32],
    (using, rate): (u32, f32),
    values: &[f32],
) -> Result<Case> {
    let columns = values.len() / keys.len();
    let key_list = device.upload_ids("keys", 1, keys)?;
    let x = device.upload("x", columns, values)?;
    let y = device.scratch("y", x.rows(), columns)?;
    let (op, n) = (Arc::clone(op), x.len() as f64);
    let run = move |pass: &mut Pass<'_>, [y]: &mut [Tensor; 1]| {
        let keys = &key_list;
        let mask = Mask { keys, using, rate };
        op.forward(pass, Forward { mask, x: &x, y });
    };
    let (keys, values) = (keys.to_vec(), wide(values));
    let case = Case::new("dropout", [y], run, move || {
        [masked_in_f64(&keys, (using, rate), &values)]
    });
    Ok(case.work(12.0 * n, 8.0 * n).within(1e-6))
}

fn backward_case(
    device: &Device,
    op: &Arc<Dropout>,
    keys: &[u32],
    (using, rate): (u32, f32),
    values: &[f32],
) -> Result<Case> {
    let columns = values.len() / keys.len();
    let key_list = device.upload_ids("keys", 1, keys)?;
    let dy = device.upload("dy", columns, values)?;
    let dx = device.upload("dx", columns, &vec![1.0; values.len()])?;
    let (op, n) = (Arc::clone(op), dy.len() as f64);
    let run = move |pass: &mut Pass<'_>, [dx]: &mut [Tensor; 1]| {
        let keys = &key_list;
        let mask = Mask { keys, using, rate };
        op.backward(pass, Backward { mask, dy: &dy, dx });
    };
    let (keys, values) = (keys.to_vec(), wide(values));
    let case = Case::new("dropout", [dx], run, move || {
        let masked = masked_in_f64(&keys, (using, rate), &values);
        [masked.iter().map(|v| 1.0 + v).collect()]
    });
    Ok(case.work(12.0 * n, 12.0 * n).within(1e-6))
}

/// x / (1 - rate) of the elements that are kept, 0 of the others.
fn masked_in_f64(keys: &[u32], (using, rate): (u32, f32), x: &[f64]) -> Vec<f64> {
    let factors = factors(keys, using, rate, x.len() / keys.len());
    let scaled = x.iter().map(|x| x / (1.0 - f64::from(rate)));
    let pairs = scaled.zip(factors);
    pairs
        .map(|(x, factor)| if factor == 0.0 { 0.0 } else { x })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, outputs};

    fn keys(count: usize, seed: u32) -> Vec<u32> {
        (0..to_u32(count)).map(|i| hash(hash(seed) ^ i)).collect()
    }

    fn kept(keys: &[u32], using: u32, rate: f32, columns: usize) -> Vec<bool> {
        let factors = factors(keys, using, rate, columns);
        factors.into_iter().map(|factor| factor != 0.0).collect()
    }

    #[test]
    fn devices_and_directions_share_one_mask() {
        check(|device| cases(device, &[(1, 1), (7, 63), (3, 257), (65, 384)]));
        let (keys, x) = (keys(7, 1), noise(7 * 63, 2));
        let all: Vec<[Vec<f32>; 1]> =
            outputs(|device| forward_case(device, &op(), &keys, (5, 0.25), &x));
        assert!(all.iter().all(|y| *y == all[0]), "the same bits everywhere");
    }

    fn op() -> Arc<Dropout> {
        Dropout::new().into()
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
        let keys = keys(7, 7);
        for [y] in outputs(|device| forward_case(device, &op(), &keys, (2, 0.0), &x)) {
            assert_eq!(y, x, "bit for bit");
        }
    }
}
