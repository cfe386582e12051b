//! Conversions between number types, products of vectors, and a mixer of bits.

use std::iter::Sum;
use std::ops::AddAssign;

/// `n` as a `u32`: for sizes that were checked where they came in.
///
/// # Panics
/// Above `u32::MAX`: a bug, since sizes from outside are checked where they enter.
pub(crate) fn to_u32(n: usize) -> u32 {
    match u32::try_from(n) {
        Ok(n) => n,
        Err(_) => panic!("size {n} does not fit 32 bits"),
    }
}

/// `x` rounded to the nearest `f32`.
#[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
pub(crate) fn to_f32(x: f64) -> f32 {
    x as f32
}

/// The product of two vectors, summed in f64.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    strands(a, b, |a, b| f64::from(a) * f64::from(b))
}

/// |a - b|^2
pub(crate) fn square(a: &[f32], b: &[f32]) -> f32 {
    strands(a, b, |a, b| (a - b) * (a - b))
}

/// The sum of `f` over two vectors, as long as the shorter, in eight strands: the order of additions
/// depends on the length alone.
#[inline(always)]
fn strands<T: Copy + Default + AddAssign + Sum>(
    a: &[f32],
    b: &[f32],
    f: impl Fn(f32, f32) -> T,
) -> T {
    const STRANDS: usize = 8;
    let length = a.len().min(b.len());
    let (whole, rest) = a[..length].as_chunks::<STRANDS>();
    let (others, other_rest) = b[..length].as_chunks::<STRANDS>();
    let mut sums = [T::default(); STRANDS];
    let mut add = |a: &[f32], b: &[f32]| {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f(*a, *b);
        }
    };
    whole.iter().zip(others).for_each(|(a, b)| add(a, b));
    add(rest, other_rest);
    sums.into_iter().sum()
}

/// The cosine of two vectors; NaN if one has no direction.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The finisher of splitmix64 (Steele et al., 2014).
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_and_distances_by_hand() {
        let a: Vec<f32> = (0..11u8).map(f32::from).collect();
        let b = vec![1.0; 11];
        assert_eq!(dot(&a, &b), 55.0);
        // 1 and the squares from 0 to 9.
        assert_eq!(square(&a, &b), 1.0 + 285.0);
        // As long as the shorter, whichever that is.
        assert_eq!((dot(&a[..9], &b), dot(&a, &b[..9])), (36.0, 36.0));
        assert_eq!((square(&a[..3], &b), square(&a, &b[..3])), (2.0, 2.0));
    }
}
