//! Tests of the inside: the warm path, and the step down from a lost device.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::device::CpuLevel;
use crate::device::cpu::low::{LowFormat, LowKernel};
use crate::error::ErrorKind;
use crate::hub::ModelId;
use crate::options::Precision;
use crate::testing::Folder;

const STORE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/cmrbench");

#[test]
fn a_step_down_does_not_undo_what_was_installed_meanwhile() {
    let cpu = Options::default().device("cpu").threads(1);
    let router = Router::open(STORE, cpu.clone()).unwrap();
    let copy = || {
        Router::open(STORE, cpu.clone())
            .unwrap()
            .serving
            .load_full()
    };
    let failed = router.serving.load_full();
    let stepped_down = router.replaced(&failed, copy());
    assert!(!Arc::ptr_eq(&stepped_down, &failed));
    assert!(Arc::ptr_eq(&stepped_down, &router.serving.load_full()));
    // Another generation is installed while a copy of the failed one is opened.
    let first = router.store.ids().unwrap()[0].clone();
    router.install(&first).unwrap();
    assert_eq!(router.replaced(&stepped_down, copy()).id, first);
    assert_eq!(router.generation(), first);
}

#[test]
fn a_missing_adapter_is_an_error_or_a_visible_step_down() {
    let options = Options::default().device("an adapter that nobody makes");
    assert_eq!(
        Router::open(STORE, options.clone()).err().unwrap().kind(),
        ErrorKind::NoAdapter
    );
    let router = Router::open(STORE, options.fallback(true)).unwrap();
    let decision = router.route(&Request::new("hello")).unwrap();
    assert_eq!(decision.device, "cpu");
    assert!(
        decision
            .degraded
            .is_some_and(|why| why.contains("nobody makes"))
    );
}

#[test]
fn low_precision_is_taken_where_it_is_asked_for() {
    for (precision, format) in [
        (Precision::Int8, LowFormat::Int8),
        (Precision::Bf16, LowFormat::Bf16),
    ] {
        check_low(precision, format);
    }
}

fn check_low(precision: Precision, format: LowFormat) {
    let open = |precision: Precision, threads: usize, level: CpuLevel| {
        let options = Options::default().device("cpu").threads(threads);
        Router::open(STORE, options.precision(precision).cpu(level))
    };
    let requests = [
        "Translate this letter into Spanish.",
        "Who is speaking in this recording?",
        "I need to caption photographs of birds for a field guide, in two languages, offline.",
        "Find a model that tells whether a product review is positive or negative.",
    ]
    .map(|prompt| Request::new(prompt).top(3));
    let route = |router: &Router| -> Vec<Decision> {
        let decisions = router.route_batch(&requests).into_iter();
        decisions.map(Result::unwrap).collect()
    };
    let scores = |decision: &Decision| -> Vec<(ModelId, f32)> {
        let ranked = decision.ranked.iter();
        ranked.map(|ranked| (ranked.id, ranked.score)).collect()
    };
    let full = route(&open(Precision::F32, 2, CpuLevel::Auto).unwrap());
    assert!(full.iter().all(|d| d.precision == Precision::F32));
    let refused = |level: CpuLevel, why: &str| {
        let error = open(precision, 1, level).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(CpuLevel::Portable, LowKernel::expected(format));
    if LowKernel::detect(format, CpuLevel::Auto).0.is_none() {
        return refused(CpuLevel::Auto, LowKernel::expected(format));
    }
    let one = open(precision, 1, CpuLevel::Auto).unwrap();
    let low = route(&one);
    let again = route(&open(precision, 2, CpuLevel::Auto).unwrap());
    for ((low, again), (full, request)) in low.iter().zip(&again).zip(full.iter().zip(&requests)) {
        assert_eq!(low.precision, precision);
        assert_eq!(scores(low), scores(again), "two threads");
        assert_eq!(scores(low), scores(&one.route(request).unwrap()), "alone");
        assert_ne!(scores(low), scores(full), "f32 was computed");
        assert_eq!(low.domains[0].domain, full.domains[0].domain);
    }
    // What opens beside it is in the same numbers.
    one.install(&one.generation()).unwrap();
    assert_eq!(scores(&route(&one)[0]), scores(&low[0]));
}

/// In f32 and in int8 the levels of SIMD give the same bits; the portable one is near.
#[test]
fn levels_of_the_cpu_give_the_same_bits_and_one_that_is_missing_is_an_error() {
    let open = |level: CpuLevel, precision: Precision| {
        let options = Options::default().device("cpu").threads(1);
        Router::open(STORE, options.cpu(level).precision(precision))
    };
    let route = |router: &Router| {
        let decision = router.route(&Request::new("Who is speaking?")).unwrap();
        let score = decision.ranked[0].score;
        (decision.ranked[0].id, score, decision.precision)
    };
    let levels = ["amx", "avx512", "avx2", "neon", "portable"].map(|l| l.parse().unwrap());
    for precision in [Precision::F32, Precision::Int8] {
        let Ok(auto) = open(CpuLevel::Auto, precision) else {
            assert_eq!(precision, Precision::Int8);
            continue;
        };
        for level in levels {
            match open(level, precision) {
                Ok(router) if level == CpuLevel::Portable => {
                    let (own, auto) = (route(&router), route(&auto));
                    assert_eq!((own.0, own.2), (auto.0, auto.2));
                    assert!((own.1 - auto.1).abs() < 1e-4, "{own:?}, {auto:?}");
                }
                Ok(router) => assert_eq!(route(&router), route(&auto), "{level}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                    assert_ne!((level, precision), (CpuLevel::Portable, Precision::F32));
                }
            }
        }
    }
    // Nothing but f32 is left at this level.
    let auto = open(CpuLevel::Portable, Precision::Auto).unwrap();
    assert_eq!(auto.precision(), Precision::F32);
    assert!(auto.precision_reason().contains("no kernel for int8"));
}

#[test]
fn auto_takes_int8_where_the_record_is_good() {
    let root = Folder::new("auto");
    let id = Store::open(STORE).unwrap().current().unwrap();
    let folder = root.join(id.as_str());
    std::fs::create_dir_all(&folder).unwrap();
    let copy = |name: &str| std::fs::copy(Path::new(STORE).join(name), root.join(name)).unwrap();
    copy("current");
    for entry in Path::new(STORE).join(id.as_str()).read_dir().unwrap() {
        let name = entry.unwrap().file_name();
        copy(&format!("{id}/{}", name.to_str().unwrap()));
    }
    let encoder = concat!(env!("CARGO_MANIFEST_DIR"), "/weights/all-MiniLM-L6-v2");
    let options = Options::default().device("cpu").threads(1).encoder(encoder);
    let look = || {
        let router = Router::open(&root, options.clone()).unwrap();
        let decision = router.route(&Request::new("Who is speaking?")).unwrap();
        assert_eq!(decision.precision, router.precision());
        (router.precision(), router.precision_reason())
    };
    let bf16 = LowKernel::detect(LowFormat::Bf16, CpuLevel::Auto).0;
    let otherwise = match bf16.is_some_and(LowKernel::has_tiles) {
        true => Precision::Bf16,
        false => Precision::F32,
    };
    let stays = |why: &str| {
        let (precision, reason) = look();
        assert_eq!(precision, otherwise, "{reason}");
        assert!(reason.contains(why), "{reason}");
    };
    let store = Store::open(&root).unwrap();
    let good = store.agreement(&id).unwrap().unwrap();
    let record = folder.join(crate::generation::precision::PRECISION);
    if LowKernel::detect(LowFormat::Int8, CpuLevel::Auto)
        .0
        .is_none()
    {
        stays("no kernel for int8");
        return;
    }
    let (precision, reason) = look();
    assert_eq!(precision, Precision::Int8, "{reason}");
    let want = format!("the same domain as f32 for {} of", good.same_domain);
    assert!(reason.contains(&want), "{reason}");
    let mut other = good.clone();
    other.vector_sha256 = "0".repeat(64);
    store.record(&id, &other).unwrap();
    stays("other bits");
    other = good.clone();
    other.worst_cosine = 0.5;
    store.record(&id, &other).unwrap();
    stays("int8 missed a bar: cosine");
    std::fs::write(&record, "{}").unwrap();
    stays("the record of int8 is damaged");
    assert!(store.agreement(&id).is_err());
    std::fs::remove_file(&record).unwrap();
    stays("was not measured");
    assert_eq!(store.agreement(&id).unwrap(), None);
    // What leaves the vectors as they are passes the record on.
    store.record(&id, &good).unwrap();
    let name = store
        .hub(&id)
        .unwrap()
        .get(ModelId(0))
        .unwrap()
        .name
        .to_string();
    let store = store.look_in(encoder);
    let renamed = store.rename(&name, "another-name").unwrap();
    let inherited = Some(good.inherited(&id));
    assert_eq!(store.agreement(&renamed).unwrap(), inherited);
    assert_eq!(look().0, Precision::Int8);
    let retired = store.retire("another-name").unwrap();
    assert_eq!(store.agreement(&retired).unwrap(), inherited);
    let (precision, reason) = look();
    assert_eq!(precision, Precision::Int8);
    assert!(reason.contains(&format!("measured on {id}")), "{reason}");
}

/// What an answer says, with the bits of its scores.
fn answer_of(decision: Decision) -> impl PartialEq + std::fmt::Debug {
    let ranked = decision.ranked.iter();
    let ranked: Vec<_> = ranked.map(|r| (r.id, r.score.to_bits())).collect();
    (ranked, decision.domains, decision.unknown)
}

#[test]
fn threads_that_share_batches_get_the_answers_that_they_get_alone() {
    const THREADS: usize = 6;
    let options = Options::default().device("cpu").threads(2);
    let open = |options| Router::open(STORE, options).unwrap();
    let (alone, sharing) = (open(options.clone()), open(options.gather_us(200_000)));
    let answer = |router: &Router, request: &Request| {
        let decision = router.route(request).unwrap();
        (decision.timing.batch, answer_of(decision))
    };
    let prompt = |i| format!("Which bird is singing in recording number {i}, and where?");
    let requests: Vec<Request> = (0..24)
        .map(|i| Request::new(prompt(i)).top(1 + i % 12))
        .collect();
    let want: Vec<_> = requests.iter().map(|r| answer(&alone, r)).collect();
    let shared = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (requests, want, sharing, shared) = (&requests, &want, &sharing, &shared);
            scope.spawn(move || {
                for turn in 0..requests.len() {
                    let place = (turn * 5 + thread) % requests.len();
                    let got = answer(sharing, &requests[place]);
                    assert_eq!(got.1, want[place].1);
                    shared.fetch_max(got.0, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    let most = shared.into_inner();
    assert!((2..=THREADS).contains(&most), "batches of {most}");
}

#[test]
fn batches_of_any_size_on_any_number_of_threads_get_the_answers_that_they_get_alone() {
    let prompt = |i| Request::new(format!("Which bird sings in recording number {i}?")).top(3);
    let requests: Vec<Request> = (0..12).map(prompt).collect();
    let answer = |decision: Result<Decision>| answer_of(decision.unwrap());
    let mut want = Vec::new();
    for threads in [1, 2, 3, 4, 5, 7] {
        let router = Router::open(STORE, Options::default().device("cpu").threads(threads));
        let router = router.unwrap();
        if threads == 1 {
            want = requests.iter().map(|r| answer(router.route(r))).collect();
        }
        for count in 1..=requests.len() {
            let found = router.route_batch(&requests[..count]);
            let found: Vec<_> = found.into_iter().map(answer).collect();
            assert_eq!(found, want[..count], "{count} prompts, {threads} threads");
        }
    }
}

#[cfg(feature = "gpu")]
mod on_a_gpu {
    use super::*;
    use crate::device::Device;

    use crate::device::gpu::Gpu;
    use crate::encoder::{ImportOptions, import_encoder};
    use crate::generation::NewModel;
    use crate::hub::ModelCard;
    use crate::ops::testing::adapter_name;
    use crate::route::{Deployment, Policy};

    /// The zero-shot generation that the bundled one grew from.
    const PARENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/zero-shot");

    fn on_gpu(fallback: bool) -> Router {
        let options = Options::default()
            .device(adapter_name().as_str())
            .fallback(fallback);
        Router::open(STORE, options).unwrap()
    }

    fn gpu(router: &Router) -> Arc<Gpu> {
        match router.serving.load().encoder.device() {
            Device::Gpu(gpu) => Arc::clone(gpu),
            Device::Cpu(_) => panic!("not on a GPU"),
        }
    }

    #[test]
    fn a_warm_route_makes_nothing_on_the_device() {
        let router = on_gpu(false);
        let opened = gpu(&router).made();
        let first = router.route(&Request::new("a first prompt")).unwrap();
        let (cold, alive) = (gpu(&router).made(), gpu(&router).alive());
        assert!(cold > opened, "the counter does not count");
        for prompt in [
            "a first prompt",
            "another one",
            "and one that has some more tokens",
        ] {
            let decision = router.route(&Request::new(prompt)).unwrap();
            assert_eq!(
                gpu(&router).made(),
                cold,
                "{prompt:?} made a buffer, bind group or pipeline"
            );
            assert_eq!(
                gpu(&router).alive(),
                alive,
                "wgpu made something for {prompt:?}"
            );
            if prompt == "a first prompt" {
                assert_eq!(decision.ranked[0].score, first.ranked[0].score);
            }
        }
    }

    /// A store of a few models with an encoder of two layers, and that encoder.
    fn toy(name: &str) -> (Folder, Options) {
        let root = Folder::new(name);
        let (encoder, store) = (root.join("toy-bert"), root.join("store"));
        import_encoder(
            "tests/fixtures/toy-bert",
            &encoder,
            &ImportOptions::default(),
        )
        .unwrap();
        let options = Options::default()
            .device("cpu")
            .threads(1)
            .encoder(&encoder);
        let open = Arc::new(Encoder::open(&encoder, &options).unwrap());
        let card = |i: usize| ModelCard::new(format!("model-{i}"), ["Text", "Sound"][i % 2]);
        let models: Vec<NewModel> = (0..6).map(|i| NewModel::from(&card(i))).collect();
        let store = Store::create(store).unwrap();
        store
            .build(&open, &models, "hub build", &mut |_, _| {})
            .unwrap();
        (root, options)
    }

    /// Each call by the device that was measured to be the faster for its tokens, whatever is
    /// installed and whichever models may answer.
    #[test]
    fn small_batches_are_the_cpus_and_say_so() {
        let (root, cpu) = toy("both");
        let bundle = root.join("toy-bert");
        let gpu = cpu.clone().device(adapter_name().as_str());
        let store = root.join("store");
        let on_gpu = Router::open(&store, gpu.clone()).unwrap();
        let on_cpu = Router::open(&store, cpu.precision(Precision::F32)).unwrap();
        let text = "one two three four five";
        let [small, large] = [&text[..7], text].map(|text| Request::new(text).top(3));
        let most = on_cpu.route(&small).unwrap().tokens;
        let mut encoder = Encoder::open(&bundle, &gpu).unwrap();
        encoder.leave_to_cpu(most);
        let both = Router::with_encoder(&store, Arc::new(encoder), gpu).unwrap();
        let scores = |decision: &Decision| -> Vec<(ModelId, f32)> {
            let ranked = decision.ranked.iter();
            ranked.map(|r| (r.id, r.score)).collect()
        };
        let check = |both: &Router| {
            let decision = both.route(&small).unwrap();
            assert_eq!(decision.device, "cpu");
            assert_eq!(decision.precision, Precision::F32);
            assert!(decision.degraded.is_none());
            let why = decision.device_reason.as_deref().unwrap();
            let begin = format!("{} tokens, no more than the {most}", decision.tokens);
            assert!(why.starts_with(&begin), "{why}");
            assert_eq!(scores(&decision), scores(&on_cpu.route(&small).unwrap()));
            let decision = both.route(&large).unwrap();
            assert_eq!(decision.device, on_gpu.device_name());
            let why = decision.device_reason.as_deref().unwrap();
            let begin = format!("{} tokens, more than the {most}", decision.tokens);
            assert!(why.starts_with(&begin), "{why}");
            assert_eq!(scores(&decision), scores(&on_gpu.route(&large).unwrap()));
            // Together they are a batch of more tokens.
            for decision in both.route_batch(&vec![small.clone(); 2]) {
                assert_eq!(decision.unwrap().device, on_gpu.device_name());
            }
        };
        check(&both);
        both.install(&both.generation()).unwrap();
        check(&both);
        // A policy of some models, and one with a card that only it knows.
        let few = Policy::default().candidates(["model-1", "model-2", "model-4"]);
        let mut with_new = few.clone();
        let new = ModelCard::new("a-new-model", "Sound");
        let new = Deployment::new("a-new-model").card(new);
        with_new.candidates.as_mut().unwrap().push(new);
        for policy in [few, with_new] {
            let within = |router: &Router, request: &Request| {
                let handle = router.compile(&policy).unwrap();
                router.route_within(request, &handle).unwrap()
            };
            let decision = within(&both, &small);
            assert_eq!(decision.device, "cpu");
            let found = scores(&decision).into_iter();
            for (found, want) in found.zip(scores(&within(&on_cpu, &small))) {
                // Each has encoded the new card on its own device.
                assert_eq!(found.0, want.0);
                assert!((found.1 - want.1).abs() < 1e-4, "{found:?} {want:?}");
            }
            assert_eq!(within(&both, &large).device, on_gpu.device_name());
        }
        // A decision that a policy withholds says it too.
        let refusing = r#"{"where": "price > 100", "abstain": {}}"#;
        let refusing: Policy = serde_json::from_str(refusing).unwrap();
        let handle = both.compile(&refusing).unwrap();
        let decision = both.route_within(&small, &handle).unwrap();
        assert!(decision.abstained.is_some() && decision.device_reason.is_some());
        // Where only one device computes there is nothing to say.
        assert_eq!(on_cpu.route(&small).unwrap().device_reason, None);
        assert_eq!(on_gpu.route(&small).unwrap().device_reason, None);
    }

    /// As many calls of random lengths as five seconds allow, or as `HUBROUTER_ROUTES` asks for, and
    /// then none has left anything.
    #[test]
    fn many_routes_of_any_lengths_leave_memory_as_it_was() {
        let asked: Option<usize> = std::env::var("HUBROUTER_ROUTES")
            .ok()
            .map(|calls| calls.parse().unwrap());
        let (root, options) = toy("flat");
        let options = options.device(adapter_name().as_str());
        let router = Router::open(root.join("store"), options).unwrap();
        let words = "one two three four five six seven eight nine ten ".repeat(6);
        let route = |tokens: usize, prompts: usize| {
            let request = Request::new(&words[..4 * tokens]).top(1 + tokens % 6);
            for decision in router.route_batch(&vec![request; prompts]) {
                decision.unwrap();
            }
        };
        let longest = router.max_tokens();
        // The first plan is large enough for all batches; one of more rows takes other kernels.
        for prompts in (1..=4).rev() {
            for tokens in (1..=longest).rev().step_by(3) {
                route(tokens, prompts);
            }
        }
        let before = (
            gpu(&router).made(),
            gpu(&router).alive(),
            gpu(&router).memory(),
        );
        let (began, mut random, mut calls) = (Instant::now(), 1u64, 0);
        let more = |calls| match asked {
            Some(asked) => calls < asked,
            None => began.elapsed().as_secs() < 5,
        };
        while more(calls) {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let [a, b, ..] = (random >> 32).to_le_bytes().map(usize::from);
            route(1 + a % longest, 1 + b % 4);
            calls += 1;
        }
        assert!(calls > 20, "{calls} calls");
        let after = (
            gpu(&router).made(),
            gpu(&router).alive(),
            gpu(&router).memory(),
        );
        assert_eq!(after, before, "{calls} calls");
    }

    #[test]
    fn batches_that_are_started_ahead_have_the_answers_of_their_own_calls() {
        let (root, options) = toy("ahead");
        let options = options.device(adapter_name().as_str());
        let router = Router::open(root.join("store"), options).unwrap();
        let prompt = |i: usize| format!("{i} words of a prompt {}", "and more ".repeat(i % 9));
        let prompts: Vec<String> = (0..600).map(prompt).collect();
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let encoder = &router.serving.load().encoder;
        let tokens = encoder.tokenize_prompts(&prompts).into_iter();
        let tokens: Vec<Tokens> = tokens.map(Result::unwrap).collect();
        let batches = encoder.batches(&tokens, usize::MAX);
        assert!(batches.len() > 2, "{} batches", batches.len());
        let bert = encoder.bert().unwrap();
        let alone = batches.iter().map(|batch| encoder.embed_batch(bert, batch));
        let alone: Vec<Vec<f32>> = alone.map(Result::unwrap).collect();
        let together = encoder.embed(&prompts).into_iter().map(Result::unwrap);
        assert_eq!(together.flatten().collect::<Vec<f32>>(), alone.concat());
    }

    #[test]
    fn a_layer_takes_five_dispatches_and_a_route_one_pass_and_a_copy_each_way() {
        let dispatches = |router: &Router| {
            let serving = router.serving.load();
            let tokens = serving
                .encoder
                .tokenize_prompts(&["count the dispatches"])
                .remove(0)
                .unwrap();
            let tokens = [tokens];
            let rank = || serving.rank(&tokens, 10).unwrap();
            let before = [rank(), rank()].map(|ranked| ranked.counts.ahead);
            let counts = rank().counts;
            assert_eq!(
                (counts.passes, counts.copies_in, counts.copies_out),
                (1, 1, 1)
            );
            // The GPU had the third before there was a prompt.
            assert_eq!((before, counts.ahead), ([false, false], true));
            (counts.dispatches, serving.encoder.config().layers)
        };
        // One encoding: embed, the layers, pool. Then projection, the memory's projection, score and
        // finish.
        let router = on_gpu(false);
        let (with_memory, layers) = dispatches(&router);
        let remembered = router.serving.load().index.recall().unwrap().layers.len();
        assert_eq!(remembered, 4);
        assert_eq!(with_memory, 5 * layers + 6);
        // Its zero-shot parent: embed, pool, projection, score, finish.
        let options = Options::default().device(adapter_name().as_str());
        let options = options.encoder(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/weights/all-MiniLM-L6-v2"
        ));
        let parent = Router::open(PARENT, options).unwrap();
        assert_eq!(dispatches(&parent).0, 5 * layers + 5);
    }

    #[test]
    fn a_lost_device_is_an_error_or_a_visible_step_down() {
        let request = Request::new("Translate this letter into Spanish.");
        let want = Router::open(STORE, Options::default().device("cpu"))
            .unwrap()
            .route(&request)
            .unwrap();

        let strict = on_gpu(false);
        gpu(&strict).lose();
        assert_eq!(
            strict.route(&request).unwrap_err().kind(),
            ErrorKind::DeviceLost
        );
        assert_eq!(
            strict.route(&request).unwrap_err().kind(),
            ErrorKind::DeviceLost
        );

        let lenient = on_gpu(true);
        assert_eq!(lenient.route(&request).unwrap().degraded, None);
        gpu(&lenient).lose();
        for _ in 0..2 {
            let decision = lenient.route(&request).unwrap();
            assert_eq!(decision.device, "cpu");
            assert!(decision.degraded.is_some_and(|why| why.contains("lost")));
            assert_eq!(decision.ranked[0].model, want.ranked[0].model);
            assert_eq!(decision.ranked[0].score, want.ranked[0].score);
        }
    }

    #[test]
    fn opening_compiles_what_a_first_route_dispatches_and_a_long_prompt_the_rest() {
        let router = on_gpu(false);
        let opened = gpu(&router).pipelines();
        assert_eq!(opened, 8);
        let route = |prompt: &str| {
            for k in [1, 10, usize::MAX] {
                router.route(&Request::new(prompt).top(k)).unwrap();
            }
            gpu(&router).pipelines()
        };
        assert_eq!(route("a short prompt"), opened);
        let long = "and one with as many tokens as a prompt may have ".repeat(20);
        assert_eq!(route(&long), opened);
        // Of `linear_tiled` two kernels, with a norm and with a sum; `score` for many.
        let requests = [&*long; 5].map(Request::new);
        for _ in 0..2 {
            for decision in router.route_batch(&requests) {
                decision.unwrap();
            }
            assert_eq!(gpu(&router).pipelines(), opened + 3);
        }
    }

    #[test]
    fn low_precision_is_refused_on_a_gpu() {
        for precision in [Precision::Int8, Precision::Bf16] {
            let options = Options::default().device(adapter_name().as_str());
            let error = Router::open(STORE, options.precision(precision)).err();
            let error = error.unwrap().to_string();
            let want = format!("precision {precision}: expected the device cpu");
            assert!(error.contains(&want), "{error}");
        }
    }
}
