//! `hubrouter replay-log`

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::labelled::Share;
use super::observed::skipped_line;
use super::policy::PolicyArgs;
use super::prices::{PriceArgs, Prices};
use super::progress::Progress;
use super::report::read_all;
use super::{DeviceArgs, StoreArgs, output};
use crate::error::{Error, Result, bail};
use crate::feedback::{Feedback, FeedbackLine, SkippedLines};
use crate::hub::domain_key;
use crate::{GenerationId, Hub, PolicyHandle, Precision, Request, Router, Store};

/// Prompts per batch.
const BATCH: usize = 32;

/// Changes that are shown.
const EXAMPLES: usize = 10;

/// Domains that the table shows; JSON has all.
const DOMAINS: usize = 20;

/// Columns of a prompt in the table.
const SHOWN: usize = 60;

/// Route logged prompts with two generations and compare the answers; no model is called
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter replay-log my-log --router my-store --generation g0003 --generation g0004
  hubrouter replay-log my-log --generation g0001 --generation g0002 --json | jq .changed

What the new generation would have done: the prompts of a log that `hubrouter route --shadow --keep \
text` or FeedbackLog wrote are routed with both generations. Prompts that are kept as vectors are \
routed if neither generation has an adapter or a memory, and the vectors are of their encoder. \
Hashes cannot be routed. A prompt that stands in several lines is routed once and counts in each.

Agreement is with what was really used, and with the right model: the expected one, or a used one \
whose answer was good. Costs are tokens of the lines times the prices of each generation's hub.

Exit codes: 0 success; 1 a failure; 2 the command line is wrong.")]
pub(super) struct ReplayLogArgs {
    /// Logs to read: folders or files
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// Generation id, or its first characters; given twice: the former and the new one
    #[arg(long, required = true, value_name = "ID")]
    generation: Vec<String>,
    /// Numbers of the encoder's products: auto, f32, bf16 or int8
    #[arg(long, default_value_t, value_name = "PRECISION")]
    precision: Precision,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    prices: PriceArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
struct ReplayReport {
    schema_version: u32,
    logs: Vec<PathBuf>,
    lines: usize,
    skipped: SkippedLines,
    left_out: NotReplayed,
    /// Different prompts that were routed.
    prompts: usize,
    generations: [ReplayedGeneration; 2],
    /// Lines where both generations answer.
    compared: usize,
    changed: Changes,
    /// By the domain of the former generation's answer, the most changes first.
    domains: Vec<ChangedDomain>,
    /// Lines with tokens whose answers state a price in both generations.
    cost_lines: usize,
    examples: Vec<ChangedAnswer>,
}

/// Lines that were not replayed.
#[derive(Default, Serialize)]
struct NotReplayed {
    /// The log keeps neither text nor vector.
    without_prompt: usize,
    /// A vector by another encoder, or of a generation that needs the text.
    vectors: usize,
    /// One of the generations has no answer.
    no_answer: usize,
}

#[derive(Serialize)]
struct ReplayedGeneration {
    generation: GenerationId,
    models: usize,
    /// Answers that are what was really used.
    used: Share,
    /// Answers that are known to be right.
    right: Share,
    /// Answers of the right model's domain.
    right_domain: Share,
    cost: Option<f64>,
    /// Of the lines that this generation wrote, those whose answer is the logged one.
    as_logged: Share,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Changes {
    model: Share,
    domain: Share,
}

#[derive(Serialize)]
struct ChangedDomain {
    domain: String,
    lines: usize,
    #[serde(flatten)]
    changed: Changes,
}

#[derive(Clone, Serialize)]
struct ChangedAnswer {
    /// `better`, `worse` or `other`, by the right model where it is known.
    verdict: Verdict,
    lines: usize,
    prompt_id: String,
    prompt: Option<String>,
    former: OneAnswer,
    new: OneAnswer,
    right: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Worse,
    Better,
    Other,
}

#[derive(Clone, Serialize)]
struct OneAnswer {
    model: Arc<str>,
    domain: Arc<str>,
    /// `None` for a vector.
    probability: Option<f32>,
}

/// A prompt as a log keeps it.
enum LoggedPrompt {
    Text(String),
    /// With the encoder's revision.
    Vector(Vec<f32>, String),
}

/// What is needed of a line.
struct LineToReplay {
    prompt: usize,
    prompt_id: String,
    feedback: Feedback,
    used: Option<String>,
    right: Option<String>,
    logged: Option<(GenerationId, String)>,
}

/// The lines of the logs, and their different prompts.
#[derive(Default)]
struct LoggedPrompts {
    prompts: Vec<LoggedPrompt>,
    by_text: HashMap<String, usize>,
    lines: Vec<LineToReplay>,
    read: usize,
    without_prompt: usize,
}

/// Why a prompt has no answer.
enum Unanswered {
    Vector,
    Failed(Error),
}

type Answers = Vec<std::result::Result<OneAnswer, Unanswered>>;

impl LoggedPrompts {
    fn add(&mut self, mut line: FeedbackLine) {
        self.read += 1;
        let text = line.prompt.take().filter(|text| !text.trim().is_empty());
        let vector = line.prompt_vector.take().zip(line.vector_encoder.take());
        let next = self.prompts.len();
        let prompt = match (text, vector) {
            (Some(text), _) => match self.by_text.get(&text) {
                Some(place) => *place,
                None => {
                    self.by_text.insert(text.clone(), next);
                    self.prompts.push(LoggedPrompt::Text(text));
                    next
                }
            },
            (None, Some((vector, encoder))) => {
                self.prompts.push(LoggedPrompt::Vector(vector, encoder));
                next
            }
            (None, None) => {
                self.without_prompt += 1;
                return;
            }
        };
        let best = line.best().map(|best| best.model.clone());
        self.lines.push(LineToReplay {
            prompt,
            used: line.used_model().map(str::to_owned),
            right: line.right_model().map(str::to_owned),
            logged: line.generation.clone().zip(best),
            prompt_id: line.prompt_id,
            feedback: line.feedback,
        });
    }

    /// The answers of the generation that `router` serves, one for each prompt.
    fn answers(
        &self,
        router: &Router,
        policy: Option<&PolicyHandle>,
        progress: &mut Progress,
        done: &mut u64,
    ) -> Result<Answers> {
        let mut answers: Vec<Option<_>> = self.prompts.iter().map(|_| None).collect();
        let texts = self.prompts.iter().enumerate();
        let texts: Vec<(usize, &String)> = texts
            .filter_map(|(place, prompt)| match prompt {
                LoggedPrompt::Text(text) => Some((place, text)),
                LoggedPrompt::Vector(..) => None,
            })
            .collect();
        for batch in texts.chunks(BATCH) {
            let request = |(_, text): &(usize, &String)| Request::new(text.as_str()).top(1);
            let requests: Vec<Request> = batch.iter().map(request).collect();
            let decisions = match policy {
                Some(policy) => router.route_batch_within(&requests, policy),
                None => router.route_batch(&requests),
            };
            for ((place, _), decision) in batch.iter().zip(decisions) {
                answers[*place] = Some(match decision {
                    Ok(decision) => first(&decision).ok_or_else(no_models),
                    Err(error) => Err(Unanswered::Failed(error)),
                });
            }
            *done += batch.len() as u64;
            progress.set(*done);
        }
        let encoder = router.encoder();
        let vectors: Vec<(usize, &[f32])> = self
            .prompts
            .iter()
            .enumerate()
            .filter_map(|(place, prompt)| match prompt {
                LoggedPrompt::Vector(vector, revision)
                    if revision == encoder.revision()
                        && vector.len() == encoder.width()
                        && policy.is_none() =>
                {
                    Some((place, vector.as_slice()))
                }
                _ => None,
            })
            .collect();
        let pooled: Vec<&[f32]> = vectors.iter().map(|(_, vector)| *vector).collect();
        let best = router.best_by_vectors(&pooled)?.unwrap_or_default();
        let hub = router.hub();
        for ((place, _), id) in vectors.iter().zip(best) {
            answers[*place] = hub.get(id).map(|model| {
                Ok(OneAnswer {
                    model: Arc::clone(&model.name),
                    domain: Arc::clone(&model.domain),
                    probability: None,
                })
            });
        }
        let answers = answers.into_iter();
        Ok(answers
            .map(|answer| answer.unwrap_or(Err(Unanswered::Vector)))
            .collect())
    }
}

fn no_models() -> Unanswered {
    Unanswered::Failed(crate::error::error!(NoCandidate, "no model is ranked"))
}

fn first(decision: &crate::Decision) -> Option<OneAnswer> {
    let best = decision.ranked.first()?;
    Some(OneAnswer {
        model: Arc::clone(&best.model),
        domain: Arc::clone(&best.domain),
        probability: Some(best.probability),
    })
}

pub(super) fn run(args: &ReplayLogArgs) -> Result<ExitCode> {
    let [former, new] = args.generation.as_slice() else {
        let found = args.generation.len();
        bail!(InvalidRequest, "--generation: expected two, found {found}");
    };
    let prices = args.prices.prices()?;
    let path = args.store.path()?;
    let store = Store::open(&path)?;
    let ids = [store.find(former)?, store.find(new)?];
    let policy = args.policy.read()?;
    let mut options = args.device.options()?.precision(args.precision);
    if let Some(policy) = &policy {
        options = options.for_policy(policy);
    }
    let router = Router::open_generation(&path, &ids[0], options)?;
    let mut replay = LoggedPrompts::default();
    let skipped = read_all(&args.logs, |line| {
        replay.add(line);
        Ok(())
    })?;
    let policy = args.policy.compile(policy.as_ref(), &router)?;
    let policy = policy.as_ref();
    let texts = replay.by_text.len() as u64;
    let (mut progress, mut done) = (Progress::new("routing", 2 * texts), 0);
    let before = replay.answers(&router, policy, &mut progress, &mut done)?;
    let hubs = [router.hub(), {
        router.install(&ids[1])?;
        router.hub()
    }];
    let after = replay.answers(&router, policy, &mut progress, &mut done)?;
    drop(progress);
    let report = measure(
        args,
        &replay,
        skipped,
        ids,
        &hubs,
        [&before, &after],
        &prices,
    );
    match args.json {
        true => output::json(&report)?,
        false => print(&report)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether `name` is the model `answer` in `hub`.
fn is(hub: &Hub, name: &str, answer: &OneAnswer) -> bool {
    *name == *answer.model || {
        let id = hub.find(name);
        id.is_some() && id == hub.find(&answer.model)
    }
}

fn measure(
    args: &ReplayLogArgs,
    replay: &LoggedPrompts,
    skipped: SkippedLines,
    ids: [GenerationId; 2],
    hubs: &[Arc<Hub>; 2],
    answers: [&Answers; 2],
    prices: &Prices,
) -> ReplayReport {
    let mut which = hubs.iter();
    let generations = ids.map(|generation| ReplayedGeneration {
        generation,
        models: which.next().map_or(0, |hub| hub.active()),
        used: Share::default(),
        right: Share::default(),
        right_domain: Share::default(),
        cost: None,
        as_logged: Share::default(),
    });
    let mut report = ReplayReport {
        schema_version: 1,
        logs: args.logs.clone(),
        lines: replay.read,
        skipped,
        left_out: NotReplayed {
            without_prompt: replay.without_prompt,
            ..NotReplayed::default()
        },
        prompts: replay.prompts.len(),
        generations,
        compared: 0,
        changed: Changes::default(),
        domains: Vec::new(),
        cost_lines: 0,
        examples: Vec::new(),
    };
    let mut domains: BTreeMap<String, ChangedDomain> = BTreeMap::new();
    let mut examples: BTreeMap<(usize, Option<&str>), ChangedAnswer> = BTreeMap::new();
    for line in &replay.lines {
        let both = match [&answers[0][line.prompt], &answers[1][line.prompt]] {
            [Ok(former), Ok(new)] => [former, new],
            [Err(Unanswered::Vector), _] | [_, Err(Unanswered::Vector)] => {
                report.left_out.vectors += 1;
                continue;
            }
            [Err(Unanswered::Failed(error)), _] | [_, Err(Unanswered::Failed(error))] => {
                log::debug!("prompt {}: {error}", line.prompt_id);
                report.left_out.no_answer += 1;
                continue;
            }
        };
        report.compared += 1;
        let mut right = [None; 2];
        for (place, answer) in both.into_iter().enumerate() {
            let (hub, of) = (&hubs[place], &mut report.generations[place]);
            right[place] = line.right.as_deref().map(|name| is(hub, name, answer));
            of.right.add(right[place]);
            of.used
                .add(line.used.as_deref().map(|name| is(hub, name, answer)));
            let known = line.right.as_deref();
            let known = known.and_then(|name| hub.get(hub.find(name)?));
            let same = |domain: &str| domain_key(domain) == domain_key(&answer.domain);
            of.right_domain.add(known.map(|model| same(&model.domain)));
            if let Some((id, best)) = &line.logged
                && *id == of.generation
            {
                of.as_logged.add(Some(is(hub, best, answer)));
            }
        }
        add_cost(&mut report, line, hubs, both, prices);
        let [former, new] = both;
        let key = domain_key(&former.domain);
        let changed = former.model != new.model;
        let moved = key != domain_key(&new.domain);
        let of = domains.entry(key).or_insert_with(|| ChangedDomain {
            domain: former.domain.to_string(),
            lines: 0,
            changed: Changes::default(),
        });
        of.lines += 1;
        for changes in [&mut report.changed, &mut of.changed] {
            changes.model.add(Some(changed));
            changes.domain.add(Some(moved));
        }
        if changed {
            let verdict = match right {
                [Some(true), Some(false)] => Verdict::Worse,
                [Some(false), Some(true)] => Verdict::Better,
                _ => Verdict::Other,
            };
            let place = (line.prompt, line.right.as_deref());
            let example = examples.entry(place).or_insert_with(|| ChangedAnswer {
                verdict,
                lines: 0,
                prompt_id: line.prompt_id.clone(),
                prompt: match &replay.prompts[line.prompt] {
                    LoggedPrompt::Text(text) => Some(text.clone()),
                    LoggedPrompt::Vector(..) => None,
                },
                former: former.clone(),
                new: new.clone(),
                right: line.right.clone(),
            });
            example.lines += 1;
        }
    }
    report.domains = domains.into_values().collect();
    report
        .domains
        .sort_by_key(|of| std::cmp::Reverse((of.changed.model.hits, of.lines)));
    report.examples = examples.into_values().collect();
    // What gets worse must be seen; of equals the most frequent.
    let order = |of: &ChangedAnswer| (of.verdict, std::cmp::Reverse(of.lines));
    report.examples.sort_by_key(order);
    report.examples.truncate(EXAMPLES);
    report
}

/// Adds what both answers would cost, if both state a price.
fn add_cost(
    report: &mut ReplayReport,
    line: &LineToReplay,
    hubs: &[Arc<Hub>; 2],
    both: [&OneAnswer; 2],
    prices: &Prices,
) {
    let cost = |place: usize| {
        let hub = &hubs[place];
        let model = hub.get(hub.find(&both[place].model)?)?;
        prices.cost(model, &line.feedback)
    };
    let (Some(former), Some(new)) = (cost(0), cost(1)) else {
        return;
    };
    report.cost_lines += 1;
    for (of, cost) in report.generations.iter_mut().zip([former, new]) {
        of.cost = Some(of.cost.unwrap_or(0.0) + cost);
    }
}

fn print(report: &ReplayReport) -> Result<()> {
    let changed = report.changed;
    let share = |share: Share| match share.rows {
        0 => "-".to_owned(),
        rows => format!("{:.1} %", 100.0 * share.hits as f64 / rows as f64),
    };
    let [former, new] = &report.generations;
    output::paragraph(format!(
        "{} of {} compared, {}: {} of the answers change, {} go to another domain",
        report.compared,
        output::counted(report.lines, "line"),
        output::counted(report.prompts, "prompt"),
        share(changed.model),
        share(changed.domain),
    ))?;
    let heads = [
        "",
        ">used",
        ">right",
        ">right domain",
        ">cost",
        ">as logged",
    ];
    let mut table = output::TextTable::new(&heads);
    for (name, of) in [("former", former), ("new", new)] {
        table.row(vec![
            name.to_owned(),
            of.used.cell(),
            of.right.cell(),
            of.right_domain.cell(),
            of.cost.map_or("-".into(), |cost| format!("{cost:.4}")),
            share(of.as_logged),
        ]);
    }
    table.print()?;
    output::paragraph(format!(
        "former: {} with {}; new: {} with {}",
        former.generation,
        output::counted(former.models, "model"),
        new.generation,
        output::counted(new.models, "model"),
    ))?;
    output::paragraph(
        "percent of the lines that say what was used, or what is right, with the 95 % interval in \
         brackets",
    )?;
    if report.cost_lines > 0 {
        let lines = output::counted(report.cost_lines, "line");
        output::paragraph(format!("cost of {lines} with tokens and prices"))?;
    }
    if report.compared > 0 {
        output::line("")?;
        let mut table = output::TextTable::new(&["~domain", ">lines", ">changed", ">moved"]);
        for of in report.domains.iter().take(DOMAINS) {
            table.row(vec![
                of.domain.clone(),
                of.lines.to_string(),
                share(of.changed.model),
                share(of.changed.domain),
            ]);
        }
        table.print()?;
    }
    if !report.examples.is_empty() {
        output::line("")?;
        let mut table = output::TextTable::new(&["", "~prompt", "~former", "~new", "~right"]);
        for of in &report.examples {
            let verdict = match of.verdict {
                Verdict::Worse => "worse",
                Verdict::Better => "better",
                Verdict::Other => "",
            };
            let text = of.prompt.as_deref().unwrap_or(&of.prompt_id);
            let text: String = text.chars().take(SHOWN).collect();
            table.row(vec![
                verdict.to_owned(),
                text,
                of.former.model.to_string(),
                of.new.model.to_string(),
                of.right.clone().unwrap_or_else(|| "-".into()),
            ]);
        }
        table.print()?;
    }
    let left = [
        (report.left_out.without_prompt, "without text or vector"),
        (
            report.left_out.vectors,
            "with a vector that cannot be routed",
        ),
        (report.left_out.no_answer, "without an answer"),
    ];
    let left = left.into_iter().filter(|(count, _)| *count > 0);
    let mut left: Vec<String> = left.map(|(count, why)| format!("{count} {why}")).collect();
    left.extend(skipped_line(&report.skipped));
    match left.is_empty() {
        true => Ok(()),
        false => output::paragraph(format!("left out: {}", left.join(", "))),
    }
}
