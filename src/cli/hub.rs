//! `hubrouter hub`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::found::{FromArgs, Listing, Nearest, SourceReport};
use super::progress::Progress;
use super::{DeviceArgs, StoreArgs, StoreToChange, bundled, open, output};
use crate::cmrbench::{Data, Prefix};
use crate::error::{ErrorKind, Result, bail};
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
  hubrouter hub add --router my-store --models new.jsonl
  hubrouter hub add --router my-store --from-openai http://localhost:8080 --nearest-domain
  hubrouter hub add --router my-store --from-cards ~/models --dry-run

--from-openai and --from-cards add what is new, and name what the source does not have any more. \
--update takes other prices and the like of models that came from there before.")]
    Add(Box<AddArgs>),
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
    /// Set attributes of a model, such as its price
    #[command(after_help = "Examples:
  hubrouter hub set --router my-store acme/ner price=0.5 licence=mit
  hubrouter hub set --router my-store acme/ner 'languages=[\"de\", \"en\"]' tools=null

A value is JSON, or else a text. null takes the attribute away.")]
    Set {
        /// Name or alias
        name: String,
        /// Attributes
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = attribute)]
        attributes: Vec<(String, Value)>,
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
  hubrouter hub build --from-openai http://localhost:8000 --domain \"Text Generation\" --out my-store
  hubrouter hub build --from-openai https://openrouter.ai/api/v1 --out my-store
  hubrouter hub build --from-openai https://api.openai.com --key-env OPENAI_API_KEY --out my-store
  hubrouter hub build --from-cards ~/.cache/huggingface/hub --out my-store --dry-run

models.jsonl has one model per line with \"model_name\" and \"domain\". Optional are \"family\", \
\"functionality\", \"description\" and \"created_at\" (Unix milliseconds or ISO 8601). All other \
keys are kept as attributes.

--from-openai reads the list of models of OpenAI, vLLM, llama.cpp, LiteLLM, OpenRouter and other \
servers, or a file with such a list; prices are in US dollars for a million tokens. --from-cards \
reads README.md, config.json and the headers of weights. What a source does not state is counted, \
and not guessed.")]
    Build(Box<BuildArgs>),
}

#[derive(Args)]
pub(super) struct AddArgs {
    /// Name of a new model
    #[arg(
        long,
        value_name = "NAME",
        requires = "domain",
        conflicts_with_all = ["models", "from_openai", "from_cards"],
        required_unless_present_any = ["models", "from_openai", "from_cards"]
    )]
    model: Option<String>,
    /// Its domain; of --from-openai and --from-cards the domain of models that state none
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// Its family
    #[arg(long, value_name = "FAMILY")]
    family: Option<String>,
    /// What it does
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// File of models, one JSON object per line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from_openai", "from_cards"])]
    models: Option<PathBuf>,
    #[command(flatten)]
    from: FromArgs,
    /// With --from-openai and --from-cards: known models of the source take the attributes that it
    /// states now
    #[arg(long, conflicts_with_all = ["model", "models"])]
    update: bool,
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
        conflicts_with_all = ["data", "from_openai", "from_cards"],
        required_unless_present_any = ["data", "from_openai", "from_cards"]
    )]
    models: Option<PathBuf>,
    /// A CMRBench checkout; the hub contains the models of all experiences
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["from_openai", "from_cards"])]
    data: Option<PathBuf>,
    #[command(flatten)]
    from: FromArgs,
    /// Domain of the models that state none
    #[arg(long, value_name = "DOMAIN", conflicts_with_all = ["models", "data"])]
    domain: Option<String>,
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
        HubCommand::Set {
            name,
            attributes,
            json,
            store,
        } => {
            let attributes = attributes.iter().cloned().collect();
            change(store, *json, |edit| edit.set(name, &attributes))?;
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

/// `price=0.5`
fn attribute(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            let text = || Value::from(value);
            let value = serde_json::from_str(value).unwrap_or_else(|_| text());
            Ok((name.trim().to_owned(), value))
        }
        _ => Err("expected NAME=VALUE, such as price=0.5".to_owned()),
    }
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
    if let Some(listing) = args.from.listing()? {
        return add_found(args, listing);
    }
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
        let encoder = Arc::new(edit.open_encoder(&args.device.options()?)?);
        let mut progress = Progress::new("encoding cards", texts(&models) as u64);
        edit.add(&encoder, &models, &mut |done, _| progress.set(done as u64))?;
    }
    finish(edit, args.store.dry_run, args.json)
}

/// Adds what is new of a source.
fn add_found(args: &AddArgs, listing: Listing) -> Result<()> {
    let dry_run = args.store.dry_run;
    let mut edit = args.store.open()?.edit(dry_run)?;
    let hub = edit.hub().clone();
    let domain = args.domain.as_deref();
    let encoder = match dry_run && !args.from.nearest() {
        true => None,
        false => Some(Arc::new(edit.open_encoder(&args.device.options()?)?)),
    };
    let nearest = match encoder.as_ref().filter(|_| args.from.nearest()) {
        Some(encoder) => Some(Nearest::new(edit.contents(), encoder)?),
        None => None,
    };
    let (cards, mut report) = listing.compared(&hub, domain, nearest.as_ref())?;
    let models: Vec<NewModel> = cards.iter().map(NewModel::from).collect();
    edit.hub()
        .with(models.iter().map(|new| new.model.clone()))?;
    let parent = edit.parent().clone();
    let updates = report.update(args.update);
    for (name, attributes) in &updates {
        edit.set(name, attributes)?;
    }
    let changes = models.len() + updates.len();
    let (id, report) = match encoder.filter(|_| !dry_run) {
        None => (None, report.with_models(&cards)),
        // Nothing would be changed.
        Some(_) if changes == 0 => (Some(parent.clone()), report),
        Some(encoder) => {
            if !models.is_empty() {
                let mut progress = Progress::new("encoding cards", texts(&models) as u64);
                edit.add(&encoder, &models, &mut |done, _| progress.set(done as u64))?;
            }
            (Some(edit.commit()?), report)
        }
    };
    let value = json!({"schema_version": 1, "generation": id, "parent": parent,
        "dry_run": id.is_none(), "report": report});
    let text = match &id {
        None => format!("nothing written: {} would be added", counted(report.new)),
        Some(id) if changes == 0 => format!("nothing is new: {id} stays current"),
        Some(id) => format!("{id} is published and current (parent {parent})"),
    };
    say(args.json, &value, &report, &text);
    Ok(())
}

fn counted(models: usize) -> String {
    output::counted(models, "model")
}

/// The answer of a command that has read a source. What was done is done even if stdout cannot be
/// written.
fn say(json: bool, value: &serde_json::Value, report: &SourceReport, text: &str) {
    match (!json).then(|| report.print()) {
        Some(Err(error)) => output::unanswered(text, &error),
        _ => output::done(json, value, text),
    }
}

/// Number of texts to encode.
fn texts(models: &[NewModel]) -> usize {
    models.iter().map(|new| new.cards.len()).sum()
}

fn cards_of(path: &Path) -> Result<Vec<ModelCard>> {
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
    if let Some(listing) = args.from.listing()? {
        return build_found(args, &folder, listing);
    }
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
    let encoder = Arc::new(Encoder::open(&folder, &args.device.options()?)?);
    let id = if args.dry_run {
        None
    } else {
        let store = Store::create(&args.out)?;
        let mut progress = Progress::new("encoding cards", texts(&models) as u64);
        let built = store.build(&encoder, &models, made_by, &mut |done, _| {
            progress.set(done as u64)
        });
        Some(built?)
    };
    let value = json!({"schema_version": 1, "generation": id, "models": models.len(),
        "store": args.out, "dry_run": id.is_none()});
    output::done(
        args.json,
        &value,
        made(id.as_ref(), models.len(), &args.out),
    );
    Ok(())
}

/// What became of `models` models, or would become without an id.
fn made(id: Option<&GenerationId>, models: usize, out: &Path) -> String {
    let (models, out) = (counted(models), out.display());
    match id {
        None => format!("nothing written: {models} would make {out}"),
        Some(id) => format!("{id}: {models} in {out}"),
    }
}

/// Makes a store of the models of a source.
fn build_found(args: &BuildArgs, folder: &Path, listing: Listing) -> Result<()> {
    let encoder = Arc::new(Encoder::open(folder, &args.device.options()?)?);
    let made_by = listing.kind.made_by;
    let bundled = match args.from.nearest() {
        true => {
            let store = open(&bundled::store(None)?)?;
            Some(store.contents(&store.current()?)?)
        }
        false => None,
    };
    let nearest = match &bundled {
        Some(contents) => Some(Nearest::new(contents, &encoder)?),
        None => None,
    };
    let domain = args.domain.as_deref();
    let (cards, report) = listing.compared(&Hub::default(), domain, nearest.as_ref())?;
    let models: Vec<NewModel> = cards.iter().map(NewModel::from).collect();
    Hub::default().with(models.iter().map(|new| new.model.clone()))?;
    let (id, report) = if args.dry_run {
        (None, report.with_models(&cards))
    } else {
        let store = Store::create(&args.out)?;
        let mut progress = Progress::new("encoding cards", texts(&models) as u64);
        let built = store.build(&encoder, &models, made_by, &mut |done, _| {
            progress.set(done as u64)
        });
        let id = built.map_err(|error| match error.kind() {
            ErrorKind::Refused => error.but("hub add adds what is new to a store"),
            _ => error,
        })?;
        (Some(id), report)
    };
    let value = json!({"schema_version": 1, "generation": id, "models": models.len(),
        "store": args.out, "dry_run": id.is_none(), "report": report});
    let text = made(id.as_ref(), models.len(), &args.out);
    say(args.json, &value, &report, &text);
    Ok(())
}
