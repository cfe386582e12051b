//! `kill -9` at seeded pseudo-random moments of an update: while it learns, while it writes where it
//! stopped, while it publishes. The store opens every time, on the old generation or the new one.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]
#![cfg(all(unix, feature = "cli"))]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::command::{hubrouter, learnable, learning, lines, succeeded, text};
use common::{Folder, copy, cpu};
use hubrouter::{GenerationId, Request, Router, Store};

const KILLS: usize = 200;
const SEED: u64 = 42;

/// Where an update was when it was killed, as what it left shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Learning,
    /// After Ctrl-C.
    WritingState,
    Publishing,
    Published,
}

/// When to kill.
#[derive(Clone, Copy)]
enum Aim {
    /// At some moment of the whole run.
    Anywhere,
    /// Once the first file of a generation is being written.
    Publish,
    /// After Ctrl-C at the first step, once the state is being written.
    State,
}

/// SplitMix64, as a number in [0, 1).
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn part_of(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.next())
    }
}

/// What is in a store's folder, with the file that an interruption leaves.
#[derive(PartialEq)]
struct Seen {
    names: Vec<String>,
    current: String,
    resume: Option<(u64, std::time::SystemTime)>,
}

impl Seen {
    fn of(store: &Path) -> Self {
        let mut names: Vec<String> = fs::read_dir(store)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let resume = fs::metadata(store.join("resume.safetensors"));
        Self {
            names,
            current: fs::read_to_string(store.join("current")).unwrap(),
            resume: resume
                .ok()
                .map(|data| (data.len(), data.modified().unwrap())),
        }
    }

    /// Where an update was that made this of `before`.
    fn stage(&self, before: &Self) -> Stage {
        let new: Vec<&String> = self
            .names
            .iter()
            .filter(|name| !before.names.contains(name))
            .collect();
        let ends = |end: &str| new.iter().any(|name| name.ends_with(end));
        if self.current != before.current {
            Stage::Published
        } else if ends("-folder")
            || ends("-current")
            || new.iter().any(|name| name.parse::<GenerationId>().is_ok())
        {
            Stage::Publishing
        } else if ends("-resume.safetensors") || self.resume != before.resume {
            Stage::WritingState
        } else {
            Stage::Learning
        }
    }
}

struct Place {
    store: PathBuf,
    encoder: String,
    examples: String,
    base: GenerationId,
}

impl Place {
    fn learn(&self, store: &Path, seed: u64) -> Command {
        let seed = format!("seed={seed}");
        let store = store.to_str().unwrap();
        let settings = ["--set", "epochs=12", "--set", "batch=8", "--set", &seed];
        let more = [&settings[..], &["--json", "-v"]].concat();
        hubrouter(&learning(store, &self.encoder, &self.examples, &more))
    }

    fn start(&self, seed: u64) -> Child {
        let mut learn = self.learn(&self.store, seed);
        learn.stdout(Stdio::null()).stderr(Stdio::piped());
        learn.spawn().unwrap()
    }

    /// Waits until the update has come so far; none once it has ended.
    fn wait_for(&self, child: &mut Child, before: &Seen, stage: Stage) -> Option<()> {
        while Seen::of(&self.store).stage(before) < stage {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
        }
        Some(())
    }

    /// The generation that the whole update with this seed makes, in a store of its own.
    fn whole_update(&self, folder: &Folder, seed: u64) -> String {
        let store = folder.join("untouched");
        fs::create_dir(&store).unwrap();
        let base = self.base.as_str();
        copy(&self.store.join(base), &store.join(base));
        fs::write(store.join("current"), format!("{base}\n")).unwrap();
        let report = lines(&succeeded(self.learn(&store, seed).output().unwrap())).remove(0);
        fs::remove_dir_all(store).unwrap();
        report["generation"].as_str().unwrap().to_owned()
    }

    /// The store opens, on the base or on a whole child of it, and routes; nothing in it is torn.
    fn check(&self) -> GenerationId {
        let store = Store::open(&self.store).unwrap();
        let current = store.current().unwrap();
        let manifest = store.check(&current).unwrap();
        assert!(current == self.base || manifest.parent.as_ref() == Some(&self.base));
        for report in store.list().unwrap() {
            assert_eq!(report.damage, None, "{}", report.id);
        }
        let router = Router::open(&self.store, cpu(1).encoder(&self.encoder)).unwrap();
        let decision = router.route(&Request::new("prompt 3 about birds")).unwrap();
        assert_eq!(decision.revisions.generation, current);
        assert_eq!(decision.degraded, None);
        current
    }

    /// Back to the base alone.
    fn tidy(&self) {
        let store = Store::open(&self.store).unwrap();
        store.set_current(&self.base).unwrap();
        store.prune(0, false).unwrap();
        assert_eq!(store.ids().unwrap(), std::slice::from_ref(&self.base));
        let left = Seen::of(&self.store).names;
        assert!(
            left.iter().all(|name| !name.starts_with(".tmp-")),
            "{left:?}"
        );
    }
}

/// Waits for the first step, and presses Ctrl-C.
fn interrupt(child: &mut Child) {
    let errors = BufReader::new(child.stderr.take().unwrap());
    let mut said = errors.lines().map(Result::unwrap);
    assert!(said.any(|line| line.contains("learning begins")));
    let kill = format!("kill -INT {}", child.id());
    let _ = Command::new("sh").args(["-c", &kill]).status().unwrap();
}

/// How long a run takes that nobody disturbs, and of that its publishing.
struct Times {
    whole: Duration,
    publishing: Duration,
}

impl Times {
    fn measure(place: &Place) -> Self {
        let before = Seen::of(&place.store);
        let began = Instant::now();
        let mut child = place.start(0);
        let published = place.wait_for(&mut child, &before, Stage::Publishing);
        let learning = began.elapsed();
        assert!(published.is_some() && child.wait().unwrap().success());
        place.tidy();
        Self {
            whole: began.elapsed(),
            publishing: began.elapsed() - learning,
        }
    }
}

/// Starts an update and kills it; its status, and what it left.
fn kill_one(
    place: &Place,
    before: &Seen,
    aim: Aim,
    times: &mut Times,
    draws: &mut Draws,
    seed: u64,
) -> (ExitStatus, Stage) {
    let began = Instant::now();
    let mut child = place.start(seed);
    let pause = match aim {
        Aim::Anywhere => Some(draws.part_of(times.whole)),
        Aim::Publish => place
            .wait_for(&mut child, before, Stage::Publishing)
            .map(|()| draws.part_of(times.publishing)),
        Aim::State => {
            interrupt(&mut child);
            place
                .wait_for(&mut child, before, Stage::WritingState)
                .map(|()| draws.part_of(times.publishing / 16))
        }
    };
    std::thread::sleep(pause.unwrap_or_default());
    let ended = child.try_wait().unwrap().is_some();
    // The machine may be less busy than it was: later kills come earlier.
    match aim {
        Aim::Anywhere if ended => times.whole = times.whole.min(began.elapsed()).mul_f64(0.9),
        Aim::Publish if ended => times.publishing = times.publishing.mul_f64(0.8),
        _ => (),
    }
    let _ = child.kill();
    let status = child.wait().unwrap();
    (status, Seen::of(&place.store).stage(before))
}

/// What became of the kills.
#[derive(Debug, Default)]
struct Tally {
    runs: usize,
    kills: usize,
    stages: BTreeMap<Stage, usize>,
    /// Updates that were done again after a kill, and those of them that went on from a state.
    again: usize,
    resumed: usize,
}

/// Kills as many updates in a store of its own.
fn kill_updates(kills: usize, draws: u64) -> Tally {
    let folder = Folder::new("kills");
    let (store, encoder, examples) = learnable(&folder);
    let mut place = Place {
        base: Store::open(&store).unwrap().current().unwrap(),
        store: store.into(),
        encoder,
        examples,
    };
    // The second update is the first with everything in it: replay, two phases, old prompts.
    succeeded(place.learn(&place.store, 0).output().unwrap());
    place.base = Store::open(&place.store).unwrap().current().unwrap();
    let mut times = Times::measure(&place);
    let mut draws = Draws(draws);
    let mut tally = Tally::default();
    while tally.kills < kills {
        tally.runs += 1;
        let run = tally.runs;
        let seed = run as u64;
        assert!(run < 3 * kills, "too few kills landed: {tally:?}");
        let aim = [Aim::Anywhere, Aim::Publish, Aim::State][run % 3];
        let before = Seen::of(&place.store);
        let (status, stage) = kill_one(&place, &before, aim, &mut times, &mut draws, seed);
        let current = place.check();
        assert_eq!(current != place.base, stage == Stage::Published);
        if status.signal() == Some(9) {
            tally.kills += 1;
            *tally.stages.entry(stage).or_default() += 1;
        }
        // What is left stays for later updates. Now and then the same one follows: it goes on from
        // the state, where there is one, and ends as if nobody had killed it.
        let follow = run % 10 == 5 || run % 15 == 2;
        if follow {
            let store = Store::open(&place.store).unwrap();
            store.set_current(&place.base).unwrap();
            let output = succeeded(place.learn(&place.store, seed).output().unwrap());
            tally.again += 1;
            tally.resumed += usize::from(text(&output.stderr).contains("resuming at step"));
            let whole = place.whole_update(&folder, seed);
            assert_eq!(lines(&output)[0]["generation"], whole.as_str());
            assert_eq!(place.check().as_str(), whole);
            assert!(!place.store.join("resume.safetensors").exists());
        }
        if follow || current != place.base {
            place.tidy();
        }
    }
    tally
}

#[test]
fn killed_updates_leave_the_old_generation_or_the_new_one() {
    let began = Instant::now();
    let tallies = std::thread::scope(|scope| {
        let lanes = [SEED, SEED + 1].map(|seed| scope.spawn(move || kill_updates(KILLS / 2, seed)));
        lanes.map(|lane| lane.join().unwrap())
    });
    let sum = |of: &dyn Fn(&Tally) -> usize| tallies.iter().map(of).sum::<usize>();
    let hit = |stage| sum(&|tally| tally.stages.get(&stage).copied().unwrap_or(0));
    let stages = [
        Stage::Learning,
        Stage::WritingState,
        Stage::Publishing,
        Stage::Published,
    ];
    let stages = stages.map(|stage| (stage, hit(stage)));
    println!(
        "{} of {} updates were killed: {stages:?}; {} were done again, {} of them from a state; {:.0} s",
        sum(&|tally| tally.kills),
        sum(&|tally| tally.runs),
        sum(&|tally| tally.again),
        sum(&|tally| tally.resumed),
        began.elapsed().as_secs_f64(),
    );
    for (stage, count) in &stages[..3] {
        assert!(*count >= KILLS / 20, "{stage:?}: {count} of {stages:?}");
    }
    assert!(
        sum(&|tally| tally.resumed) > 0,
        "no update went on from a state"
    );
}
