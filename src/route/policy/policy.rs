//! A policy as data.

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Result as Checked, bail};
use crate::files;
use crate::options::{Options, SessionOptions};
use crate::route::AbstainRule;
use crate::route::policy::{Constraint, Deployment, ModelPattern, TradeOff};

/// Version of the JSON form of a [`Policy`].
const SCHEMA_VERSION: u32 = 1;

/// Most fallbacks of a policy.
pub(super) const MOST_FALLBACKS: usize = 15;

fn schema_version() -> u32 {
    SCHEMA_VERSION
}

/// Errors: a version that this crate does not know.
fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let found = u32::deserialize(deserializer)?;
    files::check_version(found).map_err(serde::de::Error::custom)?;
    Ok(found)
}

/// Which models may answer, and how quality is traded against cost and latency.
///
/// [`crate::Router::compile`] makes a handle of it. `docs/policy.md` has the rules.
///
/// ```
/// let policy: hubrouter::Policy = serde_json::from_str(r#"{
///     "deny": ["domain:reinforcement learning*"],
///     "where": "context_length >= 32768 and price <= 2",
///     "fallbacks": ["price <= 10"]}"#)?;
/// assert_eq!(policy.fallbacks.len(), 1);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Policy {
    /// Version of this form; 1. Another one is refused when a policy is read from JSON.
    #[serde(default = "schema_version", deserialize_with = "known_version")]
    pub schema_version: u32,
    /// The deployments to choose from. `None`: every model of the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidates: Option<Vec<Deployment>>,
    /// A model must fit one of these; empty: every model may answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<ModelPattern>,
    /// A model that fits one of these never answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<ModelPattern>,
    /// What a model must meet.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Constraint>,
    /// What it must meet instead of `constraint`, the first for which a model is eligible, at most
    /// 15. Candidates, `allow`, `deny` and the needs of a chat request hold all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<Constraint>,
    /// A model must state that it can do what a chat request demands: tools, images, tokens, ...
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub chat_needs: bool,
    /// Ranks by quality less cost and latency. `None`: by the score alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer: Option<TradeOff>,
    /// When no model should be named. The first fallback for which a model is eligible answers
    /// then. `None`: never, and that nothing is eligible is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abstain: Option<AbstainRule>,
    /// [`Options::cache_bytes`] of a router that serves by this policy. A router has one cache and
    /// one set of sessions for all of its policies: see [`Options::for_policy`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<usize>,
    /// [`Options::sessions`] of such a router.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<SessionOptions>,
}

impl Default for Policy {
    /// Every model of the hub that is not retired may answer.
    fn default() -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            candidates: None,
            allow: Vec::new(),
            deny: Vec::new(),
            constraint: None,
            fallbacks: Vec::new(),
            chat_needs: false,
            prefer: None,
            abstain: None,
            cache_bytes: None,
            sessions: None,
        }
    }
}

impl Policy {
    /// The policy with these candidates alone: deployments by the names of their models.
    pub fn candidates<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.candidates = Some(names.into_iter().map(Deployment::new).collect());
        self
    }

    /// The policy with `constraint` in place of its own.
    pub fn constraint(mut self, constraint: Constraint) -> Self {
        self.constraint = Some(constraint);
        self
    }

    /// Errors: the router was opened with another cache or other sessions than the policy names.
    pub(in crate::route) fn check_router(&self, options: &Options) -> Checked<()> {
        if let Some(wanted) = self.cache_bytes.filter(|n| *n != options.cache_bytes) {
            bail!(
                InvalidRequest,
                "cache_bytes: the policy names {wanted}, and its router was opened with {}: open \
                 it with the same (Options::for_policy)",
                options.cache_bytes
            );
        }
        if self
            .sessions
            .as_ref()
            .is_some_and(|own| *own != options.sessions)
        {
            bail!(
                InvalidRequest,
                "sessions: the policy names others than its router was opened with: open it \
                 with the same (Options::for_policy)"
            );
        }
        Ok(())
    }
}

impl Options {
    /// The options with the cache and the sessions that `policy` names.
    ///
    /// ```
    /// use hubrouter::{Options, Policy};
    ///
    /// let policy = Policy::from_toml("cache_bytes = 1048576\nsessions = { margin = 1.5 }")?;
    /// let options = Options::default().for_policy(&policy);
    /// assert_eq!(options.cache_bytes, 1 << 20);
    /// # Ok::<(), hubrouter::Error>(())
    /// ```
    pub fn for_policy(mut self, policy: &Policy) -> Self {
        self.cache_bytes = policy.cache_bytes.unwrap_or(self.cache_bytes);
        if let Some(sessions) = &policy.sessions {
            self.sessions = sessions.clone();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn json_keeps_everything_and_refuses_what_it_does_not_know() {
        let json = r#"{"schema_version":1,"candidates":["a",
            {"name":"b","card":{"model_name":"m","domain":"d"}}],"allow":["google/*"],"deny":["id:3"],"where":"price <= 2","fallbacks":["price <= 9"],
            "chat_needs":true,"prefer":{"cost":0.5},"abstain":{"risk":10.0},"cache_bytes":9,
            "sessions":{"margin":1.5}}"#;
        let policy: Policy = serde_json::from_str(json).unwrap();
        let back = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&back).unwrap(), policy);
        let plain = serde_json::to_string(&Policy::default()).unwrap();
        assert_eq!(plain, r#"{"schema_version":1}"#);
        for (json, want) in [
            (r#"{"schema_version":2}"#, "schema_version"),
            (r#"{"alow":[]}"#, "unknown field `alow`"),
            (
                r#"{"where":"price <"}"#,
                "column 8: expected a number, found the end",
            ),
            (r#"{"deny":["id:x"]}"#, "expected id: and a number"),
        ] {
            let error = serde_json::from_str::<Policy>(json)
                .unwrap_err()
                .to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
