//! `hubrouter verify`

mod page;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::progress::Progress;
use super::{DeviceArgs, StoreArgs, generation_of, output};
use crate::error::{Result, bail};
use crate::verify::{
    ParityVerdict, StageReport, VerifyReport, export_bundle, verify_between, verify_bundle,
    verify_store,
};
use crate::{Precision, files};

/// Exit code of a verification that found a difference.
const PARTED: u8 = 4;

/// Largest file of prompts that is read.
const PROMPTS_LIMIT: u64 = 64 << 20;

/// Compare this machine with a recorded run, two recorded runs, or a store with itself, and say
/// where they part
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter verify                              # the bundled store on this machine
  hubrouter verify --router my-store --html page.html
  hubrouter verify my-bundle --device gpu --json | jq .first_divergence
  hubrouter verify --export mine --router my-store
  hubrouter verify my-bundle --export mine      # this machine's run of that bundle
  hubrouter verify --between mine yours

A bundle is a folder with parity.json: a run by PyTorch (tests/reference) or by --export. Its \
prompts, learning batches and starting point are run again here, and every stage is compared: \
tokens, each layer, vectors, the memory, scores, rankings, gradients, losses, parameters, the \
accuracy matrix. The report says by how much each differs, which bound holds and why, and the \
first place where the two part.

Exit codes: 0 the same within the bounds; 4 not the same; 1 a failure, such as a malformed bundle; \
2 the command line is wrong.")]
pub(super) struct VerifyArgs {
    /// Bundle to run again on this machine; without one a store is checked
    #[arg(value_name = "BUNDLE", conflicts_with = "between")]
    bundle: Option<PathBuf>,
    /// Write a bundle of this machine's run to this folder, which must not exist
    #[arg(long, value_name = "FOLDER", conflicts_with = "between")]
    export: Option<PathBuf>,
    /// Compare two bundles, without a device
    #[arg(long, num_args = 2, value_names = ["BUNDLE", "BUNDLE"])]
    between: Option<Vec<PathBuf>>,
    /// Prompts of --export, one a line [default: twelve that are built in]
    #[arg(
        long,
        value_name = "FILE",
        requires = "export",
        conflicts_with = "bundle"
    )]
    prompts: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// Generation id, or its first characters [default: the current one]
    #[arg(long, value_name = "ID")]
    generation: Option<String>,
    /// Numbers of the encoder's products: f32, bf16 or int8
    #[arg(long, default_value = "f32", value_name = "PRECISION", value_parser = precision)]
    precision: Precision,
    #[command(flatten)]
    device: DeviceArgs,
    /// Write the report as one page with figures to this file, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn precision(text: &str) -> std::result::Result<Precision, String> {
    match text.parse() {
        Ok(Precision::Auto) | Err(_) => Err(format!("expected f32, bf16 or int8, found {text:?}")),
        Ok(precision) => Ok(precision),
    }
}

pub(super) fn run(args: &VerifyArgs) -> Result<ExitCode> {
    if let Some(bundles) = &args.between {
        let [found, expected] = bundles.as_slice() else {
            bail!(
                InvalidRequest,
                "--between: expected two bundles, found {}",
                bundles.len()
            );
        };
        return conclude(args, &verify_between(found, expected)?);
    }
    let options = args.device.options()?.precision(args.precision);
    let mut bar = StageBar::default();
    let mut progress = |what, done, all| bar.set(what, done, all);
    if let Some(folder) = &args.bundle {
        let store = args.store.path();
        let store = match (&args.store.router, store) {
            (Some(_), store) => Some(store?),
            (None, store) => store.ok(),
        };
        let copy = args.export.as_deref();
        let report = verify_bundle(folder, store.as_deref(), copy, &options, &mut progress)?;
        drop(bar);
        return conclude(args, &report);
    }
    let store = args.store.open()?;
    let id = generation_of(&store, args.generation.as_deref())?;
    if let Some(folder) = &args.export {
        let prompts = args.prompts.as_deref().map(prompts_of).transpose()?;
        export_bundle(folder, &store, &id, prompts, &options, &mut progress)?;
        drop(bar);
        let made = serde_json::json!({"folder": folder, "generation": id});
        output::done(args.json, &made, format!("{}: {id}", folder.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let report = verify_store(&store, &id, &options, &mut progress)?;
    drop(bar);
    conclude(args, &report)
}

/// The lines of the file that are not blank.
fn prompts_of(path: &Path) -> Result<Vec<String>> {
    let text = files::read_text(path, PROMPTS_LIMIT)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let prompts: Vec<String> = lines.map(str::to_owned).collect();
    if prompts.is_empty() {
        bail!(
            InvalidRequest,
            "{}: expected a prompt a line, found none",
            path.display()
        );
    }
    Ok(prompts)
}

/// One bar after the other.
#[derive(Default)]
struct StageBar {
    shown: Option<(&'static str, Progress)>,
}

impl StageBar {
    fn set(&mut self, what: &'static str, done: usize, all: usize) {
        let same = self.shown.as_ref().is_some_and(|(shown, _)| *shown == what);
        if !same {
            self.shown = None;
            self.shown = Some((what, Progress::new(what, all as u64)));
        }
        if let Some((_, bar)) = &mut self.shown {
            bar.set(done as u64);
        }
    }
}

fn conclude(args: &VerifyArgs, report: &VerifyReport) -> Result<ExitCode> {
    if let Some(path) = &args.html {
        files::replace(path, page::page(report).as_bytes())?;
    }
    match args.json {
        true => output::json(report)?,
        false => print(report)?,
    }
    Ok(match report.verdict {
        ParityVerdict::Pass => ExitCode::SUCCESS,
        ParityVerdict::Fail => ExitCode::from(PARTED),
    })
}

fn print(report: &VerifyReport) -> Result<()> {
    let device = report.device.as_ref();
    let device = device.map_or(String::new(), |device| format!(" on {device}"));
    output::paragraph(format!(
        "{} with {}{device}, in {}",
        report.compared, report.with, report.mode
    ))?;
    let heads = [
        "stage", ">numbers", ">max abs", ">error", ">bound", ">cosine", "result",
    ];
    let mut table = output::TextTable::new(&heads);
    for stage in &report.stages {
        table.row(row(stage));
    }
    table.print()?;
    let mut said: Vec<&str> = Vec::new();
    for why in report.stages.iter().map(|stage| stage.why.as_str()) {
        if said.contains(&why) {
            continue;
        }
        said.push(why);
        let stages = report.stages.iter().filter(|stage| stage.why == why);
        let names: Vec<&str> = stages.map(|stage| stage.stage.as_str()).collect();
        let (first, last) = (names[0], names[names.len() - 1]);
        let names = match names.len() {
            1 => first.to_owned(),
            2 => format!("{first}, {last}"),
            _ => format!("{first} to {last}"),
        };
        output::paragraph(format!("bound of {names}: {why}"))?;
    }
    for what in &report.not_compared {
        output::paragraph(format!("not compared: {what}"))?;
    }
    if let Some(share) = report.top1_agreement {
        let best = format!(
            "the same best model for {:.1} % of the prompts",
            100.0 * share
        );
        let all = report
            .topk_agreement
            .map(|share| format!("; {:.1} % of the best models are in both", 100.0 * share));
        output::line(best + &all.unwrap_or_default())?;
    }
    if let Some(found) = &report.first_divergence {
        output::paragraph(format!("they part at {}: {}", found.stage, found.place))?;
    }
    let verdict = match report.verdict {
        ParityVerdict::Pass => "pass",
        ParityVerdict::Fail => "FAIL",
    };
    output::line(format!("{verdict}; {:.1} s", report.seconds))
}

/// The cells of a stage, in the terminal and on the page.
fn row(stage: &StageReport) -> Vec<String> {
    vec![
        stage.stage.clone(),
        stage.compared.to_string(),
        format!("{:.1e}", stage.max_abs_error),
        format!("{:.1e}", stage.max_rel_error),
        format!("{:.0e}", stage.tolerance),
        format!("{:.6}", stage.cosine),
        if stage.ok { "ok" } else { "PARTED" }.into(),
    ]
}
