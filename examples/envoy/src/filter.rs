//! What a stream goes through.

use std::sync::Arc;
use std::time::Instant;

use hubrouter::{
    AbstainReason, ChatModel, Decision, ErrorKind, PolicyHandle, Request, Router, StoreWatch,
};

use crate::abi::{BodyPart, ConfigHost, Stream};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::pool::{Answer, Ask, Pool, Slot};

/// Longer bodies are parsed on threads of the module.
const PARSED_ON_A_WORKER: usize = 64 << 10;

/// What filters of one configuration share.
pub(crate) struct Shared {
    config: Config,
    metrics: Metrics,
    router: Arc<Router>,
    policy: Option<Arc<PolicyHandle>>,
    pool: Pool,
    _watch: Option<StoreWatch>,
}

/// Whether the request goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    GoOn,
    /// It is held, with what has come of its body.
    Hold,
}

/// Why a request got its model, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    Decided,
    Cached,
    PolicyFallback,
    Abstained,
    NoCandidate,
    Deadline,
    Overloaded,
    InvalidRequest,
    TooLarge,
    Failed,
}

impl Reason {
    /// As in the header and in metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Decided => "decided",
            Self::Cached => "cached",
            Self::PolicyFallback => "policy_fallback",
            Self::Abstained => "abstained",
            Self::NoCandidate => "no_candidate",
            Self::Deadline => "deadline",
            Self::Overloaded => "overloaded",
            Self::InvalidRequest => "invalid_request",
            Self::TooLarge => "too_large",
            Self::Failed => "failed",
        }
    }

    fn of_error(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Deadline => Self::Deadline,
            ErrorKind::Overloaded => Self::Overloaded,
            ErrorKind::NoCandidate => Self::NoCandidate,
            ErrorKind::Format | ErrorKind::InvalidRequest => Self::InvalidRequest,
            _ => Self::Failed,
        }
    }

    /// Why `decision` is acted on, or is not.
    fn of_decision(decision: &Decision) -> Self {
        if decision.ranked.is_empty() {
            return Self::NoCandidate;
        }
        let policy = decision.policy.as_ref();
        if policy.is_some_and(|policy| policy.fallback.is_some()) {
            return Self::PolicyFallback;
        }
        match &decision.abstained {
            None if decision.cached => Self::Cached,
            None => Self::Decided,
            Some(why) => match why.reason {
                AbstainReason::NothingEligible => Self::NoCandidate,
                AbstainReason::Deadline => Self::Deadline,
                _ => Self::Abstained,
            },
        }
    }

    /// Whether the first model of the decision is to be taken.
    fn acts(self) -> bool {
        matches!(self, Self::Decided | Self::Cached | Self::PolicyFallback)
    }
}

/// The request that the chat request `body` makes.
pub(crate) fn request(body: &[u8]) -> hubrouter::Result<Request> {
    Ok(Request::from_chat(body)?.top(1))
}

impl Shared {
    /// Opens the router and starts the threads.
    ///
    /// Errors, for people: the configuration or the store is not valid.
    pub(crate) fn open(host: &mut ConfigHost<'_>, json: &[u8]) -> Result<Arc<Self>, String> {
        let metrics = Metrics::define(host)?;
        let config = Config::read(json)?;
        let router = Router::open(&config.store, config.options.clone());
        let router = Arc::new(router.map_err(|e| e.to_string())?);
        let policy = config.policy.as_ref().map(|policy| router.compile(policy));
        let policy = policy.transpose().map_err(|e| format!("policy: {e}"))?;
        let policy = policy.map(Arc::new);
        router.warm_up().map_err(|e| e.to_string())?;
        let watch = config.watch().map(|interval| router.watch(interval));
        let watch = watch.transpose().map_err(|e| e.to_string())?;
        let (deadline, threads, queue) = (config.deadline(), config.threads, config.queue);
        let pool = Pool::start(&router, policy.as_ref(), deadline, threads, queue)?;
        Ok(Arc::new(Self {
            config,
            metrics,
            router,
            policy,
            pool,
            _watch: watch,
        }))
    }

    /// True for a request of a chat API.
    fn is_chat(&self, stream: &Stream<'_>) -> bool {
        if stream.header(":method") != Some(b"POST") {
            return false;
        }
        let Some(path) = stream.header(":path") else {
            return false;
        };
        let path = path.split(|byte| *byte == b'?').next();
        let ours = |own: &String| path == Some(own.as_bytes());
        self.config.paths.iter().any(ours)
    }

    /// Acts on what a thread answered.
    fn answered(&self, stream: &mut Stream<'_>, held: &Held, answer: &Answer, into: BodyPart) {
        match answer {
            Some(Ok(decision)) => {
                let reason = Reason::of_decision(decision);
                self.act(stream, held, reason, Some(decision), into);
            }
            Some(Err(error)) => {
                let reason = Reason::of_error(error.kind());
                if reason == Reason::Failed {
                    log::warn!("not routed: {error}");
                }
                self.metrics.failed(stream, error.kind());
                self.act(stream, held, reason, None, into);
            }
            None => self.act(stream, held, Reason::Failed, None, into),
        }
    }

    /// Names the model that `decision` names, else the fallback if there is one.
    fn act(
        &self,
        stream: &mut Stream<'_>,
        held: &Held,
        reason: Reason,
        decision: Option<&Decision>,
        into: BodyPart,
    ) {
        let headers = &self.config.headers;
        let ranked = decision.filter(|_| reason.acts());
        let ranked = ranked.and_then(|decision| decision.ranked.first());
        let chosen = ranked.map(|ranked| ranked.deployments.first().unwrap_or(&ranked.model));
        let fallback = self.config.fallback_model.as_deref();
        let fallback = fallback.filter(|_| chosen.is_none());
        let name = chosen.map(|name| &**name).or(fallback);
        let changed = name.and_then(|name| held.asked.replaced_in(&held.body, name));
        if let (Some(name), Some(body)) = (name, changed) {
            if stream.header("content-length").is_some() {
                stream.set_header("content-length", body.len().to_string().as_bytes());
            }
            stream.set_body(&body, into);
            put(stream, &headers.model, name);
        }
        if let Some(decision) = decision {
            let generation = decision.revisions.generation.as_str();
            put(stream, &headers.generation, generation);
        }
        if let Some(ranked) = ranked {
            put(stream, &headers.domain, &ranked.domain);
            put(
                stream,
                &headers.probability,
                &format!("{:.4}", ranked.probability),
            );
        }
        if fallback.is_some() {
            put(stream, &headers.fallback, "true");
        }
        self.explain(stream, reason, fallback.is_some());
        let took = held.came.elapsed().as_micros();
        self.metrics
            .took(stream, u64::try_from(took).unwrap_or(u64::MAX));
    }

    /// Says why in a header and in the metrics, and has the route picked by the headers.
    fn explain(&self, stream: &mut Stream<'_>, reason: Reason, fallback: bool) {
        put(stream, &self.config.headers.reason, reason.word());
        self.metrics.decided(stream, reason, fallback);
        stream.pick_route_again();
    }
}

/// Sets a header. Bytes that a header may not have become `?`.
fn put(stream: &mut Stream<'_>, name: &str, value: &str) {
    let visible = |byte: u8| {
        if byte < 0x20 || byte == 0x7f {
            b'?'
        } else {
            byte
        }
    };
    let value: Vec<u8> = value.bytes().map(visible).collect();
    stream.set_header(name, &value);
}

/// A request that is to be routed.
struct Held {
    body: Arc<Vec<u8>>,
    /// The model that it asks for.
    asked: ChatModel,
    came: Instant,
}

enum Stage {
    /// Nothing has come.
    New,
    /// The body is held until it is whole.
    Reading,
    /// The body is whole, and a thread computes.
    Waiting(Held, Arc<Slot>),
    /// The request goes on.
    Done,
}

/// A stream's filter.
pub(crate) struct Filter {
    shared: Arc<Shared>,
    stage: Stage,
}

impl Filter {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            stage: Stage::New,
        }
    }

    /// The stage so far. The filter is done unless another one is set.
    fn leave(&mut self) -> Stage {
        std::mem::replace(&mut self.stage, Stage::Done)
    }

    /// Headers came; `end`: and nothing else will.
    pub(crate) fn headers(&mut self, stream: &mut Stream<'_>, end: bool) -> Next {
        self.leave();
        let config = &self.shared.config;
        // Nobody but this filter says where a request goes.
        let mut forged = false;
        for name in config.headers.all() {
            forged |= stream.remove_header(name);
        }
        if forged {
            stream.pick_route_again();
        }
        if end || !self.shared.is_chat(stream) {
            return Next::GoOn;
        }
        let said = stream.header("content-length");
        let said = said.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        if said.is_some_and(|bytes: usize| bytes > config.max_body_bytes) {
            self.shared.explain(stream, Reason::TooLarge, false);
            return Next::GoOn;
        }
        stream.hold_at_least(config.max_body_bytes as u64);
        self.stage = Stage::Reading;
        Next::Hold
    }

    /// A piece of the body came; `end`: the last one.
    pub(crate) fn body(&mut self, stream: &mut Stream<'_>, end: bool) -> Next {
        match self.leave() {
            Stage::Reading => {}
            stage => {
                let waits = matches!(stage, Stage::Waiting(..));
                self.stage = stage;
                return if waits { Next::Hold } else { Next::GoOn };
            }
        }
        let (held, came) = (BodyPart::Buffered, BodyPart::Received);
        if stream.body_size(held) + stream.body_size(came) > self.shared.config.max_body_bytes {
            self.shared.explain(stream, Reason::TooLarge, false);
            return Next::GoOn;
        }
        if !end {
            self.stage = Stage::Reading;
            return Next::Hold;
        }
        self.whole(stream, BodyPart::Received)
    }

    /// Trailers came: the body is whole.
    pub(crate) fn trailers(&mut self, stream: &mut Stream<'_>) -> Next {
        match self.leave() {
            Stage::Reading => self.whole(stream, BodyPart::Buffered),
            stage => {
                let waits = matches!(stage, Stage::Waiting(..));
                self.stage = stage;
                if waits { Next::Hold } else { Next::GoOn }
            }
        }
    }

    /// Routes the request, now that its body is whole. `into`: the part of the body to write.
    fn whole(&mut self, stream: &mut Stream<'_>, into: BodyPart) -> Next {
        let came = Instant::now();
        let shared = &self.shared;
        let body = stream.body();
        let to_route = |asked: &ChatModel| shared.config.models.contains(&asked.name);
        let Some(asked) = ChatModel::find(&body).filter(to_route) else {
            shared.metrics.passed(stream);
            return Next::GoOn;
        };
        let held = Held {
            body: Arc::new(body),
            asked,
            came,
        };
        let ask = match held.body.len() > PARSED_ON_A_WORKER {
            true => Ask::Body(Arc::clone(&held.body)),
            false => match request(&held.body) {
                Ok(request) => {
                    if let Some(hit) = shared.router.cached(&request, shared.policy.as_deref()) {
                        shared.answered(stream, &held, &Some(Ok(hit)), into);
                        return Next::GoOn;
                    }
                    Ask::Request(Box::new(request))
                }
                Err(error) => {
                    shared.answered(stream, &held, &Some(Err(error)), into);
                    return Next::GoOn;
                }
            },
        };
        let Some(slot) = stream.scheduler().map(Slot::new) else {
            shared.answered(stream, &held, &None, into);
            return Next::GoOn;
        };
        if shared.pool.ask(ask, came, &slot) {
            self.stage = Stage::Waiting(held, slot);
            return Next::Hold;
        }
        shared.act(stream, &held, Reason::Overloaded, None, into);
        Next::GoOn
    }

    /// A thread has answered. True if the request goes on now.
    pub(crate) fn scheduled(&mut self, stream: &mut Stream<'_>) -> bool {
        let (held, slot) = match self.leave() {
            Stage::Waiting(held, slot) => (held, slot),
            stage => {
                self.stage = stage;
                return false;
            }
        };
        // All of the body is held back by now.
        let answer = slot.take().flatten();
        self.shared
            .answered(stream, &held, &answer, BodyPart::Buffered);
        true
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Stage::Waiting(_, slot) = &self.stage {
            slot.close();
        }
    }
}
