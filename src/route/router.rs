//! The router: it opens a generation, routes prompts, installs another generation or rolls back.
#![expect(clippy::disallowed_types, reason = "times of a request, for Timing")]

mod abstaining;
mod explain;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::device::Device;
use crate::device::cpu::Cpu;
#[cfg(feature = "cli")]
use crate::encoder::seen::Seen;
use crate::encoder::{Encoder, for_each_good};
use crate::error::{Error, Result, caught, error};
use crate::files::short;
use crate::generation::GenerationId;
use crate::hub::Hub;
#[cfg(feature = "cli")]
use crate::hub::ModelId;
use crate::num::to_f32;
use crate::options::{Options, Precision};
use crate::route::front::{Asking, Front, Routed, all};
use crate::route::gather::OwnAsk;
use crate::route::open::GenerationSource;
use crate::route::policy::{Admitted, CompiledPolicy};
use crate::route::{
    Confidence, Decision, DomainScore, Policy, PolicyHandle, Ranked, Request, Revisions, Timing,
};
use crate::serve::index::Ranking;
use crate::serve::{Narrowing, PromptRanking, Serving};
use crate::store::Store;
use crate::text::tokenizer::{Cut, Tokens};

/// Picks the right model of a hub for a prompt.
///
/// `Send + Sync`: share one in an `Arc`. Every call uses the generation that is served when it
/// begins, so [`Router::install`] and [`Router::rollback`] never disturb a call under way.
///
/// ```
/// use hubrouter::{Options, Request, Router};
///
/// let router = Router::open("weights/cmrbench", Options::default().device("cpu"))?;
/// let decision = router.route(&Request::new("Translate this letter into Spanish.").top(3))?;
/// assert_eq!(decision.ranked.len(), 3);
/// println!("{} ({:.1})", decision.ranked[0].model, decision.ranked[0].score);
/// # Ok::<(), hubrouter::Error>(())
/// ```
pub struct Router {
    pub(super) store: Store,
    options: Options,
    host: Arc<Cpu>,
    pub(super) serving: ArcSwap<Serving>,
    pub(super) front: Front,
}

impl Router {
    /// Opens the current generation of the store in the folder `store`.
    ///
    /// If that generation is damaged, an earlier one opens instead, its ancestors first, and every
    /// decision says so.
    ///
    /// Errors: no generation is whole; its encoder is not found; the device cannot be opened and
    /// the options allow no fallback; the process lacks memory, file handles or permission.
    pub fn open(store: impl AsRef<Path>, options: Options) -> Result<Self> {
        let store = Store::open(store)?;
        Self::opened(|| {
            let source = GenerationSource::new(&store, &options, None)?;
            let serving = source.current()?;
            Ok((source.host, serving, store, options))
        })
    }

    /// As [`Router::open`], for the generation `id` of the store, whichever is current: to try one
    /// out before it serves, or beside the one that does.
    ///
    /// Errors: as [`Router::open`]; that generation is damaged.
    pub fn open_generation(
        store: impl AsRef<Path>,
        id: &GenerationId,
        options: Options,
    ) -> Result<Self> {
        let store = Store::open(store)?;
        Self::opened(|| {
            let source = GenerationSource::new(&store, &options, None)?;
            let serving = source.of(id)?;
            Ok((source.host, serving, store, options))
        })
    }

    /// As [`Router::open`], with an encoder that is open already: routers of several stores share
    /// its weights, its device and its threads. Of `options` only `fallback`,
    /// `precision`, `cache_bytes`, `queue` and `sessions` count.
    ///
    /// Errors: as [`Router::open`]; `encoder` is not the generation's.
    pub fn with_encoder(
        store: impl AsRef<Path>,
        encoder: Arc<Encoder>,
        options: Options,
    ) -> Result<Self> {
        let store = Store::open(store)?;
        Self::opened(|| {
            let source = GenerationSource::new(&store, &options, Some(encoder))?;
            let serving = source.current()?;
            Ok((source.host, serving, store, options))
        })
    }

    fn opened(open: impl FnOnce() -> Result<(Arc<Cpu>, Serving, Store, Options)>) -> Result<Self> {
        let (host, serving, store, options) = caught("opening the router", open)?;
        let front = Front::new(&options, host.threads(), serving.encoder.device())?;
        log::info!("serving {}: {} models", serving.id, serving.hub.active());
        Ok(Self {
            store,
            options,
            host,
            serving: ArcSwap::from_pointee(serving),
            front,
        })
    }

    /// The best models for one prompt.
    ///
    /// Errors: the prompt is empty; every model is retired; the device failed and the options
    /// allow no fallback.
    pub fn route(&self, request: &Request) -> Result<Decision> {
        match self.route_batch(std::slice::from_ref(request)).pop() {
            Some(decision) => decision,
            None => unreachable!("one request has one answer"),
        }
    }

    /// The best models for each prompt, computed together; a bad prompt spoils only itself.
    ///
    /// An answer does not depend on the other prompts of its batch; where a GPU has a part in it, but
    /// for the last bits (`docs/gpu.md`). A panic inside becomes an error
    /// of kind [`crate::ErrorKind::Panic`]. In a forked child, where the parent's threads and GPU
    /// do not exist, all answers are errors of kind [`crate::ErrorKind::Unsupported`].
    pub fn route_batch(&self, requests: &[Request]) -> Vec<Result<Decision>> {
        self.all_caught(requests, None)
    }

    /// Compiles `policy` against the hub that is served: names are looked up, constraints become
    /// masks, and a few candidates get an index of their own.
    ///
    /// The handle is for this router. It is compiled again by the first request after another
    /// generation was installed, or after a step down to the CPU. With cards of models that the hub
    /// does not know, that takes as long as adding them.
    ///
    /// Errors: a name is not in the hub (the text lists similar ones); a constraint, a factor or a
    /// card is not valid; the policy names a cache or sessions and the router was not opened by
    /// [`Options::for_policy`]. That nothing is eligible is no error here: see
    /// [`PolicyHandle::eligible`].
    pub fn compile(&self, policy: &Policy) -> Result<PolicyHandle> {
        let serving = self.serving.load_full();
        serving.encoder.check_process()?;
        policy.check_router(&self.options)?;
        let compiled = caught("compiling a policy", || {
            CompiledPolicy::new(policy, &serving, &self.store)
        })?;
        Ok(PolicyHandle::new(policy.clone(), compiled))
    }

    /// As [`Router::route`], among the models that `policy` lets answer.
    ///
    /// Errors: as [`Router::route`]; of kind [`crate::ErrorKind::NoCandidate`] if none may, with
    /// the parts of the policy and how many models each excluded.
    pub fn route_within(&self, request: &Request, policy: &PolicyHandle) -> Result<Decision> {
        let requests = std::slice::from_ref(request);
        match self.route_batch_within(requests, policy).pop() {
            Some(decision) => decision,
            None => unreachable!("one request has one answer"),
        }
    }

    /// As [`Router::route_batch`], among the models that `policy` lets answer.
    pub fn route_batch_within(
        &self,
        requests: &[Request],
        policy: &PolicyHandle,
    ) -> Vec<Result<Decision>> {
        self.all_caught(requests, Some(policy))
    }

    fn all_caught(
        &self,
        requests: &[Request],
        policy: Option<&PolicyHandle>,
    ) -> Vec<Result<Decision>> {
        let answers = caught("the router", || match self.front.is_plain(requests) {
            true => Ok(self.route_all(requests, policy)?.answers),
            false => self.route_managed(requests, policy, Instant::now(), None),
        });
        answers.unwrap_or_else(|error| all(requests, &error))
    }

    pub(super) fn route_all<A: Asking>(
        &self,
        requests: &[A],
        policy: Option<&PolicyHandle>,
    ) -> Result<Routed> {
        let Some(gatherer) = self.front.gatherer(requests.len()) else {
            return self.route_apart(requests, policy);
        };
        let began = Instant::now();
        let compute = |asks: &[OwnAsk], on_one_thread| {
            let compute = || self.route_apart(asks, policy);
            match on_one_thread {
                true => Cpu::alone(compute),
                false => compute(),
            }
        };
        let mut routed = gatherer.run(requests, policy, compute)?;
        let total = microseconds(began);
        for decision in routed.answers.iter_mut().flatten() {
            decision.timing.total = total;
        }
        Ok(routed)
    }

    fn route_apart<A: Asking>(
        &self,
        requests: &[A],
        policy: Option<&PolicyHandle>,
    ) -> Result<Routed> {
        let serving = self.serving.load_full();
        serving.encoder.check_process()?;
        let routed = self.route_on(&serving, requests, policy)?;
        let errors = routed
            .answers
            .iter()
            .filter_map(|answer| answer.as_ref().err());
        match errors.into_iter().find(|error| error.kind().is_device()) {
            Some(error) if self.options.steps_down(error) => {
                let serving = self.step_down(&serving, error)?;
                self.route_on(&serving, requests, policy)
            }
            _ => Ok(routed),
        }
    }

    fn route_on<A: Asking>(
        &self,
        serving: &Arc<Serving>,
        requests: &[A],
        policy: Option<&PolicyHandle>,
    ) -> Result<Routed> {
        let began = Instant::now();
        let compiled = policy.map(|policy| policy.against(serving, &self.store));
        let compiled = compiled.transpose()?;
        let policy = compiled.as_deref();
        let ranked = || self.ranked_on(serving, requests, policy, began);
        let answers = match serving.encoder.device() {
            // Helpers are woken once for everything.
            Device::Cpu(cpu) => cpu.run(ranked)?,
            Device::Gpu(_) => ranked()?,
        };
        self.front.remember(serving, policy, requests, &answers);
        let hub = &policy.map_or(serving, |policy| &policy.serving).hub;
        Ok(Routed {
            hub: Arc::clone(hub),
            answers,
        })
    }

    fn ranked_on<A: Asking>(
        &self,
        serving: &Arc<Serving>,
        requests: &[A],
        policy: Option<&CompiledPolicy>,
        began: Instant,
    ) -> Result<Vec<Result<Decision>>> {
        let starts = Instant::now();
        let serving = policy.map_or(serving, |policy| &policy.serving);
        let prompts = requests.iter().map(Asking::request);
        let prompts = prompts.map(|r| (r.prompt.as_str(), cut_of(r)));
        let tokens = serving.encoder.tokenize_cut(&prompts.collect::<Vec<_>>());
        let tokenize = microseconds(starts);
        let nobody = (serving.index.eligible() == 0)
            .then(|| error!(NoCandidate, "{}: every model is retired", serving.id));
        let asks = requests.iter().zip(tokens).map(|(asked, tokens)| {
            let tokens = tokens?;
            if let Some(error) = &nobody {
                return Err(error.clone());
            }
            let kept = asked.kept().and_then(|name| serving.hub.find(name));
            let kept = kept.map(|id| id.0);
            let needs = asked.request().chat.as_ref().map(|chat| &chat.needs);
            let admitted = policy.map(|policy| policy.admit(needs, 0)).transpose()?;
            Ok(PromptToRank {
                tokens,
                admitted,
                kept,
            })
        });
        // One more than wanted, for the margin.
        let k = requests.iter().map(|r| r.request().top).max();
        let k = k.unwrap_or(0).max(2);
        let k = match policy.is_some_and(CompiledPolicy::ranks_all) {
            true => usize::MAX,
            false => k,
        };
        let asks: Vec<Result<PromptToRank>> = asks.collect();
        let of_prompts = asks.iter().flatten().map(|ask| ask.tokens.ids.len());
        let (serving, device_reason) = serving.for_tokens(of_prompts.sum());
        let ranked = for_each_good(asks, |asks| {
            let answers = rank(serving, policy, &asks, k).into_iter().zip(asks);
            let with_ask = |(answer, ask): (Result<_>, _)| Ok((answer?, ask));
            answers.map(with_ask).collect()
        });
        let decide = |place: usize| {
            let (answer, ask): &(PromptRanking, PromptToRank) = match &ranked[place] {
                Ok(both) => both,
                Err(error) => return Err(error.clone()),
            };
            let timing = Timing {
                tokenize,
                encode: answer.encode,
                score: answer.score,
                batch: answer.batch,
                ..Timing::default()
            };
            let (request, ranking) = (requests[place].request(), &answer.ranking);
            let within = policy.zip(ask.admitted.as_ref());
            Ok(decide(serving, request, ask, ranking, within, timing))
        };
        let mut decided = self.host.map(ranked.len(), 20_000, decide);
        if let Some(policy) = policy {
            abstaining::abstain(serving, policy, requests, k, &mut decided);
        }
        let total = microseconds(began);
        for decision in decided.iter_mut().flatten() {
            decision.timing.total = total;
            decision.device_reason.clone_from(&device_reason);
        }
        Ok(decided)
    }

    /// Reopens `failed`'s generation on the CPU and serves it, unless another call has already.
    fn step_down(&self, failed: &Arc<Serving>, error: &Error) -> Result<Arc<Serving>> {
        let now = self.serving.load_full();
        if !Arc::ptr_eq(&now, failed) {
            return Ok(now);
        }
        let (id, passed_over) = (failed.id.clone(), failed.passed_over.clone());
        let encoder = Some(Arc::clone(&failed.encoder));
        let source = GenerationSource::new(&self.store, &self.options, encoder)?;
        let contents = self.store.contents(&id)?;
        let serving = source.on_cpu(id, &contents, passed_over, error)?;
        Ok(self.replaced(failed, Arc::new(serving)))
    }

    /// Serves `by` in place of `failed`, if that is still served. Returns what is served now.
    fn replaced(&self, failed: &Arc<Serving>, by: Arc<Serving>) -> Arc<Serving> {
        let before = self.serving.compare_and_swap(failed, Arc::clone(&by));
        if Arc::ptr_eq(&before, failed) {
            self.front.forget();
            by
        } else {
            Arc::clone(&before)
        }
    }

    /// Serves the generation `id` of the store from now on. It is opened and checked beside the
    /// old one; on an error the old one stays.
    pub fn install(&self, id: &GenerationId) -> Result<()> {
        let serving = self.open_beside(id)?;
        self.swap(serving);
        Ok(())
    }

    /// The generation `id` of the store, with the encoder that is open if it is the one.
    fn open_beside(&self, id: &GenerationId) -> Result<Serving> {
        let old = self.serving.load_full();
        old.encoder.check_process()?;
        caught("installing a generation", || {
            let encoder = Some(Arc::clone(&old.encoder));
            GenerationSource::new(&self.store, &self.options, encoder)?.of(id)
        })
    }

    fn swap(&self, serving: Serving) {
        log::info!("installed {}", serving.id);
        self.serving.store(Arc::new(serving));
        self.front.forget();
    }

    /// Serves the store's current generation, if it is not served already: after another process
    /// has learned or rolled back. True if something changed.
    ///
    /// Errors: it cannot be opened; the served generation stays then.
    pub fn refresh(&self) -> Result<bool> {
        let current = self.store.current()?;
        let changed = current != self.generation();
        if changed {
            self.install(&current)?;
        }
        Ok(changed)
    }

    /// Makes the parent of the served generation current in the store and serves it.
    ///
    /// Errors: it has no parent, or that cannot be opened; the store is read-only. Store and router
    /// stay as they are then.
    pub fn rollback(&self) -> Result<GenerationId> {
        let parent = self.store.parent(&self.generation())?;
        let serving = self.open_beside(&parent)?;
        self.store.set_current(&parent)?;
        self.swap(serving);
        Ok(parent)
    }

    /// The generation that is served.
    pub fn generation(&self) -> GenerationId {
        self.serving.load().id.clone()
    }

    /// The hub that is served, as it is at this moment.
    pub fn hub(&self) -> Arc<Hub> {
        Arc::clone(&self.serving.load().hub)
    }

    /// The encoder of the served generation.
    pub fn encoder(&self) -> Arc<Encoder> {
        Arc::clone(&self.serving.load().encoder)
    }

    /// The device that computes: `cpu`, or an adapter's name.
    pub fn device_name(&self) -> String {
        self.serving.load().encoder.device_name().to_owned()
    }

    /// Why this device was chosen.
    pub fn device_reason(&self) -> String {
        self.serving.load().encoder.device_reason().to_owned()
    }

    /// The numbers of the encoder's products: f32, bf16 or int8.
    pub fn precision(&self) -> Precision {
        self.serving.load().precision()
    }

    /// Why these numbers were chosen.
    pub fn precision_reason(&self) -> String {
        self.serving.load().why.clone()
    }

    /// Threads of the CPU's pool.
    pub fn threads(&self) -> usize {
        self.host.threads()
    }

    /// Tokens of a prompt, special ones included; longer prompts are cut.
    pub fn max_tokens(&self) -> usize {
        self.serving.load().encoder.max_tokens()
    }

    /// The best model of each vector of [`Encoder::embed`]; `None` if the served generation needs
    /// the text, as it has an adapter or a memory.
    #[cfg(feature = "cli")]
    pub(crate) fn best_by_vectors(&self, vectors: &[&[f32]]) -> Result<Option<Vec<ModelId>>> {
        let serving = self.serving.load_full();
        let adapter = self.store.manifest(&serving.id)?.adapter;
        if adapter.is_some() || serving.index.recall().is_some() {
            return Ok(None);
        }
        let seen = |vector: &&[f32]| Seen {
            pooled: vector.to_vec(),
            ..Seen::default()
        };
        let seen: Vec<Seen> = vectors.iter().map(seen).collect();
        let best = serving.best_of(&seen.iter().collect::<Vec<_>>())?;
        Ok(Some(best.into_iter().map(ModelId).collect()))
    }

    /// The store that the router was opened on.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("store", &self.store.root())
            .field("generation", &self.generation())
            .field("device", &self.device_name())
            .finish_non_exhaustive()
    }
}

fn cut_of(request: &Request) -> Cut {
    match request.chat {
        Some(_) => Cut::Middle,
        None => Cut::Right,
    }
}

fn microseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e6
}

/// A request's tokens, and the models that a policy lets answer it.
struct PromptToRank {
    tokens: Tokens,
    admitted: Option<Admitted>,
    /// A model whose score the answer must have, if it is eligible.
    kept: Option<u32>,
}

/// The kept model of each prompt; empty if none has one.
fn kept<'a>(asks: impl Iterator<Item = &'a PromptToRank> + Clone) -> Vec<Option<u32>> {
    match asks.clone().any(|ask| ask.kept.is_some()) {
        true => asks.map(|ask| ask.kept).collect(),
        false => Vec::new(),
    }
}

/// The answers to `asks`; those of one level of the policy are ranked together.
fn rank(
    serving: &Serving,
    policy: Option<&CompiledPolicy>,
    asks: &[PromptToRank],
    k: usize,
) -> Vec<Result<PromptRanking>> {
    let Some(policy) = policy else {
        let tokens: Vec<&Tokens> = asks.iter().map(|ask| &ask.tokens).collect();
        let narrowing = Narrowing {
            kept: &kept(asks.iter()),
            ..Narrowing::default()
        };
        return serving.rank_all(&tokens, k, narrowing);
    };
    let mut answers: Vec<(usize, Result<PromptRanking>)> = Vec::with_capacity(asks.len());
    for level in 0..policy.levels() {
        let of_level = asks.iter().enumerate().filter_map(|(place, ask)| {
            let admitted = ask.admitted.as_ref()?;
            (admitted.level == level).then_some((place, ask, admitted))
        });
        let of_level: Vec<_> = of_level.collect();
        let tokens: Vec<&Tokens> = of_level.iter().map(|(_, ask, _)| &ask.tokens).collect();
        let admitted: Vec<&Admitted> = of_level.iter().map(|(.., admitted)| *admitted).collect();
        let masks = policy.masks(level, &admitted);
        let narrowing = Narrowing {
            index: policy.index(level),
            masks: &masks,
            kept: &kept(of_level.iter().map(|(_, ask, _)| *ask)),
        };
        let ranked = serving.rank_all(&tokens, k, narrowing);
        let places = of_level.iter().map(|(place, ..)| *place);
        answers.extend(places.zip(ranked));
    }
    answers.sort_unstable_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn decide(
    serving: &Serving,
    request: &Request,
    ask: &PromptToRank,
    ranking: &Ranking,
    within: Option<(&CompiledPolicy, &Admitted)>,
    timing: Timing,
) -> Decision {
    let Ranking {
        best,
        domains,
        total,
        parts,
        ..
    } = ranking;
    let own = within.and_then(|(policy, admitted)| policy.index(admitted.level));
    let index = own.unwrap_or(&serving.index);
    #[expect(clippy::cast_possible_truncation, reason = "a probability")]
    // Rounding may leave a little more than 1.
    let probability = |score: f32| (f64::from(score) - *total).exp().min(1.0) as f32;
    let weighed = within.and_then(|(policy, admitted)| policy.weigh(best, admitted));
    let order: Vec<(usize, Option<f64>)> = match &weighed {
        Some(weighed) => weighed.iter().map(|w| (w.place, w.utility)).collect(),
        None => (0..best.len()).map(|place| (place, None)).collect(),
    };
    let margin = match (order.as_slice(), best.as_slice()) {
        ([(_, Some(first)), (_, Some(second)), ..], _) => Some(to_f32(first - second)),
        (_, [(_, first), (_, second), ..]) if weighed.is_none() => Some(first - second),
        _ => None,
    };
    let wanted = |rank: usize, place: usize| rank < request.top || Some(best[place].0) == ask.kept;
    let ranked = order
        .iter()
        .enumerate()
        .filter(|(rank, (place, _))| wanted(*rank, *place))
        .filter_map(|(_, (place, utility))| {
            let (id, score) = best[*place];
            let parts = parts.get(*place).copied();
            let deployments = within.map(|(policy, admitted)| policy.deployments(id, admitted));
            let id = crate::hub::ModelId(id);
            let model = serving.hub.get(id)?;
            Some(Ranked {
                id,
                model: Arc::clone(&model.name),
                score,
                cosine: index.cosine(score, parts.as_ref()),
                parts,
                probability: probability(score),
                domain: Arc::clone(&model.domain),
                family: model.family.clone(),
                deployments: deployments.unwrap_or_default(),
                utility: *utility,
            })
        })
        .collect();
    let answer = order.first().map(|(place, _)| best[*place]);
    let confidence = answer.zip(serving.confidences.as_ref());
    let confidence = confidence.map(|(answer, sure)| Confidence::new(sure, index, ranking, answer));
    let record = within.map(|(policy, admitted)| {
        let mut record = policy.record(admitted);
        let weighed = weighed.as_deref();
        record.pareto = weighed.map_or_else(Vec::new, |weighed| policy.front(weighed, best));
        record
    });
    let mut domains: Vec<DomainScore> = index
        .domains()
        .iter()
        .zip(domains)
        .filter_map(|(domain, score)| {
            let score = (*score)?;
            Some(DomainScore {
                domain: Arc::clone(domain),
                score,
                probability: probability(score),
            })
        })
        .collect();
    domains.sort_by(|a, b| b.score.total_cmp(&a.score));
    let encoder = &serving.encoder;
    let tokens = &ask.tokens;
    Decision {
        schema_version: Decision::schema_version(),
        prompt_id: request.prompt_id.clone(),
        ranked,
        domains,
        margin,
        tokens: tokens.ids.len(),
        truncated: tokens.truncated,
        unknown: encoder.unknown_share(tokens),
        chat: request.chat.clone(),
        policy: record,
        confidence,
        abstained: None,
        session: None,
        cached: false,
        degraded: degraded(encoder.degraded(), serving.passed_over.as_deref()),
        device: encoder.device_name().to_owned(),
        device_reason: None,
        precision: serving.precision(),
        revisions: revisions(serving),
        timing,
    }
}

pub(super) fn revisions(serving: &Serving) -> Revisions {
    let encoder = &serving.encoder;
    Revisions {
        generation: serving.id.clone(),
        encoder: format!("{}@{}", encoder.name(), short(encoder.revision())),
        tokenizer: short(encoder.tokenizer_revision()).to_owned(),
    }
}

pub(super) fn degraded(device: Option<&str>, generation: Option<&str>) -> Option<String> {
    let reasons: Vec<&str> = [device, generation].into_iter().flatten().collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}
