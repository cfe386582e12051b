//! The bound of each stage, by the numbers that the two runs computed in, and the reason for it.

use super::form::NumericMode;

/// A bound with its reason.
#[derive(Clone, Debug)]
pub(super) struct ParityBound {
    pub(super) limit: f64,
    /// Smallest cosine.
    pub(super) cosine: Option<f64>,
    pub(super) why: String,
}

impl ParityBound {
    /// Of what is equal or not.
    pub(super) fn equal(why: &str) -> Self {
        Self {
            limit: 0.0,
            cosine: None,
            why: why.to_owned(),
        }
    }
}

/// What a bound is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BoundOf {
    /// A layer's output, a pooled vector: after a layer norm, elements are about 1.
    Layer,
    /// Unit vectors.
    Query,
    /// Places in a memory, and what comes of them.
    Place,
    /// Scores and their parts.
    Score,
}

/// The looser of two kinds of numbers.
pub(super) fn looser(a: NumericMode, b: NumericMode) -> NumericMode {
    let loose = |mode: &NumericMode| match mode {
        NumericMode::F32 => 0,
        NumericMode::Tf32 => 1,
        NumericMode::F16 => 2,
        NumericMode::Bf16 => 3,
        NumericMode::Int8 => 4,
    };
    [a, b].into_iter().max_by_key(loose).unwrap_or(a)
}

/// The bound of `of` between a bundle of `bundle` numbers and a run of `own`.
pub(super) fn bound(of: BoundOf, bundle: NumericMode, own: NumericMode) -> ParityBound {
    let mode = looser(bundle, own);
    // By element of layers, of unit vectors, of the memory's places, of scores; and the cosine.
    let (limits, cosine, reason) = match mode {
        NumericMode::F32 => (
            [2e-5, 2e-5, 1e-4, 1e-4],
            0.999_999,
            "sums of f32 products in another order round differently",
        ),
        NumericMode::Tf32 => (
            [2e-2, 5e-3, 5e-2, 1e-1],
            0.999_5,
            "TF32 rounds the factors of products to 11 bits",
        ),
        NumericMode::F16 => (
            [3e-2, 1e-2, 5e-2, 1e-1],
            0.999,
            "f16 rounds weights and activations to 11 bits",
        ),
        NumericMode::Bf16 => (
            [2e-1, 5e-2, 5e-1, 5e-1],
            0.995,
            "bf16 rounds factors to 8 bits",
        ),
        NumericMode::Int8 => (
            [5e-1, 1e-1, 1.0, 1.0],
            0.98,
            "int8 rounds weights and activations to 8 bits with a scale a row",
        ),
    };
    let limit = match of {
        BoundOf::Layer => limits[0],
        BoundOf::Query => limits[1],
        BoundOf::Place => limits[2],
        BoundOf::Score => limits[3],
    };
    let vectors = matches!(of, BoundOf::Layer | BoundOf::Query);
    let sides = match bundle == own {
        true => format!("both are {mode}"),
        false => format!("the bundle is {bundle}, this run {own}; the looser counts"),
    };
    ParityBound {
        limit,
        cosine: vectors.then_some(cosine),
        why: format!("{sides}: {reason}"),
    }
}

/// The bound of a learning run's stage; the numbers of `bundle` can only make it looser, since
/// learning here is in f32.
pub(super) fn learning(limit: f64, why: &str, bundle: NumericMode) -> ParityBound {
    let factor = match bundle {
        NumericMode::F32 => 1.0,
        NumericMode::Tf32 | NumericMode::F16 => 100.0,
        NumericMode::Bf16 | NumericMode::Int8 => 1000.0,
    };
    let sides = match bundle {
        NumericMode::F32 => "both are f32".to_owned(),
        other => format!("the bundle is {other}: {factor} times the bound of f32"),
    };
    ParityBound {
        limit: limit * factor,
        cosine: None,
        why: format!("{sides}; {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use NumericMode::{Bf16, F16, F32, Int8, Tf32};

    #[test]
    fn the_looser_side_counts_and_is_named() {
        let of = |bundle, own| bound(BoundOf::Layer, bundle, own);
        assert_eq!(of(F32, F32).limit, 2e-5);
        assert_eq!(of(F32, Int8).limit, of(Int8, F32).limit);
        let why = of(Int8, F32).why;
        assert!(why.starts_with("the bundle is int8, this run f32"), "{why}");
        let limits = [F32, Tf32, F16, Bf16, Int8].map(|mode| of(mode, F32).limit);
        assert!(limits.is_sorted(), "{limits:?}");
        assert_eq!(learning(1e-4, "", F32).limit, 1e-4);
        assert!(learning(1e-4, "", Bf16).limit > 1e-2);
    }
}
