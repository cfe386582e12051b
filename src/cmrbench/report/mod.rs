//! What a run leaves behind: tables, CSV, JSON, figures, one page (cmrbench.md section 9).

mod claims;
mod confusion;
mod cost;
mod figures;
mod growth;
mod html;
mod map;
mod missing;
mod poster;
mod risk;
mod svg;
mod tables;

use std::path::Path;

use serde_json::{Value, json};

use crate::cmrbench::grid::CODE;
use crate::cmrbench::{AccuracyMatrix, BenchPlan, MethodOutcome, Metric, Prefix, Results};
use crate::encoder::read_manifest;
use crate::error::{Result, bail};
use crate::files;

/// Files of a report, in the order in which they are written.
pub const REPORT_FILES: [&str; 11] = [
    "matrix.csv",
    "summary.csv",
    "claims.csv",
    "cost.csv",
    "confusion.csv",
    "coverage.csv",
    "map.csv",
    "poster.csv",
    "results.json",
    "tables.md",
    "report.html",
];

/// The settings that a table is read with: data, rows, rule, encoder, seeds, hardware.
pub fn about(plan: &BenchPlan) -> Result<Value> {
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
        "llm": plan.chat.as_ref().map(|chat| json!({
            "endpoint": chat.endpoint,
            "model": chat.model,
            "domains": chat.domains.name(),
        })),
        "not_run": plan.left_out.iter().map(|(method, reason)| json!({
            "method": method.name,
            "reason": reason,
        })).collect::<Vec<_>>(),
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
///
/// Errors: no cell of the plan is whole; predictions are missing or malformed.
pub fn write_report(plan: &BenchPlan, out: &Path) -> Result<Results> {
    let results = Results::read(plan, out)?;
    if results.methods.is_empty() {
        bail!(
            InvalidRequest,
            "{}: expected a whole cell of this plan, found none: a report of other seeds, epochs or \
             settings stays as it is",
            out.display()
        );
    }
    let about = about(plan)?;
    let put = |name: &str, text: String| files::replace(&out.join(name), text.as_bytes());
    files::make_folder(&out.join("figures"))?;
    let costs = cost::Costs::new(&results)?;
    let claims = claims::Claims::new(&results);
    let mut figures = figures::all(&results);
    figures.extend(costs.figures(&results));
    let confusions = confusion::all(&results);
    let risks = risk::all(&results);
    figures.extend(confusion::figures(&confusions));
    figures.extend(risk::figures(&results, &risks));
    figures.extend(map::figures(&results));
    for figure in &figures {
        put(&format!("figures/{}.svg", figure.name), figure.svg.clone())?;
    }
    put("matrix.csv", tables::matrix_csv(&results))?;
    put("summary.csv", tables::summary_csv(&results))?;
    put("claims.csv", claims.csv())?;
    put("cost.csv", costs.csv())?;
    put("confusion.csv", confusion::csv(&confusions))?;
    put("coverage.csv", risk::csv(&risks))?;
    put("map.csv", map::csv(&results))?;
    put("poster.csv", poster::csv(&results))?;
    files::replace(
        &out.join("results.json"),
        &files::to_json(&results.json(&about))?,
    )?;
    let sections = tables::Sections {
        claims: claims.section(),
        others: [
            costs.section(),
            confusion::section(&confusions),
            risk::section(&risks),
            map::section(&results),
        ]
        .concat(),
    };
    let markdown = tables::markdown(&results, &about, &sections);
    let page = html::page(&markdown, &figures);
    put("tables.md", markdown)?;
    put("report.html", page)?;
    Ok(results)
}

/// The methods that are looked at closely: those of these that were run, or the one with the best
/// domain accuracy.
fn chosen(results: &Results) -> Vec<&MethodOutcome> {
    const CHOSEN: [&str; 3] = ["first-session", "carve-10", "replay-10"];
    let methods: Vec<&MethodOutcome> = CHOSEN
        .iter()
        .filter_map(|name| results.method(name))
        .collect();
    if !methods.is_empty() {
        return methods;
    }
    let acc = |method: &&MethodOutcome| {
        let acc = method.over_seeds(Metric::Domain, AccuracyMatrix::acc);
        acc.map_or(f64::NEG_INFINITY, |(mean, _)| mean)
    };
    let best = |a: &&MethodOutcome, b: &&MethodOutcome| acc(a).total_cmp(&acc(b));
    let methods = results.methods.iter();
    let naming = methods.filter(|method| method.measures(Metric::Model));
    naming.max_by(best).into_iter().collect()
}

/// A domain in few words that no table takes for its own marks.
fn short(domain: &str) -> String {
    domain
        .replace("Natural Language Processing ", "NLP ")
        .replace("Computer Vision ", "CV ")
        .replace(['|', '*'], "/")
}

/// A field of a CSV, in quotes where it needs them.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
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
type Column = (Metric, &'static str, fn(&AccuracyMatrix) -> Option<f64>);

const COLUMNS: [Column; 6] = [
    (Metric::Model, "M-Acc", AccuracyMatrix::acc),
    (Metric::Family, "F-Acc", AccuracyMatrix::acc),
    (Metric::Domain, "D-Acc", AccuracyMatrix::acc),
    (Metric::Model, "M-Fgt", AccuracyMatrix::forgetting),
    (Metric::Family, "F-Fgt", AccuracyMatrix::forgetting),
    (Metric::Domain, "D-Fgt", AccuracyMatrix::forgetting),
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
        let means: Vec<Option<f64>> = values
            .iter()
            .map(|value| value.map(|(mean, _)| mean))
            .collect();
        let places = places(&means, name.ends_with("Acc"));
        for (((row, method), value), place) in rows.iter_mut().zip(methods).zip(values).zip(places)
        {
            row.push((with_deviation(method, value), place));
        }
    }
    rows
}

/// 1 for the best value, 2 for the next, 0 for others; equal values share a place. Where all are the
/// same, or there is one, none is best.
fn places(values: &[Option<f64>], higher: bool) -> Vec<usize> {
    let mut order: Vec<f64> = values.iter().copied().flatten().collect();
    order.sort_by(|a, b| {
        if higher {
            b.total_cmp(a)
        } else {
            a.total_cmp(b)
        }
    });
    order.dedup();
    let place = |value: &f64| order.iter().take(2).position(|other| other == value);
    let place = |value: &Option<f64>| match value.as_ref().and_then(place) {
        Some(place) if order.len() > 1 => place + 1,
        _ => 0,
    };
    values.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_they_must() {
        assert_eq!(quoted("a/b (c)"), "a/b (c)");
        assert_eq!(quoted("F(n=1, \"x\")"), "\"F(n=1, \"\"x\"\")\"");
    }

    #[test]
    fn the_best_and_the_second() {
        let values = [
            Some(3.0),
            None,
            Some(10.0),
            Some(7.0),
            Some(10.0),
            Some(-1.0),
        ];
        assert_eq!(places(&values, true), [0, 0, 1, 2, 1, 0]);
        assert_eq!(places(&values, false), [2, 0, 0, 0, 0, 1]);
        assert_eq!(places(&[Some(1.0), Some(1.0)], true), [0, 0]);
        assert_eq!(places(&[None, Some(1.0)], true), [0, 0]);
    }
}
