//! From predictions to hits, from hits to matrices: everything that tables and figures show.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::grid::whole_cells;
use crate::cmrbench::{
    AccuracyMatrix, BenchPlan, BenchRow, BundledScore, CarveRule, Cell, Data, Hits, MethodInfo,
    Named, Prediction, RegistryMap, Tables, mean_and_deviation, predictions_file, read_predictions,
};
use crate::error::Result;

/// A metric: what a prediction has to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// The gold model.
    Model,
    /// A model of its family.
    Family,
    /// A model of its domain.
    Domain,
}

impl Metric {
    /// In the order of the tables.
    pub const ALL: [Self; 3] = [Self::Model, Self::Family, Self::Domain];

    /// `M`, `F`, `D`.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Model => "M",
            Self::Family => "F",
            Self::Domain => "D",
        }
    }

    /// `model`, `family` or `domain`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Family => "family",
            Self::Domain => "domain",
        }
    }

    /// The hits that this metric counts.
    pub(super) fn of(self, hits: Hits) -> usize {
        match self {
            Self::Model => hits.model,
            Self::Family => hits.family,
            Self::Domain => hits.domain,
        }
    }
}

/// One method under one seed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SeedOutcome {
    /// The seed.
    pub seed: u64,
    /// The record of its steps.
    pub cell: Cell,
    /// The metrics that apply: a method may name domains alone.
    metrics: Vec<Metric>,
    /// Hits of each row, by (step, test), from 0.
    rows: BTreeMap<(usize, usize), Vec<Hits>>,
    /// Answers of the last step, by test.
    answers: Vec<Vec<Named>>,
    /// Hits of each row at the last step, by earlier test, if the method had to choose among the
    /// models that the hub had when the test's experience was learned.
    then: Vec<Vec<Hits>>,
    /// The map of the last step; `None`: the cell was run by a version without maps.
    pub map: Option<RegistryMap>,
    /// Accuracies by the reference's rule for CARvE: M, D, F of the rows that were looked up, F of
    /// all.
    pub by_carve_rule: [AccuracyMatrix; 4],
}

impl SeedOutcome {
    /// Reads the predictions of a cell and counts.
    fn read(
        plan: &BenchPlan,
        out: &Path,
        cell: Cell,
        tables: &[Tables],
        rules: &[CarveRule],
    ) -> Result<Self> {
        let (mut rows, mut answers, mut then) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut by_carve_rule: [AccuracyMatrix; 4] = Default::default();
        let mut metrics = Metric::ALL.to_vec();
        metrics.retain(|metric| plan.data.families || *metric != Metric::Family);
        for step in cell.steps.iter().map(|step| step.step) {
            for test in 1..=step {
                let eval = &plan.data.experiences[test - 1].eval;
                let path = predictions_file(out, &cell.method, cell.seed, step, test);
                let predictions = read_predictions(path, eval)?;
                let hits = |(prediction, row): (&Prediction, &BenchRow)| match &prediction.domain {
                    Some(answer) => Hits::of_domain(answer, row),
                    None => tables[step - 1].hits(prediction.pred.as_deref().unwrap_or(""), row),
                };
                let hits = predictions.iter().zip(eval).map(hits).collect();
                rows.insert((step - 1, test - 1), hits);
                let named: Option<Vec<&str>> =
                    predictions.iter().map(|p| p.pred.as_deref()).collect();
                let Some(named) = named else {
                    metrics = vec![Metric::Domain];
                    continue;
                };
                let hits = rules[step - 1].hits(&named, eval);
                let percent = |hits: usize, of: usize| 100.0 * hits as f64 / of.max(1) as f64;
                let values = [
                    percent(hits.model, hits.valid),
                    percent(hits.domain, hits.valid),
                    percent(hits.family, hits.looked_up),
                    percent(hits.family, hits.valid),
                ];
                for (matrix, value) in by_carve_rule.iter_mut().zip(values) {
                    matrix.set(step - 1, test - 1, value);
                }
                if step == plan.steps() && test < step {
                    let known = |model: &&String| tables[test - 1].domain(model).is_some();
                    let hits = |(prediction, row): (&Prediction, &BenchRow)| {
                        let best = prediction.top10.iter().find(known);
                        tables[step - 1].hits(best.map_or("", String::as_str), row)
                    };
                    then.push(predictions.iter().zip(eval).map(hits).collect());
                }
                if step == plan.steps() {
                    let answer = |prediction: Prediction| {
                        Some(Named {
                            model: prediction.pred?,
                            score: prediction.score?,
                        })
                    };
                    answers.push(predictions.into_iter().filter_map(answer).collect());
                }
            }
        }
        Ok(Self {
            seed: cell.seed,
            map: RegistryMap::read(out, &cell)?,
            cell,
            metrics,
            rows,
            answers,
            then,
            by_carve_rule,
        })
    }

    /// Hits of each row of `test` after `step`, from 0.
    pub fn rows(&self, step: usize, test: usize) -> Option<&[Hits]> {
        self.rows.get(&(step, test)).map(Vec::as_slice)
    }

    /// Whether `metric` applies.
    pub fn measures(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }

    /// Hits and rows of `test` after `step`; `None` where the metric does not apply.
    pub fn hits(&self, metric: Metric, step: usize, test: usize) -> Option<(usize, usize)> {
        let rows = self.rows(step, test).filter(|_| self.measures(metric))?;
        Some((rows.iter().map(|hits| metric.of(*hits)).sum(), rows.len()))
    }

    /// The prediction for each row of `test`, from 0, after the last step.
    pub fn answers(&self, test: usize) -> &[Named] {
        self.answers.get(test).map_or(&[], Vec::as_slice)
    }

    /// Accuracies in percent.
    pub fn matrix(&self, metric: Metric) -> AccuracyMatrix {
        let mut matrix = AccuracyMatrix::default();
        for (step, test) in self.rows.keys() {
            if let Some((hits, rows)) = self.hits(metric, *step, *test) {
                matrix.set(*step, *test, 100.0 * hits as f64 / rows.max(1) as f64);
            }
        }
        matrix
    }

    /// The two parts of forgetting, in points: lost among the models that the hub had when each
    /// experience was learned, and taken by models that came later. Their sum is
    /// [`AccuracyMatrix::forgetting`]. `None` where nothing can be forgotten or no models are
    /// named.
    pub(super) fn lost_and_outgrown(&self, metric: Metric) -> Option<(f64, f64)> {
        let last = self.then.len();
        let (mut lost, mut outgrown) = (0.0, 0.0);
        for (test, then) in self.then.iter().enumerate() {
            let percent = |(hits, rows): (usize, usize)| 100.0 * hits as f64 / rows.max(1) as f64;
            let learned = percent(self.hits(metric, test, test)?);
            let now = percent(self.hits(metric, last, test)?);
            let among = then.iter().map(|hits| metric.of(*hits)).sum();
            let among = percent((among, then.len()));
            lost += learned - among;
            outgrown += among - now;
        }
        (last > 0).then(|| (lost / last as f64, outgrown / last as f64))
    }

    /// 1 or 0 for each row of `test` after `step`.
    pub(super) fn ones(&self, metric: Metric, step: usize, test: usize) -> Option<Vec<f64>> {
        let rows = self.rows(step, test).filter(|_| self.measures(metric))?;
        Some(rows.iter().map(|hits| metric.of(*hits) as f64).collect())
    }
}

/// One method under all its seeds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MethodOutcome {
    /// Its entry in the table of methods.
    pub info: &'static MethodInfo,
    /// By seed.
    pub runs: Vec<SeedOutcome>,
}

impl MethodOutcome {
    /// Whether `metric` applies.
    pub fn measures(&self, metric: Metric) -> bool {
        self.runs.iter().all(|run| run.measures(metric))
    }

    /// Mean and sample standard deviation over the seeds of the quantity `of` each seed's matrix.
    pub fn over_seeds(
        &self,
        metric: Metric,
        of: impl Fn(&AccuracyMatrix) -> Option<f64>,
    ) -> Option<(f64, Option<f64>)> {
        let values: Option<Vec<f64>> = self
            .runs
            .iter()
            .map(|run| of(&run.matrix(metric)))
            .collect();
        mean_and_deviation(&values?)
    }

    /// Mean over the seeds of entry (step, test), from 0.
    pub fn cell(&self, metric: Metric, step: usize, test: usize) -> Option<(f64, Option<f64>)> {
        self.over_seeds(metric, |matrix| matrix.get(step, test))
    }
}

/// The results of a benchmark.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Results {
    /// The plan of the run.
    pub plan: BenchPlan,
    /// Methods with a seed that is whole, in the order of the tables.
    pub methods: Vec<MethodOutcome>,
    /// The bundled router on the same rows, where it was measured.
    pub bundled: Option<BundledScore>,
}

impl Results {
    /// Reads the predictions of the plan's whole cells in `out`.
    ///
    /// Errors: predictions are missing, malformed or of other rows.
    pub fn read(plan: &BenchPlan, out: &Path) -> Result<Self> {
        let data: &Data = &plan.data;
        let steps = 1..=plan.steps();
        let tables: Vec<Tables> = steps.clone().map(|step| Tables::new(data, step)).collect();
        let rules: Vec<CarveRule> = steps.map(|step| CarveRule::new(data, step, true)).collect();
        let mut methods: Vec<MethodOutcome> = Vec::new();
        for (info, cell) in whole_cells(plan, out)? {
            let run = SeedOutcome::read(plan, out, cell, &tables, &rules)?;
            match methods.last_mut() {
                Some(last) if last.info.name == info.name => last.runs.push(run),
                _ => methods.push(MethodOutcome {
                    info,
                    runs: vec![run],
                }),
            }
        }
        let bundled = match tables.last() {
            Some(tables) => BundledScore::read(plan, out, tables)?,
            None => None,
        };
        Ok(Self {
            plan: plan.clone(),
            methods,
            bundled,
        })
    }

    /// The method called `name`, if it was run.
    pub fn method(&self, name: &str) -> Option<&MethodOutcome> {
        self.methods.iter().find(|method| method.info.name == name)
    }

    /// Whether this is a quick look: run as one, or with one epoch of each experience by a method
    /// that trains.
    pub(super) fn is_quick(&self) -> bool {
        let steps = || {
            let runs = self.methods.iter().flat_map(|method| &method.runs);
            runs.flat_map(|run| &run.cell.steps)
        };
        let one_epoch = self.plan.epochs.iter().all(|epochs| *epochs == 1);
        self.plan.quick || (one_epoch && steps().any(|step| step.updates > 0))
    }

    /// `results.json`.
    pub fn json(&self, about: &Value) -> Value {
        let methods: Vec<Value> = self
            .methods
            .iter()
            .map(|method| self.method_json(method))
            .collect();
        let rows = |of: fn(&crate::cmrbench::BenchExperience) -> usize| {
            self.plan
                .data
                .experiences
                .iter()
                .map(of)
                .collect::<Vec<usize>>()
        };
        json!({
            "schema_version": 1,
            "data": {
                "commit": about["commit"],
                "sha256": about["data_sha256"],
                "half": self.plan.eval.name(),
                "train_rows": rows(|e| e.train.len()),
                "eval_rows": rows(|e| e.eval.len()),
            },
            "settings": about,
            "methods": methods,
            "bundled": self.bundled.as_ref().map(BundledScore::json),
        })
    }

    fn method_json(&self, method: &MethodOutcome) -> Value {
        let steps = self.plan.steps();
        let run = |run: &SeedOutcome| {
            let triangle = |metric: Metric| -> Value {
                let row = |step: usize| {
                    (0..=step)
                        .map(|test| run.hits(metric, step, test).map(|(hits, _)| hits))
                        .collect::<Vec<_>>()
                };
                (0..steps).map(row).collect::<Vec<_>>().into()
            };
            let per_step = |of: fn(&crate::cmrbench::StepNote) -> Value| {
                run.cell.steps.iter().map(of).collect::<Vec<Value>>()
            };
            json!({
                "seed": run.seed,
                "threads": run.cell.settings.as_ref().map(|settings| settings.threads),
                "processor": run.cell.settings.as_ref().map(|settings| &settings.processor),
                "hits": by_metric(triangle),
                "acc": by_metric(|metric| run.matrix(metric).acc().into()),
                "fgt": by_metric(|metric| run.matrix(metric).forgetting().into()),
                "fgt_max": by_metric(|metric| run.matrix(metric).forgetting_from_best().into()),
                "fgt_mean": by_metric(|metric| run.matrix(metric).mean_forgetting().into()),
                "steps": per_step(|step| step.step.into()),
                "updates": per_step(|step| step.updates.into()),
                "rows": per_step(|step| step.rows.into()),
                "seconds": per_step(|step| step.seconds.into()),
                "eval_seconds": per_step(|step| step.eval_seconds.into()),
                "peak_memory_bytes": per_step(|step| step.peak_memory_bytes.into()),
                "peak_of_step": per_step(|step| step.peak_of_step.into()),
                "stored_bytes": per_step(|step| step.stored_bytes.into()),
            })
        };
        let over = |pick: fn((f64, Option<f64>)) -> Option<f64>| {
            let of = |from: fn(&AccuracyMatrix) -> Option<f64>| {
                by_metric(|metric| method.over_seeds(metric, from).and_then(pick).into())
            };
            json!({"acc": of(AccuracyMatrix::acc), "fgt": of(AccuracyMatrix::forgetting)})
        };
        json!({
            "name": method.info.name,
            "label": method.info.label,
            "group": method.info.group,
            "replay": method.info.replay,
            "runs": method.runs.iter().map(run).collect::<Vec<_>>(),
            "mean": over(|(mean, _)| Some(mean)),
            "sd": over(|(_, deviation)| deviation),
        })
    }
}

pub(super) fn by_metric(of: impl Fn(Metric) -> Value) -> Value {
    let pairs = Metric::ALL.map(|metric| (metric.letter().to_owned(), of(metric)));
    Value::Object(pairs.into_iter().collect())
}
