//! The report of a run: tables, CSV, JSON, figures, one page (cmrbench.md section 9).

mod claims;
mod confusion;
mod cost;
mod figures;
mod growth;
mod headline;
mod html;
mod labels;
mod map;
mod missing;
mod poster;
mod risk;
mod svg;
mod tables;

use std::path::Path;

use serde_json::{Value, json};

use crate::cmrbench::grid::CODE;
use crate::cmrbench::recall::stated;
use crate::cmrbench::{AccuracyMatrix, BenchPlan, CellSettings, MethodOutcome, Metric, Results};
use crate::encoder::read_manifest;
use crate::error::{Result, bail, error};
use crate::files;

/// The parts of which other pages are made, too.
#[cfg(feature = "cli")]
pub(crate) mod page {
    pub(crate) use super::html::{document, scroll};
    pub(crate) use super::svg::{Anchor, Scale, Svg, escaped};
}

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

/// The settings that the tables depend on. Threads and processor are those of the cells that are
/// shown; for cells that note none they are those of the last report (`before`).
fn about(results: &Results, before: Option<&CellSettings>) -> Result<Value> {
    let plan = &results.plan;
    let (manifest, revision) = read_manifest(&plan.encoder)?;
    let own = plan.settings();
    let noted = noted(results, before);
    // Where cells differ there is no one value: each run in `methods` has its own.
    let same = |of: fn(&CellSettings) -> Value| {
        let mut values = noted.iter().map(|settings| settings.map(of));
        let first = values.next().flatten();
        first.filter(|first| values.all(|value| value.as_ref() == Some(first)))
    };
    Ok(json!({
        "commit": plan.data.commit,
        "data_sha256": plan.data.digest(),
        "eval": own.eval,
        "limit_rows": own.limit_rows,
        "prefix": own.prefix,
        "rule": "baseline: hits over all rows; family and domain by the tables of the step",
        "head": "cosine",
        "encoder": format!("{}@{}", manifest.name, &revision[..12.min(revision.len())]),
        "seeds": plan.seeds,
        "quick": own.quick,
        "epochs": own.epochs,
        "changes": own.changes,
        "device": own.device,
        "threads": same(|settings| json!(settings.threads)),
        "processor": same(|settings| json!(settings.processor)),
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

/// The settings of every run that is shown; `None` for one that noted none.
fn noted<'n>(
    results: &'n Results,
    before: Option<&'n CellSettings>,
) -> Vec<Option<&'n CellSettings>> {
    let runs = results.methods.iter().flat_map(|method| &method.runs);
    runs.map(|run| run.cell.settings.as_ref().or(before))
        .collect()
}

/// Makes every file of the report in `out` from the predictions there, so that tables can always be
/// made again.
///
/// Returns the results, for the table on the terminal.
///
/// Errors: no cell of the plan is whole; predictions are missing or malformed.
pub fn write_report(plan: &BenchPlan, out: &Path) -> Result<Results> {
    let results = Results::read(plan, out)?;
    if results.methods.is_empty() {
        bail!(
            InvalidRequest,
            "{}: expected a whole cell of this plan, found none: cells of other data, seeds, \
             epochs or \
             settings, or of another encoder or device, are not in this report",
            out.display()
        );
    }
    let before = stated(out);
    let about = about(&results, before.as_ref())?;
    let hardware = tables::hardware(&noted(&results, before.as_ref()));
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
    put("matrix.csv", tables::matrix_csv(&results)?)?;
    put("summary.csv", tables::summary_csv(&results)?)?;
    put("claims.csv", claims.csv()?)?;
    put("cost.csv", costs.csv()?)?;
    put("confusion.csv", confusion::csv(&confusions)?)?;
    put("coverage.csv", risk::csv(&risks)?)?;
    put("map.csv", map::csv(&results)?)?;
    put("poster.csv", poster::csv(&results)?)?;
    files::replace(
        &out.join("results.json"),
        &files::to_json(&results.json(&about))?,
    )?;
    let sections = tables::Sections {
        hardware,
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

/// Methods of the detailed figures.
const CHOSEN: [&str; 3] = ["first-session", "carve-10", "replay-10"];

/// The methods of the detailed figures: those of [`CHOSEN`] that were run, or else the one with the
/// best domain accuracy.
fn chosen(results: &Results) -> Vec<&MethodOutcome> {
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

/// A domain in few words, without the marks of a Markdown table.
fn short(domain: &str) -> String {
    domain
        .replace("Natural Language Processing ", "NLP ")
        .replace("Computer Vision ", "CV ")
        .replace(['|', '*'], "/")
}

/// Fields of a CSV row, each as text.
macro_rules! fields {
    ($($field:expr),* $(,)?) => { [$($field.to_string()),*] };
}
use fields;

/// A CSV file under construction.
struct CsvText(csv::Writer<Vec<u8>>);

impl CsvText {
    /// `heads`: the names of the columns, with commas.
    fn new(heads: &str) -> Result<Self> {
        let mut text = Self(csv::Writer::from_writer(Vec::new()));
        text.row(heads.split(',').map(str::to_owned))?;
        Ok(text)
    }

    /// Errors: the row has more or fewer fields than there are columns.
    fn row(&mut self, fields: impl IntoIterator<Item = String>) -> Result<()> {
        let written = self
            .0
            .write_record(fields.into_iter().map(String::into_bytes));
        written.map_err(|e| error!(Format, "cannot write CSV: {e}"))
    }

    fn finish(self) -> Result<String> {
        let bytes = self.0.into_inner();
        let bytes = bytes.map_err(|e| error!(Format, "cannot write CSV: {e}"))?;
        String::from_utf8(bytes).map_err(|e| error!(Format, "cannot write CSV: {e}"))
    }
}

/// The value as text; empty for `None`.
fn plain<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// `62.3 ± 0.4`: the mean with the sample standard deviation over seeds, or the value of a single
/// run.
fn with_deviation(value: Option<(f64, Option<f64>)>) -> String {
    match value {
        None => "–".to_owned(),
        Some((mean, Some(0.0))) => format!("{} ± 0", number(mean)),
        Some((mean, Some(deviation))) if deviation < 0.05 => {
            format!("{} ± {deviation:.2}", number(mean))
        }
        Some((mean, Some(deviation))) => format!("{} ± {deviation:.1}", number(mean)),
        Some((mean, None)) => number(mean),
    }
}

/// `1 run`, `3 runs`.
fn runs(method: &MethodOutcome) -> String {
    match method.runs.len() {
        1 => "1 run".to_owned(),
        runs => format!("{runs} runs"),
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

/// Each method's cells under [`COLUMNS`], with the rank of each among the methods: 1 best, 2
/// second, 0 any other.
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
        for ((row, value), place) in rows.iter_mut().zip(values).zip(places) {
            row.push((with_deviation(value), place));
        }
    }
    rows
}

/// 1 for the best value, 2 for the next, 0 for others; equal values share a rank. Where all values
/// are the same, or there is one, none is best.
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
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        let written = |second: &str| {
            let mut csv = CsvText::new("a,b")?;
            csv.row(fields![1.0, second])?;
            csv.finish()
        };
        assert_eq!(written("a/b (c)").unwrap(), "a,b\n1,a/b (c)\n");
        assert_eq!(
            written("F(n=1, \"x\")").unwrap(),
            "a,b\n1,\"F(n=1, \"\"x\"\")\"\n"
        );
        let error = CsvText::new("a,b").and_then(|mut csv| csv.row(fields![1]));
        assert!(error.is_err());
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
