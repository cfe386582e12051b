//! Bytes: activations of 8 bits with a scale and a zero point for each row and [`GROUP`] inputs,
//! weights of 8 bits with a scale for each output, exact sums in i32.
//!
//! A group's sum is below 2^24, so it is exact in f32 as well.
//!
//! [`GROUP`]: super::GROUP

use super::wide::{Block, Wide};
use super::{LowFormat, LowLine, Numbers};

/// Signed bytes of weights, unsigned ones of activations.
#[derive(Clone, Copy)]
pub(crate) struct Int8;

impl Numbers for Int8 {
    const FORMAT: LowFormat = LowFormat::Int8;
    const LINE: usize = 64;
    const HAS_SCALES: bool = true;
    type Sum = i32;

    /// byte = x / scale + zero, zero the byte of 0.
    #[inline(always)]
    fn round<'l, W: Wide>(
        w: W,
        values: &[Block],
        lines: impl Iterator<Item = &'l mut LowLine>,
    ) -> [f32; 2] {
        let (mut low, mut high) = (w.splat(0.0), w.splat(0.0));
        for value in values {
            low = w.min(w.load(value), low);
            high = w.max(w.load(value), high);
        }
        let (low, high) = (w.least(low), w.largest(high));
        let scale = ((high - low) / 255.0).max(1e-12);
        let steps = 1.0 / scale;
        // Not above 255: -low is at most high - low.
        let zero = (-low * steps).round_ties_even();
        let row = [scale, zero];
        let (steps, zero) = (w.splat(steps), w.splat(zero));
        for (line, values) in lines.zip(values.chunks(4)) {
            let mut four = [zero; 4];
            for (four, value) in four.iter_mut().zip(values) {
                *four = w.mul_add(w.load(value), steps, zero);
            }
            line.0 = w.bytes(four);
        }
        row
    }

    /// The nearest of 255 steps to each weight: the largest weight is 127.
    #[inline(always)]
    fn round_weights(row: &[f32], bytes: &mut [u8]) -> f32 {
        let mut lanes = [0.0f32; 16];
        for block in row.chunks_exact(16) {
            for (lane, weight) in lanes.iter_mut().zip(block) {
                *lane = if weight.abs() > *lane {
                    weight.abs()
                } else {
                    *lane
                };
            }
        }
        let scale = lanes.into_iter().fold(0.0, f32::max) / 127.0;
        let steps = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (byte, weight) in bytes.iter_mut().zip(row) {
            // 1.5 * 2^23 rounds to the nearest integer, which stays in the low bits.
            let bits = (weight * steps + 12_582_912.0).to_bits();
            *byte = bits.to_le_bytes()[0];
        }
        scale
    }

    /// s (sum - z c), added to what is before.
    #[inline(always)]
    fn add<W: Wide>(
        w: W,
        sums: &[[i32; 16]; 2],
        [scale, zero]: [f32; 2],
        columns: &[Block; 2],
        before: Option<&[Block; 2]>,
    ) -> [W::F; 2] {
        let (scale, zero) = (w.splat(scale), w.splat(zero));
        let mut totals = [scale; 2];
        for v in 0..2 {
            let exact = w.neg_mul_add(zero, w.load(&columns[v]), w.widen(&sums[v]));
            totals[v] = match before {
                None => w.mul(exact, scale),
                Some(before) => w.mul_add(exact, scale, w.load(&before[v])),
            };
        }
        totals
    }

    #[inline(always)]
    fn dot_four(sum: i32, x: [u8; 4], w: [u8; 4]) -> i32 {
        let products = x.into_iter().zip(w);
        sum + products
            .map(|(x, w)| i32::from(x) * i32::from(w.cast_signed()))
            .sum::<i32>()
    }

    fn exact_line(bytes: [u8; 64]) -> LowLine {
        LowLine(bytes)
    }
}
