//! What a run leaves behind: tables, CSV, JSON, figures, one page (cmrbench.md section 9).

mod figures;
mod html;
mod poster;
mod svg;
mod tables;

use std::path::Path;

use serde_json::{Value, json};

use crate::cmrbench::grid::CODE;
use crate::cmrbench::{Matrix, MethodOutcome, Metric, Plan, Prefix, Results};
use crate::encoder::read_manifest;
use crate::error::Result;
use crate::files;

/// Files of a report, in the order in which they are written.
pub const REPORT_FILES: [&str; 5] = [
    "matrix.csv",
    "summary.csv",
    "results.json",
    "tables.md",
    "report.html",
];

/// The settings that a table is read with: data, rows, rule, encoder, seeds, hardware.
pub fn about(plan: &Plan) -> Result<Value> {
    let (manifest, revision) = read_manifest(&plan.encoder)?;
    let changes: Vec<String> = plan
        .changes
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    Ok(json!({
        "commit": plan.data.commit,
        "data_sha256": plan.data.digest(),
        "eval": plan.eval.name(),
        "prefix": if plan.prefix == Prefix::Keep { "keep" } else { "strip" },
        "rule": "baseline: hits over all rows; family and domain by the tables of the step",
        "head": "cosine",
        "encoder": format!("{}@{}", manifest.name, &revision[..12.min(revision.len())]),
        "seeds": plan.seeds,
        "epochs": plan.epochs,
        "changes": changes,
        "device": plan.options.device,
        "threads": plan.options.threads,
        "processor": processor(),
        "version": env!("CARGO_PKG_VERSION"),
        "code": CODE,
        "missing": plan.data.missing,
    }))
}

/// The processor's name, where the system says it.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// Makes every file of the report in `out` from the predictions there; nothing else that counts is
/// read, so tables can always be made again.
///
/// Returns the results, for a last word on the terminal.
pub fn write_report(plan: &Plan, out: &Path) -> Result<Results> {
    let results = Results::read(plan, out)?;
    let about = about(plan)?;
    let put = |name: &str, text: String| files::replace(&out.join(name), text.as_bytes());
    files::make_folder(&out.join("figures"))?;
    let figures = figures::all(&results);
    for figure in &figures {
        put(&format!("figures/{}.svg", figure.name), figure.svg.clone())?;
    }
    put("matrix.csv", tables::matrix_csv(&results))?;
    put("summary.csv", tables::summary_csv(&results))?;
    files::replace(
        &out.join("results.json"),
        &files::to_json(&results.json(&about))?,
    )?;
    put("tables.md", tables::markdown(&results, &about))?;
    put("report.html", html::page(&results, &about, &figures))?;
    Ok(results)
}

/// `62.3 ± 0.4`; no ± for one run of a method that draws, ± 0.0 for one that does not.
fn with_deviation(method: &MethodOutcome, value: Option<(f64, Option<f64>)>) -> String {
    match value {
        None => "–".to_owned(),
        Some((mean, Some(deviation))) => format!("{} ± {deviation:.1}", number(mean)),
        Some((mean, None)) if method.info.deterministic() => format!("{} ± 0.0", number(mean)),
        Some((mean, None)) => number(mean),
    }
}

/// One decimal; no minus before 0.0.
fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    if text == "-0.0" {
        "0.0".to_owned()
    } else {
        text
    }
}

/// The six columns of the poster: M, F, D accuracy, then forgetting.
type Column = (Metric, &'static str, fn(&Matrix) -> Option<f64>);

const COLUMNS: [Column; 6] = [
    (Metric::Model, "M-Acc", Matrix::acc),
    (Metric::Family, "F-Acc", Matrix::acc),
    (Metric::Domain, "D-Acc", Matrix::acc),
    (Metric::Model, "M-Fgt", Matrix::forgetting),
    (Metric::Family, "F-Fgt", Matrix::forgetting),
    (Metric::Domain, "D-Fgt", Matrix::forgetting),
];

/// Each method's cells under [`COLUMNS`], with the place of each within the methods: 1 best, 2 second,
/// 0 any other.
fn ranked(methods: &[&MethodOutcome]) -> Vec<Vec<(String, usize)>> {
    let mut rows: Vec<Vec<(String, usize)>> = vec![Vec::new(); methods.len()];
    for (metric, name, of) in COLUMNS {
        let values: Vec<_> = methods
            .iter()
            .map(|method| method.over_seeds(metric, of))
            .collect();
        let better = |a: f64, b: f64| if name.ends_with("Acc") { a > b } else { a < b };
        let mut order: Vec<f64> = values.iter().flatten().map(|(mean, _)| *mean).collect();
        order.sort_by(|a, b| {
            if better(*a, *b) {
                std::cmp::Ordering::Less
            } else {
                b.total_cmp(a).reverse()
            }
        });
        order.dedup();
        for ((row, method), value) in rows.iter_mut().zip(methods).zip(&values) {
            let place =
                value.and_then(|(mean, _)| order.iter().take(2).position(|other| *other == mean));
            // A single value is no best one.
            let place = place
                .filter(|_| order.len() > 1)
                .map_or(0, |place| place + 1);
            row.push((with_deviation(method, *value), place));
        }
    }
    rows
}
