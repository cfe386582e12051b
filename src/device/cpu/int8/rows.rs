//! Activations as the kernels read them: tiles of rows, each [block of 64 inputs][row] lines of
//! bytes, with a scale and a zero point for each row and group of inputs.

use std::ops::Range;

use super::wide::{Block, Wide};
use super::{ByteLine, GROUP_BLOCKS};

/// Rows of bytes; room is kept from one use to the next.
#[derive(Default)]
pub(crate) struct Rows {
    lines: Vec<ByteLine>,
    /// (scale, zero point): [row][group].
    scales: Vec<[f32; 2]>,
    rows: usize,
    blocks: usize,
    groups: usize,
    /// Rows of a tile; the last may have fewer.
    height: usize,
}

impl Rows {
    /// Makes room for `rows` of `blocks` of 64 inputs, in tiles of at most `tall` rows that are all
    /// about as tall.
    pub(crate) fn reset(&mut self, rows: usize, blocks: usize, tall: usize) {
        *self = Self {
            lines: std::mem::take(&mut self.lines),
            scales: std::mem::take(&mut self.scales),
            rows,
            blocks,
            groups: blocks.div_ceil(GROUP_BLOCKS),
            height: rows.div_ceil(rows.div_ceil(tall).max(1)).max(1),
        };
        self.lines.resize(rows * blocks, ByteLine([0; 64]));
        self.scales.resize(rows * self.groups, [0.0; 2]);
    }

    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// The first row of a tile, the number of its rows, and its lines.
    #[inline(always)]
    pub(crate) fn tile(&self, tile: usize) -> (usize, usize, &[ByteLine]) {
        let first = tile * self.height;
        let count = self.height.min(self.rows - first);
        let lines = &self.lines[first * self.blocks..][..count * self.blocks];
        (first, count, lines)
    }

    #[inline(always)]
    pub(super) fn scale(&self, row: usize, group: usize) -> [f32; 2] {
        self.scales[row * self.groups + group]
    }

    /// Takes `values` as the inputs of a group: byte = x / scale + zero, zero the byte of 0.
    #[inline(always)]
    pub(crate) fn put<W: Wide>(&mut self, w: W, row: usize, group: usize, values: &[Block]) {
        let (mut low, mut high) = (w.splat(0.0), w.splat(0.0));
        for value in values {
            low = w.min(w.load(value), low);
            high = w.max(w.load(value), high);
        }
        let (low, high) = (w.least(low), w.largest(high));
        let scale = ((high - low) / 255.0).max(1e-12);
        let steps = 1.0 / scale;
        // Not above 255: -low is at most high - low.
        let zero = (-low * steps).round_ties_even();
        self.scales[row * self.groups + group] = [scale, zero];
        let (steps, zero) = (w.splat(steps), w.splat(zero));
        let (tile, slot) = (row / self.height, row % self.height);
        let first = tile * self.height;
        let count = self.height.min(self.rows - first);
        let begin = first * self.blocks + group * GROUP_BLOCKS * count + slot;
        let lines = self.lines[begin..].iter_mut().step_by(count);
        for (line, values) in lines.zip(values.chunks(4)) {
            let mut four = [zero; 4];
            for (four, value) in four.iter_mut().zip(values) {
                *four = w.mul_add(w.load(value), steps, zero);
            }
            line.0 = w.bytes(four);
        }
    }

    /// Takes `groups` of `other`, which has the same shape.
    pub(crate) fn take(&mut self, other: &Self, groups: Range<usize>) {
        let blocks = groups.start * GROUP_BLOCKS..self.blocks.min(groups.end * GROUP_BLOCKS);
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
