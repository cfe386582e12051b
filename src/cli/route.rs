//! `hubrouter route`

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::progress::Progress;
use super::{DeviceArgs, StoreArgs, output};
use crate::error::{Error, ErrorKind, Result, bail, error};
use crate::files::Replacement;
use crate::{Decision, Request, Router};

/// Prompts that are computed together when they come from a file.
const BATCH: usize = 32;

/// Longest line of an input.
const LONGEST_LINE: usize = 64 << 20;

/// Rank the hub's models for prompts.
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter route \"Translate this letter into Spanish.\"
  hubrouter route --json --top 3 \"Who is speaking in this recording?\" | jq .ranked
  cat prompts.txt | hubrouter route --json
  hubrouter route --input prompts.jsonl --output routes.jsonl

Input: .txt holds a prompt a line; .jsonl holds objects with \"prompt\" (or \"instruction\") and, if
wanted, \"prompt_id\" and \"top\". Without prompts and --input, lines are read from stdin and each is
answered at once.")]
pub(super) struct RouteArgs {
    /// Prompts
    prompts: Vec<String>,
    /// File of prompts; - for stdin
    #[arg(long, value_name = "FILE", conflicts_with = "prompts")]
    input: Option<PathBuf>,
    /// Form of the input [default: by the file's ending; txt on stdin]
    #[arg(long, value_enum, value_name = "FORM")]
    format: Option<Format>,
    /// File for the answers, JSON Lines; it appears when all are there
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
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Txt,
    Jsonl,
}

/// A line of a JSON Lines input.
#[derive(Deserialize)]
struct Line {
    #[serde(alias = "instruction", alias = "text")]
    prompt: String,
    #[serde(default, alias = "id")]
    prompt_id: Option<Value>,
    #[serde(default)]
    top: Option<usize>,
}

/// What is written for a prompt that has no answer.
#[derive(Serialize)]
struct Failure<'f> {
    schema_version: u32,
    prompt_id: &'f str,
    error: Reason,
}

#[derive(Serialize)]
struct Reason {
    kind: ErrorKind,
    message: String,
}

pub(super) fn run(args: &RouteArgs) -> Result<ExitCode> {
    let mut source = Source::open(args)?;
    if args.batch == Some(0) {
        bail!(InvalidRequest, "--batch: expected at least 1, found 0");
    }
    let router = Router::open(args.store.path()?, args.device.options())?;
    let mut sink = Sink::open(args)?;
    let mut progress = source.total().map(|total| Progress::new("routing", total));
    let mut failed = 0usize;
    let mut count = 0usize;
    loop {
        let requests = source.next(args)?;
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
                    Some(answer) => (request.prompt_id, request.prompt, answer),
                    None => bail!(Device, "an answer is missing"),
                },
                Err((id, error)) => (id, String::new(), Err(error)),
            };
            failed += usize::from(answer.is_err());
            sink.write(&id, &prompt, answer)?;
        }
        if let Some(progress) = &mut progress {
            progress.set(source.done());
        }
    }
    drop(progress);
    sink.finish()?;
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

/// A request, or the id of a line that is none and why.
type Parsed = std::result::Result<Request, (String, Error)>;

enum Source<'s> {
    Arguments(std::slice::Iter<'s, String>, usize),
    Lines {
        reader: Box<dyn BufRead>,
        place: String,
        format: Format,
        batch: usize,
        total: Option<u64>,
        bytes: u64,
        line: usize,
    },
}

impl<'s> Source<'s> {
    fn open(args: &'s RouteArgs) -> Result<Self> {
        if !args.prompts.is_empty() {
            return Ok(Self::Arguments(args.prompts.iter(), 0));
        }
        let lines = |reader: Box<dyn BufRead>, place: String, format, batch, total| Self::Lines {
            reader,
            place,
            format,
            batch: args.batch.unwrap_or(batch),
            total,
            bytes: 0,
            line: 0,
        };
        match args.input.as_deref() {
            Some(path) if path != Path::new("-") => {
                let file = File::open(path).map_err(|e| Error::io(path, "open", &e))?;
                let size = file
                    .metadata()
                    .map_err(|e| Error::io(path, "read", &e))?
                    .len();
                let by_name = match path.extension().and_then(|ending| ending.to_str()) {
                    Some("jsonl" | "json" | "ndjson") => Some(Format::Jsonl),
                    Some("txt") => Some(Format::Txt),
                    _ => None,
                };
                let Some(format) = args.format.or(by_name) else {
                    bail!(
                        InvalidRequest,
                        "{}: expected a name ending in .txt or .jsonl; say --format txt or --format jsonl",
                        path.display()
                    );
                };
                Ok(lines(
                    Box::new(BufReader::new(file)),
                    path.display().to_string(),
                    format,
                    BATCH,
                    Some(size),
                ))
            }
            _ => {
                if std::io::stdin().is_terminal() && args.input.is_none() {
                    bail!(
                        InvalidRequest,
                        "no prompt: give one, name a file with --input, or pipe lines to stdin (see hubrouter route --help)"
                    );
                }
                let format = args.format.unwrap_or(Format::Txt);
                Ok(lines(
                    Box::new(BufReader::new(std::io::stdin())),
                    "stdin".into(),
                    format,
                    1,
                    None,
                ))
            }
        }
    }

    /// The next prompts to compute together; none at the end.
    fn next(&mut self, args: &RouteArgs) -> Result<Vec<Parsed>> {
        let request = |prompt: &str, id: String| Request::new(prompt).top(args.top).prompt_id(id);
        match self {
            Self::Arguments(prompts, done) => {
                let batch: Vec<&String> =
                    prompts.by_ref().take(args.batch.unwrap_or(BATCH)).collect();
                Ok(batch
                    .into_iter()
                    .map(|prompt| {
                        *done += 1;
                        Ok(request(prompt, done.to_string()))
                    })
                    .collect())
            }
            Self::Lines {
                reader,
                place,
                format,
                batch,
                bytes,
                line,
                ..
            } => {
                let mut requests = Vec::new();
                let mut text = Vec::new();
                while requests.len() < *batch {
                    text.clear();
                    let read = reader
                        .by_ref()
                        .take(LONGEST_LINE as u64)
                        .read_until(b'\n', &mut text)
                        .map_err(|e| error!(Io, "{place}: cannot read: {e}"))?;
                    if read == 0 {
                        break;
                    }
                    *bytes += read as u64;
                    *line += 1;
                    if read == LONGEST_LINE {
                        bail!(
                            Format,
                            "{place}:{line}: a line of more than {LONGEST_LINE} bytes"
                        );
                    }
                    if text.trim_ascii().is_empty() {
                        continue;
                    }
                    let id = line.to_string();
                    let parsed = match format {
                        Format::Txt => String::from_utf8(std::mem::take(&mut text))
                            .map(|prompt| {
                                request(prompt.trim_end_matches(['\n', '\r']), id.clone())
                            })
                            .map_err(|e| error!(Format, "{place}:{line}: not UTF-8: {e}")),
                        Format::Jsonl => serde_json::from_slice(&text)
                            .map(|line: Line| line.request(args.top, &id))
                            .map_err(|e| error!(Format, "{place}:{line}: {e}")),
                    };
                    requests.push(parsed.map_err(|error| (id, error)));
                }
                Ok(requests)
            }
        }
    }

    /// Bytes of the input, where they are known.
    fn total(&self) -> Option<u64> {
        match self {
            Self::Arguments(..) => None,
            Self::Lines { total, .. } => *total,
        }
    }

    fn done(&self) -> u64 {
        match self {
            Self::Arguments(_, done) => *done as u64,
            Self::Lines { bytes, .. } => *bytes,
        }
    }
}

impl Line {
    fn request(self, top: usize, number: &str) -> Request {
        let id = match self.prompt_id {
            None | Some(Value::Null) => number.to_owned(),
            Some(Value::String(id)) => id,
            Some(other) => other.to_string(),
        };
        Request::new(self.prompt)
            .top(self.top.unwrap_or(top))
            .prompt_id(id)
    }
}

/// Where answers go.
struct Sink {
    file: Option<Replacement>,
    json: bool,
    domains: usize,
    first: bool,
}

impl Sink {
    fn open(args: &RouteArgs) -> Result<Self> {
        let file = args.output.as_deref().map(Replacement::new).transpose()?;
        let domains = if args.domains == 0 {
            usize::MAX
        } else {
            args.domains
        };
        Ok(Self {
            json: args.json || file.is_some(),
            file,
            domains,
            first: true,
        })
    }

    fn write(&mut self, id: &str, prompt: &str, answer: Result<Decision>) -> Result<()> {
        match answer {
            Ok(mut decision) => {
                decision.domains.truncate(self.domains);
                if self.json {
                    self.json(&decision)
                } else {
                    self.table(prompt, &decision)
                }
            }
            Err(error) if self.json => {
                let reason = Reason {
                    kind: error.kind(),
                    message: error.to_string(),
                };
                self.json(&Failure {
                    schema_version: 1,
                    prompt_id: id,
                    error: reason,
                })
            }
            Err(error) => {
                output::complain(&error.at(format!("prompt {id}")));
                Ok(())
            }
        }
    }

    fn json(&mut self, value: &impl Serialize) -> Result<()> {
        match &mut self.file {
            None => output::json(value),
            Some(file) => {
                let mut text = serde_json::to_vec(value)
                    .map_err(|e| error!(Format, "cannot write JSON: {e}"))?;
                text.push(b'\n');
                file.write(&text)
            }
        }
    }

    fn table(&mut self, prompt: &str, decision: &Decision) -> Result<()> {
        if !std::mem::take(&mut self.first) {
            output::line("")?;
        }
        let shown: String = prompt
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(100)
            .collect();
        output::line(format!(
            "{shown}{}",
            if shown.len() < prompt.len() {
                " ..."
            } else {
                ""
            }
        ))?;
        let mut headings = vec![">#", "model", ">score", ">probability", "domain", "family"];
        if decision.ranked.iter().any(|ranked| ranked.parts.is_some()) {
            headings.push("learned + card + exemplar + domain + balance + prior");
        }
        let mut table = output::Table::new(&headings);
        for (rank, ranked) in decision.ranked.iter().enumerate() {
            let mut row = vec![
                (rank + 1).to_string(),
                ranked.model.to_string(),
                format!("{:.3}", ranked.score),
                format!("{:.2} %", ranked.probability * 100.0),
                ranked.domain.to_string(),
                ranked.family.as_deref().unwrap_or("-").to_owned(),
            ];
            row.extend(ranked.parts.map(|p| {
                let parts = [p.learned, p.card, p.exemplar, p.domain, p.balance, p.prior];
                parts.map(|part| format!("{part:.2}")).join(" + ")
            }));
            table.row(row);
        }
        table.print()?;
        let domains: Vec<String> = decision
            .domains
            .iter()
            .map(|domain| format!("{} {:.1} %", domain.domain, domain.probability * 100.0))
            .collect();
        output::line(format!("domains: {}", domains.join(", ")))?;
        let timing = decision.timing;
        output::line(format!(
            "{} tokens{}; margin {}; {:.1} ms (tokenize {:.2}, encode {:.2}, score {:.2}) on {}; {} with {}",
            decision.tokens,
            if decision.truncated {
                ", cut at the encoder's limit"
            } else {
                ""
            },
            decision
                .margin
                .map_or("-".to_owned(), |margin| format!("{margin:.3}")),
            timing.total / 1e3,
            timing.tokenize / 1e3,
            timing.encode / 1e3,
            timing.score / 1e3,
            decision.device,
            decision.revisions.generation,
            decision.revisions.encoder,
        ))?;
        decision
            .degraded
            .as_ref()
            .map_or(Ok(()), |why| output::line(format!("degraded: {why}")))
    }

    fn finish(self) -> Result<()> {
        self.file.map_or(Ok(()), Replacement::commit)
    }
}
