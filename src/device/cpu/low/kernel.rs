//! The kernels of products in low precision: which there are, and which this machine takes.

use std::fmt;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
#[cfg(target_arch = "x86_64")]
use super::avx512bf16::Avx512Bf16;
#[cfg(any(test, all(target_arch = "x86_64", target_os = "linux")))]
use super::bf16::Bf16;
use super::int8::Int8;
#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::vnni;
#[cfg(target_arch = "aarch64")]
use super::wide::Neon;
#[cfg(target_arch = "x86_64")]
use super::wide::{Avx2, Avx512};
use super::wide::{Plain, Scalar, Wide};
use super::{LowFormat, LowLine, Numbers, PANEL, Sums, TALLEST, dot};
use crate::device::cpu::CpuLevel;

/// How products in low precision are computed.
#[derive(Clone, Copy)]
pub(crate) enum LowKernel {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    AmxInt8(Avx512<amx::Amx<Int8>>),
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    AmxBf16(Avx512<amx::Amx<Bf16>>),
    #[cfg(target_arch = "x86_64")]
    Avx512Int8(Avx512<vnni::Avx512>),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512<Avx512Bf16>),
    #[cfg(target_arch = "x86_64")]
    Avx2Int8(Avx2),
    #[cfg(target_arch = "aarch64")]
    NeonInt8(Neon),
    /// The reference of the others in int8.
    ScalarInt8,
    /// The reference of the others in bf16.
    #[cfg(test)]
    ScalarBf16,
    /// The code around AMX's instructions over an emulation of them.
    #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
    EmulatedInt8,
    #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
    EmulatedBf16,
}

/// Code that is compiled for a kernel's SIMD level and numbers.
pub(crate) trait Job {
    type Output;

    /// To be marked `#[inline(always)]`, with all that it calls.
    fn run<W: Wide>(self, w: W) -> Self::Output;
}

/// A job with its level, as `pulp` takes it.
#[cfg(target_arch = "x86_64")]
struct JobAt<J, W>(J, W);

#[cfg(target_arch = "x86_64")]
impl<J: Job, W: Wide> pulp::NullaryFnOnce for JobAt<J, W> {
    type Output = J::Output;

    #[inline(always)]
    fn call(self) -> J::Output {
        self.0.run(self.1)
    }
}

/// Whether small products of any number of rows are the reference's.
struct SmallProducts;

impl Job for SmallProducts {
    type Output = bool;

    #[inline(always)]
    fn run<W: Wide>(self, w: W) -> bool {
        are_right(w)
    }
}

/// As [`SmallProducts`]; the sums are exact, whatever their order.
fn are_right<W: Wide>(w: W) -> bool {
    const BLOCKS: usize = 2;
    let line = |seed: usize| {
        let mut bytes = [0; 64];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (seed * 131 + i * 37).to_le_bytes()[0];
        }
        W::Numbers::exact_line(bytes)
    };
    // A row is the same in all products, so that those of the reference are one.
    let rows_of = |rows: usize| -> Vec<LowLine> {
        let of_block = |block| (0..rows).map(move |row| line(block * TALLEST + row));
        (0..BLOCKS).flat_map(of_block).collect()
    };
    let panel: Vec<LowLine> = (7..7 + BLOCKS * PANEL).map(line).collect();
    let mut want = Sums::new();
    dot::<W::Numbers>(W::TALL, &rows_of(W::TALL), &panel, &mut want);
    (1..=W::TALL).all(|rows| {
        let mut got = Sums::new();
        w.dot(rows, &rows_of(rows), &panel, &mut got);
        got.0[..rows] == want.0[..rows]
    })
}

impl LowKernel {
    /// What a CPU has that runs any kernel of `format` but the reference.
    pub(crate) fn expected(format: LowFormat) -> &'static str {
        match format {
            LowFormat::Int8 => "AVX-512 VNNI, AVX-VNNI or Arm dot products",
            LowFormat::Bf16 => "AMX or AVX-512 BF16",
        }
    }

    /// The kernels of `format` and `level` that this machine runs, the fastest first and without
    /// the reference; between them why it does not run the others.
    fn look(format: LowFormat, level: CpuLevel) -> Vec<Result<Self, String>> {
        let all: &[(CpuLevel, &str)] = match format {
            #[cfg(target_arch = "x86_64")]
            LowFormat::Int8 => &[
                #[cfg(target_os = "linux")]
                (CpuLevel::Amx, AMX),
                (CpuLevel::Avx512, AVX512_INT8),
                (CpuLevel::Avx2, AVX2_INT8),
            ],
            #[cfg(target_arch = "x86_64")]
            LowFormat::Bf16 => &[
                #[cfg(target_os = "linux")]
                (CpuLevel::Amx, AMX),
                (CpuLevel::Avx512, AVX512_BF16),
            ],
            #[cfg(target_arch = "aarch64")]
            LowFormat::Int8 => &[(CpuLevel::Neon, NEON_INT8)],
            #[allow(unreachable_patterns, reason = "platforms without kernels")]
            _ => &[],
        };
        let look = |(of, name): &(CpuLevel, &str)| match level {
            CpuLevel::Auto => Self::find(format, *of).map_err(|why| format!("{name}: {why}")),
            _ if level == *of => Self::find(format, *of).map_err(|why| format!("{name}: {why}")),
            _ => Err(format!("{name}: not of the level {level}")),
        };
        all.iter().map(look).collect()
    }

    /// The kernel of `format` and `level`.
    ///
    /// Errors: why this machine does not run it.
    fn find(format: LowFormat, level: CpuLevel) -> Result<Self, String> {
        let found = match (format, level) {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            (_, CpuLevel::Amx) => {
                let simd = Avx512::new(()).ok_or_else(absent)?;
                return match format {
                    LowFormat::Int8 => amx::Amx::detect().map(|amx| Self::AmxInt8(simd.with(amx))),
                    LowFormat::Bf16 => amx::Amx::detect().map(|amx| Self::AmxBf16(simd.with(amx))),
                };
            }
            #[cfg(target_arch = "x86_64")]
            (LowFormat::Int8, CpuLevel::Avx512) => vnni::Avx512::detect()
                .and_then(Avx512::new)
                .map(Self::Avx512Int8),
            #[cfg(target_arch = "x86_64")]
            (LowFormat::Bf16, CpuLevel::Avx512) => Avx512Bf16::detect()
                .and_then(Avx512::new)
                .map(Self::Avx512Bf16),
            #[cfg(target_arch = "x86_64")]
            (LowFormat::Int8, CpuLevel::Avx2) => {
                vnni::Avx::detect().and_then(Avx2::new).map(Self::Avx2Int8)
            }
            #[cfg(target_arch = "aarch64")]
            (LowFormat::Int8, CpuLevel::Neon) => neon::Dotprod::detect()
                .and_then(Neon::new)
                .map(Self::NeonInt8),
            _ => None,
        };
        found.ok_or_else(absent)
    }

    /// Why this machine has no tiles for any format; `None`: it has.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn why_no_amx() -> Option<String> {
        let both =
            [LowFormat::Int8, LowFormat::Bf16].map(|format| Self::find(format, CpuLevel::Amx));
        match both {
            [Err(why), Err(_)] => Some(why),
            _ => None,
        }
    }

    /// The fastest kernel of `format` and `level` on this CPU that gives the reference's sums, and
    /// why it is that; `None`: the CPU has no instruction for such products, or one that is wrong.
    pub(crate) fn detect(format: LowFormat, level: CpuLevel) -> (Option<Self>, String) {
        let mut reasons = Vec::new();
        for found in Self::look(format, level) {
            match found {
                Ok(kernel) if kernel.run(SmallProducts) => {
                    reasons.push(format!("{kernel}: the reference's sums"));
                    reasons.extend(kernel.caveat().map(str::to_owned));
                    return (Some(kernel), reasons.join("; "));
                }
                Ok(kernel) => {
                    log::warn!(
                        "{format}: {kernel} does not give the reference's sums on this machine"
                    );
                    reasons.push(format!("{kernel}: not the reference's sums"));
                }
                Err(why) => reasons.push(why),
            }
        }
        if reasons.is_empty() {
            reasons.push("a processor without kernels".to_owned());
        }
        (None, reasons.join("; "))
    }

    /// As [`LowKernel::detect`] in int8, the reference itself where no other is right.
    pub(crate) fn right_int8(level: CpuLevel) -> Self {
        let (kernel, _) = Self::detect(LowFormat::Int8, level);
        kernel.unwrap_or(Self::ScalarInt8)
    }

    /// Of a kernel that was developed on machines without its instructions.
    fn caveat(self) -> Option<&'static str> {
        match self {
            #[cfg(target_arch = "aarch64")]
            Self::NeonInt8(_) => Some("developed with an emulator, not timed yet"),
            _ => None,
        }
    }

    /// The numbers that it multiplies.
    pub(crate) fn format(self) -> LowFormat {
        struct FormatOf;
        impl Job for FormatOf {
            type Output = LowFormat;

            #[inline(always)]
            fn run<W: Wide>(self, _: W) -> LowFormat {
                W::Numbers::FORMAT
            }
        }
        self.run(FormatOf)
    }

    /// Whether its products are AMX's.
    pub(crate) fn has_tiles(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::AmxInt8(_) | Self::AmxBf16(_) => true,
            #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
            Self::EmulatedInt8 | Self::EmulatedBf16 => true,
            _ => false,
        }
    }

    /// Runs `job` at this kernel's level.
    pub(crate) fn run<J: Job>(self, job: J) -> J::Output {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::AmxInt8(level) => amx::Tiles::with(level.products, |tiles| {
                level.simd.vectorize(JobAt(job, level.with(tiles)))
            }),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::AmxBf16(level) => amx::Tiles::with(level.products, |tiles| {
                level.simd.vectorize(JobAt(job, level.with(tiles)))
            }),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Int8(level) => level.simd.vectorize(JobAt(job, level)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(level) => level.simd.vectorize(JobAt(job, level)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Int8(level) => level.simd.vectorize(JobAt(job, level)),
            #[cfg(target_arch = "aarch64")]
            Self::NeonInt8(level) => job.run(level),
            Self::ScalarInt8 => job.run(Scalar(Plain::<Int8>::new())),
            #[cfg(test)]
            Self::ScalarBf16 => job.run(Scalar(Plain::<Bf16>::new())),
            #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
            Self::EmulatedInt8 => {
                let emulation = amx::Emulation::<Int8>::default();
                amx::Tiles::with(&emulation, |tiles| job.run(Scalar(tiles)))
            }
            #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
            Self::EmulatedBf16 => {
                let emulation = amx::Emulation::<Bf16>::default();
                amx::Tiles::with(&emulation, |tiles| job.run(Scalar(tiles)))
            }
        }
    }
}

#[cfg(test)]
impl LowKernel {
    /// Those of `format` that this machine runs, the fastest first; then the reference, and an
    /// emulation.
    pub(crate) fn available(format: LowFormat) -> Vec<Self> {
        let found = Self::look(format, CpuLevel::Auto).into_iter().flatten();
        found.chain(Self::for_tests(format)).collect()
    }

    fn for_tests(format: LowFormat) -> Vec<Self> {
        match format {
            LowFormat::Int8 => vec![
                Self::ScalarInt8,
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Self::EmulatedInt8,
            ],
            LowFormat::Bf16 => vec![
                Self::ScalarBf16,
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Self::EmulatedBf16,
            ],
        }
    }

    /// Whether it has to do with few prompts.
    pub(crate) fn is_slow(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::EmulatedInt8 | Self::EmulatedBf16 => true,
            kernel => matches!(kernel, Self::ScalarInt8 | Self::ScalarBf16),
        }
    }
}

fn absent() -> String {
    "not on this CPU".to_owned()
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const AMX: &str = "AMX";
#[cfg(target_arch = "x86_64")]
const AVX512_INT8: &str = "AVX-512 VNNI";
#[cfg(target_arch = "x86_64")]
const AVX512_BF16: &str = "AVX-512 BF16";
#[cfg(target_arch = "x86_64")]
const AVX2_INT8: &str = "AVX-VNNI";
#[cfg(target_arch = "aarch64")]
const NEON_INT8: &str = "Arm dot products";

impl fmt::Display for LowKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::AmxInt8(_) | Self::AmxBf16(_) => AMX,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Int8(_) => AVX512_INT8,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) => AVX512_BF16,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Int8(_) => AVX2_INT8,
            #[cfg(target_arch = "aarch64")]
            Self::NeonInt8(_) => NEON_INT8,
            Self::ScalarInt8 => "scalar",
            #[cfg(test)]
            Self::ScalarBf16 => "scalar",
            #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
            Self::EmulatedInt8 | Self::EmulatedBf16 => "AMX, emulated",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [LowFormat; 2] = [LowFormat::Int8, LowFormat::Bf16];

    #[test]
    fn the_first_kernel_that_is_right_is_taken_and_the_others_have_a_reason() {
        for format in FORMATS {
            let (kernel, why) = LowKernel::detect(format, CpuLevel::Auto);
            let name = kernel.map_or("none".to_owned(), |kernel| kernel.to_string());
            if let (LowFormat::Int8, Ok(want)) = (format, std::env::var("HUBROUTER_TEST_INT8")) {
                assert_eq!(name, want, "{why}");
            }
            let reasons: Vec<&str> = why.split("; ").collect();
            let looked = LowKernel::look(format, CpuLevel::Auto);
            let absent = looked.iter().take_while(|found| found.is_err());
            let before = absent.clone().count();
            for (found, reason) in absent.zip(&reasons) {
                assert_eq!(found.as_ref().err().map(String::as_str), Some(*reason));
            }
            match kernel {
                Some(kernel) => {
                    assert_eq!(kernel.format(), format);
                    assert_eq!(reasons[before], format!("{name}: the reference's sums"));
                }
                None => assert_eq!(before, looked.len(), "{why}"),
            }
        }
        let (kernel, _) = LowKernel::detect(LowFormat::Int8, CpuLevel::Auto);
        let right = LowKernel::right_int8(CpuLevel::Auto).to_string();
        assert_eq!(right == "scalar", kernel.is_none());
    }

    #[test]
    fn a_level_leaves_the_kernels_of_others_out() {
        let levels = [
            CpuLevel::Amx,
            CpuLevel::Avx512,
            CpuLevel::Avx2,
            CpuLevel::Neon,
        ];
        for format in FORMATS {
            let all = LowKernel::look(format, CpuLevel::Auto)
                .into_iter()
                .flatten();
            let mut one_by_one = Vec::new();
            for level in levels {
                let of_level: Vec<LowKernel> = LowKernel::look(format, level)
                    .into_iter()
                    .flatten()
                    .collect();
                assert!(of_level.len() < 2, "{format}, {level}");
                one_by_one.extend(of_level.iter().map(LowKernel::to_string));
            }
            assert_eq!(
                one_by_one,
                all.map(|kernel| kernel.to_string()).collect::<Vec<_>>()
            );
            let (none, why) = LowKernel::detect(format, CpuLevel::Portable);
            assert!(none.is_none());
            if cfg!(target_arch = "x86_64") {
                assert!(why.contains("not of the level portable"), "{why}");
            }
        }
    }

    /// A kernel whose sums are wrong from a row on.
    #[derive(Clone, Copy)]
    struct Wrong<N>(usize, Plain<N>);

    impl<N: Numbers> super::super::wide::Dot for Wrong<N> {
        type Numbers = N;

        const TALL: usize = 9;

        fn dot(self, rows: usize, a: &[LowLine], panel: &[LowLine], sums: &mut Sums<N::Sum>) {
            self.1.dot(rows, a, panel, sums);
            if rows > self.0 {
                sums.0[self.0][1][15] = sums.0[0][0][0];
            }
        }
    }

    #[test]
    fn a_kernel_that_is_wrong_in_one_place_is_noticed() {
        assert!(are_right(Scalar(Wrong(9, Plain::<Int8>::new()))));
        assert!(!are_right(Scalar(Wrong(8, Plain::<Int8>::new()))));
        assert!(are_right(Scalar(Wrong(9, Plain::<Bf16>::new()))));
        assert!(!are_right(Scalar(Wrong(8, Plain::<Bf16>::new()))));
    }
}
