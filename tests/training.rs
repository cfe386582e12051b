//! Learning through the public interface: it fits, repeats itself, resumes, forgets little, refuses.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Folder, cpu, fixture, gpu};
use hubrouter::learn::{
    Control, Example, Experience, Learner, Outcome, Report, Settings, Status, forget, remembered,
};
use hubrouter::{
    Encoder, ErrorKind, GenerationId, ImportOptions, ModelCard, NewModel, Options, Request, Router,
    Store, import_encoder,
};

const DOMAINS: [&str; 3] = [
    "Translation",
    "Image Classification",
    "Audio Classification",
];

/// A store with a zero-shot generation of six models, and its encoder, a toy.
struct Setup {
    folder: Folder,
    store: PathBuf,
    encoder: PathBuf,
}

fn setup(name: &str) -> Setup {
    let folder = Folder::new(name);
    let encoder = folder.join("toy-bert");
    import_encoder(fixture("toy-bert"), &encoder, &ImportOptions::default()).unwrap();
    let store = folder.join("store");
    let models: Vec<NewModel> = (0..6).map(model).collect();
    let open = Encoder::open(&encoder, &cpu(1)).unwrap();
    Store::create(&store)
        .unwrap()
        .build(&open, &models, "hub build", &mut |_, _| {})
        .unwrap();
    Setup {
        folder,
        store,
        encoder,
    }
}

fn model(i: usize) -> NewModel {
    NewModel::from(&ModelCard::new(format!("model-{i}"), DOMAINS[i % 3]))
}

/// Prompts of the models `first..first + count`, told apart by a word of their own.
fn examples(first: usize, count: usize) -> Vec<Example> {
    const WORDS: [&str; 9] = [
        "french", "photo", "bird", "english", "image", "audio", "dutch", "cat", "music",
    ];
    const FORMS: [&str; 4] = ["find a model for", "which one does", "route", "I need"];
    let mut all = Vec::new();
    for form in FORMS {
        for i in first..first + count {
            let prompt = format!("{form} {} number {i}", WORDS[i]);
            let mut example = Example::new(prompt, format!("model-{i}"));
            example.domain = Some(DOMAINS[i % 3].to_owned());
            all.push(example);
        }
    }
    all
}

fn settings(pairs: &[(&str, &str)]) -> Settings {
    let mut settings = Settings::edge();
    for (key, value) in [
        ("init.profile", "card"),
        ("candidates", "all"),
        ("batch", "8"),
        ("epochs", "6"),
        ("lora.r", "4"),
        ("warm_up", "2"),
    ] {
        settings.set(key, value).unwrap();
    }
    for (key, value) in pairs {
        settings.set(key, value).unwrap();
    }
    settings
}

fn learn(
    setup: &Setup,
    examples: Vec<Example>,
    settings: Settings,
    options: Options,
) -> (GenerationId, Report) {
    let options = options.encoder(&setup.encoder);
    let mut learner = Learner::open(&setup.store, None, settings, options).unwrap();
    let experience = Experience {
        models: Vec::new(),
        examples,
    };
    let outcome = learner
        .learn(&experience, None, &mut |_| Control::Continue)
        .unwrap();
    let Outcome::Learned(report) = outcome else {
        panic!("stopped: {outcome:?}");
    };
    (learner.commit().unwrap(), *report)
}

/// How many examples have their model first.
fn right(setup: &Setup, examples: &[Example], options: Options) -> usize {
    let router = Router::open(&setup.store, options.encoder(&setup.encoder)).unwrap();
    let found = |example: &&Example| {
        let request = Request::new(example.prompt.as_str());
        let decision = router.route(&request).unwrap();
        *decision.ranked[0].model == *example.model_name
    };
    examples.iter().filter(found).count()
}

#[test]
fn a_few_examples_are_learned_by_heart_on_both_devices() {
    let overfit = [
        ("epochs", "40"),
        ("lr.lora", "2e-3"),
        ("hold_out", "false"),
        ("soft.eps", "0"),
    ];
    for (options, least) in [(cpu(2), 22), (gpu(), 22)] {
        let setup = setup("overfit");
        let all = examples(0, 6);
        assert!(right(&setup, &all, cpu(1)) < 20);
        let (_, report) = learn(&setup, all.clone(), settings(&overfit), options.clone());
        assert_eq!((report.examples, report.models_added), (24, 0));
        let right = right(&setup, &all, options);
        assert!(right >= least, "{right} of 24");
    }
}

#[test]
fn the_same_update_has_the_same_bits_whatever_the_threads() {
    let ids: Vec<GenerationId> = [1, 2, 2]
        .into_iter()
        .map(|threads| {
            let setup = setup("again");
            learn(&setup, examples(0, 6), settings(&[]), cpu(threads));
            learn(&setup, examples(6, 3), settings(&[]), cpu(threads)).0
        })
        .collect();
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[1], ids[2]);
    let setup = setup("other seed");
    let other = settings(&[("seed", "1")]);
    learn(&setup, examples(0, 6), other.clone(), cpu(1));
    assert_ne!(learn(&setup, examples(6, 3), other, cpu(1)).0, ids[0]);
}

#[test]
fn a_resumed_update_equals_an_uninterrupted_one() {
    // Sampled candidates have mined negatives to remember; with sixty models that have no example
    // there are rows of E that sleep.
    let sampled = [
        ("candidates", "sampled"),
        ("candidates.k", "4"),
        ("candidates.hard", "1"),
        ("candidates.semantic", "1"),
        ("candidates.far", "1"),
        ("mining.every", "3"),
        ("replay.ratio", "0.5"),
        ("weight_decay", "0.1"),
    ];
    let touched = [("adamw.rows", "touched"), ("anchor.rows", "touched")];
    for (rows, stops) in [(&[][..], &[1, 4, 5, 9][..]), (&touched[..], &[2, 9][..])] {
        let settings = settings(&[&sampled[..], rows].concat());
        let experience = Experience {
            models: (9..69).map(model).collect(),
            examples: examples(6, 3),
        };
        let learn = |setup: &Setup, experience: &Experience, threads: usize, stop: usize| {
            let options = cpu(threads).encoder(&setup.encoder);
            let mut learner = Learner::open(&setup.store, None, settings.clone(), options).unwrap();
            let mut watch = |status: &Status| match status.loss.is_some() && status.done >= stop {
                true => Control::Stop,
                false => Control::Continue,
            };
            let outcome = learner.learn(experience, None, &mut watch).unwrap();
            (learner, outcome)
        };
        let first = Experience {
            models: Vec::new(),
            examples: examples(0, 6),
        };
        let whole = setup("whole");
        learn(&whole, &first, 1, usize::MAX).0.commit().unwrap();
        let want = learn(&whole, &experience, 1, usize::MAX)
            .0
            .commit()
            .unwrap();
        // In phase 1, at its end, in phase 2.
        for &stop in stops {
            let setup = setup("resumed");
            learn(&setup, &first, 1, usize::MAX).0.commit().unwrap();
            let before = Store::open(&setup.store).unwrap().ids().unwrap();
            let (learner, outcome) = learn(&setup, &experience, 1, stop);
            assert!(
                matches!(outcome, Outcome::Stopped { step, .. } if step == stop),
                "{outcome:?}"
            );
            assert!(learner.commit().is_err());
            assert_eq!(Store::open(&setup.store).unwrap().ids().unwrap(), before);
            assert!(setup.store.join("resume.safetensors").exists());

            let got = learn(&setup, &experience, 2, usize::MAX)
                .0
                .commit()
                .unwrap();
            assert_eq!(got, want, "stopped after {stop}");
            assert!(!setup.store.join("resume.safetensors").exists());
        }
    }
}

#[test]
fn rows_that_every_set_names_are_moved_alike() {
    let parts = |k: &str, rows: &str| {
        let setup = setup("rows");
        let settings = settings(&[
            ("candidates", "sampled"),
            ("candidates.k", k),
            ("candidates.hard", "1"),
            ("candidates.semantic", "1"),
            ("candidates.far", "1"),
            ("anchor.rows", "touched"),
            ("adamw.rows", rows),
            ("batch", "2"),
            ("epochs", "2"),
        ]);
        learn(&setup, examples(0, 6), settings.clone(), cpu(2));
        let id = learn(&setup, examples(6, 3), settings, cpu(2)).0;
        ["head.safetensors", "adapter.safetensors"]
            .map(|part| fs::read(setup.store.join(id.as_str()).join(part)).unwrap())
    };
    // Nine models: sixteen candidates are all of them, four are not.
    assert_eq!(parts("16", "all"), parts("16", "touched"));
    assert_ne!(parts("4", "all"), parts("4", "touched"));
}

#[test]
fn a_damaged_or_foreign_state_is_no_state() {
    let setup = setup("state");
    let stop = |settings: Settings| {
        let experience = Experience {
            models: Vec::new(),
            examples: examples(0, 6),
        };
        let options = cpu(1).encoder(&setup.encoder);
        let mut learner = Learner::open(&setup.store, None, settings, options).unwrap();
        learner.learn(&experience, None, &mut |status| match status.loss {
            Some(_) => Control::Stop,
            None => Control::Continue,
        })
    };
    assert!(matches!(
        stop(settings(&[])).unwrap(),
        Outcome::Stopped { step: 1, .. }
    ));
    // Of the same update: one step further.
    assert!(matches!(
        stop(settings(&[])).unwrap(),
        Outcome::Stopped { step: 2, .. }
    ));
    // Of another one: from the beginning.
    let other = settings(&[("seed", "5")]);
    assert!(matches!(
        stop(other.clone()).unwrap(),
        Outcome::Stopped { step: 1, .. }
    ));
    let path = setup.store.join("resume.safetensors");
    let good = fs::read(&path).unwrap();
    for harm in [good.len() / 2, good.len() - 1, 0] {
        let mut bytes = good.clone();
        if harm == 0 {
            let place = bytes.len() - 9;
            bytes[place] ^= 1;
        } else {
            bytes.truncate(harm);
        }
        fs::write(&path, bytes).unwrap();
        let error = stop(other.clone()).unwrap_err().to_string();
        assert!(error.contains("resume.safetensors"), "{error}");
    }
}

#[test]
fn anchors_hold_what_was_learned() {
    let moved = |pairs: &[(&str, &str)]| {
        let setup = setup("anchors");
        learn(&setup, examples(0, 6), settings(&[]), cpu(1));
        let (_, report) = learn(&setup, examples(6, 3), settings(pairs), cpu(1));
        (report.projection_drift, report.row_drift_degrees.0)
    };
    let held = moved(&[("anchor.phase", "both"), ("anchor.projection", "1e9")]);
    let free = moved(&[("anchor.embedding", "0"), ("anchor.projection", "0")]);
    assert!(
        held.0 < 0.7 * free.0 && held.1 < 0.7 * free.1,
        "{held:?} {free:?}"
    );
}

#[test]
fn new_models_are_routable_and_old_ids_stay() {
    let setup = setup("grow");
    learn(&setup, examples(0, 6), settings(&[]), cpu(1));
    let options = cpu(1).encoder(&setup.encoder);
    let card = ModelCard::new("quiet", "Graph Machine Learning");
    // So little moves that the card's own text stays nearest to its row.
    let still = settings(&[
        ("lora.train", "false"),
        ("lr.w", "1e-6"),
        ("lr.e", "1e-6"),
        ("lr.phase1.w", "1e-6"),
        ("lr.phase1.e", "1e-6"),
    ]);
    let mut learner = Learner::open(&setup.store, None, still, options.clone()).unwrap();
    // `model-6` comes with its examples' domain, `quiet` with a card and no example at all.
    let experience = Experience {
        models: vec![NewModel::from(&card), model(0)],
        examples: examples(6, 3),
    };
    let outcome = learner
        .learn(&experience, None, &mut |_| Control::Continue)
        .unwrap();
    let Outcome::Learned(report) = outcome else {
        panic!("stopped");
    };
    assert_eq!(report.models_added, 4);
    assert!(report.replayed > 0 && report.accuracy.old_before.is_some());
    learner.commit().unwrap();
    let router = Router::open(&setup.store, options).unwrap();
    let hub = router.hub();
    let names: Vec<String> = hub
        .iter()
        .map(|(_, model)| model.name.to_string())
        .collect();
    assert_eq!(
        names[5..],
        ["model-5", "model-6", "model-7", "model-8", "quiet"]
    );
    let all = Request::new("quiet. Graph Machine Learning").top(10);
    assert_eq!(&*router.route(&all).unwrap().ranked[0].model, "quiet");

    let unknown = Experience {
        models: Vec::new(),
        examples: vec![Example::new("who?", "nobody")],
    };
    let options = cpu(1).encoder(&setup.encoder);
    let mut learner = Learner::open(&setup.store, None, settings(&[]), options).unwrap();
    let error = learner
        .learn(&unknown, None, &mut |_| Control::Continue)
        .unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidRequest && error.to_string().contains("nobody"));
}

#[test]
fn the_gate_refuses_and_the_parent_stays() {
    let setup = setup("gate");
    let (first, _) = learn(
        &setup,
        examples(0, 6),
        settings(&[("epochs", "20")]),
        cpu(1),
    );
    let options = cpu(1).encoder(&setup.encoder);
    let mut learner = Learner::open(&setup.store, None, settings(&[]), options)
        .unwrap()
        .max_forgetting(-101.0);
    let experience = Experience {
        models: Vec::new(),
        examples: examples(6, 3),
    };
    let outcome = learner
        .learn(&experience, None, &mut |_| Control::Continue)
        .unwrap();
    assert!(matches!(outcome, Outcome::Learned(report) if report.refused));
    assert_eq!(learner.commit().unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(Store::open(&setup.store).unwrap().current().unwrap(), first);
}

#[test]
fn a_forgotten_prompt_is_gone_and_a_rename_keeps_the_rest() {
    let setup = setup("memory");
    let all = settings(&[("replay.ratio", "1")]);
    let (learned, _) = learn(&setup, examples(0, 6), all, cpu(1));
    let store = Store::open(&setup.store).unwrap();
    let kept = remembered(&store, &learned).unwrap();
    assert_eq!(kept.replay.len() + kept.held_out.len(), 24);
    let text = kept.replay[3].text.clone().unwrap();
    let renamed = store.rename("model-0", "first").unwrap();
    let without = forget(&store, &format!("  {} ", text.to_uppercase())).unwrap();
    let left = remembered(&store, &without).unwrap();
    assert_eq!(left.replay.len(), kept.replay.len() - 1);
    assert!(
        left.replay
            .iter()
            .all(|entry| entry.text.as_ref() != Some(&text))
    );
    assert_eq!(
        remembered(&store, &renamed).unwrap().replay.len(),
        kept.replay.len()
    );
    assert!(forget(&store, &text).is_err());
    let folder = setup.store.join(without.as_str());
    for entry in fs::read_dir(folder).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(
            !bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        );
    }
    drop(setup.folder);
}

#[test]
fn only_what_privacy_allows_is_kept() {
    for (privacy, text, vector) in [("hashes", false, false), ("embeddings", false, true)] {
        let setup = setup("privacy");
        let quiet = settings(&[("replay.privacy", privacy), ("replay.ratio", "1")]);
        let (id, _) = learn(&setup, examples(0, 6), quiet.clone(), cpu(1));
        let kept = remembered(&Store::open(&setup.store).unwrap(), &id).unwrap();
        assert!(kept.held_out.is_empty() && !kept.replay.is_empty());
        assert!(kept.replay.iter().all(|entry| entry.text.is_some() == text));
        // Vectors are learned again, hashes are not.
        let (_, report) = learn(&setup, examples(6, 3), quiet, cpu(1));
        assert_eq!(report.replayed > 0, vector);
    }
}

#[test]
fn a_model_added_to_a_learned_generation_is_where_its_card_is() {
    let setup = setup("add");
    learn(
        &setup,
        examples(0, 6),
        settings(&[("lr.lora", "5e-3")]),
        cpu(1),
    );
    let encoder = Encoder::open(&setup.encoder, &cpu(1)).unwrap();
    let card = ModelCard::new("late", "Graph Machine Learning");
    Store::open(&setup.store)
        .unwrap()
        .add(&encoder, &[NewModel::from(&card)], &mut |_, _| {})
        .unwrap();
    let router = Router::open(&setup.store, cpu(1).encoder(&setup.encoder)).unwrap();
    let request = Request::new("late. Graph Machine Learning");
    let best = &router.route(&request).unwrap().ranked[0];
    assert!(&*best.model == "late" && best.cosine > 0.999, "{best:?}");
}
