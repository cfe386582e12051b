//! Lazy weight decay: the rows of E that a step of AdamW need not touch (carve.md section 10).
//!
//! A row without a gradient so far has moments of 0, so a step only decays it. Such a row is
//! *lazy*: the device keeps its old value, and one factor, the same for all lazy rows, collects the
//! decay. A row that gets its first gradient, or that is read, is multiplied by the factor once.
//! From its first gradient on it is *active*, and every step moves it.
//!
//! ```text
//! step            1        2        3        4
//! factor          k1       k1 k2    k1 k2 k3 ...
//! active row      AdamW    AdamW    AdamW    AdamW
//! lazy row        -        -        -        times k1 k2 k3, then AdamW: its first gradient
//! ```
//!
//! After n steps this differs from n products, each rounded, by at most (n + 2) 2^-24 of the value.

/// Which rows are active, and the decay that the others have not had yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LazyRows {
    /// Rows of E.
    models: usize,
    /// Active rows, ascending.
    active: Vec<u32>,
    /// The product of the decay factors of all steps so far.
    decay: f64,
}

impl LazyRows {
    /// All of `models` rows are lazy, before the first step.
    pub(crate) fn new(models: usize) -> Self {
        Self::restored(models, Vec::new(), 1.0)
    }

    /// As another run left them.
    pub(crate) fn restored(models: usize, active: Vec<u32>, decay: f64) -> Self {
        Self {
            models,
            active,
            decay,
        }
    }

    /// The active rows, ascending; `None` where all are.
    pub(crate) fn some_active(&self) -> Option<&[u32]> {
        (self.active.len() < self.models).then_some(&self.active[..])
    }

    /// The active rows, ascending.
    pub(crate) fn active(&self) -> &[u32] {
        &self.active
    }

    /// The product of the decay factors of all steps so far.
    pub(crate) fn decay(&self) -> f64 {
        self.decay
    }

    /// Makes the ascending `ids` active and returns those that were lazy. The caller multiplies
    /// them by [`LazyRows::pending`].
    pub(crate) fn activate(&mut self, ids: impl Iterator<Item = u32>) -> Vec<u32> {
        if self.some_active().is_none() {
            return Vec::new();
        }
        let new: Vec<u32> = ids
            .filter(|id| self.active.binary_search(id).is_err())
            .collect();
        self.active.extend(&new);
        // Two ascending runs: sorted in one walk.
        self.active.sort();
        new
    }

    /// Notes that a step multiplied the active rows by `keep`.
    pub(crate) fn step(&mut self, keep: f32) {
        self.decay *= f64::from(keep);
    }

    /// The factor by which row `id` on the device has yet to be multiplied.
    pub(crate) fn factor(&self, id: u32) -> f32 {
        match self.active.binary_search(&id) {
            Ok(_) => 1.0,
            Err(_) => self.pending(),
        }
    }

    /// The factor by which lazy rows have yet to be multiplied.
    #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
    pub(crate) fn pending(&self) -> f32 {
        self.decay as f32
    }

    /// Decays the lazy rows of `table` [M, D].
    pub(crate) fn apply(&self, table: &mut [f32]) {
        if self.some_active().is_none() || self.decay == 1.0 {
            return;
        }
        let factor = self.pending();
        let width = table.len() / self.models;
        let mut active = self.active.iter().peekable();
        for (id, row) in table.chunks_exact_mut(width).enumerate() {
            if active.next_if(|next| **next as usize == id).is_none() {
                row.iter_mut().for_each(|value| *value *= factor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_becomes_active_once_and_lazy_ones_are_decayed_when_read() {
        let mut rows = LazyRows::new(5);
        assert_eq!(rows.activate([1, 3].into_iter()), [1, 3]);
        rows.step(0.5);
        assert_eq!((rows.factor(3), rows.factor(0)), (1.0, 0.5));
        assert_eq!(rows.activate([0, 1, 3].into_iter()), [0]);
        rows.step(0.5);
        assert_eq!(rows.some_active(), Some(&[0, 1, 3][..]));
        let mut table = [1.0; 10];
        rows.apply(&mut table);
        assert_eq!(
            table,
            [1.0, 1.0, 1.0, 1.0, 0.25, 0.25, 1.0, 1.0, 0.25, 0.25]
        );
        assert_eq!(rows.activate(0..5), [2, 4]);
        assert_eq!(rows.some_active(), None);
        assert!(rows.activate(0..5).is_empty());
        let mut table = [1.0; 10];
        rows.apply(&mut table);
        assert_eq!(table, [1.0; 10]);
    }

    /// The bound of the module's head; n products in f32 reach a good part of it.
    #[test]
    fn one_product_is_near_many() {
        let keep = 0.999_995_f32;
        let (mut rows, steps) = (LazyRows::new(1), 2000);
        let mut many = 0.734_f32;
        for _ in 0..steps {
            rows.step(keep);
            many *= keep;
        }
        let mut one = [0.734_f32];
        rows.apply(&mut one);
        let error = f64::from((one[0] - many).abs()) / f64::from(many);
        assert!(error <= f64::from(steps + 2) * 2f64.powi(-24), "{error:e}");
        assert!(error > 0.0 && one[0] < 0.727);
    }
}
