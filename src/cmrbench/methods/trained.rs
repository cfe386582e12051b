//! Methods that train: sets of learning settings over one learner (carve.md sections 12 and 13).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Common, Method, NAMED, Named, Progressed, StepReport, Watching};
use crate::cmrbench::registry::LastStep;
use crate::cmrbench::{BenchRow, Data};
use crate::encoder::Encoder;
use crate::error::{Result, bail, error};
use crate::generation::{GenerationId, NewModel};
use crate::learn::{Example, Experience, Learner, Outcome, Settings};
use crate::route::Router;
use crate::store::Store;
use crate::{Decision, Precision, Request};

/// Prompts that are routed together.
const BATCH: usize = 32;

/// The plain step of all learned baselines: one phase, no regulariser, all rows with the same
/// weight (carve.md section 12).
const PLAIN: &[(&str, &str)] = &[
    ("phase_split", "0"),
    ("anchor.embedding", "0"),
    ("anchor.projection", "0"),
    ("replay.weight", "1"),
    ("prior.old", "0"),
];

/// Settings that the method or the plan decides, which no common change may touch.
const FIXED: [&str; 7] = [
    "replay.ratio",
    "replay.strategy",
    "hold_out",
    "memory",
    "train",
    "seed",
    "epochs",
];

/// Rows that a step learns, replayed ones apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Rows of its experience.
    Current,
    /// Rows of all experiences so far.
    Past,
    /// The same as `Past`, at the last step alone and from scratch.
    Joint,
}

/// A method as a set of settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Recipe {
    plain: bool,
    /// Nothing is trained: a memory takes the rows, and the encoder stays as it is.
    frozen: bool,
    scope: Scope,
    /// `replay.ratio`; `0`: no replay.
    replay: &'static str,
    changes: &'static [(&'static str, &'static str)],
}

impl Recipe {
    /// The plain step with random replay; with `1` the whole past is learned as if it were new.
    pub(crate) const fn plain(replay: &'static str) -> Self {
        let whole = matches!(replay.as_bytes(), b"1");
        Self {
            plain: true,
            frozen: false,
            scope: if whole { Scope::Past } else { Scope::Current },
            replay: if whole { "0" } else { replay },
            changes: &[],
        }
    }

    /// The plain step on all rows at once.
    pub(crate) const fn joint() -> Self {
        Self {
            plain: true,
            frozen: false,
            scope: Scope::Joint,
            replay: "0",
            changes: &[],
        }
    }

    /// CARvE as in [`Settings::edge`], with this replay and these changes.
    pub(crate) const fn carve(
        replay: &'static str,
        changes: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self {
            plain: false,
            frozen: false,
            scope: Scope::Current,
            replay,
            changes,
        }
    }

    /// A memory on the encoder as it is, with these changes.
    pub(crate) const fn memory(changes: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            frozen: true,
            ..Self::carve("0", changes)
        }
    }

    /// The same with these changes in place of its own.
    pub(crate) const fn with(self, changes: &'static [(&'static str, &'static str)]) -> Self {
        Self { changes, ..self }
    }

    /// Whether nothing is drawn, because no step trains.
    pub(crate) fn draws_nothing(self) -> bool {
        self.frozen
    }

    pub(crate) fn is_joint(self) -> bool {
        self.scope == Scope::Joint
    }

    /// The settings before seed and epochs.
    pub(crate) fn base(self) -> Result<Settings> {
        let mut settings = Settings::edge();
        settings.set("hold_out", "false")?;
        let (memory, train) = match self.frozen {
            true => ("true", "never"),
            false => ("false", "always"),
        };
        settings.set("memory", memory)?;
        settings.set("train", train)?;
        if self.replay == "0" {
            settings.set("replay.strategy", "none")?;
        } else {
            settings.set("replay.ratio", self.replay)?;
        }
        if self.plain {
            for (key, value) in PLAIN {
                settings.set(key, value)?;
            }
            if self.replay != "0" {
                settings.set("replay.strategy", "random")?;
            }
        }
        for (key, value) in self.changes {
            settings.set(key, value)?;
        }
        Ok(settings)
    }

    /// The same with `auto` resolved, for comparison.
    pub(crate) fn effective(self) -> Option<Settings> {
        let mut settings = self.base().ok()?;
        settings.init_rows = settings.rows();
        Some(settings)
    }

    /// The settings of `step`, from 1. The method's own changes override those for all methods.
    pub(crate) fn settings(self, common: &Common<'_>, seed: u64, step: usize) -> Result<Settings> {
        let mut settings = self.base()?;
        for (key, value) in common.changes {
            if FIXED.contains(&key.as_str()) {
                bail!(
                    InvalidRequest,
                    "{key}: expected a setting that all methods can share; this one is decided by \
                     the method, the seeds or the epochs"
                );
            }
            let own = self.changes.iter().any(|(own, _)| own == key)
                || self.plain && PLAIN.iter().any(|(own, _)| own == key);
            if !own {
                settings.set(key, value)?;
            }
        }
        settings.seed = seed;
        settings.epochs = self.epochs(common, step);
        settings.validate()?;
        Ok(settings)
    }

    /// Joint training passes over as many rows as sequential training does.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a mean of counts"
    )]
    pub(crate) fn epochs(self, common: &Common<'_>, step: usize) -> usize {
        if !self.is_joint() {
            return common.epochs[step - 1];
        }
        let rows = common.data.experiences[..step]
            .iter()
            .map(|e| e.train.len());
        let passes = rows
            .clone()
            .zip(common.epochs)
            .map(|(rows, epochs)| rows * epochs);
        let mean = passes.sum::<usize>() as f64 / rows.sum::<usize>().max(1) as f64;
        (mean.round() as usize).max(1)
    }

    fn first_experience(self, step: usize) -> usize {
        if self.scope == Scope::Current {
            step - 1
        } else {
            0
        }
    }
}

/// A row as an example for the learner.
pub(super) fn example(row: &BenchRow) -> Example {
    let mut example = Example::new(row.instruction.as_str(), row.model_name.as_str());
    example.domain = Some(row.domain.clone());
    example
}

pub(super) struct TrainedMethod<'c> {
    common: &'c Common<'c>,
    recipe: Recipe,
    seed: u64,
    /// The store of its generations.
    store: PathBuf,
    router: Option<Router>,
}

impl<'c> TrainedMethod<'c> {
    pub(super) fn new(common: &'c Common<'c>, recipe: Recipe, seed: u64, folder: &Path) -> Self {
        Self {
            common,
            recipe,
            seed,
            store: folder.join("store"),
            router: None,
        }
    }
}

impl Method for TrainedMethod<'_> {
    fn learn(&mut self, step: usize, watch: Watching<'_>) -> Result<Progressed> {
        let Common { data, .. } = self.common;
        let settings = self.recipe.settings(self.common, self.seed, step)?;
        if step == 1 || self.recipe.is_joint() {
            let encoder = Arc::new(Encoder::open(self.common.encoder, self.common.options)?);
            start(&encoder, &self.store, &data.hub(step))?;
        }
        self.router = None;
        let experience = experience(data, self.recipe.first_experience(step), step);
        match learn(self.common, &self.store, settings, &experience, watch)? {
            Some(learned) => {
                self.router = Some(open(self.common, &self.store)?);
                Ok(Progressed::Done(learned))
            }
            None => Ok(Progressed::Stopped),
        }
    }

    fn resume(&mut self, _step: usize, state: &str) -> Result<()> {
        self.router = Some(resume(self.common, &self.store, state)?);
        Ok(())
    }

    fn rank(&mut self, prompts: &[&str]) -> Result<Vec<Vec<Named>>> {
        rank(self.router.as_ref(), prompts)
    }

    fn kept(&self) -> Result<Option<LastStep>> {
        kept(&self.store).map(Some)
    }
}

/// The current generation of `store`.
pub(super) fn kept(store: &Path) -> Result<LastStep> {
    let store = Store::open(store)?;
    let contents = store.contents(&store.current()?)?;
    let models = contents.hub.iter();
    Ok(LastStep {
        models: models.map(|(_, model)| model.name.to_string()).collect(),
        width: contents.manifest.width,
        stored_bytes: contents.manifest.files().map(|(_, bytes, _)| bytes).sum(),
        embeddings: contents.embeddings,
    })
}

/// Points the store at its zero-shot generation of `models` and makes it if missing. A run that was
/// killed before its first step was noted learns that step again.
pub(super) fn start(encoder: &Arc<Encoder>, store: &Path, models: &[NewModel]) -> Result<()> {
    let store = Store::create(store)?;
    match store.ids()?.first() {
        Some(root) => store.set_current(root),
        None => store
            .build(encoder, models, "cmrbench", &mut |_, _| {})
            .map(|_| ()),
    }
}

/// Rows of the experiences `first..step`, models of the hub of `step`.
pub(super) fn experience(data: &Data, first: usize, step: usize) -> Experience {
    let rows = data.experiences[first..step].iter().flat_map(|e| &e.train);
    Experience {
        models: data.hub(step),
        examples: rows.map(example).collect(),
    }
}

/// Learns in `store` and publishes; `None`: the callback stopped it.
pub(super) fn learn(
    common: &Common<'_>,
    store: &Path,
    settings: Settings,
    experience: &Experience,
    watch: Watching<'_>,
) -> Result<Option<StepReport>> {
    let options = common.options.clone().encoder(common.encoder);
    let mut learner = Learner::open(store, None, settings, options)?
        .recipe("cmrbench")
        .introduce(true)
        .allow_unmeasured(true);
    let mut done = 0.0;
    let outcome = learner.learn(experience, None, &mut |status| {
        // Other stages come before the steps or behind them.
        if status.loss.is_some() {
            done = status.done as f64 / status.total.max(1) as f64;
        }
        watch(status.stage, done)
    })?;
    let Outcome::Learned(report) = outcome else {
        return Ok(None);
    };
    Ok(Some(StepReport {
        updates: report.steps,
        rows: report.examples + report.replayed,
        state: learner.commit()?.to_string(),
        device: report.device,
    }))
}

/// The current generation of `store`, serving.
pub(super) fn open(common: &Common<'_>, store: &Path) -> Result<Router> {
    let options = common.options.clone().encoder(common.encoder);
    Router::open(store, options.precision(Precision::F32))
}

/// The generation of `store` that `state` names, serving.
pub(super) fn resume(common: &Common<'_>, store: &Path, state: &str) -> Result<Router> {
    let id: GenerationId = state.parse()?;
    Store::open(store)?.set_current(&id)?;
    open(common, store)
}

/// The best models by `router`; `None`: nothing was learned yet.
pub(super) fn rank(router: Option<&Router>, prompts: &[&str]) -> Result<Vec<Vec<Named>>> {
    match router {
        Some(router) => rank_by(router, prompts),
        None => bail!(
            InvalidRequest,
            "a method that has learned nothing names no model"
        ),
    }
}

/// The best models by `router` for each prompt, best first.
pub(crate) fn rank_by(router: &Router, prompts: &[&str]) -> Result<Vec<Vec<Named>>> {
    let named = |decision: Decision| {
        let of = |ranked: &crate::Ranked| Named {
            model: ranked.model.to_string(),
            score: f64::from(ranked.score),
        };
        decision.ranked.iter().map(of).collect::<Vec<_>>()
    };
    let mut all = Vec::with_capacity(prompts.len());
    for batch in prompts.chunks(BATCH) {
        let requests: Vec<Request> = batch
            .iter()
            .map(|prompt| Request::new(*prompt).top(NAMED))
            .collect();
        for decision in router.route_batch(&requests) {
            let row = all.len() + 1;
            all.push(named(
                decision.map_err(|e| e.at(format!("eval row {row}")))?,
            ));
        }
    }
    if all.len() == prompts.len() {
        Ok(all)
    } else {
        Err(error!(
            Mismatch,
            "expected {} answers, found {}",
            prompts.len(),
            all.len()
        ))
    }
}
