//! `hubrouter generation`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::exchange::{self, AdoptArgs, ExportArgs, GenerationImportArgs};
use super::{StoreArgs, StoreToChange, bundled, generation_of, output};
use crate::error::{ErrorKind, Result};
use crate::learn;
use crate::{Agreement, Calibration, GenerationId, Options, Store};

#[derive(Subcommand)]
pub(super) enum GenerationCommand {
    /// List the store's generations, oldest first
    #[command(after_help = "Example:\n  hubrouter generation list --router my-store")]
    List {
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Show one generation's manifest
    #[command(after_help = "Example:\n  hubrouter generation show g0002")]
    Show {
        /// Generation id, or its first characters [default: the current one]
        id: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Check every file of one generation, or of all, against the manifest
    #[command(after_help = "Example:\n  hubrouter generation check --router my-store")]
    Check {
        /// Generation id, or its first characters [default: all]
        id: Option<String>,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Measure how near int8 is to f32 and how sure answers are, and record it beside the generation
    ///
    /// `--precision auto` takes int8 where all bars were passed. Decisions have a confidence where it
    /// was measured.
    #[command(after_help = "Examples:
  hubrouter generation measure --router my-store
  hubrouter generation measure --router my-store --examples mine.jsonl

Int8 is measured on the examples that the generation held out, if there are 64 of them, else on all \
examples; without --examples on the held-out prompts that the generation keeps as text. Confidence \
is measured on the held-out prompts that it keeps in any form, or on the examples where it keeps \
fewer than 64. Exit code 1: int8 missed a bar.")]
    Measure(MeasureArgs),
    /// Write a generation as a folder that PyTorch with PEFT, and sentence-transformers, load
    #[command(after_help = "Example:
  hubrouter generation export --router my-store --to my-export

The folder has the encoder (base), its adapter in PEFT's form (adapter), both merged with W \
(sentence-transformers), W and E (router.safetensors), models and digests (router.json), and \
vectors of sample prompts (samples.safetensors). The memory and kept prompts are not in it.")]
    Export(ExportArgs),
    /// Make a store of a router's folder: of an export, or of a converted checkpoint
    #[command(after_help = "Examples:
  hubrouter generation import --from my-export --out my-store
  hubrouter generation import --from converted --encoder my-encoder --models models.jsonl --out s

tests/reference/convert.py converts checkpoints of the reference. The encoder must be the one that \
the router was made for; the default is the bundled one.")]
    Import(GenerationImportArgs),
    /// Take a LoRA adapter, or W and E, that were trained elsewhere into a new generation
    #[command(after_help = "Examples:
  hubrouter generation adopt --router my-store --from my-peft-adapter
  hubrouter generation adopt --router my-store --from my-export --dry-run

The hub stays as it is. A memory is moved to the new encoder by the prompts that are kept as text, \
or dropped. A folder with router.json brings W, E and the temperature too.")]
    Adopt(AdoptArgs),
    /// Make the parent of the current generation, or the one named by --to, current
    #[command(after_help = "Example:\n  hubrouter generation rollback --router my-store")]
    Rollback {
        /// Generation to make current, or the first characters of its id [default: the parent]
        #[arg(long, value_name = "ID")]
        to: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreToChange,
    },
    /// Show what changed between two generations
    #[command(after_help = "Example:\n  hubrouter generation diff g0001 g0002 --router my-store")]
    Diff {
        /// Older generation id, or its first characters
        old: String,
        /// Newer generation id, or its first characters [default: the current one]
        new: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Remove all generations but the current one and its newest ancestors
    #[command(
        after_help = "Example:\n  hubrouter generation prune --router my-store --keep 3 --dry-run"
    )]
    Prune {
        /// Ancestors of the current generation to keep
        #[arg(long, default_value_t = 3, value_name = "N")]
        keep: usize,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreToChange,
    },
}

#[derive(Args)]
pub(super) struct MeasureArgs {
    /// Generation id, or its first characters [default: the current one]
    id: Option<String>,
    /// Labelled prompts, JSON Lines, as for `hubrouter learn`
    #[arg(long, value_name = "FILE")]
    examples: Option<PathBuf>,
    /// CPU threads [default: all, at most 4]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Folder of the encoder bundle [default: inside or beside the store, or the bundled one]
    #[arg(long, value_name = "FOLDER")]
    encoder: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Store to change
    #[arg(long, value_name = "STORE")]
    router: PathBuf,
}

pub(super) fn run(command: &GenerationCommand) -> Result<ExitCode> {
    match command {
        GenerationCommand::List { json, store } => list(&store.open()?, *json)?,
        GenerationCommand::Show { id, json, store } => show(&store.open()?, id.as_deref(), *json)?,
        GenerationCommand::Check { id, json, store } => {
            return check(&store.open()?, id.as_deref(), *json);
        }
        GenerationCommand::Measure(args) => return measure(args),
        GenerationCommand::Export(args) => return exchange::export(args),
        GenerationCommand::Import(args) => return exchange::import(args),
        GenerationCommand::Adopt(args) => return exchange::adopt(args),
        GenerationCommand::Rollback { to, json, store } => rollback(store, to.as_deref(), *json)?,
        GenerationCommand::Diff {
            old,
            new,
            json,
            store,
        } => diff(&store.open()?, old, new.as_deref(), *json)?,
        GenerationCommand::Prune { keep, json, store } => prune(store, *keep, *json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(store: &Store, json: bool) -> Result<()> {
    let reports = store.list()?;
    if json {
        return reports.iter().try_for_each(output::json);
    }
    let mut table =
        output::TextTable::new(&["", "generation", "parent", ">models", "~made by", "state"]);
    for report in reports {
        let manifest = report.manifest.as_ref();
        let parent = manifest
            .and_then(|m| m.parent.as_ref())
            .map_or("-".into(), ToString::to_string);
        table.row(vec![
            if report.current { "*" } else { "" }.into(),
            report.id.to_string(),
            parent,
            manifest.map_or("?".into(), |m| m.models.to_string()),
            manifest.map_or("?".into(), |m| m.made_by.clone()),
            if report.damage.is_some() {
                "damaged"
            } else {
                "whole"
            }
            .into(),
        ]);
        if let Some(damage) = report.damage {
            table.note(damage);
        }
    }
    table.print_list()
}

fn show(store: &Store, id: Option<&str>, json: bool) -> Result<()> {
    let id = generation_of(store, id)?;
    let manifest = store.check(&id)?;
    if json {
        return output::json(&json!({"id": id, "manifest": manifest}));
    }
    let parent = manifest
        .parent
        .as_ref()
        .map_or("-".into(), ToString::to_string);
    output::line(&id)?;
    output::line(format!("  parent     {parent}"))?;
    output::line(format!("  made by    {}", manifest.made_by))?;
    let encoder = &manifest.encoder;
    output::line(format!(
        "  encoder    {} ({})",
        encoder.name, encoder.sha256
    ))?;
    output::line(format!("  tokenizer  {}", encoder.tokenizer_sha256))?;
    output::line(format!("  models     {}", manifest.models))?;
    output::line(format!("  width      {}", manifest.width))?;
    output::line(format!("  tau        {}", manifest.tau))?;
    manifest.files().try_for_each(|(name, bytes, sha256)| {
        output::line(format!("  {name:<18} {bytes:>12} bytes  {sha256}"))
    })
}

fn check(store: &Store, id: Option<&str>, json: bool) -> Result<ExitCode> {
    let ids = id.map_or_else(|| store.ids(), |id| Ok(vec![store.find(id)?]))?;
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        let damage = learn::check(store, &id)
            .err()
            .map(|error| error.to_string());
        // Another process may have pruned it since it was listed.
        if damage.is_some() && !store.ids()?.contains(&id) {
            continue;
        }
        if damage.is_some() {
            code = ExitCode::FAILURE;
        }
        if json {
            output::json(&json!({"id": id, "whole": damage.is_none(), "damage": damage}))?;
        } else {
            output::line(format!(
                "{id}  {}",
                damage.map_or("whole".into(), |damage| format!("damaged: {damage}"))
            ))?;
        }
    }
    Ok(code)
}

fn measure(args: &MeasureArgs) -> Result<ExitCode> {
    let store = super::open(&bundled::store(Some(&args.router))?)?;
    let id = generation_of(&store, args.id.as_deref())?;
    let examples = args.examples.as_ref().map(learn::read_examples);
    let examples = examples.transpose()?;
    let mut options = Options {
        threads: args.threads,
        encoder: args.encoder.clone(),
        cpu: super::cpu_level()?,
        ..Options::default()
    };
    options.look_in.extend(bundled::encoder());
    let examples = examples.as_deref();
    let agreement = learn::measure_precision(&store, &id, examples, &options);
    let calibration = learn::measure_confidence(&store, &id, examples, &options);
    let (agreement, calibration) = match (agreement, calibration) {
        (Err(error), Err(_)) => return Err(error),
        (Err(error), _) | (_, Err(error)) if error.kind() != ErrorKind::InvalidRequest => {
            return Err(error);
        }
        both => both,
    };
    let missed = agreement.as_ref().ok().and_then(Agreement::missed);
    if args.json {
        let passed = agreement.as_ref().ok().map(|_| missed.is_none());
        output::json(&json!({
            "schema_version": 1, "generation": id, "agreement": agreement.as_ref().ok(),
            "passed": passed, "missed": missed, "calibration": calibration.as_ref().ok(),
        }))?;
    } else {
        match &agreement {
            Ok(agreement) => print_agreement(&id, agreement)?,
            Err(error) => output::remark(format!("hubrouter: int8 is not measured: {error}")),
        }
        match &calibration {
            Ok(calibration) => print_calibration(&id, calibration)?,
            Err(error) => output::remark(format!("hubrouter: confidence is not measured: {error}")),
        }
    }
    Ok(match missed {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    })
}

fn print_agreement(id: &GenerationId, agreement: &Agreement) -> Result<()> {
    let n = agreement.prompts;
    let share = |count: usize| format!("{:.1} %", 100.0 * count as f64 / n as f64);
    let pair = |[f32, int8]: [usize; 2]| format!("{} -> {}", share(f32), share(int8));
    let which = if agreement.held_out { "held-out " } else { "" };
    output::line(format!("{id}: f32 -> int8, {n} {which}prompts"))?;
    for (name, value) in [
        ("same best model", share(agreement.same_model)),
        ("same domain", share(agreement.same_domain)),
        ("domain accuracy", pair(agreement.domain_hits)),
        ("model accuracy", pair(agreement.model_hits)),
        ("worst cosine", format!("{:.4}", agreement.worst_cosine)),
    ] {
        output::line(format!("  {name:<16} {value}"))?;
    }
    output::paragraph(match agreement.missed() {
        None => "passed: --precision auto takes int8 on a CPU with a kernel for it".to_owned(),
        Some(missed) => format!("missed: {missed}; --precision auto does not take int8"),
    })
}

fn print_calibration(id: &GenerationId, calibration: &Calibration) -> Result<()> {
    let n = calibration.prompts;
    let which = if calibration.held_out {
        "held-out "
    } else {
        ""
    };
    output::line(format!("{id}: confidence, {n} {which}prompts"))?;
    for (name, of) in [
        ("domain", &calibration.domain),
        ("model", &calibration.model),
    ] {
        let area = of.auroc.map_or("-".to_owned(), |area| format!("{area:.3}"));
        output::line(format!(
            "  {name:<7} {:.1} % right; error {:.1} points ({:.1} of the softmax); AUROC {area}",
            100.0 * of.right as f64 / n as f64,
            of.error,
            of.softmax_error
        ))?;
    }
    for risk in [5.0, 10.0, 20.0] {
        let least = calibration.least_confidence(risk);
        let curve = &calibration.curve;
        let answered = curve.partition_point(|point| point.least >= least);
        let coverage = curve[..answered].last();
        let coverage = coverage.map_or(0.0, |point| 100.0 * point.coverage);
        output::line(format!(
            "  risk {risk:>2} %: confidence from {least:.3}, about {coverage:.0} % answered"
        ))?;
    }
    match calibration.held_out {
        true => Ok(()),
        false => output::paragraph(
            "these prompts were not held out: if they were learned, the confidence is too high",
        ),
    }
}

fn rollback(target: &StoreToChange, to: Option<&str>, json: bool) -> Result<()> {
    let store = target.open()?;
    let (from, to) = match to {
        Some(beginning) => {
            let to = store.find(beginning)?;
            // This repairs a store whose `current` is damaged.
            let from = store.current().ok();
            match target.dry_run {
                true => store.check(&to).map(drop)?,
                false => store.set_current(&to)?,
            }
            (from, to)
        }
        None => {
            let (from, to) = to_parent(&store, target.dry_run)
                .map_err(|e| e.but("--to names another generation"))?;
            (Some(from), to)
        }
    };
    let was = from
        .as_ref()
        .map_or(String::new(), |from| format!(" (was {from})"));
    let verb = if target.dry_run { "would be" } else { "is" };
    output::done(
        json,
        &json!({"schema_version": 1, "generation": to, "from": from, "dry_run": target.dry_run}),
        format!("{to} {verb} current{was}"),
    );
    Ok(())
}

/// Rolls back to the parent; returns the generation before and the one after.
fn to_parent(store: &Store, dry_run: bool) -> Result<(GenerationId, GenerationId)> {
    let from = store.current()?;
    if !dry_run {
        return Ok((from, store.rollback()?));
    }
    let to = store.parent(&from)?;
    store.check(&to)?;
    Ok((from, to))
}

fn diff(store: &Store, old: &str, new: Option<&str>, json: bool) -> Result<()> {
    let (old, new) = (store.find(old)?, generation_of(store, new)?);
    let difference = store.diff(&old, &new)?;
    if json {
        return output::json(
            &json!({"schema_version": 1, "old": old, "new": new, "difference": difference}),
        );
    }
    output::line(format!("{old} -> {new}"))?;
    difference
        .added
        .iter()
        .try_for_each(|name| output::line(format!("  + {name}")))?;
    difference
        .retired
        .iter()
        .try_for_each(|name| output::line(format!("  - {name} (retired)")))?;
    difference
        .renamed
        .iter()
        .try_for_each(|(a, b)| output::line(format!("  ~ {a} is now {b}")))?;
    difference
        .aliased
        .iter()
        .try_for_each(|(a, b)| output::line(format!("  ~ {a} is also {b}")))?;
    difference
        .described
        .iter()
        .try_for_each(|name| output::line(format!("  ~ {name} has other attributes")))?;
    output::line(format!(
        "  rows moved: {} (at most {:.2} degrees); projection {}; encoder {}",
        difference.moved_rows,
        difference.largest_turn,
        if difference.projection_changed {
            "changed"
        } else {
            "same"
        },
        if difference.encoder_changed {
            "changed"
        } else {
            "same"
        },
    ))
}

fn prune(target: &StoreToChange, keep: usize, json: bool) -> Result<()> {
    let store = target.open()?;
    let current = store.current()?;
    let pruned = store.prune(keep, target.dry_run)?;
    // Parents can be read only while the generations exist.
    let gone = if target.dry_run {
        pruned.generations.as_slice()
    } else {
        &[]
    };
    let descends = |id: &&GenerationId| descends(&store, id, &current, gone.len());
    let descendants: Vec<&GenerationId> = gone.iter().filter(descends).collect();
    let verb = if target.dry_run {
        "would remove"
    } else {
        "removed"
    };
    if !json {
        for id in &pruned.generations {
            let newer = match descendants.contains(&id) {
                true => ": made from the current generation and rolled back",
                false => "",
            };
            output::line(format!("{verb} {id}{newer}"))?;
        }
    }
    output::done(
        json,
        &json!({
            "schema_version": 1, "pruned": pruned, "descendants_of_current": descendants,
            "dry_run": target.dry_run,
        }),
        format!(
            "{verb} {}, {}",
            output::counted(pruned.generations.len(), "generation"),
            output::counted(pruned.leftovers, "left-over")
        ),
    );
    Ok(())
}

/// True if `from` is among the `most` nearest ancestors of `id`.
fn descends(store: &Store, id: &GenerationId, from: &GenerationId, most: usize) -> bool {
    let mut id = id.clone();
    for _ in 0..most {
        match store.parent(&id) {
            Ok(parent) if parent == *from => return true,
            Ok(parent) => id = parent,
            Err(_) => return false,
        }
    }
    false
}
