//! Products of unsigned and signed bytes by the VNNI instructions, summed exactly in i32.
//!
//! The kernels are safe functions of `std::arch`; `unsafe` is only the step into code compiled for
//! the instructions, which a token of this module proves to be there.

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use bytemuck::{cast, cast_ref};

    use crate::device::cpu::int8::{ByteLine, Sums};

    /// Proof that this CPU has AVX-512 VNNI.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(());

    /// Proof that this CPU has AVX-VNNI.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx(());

    impl Avx512 {
        pub(in super::super) fn detect() -> Option<Self> {
            let found = std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512vnni");
            found.then_some(Self(()))
        }

        /// See [`crate::device::cpu::int8::dot`]; 1 to 14 rows.
        #[expect(unsafe_code, reason = "the step into AVX-512 VNNI")]
        pub(in super::super) fn dot(
            self,
            rows: usize,
            a: &[ByteLine],
            panel: &[ByteLine],
            sums: &mut Sums,
        ) {
            macro_rules! step {
                ($($rows:literal)*) => {
                    match rows {
                        // SAFETY: `self` exists only where both features were found.
                        $($rows => unsafe { avx512::<$rows>(a, panel, sums) },)*
                        _ => unreachable!("int8: a tile of {rows} rows"),
                    }
                };
            }
            step!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
        }
    }

    impl Avx {
        pub(in super::super) fn detect() -> Option<Self> {
            let found = std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("avxvnni");
            found.then_some(Self(()))
        }

        /// See [`crate::device::cpu::int8::dot`]; 1 to 6 rows.
        #[expect(unsafe_code, reason = "the step into AVX-VNNI")]
        pub(in super::super) fn dot(
            self,
            rows: usize,
            a: &[ByteLine],
            panel: &[ByteLine],
            sums: &mut Sums,
        ) {
            macro_rules! step {
                ($($rows:literal)*) => {
                    match rows {
                        // SAFETY: `self` exists only where both features were found.
                        $($rows => unsafe { avx::<$rows>(a, panel, sums) },)*
                        _ => unreachable!("int8: a tile of {rows} rows"),
                    }
                };
            }
            step!(1 2 3 4 5 6);
        }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn avx512<const R: usize>(a: &[ByteLine], panel: &[ByteLine], sums: &mut Sums) {
        let mut total = [[_mm512_setzero_si512(); 2]; R];
        let (a, _) = a.as_chunks::<R>();
        let (panel, _) = panel.as_chunks::<32>();
        for (a, panel) in a.iter().zip(panel) {
            for group in 0..16 {
                let w: [__m512i; 2] = [cast(panel[group].0), cast(panel[16 + group].0)];
                for r in 0..R {
                    let fours: &[i32; 16] = cast_ref(&a[r]);
                    let x = _mm512_set1_epi32(fours[group]);
                    for v in 0..2 {
                        total[r][v] = _mm512_dpbusd_epi32(total[r][v], x, w[v]);
                    }
                }
            }
        }
        for (sums, total) in sums.iter_mut().zip(total) {
            *sums = cast(total);
        }
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn avx<const R: usize>(a: &[ByteLine], panel: &[ByteLine], sums: &mut Sums) {
        let (a, _) = a.as_chunks::<R>();
        let (panel, _) = panel.as_chunks::<32>();
        // Half a line holds eight outputs; two halves of six rows fill the registers.
        for half in 0..2 {
            let mut total = [[_mm256_setzero_si256(); 2]; R];
            for (a, panel) in a.iter().zip(panel) {
                for group in 0..16 {
                    let w: [__m256i; 2] = cast(panel[16 * half + group].0);
                    for r in 0..R {
                        let fours: &[i32; 16] = cast_ref(&a[r]);
                        let x = _mm256_set1_epi32(fours[group]);
                        for v in 0..2 {
                            total[r][v] = _mm256_dpbusd_avx_epi32(total[r][v], x, w[v]);
                        }
                    }
                }
            }
            for (sums, total) in sums.iter_mut().zip(total) {
                sums[half] = cast(total);
            }
        }
    }
}
