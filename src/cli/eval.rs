//! `hubrouter eval`
#![expect(clippy::disallowed_types, reason = "speed of an evaluation")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::progress::Progress;
use super::reliability::{self, Judged, Reliability};
use super::{DeviceArgs, RouterArgs, labelled, output};
use crate::cmrbench::{BenchExperience, BenchRow, Data, Hits, Percent, Prefix, Tables};
use crate::error::{Result, bail};
use crate::{Decision, Precision, Request, Router};

/// Prompts per batch.
const BATCH: usize = 32;

/// The environment variable with the data's folder, for `--data`.
const DATA: &str = "HUBROUTER_CMRBENCH";

/// Measure accuracy on labelled prompts: CMRBench's eval rows, or your own examples
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter eval --data ~/CMR
  hubrouter eval --data ~/CMR --router my-store --json | jq .macro
  hubrouter eval --examples mine.jsonl --router my-store --generation g0003
  hubrouter eval --data ~/CMR --ood foreign.jsonl

CMRBench: hits over all rows of a file. Families and domains come from the training rows; the last \
row of a model counts.

--examples takes the same file or log of feedback as `hubrouter learn`: lines with \"instruction\" and \
\"model_name\"; \"domain\" is optional. The hub supplies missing domains, and families. A row \
whose model is unknown to the hub counts as a miss. Each share has a 95 % interval, over all rows \
and per domain.

Confidence: calibration error, AUROC against being right, and wrong answers by the share of rows \
that are answered, if it was measured for the generation.")]
pub(super) struct EvalArgs {
    /// A CMRBench checkout, or a folder with its layout [default: $HUBROUTER_CMRBENCH]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Your labelled prompts, JSON Lines
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    examples: Option<PathBuf>,
    /// Prompts that are out of distribution, JSON Lines with "prompt": how well they are told apart
    #[arg(long, value_name = "FILE")]
    ood: Option<PathBuf>,
    /// Keep a leading "###Instruction:" of a prompt
    #[arg(long)]
    keep_prefix: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    router: RouterArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
struct EvalReport {
    schema_version: u32,
    experiences: Vec<ExperienceLine>,
    #[serde(rename = "macro")]
    mean: ExperienceLine,
    /// Of the rows of all experiences; null where confidence was not measured.
    confidence: Option<Reliability>,
    texts_per_second: f64,
    device: String,
    precision: Precision,
    threads: usize,
    generation: String,
    models: usize,
    prefix: &'static str,
    missing: Vec<PathBuf>,
}

#[derive(Serialize)]
struct ExperienceLine {
    name: String,
    rows: usize,
    /// Percent.
    #[serde(flatten)]
    top1: Percent,
    /// Percent of rows with the gold model among the best 3, 5, 10.
    top3: f64,
    top5: f64,
    top10: f64,
    /// Mean of 1 / rank of the gold model over the whole hub; 0 for a model outside the hub.
    mean_reciprocal_rank: f64,
    /// Rows whose gold model the router does not know; all are misses.
    unknown: usize,
}

pub(super) fn run(args: &EvalArgs) -> Result<ExitCode> {
    if let Some(path) = &args.examples {
        let options = args.device.options()?;
        let foreign = args.ood.as_deref();
        return labelled::run(
            path,
            args.keep_prefix,
            args.json,
            foreign,
            &args.router,
            options,
        );
    }
    let prefix = if args.keep_prefix {
        Prefix::Keep
    } else {
        Prefix::Strip
    };
    let data = Data::open(data_folder(args.data.as_deref())?, prefix)?;
    let router = args.router.open(args.device.options()?)?;
    let tables = Tables::new(&data, data.experiences.len());
    let total: usize = data
        .experiences
        .iter()
        .map(|experience| experience.eval.len())
        .sum();
    let mut progress = Progress::new("evaluating", total as u64);
    let mut done = 0;
    let mut step = |rows: usize| {
        done += rows as u64;
        progress.set(done);
    };
    let mut seconds = 0.0;
    let mut lines = Vec::new();
    let mut judged = Judged::default();
    for experience in &data.experiences {
        let (answers, ranks, took) = route(&router, experience, &mut step)?;
        seconds += took;
        for (row, answer) in experience.eval.iter().zip(&answers) {
            let best = answer.ranked.first();
            let hits = best.map_or(Hits::default(), |best| tables.hits(&best.model, row));
            judged.add(answer, Some(hits.domain > 0), hits.model > 0);
        }
        lines.push(measure(experience, &tables, &router, &answers, &ranks));
    }
    drop(progress);
    let report = EvalReport {
        schema_version: 1,
        mean: mean(&lines),
        experiences: lines,
        confidence: judged.report(&router, args.ood.as_deref())?,
        texts_per_second: total as f64 / seconds.max(1e-9),
        device: router.device_name(),
        precision: router.precision(),
        threads: router.threads(),
        generation: router.generation().to_string(),
        models: router.hub().active(),
        prefix: if args.keep_prefix { "keep" } else { "strip" },
        missing: data.missing,
    };
    if args.json {
        output::json(&report)?
    } else {
        print(&report)?
    }
    Ok(ExitCode::SUCCESS)
}

/// `named`, or the folder in the environment variable.
#[expect(clippy::disallowed_methods, reason = "reads the environment")]
pub(super) fn data_folder(named: Option<&Path>) -> Result<PathBuf> {
    match (named, std::env::var_os(DATA)) {
        (Some(folder), _) => Ok(folder.to_owned()),
        (None, Some(folder)) => Ok(folder.into()),
        (None, None) => bail!(
            InvalidRequest,
            "no data: pass --data FOLDER, set {DATA} to a CMRBench checkout, or pass --examples \
             FILE for your own rows"
        ),
    }
}

/// Routes every row twice: as a gateway would, which is timed, and for the gold model's rank in the
/// whole hub. Returns both lists of decisions and the seconds of the first.
fn route(
    router: &Router,
    experience: &BenchExperience,
    step: &mut impl FnMut(usize),
) -> Result<(Vec<Decision>, Vec<Decision>, f64)> {
    let rows = experience.eval.len();
    let (mut answers, mut ranks) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    let mut seconds = 0.0;
    let ask = |requests: &[Request], decisions: &mut Vec<Decision>| {
        for decision in router.route_batch(requests) {
            let row = decisions.len() + 1;
            decisions.push(decision.map_err(|e| e.at(format!("{} row {row}", experience.name)))?);
        }
        Ok(())
    };
    for batch in experience.eval.chunks(BATCH) {
        let requests = |top: usize| -> Vec<Request> {
            let request = |row: &BenchRow| Request::new(row.instruction.as_str()).top(top);
            batch.iter().map(request).collect()
        };
        let began = Instant::now();
        ask(&requests(10), &mut answers)?;
        seconds += began.elapsed().as_secs_f64();
        ask(&requests(usize::MAX), &mut ranks)?;
        step(batch.len());
    }
    Ok((answers, ranks, seconds))
}

fn measure(
    experience: &BenchExperience,
    tables: &Tables,
    router: &Router,
    answers: &[Decision],
    ranks: &[Decision],
) -> ExperienceLine {
    let hub = router.hub();
    let rows = experience.eval.len();
    let mut hits = Hits::default();
    let (mut within, mut reciprocal, mut unknown) = ([0usize; 3], 0.0, 0);
    for ((row, answer), all) in experience.eval.iter().zip(answers).zip(ranks) {
        if let Some(best) = answer.ranked.first() {
            hits += tables.hits(&best.model, row);
        }
        unknown += usize::from(hub.find(&row.model_name).is_none());
        if let Some(place) = all
            .ranked
            .iter()
            .position(|ranked| *ranked.model == *row.model_name)
        {
            reciprocal += 1.0 / (place + 1) as f64;
            for (count, limit) in within.iter_mut().zip([3, 5, 10]) {
                *count += usize::from(place < limit);
            }
        }
    }
    let percent = |count: usize| 100.0 * count as f64 / rows.max(1) as f64;
    ExperienceLine {
        name: experience.name.to_owned(),
        rows,
        top1: hits.percent(rows),
        top3: percent(within[0]),
        top5: percent(within[1]),
        top10: percent(within[2]),
        mean_reciprocal_rank: reciprocal / rows.max(1) as f64,
        unknown,
    }
}

/// The unweighted mean over experiences.
fn mean(lines: &[ExperienceLine]) -> ExperienceLine {
    let of = |part: fn(&ExperienceLine) -> f64| {
        lines.iter().map(part).sum::<f64>() / lines.len().max(1) as f64
    };
    ExperienceLine {
        name: "macro".into(),
        rows: lines.iter().map(|line| line.rows).sum(),
        top1: Percent::mean(&lines.iter().map(|line| line.top1).collect::<Vec<_>>()),
        top3: of(|line| line.top3),
        top5: of(|line| line.top5),
        top10: of(|line| line.top10),
        mean_reciprocal_rank: of(|line| line.mean_reciprocal_rank),
        unknown: lines.iter().map(|line| line.unknown).sum(),
    }
}

fn print(report: &EvalReport) -> Result<()> {
    let heads = [
        "experience",
        ">rows",
        ">model",
        ">family",
        ">domain",
        ">top3",
        ">top5",
        ">top10",
        ">MRR",
        ">unknown",
    ];
    let mut table = output::TextTable::new(&heads);
    for line in report.experiences.iter().chain([&report.mean]) {
        let percent = |value: f64| format!("{value:.1}");
        table.row(vec![
            line.name.clone(),
            line.rows.to_string(),
            percent(line.top1.model),
            percent(line.top1.family),
            percent(line.top1.domain),
            percent(line.top3),
            percent(line.top5),
            percent(line.top10),
            format!("{:.3}", line.mean_reciprocal_rank),
            line.unknown.to_string(),
        ]);
    }
    table.print()?;
    output::paragraph(format!(
        "percent; {}, generation {}, prefix {}; {:.0} texts/s on {} in {} with {}",
        output::counted(report.models, "model"),
        report.generation,
        report.prefix,
        report.texts_per_second,
        report.device,
        report.precision,
        output::counted(report.threads, "thread")
    ))?;
    reliability::print(report.confidence.as_ref())?;
    for file in &report.missing {
        output::line(format!("missing: {}", file.display()))?;
    }
    Ok(())
}
