//! `kill -9` of every command that writes, half of them at a chosen system call: whatever is left, the
//! store opens, nothing acknowledged is lost, and the same command or `generation prune` mends it.
//!
//! Where the system lets it, each run has a process-id namespace of its own, so that the next one has
//! the same process id: containers give that. `tests/kills/run.sh` does it 1,000 times.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]
#![cfg(all(target_os = "linux", feature = "cli"))]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Folder, copy, cpu, fixture, toy};
use hubrouter::{Encoder, GenerationId, Options, Request, Router, Store};
use serde_json::json;

/// Kills of a normal run; `HUBROUTER_KILLS` replaces it.
const KILLS: usize = 70;

/// System calls at which a command is killed.
const CALLS: [&str; 11] = [
    "openat",
    "write",
    "fsync",
    "rename",
    "renameat2",
    "linkat",
    "mkdir",
    "unlink",
    "unlinkat",
    "rmdir",
    "flock",
];

/// The commands, and what each is killed of.
const COMMANDS: [&str; 11] = [
    "hub build",
    "hub add",
    "hub retire",
    "learn",
    "learn --recipe memory",
    "generation rollback",
    "generation prune",
    "generation export",
    "generation import",
    "generation adopt",
    "encoder import",
];

/// SplitMix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

/// How a process is run.
struct Ways {
    /// In front of the command, for a process-id namespace; empty where there can be none.
    namespace: Vec<&'static str>,
    strace: bool,
}

impl Ways {
    fn find() -> Self {
        let works = |command: &[&str]| {
            let output = Command::new(command[0]).args(&command[1..]).output();
            output.is_ok_and(|output| output.status.success())
        };
        let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let namespace = if works(&[&unshare[..], &["true"]].concat()) {
            unshare.into()
        } else {
            Vec::new()
        };
        let strace = works(&["strace", "-f", "-o", "/dev/null", "true"]);
        Self { namespace, strace }
    }

    /// The command in a namespace, its process id 2 there.
    fn command(&self, arguments: &[String]) -> Command {
        let script = "\"$@\" & wait $!";
        self.wrapped(&["sh", "-c", script, "sh"], arguments)
    }

    fn wrapped(&self, inner: &[&str], arguments: &[String]) -> Command {
        let mut words: Vec<&str> = self.namespace.clone();
        if !(self.namespace.is_empty() && inner[0] == "sh") {
            words.extend(inner);
        }
        words.push(env!("CARGO_BIN_EXE_hubrouter"));
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(arguments)
            .env_remove("HUBROUTER_HOME")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn under_strace(&self, options: &[&str], arguments: &[String]) -> Command {
        self.wrapped(&[&["strace", "-f"], options].concat(), arguments)
    }
}

/// Where commands are killed: a copy of the template.
struct Place {
    folder: Folder,
}

/// What is true of the template.
struct Template {
    folder: Folder,
    /// Acknowledged generations, oldest first.
    ids: Vec<GenerationId>,
}

impl Template {
    fn new() -> Self {
        let setup = toy::setup("kills-all");
        let options = cpu(1).encoder(&setup.encoder);
        toy::learn(
            &setup,
            toy::examples(0, 6),
            toy::settings(&[("epochs", "1")]),
            options,
        );
        let store = Store::open(&setup.store).unwrap();
        store.alias("model-0", "zero").unwrap();
        store.alias("model-0", "null").unwrap();
        let models: String = ["birds", "cats"]
            .map(|name| {
                format!(
                    "{}\n",
                    json!({"model_name": name, "domain": "Audio", "description": "new"})
                )
            })
            .concat();
        fs::write(setup.folder.join("models.jsonl"), models).unwrap();
        let line = |example: &hubrouter::learn::Example| {
            format!(
                "{}\n",
                json!({"instruction": example.prompt, "model_name": example.model_name, "domain": example.domain})
            )
        };
        let examples: String = toy::examples(3, 4).iter().map(line).collect();
        fs::write(setup.folder.join("examples.jsonl"), examples).unwrap();
        copy(&fixture("toy-bert"), &setup.folder.join("hf"));
        let (id, to) = (store.current().unwrap(), setup.folder.join("exported"));
        hubrouter::exchange::export(&store, &id, &to, &cpu(1)).unwrap();
        // An adapter that is not the current one.
        let peft = setup.folder.join("peft");
        copy(&to.join("adapter"), &peft);
        let config = peft.join("adapter_config.json");
        let text = fs::read_to_string(&config).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["lora_alpha"] = 1.into();
        fs::write(config, value.to_string()).unwrap();
        Self {
            ids: store.ids().unwrap(),
            folder: setup.folder,
        }
    }

    fn place(&self) -> Place {
        let folder = Folder::new("kill");
        copy(&self.folder.0, &folder.0);
        Place { folder }
    }

    fn current(&self) -> &GenerationId {
        self.ids.last().unwrap()
    }
}

impl Place {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    fn options(&self) -> Options {
        cpu(1).encoder(self.folder.join("toy-bert"))
    }

    fn arguments(&self, command: &str) -> Vec<String> {
        let mut all: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let (store, encoder) = (self.path("store"), self.path("toy-bert"));
        let (models, examples) = (self.path("models.jsonl"), self.path("examples.jsonl"));
        let (built, source, imported) =
            (self.path("built"), self.path("hf"), self.path("imported"));
        let (exported, adapter) = (self.path("exported"), self.path("peft"));
        let device = ["--device", "cpu", "--threads", "1", "--encoder", &encoder];
        let rest = match command {
            "hub build" => [&["--models", &models, "--out", &built], &device[..]].concat(),
            "hub add" => [&["--models", &models, "--router", &store], &device[..]].concat(),
            "hub retire" => vec!["--router", &store, "model-2"],
            "learn" => [
                &[
                    "--examples",
                    &examples,
                    "--router",
                    &store,
                    "--recipe",
                    "carve",
                    "--set",
                    "epochs=1",
                ],
                &device[..],
            ]
            .concat(),
            "learn --recipe memory" => {
                [&["--examples", &examples, "--router", &store], &device[..]].concat()
            }
            "generation rollback" => vec!["--router", &store],
            "generation prune" => vec!["--router", &store, "--keep", "1"],
            "generation export" => {
                vec!["--router", &store, "--to", &built, "--encoder", &encoder]
            }
            "generation import" => [&["--from", &exported, "--out", &built], &device[..]].concat(),
            "generation adopt" => [&["--from", &adapter, "--router", &store], &device[..]].concat(),
            "encoder import" => vec!["--from", &source, "--to", &imported],
            other => panic!("{other}"),
        }
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
        all.extend(rest);
        all.push("--json".into());
        all
    }

    /// Opens the store and routes; what is served, undegraded.
    fn served(&self, store: &Path) -> GenerationId {
        let router = Router::open(store, self.options()).unwrap();
        let decision = router
            .route(&Request::new("find a model for french number 0"))
            .unwrap();
        assert_eq!(decision.degraded, None);
        let served = decision.revisions.generation;
        assert_eq!(served, Store::open(store).unwrap().current().unwrap());
        served
    }

    /// Whatever was acknowledged is there and whole.
    fn check_whole(&self, store: &Path, ids: &[GenerationId]) {
        let reports = Store::open(store).unwrap().list().unwrap();
        for report in &reports {
            assert_eq!(report.damage, None, "{}", report.id);
        }
        for id in ids {
            assert!(
                reports.iter().any(|report| report.id == *id),
                "{id} is gone"
            );
        }
    }

    fn left_overs(&self, folder: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(folder) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".tmp-")).collect()
    }
}

/// How a run ended.
struct Ended {
    killed: bool,
    success: bool,
    stdout: String,
    stderr: String,
}

/// Waits for the command, which is killed after `after`, if that is some time.
fn wait(mut command: Command, after: Option<Duration>) -> Ended {
    let mut child = command.spawn().unwrap();
    if let Some(after) = after {
        std::thread::sleep(after);
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    // Nobody that writes is left once both pipes are closed.
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut stdout)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_end(&mut stderr)
        .unwrap();
    use std::os::unix::process::ExitStatusExt as _;
    Ended {
        killed: status.signal() == Some(9) || status.code() == Some(137),
        success: status.success(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// What is known of an undisturbed run: how long it takes, and its system calls on files of the place,
/// each by name and by its number among those of that name.
struct Known {
    time: Duration,
    calls: Vec<(String, usize)>,
}

fn learn_of(ways: &Ways, template: &Template, command: &str) -> Known {
    let place = template.place();
    let began = Instant::now();
    let ended = wait(ways.command(&place.arguments(command)), None);
    let time = began.elapsed();
    assert!(ended.success, "{command}: {}", ended.stderr);
    if !ways.strace {
        return Known {
            time,
            calls: Vec::new(),
        };
    }
    let place = template.place();
    let log = template.folder.join("trace");
    let trace = format!("trace={}", CALLS.join(","));
    let options = ["-y", "-o", log.to_str().unwrap(), "-e", &trace];
    let ended = wait(ways.under_strace(&options, &place.arguments(command)), None);
    assert!(ended.success, "{command}: {}", ended.stderr);
    let text = fs::read_to_string(&log).unwrap();
    let root = place.folder.0.to_str().unwrap();
    let first = text.split_whitespace().next().unwrap();
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut calls = Vec::new();
    // The main thread's: the numbers are those of a thread.
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(first) else {
            continue;
        };
        let Some((name, arguments)) = rest.trim_start().split_once('(') else {
            continue;
        };
        let count = counts.entry(name).or_default();
        *count += 1;
        // Also the line that acknowledges.
        let acknowledges = name == "write" && arguments.starts_with('1');
        if arguments.contains(root) && !arguments.contains("O_RDONLY") || acknowledges {
            calls.push((name.to_owned(), *count));
        }
    }
    assert!(calls.len() > 3, "{command}: {} calls\n{text}", calls.len());
    Known { time, calls }
}

/// What became of the kills.
#[derive(Debug, Default)]
struct Tally {
    runs: usize,
    kills: usize,
    at_calls: usize,
    acknowledged: usize,
    /// The command had done its work, and not said so.
    silent: usize,
    left_over: usize,
    /// Kills at each call.
    calls: BTreeMap<String, usize>,
}

fn kill_one(
    ways: &Ways,
    template: &Template,
    command: &str,
    known: &mut Known,
    draws: &mut Draws,
    tally: &mut Tally,
) {
    let place = template.place();
    let arguments = place.arguments(command);
    tally.runs += 1;
    let at_call = !known.calls.is_empty() && tally.runs.is_multiple_of(2);
    let mut what = "a moment".to_owned();
    let ended = if at_call {
        let (name, number) = &known.calls[draws.below(known.calls.len())];
        what = format!("{name} {number}");
        let inject = format!("inject={name}:signal=KILL:when={number}");
        let trace = format!("trace={name}");
        let options = ["-o", "/dev/null", "-e", &trace, "-e", &inject];
        wait(ways.under_strace(&options, &arguments), None)
    } else {
        let part = u32::try_from(draws.below(1000)).unwrap();
        wait(ways.command(&arguments), Some(known.time * part / 1000))
    };
    assert!(
        ended.killed || ended.success,
        "{command}, {what}: {}",
        ended.stderr
    );
    if ended.killed {
        tally.kills += 1;
        if at_call {
            tally.at_calls += 1;
            *tally
                .calls
                .entry(what.split(' ').next().unwrap().to_owned())
                .or_default() += 1;
        }
    } else if !at_call {
        // The machine may be less busy than it was.
        known.time = known.time.mul_f64(0.95);
    }
    let acknowledged = ended.success || ended.stdout.ends_with('\n');
    tally.acknowledged += usize::from(ended.killed && acknowledged);
    let context = format!("{command}, killed at {what}, acknowledged: {acknowledged}");
    let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        judge(
            ways,
            template,
            &place,
            command,
            acknowledged,
            &ended.stdout,
            tally,
        );
    }));
    if judged.is_err() {
        let kept = std::env::temp_dir().join(format!("hubrouter-kill-{}", std::process::id()));
        let _ = fs::remove_dir_all(&kept);
        copy(&place.folder.0, &kept);
        panic!("{context}: the place is kept in {}", kept.display());
    }
}

/// The same command again, in a process with the same id.
fn again(ways: &Ways, place: &Place, command: &str) {
    let ended = wait(ways.command(&place.arguments(command)), None);
    assert!(ended.success, "{command} again: {}", ended.stderr);
}

/// The id in what was acknowledged.
fn said(stdout: &str) -> Option<GenerationId> {
    let value: serde_json::Value = serde_json::from_str(stdout.lines().last()?).ok()?;
    ["generation", "current", "to"]
        .iter()
        .find_map(|key| value[*key].as_str()?.parse().ok())
}

fn judge(
    ways: &Ways,
    template: &Template,
    place: &Place,
    command: &str,
    acknowledged: bool,
    stdout: &str,
    tally: &mut Tally,
) {
    let store = place.store();
    let pruned = command == "generation prune";
    let kept = if pruned {
        &template.ids[template.ids.len() - 2..]
    } else {
        &template.ids
    };
    // The store that was there: as it was, or with the change.
    let now = place.served(&store);
    place.check_whole(&store, kept);
    match command {
        "generation export" => {
            let built = place.folder.join("built");
            tally.left_over += place.left_overs(&place.folder.0).len();
            if !built.exists() {
                assert!(!acknowledged);
                again(ways, place, command);
            } else {
                tally.silent += usize::from(!acknowledged);
            }
            let encoder =
                std::sync::Arc::new(Encoder::open(place.folder.join("toy-bert"), &cpu(1)).unwrap());
            let store = place.folder.join("back");
            hubrouter::exchange::import(&built, &store, &[], &encoder, &mut |_, _| {}).unwrap();
            assert!(now == *template.current());
        }
        "hub build" | "generation import" => {
            let built = place.folder.join("built");
            if acknowledged {
                assert_eq!(said(stdout), Some(place.served(&built)));
            } else if Store::open(&built).is_ok_and(|store| store.current().is_ok()) {
                tally.silent += 1;
            } else {
                again(ways, place, command);
            }
            let first = place.served(&built);
            place.check_whole(&built, &[first]);
            let prune: Vec<String> = ["generation", "prune", "--router", built.to_str().unwrap()]
                .map(str::to_owned)
                .into();
            tally.left_over += place.left_overs(&built).len();
            assert!(wait(ways.command(&prune), None).success);
            assert_eq!(place.left_overs(&built), Vec::<String>::new());
        }
        "encoder import" => {
            let imported = place.folder.join("imported");
            tally.left_over += place.left_overs(&place.folder.0).len();
            if !imported.exists() {
                assert!(!acknowledged);
                again(ways, place, command);
            } else {
                tally.silent += usize::from(!acknowledged);
            }
            let encoder = Encoder::open(&imported, &cpu(1)).unwrap();
            assert!(encoder.embed(&["a prompt"])[0].is_ok());
        }
        _ => {
            let old = template.current();
            let done = match command {
                "generation prune" => Store::open(&store).unwrap().ids().unwrap().len() == 2,
                "generation rollback" => now == template.ids[template.ids.len() - 2],
                _ => now != *old,
            };
            if acknowledged {
                assert!(done, "acknowledged, and lost");
                if let Some(id) = said(stdout) {
                    assert!(id == now || pruned, "said {id}, serves {now}");
                }
            } else if done {
                tally.silent += 1;
            } else {
                assert!(now == *old, "neither the old generation nor the new one");
                again(ways, place, command);
            }
            let now = place.served(&store);
            assert!(pruned || now != *old);
            place.check_whole(&store, kept);
            tally.left_over += place.left_overs(&store).len();
            again(ways, place, "generation prune");
            assert_eq!(place.left_overs(&store), Vec::<String>::new());
            assert_eq!(place.served(&store), now);
        }
    }
}

#[test]
fn whatever_is_killed_is_mended_by_the_command_alone() {
    let kills = std::env::var("HUBROUTER_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let seed = std::env::var("HUBROUTER_FUZZ_SEED").map_or(42, |text| text.parse().unwrap());
    let (ways, template, began) = (Ways::find(), Template::new(), Instant::now());
    let mut draws = Draws(seed);
    let mut sum = (0, 0);
    for (at, command) in COMMANDS.into_iter().enumerate() {
        let mut known = learn_of(&ways, &template, command);
        let mut tally = Tally::default();
        let wanted = kills * (at + 1) / COMMANDS.len() - kills * at / COMMANDS.len();
        while tally.kills < wanted {
            assert!(
                tally.runs < 20 + 4 * wanted,
                "{command}: too few kills landed: {tally:?}"
            );
            kill_one(
                &ways, &template, command, &mut known, &mut draws, &mut tally,
            );
        }
        println!(
            "{command}: {} calls on its files; {tally:?}",
            known.calls.len()
        );
        sum = (sum.0 + tally.kills, sum.1 + tally.at_calls);
    }
    println!(
        "{} kills, {} of them at a chosen system call, in {:.0} s; same process id: {}; strace: {}",
        sum.0,
        sum.1,
        began.elapsed().as_secs_f64(),
        !ways.namespace.is_empty(),
        ways.strace,
    );
}
