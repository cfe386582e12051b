//! Which shaders run without checks at run time, and why they may.
//!
//! A check costs a minimum at every index and a counter in every loop, which hinders unrolling. An
//! op's host side asserts the shape of every tensor before it dispatches, and dims are made of the
//! same shapes. So a kernel whose indices depend on dims and on its own place alone stays inside
//! once its guards are right. Tests run every op with poison behind each tensor
//! (`Gpu::guarding`), at sizes that divide nothing.

/// Why a shader is or is not trusted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Indices depend on dims and on the lane's place alone.
    Sizes,
    /// Indices depend on numbers that the host makes itself, of lengths that it counted.
    Counted(&'static str),
    /// Indices depend on ids: checks stay.
    Ids(&'static str),
    /// It takes too little time to be worth a proof: checks stay.
    Rare,
}

/// Every shader of `shaders/`.
const SHADERS: &[(&str, Trust)] = &[
    ("adamw", Trust::Ids("listed rows of E")),
    ("anchor", Trust::Ids("listed rows of E")),
    (
        "attention",
        Trust::Counted("offsets by `PackedBatch::new`, tiles of them by `query_tiles`"),
    ),
    ("contrastive", Trust::Ids("candidates and labels")),
    ("contrastive_all", Trust::Sizes),
    ("distill", Trust::Rare),
    ("dropout", Trust::Sizes),
    ("embed", Trust::Ids("tokens and positions")),
    (
        "finish",
        Trust::Counted("members, their domains and columns of words by `Groups::new`"),
    ),
    ("gelu", Trust::Sizes),
    ("layer_norm", Trust::Sizes),
    ("linear", Trust::Sizes),
    ("linear_matrix", Trust::Sizes),
    ("linear_skinny", Trust::Sizes),
    ("linear_tiled", Trust::Sizes),
    ("low_rank", Trust::Counted("jobs by `LayerJobs::new`")),
    ("matmul", Trust::Sizes),
    ("normalize", Trust::Sizes),
    ("peak", Trust::Rare),
    (
        "pool",
        Trust::Counted("offsets by `PackedBatch::new`, sources by `DeferredStream::new`"),
    ),
    ("score", Trust::Sizes),
    ("square", Trust::Rare),
];

/// Whether the shader `name` runs without checks; one that is not listed has them.
pub(super) fn is_trusted(name: &str) -> bool {
    let listed = SHADERS.iter().find(|(listed, _)| *listed == name);
    listed.is_some_and(|(_, trust)| matches!(trust, Trust::Sizes | Trust::Counted(_)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_shader_is_listed_with_its_reason() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
        let files = std::fs::read_dir(folder).unwrap();
        let names = files.filter_map(|file| {
            let name = file.unwrap().file_name().into_string().unwrap();
            Some(name.strip_suffix(".wgsl")?.to_owned())
        });
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        let listed: Vec<&str> = SHADERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, names);
    }
}
