//! `hubrouter generation export`, `import`, `adopt`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::progress::Progress;
use super::{DeviceArgs, StoreArgs, StoreToChange, bundled, generation_of, output};
use crate::error::{Result, bail};
use crate::exchange::{self, Adopted, AdoptedHead, ExportedGeneration, ImportedGeneration};
use crate::hub::{ModelCard, read_models};
use crate::learn::MemoryFate;
use crate::{Encoder, Options};

#[derive(Args)]
pub(super) struct ExportArgs {
    /// New folder; it must not exist
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Generation id, or its first characters [default: the current one]
    #[arg(long, value_name = "ID")]
    generation: Option<String>,
    /// CPU threads [default: all, at most 4]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Folder of the encoder bundle [default: inside or beside the store, or the bundled one]
    #[arg(long, value_name = "FOLDER")]
    encoder: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Args)]
pub(super) struct GenerationImportArgs {
    /// Folder with router.json
    #[arg(long, value_name = "FOLDER")]
    from: PathBuf,
    /// Folder of the new store
    #[arg(long, value_name = "STORE")]
    out: PathBuf,
    /// Cards of its models, one JSON object per line: domains, families, attributes
    #[arg(long, value_name = "FILE")]
    models: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Args)]
pub(super) struct AdoptArgs {
    /// Folder with adapter_config.json of PEFT, or with router.json
    #[arg(long, value_name = "FOLDER")]
    from: PathBuf,
    /// Models whose rows of E are made of these cards anew, one JSON object per line
    #[arg(long, value_name = "FILE")]
    models: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreToChange,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn export(args: &ExportArgs) -> Result<ExitCode> {
    let store = args.store.open()?;
    let id = generation_of(&store, args.generation.as_deref())?;
    let mut options = Options {
        threads: args.threads,
        encoder: args.encoder.clone(),
        cpu: super::cpu_level()?,
        ..Options::default()
    };
    options.look_in.extend(bundled::encoder());
    let exported = exchange::export(&store, &id, &args.to, &options)?;
    let ExportedGeneration {
        folder,
        encoder,
        models,
        width,
        adapter,
        bytes,
        notes,
        ..
    } = &exported;
    let adapter = match adapter {
        Some(adapter) => format!("an adapter of rank {}", adapter.r),
        None => "no adapter".to_owned(),
    };
    let text = format!(
        "{id} in {}: encoder {encoder}, {adapter}, {} of width {width} ({bytes} bytes)",
        folder.display(),
        output::counted(*models, "model"),
    );
    done(args.json, json!(&exported), &text, notes)
}

pub(super) fn import(args: &GenerationImportArgs) -> Result<ExitCode> {
    let cards = cards(args.models.as_ref())?;
    let options = args.device.options()?;
    let folder = options.encoder.clone().or_else(bundled::encoder);
    let Some(folder) = folder else {
        bail!(
            InvalidRequest,
            "--encoder: expected the folder of the encoder that the router was made for, found \
             neither it nor the bundled one"
        );
    };
    let encoder = Arc::new(Encoder::open(folder, &options)?);
    let mut progress = Progress::new("encoding cards", 0);
    let mut say = |done, all| {
        progress.total(all as u64);
        progress.set(done as u64);
    };
    let imported = exchange::import(&args.from, &args.out, &cards, &encoder, &mut say)?;
    drop(progress);
    let ImportedGeneration {
        generation,
        models,
        width,
        rank,
        notes,
        ..
    } = &imported;
    let text = format!(
        "{generation}: {} of width {width} in {}, {}",
        output::counted(*models, "model"),
        args.out.display(),
        ranked(*rank)
    );
    done(args.json, json!(&imported), &text, notes)
}

pub(super) fn adopt(args: &AdoptArgs) -> Result<ExitCode> {
    let cards = cards(args.models.as_ref())?;
    let store = args.store.open()?;
    let options = args.device.options()?;
    let adopted = exchange::adopt(&store, &args.from, &cards, args.store.dry_run, &options)?;
    let Adopted {
        generation,
        parent,
        rank,
        targets,
        ..
    } = &adopted;
    let maps = match targets.is_empty() {
        true => String::new(),
        false => format!(" on {}", targets.join(", ")),
    };
    let text = match generation {
        Some(id) => format!("{id}: {parent} with {}{maps}", ranked(*rank)),
        None => format!(
            "nothing written: {parent} would get {}{maps}",
            ranked(*rank)
        ),
    };
    let mut notes = said(&adopted);
    notes.extend(adopted.notes.iter().cloned());
    let mut value = json!(&adopted);
    value["dry_run"] = args.store.dry_run.into();
    done(args.json, value, &text, &notes)
}

fn ranked(rank: Option<usize>) -> String {
    match rank {
        Some(rank) => format!("an adapter of rank {rank}"),
        None => "no adapter".to_owned(),
    }
}

/// What the change did to the parts of the parent, in sentences.
fn said(adopted: &Adopted) -> Vec<String> {
    let prompts = &adopted.prompts;
    let mut said = Vec::new();
    if adopted.head == AdoptedHead::Folder {
        said.push("W, E and the temperature are those of the folder".to_owned());
    }
    if adopted.rows > 0 {
        let rows = output::counted(adopted.rows, "row");
        said.push(format!("{rows} of E made anew of model cards"));
    }
    let remembered = output::counted(prompts.remembered, "prompt");
    match prompts.memory {
        MemoryFate::Absent => {}
        MemoryFate::Moved => said.push(format!(
            "the memory of {remembered} was moved to the new encoder by {} that {} kept",
            output::counted(prompts.moved_by, "prompt"),
            if prompts.moved_by == 1 { "is" } else { "are" }
        )),
        MemoryFate::Dropped => said.push(format!(
            "the memory of {remembered} was dropped: it belongs to the old encoder, and no text \
             of a prompt is kept to move it by"
        )),
    }
    if prompts.held_out_dropped > 0 {
        said.push(format!(
            "held-out prompts dropped, since they were kept as vectors of the old encoder: {}",
            prompts.held_out_dropped
        ));
    }
    said.push(
        "int8 and confidence are not measured: `hubrouter generation measure` does".to_owned(),
    );
    said
}

fn cards(file: Option<&PathBuf>) -> Result<Vec<ModelCard>> {
    let Some(file) = file else {
        return Ok(Vec::new());
    };
    let (cards, repeated) = read_models(file)?;
    if let Some(name) = repeated.first() {
        output::remark(format!(
            "hubrouter: {}: {} repeated; the last line counts; the first such name is {name:?}",
            file.display(),
            output::counted(repeated.len(), "name")
        ));
    }
    Ok(cards)
}

/// The answer: as JSON, or a line and one for each note.
fn done(as_json: bool, value: Value, text: &str, notes: &[String]) -> Result<ExitCode> {
    let mut all = json!({"schema_version": 1});
    if let (Value::Object(all), Value::Object(value)) = (&mut all, value) {
        all.extend(value);
    }
    output::done(as_json, &all, text);
    if !as_json {
        let mut notes = notes.iter();
        notes.try_for_each(|note| output::paragraph(format!("note: {note}")))?;
    }
    Ok(ExitCode::SUCCESS)
}
