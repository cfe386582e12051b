//! In and out: exports that come back with the same vectors, adapters in PEFT's form, routers of
//! other programs, and what of them is refused by name.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Folder, copy, cpu, fixture, toy, worst};
use half::f16;
use hubrouter::exchange::{Adopted, AdoptedHead, adopt, export, import};
use hubrouter::learn::{self, MemoryFate};
use hubrouter::{
    Encoder, Error, ErrorKind, ImportOptions, ModelCard, Options, Request, Router, Store,
    import_encoder,
};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde_json::{Value, json};

/// The maps of a layer, as checkpoints call them; (in, out) of the toy.
const MAPS: [(&str, usize, usize); 6] = [
    ("attention.self.query", 40, 40),
    ("attention.self.key", 40, 40),
    ("attention.self.value", 40, 40),
    ("attention.output.dense", 40, 40),
    ("intermediate.dense", 40, 72),
    ("output.dense", 72, 40),
];

fn corpus(name: &str) -> PathBuf {
    Path::new(common::ROOT).join("tests/corpus").join(name)
}

/// The toy's bundle in f16, to which the stores of the corpus belong.
fn bundle() -> PathBuf {
    corpus("bundles/toy-bert")
}

fn options() -> Options {
    cpu(1).encoder(bundle())
}

/// A copy of a store of the corpus.
fn store(folder: &Folder, name: &str) -> Store {
    let to = folder.join(name);
    copy(&corpus("stores").join(name), &to);
    Store::open(to).unwrap()
}

fn exported(store: &Store, to: &Path, options: &Options) -> Value {
    let id = store.current().unwrap();
    export(store, &id, to, options).unwrap();
    read_json(&to.join("router.json"))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn write_json(path: &Path, value: &Value) {
    fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

/// Shape and values of the tensors of a file, widened.
fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let all = file.tensors().into_iter();
    all.map(|(name, view)| {
        let values = match view.dtype() {
            Dtype::F16 => {
                let halves = view.data().chunks_exact(2);
                halves
                    .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                    .collect()
            }
            _ => {
                let floats = view.data().chunks_exact(4);
                floats
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect()
            }
        };
        (name, (view.shape().to_vec(), values))
    })
    .collect()
}

/// As [`tensors`], those whose names end so.
fn tensors_of_kind(path: &Path, end: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut all = tensors(path);
    all.retain(|name, _| name.ends_with(end));
    all
}

fn write_tensors(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            (name.clone(), shape.clone(), bytes.collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name, view)
    });
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// Numbers that look random, in -0.3 to 0.3.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).max(1);
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state % 1000) as f32 / 1000.0 * 0.6 - 0.3
    };
    (0..count).map(next).collect()
}

/// An adapter in PEFT's form: ranks of the maps by layer and path.
struct Peft {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Peft {
    fn new(ranks: &[(usize, &str, usize)]) -> Self {
        let mut tensors = BTreeMap::new();
        for (seed, (layer, path, rank)) in ranks.iter().enumerate() {
            let (_, inputs, outputs) = MAPS.iter().find(|map| map.0 == *path).unwrap();
            let name = format!("base_model.model.encoder.layer.{layer}.{path}");
            let seed = u32::try_from(seed).unwrap();
            tensors.insert(
                format!("{name}.lora_A.weight"),
                (vec![*rank, *inputs], noise(rank * inputs, 2 * seed + 1)),
            );
            tensors.insert(
                format!("{name}.lora_B.weight"),
                (vec![*outputs, *rank], noise(rank * outputs, 2 * seed + 2)),
            );
        }
        let config = json!({
            "peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "r": ranks[0].2,
            "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none", "fan_in_fan_out": false,
            "base_model_name_or_path": "acme/toy-bert", "modules_to_save": null,
            "use_dora": false, "use_rslora": false, "rank_pattern": {}, "alpha_pattern": {},
            "target_modules": ["query", "output.dense"], "qalora_group_size": 16,
            "megatron_core": "megatron.core", "megatron_config": null, "loftq_config": {},
            "init_lora_weights": true, "inference_mode": true,
        });
        Self { config, tensors }
    }

    /// Query and output of both layers.
    fn usual() -> Self {
        let layers = [0, 1].into_iter();
        let maps = layers.flat_map(|layer| {
            [
                "attention.self.query",
                "output.dense",
                "attention.output.dense",
            ]
            .map(|path| (layer, path, 4))
        });
        Self::new(&maps.collect::<Vec<_>>())
    }

    fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        write_json(&folder.join("adapter_config.json"), &self.config);
        write_tensors(&folder.join("adapter_model.safetensors"), &self.tensors);
    }

    /// `scale` Lb La of a map, in f64.
    fn change(&self, layer: usize, path: &str, scale: f64) -> Vec<f64> {
        let name = format!("base_model.model.encoder.layer.{layer}.{path}");
        let (shape, a) = &self.tensors[&format!("{name}.lora_A.weight")];
        let (_, b) = &self.tensors[&format!("{name}.lora_B.weight")];
        let (rank, inputs) = (shape[0], shape[1]);
        let rows = b.chunks_exact(rank);
        rows.flat_map(|row| {
            (0..inputs).map(move |i| {
                let products = row.iter().enumerate();
                let sum: f64 = products
                    .map(|(k, b)| f64::from(*b) * f64::from(a[k * inputs + i]))
                    .sum();
                scale * sum
            })
        })
        .collect()
    }
}

/// A zero-shot store of the toy in f32, and its encoder.
fn f32_store(name: &str) -> toy::Setup {
    let mut import = ImportOptions::default();
    import.dtype = Some("f32".into());
    toy::setup_with(name, &import)
}

fn adopted(setup: &toy::Setup, peft: &Peft) -> Result<Adopted, Error> {
    let folder = setup.folder.join("peft");
    let _ = fs::remove_dir_all(&folder);
    peft.write(&folder);
    let store = Store::open(&setup.store).unwrap();
    adopt(&store, &folder, &[], false, &cpu(1).encoder(&setup.encoder))
}

/// The largest difference of the change that a store's merged encoder makes to a map from `want`.
fn distance(setup: &toy::Setup, to: &str, layer: usize, path: &str, want: &[f64]) -> f64 {
    let to = setup.folder.join(to);
    if !to.exists() {
        let store = Store::open(&setup.store).unwrap();
        exported(&store, &to, &cpu(1).encoder(&setup.encoder));
    }
    let name = format!("encoder.layer.{layer}.{path}.weight");
    let of = |folder: &str| {
        tensors(&to.join(folder).join("model.safetensors"))[&name]
            .1
            .clone()
    };
    let (base, merged) = (of("base"), of("sentence-transformers"));
    let found = merged
        .iter()
        .zip(base)
        .map(|(m, b)| f64::from(*m) - f64::from(b));
    found
        .zip(want)
        .fold(0.0, |worst, (found, want)| worst.max((found - want).abs()))
}

#[test]
fn an_export_has_all_parts_and_is_whole() {
    let folder = Folder::new("export");
    let store = store(&folder, "learned");
    let to = folder.join("out");
    let id = store.current().unwrap();
    let report = export(&store, &id, &to, &options()).unwrap();
    assert_eq!(
        (report.models, report.width, &report.generation),
        (8, 40, &id)
    );
    assert_eq!(report.adapter.unwrap().r, 4);
    assert!(report.notes.iter().any(|note| note.contains("memory")));
    let router = read_json(&to.join("router.json"));
    assert_eq!(router["merged_in"], "f16");
    assert_eq!(router["encoder"]["query_prefix"], "route: ");
    let files = router["files"].as_object().unwrap();
    let mut found = Vec::new();
    let mut folders = vec![to.clone()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(&to).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    found.retain(|name| name != "router.json");
    found.sort();
    let mut listed: Vec<String> = files.keys().cloned().collect();
    listed.sort();
    assert_eq!(found, listed);
    let named = [
        "adapter/adapter_config.json",
        "base/1_Pooling/config.json",
        "base/tokenizer_config.json",
        "sentence-transformers/2_Dense/model.safetensors",
        "sentence-transformers/modules.json",
    ];
    assert!(
        named.iter().all(|name| files.contains_key(*name)),
        "{listed:?}"
    );
    // The pad token is the one that config.json numbers.
    let tokens = read_json(&to.join("base/tokenizer_config.json"));
    assert_eq!(
        (&tokens["pad_token"], &tokens["model_max_length"]),
        (&json!("[PAD]"), &json!(40))
    );
    // Nothing else is left, and a second export does not touch the first.
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2);
    let error = export(&store, &id, &to, &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[test]
fn an_export_comes_back_as_the_same_router() {
    let folder = Folder::new("round");
    let store = store(&folder, "learned");
    let out = folder.join("out");
    let router = exported(&store, &out, &options());
    let encoder = Arc::new(Encoder::open(bundle(), &options()).unwrap());
    let back = folder.join("back");
    let imported = import(&out, &back, &[], &encoder, &mut |_, _| {}).unwrap();
    assert_eq!((imported.models, imported.rank), (8, Some(4)));
    assert_eq!(imported.notes, Vec::<String>::new());
    let before = store.root().join(store.current().unwrap().as_str());
    let after = back.join(imported.generation.as_str());
    for part in [
        "hub.json",
        "head.safetensors",
        "adapter.safetensors",
        "cards.safetensors",
    ] {
        let read = |folder: &Path| fs::read(folder.join(part)).unwrap();
        assert_eq!(read(&before), read(&after), "{part}");
    }
    // The scores of the new router are the samples' learned scores.
    let samples = tensors(&out.join("samples.safetensors"));
    let (shape, learned) = &samples["learned"];
    let prompts = router["prompts"].as_array().unwrap();
    assert!(prompts.len() >= 8 && *shape == [prompts.len(), 8]);
    let served = Router::open(&back, options()).unwrap();
    let names: Vec<&str> = router["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["name"].as_str().unwrap())
        .collect();
    for (prompt, want) in prompts.iter().zip(learned.chunks_exact(8)) {
        let request = Request::new(prompt.as_str().unwrap()).top(8);
        let decision = served.route(&request).unwrap();
        assert!(decision.ranked.len() >= 6);
        for ranked in &decision.ranked {
            let place = names
                .iter()
                .position(|name| *name == &*ranked.model)
                .unwrap();
            let error = f64::from((ranked.score - want[place]).abs());
            assert!(error < 2e-5 * 13.5, "{prompt}: {error}");
        }
    }
    // It learns on: the parts that learning checks are whole.
    let back = Store::open(&back).unwrap();
    learn::check(&back, &imported.generation).unwrap();
}

#[test]
fn the_exported_encoders_give_the_same_vectors() {
    let folder = Folder::new("vectors");
    let store = store(&folder, "learned");
    let out = folder.join("out");
    let router = exported(&store, &out, &options());
    let prompts: Vec<&str> = router["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prompt| prompt.as_str().unwrap())
        .collect();
    let vectors = |bundle: &Path| -> Vec<Vec<f32>> {
        let encoder = Encoder::open(bundle, &cpu(1)).unwrap();
        let vectors = encoder.embed(&prompts).into_iter();
        vectors.map(Result::unwrap).collect()
    };
    // The encoder as it came: the same weights, bit for bit.
    let base = folder.join("base");
    let imported = import_encoder(out.join("base"), &base, &ImportOptions::default()).unwrap();
    assert_eq!(
        (imported.dtype.as_str(), imported.licence.as_str()),
        ("f16", "mit")
    );
    let own = bundle();
    assert_eq!(vectors(&base), vectors(&own));
    // The merged one, up to its pooling, as it serves.
    let merged = out.join("sentence-transformers");
    let error = import_encoder(&merged, folder.join("no"), &ImportOptions::default());
    let error = error.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unsupported && error.to_string().contains("Dense"),
        "{error}"
    );
    let list = read_json(&merged.join("modules.json"));
    let kinds: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|module| module["type"].as_str().unwrap().rsplit('.').next().unwrap())
        .collect();
    assert_eq!(kinds, ["Transformer", "Pooling", "Dense", "Normalize"]);
    let bundle = folder.join("merged");
    merged_bundle(&out, &bundle);
    let samples = tensors(&out.join("samples.safetensors"));
    let error = worst(&vectors(&bundle).concat(), &samples["pooled"].1);
    assert!(error < 2e-5, "{error}");
    // Dense is W, and the queries are norm(W h).
    let dense = tensors(&merged.join("2_Dense/model.safetensors"));
    let head = tensors(&out.join("router.safetensors"));
    assert_eq!(dense["linear.weight"], head["prompt_projection.weight"]);
    let w = &dense["linear.weight"].1;
    let pooled = samples["pooled"].1.chunks_exact(40);
    for (h, u) in pooled.zip(samples["queries"].1.chunks_exact(40)) {
        let product = |w: &[f32]| -> f64 {
            let all = w.iter().zip(h);
            all.map(|(w, h)| f64::from(*w) * f64::from(*h)).sum()
        };
        let z: Vec<f64> = w.chunks_exact(40).map(product).collect();
        let length = z.iter().map(|z| z * z).sum::<f64>().sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "to compare")]
        let want: Vec<f32> = z.iter().map(|z| (z / length) as f32).collect();
        assert!(worst(u, &want) < 1e-6);
    }
    // The tokens are those of the encoder.
    let bytes = fs::read(out.join("samples.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let encoder = Encoder::open(own, &cpu(1)).unwrap();
    for (place, ids) in encoder.token_ids(&prompts).into_iter().enumerate() {
        let found = file.tensor(&format!("{place}.ids")).unwrap();
        let found: Vec<u32> = found
            .data()
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        assert_eq!(found, ids.unwrap());
    }
}

#[test]
fn a_zero_shot_generation_has_no_adapter_and_stays_one() {
    let folder = Folder::new("zero-shot");
    let store = store(&folder, "built");
    let out = folder.join("out");
    let router = exported(&store, &out, &options());
    assert_eq!(
        (&router["adapter"], &router["trained"]),
        (&Value::Null, &json!(false))
    );
    assert!(!out.join("adapter").exists());
    assert!(!out.join("sentence-transformers/2_Dense").exists());
    // Normalize is accepted and said.
    let to = folder.join("bundle");
    let imported = import_encoder(out.join("sentence-transformers"), to, &Default::default());
    let notes = imported.unwrap().notes;
    assert!(
        notes.iter().any(|note| note.contains("normalises")),
        "{notes:?}"
    );
    let encoder = Arc::new(Encoder::open(bundle(), &options()).unwrap());
    let back = folder.join("back");
    let imported = import(&out, &back, &[], &encoder, &mut |_, _| {}).unwrap();
    let back = Store::open(back).unwrap();
    let manifest = back.manifest(&imported.generation).unwrap();
    assert!(manifest.learned.is_none() && imported.rank.is_none());
    let retired = |store: &Store| store.hub(&store.current().unwrap()).unwrap();
    assert_eq!(*retired(&back), *retired(&store));
    // The same call completes what was begun; another router is refused.
    let again = import(&out, back.root(), &[], &encoder, &mut |_, _| {}).unwrap();
    assert_eq!(again.generation, imported.generation);
}

#[test]
fn the_scale_and_the_factors_are_pefts() {
    // alpha / r = 2 on every map; missing maps stay.
    let setup = f32_store("plain");
    let peft = Peft::usual();
    let report = adopted(&setup, &peft).unwrap();
    assert_eq!(report.rank, Some(4));
    assert_eq!(report.targets, ["query", "attention_output", "output"]);
    assert_eq!(report.head, AdoptedHead::Parent);
    for (layer, path) in [(0, "attention.self.query"), (1, "output.dense")] {
        let error = distance(&setup, "out", layer, path, &peft.change(layer, path, 2.0));
        assert!(error < 1e-6, "{path}: {error}");
    }
    let zero = vec![0.0; 40 * 40];
    assert_eq!(distance(&setup, "out", 0, "attention.self.key", &zero), 0.0);
    // The negative control of the comparison itself.
    let off = peft.change(0, "attention.self.query", 2.001);
    assert!(distance(&setup, "out", 0, "attention.self.query", &off) > 1e-4);
}

#[test]
fn one_layer_two_ranks_and_rank_stabilised_scales_come_in() {
    let setup = f32_store("variants");
    let mut peft = Peft::new(&[(1, "attention.self.query", 4), (1, "output.dense", 2)]);
    peft.config["rank_pattern"] = json!({"output.dense": 2});
    peft.config["use_rslora"] = true.into();
    peft.config["layers_to_transform"] = json!([1]);
    // A list would name attention.output.dense as well.
    peft.config["target_modules"] = r".*layer\.\d+\.(attention\.self\.query|output\.dense)".into();
    let report = adopted(&setup, &peft).unwrap();
    let notes = report.notes.join("\n");
    assert!(
        notes.contains("rslora") && notes.contains("rank_pattern"),
        "{notes}"
    );
    assert!(notes.contains("2 of 4 maps have no factors"), "{notes}");
    let root = 2f64.sqrt();
    for (path, scale) in [
        ("attention.self.query", 8.0 / 2.0),
        ("output.dense", 8.0 / root),
    ] {
        let error = distance(&setup, "out", 1, path, &peft.change(1, path, scale));
        assert!(error < 2e-6, "{path}: {error}");
    }
    let zero = vec![0.0; 40 * 40];
    assert_eq!(
        distance(&setup, "out", 0, "attention.self.query", &zero),
        0.0
    );
}

/// The merged encoder of an export, up to its pooling, as a bundle.
fn merged_bundle(out: &Path, to: &Path) {
    let merged = out.join("sentence-transformers");
    let modules = merged.join("modules.json");
    let mut list = read_json(&modules);
    list.as_array_mut().unwrap().truncate(2);
    write_json(&modules, &list);
    import_encoder(&merged, to, &ImportOptions::default()).unwrap();
}

#[test]
fn adapters_that_peft_saved_give_pefts_vectors() {
    for (name, rank, note) in [
        ("toy-bert", 2, "pooler.dense"),
        ("toy-xlm-roberta", 3, "2 of 6 maps have no factors"),
    ] {
        let folder = Folder::new("peft");
        let encoder = folder.join(name);
        let mut f32 = ImportOptions::default();
        f32.dtype = Some("f32".into());
        import_encoder(fixture(name), &encoder, &f32).unwrap();
        let options = cpu(1).encoder(&encoder);
        let open = Arc::new(Encoder::open(&encoder, &options).unwrap());
        let store = Store::create(folder.join("store")).unwrap();
        store
            .build(&open, &[toy::model(0)], "hub build", &mut |_, _| {})
            .unwrap();
        let from = fixture(&format!("peft-{name}"));
        let report = adopt(&store, from, &[], false, &options).unwrap();
        assert_eq!(report.rank, Some(rank));
        let notes = report.notes.join("\n");
        assert!(notes.contains(note), "{notes}");
        let (out, bundle) = (folder.join("out"), folder.join("merged"));
        let router = exported(&store, &out, &options);
        assert_eq!(router["merged_in"], "f32");
        merged_bundle(&out, &bundle);
        let adapted = Encoder::open(&bundle, &cpu(1)).unwrap();
        let said = read_json(&fixture(&format!("{name}.json")));
        let golden = tensors(&fixture(&format!("peft-{name}.safetensors")));
        let before = tensors_of_kind(&fixture(&format!("{name}.safetensors")), "pooled");
        for (i, prompt) in said["prompts"].as_array().unwrap().iter().enumerate() {
            let prompt = prompt.as_str().unwrap();
            let text = prompt.strip_prefix("route: ").unwrap_or(prompt);
            let vector = adapted.embed(&[text]).remove(0).unwrap();
            let want = &golden[&format!("{i}.pooled")].1;
            let error = worst(&vector, want);
            assert!(error < 2e-5, "{name} {i}: {error}");
            // It is the adapter that makes the vector.
            assert!(worst(want, &before[&format!("{i}.pooled")].1) > 1e-2);
        }
    }
}

#[test]
fn names_of_other_models_and_a_pooler_come_in() {
    let setup = f32_store("names");
    let mut peft = Peft::usual();
    let named = std::mem::take(&mut peft.tensors);
    peft.tensors = named
        .into_iter()
        .map(|(name, tensor)| (name.replace(".encoder.", ".bert.encoder."), tensor))
        .collect();
    for part in ["A", "B"] {
        let shape = if part == "A" {
            vec![4, 40]
        } else {
            vec![40, 4]
        };
        peft.tensors.insert(
            format!("base_model.model.bert.pooler.dense.lora_{part}.weight"),
            (shape, noise(160, 9)),
        );
    }
    peft.config["target_modules"] = ".*(query|dense)".into();
    peft.config["base_model_name_or_path"] = "acme/other".into();
    let notes = adopted(&setup, &peft).unwrap().notes.join("\n");
    assert!(
        notes.contains("pooler") && notes.contains("acme/other"),
        "{notes}"
    );
}

#[test]
fn what_is_no_plain_lora_is_refused_by_name() {
    type Change = Box<dyn Fn(&mut Peft)>;
    let set = |field: &'static str, value: Value| -> Change {
        Box::new(move |peft: &mut Peft| peft.config[field] = value.clone())
    };
    let query = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight";
    let tensor = |name: &'static str, shape: Vec<usize>, value: f32| -> Change {
        Box::new(move |peft: &mut Peft| {
            let values = vec![value; shape.iter().product()];
            peft.tensors.insert(name.into(), (shape.clone(), values));
        })
    };
    let remove = |end: &'static str| -> Change {
        Box::new(move |peft: &mut Peft| peft.tensors.retain(|name, _| !name.ends_with(end)))
    };
    let (mismatch, unsupported) = (ErrorKind::Mismatch, ErrorKind::Unsupported);
    let cases: Vec<(Change, ErrorKind, &str)> = vec![
        (set("peft_type", "IA3".into()), unsupported, "peft_type"),
        (set("bias", "all".into()), unsupported, "bias"),
        (set("use_dora", true.into()), unsupported, "use_dora"),
        (set("lora_bias", true.into()), unsupported, "lora_bias"),
        (
            set("modules_to_save", json!(["classifier"])),
            unsupported,
            "modules_to_save",
        ),
        (
            set("fan_in_fan_out", true.into()),
            unsupported,
            "fan_in_fan_out",
        ),
        (
            set("alpha_pattern", json!({"query": 4})),
            unsupported,
            "alpha_pattern",
        ),
        (
            set("layer_replication", json!([[0, 1]])),
            unsupported,
            "layer_replication",
        ),
        (
            set("trainable_token_indices", json!([1])),
            unsupported,
            "trainable_token_indices",
        ),
        (
            set("init_lora_weights", "pissa".into()),
            unsupported,
            "init_lora_weights",
        ),
        (set("a_later_field", 1.into()), unsupported, "a_later_field"),
        (
            set("r", 0.into()),
            unsupported,
            "r: expected a rank from 1 to 1024, found 0",
        ),
        (set("r", u64::MAX.into()), unsupported, "r: expected a rank"),
        (
            set("r", 8.into()),
            mismatch,
            "expected rank 8, as r says, found 4",
        ),
        (set("lora_alpha", "8".into()), unsupported, "lora_alpha"),
        (set("lora_alpha", 0.into()), unsupported, "lora_alpha"),
        (set("lora_alpha", 1e300.into()), unsupported, "lora_alpha"),
        (
            set("target_modules", json!(["query", "key"])),
            mismatch,
            "attention.self.key",
        ),
        (
            tensor(query, vec![4, 41], 0.0),
            mismatch,
            "expected [4, 40], found [4, 41]",
        ),
        (
            tensor(query, vec![4, 40], f32::NAN),
            ErrorKind::Numeric,
            "query.lora_A.weight: element 0",
        ),
        (tensor(query, vec![160], 0.0), mismatch, "found 160"),
        (
            tensor(
                "base_model.model.encoder.layer.2.output.dense.lora_A.weight",
                vec![4, 72],
                0.0,
            ),
            mismatch,
            "expected a layer below 2",
        ),
        (
            tensor(
                "base_model.model.embeddings.word_embeddings.lora_embedding_A",
                vec![4, 220],
                0.0,
            ),
            unsupported,
            "lora_embedding_A",
        ),
        (
            tensor(
                "base_model.model.other.encoder.layer.0.output.dense.lora_A.weight",
                vec![4, 72],
                0.0,
            ),
            mismatch,
            "other.encoder.layer.0.output.dense.lora_B.weight",
        ),
        (
            remove("1.output.dense.lora_B.weight"),
            mismatch,
            "no such tensor",
        ),
        (
            remove("1.output.dense.lora_A.weight"),
            mismatch,
            "1.output.dense.lora_A.weight",
        ),
        (remove("weight"), mismatch, "at least one map"),
    ];
    let setup = f32_store("refused");
    let store = Store::open(&setup.store).unwrap();
    let before = store.ids().unwrap();
    for (change, kind, says) in cases {
        let mut peft = Peft::usual();
        change(&mut peft);
        let error = adopted(&setup, &peft).err();
        let error = error.unwrap_or_else(|| panic!("{says}: accepted"));
        assert!(
            error.kind() == kind && error.to_string().contains(says),
            "{says}: {error:?}"
        );
        assert_eq!(store.ids().unwrap(), before);
    }
    // A pickle is not read.
    let folder = setup.folder.join("peft");
    Peft::usual().write(&folder);
    let bin = folder.join("adapter_model.bin");
    fs::rename(folder.join("adapter_model.safetensors"), bin).unwrap();
    let options = cpu(1).encoder(&setup.encoder);
    let error = adopt(&store, &folder, &[], false, &options).unwrap_err();
    assert!(error.to_string().contains("pickle"), "{error}");
}

#[test]
fn a_memory_is_moved_by_the_prompts_that_are_kept() {
    let folder = Folder::new("moved");
    let store = store(&folder, "learned");
    let parent = store.current().unwrap();
    let from = folder.join("peft");
    Peft::usual().write(&from);
    let dry = adopt(&store, &from, &[], true, &options()).unwrap();
    assert!(dry.generation.is_none() && store.current().unwrap() == parent);
    let report = adopt(&store, &from, &[], false, &options()).unwrap();
    let id = report.generation.clone().unwrap();
    assert_eq!(
        (&report.parent, store.current().unwrap()),
        (&parent, id.clone())
    );
    assert_eq!(report.prompts.memory, MemoryFate::Moved);
    assert_eq!(report.prompts.moved_by, 2);
    assert!(report.prompts.remembered > 0 && report.prompts.held_out_dropped == 0);
    let mut told = report.clone();
    told.generation = None;
    assert_eq!(told, dry);
    // Sums moved, words did not, and nothing measured of the parent is taken over.
    let read = |id: &hubrouter::GenerationId, part: &str| {
        fs::read(store.root().join(id.as_str()).join(part)).unwrap()
    };
    assert_ne!(
        read(&parent, "memory.safetensors"),
        read(&id, "memory.safetensors")
    );
    assert_eq!(
        read(&parent, "words.safetensors"),
        read(&id, "words.safetensors")
    );
    assert_ne!(read(&parent, "held_out.jsonl"), read(&id, "held_out.jsonl"));
    assert_eq!(read(&parent, "replay.jsonl"), read(&id, "replay.jsonl"));
    learn::check(&store, &id).unwrap();
    let router = Router::open(store.root(), options()).unwrap();
    let decision = router
        .route(&Request::new("find a model for french number 3"))
        .unwrap();
    assert!(decision.ranked[0].parts.is_some());
    // The same again changes nothing.
    let error = adopt(&store, &from, &[], false, &options()).unwrap_err();
    assert!(
        error.to_string().contains("has these weights already"),
        "{error}"
    );
}

#[test]
fn a_memory_without_texts_is_dropped_and_so_are_vectors() {
    let folder = Folder::new("dropped");
    let store = store(&folder, "learned");
    let options = options();
    // What is kept as text is forgotten, one after another; the memory has more prompts.
    loop {
        let id = store.current().unwrap();
        let kept = learn::remembered(&store, &id).unwrap().replay;
        let Some(text) = kept.iter().find_map(|entry| entry.text.clone()) else {
            break;
        };
        learn::forget(&store, &text, &options).unwrap();
    }
    let from = folder.join("peft");
    Peft::usual().write(&from);
    let report = adopt(&store, &from, &[], false, &options).unwrap();
    assert_eq!(report.prompts.memory, MemoryFate::Dropped);
    let id = report.generation.unwrap();
    let parts = store.manifest(&id).unwrap();
    let parts: Vec<&str> = parts.files().map(|(name, ..)| name).collect();
    assert!(
        !parts.iter().any(|part| part.starts_with("memory")),
        "{parts:?}"
    );
    assert!(parts.contains(&"cards.safetensors"));
    let router = Router::open(store.root(), options).unwrap();
    assert!(
        router.route(&Request::new("x")).unwrap().ranked[0]
            .parts
            .is_none()
    );
}

#[test]
fn held_out_vectors_and_fisher_weights_of_the_old_encoder_go() {
    let folder = Folder::new("vectors-go");
    let store = store(&folder, "vectors");
    let before = learn::remembered(&store, &store.current().unwrap()).unwrap();
    let from = folder.join("peft");
    Peft::usual().write(&from);
    let report = adopt(&store, &from, &[], false, &options()).unwrap();
    let without = before.held_out.iter().filter(|entry| entry.text.is_none());
    assert_eq!(report.prompts.held_out_dropped, without.count());
    let id = report.generation.unwrap();
    let manifest = store.manifest(&id).unwrap();
    assert!(
        manifest
            .files()
            .all(|(name, ..)| name != "fisher.safetensors")
    );
    learn::check(&store, &id).unwrap();
}

#[test]
fn an_adapter_in_a_store_that_was_only_built_leaves_cards_as_they_are() {
    let setup = f32_store("cards");
    let store = Store::open(&setup.store).unwrap();
    let first = store.current().unwrap();
    let from = setup.folder.join("peft");
    Peft::usual().write(&from);
    let cards = [ModelCard::new("model-2", "Audio Classification")];
    let options = cpu(1).encoder(&setup.encoder);
    let report = adopt(&store, &from, &cards, false, &options).unwrap();
    assert_eq!(report.rows, 1);
    let id = report.generation.unwrap();
    let difference = store.diff(&first, &id).unwrap();
    assert_eq!(
        (difference.moved_rows, difference.projection_changed),
        (1, false)
    );
    // Card vectors stay those of the encoder without the adapter: the first generation's rows.
    let part = |id: &hubrouter::GenerationId, file: &str| {
        tensors(&setup.store.join(id.as_str()).join(file))
    };
    let kept = &part(&id, "cards.safetensors")["card_vectors"].1;
    let rows = &part(&first, "head.safetensors")["model_embeddings.weight"].1;
    assert!(worst(kept, rows) < 1e-3);
    let nobody = [ModelCard::new("nobody", "Audio")];
    let error = adopt(&store, &from, &nobody, false, &options).unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");
}

#[test]
fn a_router_that_was_trained_on_comes_back_into_its_store() {
    let folder = Folder::new("trained-on");
    let store = store(&folder, "learned");
    let out = folder.join("out");
    let mut router = exported(&store, &out, &options());
    let error = adopt(&store, &out, &[], false, &options()).unwrap_err();
    assert!(
        error.to_string().contains("has these weights already"),
        "{error}"
    );
    // Another program reorders the models and trains W.
    let head = out.join("router.safetensors");
    let mut tensors = tensors(&head);
    tensors.get_mut("prompt_projection.weight").unwrap().1[3] += 0.5;
    let (shape, rows) = tensors.get_mut("model_embeddings.weight").unwrap();
    assert_eq!(shape[0], 8);
    rows.rotate_left(40);
    write_tensors(&head, &tensors);
    router["models"].as_array_mut().unwrap().rotate_left(1);
    seal(&out, &mut router, "router.safetensors");
    let report = adopt(&store, &out, &[], false, &options()).unwrap();
    assert_eq!(
        (report.head, report.prompts.memory),
        (AdoptedHead::Folder, MemoryFate::Absent)
    );
    let id = report.generation.unwrap();
    let difference = store.diff(&report.parent, &id).unwrap();
    assert_eq!(
        (difference.moved_rows, difference.projection_changed),
        (0, true)
    );
    // A model without a row cannot be left behind.
    router["models"][2]["name"] = "somebody".into();
    write_json(&out.join("router.json"), &router);
    let error = adopt(&store, &out, &[], false, &options()).unwrap_err();
    assert!(
        error.kind() == ErrorKind::Mismatch && error.to_string().contains("in the hub"),
        "{error}"
    );
}

/// Makes the digest of `name` in `router` right, and writes router.json.
fn seal(folder: &Path, router: &mut Value, name: &str) {
    use sha2::Digest as _;
    let bytes = fs::read(folder.join(name)).unwrap();
    let digest = sha2::Sha256::digest(&bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    router["files"][name] = json!({"bytes": bytes.len(), "sha256": hex});
    write_json(&folder.join("router.json"), router);
}

/// A converted checkpoint: two models, W [3, 40].
fn converted(folder: &Path) -> Value {
    fs::create_dir_all(folder).unwrap();
    let tensors = BTreeMap::from([
        (
            "prompt_projection.weight".to_owned(),
            (vec![3, 40], noise(120, 1)),
        ),
        (
            "model_embeddings.weight".to_owned(),
            (vec![2, 3], noise(6, 2)),
        ),
    ]);
    write_tensors(&folder.join("router.safetensors"), &tensors);
    let peft = Peft::usual();
    peft.write(&folder.join("adapter"));
    let mut router = json!({
        "kind": "hubrouter-router", "schema_version": 1, "made_by": "tests/reference/convert.py",
        "encoder": {"name": "acme/toy-bert", "width": 40, "pooling": "cls"},
        "width": 3, "tau": 0.1, "adapter": "adapter",
        "models": [
            {"name": "acme/birds", "domain": "audio audio classification"},
            {"name": "acme/ner", "description": "Finds names."},
        ],
        "files": {},
    });
    for name in [
        "router.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ] {
        seal(folder, &mut router, name);
    }
    router
}

#[test]
fn a_converted_checkpoint_becomes_a_store() {
    let folder = Folder::new("converted");
    let from = folder.join("from");
    converted(&from);
    let encoder = Arc::new(Encoder::open(bundle(), &options()).unwrap());
    let mut card = ModelCard::new("acme/birds", "Audio");
    card.family = Some("birds".into());
    let to = folder.join("store");
    let imported = import(&from, &to, &[card], &encoder, &mut |_, _| {}).unwrap();
    assert_eq!(
        (imported.models, imported.width, imported.rank),
        (2, 3, Some(4))
    );
    assert_eq!(imported.cards, 1);
    assert!(
        imported
            .notes
            .iter()
            .any(|note| note.contains("is not checked"))
    );
    let store = Store::open(&to).unwrap();
    let manifest = store.manifest(&imported.generation).unwrap();
    assert_eq!(
        (manifest.tau, manifest.learned.unwrap().trained),
        (0.1, true)
    );
    let hub = store.hub(&imported.generation).unwrap();
    let models: Vec<(String, String)> = hub
        .iter()
        .map(|(_, model)| (model.name.to_string(), model.domain.to_string()))
        .collect();
    assert_eq!(models[0], ("acme/birds".into(), "Audio".into()));
    assert_eq!(models[1], ("acme/ner".into(), "unknown".into()));
    learn::check(&store, &imported.generation).unwrap();
    // By hand: the cosine of W h and E over tau, h of the merged encoder.
    let out = folder.join("out");
    exported(&store, &out, &options());
    let samples = tensors(&out.join("samples.safetensors"));
    let head = tensors(&from.join("router.safetensors"));
    let (w, e) = (
        &head["prompt_projection.weight"].1,
        &head["model_embeddings.weight"].1,
    );
    let h = &samples["pooled"].1[40..80];
    let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let z: Vec<f32> = w.chunks_exact(40).map(|w| dot(w, h)).collect();
    let router = Router::open(&to, options()).unwrap();
    let request = Request::new("Which model is right for this?");
    for ranked in router.route(&request).unwrap().ranked {
        let row = &e[ranked.id.0 as usize * 3..][..3];
        let cosine = dot(&z, row) / (dot(&z, &z) * dot(row, row)).sqrt();
        assert!((ranked.score - cosine / 0.1).abs() < 1e-3, "{ranked:?}");
    }
}

#[test]
fn a_folder_that_is_no_router_is_refused_by_name() {
    type Change = Box<dyn Fn(&Path, &mut Value)>;
    let set = |pointer: &'static str, value: Value| -> Change {
        Box::new(move |folder: &Path, router: &mut Value| {
            *router.pointer_mut(pointer).unwrap() = value.clone();
            write_json(&folder.join("router.json"), router);
        })
    };
    let add = |field: &'static str, value: Value| -> Change {
        Box::new(move |folder: &Path, router: &mut Value| {
            router["encoder"][field] = value.clone();
            write_json(&folder.join("router.json"), router);
        })
    };
    let head = |name: &'static str, shape: Vec<usize>, value: f32| -> Change {
        Box::new(move |folder: &Path, router: &mut Value| {
            let path = folder.join("router.safetensors");
            let mut all = tensors(&path);
            let values = vec![value; shape.iter().product()];
            all.insert(name.into(), (shape.clone(), values));
            write_tensors(&path, &all);
            seal(folder, router, "router.safetensors");
        })
    };
    let flip = |name: &'static str| -> Change {
        Box::new(move |folder: &Path, _: &mut Value| {
            let path = folder.join(name);
            let mut bytes = fs::read(&path).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            fs::write(path, bytes).unwrap();
        })
    };
    let (w, e) = ("prompt_projection.weight", "model_embeddings.weight");
    let (format, mismatch) = (ErrorKind::Format, ErrorKind::Mismatch);
    let zeros = "0".repeat(64);
    let cases: Vec<(Change, ErrorKind, &str)> = vec![
        (set("/kind", "hubrouter-export".into()), format, "kind"),
        (
            set("/schema_version", 2.into()),
            ErrorKind::Unsupported,
            "schema_version",
        ),
        (
            set("/width", 0.into()),
            format,
            "width: expected at least 1",
        ),
        (set("/width", u64::MAX.into()), mismatch, w),
        (
            set("/width", 4.into()),
            mismatch,
            "expected [4, 40], found [3, 40]",
        ),
        (set("/tau", 0.0.into()), format, "tau"),
        (
            set("/models", json!([])),
            format,
            "models: expected at least 1",
        ),
        (
            set("/models/1/name", "acme/birds".into()),
            ErrorKind::Refused,
            "acme/birds",
        ),
        (
            set("/models/1/name", " ".into()),
            ErrorKind::InvalidRequest,
            "name",
        ),
        (
            set("/models/1", json!({"name": "x", "price": 1})),
            format,
            "price",
        ),
        (
            set("/adapter", "../adapter".into()),
            format,
            "found \"../adapter/",
        ),
        (
            set("/adapter", "elsewhere".into()),
            format,
            "elsewhere/adapter_config.json",
        ),
        (set("/files", json!({})), format, "router.safetensors"),
        (
            set("/encoder/width", 41.into()),
            mismatch,
            "expected [3, 41]",
        ),
        (set("/encoder/pooling", "mean".into()), mismatch, "pooling"),
        (add("tokenizer_sha256", zeros.into()), mismatch, "tokenizer"),
        (
            add("query_prefix", "ask: ".into()),
            mismatch,
            "text before prompts",
        ),
        (head(w, vec![3, 40], f32::NAN), ErrorKind::Numeric, w),
        (head(e, vec![2, 3], 0.0), ErrorKind::Numeric, "row 0"),
        (
            head(e, vec![1, 3], 1.0),
            mismatch,
            "expected [2, 3], found [1, 3]",
        ),
        (
            head("card_vectors", vec![2, 41], 1.0),
            mismatch,
            "card_vectors",
        ),
        (
            head("card_vectors", vec![2, 40], f32::NAN),
            ErrorKind::Numeric,
            "card_vectors",
        ),
        (flip("router.safetensors"), mismatch, "SHA-256"),
        (
            flip("adapter/adapter_model.safetensors"),
            mismatch,
            "SHA-256",
        ),
    ];
    let encoder = Arc::new(Encoder::open(bundle(), &options()).unwrap());
    for (change, kind, says) in cases {
        let folder = Folder::new("no-router");
        let (from, to) = (folder.join("from"), folder.join("store"));
        let mut router = converted(&from);
        change(&from, &mut router);
        let error = import(&from, &to, &[], &encoder, &mut |_, _| {}).err();
        let error = error.unwrap_or_else(|| panic!("{says}: accepted"));
        assert!(
            error.kind() == kind && error.to_string().contains(says),
            "{says}: {error:?}"
        );
        assert!(!to.exists(), "{says}: something was written");
    }
}

#[test]
fn a_bundled_encoder_of_another_family_exports_too() {
    let folder = Folder::new("xlm-roberta");
    let encoder = folder.join("toy");
    import_encoder(fixture("toy-xlm-roberta"), &encoder, &Default::default()).unwrap();
    let store = Store::create(folder.join("store")).unwrap();
    let options = cpu(1).encoder(&encoder);
    let open = Arc::new(Encoder::open(&encoder, &options).unwrap());
    store
        .build(
            &open,
            &[toy::model(0), toy::model(1)],
            "hub build",
            &mut |_, _| {},
        )
        .unwrap();
    let out = folder.join("out");
    exported(&store, &out, &options);
    let tokens = read_json(&out.join("base/tokenizer_config.json"));
    assert_eq!(tokens["pad_token"], "<pad>");
    let again = folder.join("again");
    import_encoder(out.join("base"), &again, &Default::default()).unwrap();
    let again = Encoder::open(&again, &options).unwrap();
    let text = ["translate images to Chinese"];
    let vector = |encoder: &Encoder| encoder.embed(&text).remove(0).unwrap();
    assert_eq!(vector(&again), vector(&open));
}
