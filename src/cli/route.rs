//! `hubrouter route`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::answers::{Answers, Form};
use super::progress::Progress;
use super::sink::Sink;
use super::source::{Format, Source, Wanted, file_of};
use super::{DeviceArgs, RouterArgs, output};
use crate::Request;
use crate::error::{Result, bail};

/// Rank the hub's models for prompts.
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter route \"Translate this letter into Spanish.\"
  hubrouter route --json --top 3 \"Who is speaking in this recording?\" | jq .ranked
  cat prompts.txt | hubrouter route --json
  hubrouter route --input prompts.jsonl --output routes.jsonl

Input: .txt holds a prompt a line; .jsonl holds objects with \"prompt\" (or \"instruction\") and, if \
wanted, \"prompt_id\" and \"top\". Without prompts and --input, lines are read from stdin and each is \
answered at once. A line of more than 4 MiB is passed over, with an error of its own.

Output: a regular file appears whole when all answers are there, and keeps its mode; links are \
followed; a FIFO, a device or /dev/fd/N is written line by line; - is stdout.")]
pub(super) struct RouteArgs {
    /// Prompts
    prompts: Vec<String>,
    /// File of prompts; - for stdin
    #[arg(long, value_name = "FILE", conflicts_with = "prompts")]
    input: Option<PathBuf>,
    /// Form of the input [default: by the file's ending; txt on stdin]
    #[arg(long, value_enum, value_name = "FORM")]
    format: Option<Format>,
    /// File for the answers, JSON Lines; - for stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Ranked models of an answer
    #[arg(long, default_value_t = 10, value_name = "K")]
    top: usize,
    /// Domains of an answer; 0 for all
    #[arg(long, default_value_t = 5, value_name = "N")]
    domains: usize,
    /// Prompts computed together [default: 32 from a file, 1 from stdin]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Say what each score is the sum of
    #[arg(long, conflicts_with_all = ["json", "output"])]
    explain: bool,
    /// Repeat the prompt in JSON answers
    #[arg(long)]
    echo: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    router: RouterArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl RouteArgs {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            prompts: &self.prompts,
            input: self.input.as_deref(),
            format: self.format,
            top: self.top,
            batch: self.batch,
        }
    }

    fn sink(&self) -> Result<Sink> {
        let Some(path) = &self.output else {
            return Ok(Sink::Stdout);
        };
        let input = match self.prompts.as_slice() {
            [] => file_of(self.input.as_deref()),
            _ => None,
        };
        Sink::open(path, input.as_deref())
    }

    fn form(&self) -> Form {
        Form {
            json: self.json || self.output.is_some(),
            echo: self.echo,
            explain: self.explain,
            domains: match self.domains {
                0 => usize::MAX,
                domains => domains,
            },
        }
    }
}

pub(super) fn run(args: &RouteArgs) -> Result<ExitCode> {
    let mut source = Source::open(&args.wanted())?;
    let router = args.router.open(args.device.options())?;
    let mut answers = Answers::new(args.sink()?, args.form());
    let mut progress = source.total().map(|total| Progress::new("routing", total));
    let mut failed = 0usize;
    let mut count = 0usize;
    loop {
        let requests = source.next()?;
        if requests.is_empty() {
            break;
        }
        let good: Vec<Request> = requests
            .iter()
            .filter_map(|r| r.as_ref().ok().cloned())
            .collect();
        let mut decisions = router.route_batch(&good).into_iter();
        for request in requests {
            count += 1;
            let (id, prompt, answer) = match request {
                Ok(request) => match decisions.next() {
                    Some(answer) => (request.prompt_id, Some(request.prompt), answer),
                    None => bail!(Device, "an answer is missing"),
                },
                Err((id, error)) => (id, None, Err(error)),
            };
            failed += usize::from(answer.is_err());
            answers.write(&id, prompt.as_deref(), answer)?;
        }
        if let Some(progress) = &mut progress {
            progress.set(source.done());
        }
    }
    drop(progress);
    answers.finish()?;
    if count == 0 {
        output::remark(format!("hubrouter: no prompts in {}", source.place()));
    }
    if failed > 0 && count > 1 {
        output::remark(format!(
            "hubrouter: {failed} of {count} prompts have no answer"
        ));
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
