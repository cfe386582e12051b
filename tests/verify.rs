//! `hubrouter verify`: the toy bundles by PyTorch pass on every device, and each control that is
//! spoilt in one way is caught where it was spoilt (docs/reproducibility.md). Hashes are made right
//! again, so that the stage itself has to find it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "tests"
)]
#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::command::{hubrouter, run, text};
use common::{Folder, bundle, copy, fixture, store};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const TOY: &str = "parity-toy";
const REFERENCE: &str = "parity-toy-reference";
const XLM_ROBERTA: &str = "parity-toy-xlm-roberta";
const ROBERTA: &str = "parity-toy-roberta";

/// The report of `verify` with these arguments on one thread of the CPU, and its exit code.
fn verify(arguments: &[&str]) -> (Value, i32) {
    on(&["--device", "cpu", "--threads", "1"], arguments)
}

fn on(device: &[&str], arguments: &[&str]) -> (Value, i32) {
    let output = run(&[&["verify", "--json"], arguments, device].concat());
    let code = output.status.code().unwrap();
    assert!([0, 4].contains(&code), "{}", text(&output.stderr));
    (serde_json::from_slice(&output.stdout).unwrap(), code)
}

fn passes(report: &Value, code: i32) {
    let first = &report["first_divergence"];
    assert_eq!(
        (report["verdict"].as_str(), code),
        (Some("pass"), 0),
        "{first}"
    );
    assert!(first.is_null());
    assert!(
        report["stages"]
            .as_array()
            .unwrap()
            .iter()
            .all(|stage| stage["ok"] == true)
    );
}

fn stage<'r>(report: &'r Value, name: &str) -> &'r Value {
    let stages = report["stages"].as_array().unwrap();
    let found = stages.iter().find(|stage| stage["stage"] == name);
    found.unwrap_or_else(|| panic!("no stage {name}: {report}"))
}

/// Tensors by name: type, shape, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of a bundle, to be spoilt.
struct Spoilt {
    _folder: Folder,
    path: PathBuf,
    manifest: Value,
}

impl Spoilt {
    fn new(name: &str) -> Self {
        let folder = Folder::new("verify");
        let path = folder.join(name);
        copy(&fixture(name), &path);
        let manifest = fs::read(path.join("parity.json")).unwrap();
        Self {
            _folder: folder,
            manifest: serde_json::from_slice(&manifest).unwrap(),
            path,
        }
    }

    /// Changes the tensors of `file`.
    fn tensors(&self, file: &str, change: impl FnOnce(&mut Tensors)) {
        let path = self.path.join(file);
        let bytes = fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let each = read.tensors().into_iter();
        let mut tensors: Tensors = each
            .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// Writes the manifest with hashes that are right, and verifies the bundle.
    fn verified(mut self) -> Value {
        for (name, digest) in self.manifest["files"].as_object_mut().unwrap() {
            let bytes = fs::read(self.path.join(name)).unwrap();
            *digest = json!({"bytes": bytes.len(), "sha256": sha256(&bytes)});
        }
        let bytes = serde_json::to_vec(&self.manifest).unwrap();
        fs::write(self.path.join("parity.json"), bytes).unwrap();
        let (report, code) = verify(&[self.path.to_str().unwrap()]);
        assert_eq!((report["verdict"].as_str(), code), (Some("fail"), 4));
        report
    }

    /// The file of the encoder that has the tensor that ends in `end`, and its name.
    fn weight(&self, end: &str) -> (String, String) {
        let files = self.manifest["files"].as_object().unwrap().keys();
        for file in
            files.filter(|name| name.starts_with("encoder/") && name.ends_with(".safetensors"))
        {
            let bytes = fs::read(self.path.join(file)).unwrap();
            let read = SafeTensors::deserialize(&bytes).unwrap();
            if let Some(name) = read.names().into_iter().find(|name| name.ends_with(end)) {
                return (file.clone(), name.to_owned());
            }
        }
        panic!("no {end}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    let each = bytes.chunks_exact(4);
    each.map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Changes the f32, f16 or bf16 numbers of the encoder's tensor that ends in `end`; they are f32
/// afterwards.
fn spoil_weight(bundle: &Spoilt, end: &str, change: impl Fn(&mut [f32])) {
    let (file, name) = bundle.weight(end);
    bundle.tensors(&file, |tensors| {
        let (dtype, _, data) = tensors.get_mut(&name).unwrap();
        let wide = |b: &[u8]| u16::from_le_bytes(b.try_into().unwrap());
        let halves = data.chunks_exact(2);
        let mut values: Vec<f32> = match *dtype {
            Dtype::F32 => numbers(data),
            Dtype::F16 => halves
                .map(|b| half::f16::from_bits(wide(b)).to_f32())
                .collect(),
            Dtype::BF16 => halves
                .map(|b| half::bf16::from_bits(wide(b)).to_f32())
                .collect(),
            other => panic!("{other:?}"),
        };
        change(&mut values);
        (*dtype, *data) = (Dtype::F32, bytes(&values));
    });
}

/// Stage, layer and index of the first divergence.
fn parted(report: &Value) -> (String, Option<u64>, u64) {
    let first = &report["first_divergence"];
    println!("{first}");
    let stage = first["stage"].as_str().unwrap().to_owned();
    (
        stage,
        first["layer"].as_u64(),
        first["index"].as_u64().unwrap(),
    )
}

#[test]
fn the_toy_bundles_of_pytorch_pass_on_the_cpu() {
    for name in [TOY, REFERENCE, XLM_ROBERTA, ROBERTA] {
        let (report, code) = verify(&[fixture(name).to_str().unwrap()]);
        passes(&report, code);
        assert_eq!(report["mode"], "f32");
        let errors = report["stages"].as_array().unwrap().iter();
        for stage in errors {
            let (name, error) = (&stage["stage"], &stage["max_rel_error"]);
            println!("{name} {error} of {}", stage["tolerance"]);
        }
    }
}

#[test]
fn every_stage_of_the_toy_is_compared() {
    let (report, _) = verify(&[fixture(TOY).to_str().unwrap()]);
    for name in [
        "files",
        "tokenizer",
        "tokens",
        "embeddings",
        "layer 1",
        "layer 2",
        "pooled",
        "query",
        "memory.place",
        "words",
        "scores",
        "top",
        "start",
        "gradients",
        "losses",
        "parameters",
        "memory",
        "matrix",
        "repeat",
        "batch",
        "order",
        "threads",
    ] {
        assert!(
            stage(&report, name)["compared"].as_u64().unwrap() > 0,
            "{name}"
        );
    }
    assert_eq!(report["top1_agreement"], 1.0);
    assert!(report["loss_curve_max_rel_error"].as_f64().unwrap() < 1e-2);
    assert!(report["matrix_max_abs_points"].as_f64().unwrap() <= 0.5);
    assert!(report["loss_curve"].as_array().unwrap().len() > 3);
}

#[cfg(feature = "gpu")]
#[test]
fn the_toy_bundles_of_pytorch_pass_on_the_adapter() {
    let adapter = common::adapter();
    for name in [TOY, REFERENCE, XLM_ROBERTA, ROBERTA] {
        let (report, code) = on(&["--device", &adapter], &[fixture(name).to_str().unwrap()]);
        passes(&report, code);
        assert!(
            report["device"].as_str().unwrap().contains(&adapter),
            "{report}"
        );
    }
}

#[test]
fn a_weight_that_moved_by_a_thousandth_is_found_in_its_layer() {
    let spoilt = Spoilt::new(REFERENCE);
    let end = "encoder.layer.1.attention.output.dense.weight";
    spoil_weight(&spoilt, end, |values| values[0] += 1e-3);
    assert_eq!(parted(&spoilt.verified()), ("layer 2".into(), Some(2), 0));
}

#[test]
fn a_bias_that_was_dropped_is_found_in_its_layer() {
    let spoilt = Spoilt::new(REFERENCE);
    let end = "encoder.layer.0.intermediate.dense.bias";
    spoil_weight(&spoilt, end, |values| values.fill(0.0));
    assert_eq!(parted(&spoilt.verified()), ("layer 1".into(), Some(1), 0));
}

#[test]
fn a_token_that_changed_is_found_in_its_prompt() {
    let spoilt = Spoilt::new(TOY);
    spoilt.tensors("forward.safetensors", |tensors| {
        let (.., data) = tensors.get_mut("2.ids").unwrap();
        data[4] ^= 1;
    });
    let report = spoilt.verified();
    assert_eq!(parted(&report), ("tokens".into(), None, 2));
    let place = report["first_divergence"]["place"].as_str().unwrap();
    assert!(place.starts_with("prompt 2, token 1: expected"), "{place}");
    // The layers are computed from the bundle's token, so they part as well.
    assert_eq!(stage(&report, "embeddings")["ok"], false);
}

#[test]
fn another_tokenizer_is_found_by_its_hash_and_by_its_tokens() {
    let other = |bundle: &Spoilt| {
        let path = bundle.path.join("encoder/tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let (a, b) = (vocabulary["a"].clone(), vocabulary["e"].clone());
        (vocabulary["a"], vocabulary["e"]) = (b, a);
        let bytes = serde_json::to_vec(&tokenizer).unwrap();
        fs::write(&path, &bytes).unwrap();
        sha256(&bytes)
    };
    let spoilt = Spoilt::new(REFERENCE);
    other(&spoilt);
    assert_eq!(parted(&spoilt.verified()).0, "tokenizer");
    let mut spoilt = Spoilt::new(REFERENCE);
    spoilt.manifest["encoder"]["tokenizer_sha256"] = other(&spoilt).into();
    assert_eq!(parted(&spoilt.verified()).0, "tokens");
}

#[test]
fn numbers_of_eight_bits_are_no_f32() {
    let spoilt = Spoilt::new(TOY);
    assert_eq!(spoilt.manifest["made_by"]["mode"], "f32");
    spoilt.tensors("forward.safetensors", |tensors| {
        for (name, (.., data)) in tensors.iter_mut() {
            if name.ends_with("layers") || name.ends_with("pooled") {
                let values = numbers(data);
                let most = values
                    .iter()
                    .fold(0.0f32, |most, value| most.max(value.abs()));
                let round = |value: &f32| (value / most * 127.0).round() / 127.0 * most;
                *data = bytes(&values.iter().map(round).collect::<Vec<_>>());
            }
        }
    });
    let report = spoilt.verified();
    assert_eq!(parted(&report), ("embeddings".into(), None, 0));
    let why = stage(&report, "pooled")["why"].as_str().unwrap();
    assert!(why.starts_with("both are f32"), "{why}");
}

#[test]
fn a_label_that_was_swapped_is_found_in_its_step() {
    let mut spoilt = Spoilt::new(TOY);
    let steps = spoilt.manifest["learning"]["steps"].as_array_mut().unwrap();
    // A late step of the first experience, whose gradients are not recorded: the losses tell.
    let at = steps
        .iter()
        .rposition(|step| step["gradients"] == false && step["experience"] == 0)
        .unwrap();
    let item = &mut steps[at]["batches"][0][0];
    let gold = item["targets"][0][0].as_u64().unwrap();
    let other = if gold == 0 { 1 } else { 0 };
    item["targets"] = json!([[other, 1.0]]);
    let (stage, _, index) = parted(&spoilt.verified());
    assert_eq!((stage.as_str(), index), ("losses", at as u64));
}

#[test]
fn a_row_of_another_model_is_found_in_the_memory() {
    let mut spoilt = Spoilt::new(TOY);
    let rows = spoilt.manifest["learning"]["rows"].as_array_mut().unwrap();
    let row = rows.iter_mut().find(|row| row["split"] == "train").unwrap();
    assert_eq!(row["model"], 0);
    row["model"] = 1.into();
    let report = spoilt.verified();
    let (stage, _, model) = parted(&report);
    assert_eq!((stage.as_str(), model), ("memory.counts", 0));
}

#[test]
fn another_seed_is_found_in_the_first_step() {
    let spoilt = Spoilt::new(TOY);
    spoilt.tensors("learning.safetensors", |tensors| {
        let factors = tensors.iter_mut();
        for (_, (.., data)) in factors.filter(|(name, _)| name.starts_with("start.encoder")) {
            let mut values = numbers(data);
            values.reverse();
            *data = bytes(&values);
        }
    });
    let report = spoilt.verified();
    let (stage, _, step) = parted(&report);
    assert_eq!((stage.as_str(), step), ("gradients", 0));
}

#[test]
fn two_rows_that_were_swapped_are_found() {
    let swap = |tensors: &mut Tensors, name: &str| {
        let (_, shape, data) = tensors.get_mut(name).unwrap();
        let row = data.len() / shape[0];
        let (first, second) = data.split_at_mut(row);
        first.swap_with_slice(&mut second[..row]);
    };
    let spoilt = Spoilt::new(TOY);
    spoilt.tensors("router.safetensors", |tensors| swap(tensors, "queries"));
    assert_eq!(parted(&spoilt.verified()), ("query".into(), None, 0));
    let spoilt = Spoilt::new(TOY);
    spoilt.tensors("learning.safetensors", |tensors| swap(tensors, "0.rows"));
    let (stage, _, step) = parted(&spoilt.verified());
    assert_eq!((stage.as_str(), step), ("gradients", 0));
}

#[test]
fn a_bit_that_flipped_is_found_in_its_file() {
    let spoilt = Spoilt::new(TOY);
    let path = spoilt.path.join("router.safetensors");
    let mut data = fs::read(&path).unwrap();
    *data.last_mut().unwrap() ^= 1;
    fs::write(&path, data).unwrap();
    let (report, code) = verify(&[spoilt.path.to_str().unwrap()]);
    assert_eq!(code, 4);
    assert_eq!(parted(&report).0, "files");
    let place = report["first_divergence"]["place"].as_str().unwrap();
    assert!(
        place.contains("router.safetensors: expected SHA-256"),
        "{place}"
    );
    assert_eq!(report["stages"].as_array().unwrap().len(), 1);
}

#[test]
fn gradients_that_are_cleared_part_from_those_that_are_not() {
    let mut spoilt = Spoilt::new(REFERENCE);
    let switch = &mut spoilt.manifest["learning"]["switches"]["grad.reset"];
    assert_eq!(*switch, false);
    *switch = true.into();
    let (stage, _, step) = parted(&spoilt.verified());
    assert!(
        stage.starts_with("gradients") || stage.starts_with("losses"),
        "{stage}"
    );
    assert!(
        (1..3).contains(&step),
        "the second step sees what the first left: {step}"
    );
}

#[test]
fn a_run_of_this_machine_is_a_bundle_too() {
    let folder = Folder::new("verify-export");
    let [mine, again] = ["mine", "again"].map(|name| folder.join(name));
    let [mine, again] = [&mine, &again].map(|path| path.to_str().unwrap());
    let toy = fixture(TOY);
    let toy = toy.to_str().unwrap();
    let (report, code) = verify(&[toy, "--export", mine]);
    passes(&report, code);
    // It brings the encoder and the store, and every part is the same again, bit for bit.
    let (report, code) = verify(&[mine, "--export", again]);
    passes(&report, code);
    let stages = report["stages"].as_array().unwrap();
    assert!(stages.len() > 20);
    for stage in stages {
        assert_eq!(stage["max_abs_error"], 0.0, "{stage}");
    }
    let (report, code) = verify(&["--between", mine, again]);
    passes(&report, code);
    assert!(report["device"].is_null());
    let (report, code) = verify(&["--between", mine, toy]);
    passes(&report, code);
    assert!(stage(&report, "losses")["max_rel_error"].as_f64().unwrap() > 0.0);
    // The folder is there already.
    let output = run(&["verify", toy, "--device", "cpu", "--export", mine]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    // A run of other steps is no other run of these.
    let other = fixture(REFERENCE);
    let output = run(&["verify", "--between", mine, other.to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains("learning: expected runs of as many steps and experiences"),
        "{error}"
    );
}

#[test]
fn the_bundled_store_is_verified_and_a_spoilt_one_is_not() {
    let folder = Folder::new("verify-store");
    let page = folder.join("page.html");
    let html = page.to_str().unwrap();
    let output = hubrouter(&[
        "verify",
        "--device",
        "cpu",
        "--threads",
        "2",
        "--json",
        "--html",
        html,
    ])
    .output()
    .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    passes(&report, output.status.code().unwrap());
    for name in [
        "files",
        "layer 6",
        "pooled",
        "scores",
        "precision",
        "decisions",
        "threads",
    ] {
        stage(&report, name);
    }
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<h1>Verification</h1>") && page.contains("layer 6"));
    for absent in ["<script", "http://", "https://"] {
        assert!(
            !page
                .replace("http://www.w3.org/2000/svg", "")
                .contains(absent),
            "{absent}"
        );
    }
    let store = common::copied_store(&folder);
    let path = store.join("g0001-81f83b2c92b0/head.safetensors");
    let mut data = fs::read(&path).unwrap();
    *data.last_mut().unwrap() ^= 1;
    fs::write(&path, data).unwrap();
    let (report, code) = verify(&["--router", store.to_str().unwrap()]);
    assert_eq!((code, parted(&report).0.as_str()), (4, "files"));
}

#[test]
fn int8_is_verified_with_its_own_bound_and_is_no_f32() {
    let folder = Folder::new("verify-int8");
    let mine = folder.join("mine");
    let cpu = ["--device", "cpu", "--threads", "1"];
    let export = [
        "verify",
        "--precision",
        "int8",
        "--export",
        mine.to_str().unwrap(),
    ];
    let output = run(&[&export[..], &cpu].concat());
    let error = text(&output.stderr);
    if error.contains("expected a CPU with") {
        // This CPU computes no int8; the next command says the same of f32.
        assert_eq!(output.status.code(), Some(1));
        return;
    }
    assert!(output.status.success(), "{error}");
    let (report, code) = verify(&[mine.to_str().unwrap()]);
    passes(&report, code);
    let why = stage(&report, "pooled")["why"].as_str().unwrap();
    assert!(why.starts_with("the bundle is int8, this run f32"), "{why}");
    // The same numbers, claimed to be f32.
    let path = mine.join("parity.json");
    let claim = fs::read_to_string(&path)
        .unwrap()
        .replace("\"mode\": \"int8\"", "\"mode\": \"f32\"");
    fs::write(&path, claim).unwrap();
    let (report, code) = verify(&[mine.to_str().unwrap()]);
    assert_eq!((code, parted(&report).0.as_str()), (4, "pooled"));
}

#[test]
fn what_is_no_bundle_is_an_error_that_says_so() {
    let folder = Folder::new("verify-bad");
    let spoil = |change: &dyn Fn(&mut Value)| {
        let mut spoilt = Spoilt::new(TOY);
        change(&mut spoilt.manifest);
        let bytes = serde_json::to_vec(&spoilt.manifest).unwrap();
        fs::write(spoilt.path.join("parity.json"), bytes).unwrap();
        let output = run(&["verify", "--device", "cpu", spoilt.path.to_str().unwrap()]);
        (output.status.code(), text(&output.stderr))
    };
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 9] = [
        (
            |m| m["kind"] = "other".into(),
            "kind: expected \"hubrouter-parity\"",
        ),
        (
            |m| m["schema_version"] = 2.into(),
            "schema_version: expected 1",
        ),
        (
            |m| m["files"]["../x"] = json!({"bytes": 1, "sha256": "0"}),
            "relative path of plain names",
        ),
        (
            |m| m["encoder"]["layers"] = 9.into(),
            "2 layers of width 40, as its own config.json has",
        ),
        (
            |m| m["learning"]["rank"] = 0.into(),
            "rank: expected 1 to 4096",
        ),
        (
            |m| m["learning"]["adam"][0] = 0.5.into(),
            "adam: expected betas 0.9",
        ),
        (
            |m| m["learning"]["rows"][0]["model"] = 99999.into(),
            "row 0: expected a model below",
        ),
        (
            |m| m["learning"]["steps"][0]["batches"][0][0]["row"] = 99999.into(),
            "step 0: row: expected a number below",
        ),
        (
            |m| m["made_by"]["mode"] = "f8".into(),
            "unknown variant `f8`",
        ),
    ];
    for (change, want) in cases {
        let (code, error) = spoil(&change);
        assert_eq!(code, Some(1), "{want}: {error}");
        assert!(error.contains(want), "{want}: {error}");
    }
    let missing = folder.join("nothing");
    let output = run(&["verify", missing.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    for arguments in [
        &["verify", "--precision", "auto"][..],
        &["verify", "a", "--between", "b", "c"],
        &["verify", "--between", "b"],
        &["verify", "--prompts", "p"],
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert!(Path::new(&store()).is_dir() && bundle().is_dir());
}
