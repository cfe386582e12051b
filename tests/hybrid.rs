//! The hybrid of the learned score with what the encoder remembers, through the public interface.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::sync::Arc;

use common::toy::{Setup, examples, learn, settings, setup};
use common::{cpu, gpu};
use hubrouter::learn::{Example, forget, remembered};
use hubrouter::{
    Calibration, Decision, Encoder, ErrorKind, GenerationId, ModelCard, NewModel, Options, Parts,
    Request, Router, Store, Strengths,
};

fn decide(setup: &Setup, prompt: &str, options: Options) -> Decision {
    let router = Router::open(&setup.store, options.encoder(&setup.encoder)).unwrap();
    router.route(&Request::new(prompt).top(100)).unwrap()
}

fn parts(decision: &Decision, model: &str) -> Parts {
    let found = decision.ranked.iter().find(|r| &*r.model == model).unwrap();
    found.parts.unwrap()
}

fn calibration(setup: &Setup, id: &GenerationId) -> Calibration {
    let file = setup.store.join(id.as_str()).join("calibration.json");
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// Enough prompts that some are held out; the toy's forms with a number behind them.
fn many(first: usize, count: usize) -> Vec<Example> {
    let numbered = |example: Example, n: usize| {
        let mut numbered = Example::new(format!("{} {n}", example.prompt), example.model_name);
        numbered.domain = example.domain;
        numbered
    };
    let of = |n| {
        examples(first, count)
            .into_iter()
            .map(move |e| numbered(e, n))
    };
    (0..4).flat_map(of).collect()
}

#[test]
fn a_decision_shows_parts_that_add_up_on_both_devices() {
    let setup = setup("parts");
    let (id, report) = learn(&setup, many(0, 6), settings(&[]), cpu(2));
    let fitted = report.hybrid.unwrap();
    assert!(fitted.rows > 3, "{fitted:?}");
    assert!(fitted.loss_after < fitted.loss_before, "{fitted:?}");
    let stored = calibration(&setup, &id);
    assert_eq!(stored.rows, fitted.rows);
    assert!((stored.strengths.exemplar - fitted.strengths.exemplar).abs() < 1e-9);

    let prompt = "which one does photo number 1 2";
    let (on_cpu, on_gpu) = (
        decide(&setup, prompt, cpu(1)),
        decide(&setup, prompt, gpu()),
    );
    let total: f32 = on_cpu.ranked.iter().map(|r| r.probability).sum();
    assert!((total - 1.0).abs() < 1e-4, "{total}");
    for (a, b) in on_cpu.ranked.iter().zip(&on_gpu.ranked) {
        let p = a.parts.unwrap();
        let sum = p.learned + p.card + p.exemplar + p.domain + p.balance + p.prior;
        assert!((sum - a.score).abs() < 1e-4, "{a:?}");
        assert!(p.prior < 0.0 && a.cosine.abs() <= 1.0, "{a:?}");
        assert_eq!(a.model, b.model);
        assert!((a.score - b.score).abs() < 1e-3, "{a:?} {b:?}");
        assert!((p.exemplar - b.parts.unwrap().exemplar).abs() < 1e-3);
    }
    // The domains' probabilities are those of their members.
    for domain in &on_cpu.domains {
        let members = on_cpu.ranked.iter().filter(|r| r.domain == domain.domain);
        let sum: f32 = members.map(|r| r.probability).sum();
        assert!((sum - domain.probability).abs() < 1e-4, "{domain:?}");
    }
    // All of the hub is ranked on the host, a few models on the device.
    let router = Router::open(&setup.store, cpu(1).encoder(&setup.encoder)).unwrap();
    let few = router.route(&Request::new(prompt).top(2)).unwrap();
    for (few, all) in few.ranked.iter().zip(&on_cpu.ranked) {
        assert_eq!((&few.model, few.score), (&all.model, all.score));
    }
}

/// What is learned later moves the learned part of an old model's score, not what is remembered of it.
#[test]
fn memory_does_not_drift() {
    let setup = setup("drift");
    let (first, few) = learn(&setup, many(0, 6), settings(&[]), cpu(2));
    let prompt = "route french number 0 1";
    let before = parts(&decide(&setup, prompt, cpu(1)), "model-0");
    let (second, report) = learn(&setup, many(6, 3), settings(&[]), cpu(2));
    assert_eq!(report.models_added, 3);
    let decision = decide(&setup, prompt, cpu(1));
    let after = parts(&decision, "model-0");
    let (old, new) = (
        calibration(&setup, &first).strengths,
        calibration(&setup, &second).strengths,
    );
    for (before, after) in [
        (
            f64::from(before.card) / old.card,
            f64::from(after.card) / new.card,
        ),
        (
            f64::from(before.exemplar) / old.exemplar,
            f64::from(after.exemplar) / new.exemplar,
        ),
    ] {
        assert!((before - after).abs() < 1e-3, "{before} {after}");
    }
    // All prompts came at once; then fewer came, and their models make up for it.
    assert_eq!(before.balance, 0.0);
    let brought = [few.examples, report.examples].map(|n| n as f64);
    let mean = (6.0 * brought[0] + 3.0 * brought[1]) / 9.0;
    for (model, brought) in ["model-0", "model-7"].iter().zip(brought) {
        let balance = f64::from(parts(&decision, model).balance) / new.balance;
        assert!(
            (balance - (mean / brought).ln()).abs() < 1e-5,
            "{model}: {balance}"
        );
    }
    let learned = f64::from(before.learned) / old.learned;
    assert!((learned - f64::from(after.learned) / new.learned).abs() > 1e-2);
}

/// What the other parts leave of a score is the learned cosine, which is served alone without a hybrid.
#[test]
fn the_parts_are_what_was_added_to_the_learned_score() {
    let [hybrid, alone] = ["true", "false"].map(|hybrid| {
        let setup = setup(&format!("added-{hybrid}"));
        for examples in [many(0, 6), many(6, 3)] {
            learn(&setup, examples, settings(&[("hybrid", hybrid)]), cpu(2));
        }
        setup
    });
    for options in [cpu(1), gpu()] {
        let [hybrid, alone] = [&hybrid, &alone]
            .map(|setup| decide(setup, "which one does photo number 1 2", options.clone()));
        assert_eq!(hybrid.ranked.len(), 9);
        for ranked in &hybrid.ranked {
            let same = alone
                .ranked
                .iter()
                .find(|r| r.model == ranked.model)
                .unwrap();
            let (found, want) = (ranked.cosine, same.cosine);
            assert!(
                (found - want).abs() < 1e-4,
                "{}: {found}, {want}",
                ranked.model
            );
            assert!(ranked.parts.unwrap().balance != 0.0, "{ranked:?}");
        }
    }
}

/// Prompts that may not be kept as text measure once; the next update has none to fit on.
#[test]
fn strengths_stay_where_nothing_tells_better() {
    let setup = setup("stay");
    let vectors = ("replay.privacy", "embeddings");
    let (first, report) = learn(&setup, many(0, 6), settings(&[vectors]), cpu(2));
    assert!(report.hybrid.unwrap().rows > 3);
    let fitted = calibration(&setup, &first).strengths;
    assert_ne!(fitted, Strengths::default());
    let none = settings(&[("hold_out", "false"), vectors]);
    let (second, _) = learn(&setup, many(6, 3), none, cpu(2));
    assert_eq!(calibration(&setup, &second).strengths, fitted);
    // Fewer prompts than it was fitted on are added to what those told.
    let (third, report) = learn(&setup, many(0, 3), settings(&[vectors]), cpu(2));
    let (before, after) = (calibration(&setup, &second), calibration(&setup, &third));
    let added = after.rows - before.rows;
    assert!(added > 0 && added < before.rows, "{before:?} {after:?}");
    assert_eq!(report.hybrid.unwrap().rows, after.rows);
}

/// A newcomer has no prompts: its cards stand in for them.
#[test]
fn a_newcomer_is_compared_by_its_cards() {
    let setup = setup("newcomer");
    let (id, _) = learn(&setup, many(0, 6), settings(&[]), cpu(2));
    let encoder = Arc::new(Encoder::open(&setup.encoder, &cpu(1)).unwrap());
    let card = ModelCard::new("late", "Graph Machine Learning");
    Store::open(&setup.store)
        .unwrap()
        .add(&encoder, &[NewModel::from(&card)], &mut |_, _| {})
        .unwrap();
    let late = parts(&decide(&setup, "some graph", cpu(1)), "late");
    let strengths = calibration(&setup, &id).strengths;
    let cosines = [
        f64::from(late.card) / strengths.card,
        f64::from(late.exemplar) / strengths.exemplar,
    ];
    assert!((cosines[0] - cosines[1]).abs() < 1e-3, "{cosines:?}");
    assert_eq!(late.domain, 0.0, "its domain has no prompt");
    assert_eq!(late.balance, 0.0, "no experience brought it");
}

/// A centroid of one prompt tells of it.
#[test]
fn a_forgotten_prompt_leaves_the_centroid() {
    let setup = setup("forget");
    learn(
        &setup,
        many(0, 6),
        settings(&[("replay.ratio", "1")]),
        cpu(2),
    );
    let prompt = "route french number 0 1";
    let strengths = |setup: &Setup| {
        let id = Store::open(&setup.store).unwrap().current().unwrap();
        calibration(setup, &id).strengths
    };
    let of = |setup: &Setup| {
        let (p, s) = (
            parts(&decide(setup, prompt, cpu(1)), "model-0"),
            strengths(setup),
        );
        (
            f64::from(p.card) / s.card,
            f64::from(p.exemplar) / s.exemplar,
        )
    };
    let (card, exemplar) = of(&setup);
    assert!((card - exemplar).abs() > 1e-2);
    // What was held out is a part of no centroid.
    let store = Store::open(&setup.store).unwrap();
    let kept = remembered(&store, &store.current().unwrap()).unwrap();
    let held = kept.held_out.iter().find(|entry| entry.model == 0).unwrap();
    forget(&store, &held.query_sha256).unwrap();
    assert_eq!(of(&setup), (card, exemplar));
    forget(&Store::open(&setup.store).unwrap(), prompt).unwrap();
    let (card, exemplar) = of(&setup);
    assert!((card - exemplar).abs() < 1e-3, "{card} {exemplar}");
}

#[test]
fn what_may_not_be_kept_is_not() {
    let kept = |pairs: &[(&str, &str)]| {
        let setup = setup("kept");
        let (id, report) = learn(&setup, many(0, 6), settings(pairs), cpu(2));
        let has = |name: &str| setup.store.join(id.as_str()).join(name).exists();
        (
            [
                "calibration.json",
                "cards.safetensors",
                "exemplars.safetensors",
            ]
            .map(has),
            report.hybrid.is_some(),
            decide(&setup, "a photo", cpu(1)).ranked[0].parts.is_some(),
        )
    };
    assert_eq!(kept(&[]), ([true; 3], true, true));
    let hashes = kept(&[("replay.privacy", "hashes")]);
    assert_eq!(hashes, ([true, true, false], true, true));
    assert_eq!(kept(&[("hybrid", "false")]), ([false; 3], false, false));
}

/// A generation that kept no cards has children without a hybrid.
#[test]
fn a_parent_without_cards_has_no_hybrid_child() {
    let setup = setup("without");
    learn(&setup, many(0, 6), settings(&[("hybrid", "false")]), cpu(2));
    let (_, report) = learn(&setup, many(0, 6), settings(&[]), cpu(2));
    assert!(report.hybrid.is_none());
}

#[test]
fn damage_is_named() {
    let setup = setup("damage");
    let (id, _) = learn(&setup, many(0, 6), settings(&[]), cpu(2));
    let folder = setup.store.join(id.as_str());
    fs::write(folder.join("calibration.json"), b"{}").unwrap();
    let error = Store::open(&setup.store).unwrap().check(&id).unwrap_err();
    assert!(error.to_string().contains("calibration.json"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Mismatch);
}
