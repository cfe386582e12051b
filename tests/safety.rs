//! Stores that are full, read-only or in use: clear errors, early, and nothing lost.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]
#![cfg(all(unix, feature = "cli"))]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::command::{
    current, failed, hubrouter, learnable, learning, lines, run, succeeded, text,
};
use common::{Folder, cpu};
use hubrouter::learn::{
    Control, Experience, Learner, Outcome, Settings, read_examples, remembered,
};
use hubrouter::{ErrorKind, Request, Router, Store};

/// A store that has learned once, and what it needs to learn again.
struct Place {
    folder: Folder,
    store: String,
    encoder: String,
    examples: String,
}

impl Place {
    fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        let (store, encoder, examples) = learnable(&folder);
        Self {
            folder,
            store,
            encoder,
            examples,
        }
    }

    fn learned(name: &str) -> Self {
        let place = Self::new(name);
        succeeded(run(&place.learn(&["--set", "replay.ratio=1"])));
        place
    }

    fn learn<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let more = [&["--set", "epochs=2"], more].concat();
        learning(&self.store, &self.encoder, &self.examples, &more)
    }

    fn add(&self) -> Vec<&str> {
        let router = ["hub", "add", "--router", &self.store];
        let encoder = ["--encoder", &self.encoder, "--device", "cpu"];
        let model = ["--model", "late", "--domain", "Audio"];
        [&router[..], &encoder, &model].concat()
    }

    fn seen(&self) -> Seen {
        Seen::of(Path::new(&self.store))
    }

    /// A prompt that the store keeps.
    fn kept(&self) -> String {
        let store = Store::open(&self.store).unwrap();
        let kept = remembered(&store, &store.current().unwrap()).unwrap();
        kept.replay[0].text.clone().unwrap()
    }
}

/// Names in a store but for its locks, and the current one, which is whole.
#[derive(Debug, PartialEq)]
struct Seen {
    names: Vec<String>,
    current: String,
}

impl Seen {
    fn of(path: &Path) -> Self {
        let store = Store::open(path).unwrap();
        store.check(&store.current().unwrap()).unwrap();
        let names = fs::read_dir(path).unwrap();
        let mut names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("lock"))
            .collect();
        names.sort();
        Self {
            names,
            current: current(path.to_str().unwrap()),
        }
    }
}

/// The command with no file of more than `blocks` times 512 bytes: writes fail in their middle, as
/// on a full disk.
fn limited(arguments: &[&str], blocks: u32) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    let plain = hubrouter(arguments);
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "sh"]).arg(plain.get_program());
    shell.args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_full_disk_is_said_and_nothing_is_published() {
    // The first update brings adapters: more than the store was found to have room for.
    let place = Place::new("full");
    let before = place.seen();
    for (arguments, name) in [(place.learn(&[]), "learn"), (place.add(), "hub add")] {
        let (mut early, mut late) = (0, 0);
        for blocks in 0.. {
            let output = limited(&arguments, blocks);
            if output.status.success() {
                break;
            }
            let errors = text(&output.stderr);
            failed(
                output,
                1,
                &[&place.store, "cannot write", "raise the limit"],
            );
            match errors.contains("nothing was published") {
                true => late += 1,
                false => early += 1,
            }
            assert_eq!(place.seen(), before, "{name}, {blocks} blocks: {errors}");
        }
        assert_ne!(place.seen(), before, "{name}");
        Store::open(&place.store).unwrap().rollback().unwrap();
        Store::open(&place.store).unwrap().prune(0, false).unwrap();
        assert_eq!(place.seen(), before);
        println!("{name}: refused {early} times before any work, {late} times while publishing");
        assert!(
            late > 0 && (early > 0 || name == "hub add"),
            "{early} {late}"
        );
    }
}

#[test]
fn a_full_disk_is_said_by_the_library() {
    const CHILD: &str = "HUBROUTER_TEST_FULL_DISK";
    if let Ok(paths) = std::env::var(CHILD) {
        // In the process that may write no large file.
        let [store, encoder, examples] = paths.split('\n').collect::<Vec<_>>().try_into().unwrap();
        let options = cpu(1).encoder(encoder);
        let mut learner = Learner::open(store, None, Settings::carve(), options).unwrap();
        let experience = Experience {
            models: Vec::new(),
            examples: read_examples(examples).unwrap(),
        };
        let outcome = learner.learn(&experience, None, &mut |_| Control::Continue);
        assert!(matches!(outcome.unwrap(), Outcome::Learned(_)));
        let error = learner.commit().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        println!("refused: {error}");
        return;
    }
    let place = Place::new("full-library");
    let before = place.seen();
    let this = std::env::current_exe().unwrap();
    let script = "trap '' XFSZ; ulimit -f 1; exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(this)
        .args([
            "--exact",
            "a_full_disk_is_said_by_the_library",
            "--nocapture",
        ])
        .env(
            CHILD,
            [&*place.store, &place.encoder, &place.examples].join("\n"),
        )
        .output()
        .unwrap();
    let said = text(&succeeded(output).stdout);
    for part in [
        "refused: ",
        &place.store,
        "head.safetensors",
        "stays current",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    assert_eq!(place.seen(), before);
    succeeded(run(&place.learn(&[])));
}

/// A file system of so many kilobytes, in a mount namespace of its own; none where the system lets
/// nobody make one.
fn small_disk(place: &Place, arguments: &[&str], kilobytes: u64) -> Option<Output> {
    let mount = place.folder.join("disk");
    fs::create_dir_all(&mount).unwrap();
    let script = format!(
        "mount -t tmpfs -o size={kilobytes}k none {disk} || exit 99
         cp -r {store} {disk}/ || exit 98
         \"$@\" || echo \"code $?\" >&2
         ls -A {disk}/store; cat {disk}/store/current
         {this} generation check --router {disk}/store",
        disk = mount.display(),
        store = place.store,
        this = env!("CARGO_BIN_EXE_hubrouter"),
    );
    let moved: Vec<String> = arguments
        .iter()
        .map(|argument| argument.replace(&place.store, &format!("{}/store", mount.display())))
        .collect();
    for namespaces in [&["-m"][..], &["-Urm"]] {
        let output = Command::new("unshare")
            .args(namespaces)
            .args(["sh", "-c", &script, "sh"])
            .arg(env!("CARGO_BIN_EXE_hubrouter"))
            .args(&moved)
            .stdin(Stdio::null())
            .output();
        let output = output.ok()?;
        let errors = text(&output.stderr);
        if output.status.code() != Some(99) && !errors.contains("unshare:") {
            return Some(output);
        }
    }
    None
}

/// What [`a_full_disk_is_said_and_nothing_is_published`] shows by a limit, by a file system without
/// room, where the system lets this process make one.
#[test]
fn no_space_left_is_said_where_a_small_disk_can_be_made() {
    let place = Place::new("small-disk");
    let before = place.seen();
    let (mut early, mut late) = (0, 0);
    for arguments in [place.learn(&[]), place.add()] {
        for step in 0.. {
            let Some(output) = small_disk(&place, &arguments, 32 + 8 * step) else {
                println!("no small disk can be made here: the limit on file sizes stands for it");
                return;
            };
            let (listed, errors) = (text(&output.stdout), text(&output.stderr));
            assert!(step < 100, "{listed}{errors}");
            if output.status.code() == Some(98) {
                // Not even the store has room.
                continue;
            }
            assert!(output.status.success(), "{listed}{errors}");
            if !errors.contains("code ") {
                break;
            }
            for part in ["code 1", "disk/store", "No space left", "free some space"] {
                assert!(errors.contains(part), "{part:?} is not in {errors:?}");
            }
            assert!(
                listed.contains(&format!("\n{}\n", before.current)),
                "{listed}"
            );
            let names = listed
                .lines()
                .filter(|line| line.starts_with('g') && !line.contains(' '));
            assert_eq!(names.count(), 2, "its folder, and `current`: {listed}");
            assert!(
                !listed.contains(".tmp-") && !listed.contains("damaged"),
                "{listed}"
            );
            match errors.contains("nothing was published") {
                true => late += 1,
                false => early += 1,
            }
        }
    }
    println!("no space: {early} before learning, {late} while publishing");
    assert!(early + late > 0);
}

/// The command by somebody who may read the store and not write it: by an unprivileged user where
/// this one is root, whom no permission binds.
struct Reader {
    program: PathBuf,
    root: bool,
}

impl Reader {
    fn new(place: &Place) -> Self {
        let program = place.folder.join("hubrouter");
        fs::copy(env!("CARGO_BIN_EXE_hubrouter"), &program).unwrap();
        let root = fs::metadata(&program).unwrap().uid() == 0;
        let all = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&place.folder.0, all).unwrap();
        fs::create_dir(place.folder.join("free")).unwrap();
        let free = fs::Permissions::from_mode(0o777);
        fs::set_permissions(place.folder.join("free"), free).unwrap();
        set_mode(Path::new(&place.store), 0o555);
        Self { program, root }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        if self.root {
            command.uid(65534).gid(65534);
        }
        // Whoever begins to learn here does not end.
        let mut child = command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if began.elapsed() > Duration::from_secs(60) {
                child.kill().unwrap();
                panic!("{arguments:?} did not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait_with_output().unwrap()
    }
}

/// Of the store's folders; files stay readable.
fn set_mode(store: &Path, mode: u32) {
    let mode = fs::Permissions::from_mode(mode);
    for entry in fs::read_dir(store).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::set_permissions(path, mode.clone()).unwrap();
        } else {
            fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
        }
    }
    fs::set_permissions(store, mode).unwrap();
}

#[test]
fn a_read_only_store_is_said_before_anything_is_learned() {
    let place = Place::learned("read-only");
    let (before, kept) = (place.seen(), place.kept());
    let reader = Reader::new(&place);
    let store = &*place.store;
    let endless = ["--set", "epochs=100000000"];
    let says = [
        store,
        "lock: cannot write to the store",
        "Permission denied",
    ];
    for arguments in [
        place.learn(&endless),
        place.add(),
        vec!["replay", "forget", "--router", store, &kept],
        vec!["generation", "rollback", "--router", store],
        vec!["generation", "prune", "--router", store],
        vec!["hub", "retire", "--router", store, "birds"],
    ] {
        failed(reader.run(&arguments), 1, &says);
    }
    // Without its locks it is the folder that refuses.
    set_mode(Path::new(store), 0o755);
    for name in ["lock", "lock-learning"] {
        fs::remove_file(Path::new(store).join(name)).unwrap();
    }
    set_mode(Path::new(store), 0o555);
    failed(reader.run(&place.learn(&endless)), 1, &says);
    // The place that the child goes to is what counts.
    let into = |name: &str| place.folder.join(name).to_str().unwrap().to_owned();
    let (nowhere, free) = (into("store/nowhere"), into("free/child"));
    let arguments = place.learn(&["--out", &nowhere, "--set", "epochs=100000000"]);
    failed(
        reader.run(&arguments),
        1,
        &["nowhere: cannot create the folder"],
    );
    let report = lines(&succeeded(
        reader.run(&place.learn(&["--out", &free, "--json"])),
    ));
    assert_eq!(report[0]["generation"], current(&free).as_str());
    // Whoever only reads needs no more than that.
    let dry = lines(&succeeded(
        reader.run(&place.learn(&["--dry-run", "--json"])),
    ));
    assert!(dry[0]["generation"].is_null());
    let forget = [
        "replay",
        "forget",
        "--router",
        store,
        "--dry-run",
        "--json",
        &kept,
    ];
    assert!(lines(&succeeded(reader.run(&forget)))[0]["entries"] == 1);
    let route = [
        "route",
        "--router",
        store,
        "--encoder",
        &place.encoder,
        "birds",
    ];
    succeeded(reader.run(&route));
    set_mode(Path::new(store), 0o755);
    assert_eq!(place.seen(), before);
}

#[test]
fn one_learns_at_a_time_and_what_is_changed_meanwhile_stays() {
    let place = Place::learned("two");
    let store = Store::open(&place.store).unwrap();
    let options = cpu(1).encoder(&place.encoder);
    let mut learner = Learner::open(&place.store, None, Settings::carve(), options).unwrap();
    let experience = Experience {
        models: Vec::new(),
        examples: read_examples(&place.examples).unwrap(),
    };
    let mut beside = 0;
    let outcome = learner.learn(&experience, None, &mut |status| {
        if status.loss.is_some() && beside == 0 {
            beside += 1;
            let output = run(&place.learn(&[]));
            failed(
                output,
                1,
                &["another process learns into this store", "try again"],
            );
            // Others need not wait for it.
            let add = [
                "hub",
                "add",
                "--router",
                &place.store,
                "--encoder",
                &place.encoder,
            ];
            let whales = ["--model", "whales", "--domain", "Audio", "--device", "cpu"];
            succeeded(run(&[&add[..], &whales].concat()));
            succeeded(run(&["generation", "prune", "--router", &place.store]));
        }
        Control::Continue
    });
    assert!(matches!(outcome.unwrap(), Outcome::Learned(_)) && beside == 1);
    let changed = store.current().unwrap();
    let error = learner.commit().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(store.current().unwrap(), changed);
    // The child is there, and said to be.
    let child = store
        .ids()
        .unwrap()
        .into_iter()
        .find(|id| *id != changed && store.check(id).unwrap().made_by == "learn custom");
    let child = child.unwrap();
    let error = error.to_string();
    for part in [child.as_str(), changed.as_str(), "generation rollback --to"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let to = [
        "generation",
        "rollback",
        "--router",
        &place.store,
        "--to",
        child.as_str(),
    ];
    succeeded(run(&to));
    assert_eq!(store.current().unwrap(), child);
    succeeded(run(&place.learn(&[])));
}

#[test]
fn routes_go_on_beside_a_learner() {
    let place = Place::learned("beside");
    let options = cpu(1).encoder(&place.encoder);
    let router = Router::open(&place.store, options.clone()).unwrap();
    let (old, request) = (router.generation(), Request::new("prompt 3 about birds"));
    let want = router.route(&request).unwrap().ranked[0].score;
    let done = AtomicBool::new(false);
    let (routed, opened, slowest) = std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let (mut routed, mut slowest) = (0, Duration::ZERO);
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                let decision = router.route(&request).unwrap();
                slowest = slowest.max(began.elapsed());
                assert_eq!(decision.ranked[0].score, want);
                assert_eq!(
                    (decision.revisions.generation, decision.degraded),
                    (old.clone(), None)
                );
                routed += 1;
            }
            (routed, slowest)
        });
        // New processes find a whole generation at every moment, too.
        let opening = scope.spawn(|| {
            let mut opened = 0;
            while !done.load(Ordering::Relaxed) {
                let router = Router::open(&place.store, options.clone()).unwrap();
                assert_eq!(router.route(&request).unwrap().degraded, None);
                opened += 1;
            }
            opened
        });
        for seed in ["seed=1", "seed=2", "seed=3"] {
            succeeded(run(&place.learn(&["--set", seed])));
        }
        done.store(true, Ordering::Relaxed);
        let (routed, slowest) = serving.join().unwrap();
        (routed, opening.join().unwrap(), slowest)
    });
    println!(
        "{routed} routes and {opened} openings beside three updates; the slowest route took {slowest:?}"
    );
    assert!(routed > 100 && opened > 3);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let new = Store::open(&place.store).unwrap().current().unwrap();
    router.install(&new).unwrap();
    assert_eq!(router.route(&request).unwrap().revisions.generation, new);
}
