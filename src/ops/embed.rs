//! Token rows plus position rows: ids, positions [T] -> x [T, H].

use std::sync::Arc;

use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, shader};
use crate::error::{Result, bail};
use crate::num::to_u32;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};
use crate::weights::Table;

const SHADER: Shader = shader!("embed");

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    hidden: u32,
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

/// `ids`, `positions`: [T]; `places`: [P, H], position and type rows added; `x`: [T, H],
/// overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) ids: &'t Tensor,
    pub(crate) positions: &'t Tensor,
    pub(crate) words: &'t WordRows,
    pub(crate) places: &'t Tensor,
    pub(crate) x: &'t mut Tensor,
}

impl Embed {
    pub(crate) fn new() -> Self {
        Self {
            forward: Kernel::new(&SHADER, "forward", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (tokens, hidden) = (f.ids.rows(), f.places.columns());
        f.positions.expect("embed", "positions", tokens, 1);
        f.x.expect("embed", "x", tokens, hidden);
        match (pass, f.words) {
            (Pass::Gpu(gpu), WordRows::Gpu(words)) => gpu.dispatch(
                &self.forward,
                [to_u32(tokens), 1, 1],
                &Dims {
                    hidden: to_u32(hidden),
                },
                &[
                    ("ids", f.ids),
                    ("positions", f.positions),
                    ("words", words),
                    ("places", f.places),
                    ("x", f.x),
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

/// Some of 500 words at some of 64 places, for each of `sizes` [T, H].
pub(crate) fn cases(device: &Device, sizes: &[(usize, usize)]) -> Result<Vec<Case>> {
    const WORDS: usize = 500;
    const PLACES: usize = 64;
    let op = Arc::new(Embed::new());
    each(sizes, |(tokens, hidden)| {
        let (rows, place_rows) = (noise(WORDS * hidden, 1), noise(PLACES * hidden, 2));
        let ids: Vec<u32> = (0..tokens).map(|t| to_u32(t * 17 % WORDS)).collect();
        let positions: Vec<u32> = (0..tokens).map(|t| to_u32(t * 5 % PLACES)).collect();
        let words = WordRows::new(device, Table::of_f32(&rows, hidden))?;
        let places = device.upload("places", hidden, &place_rows)?;
        let id_list = device.upload_ids("ids", 1, &ids)?;
        let position_list = device.upload_ids("positions", 1, &positions)?;
        let x = device.scratch("x", tokens, hidden)?;
        let op = Arc::clone(&op);
        let run = move |pass: &mut Pass<'_>, [x]: &mut [Tensor; 1]| {
            let f = Forward {
                ids: &id_list,
                positions: &position_list,
                words: &words,
                places: &places,
                x,
            };
            op.forward(pass, f);
        };
        let case = Case::new("embed", [x], run, move || {
            let (rows, place_rows) = (wide(&rows), wide(&place_rows));
            [reference::embed(
                &ids,
                &positions,
                &rows,
                &place_rows,
                hidden,
            )]
        });
        let n = (tokens * hidden) as f64;
        Ok([case.work(n, 12.0 * n)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::check;

    #[test]
    fn rows_are_gathered_and_added() {
        check(|device| cases(device, &[(1, 1), (7, 65), (64, 384), (257, 12)]));
    }
}
