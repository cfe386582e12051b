//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Backward, Dims, Dropout, Forward, Mask, hash};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{Case, each};
use crate::ops::reference::{noise, wide};

/// Forward, and backward onto ones, for each of `sizes` [T, F].
pub(crate) fn all(device: &Device, sizes: &[(usize, usize)]) -> Result<Vec<Case>> {
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

/// The factor of every element, [T, F], for comparisons.
fn factors(keys: &[u32], using: u32, rate: f32, columns: usize) -> Vec<f32> {
    let dims = Dims::new(using, rate, columns);
    keys.iter().flat_map(|key| dims.factors(*key)).collect()
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
        check(|device| all(device, &[(1, 1), (7, 63), (3, 257), (65, 384)]));
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
