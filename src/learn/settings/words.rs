//! Enumerated settings and the words for them.

use serde::{Deserialize, Serialize};

/// The words of an enum of settings, as they are written in files and after `--set`.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }
    };
}

words! {
    /// Which updates train adapters, W and E. The others add their prompts to the memory only.
    Train {
        /// Every one, by CARvE.
        Always,
        /// The first one with at least `train.least` examples to learn from.
        First,
        /// None.
        Never,
    }
}
words! {
    /// Initial W and E of the first update.
    InitProfile {
        /// Random, Xavier uniform.
        Random,
        /// W the identity, rows of E from the cards.
        Card,
    }
}
words! {
    /// Initial rows of new models.
    InitRows {
        /// `card` in the `card` profile, else `random`.
        Auto,
        /// Random, Xavier uniform over the new rows.
        Random,
        /// The projected card.
        Card,
        /// The mean of the domain's old rows.
        Domain,
        /// A mixture of old rows, weighted by the similarity of their cards.
        CardMix,
    }
}
words! {
    /// Which models an example is scored against.
    CandidateMode {
        /// A new random list for each example and step.
        Sampled,
        /// The whole registry.
        All,
    }
}
words! {
    /// The score by which hard negatives are ranked.
    MiningScore {
        /// The cosine.
        Cosine,
        /// The dot product with the row, as in the reference implementation.
        Dot,
    }
}
words! {
    /// Where the neighbours' mass goes if no neighbour is a candidate.
    Leftover {
        /// It is dropped; the target sums to 1 - eps.
        Drop,
        /// To the gold.
        Renormalise,
    }
}
words! {
    /// Which earlier prompts are replayed.
    ReplayStrategy {
        /// Prompts of every domain that are far from each other.
        Coreset,
        /// Random ones.
        Random,
        /// None.
        None,
    }
}
words! {
    /// In which form a generation keeps a prompt to replay.
    Privacy {
        /// Its text.
        Text,
        /// Its pooled vector.
        Embeddings,
        /// Its SHA-256: it can be found and removed, but not replayed.
        Hashes,
    }
}
words! {
    /// How W and the old rows of E are kept near the parent's.
    Regulariser {
        /// The embedding and the projection anchor.
        Anchors,
        /// Elastic weight consolidation.
        Ewc,
    }
}
words! {
    /// Which old rows of E are anchored.
    AnchorRows {
        /// All.
        AllOld,
        /// Golds and candidates of the micro-batch.
        Touched,
    }
}
words! {
    /// The distance of the embedding anchor.
    AnchorForm {
        /// 1 - cosine.
        Normalized,
        /// The mean square of the difference.
        Raw,
    }
}
words! {
    /// When anchors act.
    AnchorPhase {
        /// While the encoder is frozen; in an update of one phase, always.
        Phase1,
        /// While adapters are trained.
        Phase2,
        /// Always.
        Both,
    }
}
words! {
    /// How Fisher weights of several updates are combined.
    EwcMode {
        /// One sum that decays.
        Online,
        /// All are kept separately.
        Separate,
    }
}
words! {
    /// Parameters that EWC protects.
    EwcScope {
        /// W and the old rows of E.
        Router,
        /// The adapters too.
        All,
    }
}
words! {
    /// The rows of an update that are distilled.
    LwfRows {
        /// Those whose gold the parent knows.
        OldGold,
        /// All.
        All,
    }
}
words! {
    /// How batches are drawn.
    Batching {
        /// A random permutation.
        Shuffled,
        /// Batches of one domain, in turns.
        Domain,
    }
}
words! {
    /// Which rows of E an optimiser step moves.
    AdamwRows {
        /// All, as in the method: a row without a gradient still has momentum and weight decay.
        All,
        /// Golds and candidates of the step. The others keep value and moments, without decay.
        Touched,
    }
}
words! {
    /// The learning rate of W and E within an update.
    RouterRate {
        /// Warm-up, then down to 0, like the adapters'.
        Linear,
        /// Constant in each phase.
        Constant,
    }
}
words! {
    /// Whose gradient norm is clipped.
    ClipScope {
        /// The adapters'.
        Lora,
        /// That of all trained parameters together.
        All,
    }
}
