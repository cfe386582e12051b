//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Embed, Forward, WordRows};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};
use crate::weights::Table;

/// Some of 500 words at some of 64 places, for each of `sizes` [T, H].
pub(crate) fn all(device: &Device, sizes: &[(usize, usize)]) -> Result<Vec<Case>> {
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
            let place = x.place();
            let f = Forward {
                ids: &id_list,
                positions: &position_list,
                words: &words,
                places: &places,
                x: x.part_mut(place),
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
        check(|device| all(device, &[(1, 1), (7, 65), (64, 384), (257, 12)]));
    }
}
