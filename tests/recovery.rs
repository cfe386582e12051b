//! Torn, truncated, flipped, foreign and missing files; read-only stores; left-overs of writers.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Folder, copied_store, cpu, fixture};
use hubrouter::learn::{Control, Example, Experience, Learner, Settings, remembered};
use hubrouter::{
    Encoder, ErrorKind, GenerationId, ImportOptions, Model, NewModel, Request, Router, Store,
    import_encoder,
};

/// A store with two generations, the second one current.
fn two_generations(folder: &Folder) -> (PathBuf, GenerationId, GenerationId) {
    let path = copied_store(folder);
    let store = Store::open(&path).unwrap();
    let first = store.current().unwrap();
    let second = store.alias("gpt2", "small-gpt").unwrap();
    assert_eq!(store.current().unwrap(), second);
    (path, first, second)
}

/// A store with a toy encoder beside it and two generations, the second one learned and current.
fn learned_generation(folder: &Folder) -> (PathBuf, GenerationId, GenerationId) {
    let (path, encoder) = (folder.join("store"), folder.join("toy-bert"));
    import_encoder(fixture("toy-bert"), &encoder, &ImportOptions::default()).unwrap();
    let models = ["birds", "cats"].map(|name| NewModel::new(Model::new(name, "x"), Vec::new()));
    let first = Store::create(&path)
        .unwrap()
        .build(
            &Arc::new(Encoder::open(&encoder, &cpu(1)).unwrap()),
            &models,
            "test",
            &mut |_, _| {},
        )
        .unwrap();
    let mut learner = learner(&path);
    learner
        .learn(&experience(), None, &mut |_| Control::Continue)
        .unwrap();
    let second = learner.commit().unwrap();
    (path, first, second)
}

fn learner(path: &Path) -> Learner {
    let mut settings = Settings::carve();
    settings.set("epochs", "1").unwrap();
    settings.set("replay.ratio", "1").unwrap();
    Learner::open(path, None, settings, cpu(1)).unwrap()
}

fn experience() -> Experience {
    let examples = (0..24).map(|i| {
        let model = ["birds", "cats"][i % 2];
        Example::new(format!("prompt {i} about {model}"), model)
    });
    Experience {
        models: Vec::new(),
        examples: examples.collect(),
    }
}

fn served(path: &Path) -> (GenerationId, Option<String>) {
    let decision = Router::open(path, cpu(1))
        .unwrap()
        .route(&Request::new("hello"))
        .unwrap();
    (decision.revisions.generation, decision.degraded)
}

type Harm = fn(&Path);

/// Ways to damage a file of a generation.
const HARMS: [(&str, Harm); 7] = [
    ("emptied", |file| fs::write(file, b"").unwrap()),
    ("truncated by a byte", |file| {
        let bytes = fs::read(file).unwrap();
        replace(file, &bytes[..bytes.len() - 1]);
    }),
    ("half of it", |file| {
        let bytes = fs::read(file).unwrap();
        replace(file, &bytes[..bytes.len() / 2]);
    }),
    ("a bit flipped", |file| {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        replace(file, &bytes);
    }),
    ("a byte more", |file| {
        let mut bytes = fs::read(file).unwrap();
        bytes.push(b'\n');
        replace(file, &bytes);
    }),
    ("of another kind", |file| {
        replace(
            file,
            b"{\"kind\": \"something else\", \"schema_version\": 1}",
        )
    }),
    ("gone", |file| fs::remove_file(file).unwrap()),
];

/// Another file under the same name: generations share files by hard links.
fn replace(file: &Path, bytes: &[u8]) {
    fs::remove_file(file).unwrap();
    fs::write(file, bytes).unwrap();
}

#[test]
fn every_damage_is_named_and_the_newest_whole_generation_opens() {
    for part in ["manifest.json", "hub.json", "head.safetensors"] {
        for (harm, damage) in HARMS {
            let folder = Folder::new("damage");
            let (path, first, second) = two_generations(&folder);
            let file = path.join(second.as_str()).join(part);
            // Not through the link that the first generation shares.
            let own = fs::read(&file).unwrap();
            replace(&file, &own);
            damage(&file);
            let store = Store::open(&path).unwrap();
            let error = store.check(&second).unwrap_err();
            assert!(error.to_string().contains(part), "{part} {harm}: {error}");
            let report = store
                .list()
                .unwrap()
                .into_iter()
                .find(|report| report.id == second)
                .unwrap();
            assert!(report.current && report.damage.is_some(), "{part} {harm}");
            let (generation, degraded) = served(&path);
            assert_eq!(generation, first, "{part} {harm}");
            let degraded = degraded.unwrap_or_else(|| panic!("{part} {harm}: not said"));
            assert!(
                degraded.contains(part) && degraded.contains(first.as_str()),
                "{degraded}"
            );
        }
    }
}

#[test]
fn damage_of_what_was_learned_is_named_and_the_newest_whole_generation_opens() {
    let folder = Folder::new("learned-damage");
    let (path, first, second) = learned_generation(&folder);
    let store = Store::open(&path).unwrap();
    let kept = remembered(&store, &second).unwrap();
    assert!(!kept.replay.is_empty() && !kept.held_out.is_empty());
    assert_eq!(served(&path), (second.clone(), None));
    let generation = path.join(second.as_str());
    for (part, other) in [
        ("adapter.safetensors", "head.safetensors"),
        ("head.safetensors", "adapter.safetensors"),
        ("replay.jsonl", "held_out.jsonl"),
        ("held_out.jsonl", "replay.jsonl"),
        ("hub.json", "manifest.json"),
    ] {
        let file = generation.join(part);
        let whole = fs::read(&file).unwrap();
        let foreign = fs::read(generation.join(other)).unwrap();
        let harms = HARMS.map(|(harm, damage)| (harm, Some(damage)));
        for (harm, damage) in harms.into_iter().chain([("another part of it", None)]) {
            replace(&file, &whole);
            match damage {
                Some(damage) => damage(&file),
                None => replace(&file, &foreign),
            }
            let error = store.check(&second).unwrap_err();
            assert!(error.to_string().contains(part), "{part} {harm}: {error}");
            let (generation, degraded) = served(&path);
            assert_eq!(generation, first, "{part} {harm}");
            let degraded = degraded.unwrap();
            assert!(degraded.contains(part), "{part} {harm}: {degraded}");
            // Nothing is learned on top of it, nothing deleted from it.
            let mut learner = learner(&path);
            let error = learner.learn(&experience(), None, &mut |_| Control::Continue);
            assert!(error.unwrap_err().to_string().contains(part), "{harm}");
            assert!(remembered(&store, &second).is_err());
            let _ = fs::remove_file(&file);
            fs::write(&file, b"").unwrap();
        }
        replace(&file, &whole);
    }
    assert_eq!(served(&path), (second, None));
}

#[test]
fn one_goes_back_from_a_damaged_generation_and_makes_it_again() {
    let folder = Folder::new("again");
    let (path, first, second) = learned_generation(&folder);
    let file = path.join(second.as_str()).join("adapter.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    replace(&file, &bytes);
    let store = Store::open(&path).unwrap();
    assert!(store.check(&second).is_err());
    assert_eq!(store.rollback().unwrap(), first);
    // The same update makes the same generation: not the damaged one that has its name.
    let mut learner = learner(&path);
    learner
        .learn(&experience(), None, &mut |_| Control::Continue)
        .unwrap();
    assert_eq!(learner.commit().unwrap(), second);
    assert_eq!(served(&path), (second.clone(), None));
    store.check(&second).unwrap();
    assert_eq!(store.ids().unwrap(), [first, second]);
    let entries = fs::read_dir(&path).unwrap();
    let mut names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.all(|name| !name.starts_with(".tmp-")));
}

#[test]
fn a_renamed_generation_is_foreign() {
    let folder = Folder::new("foreign");
    let (path, first, second) = two_generations(&folder);
    let stranger = "g0009-0123456789ab";
    fs::rename(path.join(second.as_str()), path.join(stranger)).unwrap();
    let error = Store::open(&path)
        .unwrap()
        .check(&stranger.parse().unwrap())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert_eq!(served(&path).0, first);
}

#[test]
fn a_damaged_current_file_does_not_stop_the_store() {
    for content in [
        None,
        Some(""),
        Some("nonsense\n"),
        Some("g0009-0123456789ab\n"),
        Some("../../etc\n"),
    ] {
        let folder = Folder::new("current");
        let (path, _, second) = two_generations(&folder);
        match content {
            None => fs::remove_file(path.join("current")).unwrap(),
            Some(text) => fs::write(path.join("current"), text).unwrap(),
        }
        let (generation, degraded) = served(&path);
        assert_eq!(generation, second, "{content:?}");
        assert!(degraded.is_some(), "{content:?}");
    }
}

#[test]
fn nothing_whole_is_an_error() {
    let folder = Folder::new("nothing");
    fs::create_dir(folder.join("store")).unwrap();
    let error = Router::open(folder.join("store"), cpu(1)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("current"), "{error}");
    let error = Router::open(folder.join("missing"), cpu(1)).err().unwrap();
    assert!(error.to_string().contains("expected a store"), "{error}");
}

#[test]
fn left_overs_of_a_writer_are_passed_over_and_pruned() {
    let folder = Folder::new("leftovers");
    let (path, first, second) = two_generations(&folder);
    let torn = path.join(".tmp-1-0-folder");
    fs::create_dir(&torn).unwrap();
    fs::write(torn.join("hub.json"), b"{").unwrap();
    fs::write(path.join(".tmp-1-1-current"), b"g00").unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.ids().unwrap(), [first.clone(), second.clone()]);
    assert_eq!(served(&path), (second.clone(), None));
    let would = store.prune(3, true).unwrap();
    assert_eq!((would.generations.len(), would.leftovers), (0, 2));
    assert!(torn.exists());
    assert_eq!(store.prune(0, false).unwrap().generations, [first]);
    assert!(!torn.exists());
    assert_eq!(served(&path), (second, None));
}

#[test]
fn another_encoder_is_refused() {
    let folder = Folder::new("encoder");
    let (path, ..) = two_generations(&folder);
    let manifest = folder.join("all-MiniLM-L6-v2").join("manifest.json");
    let changed = fs::read_to_string(&manifest)
        .unwrap()
        .replace("\"mean\"", "\"cls\"");
    replace(&manifest, changed.as_bytes());
    let error = Router::open(&path, cpu(1)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.to_string().contains("--encoder"), "{error}");
    // Weights that are not what their manifest says.
    let weights = folder.join("all-MiniLM-L6-v2").join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    replace(&weights, &bytes);
    replace(&manifest, changed.replace("\"cls\"", "\"mean\"").as_bytes());
    let error = Router::open(&path, cpu(1)).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("model.safetensors: expected SHA-256"),
        "{error}"
    );
}

#[test]
fn two_writers_do_not_mix() {
    let folder = Folder::new("writers");
    let (path, ..) = two_generations(&folder);
    let lock = fs::File::create(path.join("lock")).unwrap();
    lock.lock().unwrap();
    let error = Store::open(&path).unwrap().retire("gpt2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("another process"), "{error}");
    drop(lock);
    Store::open(&path).unwrap().retire("gpt2").unwrap();
}

#[test]
fn several_changes_make_one_generation_and_a_dry_run_makes_none() {
    let folder = Folder::new("edit");
    let (path, _, second) = two_generations(&folder);
    let store = Store::open(&path).unwrap();
    let mut edit = store.edit(false).unwrap();
    edit.rename("gpt2", "small").unwrap();
    assert_eq!(
        edit.alias("nobody", "x").unwrap_err().kind(),
        ErrorKind::InvalidRequest
    );
    edit.retire("small").unwrap();
    assert_eq!(edit.parent(), &second);
    let third = edit.commit().unwrap();
    let manifest = store.check(&third).unwrap();
    assert_eq!(manifest.made_by, "hub rename gpt2 small; hub retire small");
    assert_eq!(
        (manifest.parent, store.current().unwrap()),
        (Some(second), third.clone())
    );
    let hub = store.hub(&third).unwrap();
    let model = hub.get(hub.find("gpt2").unwrap()).unwrap();
    assert!(&*model.name == "small" && model.retired);

    // A dry run needs no lock, which is held here.
    let writer = store.edit(false).unwrap();
    let mut dry = store.edit(true).unwrap();
    dry.rename("small", "gpt-2").unwrap();
    assert!(dry.hub().find("gpt-2").is_some());
    assert_eq!(dry.commit().unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert_eq!(
        writer.commit().unwrap_err().kind(),
        ErrorKind::InvalidRequest,
        "no change"
    );
    assert_eq!(store.current().unwrap(), third);
}

#[cfg(unix)]
#[test]
fn a_read_only_store_routes_and_refuses_changes() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new("readonly");
    let (path, _, second) = two_generations(&folder);
    let _ = fs::remove_file(path.join("lock"));
    let generation = path.join(second.as_str());
    let set = |mode: u32| {
        for folder in [&generation, &path] {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set(0o555);
    let routed = served(&path);
    let change = Store::open(&path).unwrap().retire("gpt2");
    let root = fs::write(path.join("probe"), b"").is_ok();
    set(0o755);
    assert_eq!(routed, (second, None));
    // Root writes anywhere; everybody else is told which file.
    if !root {
        let error = change.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("lock"), "{error}");
    }
}

#[test]
fn unchanged_parts_are_shared() {
    let folder = Folder::new("shared");
    let (path, first, second) = two_generations(&folder);
    let head = |id: &GenerationId| path.join(id.as_str()).join("head.safetensors");
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let inode = |id: &GenerationId| fs::metadata(head(id)).unwrap().ino();
        assert_eq!(inode(&first), inode(&second));
    }
    assert_eq!(
        fs::read(head(&first)).unwrap(),
        fs::read(head(&second)).unwrap()
    );
    let store = Store::open(&path).unwrap();
    let difference = store.diff(&first, &second).unwrap();
    assert_eq!(
        difference.aliased,
        [("gpt2".to_owned(), "small-gpt".to_owned())]
    );
    assert_eq!((difference.added.len(), difference.moved_rows), (0, 0));
    assert_eq!(store.rollback().unwrap(), first);
    assert_eq!(store.rollback().unwrap_err().kind(), ErrorKind::Refused);
}
