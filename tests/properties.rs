//! What must hold for every prompt, batch, order, thread count and device.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{Folder, copied_store, cpu, devices, store};
#[cfg(feature = "gpu")]
use hubrouter::DeviceVariant;
use hubrouter::{Decision, Encoder, ErrorKind, ModelId, Options, Request, Router, Store};

/// Lengths from one word to past the limit, in an order that mixes them.
const PROMPTS: [&str; 9] = [
    "translate",
    "I need a model that can transcribe a podcast episode and tell the speakers apart.",
    "ok?",
    "Which model detects defects on images of printed circuit boards taken in a factory at night?",
    "Übersetze „Guten Morgen“ ins Japanische.",
    "summarize summarize summarize",
    "Given the text of an email, decide whether it is spam. Then say which words made you think so, \
     in one sentence, without repeating the email and without mentioning its sender by name.",
    "画像の中の猫を見つけてください",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9",
];

fn long_prompt() -> String {
    "and then the invoice is checked again ".repeat(40)
}

fn requests() -> Vec<Request> {
    let mut requests: Vec<Request> = PROMPTS.iter().map(|prompt| Request::new(*prompt)).collect();
    requests.insert(3, Request::new(long_prompt()));
    requests
}

/// Ids with the bits of scores and probabilities; the bits of domain scores.
type Bits = (Vec<(ModelId, u32, u32)>, Vec<u32>);

/// Ids and the bits of scores, probabilities and domain scores.
fn bits(decision: &Decision) -> Bits {
    let ranked = decision
        .ranked
        .iter()
        .map(|r| (r.id, r.score.to_bits(), r.probability.to_bits()));
    (
        ranked.collect(),
        decision
            .domains
            .iter()
            .map(|domain| domain.score.to_bits())
            .collect(),
    )
}

fn all(router: &Router, requests: &[Request]) -> Vec<Bits> {
    router
        .route_batch(requests)
        .iter()
        .map(|decision| bits(decision.as_ref().unwrap()))
        .collect()
}

fn company_and_order_do_not_matter(options: Options, requests: &[Request]) {
    let router = Router::open(store(), options).unwrap();
    let together = all(&router, requests);
    for (request, want) in requests.iter().zip(&together) {
        assert_eq!(
            &bits(&router.route(request).unwrap()),
            want,
            "{:?}",
            request.prompt
        );
    }
    let mut backwards: Vec<Request> = requests.to_vec();
    backwards.reverse();
    let mut got = all(&router, &backwards);
    got.reverse();
    assert_eq!(got, together);
    // In the middle of many others, over several chunks.
    let mut crowd = Vec::new();
    for request in requests {
        crowd.extend(std::iter::repeat_n(
            Request::new("some company of another length"),
            7,
        ));
        crowd.push(request.clone());
    }
    let crowd = all(&router, &crowd);
    for (i, want) in together.iter().enumerate() {
        assert_eq!(&crowd[i * 8 + 7], want);
    }
}

#[test]
fn a_prompt_is_answered_the_same_alone_and_in_any_batch_on_the_cpu() {
    for threads in [1, 2, 3] {
        company_and_order_do_not_matter(cpu(threads), &requests());
    }
}

/// Those that differ on the adapter of the tests; `tests/matrices.sh` has one with matrix units.
#[cfg(feature = "gpu")]
fn variants() -> Vec<DeviceVariant> {
    let mut variants = vec![DeviceVariant::Skinny, DeviceVariant::Tiled];
    if std::env::var_os("HUBROUTER_TEST_MATRICES").is_some() {
        variants.extend([DeviceVariant::Matrix, DeviceVariant::Fast]);
    }
    variants
}

/// The cosine of two vectors.
#[cfg(feature = "gpu")]
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(feature = "gpu")]
#[test]
fn each_variant_has_the_vectors_of_the_cpu() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/all-MiniLM-L6-v2");
    let prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[4]];
    let of = |options: &Options| -> Vec<Vec<f32>> {
        let vectors = Encoder::open(folder, options).unwrap().embed(&prompts);
        vectors.into_iter().map(Result::unwrap).collect()
    };
    let want = of(&cpu(2));
    for variant in variants() {
        let bound = match variant {
            DeviceVariant::Fast => 1e-5,
            _ => 2e-6,
        };
        for (a, b) in of(&common::gpu().device_variant(variant)).iter().zip(&want) {
            let far = 1.0 - cosine(a, b);
            assert!(far < bound, "{variant}: {far}");
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn a_forced_variant_answers_a_prompt_the_same_alone_and_in_any_batch_on_the_gpu() {
    // Few and short: a software adapter is slow.
    let requests: Vec<Request> = [0, 1, 2, 4].map(|i| Request::new(PROMPTS[i])).to_vec();
    for variant in variants() {
        let options = common::gpu().device_variant(variant);
        company_and_order_do_not_matter(options, &requests);
    }
}

/// Alone a prompt takes the kernels for few rows, in company those for many.
#[cfg(feature = "gpu")]
#[test]
fn company_changes_a_prompt_by_its_last_bits_alone_on_the_gpu() {
    let encoder = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/all-MiniLM-L6-v2");
    let encoder = Encoder::open(encoder, &common::gpu()).unwrap();
    let long = long_prompt();
    let prompts = [PROMPTS[0], PROMPTS[1], &long, PROMPTS[4]];
    let together = encoder.embed(&prompts);
    let mut changed = false;
    for (prompt, in_company) in prompts.iter().zip(together) {
        let (a, b) = (
            encoder.embed(&[prompt]).remove(0).unwrap(),
            in_company.unwrap(),
        );
        let cosine = cosine(&a, &b);
        assert!(cosine > 1.0 - 2e-6, "{prompt:?}: {cosine}");
        changed |= a != b;
    }
    assert!(changed, "the batch took the kernels of a prompt alone");
    // The best model stays.
    let router = Router::open(store(), common::gpu()).unwrap();
    let requests: Vec<Request> = prompts.map(Request::new).to_vec();
    for (request, in_company) in requests.iter().zip(router.route_batch(&requests)) {
        let (alone, in_company) = (router.route(request).unwrap(), in_company.unwrap());
        assert_eq!(alone.ranked[0].id, in_company.ranked[0].id);
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let one = all(&Router::open(store(), cpu(1)).unwrap(), &requests());
    for threads in [2, 3, 5] {
        assert_eq!(
            all(&Router::open(store(), cpu(threads)).unwrap(), &requests()),
            one
        );
    }
}

#[cfg(feature = "gpu")]
#[test]
fn cpu_and_gpu_agree() {
    let on_cpu = Router::open(store(), cpu(2)).unwrap();
    let on_gpu = Router::open(store(), common::gpu()).unwrap();
    for prompt in [PROMPTS[1], PROMPTS[4]] {
        // The whole hub: every score is compared.
        let request = Request::new(prompt).top(usize::MAX);
        let (a, b) = (
            on_cpu.route(&request).unwrap(),
            on_gpu.route(&request).unwrap(),
        );
        let mut scores = vec![0.0f32; a.ranked.len()];
        a.ranked
            .iter()
            .for_each(|r| scores[r.id.0 as usize] = r.cosine);
        for ranked in &b.ranked {
            assert!(
                (ranked.cosine - scores[ranked.id.0 as usize]).abs() < 1e-4,
                "{ranked:?}"
            );
        }
    }
}

#[test]
fn the_ranking_is_total_and_its_numbers_belong_together() {
    let router = Router::open(store(), cpu(2)).unwrap();
    let request = Request::new(PROMPTS[3]).top(usize::MAX);
    let decision = router.route(&request).unwrap();
    assert_eq!(decision.ranked.len(), 2127);
    let mut ids: Vec<u32> = decision.ranked.iter().map(|ranked| ranked.id.0).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..2127), "every model once");
    for pair in decision.ranked.windows(2) {
        let ordered = pair[0].score > pair[1].score
            || (pair[0].score == pair[1].score && pair[0].id < pair[1].id);
        assert!(ordered, "{pair:?}");
    }
    let total: f64 = decision
        .ranked
        .iter()
        .map(|ranked| f64::from(ranked.probability))
        .sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
    let domains: f64 = decision
        .domains
        .iter()
        .map(|domain| f64::from(domain.probability))
        .sum();
    assert!((domains - 1.0).abs() < 1e-5, "{domains}");
    assert_eq!(decision.domains.len(), 58);
    let margin = decision.ranked[0].score - decision.ranked[1].score;
    assert_eq!(decision.margin, Some(margin));
    // The bundled generation has a memory: one strength lies between cosines and learned parts.
    let first = &decision.ranked[0];
    let strength = first.parts.unwrap().learned / first.cosine;
    for ranked in &decision.ranked {
        let p = ranked.parts.unwrap();
        let sum = p.learned + p.memory + p.words;
        assert!((sum - ranked.score).abs() < 1e-4, "{ranked:?}");
        let learned = strength * ranked.cosine;
        assert!((learned - p.learned).abs() < 1e-3, "{ranked:?}");
        assert!(ranked.cosine.abs() <= 1.00001, "{ranked:?}");
    }
    // What few asked for is the beginning of what all asked for, by another way on the device.
    for top in [0, 1, 10, 128, 129] {
        let few = router.route(&request.clone().top(top)).unwrap();
        assert_eq!(few.ranked.len(), top);
        let same = few
            .ranked
            .iter()
            .zip(&decision.ranked)
            .all(|(a, b)| a.id == b.id && a.score == b.score);
        assert!(same, "top {top}");
        assert_eq!(few.margin, Some(margin));
    }
}

#[test]
fn truncation_is_reported() {
    let router = Router::open(store(), cpu(1)).unwrap();
    let long = router.route(&Request::new(long_prompt())).unwrap();
    assert!(long.truncated && long.tokens == 128 && router.max_tokens() == 128);
    let short = router.route(&Request::new("short")).unwrap();
    assert!(!short.truncated && short.tokens == 3);
    // What was cut off does not matter.
    let longer = router
        .route(&Request::new(long_prompt() + "and something else"))
        .unwrap();
    assert_eq!(bits(&longer), bits(&long));
}

#[test]
fn an_empty_prompt_is_an_error_and_spoils_only_itself() {
    for options in devices() {
        let router = Router::open(store(), options).unwrap();
        let alone = router.route(&Request::new("hello")).unwrap();
        let answers = router.route_batch(&[
            Request::new(""),
            Request::new("hello").prompt_id("x"),
            Request::new(" \n\t"),
            Request::new("\u{1}\u{2}"),
        ]);
        for i in [0, 2, 3] {
            let error = answers[i].as_ref().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        }
        let good = answers[1].as_ref().unwrap();
        assert_eq!((bits(good), good.prompt_id.as_str()), (bits(&alone), "x"));
        assert!(router.route_batch(&[]).is_empty());
    }
}

#[test]
fn a_retired_model_is_never_returned() {
    let folder = Folder::new("retired");
    let path = copied_store(&folder);
    let router = Router::open(&path, cpu(1)).unwrap();
    let request = Request::new(PROMPTS[1]);
    let before = router.route(&request).unwrap();
    let best = before.ranked[0].model.to_string();
    let id = Store::open(&path).unwrap().retire(&best).unwrap();
    router.install(&id).unwrap();
    let after = router.route(&request).unwrap();
    assert_eq!(after.revisions.generation, id);
    // Everybody else moves up by one, with the same score.
    for (a, b) in after.ranked.iter().zip(&before.ranked[1..]) {
        assert_eq!((a.id, a.score), (b.id, b.score));
        assert!(a.probability > b.probability);
    }
    let whole = router.route(&request.clone().top(usize::MAX)).unwrap();
    assert_eq!(whole.ranked.len(), 2126);
    assert!(whole.ranked.iter().all(|ranked| *ranked.model != *best));
    assert_eq!(router.rollback().unwrap(), before.revisions.generation);
    assert_eq!(bits(&router.route(&request).unwrap()), bits(&before));
}

#[test]
fn a_hub_without_anybody_left_says_so() {
    let folder = Folder::new("nobody");
    let path = folder.join("store");
    let encoder = Arc::new(Encoder::open(common::bundle(), &cpu(1)).unwrap());
    let store = Store::create(&path).unwrap();
    let model = hubrouter::NewModel::new(hubrouter::Model::new("only", "a domain"), Vec::new());
    store
        .build(&encoder, &[model], "test", &mut |_, _| {})
        .unwrap();
    let options = cpu(1).encoder(common::bundle());
    let decision = Router::open(&path, options.clone())
        .unwrap()
        .route(&Request::new("hello"))
        .unwrap();
    assert_eq!((decision.ranked.len(), decision.margin), (1, None));
    assert!((decision.ranked[0].probability - 1.0).abs() < 1e-6);
    store.retire("only").unwrap();
    let router = Router::open(&path, options).unwrap();
    let error = router.route(&Request::new("hello")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoCandidate);
}

#[test]
fn scores_do_not_depend_on_the_length_of_rows_v28() {
    // Property of carve.md V28: only directions of E matter. A card given twice has the same
    // direction as once.
    let folder = Folder::new("directions");
    let encoder = Arc::new(Encoder::open(common::bundle(), &cpu(1)).unwrap());
    let model = |name: &str, cards: usize| {
        let text = "A model that finds names in text.".to_owned();
        hubrouter::NewModel::new(hubrouter::Model::new(name, "x"), vec![text; cards])
    };
    let store = Store::create(folder.join("store")).unwrap();
    store
        .build(
            &encoder,
            &[model("once", 1), model("twice", 2)],
            "test",
            &mut |_, _| {},
        )
        .unwrap();
    let router = Router::open(folder.join("store"), cpu(1).encoder(common::bundle())).unwrap();
    let decision = router.route(&Request::new("Who is mentioned?")).unwrap();
    assert!((decision.ranked[0].score - decision.ranked[1].score).abs() < 1e-5);
}
