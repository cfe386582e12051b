//! Encoder bundles: what an import reads from a checkpoint, and what it refuses by name.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Folder, cpu, fixture, worst};
use hubrouter::{Encoder, ErrorKind, ImportOptions, import_encoder};

/// A copy of the fixture `name`, to be changed.
fn checkpoint(name: &str) -> (Folder, PathBuf, PathBuf) {
    let folder = Folder::new("checkpoint");
    let from = folder.join("from");
    common::copy(&fixture(name), &from);
    let to = folder.join("to");
    (folder, from, to)
}

fn options(change: impl FnOnce(&mut ImportOptions)) -> ImportOptions {
    let mut options = ImportOptions::default();
    change(&mut options);
    options
}

#[test]
fn what_the_checkpoint_says_is_recorded() {
    let (_folder, from, to) = checkpoint("toy-bert");
    let imported = import_encoder(&from, &to, &ImportOptions::default()).unwrap();
    assert_eq!(
        (
            imported.pooling.as_str(),
            imported.dtype.as_str(),
            imported.max_tokens
        ),
        ("cls", "bf16", 40)
    );
    assert_eq!(
        (imported.licence.as_str(), imported.width, imported.layers),
        ("mit", 40, 2)
    );
    assert!(
        imported
            .notes
            .iter()
            .any(|note| note.contains("tokenizer_config.json 40")),
        "{:?}",
        imported.notes
    );
    let encoder = Encoder::open(&to, &cpu(1)).unwrap();
    assert_eq!(
        (encoder.name(), encoder.max_tokens(), encoder.revision()),
        ("to", 40, imported.revision.as_str())
    );
    // The checkpoint's prompts: one for queries, one for documents.
    let query = encoder.embed(&["translate images"]).remove(0).unwrap();
    let document = encoder
        .embed_documents(&["translate images"])
        .remove(0)
        .unwrap();
    assert!(worst(&query, &document) > 1e-3);
    let manifest = fs::read_to_string(to.join("manifest.json")).unwrap();
    assert!(
        manifest.contains("\"query_prefix\": \"route: \"")
            && manifest.contains("\"document_prefix\": \"model: \"")
    );
}

#[test]
fn what_is_said_overrules_it() {
    let (_folder, from, to) = checkpoint("toy-bert");
    let said = options(|options| {
        options.name = Some("mine".into());
        options.dtype = Some("f32".into());
        options.pooling = Some("mean".into());
        options.max_tokens = Some(12);
        options.query_prefix = Some(String::new());
        options.licence = Some("cc0".into());
    });
    let imported = import_encoder(&from, &to, &said).unwrap();
    assert_eq!(
        (
            imported.name.as_str(),
            imported.dtype.as_str(),
            imported.pooling.as_str()
        ),
        ("mine", "f32", "mean")
    );
    let encoder = Encoder::open(&to, &cpu(1)).unwrap();
    let ids = encoder
        .token_ids(&["summarize the audio and the video and the images"])
        .remove(0)
        .unwrap();
    assert_eq!(ids.len(), 12);
}

#[test]
fn element_types_change_little() {
    let (folder, from, _) = checkpoint("toy-xlm-roberta");
    let vector = |dtype: &str| {
        let to = folder.join(dtype);
        import_encoder(
            &from,
            &to,
            &options(|options| options.dtype = Some(dtype.into())),
        )
        .unwrap();
        Encoder::open(&to, &cpu(1))
            .unwrap()
            .embed(&["translate images to Chinese"])
            .remove(0)
            .unwrap()
    };
    // The fixture's weights fit bf16 exactly, so only f16 may differ, by its own rounding.
    let full = vector("f32");
    assert_eq!(vector("bf16"), full);
    let error = worst(&vector("f16"), &full);
    assert!(error < 1e-2, "{error}");
}

#[test]
fn what_cannot_be_imported_is_refused_by_name() {
    type Break = fn(&PathBuf);
    type Case = Box<dyn Fn(&PathBuf)>;
    let edit = |file: &str, from: &str, to: &str| {
        let (file, from, to) = (file.to_owned(), from.to_owned(), to.to_owned());
        move |folder: &PathBuf| {
            let path = folder.join(&file);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(&from), "{file} has no {from}");
            fs::write(&path, text.replace(&from, &to)).unwrap();
        }
    };
    let remove = |file: &str| {
        let file = file.to_owned();
        move |folder: &PathBuf| fs::remove_file(folder.join(&file)).unwrap()
    };
    let write = |file: &str, text: &str| {
        let (file, text) = (file.to_owned(), text.to_owned());
        move |folder: &PathBuf| fs::write(folder.join(&file), &text).unwrap()
    };
    let capitals: Break = |folder| {
        let lower = r#"{"max_seq_length": 40, "do_lower_case": true}"#;
        fs::write(folder.join("sentence_bert_config.json"), lower).unwrap();
        let path = folder.join("tokenizer.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(
            &path,
            text.replace("\"lowercase\": true", "\"lowercase\": false"),
        )
        .unwrap();
    };
    let adapter: Break = |folder| {
        fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
        fs::write(folder.join("adapter_config.json"), "{}").unwrap();
    };
    let pickle: Break = |folder| {
        fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
        fs::write(folder.join("pytorch_model.bin"), b"").unwrap();
    };
    let truncated: Break = |folder| {
        let path = folder.join("model-00002-of-00002.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    };
    let cases: Vec<(&str, Case, ErrorKind, &str)> = vec![
        (
            "config",
            Box::new(edit("config.json", "\"bert\"", "\"mpnet\"")),
            ErrorKind::Unsupported,
            "model_type",
        ),
        (
            "activation",
            Box::new(edit("config.json", "\"gelu\"", "\"silu\"")),
            ErrorKind::Unsupported,
            "hidden_act",
        ),
        (
            "not json",
            Box::new(edit("config.json", "{", "[")),
            ErrorKind::Format,
            "config.json",
        ),
        (
            "other width",
            Box::new(edit(
                "config.json",
                "\"hidden_size\": 40",
                "\"hidden_size\": 45",
            )),
            ErrorKind::Mismatch,
            "embeddings.word_embeddings.weight: expected [220, 45], found [220, 40]",
        ),
        (
            "more layers",
            Box::new(edit(
                "config.json",
                "\"num_hidden_layers\": 2",
                "\"num_hidden_layers\": 3",
            )),
            ErrorKind::Mismatch,
            "encoder.layer.2",
        ),
        (
            "max pooling",
            Box::new(edit(
                "1_Pooling/config.json",
                "\"pooling_mode_max_tokens\": false",
                "\"pooling_mode_max_tokens\": true",
            )),
            ErrorKind::Unsupported,
            "1_Pooling/config.json",
        ),
        (
            "no pooling",
            Box::new(remove("1_Pooling/config.json")),
            ErrorKind::Format,
            "--pooling",
        ),
        (
            "dense module",
            Box::new(edit("modules.json", "models.Pooling", "models.Dense")),
            ErrorKind::Unsupported,
            "Dense",
        ),
        (
            "modules in another order",
            Box::new(edit(
                "modules.json",
                "models.Transformer",
                "models.Normalize",
            )),
            ErrorKind::Unsupported,
            "in this order",
        ),
        (
            "a module outside",
            Box::new(edit("modules.json", "1_Pooling", "../1_Pooling")),
            ErrorKind::Format,
            "modules.json: path",
        ),
        (
            "no modules",
            Box::new(write("modules.json", "[]")),
            ErrorKind::Format,
            "at least the module Transformer",
        ),
        (
            "modules that are no list",
            Box::new(write("modules.json", "{}")),
            ErrorKind::Format,
            "a list of modules",
        ),
        (
            "pooling of another width",
            Box::new(write(
                "1_Pooling/config.json",
                r#"{"word_embedding_dimension": 41, "pooling_mode_cls_token": true}"#,
            )),
            ErrorKind::Mismatch,
            "word_embedding_dimension: expected 40",
        ),
        (
            "pooling without the prompt",
            Box::new(write(
                "1_Pooling/config.json",
                r#"{"pooling_mode_mean_tokens": true, "include_prompt": false}"#,
            )),
            ErrorKind::Unsupported,
            "include_prompt",
        ),
        (
            "two poolings at once",
            Box::new(write(
                "1_Pooling/config.json",
                r#"{"pooling_mode": ["mean", "cls"]}"#,
            )),
            ErrorKind::Unsupported,
            "pooling_mode",
        ),
        (
            "last token",
            Box::new(write(
                "1_Pooling/config.json",
                r#"{"pooling_mode": "lasttoken"}"#,
            )),
            ErrorKind::Unsupported,
            "lasttoken",
        ),
        (
            "lower case before a tokenizer that keeps capitals",
            Box::new(capitals),
            ErrorKind::Unsupported,
            "do_lower_case",
        ),
        ("an adapter", Box::new(adapter), ErrorKind::Io, "adopt"),
        (
            "no tokenizer",
            Box::new(remove("tokenizer.json")),
            ErrorKind::Format,
            "save_pretrained",
        ),
        (
            "bad tokenizer",
            Box::new(edit("tokenizer.json", "WordPiece", "WordPuzzle")),
            ErrorKind::Tokenizer,
            "tokenizer.json",
        ),
        ("no weights", Box::new(pickle), ErrorKind::Io, "pickle"),
        (
            "missing shard",
            Box::new(remove("model-00001-of-00002.safetensors")),
            ErrorKind::Io,
            "model-00001-of-00002.safetensors",
        ),
        (
            "truncated shard",
            Box::new(truncated),
            ErrorKind::Format,
            "model-00002-of-00002.safetensors",
        ),
        (
            "wrong index",
            Box::new(edit(
                "model.safetensors.index.json",
                "model-00002",
                "model-00001",
            )),
            ErrorKind::Format,
            "expected in",
        ),
        (
            "limit",
            Box::new(edit("tokenizer_config.json", "40", "2")),
            ErrorKind::Tokenizer,
            "no room",
        ),
    ];
    for (name, harm, kind, says) in cases {
        let (folder, from, to) = checkpoint("toy-bert");
        harm(&from);
        let error = import_encoder(&from, &to, &ImportOptions::default()).err();
        let error = error.unwrap_or_else(|| panic!("{name}: accepted"));
        assert!(
            error.kind() == kind && error.to_string().contains(says),
            "{name}: {error:?}"
        );
        assert!(!to.exists(), "{name}: something was written");
        assert_eq!(
            fs::read_dir(&folder.0).unwrap().count(),
            1,
            "{name}: a left-over"
        );
    }
    for (said, says) in [
        (
            options(|o| o.dtype = Some("int8".into())),
            "expected f32, f16 or bf16",
        ),
        (
            options(|o| o.pooling = Some("max".into())),
            "expected mean or cls",
        ),
        (options(|o| o.max_tokens = Some(49)), "at most 48"),
    ] {
        let (_folder, from, to) = checkpoint("toy-bert");
        let error = import_encoder(&from, &to, &said).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidRequest && error.to_string().contains(says),
            "{error}"
        );
    }
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    use safetensors::{SafeTensors, tensor::TensorView};
    for (value, dtype, says) in [
        (1e6f32, "f16", "does not fit f16"),
        (f32::NAN, "f32", "finite"),
        (f32::INFINITY, "bf16", "finite"),
    ] {
        let (_folder, from, to) = checkpoint("toy-xlm-roberta");
        let path = from.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let name = "encoder.layer.1.output.dense.weight";
        let changed: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .tensors()
            .into_iter()
            .map(|(own, view)| {
                let mut data = view.data().to_vec();
                if own == name {
                    data[40..44].copy_from_slice(&value.to_le_bytes());
                }
                (own, view.shape().to_vec(), data)
            })
            .collect();
        let views = changed.iter().map(|(name, shape, data)| {
            (
                name,
                TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap(),
            )
        });
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let error =
            import_encoder(&from, &to, &options(|o| o.dtype = Some(dtype.into()))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numeric);
        assert!(
            error.to_string().contains(name) && error.to_string().contains(says),
            "{error}"
        );
    }
}

#[test]
fn a_bundle_that_was_changed_does_not_open() {
    for file in [
        "model.safetensors",
        "tokenizer.json",
        "config.json",
        "manifest.json",
    ] {
        let (_folder, from, to) = checkpoint("toy-bert");
        import_encoder(&from, &to, &ImportOptions::default()).unwrap();
        let path = to.join(file);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 4;
        fs::write(&path, bytes).unwrap();
        let error = Encoder::open(&to, &cpu(1)).err().unwrap();
        assert!(error.to_string().contains(file), "{file}: {error}");
        fs::remove_file(&path).unwrap();
        let error = Encoder::open(&to, &cpu(1)).err().unwrap();
        assert!(
            error.kind() == ErrorKind::Io && error.to_string().contains(file),
            "{file}: {error}"
        );
    }
}

#[test]
fn sentence_transformers_modules_are_followed() {
    let module = |kind: &str, path: &str| serde_json::json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let (_folder, from, to) = checkpoint("toy-bert");
    // As old versions save: the encoder in a folder of its own, normalised in the end.
    let own = from.join("0_Transformer");
    fs::create_dir(&own).unwrap();
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ] {
        fs::rename(from.join(file), own.join(file)).unwrap();
    }
    let length = r#"{"max_seq_length": 24, "do_lower_case": true}"#;
    fs::write(own.join("sentence_bert_config.json"), length).unwrap();
    fs::rename(from.join("1_Pooling"), from.join("pooling")).unwrap();
    let modules = serde_json::json!([
        module("Transformer", "0_Transformer"),
        module("Pooling", "pooling"),
        module("Normalize", "2_Normalize"),
    ]);
    fs::write(from.join("modules.json"), modules.to_string()).unwrap();
    // The prompt before a text has another name.
    let prompts = r#"{"prompts": {"ask": "route: "}, "default_prompt_name": "ask"}"#;
    fs::write(from.join("config_sentence_transformers.json"), prompts).unwrap();
    let imported = import_encoder(&from, &to, &ImportOptions::default()).unwrap();
    assert_eq!(
        (imported.pooling.as_str(), imported.max_tokens),
        ("cls", 24)
    );
    let notes = imported.notes.join("\n");
    for said in [
        "normalises",
        "no prompt is called query",
        "sentence_bert_config.json 24",
    ] {
        assert!(notes.contains(said), "{notes}");
    }
    let vector = |folder: &PathBuf| {
        let encoder = Encoder::open(folder, &cpu(1)).unwrap();
        encoder.embed(&["translate images"]).remove(0).unwrap()
    };
    // Nothing else is different from the plain form.
    let (_plain, from, plain) = checkpoint("toy-bert");
    import_encoder(&from, &plain, &ImportOptions::default()).unwrap();
    assert_eq!(vector(&to), vector(&plain));
}

#[test]
fn a_pooling_in_the_newer_form_is_read() {
    for (pooling, want) in [
        (
            r#"{"pooling_mode": "mean", "embedding_dimension": 40}"#,
            "mean",
        ),
        (r#"{"pooling_mode": ["cls"]}"#, "cls"),
    ] {
        let (_folder, from, to) = checkpoint("toy-bert");
        fs::write(from.join("1_Pooling/config.json"), pooling).unwrap();
        let imported = import_encoder(&from, &to, &ImportOptions::default()).unwrap();
        assert_eq!(imported.pooling, want);
    }
}
