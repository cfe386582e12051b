//! Weights as the kernels read them.
//!
//! A panel has [`PANEL`] outputs: for each block of inputs (64 in int8, 32 in bf16) two halves of
//! 16 outputs, each half 16 lines, a line 16 outputs by four bytes of inputs. AVX-512 reads a line at
//! once, AVX2 half of one. Missing inputs and outputs are zeros.

use super::wide::Block;
use super::{GROUP, LowLine, Numbers, PANEL};
use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::huge::HugeSlice;

/// Of a panel.
const NONE: [Block; 2] = [[0.0; 16]; 2];

/// The panels of a network, one after the other.
pub(crate) struct Arena {
    lines: HugeSlice<LowLine>,
    /// Lines that are taken.
    taken: usize,
}

impl Arena {
    /// Room for `lines`.
    pub(crate) fn new(lines: usize) -> Self {
        Self {
            lines: HugeSlice::zeroed(lines),
            taken: 0,
        }
    }

    pub(crate) fn lines(&self) -> &[LowLine] {
        &self.lines
    }

    /// The next `count` lines.
    fn take(&mut self, count: usize) -> (usize, &mut [LowLine]) {
        let start = self.taken;
        self.taken += count;
        (start, &mut self.lines[start..][..count])
    }
}

/// The weights of a linear map; its panels are in an [`Arena`].
pub(crate) struct Linear {
    start: usize,
    blocks: usize,
    groups: usize,
    panels: usize,
    /// What a step of an output's weights is worth: [panel][2][16].
    pub(super) scales: Vec<[Block; 2]>,
    /// [panel][2][16]
    pub(super) biases: Vec<[Block; 2]>,
    /// The sum of an output's weights over the inputs of a group: [panel][group][2][16]; empty for
    /// numbers without zero points.
    columns: Vec<[Block; 2]>,
}

/// A panel that is being packed.
struct Packing<'p> {
    lines: &'p mut [LowLine],
    scale: &'p mut [Block; 2],
    bias: &'p mut [Block; 2],
    columns: &'p mut [[Block; 2]],
    outcome: Result<()>,
}

impl Linear {
    /// Lines that a map of this shape takes.
    pub(crate) fn size<N: Numbers>(inputs: usize, outputs: usize) -> usize {
        N::blocks(inputs) * PANEL * outputs.div_ceil(PANEL)
    }

    /// Packs a map of `inputs` to `outputs`. `read(output, weights)` writes the weights of an
    /// output over zeros, and returns its bias and a factor for both.
    ///
    /// Errors: that of the first output that cannot be read.
    pub(crate) fn pack<N: Numbers>(
        cpu: &Cpu,
        arena: &mut Arena,
        inputs: usize,
        outputs: usize,
        read: impl Fn(usize, &mut [f32]) -> Result<(f32, f32)> + Sync,
    ) -> Result<Self> {
        let (blocks, panels) = (N::blocks(inputs), outputs.div_ceil(PANEL));
        let groups = inputs.div_ceil(GROUP);
        let (start, lines) = arena.take(Self::size::<N>(inputs, outputs));
        let (mut scales, mut biases) = (vec![NONE; panels], vec![NONE; panels]);
        let mut columns = vec![NONE; if N::HAS_SCALES { panels * groups } else { 0 }];
        let mut of_panels = columns.chunks_mut(groups);
        let mut packing: Vec<Packing<'_>> = lines
            .chunks_mut(blocks * PANEL)
            .zip(&mut scales)
            .zip(&mut biases)
            .map(|((lines, scale), bias)| Packing {
                lines,
                scale,
                bias,
                columns: of_panels.next().unwrap_or_default(),
                outcome: Ok(()),
            })
            .collect();
        cpu.each(&mut packing, 1, inputs * PANEL, |panel, packing| {
            let mut row = vec![0.0; blocks * N::LINE];
            let mut bytes = vec![0; blocks * 64];
            for packing in packing {
                let outputs = (panel * PANEL..outputs).take(PANEL);
                packing.outcome = outputs.enumerate().try_for_each(|(place, output)| {
                    row.fill(0.0);
                    let (bias, factor) = read(output, &mut row)?;
                    let scale = cpu.simd(|| {
                        let scale = N::round_weights(&row, &mut bytes);
                        packing.put(place, &bytes);
                        scale
                    });
                    packing.scale[place / 16][place % 16] = scale * factor;
                    packing.bias[place / 16][place % 16] = bias * factor;
                    Ok(())
                });
            }
        });
        packing
            .into_iter()
            .try_for_each(|packing| packing.outcome)?;
        Ok(Self {
            start,
            blocks,
            groups,
            panels,
            scales,
            biases,
            columns,
        })
    }

    /// Blocks of inputs, each a line of a row.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Groups of [`GROUP`] inputs; the last may be smaller.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    pub(crate) fn panels(&self) -> usize {
        self.panels
    }

    /// Sums of a panel's weights over a group; zeros for numbers without zero points.
    #[inline(always)]
    pub(super) fn columns(&self, panel: usize, group: usize) -> &[Block; 2] {
        let columns = self.columns.get(panel * self.groups + group);
        columns.unwrap_or(&NONE)
    }

    /// A panel of this map in its arena's lines.
    #[inline(always)]
    pub(super) fn panel<'l>(&self, lines: &'l [LowLine], panel: usize) -> &'l [LowLine] {
        let size = self.blocks * PANEL;
        &lines[self.start + panel * size..][..size]
    }
}

impl Packing<'_> {
    /// Takes the weights of an output, which is the `place`th of the panel.
    #[inline(always)]
    fn put(&mut self, place: usize, bytes: &[u8]) {
        let (half, column) = (place / 16, place % 16);
        for (block, bytes) in bytes.chunks_exact(64).enumerate() {
            let lines = &mut self.lines[block * PANEL + half * 16..][..16];
            for (line, four) in lines.iter_mut().zip(bytes.chunks_exact(4)) {
                line.0[column * 4..][..4].copy_from_slice(four);
            }
        }
        // Numbers with zero points are bytes.
        for (columns, bytes) in self.columns.iter_mut().zip(bytes.chunks(GROUP)) {
            let sum: i32 = bytes.iter().map(|byte| i32::from(byte.cast_signed())).sum();
            columns[half][column] = sum as f32;
        }
    }
}
