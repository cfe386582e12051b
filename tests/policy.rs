//! Policies against brute force: the same models, scores and counts as filtering a whole ranking.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Folder, ROOT, copy, cpu, devices, fixture, store};
use hubrouter::{
    Constraint, Decision, Deployment, Encoder, ErrorKind, ImportOptions, Model, ModelCard,
    NewModel, Options, Policy, PolicyHandle, Request, Router, Store, TradeOff, import_encoder,
};
use serde_json::{Value, json};

/// Random numbers (splitmix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `most`.
    fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % most as u64).unwrap()
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

const LICENCES: [&str; 4] = ["mit", "Apache-2.0", "llama 3", "cc-by"];
const MODALITIES: [&str; 3] = ["text", "image", "audio"];
const FAMILIES: [&str; 3] = ["llama", "bert", "whisper"];
const DOMAINS: [&str; 5] = [
    "Audio Classification",
    "Natural Language Processing Translation",
    "Computer Vision Depth",
    "Tabular",
    "Graph",
];

/// What a test knows of a model, beside the registry.
#[derive(Clone, Default)]
struct Known {
    price: Option<f64>,
    context: Option<f64>,
    licence: Option<&'static str>,
    modality: Option<Vec<&'static str>>,
    tools: Option<bool>,
    family: Option<&'static str>,
    domain: &'static str,
    retired: bool,
}

fn known(draw: &mut Draw) -> Known {
    let mut some = |percent| draw.chance(percent).then_some(());
    let has = [some(70), some(80), some(60), some(70), some(50), some(80)];
    let modality = has[3].map(|()| {
        let all = MODALITIES.into_iter();
        all.filter(|_| draw.chance(50)).collect()
    });
    Known {
        price: has[0].map(|()| draw.below(9) as f64 / 2.0),
        context: has[1].map(|()| [512.0, 4096.0, 32768.0][draw.below(3)]),
        licence: has[2].map(|()| *draw.of(&LICENCES)),
        modality,
        tools: has[4].map(|()| draw.chance(50)),
        family: has[5].map(|()| *draw.of(&FAMILIES)),
        domain: DOMAINS[draw.below(DOMAINS.len())],
        retired: false,
    }
}

impl Known {
    fn attributes(&self) -> BTreeMap<String, Value> {
        let all = [
            ("price", self.price.map(Value::from)),
            ("context_length", self.context.map(Value::from)),
            ("licence", self.licence.map(Value::from)),
            ("modality", self.modality.clone().map(Value::from)),
            ("tools", self.tools.map(Value::from)),
        ];
        let stated = all
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        stated.collect()
    }
}

/// A constraint's text, and its value for each model: true, false or unknown.
type Drawn = (String, Box<dyn Fn(usize, &Known) -> Option<bool>>);

fn test(draw: &mut Draw) -> Drawn {
    let price = draw.below(9) as f64 / 2.0;
    let licence = *draw.of(&LICENCES);
    let modality = *draw.of(&MODALITIES);
    let family = *draw.of(&FAMILIES);
    let domain = *draw.of(&DOMAINS);
    let last = draw.below(10);
    match draw.below(12) {
        0 => (
            format!("price <= {price}"),
            Box::new(move |_, k| k.price.map(|p| p <= price)),
        ),
        1 => (
            format!("price > {price}"),
            Box::new(move |_, k| k.price.map(|p| p > price)),
        ),
        2 => (
            "context_length >= 32768".into(),
            Box::new(|_, k| k.context.map(|c| c >= 32768.0)),
        ),
        3 => (
            format!("licence = {:?}", licence.to_uppercase()),
            Box::new(move |_, k| k.licence.map(|l| l == licence)),
        ),
        4 => (
            format!("licence in [mit, {licence:?}]"),
            Box::new(move |_, k| k.licence.map(|l| l == licence || l == "mit")),
        ),
        5 => (
            format!("licence not in [{licence:?}]"),
            Box::new(move |_, k| k.licence.map(|l| l != licence)),
        ),
        6 => (
            format!("modality has {modality}"),
            Box::new(move |_, k| k.modality.as_ref().map(|m| m.contains(&modality))),
        ),
        7 => ("tools".into(), Box::new(|_, k| k.tools)),
        8 => (
            format!("family != {family}"),
            Box::new(move |_, k| k.family.map(|f| f != family)),
        ),
        9 => (
            format!("domain = {:?}", domain.to_lowercase()),
            Box::new(move |_, k| Some(k.domain == domain)),
        ),
        10 => (
            format!("name matches \"acme/model-*{last}\""),
            Box::new(move |id, _| Some(id % 10 == last)),
        ),
        _ => (
            "exists price".into(),
            Box::new(|_, k| Some(k.price.is_some())),
        ),
    }
}

fn constraint(draw: &mut Draw, depth: usize) -> Drawn {
    if depth == 0 || draw.chance(30) {
        return test(draw);
    }
    let (a, of_a) = constraint(draw, depth - 1);
    if draw.chance(25) {
        return (
            format!("not ({a})"),
            Box::new(move |id, k| of_a(id, k).map(|holds| !holds)),
        );
    }
    let (b, of_b) = constraint(draw, depth - 1);
    match draw.chance(50) {
        true => (
            format!("({a}) and ({b})"),
            Box::new(move |id, k| match (of_a(id, k), of_b(id, k)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            }),
        ),
        false => (
            format!("({a}) or ({b})"),
            Box::new(move |id, k| match (of_a(id, k), of_b(id, k)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            }),
        ),
    }
}

struct Setup {
    folder: Folder,
    known: Vec<Known>,
    encoder: PathBuf,
}

/// A store of `models`, some retired, with a toy's encoder.
fn setup(name: &str, models: usize) -> Setup {
    let folder = Folder::new(name);
    let encoder = folder.join("toy-bert");
    import_encoder(fixture("toy-bert"), &encoder, &ImportOptions::default()).unwrap();
    let mut draw = Draw(models as u64);
    let mut all: Vec<Known> = (0..models).map(|_| known(&mut draw)).collect();
    let new = all.iter().enumerate().map(|(id, known)| {
        let mut model = Model::new(&format!("acme/model-{id}"), known.domain);
        model.family = known.family.map(Into::into);
        model.attributes = known.attributes();
        NewModel::new(model, Vec::new())
    });
    let new: Vec<NewModel> = new.collect();
    let open = Arc::new(Encoder::open(&encoder, &cpu(1)).unwrap());
    let store = Store::create(folder.join("store")).unwrap();
    store.build(&open, &new, "tests", &mut |_, _| {}).unwrap();
    let mut edit = store.edit(false).unwrap();
    for id in (3..models).step_by(17) {
        edit.retire(&format!("acme/model-{id}")).unwrap();
        all[id].retired = true;
    }
    edit.alias("acme/model-1", "first").unwrap();
    edit.commit().unwrap();
    Setup {
        folder,
        known: all,
        encoder,
    }
}

impl Setup {
    fn open(&self, options: Options) -> Router {
        let options = options.encoder(&self.encoder);
        Router::open(self.folder.join("store"), options).unwrap()
    }
}

fn prompts(count: usize) -> Vec<Request> {
    let words = [
        "french", "photo", "bird", "table", "graph", "audio", "cat", "music",
    ];
    let mut draw = Draw(7);
    let prompt = |_| {
        let words: Vec<&str> = (0..1 + draw.below(5)).map(|_| *draw.of(&words)).collect();
        Request::new(words.join(" ")).top(usize::MAX)
    };
    (0..count).map(prompt).collect()
}

/// The ids and the bits of the scores.
fn bits(decision: &Decision) -> Vec<(u32, u32)> {
    let ranked = decision.ranked.iter();
    ranked
        .map(|ranked| (ranked.id.0, ranked.score.to_bits()))
        .collect()
}

/// `within` is the whole ranking without the models that `may` leaves out.
fn assert_filtered(whole: &Decision, within: &Decision, may: &dyn Fn(u32) -> bool, what: &str) {
    let left: Vec<_> = whole
        .ranked
        .iter()
        .filter(|ranked| may(ranked.id.0))
        .collect();
    let want: Vec<(u32, u32)> = left.iter().map(|r| (r.id.0, r.score.to_bits())).collect();
    assert_eq!(bits(within), want, "{what}");
    // Softmax and domains over what is left, in f64.
    let peak = f64::from(left[0].score);
    let sum: f64 = left.iter().map(|r| (f64::from(r.score) - peak).exp()).sum();
    let mut domains: BTreeMap<&str, f64> = BTreeMap::new();
    for (ranked, own) in left.iter().zip(&within.ranked) {
        let want = (f64::from(ranked.score) - peak).exp() / sum;
        assert!((f64::from(own.probability) - want).abs() < 1e-4, "{what}");
        *domains.entry(&*ranked.domain).or_default() += want;
    }
    assert_eq!(within.domains.len(), domains.len(), "{what}");
    for domain in &within.domains {
        let want = domains[&*domain.domain];
        assert!(
            (f64::from(domain.probability) - want).abs() < 1e-4,
            "{what}"
        );
    }
    let margin = (left.len() > 1).then(|| left[0].score - left[1].score);
    assert_eq!(within.margin, margin, "{what}");
    assert_eq!(
        within.policy.as_ref().unwrap().eligible,
        left.len(),
        "{what}"
    );
}

fn agrees_with_brute_force(options: Options, policies: usize) {
    const PROMPTS: usize = 10;
    let setup = setup("policy", 130);
    let router = setup.open(options);
    let requests = prompts(PROMPTS);
    let whole: Vec<Decision> = router
        .route_batch(&requests)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let mut draw = Draw(16);
    let (mut compared, mut nobody) = (0, 0);
    for number in 0..policies {
        let (text, holds) = constraint(&mut draw, 3);
        let mut policy = Policy::default().constraint(text.parse().unwrap());
        // Some policies deny, some have candidates with prices of their own.
        let denied = draw.chance(30).then(|| draw.below(10));
        if let Some(last) = denied {
            policy
                .deny
                .push(format!("acme/model-*{last}").parse().unwrap());
        }
        let mut own: BTreeMap<usize, Known> = setup.known.iter().cloned().enumerate().collect();
        if draw.chance(40) {
            let count = 1 + draw.below(40);
            own = (0..count)
                .map(|_| draw.below(130))
                .map(|id| (id, setup.known[id].clone()))
                .collect();
            let mut deployments = Vec::new();
            for (id, known) in &mut own {
                let mut deployment = Deployment::new(format!("acme/model-{id}"));
                if draw.chance(30) {
                    known.price = Some(1.5);
                    deployment = deployment.attribute("price", 1.5);
                }
                deployments.push(deployment);
            }
            policy.candidates = Some(deployments);
        }
        let may = |id: u32| {
            let id = id as usize;
            let known = own.get(&id).filter(|known| !known.retired);
            denied != Some(id % 10) && known.is_some_and(|known| holds(id, known) == Some(true))
        };
        let handle = router.compile(&policy).unwrap();
        let eligible = (0..130).filter(|id| may(*id)).count();
        assert_eq!(handle.eligible(), eligible, "{number}: {text}");
        let answers = router.route_batch_within(&requests, &handle);
        for (whole, answer) in whole.iter().zip(answers) {
            compared += 1;
            match answer {
                Ok(within) => assert_filtered(whole, &within, &may, &text),
                Err(error) => {
                    nobody += 1;
                    assert_eq!(
                        (eligible, error.kind()),
                        (0, ErrorKind::NoCandidate),
                        "{text}"
                    );
                }
            }
        }
    }
    assert_eq!(compared, policies * PROMPTS);
    // The draw is of some use.
    assert!(
        nobody > 0 && nobody < compared / 2,
        "{nobody} of {compared}"
    );
}

#[test]
fn ten_thousand_random_requests_agree_with_brute_force_on_the_cpu() {
    agrees_with_brute_force(cpu(1), 1000);
}

#[cfg(feature = "gpu")]
#[test]
fn ten_thousand_random_requests_agree_with_brute_force_on_the_gpu() {
    agrees_with_brute_force(common::gpu(), 1000);
}

/// With a memory, a few and many candidates of 2,127, on each device.
#[test]
fn candidates_of_the_bundled_hub_have_the_scores_that_they_have_among_all() {
    for options in devices() {
        let router = Router::open(store(), options).unwrap();
        let hub = router.hub();
        let requests = ["Translate this letter.", "Which bird sings?"].map(Request::new);
        let requests = requests.map(|request| request.top(usize::MAX));
        let whole: Vec<Decision> = router
            .route_batch(&requests)
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let mut draw = Draw(12);
        for count in [1, 2, 12, 31, 33, 200, 700] {
            let mut id = |_| u32::try_from(draw.below(hub.len())).unwrap();
            let mut ids: Vec<u32> = (0..count).map(&mut id).collect();
            ids.sort_unstable();
            ids.dedup();
            let name = |id: &u32| hub.get(hubrouter::ModelId(*id)).unwrap().name.to_string();
            let handle = router
                .compile(&Policy::default().candidates(ids.iter().map(name)))
                .unwrap();
            let may = |id: u32| ids.contains(&id);
            for (whole, within) in whole
                .iter()
                .zip(router.route_batch_within(&requests, &handle))
            {
                let within = within.unwrap();
                assert_filtered(whole, &within, &may, &format!("{count}"));
                for own in &within.ranked {
                    let other = whole
                        .ranked
                        .iter()
                        .find(|other| other.id == own.id)
                        .unwrap();
                    assert_eq!(own.parts, other.parts);
                    assert_eq!(own.cosine, other.cosine);
                    assert_eq!(own.deployments, [Arc::clone(&own.model)]);
                }
            }
        }
    }
}

fn deployed(decision: &Decision, rank: usize) -> Vec<&str> {
    let names = decision.ranked[rank].deployments.iter();
    names.map(|name| &**name).collect()
}

fn counted(handle: &PolicyHandle) -> Vec<(String, usize, usize, usize)> {
    let excluded = handle.excluded().into_iter();
    excluded
        .map(|part| (part.by.to_string(), part.models, part.unknown, part.alone))
        .collect()
}

#[test]
fn what_is_excluded_is_counted_by_part() {
    let setup = setup("policy-counts", 60);
    let router = setup.open(cpu(1));
    let policy: Policy = serde_json::from_value(json!({
        "deny": ["acme/model-*7"],
        "where": "price <= 2 and (tools or exists family)",
    }))
    .unwrap();
    let handle = router.compile(&policy).unwrap();
    let active = || {
        setup
            .known
            .iter()
            .enumerate()
            .filter(|(_, known)| !known.retired)
    };
    let cheap = |k: &Known| k.price.map(|price| price <= 2.0);
    let able = |k: &Known| match (k.tools, k.family.is_some()) {
        (Some(true), _) | (_, true) => Some(true),
        (tools, _) => tools,
    };
    let fails =
        |id: usize, k: &Known| [Some(id % 10 != 7), cheap(k), able(k)].map(|h| h != Some(true));
    let count = |f: &dyn Fn(usize, &Known) -> bool| active().filter(|(id, k)| f(*id, k)).count();
    let alone = |part: usize| {
        count(&|id, k| fails(id, k)[part] && fails(id, k).iter().filter(|f| **f).count() == 1)
    };
    let want = [
        (
            "deny acme/model-*7",
            count(&|id, _| id % 10 == 7),
            0,
            alone(0),
        ),
        (
            "price <= 2",
            count(&|_, k| cheap(k) != Some(true)),
            count(&|_, k| cheap(k).is_none()),
            alone(1),
        ),
        (
            "tools = true or exists family",
            count(&|_, k| able(k) != Some(true)),
            count(&|_, k| able(k).is_none()),
            alone(2),
        ),
    ];
    let want = want.map(|(by, models, unknown, alone)| (by.to_owned(), models, unknown, alone));
    assert_eq!(counted(&handle), want);
    let decision = router.route_within(&Request::new("bird"), &handle).unwrap();
    assert_eq!(decision.policy.unwrap().excluded, handle.excluded());
    // Plain requests know nothing of it.
    let json = serde_json::to_value(router.route(&Request::new("bird")).unwrap()).unwrap();
    assert!(json.get("policy").is_none() && json["ranked"][0].get("deployments").is_none());
}

#[test]
fn deployments_are_found_by_alias_and_named_in_the_answer() {
    let setup = setup("policy-deployments", 40);
    let router = setup.open(cpu(1));
    let policy: Policy = serde_json::from_value(json!({
        "candidates": [
            {"name": "eu", "model": "first", "attributes": {"price": 3}},
            {"name": "us", "model": "acme/model-1", "attributes": {"price": 1}},
            {"name": "old", "model": "acme/model-3", "attributes": {"price": 1}},
            {"name": "dear", "model": "acme/model-2", "attributes": {"price": 90}},
        ],
        "where": "price <= 5",
    }))
    .unwrap();
    let request = Request::new("bird");
    let names = |policy: &Policy| {
        let handle = router.compile(policy).unwrap();
        let decision = router.route_within(&request, &handle).unwrap();
        assert_eq!(decision.ranked.len(), 1);
        assert_eq!(&*decision.ranked[0].model, "acme/model-1");
        (deployed(&decision, 0).join(" "), counted(&handle))
    };
    let (found, excluded) = names(&policy);
    assert_eq!(found, "eu us");
    let want = [("retired", 1), ("price <= 5", 1)];
    let want = want.map(|(by, models)| (by.to_owned(), models, 0, models));
    assert_eq!(excluded, want);
    // With a trade-off the cheaper one is first.
    let mut trading = policy.clone();
    trading.prefer = Some(serde_json::from_value(json!({"cost": 1})).unwrap());
    assert_eq!(names(&trading).0, "us eu");
}

#[test]
fn wrong_policies_are_errors_that_help() {
    let setup = setup("policy-errors", 20);
    let router = setup.open(cpu(1));
    for (json, want) in [
        (
            json!({"candidates": ["acme/modle-12", "first", "model-7"]}),
            &[
                "\"acme/modle-12\"",
                "did you mean acme/model-12?",
                "did you mean acme/model-7",
            ][..],
        ),
        (
            json!({"candidates": ["first", "first"]}),
            &["\"first\" twice"],
        ),
        (json!({"candidates": []}), &["at least one deployment"]),
        (
            json!({"deny": ["acme/model-99"]}),
            &["deny: \"acme/model-99\": expected a model"],
        ),
        (
            json!({"allow": ["id:20"]}),
            &["allow: id:20: expected an id below 20"],
        ),
        (json!({"prefer": {"cost": -1}}), &["prefer.cost"]),
        (
            json!({"fallbacks": vec!["tools"; 16]}),
            &["fallbacks: expected at most 15"],
        ),
        (
            json!({"candidates": [
                {"name": "a", "card": {"model_name": "x", "domain": "d"}},
                {"name": "b", "card": {"model_name": "x", "domain": "e"}}]}),
            &["two cards that differ"],
        ),
    ] {
        let policy: Policy = serde_json::from_value(json).unwrap();
        let error = router.compile(&policy).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        for part in want {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
    let policy = Policy::default().constraint("price > 100".parse().unwrap());
    let handle = router.compile(&policy).unwrap();
    assert_eq!(handle.eligible(), 0);
    let error = router
        .route_within(&Request::new("bird"), &handle)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoCandidate);
    assert!(error.to_string().contains("price > 100 ("), "{error}");
}

#[test]
fn fallbacks_are_tried_in_their_order() {
    let setup = setup("policy-fallbacks", 50);
    let router = setup.open(cpu(1));
    let policy: Policy = serde_json::from_value(json!({
        "deny": ["acme/model-5"],
        "where": "price > 100",
        "fallbacks": ["name = acme/model-5", "name = acme/model-6", "exists id"],
    }))
    .unwrap();
    let handle = router.compile(&policy).unwrap();
    let decision = router.route_within(&Request::new("bird"), &handle).unwrap();
    assert_eq!(&*decision.ranked[0].model, "acme/model-6");
    assert_eq!((decision.ranked.len(), decision.margin), (1, None));
    let record = decision.policy.unwrap();
    assert_eq!(record.fallback.as_deref(), Some("name = acme/model-6"));
    assert!(
        record
            .excluded
            .iter()
            .any(|part| &*part.by == "price > 100")
    );
}

fn chat(tools: bool, tokens: usize) -> Request {
    let mut json = json!({"max_tokens": tokens, "messages": [{"role": "user", "content": "bird"}]});
    if tools {
        json["tools"] = json!([{"type": "function", "function": {"name": "look"}}]);
    }
    Request::from_chat(json.to_string())
        .unwrap()
        .top(usize::MAX)
}

#[test]
fn chat_needs_narrow_each_request_of_a_batch_on_its_own() {
    let setup = setup("policy-needs", 130);
    for options in devices() {
        let router = setup.open(options);
        // Few models, which are gathered on the CPU, and all.
        for constraint in ["exists id", "name matches '*1'"] {
            let json = json!({"where": constraint, "chat_needs": true, "fallbacks": ["exists id"]});
            let policy: Policy = serde_json::from_value(json).unwrap();
            let handle = router.compile(&policy).unwrap();
            let requests = [
                chat(true, 10),
                chat(false, 10_000),
                Request::new("bird").top(usize::MAX),
                chat(false, 1 << 20),
                chat(true, 10_000),
            ];
            let answers = router.route_batch_within(&requests, &handle);
            let whole = router.route(&requests[2]).unwrap();
            let last = |id: u32| constraint == "exists id" || id % 10 == 1;
            let known = |id: u32| &setup.known[id as usize];
            let room = |id: u32, tokens: f64| known(id).context.is_some_and(|c| c >= tokens);
            let tools = |id: u32| known(id).tools == Some(true);
            let first = |id: u32| last(id) && tools(id) && room(id, 30.0);
            assert_filtered(&whole, answers[0].as_ref().unwrap(), &first, "tools");
            let second = |id: u32| last(id) && room(id, 10_020.0);
            assert_filtered(&whole, answers[1].as_ref().unwrap(), &second, "tokens");
            assert_filtered(&whole, answers[2].as_ref().unwrap(), &last, "no needs");
            let error = answers[3].as_ref().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoCandidate);
            assert!(
                error.to_string().contains("needs context_length >= "),
                "{error}"
            );
            let fifth = answers[4].as_ref().unwrap();
            let may = |id: u32| tools(id) && room(id, 10_020.0);
            let fell_back = fifth.policy.as_ref().unwrap().fallback.is_some();
            let both = |id: u32| may(id) && (fell_back || last(id));
            assert_filtered(&whole, fifth, &both, "both");
            let by: Vec<_> = fifth
                .policy
                .as_ref()
                .unwrap()
                .excluded
                .iter()
                .map(|x| &*x.by)
                .collect();
            assert!(by.contains(&"needs tools"), "{by:?}");
            // Alone each has the answer that it has in the batch.
            for (request, answer) in requests.iter().zip(&answers) {
                let alone = router.route_within(request, &handle);
                match (alone, answer) {
                    (Ok(alone), Ok(answer)) => assert_eq!(bits(&alone), bits(answer)),
                    (alone, answer) => assert_eq!(alone.is_err(), answer.is_err()),
                }
            }
        }
    }
}

#[test]
fn a_trade_off_ranks_by_utility_and_shows_the_front() {
    let setup = setup("policy-trade", 130);
    let router = setup.open(cpu(1));
    let request = Request::new("bird").top(usize::MAX);
    let whole = router.route(&request).unwrap();
    let mut prefer = TradeOff::default();
    prefer.cost = 0.75;
    let mut policy = Policy::default();
    policy.prefer = Some(prefer);
    let handle = router.compile(&policy).unwrap();
    let decision = router.route_within(&request, &handle).unwrap();
    let price = |id: u32| setup.known[id as usize].price;
    let utility = |id: u32, score: f32| price(id).map(|price| f64::from(score) - 0.75 * price);
    let mut want: Vec<(u32, f32)> = whole.ranked.iter().map(|r| (r.id.0, r.score)).collect();
    let key = |(id, score): &(u32, f32)| utility(*id, *score).unwrap_or(f64::NEG_INFINITY);
    want.sort_by(|a, b| key(b).total_cmp(&key(a)));
    let found: Vec<(u32, f32)> = decision.ranked.iter().map(|r| (r.id.0, r.score)).collect();
    assert_eq!(found, want);
    for ranked in &decision.ranked {
        assert_eq!(ranked.utility, utility(ranked.id.0, ranked.score));
    }
    let margin = key(&want[0]) - key(&want[1]);
    assert!((f64::from(decision.margin.unwrap()) - margin).abs() < 1e-6);
    let front = &decision.policy.as_ref().unwrap().pareto;
    let cost = |id: u32| price(id).unwrap_or(f64::INFINITY);
    let beaten = |(id, score): &(u32, f32)| {
        want.iter().any(|(other, its)| {
            cost(*other) <= cost(*id) && its >= score && (cost(*other) < cost(*id) || its > score)
        })
    };
    let mut undominated: Vec<_> = want.iter().filter(|point| !beaten(point)).collect();
    undominated.sort_by(|a, b| b.1.total_cmp(&a.1));
    let undominated: Vec<f32> = undominated.iter().map(|(_, score)| *score).collect();
    assert_eq!(
        front.iter().map(|point| point.score).collect::<Vec<_>>(),
        undominated
    );
    assert_eq!(
        router
            .route_within(&request.clone().top(3), &handle)
            .unwrap()
            .ranked
            .len(),
        3
    );
}

#[test]
fn a_handle_is_compiled_again_for_another_generation() {
    let setup = setup("policy-install", 30);
    let router = setup.open(cpu(1));
    let policy = Policy::default().candidates(["acme/model-1", "acme/model-2"]);
    let handle = router.compile(&policy).unwrap();
    let before = handle.generation();
    let store = Store::open(setup.folder.join("store")).unwrap();
    let mut edit = store.edit(false).unwrap();
    edit.rename("acme/model-1", "acme/new").unwrap();
    edit.retire("acme/model-2").unwrap();
    edit.commit().unwrap();
    assert_eq!(handle.eligible(), 2);
    assert!(router.refresh().unwrap());
    let decision = router.route_within(&Request::new("bird"), &handle).unwrap();
    let names: Vec<&str> = decision
        .ranked
        .iter()
        .map(|ranked| &*ranked.model)
        .collect();
    assert_eq!(names, ["acme/new"]);
    assert_eq!(decision.revisions.generation, handle.generation());
    assert_ne!(handle.generation(), before);
    router.rollback().unwrap();
    let decision = router.route_within(&Request::new("bird"), &handle).unwrap();
    assert_eq!((decision.ranked.len(), handle.generation()), (2, before));
}

/// A model known by its card has the row that adding it gives, also in a memory.
#[test]
fn a_model_known_by_its_card_is_ranked_as_if_it_had_been_added() {
    let corpus = Path::new(ROOT).join("tests/corpus");
    let encoder = corpus.join("bundles/toy-bert");
    let setup = setup("policy-card", 30);
    let folder = Folder::new("policy-card-learned");
    copy(&corpus.join("stores/learned"), &folder.join("store"));
    let mut card = ModelCard::new("new/whale-songs", "Audio Classification");
    card.description = Some("Finds whales in recordings.".into());
    card.attributes.insert("price".into(), 2.into());
    for (store, encoder, others) in [
        (
            setup.folder.join("store"),
            setup.encoder.clone(),
            ["first", "acme/model-2"],
        ),
        (folder.join("store"), encoder, ["model-0", "model-4"]),
    ] {
        for options in devices() {
            let options = options.encoder(&encoder);
            let router = Router::open(&store, options.clone()).unwrap();
            let mut policy = Policy::default().candidates(others);
            let deployment = Deployment::new("whales").card(card.clone());
            policy.candidates.as_mut().unwrap().push(deployment);
            policy.constraint = Some("name != whales or price = 2".parse().unwrap());
            let handle = router.compile(&policy).unwrap();
            let request = Request::new("Which whale is singing?").top(usize::MAX);
            let within = router.route_within(&request, &handle).unwrap();
            assert_eq!(within.ranked.len(), 3);
            assert_eq!(
                router.hub().find("new/whale-songs"),
                None,
                "nothing was added"
            );

            let copied = Folder::new("policy-card-added");
            copy(&store, &copied.join("store"));
            let open = Arc::new(Encoder::open(&encoder, &options).unwrap());
            let mut edit = Store::open(copied.join("store"))
                .unwrap()
                .edit(false)
                .unwrap();
            edit.add(&open, &[NewModel::from(&card)], &mut |_, _| {})
                .unwrap();
            edit.commit().unwrap();
            let added = Router::open(copied.join("store"), options.clone()).unwrap();
            let whole = added.route(&request).unwrap();
            let ids: Vec<u32> = within.ranked.iter().map(|ranked| ranked.id.0).collect();
            assert_filtered(&whole, &within, &|id| ids.contains(&id), "with a card");
            let mut ranked = within.ranked.iter();
            let rank = ranked.position(|ranked| &*ranked.model == "new/whale-songs");
            assert_eq!(deployed(&within, rank.unwrap()), ["whales"]);
        }
    }
}

#[test]
fn a_constraint_is_what_its_text_and_its_json_say() {
    let mut draw = Draw(5);
    for _ in 0..500 {
        let (text, _) = constraint(&mut draw, 4);
        let read: Constraint = text.parse().unwrap();
        assert_eq!(
            read.to_string().parse::<Constraint>().unwrap(),
            read,
            "{text}"
        );
        let json = serde_json::to_string(&read).unwrap();
        assert_eq!(
            serde_json::from_str::<Constraint>(&json).unwrap(),
            read,
            "{text}"
        );
    }
}

/// Any text is read, or is an error that names a column.
#[test]
fn any_text_is_read_or_is_an_error_with_a_column() {
    const PIECES: [&str; 26] = [
        "price",
        "and",
        "or",
        "not",
        "in",
        "has",
        "exists",
        "matches",
        "(",
        ")",
        "[",
        "]",
        ",",
        "<=",
        "=",
        "!",
        "2",
        "-1e9",
        "\"a\"",
        "'b",
        "`c d`",
        "\"\\",
        "\u{1f426}",
        "\n",
        "é",
        "*",
    ];
    let mut draw = Draw(26);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let count = 1 + draw.below(7);
        let pieces: Vec<&str> = (0..count).map(|_| *draw.of(&PIECES)).collect();
        let text = pieces.join(if draw.chance(80) { " " } else { "" });
        match text.parse::<Constraint>() {
            Ok(constraint) => {
                read += 1;
                let back: Constraint = constraint.to_string().parse().unwrap();
                assert_eq!(back, constraint, "{text}");
            }
            Err(error) => {
                refused += 1;
                assert!(
                    error.to_string().starts_with("column "),
                    "{text:?}: {error}"
                );
            }
        }
    }
    assert!(read > 300 && refused > 300, "{read} {refused}");
}
