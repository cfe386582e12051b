//! Token rows plus position rows: ids, positions [T] -> x [T, H].

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::{CpuPass, Device, Kernel, PartMut, Pass, Shader, Tensor, shader};
use crate::error::{Result, bail};
use crate::num::to_u32;
use crate::weights::Table;

const SHADER: Shader = shader!("embed");

/// The grid is a multiple of this, as other kernels' tiles are: the commands of prompts of similar
/// lengths are the same then, and are recorded ahead.
const CLASS: usize = 16;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    tokens: u32,
    hidden: u32,
    /// Of x, its first element.
    first: u32,
}

pub(crate) struct Embed {
    pub(super) forward: Kernel,
}

/// Rows of tokens [V, H]: on the CPU they are widened one by one, as they are needed.
pub(crate) enum WordRows {
    Cpu(Table),
    Gpu(Tensor),
}

impl WordRows {
    /// The rows of `table`, brought to `device`.
    ///
    /// Errors: [`crate::ErrorKind::Limits`] where the adapter takes no buffer of this size,
    /// [`crate::ErrorKind::Numeric`] for a row that is not finite.
    pub(crate) fn new(device: &Device, table: Table) -> Result<Self> {
        match device {
            Device::Cpu(_) => Ok(Self::Cpu(table)),
            Device::Gpu(_) => {
                let values = table.view().to_f32();
                if !values.iter().all(|value| value.is_finite()) {
                    bail!(
                        Numeric,
                        "word embeddings: expected finite weights, found infinity or NaN"
                    );
                }
                Ok(Self::Gpu(device.upload("words", table.columns, &values)?))
            }
        }
    }
}

/// `ids`, `positions`: [T]; `places`: [P, H], position and type rows added; `x`: [T, H], whole rows
/// of a tensor, overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) ids: &'t Tensor,
    pub(crate) positions: &'t Tensor,
    pub(crate) words: &'t WordRows,
    pub(crate) places: &'t Tensor,
    pub(crate) x: PartMut<'t>,
}

impl Embed {
    pub(crate) fn new() -> Self {
        Self {
            forward: Kernel::new(&SHADER, "forward", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, mut f: Forward<'_>) {
        let (tokens, hidden) = (f.ids.rows(), f.places.columns());
        f.positions.expect("embed", "positions", tokens, 1);
        f.x.place.expect("embed", "x", tokens, hidden);
        match (pass, f.words) {
            (Pass::Gpu(gpu), WordRows::Gpu(words)) => gpu.dispatch(
                &self.forward,
                [to_u32(tokens.next_multiple_of(CLASS)), 1, 1],
                &Dims {
                    tokens: to_u32(tokens),
                    hidden: to_u32(hidden),
                    first: to_u32(f.x.place.offset),
                },
                &[
                    ("ids", f.ids),
                    ("positions", f.positions),
                    ("words", words),
                    ("places", f.places),
                    ("x", f.x.tensor),
                ],
            ),
            (Pass::Cpu(cpu), WordRows::Cpu(words)) => {
                forward_cpu(
                    cpu,
                    hidden,
                    f.ids.u32(),
                    f.positions.u32(),
                    words,
                    f.places.f32(),
                    f.x.f32_mut(),
                );
            }
            _ => unreachable!("embed: words live on another device"),
        }
    }
}

fn forward_cpu(
    pass: &CpuPass<'_>,
    hidden: usize,
    ids: &[u32],
    positions: &[u32],
    words: &Table,
    places: &[f32],
    x: &mut [f32],
) {
    let words = words.view();
    pass.cpu.rows(x, hidden, hidden * 4, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(hidden).enumerate() {
            let (id, position) = (ids[first + i] as usize, positions[first + i] as usize);
            words.read_row(id, row);
            for (x, place) in row.iter_mut().zip(&places[position * hidden..][..hidden]) {
                *x += place;
            }
        }
    });
}
