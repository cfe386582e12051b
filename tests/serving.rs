//! The cache, sessions, deadlines, the queue and hot reload, on routers of small hubs.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{cpu, toy};
use hubrouter::{
    AbstainReason, Decision, ErrorKind, GenerationId, Options, Policy, PolicyHandle, Request,
    Router, SessionOptions, SessionOutcome, Store,
};

/// Nothing here takes so long on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store of six models and, as its second generation, of five.
struct Place {
    setup: toy::Setup,
    /// Without and with the best model of `prompt`.
    ids: [GenerationId; 2],
    /// A prompt whose best model the second generation has retired.
    prompt: String,
}

impl Place {
    fn new(name: &str) -> Self {
        let setup = toy::setup(name);
        let store = Store::open(&setup.store).unwrap();
        let first = store.current().unwrap();
        let prompt = "find a model for french number 0".to_owned();
        let options = cpu(1).encoder(&setup.encoder);
        let router = Router::open(&setup.store, options).unwrap();
        let best = best(&router.route(&Request::new(&*prompt)).unwrap());
        let second = store.retire(&best).unwrap();
        store.set_current(&first).unwrap();
        let ids = [first, second];
        Self { setup, ids, prompt }
    }

    fn open(&self, options: Options) -> Arc<Router> {
        let options = options.encoder(&self.setup.encoder);
        Arc::new(Router::open(&self.setup.store, options).unwrap())
    }

    fn store(&self) -> Store {
        Store::open(&self.setup.store).unwrap()
    }
}

fn cached() -> Options {
    cpu(1).cache_bytes(4 << 20)
}

fn best(decision: &Decision) -> String {
    decision.ranked[0].model.to_string()
}

/// The decision without what differs from call to call.
fn lasting(decision: &Decision) -> serde_json::Value {
    let mut json = serde_json::to_value(decision).unwrap();
    let fields = json.as_object_mut().unwrap();
    fields.remove("timings_us");
    fields.remove("cached");
    json
}

fn compiled(router: &Router, policy: &str) -> PolicyHandle {
    let policy: Policy = serde_json::from_str(policy).unwrap();
    router.compile(&policy).unwrap()
}

#[test]
fn a_hit_is_the_same_answer_and_says_so() {
    let place = Place::new("hit");
    let router = place.open(cached());
    let request = Request::new(&*place.prompt).top(3).prompt_id("a");
    let first = router.route(&request).unwrap();
    let again = router.route(&request).unwrap();
    assert_eq!((first.cached, again.cached), (false, true));
    assert_eq!(lasting(&first), lasting(&again));
    let timing = again.timing;
    assert_eq!((timing.encode, timing.queue, timing.batch), (0.0, 0.0, 1));
    assert!(timing.total > 0.0 && timing.total < first.timing.total);
    let json = serde_json::to_string(&again).unwrap();
    assert!(json.contains(r#""cached":true"#), "{json}");
    // Of a batch only the new prompt is computed; the order and the ids are the batch's own.
    let other = Request::new("a photo").top(3).prompt_id("b");
    let answers = router.route_batch(&[other.clone(), request.clone(), Request::new("")]);
    let [new, known, empty] = answers.try_into().unwrap();
    let (new, known) = (new.unwrap(), known.unwrap());
    assert_eq!((new.cached, &*new.prompt_id), (false, "b"));
    assert_eq!((known.cached, &*known.prompt_id), (true, "a"));
    assert_eq!(empty.unwrap_err().kind(), ErrorKind::InvalidRequest);
    let plain = place.open(cpu(1));
    assert_eq!(lasting(&plain.route(&other).unwrap()), lasting(&new));
    let stats = router.stats().cache.unwrap();
    assert_eq!((stats.hits, stats.misses, stats.entries), (2, 3, 2));
    assert!(plain.stats().cache.is_none());
}

#[test]
fn what_the_cache_has_can_be_asked_for_alone() {
    let place = Place::new("alone");
    let router = place.open(cached());
    let policy = compiled(&router, r#"{"deny": ["model-5"]}"#);
    let request = Request::new(&*place.prompt).top(3);
    assert!(router.cached(&request, None).is_none());
    let routed = router.route(&request).unwrap();
    let found = router.cached(&request, None).unwrap();
    assert!(found.cached && found.timing.total > 0.0);
    assert_eq!(lasting(&found), lasting(&routed));
    assert!(router.cached(&request, Some(&policy)).is_none());
    router.route_within(&request, &policy).unwrap();
    assert!(router.cached(&request, Some(&policy)).is_some());
    // Only what is given counts; each of the two routes was a miss.
    let stats = router.stats().cache.unwrap();
    assert_eq!((stats.hits, stats.misses), (2, 2));
    let session = request.clone().session("acme", "7");
    assert!(router.cached(&session, None).is_none());
    // Until something is routed within it, the policy is one for the former generation.
    router.install(&place.ids[1]).unwrap();
    assert!(router.cached(&request, None).is_none());
    assert!(router.cached(&request, Some(&policy)).is_none());
    router.route_within(&request, &policy).unwrap();
    assert!(router.cached(&request, Some(&policy)).is_some());
    let plain = place.open(cpu(1));
    plain.route(&request).unwrap();
    assert!(plain.cached(&request, None).is_none());
}

#[test]
fn no_answer_of_another_generation_is_given() {
    let place = Place::new("stale");
    let router = place.open(cached());
    let request = Request::new(&*place.prompt).top(6);
    let ask = || {
        let [first, second] = [(); 2].map(|()| router.route(&request).unwrap());
        assert_eq!(lasting(&first), lasting(&second));
        assert!(second.cached && !first.cached, "{first:?}");
        assert_eq!(first.revisions.generation, router.generation());
        first.ranked.len()
    };
    let [with, without] = &place.ids;
    assert_eq!(ask(), 6);
    router.install(without).unwrap();
    assert_eq!(ask(), 5);
    assert_eq!(&router.rollback().unwrap(), with);
    assert_eq!(ask(), 6);
    place.store().set_current(without).unwrap();
    assert!(router.refresh().unwrap());
    assert_eq!(ask(), 5);
    // The same generation, opened again: it may be on another device.
    router.install(without).unwrap();
    assert_eq!(ask(), 5);
}

#[test]
fn a_policy_has_answers_of_its_own() {
    let place = Place::new("policies");
    let router = place.open(cached());
    let request = Request::new(&*place.prompt);
    let first = best(&router.route(&request).unwrap());
    let [deny, other] = [
        format!(r#"{{"deny":["{first}"]}}"#),
        r#"{"where":"name = model-3"}"#.to_owned(),
    ]
    .map(|policy| compiled(&router, &policy));
    for _ in 0..2 {
        assert_eq!(best(&router.route(&request).unwrap()), first);
        let within = |policy| router.route_within(&request, policy).unwrap();
        assert_ne!(best(&within(&deny)), first);
        assert_eq!(best(&within(&other)), "model-3");
    }
    let stats = router.stats().cache.unwrap();
    assert_eq!((stats.hits, stats.misses), (4, 3));
    // After a swap the policy is compiled again, and its answers are new.
    router.install(&place.ids[1]).unwrap();
    let decision = router.route_within(&request, &other).unwrap();
    assert!(!decision.cached && decision.revisions.generation == place.ids[1]);
}

#[test]
fn a_policy_names_the_cache_and_the_sessions_of_its_router() {
    let place = Place::new("named");
    let toml = "cache_bytes = 1048576\nsessions = { margin = 0.5, idle_seconds = 60 }\n";
    let policy = Policy::from_toml(toml).unwrap();
    let options = cpu(1).for_policy(&policy);
    let sessions = &options.sessions;
    assert_eq!((options.cache_bytes, sessions.idle_seconds), (1 << 20, 60));
    assert_eq!(sessions.bytes, SessionOptions::default().bytes);
    let router = place.open(options);
    let handle = router.compile(&policy).unwrap();
    let request = Request::new(&*place.prompt);
    let cached = [(); 2].map(|()| router.route_within(&request, &handle).unwrap().cached);
    assert_eq!(cached, [false, true]);
    // Another policy of the same router need not name them.
    router.compile(&Policy::default()).unwrap();
    // A router without them would not do what the policy says.
    for (options, want) in [
        (
            cpu(1),
            "cache_bytes: the policy names 1048576, and its router was opened with 0",
        ),
        (
            cpu(1).cache_bytes(1 << 20),
            "sessions: the policy names others",
        ),
    ] {
        let error = place.open(options).compile(&policy).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().starts_with(want), "{error}");
    }
}

#[test]
fn a_conversation_keeps_its_model_with_a_cache_and_without() {
    let open = |options: Options| Router::open(common::store(), options).unwrap();
    let wide = SessionOptions::default();
    let sessions = |margin: f32| {
        let mut sessions = wide.clone();
        sessions.margin = margin;
        sessions
    };
    let plain = open(cpu(1));
    let [a, b] = [
        "Translate this letter.",
        "Which bird is singing in this recording?",
    ];
    let [of_a, of_b] = [a, b].map(|prompt| best(&plain.route(&Request::new(prompt)).unwrap()));
    assert_ne!(of_a, of_b);
    let mut answers = Vec::new();
    for options in [cpu(1), cached(), cpu(2).queue(4), cached().queue(4)] {
        let mut found = Vec::new();
        for margin in [f32::INFINITY, 0.0] {
            let router = open(options.clone().sessions(sessions(margin)));
            // In the cache, with one rank, before the conversation comes.
            for prompt in [a, b] {
                router.route(&Request::new(prompt).top(1)).unwrap();
            }
            let of = |prompt: &str, tenant: &str| Request::new(prompt).top(1).session(tenant, "s");
            let turns = [of(a, "me"), of(b, "me"), of(b, "you"), of(b, "me")];
            let one_by_one: Vec<Decision> = turns
                .iter()
                .map(|turn| router.route(turn).unwrap())
                .collect();
            // The turns of a batch come one after the other, too.
            let batch = turns.map(|turn| {
                let key = turn.session.clone().unwrap();
                turn.session(key.tenant + "2", key.id)
            });
            let batch = router.route_batch(&batch).into_iter();
            let batch: Vec<Decision> = batch.map(Result::unwrap).collect();
            for (alone, together) in one_by_one.iter().zip(&batch) {
                assert_eq!(lasting(alone), lasting(together));
            }
            found.extend(one_by_one.iter().map(lasting));
            let outcomes = one_by_one.iter().map(|decision| {
                assert_eq!(decision.ranked.len(), 1);
                let record = decision.session.clone().unwrap();
                (best(decision), record.outcome, record.former.is_some())
            });
            use SessionOutcome::{Kept, Outscored, Started};
            let second = match margin {
                0.0 => (of_b.clone(), Outscored, true),
                _ => (of_a.clone(), Kept, false),
            };
            let last = (second.0.clone(), Kept, false);
            let first = (of_a.clone(), Started, false);
            let other = (of_b.clone(), Started, false);
            assert_eq!(outcomes.collect::<Vec<_>>(), [first, second, other, last]);
            assert_eq!(router.stats().sessions, 4);
        }
        answers.push(found);
    }
    assert!(answers.iter().all(|found| *found == answers[0]));
}

#[test]
fn a_conversation_survives_a_swap_if_its_model_does() {
    let place = Place::new("survives");
    let sessions: SessionOptions = serde_json::from_str(r#"{"margin": 1000}"#).unwrap();
    let router = place.open(cpu(1).sessions(sessions));
    let turn = |id: &str, prompt: &str, policy: Option<&PolicyHandle>| {
        let request = Request::new(prompt).top(2).session("", id);
        let decision = match policy {
            Some(policy) => router.route_within(&request, policy),
            None => router.route(&request),
        };
        let decision = decision.unwrap();
        let record = decision.session.clone().unwrap();
        (best(&decision), record.outcome)
    };
    let (lost, _) = turn("lost", &place.prompt, None);
    let only = compiled(&router, r#"{"where":"name = model-3"}"#);
    let (kept, _) = turn("kept", &place.prompt, Some(&only));
    assert_eq!(kept, "model-3");
    router.install(&place.ids[1]).unwrap();
    assert_eq!(
        turn("kept", &place.prompt, None),
        (kept, SessionOutcome::Kept)
    );
    let (model, outcome) = turn("lost", &place.prompt, None);
    assert!(model != lost && outcome == SessionOutcome::NotEligible);
    // A policy that does not admit the model ends it, too.
    let deny = compiled(&router, r#"{"deny":["model-3"]}"#);
    let (model, outcome) = turn("kept", &place.prompt, Some(&deny));
    assert!(model != "model-3" && outcome == SessionOutcome::NotEligible);
    // A model that is not in the hub that is served.
    let options = cpu(1).encoder(&place.setup.encoder);
    let encoder = Arc::new(hubrouter::Encoder::open(&place.setup.encoder, &options).unwrap());
    let store = place.store();
    let newest = store
        .add(&encoder, &[toy::model(6)], &mut |_, _| {})
        .unwrap();
    router.install(&newest).unwrap();
    let only = compiled(&router, r#"{"where":"name = model-6"}"#);
    assert_eq!(turn("new", &place.prompt, Some(&only)).0, "model-6");
    router.install(&place.ids[0]).unwrap();
    assert_eq!(turn("new", &place.prompt, None).1, SessionOutcome::NotInHub);
    let long = Request::new("x").session("t", "x".repeat(2000));
    assert_eq!(
        router.route(&long).unwrap_err().kind(),
        ErrorKind::InvalidRequest
    );
}

#[test]
fn past_the_deadline_the_last_fallback_answers() {
    let place = Place::new("deadlines");
    let router = place.open(cpu(1));
    let request = Request::new(&*place.prompt);
    let late = request.clone().deadline(Duration::ZERO).prompt_id("late");
    let error = router.route(&late).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Deadline);
    let text = error.to_string();
    assert!(
        text.starts_with("expected an answer within 0.0 ms, found "),
        "{text}"
    );
    let bare = compiled(&router, r#"{"where":"name = model-1"}"#);
    let error = router.route_within(&late, &bare).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Deadline);
    let policy = compiled(
        &router,
        r#"{"candidates":["model-4","model-2","model-1"],
            "fallbacks":["name = model-1","name = model-2 or name = model-4"]}"#,
    );
    let soon = request.clone().deadline(PATIENCE);
    let answers = router.route_batch_within(&[soon, late.clone().top(5)], &policy);
    let [timely, late_one] = answers.try_into().unwrap();
    let timely = timely.unwrap();
    assert!(timely.abstained.is_none() && timely.ranked.len() == 3);
    let decision = late_one.unwrap();
    let why = decision.abstained.clone().unwrap();
    assert_eq!(why.reason, AbstainReason::Deadline);
    assert!(
        why.detail
            .contains("the fallback (name = model-2 or name = model-4)")
            || why
                .detail
                .contains("the fallback name = model-2 or name = model-4"),
        "{}",
        why.detail
    );
    let names: Vec<&str> = decision
        .ranked
        .iter()
        .map(|ranked| &*ranked.model)
        .collect();
    assert_eq!(
        names,
        ["model-4", "model-2"],
        "in the order of the candidates"
    );
    assert!(
        decision
            .ranked
            .iter()
            .all(|ranked| ranked.deployments.len() == 1)
    );
    assert_eq!((&*decision.prompt_id, decision.tokens), ("late", 0));
    assert_eq!(decision.policy.as_ref().unwrap().eligible, 2);
    assert_eq!(decision.revisions.generation, router.generation());
    let json = serde_json::to_string(&decision).unwrap();
    assert!(
        json.contains(r#""abstained":{"reason":"deadline""#),
        "{json}"
    );
    assert_eq!(serde_json::from_str::<Decision>(&json).unwrap(), decision);
    // It is kept neither for the conversation nor in the cache.
    let router = place.open(cached());
    let policy = compiled(&router, r#"{"fallbacks":["name = model-1"]}"#);
    let turn = late.session("", "s");
    let decision = router.route_within(&turn, &policy).unwrap();
    assert!(decision.abstained.is_some() && decision.session.is_none());
    let stats = router.stats();
    assert_eq!((stats.sessions, stats.cache.unwrap().entries), (0, 0));
}

#[test]
fn the_answer_of_a_cache_comes_before_any_deadline() {
    let place = Place::new("prompt");
    let router = place.open(cached());
    let request = Request::new(&*place.prompt);
    router.route(&request).unwrap();
    let late = request.deadline(Duration::ZERO);
    assert!(router.route(&late).unwrap().cached);
}

/// Calls from many threads at once. With one place in the queue some are refused; each has one
/// answer or one typed error.
#[test]
fn a_full_queue_refuses_and_the_time_in_it_is_reported() {
    let place = Place::new("queue");
    let router = place.open(cpu(2).queue(1));
    let long = "find a model for french photos of birds ".repeat(30);
    let (waited, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let until = Instant::now() + PATIENCE;
    let done = || waited.load(Ordering::Relaxed) > 0 && refused.load(Ordering::Relaxed) > 0;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (router, long, waited, refused, done) = (&router, &long, &waited, &refused, &done);
            scope.spawn(move || {
                while !done() && Instant::now() < until {
                    let prompt = format!("{thread} {long}");
                    let batch = vec![Request::new(prompt); 1 + thread % 2];
                    for answer in router.route_batch(&batch) {
                        match answer {
                            Ok(decision) => {
                                let timing = decision.timing;
                                assert!(timing.queue <= timing.total);
                                let has = usize::from(timing.queue > 100.0);
                                waited.fetch_add(has, Ordering::Relaxed);
                            }
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::Overloaded);
                                let text = error.to_string();
                                assert!(
                                    text.contains("at most 1 waiting calls, found 1"),
                                    "{text}"
                                );
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
    });
    assert!(done(), "{waited:?} waited, {refused:?} refused");
    let stats = router.stats().queue.unwrap();
    assert_eq!((stats.computing, stats.waiting), (0, 0));
    assert_eq!((stats.slots, stats.places), (1, 1));
    assert!(stats.refused > 0);
}

#[test]
fn a_warm_up_counts_nowhere() {
    let place = Place::new("warm");
    let router = place.open(cached().queue(0));
    router.warm_up().unwrap();
    let stats = router.stats();
    let cache = stats.cache.unwrap();
    assert_eq!((cache.hits, cache.misses), (0, 0));
    assert_eq!(stats.queue.unwrap().refused, 0);
}

#[test]
fn a_watch_follows_the_store_and_keeps_what_serves() {
    let place = Place::new("watch");
    let router = place.open(cached());
    let store = place.store();
    assert_eq!(
        router.watch(Duration::ZERO).unwrap_err().kind(),
        ErrorKind::InvalidRequest
    );
    let watch = router.watch(Duration::from_millis(2)).unwrap();
    let until = |what: &str, reached: &dyn Fn() -> bool| {
        let end = Instant::now() + PATIENCE;
        while !reached() {
            assert!(Instant::now() < end, "{what}: {watch:?}, {router:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    store.set_current(&place.ids[1]).unwrap();
    until("the second is served", &|| {
        router.generation() == place.ids[1]
    });
    until("it is counted", &|| watch.reloads() == 1);
    assert_eq!((watch.errors(), watch.last_error().is_none()), (0, true));
    // A generation that cannot be opened: the old one stays, and answers.
    let current = place.setup.store.join("current");
    std::fs::write(&current, "g0009-0123456789ab\n").unwrap();
    until("three errors", &|| watch.errors() >= 3);
    assert!(watch.last_error().is_some());
    assert_eq!(router.generation(), place.ids[1]);
    router.route(&Request::new("a photo")).unwrap();
    store.set_current(&place.ids[0]).unwrap();
    until("the first is served", &|| {
        router.generation() == place.ids[0]
    });
    until("no error is left", &|| watch.last_error().is_none());
    // Its end ends the thread.
    drop(watch);
    store.set_current(&place.ids[1]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(router.generation(), place.ids[0]);
    // It does not keep a router alive.
    let watch = router.watch(Duration::from_millis(1)).unwrap();
    let weak = Arc::downgrade(&router);
    drop(router);
    let end = Instant::now() + PATIENCE;
    while weak.upgrade().is_some() && Instant::now() < end {
        std::thread::yield_now();
    }
    assert!(weak.upgrade().is_none());
    drop(watch);
}

/// Threads with the cache, sessions, deadlines, a queue and a policy, while a generation is
/// installed every 10 ms: every request has one answer or one typed error, and none is of a
/// generation that was replaced before the request came.
#[test]
fn under_swaps_every_request_has_one_answer_and_none_is_stale() {
    const THREADS: usize = 8;
    const TIME: Duration = Duration::from_millis(1500);
    let place = Place::new("stress");
    let prompts: Vec<String> = (0..12).map(|i| format!("{} {i}", place.prompt)).collect();
    // What each generation answers, at rest.
    let quiet = place.open(cpu(1));
    let mut want: HashMap<(GenerationId, usize), Vec<String>> = HashMap::new();
    for id in &place.ids {
        quiet.install(id).unwrap();
        for (at, prompt) in prompts.iter().enumerate() {
            let decision = quiet.route(&Request::new(&**prompt).top(6)).unwrap();
            let names = decision
                .ranked
                .iter()
                .map(|r| r.model.to_string())
                .collect();
            want.insert((id.clone(), at), names);
        }
    }
    let distinct: HashSet<_> = want.values().collect();
    assert!(distinct.len() >= 2);
    let router = place.open(cpu(1).cache_bytes(1 << 20).queue(4));
    let policy = compiled(&router, r#"{"fallbacks":["name = model-1"]}"#);
    // Swaps that were begun and ended; the generation of swap n is n % 2.
    let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
    let (over, wrong) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let counts: [AtomicUsize; 5] = Default::default();
    let [asked, answered, errors, hits, certain] = &counts;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (router, policy, prompts, want) = (&router, &policy, &prompts, &want);
            let (begun, ended, over, wrong, ids) = (&begun, &ended, &over, &wrong, &place.ids);
            scope.spawn(move || {
                for turn in 0.. {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let at = (thread * 5 + turn) % prompts.len();
                    let mut request = Request::new(&*prompts[at]).top(6);
                    match turn % 4 {
                        1 => request = request.deadline(Duration::from_micros(200)),
                        2 => request = request.session("t", (turn % 50).to_string()),
                        _ => (),
                    }
                    let before = ended.load(Ordering::SeqCst);
                    let answer = match turn % 3 {
                        0 => router.route_within(&request, policy),
                        _ => router.route(&request),
                    };
                    let after = begun.load(Ordering::SeqCst);
                    asked.fetch_add(1, Ordering::Relaxed);
                    let decision = match answer {
                        Ok(decision) => decision,
                        Err(error) => {
                            errors.fetch_add(1, Ordering::Relaxed);
                            let kind = error.kind();
                            if !matches!(kind, ErrorKind::Deadline | ErrorKind::Overloaded) {
                                wrong.lock().unwrap().push(error.to_string());
                            }
                            continue;
                        }
                    };
                    answered.fetch_add(1, Ordering::Relaxed);
                    hits.fetch_add(usize::from(decision.cached), Ordering::Relaxed);
                    let id = &decision.revisions.generation;
                    let mut names: Vec<String> = decision
                        .ranked
                        .iter()
                        .map(|r| r.model.to_string())
                        .collect();
                    let mut expected = match decision.abstained {
                        Some(_) => vec!["model-1".to_owned()],
                        None => want[&(id.clone(), at)].clone(),
                    };
                    if decision.session.is_some() {
                        // The conversation's own model may be the first.
                        names.sort();
                        expected.sort();
                    }
                    let stale = before == after && *id != ids[usize::from(before % 2 == 1)];
                    certain.fetch_add(usize::from(before == after), Ordering::Relaxed);
                    if stale || names != expected {
                        let text = format!("stale: {stale}, {expected:?}: {decision:?}");
                        wrong.lock().unwrap().push(text);
                    }
                }
            });
        }
        let end = Instant::now() + TIME;
        while Instant::now() < end {
            let next = begun.fetch_add(1, Ordering::SeqCst) + 1;
            router
                .install(&place.ids[usize::from(next % 2 == 1)])
                .unwrap();
            ended.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Ordering::SeqCst);
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}: {}", wrong.len(), wrong[0]);
    let [asked, answered, errors, hits, certain] = counts.map(AtomicUsize::into_inner);
    assert_eq!(asked, answered + errors);
    let swaps = begun.into_inner();
    let seen = format!("{asked} asked, {errors} errors, {hits} hits, {certain} certain, {swaps}");
    assert!(swaps > 5 && hits > 50 && certain > 50, "{seen}");
    let stats = router.stats();
    let queue = stats.queue.unwrap();
    assert_eq!((queue.computing, queue.waiting), (0, 0), "{seen}");
    let cache = stats.cache.unwrap();
    assert!(cache.bytes <= cache.capacity);
}
