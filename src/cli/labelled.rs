//! `hubrouter eval --examples`: accuracy of a router on the user's labelled prompts.
#![expect(clippy::disallowed_types, reason = "speed of an evaluation")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;

use super::observed::examples;
use super::progress::Progress;
use super::reliability::{self, Judged, Reliability};
use super::{RouterArgs, output};
use crate::cmrbench::{Prefix, query_text};
use crate::error::Result;
use crate::hub::domain_key;
use crate::learn::Example;
use crate::{Decision, Hub, ModelId, Options, Precision, Ranked, Request, Router};

/// Prompts per batch.
const BATCH: usize = 32;

/// Normal quantile of a two-sided 95 % interval.
const QUANTILE: f64 = 1.959_963_984_540_054;

/// Most names of domains in a remark.
const MOST_NAMED: usize = 3;

#[derive(Serialize)]
struct LabelledReport {
    schema_version: u32,
    rows: usize,
    /// Rows whose model is unknown to the hub or retired; each counts as a miss.
    unknown: usize,
    #[serde(flatten)]
    all: Scores,
    domains: Vec<OfDomain>,
    /// `None` where confidence was not measured.
    confidence: Option<Reliability>,
    texts_per_second: f64,
    device: String,
    precision: Precision,
    threads: usize,
    generation: String,
    models: usize,
    prefix: &'static str,
}

#[derive(Serialize)]
struct OfDomain {
    name: String,
    rows: usize,
    #[serde(flatten)]
    scores: Scores,
}

/// Hits among the rows that can be judged.
#[derive(Clone, Copy, Default, Serialize)]
struct Scores {
    model: Share,
    /// Among rows whose model has a family.
    family: Share,
    /// Among rows with a known domain.
    domain: Share,
}

/// Hits and rows; the share has a 95 % interval.
#[derive(Clone, Copy, Default)]
pub(super) struct Share {
    pub(super) hits: usize,
    pub(super) rows: usize,
}

impl Share {
    /// Counts a row, unless it cannot be judged.
    pub(super) fn add(&mut self, hit: Option<bool>) {
        if let Some(hit) = hit {
            self.rows += 1;
            self.hits += usize::from(hit);
        }
    }

    /// The share and the ends of its Wilson interval, in percent; `None` without rows.
    pub(super) fn percent(self) -> Option<[f64; 3]> {
        if self.rows == 0 {
            return None;
        }
        let (n, z) = (self.rows as f64, QUANTILE);
        let p = self.hits as f64 / n;
        let middle = p + z * z / (2.0 * n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + z * z / n;
        let ends = [(middle - half) / scale, (middle + half) / scale];
        let [low, high] = ends.map(|end| 100.0 * end.clamp(0.0, 1.0));
        Some([100.0 * p, low, high])
    }

    /// `31.2 (23-41)`
    pub(super) fn cell(self) -> String {
        match self.percent() {
            Some([percent, low, high]) => format!("{percent:.1} ({low:.0}-{high:.0})"),
            None => "-".to_owned(),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [percent, low, high] = self.percent().map_or([None; 3], |all| all.map(Some));
        serde_json::json!({
            "hits": self.hits, "rows": self.rows, "percent": percent, "low": low, "high": high,
        })
        .serialize(serializer)
    }
}

/// The right answers for an example, as far as the example and the hub state them.
struct Gold<'g> {
    model: Option<ModelId>,
    family: Option<&'g str>,
    domain: Option<&'g str>,
}

/// The domains of a hub's active models, as first spelled in the hub.
struct Spellings<'h>(BTreeMap<String, &'h str>);

impl<'h> Spellings<'h> {
    fn of(hub: &'h Hub) -> Self {
        let mut spelled = BTreeMap::new();
        for (_, model) in hub.iter().filter(|(_, model)| !model.retired) {
            let domain = &*model.domain;
            spelled.entry(domain_key(domain)).or_insert(domain);
        }
        Self(spelled)
    }

    fn spelled(&self, domain: &str) -> Option<&'h str> {
        self.0.get(&domain_key(domain)).copied()
    }
}

impl<'g> Gold<'g> {
    fn new(example: &'g Example, hub: &'g Hub, domains: &Spellings<'g>) -> Self {
        let id = hub.find(&example.model_name);
        let known = id.and_then(|id| hub.get(id));
        let own = example.domain.as_deref();
        let domain = own.or(known.map(|model| &*model.domain));
        Self {
            model: id.filter(|_| known.is_some_and(|model| !model.retired)),
            family: known.and_then(|model| model.family.as_deref()),
            domain: domain.map(|domain| domains.spelled(domain).unwrap_or(domain)),
        }
    }
}

impl OfDomain {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rows: 0,
            scores: Scores::default(),
        }
    }
}

impl Scores {
    /// Counts one row with the best model `best`.
    fn add(&mut self, gold: &Gold<'_>, best: Option<&Ranked>) {
        let model = best.is_some_and(|best| Some(best.id) == gold.model);
        let family = best.and_then(|best| best.family.as_deref());
        let domain = best.map(|best| &*best.domain);
        self.model.add(Some(model));
        self.family.add(same(gold.family, family));
        self.domain.add(same(gold.domain, domain));
    }
}

/// Whether `found` equals `gold` in any case; `None` without a gold value.
fn same(gold: Option<&str>, found: Option<&str>) -> Option<bool> {
    let gold = domain_key(gold?);
    Some(found.is_some_and(|found| domain_key(found) == gold))
}

pub(super) fn run(
    path: &Path,
    keep_prefix: bool,
    json: bool,
    foreign: Option<&Path>,
    router: &RouterArgs,
    options: Options,
) -> Result<ExitCode> {
    let examples = examples(path, || router.hub())?;
    let router = router.open(options)?;
    let prefix = if keep_prefix {
        Prefix::Keep
    } else {
        Prefix::Strip
    };
    let (decisions, seconds) = route(&router, path, &examples, prefix)?;
    let mut report = measure(&router, &examples, &decisions, seconds, keep_prefix);
    report.confidence = judged(&router, &examples, &decisions).report(&router, foreign)?;
    remark_on_domains(path, &examples, &router.hub());
    if json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Routes all examples; returns the decisions and the seconds taken.
fn route(
    router: &Router,
    path: &Path,
    examples: &[Example],
    prefix: Prefix,
) -> Result<(Vec<Decision>, f64)> {
    let mut progress = Progress::new("evaluating", examples.len() as u64);
    let began = Instant::now();
    let mut decisions = Vec::with_capacity(examples.len());
    for batch in examples.chunks(BATCH) {
        let request = |example: &Example| Request::new(query_text(&example.prompt, prefix)).top(1);
        let requests: Vec<Request> = batch.iter().map(request).collect();
        for decision in router.route_batch(&requests) {
            let number = decisions.len() + 1;
            let place = || format!("{}: example {number}", path.display());
            decisions.push(decision.map_err(|e| e.at(place()))?);
        }
        progress.set(decisions.len() as u64);
    }
    Ok((decisions, began.elapsed().as_secs_f64()))
}

fn measure(
    router: &Router,
    examples: &[Example],
    decisions: &[Decision],
    seconds: f64,
    keep_prefix: bool,
) -> LabelledReport {
    let hub = router.hub();
    let known = Spellings::of(&hub);
    let mut unknown = 0;
    let mut all = Scores::default();
    let mut by_domain: BTreeMap<String, OfDomain> = BTreeMap::new();
    for (example, decision) in examples.iter().zip(decisions) {
        let gold = Gold::new(example, &hub, &known);
        unknown += usize::from(gold.model.is_none());
        let name = gold.domain.unwrap_or("unknown");
        let of = by_domain
            .entry(domain_key(name))
            .or_insert_with(|| OfDomain::new(name));
        of.rows += 1;
        for scores in [&mut all, &mut of.scores] {
            scores.add(&gold, decision.ranked.first());
        }
    }
    let mut domains: Vec<OfDomain> = by_domain.into_values().collect();
    domains.sort_by_key(|of| std::cmp::Reverse(of.rows));
    LabelledReport {
        schema_version: 1,
        rows: examples.len(),
        unknown,
        all,
        domains,
        confidence: None,
        texts_per_second: examples.len() as f64 / seconds.max(1e-9),
        device: router.device_name(),
        precision: router.precision(),
        threads: router.threads(),
        generation: router.generation().to_string(),
        models: hub.active(),
        prefix: if keep_prefix { "keep" } else { "strip" },
    }
}

/// The decisions, and whether they were right.
fn judged(router: &Router, examples: &[Example], decisions: &[Decision]) -> Judged {
    let hub = router.hub();
    let known = Spellings::of(&hub);
    let mut judged = Judged::default();
    for (example, decision) in examples.iter().zip(decisions) {
        let gold = Gold::new(example, &hub, &known);
        let best = decision.ranked.first();
        let domain = same(gold.domain, best.map(|best| &*best.domain));
        let model = best.is_some_and(|best| Some(best.id) == gold.model);
        judged.add(decision, domain, model);
    }
    judged
}

/// Warns about domains that no model has. They are probably typing errors, and each row is a miss.
fn remark_on_domains(path: &Path, examples: &[Example], hub: &Hub) {
    let known = Spellings::of(hub);
    let named = examples
        .iter()
        .filter_map(|example| example.domain.as_deref());
    let mut strange: Vec<&str> = named.filter(|name| known.spelled(name).is_none()).collect();
    if strange.is_empty() {
        return;
    }
    let rows = output::counted(strange.len(), "row");
    strange.sort_unstable();
    strange.dedup();
    let quoted = |name: &&str| format!("{name:?}");
    let mut listed: Vec<String> = strange.iter().take(MOST_NAMED).map(quoted).collect();
    if strange.len() > MOST_NAMED {
        listed.push("...".to_owned());
    }
    output::remark(format!(
        "hubrouter: {}: {rows} in domains that no model of the hub has, counted as misses: {}",
        path.display(),
        listed.join(", ")
    ));
}

fn print(report: &LabelledReport) -> Result<()> {
    let mut table = output::TextTable::new(&["~domain", ">rows", ">model", ">family", ">domain"]);
    let mut row = |name: &str, rows: usize, scores: &Scores| {
        let cells = [scores.model, scores.family, scores.domain].map(Share::cell);
        let mut line = vec![name.to_owned(), rows.to_string()];
        line.extend(cells);
        table.row(line);
    };
    row("all", report.rows, &report.all);
    for of in &report.domains {
        row(&of.name, of.rows, &of.scores);
    }
    table.print()?;
    output::paragraph(
        "percent of the rows that can be judged, with the 95 % interval (Wilson) in brackets",
    )?;
    if report.unknown > 0 {
        let rows = output::counted(report.unknown, "row");
        output::paragraph(format!(
            "{rows} with a model that is unknown to the hub or retired, counted as misses"
        ))?;
    }
    output::paragraph(format!(
        "{}, generation {}, prefix {}; {:.0} texts/s on {} in {} with {}",
        output::counted(report.models, "model"),
        report.generation,
        report.prefix,
        report.texts_per_second,
        report.device,
        report.precision,
        output::counted(report.threads, "thread"),
    ))?;
    reliability::print(report.confidence.as_ref())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Textbook values, and values of the same formula from another program.
    #[test]
    fn intervals_are_wilsons() {
        for (hits, rows, low, high) in [
            (0, 10, 0.0, 27.753_280),
            (5, 10, 23.659_309, 76.340_691),
            (10, 10, 72.246_720, 100.0),
            (81, 263, 25.528_852, 36.620_958),
        ] {
            let [percent, a, b] = Share { hits, rows }.percent().unwrap();
            assert!((percent - 100.0 * hits as f64 / rows as f64).abs() < 1e-9);
            assert!(
                (a - low).abs() < 1e-5 && (b - high).abs() < 1e-5,
                "{hits} of {rows}: {a} to {b}"
            );
        }
        assert!(Share::default().percent().is_none());
        assert_eq!(Share { hits: 5, rows: 10 }.cell(), "50.0 (24-76)");
    }
}
