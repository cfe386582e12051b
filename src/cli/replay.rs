//! `hubrouter replay`

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::{DeviceArgs, StoreArgs, StoreToChange, output};
use crate::error::Result;
use crate::learn::{ReplayEntry, forget, remembered, would_forget};

/// The prompts that a store keeps for learning
#[derive(Subcommand)]
pub(super) enum ReplayCommand {
    /// List the kept prompts of the current generation
    #[command(after_help = "Example:
  hubrouter replay list --router my-store --json | jq -r .query_sha256")]
    List {
        #[command(flatten)]
        store: StoreArgs,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Publish a new generation without a prompt, which also leaves the memory; prune the old
    /// generations to delete it for good
    #[command(after_help = "Example:
  hubrouter replay forget --router my-store \"Who signed this lease?\"
  hubrouter generation prune --router my-store --keep 0")]
    Forget {
        #[command(flatten)]
        store: StoreToChange,
        /// The prompt, or its SHA-256 from `replay list` if the store keeps its text
        prompt: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        device: DeviceArgs,
    },
}

pub(super) fn run(command: &ReplayCommand) -> Result<ExitCode> {
    match command {
        ReplayCommand::List { store, json } => {
            let store = store.open()?;
            let id = store.current()?;
            let hub = store.hub(&id)?;
            let kept = remembered(&store, &id)?;
            let mut table = output::TextTable::new(&["use", "model", "prompt"]);
            for (used, entries) in [("replay", &kept.replay), ("held out", &kept.held_out)] {
                for entry in entries {
                    let model = hub.get(crate::ModelId(entry.model));
                    let model = model.map_or("", |model| &*model.name);
                    if *json {
                        output::json(&line(used, model, entry))?;
                    } else {
                        let text = entry.text.as_ref().unwrap_or(&entry.query_sha256);
                        table.row(vec![used.into(), model.into(), text.clone()]);
                    }
                }
            }
            if !json {
                table.print_list()?;
            }
        }
        ReplayCommand::Forget {
            store,
            prompt,
            json,
            device,
        } => {
            let folder = store.open()?;
            let (entries, remembered) = would_forget(&folder, prompt)?;
            let id = match store.dry_run {
                true => None,
                false => Some(forget(&folder, prompt, &device.options()?)?),
            };
            let text = match &id {
                Some(id) => format!("published {id} without the prompt"),
                None => format!(
                    "nothing written: {} with the prompt would be deleted, and it would leave the \
                     memory {}",
                    output::counted(entries, "line"),
                    output::counted(remembered, "time")
                ),
            };
            let value = json!({
                "schema_version": 1, "generation": id, "entries": entries,
                "remembered": remembered, "dry_run": store.dry_run
            });
            output::done(*json, &value, text);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(used: &str, model: &str, entry: &ReplayEntry) -> serde_json::Value {
    json!({
        "use": used,
        "model": model,
        "experience": entry.experience,
        "domain": entry.domain,
        "query_sha256": entry.query_sha256,
        "text": entry.text,
    })
}
