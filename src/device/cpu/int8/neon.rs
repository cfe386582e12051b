//! Products of unsigned and signed bytes by Arm's dot products, summed exactly in i32.
//!
//! `sdot` has signed bytes on both sides. With 128 less the activations are signed, and 128 times
//! the sum of the weights is added again: the weights' dot product with -128 is subtracted. Stable
//! Rust has no intrinsic for `sdot`, so it is written as text here; `unsafe` is that line and the
//! step into code compiled for it, which a token of this module proves to be there.

use std::arch::aarch64::{int8x16_t, int32x4_t};
use std::arch::asm;

use bytemuck::cast;

use super::wide::Dot;
use super::{ByteLine, Sums};

/// Proof that this CPU has Arm's dot products.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod(());

impl Dotprod {
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }
}

impl Dot for Dotprod {
    const TALL: usize = 8;

    #[expect(unsafe_code, reason = "the step into dot products")]
    fn dot(self, rows: usize, a: &[ByteLine], panel: &[ByteLine], sums: &mut Sums) {
        macro_rules! step {
            ($($rows:literal)*) => {
                match rows {
                    // SAFETY: `self` exists only where the feature was found.
                    $($rows => unsafe { dots::<$rows>(a, panel, sums) },)*
                    _ => unreachable!("int8: a tile of {rows} rows"),
                }
            };
        }
        step!(1 2 3 4 5 6 7 8);
    }
}

/// Eight outputs at a time, half a line: of eight rows they leave room for the operands.
#[target_feature(enable = "dotprod")]
fn dots<const R: usize>(a: &[ByteLine], panel: &[ByteLine], sums: &mut Sums) {
    let (a, _) = a.as_chunks::<R>();
    let (panel, _) = panel.as_chunks::<32>();
    let zeros: [int32x4_t; 2] = cast([0i32; 8]);
    let least: int8x16_t = cast([-128i8; 16]);
    for part in 0..4 {
        let (half, place) = (part / 2, part % 2);
        let mut total = [zeros; R];
        let mut less = zeros;
        for (a, panel) in a.iter().zip(panel) {
            let panel = &panel[16 * half..][..16];
            for (quarter, panel) in panel.as_chunks::<4>().0.iter().enumerate() {
                let x: [int8x16_t; R] = std::array::from_fn(|r| {
                    let bytes: [u8; 64] = a[r].0;
                    cast(bytes.as_chunks::<16>().0[quarter].map(|byte| byte ^ 128))
                });
                macro_rules! group {
                    ($($lane:literal)*) => {$({
                        let parts: [[int8x16_t; 2]; 2] = cast(panel[$lane].0);
                        for v in 0..2 {
                            let w = parts[place][v];
                            less[v] = sdot::<0>(less[v], w, least);
                            for r in 0..R {
                                total[r][v] = sdot::<$lane>(total[r][v], w, x[r]);
                            }
                        }
                    })*};
                }
                group!(0 1 2 3);
            }
        }
        let less: [i32; 8] = cast(less);
        for (sums, total) in sums.0.iter_mut().zip(total) {
            let total: [i32; 8] = cast(total);
            let sums = &mut sums[half][8 * place..][..8];
            for (sum, (total, less)) in sums.iter_mut().zip(total.into_iter().zip(less)) {
                *sum = total - less;
            }
        }
    }
}

/// Adds to each sum the products of four of `w` and the `LANE`th four of `x`.
#[inline]
#[target_feature(enable = "dotprod")]
#[expect(unsafe_code, reason = "an instruction without an intrinsic")]
fn sdot<const LANE: u32>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: The function is compiled for this instruction, which reads and writes the registers
    // that it names and nothing else. A lane is 0 to 3, or it would not assemble.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
