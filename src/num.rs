//! Conversions between number types, products of vectors, and a mixer of bits.

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

/// The product of two vectors, summed in f64 in eight strands: the order of additions depends only
/// on the length.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut strands = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for (strand, (a, b)) in strands.iter_mut().zip(a.iter().zip(b)) {
            *strand += f64::from(*a) * f64::from(*b);
        }
    }
    strands.iter().sum()
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
