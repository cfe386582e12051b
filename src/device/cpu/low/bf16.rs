//! bf16, the upper half of f32: 8 bits of exponent and 7 of fraction. Products are exact in f32,
//! and sums are f32.
//!
//! Activations and weights are rounded to the nearest, ties to even, and have no scales. The order
//! of a sum is the instruction's, so that bits differ between kernels. Of one kernel they are the
//! same whatever the tile, the thread or the number of rows.

use super::wide::{Block, Wide};
use super::{LowFormat, LowLine, Numbers};

/// bf16 of weights and activations.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

impl Numbers for Bf16 {
    const FORMAT: LowFormat = LowFormat::Bf16;
    const LINE: usize = 32;
    const HAS_SCALES: bool = false;
    type Sum = f32;

    #[inline(always)]
    fn round<'l, W: Wide>(
        w: W,
        values: &[Block],
        lines: impl Iterator<Item = &'l mut LowLine>,
    ) -> [f32; 2] {
        for (line, values) in lines.zip(values.chunks(2)) {
            let mut pair = [w.splat(0.0); 2];
            for (own, value) in pair.iter_mut().zip(values) {
                *own = w.load(value);
            }
            line.0 = w.halves(pair);
        }
        [1.0, 0.0]
    }

    #[inline(always)]
    fn round_weights(row: &[f32], bytes: &mut [u8]) -> f32 {
        for (bytes, weight) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(row) {
            *bytes = upper_half(*weight).to_le_bytes();
        }
        1.0
    }

    /// The sum, added to what is before.
    #[inline(always)]
    fn add<W: Wide>(
        w: W,
        sums: &[[f32; 16]; 2],
        _: [f32; 2],
        _: &[Block; 2],
        before: Option<&[Block; 2]>,
    ) -> [W::F; 2] {
        let mut totals = [w.load(&sums[0]), w.load(&sums[1])];
        if let Some(before) = before {
            for v in 0..2 {
                totals[v] = w.add(totals[v], w.load(&before[v]));
            }
        }
        totals
    }

    /// The second product first, as AVX-512 BF16 has it.
    #[inline(always)]
    fn dot_four(sum: f32, x: [u8; 4], w: [u8; 4]) -> f32 {
        let [x, w] = [x, w].map(f32s);
        x[0].mul_add(w[0], x[1].mul_add(w[1], sum))
    }

    /// Multiples of 1/16 from -8 to below 8.
    fn exact_line(bytes: [u8; 64]) -> LowLine {
        let mut line = LowLine([0; 64]);
        for (two, byte) in line.0.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
            *two = upper_half(f32::from(byte.cast_signed()) / 16.0).to_le_bytes();
        }
        line
    }
}

/// The nearest bf16 to `x`, ties to even.
#[inline(always)]
pub(super) fn upper_half(x: f32) -> u16 {
    let bits = x.to_bits();
    // Half of what is dropped, and 1 less where the last bit that is kept is even. A NaN that
    // comes of arithmetic has no low bits and stays one.
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (rounded >> 16) as u16
}

/// The two bf16 of four bytes.
#[inline(always)]
pub(super) fn f32s([a, b, c, d]: [u8; 4]) -> [f32; 2] {
    [[a, b], [c, d]].map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounding in f64, where every step is exact: to a multiple of 2^-7 of the power of two below.
    fn nearest(x: f32) -> f64 {
        let x = f64::from(x);
        let step = x.abs().log2().floor().exp2() / 128.0;
        (x / step).round_ties_even() * step
    }

    #[test]
    fn halves_are_the_nearest_ties_to_even() {
        for (x, want) in [
            (0.0f32, 0x0000u16),
            (-0.0, 0x8000),
            (1.0, 0x3f80),
            // Ties: 1 + 2^-8 down to even, 1 + 3 2^-8 up to even.
            (1.0 + 1.0 / 256.0, 0x3f80),
            (1.0 + 3.0 / 256.0, 0x3f82),
            (1.003_906_4, 0x3f81),
            (-1.0 - 3.0 / 256.0, 0xbf82),
            (f32::INFINITY, 0x7f80),
            (f32::MAX, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
        ] {
            assert_eq!(upper_half(x), want, "{x}");
        }
        for x in super::super::tests::noise(4000, 11) {
            let [half, _] = f32s(
                [upper_half(x).to_le_bytes(), [0; 2]]
                    .concat()
                    .try_into()
                    .expect("4"),
            );
            assert!(x == 0.0 || f64::from(half) == nearest(x), "{x}: {half}");
        }
        let nan = f32::INFINITY - f32::INFINITY;
        let bits = u32::from(upper_half(std::hint::black_box(nan))) << 16;
        assert!(f32::from_bits(bits).is_nan());
    }
}
