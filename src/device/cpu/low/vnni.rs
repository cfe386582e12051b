//! Products of unsigned and signed bytes by the VNNI instructions, summed exactly in i32.
//!
//! The kernels are safe functions of `std::arch`; `unsafe` is only the step into code compiled for
//! the instructions, which a token of this module proves to be there.

use std::arch::x86_64::*;

use bytemuck::{cast, cast_ref};

use super::int8::Int8;
use super::wide::Dot;
use super::{LowLine, Numbers, PANEL, Sums};
use crate::device::cpu::prefetch::prefetch_at;

/// Proofs that this CPU has the instructions of a kernel, with the kernel for each number of rows.
macro_rules! products {
    (
        $name:ident: $instructions:literal, $first:tt and $second:tt,
        $kernel:ident: $($rows:literal)*
    ) => {
        #[doc = concat!("Proof that this CPU has ", $instructions, ".")]
        #[derive(Clone, Copy)]
        pub(crate) struct $name(());

        impl $name {
            pub(super) fn detect() -> Option<Self> {
                let found = std::arch::is_x86_feature_detected!($first)
                    && std::arch::is_x86_feature_detected!($second);
                found.then_some(Self(()))
            }
        }

        impl Dot for $name {
            type Numbers = Int8;

            const TALL: usize = [$($rows),*].len();

            #[expect(unsafe_code, reason = "the step into VNNI")]
            fn dot(self, rows: usize, a: &[LowLine], panel: &[LowLine], sums: &mut Sums<i32>) {
                match rows {
                    // SAFETY: `self` exists only where both features were found.
                    $($rows => unsafe { $kernel::<$rows>(a, panel, sums) },)*
                    _ => unreachable!("int8: a tile of {rows} rows"),
                }
            }
        }
    };
}

products!(Avx512: "AVX-512 VNNI", "avx512f" and "avx512vnni", avx512:
    1 2 3 4 5 6 7 8 9 10 11 12 13 14);
products!(Avx: "AVX-VNNI", "avx2" and "avxvnni", avx: 1 2 3 4 5 6);

/// Asks for the line that is read a group of inputs behind `line`: the panels of a network follow
/// one another. The CPU's own prefetching ends with each page, and rests while a panel's second
/// tile is computed.
#[inline(always)]
pub(super) fn ask_ahead<N: Numbers>(line: &LowLine) {
    prefetch_at(std::ptr::from_ref(line).wrapping_add(N::GROUP_LINES * PANEL));
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn avx512<const R: usize>(a: &[LowLine], panel: &[LowLine], sums: &mut Sums<i32>) {
    let mut total = [[_mm512_setzero_si512(); 2]; R];
    let (a, _) = a.as_chunks::<R>();
    let (panel, _) = panel.as_chunks::<32>();
    for (a, panel) in a.iter().zip(panel) {
        for group in 0..16 {
            let lines = [&panel[group], &panel[16 + group]];
            lines.into_iter().for_each(ask_ahead::<Int8>);
            let w: [__m512i; 2] = lines.map(|line| cast(line.0));
            for r in 0..R {
                let fours: &[i32; 16] = cast_ref(&a[r]);
                let x = _mm512_set1_epi32(fours[group]);
                for v in 0..2 {
                    total[r][v] = _mm512_dpbusd_epi32(total[r][v], x, w[v]);
                }
            }
        }
    }
    for (sums, total) in sums.0.iter_mut().zip(total) {
        *sums = cast(total);
    }
}

#[target_feature(enable = "avx2,avxvnni")]
fn avx<const R: usize>(a: &[LowLine], panel: &[LowLine], sums: &mut Sums<i32>) {
    let (a, _) = a.as_chunks::<R>();
    let (panel, _) = panel.as_chunks::<32>();
    // Half a line holds eight outputs; two halves of six rows fill the registers.
    for half in 0..2 {
        let mut total = [[_mm256_setzero_si256(); 2]; R];
        for (a, panel) in a.iter().zip(panel) {
            for group in 0..16 {
                let line = &panel[16 * half + group];
                ask_ahead::<Int8>(line);
                let w: [__m256i; 2] = cast(line.0);
                for r in 0..R {
                    let fours: &[i32; 16] = cast_ref(&a[r]);
                    let x = _mm256_set1_epi32(fours[group]);
                    for v in 0..2 {
                        total[r][v] = _mm256_dpbusd_avx_epi32(total[r][v], x, w[v]);
                    }
                }
            }
        }
        for (sums, total) in sums.0.iter_mut().zip(total) {
            sums[half] = cast(total);
        }
    }
}
