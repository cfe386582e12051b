//! Learning through the public interface: it fits, repeats itself, resumes, forgets little, refuses.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::sync::Arc;

use common::toy::{self, DOMAINS, Setup, examples, experience, learn, model, setup, setup_with};
use common::{cpu, devices};
use hubrouter::learn::{
    Control, Example, Experience, Learner, Outcome, Settings, Status, forget, remembered,
};
use hubrouter::{
    Encoder, ErrorKind, GenerationId, ImportOptions, ModelCard, NewModel, Options, Request, Router,
    Store,
};
use safetensors::SafeTensors;

/// The learned score alone: memories have tests of their own.
fn settings(pairs: &[(&str, &str)]) -> Settings {
    toy::settings(&[&[("memory", "false")], pairs].concat())
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
    for options in devices() {
        let setup = setup("overfit");
        let all = examples(0, 6);
        assert!(right(&setup, &all, cpu(1)) < 20);
        let (_, report) = learn(&setup, all.clone(), settings(&overfit), options.clone());
        assert_eq!((report.examples, report.models_added), (24, 0));
        let right = right(&setup, &all, options);
        assert!(right >= 22, "{right} of 24");
    }
}

/// Without replay nothing but the prior tells a softmax that old models are no rarer than before.
#[test]
fn old_models_that_count_as_rare_are_forgotten_less() {
    let mut kept = Vec::new();
    for prior in ["0", "-2"] {
        let plain = [
            ("epochs", "40"),
            ("lr.lora", "2e-3"),
            ("hold_out", "false"),
            ("replay.strategy", "none"),
            ("anchor.embedding", "0"),
            ("anchor.projection", "0"),
            ("prior.old", prior),
        ];
        let setup = setup("prior");
        let (old, new) = (examples(0, 6), examples(6, 3));
        learn(&setup, old.clone(), settings(&plain), cpu(2));
        learn(&setup, new.clone(), settings(&plain), cpu(2));
        kept.push((right(&setup, &old, cpu(1)), right(&setup, &new, cpu(1))));
    }
    let [(forgot, _), (held, learned)] = kept[..] else {
        panic!("{kept:?}");
    };
    assert!(held > forgot + 1 && learned >= 10, "{kept:?}");
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
        let first = toy::experience(examples(0, 6));
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
        let experience = experience(examples(0, 6));
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
    let flipped = |place: usize| {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        bytes
    };
    let trained = {
        let (id, _) = learn(&setup, examples(0, 6), settings(&[]), cpu(1));
        let folder = setup.store.join(id.as_str());
        fs::read(folder.join("adapter.safetensors")).unwrap()
    };
    for (harm, bytes) in [
        ("half of it", good[..good.len() / 2].to_vec()),
        ("a byte less", good[..good.len() - 1].to_vec()),
        ("a byte more", [&good[..], b"\n"].concat()),
        ("emptied", Vec::new()),
        ("a bit of its values", flipped(good.len() - 9)),
        ("a bit of its length", flipped(1)),
        ("a bit of its head", flipped(20)),
        ("another step", {
            let step = b"step\\\":1";
            let place = good.windows(step.len()).position(|part| part == step);
            flipped(place.unwrap() + step.len() - 1)
        }),
        ("text", b"not a state".to_vec()),
        ("weights of something else", trained),
    ] {
        fs::write(&path, &bytes).unwrap();
        let error = stop(other.clone()).unwrap_err().to_string();
        for part in ["resume.safetensors", "delete it to start"] {
            assert!(error.contains(part), "{harm}: {error}");
        }
        // It is as it was: nobody has lost it.
        assert_eq!(fs::read(&path).unwrap(), bytes, "{harm}");
    }
    fs::remove_file(&path).unwrap();
    learn(&setup, examples(0, 6), other, cpu(1));
}

#[test]
fn a_state_of_other_models_is_passed_over() {
    let setup = setup("state of others");
    let options = cpu(1).encoder(&setup.encoder);
    let update = |cards: &[&str], control: Control| {
        let mut learner =
            Learner::open(&setup.store, None, settings(&[]), options.clone()).unwrap();
        let experience = Experience {
            models: cards
                .iter()
                .map(|name| NewModel::from(&ModelCard::new(*name, "Music")))
                .collect(),
            examples: examples(0, 6),
        };
        learner.learn(&experience, None, &mut |status| match status.loss {
            Some(_) => control,
            None => Control::Continue,
        })
    };
    // The same examples, but one row of E less or more, or another one's.
    for cards in [&["late"][..], &[], &["later"], &["late", "later"]] {
        let outcome = update(cards, Control::Stop).unwrap();
        assert!(
            matches!(outcome, Outcome::Stopped { step: 1, .. }),
            "{cards:?}"
        );
    }
    let outcome = update(&["late"], Control::Continue).unwrap();
    assert!(matches!(outcome, Outcome::Learned(_)));
}

/// carve.md V28: taking no step reproduces the parent's routes exactly on old models.
#[test]
fn no_step_changes_no_route_v28() {
    let setup = setup("no step");
    let options = cpu(1).encoder(&setup.encoder);
    let scores = |models: usize| -> Vec<Vec<(String, u32)>> {
        let router = Router::open(&setup.store, options.clone()).unwrap();
        let all = examples(0, 9);
        let routes = all.iter().map(|example| {
            let request = Request::new(example.prompt.as_str()).top(models);
            let ranked = router.route(&request).unwrap().ranked;
            let mut scores: Vec<(String, u32)> = ranked
                .iter()
                .map(|ranked| (ranked.model.to_string(), ranked.score.to_bits()))
                .filter(|(name, _)| examples(0, 6).iter().any(|e| e.model_name == *name))
                .collect();
            scores.sort();
            scores
        });
        routes.collect()
    };
    learn(&setup, examples(0, 6), settings(&[]), cpu(1));
    let want = scores(6);
    let experience = experience(examples(6, 3));
    let mut learner = Learner::open(&setup.store, None, settings(&[]), options.clone()).unwrap();
    let none = Some(std::time::Duration::ZERO);
    let outcome = learner
        .learn(&experience, none, &mut |_| Control::Continue)
        .unwrap();
    assert!(matches!(outcome, Outcome::Learned(report) if report.steps == 0));
    learner.commit().unwrap();
    assert_eq!(scores(9), want);
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

    let unknown = toy::experience(vec![Example::new("who?", "nobody")]);
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
    let experience = experience(examples(6, 3));
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
    let options = cpu(1).encoder(&setup.encoder);
    let kept = remembered(&store, &learned).unwrap();
    assert_eq!(kept.replay.len() + kept.held_out.len(), 24);
    let text = kept.replay[3].text.clone().unwrap();
    let renamed = store.rename("model-0", "first").unwrap();
    let without = forget(&store, &format!("  {} ", text.to_uppercase()), &options).unwrap();
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
    assert!(forget(&store, &text, &options).is_err());
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
    // The toy introduces prompts and cards by different words; here one text is to be both.
    let mut import = ImportOptions::default();
    import.query_prefix = Some("model: ".to_owned());
    let setup = setup_with("add", &import);
    learn(
        &setup,
        examples(0, 6),
        settings(&[("lr.lora", "5e-3")]),
        cpu(1),
    );
    let encoder = Arc::new(Encoder::open(&setup.encoder, &cpu(1)).unwrap());
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

/// The tensors and the metadata of a part of the current generation.
fn part(setup: &Setup, name: &str) -> (Vec<(String, Vec<f32>)>, String) {
    let id = Store::open(&setup.store).unwrap().current().unwrap();
    let bytes = fs::read(setup.store.join(id.as_str()).join(name)).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let meta = header
        .metadata()
        .as_ref()
        .map(|map| map["hubrouter"].clone());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| -> Vec<f32> {
        let numbers = data.chunks_exact(4);
        numbers
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    };
    let mut tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, values(view.data())))
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    (tensors, meta.unwrap_or_default())
}

fn ewc(pairs: &[(&str, &str)]) -> Settings {
    let all = [&[("regulariser", "ewc"), ("anchor.phase", "both")], pairs].concat();
    settings(&all)
}

#[test]
fn ewc_holds_what_mattered() {
    let moved = |second: Settings| {
        let setup = setup("ewc");
        learn(&setup, examples(0, 6), ewc(&[]), cpu(1));
        let (_, report) = learn(&setup, examples(6, 3), second, cpu(1));
        let drift = (report.projection_drift, report.row_drift_degrees.0);
        (drift, report.losses, part(&setup, "head.safetensors").0)
    };
    let (held, terms, _) = moved(ewc(&[("ewc.lambda", "1e9")]));
    let (free, none, head) = moved(ewc(&[("ewc.lambda", "0")]));
    assert!(
        held.0 < 0.7 * free.0 && held.1 < 0.7 * free.1,
        "{held:?} {free:?}"
    );
    assert!(terms.ewc > 0.0 && terms.embedding == 0.0 && terms.projection == 0.0);
    assert!(none.ewc == 0.0 && none.route > 0.0);
    // With lambda = 0 it is as if there were no regulariser.
    let (_, _, unheld) = moved(settings(&[
        ("anchor.embedding", "0"),
        ("anchor.projection", "0"),
    ]));
    assert_eq!(head, unheld);
}

#[test]
fn fisher_weights_are_kept_with_the_generation() {
    for (mode, held) in [("online", 1), ("separate", 2)] {
        let setup = setup("fisher");
        let settings = ewc(&[("ewc.mode", mode), ("ewc.lambda", "1e7")]);
        learn(&setup, examples(0, 3), settings.clone(), cpu(1));
        let (tensors, meta) = part(&setup, "fisher.safetensors");
        let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "0.model_embeddings.fisher",
                "0.model_embeddings.theta",
                "0.prompt_projection.fisher",
                "0.prompt_projection.theta"
            ]
        );
        assert!(
            meta.contains("\"count\":1") && meta.contains(mode),
            "{meta}"
        );
        // theta* is what was learned, and something mattered.
        let (head, _) = part(&setup, "head.safetensors");
        assert_eq!(head[0].1, tensors[1].1);
        assert_eq!(head[1].1, tensors[3].1);
        assert!(tensors[0].1.iter().any(|f| *f > 0.0));

        // A change of the hub keeps the part as it is.
        let encoder = Arc::new(Encoder::open(&setup.encoder, &cpu(1)).unwrap());
        let card = ModelCard::new("late", "Graph Machine Learning");
        let store = Store::open(&setup.store).unwrap();
        store
            .add(&encoder, &[NewModel::from(&card)], &mut |_, _| {})
            .unwrap();
        assert_eq!(part(&setup, "fisher.safetensors"), (tensors.clone(), meta));

        // The row of the newcomer is not held, whatever lambda.
        learn(&setup, examples(3, 3), settings.clone(), cpu(1));
        let (second, meta) = part(&setup, "fisher.safetensors");
        assert!(meta.contains("\"count\":2"), "{meta}");
        assert_eq!(second.len(), 4 * held);
        let (rows, width) = (&second[4 * held - 4].1, head[0].1.len() / 6);
        assert_eq!(rows.len(), 7 * width, "the newcomer's row has weights now");
        if mode == "separate" {
            assert_eq!(second[..4], tensors);
        }
        // And a third update, by another mode, goes on from either.
        let other = ewc(&[("ewc.mode", if held == 1 { "separate" } else { "online" })]);
        let (_, report) = learn(&setup, examples(6, 3), other, cpu(1));
        assert!(report.losses.ewc > 0.0);
        let (third, meta) = part(&setup, "fisher.safetensors");
        assert!(meta.contains("\"count\":3"), "{meta}");
        assert_eq!(third.len(), if held == 1 { 8 } else { 4 });
        // Anchors leave it alone.
        learn(&setup, examples(0, 9), self::settings(&[]), cpu(1));
        assert_eq!(part(&setup, "fisher.safetensors"), (third, meta));
    }
}

#[test]
fn ewc_holds_adapters_where_its_scope_is_all() {
    let moved = |lambda: &str| {
        let setup = setup("scope");
        let settings = ewc(&[
            ("ewc.scope", "all"),
            ("ewc.lambda", lambda),
            ("phase_split", "0"),
            ("replay.strategy", "none"),
        ]);
        learn(&setup, examples(0, 6), settings.clone(), cpu(1));
        let (fisher, _) = part(&setup, "fisher.safetensors");
        assert_eq!(fisher.len(), 6, "{fisher:?}");
        let (before, _) = part(&setup, "adapter.safetensors");
        learn(&setup, examples(6, 3), settings, cpu(1));
        let (after, _) = part(&setup, "adapter.safetensors");
        let pairs = before
            .iter()
            .zip(&after)
            .flat_map(|(a, b)| a.1.iter().zip(&b.1));
        pairs
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    let (held, free) = (moved("1e9"), moved("0"));
    assert!(held < 0.8 * free, "{held} {free}");
}

/// Everything that depends on the hub's earlier rows, on Fisher weights and on masks.
fn all_at_once() -> Settings {
    ewc(&[
        ("ewc.lambda", "1e5"),
        ("ewc.scope", "all"),
        ("lora.dropout", "0.2"),
        ("init.rows", "card_mix"),
        ("replay.ratio", "0.5"),
    ])
}

#[test]
fn ewc_dropout_and_mixed_rows_have_the_same_bits_whatever_the_threads_and_resumed() {
    let whole = |threads: usize| {
        let setup = setup("all at once");
        learn(&setup, examples(0, 6), all_at_once(), cpu(threads));
        learn(&setup, examples(6, 3), all_at_once(), cpu(threads)).0
    };
    let want = whole(1);
    assert_eq!(whole(2), want);
    for stop in [2, 8] {
        let setup = setup("all resumed");
        learn(&setup, examples(0, 6), all_at_once(), cpu(1));
        let experience = experience(examples(6, 3));
        let options = cpu(2).encoder(&setup.encoder);
        let mut learner = Learner::open(&setup.store, None, all_at_once(), options).unwrap();
        let outcome = learner.learn(&experience, None, &mut |status| match status.loss.is_some()
            && status.done >= stop
        {
            true => Control::Stop,
            false => Control::Continue,
        });
        assert!(matches!(outcome.unwrap(), Outcome::Stopped { step, .. } if step == stop));
        drop(learner);
        let got = learn(&setup, examples(6, 3), all_at_once(), cpu(1)).0;
        assert_eq!(got, want, "stopped after {stop}");
    }
}

#[cfg(feature = "gpu")]
#[test]
fn ewc_and_dropout_on_a_gpu_are_those_of_the_cpu() {
    let learned = |options: Options| {
        let setup = setup("devices");
        let settings = || {
            let mut settings = all_at_once();
            settings.set("epochs", "2").unwrap();
            settings
        };
        learn(&setup, examples(0, 3), settings(), options.clone());
        let (_, report) = learn(&setup, examples(3, 2), settings(), options);
        let (fisher, _) = part(&setup, "fisher.safetensors");
        (report.losses, fisher)
    };
    let ((cpu, a), (gpu, b)) = (learned(cpu(2)), learned(common::gpu()));
    assert!(
        (cpu.route - gpu.route).abs() < 1e-3 * cpu.route,
        "{cpu:?} {gpu:?}"
    );
    assert!(
        cpu.ewc > 0.0 && (cpu.ewc - gpu.ewc).abs() < 0.05 * cpu.ewc,
        "{cpu:?} {gpu:?}"
    );
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        let norm =
            |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let apart = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
        let size = norm(&mut a.iter().copied());
        assert!(apart < 0.05 * size, "{name}: {apart} of {size}");
    }
}

#[test]
fn dropout_changes_what_is_learned_and_none_changes_nothing() {
    let id = |pairs: &[(&str, &str)]| {
        let setup = setup("dropout");
        learn(&setup, examples(0, 6), settings(pairs), cpu(1)).0
    };
    let none = id(&[]);
    assert_eq!(id(&[("lora.dropout", "0")]), none);
    assert_ne!(id(&[("lora.dropout", "0.1")]), none);
    // Frozen adapters are in evaluation mode.
    let head = |pairs: &[(&str, &str)]| {
        let setup = setup("frozen");
        let frozen = [&[("lora.train", "false")], pairs].concat();
        learn(&setup, examples(0, 6), settings(&frozen), cpu(1));
        part(&setup, "head.safetensors").0
    };
    assert_eq!(head(&[("lora.dropout", "0.5")]), head(&[]));
}

#[test]
fn damaged_fisher_weights_are_refused_by_name() {
    let setup = setup("damaged");
    let (id, _) = learn(&setup, examples(0, 6), ewc(&[]), cpu(1));
    let path = setup.store.join(id.as_str()).join("fisher.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let experience = experience(examples(6, 3));
    let options = cpu(1).encoder(&setup.encoder);
    let mut learner = Learner::open(&setup.store, Some(&id), ewc(&[]), options).unwrap();
    let error = learner
        .learn(&experience, None, &mut |_| Control::Continue)
        .unwrap_err();
    assert!(error.to_string().contains("fisher.safetensors"), "{error}");
}

#[test]
fn rows_of_newcomers_are_mixed_from_those_with_near_cards() {
    let setup = setup("mixed");
    let still = |rows: &str| {
        let mut pairs = vec![("init.rows", rows), ("lora.train", "false")];
        pairs.extend(["lr.w", "lr.e", "lr.phase1.w", "lr.phase1.e"].map(|key| (key, "0")));
        pairs.push(("weight_decay", "0"));
        settings(&pairs)
    };
    learn(&setup, examples(0, 6), still("card_mix"), cpu(1));
    let before = part(&setup, "head.safetensors").0;
    // Added between two updates, with a card of its own.
    let encoder = Arc::new(Encoder::open(&setup.encoder, &cpu(1)).unwrap());
    let card = ModelCard::new("late", "Graph Machine Learning");
    let store = Store::open(&setup.store).unwrap();
    store
        .add(&encoder, &[NewModel::from(&card)], &mut |_, _| {})
        .unwrap();
    learn(&setup, examples(6, 1), still("card_mix"), cpu(1));
    let (head, _) = part(&setup, "head.safetensors");
    let width = before[0].1.len() / 6;
    let rows: Vec<&[f32]> = head[0].1.chunks(width).collect();
    assert_eq!(rows.len(), 8);
    // Zero-shot rows are the cards, and none of them moved.
    let text = |name: &str, domain: &str| ModelCard::new(name, domain).text();
    let names = [("late", "Graph Machine Learning"), ("model-6", DOMAINS[0])];
    let texts: Vec<String> = (0..6)
        .map(|i| text(&format!("model-{i}"), DOMAINS[i % 3]))
        .chain(names.map(|(name, domain)| text(name, domain)))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let units: Vec<Vec<f64>> = encoder
        .embed_documents(&texts)
        .into_iter()
        .map(|vector| {
            let vector: Vec<f64> = vector.unwrap().into_iter().map(f64::from).collect();
            let length = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
            vector.into_iter().map(|v| v / length).collect()
        })
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let weights: Vec<f64> = (0..7)
        .map(|i| (dot(&units[i], &units[7]) / 0.07).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    for (c, found) in rows[7].iter().enumerate() {
        let mixed = weights.iter().zip(&rows);
        let want: f64 = mixed.map(|(w, row)| w / total * f64::from(row[c])).sum();
        // Half-precision vectors over 0.07.
        let error = (f64::from(*found) - want).abs();
        assert!(error < 2e-3, "{c}: {found}, not {want}");
    }

    // A learned generation without card vectors cannot mix rows, and says what could.
    let setup = self::setup("unmixed");
    learn(&setup, examples(0, 6), settings(&[]), cpu(1));
    let options = cpu(1).encoder(&setup.encoder);
    let mut learner = Learner::open(&setup.store, None, still("card_mix"), options).unwrap();
    let experience = experience(examples(6, 3));
    let error = learner
        .learn(&experience, None, &mut |_| Control::Continue)
        .unwrap_err();
    assert!(error.to_string().contains("cards.safetensors"), "{error}");
}

/// The plain step without replay, and a teacher.
fn lwf(pairs: &[(&str, &str)]) -> Settings {
    let plain = [
        ("epochs", "40"),
        ("lr.lora", "2e-3"),
        ("hold_out", "false"),
        ("replay.strategy", "none"),
        ("phase_split", "0"),
        ("anchor.embedding", "0"),
        ("anchor.projection", "0"),
        ("prior.old", "0"),
    ];
    settings(&[&plain[..], pairs].concat())
}

/// A teacher says nothing of new models: what it holds is how the old ones compare.
#[test]
fn what_the_parent_says_is_held_by_distilling_it() {
    let old = examples(0, 6);
    let best_of_old = |setup: &Setup| {
        let options = cpu(1).encoder(&setup.encoder);
        let router = Router::open(&setup.store, options).unwrap();
        let names: Vec<String> = (0..6).map(|i| format!("model-{i}")).collect();
        let found = |example: &&Example| {
            let request = Request::new(example.prompt.as_str()).top(9);
            let decision = router.route(&request).unwrap();
            let mut ranked = decision
                .ranked
                .iter()
                .map(|ranked| ranked.model.to_string());
            let best = ranked.find(|model| names.contains(model));
            best.as_ref() == Some(&example.model_name)
        };
        old.iter().filter(found).count()
    };
    let learned = |pairs: &[(&str, &str)], new: Vec<Example>| {
        let setup = setup("lwf");
        let (_, first) = learn(&setup, old.clone(), lwf(pairs), cpu(2));
        assert_eq!(first.losses.distill, 0.0, "nobody taught the first");
        let (_, report) = learn(&setup, new, lwf(pairs), cpu(2));
        let (head, _) = part(&setup, "head.safetensors");
        let learned = right(&setup, &examples(6, 3), cpu(1));
        ((best_of_old(&setup), learned), report.losses.distill, head)
    };
    let new = examples(6, 3);
    let all = [("lwf.alpha", "1"), ("lwf.rows", "all")];
    let watched = [("lwf.alpha", "1e-6"), ("lwf.rows", "all")];
    let (held, term, _) = learned(&all, new.clone());
    let (free, drift, _) = learned(&watched, new.clone());
    let drift = 1e6 * drift;
    assert!(term > 0.0 && 3.0 * term < drift, "{term} {drift}");
    assert!(held.0 > free.0 && held.1 >= 10, "{held:?} {free:?}");
    // No gold is an old model: no row is distilled, and nothing else is changed.
    let golds = [("lwf.alpha", "1")];
    let (_, untaught, head) = learned(&[], new.clone());
    let (_, none, same) = learned(&golds, new.clone());
    assert_eq!((none, same), (untaught, head));
    // With such rows there is a term, of those alone.
    let mixed = [new, examples(0, 2)].concat();
    let (_, few, _) = learned(&golds, mixed.clone());
    let (_, more, _) = learned(&all, mixed);
    assert!(
        none == 0.0 && few > 0.0 && few != more,
        "{none} {few} {more}"
    );
}

#[test]
fn settings_of_a_teacher_are_noted_where_there_is_one() {
    let noted = |pairs: &[(&str, &str)]| {
        let setup = setup("lwf noted");
        let (id, _) = learn(&setup, examples(0, 3), settings(pairs), cpu(1));
        let path = setup.store.join(id.as_str()).join("manifest.json");
        let manifest: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let settings = manifest["learned"]["settings"].clone();
        assert_eq!(settings["ewc.lambda"], "10000.0");
        (
            settings["lwf.alpha"].clone(),
            settings["lwf.rows"].clone(),
            id,
        )
    };
    let (alpha, rows, id) = noted(&[]);
    assert!(alpha.is_null() && rows.is_null());
    assert_eq!(noted(&[("lwf.alpha", "0"), ("lwf.rows", "old_gold")]).2, id);
    let (alpha, rows, other) = noted(&[("lwf.alpha", "0.5"), ("lwf.rows", "all")]);
    assert_eq!((alpha, rows), ("0.5".into(), "\"all\"".into()));
    assert_ne!(other, id);
}

/// A teacher beside all that may be beside it: replayed vectors, sampled candidates and rows that
/// sleep, two phases, windows of micro-batches, dropout.
#[test]
fn a_taught_update_has_the_same_bits_whatever_the_threads_and_resumed() {
    let taught = || {
        settings(&[
            ("lwf.alpha", "0.7"),
            ("candidates", "sampled"),
            ("candidates.k", "4"),
            ("candidates.hard", "1"),
            ("candidates.semantic", "1"),
            ("candidates.far", "1"),
            ("mining.every", "3"),
            ("replay.ratio", "0.5"),
            ("replay.privacy", "embeddings"),
            ("lora.dropout", "0.2"),
            ("batch", "4"),
            ("accumulate", "2"),
        ])
    };
    let experience = || Experience {
        models: (9..69).map(model).collect(),
        examples: examples(5, 4),
    };
    let run = |setup: &Setup, experience: &Experience, threads: usize, stop: usize| {
        let options = cpu(threads).encoder(&setup.encoder);
        let mut learner = Learner::open(&setup.store, None, taught(), options)
            .unwrap()
            .allow_unmeasured(true);
        let mut teacher = 0;
        let outcome = learner.learn(experience, None, &mut |status| {
            teacher = teacher.max(if status.stage == "teacher" {
                status.total
            } else {
                0
            });
            match status.loss.is_some() && status.done >= stop {
                true => Control::Stop,
                false => Control::Continue,
            }
        });
        (learner, outcome.unwrap(), teacher)
    };
    let first = toy::experience(examples(0, 6));
    let whole = |threads: usize| {
        let setup = setup("taught");
        run(&setup, &first, threads, usize::MAX).0.commit().unwrap();
        let (learner, outcome, teacher) = run(&setup, &experience(), threads, usize::MAX);
        let Outcome::Learned(report) = outcome else {
            panic!("stopped");
        };
        assert!(report.losses.distill > 0.0 && report.replayed > 0);
        // Four prompts, one held out, have a gold of the parent's; vectors need no encoder.
        assert!((3..=4).contains(&teacher), "{teacher}");
        learner.commit().unwrap()
    };
    let want = whole(1);
    assert_eq!(whole(2), want);
    for stop in [1, 3, 6] {
        let setup = setup("taught resumed");
        run(&setup, &first, 1, usize::MAX).0.commit().unwrap();
        let (learner, outcome, _) = run(&setup, &experience(), 2, stop);
        assert!(
            matches!(outcome, Outcome::Stopped { step, .. } if step == stop),
            "{outcome:?}"
        );
        drop(learner);
        let (learner, _, teacher) = run(&setup, &experience(), 1, usize::MAX);
        assert!(teacher > 0, "its scores are taken again");
        assert_eq!(learner.commit().unwrap(), want, "stopped after {stop}");
    }
}

#[cfg(feature = "gpu")]
#[test]
fn a_teacher_on_a_gpu_is_that_of_the_cpu() {
    let learned = |options: Options| {
        let setup = setup("taught devices");
        // Two steps an epoch: behind the first there is something to hold.
        let taught = [
            ("lwf.alpha", "1"),
            ("lwf.rows", "all"),
            ("epochs", "2"),
            ("batch", "4"),
        ];
        let taught = || settings(&taught);
        learn(&setup, examples(0, 3), taught(), options.clone());
        let (_, report) = learn(&setup, examples(2, 2), taught(), options);
        (report.losses, part(&setup, "head.safetensors").0)
    };
    let ((cpu, a), (gpu, b)) = (learned(cpu(2)), learned(common::gpu()));
    assert!(
        cpu.distill > 0.0 && (cpu.distill - gpu.distill).abs() < 1e-2 * cpu.distill,
        "{cpu:?} {gpu:?}"
    );
    assert!(
        (cpu.route - gpu.route).abs() < 1e-3 * cpu.route,
        "{cpu:?} {gpu:?}"
    );
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        let pairs = a.iter().zip(b);
        let apart = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 5e-3, "{name}: {apart}");
    }
}
