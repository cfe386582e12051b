//! What a request passes before it is computed: the cache, the queue, its deadline; and its session
//! afterwards.
//!
//! A request that wants none of it, on a router without a cache and a queue, goes past all of this.
#![expect(clippy::disallowed_types, reason = "deadlines and times of a request")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::{Error, Result, caught};
use crate::hub::Hub;
use crate::options::Options;
use crate::route::cache::{Answerer, CacheStats, DecisionCache};
use crate::route::gather::{self, Gatherer};
use crate::route::policy::CompiledPolicy;
use crate::route::queue::{Denied, Queue, QueueSlot, QueueStats};
use crate::route::session::{Sessions, Settled};
use crate::route::{Decision, PolicyHandle, Request, Router, Timing};
use crate::serve::Serving;

/// Microseconds that a call on a hardware GPU waits at most for the batch before it.
const GATHER_US: u64 = 500;

/// The cache, the sessions and the queue of a router.
pub(super) struct Front {
    cache: Option<DecisionCache>,
    sessions: Sessions,
    pub(super) queue: Arc<Queue>,
    gatherer: Option<Gatherer>,
    /// A fork may find their locks held by threads that it does not have, and goes without them.
    process: u32,
}

/// What a router has done and holds, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RouterStats {
    /// The cache of decisions, if the options have one.
    pub cache: Option<CacheStats>,
    /// The queue, if the options have one.
    pub queue: Option<QueueStats>,
    /// Conversations whose models are kept.
    pub sessions: u64,
}

/// A request, and perhaps a model whose score the answer should have.
pub(super) trait Asking: Sync {
    fn request(&self) -> &Request;

    /// The name of the model.
    fn kept(&self) -> Option<&str> {
        None
    }
}

impl Asking for Request {
    fn request(&self) -> &Request {
        self
    }
}

/// A request, and the model of its conversation.
struct Asked<'r> {
    request: &'r Request,
    kept: Option<Arc<str>>,
}

impl Asking for Asked<'_> {
    fn request(&self) -> &Request {
        self.request
    }

    fn kept(&self) -> Option<&str> {
        self.kept.as_deref()
    }
}

/// Answers, and the hub that has the names of their models.
pub(super) struct Routed {
    pub(super) hub: Arc<Hub>,
    pub(super) answers: Vec<Result<Decision>>,
}

/// A decision before its session is settled.
pub(super) struct Unsettled {
    pub(super) hub: Arc<Hub>,
    pub(super) decision: Decision,
    /// The model whose score was asked for.
    looked_for: Option<Arc<str>>,
}

impl Unsettled {
    pub(super) fn new(hub: &Arc<Hub>, decision: Decision) -> Self {
        Self {
            hub: Arc::clone(hub),
            decision,
            looked_for: None,
        }
    }
}

impl Answerer {
    fn new(serving: &Serving, policy: Option<&CompiledPolicy>) -> Self {
        Self {
            serving: serving.serial,
            policy: policy.map_or(0, |policy| policy.serial),
            by_needs: policy.is_some_and(CompiledPolicy::looks_at_needs),
        }
    }
}

impl Front {
    /// `threads`: of a call on the CPU; with 1, calls compute side by side, one on each core.
    /// On a hardware GPU calls share batches.
    ///
    /// Errors: the options of sessions are not valid.
    pub(super) fn new(options: &Options, threads: usize, device: &Device) -> Result<Self> {
        let usual = if device.is_hardware_gpu() {
            GATHER_US
        } else {
            0
        };
        let gathers = options.gather_us.unwrap_or(usual);
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let slots = match threads {
            _ if gathers > 0 => gather::MOST,
            1 => cores(),
            _ => 1,
        };
        let side_by_side = match (device, threads) {
            (Device::Gpu(_), _) => 1,
            (Device::Cpu(_), 1) => cores(),
            (Device::Cpu(_), threads) => threads,
        };
        Ok(Self {
            cache: DecisionCache::new(options.cache_bytes),
            sessions: Sessions::new(&options.sessions)?,
            queue: Arc::new(Queue::new(slots, options.queue)),
            gatherer: (gathers > 0)
                .then(|| Gatherer::new(Duration::from_micros(gathers), side_by_side)),
            process: std::process::id(),
        })
    }

    /// Whether `requests` can go straight to the computing.
    pub(super) fn is_plain(&self, requests: &[Request]) -> bool {
        let plain = |request: &Request| request.deadline.is_none() && request.session.is_none();
        self.cache.is_none() && !self.queue.is_bounded() && requests.iter().all(plain)
    }

    /// What brings a call with `prompts` together with others, if they may be.
    pub(super) fn gatherer(&self, prompts: usize) -> Option<&Gatherer> {
        let gatherer = self.gatherer.as_ref()?;
        (self.is_own_process() && prompts < gather::MOST).then_some(gatherer)
    }

    fn is_own_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Keeps the answers to `requests`, if there is a cache.
    pub(super) fn remember<A: Asking>(
        &self,
        serving: &Serving,
        policy: Option<&CompiledPolicy>,
        requests: &[A],
        answers: &[Result<Decision>],
    ) {
        let Some(cache) = self.cache.as_ref().filter(|_| self.is_own_process()) else {
            return;
        };
        let answerer = Answerer::new(serving, policy);
        for (asked, answer) in requests.iter().zip(answers) {
            if let Ok(decision) = answer {
                cache.insert(answerer, asked.request(), decision);
            }
        }
    }

    /// Forgets what another serving decided.
    pub(super) fn forget(&self) {
        if let Some(cache) = self.cache.as_ref().filter(|_| self.is_own_process()) {
            cache.clear();
        }
    }

    pub(super) fn stats(&self) -> RouterStats {
        let queue = Some(&self.queue).filter(|queue| queue.is_bounded());
        RouterStats {
            cache: self.cache.as_ref().map(DecisionCache::stats),
            queue: queue.map(|queue| queue.stats()),
            sessions: self.sessions.len() as u64,
        }
    }
}

impl Router {
    /// The answers to `requests`, which came at `began`; `slot`: the right to compute, if the
    /// caller has it already.
    pub(super) fn route_managed(
        &self,
        requests: &[Request],
        policy: Option<&PolicyHandle>,
        began: Instant,
        slot: Option<QueueSlot>,
    ) -> Result<Vec<Result<Decision>>> {
        let front = &self.front;
        if !front.is_own_process() {
            return Ok(self.route_all(requests, policy)?.answers);
        }
        let mut answers = self.looked_up(requests, policy)?;
        for (request, answer) in requests.iter().zip(&mut answers) {
            let checked = request.session.as_ref().map_or(Ok(()), Sessions::check);
            if let Err(error) = checked {
                *answer = Some(Err(error));
            }
        }
        let open = answers.iter().enumerate();
        let open = open.filter_map(|(place, answer)| answer.is_none().then_some(place));
        let open: Vec<usize> = open.collect();
        if !open.is_empty() {
            let asked = open.iter().map(|place| {
                let request = &requests[*place];
                let key = request.session.as_ref();
                let kept = key.and_then(|key| front.sessions.model(key));
                Asked { request, kept }
            });
            let computed = self.computed(asked.collect(), policy, began, slot);
            for (place, answer) in open.into_iter().zip(computed) {
                answers[place] = Some(answer);
            }
        }
        let answers = requests.iter().zip(answers.into_iter().flatten());
        let settled = answers.map(|(request, answer)| {
            let mut decision = self.settled(request, answer?, policy, began)?;
            decision.timing.total = microseconds(began.elapsed());
            Ok(decision)
        });
        Ok(settled.collect())
    }

    /// What the cache has for each of `requests`.
    fn looked_up(
        &self,
        requests: &[Request],
        policy: Option<&PolicyHandle>,
    ) -> Result<Vec<Option<Result<Unsettled>>>> {
        let Some(cache) = &self.front.cache else {
            return Ok(requests.iter().map(|_| None).collect());
        };
        let serving = self.serving.load();
        serving.encoder.check_process()?;
        let compiled = policy.map(|policy| policy.against(&serving, &self.store));
        let compiled = compiled.transpose()?;
        let answerer = Answerer::new(&serving, compiled.as_deref());
        let hub = compiled
            .as_ref()
            .map_or(&serving.hub, |policy| &policy.serving.hub);
        let found = requests.iter().map(|request| {
            let mut decision = cache.get(answerer, request)?;
            decision.timing = Timing {
                batch: 1,
                ..Timing::default()
            };
            Some(Ok(Unsettled::new(hub, decision)))
        });
        Ok(found.collect())
    }

    /// Computes `asked` once their turn has come; those whose deadline has passed by then get the
    /// fallback.
    fn computed(
        &self,
        asked: Vec<Asked<'_>>,
        policy: Option<&PolicyHandle>,
        began: Instant,
        slot: Option<QueueSlot>,
    ) -> Vec<Result<Unsettled>> {
        let entered = match slot {
            Some(slot) => Ok(Some(slot)),
            None if self.front.queue.is_bounded() => {
                let requests = asked.iter().map(|asked| asked.request);
                let until = until(requests, began);
                self.front.queue.enter(until).map(Some)
            }
            None => Ok(None),
        };
        let (slot, late) = match entered {
            Ok(slot) => (slot, false),
            Err(Denied::Late) => (None, true),
            Err(Denied::Full(error)) => {
                return asked.iter().map(|_| Err(error.clone())).collect();
            }
        };
        let gone = began.elapsed();
        let is_late = |asked: &Asked<'_>| {
            let passed = |deadline: Duration| gone >= deadline;
            late || asked.request.deadline.is_some_and(passed)
        };
        let waited = slot.as_ref().map_or(Duration::ZERO, |slot| slot.waited);
        let mut answers: Vec<Option<Result<Unsettled>>> = Vec::with_capacity(asked.len());
        let mut timely = Vec::with_capacity(asked.len());
        for asked in asked {
            let fallback = is_late(&asked).then(|| self.late(asked.request, policy, began));
            if fallback.is_none() {
                timely.push(asked);
            }
            answers.push(fallback);
        }
        let mut computed = match timely.is_empty() {
            true => Vec::new(),
            false => self.answered(timely, policy, waited),
        }
        .into_iter();
        drop(slot);
        let answers = answers.into_iter();
        answers
            .filter_map(|answer| answer.or_else(|| computed.next()))
            .collect()
    }

    fn answered(
        &self,
        asked: Vec<Asked<'_>>,
        policy: Option<&PolicyHandle>,
        waited: Duration,
    ) -> Vec<Result<Unsettled>> {
        let Routed { hub, answers } = match self.route_all(&asked, policy) {
            Ok(routed) => routed,
            Err(error) => return asked.iter().map(|_| Err(error.clone())).collect(),
        };
        let answered = |(asked, answer): (Asked<'_>, Result<Decision>)| {
            let mut decision = answer?;
            decision.timing.queue = microseconds(waited);
            Ok(Unsettled {
                looked_for: asked.kept,
                ..Unsettled::new(&hub, decision)
            })
        };
        asked.into_iter().zip(answers).map(answered).collect()
    }

    /// The decision with its conversation's own model first, if that keeps it.
    fn settled(
        &self,
        request: &Request,
        answered: Unsettled,
        policy: Option<&PolicyHandle>,
        began: Instant,
    ) -> Result<Decision> {
        let Some(key) = &request.session else {
            return Ok(answered.decision);
        };
        let sessions = &self.front.sessions;
        let settle = |answered: &mut Unsettled| {
            let (hub, looked_for) = (&answered.hub, answered.looked_for.as_deref());
            let whole = policy.is_none();
            match answered.decision.abstained {
                // A fallback is no choice for the conversation.
                Some(_) => Settled::Yes,
                None => {
                    let decision = &mut answered.decision;
                    sessions.settle(key, hub, request.top, looked_for, whole, decision)
                }
            }
        };
        let mut answered = answered;
        if let Settled::Needs(model) = settle(&mut answered) {
            // A decision of the cache without that model, or one of a batch in which the
            // conversation got it.
            let asked = Asked {
                request,
                kept: Some(model),
            };
            if let Some(again) = self.computed(vec![asked], policy, began, None).pop() {
                answered = again?;
            }
            if settle(&mut answered) != Settled::Yes {
                // Another request of the conversation has changed its model meanwhile.
                answered.decision.ranked.truncate(request.top);
            }
        }
        Ok(answered.decision)
    }

    /// What the router has done and holds, for metrics.
    pub fn stats(&self) -> RouterStats {
        self.front.stats()
    }

    /// The decision that the cache has for `request`, in microseconds and without waiting for
    /// anything. For hosts whose threads may not compute: they route elsewhere what is `None`.
    ///
    /// `None` without a cache, for a request with a session, which may need more than the cache,
    /// and while `policy` is not compiled for the generation that is served now: the next call
    /// that routes within it compiles it. Only a decision that is given counts, as a hit.
    pub fn cached(&self, request: &Request, policy: Option<&PolicyHandle>) -> Option<Decision> {
        let began = Instant::now();
        let look = || Ok(self.at_hand(std::slice::from_ref(request), policy, began));
        caught("the cache", look).ok().flatten()?.pop()
    }

    /// The answers to `requests` if all of them are in the cache: in microseconds, and without
    /// waiting for anything. Requests with sessions may need more.
    pub(super) fn at_hand(
        &self,
        requests: &[Request],
        policy: Option<&PolicyHandle>,
        began: Instant,
    ) -> Option<Vec<Decision>> {
        let front = &self.front;
        let cache = front.cache.as_ref().filter(|_| front.is_own_process())?;
        let serving = self.serving.load();
        let compiled = match policy {
            Some(policy) => Some(policy.ready(&serving)?),
            None => None,
        };
        let answerer = Answerer::new(&serving, compiled.as_deref());
        let known = |request: &Request| request.session.is_none() && cache.has(answerer, request);
        if !requests.iter().all(known) {
            return None;
        }
        let decisions = requests.iter().map(|request| {
            let mut decision = cache.get(answerer, request)?;
            decision.timing.batch = 1;
            decision.timing.total = microseconds(began.elapsed());
            Some(decision)
        });
        decisions.collect()
    }
}

/// When the last of `requests` is late, if all have a deadline.
pub(super) fn until<'r>(
    requests: impl IntoIterator<Item = &'r Request>,
    began: Instant,
) -> Option<Instant> {
    let mut requests = requests.into_iter();
    let longest = requests.try_fold(Duration::ZERO, |longest, request| {
        Some(longest.max(request.deadline?))
    })?;
    began.checked_add(longest)
}

/// The same error for each of `requests`.
pub(super) fn all(requests: &[Request], error: &Error) -> Vec<Result<Decision>> {
    requests.iter().map(|_| Err(error.clone())).collect()
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
