//! The rows of E that a step of AdamW has to look at (carve.md section 10: all, touched or not).
//!
//! A row that had no gradient in this experience has moments of 0, so that weight decay is all that
//! a step does to it. It sleeps, and what its decay comes to is made up for in one product when it
//! wakes or is read. After n steps that differs from n products, each rounded, by (n + 2) 2^-24 of
//! the value at most.

/// Which rows are awake, and what the others are behind by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Awake {
    /// Rows of E.
    models: usize,
    /// Those awake, ascending.
    ids: Vec<u32>,
    /// The product of all steps' factors so far.
    decayed: f64,
}

impl Awake {
    /// All of `models` rows asleep, before the first step.
    pub(crate) fn new(models: usize) -> Self {
        Self::restored(models, Vec::new(), 1.0)
    }

    /// As another run left it.
    pub(crate) fn restored(models: usize, ids: Vec<u32>, decayed: f64) -> Self {
        Self {
            models,
            ids,
            decayed,
        }
    }

    /// Those awake, ascending; none: all.
    pub(crate) fn some(&self) -> Option<&[u32]> {
        (self.ids.len() < self.models).then_some(&self.ids[..])
    }

    /// Those awake, ascending.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The product of all steps' factors.
    pub(crate) fn decayed(&self) -> f64 {
        self.decayed
    }

    /// Wakes `ids`; those that slept. Their values are to be multiplied by [`Awake::factor`].
    pub(crate) fn wake(&mut self, ids: impl Iterator<Item = u32>) -> Vec<u32> {
        if self.some().is_none() {
            return Vec::new();
        }
        let new: Vec<u32> = ids
            .filter(|id| self.ids.binary_search(id).is_err())
            .collect();
        self.ids.extend(&new);
        // Two ascending runs: sorted in one walk.
        self.ids.sort();
        new
    }

    /// A step multiplied those awake by `keep`.
    pub(crate) fn step(&mut self, keep: f32) {
        self.decayed *= f64::from(keep);
    }

    /// What row `id` is behind by.
    pub(crate) fn factor(&self, id: u32) -> f32 {
        match self.ids.binary_search(&id) {
            Ok(_) => 1.0,
            Err(_) => self.sleepers(),
        }
    }

    /// What sleeping rows are behind by.
    #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
    pub(crate) fn sleepers(&self) -> f32 {
        self.decayed as f32
    }

    /// Brings `table` [M, D] up to now.
    pub(crate) fn catch_up(&self, table: &mut [f32]) {
        if self.some().is_none() || self.decayed == 1.0 {
            return;
        }
        let factor = self.sleepers();
        let width = table.len() / self.models;
        let mut awake = self.ids.iter().peekable();
        for (id, row) in table.chunks_exact_mut(width).enumerate() {
            if awake.next_if(|next| **next as usize == id).is_none() {
                row.iter_mut().for_each(|value| *value *= factor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_wake_once_and_sleepers_catch_up() {
        let mut awake = Awake::new(5);
        assert_eq!(awake.wake([1, 3].into_iter()), [1, 3]);
        awake.step(0.5);
        assert_eq!((awake.factor(3), awake.factor(0)), (1.0, 0.5));
        assert_eq!(awake.wake([0, 1, 3].into_iter()), [0]);
        awake.step(0.5);
        assert_eq!(awake.some(), Some(&[0, 1, 3][..]));
        let mut table = [1.0; 10];
        awake.catch_up(&mut table);
        assert_eq!(
            table,
            [1.0, 1.0, 1.0, 1.0, 0.25, 0.25, 1.0, 1.0, 0.25, 0.25]
        );
        assert_eq!(awake.wake(0..5), [2, 4]);
        assert_eq!(awake.some(), None);
        assert!(awake.wake(0..5).is_empty());
        let mut table = [1.0; 10];
        awake.catch_up(&mut table);
        assert_eq!(table, [1.0; 10]);
    }

    /// The bound of the module's head; n products in f32 reach a good part of it.
    #[test]
    fn one_product_is_near_many() {
        let keep = 0.999_995_f32;
        let (mut awake, steps) = (Awake::new(1), 2000);
        let mut many = 0.734_f32;
        for _ in 0..steps {
            awake.step(keep);
            many *= keep;
        }
        let mut one = [0.734_f32];
        awake.catch_up(&mut one);
        let error = f64::from((one[0] - many).abs()) / f64::from(many);
        assert!(error <= f64::from(steps + 2) * 2f64.powi(-24), "{error:e}");
        assert!(error > 0.0 && one[0] < 0.727);
    }
}
