//! Confidence, abstaining and explanations of the bundled router.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use common::{Folder, bundle, copied_store, copy, cpu, devices, fixture, store};
use hubrouter::learn::measure_confidence;
use hubrouter::{
    AbstainReason, Calibrated, Decision, Encoder, ErrorKind, GenerationId, Model, NewModel, Policy,
    PolicyHandle, Request, Router, Store,
};
use serde_json::{Value, json};

/// Prompts that the hub is for, in other words than those of its benchmark.
const OWN: [&str; 12] = [
    "Translate this letter into Spanish.",
    "Which bird is singing in this recording?",
    "Find the cats in this picture.",
    "Is this review positive or negative?",
    "Generate an image of a castle at night",
    "Write down what is said in this recording.",
    "Remove the background from my photo",
    "Answer questions about a PDF",
    "Which words in this text are names of people?",
    "Turn this paragraph into speech with a calm voice.",
    "Estimate the depth of every pixel of this photo.",
    "Summarise this news article in two sentences.",
];

fn router() -> Router {
    Router::open(store(), cpu(1)).unwrap()
}

fn compiled(router: &Router, policy: &str) -> PolicyHandle {
    let policy: Policy = serde_json::from_str(policy).unwrap();
    router.compile(&policy).unwrap()
}

fn reason(decision: &Decision) -> Option<AbstainReason> {
    decision
        .abstained
        .as_ref()
        .map(|abstained| abstained.reason)
}

/// A copy of the bundled store, with its encoder beside it.
fn bundled_copy(folder: &Folder) -> (PathBuf, GenerationId) {
    let target = folder.join("cmrbench");
    copy(&store(), &target);
    copy(&bundle(), &folder.join("all-MiniLM-L6-v2"));
    let id = Store::open(&target).unwrap().current().unwrap();
    (target, id)
}

/// The half of the foreign prompts that is kept for this, by kind.
fn foreign() -> BTreeMap<String, Vec<Request>> {
    let text = std::fs::read_to_string(fixture("out_of_distribution.jsonl")).unwrap();
    let mut kinds: BTreeMap<String, Vec<Request>> = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["half"] == "test" {
            let kind = kinds.entry(line["kind"].as_str().unwrap().to_owned());
            let request = Request::new(line["prompt"].as_str().unwrap()).top(1);
            kind.or_default().push(request);
        }
    }
    kinds
}

fn strangeness(router: &Router, requests: &[Request]) -> f64 {
    let decisions = router.route_batch(requests).into_iter();
    let found = decisions.map(|decision| {
        let confidence = decision.unwrap().confidence.unwrap();
        f64::from(confidence.out_of_distribution)
    });
    let found: Vec<f64> = found.collect();
    found.iter().sum::<f64>() / found.len() as f64
}

/// `out_of_distribution` is the share of held-out prompts that are nearer, so its mean over foreign
/// prompts is the area under the ROC curve of foreign against held-out ones.
#[test]
fn foreign_prompts_are_told_from_held_out_ones() {
    let router = router();
    let kinds = foreign();
    assert_eq!(kinds.len(), 10);
    let mut sum = 0.0;
    for (kind, requests) in &kinds {
        assert_eq!(requests.len(), 25);
        let area = strangeness(&router, requests);
        assert!(area > 0.85, "{kind}: {area}");
        sum += area;
    }
    let area = sum / kinds.len() as f64;
    assert!(area > 0.95, "{area}");
    // Prompts that the hub is for are not far.
    let own: Vec<Request> = OWN.map(Request::new).into();
    let area = strangeness(&router, &own);
    assert!(area < 0.75, "{area}");
}

/// The record of the bundled generation is that of its command, and no part of the generation.
#[test]
fn the_bundled_record_is_made_again_by_the_command() {
    let folder = Folder::new("calibration");
    let (path, id) = bundled_copy(&folder);
    let store = Store::open(&path).unwrap();
    let before = store.calibration(&id).unwrap().unwrap();
    assert!(before.held_out && before.prompts == 512);
    std::fs::remove_file(path.join(id.as_str()).join("confidence.json")).unwrap();
    assert_eq!(store.calibration(&id).unwrap(), None);
    let again = measure_confidence(&store, &id, None, &cpu(1)).unwrap();
    assert_eq!(store.calibration(&id).unwrap(), Some(again.clone()));
    // Another CPU may round otherwise.
    let near = |a: &Calibrated, b: &Calibrated| {
        (a.slope - b.slope).abs() < 0.01
            && (a.offset - b.offset).abs() < 0.02
            && a.right.abs_diff(b.right) <= 2
    };
    assert!(near(&before.domain, &again.domain) && near(&before.model, &again.model));
    for risk in [5.0, 10.0, 20.0] {
        let [a, b] = [&before, &again].map(|c| c.least_confidence(risk));
        assert!((a - b).abs() < 0.01, "{risk}: {a}, {b}");
    }
    assert!(before.domain.error < 6.0 && before.domain.softmax_error > before.domain.error);
    assert!(before.model.error < 7.0 && before.model.softmax_error > 10.0);
    // The softmax was too sure.
    assert!(before.domain.slope < 1.0 && before.model.offset < 0.0);
    assert!(store.check(&id).is_ok());
}

#[test]
fn a_confidence_does_not_depend_on_the_company_or_much_on_the_device() {
    let requests: Vec<Request> = OWN.map(Request::new).into();
    let mut first: Option<Vec<Decision>> = None;
    for options in devices() {
        let router = Router::open(store(), options).unwrap();
        let batch = router.route_batch(&requests).into_iter();
        let batch: Vec<Decision> = batch.map(Result::unwrap).collect();
        for (request, decision) in requests.iter().zip(&batch) {
            let alone = router.route(request).unwrap();
            assert_eq!(alone.confidence, decision.confidence);
            let sure = decision.confidence.unwrap();
            for share in [sure.domain, sure.model, sure.out_of_distribution, sure.far] {
                assert!((0.0..=1.0).contains(&share), "{sure:?}");
            }
            assert_eq!(decision.abstained, None);
        }
        for (a, b) in first.iter().flatten().zip(&batch) {
            let (a, b) = (a.confidence.unwrap(), b.confidence.unwrap());
            assert!((a.domain - b.domain).abs() < 0.01 && (a.far - b.far).abs() < 0.02);
        }
        first.get_or_insert(batch);
    }
}

#[test]
fn thresholds_withhold_answers_and_show_the_ranking() {
    let router = router();
    let request = Request::new(OWN[0]).top(3);
    let plain = router.route(&request).unwrap();
    let sure = plain.confidence.unwrap();
    let within = |policy: &str| {
        router
            .route_within(&request, &compiled(&router, policy))
            .unwrap()
    };
    let below = f64::from(sure.domain) - 0.01;
    let answered = within(&format!(r#"{{"abstain": {{"min_confidence": {below}}}}}"#));
    assert_eq!((reason(&answered), answered.confidence), (None, Some(sure)));
    let above = f64::from(sure.domain) + 0.01;
    let withheld = within(&format!(r#"{{"abstain": {{"min_confidence": {above}}}}}"#));
    assert_eq!(reason(&withheld), Some(AbstainReason::LowConfidence));
    assert_eq!(
        (&withheld.ranked, withheld.margin),
        (&plain.ranked, plain.margin)
    );
    let far = f64::from(sure.out_of_distribution);
    let out = within(&format!(r#"{{"abstain": {{"max_ood": {}}}}}"#, far - 0.01));
    assert_eq!(reason(&out), Some(AbstainReason::OutOfDistribution));
    let near = within(&format!(r#"{{"abstain": {{"max_ood": {}}}}}"#, far + 0.01));
    assert_eq!(reason(&near), None);
    // A risk is the confidence that keeps it.
    let calibration = router.store().calibration(&router.generation()).unwrap();
    let calibration = calibration.unwrap();
    for risk in [0.5, 2.0, 10.0, 25.0] {
        let decision = within(&format!(r#"{{"abstain": {{"risk": {risk}}}}}"#));
        let low = f64::from(sure.domain) < calibration.least_confidence(risk);
        assert_eq!(reason(&decision).is_some(), low, "{risk}");
    }
    let json = serde_json::to_value(&withheld).unwrap();
    assert_eq!(json["abstained"]["reason"], "low_confidence");
    assert!(
        json["abstained"]["detail"]
            .as_str()
            .unwrap()
            .contains("at least")
    );
    assert!(
        serde_json::to_value(&plain)
            .unwrap()
            .get("abstained")
            .is_none()
    );
}

#[test]
fn a_fallback_answers_for_a_withheld_decision() {
    let router = router();
    let policy = compiled(
        &router,
        r#"{"abstain": {"max_ood": 0.99}, "fallbacks": ["price <= 1", "name = gpt2"]}"#,
    );
    let noise = Request::new("jkl; asdf qwer uiop zxcv").top(3);
    let requests = [Request::new(OWN[0]).top(3), noise.clone()];
    let [own, noise] = router
        .route_batch_within(&requests, &policy)
        .try_into()
        .unwrap();
    let (own, noise) = (own.unwrap(), noise.unwrap());
    assert_eq!(reason(&own), None);
    assert_eq!(own.ranked, router.route(&requests[0]).unwrap().ranked);
    assert_eq!(reason(&noise), Some(AbstainReason::OutOfDistribution));
    let record = noise.policy.unwrap();
    assert_eq!(record.fallback.as_deref(), Some("name = gpt2"));
    assert_eq!(&*noise.ranked[0].model, "gpt2");
    assert_eq!(noise.ranked.len(), 1);
    // How sure the withheld answer was.
    assert_eq!(
        noise.confidence,
        router.route(&requests[1]).unwrap().confidence
    );
    // Where nothing meets the constraint, the fallback's answer is final.
    let policy = compiled(
        &router,
        r#"{"where": "price <= 1", "abstain": {"min_confidence": 1}, "fallbacks": ["name = gpt2"]}"#,
    );
    let decision = router.route_within(&requests[0], &policy).unwrap();
    assert_eq!(
        (reason(&decision), &*decision.ranked[0].model),
        (None, "gpt2")
    );
}

#[test]
fn nothing_eligible_is_an_abstention_where_that_is_asked_for() {
    let router = router();
    let request = Request::new(OWN[0]);
    let strict = compiled(&router, r#"{"where": "price <= 1"}"#);
    let error = router.route_within(&request, &strict).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoCandidate);
    let policy = compiled(&router, r#"{"where": "price <= 1", "abstain": {}}"#);
    let requests = [request, Request::new(" ")];
    let [none, empty] = router
        .route_batch_within(&requests, &policy)
        .try_into()
        .unwrap();
    assert_eq!(empty.unwrap_err().kind(), ErrorKind::InvalidRequest);
    let none = none.unwrap();
    assert_eq!(reason(&none), Some(AbstainReason::NothingEligible));
    assert!(none.ranked.is_empty() && none.domains.is_empty() && none.confidence.is_none());
    assert!(none.tokens > 4 && none.margin.is_none());
    let record = none.policy.unwrap();
    assert_eq!(record.eligible, 0);
    let excluded = record.excluded.iter().map(|part| (&*part.by, part.models));
    assert_eq!(excluded.collect::<Vec<_>>(), [("price <= 1", 2127)]);
}

#[test]
fn without_a_good_record_there_is_no_confidence() {
    let folder = Folder::new("no-record");
    let path = copied_store(&folder);
    let router = Router::open(&path, cpu(1)).unwrap();
    let request = Request::new(OWN[0]);
    assert_eq!(router.route(&request).unwrap().confidence, None);
    let policy: Policy = serde_json::from_str(r#"{"abstain": {"risk": 10}}"#).unwrap();
    let error = router.compile(&policy).unwrap_err();
    assert!(error.to_string().contains("generation measure"), "{error}");
    assert!(router.explain(&request).unwrap().near_models.is_empty());
    let store = Store::open(&path).unwrap();
    let id = store.current().unwrap();
    let few = measure_confidence(&store, &id, None, &cpu(1)).unwrap_err();
    assert!(few.to_string().contains("--examples"), "{few}");

    let folder = Folder::new("records");
    let (path, id) = bundled_copy(&folder);
    let record = path.join(id.as_str()).join("confidence.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(
        &record,
        text.replacen("\"prompts\": 512", "\"prompts\": 513", 1),
    )
    .unwrap();
    let store = Store::open(&path).unwrap();
    assert!(store.calibration(&id).is_err());
    let decision = Router::open(&path, cpu(1))
        .unwrap()
        .route(&request)
        .unwrap();
    assert_eq!(decision.confidence, None);
    std::fs::write(&record, &text).unwrap();
    let good = store.calibration(&id).unwrap();
    // Children with the same vectors inherit it, with the generation that was measured.
    store.rename("gpt2", "gpt-2").unwrap();
    let retired = store.retire("gpt-2").unwrap();
    let inherited = store.calibration(&retired).unwrap().unwrap();
    assert_eq!(inherited.measured_on, Some(id));
    let good = good.unwrap();
    assert_eq!(
        (inherited.curve, inherited.domain),
        (good.curve, good.domain)
    );
}

#[test]
fn explanations_name_what_is_behind_a_decision() {
    let router = router();
    let request = Request::new(OWN[1]).top(1);
    let explained = router.explain(&request).unwrap();
    let two = router.route(&request.clone().top(2)).unwrap();
    assert_eq!(explained.decision.ranked, two.ranked[..1]);
    let second = explained.runner_up.as_ref().unwrap();
    assert_eq!(second.model, two.ranked[1].model);
    assert_eq!(Some(second.gap), two.margin);
    let parts = second.parts.unwrap();
    assert!((parts.learned + parts.memory + parts.words - second.gap).abs() < 1e-4);
    assert_eq!(
        (explained.near_models.len(), explained.near_domains.len()),
        (5, 5)
    );
    assert!(
        explained
            .near_models
            .is_sorted_by(|a, b| a.distance <= b.distance)
    );
    assert!(explained.near_domains[0].domain.starts_with("Audio"));
    assert!(explained.near_domains.iter().all(|near| near.prompts > 0));
    assert!(explained.excluded.is_empty() && explained.strengths.is_some());
    let introduced = explained.introduced.as_ref().unwrap();
    assert_eq!((introduced.update, introduced.certain), (Some(1), false));
    assert_eq!(introduced.generation, router.generation());
    let policy = compiled(
        &router,
        r#"{"where": "domain has audio", "deny": ["gpt2"]}"#,
    );
    let within = router.explain_within(&request, &policy).unwrap();
    let excluded: Vec<&str> = within.excluded.iter().map(|part| &*part.by).collect();
    assert_eq!(excluded, ["deny gpt2", "domain has audio"]);
    let json = serde_json::to_value(&explained).unwrap();
    assert_eq!(
        json["ranked"][0]["model"],
        json!(explained.decision.ranked[0].model)
    );
    let back: hubrouter::Explanation = serde_json::from_value(json).unwrap();
    assert_eq!(back, explained);
}

#[test]
fn a_model_is_traced_to_the_change_that_brought_it() {
    let folder = Folder::new("introduced");
    let store = Store::open(copied_store(&folder)).unwrap();
    let first = store.current().unwrap();
    let encoder = Arc::new(Encoder::open(folder.join("all-MiniLM-L6-v2"), &cpu(1)).unwrap());
    let card = vec!["Tells which owl hoots in a recording of a forest at night.".to_owned()];
    let card = NewModel::new(Model::new("acme/owls", "Audio Owl Spotting"), card);
    let second = store.add(&encoder, &[card], &mut |_, _| {}).unwrap();
    store.rename("gpt2", "gpt-2").unwrap();
    let router = Router::open(store.root(), cpu(1)).unwrap();
    let owls = Request::new("Tells which owl hoots in a recording of a forest at night.");
    let introduced = |request: &Request| {
        let explained = router.explain(request).unwrap();
        (
            explained.decision.ranked[0].model.to_string(),
            explained.introduced.unwrap(),
        )
    };
    let (model, owl) = introduced(&owls);
    assert_eq!((model.as_str(), &owl.generation), ("acme/owls", &second));
    assert_eq!((owl.update, owl.certain), (None, true));
    assert!(owl.made_by.contains("hub add acme/owls"), "{owl:?}");
    let (_, old) = introduced(&Request::new(OWN[0]));
    assert_eq!((&old.generation, old.certain), (&first, true));
}
