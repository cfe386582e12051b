//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Forward, Mask};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::num::{mix, to_u32};
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

/// About half of the models may answer, for each of `sizes`: prompts and models.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(Mask::new());
    each(sizes, |(prompts, models)| {
        let scores = noise(prompts * models, 23);
        let words = models.div_ceil(32);
        #[expect(clippy::cast_possible_truncation, reason = "any 32 bits")]
        let bits = |n: u32| mix(u64::from(n)) as u32;
        let mask: Vec<u32> = (0..to_u32(prompts * words)).map(bits).collect();
        let s = device.upload("s", models, &scores)?;
        let uploaded = device.upload_ids("mask", words, &mask)?;
        let op = Arc::clone(&op);
        let run = move |pass: &mut Pass<'_>, [s]: &mut [Tensor; 1]| {
            let mask = &uploaded;
            op.forward(pass, Forward { mask, s });
        };
        let (scores, n) = (wide(&scores), scores.len() as f64);
        let case = Case::new("mask", [s], run, move || {
            [reference::mask(&scores, &mask, models)]
        });
        Ok([case.work(n, 8.0 * n)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::check;

    #[test]
    fn models_without_a_bit_are_lowest_and_others_stay() {
        check(|device| all(device, &[(1, 1), (3, 32), (2, 65), (5, 700)]));
    }
}
