//! Scalar functions and sums in forms that the compiler turns into vector code.
//!
//! `exp` and `erf` are branchless polynomials, the same as in `shaders/shared/math.wgsl`; sums run
//! in [`LANES`] partial sums whose order depends on the length alone.

/// Partial sums of a long sum: one AVX-512 register of f32.
pub(crate) const LANES: usize = 16;

/// `e^x`: relative error below 3e-7 for `x` in [-87, 88], clamped outside.
///
/// Cody-Waite reduction by ln 2 and a polynomial of degree 6 (Cephes `expf`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to the nearest integer, which stays in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    (p * r * r + r + 1.0) * power
}

/// `erf x`: absolute error below 5e-7.
///
/// `x P(x^2) / Q(x^2)` on [-3.92, 3.92], coefficients fitted to minimise the largest error; erf is
/// 1 in f32 beyond.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = x.clamp(-3.92, 3.92);
    let t = x * x;
    let mut p = 2.034_800_2e-6;
    p = p * t + 2.874_740_2e-4;
    p = p * t + 3.868_040_4e-3;
    p = p * t + 5.305_96e-2;
    p = p * t + 1.927_571_9e-1;
    p = p * t + std::f32::consts::FRAC_2_SQRT_PI;
    let mut q = 3.807_104e-5;
    q = q * t + 1.188_047_6e-3;
    q = q * t + 1.517_172_2e-2;
    q = q * t + 1.150_818e-1;
    q = q * t + 5.041_582_6e-1;
    q = q * t + 1.0;
    (x * p / q).clamp(-1.0, 1.0)
}

/// `x` times the share of a normal distribution below it: `x (1 + erf(x / sqrt 2)) / 2`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Sum of `f(x)` over `xs`.
#[inline(always)]
pub(crate) fn sum(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let blocks = xs.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += f(*x);
        }
    }
    if !rest.is_empty() {
        // As one more block, of which only the rest counts.
        let mut block = [0.0; LANES];
        block[..rest.len()].copy_from_slice(rest);
        for (i, (lane, x)) in lanes.iter_mut().zip(block).enumerate() {
            let more = *lane + f(x);
            *lane = if i < rest.len() { more } else { *lane };
        }
    }
    total(lanes)
}

/// Sum of the products of `a` and `b`, as long as the shorter.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let (blocks, others) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (rest, other) = (blocks.remainder(), others.remainder());
    for (block, other) in blocks.zip(others) {
        for ((lane, a), b) in lanes.iter_mut().zip(block).zip(other) {
            *lane += a * b;
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(rest).zip(other) {
        *lane += a * b;
    }
    total(lanes)
}

/// Halves the lanes until one is left.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Largest of `xs`; `f32::MIN` for none.
#[inline(always)]
pub(crate) fn max(xs: &[f32]) -> f32 {
    let mut lanes = [f32::MIN; LANES];
    let blocks = xs.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = if *x > *lane { *x } else { *lane };
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            let other = lanes[i + half];
            lanes[i] = if other > lanes[i] { other } else { lanes[i] };
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 1e-37 && exp(-1e30) >= 0.0);
    }

    #[test]
    fn erf_is_accurate() {
        // Reference: the Taylor series, whose terms stay below 1e16 here.
        let reference = |x: f64| {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        let mut worst = 0.0f64;
        for i in -4_000..=4_000 {
            let x = i as f32 / 1000.0;
            worst = worst.max((f64::from(erf(x)) - reference(f64::from(x))).abs());
        }
        assert!(worst < 5e-7, "{worst}");
        assert_eq!(erf(0.0), 0.0);
        assert_eq!((erf(50.0), erf(-50.0)), (1.0, -1.0));
    }

    #[test]
    fn sums_and_maxima_take_any_length() {
        for n in [0usize, 1, 15, 16, 17, 257] {
            let xs: Vec<f32> = (0..n).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
            assert_eq!(sum(&xs, |x| x), xs.iter().sum::<f32>());
            let products = xs.iter().zip(xs.iter().rev()).map(|(a, b)| a * b);
            let mut reversed = xs.clone();
            reversed.reverse();
            assert_eq!(dot(&xs, &reversed), products.sum::<f32>());
            assert_eq!(max(&xs), xs.iter().copied().fold(f32::MIN, f32::max));
        }
    }
}
