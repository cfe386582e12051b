//! Enumerated settings and the words for them.

use serde::{Deserialize, Serialize};

/// The words of an enum of settings, as they are written in files and after `--set`.
macro_rules! words {
    ($(#[$doc:meta])* $visible:vis $name:ident { $($(#[$variant_doc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        $visible enum $name { $($(#[$variant_doc])* $variant),+ }
    };
}

words! {
    /// Which updates train adapters, W and E. The others add their prompts to the memory only.
    pub(crate) Train {
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
    pub(crate) InitProfile {
        /// Random, Xavier uniform.
        Random,
        /// W the identity, rows of E from the cards.
        Card,
    }
}
words! {
    /// Initial rows of new models.
    pub(crate) InitRows {
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
    pub(crate) CandidateMode {
        /// A new random list for each example and step.
        Sampled,
        /// The whole registry.
        All,
    }
}
words! {
    /// The score by which hard negatives are ranked.
    pub(crate) MiningScore {
        /// The cosine.
        Cosine,
        /// The dot product with the row, as in the reference implementation.
        Dot,
    }
}
words! {
    /// Where the neighbours' mass goes if no neighbour is a candidate.
    pub(crate) Leftover {
        /// It is dropped; the target sums to 1 - eps.
        Drop,
        /// To the gold.
        Renormalise,
    }
}
words! {
    /// Which earlier prompts are replayed.
    pub(crate) ReplayStrategy {
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
    #[non_exhaustive]
    pub Privacy {
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
    pub(crate) Regulariser {
        /// The embedding and the projection anchor.
        Anchors,
        /// Elastic weight consolidation.
        Ewc,
    }
}
words! {
    /// Which old rows of E are anchored.
    pub(crate) AnchorRows {
        /// All.
        AllOld,
        /// Golds and candidates of the micro-batch.
        Touched,
    }
}
words! {
    /// The distance of the embedding anchor.
    pub(crate) AnchorForm {
        /// 1 - cosine.
        Normalized,
        /// The mean square of the difference.
        Raw,
    }
}
words! {
    /// When anchors act.
    pub(crate) AnchorPhase {
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
    pub(crate) EwcMode {
        /// One sum that decays.
        Online,
        /// All are kept separately.
        Separate,
    }
}
words! {
    /// Parameters that EWC protects.
    pub(crate) EwcScope {
        /// W and the old rows of E.
        Router,
        /// The adapters too.
        All,
    }
}
words! {
    /// The rows of an update that are distilled.
    pub(crate) LwfRows {
        /// Those whose gold the parent knows.
        OldGold,
        /// All.
        All,
    }
}
words! {
    /// How batches are drawn.
    pub(crate) Batching {
        /// A random permutation.
        Shuffled,
        /// Batches of one domain, in turns.
        Domain,
    }
}
words! {
    /// Which rows of E an optimiser step moves.
    pub(crate) AdamwRows {
        /// All, as in the method: a row without a gradient still has momentum and weight decay.
        All,
        /// Golds and candidates of the step. The others keep value and moments, without decay.
        Touched,
    }
}
words! {
    /// The learning rate of W and E within an update.
    pub(crate) RouterRate {
        /// Warm-up, then down to 0, like the adapters'.
        Linear,
        /// Constant in each phase.
        Constant,
    }
}
words! {
    /// Whose gradient norm is clipped.
    pub(crate) ClipScope {
        /// The adapters'.
        Lora,
        /// That of all trained parameters together.
        All,
    }
}
