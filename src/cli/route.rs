//! `hubrouter route`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::answers::{AnswerForm, AnswerWriter, RouteAnswer};
use super::policy::PolicyArgs;
use super::progress::Progress;
use super::serving::{ServingArgs, remark_on_cache};
use super::shadow::ShadowArgs;
use super::sink::Sink;
use super::source::{AskedLine, Format, Source, Wanted, file_of};
use super::{DeviceArgs, RouterArgs, output};
use crate::error::{Result, bail};
use crate::{PolicyHandle, Request, Router};

/// Rank the hub's models for prompts
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter route \"Translate this letter into Spanish.\"
  hubrouter route --explain --top 3 \"Who is speaking in this recording?\"
  hubrouter route --json \"Who is speaking in this recording?\" | jq .ranked[0].model
  cat prompts.txt | hubrouter route --json
  hubrouter route --input prompts.jsonl --output routes.jsonl
  hubrouter route --chat request.json --explain
  hubrouter route --input requests.jsonl --format chat --json
  hubrouter route --where \"context_length >= 32768 and price <= 2\" \"Summarise this report.\"
  hubrouter route --candidates deployments.json --chat request.json --needs
  hubrouter route --abstain-risk 10 --max-ood 0.95 \"Who is speaking in this recording?\"
  hubrouter route --input prompts.jsonl --cache 64 --output routes.jsonl
  hubrouter route --policy policy.json --deadline 50ms \"Translate this letter.\"
  hubrouter route --shadow my-log --input requests.jsonl

Input: a .txt file has one prompt per line. A .jsonl file has one object per line with \"prompt\" \
(or \"instruction\"); \"prompt_id\", \"top\", \"session\" and \"tenant\" are optional. Without prompts and --input the \
command reads stdin and answers each line at once. A line over 4 MiB gets an error of its own; \
the others are answered.

Chat requests: the JSON of OpenAI chat completions, OpenAI responses or Anthropic messages. The \
newest ask of a human is routed, without system reminders and results of tools; --explain shows \
what was taken and what the request demands of a model.

Policies: --where, --candidates, --needs and --policy restrict which models may answer. An \
attribute that a model does not state fails a condition. --json has the counts of what was excluded.

Shadow: --shadow records each decision in a log and shows none. In JSON a line may say what was \
really used and how it went: \"used\", \"expected_model\", \"success\", \"rating\", \"cost\", \
\"latency_ms\", \"input_tokens\", \"output_tokens\", \"error\", \"time\". `hubrouter report` reads the \
log.

Abstaining: --abstain-risk, --min-confidence and --max-ood mark answers that are not to be acted \
on, with the reason; the ranking is shown all the same. The first fallback of a policy answers then.

Output: a regular file appears when all answers are complete; its mode is kept and links are \
followed. A FIFO, a device or /dev/fd/N is written line by line. - is stdout.

Exit codes: 0 every prompt has an answer; 1 at least one has none, or something failed; 2 the \
command line is wrong.")]
pub(super) struct RouteArgs {
    /// Prompts to route
    prompts: Vec<String>,
    /// File with one chat request as JSON; - for stdin; may be repeated
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompts", "input", "format"])]
    chat: Vec<PathBuf>,
    /// File of prompts; - for stdin
    #[arg(long, value_name = "FILE", conflicts_with = "prompts")]
    input: Option<PathBuf>,
    /// Format of the input [default: by the file's extension; txt on stdin]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// File for the answers as JSON Lines; - for stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Ranked models per answer
    #[arg(long, default_value_t = 10, value_name = "K")]
    top: usize,
    /// Domains per answer, 0 for all [default: 5; without --json as many of them as fit one line]
    #[arg(long, value_name = "N")]
    domains: Option<usize>,
    /// Prompts per batch [default: 32 from a file, 1 from stdin]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Show the parts of each score, the runner-up, what is near, and what brought the best model
    #[arg(long)]
    explain: bool,
    /// Include the prompt in JSON answers
    #[arg(long)]
    echo: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    serving: ServingArgs,
    #[command(flatten)]
    shadow: ShadowArgs,
    #[command(flatten)]
    router: RouterArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl RouteArgs {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            prompts: &self.prompts,
            chats: &self.chat,
            input: self.input.as_deref(),
            format: self.format,
            top: self.top,
            batch: self.batch,
            feedback: self.shadow.wanted(),
        }
    }

    fn sink(&self) -> Result<Sink> {
        let Some(path) = &self.output else {
            return Ok(Sink::Stdout);
        };
        let inputs: Vec<PathBuf> = match (self.prompts.as_slice(), self.chat.as_slice()) {
            ([], []) => file_of(self.input.as_deref()).into_iter().collect(),
            (_, chats) => chats
                .iter()
                .filter_map(|path| file_of(Some(path)))
                .collect(),
        };
        Sink::open(path, &inputs)
    }

    fn form(&self) -> AnswerForm {
        AnswerForm {
            json: self.json || self.output.is_some(),
            echo: self.echo,
            domains: self.domains.map(|most| match most {
                0 => usize::MAX,
                _ => most,
            }),
        }
    }
}

fn answered(
    router: &Router,
    policy: Option<&PolicyHandle>,
    requests: &[Request],
    explain: bool,
) -> Vec<Result<RouteAnswer>> {
    let explained = |request: &Request| match policy {
        Some(policy) => router.explain_within(request, policy),
        None => router.explain(request),
    };
    if explain {
        let all = requests.iter().map(explained);
        return all
            .map(|answer| answer.map(RouteAnswer::explained))
            .collect();
    }
    let decisions = match policy {
        Some(policy) => router.route_batch_within(requests, policy),
        None => router.route_batch(requests),
    };
    let decisions = decisions.into_iter();
    decisions
        .map(|answer| answer.map(RouteAnswer::plain))
        .collect()
}

pub(super) fn run(args: &RouteArgs) -> Result<ExitCode> {
    let mut source = Source::open(&args.wanted())?;
    let mut policy = args.policy.read()?;
    let options = args.device.options()?;
    let router = args
        .router
        .open(args.serving.options(options, policy.as_mut()))?;
    let policy = args.policy.compile(policy.as_ref(), &router)?;
    let mut shadow = args.shadow.open(&router)?;
    let silent = shadow.is_some() && !(args.json || args.explain || args.output.is_some());
    let mut answers = AnswerWriter::new(args.sink()?, args.form());
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
            .filter_map(|asked| Some(args.serving.applied(asked.as_ref().ok()?.request.clone())))
            .collect();
        let answered = answered(&router, policy.as_ref(), &good, args.explain);
        let mut decisions = answered.into_iter();
        for request in requests {
            count += 1;
            let (id, prompt, answer) = match request {
                Ok(AskedLine { request, feedback }) => match decisions.next() {
                    Some(answer) => {
                        if let Some(shadow) = &mut shadow {
                            let answer = answer.as_ref().map(RouteAnswer::decision);
                            shadow.record(&request, feedback, answer)?;
                        }
                        (request.prompt_id, Some(request.prompt), answer)
                    }
                    None => bail!(Device, "an answer is missing"),
                },
                Err((id, error)) => (id, None, Err(error)),
            };
            failed += usize::from(answer.is_err());
            if !silent || answer.is_err() {
                answers.write(&id, prompt.as_deref(), answer)?;
            }
        }
        if let Some(progress) = &mut progress {
            progress.set(source.done());
        }
    }
    drop(progress);
    answers.finish()?;
    remark_on_cache(&router);
    match shadow {
        Some(shadow) if silent => output::line(shadow.summary())?,
        Some(shadow) => output::remark(format!("hubrouter: {}", shadow.summary())),
        None => {}
    }
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
