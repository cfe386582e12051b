//! The choices among the settings.

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
    /// Which updates train the adapters, W and E. Those that do not encode each prompt once, and the
    /// memory takes it.
    Train {
        /// All: CARvE.
        Always,
        /// One: the first with at least `train.least` examples to learn from.
        First,
        /// None.
        Never,
    }
}
words! {
    /// How W and all of E start at the first experience.
    InitProfile {
        /// Drawn, Xavier uniform.
        Random,
        /// W the identity, rows of E from the cards.
        Card,
    }
}
words! {
    /// How the rows of new models start.
    InitRows {
        /// `card` in the `card` profile, else `random`.
        Auto,
        /// Drawn, Xavier uniform over the new rows.
        Random,
        /// The projected card.
        Card,
        /// The mean of the domain's old rows.
        Domain,
        /// A mixture of the old rows whose cards are near, by how near they are.
        CardMix,
    }
}
words! {
    /// Which models an example is scored against.
    CandidateMode {
        /// A list for each example, drawn anew each time.
        Sampled,
        /// The whole registry.
        All,
    }
}
words! {
    /// What hard negatives are ranked by.
    MiningScore {
        /// The cosine.
        Cosine,
        /// The dot product with the row as it is, as in the reference.
        Dot,
    }
}
words! {
    /// What becomes of the neighbours' mass when no neighbour is a candidate.
    Leftover {
        /// It is dropped; the target sums to 1 - eps.
        Drop,
        /// The gold gets it.
        Renormalise,
    }
}
words! {
    /// Which earlier prompts are learned again.
    ReplayStrategy {
        /// Far from each other, from every domain.
        Coreset,
        /// Drawn.
        Random,
        /// None.
        None,
    }
}
words! {
    /// What a generation keeps of a prompt that is to be learned again.
    Privacy {
        /// Its text.
        Text,
        /// Its pooled vector of the frozen encoder.
        Embeddings,
        /// Its hash alone: it can be found and removed, and not learned again.
        Hashes,
    }
}
words! {
    /// What holds W and the old rows of E.
    Regulariser {
        /// The embedding and the projection anchor.
        Anchors,
        /// Elastic weight consolidation.
        Ewc,
    }
}
words! {
    /// Which old rows of E are held.
    AnchorRows {
        /// All.
        AllOld,
        /// Golds and candidates of the micro-batch.
        Touched,
    }
}
words! {
    /// What the embedding anchor measures.
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
    /// How Fisher weights of several experiences meet.
    EwcMode {
        /// One sum that decays.
        Online,
        /// All are kept.
        Separate,
    }
}
words! {
    /// What EWC holds.
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
    /// How rows meet in batches.
    Batching {
        /// One permutation.
        Shuffled,
        /// Batches of one domain, in turns.
        Domain,
    }
}
words! {
    /// Which rows of E an optimiser step moves.
    AdamwRows {
        /// All, as the method says: a row without a gradient has its momentum and weight decay.
        All,
        /// Golds and candidates of the step: the others keep value and moments, without decay.
        Touched,
    }
}
words! {
    /// The learning rate of W and E within an experience.
    RouterRate {
        /// Warm-up, then down to 0, like the adapters'.
        Linear,
        /// As set, for each phase.
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
