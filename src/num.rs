//! Conversions between number types.

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
