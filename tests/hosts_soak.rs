//! Mixed hosts on one router: plain threads, a rayon pool's own threads, tokio's workers and its
//! blocking threads, while generations are installed and rolled back and routers opened and dropped.
//!
//! Every call is answered, with the bits of a quiet router; memory does not grow. A few seconds with a
//! toy; with `HUBROUTER_SOAK_SECONDS` the bundled encoder, for so long with each number of threads.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]
#![cfg(target_os = "linux")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Folder, copied_store, toy};
use hubrouter::{Decision, GenerationId, Options, Request, Router, Store};
use rayon::prelude::*;

/// Threads of each of the four kinds of host.
const OF_A_KIND: usize = 4;

/// A call without an answer for so long has none, on a machine with much else to do.
const STUCK: Duration = Duration::from_secs(90);

const PROMPTS: [&str; 8] = [
    "find a model for french number 0",
    "Which bird is singing in this recording?",
    "a photo",
    "Translate this letter into French, please, and say which words are old.",
    "漢字 é ß 🐦",
    "x",
    "route bird number 2 and english number 3 and dutch number 6",
    "Find the names of persons in this text.\nText: Ada met Grace in Paris.",
];

/// Ids and bits of the scores.
type Answer = Vec<(u32, u32)>;

fn answer(decision: &Decision) -> Answer {
    let ranked = decision.ranked.iter();
    ranked
        .map(|model| (model.id.0, model.score.to_bits()))
        .collect()
}

struct Place {
    _folder: Folder,
    store: PathBuf,
    options: Options,
    /// Of every generation, in the order of [`PROMPTS`].
    want: HashMap<GenerationId, Vec<Answer>>,
    ids: Vec<GenerationId>,
}

impl Place {
    fn toy() -> Self {
        let setup = toy::setup("soak");
        let options = Options::default().device("cpu").encoder(&setup.encoder);
        let (first, _) = toy::learn(
            &setup,
            toy::examples(0, 6),
            toy::settings(&[("epochs", "1")]),
            options.clone(),
        );
        let store = Store::open(&setup.store).unwrap();
        assert_eq!(store.current().unwrap(), first);
        store.retire("model-5").unwrap();
        Self::new(setup.folder, setup.store, options)
    }

    fn bundled() -> Self {
        let folder = Folder::new("soak");
        let path = copied_store(&folder);
        let store = Store::open(&path).unwrap();
        store.alias("gpt2", "small-gpt").unwrap();
        let options = Options::default().device("cpu");
        let best = Router::open(&path, options.clone()).unwrap();
        let best = best.route(&Request::new(PROMPTS[1])).unwrap();
        store.retire(&best.ranked[0].model).unwrap();
        Self::new(folder, path, options)
    }

    fn new(folder: Folder, store: PathBuf, options: Options) -> Self {
        let ids = Store::open(&store).unwrap().ids().unwrap();
        let quiet = Router::open(&store, options.clone().threads(1)).unwrap();
        let answers = |id: &GenerationId| {
            quiet.install(id).unwrap();
            let one = |prompt| answer(&quiet.route(&Request::new(prompt)).unwrap());
            (id.clone(), PROMPTS.map(one).to_vec())
        };
        let want: HashMap<_, _> = ids.iter().map(answers).collect();
        let distinct: std::collections::HashSet<_> = want.values().collect();
        assert!(
            ids.len() >= 3 && distinct.len() >= 2,
            "the generations must answer differently"
        );
        Self {
            _folder: folder,
            store,
            options,
            want,
            ids,
        }
    }
}

/// What the hosts share.
struct Scene {
    place: Arc<Place>,
    router: Router,
    over: AtomicBool,
    asked: AtomicUsize,
    answered: AtomicUsize,
    swaps: AtomicUsize,
    opened: AtomicUsize,
    /// Of each host, when it was last answered, in milliseconds since the beginning.
    heard: Vec<AtomicU64>,
    /// Of each host, its calls.
    calls: Vec<AtomicUsize>,
    began: Instant,
    wrong: Mutex<Vec<String>>,
    /// Of each call, milliseconds.
    latencies: Mutex<Vec<f64>>,
}

impl Scene {
    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// One call of host `host`: one prompt or several.
    fn ask(&self, host: usize, turn: usize) {
        let count = [1, 1, 1, 3, 1, 8][turn % 6];
        let places: Vec<usize> = (0..count)
            .map(|i| (host * 3 + turn + i) % PROMPTS.len())
            .collect();
        let requests: Vec<Request> = places
            .iter()
            .map(|place| Request::new(PROMPTS[*place]))
            .collect();
        self.asked.fetch_add(count, Ordering::Relaxed);
        let began = Instant::now();
        let answers = match &requests[..] {
            [one] => vec![self.router.route(one)],
            all => self.router.route_batch(all),
        };
        self.latencies
            .lock()
            .unwrap()
            .push(began.elapsed().as_secs_f64() * 1e3);
        self.answered.fetch_add(answers.len(), Ordering::Relaxed);
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap();
        self.heard[host].store(now, Ordering::Relaxed);
        self.calls[host].fetch_add(1, Ordering::Relaxed);
        for (place, decision) in places.into_iter().zip(answers) {
            let wrong = match decision {
                Ok(decision) => {
                    let want = &self.place.want[&decision.revisions.generation][place];
                    (answer(&decision) != *want).then(|| format!("another answer: {decision:?}"))
                }
                Err(error) => Some(error.to_string()),
            };
            self.wrong.lock().unwrap().extend(wrong);
        }
    }

    /// Installs every generation in turn, rolls back, opens and drops routers.
    fn disturb(&self) {
        for turn in 0.. {
            if self.over() {
                break;
            }
            let id = &self.place.ids[turn % self.place.ids.len()];
            let changed = match turn % 4 {
                3 => self.router.rollback().map(|_| ()),
                _ => self.router.install(id),
            };
            // The first generation has nothing to go back to.
            let first = self.router.generation() == self.place.ids[0];
            match changed {
                Err(error) if !first => self.wrong.lock().unwrap().push(error.to_string()),
                _ => drop(self.swaps.fetch_add(1, Ordering::Relaxed)),
            }
            let threads = 1 + turn % 3;
            let router = Router::open(
                &self.place.store,
                self.place.options.clone().threads(threads),
            );
            match router.and_then(|router| router.route(&Request::new(PROMPTS[0]))) {
                Ok(_) => drop(self.opened.fetch_add(1, Ordering::Relaxed)),
                Err(error) => self.wrong.lock().unwrap().push(error.to_string()),
            }
        }
    }
}

/// Runs until the scene is over; says so on the channel.
type Host = Box<dyn FnOnce() + Send>;

/// The hosts, each with its name. Whatever they run on is left behind where they hang.
fn hosts(scene: &Arc<Scene>) -> Vec<(String, Host)> {
    let rayon: &'static _ = Box::leak(Box::new(
        rayon::ThreadPoolBuilder::new()
            .num_threads(OF_A_KIND)
            .build()
            .unwrap(),
    ));
    let tokio: &'static _ = Box::leak(Box::new(
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(OF_A_KIND)
            .build()
            .unwrap(),
    ));
    let mut hosts: Vec<(String, Host)> = Vec::new();
    for i in 0..OF_A_KIND {
        let shared = Arc::clone(scene);
        hosts.push((format!("plain {i}"), Box::new(move || turns(&shared, i))));
        let shared = Arc::clone(scene);
        hosts.push((
            format!("tokio worker {i}"),
            Box::new(move || {
                let on_worker = async move {
                    // On a worker as it is, and on one that tokio was told of.
                    if i % 2 == 0 {
                        turns(&shared, OF_A_KIND + i);
                    } else {
                        tokio::task::block_in_place(|| turns(&shared, OF_A_KIND + i));
                    }
                };
                tokio.block_on(tokio.spawn(on_worker)).unwrap();
            }),
        ));
        let shared = Arc::clone(scene);
        let blocking = move || {
            let task = tokio.spawn_blocking(move || turns(&shared, 2 * OF_A_KIND + i));
            tokio.block_on(task).unwrap();
        };
        hosts.push((format!("tokio blocking {i}"), Box::new(blocking)));
    }
    let shared = Arc::clone(scene);
    let in_pool = move || {
        rayon.install(|| {
            for round in 0.. {
                if shared.over() {
                    break;
                }
                (0..64usize).into_par_iter().for_each(|turn| {
                    let host = 3 * OF_A_KIND + rayon::current_thread_index().unwrap_or(0);
                    shared.ask(host, 64 * round + turn);
                });
            }
        });
    };
    hosts.push(("rayon pool".into(), Box::new(in_pool)));
    let shared = Arc::clone(scene);
    hosts.push(("installs".into(), Box::new(move || shared.disturb())));
    hosts
}

fn turns(scene: &Scene, host: usize) {
    for turn in 0.. {
        if scene.over() {
            break;
        }
        scene.ask(host, turn);
    }
}

/// Resident memory in megabytes.
fn resident() -> f64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / f64::from(1 << 20)
}

/// What nine of ten measurements exceed: memory while no second router is open.
fn low(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 10]
}

/// Lets the hosts call a router with these threads for `time`.
fn soak(place: &Arc<Place>, threads: Option<usize>, time: Duration) {
    let mut options = place.options.clone();
    options.threads = threads;
    let scene = Arc::new(Scene {
        place: Arc::clone(place),
        router: Router::open(&place.store, options).unwrap(),
        over: AtomicBool::new(false),
        asked: AtomicUsize::new(0),
        answered: AtomicUsize::new(0),
        swaps: AtomicUsize::new(0),
        opened: AtomicUsize::new(0),
        calls: (0..4 * OF_A_KIND).map(|_| AtomicUsize::new(0)).collect(),
        heard: (0..4 * OF_A_KIND).map(|_| AtomicU64::new(0)).collect(),
        began: Instant::now(),
        wrong: Mutex::new(Vec::new()),
        latencies: Mutex::new(Vec::new()),
    });
    let (send, ended) = std::sync::mpsc::channel();
    let hosts = hosts(&scene);
    let mut running: Vec<String> = hosts.iter().map(|(name, _)| name.clone()).collect();
    for (name, host) in hosts {
        let send = send.clone();
        std::thread::spawn(move || {
            host();
            let _ = send.send(name);
        });
    }
    let mut memory = Vec::new();
    while scene.began.elapsed() < time {
        std::thread::sleep(Duration::from_millis(50));
        memory.push(resident());
        let now = u64::try_from(scene.began.elapsed().as_millis()).unwrap();
        let silent = scene
            .heard
            .iter()
            .map(|heard| now.saturating_sub(heard.load(Ordering::Relaxed)));
        // Some threads of a pool may have had no turn: only a pool that is silent hangs.
        let silent: Vec<u64> = silent.collect();
        let least_of_pool = silent[3 * OF_A_KIND..].iter().min().copied();
        let longest = silent[..3 * OF_A_KIND]
            .iter()
            .copied()
            .chain(least_of_pool)
            .max()
            .unwrap();
        assert!(
            u128::from(longest) < STUCK.as_millis(),
            "{threads:?} threads: a host had no answer for {longest} ms"
        );
    }
    scene.over.store(true, Ordering::Relaxed);
    while !running.is_empty() {
        match ended.recv_timeout(STUCK) {
            Ok(name) => running.retain(|other| *other != name),
            Err(_) => panic!("{threads:?} threads: no answer within {STUCK:?} for {running:?}"),
        }
    }
    report(&scene, threads, time, &memory);
}

fn report(scene: &Scene, threads: Option<usize>, time: Duration, memory: &[f64]) {
    let mut latencies = scene.latencies.lock().unwrap().clone();
    latencies.sort_by(f64::total_cmp);
    let part = |share: usize| latencies[(latencies.len() - 1) * share / 100];
    let quarters: Vec<f64> = memory.chunks(memory.len().div_ceil(4)).map(low).collect();
    let load = |name: &AtomicUsize| name.load(Ordering::Relaxed);
    let names = ["plain", "tokio worker", "tokio blocking", "rayon"];
    let kinds = names
        .iter()
        .zip(scene.calls.chunks(OF_A_KIND))
        .map(|(name, calls)| {
            let calls: Vec<usize> = calls.iter().map(load).collect();
            format!("{name} {calls:?}")
        });
    let kinds: Vec<String> = kinds.collect();
    println!(
        "threads {threads:?}, {} hosts, {:.0} s: {} prompts in {} calls, p50 {:.1} ms, p99 {:.1} ms, longest {:.0} ms; \
         calls of a host: {}; {} swaps, {} routers opened; memory by quarters {quarters:.0?} MB",
        4 * OF_A_KIND,
        time.as_secs_f64(),
        load(&scene.answered),
        latencies.len(),
        part(50),
        part(99),
        part(100),
        kinds.join(", "),
        load(&scene.swaps),
        load(&scene.opened),
    );
    let wrong = scene.wrong.lock().unwrap();
    assert!(
        wrong.is_empty(),
        "{} wrong, the first: {}",
        wrong.len(),
        wrong[0]
    );
    assert_eq!(load(&scene.asked), load(&scene.answered));
    assert!(load(&scene.swaps) > 0 && load(&scene.opened) > 0);
    assert!(
        scene
            .heard
            .iter()
            .take(3 * OF_A_KIND)
            .all(|heard| heard.load(Ordering::Relaxed) > 0)
    );
    // Buffers of every size and every number of callers at once are made first.
    let (warm, last) = (quarters[2], quarters[3]);
    assert!(
        last < 1.1 * warm + 32.0,
        "memory grows: {warm:.0} MB, then {last:.0} MB"
    );
}

#[test]
fn mixed_hosts_are_answered() {
    let seconds = std::env::var("HUBROUTER_SOAK_SECONDS").ok();
    let seconds: Option<f64> = seconds.map(|text| text.parse().unwrap());
    let place = Arc::new(if seconds.is_some() {
        Place::bundled()
    } else {
        Place::toy()
    });
    assert!(Path::new(&place.store).is_dir());
    for threads in [Some(1), Some(2), Some(5), None] {
        soak(
            &place,
            threads,
            Duration::from_secs_f64(seconds.unwrap_or(1.5)),
        );
    }
}
