//! `hubrouter-gateway CONFIG.toml` serves until SIGTERM or Ctrl-C; `--check` only reads and opens.

use std::path::Path;
use std::process::ExitCode;

use hubrouter_gateway::{Config, Failure, Gateway, server};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

const USAGE: &str = "usage: hubrouter-gateway [--check] CONFIG.toml";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            #[expect(clippy::print_stderr, reason = "why the program ends")]
            {
                eprintln!("{failure}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let check = arguments.first().is_some_and(|first| first == "--check");
    if check {
        arguments.remove(0);
    }
    let [file] = arguments.as_slice() else {
        return Err(Failure(USAGE.to_owned()));
    };
    if file.starts_with('-') {
        return Err(Failure(USAGE.to_owned()));
    }
    let config = Config::read(Path::new(file))?;
    let level: Result<LevelFilter, _> = config.log_level.parse();
    let level = level.map_err(|error| Failure(format!("log_level: {error}")))?;
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr);
    let lines = lines.with_span_events(FmtSpan::CLOSE);
    // Another layer belongs here to send spans to a collector: see README.md.
    match config.log_text {
        true => lines.init(),
        false => lines.json().flatten_event(true).init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure(format!("the runtime: {error}")))?;
    runtime.block_on(async {
        let gateway = Gateway::open(config).await?;
        if check {
            return Ok(());
        }
        server::run(gateway, server::signal()).await
    })
}
