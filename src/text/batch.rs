//! A packed batch: the tokens of all prompts one after the other, without padding.

use crate::num::to_u32;

/// Ids and positions of T tokens, and where each of B prompts begins.
#[derive(Default)]
pub(crate) struct PackedBatch {
    pub(crate) ids: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    /// [B + 1], from 0 to T.
    pub(crate) offsets: Vec<u32>,
}

impl PackedBatch {
    /// Packs `prompts`, each of at least one token; positions count from `first_position`.
    pub(crate) fn new<'p>(prompts: impl Iterator<Item = &'p [u32]>, first_position: usize) -> Self {
        let mut batch = Self {
            offsets: vec![0],
            ..Self::default()
        };
        for prompt in prompts {
            assert!(!prompt.is_empty(), "a prompt without tokens was packed");
            batch.ids.extend_from_slice(prompt);
            batch
                .positions
                .extend((first_position..first_position + prompt.len()).map(to_u32));
            batch.offsets.push(to_u32(batch.ids.len()));
        }
        batch
    }

    pub(crate) fn tokens(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn prompts(&self) -> usize {
        self.offsets.len() - 1
    }
}
