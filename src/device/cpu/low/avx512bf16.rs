//! Products of bf16 by AVX-512 BF16, summed in f32.
//!
//! The kernel is a safe function of `std::arch`; `unsafe` is only the step into code compiled for
//! the instruction, which a token of this module proves to be there.

use std::arch::x86_64::*;

use bytemuck::{cast, cast_ref};

use super::bf16::Bf16;
use super::vnni::ask_ahead;
use super::wide::Dot;
use super::{LowLine, Sums};

/// Proof that this CPU has AVX-512 BF16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(());

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Self> {
        let found = std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bf16");
        found.then_some(Self(()))
    }
}

impl Dot for Avx512Bf16 {
    type Numbers = Bf16;

    const TALL: usize = 14;

    #[expect(unsafe_code, reason = "the step into AVX-512 BF16")]
    fn dot(self, rows: usize, a: &[LowLine], panel: &[LowLine], sums: &mut Sums<f32>) {
        macro_rules! step {
            ($($rows:literal)*) => {
                match rows {
                    // SAFETY: `self` exists only where both features were found.
                    $($rows => unsafe { dots::<$rows>(a, panel, sums) },)*
                    _ => unreachable!("bf16: a tile of {rows} rows"),
                }
            };
        }
        step!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn dots<const R: usize>(a: &[LowLine], panel: &[LowLine], sums: &mut Sums<f32>) {
    let mut total = [[_mm512_setzero_ps(); 2]; R];
    let (a, _) = a.as_chunks::<R>();
    let (panel, _) = panel.as_chunks::<32>();
    for (a, panel) in a.iter().zip(panel) {
        for pair in 0..16 {
            let lines = [&panel[pair], &panel[16 + pair]];
            lines.into_iter().for_each(ask_ahead::<Bf16>);
            let w: [__m512bh; 2] = lines.map(|line| cast(line.0));
            for r in 0..R {
                let pairs: &[i32; 16] = cast_ref(&a[r]);
                let x: __m512bh = cast(_mm512_set1_epi32(pairs[pair]));
                for v in 0..2 {
                    total[r][v] = _mm512_dpbf16_ps(total[r][v], x, w[v]);
                }
            }
        }
    }
    for (sums, total) in sums.0.iter_mut().zip(total) {
        *sums = cast(total);
    }
}
