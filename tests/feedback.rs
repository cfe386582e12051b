//! Logs of feedback: bounded, whole after a kill, shared by processes, silent about prompts; and
//! what reports and learning make of them.
#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::command::{failed, hubrouter, lines, run, succeeded, text};
use common::toy::{self, Setup};
use common::{Folder, cpu};
use hubrouter::feedback::{
    Feedback, FeedbackLine, FeedbackLog, FeedbackOptions, KeepPrompt, Shadow, SkippedLines,
    read_feedback,
};
use hubrouter::{Decision, ErrorKind, Request, Router, Store};
use serde_json::{Value, json};

/// A decision between two models.
fn decision() -> Decision {
    let ranked = |id: u32, model: &str, probability: f64| {
        json!({"id": id, "model": model, "score": 1.5, "cosine": 0.5, "probability": probability,
            "domain": "Translation", "family": null})
    };
    serde_json::from_value(json!({
        "schema_version": 1, "prompt_id": "", "margin": 0.5, "tokens": 4, "truncated": false,
        "ranked": [ranked(0, "model-0", 0.75), ranked(3, "model-3", 0.25)],
        "domains": [], "degraded": null, "device": "cpu", "generation": "g0001-0123456789ab",
        "encoder": "toy@0123456789ab", "tokenizer": "0123456789ab",
        "timings_us": {"tokenize": 1.0, "encode": 2.0, "score": 3.0, "total": 6.0, "batch": 1},
    }))
    .unwrap()
}

fn read(log: &Path) -> (Vec<FeedbackLine>, SkippedLines) {
    let mut found = Vec::new();
    let skipped = read_feedback(log, |line| {
        found.push(line);
        Ok(())
    });
    (found, skipped.unwrap())
}

fn ids(lines: &[FeedbackLine]) -> Vec<&str> {
    lines.iter().map(|line| line.prompt_id.as_str()).collect()
}

/// The files of the log `folder`, without the lock.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| !path.ends_with("lock")).collect();
    files.sort();
    files
}

fn write(log: &FeedbackLog, id: usize) -> hubrouter::Result<()> {
    let request = Request::new(format!("prompt {id}")).prompt_id(id.to_string());
    log.observe(&request, &decision(), &Feedback::used("model-0"))
}

#[test]
fn a_log_has_at_most_its_bytes_and_files() {
    let folder = Folder::new("feedback-bounds");
    let (bytes, most) = (8192, 3);
    let options = FeedbackOptions::default().bounds(bytes, most);
    let log = FeedbackLog::open(&folder.0, options).unwrap();
    for id in 0..200 {
        write(&log, id).unwrap();
        let files = files(&folder.0);
        assert!(files.len() <= most, "{files:?}");
        let largest = files
            .iter()
            .map(|file| file.metadata().unwrap().len())
            .max();
        assert!(largest <= Some(bytes), "{largest:?}");
    }
    let (found, skipped) = read(&folder.0);
    assert_eq!((skipped.total(), log.lost()), (0, 0));
    let want: Vec<String> = (200 - found.len()..200).map(|id| id.to_string()).collect();
    assert_eq!(ids(&found), want, "the newest lines, none of them lost");
    assert!(found.len() > 30, "{}", found.len());
    // A line that no file can hold is refused, and nothing else.
    let long = Request::new("x").prompt_id("y".repeat(9000));
    let error = log
        .observe(&long, &decision(), &Feedback::default())
        .unwrap_err();
    assert_eq!((error.kind(), log.lost()), (ErrorKind::Refused, 1));
    assert_eq!(read(&folder.0).0.len(), found.len());
}

#[test]
fn options_out_of_range_are_refused() {
    let folder = Folder::new("feedback-options");
    let usual = FeedbackOptions::default;
    for (options, want) in [
        (usual().bounds(100, 3), "max_bytes"),
        (usual().bounds(4096, 0), "max_files"),
        (usual().top(0), "top"),
    ] {
        let error = FeedbackLog::open(&folder.0, options).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
    let file = folder.join("file");
    fs::write(&file, "x").unwrap();
    let error = FeedbackLog::open(&file, usual()).unwrap_err().to_string();
    assert!(error.contains("expected the folder of a log"), "{error}");
}

/// Each writer has a handle of its own, as a process has.
#[test]
fn lines_of_writers_side_by_side_do_not_mix() {
    let folder = Folder::new("feedback-writers");
    let (writers, each) = (8, 100);
    let bytes = 16 << 10;
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let path = &folder.0;
            scope.spawn(move || {
                let patience = Duration::from_secs(60);
                let options = FeedbackOptions::default()
                    .bounds(bytes, 1000)
                    .patience(patience);
                let log = FeedbackLog::open(path, options).unwrap();
                (0..each).for_each(|n| write(&log, writer * each + n).unwrap());
            });
        }
    });
    let (found, skipped) = read(&folder.0);
    assert_eq!(skipped.total(), 0, "{skipped:?}");
    let mut numbers: Vec<usize> = ids(&found).iter().map(|id| id.parse().unwrap()).collect();
    // Each writer's own lines are in its order.
    for writer in 0..writers {
        let own = numbers.iter().filter(|n| **n / each == writer);
        assert!(own.is_sorted(), "writer {writer}");
    }
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..writers * each));
    for file in files(&folder.0) {
        assert!(file.metadata().unwrap().len() <= bytes);
    }
}

/// `route --shadow` on the toy, with lines of JSON from a pipe.
fn shadowing(setup: &Setup, log: &Path, more: &[&str]) -> Child {
    let [store, encoder] = [&setup.store, &setup.encoder].map(|path| path.to_str().unwrap());
    let mut arguments = vec!["route", "--router", store, "--encoder", encoder];
    arguments.extend(["--device", "cpu", "--threads", "1", "--format", "jsonl"]);
    arguments.extend(["--shadow", log.to_str().unwrap()]);
    arguments.extend(more);
    let mut command = hubrouter(&arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

fn prompt_line(id: &str, more: &Value) -> String {
    let mut line = json!({"prompt": format!("find a french photo for {id}"), "prompt_id": id});
    for (key, value) in more.as_object().unwrap() {
        line[key] = value.clone();
    }
    format!("{line}\n")
}

#[test]
fn processes_share_a_log() {
    let setup = toy::setup("feedback-processes");
    let log = setup.folder.join("log");
    let input = |process: usize| {
        let line = |n: usize| prompt_line(&format!("{process}-{n}"), &json!({"used": "model-1"}));
        (0..50).map(line).collect::<String>()
    };
    let mut children: Vec<Child> = (0..4).map(|_| shadowing(&setup, &log, &[])).collect();
    for (process, child) in children.iter_mut().enumerate() {
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(input(process).as_bytes()).unwrap();
    }
    for child in children {
        let output = succeeded(child.wait_with_output().unwrap());
        assert!(text(&output.stdout).starts_with("recorded 50 decisions in"));
    }
    let (found, skipped) = read(&log);
    assert_eq!((found.len(), skipped.total()), (200, 0));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for id in ids(&found) {
        let (process, n) = id.split_once('-').unwrap();
        let count = counts.entry(process).or_default();
        assert_eq!(n, count.to_string(), "in order");
        *count += 1;
    }
    assert!(
        found
            .iter()
            .all(|line| line.shadow && line.used_model() == Some("model-1"))
    );
}

/// Kills at any time: each process's lines are a beginning of its input, whole.
#[test]
fn a_killed_writer_loses_no_line_before_it() {
    let setup = toy::setup("feedback-kills");
    let log = setup.folder.join("log");
    let kills = 8;
    for kill in 0..kills {
        let before = if log.is_dir() { read(&log).0.len() } else { 0 };
        let mut child = shadowing(&setup, &log, &["--keep", "text"]);
        let mut pipe = child.stdin.take().unwrap();
        let feeder = std::thread::spawn(move || {
            for n in 0.. {
                let line = prompt_line(&format!("{kill}-{n}"), &json!({}));
                if pipe.write_all(line.as_bytes()).is_err() {
                    break;
                }
            }
        });
        let began = Instant::now();
        while !log.is_dir() || files(&log).is_empty() || read(&log).0.len() < before + 5 {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "nothing is written"
            );
            std::thread::sleep(Duration::from_millis(1 + kill));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        feeder.join().unwrap();
    }
    let (found, skipped) = read(&log);
    let mut next = vec![0usize; usize::try_from(kills).unwrap()];
    for id in ids(&found) {
        let (kill, n) = id.split_once('-').unwrap();
        let next = &mut next[kill.parse::<usize>().unwrap()];
        assert_eq!(n, next.to_string(), "a line is missing before {id}");
        *next += 1;
    }
    assert!(next.iter().all(|count| *count >= 5), "{next:?}");
    assert!(skipped.total() <= next.len(), "{skipped:?}");
    assert_eq!(skipped.too_long + skipped.other_version, 0);
}

#[test]
fn a_cut_line_is_reported_and_the_next_one_is_whole() {
    let folder = Folder::new("feedback-cut");
    let log = FeedbackLog::open(&folder.0, FeedbackOptions::default()).unwrap();
    (0..3).for_each(|id| write(&log, id).unwrap());
    let [file] = &files(&folder.0)[..] else {
        panic!("one file");
    };
    let whole = fs::read(file).unwrap();
    let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
    // Cut within the last line, at its first byte, and before its line break.
    for (cut, lost) in [
        (ends[1] + 2, 1),
        (ends[2] - 1, 1),
        (ends[2], 0),
        (ends[1] + 1, 0),
    ] {
        fs::write(file, &whole[..cut]).unwrap();
        let (found, skipped) = read(&folder.0);
        let want = if cut == ends[2] { 3 } else { 2 };
        assert_eq!(
            (found.len(), skipped.cut_off, skipped.malformed),
            (want, lost, 0)
        );
        write(&log, 7).unwrap();
        let (found, skipped) = read(&folder.0);
        assert_eq!(
            (found.len(), skipped.cut_off, skipped.malformed),
            (want + 1, 0, lost)
        );
        assert_eq!(found.last().unwrap().prompt_id, "7");
    }
}

#[test]
fn a_writer_does_not_wait_for_long() {
    let folder = Folder::new("feedback-patience");
    let options = FeedbackOptions::default().patience(Duration::from_millis(50));
    let log = FeedbackLog::open(&folder.0, options).unwrap();
    write(&log, 0).unwrap();
    let lock = fs::File::open(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let began = Instant::now();
    let error = write(&log, 1).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(
        (error.kind(), log.lost()),
        (ErrorKind::Refused, 1),
        "{error}"
    );
    lock.unlock().unwrap();
    write(&log, 2).unwrap();
    assert_eq!(ids(&read(&folder.0).0), ["0", "2"]);
    fs::remove_dir_all(&folder.0).unwrap();
    assert_eq!(write(&log, 3).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(log.lost(), 2);
}

/// All bytes below `folder`.
fn on_disk(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        all += &String::from_utf8_lossy(&fs::read(entry.unwrap().path()).unwrap());
    }
    all
}

#[test]
fn a_prompt_is_on_disk_only_if_it_is_to_be_kept() {
    let setup = toy::setup("feedback-privacy");
    let router = Router::open(&setup.store, cpu(1).encoder(&setup.encoder)).unwrap();
    let router = Arc::new(router);
    let secret = "Xylophone lawsuit of Ms Quandary";
    let request = Request::new(secret).prompt_id("1");
    let nothing = Request::new("  ").prompt_id("2");
    for (keep, shown) in [
        (KeepPrompt::Text, true),
        (KeepPrompt::Hash, false),
        (KeepPrompt::Vector, false),
        (KeepPrompt::Nothing, false),
    ] {
        let path = setup.folder.join(format!("log-{keep}"));
        let log = FeedbackLog::open(&path, FeedbackOptions::default().keep(keep)).unwrap();
        let shadow = Shadow::new(Arc::clone(&router), log);
        let decision = shadow
            .observe(&request, &Feedback::used("model-0"))
            .unwrap();
        let error = shadow.observe(&nothing, &Feedback::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        let disk = on_disk(&path);
        for word in secret.split(' ') {
            assert_eq!(disk.contains(word), shown, "{keep}: {word}");
        }
        let (found, skipped) = read(&path);
        assert_eq!((found.len(), skipped.total()), (2, 0));
        let first = &found[0];
        let kept = [
            first.prompt.is_some(),
            first.prompt_sha256.is_some(),
            first.prompt_vector.is_some(),
            false,
        ];
        let place = [KeepPrompt::Text, KeepPrompt::Hash, KeepPrompt::Vector]
            .iter()
            .position(|one| *one == keep);
        let want: Vec<bool> = (0..4).map(|at| Some(at) == place).collect();
        assert_eq!(kept.to_vec(), want, "{keep}: one of them");
        assert!(first.shadow && first.feedback.time.is_some());
        assert_eq!(first.best().unwrap().model, *decision.ranked[0].model);
        let why = found[1].no_answer.as_ref().unwrap();
        assert_eq!(
            (why.kind, why.message.is_some()),
            (ErrorKind::InvalidRequest, shown)
        );
        if let Some(hash) = &first.prompt_sha256 {
            use sha2::{Digest as _, Sha256};
            let want: String = Sha256::digest(secret)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            assert_eq!(hash, &want);
        }
    }
    // A log that is to keep vectors and cannot says so, and keeps no other part in their place.
    let path = setup.folder.join("log-bare");
    let options = FeedbackOptions::default().keep(KeepPrompt::Vector);
    let bare = FeedbackLog::open(&path, options).unwrap();
    let error = write(&bare, 1).unwrap_err().to_string();
    assert!(error.contains("expected a log with an encoder"), "{error}");
    assert!(files(&path).is_empty());
}

/// The text of a line of a log.
fn whole_line(id: usize) -> String {
    let line = json!({
        "kind": "hubrouter-feedback", "schema_version": 1, "prompt_id": id.to_string(),
        "time": "2026-03-01T10:00:00Z", "used": "model-0",
        "ranked": [{"model": "model-0", "domain": "Translation", "score": 1, "probability": 0.5}],
    });
    format!("{line}\n")
}

#[test]
fn lines_that_are_none_are_counted_and_the_others_read() {
    let folder = Folder::new("feedback-hostile");
    let deep = "[".repeat(200_000);
    let head = r#"{"kind":"hubrouter-feedback","schema_version":1"#;
    let hostile: [(&[u8], &str); 9] = [
        (b"{", "malformed"),
        (b"\0\0\0", "malformed"),
        (b"\xff\xfe\xfd broken", "malformed"),
        (deep.as_bytes(), "malformed"),
        (b"[1, 2]", "malformed"),
        (
            br#"{"kind":"hubrouter-feedback","schema_version":1,"rating":1e999}"#,
            "malformed",
        ),
        (
            br#"{"kind":"hubrouter-feedback","schema_version":2}"#,
            "other",
        ),
        (br#"{"kind":"something","schema_version":1}"#, "other"),
        (&[b'x'; 5 << 20], "long"),
    ];
    let mut bytes = Vec::new();
    for (place, (line, _)) in hostile.iter().enumerate() {
        bytes.extend(whole_line(place).as_bytes());
        bytes.extend(*line);
        bytes.push(b'\n');
    }
    bytes.extend(format!("{head},\"confidence\":{deep}}}\n").as_bytes());
    bytes.extend(whole_line(9).as_bytes());
    bytes.extend(head.as_bytes());
    let path = folder.join("hostile.jsonl");
    fs::write(&path, bytes).unwrap();
    let (found, skipped) = read(&path);
    assert_eq!(found.len(), 10);
    let counts = [
        skipped.malformed,
        skipped.other_version,
        skipped.too_long,
        skipped.cut_off,
    ];
    assert_eq!(counts, [7, 2, 1, 1]);
    let first = skipped.first.unwrap();
    assert!(first.contains("hostile.jsonl:2: "), "{first}");
    let path = path.to_str().unwrap();
    let output = succeeded(run(&["report", path, "--json"]));
    let [report] = lines(&output).try_into().unwrap();
    assert_eq!(
        (&report["lines"], &report["skipped"]["malformed"]),
        (&10.into(), &7.into())
    );
    assert!(text(&succeeded(run(&["report", path])).stdout).contains("7 malformed"));
    failed(run(&["report", "nowhere"]), 1, &["nowhere"]);
    let empty = folder.join("empty");
    fs::create_dir(&empty).unwrap();
    failed(
        run(&["report", empty.to_str().unwrap()]),
        1,
        &["expected a log"],
    );
}

/// Arguments of a command on the toy.
fn on_toy<'a>(setup: &'a Setup, command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let [store, encoder] = [&setup.store, &setup.encoder].map(|path| path.to_str().unwrap());
    let mut arguments = vec![command, "--router", store, "--encoder", encoder];
    arguments.extend(["--device", "cpu", "--threads", "1"]);
    arguments.extend(more);
    arguments
}

#[test]
fn learn_takes_the_lines_whose_right_model_is_known() {
    let setup = toy::setup("feedback-learn");
    let log = setup.folder.join("log");
    let mut input = String::new();
    for (n, example) in toy::examples(0, 6).iter().enumerate() {
        let good = json!({"used": example.model_name, "success": true});
        let mut line: Value = serde_json::from_str(&prompt_line(&n.to_string(), &good)).unwrap();
        line["prompt"] = example.prompt.clone().into();
        input += &format!("{line}\n");
    }
    for (id, went) in [
        ("bad", json!({"used": "model-0", "success": false})),
        ("unknown", json!({"used": "nobody", "rating": 1})),
        ("silent", json!({"used": "model-0"})),
        (
            "expected",
            json!({"used": "model-0", "success": false, "expected_model": "model-1"}),
        ),
    ] {
        input += &prompt_line(id, &went);
    }
    input += &prompt_line("expected", &json!({"expected_model": "model-1"}));
    for keep in ["text", "hash"] {
        let mut child = shadowing(&setup, &log.join(keep), &["--keep", keep]);
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        succeeded(child.wait_with_output().unwrap());
    }
    let text_log = log.join("text");
    let examples = [
        "--examples",
        text_log.to_str().unwrap(),
        "--recipe",
        "memory",
        "--json",
    ];
    let output = succeeded(run(&on_toy(&setup, "learn", &examples)));
    let [report] = lines(&output).try_into().unwrap();
    assert_eq!(
        report["examples"].as_u64().unwrap() + report["held_out"].as_u64().unwrap(),
        25
    );
    let remark = text(&output.stderr);
    assert!(
        remark.contains(
            "25 examples of 29 lines of feedback; not taken: 1 repeated, 1 without an outcome or a \
             model, 1 with an answer that was not good, 1 with a model that the hub does not have"
        ),
        "{remark}"
    );
    let output = succeeded(run(&on_toy(
        &setup,
        "eval",
        &["--examples", text_log.to_str().unwrap(), "--json"],
    )));
    assert_eq!(lines(&output)[0]["rows"], 25);
    let hashes = log.join("hash");
    let learn = run(&on_toy(
        &setup,
        "learn",
        &["--examples", hashes.to_str().unwrap()],
    ));
    failed(
        learn,
        1,
        &["0 examples of 29 lines", "29 without the prompt's text"],
    );
}

#[test]
fn two_generations_are_compared_on_the_logged_prompts() {
    let setup = toy::setup("feedback-replay");
    let input: String = toy::examples(0, 6)
        .iter()
        .enumerate()
        .map(|(n, example)| {
            let went = json!({"expected_model": example.model_name, "prompt": example.prompt});
            prompt_line(&n.to_string(), &went)
        })
        .collect();
    for keep in ["text", "vector", "hash"] {
        let mut child = shadowing(
            &setup,
            &setup.folder.join(keep),
            &["--keep", keep, "--precision", "f32"],
        );
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        succeeded(child.wait_with_output().unwrap());
    }
    let store = Store::open(&setup.store).unwrap();
    let first = store.current().unwrap();
    let best = read(&setup.folder.join("text")).0[0]
        .best()
        .unwrap()
        .model
        .clone();
    store.retire(&best).unwrap();
    let second = store.current().unwrap();
    let replay = |keep: &str, ids: [&str; 2]| {
        let log = setup.folder.join(keep);
        // On any CPU the same numbers, in which answers by text and by vector are equal.
        let mut more = vec![log.to_str().unwrap(), "--json", "--precision", "f32"];
        ids.iter().for_each(|id| more.extend(["--generation", id]));
        let output = succeeded(run(&on_toy(&setup, "replay-log", &more)));
        let [report] = lines(&output).try_into().unwrap();
        report
    };
    let both = [first.as_str(), second.as_str()];
    let found = replay("text", both);
    assert_eq!(found["compared"], 24);
    let logged = &found["generations"][0]["as_logged"];
    assert_eq!((&logged["hits"], &logged["rows"]), (&24.into(), &24.into()));
    // Only the prompts of the retired model have another answer.
    let of_best = read(&setup.folder.join("text")).0;
    let of_best = of_best
        .iter()
        .filter(|line| line.best().unwrap().model == best)
        .count();
    assert_eq!(found["changed"]["model"]["hits"], of_best);
    assert!(of_best > 0 && !found["examples"].as_array().unwrap().is_empty());
    for example in found["examples"].as_array().unwrap() {
        assert_eq!(example["former"]["model"], best.as_str());
    }
    let same = replay("text", [first.as_str(), first.as_str()]);
    assert_eq!(same["changed"]["model"]["hits"], 0);
    // Vectors give the same answers as texts, where the generations have no adapter and no memory.
    let vectors = replay("vector", both);
    assert_eq!(vectors["compared"], 24);
    assert_eq!(vectors["changed"], found["changed"]);
    assert_eq!(vectors["generations"], found["generations"]);
    let hashes = replay("hash", both);
    let left = (&hashes["compared"], &hashes["left_out"]["without_prompt"]);
    assert_eq!(left, (&0.into(), &24.into()));
    let log = setup.folder.join("text");
    let one = [log.to_str().unwrap(), "--generation", first.as_str()];
    failed(
        run(&on_toy(&setup, "replay-log", &one)),
        2,
        &["expected two, found 1"],
    );
    // A generation with a memory needs the text.
    let examples = ["--examples", log.to_str().unwrap(), "--recipe", "memory"];
    succeeded(run(&on_toy(&setup, "learn", &examples)));
    let learned = store.current().unwrap();
    let vectors = replay("vector", [second.as_str(), learned.as_str()]);
    assert_eq!(
        (&vectors["compared"], &vectors["left_out"]["vectors"]),
        (&0.into(), &24.into())
    );
    let learned = replay("text", [second.as_str(), learned.as_str()]);
    assert_eq!(learned["compared"], 24);
    let right = |place: usize| learned["generations"][place]["right"]["hits"].as_u64();
    assert!(right(1) > right(0), "{learned}");
}

#[test]
fn what_could_not_be_routed_is_clustered_and_the_page_is_safe() {
    let setup = toy::setup("feedback-clusters");
    let name = "<script>alert(1)</script>";
    let input: String = (0..12)
        .map(|n| {
            let word = ["bird", "photo"][n % 2];
            let more = json!({"prompt": format!("find a model for {word}"), "used": name});
            prompt_line(&n.to_string(), &more)
        })
        .collect();
    for keep in ["text", "vector", "nothing"] {
        let log = setup.folder.join(keep);
        let mut child = shadowing(&setup, &log, &["--keep", keep]);
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        succeeded(child.wait_with_output().unwrap());
        let page = setup.folder.join("page.html");
        let (log, html) = (log.to_str().unwrap(), page.to_str().unwrap());
        let report = ["--below", "1", "--json", "--html", html, log];
        let output = succeeded(run(&on_toy(&setup, "report", &report)));
        let [report] = lines(&output).try_into().unwrap();
        let unrouted = &report["unrouted"];
        assert_eq!(
            (&unrouted["lines"], &unrouted["unsure"]),
            (&12.into(), &12.into())
        );
        let clusters = unrouted["clusters"].as_array().unwrap();
        let sum: u64 = clusters
            .iter()
            .map(|one| one["prompts"].as_u64().unwrap())
            .sum();
        if keep == "nothing" {
            assert!(clusters.is_empty());
            assert!(
                unrouted["remarks"][0]
                    .as_str()
                    .unwrap()
                    .contains("cannot be clustered")
            );
        } else {
            assert_eq!((sum, &unrouted["clustered"]), (12, &12.into()));
            assert_eq!(clusters[0]["nearest"].as_array().unwrap().len(), 3);
            assert_eq!(clusters[0]["example"].is_string(), keep == "text");
        }
        let page = fs::read_to_string(&page).unwrap();
        assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script"));
        assert!(page.contains("<svg"));
        for fetches in ["src=", "href=", "url(", "@import"] {
            assert!(!page.contains(fetches), "{fetches}");
        }
    }
    let log = setup.folder.join("text");
    let file = files(&log)[0].clone();
    let report = ["--html", file.to_str().unwrap(), log.to_str().unwrap()];
    failed(
        run(&on_toy(&setup, "report", &report)),
        2,
        &["would be overwritten"],
    );
    assert_eq!(read(&log).0.len(), 12);
}
