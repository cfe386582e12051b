//! The protocol: every method runs under every seed and learns one experience after the other. Each
//! step that is done is a file, so a run that was killed goes on from there.
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
use crate::device::DeviceChoice;
use crate::encoder::read_manifest;
use crate::error::{Result, bail, error};
use crate::files;
use crate::learn::{Control, Settings, forget_peak_memory, peak_memory};
use crate::options::Options;

/// Version of the methods, besides that of the crate. It is raised by hand with every change of
/// predictions, so that cells of older code are run again.
pub(super) const CODE: u32 = 1;

/// The same for memories alone.
const MEMORY: u32 = 1;

/// Most rows of an experience that is learned in 8 epochs, not 4.
const FEW_ROWS: usize = 2000;

/// The cost of an eval row as a share of that of a training row: it has no backward pass.
const EVAL_WORK: f64 = 0.35;

/// A benchmark to run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BenchPlan {
    /// Rows and cards, after [`Data::evaluate`].
    pub data: Data,
    /// The choice of rows to predict that was given to it.
    pub eval: EvalRows,
    /// The choice that the texts were read with.
    pub prefix: Prefix,
    /// The encoder's bundle.
    pub encoder: PathBuf,
    /// Device and threads.
    pub options: Options,
    /// In the order of the tables.
    pub methods: Vec<&'static MethodInfo>,
    /// Seeds of the methods that draw. The other methods run under the first one.
    pub seeds: Vec<u64>,
    /// Epochs of each experience.
    pub epochs: Vec<usize>,
    /// Settings that are changed in every trained method.
    pub changes: Vec<(String, String)>,
    /// A quick look, not a result: the report carries a banner.
    pub quick: bool,
    /// Keep the trained generations, under `work`.
    pub keep: bool,
    /// The language model that `llm` asks.
    pub chat: Option<Chat>,
    /// Requested methods that were skipped, and why.
    pub left_out: Vec<(&'static MethodInfo, String)>,
}

/// The progress of a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GridStatus {
    /// `carve-10, seed 0, step 2: phase 1`.
    pub what: String,
    /// Work done since this call began, in a unit without meaning.
    pub done: f64,
    /// Work of the whole call, in the same unit.
    pub total: f64,
}

/// Called often while a benchmark runs.
pub type GridWatch<'w> = &'w mut dyn FnMut(&GridStatus) -> Control;

/// The record of one method under one seed; `cells/<method>-s<seed>.json`.
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
    /// Its settings; `None`: it was run by a version that did not note them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<CellSettings>,
    /// The steps that are done, in order.
    pub steps: Vec<StepNote>,
}

/// The settings of a cell, for a report that is made again. They are in the cell's file and among
/// the settings of `results.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CellSettings {
    /// Rows that were predicted: [`EvalRows::name`].
    pub eval: String,
    /// `keep` or `strip`.
    pub prefix: String,
    /// Most eval rows of an experience; `None`: all.
    pub limit_rows: Option<usize>,
    /// A quick look, not a result.
    pub quick: bool,
    /// Epochs of each experience.
    pub epochs: Vec<usize>,
    /// Settings that were changed in every trained method, as `key=value`.
    pub changes: Vec<String>,
    /// The device that was chosen.
    pub device: DeviceChoice,
    /// Threads of the CPU's pool; `None`: as many as the machine has, at most 4.
    pub threads: Option<usize>,
    /// The processor's name, where the system gives one.
    pub processor: Option<String>,
}

/// The record of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct StepNote {
    /// From 1.
    pub step: usize,
    /// Optimiser steps.
    pub updates: usize,
    /// Rows that were learned, replayed ones included.
    pub rows: usize,
    /// Seconds of learning.
    pub seconds: f64,
    /// Seconds of naming models for all eval rows of the step.
    pub eval_seconds: f64,
    /// Peak memory of the process, bytes: since the step began where `peak_of_step` is set, else
    /// since the process began, which other methods may have caused.
    pub peak_memory_bytes: Option<u64>,
    /// The system reset its count when the step began.
    #[serde(default)]
    pub peak_of_step: bool,
    /// Size on disk of the generation of the last step.
    #[serde(default)]
    pub stored_bytes: Option<u64>,
    /// The device that computed.
    pub device: String,
    /// What the method needs to go on from this step: [`Method::resume`].
    state: String,
}

impl Cell {
    /// The file of a cell.
    pub fn file(out: &Path, method: &str, seed: u64) -> PathBuf {
        out.join("cells").join(format!("{method}-s{seed}.json"))
    }

    /// The record of a cell; `None` where there is no file.
    pub fn read(out: &Path, method: &str, seed: u64) -> Result<Option<Self>> {
        let path = Self::file(out, method, seed);
        if !path.exists() {
            return Ok(None);
        }
        files::read_json(&path, 1 << 24).map(Some)
    }

    /// All steps are done.
    pub(super) fn is_whole(&self, plan: &BenchPlan) -> bool {
        self.steps
            .last()
            .is_some_and(|last| last.step == plan.steps())
    }
}

impl BenchPlan {
    /// A plan for `data` after [`Data::evaluate`] with `eval`: all of `methods`, seeds 0, 1 and 2,
    /// and 8, 8, 4 and 4 epochs. An experience of your own hub gets 8 epochs up to 2000 rows, else
    /// 4.
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
            quick: false,
            keep: false,
            chat: None,
            left_out: Vec::new(),
        }
    }

    /// The settings of this plan's cells.
    pub(super) fn settings(&self) -> CellSettings {
        let changes = self.changes.iter();
        CellSettings {
            eval: self.eval.name().to_owned(),
            prefix: match self.prefix {
                Prefix::Keep => "keep".to_owned(),
                Prefix::Strip => "strip".to_owned(),
            },
            limit_rows: self.data.limit,
            quick: self.quick,
            epochs: self.epochs.clone(),
            changes: changes
                .map(|(key, value)| format!("{key}={value}"))
                .collect(),
            device: self.options.device.clone(),
            threads: self.options.threads,
            processor: processor(),
        }
    }

    /// Checks the settings against the data.
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
                "llm: expected a chat endpoint, found none; name one with --llm-endpoint URL"
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

/// Default epochs of each experience. CMRBench's four have 1174, 688, 2708 and 2602 rows.
fn epochs(data: &Data) -> Vec<usize> {
    if !data.own {
        return vec![8, 8, 4, 4];
    }
    let of = |rows: usize| if rows <= FEW_ROWS { 8 } else { 4 };
    let rows = data.experiences.iter().map(|e| e.train.len());
    rows.map(of).collect()
}

/// The processor's name, where the system gives one.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// A cell of a plan.
struct Noted {
    method: &'static MethodInfo,
    seed: u64,
    key: String,
    cell: Option<Cell>,
}

/// Every cell of the plan with its key and, where `out` has one, its record.
fn noted<'p>(
    plan: &'p BenchPlan,
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
        // `auto` and the name of the device that it means are the same.
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

/// The cells of `out` that are whole and of this plan, in the order of the tables.
pub(super) fn whole_cells(
    plan: &BenchPlan,
    out: &Path,
) -> Result<Vec<(&'static MethodInfo, Cell)>> {
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

/// Runs the cells that `out` lacks; false: the callback stopped it, and the same call goes on from
/// there.
///
/// Errors: data, settings or encoder are invalid; a step failed. Earlier steps stay.
pub fn run(plan: &BenchPlan, out: &Path, watch: GridWatch<'_>) -> Result<bool> {
    plan.check()?;
    for folder in ["cells", "predictions"] {
        files::make_folder(&out.join(folder))?;
    }
    let frozen = Frozen::default();
    let common = plan.common(&frozen);
    let settings = CellSettings {
        device: plan.options.device.resolved()?,
        ..plan.settings()
    };
    let mut runs = Vec::new();
    for found in noted(plan, &common, out)? {
        let Noted {
            method,
            seed,
            key,
            cell,
        } = found?;
        // The steps of a cell can be used if all are there, or if the method's own files are.
        let begun = begun(&work_folder(out, method, seed), &key)?;
        let cell = cell.filter(|cell| begun || cell.is_whole(plan));
        let cell = cell.unwrap_or_else(|| Cell {
            schema_version: 1,
            key,
            method: method.name.to_owned(),
            seed,
            settings: None,
            steps: Vec::new(),
        });
        runs.push(CellRun {
            plan,
            common: &common,
            method,
            out,
            settings: &settings,
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

/// The work of this call, for its progress.
struct Work {
    done: f64,
    total: f64,
}

struct CellRun<'r> {
    plan: &'r BenchPlan,
    common: &'r Common<'r>,
    method: &'static MethodInfo,
    out: &'r Path,
    settings: &'r CellSettings,
    cell: Cell,
}

impl CellRun<'_> {
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
        self.cell.settings = Some(self.settings.clone());
        self.cell.steps.push(StepNote {
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

/// Whether the folder belongs to the cell with this key.
fn begun(folder: &Path, key: &str) -> Result<bool> {
    let path = folder.join("key");
    Ok(path.exists() && files::read_text(&path, 1 << 10)? == key)
}

/// Removes a cell's work folder.
fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        files::remove_folder(folder)?;
    }
    Ok(())
}

/// SHA-256 of everything that a cell's predictions depend on; `on`: the part that all cells share.
fn key(
    plan: &BenchPlan,
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
