//! The settings of learning: every number of the method, by name (carve.md).

mod keys;
mod words;

use serde::{Deserialize, Serialize};

use crate::error::{Result, bail};
use crate::memory::Strengths;
use crate::model::lora::Target;
pub use words::Privacy;
pub(crate) use words::{
    AdamwRows, AnchorForm, AnchorPhase, AnchorRows, Batching, CandidateMode, ClipScope, EwcMode,
    EwcScope, InitProfile, InitRows, Leftover, LwfRows, MiningScore, Regulariser, ReplayStrategy,
    RouterRate, Train,
};

use crate::memory::PriorMean;

/// Size of W at which the paper gives the strength of the projection anchor.
const PAPER_WEIGHTS: f64 = 1024.0 * 4096.0;

/// Everything that can be set about learning; [`Settings::edge`] by default.
///
/// A setting is read with [`Settings::pairs`] and changed with [`Settings::set`]. In both, and in JSON, a field is named with a dot after its first word where it
/// belongs to a group: `lora_r` is `lora.r`, `lr_phase1_w` is `lr.phase1.w`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Settings {
    /// Which updates train the adapters, W and E.
    pub(crate) train: Train,
    /// Examples to learn from that an update needs so that `train = first` trains in it.
    #[serde(rename = "train.least")]
    pub(crate) train_least: usize,
    /// Keep a memory of the prompts, and add its score to the learned one.
    pub(crate) memory: bool,
    /// Layers of the encoder that the memory uses, from 1, ascending; empty: the upper two thirds,
    /// fewer of a wide encoder. A store that has a memory keeps its layers.
    #[serde(rename = "memory.layers")]
    pub(crate) memory_layers: Vec<usize>,
    /// Dimensions of the memory's keys, at most.
    #[serde(rename = "memory.rank")]
    pub(crate) memory_rank: usize,
    /// Prior mean of a model in the memory.
    #[serde(rename = "memory.prior")]
    pub(crate) memory_prior: PriorMean,
    /// Weight of the learned score beside a memory.
    #[serde(rename = "strength.learned")]
    pub(crate) strength_learned: f64,
    /// Weight of the memory's log-likelihood.
    #[serde(rename = "strength.memory")]
    pub(crate) strength_memory: f64,
    /// Weight of the log-probability of the domain by the prompt's words.
    #[serde(rename = "strength.words")]
    pub(crate) strength_words: f64,
    /// Bonus of a model without a learned prompt.
    #[serde(rename = "strength.newcomer")]
    pub(crate) strength_newcomer: f64,
    /// Temperature of the scores.
    pub(crate) tau: f64,
    /// Router width D of a first update; `None`: the encoder's width H.
    pub(crate) width: Option<usize>,
    /// Initial W and E of the first update.
    #[serde(rename = "init.profile")]
    pub(crate) init_profile: InitProfile,
    /// Initial rows of new models.
    #[serde(rename = "init.rows")]
    pub(crate) init_rows: InitRows,
    /// Train adapters of the encoder.
    #[serde(rename = "lora.train")]
    pub(crate) lora_train: bool,
    /// Rank of an adapter.
    #[serde(rename = "lora.r")]
    pub(crate) lora_r: usize,
    /// An adapter's product is scaled by alpha / r.
    #[serde(rename = "lora.alpha")]
    pub(crate) lora_alpha: f64,
    /// Share of an adapter's inputs that is dropped while it is trained.
    #[serde(rename = "lora.dropout")]
    pub(crate) lora_dropout: f64,
    /// Maps that have adapters.
    #[serde(rename = "lora.targets")]
    pub(crate) lora_targets: Vec<Target>,
    /// Which models an example is scored against.
    pub(crate) candidates: CandidateMode,
    /// Models of a candidate set, the gold included: K.
    #[serde(rename = "candidates.k")]
    pub(crate) candidates_k: usize,
    /// Mined models of a set, at most.
    #[serde(rename = "candidates.hard")]
    pub(crate) candidates_hard: usize,
    /// Models of the domain's parent group.
    #[serde(rename = "candidates.semantic")]
    pub(crate) candidates_semantic: usize,
    /// Models of other domains.
    #[serde(rename = "candidates.far")]
    pub(crate) candidates_far: usize,
    /// Domains that semantic and hard models come from, at most.
    #[serde(rename = "candidates.max_domains")]
    pub(crate) candidates_max_domains: usize,
    /// Optimiser steps from one mining to the next.
    #[serde(rename = "mining.every")]
    pub(crate) mining_every: usize,
    /// The score by which hard negatives are ranked.
    #[serde(rename = "mining.score")]
    pub(crate) mining_score: MiningScore,
    /// Models that are ranked for an example, at most.
    #[serde(rename = "mining.pool")]
    pub(crate) mining_pool: usize,
    /// The best of them that are kept.
    #[serde(rename = "mining.kept")]
    pub(crate) mining_kept: usize,
    /// Mass that the gold's neighbours share; 0: hard targets.
    #[serde(rename = "soft.eps")]
    pub(crate) soft_eps: f64,
    /// Neighbours of a gold, at most.
    #[serde(rename = "soft.k")]
    pub(crate) soft_k: usize,
    /// Where their mass goes if none is a candidate.
    #[serde(rename = "soft.leftover")]
    pub(crate) soft_leftover: Leftover,
    /// Logit adjustment of old models that no current example names, while training: the logarithm
    /// of the share of their prompts that is left among the training rows. Without it a softmax
    /// learns that they are rare. 0: CARvE as published.
    ///
    /// Source: logit adjustment, Menon et al., "Long-tail learning via logit adjustment" (2021).
    #[serde(rename = "prior.old")]
    pub(crate) prior_old: f64,
    /// Share of each update's prompts that later updates replay.
    #[serde(rename = "replay.ratio")]
    pub(crate) replay_ratio: f64,
    /// Which prompts those are.
    #[serde(rename = "replay.strategy")]
    pub(crate) replay_strategy: ReplayStrategy,
    /// Weight of a replayed row in phase 1; others have 1.
    #[serde(rename = "replay.weight")]
    pub(crate) replay_weight: f64,
    /// Rows of a domain that a coreset begins with, at least.
    #[serde(rename = "replay.min_per_domain")]
    pub(crate) replay_min_per_domain: usize,
    /// Rows of a model that a coreset begins with, at most.
    #[serde(rename = "replay.per_model")]
    pub(crate) replay_per_model: usize,
    /// In which form prompts are kept.
    #[serde(rename = "replay.privacy")]
    pub(crate) replay_privacy: Privacy,
    /// Keep one example in eight out, to measure on now and later.
    pub(crate) hold_out: bool,
    /// How W and the old rows of E are kept near the parent's.
    pub(crate) regulariser: Regulariser,
    /// Strength of the embedding anchor; see [`Settings::embedding_strength`].
    #[serde(rename = "anchor.embedding")]
    pub(crate) anchor_embedding: f64,
    /// Strength of the projection anchor for a W of 1024 x 4096; see
    /// [`Settings::projection_strength`].
    #[serde(rename = "anchor.projection")]
    pub(crate) anchor_projection: f64,
    /// Which old rows are anchored.
    #[serde(rename = "anchor.rows")]
    pub(crate) anchor_rows: AnchorRows,
    /// The distance of the embedding anchor.
    #[serde(rename = "anchor.form")]
    pub(crate) anchor_form: AnchorForm,
    /// When anchors, or EWC in their place, act.
    #[serde(rename = "anchor.phase")]
    pub(crate) anchor_phase: AnchorPhase,
    /// Strength of EWC.
    #[serde(rename = "ewc.lambda")]
    pub(crate) ewc_lambda: f64,
    /// How Fisher weights of several updates are combined.
    #[serde(rename = "ewc.mode")]
    pub(crate) ewc_mode: EwcMode,
    /// Share of the older Fisher weights that stays with `online`.
    #[serde(rename = "ewc.decay")]
    pub(crate) ewc_decay: f64,
    /// Parameters that EWC protects.
    #[serde(rename = "ewc.scope")]
    pub(crate) ewc_scope: EwcScope,
    /// Strength of learning without forgetting: the parent's scores of its models are distilled
    /// into the child. 0: off; 1: as published. The scores of all distilled rows are kept in
    /// memory, 4 bytes per row and model.
    ///
    /// Source: Li and Hoiem, "Learning without Forgetting" (2016).
    #[serde(rename = "lwf.alpha")]
    pub(crate) lwf_alpha: f64,
    /// Temperature of the distillation: scores are divided by it.
    #[serde(rename = "lwf.temperature")]
    pub(crate) lwf_temperature: f64,
    /// Which rows are distilled.
    #[serde(rename = "lwf.rows")]
    pub(crate) lwf_rows: LwfRows,
    /// How batches are drawn.
    pub(crate) batching: Batching,
    /// Rows of a micro-batch: B.
    pub(crate) batch: usize,
    /// Micro-batches of an optimiser step: G.
    pub(crate) accumulate: usize,
    /// Epochs of an experience.
    pub(crate) epochs: usize,
    /// Share of the steps in phase 1, from the second update on; 0: one phase.
    pub(crate) phase_split: f64,
    /// Steps until a linear rate reaches its peak.
    pub(crate) warm_up: usize,
    /// Learning rate of the adapters.
    #[serde(rename = "lr.lora")]
    pub(crate) lr_lora: f64,
    /// Learning rate of W.
    #[serde(rename = "lr.w")]
    pub(crate) lr_w: f64,
    /// Learning rate of E.
    #[serde(rename = "lr.e")]
    pub(crate) lr_e: f64,
    /// Learning rate of W in phase 1.
    #[serde(rename = "lr.phase1.w")]
    pub(crate) lr_phase1_w: f64,
    /// Learning rate of E in phase 1.
    #[serde(rename = "lr.phase1.e")]
    pub(crate) lr_phase1_e: f64,
    /// How the rates of W and E change with the step.
    #[serde(rename = "lr.router")]
    pub(crate) lr_router: RouterRate,
    /// Which rows of E a step moves. With `touched` and sampled candidates the cost of a step does
    /// not depend on the hub's size; it needs `anchor.rows = touched`.
    ///
    /// All rows of E share one step counter. A row that is named in a share p of the steps moves
    /// about sqrt(p) times as far as with `all`, where momentum acts between its gradients and the
    /// mean square includes zeros.
    #[serde(rename = "adamw.rows")]
    pub(crate) adamw_rows: AdamwRows,
    /// Decoupled weight decay of all trained parameters, per step and unit of learning rate.
    pub(crate) weight_decay: f64,
    /// Gradient norm, at most.
    pub(crate) clip: f64,
    /// Which parameters that norm is of.
    #[serde(rename = "clip.scope")]
    pub(crate) clip_scope: ClipScope,
    /// Seed of every random draw.
    pub(crate) seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self::edge()
    }
}

impl Settings {
    /// For a small sentence encoder: one update trains by CARvE, and from then on only the memory
    /// learns, which cannot forget. The values are carve.md's, tuned on a development split of
    /// CMRBench's training rows (benches/README.md).
    pub fn edge() -> Self {
        Self {
            train: Train::First,
            memory: true,
            init_profile: InitProfile::Card,
            candidates: CandidateMode::All,
            anchor_embedding: 1e2,
            anchor_phase: AnchorPhase::Both,
            prior_old: -3.0,
            replay_weight: 1.0,
            lr_lora: 5e-4,
            lr_w: 3e-4,
            lr_e: 2e-3,
            lr_phase1_w: 3e-4,
            lr_phase1_e: 2e-3,
            ..Self::base()
        }
    }

    /// carve.md's starting points for a small encoder (section 10).
    pub(crate) fn base() -> Self {
        use Target::{AttentionOutput, Intermediate, Key, Output, Query, Value};
        let usual = Strengths::default();
        Self {
            train: Train::Always,
            train_least: 500,
            memory: false,
            memory_layers: Vec::new(),
            memory_rank: 384,
            memory_prior: PriorMean::Card,
            strength_learned: usual.learned,
            strength_memory: usual.memory,
            strength_words: usual.words,
            strength_newcomer: usual.newcomer,
            tau: 0.08,
            width: None,
            init_profile: InitProfile::Random,
            init_rows: InitRows::Auto,
            lora_train: true,
            lora_r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            lora_targets: vec![Query, Key, Value, AttentionOutput, Intermediate, Output],
            candidates: CandidateMode::Sampled,
            candidates_k: 64,
            candidates_hard: 15,
            candidates_semantic: 38,
            candidates_far: 10,
            candidates_max_domains: 8,
            mining_every: 100,
            mining_score: MiningScore::Cosine,
            mining_pool: 2048,
            mining_kept: 50,
            soft_eps: 0.02,
            soft_k: 10,
            soft_leftover: Leftover::Drop,
            prior_old: 0.0,
            replay_ratio: 0.1,
            replay_strategy: ReplayStrategy::Coreset,
            replay_weight: 5.0,
            replay_min_per_domain: 5,
            replay_per_model: 3,
            replay_privacy: Privacy::Text,
            hold_out: true,
            regulariser: Regulariser::Anchors,
            anchor_embedding: 1e4,
            anchor_projection: 5e4,
            anchor_rows: AnchorRows::AllOld,
            anchor_form: AnchorForm::Normalized,
            anchor_phase: AnchorPhase::Phase1,
            ewc_lambda: 1e4,
            ewc_mode: EwcMode::Online,
            ewc_decay: 0.9,
            ewc_scope: EwcScope::Router,
            lwf_alpha: 0.0,
            lwf_temperature: 2.0,
            lwf_rows: LwfRows::OldGold,
            batching: Batching::Shuffled,
            batch: 32,
            accumulate: 1,
            epochs: 5,
            phase_split: 0.4,
            warm_up: 10,
            lr_lora: 1e-3,
            lr_w: 1e-3,
            lr_e: 5e-3,
            lr_phase1_w: 1e-3,
            lr_phase1_e: 5e-3,
            lr_router: RouterRate::Linear,
            adamw_rows: AdamwRows::All,
            weight_decay: 1e-3,
            clip: 1.0,
            clip_scope: ClipScope::Lora,
            seed: 0,
        }
    }

    /// The paper's numbers (carve.md section 10).
    pub fn paper() -> Self {
        Self {
            width: Some(1024),
            lora_r: 32,
            lora_alpha: 64.0,
            lora_dropout: 0.05,
            batching: Batching::Domain,
            batch: 16,
            accumulate: 8,
            lr_lora: 5e-4,
            lr_w: 3e-4,
            lr_e: 5e-5,
            lr_phase1_w: 1e-4,
            lr_phase1_e: 5e-5,
            lr_router: RouterRate::Constant,
            ..Self::base()
        }
    }

    /// Nothing is trained: examples are added to the memory of the encoder as it is.
    pub fn memory() -> Self {
        Self {
            train: Train::Never,
            replay_strategy: ReplayStrategy::None,
            ..Self::edge()
        }
    }

    /// CARvE at every update, with a memory that follows the encoder.
    pub fn carve() -> Self {
        Self {
            train: Train::Always,
            ..Self::edge()
        }
    }

    /// The settings called `edge`, `memory`, `carve` or `paper`.
    pub fn recipe(name: &str) -> Result<Self> {
        match name {
            "edge" => Ok(Self::edge()),
            "memory" => Ok(Self::memory()),
            "carve" => Ok(Self::carve()),
            "paper" => Ok(Self::paper()),
            _ => bail!(
                InvalidRequest,
                "recipe: expected edge, memory, carve or paper, found {name:?}"
            ),
        }
    }

    /// Weights of the parts of a score.
    pub(crate) fn strengths(&self) -> Strengths {
        Strengths {
            learned: self.strength_learned,
            memory: self.strength_memory,
            words: self.strength_words,
            newcomer: self.strength_newcomer,
        }
    }

    /// Checks settings that depend on the size of W, [D, H].
    pub(crate) fn check_width(&self, width: usize, inputs: usize) -> Result<()> {
        if self.init_profile == InitProfile::Card && width != inputs {
            bail!(
                InvalidRequest,
                "init.profile = card: expected a router as wide as the encoder, {inputs}, found \
                 {width}"
            );
        }
        Ok(())
    }

    /// Initial rows of new models, with `auto` resolved by the profile.
    pub(crate) fn rows(&self) -> InitRows {
        match (self.init_rows, self.init_profile) {
            (InitRows::Auto, InitProfile::Card) => InitRows::Card,
            (InitRows::Auto, InitProfile::Random) => InitRows::Random,
            (rows, _) => rows,
        }
    }

    /// Strength of the projection anchor for a W of [`width`, `inputs`]: the same pull on each
    /// element at every size (carve.md section 6.4).
    pub(crate) fn projection_strength(&self, width: usize, inputs: usize) -> f64 {
        self.anchor_projection * (width * inputs) as f64 / PAPER_WEIGHTS
    }

    /// Strength of the embedding anchor for rows of `width`: scaled in the `raw` form alone.
    pub(crate) fn embedding_strength(&self, width: usize) -> f64 {
        match self.anchor_form {
            AnchorForm::Normalized => self.anchor_embedding,
            AnchorForm::Raw => self.anchor_embedding * width as f64 / 1024.0,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn recipes_are_valid_and_survive_json() {
        for name in ["edge", "memory", "carve", "paper"] {
            let settings = Settings::recipe(name).unwrap();
            settings.validate().unwrap();
            let json = serde_json::to_string(&settings).unwrap();
            assert_eq!(serde_json::from_str::<Settings>(&json).unwrap(), settings);
        }
        assert!(Settings::recipe("cloud").is_err());
        let part: Settings = serde_json::from_str(r#"{"lr.phase1.w": 0.5}"#).unwrap();
        assert_eq!((part.lr_phase1_w, part.batch), (0.5, 32));
        assert!(serde_json::from_str::<Settings>(r#"{"lr_w": 0.5}"#).is_err());
    }

    #[test]
    fn rows_follow_the_profile() {
        let mut settings = Settings::base();
        assert_eq!(settings.rows(), InitRows::Random);
        settings.init_profile = InitProfile::Card;
        assert_eq!(settings.rows(), InitRows::Card);
        settings.init_rows = InitRows::Domain;
        assert_eq!(settings.rows(), InitRows::Domain);
        settings.check_width(384, 384).unwrap();
        assert!(settings.check_width(128, 384).is_err());
    }

    /// The strengths of carve.md V11.
    #[test]
    fn projection_strength_follows_the_size_v11() {
        let mut settings = Settings::base();
        for (width, inputs, want) in [
            (1024, 4096, 50000.0),
            (384, 384, 1757.8125),
            (384, 768, 3515.625),
            (256, 384, 1171.875),
            (3, 2, 0.071_525_573_730_468_75),
        ] {
            assert_eq!(settings.projection_strength(width, inputs), want);
        }
        assert_eq!(settings.embedding_strength(384), 1e4);
        settings.anchor_form = AnchorForm::Raw;
        assert_eq!(settings.embedding_strength(384), 3750.0);
    }
}
