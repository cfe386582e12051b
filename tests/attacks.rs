//! What must not become current, what must not be opened, and what the store does instead: files that
//! are no files, numbers that are none, writers that meet, names that are taken.
#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::cpu;
use common::toy::{self, Setup};
use hubrouter::learn::{Control, Learner};
use hubrouter::{
    Encoder, ErrorKind, GenerationId, ModelCard, NewModel, Options, Request, Router, Store,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A store of a toy with `count` generations, the last one current.
fn generations(name: &str, count: usize) -> (Setup, Store, Vec<GenerationId>) {
    let setup = toy::setup(name);
    let store = Store::open(&setup.store).unwrap();
    for i in 1..count {
        store.alias("model-0", &format!("alias-{i}")).unwrap();
    }
    let ids = store.ids().unwrap();
    assert_eq!(
        (ids.len(), ids.last()),
        (count, Some(&store.current().unwrap()))
    );
    (setup, store, ids)
}

fn learned(name: &str) -> (Setup, Store) {
    let setup = toy::setup(name);
    let settings = toy::settings(&[("epochs", "1")]);
    toy::learn(&setup, toy::examples(0, 6), settings, cpu(1));
    let store = Store::open(&setup.store).unwrap();
    (setup, store)
}

fn options(setup: &Setup) -> Options {
    cpu(1).encoder(&setup.encoder)
}

/// What answers, and why another generation than the current one.
fn served(setup: &Setup) -> (GenerationId, Option<String>) {
    let router = Router::open(&setup.store, options(setup)).unwrap();
    let decision = router.route(&Request::new("find a photo")).unwrap();
    (decision.revisions.generation, decision.degraded)
}

fn point_to(setup: &Setup, text: &str) {
    fs::write(setup.store.join("current"), text).unwrap();
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The generation `id` once more, with `change` made to its manifest and files, its hashes right, and
/// current.
fn forged(
    setup: &Setup,
    id: &GenerationId,
    change: impl FnOnce(&mut Value, &Path),
) -> GenerationId {
    let work = setup.store.join("work");
    common::copy(&setup.store.join(id.as_str()), &work);
    let path = work.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["sequence"] = json!(id.sequence() + 1);
    manifest["parent"] = json!(id);
    change(&mut manifest, &work);
    for (name, digest) in manifest["files"].as_object_mut().unwrap() {
        let bytes = fs::read(work.join(name)).unwrap();
        *digest = json!({"bytes": bytes.len(), "sha256": hexadecimal(&bytes)});
    }
    let mut bytes = serde_json::to_vec_pretty(&manifest).unwrap();
    bytes.push(b'\n');
    fs::write(&path, &bytes).unwrap();
    let forged = format!("g{:04}-{}", id.sequence() + 1, &hexadecimal(&bytes)[..12]);
    fs::rename(work, setup.store.join(&forged)).unwrap();
    point_to(setup, &forged);
    forged.parse().unwrap()
}

/// Multiplies the values of `tensor` from `begin` on by `factor`.
fn scaled(folder: &Path, tensor: &str, begin: usize, count: usize, factor: f32) {
    let path = folder.join("head.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let changed = file.tensors().into_iter().map(|(name, view)| {
        let values = view.data().chunks_exact(4).enumerate().map(|(i, b)| {
            let value = f32::from_le_bytes(b.try_into().unwrap());
            let hit = name == tensor && (begin..begin + count).contains(&i);
            if hit { value * factor } else { value }
        });
        let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        (name, view.shape().to_vec(), data)
    });
    let changed: Vec<_> = changed.collect();
    let views = changed.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Another file under the same name: generations share files by hard links.
fn put(folder: &Path, name: &str, bytes: &[u8]) {
    fs::remove_file(folder.join(name)).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
}

/// `check` says what is wrong with `bad`; the router opens `good` and says so.
#[track_caller]
fn passed_over(setup: &Setup, bad: &GenerationId, good: &GenerationId, why: &str) {
    let store = Store::open(&setup.store).unwrap();
    let error = store.check(bad).unwrap_err();
    assert!(error.to_string().contains(why), "{why:?} is not in {error}");
    let (served, degraded) = served(setup);
    assert_eq!(served, *good, "{why}");
    assert!(degraded.unwrap().contains(why), "{why}");
}

#[test]
fn attributes_that_could_not_be_read_back_are_refused() {
    let (setup, store, ids) = generations("deep", 1);
    let encoder = Arc::new(Encoder::open(&setup.encoder, &cpu(1)).unwrap());
    let nested = |depth: usize| {
        let mut value = json!(1);
        for _ in 0..depth {
            value = json!([value]);
        }
        let mut card = ModelCard::new(format!("deep-{depth}"), "x");
        card.attributes.insert("tags".to_owned(), value);
        NewModel::from(&card)
    };
    for depth in [33, 120, 124, 126] {
        let error = store
            .add(&encoder, &[nested(depth)], &mut |_, _| {})
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains("at most 32"), "{error}");
    }
    assert_eq!(store.ids().unwrap(), ids);
    store.add(&encoder, &[nested(32)], &mut |_, _| {}).unwrap();
    assert_eq!(served(&setup).1, None);
}

#[test]
fn rows_without_a_direction_are_damage() {
    let (e, w) = ("model_embeddings.weight", "prompt_projection.weight");
    for (tensor, factor) in [
        (e, 0.0),
        (e, 1e25),
        (e, 1e-25),
        (e, f32::NAN),
        (w, 0.0),
        (w, 1e30),
    ] {
        let (setup, store, ids) = generations("rows", 1);
        let width = store.check(&ids[0]).unwrap().width;
        let count = if tensor == e { width } else { width * width };
        let bad = forged(&setup, &ids[0], |_, folder| {
            scaled(folder, tensor, 0, count, factor);
        });
        passed_over(&setup, &bad, &ids[0], "expected a length from");
    }
}

#[test]
fn what_serving_cannot_open_is_passed_over_and_check_says_so() {
    type Change = fn(&mut Value, &Path);
    let changes: [(&str, Change); 8] = [
        ("memory.json", |_, f| put(f, "memory.json", b"{}")),
        ("words.safetensors", |_, f| {
            put(f, "words.safetensors", b"x")
        }),
        ("recall.safetensors", |_, f| {
            put(f, "recall.safetensors", b"x");
        }),
        ("adapter.safetensors", |_, f| {
            put(f, "adapter.safetensors", b"x");
        }),
        ("rank", |m, _| m["adapter"]["r"] = json!(1_000_000)),
        ("rank", |m, _| m["adapter"]["r"] = json!(u64::MAX)),
        ("tau", |m, _| m["tau"] = json!(1e-30)),
        ("tau", |m, _| m["tau"] = json!(1e30)),
    ];
    for (why, change) in changes {
        let (setup, store) = learned("parts");
        let good = store.current().unwrap();
        let bad = forged(&setup, &good, change);
        passed_over(&setup, &bad, &good, why);
    }
}

/// What came before memories is whole, and not served: it is said what to do.
#[test]
fn a_generation_of_an_earlier_version_says_what_to_do() {
    let (setup, store) = learned("earlier");
    let good = store.current().unwrap();
    let old = forged(&setup, &good, |manifest, folder| {
        manifest["files"]["calibration.json"] = json!(null);
        fs::write(folder.join("calibration.json"), b"{}").unwrap();
    });
    let opened = Router::open(&setup.store, options(&setup)).map(|_| ());
    let settings = toy::settings(&[("epochs", "1")]);
    let mut learner = Learner::open(&setup.store, None, settings, options(&setup)).unwrap();
    let experience = toy::experience(toy::examples(0, 6));
    let learned = learner.learn(&experience, None, &mut |_| Control::Continue);
    for refused in [opened, learned.map(|_| ()), store.check(&old).map(|_| ())] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        for part in ["calibration.json", "hub build", "generation list"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
    store.set_current(&good).unwrap();
    assert_eq!(served(&setup), (good, None));
}

#[test]
fn check_looks_at_what_learning_keeps() {
    for (part, bytes) in [
        ("replay.jsonl", &b"{}\n"[..]),
        ("held_out.jsonl", b"x"),
        ("memory.safetensors", b"x"),
        ("cards.safetensors", b"x"),
        ("fisher.safetensors", b"x"),
    ] {
        let (setup, store) = learned("kept");
        let good = store.current().unwrap();
        hubrouter::learn::check(&store, &good).unwrap();
        let bad = forged(&setup, &good, |manifest, folder| {
            manifest["files"][part] = json!(null);
            let _ = fs::remove_file(folder.join(part));
            fs::write(folder.join(part), bytes).unwrap();
        });
        // It serves: nothing of this is read then.
        assert_eq!(served(&setup), (bad.clone(), None));
        let error = hubrouter::learn::check(&store, &bad).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn strengths_that_make_no_sense_are_damage() {
    for part in ["memory", "words", "newcomer", "learned"] {
        let (setup, store) = learned("strengths");
        let good = store.current().unwrap();
        let bad = forged(&setup, &good, |_, folder| {
            let path = folder.join("memory.json");
            let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            file["strengths"][part] = json!(1e6);
            fs::remove_file(&path).unwrap();
            fs::write(path, file.to_string()).unwrap();
        });
        passed_over(&setup, &bad, &good, "from");
    }
}

#[test]
fn a_fallback_goes_to_ancestors_and_never_forward() {
    let (setup, store, ids) = generations("back", 4);
    store.set_current(&ids[1]).unwrap();
    // Of two children of the first, the later one is no ancestor.
    let sibling = store.alias("model-0", "sibling").unwrap();
    let child = store.alias("model-0", "child").unwrap();
    assert_eq!(store.parent(&sibling).unwrap(), ids[1]);
    fs::write(setup.store.join(child.as_str()).join("hub.json"), "{").unwrap();
    assert_eq!(served(&setup).0, sibling);
    fs::write(setup.store.join(sibling.as_str()).join("hub.json"), "{").unwrap();
    // The third and the fourth of the old line are newer, and whole.
    assert_eq!(served(&setup).0, ids[1]);
    for damaged in &ids[..2] {
        fs::remove_dir_all(setup.store.join(damaged.as_str())).unwrap();
    }
    let router = Router::open(&setup.store, options(&setup));
    assert_eq!(
        served(&setup).0,
        ids[2],
        "made before it, {:?}",
        router.err()
    );
    store.set_current(&ids[2]).unwrap();
    fs::write(setup.store.join(ids[2].as_str()).join("hub.json"), "{").unwrap();
    let error = Router::open(&setup.store, options(&setup)).unwrap_err();
    assert!(error.to_string().contains("hub.json"), "{error}");
}

#[test]
fn a_lack_of_permission_is_no_damage() {
    let (setup, _, ids) = generations("permission", 2);
    let hub = setup.store.join(ids[1].as_str()).join("hub.json");
    // Not through the link that the first generation shares.
    let own = fs::read(&hub).unwrap();
    put(hub.parent().unwrap(), "hub.json", &own);
    fs::set_permissions(&hub, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&hub).is_err() {
        let error = Router::open(&setup.store, options(&setup)).unwrap_err();
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::PermissionDenied));
        return;
    }
    // Root reads everything: the command runs as somebody else, from where everybody may run it.
    let program = setup.folder.join("hubrouter");
    fs::copy(env!("CARGO_BIN_EXE_hubrouter"), &program).unwrap();
    fs::set_permissions(&setup.folder.0, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(program)
        .args(["route", "--device", "cpu", "birds"])
        .args(["--router", setup.store.to_str().unwrap()])
        .args(["--encoder", setup.encoder.to_str().unwrap()])
        .uid(65534)
        .gid(65534)
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("hub.json: cannot open: Permission denied"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(1), "{said}");
}

#[test]
fn ids_are_counted_as_numbers() {
    let (setup, _, ids) = generations("numbers", 1);
    let copy = |sequence: u32| {
        let work = setup.store.join("work");
        common::copy(&setup.store.join(ids[0].as_str()), &work);
        let path = work.join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        manifest["sequence"] = json!(sequence);
        let bytes = serde_json::to_vec(&manifest).unwrap();
        fs::write(&path, &bytes).unwrap();
        let id = format!("g{sequence:04}-{}", &hexadecimal(&bytes)[..12]);
        fs::rename(work, setup.store.join(&id)).unwrap();
        id
    };
    copy(9999);
    let newest = copy(10000);
    fs::remove_file(setup.store.join("current")).unwrap();
    assert_eq!(served(&setup).0.as_str(), newest);
}

#[test]
fn a_store_without_a_good_current_is_mended_by_rollback() {
    for content in [
        None,
        Some(""),
        Some("garbage\n"),
        Some("g0009-0123456789ab\n"),
    ] {
        let (setup, store, ids) = generations("mend", 2);
        match content {
            None => fs::remove_file(setup.store.join("current")).unwrap(),
            Some(text) => point_to(&setup, text),
        }
        assert_eq!(served(&setup).0, ids[1], "{content:?}");
        store.set_current(&ids[0]).unwrap();
        assert_eq!(served(&setup), (ids[0].clone(), None));
        store.retire("model-1").unwrap();
    }
}

#[test]
fn a_build_that_was_killed_before_it_was_current_goes_on() {
    let (setup, store, ids) = generations("killed", 1);
    fs::remove_file(setup.store.join("current")).unwrap();
    let encoder = Arc::new(Encoder::open(&setup.encoder, &cpu(1)).unwrap());
    let models: Vec<NewModel> = (0..6).map(toy::model).collect();
    let build = |models: &[NewModel]| store.build(&encoder, models, "hub build", &mut |_, _| {});
    let error = build(&models[..3]).unwrap_err();
    assert!(error.to_string().contains("rollback --to"), "{error}");
    // The second time as if it had been killed before it could say so.
    for _ in 0..2 {
        assert_eq!(build(&models).unwrap(), ids[0]);
        assert_eq!(served(&setup), (ids[0].clone(), None));
    }
    let error = build(&models[..3]).unwrap_err();
    assert!(
        error.to_string().contains("expected an empty store"),
        "{error}"
    );
    store.retire("model-1").unwrap();
    assert_eq!(build(&models).unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn rollback_and_prune_at_once_leave_a_current_that_is_there() {
    let (setup, store, ids) = generations("race", 3);
    for _ in 0..20 {
        store.set_current(&ids[2]).unwrap();
        store.alias("model-0", "other").ok();
        let newest = store.current().unwrap();
        std::thread::scope(|scope| {
            let back = scope.spawn(|| store.rollback());
            let pruned = scope.spawn(|| store.prune(1, false));
            let change = scope.spawn(|| store.retire("model-5"));
            back.join().unwrap().unwrap();
            pruned.join().unwrap().unwrap();
            let _ = change.join().unwrap();
        });
        store.check(&store.current().unwrap()).unwrap();
        assert_eq!(served(&setup).1, None);
        if !setup.store.join(newest.as_str()).exists()
            || !setup.store.join(ids[2].as_str()).exists()
        {
            return;
        }
    }
}

#[test]
fn fifos_and_oversized_files_are_refused_at_once() {
    let fifo = |path: &Path| {
        let _ = fs::remove_file(path);
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let began = Instant::now();
    for part in [
        "current",
        "lock",
        "manifest.json",
        "hub.json",
        "head.safetensors",
    ] {
        let (setup, store, ids) = generations("fifo", 2);
        let generation = setup.store.join(ids[1].as_str());
        match part {
            "current" | "lock" => fifo(&setup.store.join(part)),
            part => fifo(&generation.join(part)),
        }
        let degraded = served(&setup).1;
        assert_eq!(degraded.is_none(), part == "lock", "{part}: {degraded:?}");
        let error = store.retire("model-1").unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    for part in [
        "manifest.json",
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    ] {
        let (setup, ..) = generations("fifo-encoder", 1);
        fifo(&setup.encoder.join(part));
        let error = Router::open(&setup.store, options(&setup)).unwrap_err();
        assert!(
            error.to_string().contains("regular file"),
            "{part}: {error}"
        );
    }
    // Sparse: nothing of it is on the disk, and nothing of it is read.
    let (setup, _, ids) = generations("sparse", 2);
    let hub = setup.store.join(ids[1].as_str()).join("hub.json");
    fs::remove_file(&hub).unwrap();
    fs::File::create(&hub)
        .unwrap()
        .set_len(3_900_000_000)
        .unwrap();
    let (generation, degraded) = served(&setup);
    assert_eq!(generation, ids[0]);
    assert!(degraded.unwrap().contains("bytes, found 3900000000"));
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn locks_follow_no_link_and_wait_with_an_end() {
    let (setup, store, _) = generations("locks", 1);
    let lock = setup.store.join("lock");
    let elsewhere = setup.folder.join("elsewhere");
    let _ = fs::remove_file(&lock);
    symlink(&elsewhere, &lock).unwrap();
    let error = store.retire("model-1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(!elsewhere.exists());
    fs::remove_file(&lock).unwrap();
    // Held for a moment, as writers do: whoever comes waits.
    let held = fs::File::create(&lock).unwrap();
    held.lock().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.retire("model-1"));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        held.unlock().unwrap();
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn prune_sweeps_what_the_dead_left_and_nothing_else() {
    let (setup, store, ids) = generations("sweep", 3);
    let odd = std::ffi::OsString::from_vec(b".tmp-\xff\xfe".to_vec());
    fs::write(setup.store.join(&odd), b"x").unwrap();
    symlink(
        setup.folder.join("nowhere"),
        setup.store.join(".tmp-1-0-link"),
    )
    .unwrap();
    fs::create_dir_all(setup.store.join(".tmp-1-1-folder/deep")).unwrap();
    fs::write(setup.store.join("g0001-aaaaaaaaaaaa"), b"a plain file").unwrap();
    // Somebody is at work: the lock lasts as long as the writer lives.
    let at_work = setup.store.join(".tmp-1-2-folder");
    fs::create_dir(&at_work).unwrap();
    let held = fs::File::open(&at_work).unwrap();
    held.lock().unwrap();
    let pruned = store.prune(1, false).unwrap();
    assert_eq!(pruned.leftovers, 3);
    assert_eq!(pruned.generations.len(), 2);
    assert!(at_work.exists());
    drop(held);
    assert_eq!(store.prune(1, false).unwrap().leftovers, 1);
    assert_eq!(store.ids().unwrap(), ids[1..]);
}

#[test]
fn a_router_looks_once_more_when_the_generation_it_read_is_gone() {
    let (setup, store, ids) = generations("gone", 3);
    let (stop, rounds) = (std::sync::atomic::AtomicBool::new(false), 200);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for i in 0..rounds {
                store.alias("model-0", &format!("round-{i}")).unwrap();
                store.prune(0, false).unwrap();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut opened = 0;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            // What was named may be gone: then what is current now opens, and never an older one.
            if let Ok(router) = Router::open(&setup.store, options(&setup)) {
                let decision = router.route(&Request::new("find a photo")).unwrap();
                assert_eq!(decision.degraded, None);
                opened += 1;
            }
        }
        writer.join().unwrap();
        assert!(opened > 5, "{opened}");
    });
    assert!(!store.ids().unwrap().contains(&ids[0]));
}

#[test]
fn an_encoders_name_leads_nowhere_else() {
    let (setup, store, ids) = generations("name", 1);
    let moved: PathBuf = setup.folder.join("away").join("toy-bert");
    fs::create_dir(setup.folder.join("away")).unwrap();
    fs::rename(&setup.encoder, &moved).unwrap();
    let bad = forged(&setup, &ids[0], |manifest, _| {
        manifest["encoder"]["name"] = json!("away/toy-bert");
    });
    let error = Router::open(&setup.store, cpu(1)).unwrap_err();
    assert!(error.to_string().contains("--encoder"), "{error}");
    // Named by the host, it is taken: the hash decides.
    let router = Router::open(&setup.store, cpu(1).look_in(&moved)).unwrap();
    assert_eq!(router.generation(), bad);
    assert_eq!(store.find("g0002").unwrap(), bad);
    // Asked where it is looked for: there it is another file.
    store.check(&bad).unwrap();
    let config = moved.join("config.json");
    fs::write(&config, fs::read_to_string(&config).unwrap() + " ").unwrap();
    store.check(&bad).unwrap();
    let error = store.clone().look_in(&moved).check(&bad).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    assert!(store.find("g000").is_err() && store.find("").is_err() && store.find("g3").is_err());
}

/// The store checks a generation whose encoder it does not find by its files alone.
#[test]
fn a_rollback_to_what_cannot_be_opened_changes_nothing() {
    let (setup, store, ids) = generations("rollback", 1);
    let foreign = forged(&setup, &ids[0], |manifest, _| {
        manifest["encoder"]["sha256"] = json!("0".repeat(64));
    });
    let sha256 = |id: &GenerationId| {
        let path = setup.store.join(id.as_str()).join("manifest.json");
        let manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        manifest["encoder"]["sha256"].clone()
    };
    let own = sha256(&ids[0]);
    let child = forged(&setup, &foreign, |manifest, _| {
        manifest["encoder"]["sha256"] = own
    });
    store.check(&foreign).unwrap();
    let router = Router::open(&setup.store, options(&setup)).unwrap();
    let error = router.rollback().unwrap_err();
    assert!(error.to_string().contains("expected encoder"), "{error}");
    assert_eq!(
        (store.current().unwrap(), router.generation()),
        (child.clone(), child)
    );
}

/// Cut short, or written over, in place, under a router that serves: what it reads is its own.
#[test]
fn files_that_change_in_place_do_not_end_a_serving_router() {
    let (setup, store) = learned("in-place");
    let router = Router::open(&setup.store, options(&setup)).unwrap();
    let first = store.ids().unwrap()[0].clone();
    let route = || {
        let decision = router
            .route(&Request::new("find a photo of a bird"))
            .unwrap();
        decision
            .ranked
            .iter()
            .map(|r| r.score.to_bits())
            .collect::<Vec<u32>>()
    };
    let want = route();
    let mut files: Vec<PathBuf> = fs::read_dir(setup.store.join(router.generation().as_str()))
        .unwrap()
        .chain(fs::read_dir(&setup.encoder).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let contents: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    for (file, bytes) in files.iter().zip(&contents) {
        fs::write(file, vec![0xff; bytes.len()]).unwrap();
        assert_eq!(route(), want, "{}", file.display());
        fs::File::options()
            .write(true)
            .open(file)
            .unwrap()
            .set_len(1)
            .unwrap();
        assert_eq!(route(), want, "{}", file.display());
    }
    // What has to be read from them once more says so.
    let error = router.install(&first).unwrap_err();
    assert!(
        error.kind() == ErrorKind::Mismatch || error.kind() == ErrorKind::Format,
        "{error}"
    );
    for (file, bytes) in files.iter().zip(&contents) {
        fs::write(file, bytes).unwrap();
    }
    let error = router.install(&router.generation()).unwrap_err();
    assert!(error.to_string().contains("changed in place"), "{error}");
    assert_eq!(route(), want);
}
