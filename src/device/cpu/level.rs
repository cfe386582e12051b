//! The instructions that the CPU's kernels may use.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::gemm::Level;
#[cfg(target_arch = "x86_64")]
use super::low::LowKernel;
use crate::error::{Error, Result, bail, error};

/// The instructions that the CPU's kernels use: the best of this machine, or those of one level,
/// to compare them or to stay clear of one.
///
/// In int8 a prompt's vector has the same bits at all levels. `avx512` and `avx2` compute the same
/// bits in f32; others are within rounding, as is bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CpuLevel {
    /// The best that this machine has, for each precision.
    #[default]
    Auto,
    /// AMX in int8 and bf16, AVX-512 in f32.
    Amx,
    /// AVX-512 in f32, AVX-512 VNNI in int8, AVX-512 BF16 in bf16.
    Avx512,
    /// AVX2 in f32, AVX-VNNI in int8; no bf16.
    Avx2,
    /// 64-bit Arm: NEON in f32, dot products in int8; no bf16.
    Neon,
    /// In f32 what every CPU of this kind has; neither int8 nor bf16.
    Portable,
}

impl CpuLevel {
    const ALL: [Self; 6] = [
        Self::Auto,
        Self::Amx,
        Self::Avx512,
        Self::Avx2,
        Self::Neon,
        Self::Portable,
    ];

    /// The kernels in f32.
    ///
    /// Errors: this machine lacks the level.
    pub(super) fn in_f32(self) -> Result<Level> {
        match self.find() {
            Ok(level) => Ok(level),
            Err(why) => {
                let others = Self::ALL.iter().filter(|other| other.find().is_ok());
                let others: Vec<String> = others.map(Self::to_string).collect();
                bail!(
                    Unsupported,
                    "cpu level {self} (Options::cpu, HUBROUTER_CPU): expected one that this machine has \
                     ({}); {why}",
                    others.join(", ")
                )
            }
        }
    }

    /// Errors: why this machine lacks the level.
    fn find(self) -> Result<Level, String> {
        let available = Level::available();
        let has = |level: Level| match available.contains(&level) {
            true => Ok(level),
            false => Err(format!("{self} is not on this CPU")),
        };
        match self {
            Self::Auto => Ok(Level::detect()),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => match LowKernel::why_no_amx() {
                None => has(Level::Avx512),
                Some(why) => Err(format!("{self}: {why}")),
            },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => has(Level::Avx512),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => has(Level::Avx2),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => has(Level::Portable),
            Self::Portable => has(Level::Portable),
            #[allow(unreachable_patterns, reason = "levels of other processors")]
            _ => Err(format!("{self} is of another kind of processor")),
        }
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Amx => "amx",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        })
    }
}

impl FromStr for CpuLevel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let named = Self::ALL
            .into_iter()
            .find(|known| known.to_string() == text);
        named.ok_or_else(|| {
            error!(
                InvalidRequest,
                "cpu level: expected auto, amx, avx512, avx2, neon or portable, found {text:?}"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_level_is_what_it_is_called_and_another_word_is_an_error() {
        for level in CpuLevel::ALL {
            assert_eq!(level.to_string().parse::<CpuLevel>().unwrap(), level);
            let json = serde_json::to_string(&level).unwrap();
            assert_eq!(json, format!("\"{level}\""));
        }
        let error = "AVX2".parse::<CpuLevel>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains("found \"AVX2\""), "{error}");
    }

    #[test]
    fn a_level_that_the_machine_lacks_is_an_error_that_names_those_there_are() {
        assert_eq!(CpuLevel::Auto.in_f32().unwrap(), Level::detect());
        let portable = CpuLevel::Portable.in_f32().unwrap();
        assert_eq!(portable, Level::Portable);
        let lacks = match cfg!(target_arch = "x86_64") {
            true => CpuLevel::Neon,
            false => CpuLevel::Avx2,
        };
        let error = lacks.in_f32().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        for part in ["(auto, ", "portable)", "another kind of processor"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
