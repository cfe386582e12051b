//! How far the confidence of decisions can be trusted: the part of `eval` about it.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::output::{self, TextTable};
use crate::error::{Result, bail, error};
use crate::files::read_text;
use crate::generation::confidence::{auroc, calibration_error, risk_curve};
use crate::{Calibration, Confidence, Decision, Request, RiskPoint, Router};

/// Points of the curve: every 5 % of coverage.
const POINTS: usize = 20;

/// Risks that are asked for, in percent.
const RISKS: [f64; 4] = [5.0, 10.0, 15.0, 20.0];

/// Thresholds of being out of distribution.
const THRESHOLDS: [f64; 3] = [0.9, 0.95, 0.99];

/// Prompts per batch.
const BATCH: usize = 32;

/// Longest file of foreign prompts.
const LONGEST_FILE: u64 = 64 << 20;

/// Decisions with their confidence, and whether they were right.
#[derive(Default)]
pub(super) struct Judged {
    rows: Vec<JudgedRow>,
}

struct JudgedRow {
    confidence: Confidence,
    /// `None`: the right domain is not known.
    domain: Option<bool>,
    model: bool,
}

/// Shown by `eval`.
#[derive(Serialize)]
pub(super) struct Reliability {
    /// Bins of the calibration error, with the same number of rows each.
    bins: usize,
    domain: ReliabilityOf,
    model: ReliabilityOf,
    /// Risks that were asked for, and how they were kept.
    risks: Vec<RiskKept>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out_of_distribution: Option<ForeignPrompts>,
}

#[derive(Serialize)]
struct ReliabilityOf {
    rows: usize,
    /// Expected calibration error, points.
    calibration_error: f64,
    /// Of the confidence against being right.
    auroc: Option<f64>,
    curve: Vec<RiskPoint>,
}

#[derive(Serialize)]
struct RiskKept {
    /// Percent of wrong domains that was asked for.
    risk: f64,
    /// The least confidence that keeps it by the generation's curve.
    least: f64,
    /// Percent of rows that are answered, and of wrong domains among them.
    coverage: f64,
    observed: Option<f64>,
}

#[derive(Serialize)]
struct ForeignPrompts {
    prompts: usize,
    /// Of `out_of_distribution` for these prompts against the rows.
    auroc: Option<f64>,
    thresholds: Vec<Flagged>,
}

/// Percent beyond a threshold.
#[derive(Serialize)]
struct Flagged {
    above: f64,
    foreign: f64,
    rows: f64,
}

impl Judged {
    /// Adds a decision, if it has a confidence.
    pub(super) fn add(&mut self, decision: &Decision, domain: Option<bool>, model: bool) {
        if let Some(confidence) = decision.confidence {
            self.rows.push(JudgedRow {
                confidence,
                domain,
                model,
            });
        }
    }

    /// `foreign`: a file of prompts that are out of distribution.
    ///
    /// `None` if the router's generation has no record of its confidence.
    pub(super) fn report(
        &self,
        router: &Router,
        foreign: Option<&Path>,
    ) -> Result<Option<Reliability>> {
        let Some(calibration) = router.store().calibration(&router.generation())? else {
            return Ok(None);
        };
        let foreign = match foreign {
            Some(path) => Some(self.foreign(&outliers(router, path)?)),
            None => None,
        };
        let of = |part: fn(&JudgedRow) -> Option<(f64, bool)>| -> Vec<(f64, bool)> {
            self.rows.iter().filter_map(part).collect()
        };
        let domain = of(|row| Some((f64::from(row.confidence.domain), row.domain?)));
        let model = of(|row| Some((f64::from(row.confidence.model), row.model)));
        Ok(Some(Reliability {
            bins: 15,
            risks: RISKS.map(|risk| kept(&calibration, risk, &domain)).into(),
            domain: ReliabilityOf::new(&domain),
            model: ReliabilityOf::new(&model),
            out_of_distribution: foreign,
        }))
    }

    fn foreign(&self, foreign: &[f64]) -> ForeignPrompts {
        let own = self.rows.iter();
        let own: Vec<f64> = own
            .map(|row| f64::from(row.confidence.out_of_distribution))
            .collect();
        let both = own.iter().map(|x| (*x, false));
        let both: Vec<(f64, bool)> = both.chain(foreign.iter().map(|x| (*x, true))).collect();
        let share = |values: &[f64], above: f64| {
            let beyond = values.iter().filter(|value| **value > above).count();
            100.0 * beyond as f64 / values.len().max(1) as f64
        };
        let flagged = THRESHOLDS.map(|above| Flagged {
            above,
            foreign: share(foreign, above),
            rows: share(&own, above),
        });
        ForeignPrompts {
            prompts: foreign.len(),
            auroc: auroc(&both),
            thresholds: flagged.into(),
        }
    }
}

impl ReliabilityOf {
    fn new(rows: &[(f64, bool)]) -> Self {
        Self {
            rows: rows.len(),
            calibration_error: calibration_error(rows),
            auroc: auroc(rows),
            curve: risk_curve(rows, POINTS),
        }
    }
}

fn kept(calibration: &Calibration, risk: f64, rows: &[(f64, bool)]) -> RiskKept {
    let least = calibration.least_confidence(risk);
    let answered: Vec<bool> = rows
        .iter()
        .filter_map(|(p, right)| (*p >= least).then_some(*right))
        .collect();
    let wrong = answered.iter().filter(|right| !**right).count();
    let percent = |part: usize, of: usize| 100.0 * part as f64 / of as f64;
    RiskKept {
        risk,
        least,
        coverage: percent(answered.len(), rows.len().max(1)),
        observed: (!answered.is_empty()).then(|| percent(wrong, answered.len())),
    }
}

/// How far out of distribution the prompts of a file are: JSON Lines with `prompt`.
fn outliers(router: &Router, path: &Path) -> Result<Vec<f64>> {
    let text = read_text(path, LONGEST_FILE)?;
    let place = path.display();
    let mut requests = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let number = number + 1;
        let value: Value =
            serde_json::from_str(line).map_err(|e| error!(Format, "{place}:{number}: {e}"))?;
        let Some(prompt) = value.get("prompt").and_then(Value::as_str) else {
            bail!(
                Format,
                "{place}:{number}: expected an object with \"prompt\", found {value}"
            );
        };
        requests.push(Request::new(prompt).top(1));
    }
    let mut found = Vec::with_capacity(requests.len());
    for decision in requests
        .chunks(BATCH)
        .flat_map(|some| router.route_batch(some))
    {
        let decision =
            decision.map_err(|e| e.at(format!("{place}: prompt {}", found.len() + 1)))?;
        let confidence = decision.confidence.as_ref();
        found.extend(confidence.map(|sure| f64::from(sure.out_of_distribution)));
    }
    Ok(found)
}

pub(super) fn print(reliability: Option<&Reliability>) -> Result<()> {
    let Some(reliability) = reliability else {
        return output::paragraph(
            "confidence was not measured for this generation; `hubrouter generation measure` does \
             that",
        );
    };
    output::line("")?;
    let heads = [
        "confidence of",
        ">error",
        ">AUROC",
        ">wrong at 50 %",
        ">80 %",
        ">100 %",
    ];
    let mut table = TextTable::new(&heads);
    for (name, of) in [
        ("domain", &reliability.domain),
        ("model", &reliability.model),
    ] {
        let at = |percent: usize| match of.curve.get(percent * POINTS / 100 - 1) {
            Some(point) => format!("{:.1}", point.observed),
            None => "-".to_owned(),
        };
        table.row(vec![
            name.to_owned(),
            format!("{:.1}", of.calibration_error),
            area(of.auroc),
            at(50),
            at(80),
            at(100),
        ]);
    }
    table.print()?;
    output::paragraph(format!(
        "error: expected calibration error in points, {} bins of equal size; wrong: percent among \
         the surest half, 80 %, all",
        reliability.bins
    ))?;
    for kept in &reliability.risks {
        let observed = kept.observed;
        let observed = observed.map_or("none".to_owned(), |wrong| format!("{wrong:.1} %"));
        output::line(format!(
            "risk {:>2} %: confidence from {:.3}, {:.1} % answered, {observed} of them wrong",
            kept.risk, kept.least, kept.coverage
        ))?;
    }
    if let Some(foreign) = &reliability.out_of_distribution {
        let prompts = output::counted(foreign.prompts, "foreign prompt");
        output::line(format!("{prompts}: AUROC {}", area(foreign.auroc)))?;
        for flagged in &foreign.thresholds {
            output::line(format!(
                "out of distribution above {}: {:.1} % of them, {:.1} % of the rows",
                flagged.above, flagged.foreign, flagged.rows
            ))?;
        }
    }
    Ok(())
}

fn area(auroc: Option<f64>) -> String {
    auroc.map_or("-".to_owned(), |area| format!("{area:.3}"))
}
