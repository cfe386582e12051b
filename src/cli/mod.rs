//! The command: arguments, exit codes, tables and JSON on stdout, progress and errors on stderr.
//!
//! Exit codes: 0 all went well; 1 something failed, said on stderr; 2 the command line is wrong.

mod bundled;
mod chat;
mod cmrbench;
mod doctor;
mod encoder;
mod eval;
mod generation;
mod hub;
mod learn;
mod output;
mod progress;
mod replay;
mod route;
mod signals;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::error::{Error, ErrorKind, Result};
use crate::{Options, Store};

/// Picks the right model of a hub for a prompt, before anything is executed.
#[derive(Parser)]
#[command(
    name = "hubrouter",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  hubrouter route \"Translate this letter into Spanish.\"\n  hubrouter hub list --domain translation\n  hubrouter doctor\n\nExit codes: 0 all went well; 1 something failed, said on stderr; 2 the command line is wrong."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more on stderr; twice for debugging
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
    /// List the prompts that a store keeps for learning, delete one
    #[command(subcommand)]
    Replay(replay::ReplayCommand),
    /// Look at a hub and change it; every change makes a new generation
    #[command(subcommand)]
    Hub(hub::HubCommand),
    /// Look at a store's generations, go back, clean up
    #[command(subcommand)]
    Generation(generation::GenerationCommand),
    /// Make encoder bundles from Hugging Face folders
    #[command(subcommand)]
    Encoder(encoder::EncoderCommand),
    /// Show devices and test every op on each of them
    Doctor(doctor::DoctorArgs),
}

/// Which device, how many threads.
#[derive(Args, Clone)]
struct DeviceArgs {
    /// auto, cpu, gpu, or part of an adapter's name; auto takes a hardware GPU or else the CPU
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: String,
    /// Threads of the CPU's pool [default: all, at most 4]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Step down to the CPU when the device fails, and say so
    #[arg(long)]
    fallback: bool,
    /// Folder of the encoder bundle [default: beside the store]
    #[arg(long, value_name = "FOLDER")]
    encoder: Option<PathBuf>,
}

impl DeviceArgs {
    fn options(&self) -> Options {
        let mut options = Options::default()
            .device(self.device.as_str())
            .fallback(self.fallback);
        options.threads = self.threads;
        options.encoder.clone_from(&self.encoder);
        options
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
        Store::open(self.path()?)
    }
}

/// A store to change: never the bundled one by default.
#[derive(Args, Clone)]
struct StoreToChange {
    /// Store to change
    #[arg(long, value_name = "STORE")]
    router: PathBuf,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Error)
        .filter_module("hubrouter", level)
        .format_target(false)
        .init();
    let outcome = match cli.command {
        Command::Route(args) => route::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Cmrbench(args) => cmrbench::run(&args),
        Command::Learn(args) => learn::run(&args),
        Command::Replay(command) => replay::run(&command),
        Command::Hub(command) => hub::run(&command),
        Command::Generation(command) => generation::run(&command),
        Command::Encoder(command) => encoder::run(&command),
        Command::Doctor(args) => doctor::run(&args),
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
