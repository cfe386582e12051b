//! Random draws that depend only on (seed, stream, experience, step, row) (carve.md section 4.6).

use std::collections::HashMap;

use crate::num::mix;

/// The purpose of a draw; different streams are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Init = 1,
    Order = 2,
    Candidates = 3,
    Replay = 4,
    Dropout = 5,
    Mining = 6,
    #[cfg(feature = "cmrbench")]
    Bootstrap = 7,
}

/// A SplitMix64 generator.
pub(crate) struct Draws(u64);

/// A generator's state that depends on every one of `parts` and on their order.
pub(crate) fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |k, part| Draws(k ^ part).bits())
}

/// The initial state of [`Draws::new`].
pub(crate) fn stream_key(seed: u64, stream: Stream, parts: &[u64]) -> u64 {
    let mut all = vec![seed, stream as u64];
    all.extend(parts);
    key(&all)
}

impl Draws {
    /// `parts`: the experience, then step and row where they apply.
    pub(crate) fn new(seed: u64, stream: Stream, parts: &[u64]) -> Self {
        Self::of(stream_key(seed, stream, parts))
    }

    /// The draws of a [`stream_key`].
    pub(crate) fn of(key: u64) -> Self {
        Self(key)
    }

    /// The upper half of the next bits.
    pub(crate) fn word(&mut self) -> u32 {
        crate::num::to_u32((self.bits() >> 32) as usize)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "below n; 24 bits are exact in f32"
    )]
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// A number of [0, 1).
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// A number of [-bound, bound).
    pub(crate) fn within(&mut self, bound: f32) -> f32 {
        (2.0 * self.float() - 1.0) * bound
    }

    /// `count` different numbers below `n`, or all of them, in the order of their draw.
    ///
    /// A partial Fisher-Yates shuffle of 0..n that stores only moved elements: its cost does not
    /// depend on `n`.
    pub(crate) fn sample(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut moved = HashMap::new();
        (0..count.min(n))
            .map(|i| {
                let j = i + self.below(n - i);
                let here = moved.get(&i).copied().unwrap_or(i);
                moved.insert(j, here).unwrap_or(j)
            })
            .collect()
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in 0..items.len() {
            let j = i + self.below(items.len() - i);
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// carve.md V8
    #[test]
    fn draws_match_hand_values_v8() {
        let mut draws = Draws(0);
        for want in [
            0xe220_a839_7b1d_cdaf,
            0x6e78_9e6a_a1b9_65f4,
            0x06c4_5d18_8009_454f,
        ] {
            assert_eq!(draws.bits(), want);
        }
        let mut draws = Draws(42);
        for want in [0.741_564_9, 0.159_910_4, 0.278_601_1] {
            assert!((draws.float() - want).abs() < 1e-7);
        }
        assert_eq!(Draws(42).sample(10, 5), [7, 2, 4, 5, 1]);
        assert_eq!(key(&[42, 3, 1, 0, 7]), 0x1d0f_e50a_52c0_e88f);
        let mut draws = Draws::new(42, Stream::Candidates, &[1, 0, 7]);
        assert_eq!(draws.sample(10, 4), [1, 9, 3, 7]);
    }

    #[test]
    fn a_sample_is_the_beginning_of_a_shuffle() {
        for n in [1, 2, 7, 65] {
            for count in [0, 1, n / 2, n, n + 3] {
                let mut all: Vec<usize> = (0..n).collect();
                Draws(9).shuffle(&mut all);
                all.truncate(count);
                assert_eq!(Draws(9).sample(n, count), all);
            }
        }
        // No list of a billion is made.
        assert!(Draws(9).sample(1 << 40, 64).iter().all(|i| *i < 1 << 40));
    }

    #[test]
    fn bounds() {
        let mut draws = Draws(3);
        for n in [1, 2, 3, 1000] {
            assert!((0..100).all(|_| draws.below(n) < n));
        }
        let values: Vec<f32> = (0..1000).map(|_| draws.within(0.5)).collect();
        assert!(values.iter().all(|x| (-0.5..0.5).contains(x)));
        assert!(values.iter().sum::<f32>().abs() < 30.0);
    }
}
