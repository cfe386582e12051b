//! Products of unsigned and signed bytes by Arm's dot products, summed exactly in i32.
//!
//! `sdot` has signed bytes on both sides. With 128 less the activations are signed, and 128 times
//! the sum of the weights is added again: the weights' dot product with -128 is subtracted. Stable
//! Rust has no intrinsic for `sdot`, so it is written as text here; `unsafe` is that line and the
//! step into code compiled for it, which a token of this module proves to be there.

use std::arch::aarch64::*;
use std::arch::asm;

use bytemuck::{cast, cast_ref};

use super::int8::Int8;
use super::wide::Dot;
use super::{LowLine, Sums};

/// Proof that this CPU has Arm's dot products.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod(());

impl Dotprod {
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }
}

impl Dot for Dotprod {
    type Numbers = Int8;

    const TALL: usize = 8;

    #[expect(unsafe_code, reason = "the step into dot products")]
    fn dot(self, rows: usize, a: &[LowLine], panel: &[LowLine], sums: &mut Sums<i32>) {
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
fn dots<const R: usize>(a: &[LowLine], panel: &[LowLine], sums: &mut Sums<i32>) {
    let (a, _) = a.as_chunks::<R>();
    let (panel, _) = panel.as_chunks::<32>();
    let (zero, least) = (vdupq_n_s32(0), vdupq_n_s8(-128));
    for half in 0..2 {
        for place in 0..2 {
            let mut total = [[zero; 2]; R];
            let mut less = [zero; 2];
            for (a, panel) in a.iter().zip(panel) {
                for quarter in 0..4 {
                    let mut x = [least; R];
                    for r in 0..R {
                        let quarters: &[[u8; 16]; 4] = cast_ref(&a[r].0);
                        // 128 less is the other sign bit.
                        x[r] = veorq_s8(cast(quarters[quarter]), least);
                    }
                    macro_rules! groups {
                        ($($lane:literal)*) => {$({
                            let line = &panel[16 * half + 4 * quarter + $lane].0;
                            let parts: &[[[u8; 16]; 2]; 2] = cast_ref(line);
                            for v in 0..2 {
                                let w = cast(parts[place][v]);
                                less[v] = sdot::<0>(less[v], w, least);
                                for r in 0..R {
                                    total[r][v] = sdot::<$lane>(total[r][v], w, x[r]);
                                }
                            }
                        })*};
                    }
                    groups!(0 1 2 3);
                }
            }
            for (sums, total) in sums.0.iter_mut().zip(total) {
                for v in 0..2 {
                    let sum: [i32; 4] = cast(vsubq_s32(total[v], less[v]));
                    sums[half][8 * place + 4 * v..][..4].copy_from_slice(&sum);
                }
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
