//! Hosts of every kind: rayon pools, tokio, threads of small stacks, forks. Every call is answered.
//!
//! What hangs is found by a watchdog, not by the patience of whoever runs the tests.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use common::{cpu, store};
use hubrouter::{Decision, Options, Request, Router};
use rayon::prelude::*;

/// Longer than everything here takes on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs `job` on a thread of its own, and fails when it does not end.
fn ends<R: Send + 'static>(what: &str, job: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, end) = channel();
    let thread = std::thread::spawn(move || {
        let value = job();
        let _ = done.send(());
        value
    });
    match end.recv_timeout(PATIENCE) {
        Err(RecvTimeoutError::Timeout) => panic!("{what}: still not done after {PATIENCE:?}"),
        _ => thread.join().unwrap(),
    }
}

fn opened(options: Options) -> Arc<Router> {
    Arc::new(Router::open(store(), options).unwrap())
}

fn request(i: usize) -> Request {
    const PROMPTS: [&str; 3] = [
        "translate",
        "find the cat in the picture",
        "is this email spam, or is it not?",
    ];
    Request::new(PROMPTS[i % PROMPTS.len()]).top(1)
}

fn best(decision: &Decision) -> (u32, u32) {
    (decision.ranked[0].id.0, decision.ranked[0].score.to_bits())
}

/// What a quiet router answers to each request.
fn want(router: &Router) -> Vec<(u32, u32)> {
    (0..3)
        .map(|i| best(&router.route(&request(i)).unwrap()))
        .collect()
}

fn in_a_rayon_pool(options: Options) {
    let router = opened(options);
    ends("par_iter over route", move || {
        let want = want(&router);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(4)
            .build()
            .unwrap();
        let answered = AtomicUsize::new(0);
        pool.install(|| {
            (0..200).into_par_iter().for_each(|i| {
                if i % 5 == 0 {
                    let batch = [request(i), request(i + 1), request(i + 2)];
                    for (k, decision) in router.route_batch(&batch).into_iter().enumerate() {
                        assert_eq!(best(&decision.unwrap()), want[(i + k) % 3]);
                    }
                } else {
                    assert_eq!(best(&router.route(&request(i)).unwrap()), want[i % 3]);
                }
                answered.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(answered.into_inner(), 200);
    });
}

#[test]
fn calls_from_a_hosts_rayon_pool_are_answered() {
    in_a_rayon_pool(cpu(1));
    in_a_rayon_pool(cpu(2));
    in_a_rayon_pool(cpu(4));
}

#[test]
fn a_router_is_opened_and_dropped_in_a_hosts_rayon_pool() {
    ends("opening in par_iter", || {
        (0..8).into_par_iter().for_each(|i| {
            let router = Router::open(store(), cpu(1 + i % 3)).unwrap();
            router.route(&request(i)).unwrap();
        });
    });
}

#[test]
fn calls_from_tokio_are_answered() {
    for threads in [1, 2] {
        let router = opened(cpu(threads));
        ends("routes on tokio", move || {
            let want = want(&router);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut tasks = Vec::new();
                for i in 0..60 {
                    let router = Arc::clone(&router);
                    let route = move || best(&router.route(&request(i)).unwrap());
                    // Some on blocking threads, some on workers, which a host should not do.
                    tasks.push(match i % 3 {
                        0 => tokio::task::spawn_blocking(route),
                        1 => tokio::spawn(async move { tokio::task::block_in_place(route) }),
                        _ => tokio::spawn(async move { route() }),
                    });
                }
                for (i, task) in tasks.into_iter().enumerate() {
                    assert_eq!(task.await.unwrap(), want[i % 3]);
                }
            });
        });
    }
}

#[test]
fn a_thread_with_a_stack_of_64_kib_routes() {
    let long = "a long prompt, with 漢字 and \u{1f426}, ".repeat(2000);
    for threads in [1, 2] {
        let router = opened(cpu(threads));
        let prompts = [long.clone(), "hello".to_owned(), "!".repeat(100_000)];
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        let routed = thread.spawn(move || {
            let batch = prompts.map(|prompt| Request::new(prompt).top(usize::MAX));
            let alone = batch.iter().filter(|r| router.route(r).is_ok()).count();
            let together = router
                .route_batch(&batch)
                .iter()
                .filter(|a| a.is_ok())
                .count();
            (alone, together)
        });
        assert_eq!(routed.unwrap().join().unwrap(), (3, 3));
    }
}
