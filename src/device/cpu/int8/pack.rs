//! Weights as the kernels read them.
//!
//! A panel has [`PANEL`] outputs: for each block of 64 inputs two halves of 16 outputs, each half
//! 16 lines, a line 16 outputs by 4 inputs. AVX-512 reads a line at once, AVX2 half of one. Missing
//! inputs and outputs are zeros.

use memmap2::MmapMut;

use super::wide::Block;
use super::{ByteLine, GROUP, GROUP_BLOCKS, PANEL};
use crate::device::cpu::Cpu;
use crate::error::{Result, error};

/// The size and alignment of a huge page.
const HUGE: usize = 2 << 20;

/// The panels of a network, one after the other, in huge pages where the system gives them.
pub(crate) struct Arena {
    map: MmapMut,
    /// The byte at which the first line begins.
    begin: usize,
    /// Lines that are taken, and those that there are.
    taken: usize,
    lines: usize,
}

impl Arena {
    /// Room for `lines`.
    pub(crate) fn new(lines: usize) -> Result<Self> {
        let bytes = lines * size_of::<ByteLine>();
        let map = MmapMut::map_anon(bytes + HUGE)
            .map_err(|e| error!(Io, "int8: cannot map {bytes} bytes for weights: {e}"))?;
        // A wish; without huge pages all is the same, and slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let address = map.as_ptr().addr();
        Ok(Self {
            begin: address.next_multiple_of(HUGE) - address,
            map,
            taken: 0,
            lines,
        })
    }

    pub(crate) fn lines(&self) -> &[ByteLine] {
        bytemuck::cast_slice(&self.map[self.begin..][..self.lines * size_of::<ByteLine>()])
    }

    /// The next `count` lines.
    fn take(&mut self, count: usize) -> (usize, &mut [ByteLine]) {
        let start = self.taken;
        self.taken += count;
        let bytes = &mut self.map[self.begin..][..self.lines * size_of::<ByteLine>()];
        let lines: &mut [ByteLine] = bytemuck::cast_slice_mut(bytes);
        (start, &mut lines[start..][..count])
    }
}

/// The weights of a linear map; its panels are in an [`Arena`].
pub(crate) struct Linear {
    start: usize,
    blocks: usize,
    panels: usize,
    /// What a step of an output's weights is worth: [panel][2][16].
    pub(super) scales: Vec<[Block; 2]>,
    /// [panel][2][16]
    pub(super) biases: Vec<[Block; 2]>,
    /// The sum of an output's weights over the inputs of a group: [panel][group][2][16].
    pub(super) sums: Vec<[Block; 2]>,
}

/// A panel that is being packed.
struct Packing<'p> {
    lines: &'p mut [ByteLine],
    scale: &'p mut [Block; 2],
    bias: &'p mut [Block; 2],
    sums: &'p mut [[Block; 2]],
    outcome: Result<()>,
}

impl Linear {
    /// Lines that a map of this shape takes.
    pub(crate) fn size(inputs: usize, outputs: usize) -> usize {
        inputs.div_ceil(64) * PANEL * outputs.div_ceil(PANEL)
    }

    /// Packs a map of `inputs` to `outputs`. `read(output, weights)` writes the weights of an
    /// output over zeros, and returns its bias and a factor for both.
    ///
    /// Errors: that of the first output that cannot be read.
    pub(crate) fn pack(
        cpu: &Cpu,
        arena: &mut Arena,
        inputs: usize,
        outputs: usize,
        read: impl Fn(usize, &mut [f32]) -> Result<(f32, f32)> + Sync,
    ) -> Result<Self> {
        let (blocks, panels) = (inputs.div_ceil(64), outputs.div_ceil(PANEL));
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let (start, lines) = arena.take(Self::size(inputs, outputs));
        let none = [[0.0; 16]; 2];
        let (mut scales, mut biases) = (vec![none; panels], vec![none; panels]);
        let mut sums = vec![none; panels * groups];
        let mut packing: Vec<Packing<'_>> = lines
            .chunks_mut(blocks * PANEL)
            .zip(&mut scales)
            .zip(&mut biases)
            .zip(sums.chunks_mut(groups))
            .map(|(((lines, scale), bias), sums)| Packing {
                lines,
                scale,
                bias,
                sums,
                outcome: Ok(()),
            })
            .collect();
        cpu.each(&mut packing, 1, inputs * PANEL, |panel, packing| {
            let mut row = vec![0.0; blocks * 64];
            let mut bytes = vec![0; blocks * 64];
            for packing in packing {
                let outputs = (panel * PANEL..outputs).take(PANEL);
                packing.outcome = outputs.enumerate().try_for_each(|(place, output)| {
                    row.fill(0.0);
                    let (bias, factor) = read(output, &mut row)?;
                    let scale = cpu.simd(|| {
                        let scale = to_bytes(&row, &mut bytes);
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
            panels,
            scales,
            biases,
            sums,
        })
    }

    /// Blocks of 64 inputs.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Groups of [`GROUP`] inputs; the last may be smaller.
    pub(crate) fn groups(&self) -> usize {
        self.blocks.div_ceil(GROUP_BLOCKS)
    }

    pub(crate) fn panels(&self) -> usize {
        self.panels
    }

    /// A panel of this map in its arena's lines.
    #[inline(always)]
    pub(super) fn panel<'l>(&self, lines: &'l [ByteLine], panel: usize) -> &'l [ByteLine] {
        let size = self.blocks * PANEL;
        &lines[self.start + panel * size..][..size]
    }
}

impl Packing<'_> {
    /// Takes the weights of an output, which is the `place`th of the panel.
    #[inline(always)]
    fn put(&mut self, place: usize, bytes: &[i8]) {
        let (half, column) = (place / 16, place % 16);
        for (block, bytes) in bytes.chunks_exact(64).enumerate() {
            let lines = &mut self.lines[block * PANEL + half * 16..][..16];
            for (line, four) in lines.iter_mut().zip(bytes.chunks_exact(4)) {
                line.0[column * 4..][..4].copy_from_slice(bytemuck::cast_slice(four));
            }
        }
        for (sums, bytes) in self.sums.iter_mut().zip(bytes.chunks(GROUP)) {
            let sum: i32 = bytes.iter().map(|byte| i32::from(*byte)).sum();
            sums[half][column] = sum as f32;
        }
    }
}

/// The nearest of 255 steps to each weight, and what a step is worth: the largest weight is 127.
#[inline(always)]
fn to_bytes(row: &[f32], bytes: &mut [i8]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for block in row.chunks_exact(16) {
        for (lane, weight) in lanes.iter_mut().zip(block) {
            *lane = if weight.abs() > *lane {
                weight.abs()
            } else {
                *lane
            };
        }
    }
    let scale = lanes.into_iter().fold(0.0, f32::max) / 127.0;
    let steps = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (byte, weight) in bytes.iter_mut().zip(row) {
        // 1.5 * 2^23 rounds to the nearest integer, which stays in the low bits.
        let bits = (weight * steps + 12_582_912.0).to_bits();
        *byte = bits.to_le_bytes()[0].cast_signed();
    }
    scale
}
