//! Many callers beside swaps: each sees one generation, none is disturbed.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{Folder, copied_store, cpu, devices, store};
use hubrouter::{Options, Request, Router, Store};

fn send_and_sync<T: Send + Sync>(_: &T) {}

#[test]
fn readers_during_swaps_see_one_generation_each() {
    let folder = Folder::new("swaps");
    let path = copied_store(&folder);
    let store = Store::open(&path).unwrap();
    let request = Request::new("Who is speaking in this recording?");
    for threads in [1, 2] {
        let router = Router::open(&path, cpu(threads)).unwrap();
        send_and_sync(&router);
        let first = router.generation();
        let best = router.route(&request).unwrap().ranked[0].model.to_string();
        let second = store.retire(&best).unwrap();
        // What each generation answers.
        let mut want = HashMap::new();
        for id in [&first, &second] {
            router.install(id).unwrap();
            let decision = router.route(&request).unwrap();
            want.insert(
                id.clone(),
                (decision.ranked[0].id, decision.ranked[0].score),
            );
        }
        let (stop, routed) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for reader in 0..3 {
                let (router, request, want, stop, routed) =
                    (&router, &request, &want, &stop, &routed);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let batch = vec![request.clone(); 1 + reader];
                        for decision in router.route_batch(&batch) {
                            let decision = decision.unwrap();
                            let best = (decision.ranked[0].id, decision.ranked[0].score);
                            assert_eq!(best, want[&decision.revisions.generation]);
                            routed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let mut swaps = 0;
            while swaps < 20 || routed.load(Ordering::Relaxed) < 60 {
                router
                    .install(if swaps % 2 == 0 { &first } else { &second })
                    .unwrap();
                swaps += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        store.set_current(&first).unwrap();
    }
}

fn callers_share_a_router(options: Options, each: usize) {
    let router = Router::open(store(), options).unwrap();
    let prompts = [
        "translate",
        "find the cat in the picture",
        "is this email spam, or is it not?",
    ];
    let want: Vec<f32> = prompts
        .iter()
        .map(|p| router.route(&Request::new(*p)).unwrap().ranked[0].score)
        .collect();
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let (router, want) = (&router, &want);
            scope.spawn(move || {
                for i in 0..each {
                    let which = (caller + i) % prompts.len();
                    let decision = router.route(&Request::new(prompts[which])).unwrap();
                    assert_eq!(decision.ranked[0].score, want[which]);
                }
            });
        }
    });
}

#[test]
fn callers_share_a_router_on_the_cpu() {
    callers_share_a_router(cpu(1), 25);
    callers_share_a_router(cpu(3), 25);
}

#[cfg(feature = "gpu")]
#[test]
fn callers_share_a_router_on_the_gpu() {
    callers_share_a_router(common::gpu(), 3);
}

#[test]
fn several_routers_live_in_one_process() {
    let routers: Vec<Router> = [vec![cpu(1)], devices()]
        .concat()
        .into_iter()
        .map(|options| Router::open(store(), options).unwrap())
        .collect();
    let best: Vec<String> = routers
        .iter()
        .map(|router| {
            router.route(&Request::new("translate")).unwrap().ranked[0]
                .model
                .to_string()
        })
        .collect();
    assert!(best.iter().all(|model| *model == best[0]), "{best:?}");
}
