//! The protocol: every method under every seed, one experience after the other, and a file for
//! every step that is done, so that a run that was killed goes on where it was.
#![expect(clippy::disallowed_types, reason = "speeds of a benchmark")]

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::methods::{Common, Frozen, Method, Progressed};
use super::predictions;
use super::registry::RegistryMap;
use crate::cmrbench::{Chat, Data, EvalRows, MethodInfo, Prefix, predictions_file};
use crate::encoder::read_manifest;
use crate::error::{Result, bail, error};
use crate::files;
use crate::learn::{Control, Settings, forget_peak_memory, peak_memory};
use crate::options::Options;

/// Version of what methods compute, apart from the crate's own: raised by hand with every change
/// that changes predictions, so that cells of older code are run again.
pub(super) const CODE: u32 = 1;

/// The same for memories alone: what they keep, and how they are solved.
const MEMORY: u32 = 1;

/// Rows of an experience that is learned in more epochs, at most.
const FEW_ROWS: usize = 2000;

/// What one eval row costs of what a training row does: no way back, no optimiser.
const EVAL_WORK: f64 = 0.35;

/// A benchmark to run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// Rows and cards, after [`Data::evaluate`].
    pub data: Data,
    /// Which rows that left to predict.
    pub eval: EvalRows,
    /// How texts were read.
    pub prefix: Prefix,
    /// The encoder's bundle.
    pub encoder: PathBuf,
    /// Device and threads.
    pub options: Options,
    /// In the order of the tables.
    pub methods: Vec<&'static MethodInfo>,
    /// Those of methods that draw; the others run under the first.
    pub seeds: Vec<u64>,
    /// Epochs of each experience.
    pub epochs: Vec<usize>,
    /// Settings that are changed in every trained method.
    pub changes: Vec<(String, String)>,
    /// Keep the trained generations, under `work`.
    pub keep: bool,
    /// The language model that `llm` asks.
    pub chat: Option<Chat>,
    /// Methods that belong to what was asked for and were not run, with the reason.
    pub left_out: Vec<(&'static MethodInfo, String)>,
}

/// Where a run is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GridStatus {
    /// `carve-10, seed 0, step 2: phase 1`.
    pub what: String,
    /// Work done since this call began, in a unit of its own.
    pub done: f64,
    /// Of how much.
    pub total: f64,
}

/// Called often while a benchmark runs.
pub type GridWatch<'w> = &'w mut dyn FnMut(&GridStatus) -> Control;

/// What is noted of one method under one seed; `cells/<method>-s<seed>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Cell {
    /// Version of this form; 1.
    pub schema_version: u32,
    /// SHA-256 of configuration, code version and data: another key, another cell.
    pub key: String,
    /// The method.
    pub method: String,
    /// The seed.
    pub seed: u64,
    /// Those that are done, in order.
    pub steps: Vec<Step>,
}

/// What is noted of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Step {
    /// From 1.
    pub step: usize,
    /// Optimiser steps.
    pub updates: usize,
    /// Rows that were learned, replayed ones included.
    pub rows: usize,
    /// Of learning.
    pub seconds: f64,
    /// Of naming models for all eval rows of the step.
    pub eval_seconds: f64,
    /// Peak memory of the process: since the step began where `peak_of_step` says so, or so far,
    /// which other methods may have caused.
    pub peak_memory_bytes: Option<u64>,
    /// The system was told to count anew when the step began.
    #[serde(default)]
    pub peak_of_step: bool,
    /// Size on disk of the generation of the last step.
    #[serde(default)]
    pub stored_bytes: Option<u64>,
    /// What computed.
    pub device: String,
    /// What the method needs to go on behind this step.
    state: String,
}

impl Cell {
    /// The file of a cell.
    pub fn file(out: &Path, method: &str, seed: u64) -> PathBuf {
        out.join("cells").join(format!("{method}-s{seed}.json"))
    }

    /// What is noted; none where there is no file.
    pub fn read(out: &Path, method: &str, seed: u64) -> Result<Option<Self>> {
        let path = Self::file(out, method, seed);
        if !path.exists() {
            return Ok(None);
        }
        files::read_json(&path, 1 << 24).map(Some)
    }

    /// All steps are done.
    pub(super) fn is_whole(&self, plan: &Plan) -> bool {
        self.steps
            .last()
            .is_some_and(|last| last.step == plan.steps())
    }
}

impl Plan {
    /// A plan for `data`, which was made ready by [`Data::evaluate`] with `eval`: all of `methods`,
    /// seeds 0, 1 and 2, 8 + 8 + 4 + 4 epochs; for a hub of one's own as many for as many rows.
    pub fn new(
        data: Data,
        eval: EvalRows,
        prefix: Prefix,
        encoder: impl Into<PathBuf>,
        options: Options,
        methods: Vec<&'static MethodInfo>,
    ) -> Self {
        Self {
            epochs: epochs(&data),
            data,
            eval,
            prefix,
            encoder: encoder.into(),
            options,
            methods,
            seeds: vec![0, 1, 2],
            changes: Vec::new(),
            keep: false,
            chat: None,
            left_out: Vec::new(),
        }
    }

    /// Checks what was set against the data.
    fn check(&self) -> Result<()> {
        let steps = self.steps();
        if self.epochs.len() != steps {
            bail!(
                InvalidRequest,
                "epochs: expected {steps} numbers, one for each experience, found {}",
                self.epochs.len()
            );
        }
        if self.chat.is_none() && self.methods.iter().any(|method| method.asks_a_model()) {
            bail!(
                InvalidRequest,
                "llm: expected a chat endpoint, found none: say --llm-endpoint URL"
            );
        }
        if self.seeds.is_empty() {
            bail!(InvalidRequest, "expected at least one seed, found none");
        }
        for (place, seed) in self.seeds.iter().enumerate() {
            if self.seeds[..place].contains(seed) {
                bail!(
                    InvalidRequest,
                    "seeds: expected each once, found {seed} twice"
                );
            }
        }
        for experience in &self.data.experiences {
            if experience.train.is_empty() || experience.eval.is_empty() {
                bail!(
                    InvalidRequest,
                    "{}: expected rows to learn and rows to predict ({}), found {} and {}",
                    experience.label,
                    self.eval.name(),
                    experience.train.len(),
                    experience.eval.len()
                );
            }
        }
        Ok(())
    }

    /// Experiences.
    pub fn steps(&self) -> usize {
        self.data.experiences.len()
    }

    /// The steps that `method` takes.
    fn steps_of(&self, method: &MethodInfo) -> RangeInclusive<usize> {
        let all = self.steps();
        let first = if method.last_step_alone() { all } else { 1 };
        first..=all
    }

    /// The seeds that `method` runs under.
    pub fn seeds_of(&self, method: &MethodInfo) -> &[u64] {
        let few = if method.deterministic() {
            1
        } else {
            usize::MAX
        };
        &self.seeds[..self.seeds.len().min(few)]
    }

    /// Every method with every one of its seeds.
    pub fn cells(&self) -> impl Iterator<Item = (&'static MethodInfo, u64)> + '_ {
        let of = |method: &'static MethodInfo| {
            self.seeds_of(method)
                .iter()
                .map(move |seed| (method, *seed))
        };
        self.methods.iter().copied().flat_map(of)
    }

    pub(super) fn common<'c>(&'c self, frozen: &'c Frozen) -> Common<'c> {
        Common {
            data: &self.data,
            encoder: &self.encoder,
            options: &self.options,
            frozen,
            epochs: &self.epochs,
            changes: &self.changes,
            chat: self.chat.as_ref(),
        }
    }
}

/// Epochs of each experience where nobody said any: those of CMRBench's four, which have 1174, 688,
/// 2708 and 2602 rows.
fn epochs(data: &Data) -> Vec<usize> {
    if !data.own {
        return vec![8, 8, 4, 4];
    }
    let of = |rows: usize| if rows <= FEW_ROWS { 8 } else { 4 };
    let rows = data.experiences.iter().map(|e| e.train.len());
    rows.map(of).collect()
}

/// A cell of a plan.
struct Noted {
    method: &'static MethodInfo,
    seed: u64,
    key: String,
    cell: Option<Cell>,
}

/// Every cell of the plan with its key and, where `out` has it, what is noted of its first steps.
fn noted<'p>(
    plan: &'p Plan,
    common: &'p Common<'_>,
    out: &'p Path,
) -> Result<impl Iterator<Item = Result<Noted>> + 'p> {
    let (_, revision) = read_manifest(&plan.encoder)?;
    let shared = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "code": CODE,
        "data": plan.data.digest(),
        "prefix": plan.prefix == Prefix::Keep,
        "encoder": revision,
        // What was made with `auto` goes on with the device's own name, and the other way round.
        "device": plan.options.device.resolved()?,
    });
    Ok(plan.cells().map(move |(method, seed)| {
        let key = key(plan, common, method, seed, shared.clone())?;
        let cell = Cell::read(out, method.name, seed)?.filter(|cell| {
            let steps = cell.steps.iter().map(|step| step.step);
            cell.key == key && steps.eq(plan.steps_of(method).take(cell.steps.len()))
        });
        Ok(Noted {
            method,
            seed,
            key,
            cell,
        })
    }))
}

/// The cells of `out` that are whole and of this very plan, in the order of the tables.
pub(super) fn whole_cells(plan: &Plan, out: &Path) -> Result<Vec<(&'static MethodInfo, Cell)>> {
    plan.check()?;
    let frozen = Frozen::default();
    let common = plan.common(&frozen);
    let mut cells = Vec::new();
    for found in noted(plan, &common, out)? {
        let Noted { method, cell, .. } = found?;
        let cell = cell.filter(|cell| cell.is_whole(plan));
        cells.extend(cell.map(|cell| (method, cell)));
    }
    Ok(cells)
}

/// Runs what is missing in `out`; false: the callback stopped it, and the same call goes on.
///
/// Errors: data, settings or encoder are not good; a step failed. What was done before stays.
pub fn run(plan: &Plan, out: &Path, watch: GridWatch<'_>) -> Result<bool> {
    plan.check()?;
    for folder in ["cells", "predictions"] {
        files::make_folder(&out.join(folder))?;
    }
    let frozen = Frozen::default();
    let common = plan.common(&frozen);
    let mut runs = Vec::new();
    for found in noted(plan, &common, out)? {
        let Noted {
            method,
            seed,
            key,
            cell,
        } = found?;
        // Steps are of use when all are there, or when what they made is.
        let begun = begun(&work_folder(out, method, seed), &key)?;
        let cell = cell.filter(|cell| begun || cell.is_whole(plan));
        let cell = cell.unwrap_or_else(|| Cell {
            schema_version: 1,
            key,
            method: method.name.to_owned(),
            seed,
            steps: Vec::new(),
        });
        runs.push(Run {
            plan,
            common: &common,
            method,
            out,
            cell,
        });
    }
    let mut work = Work {
        done: 0.0,
        total: runs
            .iter()
            .flat_map(|run| run.missing().map(|step| run.work(step)))
            .sum(),
    };
    for mut run in runs {
        let name = format!("{}, seed {}", run.method.name, run.cell.seed);
        let finished = run.finish(&mut work, watch).map_err(|e| e.at(name))?;
        if !finished {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Work of this call.
struct Work {
    done: f64,
    total: f64,
}

struct Run<'r> {
    plan: &'r Plan,
    common: &'r Common<'r>,
    method: &'static MethodInfo,
    out: &'r Path,
    cell: Cell,
}

impl Run<'_> {
    fn missing(&self) -> impl Iterator<Item = usize> + use<> {
        let steps = self.plan.steps_of(self.method);
        steps.skip(self.cell.steps.len())
    }

    fn eval_rows(&self, step: usize) -> usize {
        let experiences = &self.plan.data.experiences[..step];
        experiences
            .iter()
            .map(|experience| experience.eval.len())
            .sum()
    }

    fn work(&self, step: usize) -> f64 {
        let each = if self.method.encodes() || self.method.asks_a_model() {
            EVAL_WORK * self.method.longer()
        } else {
            0.01
        };
        self.method.work(self.common, step) + each * self.eval_rows(step) as f64
    }

    /// False: stopped.
    fn finish(&mut self, work: &mut Work, watch: GridWatch<'_>) -> Result<bool> {
        let folder = work_folder(self.out, self.method, self.cell.seed);
        if self.missing().next().is_some() {
            if !begun(&folder, &self.cell.key)? {
                remove(&folder)?;
            }
            files::make_folder(&folder)?;
            files::replace(&folder.join("key"), self.cell.key.as_bytes())?;
            let mut method = self.method.open(self.common, self.cell.seed, &folder)?;
            if let Some(last) = self.cell.steps.last() {
                method.resume(last.step, &last.state)?;
            }
            for step in self.missing() {
                if !self.step(method.as_mut(), step, work, watch)? {
                    return Ok(false);
                }
            }
        }
        if !self.plan.keep {
            remove(&folder)?;
        }
        Ok(true)
    }

    /// Learns one step and predicts the rows of all experiences so far; false: stopped.
    fn step(
        &mut self,
        method: &mut dyn Method,
        step: usize,
        work: &mut Work,
        watch: GridWatch<'_>,
    ) -> Result<bool> {
        let place = format!("{}, seed {}, step {step}", self.method.name, self.cell.seed);
        let (begun, learning) = (work.done, self.method.work(self.common, step));
        let total = work.total;
        let mut say = |what: &str, done: f64| {
            watch(&GridStatus {
                what: format!("{place}: {what}"),
                done,
                total,
            })
        };
        let peak_of_step = forget_peak_memory();
        let clock = Instant::now();
        let learned = method.learn(step, &mut |stage, part| say(stage, begun + part * learning))?;
        let Progressed::Done(learned) = learned else {
            return Ok(false);
        };
        let seconds = clock.elapsed().as_secs_f64();
        let (clock, all) = (Instant::now(), self.eval_rows(step) as f64);
        let mut predicted = 0.0;
        for test in 1..=step {
            let rows = &self.plan.data.experiences[test - 1].eval;
            let mut named = Vec::with_capacity(rows.len());
            for rows in rows.chunks(self.method.stride()) {
                let prompts: Vec<&str> = rows.iter().map(|row| row.instruction.as_str()).collect();
                named.extend(method.answers(test, &prompts)?);
                predicted += rows.len() as f64;
                let evaluating = self.work(step) - learning;
                if say(
                    "predicting",
                    begun + learning + evaluating * predicted / all,
                ) == Control::Stop
                {
                    return Ok(false);
                }
            }
            let path = predictions_file(self.out, self.method.name, self.cell.seed, step, test);
            predictions::write(&path, rows, &named)?;
        }
        let (eval_seconds, peak_memory_bytes) = (clock.elapsed().as_secs_f64(), peak_memory());
        let last = step == self.plan.steps();
        let kept = if last { method.kept()? } else { None };
        let stored_bytes = kept.as_ref().map(|kept| kept.stored_bytes);
        if let Some(kept) = kept {
            let path = RegistryMap::file(self.out, self.method.name, self.cell.seed);
            RegistryMap::new(kept, &self.cell.key).write(&path)?;
        }
        work.done = begun + self.work(step);
        self.cell.steps.push(Step {
            step,
            updates: learned.updates,
            rows: learned.rows,
            seconds,
            eval_seconds,
            peak_memory_bytes,
            peak_of_step,
            stored_bytes,
            device: learned.device,
            state: learned.state,
        });
        let path = Cell::file(self.out, self.method.name, self.cell.seed);
        files::replace(&path, &files::to_json(&self.cell)?)?;
        Ok(true)
    }
}

fn work_folder(out: &Path, method: &MethodInfo, seed: u64) -> PathBuf {
    out.join("work").join(format!("{}-s{seed}", method.name))
}

/// The folder is of this very cell.
fn begun(folder: &Path, key: &str) -> Result<bool> {
    let path = folder.join("key");
    Ok(path.exists() && files::read_text(&path, 1 << 10)? == key)
}

/// Takes away a cell's work.
fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        files::remove_folder(folder)?;
    }
    Ok(())
}

/// SHA-256 of everything that a cell's predictions depend on; `on`: what all cells of the plan share.
fn key(
    plan: &Plan,
    common: &Common<'_>,
    method: &MethodInfo,
    seed: u64,
    mut on: Value,
) -> Result<String> {
    let mut settings = Vec::new();
    for step in 1..=plan.steps() {
        settings.push(method.settings(common, seed, step)?);
    }
    on["method"] = method.name.into();
    on["replay"] = method.replay.into();
    on["seed"] = seed.into();
    if settings.iter().flatten().any(|settings| settings.memory) {
        on["memory"] = MEMORY.into();
    }
    let settings: Vec<_> = settings
        .iter()
        .map(|s| s.as_ref().map(Settings::written))
        .collect();
    on["settings"] = json!(settings);
    if method.asks_a_model() {
        on["chat"] = plan.chat.as_ref().map(Chat::identity).into();
    }
    let text = serde_json::to_string(&on);
    let text = text.map_err(|e| error!(Format, "cannot write JSON: {e}"))?;
    Ok(files::sha256(text.as_bytes()))
}
