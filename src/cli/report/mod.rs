//! `hubrouter report`

mod clusters;
mod measure;
mod page;
mod sections;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::prices::PriceArgs;
use super::progress::Progress;
use super::{DeviceArgs, StoreArgs, generation_of, output};
use crate::error::{Result, bail};
use crate::feedback::{FeedbackLine, SkippedLines, log_files, read_file};
use crate::files;
use crate::{GenerationId, Store};
use measure::{Measure, Rules};

/// Report on logs of feedback: agreement, cost, calibration, drift, what could not be routed
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter report my-log
  hubrouter report my-log --router my-store --baseline acme/large --html report.html
  hubrouter report monday.jsonl tuesday.jsonl --json | jq .used.model.percent

A log is a folder that `hubrouter route --shadow` or FeedbackLog writes, or one of its files. It may \
be read while it is written. Lines that cannot be read are counted.

Agreement: how often the best model is the one that was really used, or the expected one. The hub \
gives domains and aliases.

Cost: tokens of the lines times the prices of the models, for what was used, what was routed and, \
with --baseline, one model for everything. A line's own \"cost\" comes before the price of the used \
model. Only lines where all of these are known are compared.

Calibration: how often decisions of some confidence are right, where that is known.

What could not be routed: lines without an answer, that abstain or are out of distribution; with \
--below also those of less confidence. Prompts that a log keeps as text or vectors are clustered, \
and the nearest model cards are named.

Exit codes: 0 success; 1 a failure; 2 the command line is wrong.")]
pub(super) struct ReportArgs {
    /// Logs to read
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
    /// Compare the cost with this model for everything
    #[arg(long, value_name = "MODEL")]
    baseline: Option<String>,
    #[command(flatten)]
    prices: PriceArgs,
    /// Decisions of less confidence count as not routed, 0 to 1
    #[arg(long, value_name = "CONFIDENCE", value_parser = share)]
    below: Option<f64>,
    /// Out of distribution from this share of nearer known prompts on, 0 to 1
    #[arg(long, default_value_t = 0.95, value_name = "SHARE", value_parser = share)]
    out_of_distribution: f64,
    /// Write the report as one page with figures to this file, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Generation with the hub and its prices [default: the current one]
    #[arg(long, value_name = "ID")]
    generation: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

fn share(text: &str) -> std::result::Result<f64, String> {
    let number = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    number.ok_or_else(|| format!("expected a number from 0 to 1, found {text:?}"))
}

pub(super) fn run(args: &ReportArgs) -> Result<ExitCode> {
    let found = registry(args)?;
    let hub = match &found {
        Some((store, id)) => Some(store.hub(id)?),
        None => None,
    };
    let baseline = match (&args.baseline, &hub) {
        (Some(name), Some(hub)) => Some(hub.resolve(name).map_err(|e| e.at("--baseline"))?),
        (Some(_), None) => bail!(InvalidRequest, "--baseline: expected a hub; pass --router"),
        (None, _) => None,
    };
    let prices = args.prices.prices()?;
    let probe = crate::feedback::Feedback::default().tokens(1, 1);
    if let (Some(id), Some(hub)) = (baseline, &hub)
        && let Some(model) = hub.get(id)
        && prices.cost(model, &probe).is_none()
    {
        bail!(
            InvalidRequest,
            "--baseline {}: expected a model that states {}, found one that does not",
            model.name,
            prices.names()
        );
    }
    let rules = Rules {
        hub,
        prices,
        baseline,
        below: args.below,
        out: args.out_of_distribution,
    };
    let mut measure = Measure::new(rules, args.logs.clone());
    let skipped = read_all(&args.logs, |line| {
        measure.add(line);
        Ok(())
    })?;
    let (mut report, unrouted) = measure.finish(skipped);
    match &found {
        Some((store, id)) if !unrouted.is_empty() => {
            let options = args.device.options()?;
            clusters::cluster(&mut report.unrouted, &unrouted, store, id, &options)?;
        }
        None if !unrouted.is_empty() => {
            let remark = "without a store there are no clusters: pass --router".to_owned();
            report.unrouted.remarks.push(remark);
        }
        _ => {}
    }
    let (summary, sections) = (sections::summary(&report), sections::all(&report));
    if let Some(path) = &args.html {
        write_page(path, &args.logs, &page::page(&summary, &sections, &report))?;
    }
    if args.json {
        output::json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::paragraph(summary)?;
    sections
        .iter()
        .try_for_each(sections::ReportSection::print)?;
    Ok(ExitCode::SUCCESS)
}

/// The store and generation of the arguments; `None` if none are named and no store is bundled.
fn registry(args: &ReportArgs) -> Result<Option<(Store, GenerationId)>> {
    let named = args.store.router.is_some() || args.generation.is_some();
    match args.store.open() {
        Ok(store) => {
            let id = generation_of(&store, args.generation.as_deref())?;
            Ok(Some((store, id)))
        }
        Err(_) if !named => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads all lines of `logs`, with progress by bytes.
pub(super) fn read_all(
    logs: &[PathBuf],
    mut each: impl FnMut(FeedbackLine) -> Result<()>,
) -> Result<SkippedLines> {
    let mut files = Vec::new();
    for log in logs {
        files.extend(log_files(log)?);
    }
    let sizes = files.iter().filter_map(|file| file.metadata().ok());
    let total: u64 = sizes.map(|data| data.len()).sum();
    // Of kilobytes: a log may have gigabytes, and a bar shows its numbers.
    let mut progress = Progress::new("reading kB", total / 1000);
    let (mut skipped, mut done) = (SkippedLines::default(), 0);
    for file in files {
        read_file(&file, &mut skipped, &mut |bytes, line| {
            done += bytes as u64;
            progress.set(done / 1000);
            line.map_or(Ok(()), &mut each)
        })?;
    }
    Ok(skipped)
}

/// Errors: `path` is a file of the logs, or cannot be written.
fn write_page(path: &Path, logs: &[PathBuf], page: &str) -> Result<()> {
    let same = |file: &PathBuf| {
        let real = file.canonicalize();
        real.is_ok_and(|real| path.canonicalize().is_ok_and(|path| path == real))
    };
    for log in logs {
        if log_files(log)?.iter().any(same) {
            bail!(
                InvalidRequest,
                "--html {}: expected another file than the log, which would be overwritten",
                path.display()
            );
        }
    }
    files::replace(path, page.as_bytes())
}
