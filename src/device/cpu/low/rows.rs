//! Activations as the kernels read them: tiles of rows, each [block of inputs][row] lines; in int8
//! with a scale and a zero point for each row and group of inputs.

use std::ops::Range;

use super::wide::{Block, Wide};
use super::{GROUP, LowLine, Numbers};

/// Rows of lines; room is kept from one use to the next.
#[derive(Default)]
pub(crate) struct Rows {
    lines: Vec<LowLine>,
    /// (scale, zero point): [row][group]; empty for numbers without.
    scales: Vec<[f32; 2]>,
    rows: usize,
    blocks: usize,
    groups: usize,
    /// Lines of a row that a group takes; the last may have fewer.
    group_lines: usize,
    /// Rows of a tile; the last may have fewer.
    height: usize,
}

impl Rows {
    /// Makes room for `rows` of `blocks` of inputs in the numbers of `W`, in tiles of at most
    /// `W::TALL` rows that are all about as tall.
    pub(crate) fn reset<W: Wide>(&mut self, rows: usize, blocks: usize) {
        let group_lines = W::Numbers::GROUP_LINES;
        *self = Self {
            lines: std::mem::take(&mut self.lines),
            scales: std::mem::take(&mut self.scales),
            rows,
            blocks,
            groups: blocks.div_ceil(group_lines),
            group_lines,
            height: rows.div_ceil(rows.div_ceil(W::TALL).max(1)).max(1),
        };
        self.lines.resize(rows * blocks, LowLine([0; 64]));
        let scales = if W::Numbers::HAS_SCALES {
            rows * self.groups
        } else {
            0
        };
        self.scales.resize(scales, [1.0, 0.0]);
    }

    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// The first row of a tile, the number of its rows, and its lines.
    #[inline(always)]
    pub(crate) fn tile(&self, tile: usize) -> (usize, usize, &[LowLine]) {
        let first = tile * self.height;
        let count = self.height.min(self.rows - first);
        let lines = &self.lines[first * self.blocks..][..count * self.blocks];
        (first, count, lines)
    }

    /// 1 and 0 for numbers without.
    #[inline(always)]
    pub(super) fn scale(&self, row: usize, group: usize) -> [f32; 2] {
        let scale = self.scales.get(row * self.groups + group);
        scale.copied().unwrap_or([1.0, 0.0])
    }

    /// Takes `values` as the inputs of a group.
    #[inline(always)]
    pub(crate) fn put<W: Wide>(&mut self, w: W, row: usize, group: usize, values: &[Block]) {
        let (tile, slot) = (row / self.height, row % self.height);
        let first = tile * self.height;
        let count = self.height.min(self.rows - first);
        let begin = first * self.blocks + group * W::Numbers::GROUP_LINES * count + slot;
        let lines = self.lines[begin..].iter_mut().step_by(count);
        let scale = W::Numbers::round(w, values, lines);
        if W::Numbers::HAS_SCALES {
            self.scales[row * self.groups + group] = scale;
        }
    }

    /// Takes `values` as all inputs of a row.
    #[inline(always)]
    pub(crate) fn put_row<W: Wide>(&mut self, w: W, row: usize, values: &[Block]) {
        for (group, values) in values.chunks(GROUP / 16).enumerate() {
            self.put(w, row, group, values);
        }
    }

    /// Takes `groups` of `other`, which has the same shape.
    pub(crate) fn take(&mut self, other: &Self, groups: Range<usize>) {
        let blocks =
            groups.start * self.group_lines..self.blocks.min(groups.end * self.group_lines);
        for tile in 0..self.tiles() {
            let first = tile * self.height;
            let count = self.height.min(self.rows - first);
            let begin = first * self.blocks + blocks.start * count;
            let lines = begin..begin + blocks.len() * count;
            self.lines[lines.clone()].copy_from_slice(&other.lines[lines]);
        }
        let rows = self.scales.chunks_exact_mut(self.groups);
        for (own, other) in rows.zip(other.scales.chunks_exact(self.groups)) {
            own[groups.clone()].copy_from_slice(&other[groups.clone()]);
        }
    }
}
