//! Cache, deadline and session of a command line.

use std::time::Duration;

use clap::Args;

use super::output;
use crate::{Decision, Options, Policy, Request, SessionOutcome, SessionRecord};

/// Units of a time, the longest endings first.
const UNITS: [(&str, f64); 3] = [("ms", 1e-3), ("us", 1e-6), ("s", 1.0)];

/// What `route` does beside computing.
#[derive(Args)]
pub(super) struct ServingArgs {
    /// Keep decisions for equal prompts, in so many MiB of memory [default: none]
    #[arg(long, value_name = "MIB")]
    cache: Option<u32>,
    /// Give up a prompt whose batch is not in computation so long after it was read, such as 50ms;
    /// the last fallback of --policy answers then
    #[arg(long, value_name = "TIME", value_parser = time)]
    deadline: Option<Duration>,
    /// The prompts are turns of this conversation, which keeps its model while that is nearly the
    /// best; lines of JSON may name one each with "session"
    #[arg(long, value_name = "ID")]
    session: Option<String>,
}

impl ServingArgs {
    /// `options` with the cache and the sessions of `policy`; `--cache` takes the place of its
    /// cache.
    pub(super) fn options(&self, options: Options, policy: Option<&mut Policy>) -> Options {
        let bytes = self.cache.map(|mib| u64::from(mib) << 20);
        let bytes = bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let Some(policy) = policy else {
            return options.cache_bytes(bytes.unwrap_or_default());
        };
        policy.cache_bytes = bytes.or(policy.cache_bytes);
        options.for_policy(policy)
    }

    pub(super) fn applied(&self, mut request: Request) -> Request {
        request.deadline = self.deadline;
        match &self.session {
            Some(id) if request.session.is_none() => request.session("", id),
            _ => request,
        }
    }
}

/// `50ms`, `2s`, `500us`.
fn time(text: &str) -> Result<Duration, String> {
    let split = UNITS.iter().find_map(|(unit, seconds)| {
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        Duration::try_from_secs_f64(number * seconds).ok()
    });
    split.ok_or_else(|| "expected a time with its unit, such as 50ms, 2s or 500us".to_owned())
}

/// What a session did.
pub(super) fn serving_lines(decision: &Decision) -> impl Iterator<Item = String> {
    decision.session.as_ref().map(session_line).into_iter()
}

fn session_line(record: &SessionRecord) -> String {
    let former = record.former.as_deref().unwrap_or_default();
    let former = super::terminal::escaped(former);
    match record.outcome {
        SessionOutcome::Started => "session: started".to_owned(),
        SessionOutcome::Kept => match record.behind.unwrap_or_default() {
            0.0 => "session: kept its model, which is the best".to_owned(),
            behind => format!(
                "session: kept its model, {behind:.2} {} behind the best",
                if behind == 1.0 { "point" } else { "points" }
            ),
        },
        SessionOutcome::Outscored => format!("session: left {former}, which is too far behind"),
        SessionOutcome::NotEligible => format!("session: left {former}, which may not answer"),
        SessionOutcome::NotInHub => format!("session: left {former}, which is not in the hub"),
    }
}

/// Hits of the cache, if there is one.
pub(super) fn remark_on_cache(router: &crate::Router) {
    if let Some(cache) = router.stats().cache {
        output::remark(format!(
            "hubrouter: {} of {} prompts were answered from the cache",
            cache.hits,
            cache.hits + cache.misses
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(time("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(time("1.5 s"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("0us"), Ok(Duration::ZERO));
        for wrong in ["50", "ms", "-1ms", "1e99s", "NaNs", ""] {
            assert!(
                time(wrong).is_err_and(|why| why.contains("50ms")),
                "{wrong}"
            );
        }
    }
}
