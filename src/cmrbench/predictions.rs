//! The predictions of a method for every eval row. Tables are made of nothing else.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::methods::Answer;
use crate::cmrbench::BenchRow;
use crate::error::{Result, bail, error};
use crate::files;
use crate::hub::cards::for_each_line;

/// The prediction for one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Prediction {
    /// The row's place among the eval rows, from 0.
    pub row: usize,
    /// Its gold model.
    pub gold: String,
    /// The predicted model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pred: Option<String>,
    /// Its score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The ten best, `pred` first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top10: Vec<String>,
    /// The answer of a method that names domains; it then has no model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// The file of one cell's predictions; `step` and `test` from 1.
pub fn predictions_file(out: &Path, method: &str, seed: u64, step: usize, test: usize) -> PathBuf {
    out.join("predictions")
        .join(format!("{method}-s{seed}-step{step}-E{test}.jsonl"))
}

/// Writes the answers to `rows`.
pub(super) fn write(path: &Path, rows: &[BenchRow], answers: &[Answer]) -> Result<()> {
    let mut text = String::new();
    for (place, (row, answer)) in rows.iter().zip(answers).enumerate() {
        let mut prediction = Prediction {
            row: place,
            gold: row.model_name.clone(),
            pred: None,
            score: None,
            top10: Vec::new(),
            domain: None,
        };
        match answer {
            Answer::Domain(domain) => prediction.domain = Some(domain.clone()),
            Answer::Models(named) => {
                let Some(best) = named.first() else {
                    bail!(NoCandidate, "row {place}: expected a model, found none");
                };
                prediction.pred = Some(best.model.clone());
                prediction.score = Some(best.score);
                prediction.top10 = named.iter().map(|named| named.model.clone()).collect();
            }
        }
        let line = serde_json::to_string(&prediction);
        text.push_str(&line.map_err(|e| error!(Format, "cannot write JSON: {e}"))?);
        text.push('\n');
    }
    files::replace(path, text.as_bytes())
}

/// Reads the predictions for `rows`.
///
/// Errors: the file is missing or malformed; it is of other rows.
pub fn read_predictions(path: impl AsRef<Path>, rows: &[BenchRow]) -> Result<Vec<Prediction>> {
    let path = path.as_ref();
    let mut all: Vec<Prediction> = Vec::with_capacity(rows.len());
    for_each_line(path, |prediction: Prediction| {
        let gold = rows.get(all.len()).map(|row| row.model_name.as_str());
        if prediction.row != all.len() || gold != Some(&prediction.gold) {
            bail!(
                Mismatch,
                "expected row {} of gold {}, found row {} of gold {:?}: these are predictions of \
                 other data",
                all.len(),
                gold.map_or("none".to_owned(), |gold| format!("{gold:?}")),
                prediction.row,
                prediction.gold
            );
        }
        if prediction.pred.is_some() == prediction.domain.is_some() {
            bail!(
                Format,
                "expected pred, the name of a model, or domain, found {}",
                if prediction.pred.is_some() {
                    "both"
                } else {
                    "neither"
                }
            );
        }
        if prediction.pred.is_some() != prediction.score.is_some() {
            bail!(Format, "expected a score with pred and only with it");
        }
        all.push(prediction);
        Ok(())
    })?;
    if all.len() != rows.len() {
        bail!(
            Mismatch,
            "{}: expected {} predictions, found {}",
            path.display(),
            rows.len(),
            all.len()
        );
    }
    Ok(all)
}
