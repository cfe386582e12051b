//! `hubrouter learn`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::progress::Progress;
use super::signals::{self, Stop};
use super::{DeviceArgs, StoreToChange, output};
use crate::error::{Result, bail, error};
use crate::learn::{
    Accuracy, Control, Experience, Learner, Outcome, Report, Settings, Status, group_experiences,
    read_examples,
};
use crate::{NewModel, read_models};

/// Said at the first Ctrl-C.
pub(super) const STOPPING: &str = "stopping at the next step; Ctrl-C once more quits at once";

/// Exit code when the gate refused.
const REFUSED: u8 = 3;

/// Learn new models and labelled prompts into a new generation, without forgetting the old ones.
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter learn --router my-store --examples new.jsonl --models models.jsonl
  hubrouter learn --router my-store --examples new.jsonl --max-forgetting 3 --json
  hubrouter learn --router my-store --examples new.jsonl --set epochs=8 --dry-run

examples.jsonl has lines {\"instruction\": \"...\", \"model_name\": \"...\"}; \"domain\" and
\"experience\" are optional. One example in eight is held out to measure on. Ctrl-C stops at the
next step, and the same command then goes on from there; a second Ctrl-C quits at once. Whether
the store can be written is found out at the start; one process at a time learns into a store.
The router that serves is not touched: `Router::install` or a restart takes the child.

Exit codes: 0 published; 1 something failed; 2 the command line is wrong; 3 more was forgotten
than --max-forgetting allows, and nothing was published; 130 stopped by Ctrl-C.")]
pub(super) struct LearnArgs {
    #[command(flatten)]
    store: StoreToChange,
    /// Labelled prompts, JSON Lines
    #[arg(long, value_name = "FILE")]
    examples: PathBuf,
    /// New models with their cards, JSON Lines as for `hub build`
    #[arg(long, value_name = "FILE")]
    models: Option<PathBuf>,
    /// Write the child into another store
    #[arg(long, value_name = "STORE")]
    out: Option<PathBuf>,
    /// What the settings begin with: edge or paper
    #[arg(long, default_value = "edge")]
    recipe: String,
    /// Change a setting, such as epochs=8; a wrong name lists all of them
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Stop learning after this time: 90s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    budget: Option<Duration>,
    /// Refuse to publish when old held-out prompts lose more points of domain accuracy than this
    #[arg(long, value_name = "POINTS", value_parser = points)]
    max_forgetting: Option<f64>,
    /// One JSON object at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &LearnArgs) -> Result<ExitCode> {
    let mut settings = Settings::recipe(&args.recipe)?;
    for text in &args.set {
        let (key, value) = setting(text)?;
        settings.set(key, value)?;
    }
    let experiences = group_experiences(read_examples(&args.examples)?)?;
    let [examples] = <[_; 1]>::try_from(experiences).map_err(|all| {
        error!(
            InvalidRequest,
            "{}: expected one experience, found {}: learn them one after the other, each from a \
             file of its own",
            args.examples.display(),
            all.len()
        )
    })?;
    let models = match &args.models {
        Some(path) => {
            let (cards, repeated) = read_models(path)?;
            if let Some(name) = repeated.first() {
                output::remark(format!(
                    "{}: {name} and perhaps others are repeated; the last line counts",
                    path.display()
                ));
            }
            cards.iter().map(NewModel::from).collect()
        }
        None => Vec::new(),
    };
    let experience = Experience { models, examples };

    let mut learner = Learner::open(&args.store.router, None, settings, args.device.options())?
        .recipe(&args.recipe);
    if let Some(points) = args.max_forgetting {
        learner = learner.max_forgetting(points);
    }
    if !args.store.dry_run {
        if let Some(out) = &args.out {
            learner = learner.into_store(out)?;
        }
        learner.check_writable()?;
    }
    let stop = stop(args.store.dry_run)?;
    let mut bar: Option<(&str, Progress)> = None;
    let outcome = learner.learn(&experience, args.budget, &mut |status| {
        show(&mut bar, status);
        match stop.asked() {
            true => Control::Stop,
            false => Control::Continue,
        }
    })?;
    drop(bar);
    let mut report = match outcome {
        Outcome::Learned(report) => *report,
        Outcome::Stopped { step, steps } => {
            output::remark(format!(
                "stopped after step {step} of {steps}; the same command goes on from there"
            ));
            return Ok(stop.exit_code());
        }
    };
    if args.max_forgetting.is_some() && report.forgetting.is_none() {
        output::remark("--max-forgetting had nothing to measure: no earlier prompt was held out");
    }
    let publish = !report.refused && !args.store.dry_run;
    if publish {
        report.generation = Some(learner.commit()?);
    }
    if args.json {
        output::json(&report)?;
    } else {
        print(&report, args.store.dry_run)?;
    }
    if report.refused {
        output::remark(format!(
            "refused: domain accuracy on old prompts fell by more than {} points; {} stays current",
            args.max_forgetting.unwrap_or_default(),
            report.parent
        ));
        return Ok(ExitCode::from(REFUSED));
    }
    Ok(ExitCode::SUCCESS)
}

/// Key and value of a `--set`.
pub(super) fn setting(text: &str) -> Result<(&str, &str)> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim(), value.trim())),
        None => bail!(InvalidRequest, "--set: expected KEY=VALUE, found {text:?}"),
    }
}

/// A dry run leaves nothing to go on from: it ends at once.
fn stop(dry_run: bool) -> Result<Stop> {
    if dry_run {
        signals::end_at_once()?;
        return Ok(Stop::default());
    }
    signals::stop_gently(STOPPING)
}

/// A bar for each stage, with loss and speed.
fn show(bar: &mut Option<(&'static str, Progress)>, status: &Status) {
    if bar.as_ref().is_none_or(|(stage, _)| *stage != status.stage) {
        *bar = Some((
            status.stage,
            Progress::new(status.stage, status.total as u64),
        ));
    }
    if let Some((_, progress)) = bar {
        if let (Some(loss), Some(speed)) = (status.loss, status.examples_per_second) {
            progress.note(format!("loss {loss:.3}, {speed:.0} examples/s"));
        }
        progress.set(status.done as u64);
    }
}

fn print(report: &Report, dry_run: bool) -> Result<()> {
    let mut table = output::Table::new(&["held-out prompts", ">model", ">family", ">domain"]);
    let lines = [
        ("earlier, before", report.accuracy.old_before),
        ("earlier, after", report.accuracy.old_after),
        ("forgotten", report.forgetting),
        ("new, after", report.accuracy.new_after),
    ];
    for (name, accuracy) in lines {
        let cell = |value: fn(&Accuracy) -> f64| {
            accuracy
                .as_ref()
                .map_or("-".to_owned(), |a| format!("{:.1}", value(a)))
        };
        table.row(vec![
            name.to_owned(),
            cell(|a| a.model),
            cell(|a| a.family),
            cell(|a| a.domain),
        ]);
    }
    table.print()?;
    output::line(format!(
        "{} examples and {} replayed in {} steps, {:.0} s, {:.0} examples/s on {}; {} models added; {} prompts kept for replay",
        report.examples,
        report.replayed,
        report.steps,
        report.seconds,
        report.examples_per_second,
        report.device,
        report.models_added,
        report.replay.kept,
    ))?;
    if let Some(hybrid) = &report.hybrid {
        let s = &hybrid.strengths;
        output::line(format!(
            "hybrid: learned {:.2} + card {:.2} + exemplar {:.2} + domain {:.2} + balance {:.2} + prior {:.2}, fitted on {} held-out prompts",
            s.learned, s.card, s.exemplar, s.domain, s.balance, s.prior, hybrid.rows,
        ))?;
    }
    match (&report.generation, dry_run) {
        (Some(id), _) => output::line(format!("published {id}, child of {}", report.parent)),
        (None, true) => output::line("dry run: nothing was published"),
        (None, false) => Ok(()),
    }
}

/// Points of accuracy: a comparison with NaN would let everything pass.
fn points(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse().ok().filter(|points: &f64| !points.is_nan());
    number.ok_or_else(|| format!("expected a number of points such as 3, found {text:?}"))
}

/// `90s`, `10m`, `2h`
fn duration(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("expected a time such as 90s, 10m or 2h, found {text:?}");
    let last = text.char_indices().next_back().map_or(0, |(at, _)| at);
    let (number, unit) = text.split_at(last);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let count = number.parse().ok().filter(|count: &u64| *count > 0);
    let count = count.ok_or_else(wrong)?;
    count
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}
