//! The methods that are compared: one interface, a closed table of names (cmrbench.md section 8.2).

mod bm25;
mod centroid;
mod llm;
mod rar;
mod retrieval;
mod tfidf;
mod ties;
mod trained;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cmrbench::registry::LastStep;
use crate::cmrbench::{Chat, Data};
use crate::error::{Result, bail};
use crate::learn::{Control, Settings};
use crate::options::Options;
pub(crate) use retrieval::Frozen;
pub(crate) use trained::{Recipe, rank_by};

/// A predicted model with its score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Named {
    /// The model.
    pub model: String,
    /// The method's own score; higher is better.
    pub score: f64,
}

/// A method's report on the step that it has learned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StepReport {
    /// Optimiser steps.
    pub(crate) updates: usize,
    /// Rows that were learned, replayed ones included.
    pub(crate) rows: usize,
    /// Passed to [`Method::resume`] to go on from this step.
    pub(crate) state: String,
    /// The device that computed.
    pub(crate) device: String,
}

impl StepReport {
    /// A step without an optimiser, on this device.
    pub(crate) fn nothing(device: &str) -> Self {
        Self {
            updates: 0,
            rows: 0,
            state: String::new(),
            device: device.to_owned(),
        }
    }
}

/// How learning ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Progressed {
    Done(StepReport),
    /// The callback stopped it; the same call goes on from there.
    Stopped,
}

/// Called while a method learns, with the stage and the share that is done, from 0 to 1.
pub(crate) type Watching<'w> = &'w mut dyn FnMut(&str, f64) -> Control;

/// A method's answer to a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// The ten best models, best first.
    Models(Vec<Named>),
    /// Text that may be the name of a domain.
    Domain(String),
}

/// A router that learns one experience after the other and names models of the hub.
pub(crate) trait Method {
    /// Learns the experience of `step`, from 1, after all earlier ones.
    fn learn(&mut self, step: usize, watch: Watching<'_>) -> Result<Progressed>;

    /// Restores the state after `step`, which returned `state`.
    fn resume(&mut self, step: usize, state: &str) -> Result<()>;

    /// The ten best models of the hub for each prompt, best first; ties go by id.
    fn rank(&mut self, prompts: &[&str]) -> Result<Vec<Vec<Named>>>;

    /// The answers to `prompts`, eval rows of the experience `test`, from 1.
    fn answers(&mut self, _test: usize, prompts: &[&str]) -> Result<Vec<Answer>> {
        Ok(self
            .rank(prompts)?
            .into_iter()
            .map(Answer::Models)
            .collect())
    }

    /// The state after the last step, where there is a generation.
    fn kept(&self) -> Result<Option<LastStep>> {
        Ok(None)
    }
}

/// Models that are predicted for a prompt.
pub(crate) const NAMED: usize = 10;

/// The group of methods that a method is compared within.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Group {
    /// Retrieval by cards, or a language model that knows no model of the hub.
    Retrieval,
    /// Learns one experience after the other.
    Continual,
    /// Learns all rows of the past again.
    Bound,
    /// CARvE with one thing changed.
    Ablation,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum MethodKind {
    Bm25,
    TfIdf,
    Dense,
    Hybrid,
    Centroid,
    Trained(Recipe),
    Ties(ties::MergeForm),
    Augmented(rar::RarUpdate),
    Llm,
}

/// A row of the table of methods.
#[derive(Clone, Copy, Debug)]
pub struct MethodInfo {
    /// Its name on the command line and in file names.
    pub name: &'static str,
    /// Its name in tables and figures.
    pub label: &'static str,
    /// The group that it is compared within.
    pub group: Group,
    /// Share of every earlier experience that is learned again.
    pub replay: f64,
    kind: MethodKind,
}

/// The inputs that all methods of a benchmark share.
pub(crate) struct Common<'c> {
    pub(crate) data: &'c Data,
    /// The encoder's bundle.
    pub(crate) encoder: &'c Path,
    pub(crate) options: &'c Options,
    /// Vectors of the frozen encoder, made once for all methods.
    pub(crate) frozen: &'c Frozen,
    /// Epochs of each experience.
    pub(crate) epochs: &'c [usize],
    /// Settings that are changed in every trained method.
    pub(crate) changes: &'c [(String, String)],
    /// The language model, where there is one.
    pub(crate) chat: Option<&'c Chat>,
}

impl MethodInfo {
    /// Whether the method draws nothing, so that one run is enough.
    pub fn deterministic(&self) -> bool {
        match self.kind {
            MethodKind::Trained(recipe) => recipe.draws_nothing(),
            MethodKind::Ties(_) | MethodKind::Augmented(_) | MethodKind::Llm => false,
            _ => true,
        }
    }

    /// The settings of a method that trains at `step`, from 1.
    pub(crate) fn settings(
        &self,
        common: &Common<'_>,
        seed: u64,
        step: usize,
    ) -> Result<Option<Settings>> {
        match self.kind {
            MethodKind::Trained(recipe) => recipe.settings(common, seed, step).map(Some),
            MethodKind::Ties(_) => ties::settings(common, seed, step).map(Some),
            MethodKind::Augmented(update) => update.settings(common, seed, step),
            _ => Ok(None),
        }
    }

    /// Whether prompts pass through the encoder.
    pub(crate) fn encodes(&self) -> bool {
        let without = [
            MethodKind::Bm25,
            MethodKind::TfIdf,
            MethodKind::Centroid,
            MethodKind::Llm,
        ];
        !without.contains(&self.kind)
    }

    /// Whether the encoder reads a card behind every prompt.
    pub(crate) fn reads_cards(&self) -> bool {
        matches!(self.kind, MethodKind::Augmented(_))
    }

    /// Whether only the last step is run, so that nothing can be forgotten.
    pub(crate) fn last_step_alone(&self) -> bool {
        match self.kind {
            MethodKind::Trained(recipe) => recipe.is_joint(),
            MethodKind::Llm => true,
            _ => false,
        }
    }

    /// Whether it asks a language model ([`Chat`]), which names domains and no models.
    pub fn asks_a_model(&self) -> bool {
        matches!(self.kind, MethodKind::Llm)
    }

    /// Whether no group includes it: it needs a language model, or hours.
    fn by_name_alone(&self) -> bool {
        self.asks_a_model() || self.kind == MethodKind::Augmented(rar::RarUpdate::Each)
    }

    /// Prompts between two reports of progress.
    pub(crate) fn stride(&self) -> usize {
        if self.asks_a_model() { 1 } else { 64 }
    }

    /// Rows that pass through an encoder or a table in `step`: an estimate of its time.
    pub(crate) fn work(&self, common: &Common<'_>, step: usize) -> f64 {
        let rows = |of: usize| common.data.experiences[of].train.len() as f64;
        let own = rows(step - 1);
        let earlier: f64 = (0..step - 1).map(rows).sum();
        let epochs = common.epochs[step - 1] as f64;
        match self.kind {
            MethodKind::Bm25 | MethodKind::TfIdf | MethodKind::Centroid | MethodKind::Llm => 1.0,
            MethodKind::Dense | MethodKind::Hybrid => {
                common.data.experiences[step - 1].cards.len() as f64
            }
            MethodKind::Trained(recipe) if recipe.is_joint() => {
                recipe.epochs(common, step) as f64 * (own + earlier)
            }
            MethodKind::Trained(_) | MethodKind::Ties(_) => epochs * (own + self.replay * earlier),
            MethodKind::Augmented(update) => update.work(common, step),
        }
    }

    /// The cost of an answer as a multiple of that of a prompt.
    pub(crate) fn longer(&self) -> f64 {
        match self.kind {
            MethodKind::Augmented(_) => rar::LONGER as f64,
            MethodKind::Llm => 1e4,
            _ => 1.0,
        }
    }

    /// The method, before its first step, with `folder` for what it writes.
    pub(crate) fn open<'c>(
        &self,
        common: &'c Common<'c>,
        seed: u64,
        folder: &Path,
    ) -> Result<Box<dyn Method + 'c>> {
        let retrieval = |scorer| Box::new(retrieval::Retrieval::new(common, scorer));
        Ok(match self.kind {
            MethodKind::Bm25 => retrieval(retrieval::CardScorer::Bm25),
            MethodKind::TfIdf => retrieval(retrieval::CardScorer::TfIdf),
            MethodKind::Dense => retrieval(retrieval::CardScorer::Dense),
            MethodKind::Hybrid => retrieval(retrieval::CardScorer::Hybrid),
            MethodKind::Centroid => Box::new(centroid::Centroids::new(common)),
            MethodKind::Trained(recipe) => {
                Box::new(trained::TrainedMethod::new(common, recipe, seed, folder))
            }
            MethodKind::Ties(form) => Box::new(ties::Ties::new(common, form, seed, folder)),
            MethodKind::Augmented(update) => {
                Box::new(rar::Augmented::new(common, update, seed, folder))
            }
            MethodKind::Llm => Box::new(llm::Controller::new(common, seed, folder)?),
        })
    }
}

const fn row(
    name: &'static str,
    label: &'static str,
    group: Group,
    replay: f64,
    kind: MethodKind,
) -> MethodInfo {
    MethodInfo {
        name,
        label,
        group,
        replay,
        kind,
    }
}

const fn ablation(
    name: &'static str,
    label: &'static str,
    change: &'static [(&'static str, &'static str)],
) -> MethodInfo {
    let kind = MethodKind::Trained(Recipe::carve("0.1", change));
    row(name, label, Group::Ablation, 0.1, kind)
}

/// The memory with one thing changed.
const fn memory(
    name: &'static str,
    label: &'static str,
    changes: &'static [(&'static str, &'static str)],
) -> MethodInfo {
    let kind = MethodKind::Trained(Recipe::memory(changes));
    row(name, label, Group::Ablation, 0.0, kind)
}

/// Elastic weight consolidation of all that is trained, at the strength that was best on the
/// development split (benches/README.md).
const EWC: &[(&str, &str)] = &[
    ("regulariser", "ewc"),
    ("ewc.scope", "all"),
    ("ewc.lambda", "1e5"),
];

/// The same in place of CARvE's anchors, where replay does most of the holding.
const CARVE_EWC: &[(&str, &str)] = &[("regulariser", "ewc"), ("ewc.lambda", "1e3")];

/// Every method, in the order of the tables. A new baseline is an entry here.
const METHODS: &[MethodInfo] = &[
    row(
        "bm25",
        "BM25 over cards",
        Group::Retrieval,
        0.0,
        MethodKind::Bm25,
    ),
    row(
        "tfidf",
        "TF-IDF, nearest card",
        Group::Retrieval,
        0.0,
        MethodKind::TfIdf,
    ),
    row(
        "dense",
        "Dense, frozen encoder",
        Group::Retrieval,
        0.0,
        MethodKind::Dense,
    ),
    row(
        "hybrid",
        "Hybrid, 0.7 dense + 0.3 BM25",
        Group::Retrieval,
        0.0,
        MethodKind::Hybrid,
    ),
    row(
        "rar-frozen",
        "Retrieval-augmented, learned once",
        Group::Retrieval,
        0.0,
        MethodKind::Augmented(rar::RarUpdate::Frozen),
    ),
    row(
        "rar-each",
        "Retrieval-augmented, learned at each step",
        Group::Retrieval,
        0.0,
        MethodKind::Augmented(rar::RarUpdate::Each),
    ),
    row(
        "llm",
        "LLM controller, domains alone",
        Group::Retrieval,
        0.0,
        MethodKind::Llm,
    ),
    row(
        "centroid",
        "Continual floor: centroids + cards",
        Group::Continual,
        0.0,
        MethodKind::Centroid,
    ),
    row(
        "sequential",
        "Sequential fine-tuning",
        Group::Continual,
        0.0,
        MethodKind::Trained(Recipe::plain("0")),
    ),
    row(
        "replay-5",
        "Random replay (5 %)",
        Group::Continual,
        0.05,
        MethodKind::Trained(Recipe::plain("0.05")),
    ),
    row(
        "replay-10",
        "Random replay (10 %)",
        Group::Continual,
        0.1,
        MethodKind::Trained(Recipe::plain("0.1")),
    ),
    row(
        "replay-20",
        "Random replay (20 %)",
        Group::Continual,
        0.2,
        MethodKind::Trained(Recipe::plain("0.2")),
    ),
    row(
        "ties-factors",
        "TIES merging of factors",
        Group::Continual,
        0.0,
        MethodKind::Ties(ties::MergeForm::Factors),
    ),
    row(
        "ties-product",
        "TIES merging of products",
        Group::Continual,
        0.0,
        MethodKind::Ties(ties::MergeForm::Product),
    ),
    row(
        "lwf",
        "LwF",
        Group::Continual,
        0.0,
        MethodKind::Trained(Recipe::plain("0").with(&[("lwf.alpha", "1")])),
    ),
    row(
        "ewc",
        "EWC",
        Group::Continual,
        0.0,
        MethodKind::Trained(Recipe::plain("0").with(EWC)),
    ),
    row(
        "carve-ewc",
        "CARvE EWC (10 %)",
        Group::Continual,
        0.1,
        MethodKind::Trained(Recipe::carve("0.1", CARVE_EWC)),
    ),
    row(
        "carve-5",
        "CARvE (5 %)",
        Group::Continual,
        0.05,
        MethodKind::Trained(Recipe::carve("0.05", &[])),
    ),
    row(
        "carve-10",
        "CARvE (10 %)",
        Group::Continual,
        0.1,
        MethodKind::Trained(Recipe::carve("0.1", &[])),
    ),
    row(
        "carve-20",
        "CARvE (20 %)",
        Group::Continual,
        0.2,
        MethodKind::Trained(Recipe::carve("0.2", &[])),
    ),
    row(
        "memory",
        "Memory, nothing trained",
        Group::Continual,
        0.0,
        MethodKind::Trained(Recipe::memory(&[])),
    ),
    row(
        "first-session",
        "CARvE on E1, then memory",
        Group::Continual,
        0.0,
        MethodKind::Trained(Recipe::carve(
            "0",
            &[("train", "first"), ("train.least", "1"), ("memory", "true")],
        )),
    ),
    row(
        "carve-memory",
        "CARvE (10 %) + memory",
        Group::Continual,
        0.1,
        MethodKind::Trained(Recipe::carve("0.1", &[("memory", "true")])),
    ),
    row(
        "cumulative",
        "Cumulative",
        Group::Bound,
        1.0,
        MethodKind::Trained(Recipe::plain("1")),
    ),
    row(
        "carve-100",
        "CARvE (100 %)",
        Group::Bound,
        1.0,
        MethodKind::Trained(Recipe::carve("1", &[])),
    ),
    row(
        "joint",
        "Joint training",
        Group::Bound,
        0.0,
        MethodKind::Trained(Recipe::joint()),
    ),
    row(
        "joint-memory",
        "Joint training + memory",
        Group::Bound,
        0.0,
        MethodKind::Trained(Recipe::joint().with(&[("memory", "true")])),
    ),
    ablation(
        "no-embedding-anchor",
        "No embedding anchor",
        &[("anchor.embedding", "0")],
    ),
    ablation(
        "no-projection-anchor",
        "No projection anchor",
        &[("anchor.projection", "0")],
    ),
    ablation(
        "domain-rows",
        "Domain embedding initialisation",
        &[("init.rows", "domain")],
    ),
    ablation("card-rows", "New rows from cards", &[("init.rows", "card")]),
    ablation("random-rows", "New rows drawn", &[("init.rows", "random")]),
    ablation("one-phase", "One phase", &[("phase_split", "0")]),
    ablation(
        "no-replay-weight",
        "No replay weight",
        &[("replay.weight", "1")],
    ),
    ablation("no-prior", "No shift of old logits", &[("prior.old", "0")]),
    ablation("hard-targets", "Hard targets only", &[("soft.eps", "0")]),
    ablation(
        "sampled",
        "Sampled candidates",
        &[("candidates", "sampled")],
    ),
    ablation(
        "no-mining",
        "Sampled candidates, no mining",
        &[
            ("candidates", "sampled"),
            ("candidates.hard", "0"),
            ("candidates.semantic", "53"),
        ],
    ),
    ablation("full-softmax", "Full softmax", &[("candidates", "all")]),
    ablation(
        "random-replay",
        "Random replay",
        &[("replay.strategy", "random")],
    ),
    row(
        "no-replay",
        "No replay",
        Group::Ablation,
        0.0,
        MethodKind::Trained(Recipe::carve("0", &[])),
    ),
    ablation(
        "anchors-throughout",
        "Anchors in both phases",
        &[("anchor.phase", "both")],
    ),
    ablation(
        "anchors-phase-1",
        "Anchors in phase 1",
        &[("anchor.phase", "phase1")],
    ),
    ablation(
        "frozen-encoder",
        "Frozen encoder",
        &[("lora.train", "false")],
    ),
    memory(
        "memory-last",
        "Memory of the last layer",
        &[("memory.layers", "[6]")],
    ),
    memory(
        "memory-246",
        "Memory of layers 2, 4, 6",
        &[("memory.layers", "[2,4,6]")],
    ),
    memory(
        "memory-all-layers",
        "Memory of all layers",
        &[("memory.layers", "[1,2,3,4,5,6]")],
    ),
    memory(
        "memory-no-prior-mean",
        "Memory, means of all",
        &[("memory.prior", "all")],
    ),
    memory(
        "memory-no-card-map",
        "Memory, means of domains",
        &[("memory.prior", "domain")],
    ),
    memory(
        "memory-no-words",
        "Memory without words",
        &[("strength.words", "0")],
    ),
    memory(
        "memory-rank-128",
        "Memory of rank 128",
        &[("memory.rank", "128")],
    ),
];

/// Every method, in the order of the tables.
pub fn methods() -> &'static [MethodInfo] {
    METHODS
}

/// The method called `name`.
pub fn method(name: &str) -> Result<&'static MethodInfo> {
    match METHODS.iter().find(|method| method.name == name) {
        Some(method) => Ok(method),
        None => {
            let known: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
            bail!(
                InvalidRequest,
                "{name:?}: expected a method, retrieval, continual, bound, ablation, main or all; \
                 methods are {}",
                known.join(", ")
            )
        }
    }
}

/// The methods of `names` (methods, groups, `main` for all but ablations, `all`), each once, in the
/// order of the tables. Groups leave out an ablation that changes no setting of CARvE, since
/// CARvE's row is its result, and the method that asks a language model.
pub fn select(names: &[String]) -> Result<Vec<&'static MethodInfo>> {
    let mut chosen = vec![false; METHODS.len()];
    for name in names {
        let of = |method: &MethodInfo| match name.as_str() {
            "retrieval" => Some(method.group == Group::Retrieval),
            "continual" => Some(method.group == Group::Continual),
            "bound" => Some(method.group == Group::Bound),
            "ablation" => Some(method.group == Group::Ablation),
            "main" => Some(method.group != Group::Ablation),
            "all" => Some(true),
            _ => None,
        };
        for (place, method) in METHODS.iter().enumerate() {
            let fits = !method.by_name_alone() && method.changes_something();
            chosen[place] |= of(method).is_some_and(|in_it| in_it && fits);
        }
        if of(&METHODS[0]).is_none() {
            let wanted = method(name)?.name;
            for (place, method) in METHODS.iter().enumerate() {
                chosen[place] |= method.name == wanted;
            }
        }
    }
    let pairs = METHODS.iter().zip(chosen);
    let methods: Vec<_> = pairs
        .filter_map(|(method, chosen)| chosen.then_some(method))
        .collect();
    if methods.is_empty() {
        bail!(InvalidRequest, "expected at least one method, found none");
    }
    Ok(methods)
}

impl MethodInfo {
    fn changes_something(&self) -> bool {
        match self.kind {
            MethodKind::Trained(recipe) if self.group == Group::Ablation => {
                recipe.effective() != Recipe::carve("0.1", &[]).effective()
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::learn::ReplayStrategy;

    fn names(of: &[&str]) -> Vec<&'static str> {
        let of: Vec<String> = of.iter().map(|name| (*name).to_owned()).collect();
        select(&of)
            .unwrap()
            .iter()
            .map(|method| method.name)
            .collect()
    }

    #[test]
    fn selections() {
        assert_eq!(
            names(&["carve-10", "retrieval", "bm25"]),
            ["bm25", "tfidf", "dense", "hybrid", "rar-frozen", "carve-10"]
        );
        assert_eq!(names(&["llm"]), ["llm"]);
        assert!(!names(&["all"]).contains(&"llm"));
        assert_eq!(
            names(&["bound"]),
            ["cumulative", "carve-100", "joint", "joint-memory"]
        );
        let all: std::collections::BTreeSet<&str> = METHODS.iter().map(|m| m.name).collect();
        assert_eq!(all.len(), METHODS.len(), "a name is there once");
        let error = select(&["carve".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("\"carve\": expected a method") && error.contains("carve-10"),
            "{error}"
        );
        assert!(select(&[]).is_err());
        // Whatever CARvE's settings are, either candidate mode is its own row or a changed one.
        let ablations = names(&["ablation"]);
        assert!(ablations.contains(&"sampled") != ablations.contains(&"full-softmax"));
        assert!(ablations.contains(&"card-rows") != ablations.contains(&"random-rows"));
        assert_eq!(
            names(&["full-softmax"]),
            ["full-softmax"],
            "by name it is always there"
        );
    }

    /// carve.md sections 7, 12.3 and 12.5.
    #[test]
    fn rows_with_a_regulariser_change_nothing_else() {
        let base = |name: &str| match method(name).unwrap().kind {
            MethodKind::Trained(recipe) => recipe.base().unwrap(),
            kind => panic!("{kind:?}"),
        };
        let changed = |name: &str, from: &str| -> Vec<String> {
            let pairs = base(name).pairs().into_iter().zip(base(from).pairs());
            let other = pairs.filter(|(own, from)| own != from);
            other
                .map(|((key, value), _)| format!("{key}={value}"))
                .collect()
        };
        assert_eq!(changed("lwf", "sequential"), ["lwf.alpha=1.0"]);
        let ewc = changed("ewc", "sequential");
        assert!(ewc.contains(&"regulariser=\"ewc\"".to_owned()), "{ewc:?}");
        assert!(ewc.contains(&"ewc.scope=\"all\"".to_owned()), "{ewc:?}");
        assert!(ewc.len() <= 3 && base("ewc").phase_split == 0.0, "{ewc:?}");
        let anchored = changed("carve-ewc", "carve-10");
        assert!(
            anchored.contains(&"regulariser=\"ewc\"".to_owned()),
            "{anchored:?}"
        );
        let own =
            |change: &String| change.starts_with("regulariser") || change.starts_with("ewc.lambda");
        assert!(anchored.iter().all(own), "{anchored:?}");
    }

    /// Every row of the table is a set of settings that learning accepts.
    #[test]
    fn every_recipe_is_valid() {
        for method in METHODS {
            if let MethodKind::Trained(recipe) = method.kind {
                let settings = recipe.base().unwrap();
                settings.validate().unwrap();
                let replay = match settings.replay_strategy {
                    // The past is there without it.
                    _ if method.group == Group::Bound => continue,
                    ReplayStrategy::None => 0.0,
                    _ => settings.replay_ratio,
                };
                assert_eq!(method.replay, replay, "{}", method.name);
            }
        }
    }
}
