//! The order in which the kernels read: panels of the right factor, tiles of the left one's rows.

use std::sync::{Mutex, PoisonError};

use super::{KB, Level, RowPart};
use crate::device::Part;
use crate::device::cpu::Cpu;
use crate::error::{Result, bail};
use crate::weights::{Dtype, View};

/// Columns that f16 panels have side by side.
const SIDE: usize = 16;

/// Bytes that are loaded together; also the alignment of every panel row.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct PanelLine([u8; 64]);

/// A row-major matrix, or the transpose of one: element (r, c) is `values[r * down + c * across]`,
/// and one of the two steps is 1.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'m> {
    values: &'m [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    down: usize,
    across: usize,
}

impl<'m> Matrix<'m> {
    /// Consecutive rows of `columns`.
    pub(crate) fn of_rows(values: &'m [f32], columns: usize) -> Self {
        let rows = values.len() / columns.max(1);
        assert_eq!(values.len(), rows * columns, "gemm: not rows of {columns}");
        Self {
            values,
            rows,
            columns,
            down: columns,
            across: 1,
        }
    }

    pub(crate) fn of_part(part: Part<'m>) -> Self {
        Self {
            values: part.f32(),
            rows: part.place.rows,
            columns: part.place.columns,
            down: part.place.stride,
            across: 1,
        }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            down: self.across,
            across: self.down,
            ..self
        }
    }
}

/// How panels are laid out.
#[derive(Clone, Copy)]
pub(super) struct PanelLayout {
    pub(super) level: Level,
    /// Panels hold f16 bits, 16 columns after the other; otherwise f32, all columns side by side.
    pub(super) half: bool,
    /// Columns of a panel.
    pub(super) width: usize,
}

impl PanelLayout {
    /// f32 panels of a factor of `columns`.
    pub(super) fn full(level: Level, columns: usize) -> Self {
        Self {
            level,
            half: false,
            width: if columns <= 16 { 16 } else { level.tile().1 },
        }
    }

    /// Lines of a panel of `inner` rows.
    pub(super) fn size(self, inner: usize) -> usize {
        inner.next_multiple_of(KB) * self.width * if self.half { 2 } else { 4 }
            / size_of::<PanelLine>()
    }

    /// The panel of `b`'s columns from `first` on. Columns past the last are left as they are.
    fn pack(self, b: Matrix<'_>, first: usize, panel: &mut [PanelLine]) {
        match self.width {
            32 => pack_panel::<32>(b, first, bytemuck::cast_slice_mut(panel)),
            _ => pack_panel::<16>(b, first, bytemuck::cast_slice_mut(panel)),
        }
    }

    /// The panel of `b`'s columns from `first` on, in `lines`.
    pub(super) fn pack_one<'l>(
        self,
        b: Matrix<'_>,
        first: usize,
        lines: &'l mut Vec<PanelLine>,
    ) -> &'l [PanelLine] {
        let panel = room(lines, self.size(b.rows));
        self.pack(b, first, panel);
        panel
    }

    /// An f16 `panel` as one of f32, in `lines`: to widen it once is less than to do so for every
    /// tile of many rows.
    pub(super) fn widen<'l>(
        self,
        cpu: &Cpu,
        panel: &[PanelLine],
        lines: &'l mut Vec<PanelLine>,
    ) -> (Self, &'l [PanelLine]) {
        let wide = room(lines, panel.len() * 2);
        match self.width {
            32 => super::widen_sides(self.level, panel, wide),
            _ => {
                let (from, to) = (bytemuck::cast_slice(panel), bytemuck::cast_slice_mut(wide));
                cpu.simd(
                    #[inline(always)]
                    || widen_finite(from, to),
                );
            }
        }
        let half = false;
        (Self { half, ..self }, wide)
    }

    /// All panels of `b`, at the beginning of `lines`, which grows as needed.
    pub(super) fn pack_all(self, cpu: &Cpu, b: Matrix<'_>, lines: &mut Vec<PanelLine>) {
        self.pack_into(cpu, b, room(lines, self.size_of_all(b.rows, b.columns)));
    }

    fn pack_into(self, cpu: &Cpu, b: Matrix<'_>, lines: &mut [PanelLine]) {
        let work = b.rows * self.width;
        self.fill(cpu, b.rows, work, lines, |first, panel| {
            self.pack(b, first, panel);
        });
    }

    /// Lines of a factor [inner, columns].
    fn size_of_all(self, inner: usize, columns: usize) -> usize {
        columns.div_ceil(self.width) * self.size(inner)
    }

    /// `f(first column, panel)` for every panel of a factor of `inner` rows, side by side.
    fn fill(
        self,
        cpu: &Cpu,
        inner: usize,
        work: usize,
        lines: &mut [PanelLine],
        f: impl Fn(usize, &mut [PanelLine]) + Sync + Send,
    ) {
        let size = self.size(inner).max(1);
        cpu.rows(lines, size, work, |first, block| {
            for (i, panel) in block.chunks_exact_mut(size).enumerate() {
                f((first + i) * self.width, panel);
            }
        });
    }
}

fn zeros(lines: usize) -> Vec<PanelLine> {
    vec![PanelLine([0; 64]); lines]
}

/// The first `size` lines, of which there may be too few yet.
fn room(lines: &mut Vec<PanelLine>, size: usize) -> &mut [PanelLine] {
    if lines.len() < size {
        lines.resize(size, PanelLine([0; 64]));
    }
    &mut lines[..size]
}

/// Weights that stay as they are, in panels: the right factor [inner, columns] of products.
pub(crate) struct Packed {
    pub(super) layout: PanelLayout,
    pub(super) inner: usize,
    pub(super) columns: usize,
    lines: Vec<PanelLine>,
}

impl Packed {
    /// Packs `W`^T, where `parts` stacked are `W` [out, in]; all have the same number of columns.
    ///
    /// Errors: [`crate::ErrorKind::Numeric`] names the first part with an element that is not
    /// finite.
    pub(crate) fn new(cpu: &Cpu, parts: &[(&str, View<'_>)]) -> Result<Self> {
        let mut packed = Self::empty(cpu, parts);
        let Self { layout, inner, .. } = packed;
        let mut lines = packed.room();
        let bad = Mutex::new(None);
        let pack = |first: usize, panel: &mut [PanelLine]| {
            let rows = rows_of(parts, first, layout.width);
            let finite = match (layout.half, layout.width) {
                (true, _) => pack_half(&rows, layout.width / SIDE, bytemuck::cast_slice_mut(panel)),
                (false, 32) => pack_full::<32>(&rows, bytemuck::cast_slice_mut(panel)),
                (false, _) => pack_full::<16>(&rows, bytemuck::cast_slice_mut(panel)),
            };
            if let Some(row) = finite {
                let mut bad = bad.lock().unwrap_or_else(PoisonError::into_inner);
                let name = rows[row].2;
                *bad = Some(bad.take().map_or(name, |other: &str| other.min(name)));
            }
        };
        layout.fill(cpu, inner, MUCH, &mut lines, pack);
        if let Some(name) = bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
            bail!(
                Numeric,
                "{name}: expected finite weights, found infinity or NaN"
            );
        }
        packed.lines = lines;
        Ok(packed)
    }

    /// Packs `W`: as [`Packed::new`], the other way round. The elements are finite.
    pub(crate) fn transposed(cpu: &Cpu, parts: &[(&str, View<'_>)]) -> Self {
        let mut packed = Self::empty(cpu, parts);
        (packed.inner, packed.columns) = (packed.columns, packed.inner);
        let (inner, columns) = (packed.inner, packed.columns);
        let (layout, mut lines) = (packed.layout, packed.room());
        if layout.half {
            let pack = |first: usize, panel: &mut [PanelLine]| {
                let size = panel.len() * SIDE / layout.width;
                for (side, panel) in panel.chunks_exact_mut(size.max(1)).enumerate() {
                    let first = first + side * SIDE;
                    copy_half(parts, first, bytemuck::cast_slice_mut(panel));
                }
            };
            layout.fill(cpu, inner, MUCH, &mut lines, pack);
        } else {
            let values: Vec<f32> = parts.iter().flat_map(|(_, view)| view.to_f32()).collect();
            let b = Matrix::of_rows(&values, columns);
            layout.pack_into(cpu, b, &mut lines);
        }
        packed.lines = lines;
        packed
    }

    /// The columns `ids` of this factor, in this order, as a factor of its own.
    pub(crate) fn gathered(&self, ids: &[u32]) -> Self {
        let Self { layout, inner, .. } = *self;
        // Columns that are side by side, and how many bytes they take.
        let (side, element) = match layout.half {
            true => (SIDE, 2),
            false => (layout.width, 4),
        };
        let size = layout.size(inner);
        let sides = size * size_of::<PanelLine>() * side / layout.width;
        let mut lines = zeros(layout.size_of_all(inner, ids.len()));
        let from: &[u8] = bytemuck::cast_slice(&self.lines);
        let to: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
        let begin = |column: usize| column / side * sides + column % side * element;
        for (column, id) in ids.iter().enumerate() {
            let (mut source, mut target) = (begin(*id as usize), begin(column));
            for _ in 0..inner {
                to[target..target + element].copy_from_slice(&from[source..source + element]);
                source += side * element;
                target += side * element;
            }
        }
        Self {
            layout,
            inner,
            columns: ids.len(),
            lines,
        }
    }

    pub(super) fn lines(&self) -> &[PanelLine] {
        &self.lines
    }

    fn empty(cpu: &Cpu, parts: &[(&str, View<'_>)]) -> Self {
        let level = cpu.level();
        let inner = parts.first().map_or(0, |(_, view)| view.columns);
        assert!(
            parts.iter().all(|(_, view)| view.columns == inner),
            "packed parts differ in their inputs"
        );
        let half = level != Level::Portable && parts.iter().all(|(_, v)| v.dtype == Dtype::F16);
        let width = level.tile().1;
        Self {
            layout: PanelLayout { level, half, width },
            inner,
            columns: parts.iter().map(|(_, view)| view.rows()).sum(),
            lines: Vec::new(),
        }
    }

    /// Lines for all panels.
    fn room(&self) -> Vec<PanelLine> {
        zeros(self.layout.size_of_all(self.inner, self.columns))
    }
}

/// Work of a panel that is always worth a thread.
const MUCH: usize = 1 << 20;

/// The rows `first..first + count` of the stacked `parts` that exist: view, row in it, name.
fn rows_of<'p>(
    parts: &'p [(&'p str, View<'p>)],
    first: usize,
    count: usize,
) -> Vec<(View<'p>, usize, &'p str)> {
    let mut rows = Vec::with_capacity(count);
    let mut start = 0;
    for (name, view) in parts {
        let end = start + view.rows();
        let wanted = first.max(start)..(first + count).min(end);
        rows.extend(wanted.map(|row| (*view, row - start, *name)));
        start = end;
    }
    rows
}

type PanelRows<'r, 'p> = &'r [(View<'p>, usize, &'p str)];

/// Returns the index of a row that is not finite.
fn pack_half(rows: PanelRows<'_, '_>, sides: usize, panel: &mut [[u16; SIDE]]) -> Option<usize> {
    const EXPONENT: u16 = 0x7c00;
    let mut bad = None;
    let size = panel.len() / sides;
    for (column, (view, row, _)) in rows.iter().enumerate() {
        let mut finite = true;
        let side = &mut panel[column / SIDE * size..][..size];
        for (place, bytes) in side.iter_mut().zip(view.row_bytes(*row).chunks_exact(2)) {
            let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
            finite &= bits & EXPONENT != EXPONENT;
            place[column % SIDE] = bits;
        }
        if !finite {
            bad = Some(column);
        }
    }
    bad
}

/// Returns the index of a row that is not finite.
fn pack_full<const NR: usize>(rows: PanelRows<'_, '_>, panel: &mut [[f32; NR]]) -> Option<usize> {
    let mut bad = None;
    let mut values = vec![0.0; rows.first().map_or(0, |(view, ..)| view.columns)];
    for (column, (view, row, _)) in rows.iter().enumerate() {
        view.read_row(*row, &mut values);
        for (place, value) in panel.iter_mut().zip(&values) {
            place[column] = *value;
        }
        if !values.iter().all(|value| value.is_finite()) {
            bad = Some(column);
        }
    }
    bad
}

/// The columns of the stacked `parts` from `first` on, if there are any.
fn copy_half(parts: &[(&str, View<'_>)], first: usize, panel: &mut [[u16; SIDE]]) {
    let rows = parts
        .iter()
        .flat_map(|(_, view)| (0..view.rows()).map(|row| view.row_bytes(row)));
    for (place, bytes) in panel.iter_mut().zip(rows) {
        let bytes = bytes.get(2 * first..).unwrap_or_default();
        for (place, bytes) in place.iter_mut().zip(bytes.chunks_exact(2)) {
            *place = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
    }
}

/// The columns of `b` from `first` on, zeros below its last row.
fn pack_panel<const NR: usize>(b: Matrix<'_>, first: usize, panel: &mut [[f32; NR]]) {
    /// Rows that stay in the L1 cache while all columns are written.
    const BLOCK: usize = 64;
    let count = NR.min(b.columns - first);
    let (panel, rest) = panel.split_at_mut(b.rows);
    rest.fill([0.0; NR]);
    if b.across == 1 {
        for (r, place) in panel.iter_mut().enumerate() {
            let row = &b.values[r * b.down + first..][..count];
            match row.first_chunk::<NR>() {
                Some(row) => *place = *row,
                None => place[..count].copy_from_slice(row),
            }
        }
        return;
    }
    for (block, panel) in panel.chunks_mut(BLOCK).enumerate() {
        for c in 0..count {
            let column = &b.values[(first + c) * b.across + block * BLOCK..];
            for (place, value) in panel.iter_mut().zip(column) {
                place[c] = *value;
            }
        }
    }
}

/// f16 to f32: the same bits at a larger exponent, which a product corrects, exactly. In this form
/// the compiler makes vectors of it.
#[inline(always)]
fn widen_finite(halves: &[u16], values: &mut [f32]) {
    /// 2^(127 - 15), the difference of the exponents' biases.
    const BIAS: f32 = f32::from_bits((127 + 112) << 23);
    for (value, half) in values.iter_mut().zip(halves) {
        let bits = u32::from(*half);
        let size = f32::from_bits((bits & 0x7fff) << 13) * BIAS;
        *value = f32::from_bits(size.to_bits() | (bits & 0x8000) << 16);
    }
}

/// The rows of `a` from `first` on in the order of the kernels: tile by tile, in each
/// [inner / KB][height][KB], zeros past the last column. They stand at the beginning of `packed`.
pub(super) fn pack_rows(
    a: Matrix<'_>,
    mut first: usize,
    heights: impl Iterator<Item = usize> + Clone,
    packed: &mut Vec<RowPart>,
) {
    let blocks = a.columns.div_ceil(KB);
    let all = heights.clone().sum::<usize>() * blocks;
    if packed.len() < all {
        packed.resize(all, RowPart::default());
    }
    let mut rest = &mut packed[..all];
    for height in heights {
        let tile;
        (tile, rest) = rest.split_at_mut(height * blocks);
        for (block, rows) in tile.chunks_exact_mut(height).enumerate() {
            pack_block(a, first, block * KB, rows);
        }
        first += height;
    }
}

/// `KB` columns of `a` from `column` on, of as many rows from `row` on as there are places.
fn pack_block(a: Matrix<'_>, row: usize, column: usize, places: &mut [RowPart]) {
    let count = KB.min(a.columns - column);
    if a.across == 1 {
        for (r, place) in places.iter_mut().enumerate() {
            let values = &a.values[(row + r) * a.down + column..][..count];
            match values.first_chunk::<KB>() {
                Some(values) => place[..KB].copy_from_slice(values),
                None => {
                    place[..count].copy_from_slice(values);
                    place[count..].fill(0.0);
                }
            }
        }
        return;
    }
    for k in 0..count {
        let values = &a.values[(column + k) * a.across + row..];
        for (place, value) in places.iter_mut().zip(values) {
            place[k] = *value;
        }
    }
    for place in places {
        place[count..].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_finite_half_is_widened_exactly() {
        let halves: Vec<u16> = (0..=u16::MAX)
            .filter(|bits| f16::from_bits(*bits).is_finite())
            .collect();
        let mut values = vec![f32::NAN; halves.len()];
        widen_finite(&halves, &mut values);
        for (half, value) in halves.iter().zip(values) {
            assert_eq!(value.to_bits(), f16::from_bits(*half).to_f32().to_bits());
        }
    }
}
