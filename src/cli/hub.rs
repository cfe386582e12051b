//! `hubrouter hub`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;

use super::progress::Progress;
use super::{DeviceArgs, StoreArgs, StoreToChange, bundled, output};
use crate::cmrbench::{Data, Prefix};
use crate::error::{Result, bail};
use crate::hub::read_models;
use crate::{Edit, Encoder, GenerationId, Hub, Model, ModelCard, ModelId, NewModel, Store};

#[derive(Subcommand)]
pub(super) enum HubCommand {
    /// List the hub's models
    #[command(after_help = "Example:\n  hubrouter hub list --domain translation --limit 5")]
    List {
        /// Only models whose domain contains this text; case is ignored
        #[arg(long, value_name = "TEXT")]
        domain: Option<String>,
        /// Only models whose name contains this text; case is ignored
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
        /// Include retired models
        #[arg(long)]
        all: bool,
        /// Most models to show; 0 for all
        #[arg(long, default_value_t = 0, value_name = "N")]
        limit: usize,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Show one model
    #[command(after_help = "Example:\n  hubrouter hub show google/flan-t5-xxl")]
    Show {
        /// Name or alias
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Add models; each is routed by its encoded card until prompts are learned
    #[command(after_help = "Examples:
  hubrouter hub add --router my-store --model acme/ner --domain Tagging
  hubrouter hub add --router my-store --models new.jsonl")]
    Add(AddArgs),
    /// Exclude a model from routing for good; its id and names stay reserved
    #[command(after_help = "Example:\n  hubrouter hub retire --router my-store acme/ner")]
    Retire {
        /// Name or alias
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreToChange,
    },
    /// Rename a model; the old name stays an alias
    #[command(
        after_help = "Example:\n  hubrouter hub rename --router my-store acme/ner acme/ner-v1"
    )]
    Rename {
        /// Name or alias
        name: String,
        /// New name
        new: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreToChange,
    },
    /// Add an alias of a model
    #[command(after_help = "Example:\n  hubrouter hub alias --router my-store acme/ner ner")]
    Alias {
        /// Name or alias
        name: String,
        /// The alias to add
        alias: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        store: StoreToChange,
    },
    /// Make a store; its first generation routes by encoded model cards, without training
    #[command(after_help = "Examples:
  hubrouter hub build --models models.jsonl --out my-store
  hubrouter hub build --data ~/CMR --encoder my-encoder --out my-store

models.jsonl has one model per line with \"model_name\" and \"domain\". Optional are \"family\", \
\"functionality\", \"description\" and \"created_at\" (Unix milliseconds or ISO 8601). All other \
keys are kept as attributes.")]
    Build(BuildArgs),
}

#[derive(Args)]
pub(super) struct AddArgs {
    /// Name of a new model
    #[arg(
        long,
        value_name = "NAME",
        requires = "domain",
        conflicts_with = "models",
        required_unless_present = "models"
    )]
    model: Option<String>,
    /// Its domain
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// Its family
    #[arg(long, value_name = "FAMILY")]
    family: Option<String>,
    /// What it does
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// File of models, one JSON object per line
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

#[derive(Args)]
pub(super) struct BuildArgs {
    /// File of models, one JSON object per line
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "data",
        required_unless_present = "data"
    )]
    models: Option<PathBuf>,
    /// A CMRBench checkout; the hub contains the models of all experiences
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Folder of the new store
    #[arg(long, value_name = "STORE")]
    out: PathBuf,
    /// Read and check everything, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(command: &HubCommand) -> Result<ExitCode> {
    match command {
        HubCommand::List {
            domain,
            name,
            all,
            limit,
            json,
            store,
        } => {
            list(
                &store.open()?,
                domain.as_deref(),
                name.as_deref(),
                *all,
                *limit,
                *json,
            )?;
        }
        HubCommand::Show { name, json, store } => show(&store.open()?, name, *json)?,
        HubCommand::Add(args) => add(args)?,
        HubCommand::Retire { name, json, store } => {
            change(store, *json, |edit| edit.retire(name))?;
        }
        HubCommand::Rename {
            name,
            new,
            json,
            store,
        } => {
            change(store, *json, |edit| edit.rename(name, new))?;
        }
        HubCommand::Alias {
            name,
            alias,
            json,
            store,
        } => {
            change(store, *json, |edit| edit.alias(name, alias))?;
        }
        HubCommand::Build(args) => build(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(
    store: &Store,
    domain: Option<&str>,
    name: Option<&str>,
    all: bool,
    limit: usize,
    json: bool,
) -> Result<()> {
    let hub = store.hub(&store.current()?)?;
    let contains = |text: &str, part: Option<&str>| {
        part.is_none_or(|part| text.to_lowercase().contains(&part.to_lowercase()))
    };
    let matching: Vec<(ModelId, &Model)> = hub
        .iter()
        .filter(|(_, model)| {
            (all || !model.retired)
                && contains(&model.domain, domain)
                && contains(&model.name, name)
        })
        .collect();
    let shown = if limit == 0 {
        matching.len()
    } else {
        limit.min(matching.len())
    };
    if json {
        return matching[..shown]
            .iter()
            .try_for_each(|(id, model)| output::json(&record(*id, model)));
    }
    let mut table = output::TextTable::new(&[">id", "model", "domain", "family", "state"]);
    for (id, model) in &matching[..shown] {
        let state = if model.retired { "retired" } else { "" };
        let family = model.family.as_deref().unwrap_or("-");
        table.row(vec![
            id.to_string(),
            model.name.to_string(),
            model.domain.to_string(),
            family.into(),
            state.into(),
        ]);
    }
    table.print_list()?;
    output::line(format!(
        "{shown} of {}, {} active",
        output::counted(hub.len(), "model"),
        hub.active()
    ))
}

fn record(id: ModelId, model: &Model) -> serde_json::Value {
    json!({"id": id, "name": model.name, "domain": model.domain, "family": model.family,
        "created_at": model.created_at, "attributes": model.attributes, "aliases": model.aliases,
        "retired": model.retired})
}

fn show(store: &Store, name: &str, json: bool) -> Result<()> {
    let hub = store.hub(&store.current()?)?;
    let id = hub.resolve(name)?;
    let Some(model) = hub.get(id) else {
        bail!(InvalidRequest, "{name:?}: no such model")
    };
    if json {
        return output::json(&record(id, model));
    }
    output::line(&model.name)?;
    output::line(format!("  id          {id}"))?;
    output::line(format!("  domain      {}", model.domain))?;
    output::line(format!(
        "  family      {}",
        model.family.as_deref().unwrap_or("-")
    ))?;
    if let Some(time) = model
        .created_at
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
    {
        output::line(format!("  created at  {time}"))?;
    }
    if !model.aliases.is_empty() {
        output::line(format!("  aliases     {}", model.aliases.join(", ")))?;
    }
    for (key, value) in &model.attributes {
        output::line(format!("  {key:<11} {value}"))?;
    }
    output::line(format!(
        "  state       {}",
        if model.retired { "retired" } else { "active" }
    ))
}

fn change(
    target: &StoreToChange,
    json: bool,
    change: impl FnOnce(&mut Edit) -> Result<()>,
) -> Result<()> {
    let mut edit = target.open()?.edit(target.dry_run)?;
    change(&mut edit)?;
    finish(edit, target.dry_run, json)
}

fn finish(edit: Edit, dry_run: bool, json: bool) -> Result<()> {
    let parent = edit.parent().clone();
    let id = if dry_run { None } else { Some(edit.commit()?) };
    done(json, id.as_ref(), &parent);
    Ok(())
}

fn done(json: bool, id: Option<&GenerationId>, parent: &GenerationId) {
    let value =
        json!({"schema_version": 1, "generation": id, "parent": parent, "dry_run": id.is_none()});
    let text = match id {
        Some(id) => format!("{id} is published and current (parent {parent})"),
        None => format!("nothing written: a child of {parent} would be made"),
    };
    output::done(json, &value, text);
}

fn add(args: &AddArgs) -> Result<()> {
    let cards = match (&args.models, &args.model, &args.domain) {
        (Some(path), _, _) => cards_of(path)?,
        (None, Some(model), Some(domain)) => {
            let mut card = ModelCard::new(model.as_str(), domain.as_str());
            card.family.clone_from(&args.family);
            card.description.clone_from(&args.description);
            vec![card]
        }
        _ => bail!(
            InvalidRequest,
            "pass --model NAME --domain DOMAIN, or --models FILE"
        ),
    };
    let models: Vec<NewModel> = cards.iter().map(NewModel::from).collect();
    let mut edit = args.store.open()?.edit(args.store.dry_run)?;
    // Before the encoder is opened: a name may be taken.
    edit.hub()
        .with(models.iter().map(|new| new.model.clone()))?;
    if !args.store.dry_run {
        let encoder = Arc::new(edit.open_encoder(&args.device.options())?);
        let mut progress = Progress::new("encoding cards", texts(&models) as u64);
        edit.add(&encoder, &models, &mut |done, _| progress.set(done as u64))?;
    }
    finish(edit, args.store.dry_run, args.json)
}

/// Number of texts to encode.
fn texts(models: &[NewModel]) -> usize {
    models.iter().map(|new| new.cards.len()).sum()
}

fn cards_of(path: &std::path::Path) -> Result<Vec<ModelCard>> {
    let (cards, repeated) = read_models(path)?;
    if let Some(first) = repeated.first() {
        log::warn!(
            "{}: {} repeated; the last line counts; the first such name is {first:?}",
            path.display(),
            output::counted(repeated.len(), "name")
        );
    }
    Ok(cards)
}

fn build(args: &BuildArgs) -> Result<()> {
    let Some(folder) = args.device.encoder.clone().or_else(bundled::encoder) else {
        bail!(
            InvalidRequest,
            "no encoder: the bundled one is missing; pass --encoder FOLDER (see hubrouter encoder \
             import --help)"
        );
    };
    let (models, made_by) = match (&args.models, &args.data) {
        (Some(path), _) => (
            cards_of(path)?
                .iter()
                .map(NewModel::from)
                .collect::<Vec<_>>(),
            "hub build --models",
        ),
        (None, Some(folder)) => {
            let data = Data::open(folder, Prefix::Strip)?;
            (data.hub(data.experiences.len()), "hub build --data")
        }
        (None, None) => bail!(InvalidRequest, "pass --models FILE or --data FOLDER"),
    };
    Hub::default().with(models.iter().map(|new| new.model.clone()))?;
    let encoder = Arc::new(Encoder::open(&folder, &args.device.options())?);
    if args.dry_run {
        return output::line(format!(
            "nothing written: {} would make {}",
            output::counted(models.len(), "model"),
            args.out.display()
        ));
    }
    let store = Store::create(&args.out)?;
    let mut progress = Progress::new("encoding cards", texts(&models) as u64);
    let id = store.build(&encoder, &models, made_by, &mut |done, _| {
        progress.set(done as u64)
    })?;
    drop(progress);
    let value =
        json!({"schema_version": 1, "generation": id, "models": models.len(), "store": args.out});
    let models = output::counted(models.len(), "model");
    output::done(
        args.json,
        &value,
        format!("{id}: {models} in {}", args.out.display()),
    );
    Ok(())
}
