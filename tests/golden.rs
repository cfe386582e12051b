//! Tokens, every layer, pooled vectors and ranks against PyTorch and transformers
//! (tests/fixtures/README.md says how the goldens were made).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Folder, bundle, cpu, fixture, store, worst};
use hubrouter::{Encoder, ErrorKind, ImportOptions, Options, Request, Router, import_encoder};
use safetensors::SafeTensors;
use serde::Deserialize;

/// Bound of every stage against the golden, over 1 + |want|.
const BOUND: f64 = 2e-5;

struct Golden {
    prompts: Vec<String>,
    kept: Vec<Vec<usize>>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

#[derive(Deserialize)]
struct Meta {
    prompts: Vec<String>,
    kept: Vec<Vec<usize>>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let meta: Meta =
            serde_json::from_slice(&std::fs::read(fixture(&format!("{name}.json"))).unwrap())
                .unwrap();
        let bytes = std::fs::read(fixture(&format!("{name}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = tensors
            .tensors()
            .into_iter()
            .map(|(name, t)| (name, (t.shape().to_vec(), t.data().to_vec())));
        Self {
            prompts: meta.prompts,
            kept: meta.kept,
            tensors: tensors.collect(),
        }
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.tensors[name]
            .1
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.tensors[name]
            .1
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    /// The worst error of any stage of any prompt.
    fn compare(&self, encoder: &Encoder, prefix: &str) -> f64 {
        let width = encoder.width();
        let mut found = 0.0f64;
        for (i, prompt) in self.prompts.iter().enumerate() {
            let prompt = prompt.strip_prefix(prefix).unwrap();
            let trace = encoder.trace(prompt).unwrap();
            assert_eq!(trace.ids, self.ids(&format!("{i}.ids")), "{prompt:?}");
            let shape = &self.tensors[&format!("{i}.states")].0;
            assert_eq!(
                (trace.layers.len(), self.kept[i].len()),
                (shape[0], shape[1])
            );
            let states = self.f32(&format!("{i}.states"));
            for (layer, want) in trace
                .layers
                .iter()
                .zip(states.chunks_exact(shape[1] * width))
            {
                let got: Vec<f32> = self.kept[i]
                    .iter()
                    .flat_map(|t| &layer[t * width..][..width])
                    .copied()
                    .collect();
                found = found.max(worst(&got, want));
            }
            found = found.max(worst(&trace.pooled, &self.f32(&format!("{i}.pooled"))));
        }
        found
    }
}

#[test]
fn minilm_equals_pytorch_at_every_layer_on_the_cpu() {
    let golden = Golden::read("minilm");
    for threads in [1, 2] {
        let encoder = Encoder::open(bundle(), &cpu(threads)).unwrap();
        let error = golden.compare(&encoder, "");
        println!("cpu, {threads} threads: {error:.1e}");
        assert!(error < BOUND, "{error:e}");
    }
}

#[cfg(feature = "gpu")]
#[test]
fn minilm_equals_pytorch_at_every_layer_on_the_gpu() {
    let encoder = Encoder::open(bundle(), &common::gpu()).unwrap();
    let error = Golden::read("minilm").compare(&encoder, "");
    println!("{}: {error:.1e}", encoder.device_name());
    assert!(error < BOUND, "{error:e}");
}

fn imported(name: &str, folder: &Folder, options: &ImportOptions) -> Encoder {
    let to = folder.join(name);
    import_encoder(fixture(name), &to, options).unwrap();
    Encoder::open(&to, &cpu(1)).unwrap()
}

#[test]
fn other_families_equal_pytorch_after_import() {
    let folder = Folder::new("families");
    for (name, prefix) in [("toy-bert", "route: "), ("toy-xlm-roberta", "")] {
        let encoder = imported(name, &folder, &ImportOptions::default());
        let golden = Golden::read(name);
        let error = golden.compare(&encoder, prefix);
        println!("{name}: {error:.1e}");
        assert!(error < BOUND, "{name}: {error:e}");
        #[cfg(feature = "gpu")]
        {
            let on_gpu = Encoder::open(folder.join(name), &common::gpu()).unwrap();
            let error = golden.compare(&on_gpu, prefix);
            println!("{name} on {}: {error:.1e}", on_gpu.device_name());
            assert!(error < BOUND, "{name}: {error:e}");
        }
    }
}

#[test]
fn the_comparison_sees_another_pooling_and_a_swapped_weight() {
    let folder = Folder::new("negative");
    let mut mean = ImportOptions::default();
    mean.pooling = Some("mean".into());
    let encoder = imported("toy-bert", &folder, &mean);
    assert!(Golden::read("toy-bert").compare(&encoder, "route: ") > 1e-3);

    // Query and key of layer 0 change places.
    let from = folder.join("swapped-checkpoint");
    common::copy(&fixture("toy-xlm-roberta"), &from);
    let path = from.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let swapped = tensors.tensors().into_iter().map(|(name, view)| {
        let name = match name.as_str() {
            "encoder.layer.0.attention.self.query.weight" => {
                "encoder.layer.0.attention.self.value.weight".into()
            }
            "encoder.layer.0.attention.self.value.weight" => {
                "encoder.layer.0.attention.self.query.weight".into()
            }
            _ => name,
        };
        (name, view)
    });
    std::fs::write(&path, safetensors::serialize(swapped, None).unwrap()).unwrap();
    let to = folder.join("swapped");
    import_encoder(&from, &to, &ImportOptions::default()).unwrap();
    let encoder = Encoder::open(&to, &cpu(1)).unwrap();
    assert!(Golden::read("toy-xlm-roberta").compare(&encoder, "") > 1e-3);
}

#[derive(Deserialize)]
struct TokenCase {
    text: String,
    repeat: usize,
    ids: Vec<u32>,
    truncated: bool,
}

#[test]
fn a_thousand_varied_prompts_have_the_reference_tokens() {
    let encoder = Encoder::open(bundle(), &cpu(1)).unwrap();
    let lines = std::fs::read_to_string(fixture("tokens.jsonl")).unwrap();
    let (mut answered, mut empty) = (0, 0);
    for line in lines.lines() {
        let case: TokenCase = serde_json::from_str(line).unwrap();
        let text = case.text.repeat(case.repeat);
        match encoder.token_ids(&[&text]).remove(0) {
            Ok(ids) => {
                assert_eq!(ids, case.ids, "{:?} x {}", case.text, case.repeat);
                answered += 1;
            }
            // By decision a prompt without tokens of its own is an error, never NaN.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidRequest);
                assert_eq!(case.ids, [101, 102], "{:?}", case.text);
                empty += 1;
            }
        }
        assert!(!case.truncated || case.ids.len() == 128);
    }
    assert_eq!(answered + empty, 1000);
    assert!(
        answered > 900 && empty > 10,
        "{answered} answered, {empty} empty"
    );
}

#[derive(Deserialize)]
struct Routes {
    generation: String,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    prompt: String,
    ranked: Vec<RankedModel>,
    domain: Domain,
}

#[derive(Deserialize)]
struct RankedModel {
    id: u32,
    model: String,
    score: f32,
    probability: f32,
}

#[derive(Deserialize)]
struct Domain {
    domain: String,
    score: f32,
}

/// Bound of a score: a cosine within 1e-4, divided by tau.
const SCORE: f32 = 1e-4 / 0.08;

fn routes_equal_pytorch(options: Options) {
    let routes: Routes =
        serde_json::from_slice(&std::fs::read(fixture("routes.json")).unwrap()).unwrap();
    let folder = Folder::new("routes");
    // The generation that the golden was made with, whatever the store serves now.
    let copy = common::copied_store(&folder);
    std::fs::write(copy.join("current"), format!("{}\n", routes.generation)).unwrap();
    let router = Router::open(&copy, options).unwrap();
    for answer in routes.answers {
        let decision = router.route(&Request::new(answer.prompt.as_str())).unwrap();
        assert_eq!(decision.revisions.generation.as_str(), routes.generation);
        for (got, want) in decision.ranked.iter().zip(&answer.ranked) {
            assert!((got.score - want.score).abs() < SCORE, "{got:?}");
            assert!((got.probability - want.probability).abs() < 1e-5, "{got:?}");
            // A rank may differ only between scores that are closer than the bound.
            let same = answer.ranked.iter().find(|want| want.id == got.id.0);
            assert!(same.is_none_or(|same| *got.model == *same.model), "{got:?}");
            assert!(
                got.id.0 == want.id || (got.score - want.score).abs() < SCORE,
                "{got:?}"
            );
        }
        let best = &decision.domains[0];
        assert_eq!(best.domain.to_lowercase(), answer.domain.domain);
        assert!((best.score - answer.domain.score).abs() < SCORE, "{best:?}");
    }
}

#[test]
fn ranks_equal_pytorch_on_the_cpu() {
    assert!(Path::new(&store()).is_dir());
    routes_equal_pytorch(cpu(2));
}

#[cfg(feature = "gpu")]
#[test]
fn ranks_equal_pytorch_on_the_gpu() {
    routes_equal_pytorch(common::gpu());
}

/// The limit on tokens is the bundle's unless the host says another, up to the encoder's positions.
#[test]
fn a_host_sets_the_limit_on_tokens() {
    let long = "hello ".repeat(600);
    let ids = |options: Options| {
        let encoder = Encoder::open(bundle(), &options).unwrap();
        let ids = encoder.token_ids(&[&long]).remove(0).unwrap();
        assert_eq!(ids.len(), encoder.max_tokens());
        ids
    };
    let (usual, longer) = (ids(cpu(1)), ids(cpu(1).max_tokens(256)));
    assert_eq!((usual.len(), longer.len()), (128, 256));
    assert_eq!(usual[..127], longer[..127]);
    for (limit, says) in [
        (
            513,
            "max_tokens: expected at most 512, for which encoder all-MiniLM-L6-v2 has positions, found 513",
        ),
        (
            2,
            "max_tokens: a limit of 2 tokens leaves no room beside 2 special ones",
        ),
    ] {
        let error = Encoder::open(bundle(), &cpu(1).max_tokens(limit))
            .err()
            .unwrap();
        assert!(error.to_string().contains(says), "{error}");
    }
    let options: Options = serde_json::from_str(r#"{"max_tokens": 200}"#).unwrap();
    assert_eq!(options.max_tokens, Some(200));
}
