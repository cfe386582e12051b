//! Sixteen f32 at once, spelled so that every SIMD level computes the same bits.
//!
//! Each operation is one of IEEE 754, correctly rounded, and a fused multiply-add is called by that
//! name; nothing is left to the compiler's choice.

use std::marker::PhantomData;

use super::bf16::upper_half;
use super::{LowLine, Numbers, SumsOf};

/// Sixteen numbers in memory.
pub(crate) type Block = [f32; 16];

/// 1.5 * 2^23: adding it rounds a number between -2^22 and 2^22 to the nearest integer, ties to
/// even, which stays in the low bits.
const ROUND: f32 = 12_582_912.0;

/// How a SIMD level multiplies numbers of low precision.
pub(crate) trait Dot: Copy {
    type Numbers: Numbers;

    /// Most rows of a register tile.
    const TALL: usize;

    /// Sums of products of `rows` rows and a panel; see [`super::dot`].
    fn dot(self, rows: usize, a: &[LowLine], panel: &[LowLine], sums: &mut SumsOf<Self::Numbers>);
}

/// A SIMD level with its product of numbers of low precision.
pub(crate) trait Wide: Copy {
    /// Those that it multiplies.
    type Numbers: Numbers;

    /// Sixteen numbers in registers.
    type F: Copy;

    /// Most rows of a register tile.
    const TALL: usize;

    /// Sums of a block of attention that stay in registers, in vectors.
    const ROOM: usize;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, values: &Block) -> Self::F;
    fn store(self, a: Self::F) -> Block;
    /// Exact below 2^24.
    fn widen(self, values: &[i32; 16]) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a b + c, rounded once.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// c - a b, rounded once.
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `b` where one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `b` where one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// 2^n for the integers n in the low bits of `n` + [`ROUND`], -126 to 127.
    fn power(self, shifted: Self::F) -> Self::F;
    /// The nearest integers, ties to even, 0 to 255; numbers beyond are clamped.
    fn bytes(self, values: [Self::F; 4]) -> [u8; 64];

    /// See [`Dot::dot`].
    fn dot(self, rows: usize, a: &[LowLine], panel: &[LowLine], sums: &mut SumsOf<Self::Numbers>);

    /// The nearest bf16, ties to even.
    #[inline(always)]
    fn halves(self, values: [Self::F; 2]) -> [u8; 64] {
        let mut out = [0; 64];
        let values = values.into_iter().flat_map(|values| self.store(values));
        for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *out = upper_half(value).to_le_bytes();
        }
        out
    }

    /// Row i of the result has number i of each row.
    #[inline(always)]
    fn transpose(self, rows: [Self::F; 16]) -> [Self::F; 16] {
        let mut turned = [[0.0; 16]; 16];
        for (i, row) in rows.into_iter().enumerate() {
            for (turned, value) in turned.iter_mut().zip(self.store(row)) {
                turned[i] = value;
            }
        }
        turned.map(|row| self.load(&row))
    }

    /// Halves the sixteen until one is left.
    #[inline(always)]
    fn total(self, a: Self::F) -> f32 {
        halve(self.store(a), |a, b| a + b)
    }

    #[inline(always)]
    fn least(self, a: Self::F) -> f32 {
        halve(self.store(a), least)
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        halve(self.store(a), largest)
    }

    /// x Phi(x): absolute error below 3e-5 and, beyond +-4.4, below 7e-6 |x|.
    #[inline(always)]
    fn gelu(self, x: Self::F) -> Self::F {
        // Powers of c^2 - MIDDLE: of c^2 itself, their sum would lose 1e-4 by cancellation.
        const MIDDLE: f32 = 4.4 * 4.4 / 2.0;
        const P: [f32; 9] = [
            0.160_404_41,
            -0.008_121_107,
            0.000_589_638_25,
            -4.419_790_6e-5,
            3.052_593_2e-6,
            -1.879_828e-7,
            1.335_548_6e-8,
            -9.899_863e-10,
            3.572_635_6e-11,
        ];
        let c = self.min(self.max(x, self.splat(-4.4)), self.splat(4.4));
        let t = self.mul_add(c, c, self.splat(-MIDDLE));
        let t2 = self.mul(t, t);
        // Even and odd powers apart: two chains, each half as long.
        let (mut even, mut odd) = (self.splat(P[8]), self.splat(P[7]));
        for i in [6, 4, 2] {
            even = self.mul_add(even, t2, self.splat(P[i]));
            odd = self.mul_add(odd, t2, self.splat(P[i - 1]));
        }
        even = self.mul_add(even, t2, self.splat(P[0]));
        let p = self.mul_add(odd, t, even);
        self.mul(x, self.mul_add(c, p, self.splat(0.5)))
    }

    /// 2^x for x of at most 0, relative error below 4e-6; 2^-120 below -120.
    #[inline(always)]
    fn exp2(self, x: Self::F) -> Self::F {
        const P: [f32; 6] = [
            1.0,
            std::f32::consts::LN_2,
            0.240_226_48,
            0.055_503_327,
            0.009_618_437,
            0.001_339_887_4,
        ];
        let x = self.max(x, self.splat(-120.0));
        let shifted = self.add(x, self.splat(ROUND));
        let r = self.sub(x, self.sub(shifted, self.splat(ROUND)));
        let mut p = self.splat(P[5]);
        for i in [4, 3, 2, 1, 0] {
            p = self.mul_add(p, r, self.splat(P[i]));
        }
        self.mul(p, self.power(shifted))
    }
}

#[inline(always)]
fn least(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn largest(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn halve(mut lanes: Block, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Whatever the target has, without intrinsics: the reference of the others.
#[derive(Clone, Copy)]
pub(crate) struct Scalar<P>(pub(crate) P);

/// The reference's products.
#[derive(Clone, Copy)]
pub(crate) struct Plain<N>(PhantomData<N>);

impl<N> Plain<N> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<N: Numbers> Dot for Plain<N> {
    type Numbers = N;

    const TALL: usize = 4;

    #[inline(always)]
    fn dot(self, rows: usize, a: &[LowLine], panel: &[LowLine], sums: &mut SumsOf<N>) {
        super::dot::<N>(rows, a, panel, sums);
    }
}

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Block {
    let mut out = [0.0; 16];
    for (i, out) in out.iter_mut().enumerate() {
        *out = f(i);
    }
    out
}

impl<P: Dot> Wide for Scalar<P> {
    type Numbers = P::Numbers;
    type F = Block;

    const TALL: usize = P::TALL;
    const ROOM: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> Block {
        [value; 16]
    }

    #[inline(always)]
    fn load(self, values: &Block) -> Block {
        *values
    }

    #[inline(always)]
    fn store(self, a: Block) -> Block {
        a
    }

    #[inline(always)]
    fn widen(self, values: &[i32; 16]) -> Block {
        each(|i| values[i] as f32)
    }

    #[inline(always)]
    fn add(self, a: Block, b: Block) -> Block {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Block, b: Block) -> Block {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Block, b: Block) -> Block {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Block, b: Block) -> Block {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Block, b: Block, c: Block) -> Block {
        each(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn neg_mul_add(self, a: Block, b: Block, c: Block) -> Block {
        each(|i| (-a[i]).mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn min(self, a: Block, b: Block) -> Block {
        each(|i| least(a[i], b[i]))
    }

    #[inline(always)]
    fn max(self, a: Block, b: Block) -> Block {
        each(|i| largest(a[i], b[i]))
    }

    #[inline(always)]
    fn power(self, shifted: Block) -> Block {
        each(|i| f32::from_bits((shifted[i].to_bits() << 23).wrapping_add(0x3f80_0000)))
    }

    #[inline(always)]
    fn bytes(self, values: [Block; 4]) -> [u8; 64] {
        let mut out = [0; 64];
        for (out, values) in out.chunks_exact_mut(16).zip(values) {
            for (out, value) in out.iter_mut().zip(values) {
                *out = (value.clamp(0.0, 255.0) + ROUND).to_bits().to_le_bytes()[0];
            }
        }
        out
    }

    #[inline(always)]
    fn dot(self, rows: usize, a: &[LowLine], panel: &[LowLine], sums: &mut SumsOf<Self::Numbers>) {
        self.0.dot(rows, a, panel, sums);
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256, __m256i, __m512, __m512i};

    use pulp::cast;
    use pulp::x86::{V3, V4};

    use super::super::vnni;
    use super::*;

    /// 512-bit registers; products of AVX-512 VNNI, AVX-512 BF16 or AMX.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512<P> {
        pub(in super::super) simd: V4,
        pub(in super::super) products: P,
    }

    impl<P> Avx512<P> {
        pub(crate) fn new(products: P) -> Option<Self> {
            V4::try_new().map(|simd| Self { simd, products })
        }

        /// This level with other products.
        #[cfg(target_os = "linux")]
        pub(crate) fn with<Q>(&self, products: Q) -> Avx512<Q> {
            let simd = self.simd;
            Avx512 { simd, products }
        }

        /// As `upper_half`, for sixteen at once: the upper half of each is the nearest bf16.
        #[inline(always)]
        fn half_rounded(&self, value: __m512) -> __m512i {
            let (f, bits): (_, __m512i) = (self.simd.avx512f, cast(value));
            let last = f._mm512_and_si512(f._mm512_srli_epi32::<16>(bits), f._mm512_set1_epi32(1));
            f._mm512_add_epi32(bits, f._mm512_add_epi32(last, f._mm512_set1_epi32(0x7fff)))
        }
    }

    impl<P: Dot> Wide for Avx512<P> {
        type Numbers = P::Numbers;
        type F = __m512;

        const TALL: usize = P::TALL;
        const ROOM: usize = 12;

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            self.simd.avx512f._mm512_set1_ps(value)
        }

        #[inline(always)]
        fn load(self, values: &Block) -> __m512 {
            cast(*values)
        }

        #[inline(always)]
        fn store(self, a: __m512) -> Block {
            cast(a)
        }

        #[inline(always)]
        fn widen(self, values: &[i32; 16]) -> __m512 {
            self.simd.avx512f._mm512_cvtepi32_ps(cast(*values))
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            self.simd.avx512f._mm512_add_ps(a, b)
        }

        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            self.simd.avx512f._mm512_sub_ps(a, b)
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            self.simd.avx512f._mm512_mul_ps(a, b)
        }

        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            self.simd.avx512f._mm512_div_ps(a, b)
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            self.simd.avx512f._mm512_fmadd_ps(a, b, c)
        }

        #[inline(always)]
        fn neg_mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            self.simd.avx512f._mm512_fnmadd_ps(a, b, c)
        }

        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            self.simd.avx512f._mm512_min_ps(a, b)
        }

        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            self.simd.avx512f._mm512_max_ps(a, b)
        }

        #[inline(always)]
        fn power(self, shifted: __m512) -> __m512 {
            let f = self.simd.avx512f;
            let n: __m512i = f._mm512_slli_epi32::<23>(cast(shifted));
            cast(f._mm512_add_epi32(n, f._mm512_set1_epi32(0x3f80_0000)))
        }

        #[inline(always)]
        fn bytes(self, values: [__m512; 4]) -> [u8; 64] {
            let (f, bw) = (self.simd.avx512f, self.simd.avx512bw);
            // Spelled out, since a `map` of vectors may be a call that is not inlined.
            let [a, b, c, d] = values;
            let packed = bw._mm512_packus_epi16(
                bw._mm512_packs_epi32(f._mm512_cvtps_epi32(a), f._mm512_cvtps_epi32(b)),
                bw._mm512_packs_epi32(f._mm512_cvtps_epi32(c), f._mm512_cvtps_epi32(d)),
            );
            // The packs work inside each of four lanes.
            let order: [i32; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
            cast(f._mm512_permutexvar_epi32(cast(order), packed))
        }

        #[inline(always)]
        fn halves(self, values: [__m512; 2]) -> [u8; 64] {
            let [first, second] = values;
            // The upper half of each, of one vector and then of the other.
            let mut order = [0u16; 32];
            for (order, place) in order.iter_mut().zip((1..64).step_by(2)) {
                *order = place;
            }
            let (first, second) = (self.half_rounded(first), self.half_rounded(second));
            let bw = self.simd.avx512bw;
            cast(bw._mm512_permutex2var_epi16(first, cast(order), second))
        }

        #[inline(always)]
        fn dot(
            self,
            rows: usize,
            a: &[LowLine],
            panel: &[LowLine],
            sums: &mut SumsOf<Self::Numbers>,
        ) {
            self.products.dot(rows, a, panel, sums);
        }

        #[inline(always)]
        fn transpose(self, mut r: [__m512; 16]) -> [__m512; 16] {
            let f = self.simd.avx512f;
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = f._mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = f._mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                for k in 0..2 {
                    let (a, b) = (cast(t[4 * i + k]), cast(t[4 * i + 2 + k]));
                    r[4 * i + 2 * k] = cast(f._mm512_unpacklo_pd(a, b));
                    r[4 * i + 2 * k + 1] = cast(f._mm512_unpackhi_pd(a, b));
                }
            }
            for i in 0..4 {
                t[i] = f._mm512_shuffle_f32x4::<0x88>(r[i], r[4 + i]);
                t[4 + i] = f._mm512_shuffle_f32x4::<0xdd>(r[i], r[4 + i]);
                t[8 + i] = f._mm512_shuffle_f32x4::<0x88>(r[8 + i], r[12 + i]);
                t[12 + i] = f._mm512_shuffle_f32x4::<0xdd>(r[8 + i], r[12 + i]);
            }
            for i in 0..4 {
                r[i] = f._mm512_shuffle_f32x4::<0x88>(t[i], t[8 + i]);
                r[8 + i] = f._mm512_shuffle_f32x4::<0xdd>(t[i], t[8 + i]);
                r[4 + i] = f._mm512_shuffle_f32x4::<0x88>(t[4 + i], t[12 + i]);
                r[12 + i] = f._mm512_shuffle_f32x4::<0xdd>(t[4 + i], t[12 + i]);
            }
            r
        }
    }

    /// 256-bit registers, AVX-VNNI.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2 {
        pub(in super::super) simd: V3,
        vnni: vnni::Avx,
    }

    impl Avx2 {
        pub(in super::super) fn new(vnni: vnni::Avx) -> Option<Self> {
            V3::try_new().map(|simd| Self { simd, vnni })
        }
    }

    type Pair = [__m256; 2];

    #[inline(always)]
    fn both(f: impl Fn(usize) -> __m256) -> Pair {
        [f(0), f(1)]
    }

    impl Wide for Avx2 {
        type Numbers = <vnni::Avx as Dot>::Numbers;
        type F = Pair;

        const TALL: usize = vnni::Avx::TALL;
        const ROOM: usize = 4;

        #[inline(always)]
        fn splat(self, value: f32) -> Pair {
            both(|_| self.simd.avx._mm256_set1_ps(value))
        }

        #[inline(always)]
        fn load(self, values: &Block) -> Pair {
            cast(*values)
        }

        #[inline(always)]
        fn store(self, a: Pair) -> Block {
            cast(a)
        }

        #[inline(always)]
        fn widen(self, values: &[i32; 16]) -> Pair {
            let halves: [__m256i; 2] = cast(*values);
            both(|i| self.simd.avx._mm256_cvtepi32_ps(halves[i]))
        }

        #[inline(always)]
        fn add(self, a: Pair, b: Pair) -> Pair {
            both(|i| self.simd.avx._mm256_add_ps(a[i], b[i]))
        }

        #[inline(always)]
        fn sub(self, a: Pair, b: Pair) -> Pair {
            both(|i| self.simd.avx._mm256_sub_ps(a[i], b[i]))
        }

        #[inline(always)]
        fn mul(self, a: Pair, b: Pair) -> Pair {
            both(|i| self.simd.avx._mm256_mul_ps(a[i], b[i]))
        }

        #[inline(always)]
        fn div(self, a: Pair, b: Pair) -> Pair {
            both(|i| self.simd.avx._mm256_div_ps(a[i], b[i]))
        }

        #[inline(always)]
        fn mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
            both(|i| self.simd.fma._mm256_fmadd_ps(a[i], b[i], c[i]))
        }

        #[inline(always)]
        fn neg_mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
            both(|i| self.simd.fma._mm256_fnmadd_ps(a[i], b[i], c[i]))
        }

        #[inline(always)]
        fn min(self, a: Pair, b: Pair) -> Pair {
            both(|i| self.simd.avx._mm256_min_ps(a[i], b[i]))
        }

        #[inline(always)]
        fn max(self, a: Pair, b: Pair) -> Pair {
            both(|i| self.simd.avx._mm256_max_ps(a[i], b[i]))
        }

        #[inline(always)]
        fn power(self, shifted: Pair) -> Pair {
            let (avx, avx2) = (self.simd.avx, self.simd.avx2);
            both(|i| {
                let n = avx2._mm256_slli_epi32::<23>(cast(shifted[i]));
                cast(avx2._mm256_add_epi32(n, avx._mm256_set1_epi32(0x3f80_0000)))
            })
        }

        #[inline(always)]
        fn bytes(self, values: [Pair; 4]) -> [u8; 64] {
            let (avx, avx2) = (self.simd.avx, self.simd.avx2);
            let integers = |pair: Pair| pair.map(|half| avx._mm256_cvtps_epi32(half));
            let order: [i32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
            let half = |first: Pair, second: Pair| {
                let ([a, b], [c, d]) = (integers(first), integers(second));
                let packed = avx2._mm256_packus_epi16(
                    avx2._mm256_packs_epi32(a, b),
                    avx2._mm256_packs_epi32(c, d),
                );
                // The packs work inside each of two lanes.
                avx2._mm256_permutevar8x32_epi32(packed, cast(order))
            };
            let [a, b, c, d] = values;
            cast([half(a, b), half(c, d)])
        }

        #[inline(always)]
        fn dot(
            self,
            rows: usize,
            a: &[LowLine],
            panel: &[LowLine],
            sums: &mut SumsOf<Self::Numbers>,
        ) {
            self.vnni.dot(rows, a, panel, sums);
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::{float32x4_t, int32x4_t};

    use pulp::{aarch64, cast};

    use super::super::neon;
    use super::*;

    /// 128-bit registers, Arm's dot products.
    #[derive(Clone, Copy)]
    pub(crate) struct Neon {
        simd: aarch64::Neon,
        products: neon::Dotprod,
    }

    impl Neon {
        pub(in super::super) fn new(products: neon::Dotprod) -> Option<Self> {
            aarch64::Neon::try_new().map(|simd| Self { simd, products })
        }
    }

    type Quad = [float32x4_t; 4];

    #[inline(always)]
    fn four(f: impl Fn(usize) -> float32x4_t) -> Quad {
        [f(0), f(1), f(2), f(3)]
    }

    impl Wide for Neon {
        type Numbers = <neon::Dotprod as Dot>::Numbers;
        type F = Quad;

        const TALL: usize = neon::Dotprod::TALL;
        const ROOM: usize = 4;

        #[inline(always)]
        fn splat(self, value: f32) -> Quad {
            four(|_| self.simd.neon.vdupq_n_f32(value))
        }

        #[inline(always)]
        fn load(self, values: &Block) -> Quad {
            cast(*values)
        }

        #[inline(always)]
        fn store(self, a: Quad) -> Block {
            cast(a)
        }

        #[inline(always)]
        fn widen(self, values: &[i32; 16]) -> Quad {
            let quarters: [int32x4_t; 4] = cast(*values);
            four(|i| self.simd.neon.vcvtq_f32_s32(quarters[i]))
        }

        #[inline(always)]
        fn add(self, a: Quad, b: Quad) -> Quad {
            four(|i| self.simd.neon.vaddq_f32(a[i], b[i]))
        }

        #[inline(always)]
        fn sub(self, a: Quad, b: Quad) -> Quad {
            four(|i| self.simd.neon.vsubq_f32(a[i], b[i]))
        }

        #[inline(always)]
        fn mul(self, a: Quad, b: Quad) -> Quad {
            four(|i| self.simd.neon.vmulq_f32(a[i], b[i]))
        }

        #[inline(always)]
        fn div(self, a: Quad, b: Quad) -> Quad {
            four(|i| self.simd.neon.vdivq_f32(a[i], b[i]))
        }

        #[inline(always)]
        fn mul_add(self, a: Quad, b: Quad, c: Quad) -> Quad {
            four(|i| self.simd.neon.vfmaq_f32(c[i], a[i], b[i]))
        }

        #[inline(always)]
        fn neg_mul_add(self, a: Quad, b: Quad, c: Quad) -> Quad {
            four(|i| self.simd.neon.vfmsq_f32(c[i], a[i], b[i]))
        }

        #[inline(always)]
        fn min(self, a: Quad, b: Quad) -> Quad {
            // Not `vminq_f32`: that is NaN where one is.
            let neon = self.simd.neon;
            four(|i| neon.vbslq_f32(neon.vcltq_f32(a[i], b[i]), a[i], b[i]))
        }

        #[inline(always)]
        fn max(self, a: Quad, b: Quad) -> Quad {
            let neon = self.simd.neon;
            four(|i| neon.vbslq_f32(neon.vcgtq_f32(a[i], b[i]), a[i], b[i]))
        }

        #[inline(always)]
        fn power(self, shifted: Quad) -> Quad {
            let neon = self.simd.neon;
            let one = neon.vdupq_n_s32(0x3f80_0000);
            four(|i| cast(neon.vaddq_s32(neon.vshlq_n_s32::<23>(cast(shifted[i])), one)))
        }

        #[inline(always)]
        fn bytes(self, values: [Quad; 4]) -> [u8; 64] {
            let neon = self.simd.neon;
            // Spelled out, since a `map` of vectors is a call that is not inlined.
            let round = |x| neon.vqmovn_s32(neon.vcvtnq_s32_f32(x));
            let narrow = |[a, b, c, d]: Quad| {
                neon.vcombine_u8(
                    neon.vqmovun_s16(neon.vcombine_s16(round(a), round(b))),
                    neon.vqmovun_s16(neon.vcombine_s16(round(c), round(d))),
                )
            };
            let [a, b, c, d] = values;
            cast([narrow(a), narrow(b), narrow(c), narrow(d)])
        }

        #[inline(always)]
        fn dot(
            self,
            rows: usize,
            a: &[LowLine],
            panel: &[LowLine],
            sums: &mut SumsOf<Self::Numbers>,
        ) {
            self.products.dot(rows, a, panel, sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::low::{Int8, Job, LowFormat, LowKernel};

    /// GELU, 2^-|x|, sums and extremes of every sixteen, its bytes and halves.
    struct Functions<'a>(&'a [Block]);

    impl Job for Functions<'_> {
        type Output = (Vec<f32>, Vec<f32>, Vec<f32>, Vec<u8>);

        #[inline(always)]
        fn run<W: Wide>(self, w: W) -> Self::Output {
            let (mut gelu, mut powers) = (Vec::new(), Vec::new());
            let (mut totals, mut bytes) = (Vec::new(), Vec::new());
            for block in self.0 {
                let x = w.load(block);
                gelu.extend(w.store(w.gelu(x)));
                let low = w.min(x, w.sub(w.splat(0.0), x));
                powers.extend(w.store(w.exp2(low)));
                totals.extend([w.total(x), w.least(x), w.largest(x)]);
                bytes.extend(w.halves([x, w.gelu(x)]));
                bytes.extend(w.bytes([x, low, w.mul(x, w.splat(20.0)), w.splat(1e9)]));
                let turned = w.transpose([x; 16]);
                totals.extend(w.store(turned[3]));
            }
            (gelu, powers, totals, bytes)
        }
    }

    #[test]
    fn functions_are_accurate_and_the_same_at_every_level() {
        let xs: Vec<f32> = (-16_000..16_000).map(|i| i as f32 / 1000.0).collect();
        let blocks: Vec<Block> = xs.as_chunks::<16>().0.to_vec();
        let want = LowKernel::ScalarInt8.run(Functions(&blocks));
        let kernels = [LowFormat::Int8, LowFormat::Bf16].map(LowKernel::available);
        for kernel in kernels.concat() {
            assert!(kernel.run(Functions(&blocks)) == want, "{kernel}");
        }
        let (gelu, powers, totals, bytes) = want;
        for ((x, gelu), power) in xs.iter().zip(&gelu).zip(&powers) {
            let x = f64::from(*x);
            // erf by its series, whose terms stay below 1e16 for |x| < 6; it is 1 beyond.
            let (at, mut term, mut sum) = (x.clamp(-6.0, 6.0) / 2f64.sqrt(), 0.0, 0.0);
            for n in 0..200 {
                let k = f64::from(n);
                term = if n == 0 { at } else { -term * at * at / k };
                sum += term / (2.0 * k + 1.0);
            }
            let erf = sum * std::f64::consts::FRAC_2_SQRT_PI;
            let exact = x * 0.5 * (1.0 + erf);
            assert!(
                (f64::from(*gelu) - exact).abs() < 3e-5f64.max(7e-6 * x.abs()),
                "gelu({x}) = {gelu}"
            );
            let exact = (-x.abs()).exp2();
            assert!((f64::from(*power) / exact - 1.0).abs() < 4e-6, "2^{x}");
        }
        // The last sixteen: 15.984 to 15.999.
        let last = &totals[totals.len() - 19..];
        assert_eq!(last[1..3], [15.984, 15.999]);
        assert!((last[0] - 255.864).abs() < 1e-3);
        assert_eq!(last[3..], [15.987; 16]);
        let last = &bytes[bytes.len() - 64..];
        assert_eq!(last[..16], [16; 16]);
        assert_eq!(last[16..32], [0; 16]);
        assert_eq!(last[32..], [255; 32]);
        assert_eq!(want_of(-200.0), want_of(-120.0));
    }

    fn want_of(x: f32) -> f32 {
        Scalar(Plain::<Int8>::new()).exp2([x; 16])[0]
    }
}
