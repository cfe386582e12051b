//! Conversations keep their model while it is eligible and nearly as good as the best.
#![expect(
    clippy::disallowed_types,
    reason = "sessions that nobody uses are forgotten"
)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Result, bail};
use crate::hub::Hub;
use crate::options::SessionOptions;
use crate::route::{Decision, Ranked};

/// Longest tenant and id together, in bytes.
const LONGEST: usize = 1024;

/// Bytes of a session beside its texts.
const OVERHEAD: u64 = 160;

/// The conversation that a request belongs to. In JSON an object, or the id alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct SessionKey {
    /// Whose conversation it is, such as an API key's owner: equal ids of different tenants are
    /// different conversations.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// Its id.
    pub id: String,
}

/// What a session did with a decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct SessionRecord {
    /// Whether the conversation kept its model, and why not.
    pub outcome: SessionOutcome,
    /// Points by which the best model of this prompt is ahead of the one that was kept; 0 if that
    /// is the best itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<f32>,
    /// The model that the conversation lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Arc<str>>,
}

/// Whether a conversation kept its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SessionOutcome {
    /// It had none: it is new, or was forgotten.
    Started,
    /// It kept it, and `ranked` begins with it.
    Kept,
    /// The best model was ahead by more than the margin.
    Outscored,
    /// Its model is retired, or the policy does not admit it.
    NotEligible,
    /// The hub that is served now does not have its model.
    NotInHub,
}

/// The models of conversations.
pub(super) struct Sessions {
    pins: Cache<SessionKey, Arc<Pin>, PinBytes>,
    /// Milliseconds.
    idle: u64,
    margin: f32,
    clock: SessionClock,
}

/// The model that a conversation has.
struct Pin {
    model: Arc<str>,
    /// Milliseconds of the clock at its last request.
    used: AtomicU64,
}

#[derive(Clone)]
struct PinBytes;

enum SessionClock {
    Since(Instant),
    /// Milliseconds, set by a test.
    #[cfg(test)]
    Set(Arc<AtomicU64>),
}

/// Whether a session could be settled by what a decision has.
#[derive(Debug, PartialEq)]
pub(super) enum Settled {
    Yes,
    /// The score of this model decides, and was not looked for.
    Needs(Arc<str>),
}

/// An outcome and, of a model that is kept, its place and how far it is behind.
type Standing = (SessionOutcome, Option<(usize, f32)>);

impl SessionKey {
    /// The conversation `id` of `tenant`, which may be empty.
    pub fn new(tenant: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            tenant: tenant.into(),
            id: id.into(),
        }
    }
}

impl<'de> Deserialize<'de> for SessionKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a session: its id, or an object with \"id\""
        )]
        enum SessionForm {
            Id(String),
            Key {
                #[serde(default)]
                tenant: String,
                id: String,
            },
        }
        Ok(match SessionForm::deserialize(deserializer)? {
            SessionForm::Id(id) => Self::new("", id),
            SessionForm::Key { tenant, id } => Self { tenant, id },
        })
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.tenant {
            "" => write!(f, "{:?}", self.id),
            tenant => write!(f, "{:?} of {tenant:?}", self.id),
        }
    }
}

impl Weighter<SessionKey, Arc<Pin>> for PinBytes {
    fn weight(&self, key: &SessionKey, pin: &Arc<Pin>) -> u64 {
        OVERHEAD + (key.tenant.len() + key.id.len() + pin.model.len()) as u64
    }
}

impl SessionClock {
    /// Milliseconds since a beginning.
    fn now(&self) -> u64 {
        match self {
            Self::Since(began) => u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            #[cfg(test)]
            Self::Set(now) => now.load(Ordering::Relaxed),
        }
    }
}

impl Sessions {
    /// Errors: the margin is no number, or negative.
    pub(super) fn new(options: &SessionOptions) -> Result<Self> {
        Self::with_clock(options, SessionClock::Since(Instant::now()))
    }

    fn with_clock(options: &SessionOptions, clock: SessionClock) -> Result<Self> {
        let margin = options.margin;
        if margin.is_nan() || margin < 0.0 {
            bail!(
                InvalidRequest,
                "sessions.margin: expected a number from 0, found {margin}"
            );
        }
        let bytes = options.bytes as u64;
        let usual = usize::try_from(bytes.div_ceil(OVERHEAD + 64)).unwrap_or(usize::MAX);
        Ok(Self {
            pins: Cache::with_weighter(usual, bytes, PinBytes),
            idle: options.idle_seconds.saturating_mul(1000),
            margin,
            clock,
        })
    }

    /// Conversations that are kept, those that nobody uses any more included.
    pub(super) fn len(&self) -> usize {
        self.pins.len()
    }

    /// Errors: the key is longer than 1,024 bytes.
    pub(super) fn check(key: &SessionKey) -> Result<()> {
        let length = key.tenant.len() + key.id.len();
        if length > LONGEST {
            bail!(
                InvalidRequest,
                "session: expected a tenant and an id of at most {LONGEST} bytes together, found \
                 {length}"
            );
        }
        Ok(())
    }

    /// The model of a conversation.
    pub(super) fn model(&self, key: &SessionKey) -> Option<Arc<str>> {
        let pin = self.pin(key, self.clock.now())?;
        Some(Arc::clone(&pin.model))
    }

    fn pin(&self, key: &SessionKey, now: u64) -> Option<Arc<Pin>> {
        let pin = self.pins.get(key)?;
        let used = pin.used.load(Ordering::Relaxed);
        (now.saturating_sub(used) <= self.idle).then_some(pin)
    }

    /// Lets the conversation keep its model, or takes the best one for it.
    ///
    /// `decision`: on a hub with the names of `hub`; behind its `top` best it has the model
    /// `looked_for`, if that is eligible. `whole`: all eligible models may answer, so that one that
    /// is not retired is eligible.
    pub(super) fn settle(
        &self,
        key: &SessionKey,
        hub: &Hub,
        top: usize,
        looked_for: Option<&str>,
        whole: bool,
        decision: &mut Decision,
    ) -> Settled {
        let ranked = &mut decision.ranked;
        let Some(best) = ranked.first() else {
            return Settled::Yes;
        };
        let now = self.clock.now();
        let pin = self.pin(key, now);
        let (outcome, behind) = match &pin {
            None => (SessionOutcome::Started, None),
            Some(pin) => match self.compare(pin, hub, top, looked_for, whole, ranked) {
                Some(compared) => compared,
                None => return Settled::Needs(Arc::clone(&pin.model)),
            },
        };
        let former = match (&pin, behind) {
            (Some(pin), None) => Some(Arc::clone(&pin.model)),
            _ => None,
        };
        match (pin, behind) {
            (Some(pin), Some((place, _))) => {
                pin.used.store(now, Ordering::Relaxed);
                ranked[..=place].rotate_right(1);
            }
            _ => {
                let pin = Pin {
                    model: Arc::clone(&best.model),
                    used: AtomicU64::new(now),
                };
                self.pins.insert(key.clone(), Arc::new(pin));
            }
        }
        ranked.truncate(top);
        decision.session = Some(SessionRecord {
            outcome,
            behind: behind.map(|(_, points)| points),
            former,
        });
        Settled::Yes
    }

    /// What becomes of `pin`, and its place and how far it is behind if it is kept; `None` if its
    /// score is not known.
    fn compare(
        &self,
        pin: &Pin,
        hub: &Hub,
        top: usize,
        looked_for: Option<&str>,
        whole: bool,
        ranked: &[Ranked],
    ) -> Option<Standing> {
        let Some(id) = hub.find(&pin.model) else {
            return Some((SessionOutcome::NotInHub, None));
        };
        let (best, last) = (ranked.first()?, ranked.last()?);
        if let Some(place) = ranked.iter().position(|ranked| ranked.id == id) {
            let behind = behind(best, &ranked[place]);
            return Some(match behind.filter(|points| *points <= self.margin) {
                Some(points) => (SessionOutcome::Kept, Some((place, points))),
                None => (SessionOutcome::Outscored, None),
            });
        }
        let retired = hub.get(id).is_none_or(|model| model.retired);
        if retired || ranked.len() < top || looked_for == Some(&*pin.model) {
            return Some((SessionOutcome::NotEligible, None));
        }
        // It is eligible and behind the last one.
        let far = whole && behind(best, last).is_some_and(|points| points > self.margin);
        far.then_some((SessionOutcome::Outscored, None))
    }
}

/// Points by which `best` is ahead: of utility if it has one, else of score. `None` if the other
/// one does not state what its utility needs.
fn behind(best: &Ranked, other: &Ranked) -> Option<f32> {
    match (best.utility, other.utility) {
        #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
        (Some(best), Some(other)) => Some((best - other) as f32),
        (Some(_), None) => None,
        (None, _) => Some(best.score - other.score),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::hub::{Hub, ModelId};

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    fn hub(names: &[&str]) -> Hub {
        let models = names
            .iter()
            .map(|name| serde_json::json!({"name": name, "domain": "x", "retired": *name == "d"}));
        let models: Vec<_> = models.collect();
        let file = serde_json::json!({"schema_version": 1, "models": models});
        serde_json::from_value(file).unwrap()
    }

    /// The models `ranked` with their scores, in the order of the scores.
    fn decision(ranked: &[(u32, f32)]) -> Decision {
        let ranked = ranked.iter().map(|(id, score)| {
            serde_json::json!({"id": id, "model": NAMES[*id as usize], "score": score,
                "cosine": 0.5, "probability": 0.25, "domain": "x", "family": null})
        });
        let ranked: Vec<_> = ranked.collect();
        let json = serde_json::json!({"schema_version": 1, "prompt_id": "", "ranked": ranked,
            "domains": [], "margin": null, "tokens": 3, "truncated": false, "degraded": null,
            "device": "cpu", "generation": "g0001-0123456789ab", "encoder": "e", "tokenizer": "t",
            "timings_us":
                {"tokenize": 1.0, "encode": 1.0, "score": 1.0, "total": 1.0, "batch": 1}});
        serde_json::from_value(json).unwrap()
    }

    struct Place {
        sessions: Sessions,
        now: Arc<AtomicU64>,
        hub: Hub,
    }

    fn place(options: &SessionOptions) -> Place {
        let now = Arc::new(AtomicU64::new(7));
        let clock = SessionClock::Set(Arc::clone(&now));
        Place {
            sessions: Sessions::with_clock(options, clock).unwrap(),
            now,
            hub: hub(&NAMES),
        }
    }

    impl Place {
        /// The model, the outcome, how far it is behind and the former model of a turn with two
        /// ranks.
        fn turn(
            &self,
            key: &SessionKey,
            ranked: &[(u32, f32)],
            looked_for: Option<&str>,
        ) -> Option<(String, SessionOutcome, Option<f32>, Option<String>)> {
            let mut decision = decision(ranked);
            let settled = self
                .sessions
                .settle(key, &self.hub, 2, looked_for, true, &mut decision);
            let record = decision.session.filter(|_| settled == Settled::Yes)?;
            assert!(decision.ranked.len() <= 2);
            let former = record.former.map(|name| name.to_string());
            let model = decision.ranked[0].model.to_string();
            Some((model, record.outcome, record.behind, former))
        }
    }

    fn got(
        model: &str,
        outcome: SessionOutcome,
        behind: Option<f32>,
        former: Option<&str>,
    ) -> Option<(String, SessionOutcome, Option<f32>, Option<String>)> {
        Some((model.into(), outcome, behind, former.map(str::to_owned)))
    }

    #[test]
    fn a_model_is_kept_within_the_margin_and_no_further() {
        use SessionOutcome::{Kept, Outscored, Started};
        let place = place(&SessionOptions::default());
        let key = SessionKey::new("t", "s");
        let turn = |ranked: &[(u32, f32)], looked_for| place.turn(&key, ranked, looked_for);
        assert_eq!(
            turn(&[(0, 5.0), (1, 4.0)], None),
            got("a", Started, None, None)
        );
        assert_eq!(
            turn(&[(1, 5.0), (0, 4.5)], None),
            got("a", Kept, Some(0.5), None)
        );
        // Behind the two best, where it was looked for.
        let ranked = [(1, 5.0), (2, 4.0), (0, 3.0)];
        assert_eq!(turn(&ranked, Some("a")), got("a", Kept, Some(2.0), None));
        let ranked = [(1, 5.0), (2, 4.0), (0, 2.9)];
        let lost = got("b", Outscored, None, Some("a"));
        assert_eq!(turn(&ranked, Some("a")), lost);
        assert_eq!(
            turn(&[(1, 6.0), (0, 5.0)], None),
            got("b", Kept, Some(0.0), None)
        );
    }

    #[test]
    fn what_the_ranks_do_not_say_is_looked_for() {
        use SessionOutcome::{NotEligible, Outscored};
        let place = place(&SessionOptions::default());
        let start = |id: &str| {
            let key = SessionKey::new("", id);
            place.turn(&key, &[(0, 5.0), (1, 4.0)], None).unwrap();
            key
        };
        let near = [(1, 5.0), (2, 4.0)];
        assert_eq!(place.turn(&start("1"), &near, None), None);
        let lost = got("b", NotEligible, None, Some("a"));
        assert_eq!(place.turn(&start("2"), &near, Some("a")), lost);
        // The last rank is too far behind already, or all that may answer are ranked.
        let far = got("b", Outscored, None, Some("a"));
        assert_eq!(place.turn(&start("3"), &[(1, 5.0), (2, 2.0)], None), far);
        assert_eq!(place.turn(&start("4"), &[(1, 5.0)], None), lost);
    }

    #[test]
    fn a_model_that_is_retired_or_gone_is_not_kept() {
        use SessionOutcome::{NotEligible, NotInHub};
        let mut place = place(&SessionOptions::default());
        let key = SessionKey::new("", "s");
        place.turn(&key, &[(3, 5.0), (1, 4.0)], None).unwrap();
        let lost = got("b", NotEligible, None, Some("d"));
        assert_eq!(place.turn(&key, &[(1, 5.0), (2, 4.9)], None), lost);
        place.hub = hub(&["a"]);
        let lost = got("a", NotInHub, None, Some("b"));
        assert_eq!(place.turn(&key, &[(0, 5.0)], None), lost);
    }

    #[test]
    fn sessions_are_the_tenants_own_and_expire() {
        use SessionOutcome::{Kept, Started};
        let options = SessionOptions {
            idle_seconds: 60,
            ..SessionOptions::default()
        };
        let place = place(&options);
        let [mine, other] = ["me", "you"].map(|tenant| SessionKey::new(tenant, "s"));
        let (first, second) = ([(0, 5.0), (1, 4.0)], [(1, 5.0), (0, 4.0)]);
        assert_eq!(
            place.turn(&mine, &first, None),
            got("a", Started, None, None)
        );
        assert_eq!(
            place.turn(&other, &second, None),
            got("b", Started, None, None)
        );
        place.now.fetch_add(60_000, Ordering::Relaxed);
        assert_eq!(
            place.turn(&mine, &second, None),
            got("a", Kept, Some(1.0), None)
        );
        // The other one was not used for longer than that.
        place.now.fetch_add(1, Ordering::Relaxed);
        assert_eq!(place.sessions.model(&other), None);
        assert_eq!(
            place.turn(&other, &first, None),
            got("a", Started, None, None)
        );
    }

    #[test]
    fn sessions_stay_within_their_bytes() {
        let options = SessionOptions {
            bytes: 100_000,
            ..SessionOptions::default()
        };
        let place = place(&options);
        for i in 0..50_000 {
            let key = SessionKey::new("tenant", i.to_string());
            place.turn(&key, &[(0, 5.0)], None).unwrap();
        }
        let (count, bytes) = (place.sessions.len(), place.sessions.pins.weight());
        assert!(bytes <= place.sessions.pins.capacity() && bytes < 100_100);
        assert!((300..650).contains(&count), "{count}");
    }

    #[test]
    fn bad_options_and_keys_are_refused() {
        for margin in [-1.0, f32::NAN] {
            let options = SessionOptions {
                margin,
                ..SessionOptions::default()
            };
            let error = Sessions::new(&options).err().unwrap().to_string();
            assert!(error.starts_with("sessions.margin: expected"), "{error}");
        }
        assert!(Sessions::check(&SessionKey::new("t".repeat(500), "i".repeat(524))).is_ok());
        let error = Sessions::check(&SessionKey::new("", "i".repeat(1025)));
        assert!(error.unwrap_err().to_string().contains("found 1025"));
        for (json, want) in [
            (r#""x""#, SessionKey::new("", "x")),
            (r#"{"tenant": "t", "id": "x"}"#, SessionKey::new("t", "x")),
        ] {
            let key: SessionKey = serde_json::from_str(json).unwrap();
            assert_eq!(key, want);
            let back = serde_json::to_string(&key).unwrap();
            assert_eq!(serde_json::from_str::<SessionKey>(&back).unwrap(), want);
        }
        let error = serde_json::from_str::<SessionKey>("5").unwrap_err();
        assert!(error.to_string().contains("expected a session"));
        assert_eq!(hub(&NAMES).find("b"), Some(ModelId(1)));
    }
}
