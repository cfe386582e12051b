//! Makes what the corpus begins with: into a folder of its own, as a test of the makers, or into the
//! source tree, where `HUBROUTER_MAKE_CORPUS` is set. What was found later is added by hand;
//! tests/corpus/README.md.

use std::fs;

use hubrouter::{ImportOptions, NewModel, Router, import_encoder};

use crate::common::toy::{examples, experience, model, settings};
use crate::common::{Folder, copy, fixture};
use crate::harness::corpus_folder;
use crate::toy::{build, bundle, learn, options};

#[test]
fn make_the_corpus() {
    let apart = Folder::new("corpus");
    let stores = match std::env::var_os("HUBROUTER_MAKE_CORPUS") {
        Some(_) => corpus_folder("stores"),
        None => apart.join("stores"),
    };
    if !bundle().exists() {
        fs::create_dir_all(corpus_folder("bundles")).unwrap();
        let mut import = ImportOptions::default();
        import.dtype = Some("f16".into());
        import_encoder(fixture("toy-bert"), bundle(), &import).unwrap();
    }
    for name in ["built", "learned", "vectors"] {
        let _ = fs::remove_dir_all(stores.join(name));
    }
    fs::create_dir_all(&stores).unwrap();
    let base = build(&stores.join("built"));
    copy(&stores.join("built"), &stores.join("vectors"));
    copy(&stores.join("built"), &stores.join("learned"));
    base.alias("model-0", "zero").unwrap();
    base.retire("model-1").unwrap();

    let first = learn(
        &stores.join("learned"),
        &experience(examples(0, 6)),
        settings(&[]),
        10_000,
    );
    first.unwrap().unwrap();
    let mut more = experience(examples(4, 4));
    more.models = [
        NewModel::from(&hubrouter::ModelCard::new("model-6", "Translation")),
        model(7),
    ]
    .into();
    learn(&stores.join("learned"), &more, settings(&[]), 10_000)
        .unwrap()
        .unwrap();

    let vectors = settings(&[
        ("replay.privacy", "embeddings"),
        ("regulariser", "ewc"),
        ("lora.train", "false"),
        ("init.rows", "card_mix"),
        ("memory", "false"),
    ]);
    learn(
        &stores.join("vectors"),
        &experience(examples(0, 6)),
        vectors,
        10_000,
    )
    .unwrap()
    .unwrap();
    for name in ["built", "learned", "vectors"] {
        for left in ["lock", "lock-learning", "resume.safetensors"] {
            let _ = fs::remove_file(stores.join(name).join(left));
        }
        let router = Router::open(stores.join(name), options()).unwrap();
        assert_eq!(
            router
                .store()
                .list()
                .unwrap()
                .iter()
                .filter(|g| g.damage.is_some())
                .count(),
            0
        );
    }
}
