//! SplitMix64: the same draws for the same seed, boundary and case on every machine.

#[derive(Clone)]
pub struct Draws(u64);

impl Draws {
    /// The draws of case `number` of the boundary `name`.
    pub fn new(seed: u64, name: &str, number: u64) -> Self {
        let mut draws = Self(seed);
        for word in name.bytes().map(u64::from).chain([number]) {
            draws.0 ^= word;
            draws.next();
        }
        draws
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `end`; 0 where `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap()
    }

    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
