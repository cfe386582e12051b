//! `hubrouter cmrbench`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::chat::Endpoint;
use super::progress::Progress;
use super::{DeviceArgs, bundled, eval, learn, output, signals};
use crate::cmrbench::{
    Chat, Data, DomainList, EvalRows, Matrix, Metric, OwnHub, Plan, Prefix, REPORT_FILES, Recalled,
    Results, method, methods, passed_over, recall, run as run_plan, select, write_report,
};
use crate::error::{Result, bail};
use crate::files;
use crate::learn::Control;

/// Methods of `--quick`.
const QUICK: [&str; 8] = [
    "bm25",
    "tfidf",
    "dense",
    "hybrid",
    FLOOR,
    "sequential",
    "replay-10",
    "carve-10",
];

/// Names that take in the row that asks a language model, where there is one.
const WITH_LLM: [&str; 3] = ["retrieval", "main", "all"];

/// The row that asks a language model.
const LLM: &str = "llm";

/// Without which no table can be read: what a growing hub takes by itself.
const FLOOR: &str = "centroid";

/// The encoder beside the bundled store.
const ENCODER: &str = "all-MiniLM-L6-v2";

/// Run CMRBench: every method on the same encoder and budget, and a report with tables and figures.
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter cmrbench --data ~/CMR --out bench --quick
  hubrouter cmrbench --data ~/CMR --out bench --methods main --seeds 0,1,2
  hubrouter cmrbench --data ~/CMR --out dev --eval dev --methods carve-10 --seeds 0 --set lr.w=3e-4
  hubrouter cmrbench --data ~/CMR --out bench --methods llm --llm-endpoint http://localhost:8080 --llm-model qwen3-32b
  hubrouter cmrbench --models models.jsonl --examples examples.jsonl --experiences 4 --out mine
  hubrouter cmrbench --list

Every method learns the experiences, CMRBench's four or those of a hub of your own, one after the other; after each, models are named for the eval rows of
all experiences so far. Every step that is done is a file in OUT: Ctrl-C or a crash costs the step at hand,
and the same command goes on from there. Another setting, other data or another version of the methods is
another cell, and is run anew. OUT gets tables.md, report.html, results.json, figures/ and a CSV for each
kind of figure, all made again by --report from cells/, predictions/ and registry/, where the models of each
trained hub have their places on the map. A report is of one setting: cells of others are named and left out.

The row `llm` asks a language model for the domain of each eval row, at the last step: about 1,800 requests a
seed. It is run only when --llm-endpoint names an OpenAI-compatible server (llama.cpp, vLLM, Ollama, a vendor's),
which then gets POST /v1/chat/completions with EVERY PROMPT THAT IS PREDICTED and the hub's domains; nothing else of
this program opens a connection. A proxy is used as HTTPS_PROXY, HTTP_PROXY and NO_PROXY say, redirects are not
followed. Answers are kept as they come; the same command goes on behind the last one.

Exit codes: 0 all is done; 1 something failed; 2 the command line is wrong; 130 stopped by Ctrl-C.")]
pub(super) struct CmrbenchArgs {
    /// A CMRBench checkout, or a folder of its layout [default: $HUBROUTER_CMRBENCH]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// A hub of your own in place of CMRBench's: its models, as for `hub build`
    #[arg(
        long,
        value_name = "FILE",
        requires = "examples",
        conflicts_with = "data"
    )]
    models: Option<PathBuf>,
    /// Its labelled prompts: JSON Lines with instruction, model_name, maybe domain, experience
    #[arg(long, value_name = "FILE", requires = "models")]
    examples: Option<PathBuf>,
    /// Its prompts to predict, in the same form [default: one in eight of the examples, by their hash]
    #[arg(long, value_name = "FILE", requires = "examples")]
    eval_examples: Option<PathBuf>,
    /// Groups of its models by created_at to learn one after the other [default: as the examples say, or one]
    #[arg(long, value_name = "K", requires = "examples")]
    experiences: Option<usize>,
    /// Folder of the results; a run that was stopped goes on there
    #[arg(long, value_name = "FOLDER", required_unless_present = "list")]
    out: Option<PathBuf>,
    /// Methods or groups, with commas: retrieval, continual, bound, ablation, main, all [default: main]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    methods: Vec<String>,
    /// Seeds, with commas [default: 0,1,2]
    #[arg(long, value_delimiter = ',', value_name = "SEEDS")]
    seeds: Vec<u64>,
    /// Epochs of the experiences, with commas [default: 8,8,4,4; of a hub of your own 8 up to 2000 rows, else 4]
    #[arg(long, value_delimiter = ',', value_name = "EPOCHS")]
    epochs: Vec<usize>,
    /// Minutes instead of hours: retrieval, the floor, sequential, replay-10 and carve-10, one seed, one epoch each
    #[arg(long)]
    quick: bool,
    /// Which rows to predict [default: public; of a hub of your own whole]
    #[arg(long, value_enum)]
    eval: Option<Rows>,
    /// Predict at most N of those rows of each experience, evenly spread: for trials
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit_rows: Option<u32>,
    /// Keep a leading "###Instruction:" in the prompts
    #[arg(long)]
    keep_prefix: bool,
    /// Change a setting of every trained method, such as lr.w=3e-4; what makes a method itself stays
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Keep the trained generations, as stores under OUT/work
    #[arg(long)]
    keep: bool,
    /// OpenAI-compatible server that the row llm asks; it gets every prompt that is predicted
    #[arg(long, value_name = "URL")]
    llm_endpoint: Option<String>,
    /// The model's name there [default: what the server takes without one]
    #[arg(long, value_name = "NAME", requires = "llm_endpoint")]
    llm_model: Option<String>,
    /// Domains that it chooses from
    #[arg(long, value_enum, default_value_t = Domains::Hub, requires = "llm_endpoint")]
    llm_domains: Domains,
    /// Variable of the environment with the key, which is sent as a bearer token [default: no key]
    #[arg(long, value_name = "VARIABLE", requires = "llm_endpoint")]
    llm_key_env: Option<String>,
    /// Seconds that an answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "llm_endpoint", value_parser = clap::value_parser!(u32).range(1..))]
    llm_timeout: u32,
    /// Run nothing: make the report of what is whole, with the seeds, epochs and settings of the last one
    #[arg(long)]
    report: bool,
    /// List the methods
    #[arg(long)]
    list: bool,
    /// JSON: results.json on stdout, or with --list one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rows {
    /// The public half of the eval rows
    Public,
    /// All eval rows that are there
    Whole,
    /// One training row of every model that has two; no eval row is seen: for choosing settings
    Dev,
}

#[derive(Clone, Copy, ValueEnum)]
enum Domains {
    /// All that the hub has
    Hub,
    /// Those of the eval rows of one experience at a time, as the reference does it: easier
    File,
}

pub(super) fn run(args: &CmrbenchArgs) -> Result<ExitCode> {
    if args.list {
        return list(args.json);
    }
    let Some(out) = &args.out else {
        bail!(
            InvalidRequest,
            "no folder for the results: say --out FOLDER"
        );
    };
    let plan = plan(args, out)?;
    if !args.report
        && let Some(code) = go(&plan, out)?
    {
        output::remark("stopped; the same command goes on from there");
        return Ok(code);
    }
    let results = write_report(&plan, out)?;
    let others = passed_over(&results, out)?;
    if !others.is_empty() {
        output::remark(format!(
            "not in this report: {}: run with other seeds, epochs, settings, data or methods, or not whole",
            others.join("; ")
        ));
    }
    if args.json {
        let path = out.join("results.json");
        output::json(&files::read_json::<serde_json::Value>(&path, 1 << 28)?)?;
    } else {
        print(&results)?;
        let files = REPORT_FILES.join(", ");
        output::line(format!("{}: {files}, figures/", out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &CmrbenchArgs, out: &Path) -> Result<Plan> {
    let prefix = if args.keep_prefix {
        Prefix::Keep
    } else {
        Prefix::Strip
    };
    let own = args.models.as_deref().zip(args.examples.as_deref());
    let eval = match (args.eval, own) {
        (Some(Rows::Public), Some(_)) => bail!(
            InvalidRequest,
            "--eval public: expected whole or dev for a hub of your own, no half of which is kept secret"
        ),
        (Some(Rows::Public), None) | (None, None) => EvalRows::Public,
        (Some(Rows::Whole), _) | (None, Some(_)) => EvalRows::Whole,
        (Some(Rows::Dev), _) => EvalRows::Development,
    };
    let data = match own {
        None => Data::open(eval::data_folder(args.data.as_deref())?, prefix)?,
        Some((models, examples)) => {
            let own = OwnHub {
                models,
                examples,
                eval: args.eval_examples.as_deref(),
                experiences: args.experiences,
            };
            let data = own.read(prefix)?;
            // The first says what the files are.
            data.notes.iter().skip(1).for_each(output::remark);
            data
        }
    };
    let data = data.evaluate(eval);
    let data = match args.limit_rows {
        Some(rows) => data.limit(rows as usize),
        None => data,
    };
    // A report that is made again is of what is there.
    let recalled = match args.report && !args.quick {
        true => recall(out)?,
        false => Recalled::default(),
    };
    let mut names = names(args, &recalled);
    names.push(FLOOR.to_owned());
    let chat = args.llm_endpoint.as_deref().map(|url| chat(args, url));
    let chat = chat.transpose()?;
    let takes_in = names.iter().any(|name| WITH_LLM.contains(&name.as_str()));
    let by_name = names.iter().any(|name| name == LLM);
    if chat.is_some() && takes_in {
        names.push(LLM.to_owned());
    }
    let encoder = match &args.device.encoder {
        Some(folder) => folder.clone(),
        None => bundled::store(None)?.with_file_name(ENCODER),
    };
    let mut plan = Plan::new(
        data,
        eval,
        prefix,
        encoder,
        args.device.options(),
        select(&names)?,
    );
    if args.quick {
        (plan.seeds, plan.epochs) = (vec![0], vec![1; plan.steps()]);
    }
    if !recalled.seeds.is_empty() {
        plan.seeds = recalled.seeds;
    }
    if let Some(epochs) = recalled.epochs.filter(|all| all.len() == plan.steps()) {
        plan.epochs = epochs;
    }
    if args.set.is_empty() {
        plan.changes = recalled.changes;
    }
    if !args.seeds.is_empty() {
        plan.seeds.clone_from(&args.seeds);
    }
    if !args.epochs.is_empty() {
        plan.epochs.clone_from(&args.epochs);
    }
    for text in &args.set {
        let (key, value) = learn::setting(text)?;
        plan.changes.push((key.to_owned(), value.to_owned()));
    }
    plan.keep = args.keep;
    if chat.is_none() && takes_in && !by_name {
        let reason = "no chat endpoint was named".to_owned();
        plan.left_out.push((method(LLM)?, reason));
    }
    plan.chat = chat.filter(|_| plan.methods.iter().any(|method| method.name == LLM));
    Ok(plan)
}

/// Methods and groups to run, or to report.
fn names(args: &CmrbenchArgs, recalled: &Recalled) -> Vec<String> {
    if !args.methods.is_empty() {
        let names = args.methods.iter().map(|name| name.trim().to_owned());
        return names.collect();
    }
    if args.quick {
        return QUICK.map(str::to_owned).to_vec();
    }
    let there = recalled.methods.iter();
    let mut names: Vec<String> = there
        .filter(|method| method.name != LLM)
        .map(|method| method.name.to_owned())
        .collect();
    if names.is_empty() || recalled.not_run {
        names.push("main".to_owned());
    }
    names
}

/// The language model at `url`.
#[expect(
    clippy::disallowed_methods,
    reason = "a variable that the command line names"
)]
fn chat(args: &CmrbenchArgs, url: &str) -> Result<Chat> {
    let key = match &args.llm_key_env {
        None => None,
        Some(name) => match std::env::var(name) {
            Ok(key) if !key.trim().is_empty() => Some(key.trim().to_owned()),
            _ => bail!(
                InvalidRequest,
                "--llm-key-env: expected a key in the variable {name:?}, found none"
            ),
        },
    };
    let timeout = std::time::Duration::from_secs(args.llm_timeout.into());
    let endpoint = Endpoint::new(url, key, timeout)?;
    let domains = match args.llm_domains {
        Domains::Hub => DomainList::Hub,
        Domains::File => DomainList::File,
    };
    let name = endpoint.url().to_owned();
    let chat = Chat::new(name, move |body| Ok(endpoint.ask(body)?));
    Ok(chat.model(args.llm_model.clone()).domains(domains))
}

/// Runs what is missing; the exit code when it was asked to stop.
fn go(plan: &Plan, out: &Path) -> Result<Option<ExitCode>> {
    let stop = signals::stop_gently(learn::STOPPING)?;
    let mut bar: Option<Progress> = None;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown"
    )]
    let whole = run_plan(plan, out, &mut |status| {
        let bar = bar.get_or_insert_with(|| Progress::new("cmrbench", status.total as u64));
        bar.note(status.what.clone());
        bar.set(status.done as u64);
        match stop.asked() {
            true => Control::Stop,
            false => Control::Continue,
        }
    })?;
    Ok((!whole).then(|| stop.exit_code()))
}

fn list(as_json: bool) -> Result<ExitCode> {
    let mut table = output::TextTable::new(&["method", "group", ">replay", "what it is"]);
    for method in methods() {
        if as_json {
            output::json(&json!({
                "schema_version": 1,
                "name": method.name,
                "group": method.group,
                "replay": method.replay,
                "label": method.label,
                "deterministic": method.deterministic(),
            }))?;
        } else {
            table.row(vec![
                method.name.to_owned(),
                format!("{:?}", method.group).to_lowercase(),
                format!("{:.0} %", 100.0 * method.replay),
                method.label.to_owned(),
            ]);
        }
    }
    if !as_json {
        table.print()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(results: &Results) -> Result<()> {
    let heads = [
        "method", ">seeds", ">M-Acc", ">F-Acc", ">D-Acc", ">M-Fgt", ">F-Fgt", ">D-Fgt",
    ];
    let mut table = output::TextTable::new(&heads);
    for method in &results.methods {
        let mut cells = vec![method.info.name.to_owned(), method.runs.len().to_string()];
        for of in [Matrix::acc, Matrix::forgetting] {
            for metric in Metric::ALL {
                let value = method.over_seeds(metric, of);
                cells.push(value.map_or("-".to_owned(), |(mean, _)| format!("{mean:.1}")));
            }
        }
        table.row(cells);
    }
    table.print()
}
