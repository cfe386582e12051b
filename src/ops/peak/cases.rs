//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{CHAINS, Peak};
use crate::device::Device;
use crate::error::Result;
use crate::ops::case::{Case, each};
use crate::ops::reference::{noise, wide};

/// A copy and nine multiply-adds, for each of `sizes`.
pub(crate) fn all(device: &Device, sizes: &[usize]) -> Result<Vec<Case>> {
    const TURNS: usize = 9;
    let op = Arc::new(Peak::new());
    each(sizes, |n| {
        let values = noise(n, 17);
        let x = device.upload("x", 1, &values)?;
        let same = device.upload("x", 1, &vec![0.5; n])?;
        let (copier, adder) = (Arc::clone(&op), Arc::clone(&op));
        let copy = Case::new(
            "peak",
            [device.scratch("y", n, 1)?],
            move |pass, [y]| copier.copy(pass, &x, y),
            move || [wide(&values)],
        );
        let add = Case::new(
            "peak",
            [device.scratch("y", n, 1)?],
            move |pass, [y]| adder.multiply_add(pass, &same, TURNS, y),
            move || [vec![(0..TURNS).fold(0.5, |v, _| v * 0.999 + 0.001); n]],
        );
        let flops = 2.0 * (n * TURNS * CHAINS) as f64;
        let bytes = 8.0 * n as f64;
        Ok([
            copy.of("copy").work(0.0, bytes),
            add.of("multiply-add").work(flops, bytes),
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::check;

    #[test]
    fn the_work_is_done() {
        check(|device| all(device, &[300]));
    }
}
