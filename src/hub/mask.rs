//! A set of models as bits.

/// The models that may answer: one bit for each id of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelMask {
    /// Bit `id % 32` of word `id / 32`.
    words: Vec<u32>,
}

impl ModelMask {
    /// No model of a hub of `models`.
    pub(crate) fn none(models: usize) -> Self {
        Self {
            words: vec![0; models.div_ceil(32)],
        }
    }

    /// Adds the model `id`, which the hub has.
    pub(crate) fn insert(&mut self, id: u32) {
        self.words[id as usize / 32] |= 1 << (id % 32);
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        let word = self.words.get(id as usize / 32);
        word.is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Models in the set.
    pub(crate) fn count(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// The bits as a device takes them.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }

    /// The ids, ascending.
    pub(crate) fn ids(&self) -> Vec<u32> {
        let models = crate::num::to_u32(self.words.len() * 32);
        (0..models).filter(|id| self.contains(*id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_holds_what_was_inserted() {
        let mut mask = ModelMask::none(70);
        assert_eq!((mask.words().len(), mask.count()), (3, 0));
        for id in [0, 31, 32, 69, 32] {
            mask.insert(id);
        }
        assert_eq!(mask.ids(), [0, 31, 32, 69]);
        assert_eq!(mask.count(), 4);
        assert!(mask.contains(69) && !mask.contains(68) && !mask.contains(1000));
    }
}
