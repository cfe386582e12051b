//! A gateway's load: threads with a cache, sessions, a queue and deadlines of 5 to 50 ms, while a
//! generation is swapped every second. Then how long a hit of the cache takes.
//! `cargo run --release --example serving_load -- [SECONDS] [THREADS]`
//!
//! It ends with 1 if a request had another answer than one decision or one typed error, or one of
//! a generation that had been replaced before the request came.
#![allow(clippy::print_stdout, reason = "an example")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hubrouter::{ErrorKind, GenerationId, Options, Policy, PolicyHandle, Request, Result, Router};

const STORE: &str = "weights/cmrbench";
const ENCODER: &str = "weights/all-MiniLM-L6-v2";

/// Words of the prompts, of which there are so many to the power of four.
const WORDS: [&str; 16] = [
    "translate",
    "letters",
    "birds",
    "songs",
    "photographs",
    "contracts",
    "summaries",
    "speech",
    "tables",
    "weather",
    "molecules",
    "reviews",
    "French",
    "captions",
    "robots",
    "recipes",
];

/// What the threads share.
struct Load {
    router: Router,
    policy: PolicyHandle,
    ids: Vec<GenerationId>,
    /// Swaps that were begun and ended.
    begun: AtomicU64,
    ended: AtomicU64,
    over: AtomicBool,
}

/// What one thread saw.
#[derive(Default)]
struct Seen {
    /// Answers by kind.
    kinds: BTreeMap<String, u64>,
    /// Microseconds of each call.
    times: Vec<u32>,
    /// Microseconds after the deadline.
    overdue: Vec<u32>,
    wrong: Vec<String>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args()
        .skip(1)
        .filter_map(|text| text.parse().ok());
    let seconds = arguments.next().unwrap_or(60);
    let threads = arguments.next().unwrap_or(64);
    let folder = std::env::temp_dir().join(format!("hubrouter-load-{}", std::process::id()));
    let outcome = load(&folder, Duration::from_secs(seconds), threads).and_then(|good| {
        hits(1)?;
        hits(16)?;
        Ok(good)
    });
    // A failure to remove the folder is not an error of the example.
    let _ = std::fs::remove_dir_all(&folder);
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn load(folder: &Path, time: Duration, threads: u64) -> Result<bool> {
    let options = Options::default().device("cpu").threads(1).encoder(ENCODER);
    let options = options.cache_bytes(16 << 20).queue(32);
    copy(Path::new(STORE), folder);
    let router = Router::open(folder, options)?;
    let first = router.generation();
    let best = router.route(&Request::new(prompt(1)).top(1))?;
    let second = router
        .store()
        .clone()
        .look_in(ENCODER)
        .retire(&best.ranked[0].model)?;
    let policy: Policy = serde_json::from_str(r#"{"fallbacks": ["name = gpt2"]}"#)
        .unwrap_or_else(|error| panic!("{error}"));
    let policy = router.compile(&policy)?;
    router.warm_up()?;
    let load = Load {
        router,
        policy,
        ids: vec![first, second],
        begun: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    let (all, began) = (Mutex::new(Vec::new()), Instant::now());
    let mut memory = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        for thread in 0..threads {
            let (load, all) = (&load, &all);
            scope.spawn(move || {
                let seen = load.ask(thread);
                all.lock().unwrap_or_else(|e| e.into_inner()).push(seen);
            });
        }
        let swapped = load.swap(began, time, &mut memory);
        load.over.store(true, Ordering::SeqCst);
        swapped
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let all = all.into_inner().unwrap_or_else(|e| e.into_inner());
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    let (mut times, mut overdue, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for seen in all {
        for (kind, count) in seen.kinds {
            *kinds.entry(kind).or_default() += count;
        }
        times.extend(seen.times);
        overdue.extend(seen.overdue);
        wrong.extend(seen.wrong);
    }
    let calls = times.len();
    println!(
        "{threads} threads, {seconds:.0} s, {} swaps",
        load.ended.into_inner()
    );
    println!(
        "{calls} calls, {:.0} per second: {kinds:?}",
        calls as f64 / seconds
    );
    println!("milliseconds of a call: {}", quantiles(&mut times));
    println!("of them after the deadline: {}", quantiles(&mut overdue));
    println!("{:?}", load.router.stats());
    println!("resident MB by tenths of the time: {memory:?}");
    println!("{} wrong answers", wrong.len());
    wrong.iter().take(3).for_each(|wrong| println!("{wrong}"));
    Ok(wrong.is_empty())
}

impl Load {
    fn swap(&self, began: Instant, time: Duration, memory: &mut Vec<u64>) -> Result<()> {
        while began.elapsed() < time {
            let next = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            self.router.install(&self.ids[usize::from(next % 2 == 1)])?;
            self.ended.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_secs(1));
            if began.elapsed() * 10 >= time * u32::try_from(memory.len()).unwrap_or(u32::MAX) {
                memory.push(resident());
            }
        }
        Ok(())
    }

    fn ask(&self, thread: u64) -> Seen {
        let (mut seen, mut draw) = (Seen::default(), thread + 1);
        let mut next = |below: u64| {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (draw >> 33) % below
        };
        while !self.over.load(Ordering::SeqCst) {
            // Half of the prompts come again and again.
            let which = if next(2) == 0 {
                next(200)
            } else {
                next(65_536)
            };
            let deadline = Duration::from_millis(5 + next(46));
            let mut request = Request::new(prompt(which)).top(5).deadline(deadline);
            if next(4) == 0 {
                request = request.session("load", next(5000).to_string());
            }
            let before = self.ended.load(Ordering::SeqCst);
            let began = Instant::now();
            let answer = match next(2) {
                0 => self.router.route_within(&request, &self.policy),
                _ => self.router.route(&request),
            };
            let took = began.elapsed();
            let after = self.begun.load(Ordering::SeqCst);
            let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
            seen.times.push(micros(took));
            if let Some(over) = took.checked_sub(deadline) {
                seen.overdue.push(micros(over));
            }
            let kind = match answer {
                Ok(decision) => {
                    let served = &self.ids[usize::from(before % 2 == 1)];
                    let id = &decision.revisions.generation;
                    if before == after && id != served || decision.ranked.is_empty() {
                        seen.wrong
                            .push(format!("{served} was served: {decision:?}"));
                    }
                    match (decision.abstained.is_some(), decision.cached) {
                        (true, _) => "fallback",
                        (_, true) => "from the cache",
                        _ => "computed",
                    }
                    .to_owned()
                }
                Err(error) => {
                    let kind = error.kind();
                    if !matches!(kind, ErrorKind::Deadline | ErrorKind::Overloaded) {
                        seen.wrong.push(error.to_string());
                    }
                    // As a host would that is told to come later.
                    std::thread::sleep(Duration::from_millis(1));
                    format!("{kind:?}")
                }
            };
            *seen.kinds.entry(kind).or_default() += 1;
        }
        seen
    }
}

/// Times of hits with so many threads, each with prompts of some 60 characters.
fn hits(threads: usize) -> Result<()> {
    const EACH: usize = 200_000;
    let options = Options::default().device("cpu").encoder(ENCODER);
    let router = Router::open(STORE, options.cache_bytes(64 << 20))?;
    let requests: Vec<Request> = (0..256).map(|i| Request::new(prompt(i))).collect();
    for answer in router.route_batch(&requests) {
        answer?;
    }
    let all = Mutex::new(Vec::new());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (router, requests, all) = (&router, &requests, &all);
            scope.spawn(move || {
                let mut times = Vec::with_capacity(EACH);
                for turn in 0..EACH {
                    let request = &requests[(thread * 17 + turn) % requests.len()];
                    let began = Instant::now();
                    let hit = router.route(request).is_ok_and(|decision| decision.cached);
                    times.push(u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX));
                    assert!(hit, "expected a hit");
                }
                all.lock().unwrap_or_else(|e| e.into_inner()).extend(times);
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let mut times = all.into_inner().unwrap_or_else(|e| e.into_inner());
    let count = times.len();
    println!(
        "hits, {threads} threads: {:.2} million per second; microseconds of one: {}",
        count as f64 / seconds / 1e6,
        quantiles(&mut times)
    );
    Ok(())
}

/// Of values in thousandths.
fn quantiles(values: &mut [u32]) -> String {
    values.sort_unstable();
    let at = |thousandths: usize| {
        let place = values.len() * thousandths / 1000;
        let value = values.get(place).or(values.last());
        value.map_or(0.0, |value| f64::from(*value) / 1e3)
    };
    format!(
        "{} of them, half within {:.2}, 99 % within {:.2}, 99.9 % within {:.2}, all within {:.2}",
        values.len(),
        at(500),
        at(990),
        at(999),
        at(1000)
    )
}

fn prompt(which: u64) -> String {
    let word = |place: u32| {
        let digit = usize::try_from((which >> (4 * place)) % 16).unwrap_or(0);
        WORDS[digit]
    };
    format!(
        "find a model for {} and {}, with {} and {}",
        word(0),
        word(1),
        word(2),
        word(3)
    )
}

/// Resident memory in megabytes; 0 where it is not known.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096 / 1_000_000
}

fn copy(from: &Path, to: &Path) {
    let made = std::fs::create_dir_all(to).and_then(|()| std::fs::read_dir(from));
    for entry in made.into_iter().flatten().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else if let Err(error) = std::fs::copy(&path, &target) {
            println!("{}: {error}", path.display());
        }
    }
}
