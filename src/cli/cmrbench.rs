//! `hubrouter cmrbench`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::chat::Endpoint;
use super::progress::Progress;
use super::{DeviceArgs, bundled, eval, learn, output, signals, web};
use crate::cmrbench::{
    AccuracyMatrix, BenchPlan, CellSettings, Chat, Data, DomainList, EvalRows, GridStatus,
    GridWatch, LastRun, Metric, OwnHub, Prefix, REPORT_FILES, Results, measure_bundled, method,
    methods, passed_over, recall, run as run_plan, select, write_report,
};
use crate::device::DeviceChoice;
use crate::error::{Result, bail};
use crate::files;
use crate::learn::Control;
use crate::{Options, Precision, Router};

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

/// Names that include the method that asks a language model, where one is named.
const WITH_LLM: [&str; 3] = ["retrieval", "main", "all"];

/// The method that asks a language model.
const LLM: &str = "llm";

/// The continual floor, which every table needs: the forgetting of a growing hub by itself.
const FLOOR: &str = "centroid";

/// The encoder beside the bundled store.
const ENCODER: &str = "all-MiniLM-L6-v2";

/// Run CMRBench: every method on the same encoder and budget, and a report with tables and figures.
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter cmrbench --data ~/CMR --out bench --quick
  hubrouter cmrbench --data ~/CMR --out bench --methods main --seeds 0,1,2
  hubrouter cmrbench --data ~/CMR --out dev --eval dev --methods carve-10 --seeds 0 --set lr.w=3e-4
  hubrouter cmrbench --data ~/CMR --out bench --methods llm --llm-endpoint http://localhost:8080
  hubrouter cmrbench --models models.jsonl --examples examples.jsonl --experiences 4 --out mine
  hubrouter cmrbench --list

Every method learns the experiences one after the other: CMRBench's four, or those of your own
hub. After each one it predicts models for the eval rows of all experiences so far. Each step that
is done is a file in OUT, so Ctrl-C or a crash costs at most one step, and the same command goes
on from there. Other settings, other data or another version of the methods make another cell,
which is run anew.

OUT gets report.html, tables.md, results.json, figures/ and CSV files. --report makes them again
from cells/, predictions/ and registry/, with the settings that the cells were run with. A report
has one setting: it names the cells of other settings and leaves them out. On CMRBench's eval rows
the bundled router is measured, too.

The method `llm` asks a language model for the domain of each eval row at the last step: about
1,800 requests a seed. It runs only when --llm-endpoint names an OpenAI-compatible server
(llama.cpp, vLLM, Ollama, a vendor's). That server gets POST /v1/chat/completions with EVERY
PROMPT THAT IS PREDICTED and the hub's domains; nothing else in this program opens a connection.
HTTPS_PROXY, HTTP_PROXY and NO_PROXY are heeded, redirects are not followed. Answers are kept as
they arrive, and no request is sent twice.

Exit codes: 0 done; 1 failed; 2 wrong command line; 130 stopped by Ctrl-C.")]
pub(super) struct CmrbenchArgs {
    /// A CMRBench checkout, or a folder of its layout [default: $HUBROUTER_CMRBENCH]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Your own hub instead of CMRBench's: its models, as for `hub build`
    #[arg(
        long,
        value_name = "FILE",
        requires = "examples",
        conflicts_with = "data"
    )]
    models: Option<PathBuf>,
    /// Its labelled prompts: JSON Lines with instruction, model_name and, if wanted, domain,
    /// experience
    #[arg(long, value_name = "FILE", requires = "models")]
    examples: Option<PathBuf>,
    /// Its prompts to predict, in the same form [default: one in eight of the examples, by hash]
    #[arg(long, value_name = "FILE", requires = "examples")]
    eval_examples: Option<PathBuf>,
    /// Experiences, into which its models are divided by created_at [default: those in the
    /// examples, or one]
    #[arg(long, value_name = "K", requires = "examples")]
    experiences: Option<usize>,
    /// Folder of the results; a stopped run goes on from there
    #[arg(long, value_name = "FOLDER", required_unless_present = "list")]
    out: Option<PathBuf>,
    /// Methods or groups, separated by commas: retrieval, continual, bound, ablation, main, all
    /// [default: main]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    methods: Vec<String>,
    /// Seeds, separated by commas [default: 0,1,2]
    #[arg(long, value_delimiter = ',', value_name = "SEEDS")]
    seeds: Vec<u64>,
    /// Epochs of the experiences, separated by commas [default: 8,8,4,4; for your own hub 8 up to
    /// 2000 rows, else 4]
    #[arg(long, value_delimiter = ',', value_name = "EPOCHS")]
    epochs: Vec<usize>,
    /// Minutes, not hours: retrieval, the floor, sequential, replay-10, carve-10; one seed, one
    /// epoch each
    #[arg(long)]
    quick: bool,
    /// Rows to predict [default: public; for your own hub whole]
    #[arg(long, value_enum)]
    eval: Option<EvalArg>,
    /// For trials: predict at most N of those rows of each experience, evenly spread
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit_rows: Option<u32>,
    /// Keep a leading "###Instruction:" in the prompts
    #[arg(long)]
    keep_prefix: bool,
    /// Change a setting of every trained method, such as lr.w=3e-4, where the method does not set
    /// it itself
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Keep the trained generations, as stores under OUT/work
    #[arg(long)]
    keep: bool,
    /// OpenAI-compatible server for the method llm; it gets every prompt that is predicted
    #[arg(long, value_name = "URL")]
    llm_endpoint: Option<String>,
    /// Name of the model there [default: the server's own default]
    #[arg(long, value_name = "NAME", requires = "llm_endpoint")]
    llm_model: Option<String>,
    /// Domains that it chooses from
    #[arg(long, value_enum, default_value_t = DomainArg::Hub, requires = "llm_endpoint")]
    llm_domains: DomainArg,
    /// Environment variable with the key, which is sent as a bearer token [default: no key]
    #[arg(long, value_name = "VARIABLE", requires = "llm_endpoint")]
    llm_key_env: Option<String>,
    /// Longest time for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "llm_endpoint", value_parser = clap::value_parser!(u32).range(1..))]
    llm_timeout: u32,
    /// Run nothing: make the report again from whole cells, with their settings
    #[arg(long)]
    report: bool,
    /// List the methods
    #[arg(long)]
    list: bool,
    /// JSON: results.json on stdout; with --list one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum EvalArg {
    /// The public half of the eval rows
    Public,
    /// All eval rows that are there
    Whole,
    /// For choosing settings: one training row of every model that has two, and no eval row
    Dev,
}

#[derive(Clone, Copy, ValueEnum)]
enum DomainArg {
    /// All domains of the hub
    Hub,
    /// The domains of the eval rows of one experience at a time, as in the reference: easier
    File,
}

pub(super) fn run(args: &CmrbenchArgs) -> Result<ExitCode> {
    if args.list {
        return list(args.json);
    }
    let Some(out) = &args.out else {
        bail!(
            InvalidRequest,
            "no folder for the results: name one with --out FOLDER"
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
            "not in this report: {}: they have other seeds, epochs, settings, data or methods, or \
             are not whole",
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

/// The plan of the command line. A report that is made again keeps the settings of its cells.
fn plan(args: &CmrbenchArgs, out: &Path) -> Result<BenchPlan> {
    let last = match args.report && !args.quick {
        true => recall(out)?,
        false => LastRun::default(),
    };
    let before = last.settings.clone().unwrap_or_default();
    let own = args.models.is_some();
    let eval = eval_rows(args, own, &before.eval)?;
    let keep = args.keep_prefix || before.prefix == "keep";
    let prefix = if keep { Prefix::Keep } else { Prefix::Strip };
    let limit = args.limit_rows.map(|rows| rows as usize);
    let data = data(args, prefix)?.evaluate(eval);
    let data = match limit.or(before.limit_rows) {
        Some(rows) => data.limit(rows),
        None => data,
    };
    let mut names = names(args, &last);
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
    let options = args.device.options()?;
    let mut plan = BenchPlan::new(data, eval, prefix, encoder, options, select(&names)?);
    plan.quick = args.quick;
    if args.quick {
        (plan.seeds, plan.epochs) = (vec![0], vec![1; plan.steps()]);
    }
    if !last.seeds.is_empty() {
        plan.seeds = last.seeds;
    }
    if last.settings.is_some() {
        restore(&mut plan, before);
    }
    if !args.seeds.is_empty() {
        plan.seeds.clone_from(&args.seeds);
    }
    if !args.epochs.is_empty() {
        plan.epochs.clone_from(&args.epochs);
    }
    if !args.set.is_empty() {
        plan.changes.clear();
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

/// The rows to predict; `before`: the choice of the last report, empty without one.
fn eval_rows(args: &CmrbenchArgs, own: bool, before: &str) -> Result<EvalRows> {
    let before = EvalRows::ALL.into_iter().find(|rows| rows.name() == before);
    match args.eval {
        Some(EvalArg::Public) if own => bail!(
            InvalidRequest,
            "--eval public: expected whole or dev for a hub of your own, no half of which is kept \
             secret"
        ),
        Some(EvalArg::Public) => Ok(EvalRows::Public),
        Some(EvalArg::Whole) => Ok(EvalRows::Whole),
        Some(EvalArg::Dev) => Ok(EvalRows::Development),
        None if own => Ok(before
            .filter(|rows| *rows != EvalRows::Public)
            .unwrap_or(EvalRows::Whole)),
        None => Ok(before.unwrap_or(EvalRows::Public)),
    }
}

/// The data of CMRBench, or of the user's own hub.
fn data(args: &CmrbenchArgs, prefix: Prefix) -> Result<Data> {
    let Some((models, examples)) = args.models.as_deref().zip(args.examples.as_deref()) else {
        return Data::open(eval::data_folder(args.data.as_deref())?, prefix);
    };
    let own = OwnHub {
        models,
        examples,
        eval: args.eval_examples.as_deref(),
        experiences: args.experiences,
    };
    let data = own.read(prefix)?;
    // The first note names the files.
    data.notes.iter().skip(1).for_each(output::remark);
    Ok(data)
}

/// Takes the settings of the last report, except a device and threads that the command line names.
fn restore(plan: &mut BenchPlan, before: CellSettings) {
    plan.quick = before.quick;
    if before.epochs.len() == plan.steps() {
        plan.epochs = before.epochs;
    }
    let pairs = before.changes.iter().filter_map(|c| c.split_once('='));
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    plan.changes = pairs.map(owned).collect();
    if plan.options.device == DeviceChoice::Auto {
        plan.options.device = before.device;
    }
    plan.options.threads = plan.options.threads.or(before.threads);
}

/// Methods and groups to run, or to report.
fn names(args: &CmrbenchArgs, last: &LastRun) -> Vec<String> {
    if !args.methods.is_empty() {
        let names = args.methods.iter().map(|name| name.trim().to_owned());
        return names.collect();
    }
    if args.quick {
        return QUICK.map(str::to_owned).to_vec();
    }
    let there = last.methods.iter();
    let mut names: Vec<String> = there
        .filter(|method| method.name != LLM)
        .map(|method| method.name.to_owned())
        .collect();
    if names.is_empty() || last.not_run {
        names.push("main".to_owned());
    }
    names
}

/// The language model at `url`.
fn chat(args: &CmrbenchArgs, url: &str) -> Result<Chat> {
    let key = web::key(args.llm_key_env.as_deref(), "--llm-key-env")?;
    let timeout = std::time::Duration::from_secs(args.llm_timeout.into());
    let endpoint = Endpoint::new(url, key, timeout)?;
    let domains = match args.llm_domains {
        DomainArg::Hub => DomainList::Hub,
        DomainArg::File => DomainList::File,
    };
    let name = endpoint.url().to_owned();
    let chat = Chat::new(name, move |body| Ok(endpoint.ask(body)?));
    Ok(chat.model(args.llm_model.clone()).domains(domains))
}

/// Runs the missing cells, then asks the bundled router; the exit code when it was stopped.
fn go(plan: &BenchPlan, out: &Path) -> Result<Option<ExitCode>> {
    let stop = signals::stop_gently(learn::STOPPING)?;
    let mut bar: Option<Progress> = None;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown"
    )]
    let mut watch = |status: &GridStatus| {
        let bar = bar.get_or_insert_with(|| Progress::new("cmrbench", status.total as u64));
        bar.note(status.what.clone());
        bar.set(status.done as u64);
        match stop.asked() {
            true => Control::Stop,
            false => Control::Continue,
        }
    };
    let whole = run_plan(plan, out, &mut watch)? && ask_bundled(plan, out, &mut watch)?;
    Ok((!whole).then(|| stop.exit_code()))
}

/// Routes the eval rows with the bundled router, where the benchmark is CMRBench; false: stopped. A
/// development split is left out: the router has learned those rows.
fn ask_bundled(plan: &BenchPlan, out: &Path, watch: GridWatch<'_>) -> Result<bool> {
    if plan.data.own || plan.eval == EvalRows::Development {
        return Ok(true);
    }
    let options = Options {
        encoder: bundled::encoder(),
        precision: Precision::F32,
        ..plan.options.clone()
    };
    match bundled::store(None).and_then(|store| Router::open(store, options)) {
        Ok(router) => measure_bundled(plan, &router, out, watch),
        Err(error) => {
            output::remark(format!("the bundled router is not in the report: {error}"));
            Ok(true)
        }
    }
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
        for of in [AccuracyMatrix::acc, AccuracyMatrix::forgetting] {
            for metric in Metric::ALL {
                let value = method.over_seeds(metric, of);
                cells.push(value.map_or("-".to_owned(), |(mean, _)| format!("{mean:.1}")));
            }
        }
        table.row(cells);
    }
    table.print()
}
