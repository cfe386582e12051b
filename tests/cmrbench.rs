//! The reader of CMRBench: on a miniature always, on the real data where `HUBROUTER_CMRBENCH`
//! names it (cmrbench.md section 5).
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    reason = "tests"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::Folder;
use hubrouter::ErrorKind;
use hubrouter::cmrbench::{CarveRule, Data, EvalRows, Hits, Prefix, Tables};

const STEMS: [&str; 4] = ["apibench-hf", "mllm", "hugging-bench-1", "hugging-bench-2"];
const INDICES: [&str; 4] = ["e1", "e1_e2", "e1_e2_e3", "e1_e2_e3_e4"];

fn row(model: &str, domain: &str, family: &str, instruction: &str) -> String {
    format!(
        r#"{{"model_name":"{model}","model_family":"{family}","created_at":1,"instruction":"{instruction}","domain":"{domain}","unknown":[1]}}"#
    )
}

fn card(model: &str, domain: &str) -> String {
    format!(
        r#"{{"model_name":"{model}","domain":"{domain}","description":null,"performance":{{}}}}"#
    )
}

/// Four experiences; each teaches `m<i>` and, from the second on, `m0` again.
fn miniature(root: &Path) {
    let (processed, indices) = (root.join("data/processed"), root.join("data/model_indices"));
    fs::create_dir_all(&processed).unwrap();
    fs::create_dir_all(&indices).unwrap();
    let mut cards = String::new();
    for (i, stem) in STEMS.iter().enumerate() {
        let file = |part: &str| processed.join(format!("cleaned-{stem}-{part}.json"));
        let own = row(
            &format!("m\\/{i}"),
            &format!("d{i}"),
            &format!("f{i}"),
            "###Instruction:  find \\u00e9 ",
        );
        let again = row("m\\/0", "other", "f9", "again");
        fs::write(
            file("val"),
            format!("{own}\n\n{}", if i > 0 { again } else { String::new() }),
        )
        .unwrap();
        fs::write(file("eval"), own).unwrap();
        cards += &format!("{}\n", card(&format!("m\\/{i}"), &format!("d{i}")));
        fs::write(indices.join(format!("{}.json", INDICES[i])), &cards).unwrap();
    }
    fs::write(
        processed.join("cleaned-mllm-train.json"),
        row("a", "d1", "fa", "first"),
    )
    .unwrap();
}

#[test]
fn the_layout_is_read_and_ids_follow_the_experiences() {
    let folder = Folder::new("mini");
    miniature(&folder.0);
    // The checkout or its data folder.
    for root in [folder.0.clone(), folder.join("data")] {
        let data = Data::open(root, Prefix::Strip).unwrap();
        assert_eq!(data.missing.len(), 3);
        assert_eq!(data.experiences[0].eval[0].instruction, "find é");
        let train: Vec<&str> = data.experiences[1]
            .train
            .iter()
            .map(|row| row.model_name.as_str())
            .collect();
        assert_eq!(train, ["a", "m/1", "m/0"], "train rows before val rows");
        let names: Vec<String> = data
            .hub(4)
            .iter()
            .map(|new| new.model.name.to_string())
            .collect();
        assert_eq!(names, ["m/0", "a", "m/1", "m/2", "m/3"]);
        assert_eq!(
            &*data.hub(4)[0].model.domain,
            "d0",
            "the row that introduced a model"
        );
        let tables = Tables::new(&data, 4);
        assert_eq!(
            (tables.domain("m/0"), tables.family("m/0")),
            (Some("other"), Some("f9")),
            "the last row wins"
        );
        assert_eq!(Tables::new(&data, 1).domain("m/0"), Some("d0"));
        assert_eq!(data.hub(4)[2].cards, ["m/1. d1"]);
    }
    let kept = Data::open(&folder.0, Prefix::Keep).unwrap();
    assert_eq!(
        kept.experiences[0].eval[0].instruction,
        "###Instruction:  find é "
    );
}

#[test]
fn errors_name_the_file_and_the_line() {
    let folder = Folder::new("mini-bad");
    miniature(&folder.0);
    let val = folder.join("data/processed/cleaned-mllm-val.json");
    let good = fs::read_to_string(&val).unwrap();
    fs::write(&val, format!("{good}\n{{\"model_name\": 3}}\n")).unwrap();
    let error = Data::open(&folder.0, Prefix::Strip).unwrap_err();
    assert!(
        error.to_string().contains("cleaned-mllm-val.json:4:"),
        "{error}"
    );
    fs::remove_file(&val).unwrap();
    let error = Data::open(&folder.0, Prefix::Strip).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(
        error.to_string().contains("cleaned-mllm-val.json"),
        "{error}"
    );
    fs::write(&val, good).unwrap();
    let index = folder.join("data/model_indices/e1_e2_e3.json");
    fs::write(&index, card("somebody", "d0")).unwrap();
    let error = Data::open(&folder.0, Prefix::Strip).unwrap_err();
    assert!(
        error.to_string().contains("e1_e2_e3.json:1:") && error.to_string().contains("m/0"),
        "{error}"
    );
    let error = Data::open(folder.join("nowhere"), Prefix::Strip).unwrap_err();
    assert!(
        error.to_string().contains("expected a CMRBench checkout"),
        "{error}"
    );
}

/// The real data, or a word on why there is none.
fn real() -> Option<Data> {
    let folder = std::env::var_os("HUBROUTER_CMRBENCH").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("not run on the benchmark's data: HUBROUTER_CMRBENCH does not name it");
    }
    folder.map(|folder| Data::open(folder, Prefix::Strip).unwrap())
}

#[test]
fn counts_of_the_real_data() {
    let Some(data) = real() else { return };
    let eval: Vec<usize> = data.experiences.iter().map(|e| e.eval.len()).collect();
    assert_eq!(eval, [443, 388, 477, 534]);
    let train: Vec<usize> = data.experiences.iter().map(|e| e.train.len()).collect();
    assert_eq!(train, [1174, 688, 1328 + 1380, 1395 + 1207]);
    let cards: Vec<usize> = data.experiences.iter().map(|e| e.cards.len()).collect();
    assert_eq!(cards, [873, 481, 520, 547]);
    for (step, (hub, domains, families)) in [
        (852, 40, 501),
        (1213, 47, 782),
        (1663, 58, 1091),
        (2127, 58, 1388),
    ]
    .into_iter()
    .enumerate()
    {
        let tables = Tables::new(&data, step + 1);
        let models: BTreeSet<&str> = tables.models().collect();
        assert_eq!(models.len(), hub);
        assert_eq!(
            models
                .iter()
                .map(|m| tables.domain(m))
                .collect::<BTreeSet<_>>()
                .len(),
            domains
        );
        assert_eq!(
            models
                .iter()
                .map(|m| tables.family(m))
                .collect::<BTreeSet<_>>()
                .len(),
            families
        );
        // The hub is the set of names in the index.
        let shown: BTreeSet<&str> = data.experiences[..=step]
            .iter()
            .flat_map(|e| &e.cards)
            .map(|card| card.model_name.as_str())
            .collect();
        assert_eq!(shown, models);
        assert_eq!(data.hub(step + 1).len(), hub);
        let earlier: Vec<String> = data
            .hub(step)
            .iter()
            .map(|new| new.model.name.to_string())
            .collect();
        let now: Vec<String> = data
            .hub(step + 1)
            .iter()
            .map(|new| new.model.name.to_string())
            .collect();
        assert!(now.starts_with(&earlier), "ids never change");
    }
}

#[test]
fn oracles_on_the_real_data() {
    let Some(data) = real() else { return };
    let gold_domain = [442, 388, 476, 534];
    let oracle: [&[(usize, usize)]; 4] = [
        &[(20, 47)],
        &[(20, 41), (44, 50)],
        &[(19, 34), (22, 24), (44, 83)],
        &[(16, 31), (17, 17), (33, 70), (12, 27)],
    ];
    for step in 1..=4 {
        let tables = Tables::new(&data, step);
        let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
        for row in data.experiences[..step].iter().flat_map(|e| &e.train) {
            *rows.entry(&row.model_name).or_default() += 1;
        }
        // Of each domain the model with most rows; the smallest name among equals.
        let mut best: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for (model, count) in rows {
            let entry = best
                .entry(tables.domain(model).unwrap())
                .or_insert((0, model));
            if count > entry.0 {
                *entry = (count, model);
            }
        }
        for test in 0..step {
            let eval = &data.experiences[test].eval;
            let (mut gold, mut domain) = (Hits::default(), Hits::default());
            for row in eval {
                gold += tables.hits(&row.model_name, row);
                domain += tables.hits(best[row.domain.as_str()].1, row);
            }
            assert_eq!(
                (gold.model, gold.family, gold.domain),
                (eval.len(), eval.len(), gold_domain[test])
            );
            let (models, families) = oracle[step - 1][test];
            assert_eq!(
                (domain.model, domain.family, domain.domain),
                (models, families, eval.len())
            );
        }
    }
    let tables = Tables::new(&data, 4);
    for (model, domain) in [
        (
            "MIT/ast-finetuned-audioset-10-10-0.4593",
            "Multimodal Feature Extraction",
        ),
        (
            "bert-base-uncased",
            "Natural Language Processing Text Classification",
        ),
        ("Salesforce/blip2-flan-t5-xxl", "Multimodal Image-to-Text"),
        (
            "Salesforce/blip-image-captioning-large",
            "Multimodal Image-to-Text",
        ),
        (
            "pyannote/speaker-diarization",
            "Audio Voice Activity Detection",
        ),
    ] {
        assert_eq!(tables.domain(model), Some(domain));
    }
    assert_eq!(
        Tables::new(&data, 2).domain("pyannote/speaker-diarization"),
        Some("Audio Automatic Speech Recognition")
    );
}

#[test]
fn no_training_row_is_an_eval_row() {
    let Some(data) = real() else { return };
    let key = |text: &str| {
        text.split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .to_lowercase()
    };
    let train: BTreeSet<String> = data
        .experiences
        .iter()
        .flat_map(|e| &e.train)
        .map(|row| key(&row.instruction))
        .collect();
    for row in data.experiences.iter().flat_map(|e| &e.eval) {
        assert!(
            !train.contains(&key(&row.instruction)),
            "{}",
            row.model_name
        );
    }
}

#[test]
fn rows_to_predict_of_the_real_data() {
    let Some(data) = real() else { return };
    let counts = |data: &Data,
                  of: fn(&hubrouter::cmrbench::BenchExperience) -> usize|
     -> Vec<usize> { data.experiences.iter().map(of).collect() };
    let public = data.clone().evaluate(EvalRows::Public);
    assert_eq!(counts(&public, |e| e.eval.len()), [443, 388, 477, 534]);
    let development = data.clone().evaluate(EvalRows::Development);
    let held = counts(&development, |e| e.eval.len());
    assert_eq!(held, [305, 142, 516, 544]);
    let left = counts(&development, |e| e.train.len());
    let all = counts(&data, |e| e.train.len());
    assert!(
        all.iter()
            .zip(&held)
            .zip(&left)
            .all(|((all, held), left)| all - held == *left)
    );
    assert_ne!(development.digest(), data.digest());
    for (step, (folded, exact)) in [(852, 852), (1211, 1213), (1661, 1663), (2125, 2127)]
        .into_iter()
        .enumerate()
    {
        assert_eq!(CarveRule::new(&data, step + 1, true).models(), folded);
        assert_eq!(CarveRule::new(&data, step + 1, false).models(), exact);
    }
    let rule = CarveRule::new(&data, 4, true);
    let left_out = data.experiences.iter().map(|experience| {
        let gold: Vec<&str> = experience
            .eval
            .iter()
            .map(|row| row.model_name.as_str())
            .collect();
        experience.eval.len() - rule.hits(&gold, &experience.eval).valid
    });
    assert_eq!(left_out.collect::<Vec<_>>(), [0, 3, 0, 0]);
}

#[test]
fn the_public_half_and_the_development_split_by_hand() {
    let folder = Folder::new("mini-split");
    miniature(&folder.0);
    let file = folder.join("data/processed/cleaned-mllm-val.json");
    let rows = ["one", "two", "three"].map(|text| row("m\\/1", "d1", "f1", text));
    fs::write(&file, rows.join("\n")).unwrap();
    let data = Data::open(&folder.0, Prefix::Strip).unwrap();
    // SHA-256 of "find é" begins with 8aae; of "one" 7692, of "two" 3fc4, of "three" 8b5b.
    let public = data.clone().evaluate(EvalRows::Public);
    assert!(public.experiences.iter().all(|e| e.eval.len() == 1));
    assert_eq!(public.experiences[1].train.len(), 4, "training rows stay");
    let development = data.evaluate(EvalRows::Development);
    let texts = |rows: &[hubrouter::cmrbench::BenchRow]| -> Vec<String> {
        rows.iter().map(|row| row.instruction.clone()).collect()
    };
    assert_eq!(texts(&development.experiences[1].eval), ["two"]);
    assert_eq!(
        texts(&development.experiences[1].train),
        ["first", "one", "three"]
    );
    assert!(
        development.experiences[0].eval.is_empty(),
        "each model has one row"
    );
}
