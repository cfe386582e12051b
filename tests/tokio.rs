//! The asynchronous router: it never blocks the runtime, and a call that is dropped leaves nothing.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{cpu, store};
use hubrouter::{AbstainReason, AsyncRouter, ErrorKind, Options, Policy, Request, Router};
use tokio::runtime::{Builder, Runtime};

const PATIENCE: Duration = Duration::from_secs(60);

fn opened(options: Options) -> AsyncRouter {
    AsyncRouter::new(Arc::new(Router::open(store(), options).unwrap()))
}

fn on_one_thread() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

fn request(i: usize) -> Request {
    Request::new(format!(
        "find a model that tells birds from {i} other animals"
    ))
    .top(2)
}

/// A prompt that takes milliseconds.
fn slow(i: usize) -> Request {
    Request::new(format!("{i} birds sing in many languages of the world ").repeat(40))
}

#[test]
fn answers_are_those_of_the_router() {
    for options in [cpu(1), cpu(2).queue(100), cpu(1).cache_bytes(1 << 20)] {
        let router = opened(options);
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .build()
            .unwrap();
        runtime.block_on(async {
            let tasks = (0..20).map(|i| {
                let router = router.clone();
                tokio::spawn(async move { router.route(request(i % 5)).await })
            });
            for (i, task) in tasks.collect::<Vec<_>>().into_iter().enumerate() {
                let decision = task.await.unwrap().unwrap();
                let want = router.router().route(&request(i % 5)).unwrap();
                assert_eq!(decision.ranked, want.ranked);
            }
            let batch = router
                .route_batch(vec![request(1), Request::new(""), request(2)])
                .await;
            let kinds: Vec<_> = batch
                .iter()
                .map(|a| a.as_ref().err().map(|e| e.kind()))
                .collect();
            assert_eq!(kinds, [None, Some(ErrorKind::InvalidRequest), None]);
            assert!(router.route_batch(Vec::new()).await.is_empty());
        });
    }
}

/// On a runtime of one thread: if a call blocked it, the timer would not tick meanwhile.
#[test]
fn the_runtime_goes_on_while_prompts_are_computed() {
    let router = opened(cpu(1));
    on_one_thread().block_on(async {
        let ticks = Arc::new(AtomicUsize::new(0));
        let ticking = tokio::spawn({
            let ticks = Arc::clone(&ticks);
            async move {
                loop {
                    ticks.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut most = 0;
        for i in 0..10 {
            let before = ticks.load(Ordering::Relaxed);
            let decision = router.route(slow(i)).await.unwrap();
            assert!(!decision.ranked.is_empty());
            most = most.max(ticks.load(Ordering::Relaxed) - before);
        }
        assert!(most > 10, "{most}");
        ticking.abort();
    });
}

#[test]
fn a_hit_needs_no_other_thread() {
    let router = opened(cpu(1).cache_bytes(1 << 20));
    router.router().route(&request(0)).unwrap();
    // No runtime at all: the future is ready when it is first asked.
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut hit = std::pin::pin!(router.route(request(0)));
    let std::task::Poll::Ready(decision) = hit.as_mut().poll(&mut context) else {
        panic!("not ready");
    };
    let decision = decision.unwrap();
    assert!(decision.cached && decision.timing.total > 0.0);
    let mut miss = std::pin::pin!(router.route(request(1)));
    let std::task::Poll::Ready(answer) = miss.as_mut().poll(&mut context) else {
        panic!("not ready");
    };
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unsupported);
    let stats = router.router().stats().cache.unwrap();
    assert_eq!((stats.hits, stats.entries), (1, 1));
}

#[test]
fn a_deadline_ends_the_waiting_whatever_is_computed() {
    let router = opened(cpu(2).queue(100));
    let policy: Policy = serde_json::from_str(r#"{"fallbacks":["name = gpt2"]}"#).unwrap();
    let policy = Arc::new(router.router().compile(&policy).unwrap());
    on_one_thread().block_on(async {
        let before: Vec<_> = (0..20)
            .map(|i| {
                let router = router.clone();
                tokio::spawn(async move { router.route(slow(i)).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let soon = request(0).deadline(Duration::from_millis(1));
        let error = router.route(soon.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Deadline);
        let decision = router.route_within(soon, &policy).await.unwrap();
        assert_eq!(decision.abstained.unwrap().reason, AbstainReason::Deadline);
        assert_eq!(&*decision.ranked[0].model, "gpt2");
        let timely = request(0).deadline(PATIENCE);
        let decision = router.route_within(timely, &policy).await.unwrap();
        assert!(decision.abstained.is_none() && decision.timing.queue > 0.0);
        for task in before {
            task.await.unwrap().unwrap();
        }
    });
    let queue = router.router().stats().queue.unwrap();
    assert_eq!((queue.computing, queue.waiting), (0, 0));
}

#[test]
fn calls_that_are_dropped_leave_the_queue() {
    let router = opened(cpu(2).queue(1000));
    on_one_thread().block_on(async {
        for round in 0..5 {
            let tasks = (0..40).map(|i| {
                let router = router.clone();
                tokio::spawn(async move { router.route(slow(i)).await.is_ok() })
            });
            let tasks: Vec<_> = tasks.collect();
            tokio::time::sleep(Duration::from_millis(round)).await;
            // All but one are given up: in the queue, at its head or in computation.
            for task in &tasks[1..] {
                task.abort();
            }
            for (i, task) in tasks.into_iter().enumerate() {
                let ended = task.await;
                assert!(i > 0 || ended.unwrap());
            }
        }
        let end = Instant::now() + PATIENCE;
        loop {
            let queue = router.router().stats().queue.unwrap();
            if (queue.computing, queue.waiting) == (0, 0) {
                break;
            }
            assert!(Instant::now() < end, "{queue:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(router.route(request(0)).await.is_ok());
    });
}

#[test]
fn a_full_queue_refuses_a_future_at_once() {
    let router = opened(cpu(2).queue(2));
    on_one_thread().block_on(async {
        let tasks = (0..10).map(|i| {
            let router = router.clone();
            tokio::spawn(async move { router.route(slow(i)).await })
        });
        let mut refused = 0;
        for task in tasks.collect::<Vec<_>>() {
            match task.await.unwrap() {
                Ok(decision) => assert!(!decision.ranked.is_empty()),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Overloaded);
                    refused += 1;
                }
            }
        }
        assert!((1..=7).contains(&refused), "{refused}");
    });
}

#[test]
fn what_a_runtime_lacks_is_an_error() {
    let router = opened(cpu(1));
    let no_timer = Builder::new_current_thread().build().unwrap();
    no_timer.block_on(async {
        assert!(router.route(request(0)).await.is_ok());
        let late = request(0).deadline(PATIENCE);
        let error = router.route(late).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panic);
        assert!(error.to_string().contains("timers"), "{error}");
    });
}
