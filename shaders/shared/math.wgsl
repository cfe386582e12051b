
// math: erf as a polynomial, the same as in src/device/cpu/math.rs; absolute error below 5e-7
//
//   below    Phi(x), the normal distribution's share below x

fn erf(value: f32) -> f32 {
    let x = clamp(value, -3.92, 3.92);
    let t = x * x;
    var p = 2.0348002e-6;
    p = p * t + 2.8747402e-4;
    p = p * t + 3.8680404e-3;
    p = p * t + 5.30596e-2;
    p = p * t + 1.9275719e-1;
    p = p * t + 1.1283792;
    var q = 3.807104e-5;
    q = q * t + 1.1880476e-3;
    q = q * t + 1.5171722e-2;
    q = q * t + 1.150818e-1;
    q = q * t + 5.0415826e-1;
    q = q * t + 1.0;
    return clamp(x * p / q, -1.0, 1.0);
}

fn below(value: f32) -> f32 { return 0.5 * (1.0 + erf(value * 0.70710678)); }
