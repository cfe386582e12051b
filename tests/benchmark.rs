//! CMRBench from end to end on a miniature: every kind of method, stopped and gone on with, reported.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    reason = "tests"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Folder, bundle, cpu, fixture};
use hubrouter::cmrbench::{
    Data, EvalRows, Matrix, Metric, Plan, Prefix, REPORT_FILES, Results, run, select, write_report,
};
use hubrouter::learn::Control;
use hubrouter::{ImportOptions, import_encoder};
use serde_json::{Value, json};

const STEMS: [&str; 4] = ["apibench-hf", "mllm", "hugging-bench-1", "hugging-bench-2"];
const INDICES: [&str; 4] = ["e1", "e1_e2", "e1_e2_e3", "e1_e2_e3_e4"];
const WORDS: [&str; 8] = [
    "french", "photo", "bird", "english", "image", "audio", "dutch", "cat",
];

/// Two models an experience, three rows each, one of them to predict; the third experience teaches
/// the first model again.
fn miniature(root: &Path) {
    let (processed, indices) = (root.join("processed"), root.join("model_indices"));
    fs::create_dir_all(&processed).unwrap();
    fs::create_dir_all(&indices).unwrap();
    let mut cards = String::new();
    for (i, stem) in STEMS.iter().enumerate() {
        let mut files = BTreeMap::from([("val", String::new()), ("eval", String::new())]);
        let mut teach = |model: usize| {
            let domain = ["Text Translation", "Picture Classification"][model % 2];
            for (form, file) in [
                ("find a model for", "val"),
                ("which one does", "val"),
                ("route", "eval"),
            ] {
                let row = json!({
                    "model_name": format!("acme/{}-{model}", WORDS[model]),
                    "model_family": WORDS[model],
                    "created_at": 1,
                    "instruction": format!("###Instruction: {form} {} number {model}", WORDS[model]),
                    "domain": domain,
                });
                *files.get_mut(file).unwrap() += &format!("{row}\n");
            }
            let card = json!({
                "domain": domain,
                "functionality": "Route",
                "model_name": format!("acme/{}-{model}", WORDS[model]),
                "description": format!("A model for {}.", WORDS[model]),
            });
            cards += &format!("{card}\n");
        };
        teach(2 * i);
        teach(2 * i + 1);
        if i == 2 {
            teach(0);
        }
        for (part, text) in files {
            fs::write(processed.join(format!("cleaned-{stem}-{part}.json")), text).unwrap();
        }
        fs::write(indices.join(format!("{}.json", INDICES[i])), &cards).unwrap();
    }
}

struct Setup {
    folder: Folder,
    data: Data,
    encoder: PathBuf,
}

fn setup(name: &str) -> Setup {
    let folder = Folder::new(name);
    miniature(&folder.join("data"));
    let encoder = folder.join("toy-bert");
    import_encoder(fixture("toy-bert"), &encoder, &ImportOptions::default()).unwrap();
    let data = Data::open(folder.join("data"), Prefix::Strip).unwrap();
    Setup {
        folder,
        data: data.evaluate(EvalRows::Whole),
        encoder,
    }
}

impl Setup {
    fn plan(&self, methods: &[&str]) -> Plan {
        let names: Vec<String> = methods.iter().map(|name| (*name).to_owned()).collect();
        let (data, encoder) = (self.data.clone(), self.encoder.clone());
        let methods = select(&names).unwrap();
        let mut plan = Plan::new(
            data,
            EvalRows::Whole,
            Prefix::Strip,
            encoder,
            cpu(1),
            methods,
        );
        (plan.seeds, plan.epochs) = (vec![0, 7], vec![2, 1, 1, 1]);
        for (key, value) in [("batch", "2"), ("lora.r", "2"), ("warm_up", "1")] {
            plan.changes.push((key.to_owned(), value.to_owned()));
        }
        plan
    }
}

/// Runs to the end; the number of callbacks.
fn finish(plan: &Plan, out: &Path) -> usize {
    let mut calls = 0;
    let mut last = 0.0;
    let finished = run(plan, out, &mut |status| {
        calls += 1;
        assert!(
            status.done >= last && status.done <= status.total + 1e-6,
            "{status:?} after {last}"
        );
        last = status.done;
        Control::Continue
    });
    assert!(finished.unwrap());
    calls
}

/// The files below `folder`, by path.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.strip_prefix(folder).unwrap().to_owned(),
                fs::read(&path).unwrap(),
            )
        })
        .collect()
}

#[test]
fn every_kind_of_method_runs_and_is_reported() {
    let setup = setup("benchmark");
    let out = setup.folder.join("out");
    let methods = [
        "retrieval",
        "centroid",
        "sequential",
        "replay-20",
        "ties-factors",
        "ties-product",
        "carve-10",
        "cumulative",
        "joint",
        "no-replay",
    ];
    let plan = setup.plan(&methods);
    finish(&plan, &out);
    assert!(
        !out.join("work/carve-10-s0").exists(),
        "what was trained is gone"
    );
    let results = write_report(&plan, &out).unwrap();
    assert_eq!(results.methods.len(), 13);
    for method in &results.methods {
        let seeds = if method.info.deterministic() { 1 } else { 2 };
        assert_eq!(method.runs.len(), seeds, "{}", method.info.name);
        let forgetting = method.over_seeds(Metric::Domain, Matrix::forgetting);
        assert_eq!(forgetting.is_none(), method.info.name == "joint");
        let (hits, rows) = method.runs[0].hits(Metric::Model, 3, 2).unwrap();
        assert!(hits <= rows && rows == 3);
    }
    // Every word is in its model's card and prompts alone: what reads cards makes no mistake, nor does
    // the floor on the experience whose words it has.
    let (acc, _) = results
        .method("tfidf")
        .unwrap()
        .over_seeds(Metric::Model, Matrix::acc)
        .unwrap();
    assert_eq!(acc, 100.0);
    let floor = results.method("centroid").unwrap();
    assert_eq!(floor.cell(Metric::Model, 0, 0), Some((100.0, None)));

    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let csv = read("matrix.csv");
    assert!(
        csv.contains("\ntfidf,0,4,E3,M,3,3,100\n") && csv.contains("\ncarve-10,7,1,E1,D,"),
        "{csv}"
    );
    // 10 cells a metric; joint has the last row's four.
    let lines = |method: &str| {
        csv.lines()
            .filter(|line| line.starts_with(&format!("{method},")))
            .count()
    };
    assert_eq!(
        (lines("carve-10"), lines("joint"), lines("bm25")),
        (2 * 30, 2 * 12, 30)
    );
    let value: Value = serde_json::from_str(&read("results.json")).unwrap();
    let joint = value["methods"]
        .as_array()
        .unwrap()
        .iter()
        .find(|method| method["name"] == "joint")
        .unwrap();
    assert_eq!(joint["runs"][0]["hits"]["M"][0], json!([null]));
    assert!(joint["mean"]["fgt"]["D"].is_null() && joint["mean"]["acc"]["D"].is_number());
    assert_eq!(value["data"]["train_rows"], json!([4, 4, 6, 4]));
    let tables = read("tables.md");
    for part in [
        "## poster, other data",
        "| CARvE (10 %) |",
        "Joint training",
        "## Ablations",
        "± 0.0",
        "prefix: strip",
        "paired bootstrap",
    ] {
        assert!(tables.contains(part), "{part:?} is not in {tables}");
    }
    let page = read("report.html");
    assert!(
        page.contains("<svg") && page.matches("<svg").count() == files(&out.join("figures")).len()
    );
    for absent in ["<script", "@import", "url(", "href=", "src="] {
        assert!(!page.contains(absent), "{absent}");
    }
    assert_eq!(
        page.matches("<figure").count(),
        page.matches("</figure>").count()
    );

    figures_have_numbers(&out, &results);
    cells_of_earlier_versions_are_shown(&plan, &out);

    // Everything is made again from what the run noted, and from nothing else.
    let before: Vec<String> = REPORT_FILES.iter().map(|name| read(name)).collect();
    REPORT_FILES
        .iter()
        .for_each(|name| fs::remove_file(out.join(name)).unwrap());
    assert_eq!(finish(&plan, &out), 0, "nothing is left to do");
    write_report(&plan, &out).unwrap();
    let after: Vec<String> = REPORT_FILES.iter().map(|name| read(name)).collect();
    assert!(before == after);
    let path = out.join("predictions/tfidf-s0-step4-E3.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replacen("\"pred\":\"acme/image-4\"", "\"pred\":\"acme/cat-7\"", 1),
    )
    .unwrap();
    let results = Results::read(&plan, &out).unwrap();
    assert_eq!(
        results.method("tfidf").unwrap().runs[0].hits(Metric::Model, 3, 2),
        Some((2, 3))
    );
    fs::write(
        &path,
        text.replacen("\"gold\":\"acme/image-4\"", "\"gold\":\"acme/cat-7\"", 1),
    )
    .unwrap();
    let error = Results::read(&plan, &out).unwrap_err().to_string();
    assert!(
        error.contains("tfidf-s0-step4-E3.jsonl:1: expected row 0 of gold")
            && error.contains("other data"),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    let error = Results::read(&plan, &out).unwrap_err().to_string();
    assert!(error.contains("tfidf-s0-step4-E3.jsonl"), "{error}");
}

/// The rows of a CSV in `out` without quotes, by the names of its columns.
fn csv(out: &Path, name: &str) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(out.join(name)).unwrap();
    let mut lines = text.lines().map(|line| line.split(','));
    let heads: Vec<&str> = lines.next().unwrap().collect();
    lines
        .map(|cells| {
            let pairs = heads.iter().zip(cells);
            pairs
                .map(|(head, cell)| ((*head).to_owned(), cell.to_owned()))
                .collect()
        })
        .collect()
}

/// Confusions, coverage, costs, the map, claims.
fn figures_have_numbers(out: &Path, results: &Results) {
    let of = |name: &str, keys: &[(&str, &str)]| -> Vec<BTreeMap<String, String>> {
        let mut rows = csv(out, name);
        rows.retain(|row| keys.iter().all(|(key, value)| row[*key] == *value));
        rows
    };
    let number = |row: &BTreeMap<String, String>, key: &str| row[key].parse::<f64>().unwrap();
    let carve = results.method("carve-10").unwrap();

    // Nine eval rows; the rows on the diagonal are the hits.
    let confused = of("confusion.csv", &[("method", "carve-10")]);
    let sum = |rows: &mut dyn Iterator<Item = &BTreeMap<String, String>>| -> f64 {
        rows.map(|row| number(row, "rows")).sum()
    };
    assert_eq!(sum(&mut confused.iter()), 9.0, "{confused:?}");
    let hits: usize = carve
        .runs
        .iter()
        .flat_map(|run| (0..4).map(|test| run.hits(Metric::Domain, 3, test).unwrap().0))
        .sum();
    let right = &mut confused.iter().filter(|row| row["gold"] == row["named"]);
    assert_eq!(sum(right), hits as f64 / 2.0);
    assert!(of("confusion.csv", &[("method", "sequential")]).is_empty());

    // All rows covered, the risk is what Acc lacks.
    for (run, seed) in carve.runs.iter().zip(["0", "7"]) {
        let keys = [("method", "carve-10"), ("seed", seed), ("metric", "D")];
        let row = &of("coverage.csv", &keys)[0];
        let acc = run.matrix(Metric::Domain).acc().unwrap();
        assert!((number(row, "risk_100") - (100.0 - acc)).abs() < 1e-9);
    }
    let best = &of("coverage.csv", &[("method", "tfidf"), ("metric", "M")])[0];
    assert_eq!((number(best, "aurc"), number(best, "risk_5")), (0.0, 0.0));
    assert!(of("coverage.csv", &[("method", "no-replay")]).is_empty());

    // What learns costs arithmetic, and more with more rows; what counts words is not estimated.
    let cost = |method: &str| of("cost.csv", &[("method", method)]).remove(0);
    let flops = |method: &str| number(&cost(method), "learn_flops");
    assert!(flops("cumulative") > flops("sequential") && flops("sequential") > 0.0);
    assert!(cost("tfidf")["route_flops"].is_empty() && cost("tfidf")["stored_bytes"].is_empty());
    assert!(number(&cost("dense"), "route_flops") > 0.0);
    assert!(number(&cost("carve-10"), "stored_bytes") > 1000.0);
    assert!(number(&cost("carve-10"), "trained_parameters") > 100.0);
    let counts = cfg!(target_os = "linux");
    assert_eq!(!cost("bm25")["peak_memory_bytes"].is_empty(), counts);

    // The map of the method that is looked at first, with all eight models on it.
    let map = csv(out, "map.csv");
    assert_eq!(map.len(), 8);
    assert!(
        map.iter()
            .all(|row| row["method"] == "carve-10" && row["seed"] == "0")
    );
    let experience = |model: &str| {
        let row = map.iter().find(|row| row["model"] == model).unwrap();
        (row["first_experience"].clone(), row["domain"].clone())
    };
    assert_eq!(
        experience("acme/image-4"),
        ("E3".to_owned(), "Text Translation".to_owned())
    );
    assert_eq!(experience("acme/french-0").0, "E1", "taught again in E3");
    let spread: f64 = map.iter().map(|row| number(row, "x").abs()).sum();
    assert!(spread > 0.0);
    for (cell, there) in [
        ("ties-product-s7", true),
        ("joint-s0", true),
        ("tfidf-s0", false),
    ] {
        let path = out.join(format!("registry/{cell}.json"));
        assert_eq!(path.exists(), there, "{cell}");
    }

    let claim = &of(
        "claims.csv",
        &[
            ("first", "carve-10"),
            ("second", "centroid"),
            ("quantity", "D-Acc"),
        ],
    )[0];
    let acc = |method: &str| {
        let method = results.method(method).unwrap();
        method.over_seeds(Metric::Domain, Matrix::acc).unwrap().0
    };
    let difference = acc("carve-10") - acc("centroid");
    assert!((number(claim, "difference") - difference).abs() < 1e-9);

    let tables = fs::read_to_string(out.join("tables.md")).unwrap();
    for part in [
        "**Missing data.** Not there: cleaned-apibench-hf-train.json",
        "E4 4 of 9297",
        "*poster D-Acc*",
        "*80.7*",
        "## Differences between methods",
        "## Confusion between domains",
        "## Coverage against risk",
        "8 models. Models that lie apart",
    ] {
        assert!(tables.contains(part), "{part:?} is not in {tables}");
    }
    let figures = files(&out.join("figures"));
    for name in [
        "map",
        "cost",
        "coverage-D",
        "coverage-M",
        "confusion-carve-10",
    ] {
        assert!(
            figures.contains_key(Path::new(&format!("{name}.svg"))),
            "{name}"
        );
    }
    let bars = String::from_utf8(figures[Path::new("acc-D.svg")].clone()).unwrap();
    assert!(bars.contains("poster, other data"));
}

/// Cells that lack what later versions note stay valid: dashes, and no map.
fn cells_of_earlier_versions_are_shown(plan: &Plan, out: &Path) {
    let (cells, registry) = (files(&out.join("cells")), files(&out.join("registry")));
    for (name, bytes) in &cells {
        let mut cell: Value = serde_json::from_slice(bytes).unwrap();
        for step in cell["steps"].as_array_mut().unwrap() {
            let step = step.as_object_mut().unwrap();
            assert!(step.remove("peak_of_step").is_some() && step.remove("stored_bytes").is_some());
        }
        fs::write(out.join("cells").join(name), cell.to_string()).unwrap();
    }
    fs::remove_dir_all(out.join("registry")).unwrap();
    assert_eq!(finish(plan, out), 0, "nothing is run again");
    write_report(plan, out).unwrap();
    assert!(csv(out, "map.csv").is_empty());
    let costs = csv(out, "cost.csv");
    let empty = |key: &str| costs.iter().all(|row| row[key].is_empty());
    assert!(empty("peak_memory_bytes") && empty("stored_bytes"));
    let tables = fs::read_to_string(out.join("tables.md")).unwrap();
    assert!(tables.contains("There is none: rows of models are noted"));
    // A map of another cell is none.
    let (name, bytes) = registry
        .iter()
        .find(|(name, _)| name.ends_with("carve-10-s0.json"))
        .unwrap();
    fs::create_dir_all(out.join("registry")).unwrap();
    let mut map: Value = serde_json::from_slice(bytes).unwrap();
    map["key"] = json!("another");
    fs::write(out.join("registry").join(name), map.to_string()).unwrap();
    let results = write_report(plan, out).unwrap();
    assert!(results.method("carve-10").unwrap().runs[0].map.is_none());
    map["x"].as_array_mut().unwrap().pop();
    fs::write(out.join("registry").join(name), map.to_string()).unwrap();
    let error = write_report(plan, out).unwrap_err().to_string();
    assert!(
        error.contains("expected x and y of 8 models, found 7 and 8"),
        "{error}"
    );

    for (folder, files) in [("cells", cells), ("registry", registry)] {
        for (name, bytes) in files {
            fs::write(out.join(folder).join(name), bytes).unwrap();
        }
    }
    write_report(plan, out).unwrap();
}

/// Stopped anywhere, a run goes on and ends with the same predictions.
#[test]
fn a_stopped_run_goes_on_where_it_was() {
    let setup = setup("benchmark-stopped");
    let methods = ["bm25", "ties-factors", "carve-10"];
    let mut plan = setup.plan(&methods);
    plan.seeds = vec![3];
    let whole = setup.folder.join("whole");
    let calls = finish(&plan, &whole);
    let want = files(&whole.join("predictions"));
    assert_eq!(want.len(), 3 * 10);

    let out = setup.folder.join("stopped");
    let mut stops = 0;
    for _ in 0..calls {
        // Each call gets a little further than a step.
        let mut left = calls / 5;
        let finished = run(&plan, &out, &mut |_| {
            left = left.saturating_sub(1);
            if left == 0 {
                Control::Stop
            } else {
                Control::Continue
            }
        });
        if finished.unwrap() {
            break;
        }
        stops += 1;
    }
    assert!(stops > 2, "{stops} stops of {calls} callbacks");
    assert!(files(&out.join("predictions")) == want, "the same bytes");

    // What was made is lost: begun again, with the same result.
    let cell = out.join("cells/carve-10-s3.json");
    let mut noted: Value = serde_json::from_slice(&fs::read(&cell).unwrap()).unwrap();
    noted["steps"].as_array_mut().unwrap().truncate(2);
    fs::write(&cell, noted.to_string()).unwrap();
    assert!(finish(&plan, &out) > 0);
    assert!(files(&out.join("predictions")) == want);

    // Another setting is another cell, for the methods that it concerns.
    plan.epochs[3] = 2;
    plan.methods.remove(1);
    assert!(finish(&plan, &out) > 0);
    let found = files(&out.join("predictions"));
    let differs = |name: &str| found[Path::new(name)] != want[Path::new(name)];
    assert!(differs("carve-10-s3-step4-E4.jsonl"));
    assert!(!differs("carve-10-s3-step3-E3.jsonl") && !differs("bm25-s3-step4-E4.jsonl"));
}

#[test]
fn what_cannot_be_run_is_said() {
    let setup = setup("benchmark-refused");
    let out = setup.folder.join("out");
    let refused = |plan: &Plan, says: &str| {
        let error = run(plan, &out, &mut |_| Control::Continue)
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    };
    let mut plan = setup.plan(&["carve-10"]);
    plan.epochs = vec![1, 2];
    refused(
        &plan,
        "epochs: expected 4 numbers, one for each experience, found 2",
    );
    let mut plan = setup.plan(&["carve-10"]);
    plan.changes.push(("lr.q".to_owned(), "1".to_owned()));
    refused(&plan, "\"lr.q\": expected one of");
    let mut plan = setup.plan(&["carve-10"]);
    plan.changes
        .push(("replay.ratio".to_owned(), "0.5".to_owned()));
    refused(
        &plan,
        "replay.ratio: expected a setting that all methods can share",
    );
    let mut plan = setup.plan(&["bm25"]);
    plan.encoder = setup.folder.join("nowhere");
    refused(&plan, "nowhere");
    let mut plan = setup.plan(&["ties-factors"]);
    plan.changes
        .push(("init.profile".to_owned(), "random".to_owned()));
    refused(&plan, "init.profile: expected card for TIES merging");
    let mut plan = setup.plan(&["bm25"]);
    plan.data.experiences[1].eval.clear();
    refused(
        &plan,
        "E2: expected rows to learn and rows to predict (whole), found 4 and 0",
    );
    plan.seeds.clear();
    assert!(!out.join("tables.md").exists());
}

/// The floors of cmrbench.md section 7 on the real data, where `HUBROUTER_CMRBENCH` names it.
#[test]
fn floors_on_the_real_data() {
    let Some(data) = std::env::var_os("HUBROUTER_CMRBENCH") else {
        eprintln!("not run on the benchmark's data: HUBROUTER_CMRBENCH does not name it");
        return;
    };
    let data = Data::open(data, Prefix::Strip).unwrap();
    let names = ["bm25", "tfidf", "centroid"].map(str::to_owned);
    let plan = Plan::new(
        data.evaluate(EvalRows::Public),
        EvalRows::Public,
        Prefix::Strip,
        bundle(),
        cpu(1),
        select(&names).unwrap(),
    );
    let folder = Folder::new("benchmark-floors");
    finish(&plan, &folder.0);
    let results = Results::read(&plan, &folder.0).unwrap();
    // Acc of model, family, domain; then the domain's Fgt. The floor of centroids is defined in
    // words alone: its vocabulary is ours.
    for (name, acc, fgt, within) in [
        ("bm25", [3.4, 4.2, 14.9], None, 0.5),
        ("tfidf", [8.4, 9.6, 26.1], Some(0.5), 0.5),
        ("centroid", [16.8, 21.4, 54.4], Some(4.6), 1.5),
    ] {
        let method = results.method(name).unwrap();
        for (metric, want) in Metric::ALL.into_iter().zip(acc) {
            let (found, _) = method.over_seeds(metric, Matrix::acc).unwrap();
            assert!(
                (found - want).abs() < within,
                "{name}: expected {want}, found {found}"
            );
        }
        let (found, _) = method
            .over_seeds(Metric::Domain, Matrix::forgetting)
            .unwrap();
        let right = fgt.is_none_or(|want: f64| (found - want).abs() < 0.5);
        assert!(right, "{name}: expected {fgt:?}, found {found}");
    }
}
