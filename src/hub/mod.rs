//! The hub: the models with their names, domains, families and cards.

pub(crate) mod cards;
mod domains;
mod lifecycle;
mod mask;
pub(crate) mod near;
mod registry;

pub use cards::{ModelCard, read_models};
pub(crate) use domains::Domains;
pub(crate) use mask::ModelMask;
pub use registry::{Hub, Model, ModelId};

/// A domain as it is compared: trimmed, lower-case, runs of white space one space; `unknown` for
/// none (carve.md section 1).
pub(crate) fn domain_key(domain: &str) -> String {
    let words: Vec<String> = domain.split_whitespace().map(str::to_lowercase).collect();
    if words.is_empty() {
        "unknown".to_owned()
    } else {
        words.join(" ")
    }
}

/// The parent group of a domain, which comes as [`domain_key`] gives it (carve.md section 1).
pub(crate) fn parent_group(domain: &str) -> &str {
    const GROUPS: [&str; 8] = [
        "natural language processing",
        "computer vision",
        "audio",
        "multimodal",
        "tabular",
        "reinforcement learning",
        "time series",
        "graph",
    ];
    if domain == "unknown" {
        return "other";
    }
    let first_word = domain.split(' ').next().unwrap_or(domain);
    GROUPS
        .into_iter()
        .find(|group| domain.starts_with(group))
        .unwrap_or(first_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// carve.md V1
    #[test]
    fn parent_groups_of_domains_v1() {
        for (domain, want) in [
            ("Audio Audio Classification", "audio"),
            (
                "  Natural  Language Processing Translation",
                "natural language processing",
            ),
            ("Graph Machine Learning", "graph"),
            ("unknown", "other"),
            (" ", "other"),
            ("Robotics Foo", "robotics"),
        ] {
            assert_eq!(parent_group(&domain_key(domain)), want);
        }
    }
}
