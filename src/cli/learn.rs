//! `hubrouter learn`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::observed::examples;
use super::progress::Progress;
use super::signals::{self, Stop};
use super::{DeviceArgs, StoreToChange, output};
use crate::error::{Result, bail, error};
use crate::learn::{
    Accuracy, Control, Experience, Learner, Outcome, Privacy, Report, Settings, Status, Withheld,
    group_experiences,
};
use crate::{GenerationId, NewModel, Store, read_models};

/// The remark at the first Ctrl-C.
pub(super) const STOPPING: &str = "stopping at the next step; press Ctrl-C again to quit at once";

/// Most names of introduced models that are printed.
const MOST_NAMES: usize = 50;

/// Exit code of a refusal by the gate.
const REFUSED: u8 = 3;

/// Learn new models and labelled prompts into a new generation, without forgetting earlier ones
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter learn --router my-store --examples new.jsonl --models models.jsonl
  hubrouter learn --router my-store --examples new.jsonl --max-forgetting 3 --json
  hubrouter learn --router my-store --examples new.jsonl --set epochs=8 --dry-run
  hubrouter learn --router my-store --examples feedback-log --recipe memory

Examples: a log of feedback that keeps the text of prompts (see docs/feedback.md), or one JSON \
object per line with \"instruction\" and \"model_name\"; \"domain\" and \
\"experience\" are optional. A leading ###Instruction: is removed, as in `eval`. A model that the \
hub does not know is added if its example has a domain; the answer lists these models. A name or \
a domain that resembles a known one is refused unless --introduce is given.

Recipes: edge trains the encoder once, in the first update with at least 500 examples, and adds \
every update to the memory, which cannot forget. memory trains nothing and takes seconds. carve \
trains in every update and moves the memory along. paper is CARvE as published, without a memory.

Held-out prompts: one example in eight, by the hash of its prompt, is kept to measure on (at \
least 8 if that is a quarter of the examples or less, at most 512). Every new model keeps one \
example to learn from. A later update is refused if no earlier held-out prompt is kept, unless \
--allow-unmeasured is given.

Stopping: Ctrl-C, SIGTERM and SIGHUP stop at the next step; a second Ctrl-C quits at once. The \
same command resumes there. It also resumes after a crash or a failure to publish, because the \
state is written every minute and after the last step. The command checks first that it can write \
the store. Only one process learns into a store at a time. A running router serves the child \
after `Router::install` or a restart.

Gate: if an update forgets more than --max-forgetting, the child is published beside the current \
generation (\"kept_beside\" in JSON). `hubrouter generation rollback --to ID` makes it current; \
`hubrouter generation prune` removes it. The same command with a larger --max-forgetting measures \
it again and publishes it.

Exit codes: 0 published; 1 a failure; 2 the command line is wrong; 3 refused by the gate, because \
the update forgets more than --max-forgetting or cannot be measured, and the child is kept \
beside; 130, 143, 129 stopped by Ctrl-C, SIGTERM, SIGHUP.")]
pub(super) struct LearnArgs {
    #[command(flatten)]
    store: StoreToChange,
    /// Labelled prompts: JSON Lines, or a log of feedback
    #[arg(long, value_name = "FILE")]
    examples: PathBuf,
    /// New models with their cards, JSON Lines as for `hub build`
    #[arg(long, value_name = "FILE")]
    models: Option<PathBuf>,
    /// Publish the child in another store
    #[arg(long, value_name = "STORE")]
    out: Option<PathBuf>,
    /// Initial settings: edge, memory, carve or paper
    #[arg(long, default_value = "edge")]
    recipe: String,
    /// Change a setting, such as epochs=8; a wrong name lists all names
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Most time to spend on learning: 90s, 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    budget: Option<Duration>,
    /// Refuse to publish if domain accuracy on earlier held-out prompts falls by more points
    #[arg(long, value_name = "POINTS", value_parser = points)]
    max_forgetting: Option<f64>,
    /// Publish even if no earlier prompt is kept to measure forgetting on
    #[arg(long)]
    allow_unmeasured: bool,
    /// Add models and domains of the examples even if they resemble known ones
    #[arg(long)]
    introduce: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &LearnArgs) -> Result<ExitCode> {
    let experience = experience(args)?;
    let mut learner = learner(args)?;
    let remarks = learner.look_over(&experience)?;
    remarks.iter().for_each(output::remark);
    if !args.store.dry_run {
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
                "stopped after step {step} of {steps}; the same command resumes there"
            ));
            return Ok(stop.exit_code());
        }
    };
    match (args.store.dry_run, report.refused) {
        (true, _) => {}
        (false, false) => {
            let id = learner.commit()?;
            carried(args, &id, &report.parent)?;
            report.generation = Some(id);
        }
        (false, true) => report.kept_beside = Some(learner.keep_beside()?),
    }
    let answered = match args.json {
        true => output::json(&report),
        false => print(&report, args.store.dry_run),
    };
    match (
        answered,
        report.generation.as_ref().or(report.kept_beside.as_ref()),
    ) {
        (Err(error), Some(id)) => output::unanswered(format!("published {id}"), &error),
        (answered, _) => answered?,
    }
    if report.refused {
        output::remark(refusal(&report, args.max_forgetting));
        return Ok(ExitCode::from(REFUSED));
    }
    Ok(ExitCode::SUCCESS)
}

/// Remarks on changes of the hub that were made during learning and are in the child.
fn carried(args: &LearnArgs, id: &GenerationId, parent: &GenerationId) -> Result<()> {
    let store = Store::open(args.out.as_ref().unwrap_or(&args.store.router))?;
    let onto = store.parent(id)?;
    if onto != *parent {
        output::remark(format!(
            "{onto} became current meanwhile, by changes of the hub alone: {id} includes them"
        ));
    }
    Ok(())
}

/// Reads the examples and the models.
fn experience(args: &LearnArgs) -> Result<Experience> {
    let experiences = group_experiences(examples(&args.examples, || {
        let store = args.store.open()?;
        store.hub(&store.current()?)
    })?)?;
    let [examples] = <[_; 1]>::try_from(experiences).map_err(|all| {
        error!(
            InvalidRequest,
            "{}: expected one experience, found {}: learn them one after the other, each from its \
             own file",
            args.examples.display(),
            all.len()
        )
    })?;
    let models = match &args.models {
        Some(path) => {
            let (cards, repeated) = read_models(path)?;
            if let Some(name) = repeated.first() {
                output::remark(format!(
                    "{}: {name} and possibly others are repeated; the last line counts",
                    path.display()
                ));
            }
            cards.iter().map(NewModel::from).collect()
        }
        None => Vec::new(),
    };
    Ok(Experience { models, examples })
}

/// The learner with the settings of the arguments.
fn learner(args: &LearnArgs) -> Result<Learner> {
    let mut settings = Settings::recipe(&args.recipe)?;
    for text in &args.set {
        let (key, value) = setting(text)?;
        settings.set(key, value)?;
    }
    let options = args.device.options()?;
    let mut learner = Learner::open(args.store.path()?, None, settings, options)?
        .recipe(&args.recipe)
        .introduce(args.introduce)
        .allow_unmeasured(args.allow_unmeasured);
    if let Some(points) = args.max_forgetting {
        learner = learner.max_forgetting(points);
    }
    if args.store.dry_run {
        return Ok(learner.dry_run());
    }
    match &args.out {
        Some(out) => learner.into_store(out),
        None => Ok(learner),
    }
}

/// Why the gate refused, and where the child is.
fn refusal(report: &Report, most: Option<f64>) -> String {
    let why = match &report.forgetting {
        Some(lost) => format!(
            "domain accuracy on {} of earlier updates fell by {:.1} points, which is more than {}",
            output::counted(lost.n, "held-out prompt"),
            lost.domain,
            most.unwrap_or_default()
        ),
        None => format!(
            "{}, and --allow-unmeasured was not given",
            report.forgetting_unknown.as_deref().unwrap_or_default()
        ),
    };
    let kept = match &report.kept_beside {
        Some(id) => format!(
            "; {id} is kept beside it, and `hubrouter generation rollback --to {id}` makes it \
             current"
        ),
        None => String::new(),
    };
    format!("refused: {why}; {} stays current{kept}", report.parent)
}

/// Key and value of a `--set`.
pub(super) fn setting(text: &str) -> Result<(&str, &str)> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim(), value.trim())),
        None => bail!(InvalidRequest, "--set: expected KEY=VALUE, found {text:?}"),
    }
}

/// A signal stops learning gently; a dry run cannot be resumed, so it ends at once.
fn stop(dry_run: bool) -> Result<Stop> {
    if dry_run {
        signals::end_at_once()?;
        return Ok(Stop::default());
    }
    signals::stop_gently(STOPPING)
}

/// Shows one bar per stage, with loss and speed.
fn show(bar: &mut Option<(&'static str, Progress)>, status: &Status) {
    if bar.as_ref().is_none_or(|(stage, _)| *stage != status.stage) {
        // The previous bar is removed before the next is drawn.
        *bar = None;
        let progress = Progress::new(status.stage, status.total as u64);
        *bar = Some((status.stage, progress));
    }
    if let Some((_, progress)) = bar {
        if let (Some(loss), Some(speed)) = (status.loss, status.examples_per_second) {
            progress.note(format!("loss {loss:.3}, {speed:.0} examples/s"));
        }
        progress.set(status.done as u64);
    }
}

fn print(report: &Report, dry_run: bool) -> Result<()> {
    table(report)?;
    if let Some(unknown) = &report.forgetting_unknown {
        output::line(unknown)?;
    }
    if let Some((low, high)) = report.forgetting_interval {
        output::line(format!(
            "domain accuracy forgotten: {low:.1} to {high:.1} points (95 % interval)"
        ))?;
    }
    if let Some(share) = report
        .taken_by_new_models
        .filter(|_| report.models_added > 0)
    {
        output::line(format!(
            "{share:.1} % of earlier prompts now go to {}",
            output::counted(report.models_added, "new model")
        ))?;
    }
    let how = match report.trained {
        true => format!(
            " and {} replayed, trained in {}",
            report.replayed,
            output::counted(report.steps, "step")
        ),
        false => " added to the memory, nothing trained".to_owned(),
    };
    output::line(format!(
        "{}{how}; {:.0} s, {:.0} examples/s on {}; {} added; kept: {} to replay, {} held out",
        output::counted(report.examples, "example"),
        report.seconds,
        report.examples_per_second,
        report.device,
        output::counted(report.models_added, "model"),
        output::counted(report.replay.kept, "prompt"),
        report.held_out,
    ))?;
    if let Some(introduced) = introduced(&report.models_introduced) {
        output::line(introduced)?;
    }
    if let Some(withheld) = &report.withheld {
        output::line(kept_less(withheld))?;
    }
    match (&report.generation, dry_run) {
        (Some(id), _) => output::line(format!("published {id}, child of {}", report.parent)),
        (None, true) => output::line("dry run: nothing was published"),
        (None, false) => Ok(()),
    }
}

/// Names the models that only examples introduced; `None` if every new model has a card.
fn introduced(names: &[String]) -> Option<String> {
    let shown = names.get(..MOST_NAMES).unwrap_or(names);
    let others = names.len() - shown.len();
    let more = match others {
        0 => String::new(),
        _ => format!(" and {others} more (--json lists all)"),
    };
    let shown = shown.join(", ");
    (!names.is_empty()).then(|| format!("introduced by examples, without a card: {shown}{more}"))
}

/// Prints accuracy on held-out prompts.
fn table(report: &Report) -> Result<()> {
    let heads = ["held-out prompts", ">n", ">model", ">family", ">domain"];
    let mut table = output::TextTable::new(&heads);
    for (name, accuracy) in [
        ("earlier, before", report.accuracy.old_before),
        ("earlier, after", report.accuracy.old_after),
        ("forgotten", report.forgetting),
        ("new, after", report.accuracy.new_after),
    ] {
        let cell = |value: &dyn Fn(Accuracy) -> String| accuracy.map_or("-".to_owned(), value);
        let percent = |value: fn(Accuracy) -> f64| cell(&|a| format!("{:.1}", value(a)));
        table.row(vec![
            name.to_owned(),
            cell(&|a| a.n.to_string()),
            percent(|a| a.model),
            percent(|a| a.family),
            percent(|a| a.domain),
        ]);
    }
    table.print()
}

/// Counts the prompts of the parent that the child does not keep.
fn kept_less(withheld: &Withheld) -> String {
    let parts = [
        (withheld.texts, "text", "of prompts to replay"),
        (withheld.vectors, "vector", "of prompts to replay"),
        (
            withheld.held_out,
            "held-out prompt",
            "(forgetting on these can no longer be measured)",
        ),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, what, why)| format!("{} {why}", output::counted(count, what)))
        .collect();
    let privacy = match withheld.privacy {
        Privacy::Embeddings => "embeddings",
        Privacy::Hashes => "hashes",
        _ => "text",
    };
    format!(
        "replay.privacy = {privacy}: the parent keeps, and this generation does not: {}; \
         `hubrouter generation prune` removes the ancestors that still keep them",
        parts.join(", ")
    )
}

/// Points of accuracy. NaN is refused because every comparison with it is false.
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
