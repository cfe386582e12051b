//! The command: arguments, exit codes, tables and JSON on stdout, progress and errors on stderr.
//!
//! Exit codes: 0 success; 1 a failure, explained on stderr; 2 an invalid request: a wrong option,
//! or a name that the hub or the store does not have; 3 refused by a gate; 4 a verification found a
//! difference; 128 + n ended by signal n.

mod answers;
mod bundled;
mod chat;
mod cmrbench;
mod doctor;
mod encoder;
mod eval;
mod exchange;
mod found;
mod generation;
mod hub;
mod installed;
mod labelled;
mod learn;
mod observed;
mod output;
mod policy;
mod prices;
mod progress;
mod reliability;
mod replay;
mod replay_log;
mod report;
mod route;
mod schema;
mod serving;
mod shadow;
mod shell;
mod signals;
mod sink;
mod source;
mod table;
mod terminal;
mod usage;
mod verify;
mod web;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::error::{Error, ErrorKind, Result};
use crate::{CpuLevel, DeviceVariant, GenerationId, Hub, Options, Precision, Router, Store};

/// Picks the right model of a hub for a prompt, before any model runs
#[derive(Parser)]
#[command(
    name = "hubrouter",
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  hubrouter route \"Translate this letter into Spanish.\"
  hubrouter hub list --domain translation
  hubrouter doctor

Exit codes: 0 success; 1 a failure, explained on stderr; 2 an invalid request (a wrong option, or \
a name that the hub or the store does not have); 3 refused by a gate (learn); 4 a difference was \
found (verify); 130, 143, 129 ended by Ctrl-C, SIGTERM, SIGHUP."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log more to stderr; twice for debug messages
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    /// Rank the hub's models for prompts
    Route(route::RouteArgs),
    /// Measure accuracy on labelled prompts
    Eval(eval::EvalArgs),
    /// Run CMRBench: every method on one encoder and one budget, with a report
    Cmrbench(cmrbench::CmrbenchArgs),
    /// Learn new models and labelled prompts into a new generation
    Learn(learn::LearnArgs),
    /// Report on logs of feedback: agreement, cost, calibration, drift, what could not be routed
    Report(report::ReportArgs),
    /// Route logged prompts with two generations and compare the answers; no model is called
    ReplayLog(replay_log::ReplayLogArgs),
    /// List the prompts that a store keeps for learning; delete one
    #[command(
        subcommand,
        after_help = "Example:\n  hubrouter replay list --router my-store"
    )]
    Replay(replay::ReplayCommand),
    /// Show and change a hub; every change publishes a new generation
    #[command(
        subcommand,
        after_help = "Examples:
  hubrouter hub list --domain translation --limit 5
  hubrouter hub build --models models.jsonl --out my-store"
    )]
    Hub(hub::HubCommand),
    /// Show a store's generations; roll back; remove old ones; exchange them with PyTorch
    #[command(
        subcommand,
        after_help = "Examples:
  hubrouter generation list --router my-store
  hubrouter generation rollback --router my-store"
    )]
    Generation(generation::GenerationCommand),
    /// Check a policy: which models may answer, and what excludes the others
    #[command(
        subcommand,
        after_help = "Example:\n  hubrouter policy check policy.toml --router my-store"
    )]
    Policy(policy::PolicyCommand),
    /// Make encoder bundles from Hugging Face folders
    #[command(
        subcommand,
        after_help = "Example:
  hubrouter encoder import --from ~/all-MiniLM-L6-v2 --to my-encoder"
    )]
    Encoder(encoder::EncoderCommand),
    /// Show devices and test every op on each
    Doctor(doctor::DoctorArgs),
    /// Compare this machine with a recorded run or a store, and say where they part
    Verify(verify::VerifyArgs),
    /// Print the JSON Schema of requests, decisions, policies and log lines
    Schema(schema::SchemaArgs),
    /// Print a completion script for a shell
    Completions(shell::CompletionsArgs),
    /// Print a manual page
    Man(shell::ManArgs),
}

/// Device, threads and encoder.
#[derive(Args, Clone)]
struct DeviceArgs {
    /// auto, cpu, gpu, or part of an adapter's name; auto takes a hardware GPU, else the CPU
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: String,
    /// Kernels of a GPU's products, for tests and benches: auto, skinny, tiled, matrix, fast or any
    #[arg(long, default_value_t, value_name = "VARIANT")]
    device_variant: DeviceVariant,
    /// CPU threads [default: all, at most 4]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Continue on the CPU when the device fails, with a warning
    #[arg(long)]
    fallback: bool,
    /// Folder of the encoder bundle [default: inside or beside the store, or the bundled one]
    #[arg(long, value_name = "FOLDER")]
    encoder: Option<PathBuf>,
}

impl DeviceArgs {
    /// Errors: the environment names kernels that nobody knows.
    fn options(&self) -> Result<Options> {
        let mut options = Options::default()
            .device(self.device.as_str())
            .fallback(self.fallback)
            .device_variant(self.device_variant)
            .cpu(cpu_level()?);
        options.threads = self.threads;
        options.encoder.clone_from(&self.encoder);
        options.look_in.extend(bundled::encoder());
        options.cache_folder = bundled::cache_folder();
        Ok(options)
    }
}

/// The environment variable with the instructions of the CPU's kernels.
const CPU: &str = "HUBROUTER_CPU";

/// The instructions of the CPU's kernels that the environment names.
///
/// Errors: nobody knows them.
#[expect(clippy::disallowed_methods, reason = "reads the environment")]
fn cpu_level() -> Result<CpuLevel> {
    match std::env::var_os(CPU) {
        Some(level) if !level.is_empty() => level
            .to_string_lossy()
            .parse()
            .map_err(|e: Error| e.at(CPU)),
        _ => Ok(CpuLevel::Auto),
    }
}

/// A store to read.
#[derive(Args, Clone)]
struct StoreArgs {
    /// Store to read [default: the bundled one, or $HUBROUTER_HOME/weights/cmrbench]
    #[arg(long, value_name = "STORE")]
    router: Option<PathBuf>,
}

impl StoreArgs {
    fn path(&self) -> Result<PathBuf> {
        bundled::store(self.router.as_deref())
    }

    fn open(&self) -> Result<Store> {
        open(&self.path()?)
    }
}

/// Opens the store in the folder `path`; it also looks for the bundled encoder.
fn open(path: &Path) -> Result<Store> {
    let store = Store::open(path)?;
    Ok(bundled::encoder().into_iter().fold(store, Store::look_in))
}

/// A store and the generation to route with.
#[derive(Args, Clone)]
struct RouterArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Generation id, or its first characters [default: the current one]
    #[arg(long, value_name = "ID")]
    generation: Option<String>,
    /// Numbers of the encoder's products: f32, bf16, int8, or auto: int8 where the CPU has a
    /// kernel for it and the generation's record says that it stays near f32, else bf16 on a CPU
    /// with AMX
    #[arg(long, default_value_t, value_name = "PRECISION")]
    precision: Precision,
}

impl RouterArgs {
    /// The hub of the generation.
    fn hub(&self) -> Result<Arc<Hub>> {
        let store = self.store.open()?;
        store.hub(&generation_of(&store, self.generation.as_deref())?)
    }

    fn open(&self, options: Options) -> Result<Router> {
        let options = options.precision(self.precision);
        let path = self.store.path()?;
        match &self.generation {
            None => Router::open(path, options),
            Some(beginning) => {
                let id = Store::open(&path)?.find(beginning)?;
                Router::open_generation(path, &id, options)
            }
        }
    }
}

/// The generation whose id starts with `beginning`, or the current one.
fn generation_of(store: &Store, beginning: Option<&str>) -> Result<GenerationId> {
    beginning.map_or_else(|| store.current(), |text| store.find(text))
}

/// A store to change. There is no default: the bundled store is never changed by accident.
#[derive(Args, Clone)]
struct StoreToChange {
    /// Store to change
    #[arg(long, value_name = "STORE")]
    router: PathBuf,
    /// Report what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl StoreToChange {
    fn path(&self) -> Result<PathBuf> {
        bundled::store(Some(&self.router))
    }

    fn open(&self) -> Result<Store> {
        open(&self.path()?)
    }
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    run(std::env::args_os().collect())
}

/// Runs the command with these arguments, the first of which is the program's name. Once in a
/// process: it takes over the log and the signals.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage::say(error, arguments.into_iter().skip(1)),
    };
    output::listen_to_log(cli.verbose);
    let outcome = match cli.command {
        Command::Route(args) => route::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Cmrbench(args) => cmrbench::run(&args),
        Command::Learn(args) => learn::run(&args),
        Command::Report(args) => report::run(&args),
        Command::ReplayLog(args) => replay_log::run(&args),
        Command::Replay(command) => replay::run(&command),
        Command::Hub(command) => hub::run(&command),
        Command::Generation(command) => generation::run(&command),
        Command::Policy(command) => policy::run(&command),
        Command::Encoder(command) => encoder::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            exit_code(&error)
        }
    }
}

fn exit_code(error: &Error) -> ExitCode {
    if error.kind() == ErrorKind::InvalidRequest {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}
