//! Which kernels a GPU takes products by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, error};

/// The kernels that a GPU computes the encoder's products by. It is for tests and benches: all give
/// the same vectors but for the last bits (cosine within 2e-6).
///
/// A variant that the widths of an encoder or the adapter's memory exclude is replaced by the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceVariant {
    /// By rows, widths and the adapter's memory.
    #[default]
    Auto,
    /// The kernel for few rows.
    Skinny,
    /// The kernel for many rows.
    Tiled,
    /// The kernel for many rows on matrix units, where the adapter has such.
    Matrix,
    /// As `Matrix`, of factors that are rounded to f16: a third of its products, and vectors whose
    /// cosine with f32's is within 1e-5 of 1.
    Fast,
    /// The kernel for any widths, with norms of their own.
    Any,
}

impl DeviceVariant {
    const ALL: [Self; 6] = [
        Self::Auto,
        Self::Skinny,
        Self::Tiled,
        Self::Matrix,
        Self::Fast,
        Self::Any,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Skinny => "skinny",
            Self::Tiled => "tiled",
            Self::Matrix => "matrix",
            Self::Fast => "fast",
            Self::Any => "any",
        }
    }
}

impl fmt::Display for DeviceVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DeviceVariant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let named = Self::ALL.into_iter().find(|known| known.name() == text);
        named.ok_or_else(|| {
            error!(
                InvalidRequest,
                "device variant: expected {}, found {text:?}",
                Self::ALL.map(Self::name).join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_known_by_its_name_in_text_and_in_json() {
        for variant in DeviceVariant::ALL {
            assert_eq!(variant.to_string().parse().ok(), Some(variant));
            let json = format!("\"{variant}\"");
            assert_eq!(serde_json::from_str(&json).ok(), Some(variant));
        }
        let error = "plain".parse::<DeviceVariant>().err();
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(
            text.contains("auto, skinny, tiled, matrix, fast, any"),
            "{text}"
        );
    }
}
