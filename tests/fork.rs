//! Routers after `fork`: what can work does, the rest is told, nothing hangs.
#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![expect(unsafe_code, reason = "there is no safe fork")]

mod common;

use std::time::{Duration, Instant};

use common::{cpu, devices, store};
use hubrouter::{ErrorKind, Request, Router};

/// Longer than a route takes on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `job` returns in a forked child, none if it does not end.
fn forked(job: impl FnOnce() -> u8) -> Option<u8> {
    // SAFETY: the child calls nothing but `job` and `_exit`; the allocator of the C library is made fit
    // for a child by `fork` itself.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let code = job();
        // SAFETY: it ends the process, and nothing else.
        unsafe { libc::_exit(code.into()) };
    }
    let began = Instant::now();
    let mut status = 0;
    // SAFETY: `status` lives longer than the call.
    while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
        if began.elapsed() > PATIENCE {
            // SAFETY: the child is this test's own.
            unsafe { libc::kill(child, libc::SIGKILL) };
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status).try_into().unwrap())
}

fn request() -> Request {
    Request::new("translate").top(1)
}

/// All in one test: a fork takes along the locks that other threads hold at that moment.
#[test]
fn a_forked_child_routes_or_is_told() {
    // On the caller's thread alone: the child has all that is needed.
    let router = Router::open(store(), cpu(1)).unwrap();
    let want = router.route(&request()).unwrap().ranked[0].score;
    let same = || {
        router
            .route(&request())
            .is_ok_and(|d| d.ranked[0].score == want)
    };
    assert_eq!(forked(|| same().into()), Some(1));

    // Without the parent's cache and queue, whose locks another thread may have held.
    let options = cpu(1).cache_bytes(1 << 20).queue(0);
    let router = Router::open(store(), options).unwrap();
    let turn = request().session("", "s");
    router.route(&turn).unwrap();
    assert!(router.route(&turn).unwrap().cached);
    let without = || {
        let decision = router.route(&turn);
        decision.is_ok_and(|d| d.ranked[0].score == want && !d.cached && d.session.is_none())
    };
    assert_eq!(forked(|| without().into()), Some(1));

    // A pool's threads, and a GPU, stay with the parent.
    for options in devices() {
        let router = Router::open(store(), options).unwrap();
        router.route(&request()).unwrap();
        let told = || {
            let requests = [request(), request()];
            let kinds = router.route_batch(&requests);
            let kinds = kinds
                .into_iter()
                .map(|answer| answer.err().map(|e| e.kind()));
            let install = router.install(&router.generation()).err().map(|e| e.kind());
            let unsupported = Some(ErrorKind::Unsupported);
            kinds.chain([install]).all(|kind| kind == unsupported)
        };
        assert_eq!(forked(|| told().into()), Some(1));
        // The parent goes on.
        router.route(&request()).unwrap();
    }

    // A child may open one of its own, threads and all.
    let opened = || Router::open(store(), cpu(2)).and_then(|router| router.route(&request()));
    assert_eq!(forked(|| opened().is_ok().into()), Some(1));
}
