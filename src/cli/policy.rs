//! The policy of a command line: a file, a constraint, candidates; `hubrouter policy`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{DeviceArgs, StoreArgs, output};
use crate::error::{Error, Result, bail, error};
use crate::files::read_text;
use crate::{Constraint, Deployment, Policy, PolicyHandle, PolicyRecord, Router};

/// Longest file of a policy or of candidates.
const LONGEST_FILE: u64 = 64 << 20;

/// Parts of a policy that a table names.
const NAMED: usize = 4;

/// Which models may answer.
#[derive(Args)]
pub(super) struct PolicyArgs {
    /// Only models that meet this, such as "price <= 2 and licence in [mit, apache-2.0]"
    #[arg(long = "where", value_name = "TEXT")]
    constraint: Option<String>,
    /// Only these: names separated by commas, or a file with a JSON list or a name per line
    #[arg(long, value_name = "FILE|NAMES")]
    candidates: Option<String>,
    /// Only models that state that they can do what a chat request demands
    #[arg(long)]
    needs: bool,
    /// Abstain where more than this percent of domains would be wrong
    #[arg(long, value_name = "PERCENT")]
    abstain_risk: Option<f64>,
    /// Abstain below this confidence of the domain, 0 to 1
    #[arg(long, value_name = "SHARE")]
    min_confidence: Option<f64>,
    /// Abstain where more than this share of held-out prompts are nearer, 0 to 1
    #[arg(long, value_name = "SHARE")]
    max_ood: Option<f64>,
    /// Policy as a TOML or JSON file; the options above are added to it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

impl PolicyArgs {
    /// `policy`, which [`PolicyArgs::read`] gave, compiled.
    pub(super) fn compile(
        &self,
        policy: Option<&Policy>,
        router: &Router,
    ) -> Result<Option<PolicyHandle>> {
        let Some(policy) = policy else {
            return Ok(None);
        };
        match (router.compile(policy), &self.policy) {
            (Err(error), Some(path)) => Err(located(error, path)),
            (compiled, _) => compiled.map(Some),
        }
    }

    /// The policy of these options; `None` without any.
    pub(super) fn read(&self) -> Result<Option<Policy>> {
        let options = (&self.constraint, &self.candidates, self.needs, &self.policy);
        let thresholds = [self.abstain_risk, self.min_confidence, self.max_ood];
        let abstains = thresholds.iter().any(Option::is_some);
        if let ((None, None, false, None), false) = (options, abstains) {
            return Ok(None);
        }
        let mut policy = match &self.policy {
            Some(path) => Policy::read(path)?,
            None => Policy::default(),
        };
        if let Some(text) = &self.constraint {
            let own: Constraint = text.parse().map_err(|e: crate::Error| e.at("--where"))?;
            policy.constraint = Some(match policy.constraint {
                Some(before) => Constraint::All(vec![before, own]),
                None => own,
            });
        }
        if let Some(text) = &self.candidates {
            policy.candidates = Some(candidates(text)?);
        }
        policy.chat_needs |= self.needs;
        if abstains {
            let rule = policy.abstain.get_or_insert_default();
            rule.risk = self.abstain_risk.or(rule.risk);
            rule.min_confidence = self.min_confidence.or(rule.min_confidence);
            rule.max_ood = self.max_ood.or(rule.max_ood);
        }
        Ok(Some(policy))
    }
}

/// `error`, which compiling the policy of the file `path` gave, with the file and, if that is clear,
/// the line: the first that has a text which the error quotes, else that of the field.
fn located(error: Error, path: &Path) -> Error {
    let text = read_text(path, LONGEST_FILE).unwrap_or_default();
    match line_of(&text, &error.to_string()) {
        Some(line) => error.at(format!("{}: line {line}", path.display())),
        None => error.at(path.display()),
    }
}

fn line_of(text: &str, message: &str) -> Option<usize> {
    let quoted = message.split('"').skip(1).step_by(2);
    let field = message.split([':', '.']).next().map(str::trim);
    let mut looked_for = quoted.chain(field).filter(|text| !text.is_empty());
    let at = looked_for.find_map(|part| text.find(part))?;
    Some(1 + text[..at].matches('\n').count())
}

/// Check a policy against a hub, and show what it excludes
#[derive(Args)]
#[command(after_help = "Examples:
  hubrouter policy check policy.toml
  hubrouter policy check policy.json --router my-store --json

Exit codes: 0 some model may answer; 1 none may, or the file is not a policy; 2 a name that the hub \
does not have. Errors name the line.")]
pub(super) struct CheckArgs {
    /// Policy as a TOML or JSON file
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Subcommand)]
pub(super) enum PolicyCommand {
    Check(CheckArgs),
}

pub(super) fn run(command: &PolicyCommand) -> Result<ExitCode> {
    let PolicyCommand::Check(args) = command;
    let policy = Policy::read(&args.file)?;
    let options = args.device.options()?.for_policy(&policy);
    let router = Router::open(args.store.path()?, options)?;
    let handle = router.compile(&policy);
    let handle = handle.map_err(|e| located(e, &args.file))?;
    let (eligible, excluded) = (handle.eligible(), handle.excluded());
    if args.json {
        output::json(&json!({
            "schema_version": 1, "generation": handle.generation(), "models": router.hub().active(),
            "eligible": eligible, "fallback": handle.fallback(), "excluded": excluded,
            "policy": handle.policy(),
        }))?;
    } else {
        let record = PolicyRecord {
            eligible,
            fallback: handle.fallback(),
            excluded,
            pareto: Vec::new(),
        };
        output::line(policy_line(&record))?;
    }
    Ok(match eligible {
        0 => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// The deployments that `--candidates` names.
fn candidates(text: &str) -> Result<Vec<Deployment>> {
    let path = Path::new(text);
    let ends = |ending: &str| path.extension().is_some_and(|found| found == ending);
    if !(ends("json") || ends("jsonl") || ends("txt") || path.is_file()) {
        let names = text.split(',').map(str::trim);
        let named: Vec<Deployment> = names
            .filter(|name| !name.is_empty())
            .map(Deployment::new)
            .collect();
        if named.is_empty() {
            bail!(
                InvalidRequest,
                "--candidates: expected names or a file, found {text:?}"
            );
        }
        return Ok(named);
    }
    let content = read_text(path, LONGEST_FILE)?;
    let place = path.display();
    if content.trim_start().starts_with('[') {
        return serde_json::from_str(&content).map_err(|e| error!(Format, "{place}: {e}"));
    }
    let lines = content.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty());
    let read = lines.map(|(number, line)| match line.starts_with('{') {
        true => {
            serde_json::from_str(line).map_err(|e| error!(Format, "{place}:{}: {e}", number + 1))
        }
        false => Ok(Deployment::new(line)),
    });
    read.collect()
}

/// How many models could answer, and what excluded the most.
pub(super) fn policy_line(record: &PolicyRecord) -> String {
    let mut line = format!("eligible: {}", output::counted(record.eligible, "model"));
    if let Some(fallback) = &record.fallback {
        line.push_str(&format!(", by the fallback {fallback}"));
    }
    let mut excluded: Vec<_> = record.excluded.iter().collect();
    excluded.sort_by_key(|part| std::cmp::Reverse(part.models));
    let named = excluded.iter().take(NAMED).map(|part| match part.unknown {
        0 => format!("{}: {}", part.by, part.models),
        unknown => format!("{}: {} ({unknown} unknown)", part.by, part.models),
    });
    let named: Vec<String> = named.collect();
    if !named.is_empty() {
        line.push_str(&format!("; excluded by {}", named.join("; ")));
    }
    match excluded.len().saturating_sub(NAMED) {
        0 => line,
        more => format!("{line}; and {more} more"),
    }
}

/// The Pareto front, a line for each model.
pub(super) fn front_lines(record: &PolicyRecord) -> impl Iterator<Item = String> {
    record.pareto.iter().map(|point| {
        let part = |name: &str, value: Option<f64>| match value {
            Some(value) => format!(", {name} {value}"),
            None => String::new(),
        };
        let utility = point
            .utility
            .map_or(String::new(), |utility| format!(", utility {utility:.3}"));
        format!(
            "front          {}: score {:.3}{}{}{utility}",
            super::terminal::escaped(&point.model),
            point.score,
            part("cost", point.cost),
            part("latency", point.latency),
        )
    })
}
