//! Every op in f64, written to be read. Cases compare with these.

use crate::num::mix;
use crate::ops::LOWEST;
use crate::ops::pool::Pooling;

/// `values` widened.
pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// `n` values in [-1, 1), the same for the same seed (SplitMix64).
pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            (mix(state) >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// The largest `|got - want| / (1 + |want|)`; NaN and a missing element count as infinite.
pub(crate) fn worst(got: &[f32], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let errors = got
        .iter()
        .zip(want)
        .map(|(got, want)| (f64::from(*got) - want).abs() / (1.0 + want.abs()));
    errors.fold(0.0, |worst, error| {
        if error.is_nan() {
            f64::INFINITY
        } else {
            error.max(worst)
        }
    })
}

/// erf by its Taylor series near 0, where its terms do not cancel, else by [`erfc`].
pub(crate) fn erf(x: f64) -> f64 {
    if x.abs() >= 2.5 {
        return 1.0 - erfc(x);
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..300 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// 1 - erf; far from 0 by a continued fraction (Abramowitz and Stegun 7.1.14), whose relative error
/// stays small where 1 - erf would cancel.
pub(crate) fn erfc(x: f64) -> f64 {
    let size = x.abs();
    if size < 2.5 {
        return 1.0 - erf(x);
    }
    let fraction = (1..=80)
        .rev()
        .fold(size, |sum, n| size + f64::from(n) / 2.0 / sum);
    let small = (-size * size).exp() / std::f64::consts::PI.sqrt() / fraction;
    if x > 0.0 { small } else { 2.0 - small }
}

/// `words` [V, H], `places` [P, H] -> x [T, H]
pub(crate) fn embed(
    ids: &[u32],
    positions: &[u32],
    words: &[f64],
    places: &[f64],
    hidden: usize,
) -> Vec<f64> {
    let mut x = Vec::new();
    for (id, position) in ids.iter().zip(positions) {
        let word = &words[*id as usize * hidden..][..hidden];
        let place = &places[*position as usize * hidden..][..hidden];
        x.extend(word.iter().zip(place).map(|(word, place)| word + place));
    }
    x
}

/// `x` [T, H] -> y [T, H]
pub(crate) fn layer_norm(x: &[f64], gamma: &[f64], beta: &[f64], eps: f64) -> Vec<f64> {
    let hidden = gamma.len();
    let mut y = Vec::new();
    for row in x.chunks_exact(hidden) {
        let mean = row.iter().sum::<f64>() / hidden as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / hidden as f64;
        let scale = 1.0 / (variance + eps).sqrt();
        y.extend(
            row.iter()
                .zip(gamma)
                .zip(beta)
                .map(|((v, gamma), beta)| (v - mean) * scale * gamma + beta),
        );
    }
    y
}

/// `x`, `dy` [T, H] -> dx [T, H]
pub(crate) fn layer_norm_backward(x: &[f64], gamma: &[f64], eps: f64, dy: &[f64]) -> Vec<f64> {
    let hidden = gamma.len();
    let mean = |row: &[f64]| row.iter().sum::<f64>() / hidden as f64;
    let mut dx = Vec::new();
    for (row, dy) in x.chunks_exact(hidden).zip(dy.chunks_exact(hidden)) {
        let about: Vec<f64> = row.iter().map(|v| v - mean(row)).collect();
        let sigma = (dot(&about, &about) / hidden as f64 + eps).sqrt();
        let unit: Vec<f64> = about.iter().map(|v| v / sigma).collect();
        let a: Vec<f64> = dy.iter().zip(gamma).map(|(dy, gamma)| dy * gamma).collect();
        let along = dot(&a, &unit) / hidden as f64;
        dx.extend(
            a.iter()
                .zip(&unit)
                .map(|(v, unit)| (v - mean(&a) - unit * along) / sigma),
        );
    }
    dx
}

/// `x` [T, in], `w` [out, in], `bias` [out] -> y [T, out]
pub(crate) fn linear(x: &[f64], w: &[f64], bias: &[f64]) -> Vec<f64> {
    let inputs = w.len() / bias.len();
    let mut y = Vec::new();
    for row in x.chunks_exact(inputs) {
        y.extend(
            w.chunks_exact(inputs)
                .zip(bias)
                .map(|(w, bias)| dot(row, w) + bias),
        );
    }
    y
}

/// `a` [M, K] . `b` [K, N]
pub(crate) fn product(a: &[f64], b: &[f64], columns: usize) -> Vec<f64> {
    let inner = b.len() / columns;
    let mut y = Vec::new();
    for a in a.chunks_exact(inner) {
        for c in 0..columns {
            y.push(
                a.iter()
                    .enumerate()
                    .map(|(k, a)| a * b[k * columns + c])
                    .sum(),
            );
        }
    }
    y
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `qkv` [T, 3H] -> y [T, H]
pub(crate) fn attention(qkv: &[f64], offsets: &[u32], hidden: usize, width: usize) -> Vec<f64> {
    let row =
        |t: usize, part: usize, head: usize| &qkv[t * 3 * hidden + part * hidden + head..][..width];
    let mut y = vec![0.0; qkv.len() / 3];
    for pair in offsets.windows(2) {
        let tokens = pair[0] as usize..pair[1] as usize;
        for head in (0..hidden).step_by(width) {
            for i in tokens.clone() {
                let scores: Vec<f64> = tokens
                    .clone()
                    .map(|j| dot(row(i, 0, head), row(j, 1, head)) / (width as f64).sqrt())
                    .collect();
                let peak = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - peak).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (j, weight) in tokens.clone().zip(&weights) {
                    for (d, value) in row(j, 2, head).iter().enumerate() {
                        y[i * hidden + head + d] += weight / total * value;
                    }
                }
            }
        }
    }
    y
}

/// `qkv` [T, 3H], `dy` [T, H] -> dqkv [T, 3H]
pub(crate) fn attention_backward(
    qkv: &[f64],
    offsets: &[u32],
    hidden: usize,
    width: usize,
    dy: &[f64],
) -> Vec<f64> {
    let mut dqkv = vec![0.0; qkv.len()];
    for pair in offsets.windows(2) {
        let tokens = pair[0] as usize..pair[1] as usize;
        for head in (0..hidden).step_by(width) {
            let columns = |values: &[f64], stride: usize, first: usize| -> Vec<f64> {
                let rows = tokens
                    .clone()
                    .map(|t| &values[t * stride + first..][..width]);
                rows.flatten().copied().collect()
            };
            let part = |part: usize| columns(qkv, 3 * hidden, part * hidden + head);
            let gradients = head_backward(
                &part(0),
                &part(1),
                &part(2),
                &columns(dy, hidden, head),
                width,
            );
            for (part, gradient) in gradients.iter().enumerate() {
                for (t, row) in tokens.clone().zip(gradient.chunks_exact(width)) {
                    dqkv[t * 3 * hidden + part * hidden + head..][..width].copy_from_slice(row);
                }
            }
        }
    }
    dqkv
}

/// `q`, `dy` [n, w], `k`, `v` [m, w] -> dq, dk, dv of one head
pub(crate) fn head_backward(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    dy: &[f64],
    width: usize,
) -> [Vec<f64>; 3] {
    let scale = 1.0 / (width as f64).sqrt();
    let mut gradients = [vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]];
    let [dq, dk, dv] = &mut gradients;
    for (i, (q, dy)) in q
        .chunks_exact(width)
        .zip(dy.chunks_exact(width))
        .enumerate()
    {
        let scores: Vec<f64> = k.chunks_exact(width).map(|k| dot(q, k) * scale).collect();
        let peak = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - peak).exp()).collect();
        let total: f64 = weights.iter().sum();
        let p: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let dp: Vec<f64> = v.chunks_exact(width).map(|v| dot(dy, v)).collect();
        let mean = dot(&p, &dp);
        for (j, (p, dp)) in p.iter().zip(&dp).enumerate() {
            let ds = p * (dp - mean) * scale;
            for d in 0..width {
                dq[i * width + d] += ds * k[j * width + d];
                dk[j * width + d] += ds * q[d];
                dv[j * width + d] += p * dy[d];
            }
        }
    }
    gradients
}

pub(crate) fn gelu(x: &[f64]) -> Vec<f64> {
    x.iter()
        .map(|x| 0.5 * x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2))
        .collect()
}

/// `x`, `dy` [T, F] -> dx [T, F]
pub(crate) fn gelu_backward(x: &[f64], dy: &[f64]) -> Vec<f64> {
    let slope = |x: f64| {
        let below = 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        below + x * density
    };
    x.iter().zip(dy).map(|(x, dy)| dy * slope(*x)).collect()
}

/// `x` [T, H] -> h [B, H]
pub(crate) fn pool(pooling: Pooling, x: &[f64], offsets: &[u32], hidden: usize) -> Vec<f64> {
    let mut h = Vec::new();
    for pair in offsets.windows(2) {
        let (begin, end) = (pair[0] as usize, pair[1] as usize);
        let end = if pooling == Pooling::Cls {
            begin + 1
        } else {
            end
        };
        for c in 0..hidden {
            h.push((begin..end).map(|t| x[t * hidden + c]).sum::<f64>() / (end - begin) as f64);
        }
    }
    h
}

/// `dh` [B, H] -> dx [T, H]
pub(crate) fn pool_backward(
    pooling: Pooling,
    dh: &[f64],
    offsets: &[u32],
    hidden: usize,
) -> Vec<f64> {
    let mut dx = Vec::new();
    for (pair, dh) in offsets.windows(2).zip(dh.chunks_exact(hidden)) {
        let count = pair[1] - pair[0];
        for t in 0..count {
            let share = match pooling {
                Pooling::Mean => 1.0 / f64::from(count),
                Pooling::Cls if t == 0 => 1.0,
                Pooling::Cls => 0.0,
            };
            dx.extend(dh.iter().map(|dh| dh * share));
        }
    }
    dx
}

/// `z` [B, D] -> u [B, D]
pub(crate) fn normalize(z: &[f64], width: usize) -> Vec<f64> {
    let mut u = Vec::new();
    for row in z.chunks_exact(width) {
        let length = dot(row, row).sqrt().max(1e-12);
        u.extend(row.iter().map(|v| v / length));
    }
    u
}

/// `x`, `du` [B, D] -> dx [B, D]
pub(crate) fn normalize_backward(x: &[f64], width: usize, du: &[f64]) -> Vec<f64> {
    let mut dx = Vec::new();
    for (x, du) in x.chunks_exact(width).zip(du.chunks_exact(width)) {
        let (length, u) = (dot(x, x).sqrt(), normalize(x, width));
        let along = if length > 1e-12 { dot(&u, du) } else { 0.0 };
        let across = u.iter().zip(du).map(|(u, du)| du - along * u);
        dx.extend(across.map(|d| d / length.max(1e-12)));
    }
    dx
}

/// Offsets of [`score`] for `models`, every fifth of which may not be returned.
pub(crate) fn offsets(models: usize) -> Vec<f32> {
    let mut offsets = noise(models, 13);
    let fifths = offsets.iter_mut().skip(3).step_by(5);
    fifths.for_each(|offset| *offset = LOWEST);
    offsets
}

/// `rows` [B, D], `keys` [M, D] -> factor rows . keys [B, M]
pub(crate) fn score(rows: &[f64], keys: &[f64], width: usize, factor: f64) -> Vec<f64> {
    let rows = rows.chunks_exact(width);
    rows.flat_map(|row| keys.chunks_exact(width).map(|key| factor * dot(row, key)))
        .collect()
}

/// `s` [B, M] + `offsets` [M], the lowest score where that is the offset
pub(crate) fn offset(s: &[f64], offsets: &[f64]) -> Vec<f64> {
    let lowest = f64::from(LOWEST);
    let each = s.iter().zip(offsets.iter().cycle());
    each.map(|(s, offset)| if *offset > lowest { s + offset } else { lowest })
        .collect()
}

/// `s` [B, M] with the lowest score where `mask` [B, ceil(M / 32)] has no bit.
pub(crate) fn mask(s: &[f64], mask: &[u32], models: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for (s, mask) in s.chunks_exact(models).zip(mask.chunks(models.div_ceil(32))) {
        out.extend(s.iter().enumerate().map(|(m, s)| {
            if mask[m / 32] & (1 << (m % 32)) == 0 {
                f64::from(LOWEST)
            } else {
                *s
            }
        }));
    }
    out
}

/// `s` [B, M] + strength `domains` [B, N] of each model's domain
pub(crate) fn by_domain(
    s: &[f64],
    domains: &[f64],
    of: &[u32],
    count: usize,
    strength: f64,
) -> Vec<f64> {
    let mut out = Vec::new();
    for (s, domains) in s.chunks_exact(of.len()).zip(domains.chunks_exact(count)) {
        let scored = s.iter().zip(of);
        out.extend(scored.map(|(s, of)| {
            if *s > f64::from(LOWEST) {
                s + strength * domains[*of as usize]
            } else {
                *s
            }
        }));
    }
    out
}

/// `s` [B, M] -> out [B, N], the lowest score for a group without members
pub(crate) fn log_sum_exp(s: &[f64], models: usize, members: &[u32], offsets: &[u32]) -> Vec<f64> {
    let mut out = Vec::new();
    for s in s.chunks_exact(models) {
        for pair in offsets.windows(2) {
            let scores = || {
                members[pair[0] as usize..pair[1] as usize]
                    .iter()
                    .map(|id| s[*id as usize])
            };
            if pair[0] == pair[1] {
                out.push(LOWEST.into());
                continue;
            }
            let peak = scores().fold(f64::MIN, f64::max);
            out.push(peak + scores().map(|score| (score - peak).exp()).sum::<f64>().ln());
        }
    }
    out
}

/// Softmax of `scores` / T.
pub(crate) fn softmax(scores: &[f64], temperature: f64) -> Vec<f64> {
    let peak = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights = scores.iter().map(|s| ((s - peak) / temperature).exp());
    let total: f64 = weights.clone().sum();
    weights.map(|weight| weight / total).collect()
}

/// KL(a, b) of the softmax of `teacher` / T and that of `student` / T.
pub(crate) fn divergence(teacher: &[f64], student: &[f64], temperature: f64) -> f64 {
    let logs = |scores: &[f64]| -> Vec<f64> {
        let peak = scores.iter().copied().fold(f64::MIN, f64::max);
        let scores = scores.iter().map(|s| (s - peak) / temperature);
        let total = scores.clone().map(f64::exp).sum::<f64>().ln();
        scores.map(|s| s - total).collect()
    };
    let pairs = logs(teacher).into_iter().zip(logs(student));
    pairs.map(|(a, b)| a.exp() * (a - b)).sum()
}

/// `s` [B, M] -> ids and scores [B, k]
pub(crate) fn top_k(s: &[f32], models: usize, k: usize) -> (Vec<u32>, Vec<f32>) {
    let (mut ids, mut scores) = (Vec::new(), Vec::new());
    for s in s.chunks_exact(models) {
        let mut order: Vec<u32> = (0..crate::num::to_u32(models)).collect();
        order.sort_by(|a, b| s[*b as usize].total_cmp(&s[*a as usize]).then(a.cmp(b)));
        for id in &order[..k] {
            ids.push(*id);
            scores.push(s[*id as usize]);
        }
    }
    (ids, scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::finite_differences;

    /// `found` is the gradient of dy . y at `x`.
    fn is_derivative(found: &[f64], x: &[f64], dy: &[f64], y: impl Fn(&[f64]) -> Vec<f64>) {
        let want = finite_differences(x, |x| dot(&y(x), dy));
        assert_eq!(found.len(), want.len());
        for (found, want) in found.iter().zip(&want) {
            assert!(
                (found - want).abs() < 1e-7 * (1.0 + want.abs()),
                "{found}, not {want}"
            );
        }
    }

    #[test]
    fn gradients_are_those_of_the_values() {
        let of = |n: usize, seed| wide(&noise(n, seed));
        let (x, dy, gamma) = (of(3 * 65, 3), of(3 * 65, 6), of(65, 5));
        let dx = layer_norm_backward(&x, &gamma, 1e-5, &dy);
        is_derivative(&dx, &x, &dy, |x| layer_norm(x, &gamma, &[0.5; 65], 1e-5));
        let dx = normalize_backward(&x, 65, &dy);
        is_derivative(&dx, &x, &dy, |x| normalize(x, 65));
        let x: Vec<f64> = of(65, 8).iter().map(|x| 5.0 * x).collect();
        is_derivative(&gelu_backward(&x, &dy[..65]), &x, &dy[..65], gelu);
        let (x, w, dy) = (of(3 * 5, 1), of(7 * 5, 2), of(3 * 7, 3));
        is_derivative(&product(&dy, &w, 5), &x, &dy, |x| linear(x, &w, &[0.5; 7]));
    }

    #[test]
    fn gradients_of_ragged_prompts_are_those_of_the_values() {
        let offsets = [0, 7, 8, 17];
        let (qkv, dy) = (wide(&noise(17 * 30, 7)), wide(&noise(17 * 10, 14)));
        let dqkv = attention_backward(&qkv, &offsets, 10, 5, &dy);
        is_derivative(&dqkv, &qkv, &dy, |qkv| attention(qkv, &offsets, 10, 5));
        let dh = &dy[..30];
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let dx = pool_backward(pooling, dh, &offsets, 10);
            is_derivative(&dx, &dy, dh, |x| pool(pooling, x, &offsets, 10));
        }
    }

    /// Values of C's erfc.
    #[test]
    fn the_complement_of_erf_is_exact_on_both_sides_of_its_seam() {
        for (x, want) in [
            (0.5, 0.479_500_122_186_953_5),
            (2.499, 4.091_357_557_446_054e-4),
            (2.501, 4.047_791_705_813_09e-4),
            (-3.0, 1.999_977_909_503_001_5),
            (6.0, 2.151_973_671_249_891_6e-17),
        ] {
            let found = erfc(x);
            assert!(
                (found - want).abs() < 1e-9 * want,
                "{x}: {found:e}, not {want:e}"
            );
        }
    }
}
