//! `hubrouter generation`

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::{StoreArgs, StoreToChange, output};
use crate::error::Result;
use crate::{GenerationId, Store};

#[derive(Subcommand)]
pub(super) enum GenerationCommand {
    /// List the store's generations, oldest first
    #[command(after_help = "Example:\n  hubrouter generation list --router my-store")]
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Show one generation's manifest
    #[command(after_help = "Example:\n  hubrouter generation show")]
    Show {
        /// Generation [default: the current one]
        id: Option<GenerationId>,
        /// One JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Check every file of a generation, or of all, against its manifest
    #[command(after_help = "Example:\n  hubrouter generation check --router my-store")]
    Check {
        /// Generation [default: all]
        id: Option<GenerationId>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Make the parent of the current generation, or another one, current
    #[command(after_help = "Example:\n  hubrouter generation rollback --router my-store")]
    Rollback {
        /// Generation to make current [default: the current one's parent]
        #[arg(long, value_name = "ID")]
        to: Option<GenerationId>,
        /// One JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreToChange,
    },
    /// Show what changed between two generations
    #[command(
        after_help = "Example:\n  hubrouter generation diff g0001-0123456789ab g0002-ba9876543210 --router my-store"
    )]
    Diff {
        /// Older generation
        old: GenerationId,
        /// Newer generation [default: the current one]
        new: Option<GenerationId>,
        /// One JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Remove generations that are neither current nor among its newest ancestors
    #[command(
        after_help = "Example:\n  hubrouter generation prune --router my-store --keep 3 --dry-run"
    )]
    Prune {
        /// Ancestors of the current generation to keep
        #[arg(long, default_value_t = 3, value_name = "N")]
        keep: usize,
        /// One JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreToChange,
    },
}

pub(super) fn run(command: &GenerationCommand) -> Result<ExitCode> {
    match command {
        GenerationCommand::List { json, store } => list(&store.open()?, *json)?,
        GenerationCommand::Show { id, json, store } => show(&store.open()?, id.as_ref(), *json)?,
        GenerationCommand::Check { id, json, store } => {
            return check(&store.open()?, id.as_ref(), *json);
        }
        GenerationCommand::Rollback { to, json, store } => rollback(store, to.as_ref(), *json)?,
        GenerationCommand::Diff {
            old,
            new,
            json,
            store,
        } => diff(&store.open()?, old, new.as_ref(), *json)?,
        GenerationCommand::Prune { keep, json, store } => prune(store, *keep, *json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(store: &Store, json: bool) -> Result<()> {
    let reports = store.list()?;
    if json {
        return reports.iter().try_for_each(output::json);
    }
    let mut table = output::Table::new(&[
        "",
        "generation",
        "parent",
        ">models",
        "published",
        "made by",
        "state",
    ]);
    for report in reports {
        let time = report
            .published
            .and_then(|s| jiff::Timestamp::from_second(i64::try_from(s).ok()?).ok());
        let manifest = report.manifest.as_ref();
        let parent = manifest
            .and_then(|m| m.parent.as_ref())
            .map_or("-".into(), ToString::to_string);
        table.row(vec![
            if report.current { "*" } else { "" }.into(),
            report.id.to_string(),
            parent,
            manifest.map_or("?".into(), |m| m.models.to_string()),
            time.map_or("?".into(), |time| time.to_string()),
            manifest.map_or("?".into(), |m| m.made_by.clone()),
            report
                .damage
                .map_or("whole".into(), |damage| format!("damaged: {damage}")),
        ]);
    }
    table.print()
}

fn show(store: &Store, id: Option<&GenerationId>, json: bool) -> Result<()> {
    let id = id.map_or_else(|| store.current(), |id| Ok(id.clone()))?;
    let manifest = store.check(&id)?;
    if json {
        return output::json(&json!({"id": id, "manifest": manifest}));
    }
    let parent = manifest
        .parent
        .as_ref()
        .map_or("-".into(), ToString::to_string);
    output::line(format!(
        "{id}\n  parent     {parent}\n  made by    {}",
        manifest.made_by
    ))?;
    let encoder = &manifest.encoder;
    output::line(format!(
        "  encoder    {} ({})",
        encoder.name, encoder.sha256
    ))?;
    output::line(format!("  tokenizer  {}", encoder.tokenizer_sha256))?;
    output::line(format!(
        "  models     {}\n  width      {}\n  tau        {}",
        manifest.models, manifest.width, manifest.tau
    ))?;
    manifest.files().try_for_each(|(name, bytes, sha256)| {
        output::line(format!("  {name:<18} {bytes:>12} bytes  {sha256}"))
    })
}

fn check(store: &Store, id: Option<&GenerationId>, json: bool) -> Result<ExitCode> {
    let ids = id.map_or_else(|| store.ids(), |id| Ok(vec![id.clone()]))?;
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        let damage = store.check(&id).err().map(|error| error.to_string());
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

fn rollback(target: &StoreToChange, to: Option<&GenerationId>, json: bool) -> Result<()> {
    let store = Store::open(&target.router)?;
    let from = store.current()?;
    let to = match to {
        Some(id) => id.clone(),
        None => store
            .parent(&from)
            .map_err(|e| e.but("--to names another generation"))?,
    };
    if target.dry_run {
        store.check(&to)?;
    } else {
        store.set_current(&to)?;
    }
    if json {
        return output::json(
            &json!({"schema_version": 1, "generation": to, "from": from, "dry_run": target.dry_run}),
        );
    }
    output::line(format!(
        "{to} {} current (was {from})",
        if target.dry_run { "would be" } else { "is" }
    ))
}

fn diff(store: &Store, old: &GenerationId, new: Option<&GenerationId>, json: bool) -> Result<()> {
    let new = new.map_or_else(|| store.current(), |id| Ok(id.clone()))?;
    let difference = store.diff(old, &new)?;
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
    let store = Store::open(&target.router)?;
    let pruned = store.prune(keep, target.dry_run)?;
    if json {
        return output::json(
            &json!({"schema_version": 1, "pruned": pruned, "dry_run": target.dry_run}),
        );
    }
    let verb = if target.dry_run {
        "would remove"
    } else {
        "removed"
    };
    pruned
        .generations
        .iter()
        .try_for_each(|id| output::line(format!("{verb} {id}")))?;
    output::line(format!(
        "{verb} {} generations, {} left-overs",
        pruned.generations.len(),
        pruned.leftovers
    ))
}
