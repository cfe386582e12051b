//! The router that comes with the program, on the eval rows of a benchmark: a mark to read the
//! methods against. It was made beforehand from the training rows of all experiences, so it has one
//! step.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::methods::{Answer, rank_by};
use super::predictions;
use super::results::by_metric;
use crate::cmrbench::{
    BenchPlan, GridStatus, GridWatch, Hits, Metric, Percent, Tables, predictions_file,
    read_predictions,
};
use crate::error::{Error, Result};
use crate::files;
use crate::learn::Control;
use crate::route::Router;

/// The method's name in the files of predictions.
const NAME: &str = "bundled";

/// Prompts that are routed between two reports of progress.
const STRIDE: usize = 64;

/// The record of the bundled router; `bundled.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BundledNote {
    /// Version of this form; 1.
    schema_version: u32,
    /// The generation that answered.
    generation: String,
    /// SHA-256 of the data: [`crate::cmrbench::Data::digest`].
    data: String,
    models: usize,
    device: String,
}

impl BundledNote {
    fn file(out: &Path) -> PathBuf {
        out.join("bundled.json")
    }

    /// The note of the plan's data; `None` where there is none, or one of other data.
    fn read(plan: &BenchPlan, out: &Path) -> Result<Option<Self>> {
        let path = Self::file(out);
        if !path.exists() {
            return Ok(None);
        }
        let note: Self = files::read_json(&path, 1 << 20)?;
        Ok((note.data == plan.data.digest()).then_some(note))
    }
}

/// Accuracies of the bundled router.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BundledScore {
    /// The generation that answered.
    pub generation: String,
    /// Models of its hub.
    pub models: usize,
    /// Hits and rows of each experience, by the tables of the last step.
    pub hits: Vec<(Hits, usize)>,
}

impl BundledScore {
    /// Counts the predictions in `out`; `None` where there are none for the plan's data.
    ///
    /// Errors: the note or a file of predictions is malformed.
    pub(super) fn read(plan: &BenchPlan, out: &Path, tables: &Tables) -> Result<Option<Self>> {
        let Some(note) = BundledNote::read(plan, out)? else {
            return Ok(None);
        };
        let mut all = Vec::with_capacity(plan.steps());
        for (test, experience) in plan.data.experiences.iter().enumerate() {
            let path = predictions_file(out, NAME, 0, plan.steps(), test + 1);
            let mut hits = Hits::default();
            for (prediction, row) in read_predictions(path, &experience.eval)?
                .iter()
                .zip(&experience.eval)
            {
                hits += tables.hits(prediction.pred.as_deref().unwrap_or(""), row);
            }
            all.push((hits, experience.eval.len()));
        }
        Ok(Some(Self {
            generation: note.generation,
            models: note.models,
            hits: all,
        }))
    }

    /// Accuracy over all experiences, each with weight 1, in percent.
    pub fn accuracy(&self) -> Percent {
        let each: Vec<Percent> = self.hits.iter().map(|(h, rows)| h.percent(*rows)).collect();
        Percent::mean(&each)
    }

    pub(super) fn json(&self) -> Value {
        let accuracy = self.accuracy();
        let hits = |metric: Metric| -> Vec<usize> {
            self.hits.iter().map(|(hits, _)| metric.of(*hits)).collect()
        };
        json!({
            "generation": self.generation,
            "models": self.models,
            "hits": by_metric(|metric| hits(metric).into()),
            "acc": {"M": accuracy.model, "F": accuracy.family, "D": accuracy.domain},
        })
    }
}

/// Routes all eval rows of the plan with `router` and notes the predictions in `out`, unless they
/// are there already; false: the callback stopped it.
///
/// Errors: a prompt cannot be routed; a file cannot be written.
pub fn measure_bundled(
    plan: &BenchPlan,
    router: &Router,
    out: &Path,
    watch: GridWatch<'_>,
) -> Result<bool> {
    let generation = router.generation().to_string();
    if BundledNote::read(plan, out)?.is_some_and(|note| note.generation == generation) {
        return Ok(true);
    }
    files::make_folder(&out.join("predictions"))?;
    // A note never stands for predictions of another generation.
    if let Err(error) = std::fs::remove_file(BundledNote::file(out))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(Error::io(&BundledNote::file(out), "remove", error));
    }
    let experiences = &plan.data.experiences;
    let total: usize = experiences.iter().map(|e| e.eval.len()).sum();
    let mut done = 0;
    for (test, experience) in experiences.iter().enumerate() {
        let mut answers = Vec::with_capacity(experience.eval.len());
        for rows in experience.eval.chunks(STRIDE) {
            let status = GridStatus {
                what: "bundled router: predicting".to_owned(),
                done: done as f64,
                total: total as f64,
            };
            if watch(&status) == Control::Stop {
                return Ok(false);
            }
            let prompts: Vec<&str> = rows.iter().map(|row| row.instruction.as_str()).collect();
            answers.extend(rank_by(router, &prompts)?.into_iter().map(Answer::Models));
            done += rows.len();
        }
        let path = predictions_file(out, NAME, 0, plan.steps(), test + 1);
        predictions::write(&path, &experience.eval, &answers)?;
    }
    let note = BundledNote {
        schema_version: 1,
        generation,
        data: plan.data.digest(),
        models: router.hub().active(),
        device: router.device_name(),
    };
    files::replace(&BundledNote::file(out), &files::to_json(&note)?)?;
    Ok(true)
}
