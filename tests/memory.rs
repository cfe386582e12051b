//! The memory of a generation through the public interface: what it learns and forgets, how it serves,
//! how the gate measures it.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use common::toy::{self, DOMAINS, Setup, examples, learn, settings, setup};
use common::{Folder, copy, cpu};
use hubrouter::learn::{
    Control, Example, Learner, Outcome, Report, Settings, forget, remembered, would_forget,
};
use hubrouter::{
    Decision, Encoder, ErrorKind, GenerationId, ModelCard, NewModel, Options, Ranked, Request,
    Router, Store,
};
use safetensors::SafeTensors;

/// Nothing is trained and nothing held out.
fn memory(pairs: &[(&str, &str)]) -> Settings {
    let mut settings = Settings::memory();
    for (key, value) in [&[("hold_out", "false")], pairs].concat() {
        settings.set(key, value).unwrap();
    }
    settings
}

/// The toy's forms with a number behind them.
fn numbered(first: usize, count: usize, numbers: std::ops::Range<usize>) -> Vec<Example> {
    let numbered = |example: Example, n: usize| {
        let mut numbered = Example::new(format!("{} {n}", example.prompt), example.model_name);
        numbered.domain = example.domain;
        numbered
    };
    let of = |n| {
        let all = examples(first, count).into_iter();
        all.map(move |example| numbered(example, n))
    };
    numbers.flat_map(of).collect()
}

fn router(setup: &Setup, options: Options) -> Router {
    Router::open(&setup.store, options.encoder(&setup.encoder)).unwrap()
}

fn decide(setup: &Setup, prompt: &str, options: Options) -> Decision {
    let request = Request::new(prompt).top(100);
    router(setup, options).route(&request).unwrap()
}

fn ranked<'d>(decision: &'d Decision, model: &str) -> &'d Ranked {
    let found = decision.ranked.iter().find(|r| &*r.model == model);
    found.unwrap()
}

/// How many examples have their model first.
fn right(setup: &Setup, examples: &[Example]) -> usize {
    let router = router(setup, cpu(1));
    let found = |example: &&Example| {
        let decision = router.route(&Request::new(example.prompt.as_str()));
        *decision.unwrap().ranked[0].model == *example.model_name
    };
    examples.iter().filter(found).count()
}

fn current(setup: &Setup) -> GenerationId {
    Store::open(&setup.store).unwrap().current().unwrap()
}

fn part(setup: &Setup, name: &str) -> Vec<u8> {
    fs::read(setup.store.join(current(setup).as_str()).join(name)).unwrap()
}

/// What the current generation's memory holds, by the models' names.
#[derive(Debug, PartialEq)]
struct Held {
    counts: BTreeMap<String, u32>,
    sums: BTreeMap<String, Vec<i64>>,
    learned: BTreeSet<(Vec<u8>, String)>,
    squares: Vec<u8>,
    words: Vec<u8>,
}

impl Held {
    fn of(setup: &Setup) -> Self {
        let store = Store::open(&setup.store).unwrap();
        let hub = store.hub(&store.current().unwrap()).unwrap();
        let names: Vec<String> = hub.iter().map(|(_, m)| m.name.to_string()).collect();
        let bytes = part(setup, "memory.safetensors");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let data = |name: &str| file.tensor(name).unwrap().data().to_vec();
        let numbers = |name: &str| -> Vec<u32> {
            let bytes = data(name);
            let four = bytes.chunks_exact(4);
            four.map(|b| u32::from_le_bytes(b.try_into().unwrap()))
                .collect()
        };
        let (counts, owners) = (numbers("prompt_counts"), numbers("prompt_models"));
        assert_eq!(counts.len(), names.len());
        let width = numbers("layers").len() * store.check(&current(setup)).unwrap().width;
        let (packed, mut rest) = (data("prompt_sums"), 0);
        let sums = counts.iter().map(|count| match count {
            0 => Vec::new(),
            _ => unpacked(&packed, &mut rest, width),
        });
        let sums = names.iter().cloned().zip(sums).collect();
        assert_eq!(rest, packed.len());
        let digests = data("prompt_digests");
        let learned = digests.chunks_exact(16).zip(owners);
        Self {
            counts: names.iter().cloned().zip(counts).collect(),
            sums,
            learned: learned
                .map(|(digest, model)| (digest.to_vec(), names[model as usize].clone()))
                .collect(),
            squares: data("prompt_squares"),
            words: part(setup, "words.safetensors"),
        }
    }
}

/// `count` numbers from `rest` on: blocks of 32, a byte for the width in bits, then these, the lowest
/// first; odd ones are negative.
fn unpacked(bytes: &[u8], rest: &mut usize, count: usize) -> Vec<i64> {
    let mut values = Vec::new();
    while values.len() < count {
        let bits = usize::from(bytes[*rest]);
        let block = &bytes[*rest + 1..][..4 * bits];
        for place in 0..32.min(count - values.len()) {
            let bit = |k: usize| {
                let at = place * bits + k;
                i64::from((block[at / 8] >> (at % 8)) & 1) << k
            };
            let value: i64 = (0..bits).map(bit).sum();
            values.push(if value % 2 == 0 {
                value / 2
            } else {
                -(value + 1) / 2
            });
        }
        *rest += 1 + 4 * bits;
    }
    values
}

#[test]
fn experiences_in_another_order_leave_the_same_memory() {
    let experiences = [
        numbered(0, 4, 0..2),
        numbered(2, 4, 2..3),
        numbered(6, 2, 0..1),
        [numbered(8, 1, 0..2), numbered(0, 1, 5..7)].concat(),
    ];
    let prompts: Vec<String> = numbered(0, 9, 7..8).into_iter().map(|e| e.prompt).collect();
    let run = |order: &[usize]| {
        let setup = setup("order");
        for place in order {
            let (_, report) = learn(&setup, experiences[*place].clone(), memory(&[]), cpu(2));
            assert!(!report.trained && report.steps == 0);
        }
        let router = router(&setup, cpu(1));
        let scores = prompts.iter().map(|prompt| {
            let decision = router.route(&Request::new(prompt.as_str()).top(9)).unwrap();
            let ranked = decision.ranked.iter();
            let scores: BTreeMap<String, f32> =
                ranked.map(|r| (r.model.to_string(), r.score)).collect();
            (decision.ranked[0].model.to_string(), scores)
        });
        (Held::of(&setup), scores.collect::<Vec<_>>())
    };
    let (want, scores) = run(&[0, 1, 2, 3]);
    assert_eq!(want.counts.values().sum::<u32>(), 32 + 16 + 8 + 8 + 8);
    assert_eq!((want.counts["model-0"], want.counts["model-8"]), (16, 8));
    for order in [[3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let (held, others) = run(&order);
        assert_eq!(held, want, "{order:?}");
        for ((best, scores), (other, others)) in scores.iter().zip(&others) {
            assert_eq!(best, other, "{order:?}");
            assert_eq!(scores.len(), others.len());
            for (model, score) in scores {
                let apart = (score - others[model]).abs();
                assert!(apart < 2e-3, "{order:?} {model}: {apart}");
            }
        }
    }
    assert_ne!(run(&[0, 1, 2]).0, want);
}

#[test]
fn a_forgotten_prompt_was_never_learned() {
    let (a, b) = (numbered(0, 6, 0..1), numbered(4, 4, 1..2));
    let run = |without: Option<usize>| {
        let setup = setup("forget");
        learn(&setup, a.clone(), memory(&[]), cpu(1));
        let mut b = b.clone();
        without.map(|place| b.remove(place));
        learn(&setup, b, memory(&[]), cpu(1));
        setup
    };
    // What is served is made of it; but cards are in half precision by then.
    let scores = |setup: &Setup| -> BTreeMap<String, f32> {
        let decision = decide(setup, &a[0].prompt, cpu(1));
        let ranked = decision.ranked.iter();
        ranked.map(|r| (r.model.to_string(), r.score)).collect()
    };
    let apart = |a: &Setup, b: &Setup| -> f32 {
        let (a, b) = (scores(a), scores(b));
        assert!(a.keys().eq(b.keys()));
        let pairs = a.values().zip(b.values());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let (want, place) = (run(Some(5)), 5);
    let forgot = |prompt: &str| {
        let setup = run(None);
        let store = Store::open(&setup.store).unwrap();
        assert_eq!(would_forget(&store, prompt).unwrap(), (0, 1));
        forget(&store, prompt, &cpu(2).encoder(&setup.encoder)).unwrap();
        assert!(would_forget(&store, prompt).is_err(), "it is gone");
        setup
    };
    let found = forgot(&b[place].prompt);
    assert_eq!(Held::of(&found), Held::of(&want));
    let served = apart(&found, &want);
    assert!(served < 1e-3, "{served}");
    let other = forgot(&b[place + 4].prompt);
    assert_eq!(b[place].model_name, b[place + 4].model_name);
    assert_ne!(Held::of(&other), Held::of(&want));
    assert!(apart(&other, &want) > 2.0 * served, "{served}");

    // All of a model's, and in the end all: as if nothing had ever come.
    let setup = run(None);
    let store = Store::open(&setup.store).unwrap();
    let options = cpu(1).encoder(&setup.encoder);
    for example in a.iter().chain(&b) {
        forget(&store, &example.prompt, &options).unwrap();
    }
    let held = Held::of(&setup);
    assert!(held.counts.values().all(|count| *count == 0));
    assert!(held.learned.is_empty() && held.squares.iter().all(|byte| *byte == 0));
    let decision = decide(&setup, &a[0].prompt, cpu(1));
    assert_eq!(decision.ranked.len(), 8);
    learn(&setup, a.clone(), memory(&[]), cpu(1));
    let again = Held::of(&setup);
    assert_eq!(again.counts["model-0"], 4);
}

#[test]
fn a_prompt_is_forgotten_by_its_digest_where_its_text_is_kept() {
    let all = numbered(0, 6, 0..1);
    let kept = [("replay.strategy", "coreset"), ("replay.ratio", "1")];
    let texts = setup("digest");
    let (id, _) = learn(&texts, all.clone(), memory(&kept), cpu(1));
    let store = Store::open(&texts.store).unwrap();
    let entries = remembered(&store, &id).unwrap().replay;
    let entry = &entries[3];
    let (hash, text) = (
        entry.query_sha256.to_uppercase(),
        entry.text.clone().unwrap(),
    );
    let options = cpu(1).encoder(&texts.encoder);
    assert_eq!(would_forget(&store, &hash).unwrap(), (1, 1));
    forget(&store, &hash, &options).unwrap();
    let want = setup("digest-want");
    let rest: Vec<Example> = all.iter().filter(|e| e.prompt != text).cloned().collect();
    assert_eq!(rest.len(), all.len() - 1);
    learn(&want, rest, memory(&kept), cpu(1));
    assert_eq!(Held::of(&texts), Held::of(&want));

    // Its text is not kept: by that it is forgotten, and by its digest not.
    for privacy in ["hashes", "embeddings"] {
        let setup = setup("digest-without");
        let pairs = [&kept[..], &[("replay.privacy", privacy)]].concat();
        learn(&setup, all.clone(), memory(&pairs), cpu(1));
        let store = Store::open(&setup.store).unwrap();
        let before = store.current().unwrap();
        let error = forget(&store, &hash, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        let says = "give the prompt itself in place of its SHA-256";
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(store.current().unwrap(), before);
        forget(&store, &text, &options).unwrap();
        assert_eq!(Held::of(&setup), Held::of(&want), "{privacy}");
    }
}

/// It was never asked: what it is compared with is what models of its domain were asked.
#[test]
fn a_newcomer_is_ranked_by_its_prior_mean() {
    let setup = setup("newcomer");
    let few = [numbered(0, 4, 0..2), numbered(0, 1, 2..9)].concat();
    learn(&setup, few, memory(&[]), cpu(1));
    let before = Held::of(&setup);
    let encoder = Arc::new(Encoder::open(&setup.encoder, &cpu(1)).unwrap());
    let store = Store::open(&setup.store).unwrap();
    for (name, domain) in [("late", DOMAINS[0]), ("alone", "Graph Machine Learning")] {
        let card = ModelCard::new(name, domain);
        store
            .add(&encoder, &[NewModel::from(&card)], &mut |_, _| {})
            .unwrap();
    }
    let held = Held::of(&setup);
    assert_eq!((held.counts["late"], held.counts["alone"]), (0, 0));
    assert_eq!(held.squares, before.squares);
    assert_eq!(held.counts["model-0"], before.counts["model-0"]);
    let prompt = "find a model for french number 0 3";
    let decision = decide(&setup, prompt, cpu(1));
    assert_eq!(decision.ranked.len(), 8);
    let memory_of = |decision: &Decision, model: &str| ranked(decision, model).parts.unwrap();
    let [late, alone] = ["late", "alone"].map(|model| memory_of(&decision, model));
    assert!(late.memory.is_finite() && late.memory != 0.0, "{late:?}");
    // Words speak for its domain, which was asked so.
    assert_eq!(late.words, memory_of(&decision, "model-0").words);
    assert!(alone.words < late.words, "{alone:?} {late:?}");
    // It does not lose to those that were asked for something else.
    assert!(late.memory > memory_of(&decision, "model-1").memory);

    store.retire("late").unwrap();
    let decision = decide(&setup, prompt, cpu(1));
    assert_eq!(decision.ranked.len(), 7);
    assert!(decision.ranked.iter().all(|r| &*r.model != "late"));
    let scores = |decision: &Decision, name: &str| {
        let ranked = ranked(decision, name);
        (ranked.score, ranked.parts)
    };
    let want = scores(&decision, "model-0");
    store.rename("model-0", "first").unwrap();
    let renamed = decide(&setup, prompt, cpu(1));
    assert_eq!(scores(&renamed, "first"), want);
    let after = Held::of(&setup);
    assert_eq!(after.sums["first"], before.sums["model-0"]);
    // What comes for it under either name is counted with what came before.
    let mut more = numbered(0, 1, 20..21);
    more[1].model_name = "first".to_owned();
    learn(&setup, more, memory(&[]), cpu(1));
    assert_eq!(
        Held::of(&setup).counts["first"],
        before.counts["model-0"] + 4
    );
}

#[cfg(feature = "gpu")]
#[test]
fn parts_add_up_and_both_devices_rank_alike() {
    let setup = setup("parts");
    for examples in [numbered(0, 6, 0..3), numbered(6, 3, 0..3)] {
        learn(&setup, examples, memory(&[]), cpu(2));
    }
    // With adapters, too.
    let trained = common::toy::setup("parts-trained");
    for examples in [numbered(0, 6, 0..2), numbered(6, 3, 0..2)] {
        learn(&trained, examples, settings(&[("epochs", "2")]), cpu(2));
    }
    for setup in [&setup, &trained] {
        let (on_cpu, on_gpu) = (router(setup, cpu(1)), router(setup, common::gpu()));
        for prompt in ["which one does photo number 1 2", "route music 4", "zzz"] {
            let request = Request::new(prompt).top(100);
            let [a, b] = [&on_cpu, &on_gpu].map(|router| router.route(&request).unwrap());
            assert_eq!(a.ranked.len(), 9);
            let total: f32 = a.ranked.iter().map(|r| r.probability).sum();
            assert!((total - 1.0).abs() < 1e-4, "{total}");
            for (a, b) in a.ranked.iter().zip(&b.ranked) {
                let (p, q) = (a.parts.unwrap(), b.parts.unwrap());
                assert!((p.learned + p.memory + p.words - a.score).abs() < 1e-4);
                assert!(p.words <= 0.0 && a.cosine.abs() <= 1.0001, "{a:?}");
                // The toy's strength over its temperature.
                assert!((p.learned - a.cosine * 0.2 / 0.08).abs() < 1e-3, "{a:?}");
                assert_eq!(a.model, b.model, "{prompt}");
                for (x, y) in [(a.score, b.score), (p.memory, q.memory), (p.words, q.words)] {
                    assert!((x - y).abs() < 2e-3, "{a:?} {b:?}");
                }
            }
            // The domains' probabilities are those of their members.
            for domain in &a.domains {
                let members = a.ranked.iter().filter(|r| r.domain == domain.domain);
                let sum: f32 = members.map(|r| r.probability).sum();
                assert!((sum - domain.probability).abs() < 1e-4, "{domain:?}");
            }
            // All of the hub is ranked on the host, a few models on the device.
            for router in [&on_cpu, &on_gpu] {
                let all = router.route(&request).unwrap();
                let few = router.route(&Request::new(prompt).top(2)).unwrap();
                for (few, all) in few.ranked.iter().zip(&all.ranked) {
                    assert_eq!((&few.model, few.score), (&all.model, all.score));
                }
            }
        }
    }
}

/// A strength is what a part counts; without memory the learned score is served alone.
#[test]
fn strengths_and_priors_are_those_of_the_settings() {
    let prompt = "which one does photo number 1 2";
    let of = |pairs: &[(&str, &str)]| {
        let setup = setup("strengths");
        learn(&setup, numbered(0, 5, 0..2), memory(pairs), cpu(1));
        decide(&setup, prompt, cpu(1))
    };
    let usual = of(&[]);
    let p = |decision: &Decision, model: &str| ranked(decision, model).parts.unwrap();
    let double = of(&[
        ("strength.memory", "0.08"),
        ("strength.words", "0.12"),
        ("strength.learned", "0.4"),
    ]);
    let (a, b) = (p(&usual, "model-1"), p(&double, "model-1"));
    for (a, b) in [
        (a.learned, b.learned),
        (a.memory, b.memory),
        (a.words, b.words),
    ] {
        assert!((2.0 * a - b).abs() < 1e-3, "{usual:?} {double:?}");
    }
    // One model has no prompt.
    let more = of(&[("strength.newcomer", "2.5")]);
    let (a, b) = (p(&usual, "model-5"), p(&more, "model-5"));
    assert!((b.memory - a.memory - 2.0).abs() < 1e-4, "{a:?} {b:?}");
    let all = of(&[("memory.prior", "all")]);
    assert!((p(&all, "model-5").memory - a.memory).abs() > 1e-4);

    let setup = setup("alone");
    let (id, report) = learn(
        &setup,
        numbered(0, 6, 0..1),
        settings(&[("memory", "false"), ("epochs", "1")]),
        cpu(1),
    );
    assert!(report.remembered.is_none() && report.trained);
    let alone = decide(&setup, prompt, cpu(1));
    assert!(alone.ranked.iter().all(|ranked| ranked.parts.is_none()));
    for name in ["memory.safetensors", "recall.safetensors", "memory.json"] {
        assert!(!setup.store.join(id.as_str()).join(name).exists());
    }
    // It kept no cards, and so its children have no memory; nothing else would learn.
    let (_, report) = learn(
        &setup,
        numbered(0, 6, 1..2),
        settings(&[("epochs", "1")]),
        cpu(1),
    );
    assert!(report.remembered.is_none());
    let options = cpu(1).encoder(&setup.encoder);
    let mut learner = Learner::open(&setup.store, None, memory(&[]), options).unwrap();
    let experience = toy::experience(numbered(0, 6, 2..3));
    let error = learner.learn(&experience, None, &mut |_| Control::Continue);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.to_string().contains("cards.safetensors"), "{error}");
}

#[test]
fn layers_are_chosen_once() {
    let setup = setup("layers");
    let layers = |bytes: &[u8]| {
        let file = SafeTensors::deserialize(bytes).unwrap();
        file.tensor("layers").unwrap().data().to_vec()
    };
    learn(
        &setup,
        numbered(0, 6, 0..1),
        memory(&[("memory.layers", "[2]")]),
        cpu(1),
    );
    assert_eq!(layers(&part(&setup, "memory.safetensors")), [1, 0, 0, 0]);
    learn(&setup, numbered(0, 6, 1..2), memory(&[]), cpu(1));
    assert_eq!(layers(&part(&setup, "recall.safetensors")), [1, 0, 0, 0]);
    let options = cpu(1).encoder(&setup.encoder);
    for (asked, says) in [
        ("[1]", "which the store's memory has"),
        ("[3]", "from 1 to 2"),
    ] {
        let settings = memory(&[("memory.layers", asked)]);
        let mut learner = Learner::open(&setup.store, None, settings, options.clone()).unwrap();
        let experience = toy::experience(numbered(0, 6, 2..3));
        let error = learner
            .learn(&experience, None, &mut |_| Control::Continue)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// The second update moves the encoder, and what the memory holds of the first moves after it.
#[test]
fn a_memory_follows_an_encoder_that_is_trained() {
    let (a, b) = (numbered(0, 6, 0..4), numbered(6, 3, 0..4));
    let train = settings(&[("hold_out", "false"), ("replay.ratio", "0.5")]);
    let setup = setup("follows");
    for examples in [&a, &b] {
        let (_, report) = learn(&setup, examples.clone(), train.clone(), cpu(2));
        assert!(report.trained && report.steps > 0);
    }
    let held = Held::of(&setup);
    assert_eq!(
        held.counts.values().sum::<u32>() as usize,
        a.len() + b.len()
    );
    let decision = decide(&setup, "zzz", cpu(1));
    assert!(
        decision
            .ranked
            .iter()
            .all(|ranked| ranked.score.is_finite())
    );
    let followed = right(&setup, &a);

    // The same encoder with all prompts seen anew.
    let anew = Setup {
        folder: Folder::new("anew"),
        store: setup.folder.join("anew"),
        encoder: setup.encoder.clone(),
    };
    copy(&setup.store, &anew.store);
    let store = Store::open(&anew.store).unwrap();
    let options = cpu(2).encoder(&setup.encoder);
    let prompts: BTreeSet<&String> = a.iter().chain(&b).map(|e| &e.prompt).collect();
    for prompt in prompts {
        forget(&store, prompt, &options).unwrap();
    }
    assert!(Held::of(&anew).learned.is_empty());
    learn(&anew, [a.clone(), b].concat(), memory(&[]), cpu(2));
    let seen = Held::of(&anew);
    assert_eq!(seen.counts, held.counts);
    assert_eq!(seen.learned, held.learned);
    assert_eq!(seen.words, held.words);
    assert_ne!(seen.sums, held.sums);
    let all_anew = right(&anew, &a);
    assert!(
        followed + a.len() / 20 >= all_anew,
        "{followed} of {}, {all_anew} when all are seen anew",
        a.len()
    );
    assert!(all_anew > a.len() / 2, "{all_anew}");
    // Sums are near to those of what is seen now, nearer than to those of what was seen before.
    let first = common::toy::setup("before");
    learn(&first, a.clone(), train, cpu(2));
    let before = Held::of(&first);
    let apart = |x: &Held, model: &str| -> i64 {
        let pairs = x.sums[model].iter().zip(&seen.sums[model]);
        pairs.map(|(a, b)| (a - b).pow(2)).sum()
    };
    for model in (0..6).map(|i| format!("model-{i}")) {
        let (now, then) = (apart(&held, &model), apart(&before, &model));
        assert!(now < then, "{model}: {now} {then}");
    }
}

#[test]
fn the_usual_recipe_trains_once_and_by_enough_examples() {
    let setup = setup("first");
    let edge = |least: &str| {
        let mut settings = settings(&[("train", "first"), ("train.least", least)]);
        settings.set("epochs", "1").unwrap();
        settings
    };
    let trained = |setup: &Setup| {
        let store = Store::open(&setup.store).unwrap();
        let manifest = store.check(&current(setup)).unwrap();
        manifest.learned.unwrap().trained
    };
    let adapter = |setup: &Setup| part(setup, "adapter.safetensors");
    let usual = Settings::edge().pairs();
    assert!(usual.contains(&("train.least".into(), 500.into())));
    // 24 examples, of which 6 are held out.
    let (_, report) = learn(&setup, numbered(0, 6, 0..1), edge("19"), cpu(1));
    assert!(!report.trained && report.steps == 0 && !trained(&setup));
    assert_eq!((report.examples, report.remembered), (18, Some(18)));
    let (_, report) = learn(&setup, numbered(0, 6, 1..2), edge("18"), cpu(1));
    assert!(report.trained && report.steps > 0 && trained(&setup));
    assert_eq!(report.remembered, Some(36));
    let want = adapter(&setup);
    let (_, report) = learn(&setup, numbered(3, 6, 2..4), edge("1"), cpu(1));
    assert!(!report.trained && report.models_added == 3 && trained(&setup));
    assert_eq!(adapter(&setup), want);
    assert_eq!(report.forgetting.unwrap().n, 12);
    // Changes of the hub change nothing of it.
    Store::open(&setup.store)
        .unwrap()
        .retire("model-5")
        .unwrap();
    assert!(trained(&setup));
    let (_, report) = learn(&setup, numbered(0, 2, 5..9), edge("1"), cpu(1));
    assert!(!report.trained);
    let (_, report) = learn(
        &setup,
        numbered(0, 2, 9..12),
        settings(&[("epochs", "1")]),
        cpu(1),
    );
    assert!(report.trained && adapter(&setup) != want, "carve");
}

fn gate(setup: &Setup, settings: Settings, examples: Vec<Example>) -> (Report, Learner) {
    let options = cpu(1).encoder(&setup.encoder);
    let mut learner = Learner::open(&setup.store, None, settings, options).unwrap();
    let outcome = learner.learn(&toy::experience(examples), None, &mut |_| Control::Continue);
    match outcome.unwrap() {
        Outcome::Learned(report) => (*report, learner),
        other => panic!("stopped: {other:?}"),
    }
}

fn held_out(pairs: &[(&str, &str)]) -> Settings {
    memory(&[&[("hold_out", "true")], pairs].concat())
}

#[test]
fn the_gate_measures_held_out_prompts_of_each_experience() {
    let setup = setup("gate");
    // A quarter up to eight, an eighth of many.
    let mut kept = 0;
    for (examples, want) in [
        (numbered(0, 6, 0..1), 6),
        (numbered(6, 3, 0..4), 8),
        (numbered(0, 6, 1..5), 12),
    ] {
        let (report, learner) = gate(&setup, held_out(&[]), examples.clone());
        assert_eq!(report.accuracy.new_after.unwrap().n, want);
        assert_eq!(report.examples, examples.len() - want);
        assert_eq!(report.held_out, kept + want);
        assert!(!report.refused);
        match kept {
            0 => {
                let unknown = report.forgetting_unknown.as_deref().unwrap();
                assert!(unknown.contains("nothing was learned before"), "{unknown}");
                assert!(report.forgetting.is_none() && report.forgetting_interval.is_none());
                assert!(report.taken_by_new_models.is_none());
            }
            _ => {
                let lost = report.forgetting.unwrap();
                let (low, high) = report.forgetting_interval.unwrap();
                assert_eq!((lost.n, report.forgetting_unknown.is_none()), (kept, true));
                assert!(low < lost.domain && lost.domain < high, "{low} {high}");
                let taken = report.taken_by_new_models.unwrap();
                assert!((0.0..=100.0).contains(&taken));
                if report.models_added == 0 {
                    assert_eq!(taken, 0.0);
                }
            }
        }
        kept += want;
        learner.commit().unwrap();
    }
    // More than any update can lose, and less than it must win.
    let more = numbered(0, 6, 9..10);
    for (most, refused) in [(101.0, false), (-101.0, true)] {
        let options = cpu(1).encoder(&setup.encoder);
        let learner = Learner::open(&setup.store, None, held_out(&[]), options).unwrap();
        let mut learner = learner.max_forgetting(most).dry_run();
        let experience = toy::experience(more.clone());
        let outcome = learner.learn(&experience, None, &mut |_| Control::Continue);
        let Outcome::Learned(report) = outcome.unwrap() else {
            panic!("stopped");
        };
        assert_eq!(report.refused, refused);
    }
}

/// A model that was asked what all others were asked is noticed.
#[test]
fn what_new_models_take_is_measured() {
    let setup = setup("taken");
    let (_, learner) = gate(&setup, held_out(&[]), numbered(0, 6, 0..2));
    learner.commit().unwrap();
    let taken = |examples: Vec<Example>| {
        let renamed = examples.into_iter().map(|mut example| {
            example.model_name = "greedy".to_owned();
            example.domain = Some("Everything Else".to_owned());
            example
        });
        let alone = held_out(&[
            ("strength.learned", "1e-3"),
            ("strength.memory", "0.1"),
            ("strength.words", "1"),
        ]);
        let (report, _) = gate(&setup, alone, renamed.collect());
        assert_eq!((report.models_added, report.forgetting.unwrap().n), (1, 8));
        let lost = report.forgetting.unwrap().domain;
        (report.taken_by_new_models.unwrap(), lost)
    };
    let (little, _) = taken(numbered(6, 3, 20..22));
    let (much, lost) = taken(numbered(0, 6, 0..4));
    assert!(much > little, "{much} {little}");
    // What it takes has another domain.
    assert!(lost > 0.0, "{lost}");
}

#[test]
fn what_cannot_be_measured_is_refused_unless_it_is_meant() {
    let setup = setup("unmeasured");
    let (report, learner) = gate(&setup, memory(&[]), numbered(0, 6, 0..1));
    assert!(!report.refused && report.held_out == 0);
    let first = learner.commit().unwrap();
    let (report, learner) = gate(&setup, held_out(&[]), numbered(0, 6, 1..2));
    assert!(report.refused && report.forgetting.is_none());
    let unknown = report.forgetting_unknown.unwrap();
    assert!(unknown.contains("no earlier prompt is kept"), "{unknown}");
    assert_eq!(learner.commit().unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(current(&setup), first);
    let options = cpu(1).encoder(&setup.encoder);
    let learner = Learner::open(&setup.store, None, held_out(&[]), options).unwrap();
    let mut learner = learner.allow_unmeasured(true);
    let experience = toy::experience(numbered(0, 6, 1..2));
    let mut go_on = |_: &_| Control::Continue;
    learner.learn(&experience, None, &mut go_on).unwrap();
    learner.commit().unwrap();
    // By what that one held out the next is measured.
    let (report, _) = gate(&setup, held_out(&[]), numbered(0, 6, 2..3));
    assert_eq!(report.forgetting.unwrap().n, 6);
}

/// Whether any file of the current generation holds `text`.
fn holds(setup: &Setup, text: &str) -> bool {
    let files = fs::read_dir(setup.store.join(current(setup).as_str())).unwrap();
    files.into_iter().any(|file| {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        bytes.windows(text.len()).any(|p| p == text.as_bytes())
    })
}

#[test]
fn the_gate_needs_no_text_and_has_nothing_where_nothing_is_kept() {
    let (a, b) = (numbered(0, 6, 0..2), numbered(6, 3, 0..2));
    let run = |privacy: &str| {
        let setup = setup("private");
        let quiet = held_out(&[("replay.privacy", privacy)]);
        let (_, learner) = gate(&setup, quiet.clone(), a.clone());
        learner.commit().unwrap();
        let kept = a.iter().filter(|e| holds(&setup, &e.prompt)).count();
        let (report, learner) = gate(&setup, quiet, b.clone());
        (setup, kept, report, learner)
    };
    let (_, kept, text, _) = run("text");
    let held = text.forgetting.unwrap().n;
    assert_eq!((kept, held), (8, 8));
    let (setup, kept, vectors, learner) = run("embeddings");
    assert_eq!(kept, 0);
    assert!(!vectors.refused && vectors.forgetting.unwrap().n == held);
    // Vectors say what texts say, but for a rounding.
    for (a, b) in [
        (text.accuracy.old_before, vectors.accuracy.old_before),
        (text.accuracy.old_after, vectors.accuracy.old_after),
    ] {
        let apart = a.unwrap().model - b.unwrap().model;
        assert!(apart.abs() <= 100.0 / 8.0 + 1e-9, "{apart}");
    }
    learner.commit().unwrap();
    assert!(a.iter().chain(&b).all(|e| !holds(&setup, &e.prompt)));
    let store = Store::open(&setup.store).unwrap();
    let entries = remembered(&store, &current(&setup)).unwrap();
    assert!(entries.replay.is_empty() && entries.held_out.len() == 8 + 6);
    assert!(entries.held_out.iter().all(|entry| entry.text.is_none()));
    // From a text to a vector: the gate goes on, the text is gone.
    let setup = common::toy::setup("less");
    let (_, learner) = gate(&setup, held_out(&[]), a.clone());
    learner.commit().unwrap();
    let (_, learner) = gate(
        &setup,
        held_out(&[("replay.privacy", "embeddings")]),
        b.clone(),
    );
    learner.commit().unwrap();
    assert!(a.iter().chain(&b).all(|e| !holds(&setup, &e.prompt)));
    let (report, _) = gate(&setup, held_out(&[]), numbered(0, 3, 5..9));
    assert_eq!(report.forgetting.unwrap().n, 8 + 6);

    let (setup, kept, hashes, learner) = run("hashes");
    assert_eq!((kept, hashes.held_out), (0, 0));
    assert!(hashes.refused && hashes.forgetting.is_none());
    let store = Store::open(&setup.store).unwrap();
    let entries = remembered(&store, &current(&setup)).unwrap();
    assert!(entries.replay.is_empty() && entries.held_out.is_empty());
    assert!(learner.commit().is_err());
}

/// The same update has the same bits, whatever the threads.
#[test]
fn a_memory_has_the_same_bits_whatever_the_threads() {
    let ids = [1, 2, 3].map(|threads| {
        let setup = setup("threads");
        learn(&setup, numbered(0, 6, 0..2), held_out(&[]), cpu(threads));
        let train = settings(&[("epochs", "1")]);
        learn(&setup, numbered(6, 3, 0..2), train, cpu(threads));
        learn(&setup, numbered(2, 5, 2..4), held_out(&[]), cpu(threads)).0
    });
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[1], ids[2]);
}

#[test]
fn a_hub_of_one_model_learns_and_answers() {
    let folder = Folder::new("one");
    let encoder = folder.join("toy-bert");
    let import = hubrouter::ImportOptions::default();
    hubrouter::import_encoder(common::fixture("toy-bert"), &encoder, &import).unwrap();
    let store = folder.join("store");
    let open = Arc::new(Encoder::open(&encoder, &cpu(1)).unwrap());
    Store::create(&store)
        .unwrap()
        .build(&open, &[toy::model(0)], "hub build", &mut |_, _| {})
        .unwrap();
    let setup = Setup {
        folder,
        store,
        encoder,
    };
    for numbers in [0..1, 1..3] {
        learn(&setup, numbered(0, 1, numbers), memory(&[]), cpu(1));
        let decision = decide(&setup, "zzz", cpu(1));
        assert_eq!(decision.ranked.len(), 1);
        assert!(decision.ranked[0].score.is_finite());
    }
}
