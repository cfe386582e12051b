//! Attention of one head over one prompt: lanes are queries, so that no sum runs across lanes.

use super::wide::{Block, Wide};

/// HeadRoom for one head; kept from one use to the next.
#[derive(Default)]
pub(crate) struct HeadRoom {
    /// Sixteen queries, turned: [element of a head].
    queries: Vec<Block>,
    /// Of sixteen queries: [key].
    scores: Vec<Block>,
}

/// Of rows of `stride` sixteens: `width` of them are the query, as many the key and then the value.
/// The result has a row of `width` sixteens every `y_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) stride: usize,
    pub(crate) width: usize,
    pub(crate) y_stride: usize,
}

/// softmax(Q K^T) V, the softmax with base 2; `y`: the first row is the first query's.
#[inline(always)]
pub(crate) fn attend<W: Wide>(
    w: W,
    rows: &[Block],
    shape: Shape,
    room: &mut HeadRoom,
    y: &mut [Block],
) {
    let Shape {
        stride,
        width,
        y_stride,
    } = shape;
    let n = rows.len() / stride;
    room.queries.resize(width * 16, [0.0; 16]);
    room.scores.resize(n.max(room.scores.len()), [0.0; 16]);
    let (queries, scores) = (&mut room.queries[..], &mut room.scores[..n]);
    for first in (0..n).step_by(16) {
        let count = (n - first).min(16);
        for part in 0..width {
            let block = std::array::from_fn(
                #[inline(always)]
                |i| match i < count {
                    true => w.load(&rows[(first + i) * stride + part]),
                    false => w.splat(0.0),
                },
            );
            let turned = &mut queries[part * 16..][..16];
            for (turned, block) in turned.iter_mut().zip(w.transpose(block)) {
                *turned = w.store(block);
            }
        }
        let mut peak = w.splat(f32::MIN);
        let mut key = 0;
        while key < n {
            let keys = &rows[key * stride + width..];
            let scores = &mut scores[key..];
            key += if W::ROOM >= 12 && n - key >= 6 {
                peak = score::<W, 6>(w, queries, keys, stride, scores, peak);
                6
            } else if n - key >= 2 {
                peak = score::<W, 2>(w, queries, keys, stride, scores, peak);
                2
            } else {
                peak = score::<W, 1>(w, queries, keys, stride, scores, peak);
                1
            };
        }
        let mut total = w.splat(0.0);
        for score in scores.iter_mut() {
            let weight = w.exp2(w.sub(w.load(score), peak));
            total = w.add(total, weight);
            *score = w.store(weight);
        }
        let shares = w.store(w.div(w.splat(1.0), total));
        let mut query = 0;
        while query < count {
            let y = &mut y[(first + query) * y_stride..];
            let values = &rows[2 * width..];
            let left = count - query;
            let shape = Shape {
                stride,
                width,
                y_stride,
            };
            query += if W::ROOM >= 12 && left >= 6 {
                mix::<W, 6>(w, scores, query, &shares, values, shape, y);
                6
            } else if left >= 2 {
                mix::<W, 2>(w, scores, query, &shares, values, shape, y);
                2
            } else {
                mix::<W, 1>(w, scores, query, &shares, values, shape, y);
                1
            };
        }
    }
}

/// The scores of `N` keys, and the largest with `peak`.
#[inline(always)]
fn score<W: Wide, const N: usize>(
    w: W,
    queries: &[Block],
    keys: &[Block],
    stride: usize,
    scores: &mut [Block],
    mut peak: W::F,
) -> W::F {
    // The two halves of each sixteen apart: two chains, each half as long.
    let mut sums = [[w.splat(0.0); 2]; N];
    for (part, queries) in queries.chunks_exact(16).enumerate() {
        for i in 0..8 {
            let (a, b) = (w.load(&queries[i]), w.load(&queries[8 + i]));
            for n in 0..N {
                let key = &keys[n * stride + part];
                sums[n][0] = w.mul_add(a, w.splat(key[i]), sums[n][0]);
                sums[n][1] = w.mul_add(b, w.splat(key[8 + i]), sums[n][1]);
            }
        }
    }
    for (score, [a, b]) in scores.iter_mut().zip(sums) {
        let sum = w.add(a, b);
        peak = w.max(sum, peak);
        *score = w.store(sum);
    }
    peak
}

/// The weighted values of `N` queries.
#[inline(always)]
fn mix<W: Wide, const N: usize>(
    w: W,
    weights: &[Block],
    query: usize,
    shares: &Block,
    values: &[Block],
    shape: Shape,
    y: &mut [Block],
) {
    let mut part = 0;
    while part < shape.width {
        let pair = part + 1 < shape.width;
        let mut sums = [[w.splat(0.0); 2]; N];
        for (key, weights) in weights.iter().enumerate() {
            let value = &values[key * shape.stride + part..];
            let a = w.load(&value[0]);
            let b = if pair { w.load(&value[1]) } else { a };
            for n in 0..N {
                let weight = w.splat(weights[query + n]);
                sums[n][0] = w.mul_add(weight, a, sums[n][0]);
                sums[n][1] = w.mul_add(weight, b, sums[n][1]);
            }
        }
        for (n, [a, b]) in sums.into_iter().enumerate() {
            let share = w.splat(shares[query + n]);
            let y = &mut y[n * shape.y_stride + part..];
            y[0] = w.store(w.mul(a, share));
            if pair {
                y[1] = w.store(w.mul(b, share));
            }
        }
        part += 2;
    }
}
