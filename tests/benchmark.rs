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
use std::sync::{Arc, Mutex};

use common::{Folder, bundle, cpu, fixture};
use hubrouter::cmrbench::{
    AccuracyMatrix, BenchPlan, BenchRow, Cell, Chat, Data, DomainList, EvalRows, Metric, OwnHub,
    Prefix, REPORT_FILES, Results, run, select, write_report,
};
use hubrouter::learn::Control;
use hubrouter::{Encoder, ImportOptions, import_encoder};
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

/// Puts `to` in the place of the first `from` of a file.
fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text.replacen(from, to, 1)).unwrap();
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
    fn plan(&self, methods: &[&str]) -> BenchPlan {
        let names: Vec<String> = methods.iter().map(|name| (*name).to_owned()).collect();
        let (data, encoder) = (self.data.clone(), self.encoder.clone());
        let methods = select(&names).unwrap();
        let mut plan = BenchPlan::new(
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
fn finish(plan: &BenchPlan, out: &Path) -> usize {
    let mut calls = 0;
    let mut last = 0.0;
    let finished = run(plan, out, &mut |status| {
        calls += 1;
        assert!(
            status.done >= last - 1e-6 && status.done <= status.total + 1e-6,
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

/// Both columns of a metric are its forgetting.
fn what_is_forgotten_is_lost_or_outgrown(tables: &str, results: &Results) {
    let section = tables.split("## Forgotten, or outgrown").nth(1).unwrap();
    let rows: Vec<Vec<&str>> = section
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let mut lost = 0.0;
    for row in &rows {
        let method = results
            .methods
            .iter()
            .find(|m| m.info.label == row[0])
            .unwrap();
        let cells: Vec<f64> = row[1..].iter().map(|cell| cell.parse().unwrap()).collect();
        for (metric, parts) in [(Metric::Model, &cells[..2]), (Metric::Domain, &cells[2..])] {
            let (want, _) = method
                .over_seeds(metric, AccuracyMatrix::forgetting)
                .unwrap();
            let found: f64 = parts.iter().sum();
            assert!((found - want).abs() < 0.11, "{row:?}, {want}");
            lost += parts[0].abs();
        }
    }
    assert!(rows.len() > 5 && lost > 0.0, "{section}");
    let joint = rows.iter().any(|row| row[0].starts_with("Joint"));
    assert!(!joint, "nothing came before it");
}

#[test]
fn every_kind_of_method_runs_and_is_reported() {
    let setup = setup("benchmark");
    let out = setup.folder.join("out");
    let methods = [
        "retrieval",
        "rar-each",
        "centroid",
        "sequential",
        "replay-20",
        "ties-factors",
        "ties-product",
        "lwf",
        "ewc",
        "carve-ewc",
        "carve-10",
        "memory",
        "first-session",
        "carve-memory",
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
    assert_eq!(results.methods.len(), 21);
    for method in &results.methods {
        let seeds = if method.info.deterministic() { 1 } else { 2 };
        assert_eq!(method.runs.len(), seeds, "{}", method.info.name);
        let forgetting = method.over_seeds(Metric::Domain, AccuracyMatrix::forgetting);
        assert_eq!(forgetting.is_none(), method.info.name == "joint");
        let (hits, rows) = method.runs[0].hits(Metric::Model, 3, 2).unwrap();
        assert!(hits <= rows && rows == 3);
    }
    // Every word is in its model's card and prompts alone: what reads cards makes no mistake, nor does
    // the floor on the experience whose words it has.
    let (acc, _) = results
        .method("tfidf")
        .unwrap()
        .over_seeds(Metric::Model, AccuracyMatrix::acc)
        .unwrap();
    assert_eq!(acc, 100.0);
    let floor = results.method("centroid").unwrap();
    assert_eq!(floor.cell(Metric::Model, 0, 0), Some((100.0, None)));

    // The router reads cards behind prompts: learned once or at every step.
    let updates = |method: &str| -> Vec<bool> {
        let steps = &results.method(method).unwrap().runs[0].cell.steps;
        steps.iter().map(|step| step.updates > 0).collect()
    };
    assert_eq!(updates("rar-frozen"), [true, false, false, false]);
    assert_eq!(updates("rar-each"), updates("sequential"));
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let predicted = |method: &str, step: usize, test: usize| {
        read(&format!("predictions/{method}-s0-step{step}-E{test}.jsonl"))
    };
    assert_eq!(predicted("rar-frozen", 1, 1), predicted("rar-each", 1, 1));
    assert_ne!(predicted("rar-frozen", 2, 1), predicted("rar-each", 2, 1));
    assert_ne!(predicted("sequential", 1, 1), predicted("rar-each", 1, 1));
    // What was never learned is there by its card.
    let named = predicted("rar-frozen", 4, 4);
    let mut named = named.lines().flat_map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["top10"].as_array().unwrap().clone()
    });
    assert!(named.any(|name| name == "acme/cat-7"));

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
        "## The poster, on other data",
        "| CARvE (10 %) | 2 runs |",
        "| TF-IDF, nearest card | 1 run | **100.0** |",
        "Joint training",
        "## Ablations",
        "## Glossary",
        "prefix: strip",
        "paired bootstrap",
    ] {
        assert!(tables.contains(part), "{part:?} is not in {tables}");
    }
    let ours = tables.split("## The poster").next().unwrap();
    assert!(!ours.contains("± 0.0"), "one run has no deviation");
    for (line, begins) in tables.lines().skip(2).step_by(2).zip([
        "**Asked:** which of 8 models in 2 domains should answer a prompt, when the models arrive in 4 batches?",
        "**Won:** ",
        "**Limits:** 18 of about 30554 official training rows are there (0 %)",
    ]) {
        assert!(line.starts_with(begins), "{line}");
    }
    let page = read("report.html");
    assert!(
        page.contains("<svg") && page.matches("<svg").count() == files(&out.join("figures")).len()
    );
    for there in [
        "<strong>Asked:</strong>",
        "<summary>Glossary</summary>",
        "scroll wide",
    ] {
        assert!(page.contains(there), "{there}");
    }
    assert!(!page.contains("<blockquote>"), "no banner over a full run");
    for absent in ["<script", "@import", "url(", "href=", "src="] {
        assert!(!page.contains(absent), "{absent}");
    }
    assert_eq!(
        page.matches("<figure").count(),
        page.matches("</figure>").count()
    );

    what_is_forgotten_is_lost_or_outgrown(&tables, &results);
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
    edit(
        &path,
        "\"pred\":\"acme/image-4\"",
        "\"pred\":\"acme/cat-7\"",
    );
    let results = Results::read(&plan, &out).unwrap();
    assert_eq!(
        results.method("tfidf").unwrap().runs[0].hits(Metric::Model, 3, 2),
        Some((2, 3))
    );
    fs::write(&path, text).unwrap();
    edit(
        &path,
        "\"gold\":\"acme/image-4\"",
        "\"gold\":\"acme/cat-7\"",
    );
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
    // The texts of these are longer than the prompts that are counted.
    assert!(cost("rar-frozen")["route_flops"].is_empty());
    assert!(cost("rar-each")["learn_flops"].is_empty());
    assert!(number(&cost("carve-10"), "stored_bytes") > 1000.0);
    assert!(number(&cost("carve-10"), "trained_parameters") > 100.0);
    // What trains nothing is the cheapest, and a memory makes a route a little dearer.
    assert!(flops("memory") > 0.0 && flops("memory") < flops("first-session"));
    assert!(flops("first-session") < flops("carve-memory"));
    let route = |method: &str| number(&cost(method), "route_flops");
    assert!(route("carve-memory") > route("carve-10"));
    assert!(number(&cost("memory"), "stored_bytes") > 1000.0);
    let counts = cfg!(target_os = "linux");
    assert_eq!(!cost("bm25")["peak_memory_bytes"].is_empty(), counts);

    // The map of the method that is looked at first, with all eight models on it.
    let map = csv(out, "map.csv");
    assert_eq!(map.len(), 8);
    assert!(
        map.iter()
            .all(|row| row["method"] == "first-session" && row["seed"] == "0")
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
        method
            .over_seeds(Metric::Domain, AccuracyMatrix::acc)
            .unwrap()
            .0
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
fn cells_of_earlier_versions_are_shown(plan: &BenchPlan, out: &Path) {
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
    assert!(tables.contains("There is no map: the rows of models are noted"));
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
    let methods = ["bm25", "rar-frozen", "ties-factors", "carve-10"];
    let mut plan = setup.plan(&methods);
    plan.seeds = vec![3];
    let whole = setup.folder.join("whole");
    let calls = finish(&plan, &whole);
    let want = files(&whole.join("predictions"));
    assert_eq!(want.len(), 4 * 10);
    // The device is the same, whatever it was called.
    plan.options.device = "auto".into();
    if Encoder::open(&setup.encoder, &plan.options)
        .unwrap()
        .device_name()
        == "cpu"
    {
        assert_eq!(finish(&plan, &whole), 0);
    }
    plan.options.device = "cpu".into();

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
    plan.methods.remove(2);
    assert!(finish(&plan, &out) > 0);
    let found = files(&out.join("predictions"));
    let differs = |name: &str| found[Path::new(name)] != want[Path::new(name)];
    assert!(differs("carve-10-s3-step4-E4.jsonl"));
    assert!(!differs("carve-10-s3-step3-E3.jsonl") && !differs("bm25-s3-step4-E4.jsonl"));
    assert!(
        !differs("rar-frozen-s3-step4-E4.jsonl"),
        "its key is the same: it learned once"
    );
}

/// A language model that knows translation when it sees French, English or Dutch, takes all else for
/// pictures, and says so in words of its own; from the `broken`-th request on its server is away.
fn model(asked: &Arc<Mutex<Vec<Value>>>, broken: usize) -> Chat {
    let asked = Arc::clone(asked);
    Chat::new("http://model", move |body| {
        let mut asked = asked.lock().unwrap();
        if asked.len() == broken {
            return Err("the server is away".into());
        }
        asked.push(body.clone());
        let text = body["messages"][0]["content"].as_str().unwrap();
        let prompt = text.rsplit("Request: ").next().unwrap();
        let translates = ["french", "english", "dutch"]
            .iter()
            .any(|word| prompt.contains(word));
        Ok(match (translates, prompt.contains("cat")) {
            (true, _) => " text  TRANSLATION.\n".to_owned(),
            (_, true) => "I would say Picture Classification".to_owned(),
            _ => "Picture Classification".to_owned(),
        })
    })
}

#[test]
fn a_language_model_names_domains_and_is_asked_once() {
    let setup = setup("benchmark-llm");
    let out = setup.folder.join("out");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let mut plan = setup.plan(&["tfidf", "llm"]);
    let refused = |plan: &BenchPlan, says: &str| {
        let error = run(plan, &out, &mut |_| Control::Continue).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    refused(
        &plan,
        "llm: expected a chat endpoint, found none; name one with --llm-endpoint URL",
    );
    plan.chat = Some(model(&asked, 3));
    refused(&plan, "llm, seed 0: the server is away");
    assert_eq!(asked.lock().unwrap().len(), 3);
    // The next call goes on behind the third answer; stopped, the one after it behind those.
    plan.chat = Some(model(&asked, usize::MAX));
    let stopped = run(&plan, &out, &mut |_| match asked.lock().unwrap().len() {
        0..6 => Control::Continue,
        _ => Control::Stop,
    });
    assert!(!stopped.unwrap());
    assert_eq!(asked.lock().unwrap().len(), 6);
    finish(&plan, &out);
    let requests = asked.lock().unwrap().clone();
    // Nine eval rows at the last step, one of them twice; two seeds.
    assert_eq!(requests.len(), 2 * 8);
    let texts: std::collections::BTreeSet<String> =
        requests.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), requests.len(), "none is sent twice");
    let content = requests[0]["messages"][0]["content"].as_str().unwrap();
    assert!(content.contains("Domains: Picture Classification, Text Translation\n"));
    assert!(
        content.ends_with("Request: route french number 0"),
        "{content}"
    );
    assert_eq!(
        (&requests[0]["seed"], &requests[15]["seed"]),
        (&json!(0), &json!(7))
    );

    let results = write_report(&plan, &out).unwrap();
    let llm = results.method("llm").unwrap();
    let run_of = &llm.runs[0];
    assert_eq!(run_of.hits(Metric::Domain, 3, 0), Some((2, 2)));
    // Images and audio are no translation, whatever the card says; a sentence is no name.
    assert_eq!(run_of.hits(Metric::Domain, 3, 2), Some((2, 3)));
    assert_eq!(run_of.hits(Metric::Domain, 3, 3), Some((1, 2)));
    assert_eq!(run_of.hits(Metric::Model, 3, 0), None);
    assert_eq!(
        run_of.hits(Metric::Domain, 2, 0),
        None,
        "the last step alone"
    );
    assert_eq!(llm.over_seeds(Metric::Family, AccuracyMatrix::acc), None);
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let first = read("predictions/llm-s0-step4-E1.jsonl");
    assert!(
        first.starts_with(
            "{\"row\":0,\"gold\":\"acme/french-0\",\"domain\":\" text  TRANSLATION.\\n\"}\n"
        ),
        "{first}"
    );
    let csv = read("matrix.csv");
    let lines: Vec<&str> = csv
        .lines()
        .filter(|line| line.starts_with("llm,"))
        .collect();
    assert_eq!(lines.len(), 2 * 4);
    assert!(lines.iter().all(|line| line.contains(",D,")), "{csv}");
    let value: Value = serde_json::from_str(&read("results.json")).unwrap();
    let row = &value["methods"][1];
    assert_eq!(row["name"], "llm");
    assert!(row["mean"]["acc"]["M"].is_null() && row["mean"]["acc"]["D"].is_number());
    assert!(row["mean"]["fgt"]["D"].is_null());
    assert_eq!(value["settings"]["llm"]["domains"], "hub");
    let tables = read("tables.md");
    let line = tables
        .lines()
        .find(|line| line.starts_with("| LLM controller"))
        .unwrap();
    assert_eq!(line.matches(" – ").count(), 5, "{line}");
    assert!(tables.contains("LLM controller: http://model, choosing from the domains of the hub"));
    assert!(!tables.contains("LLM controller, domains alone, model accuracy"));
    assert!(out.join("figures/heat-llm-D.svg").exists());
    assert!(!out.join("figures/heat-llm-M.svg").exists());

    // Another list of domains is another cell, whatever it says.
    asked.lock().unwrap().clear();
    plan.chat = plan.chat.map(|chat| chat.domains(DomainList::File));
    plan.seeds.truncate(1);
    finish(&plan, &out);
    assert_eq!(asked.lock().unwrap().len(), 8);

    // A file that is neither is refused.
    let path = out.join("predictions/llm-s0-step4-E1.jsonl");
    edit(&path, "\"domain\"", "\"pred\":\"x\",\"domain\"");
    let error = Results::read(&plan, &out).unwrap_err().to_string();
    assert!(
        error.contains("E1.jsonl:1: expected pred, the name of a model, or domain, found both"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_run_is_said() {
    let setup = setup("benchmark-refused");
    let out = setup.folder.join("out");
    let refused = |plan: &BenchPlan, says: &str| {
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
    let mut plan = setup.plan(&["bm25"]);
    plan.seeds = vec![3, 0, 3];
    refused(&plan, "seeds: expected each once, found 3 twice");
    plan.seeds.clear();
    refused(&plan, "expected at least one seed, found none");
    // Where nothing of the plan is whole no report is made, and none is lost.
    let plan = setup.plan(&["tfidf"]);
    let error = write_report(&plan, &out).unwrap_err().to_string();
    assert!(error.contains("expected a whole cell"), "{error}");
    assert!(!out.join("tables.md").exists());
}

/// A cell is of use only as far as its steps are the first ones of its method.
#[test]
fn cells_with_other_steps_are_run_again() {
    let setup = setup("benchmark-steps");
    let out = setup.folder.join("out");
    let plan = setup.plan(&["bm25"]);
    finish(&plan, &out);
    let path = Cell::file(&out, "bm25", plan.seeds[0]);
    let whole = fs::read_to_string(&path).unwrap();
    for (place, step) in [(0, json!(0)), (2, json!(9)), (3, json!(u64::MAX))] {
        let mut cell: Value = serde_json::from_str(&whole).unwrap();
        cell["steps"][place]["step"] = step;
        fs::write(&path, cell.to_string()).unwrap();
        assert!(write_report(&plan, &out).is_err());
        finish(&plan, &out);
        assert_eq!(write_report(&plan, &out).unwrap().methods.len(), 1);
    }
}

/// Fewer rows for a trial, from all over each file.
#[test]
fn rows_can_be_limited() {
    let setup = setup("benchmark-limit");
    let places = |limit: usize| -> Vec<Vec<usize>> {
        let limited = setup.data.clone().limit(limit);
        let pairs = limited.experiences.iter().zip(&setup.data.experiences);
        let place =
            |row: &BenchRow, all: &[BenchRow]| all.iter().position(|other| other == row).unwrap();
        pairs
            .map(|(few, all)| few.eval.iter().map(|row| place(row, &all.eval)).collect())
            .collect()
    };
    assert_eq!(places(1), [vec![1], vec![1], vec![2], vec![1]]);
    assert_eq!(places(2), [vec![0, 1], vec![0, 1], vec![1, 2], vec![0, 1]]);
    assert_eq!(places(9)[2], [0, 1, 2]);
    let mut plan = setup.plan(&["tfidf"]);
    plan.data = plan.data.limit(1);
    let out = setup.folder.join("out");
    finish(&plan, &out);
    write_report(&plan, &out).unwrap();
    let tables = fs::read_to_string(out.join("tables.md")).unwrap();
    for part in [
        "eval rows: 1 / 1 / 1 / 1",
        "- eval rows of each experience: at most 1",
    ] {
        assert!(tables.contains(part), "{tables}");
    }
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
    let plan = BenchPlan::new(
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
            let (found, _) = method.over_seeds(metric, AccuracyMatrix::acc).unwrap();
            assert!(
                (found - want).abs() < within,
                "{name}: expected {want}, found {found}"
            );
        }
        let (found, _) = method
            .over_seeds(Metric::Domain, AccuracyMatrix::forgetting)
            .unwrap();
        let right = fgt.is_none_or(|want: f64| (found - want).abs() < 0.5);
        assert!(right, "{name}: expected {fgt:?}, found {found}");
    }
}

/// Files of a hub of six models, of which `idle` has no example; `family` for two of them.
struct Own {
    folder: Folder,
    models: String,
    examples: String,
}

const OWN: [&str; 6] = ["idle", "ner", "cats", "birds", "sums", "odes"];

impl Own {
    fn new(name: &str) -> Self {
        let (mut models, mut examples) = (String::new(), String::new());
        for (place, model) in OWN.iter().enumerate() {
            let mut card = json!({
                "model_name": model,
                "domain": if place % 2 == 0 { "Text" } else { "Images" },
                "description": format!("Good at {model}."),
                "created_at": 1_726_000_000_000_i64 - 1000 * place as i64,
                "price": place,
                "license": "mit",
            });
            if place == 2 {
                card["created_at"] = "2026-01-31".into();
            }
            models += &format!("{card}\n");
            for row in 0..if place == 0 { 0 } else { 16 } {
                let example = json!({
                    "instruction": format!("please do {model} for me, time {row}"),
                    "model_name": model,
                });
                examples += &format!("{example}\n");
            }
        }
        let folder = Folder::new(name);
        Self {
            folder,
            models,
            examples,
        }
    }

    /// With `experience` on every row, as `of` says it of a model's place.
    fn labelled(mut self, of: impl Fn(usize) -> Value) -> Self {
        let rows = self.examples.lines().map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            let place = OWN
                .iter()
                .position(|name| row["model_name"] == *name)
                .unwrap();
            row["experience"] = of(place);
            format!("{row}\n")
        });
        self.examples = rows.collect();
        self
    }

    fn read(&self, eval: Option<&str>, experiences: Option<usize>) -> hubrouter::Result<Data> {
        let path = |name: &str| self.folder.join(name);
        fs::write(path("models.jsonl"), &self.models).unwrap();
        fs::write(path("examples.jsonl"), &self.examples).unwrap();
        let (models, examples, file) = (
            path("models.jsonl"),
            path("examples.jsonl"),
            path("eval.jsonl"),
        );
        let own = OwnHub {
            models: &models,
            examples: &examples,
            eval: eval.map(|text| {
                fs::write(&file, text).unwrap();
                file.as_path()
            }),
            experiences,
        };
        own.read(Prefix::Strip)
    }

    #[track_caller]
    fn refused(&self, eval: Option<&str>, experiences: Option<usize>, says: &str) {
        let error = self.read(eval, experiences).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// Models, rows to learn and rows to predict of each experience.
fn shape(data: &Data) -> Vec<(Vec<String>, usize, usize)> {
    let of = |e: &hubrouter::cmrbench::BenchExperience| {
        let models = e.cards.iter().map(|card| card.model_name.clone());
        (models.collect(), e.train.len(), e.eval.len())
    };
    data.experiences.iter().map(of).collect()
}

#[test]
fn a_hub_of_ones_own_runs_like_the_benchmarks() {
    let own = Own::new("benchmark-own");
    let data = own.read(None, Some(3)).unwrap();
    // The oldest are last in the file, but for the one with a date.
    let names = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    let found = shape(&data);
    let models: Vec<_> = found.iter().map(|(models, ..)| models.clone()).collect();
    assert_eq!(
        models,
        [
            names(&["odes", "sums"]),
            names(&["birds", "ner"]),
            names(&["cats"])
        ]
    );
    let rows: usize = found
        .iter()
        .map(|(_, learned, predicted)| learned + predicted)
        .sum();
    assert_eq!(rows, 5 * 16);
    for experience in &data.experiences {
        let held = |rows: &[BenchRow]| {
            rows.iter()
                .filter(|row| row.digest().starts_with(['0', '1']))
                .count()
        };
        assert_eq!(
            (held(&experience.train), held(&experience.eval)),
            (0, experience.eval.len())
        );
        assert!(!experience.eval.is_empty());
    }
    let hub = data.hub(3);
    assert_eq!(hub.len(), 5, "what has no example is no part of it");
    assert_eq!(hub[0].model.attributes["price"], 5);
    assert_eq!(hub[0].model.attributes["licence"], "mit");
    assert!(
        !data.experiences[0].documents[0].contains("price"),
        "it never enters training"
    );
    assert!(
        data.notes
            .iter()
            .any(|note| note.contains("models without a training example, left out: idle"))
    );
    let rows = |data: &Data| {
        data.experiences
            .iter()
            .map(|e| e.train.len())
            .collect::<Vec<_>>()
    };
    let learned = rows(&data);

    let encoder = own.folder.join("toy-bert");
    import_encoder(fixture("toy-bert"), &encoder, &ImportOptions::default()).unwrap();
    let methods = [
        "tfidf",
        "hybrid",
        "rar-frozen",
        "centroid",
        "replay-20",
        "ties-factors",
        "carve-10",
        "joint",
    ];
    let mut plan = BenchPlan::new(
        data,
        EvalRows::Whole,
        Prefix::Strip,
        encoder,
        cpu(1),
        select(&methods.map(str::to_owned)).unwrap(),
    );
    assert_eq!(plan.epochs, [8, 8, 8]);
    (plan.seeds, plan.epochs) = (vec![0], vec![1; 3]);
    plan.changes.push(("batch".to_owned(), "8".to_owned()));
    let out = own.folder.join("out");
    finish(&plan, &out);
    let results = write_report(&plan, &out).unwrap();
    assert_eq!(results.methods.len(), methods.len());
    let carve = results.method("carve-10").unwrap();
    assert_eq!(carve.runs[0].cell.steps.len(), 3);
    assert!(
        carve
            .over_seeds(Metric::Domain, AccuracyMatrix::forgetting)
            .is_some()
    );
    assert!(
        carve
            .over_seeds(Metric::Family, AccuracyMatrix::acc)
            .is_none(),
        "no model has a family"
    );
    let (acc, _) = results
        .method("tfidf")
        .unwrap()
        .over_seeds(Metric::Model, AccuracyMatrix::acc)
        .unwrap();
    assert_eq!(acc, 100.0, "its word is in its card");
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    assert!(!read("matrix.csv").contains(",F,"));
    let summary = read("summary.csv");
    assert!(summary.starts_with(
        "method,metric,acc_mean,acc_sd,fgt_mean,fgt_sd,fgt_max_mean,bwt2,bwt3,seeds,"
    ));
    let columns = |line: &str| line.split(',').count();
    assert!(
        summary
            .lines()
            .all(|line| columns(line) == columns(summary.lines().next().unwrap()))
    );
    for name in REPORT_FILES {
        let text = read(name);
        for absent in [
            "poster",
            "Poster",
            "bundled router",
            "BGE-M3",
            "Gorilla",
            "HuggingGPT",
            "reference's rule",
        ] {
            assert!(!text.contains(absent), "{absent} in {name}");
        }
    }
    let tables = read("tables.md");
    for part in [
        "> **A quick run, not a result.** Each experience was learned in one epoch",
        "data: a hub of your own",
        "models of models.jsonl, training rows of examples.jsonl, eval rows whose",
        "left out: idle",
        "## Differences between methods",
        "| E3 |",
    ] {
        assert!(tables.contains(part), "{part:?} is not in {tables}");
    }

    // A family of one is a family: then all are measured, and a model without one is its own.
    let mut own = own;
    own.models = own.models.replacen(
        "\"model_name\":\"ner\"",
        "\"family\":\"f\",\"model_name\":\"ner\"",
        1,
    );
    let data = own.read(None, Some(3)).unwrap();
    assert!(data.families);
    let families: std::collections::BTreeSet<&str> = data
        .experiences
        .iter()
        .flat_map(|e| &e.train)
        .map(|row| row.model_family.as_str())
        .collect();
    assert_eq!(
        families.into_iter().collect::<Vec<_>>(),
        ["birds", "cats", "f", "odes", "sums"]
    );
    assert_eq!(rows(&data), learned);
}

/// Experiences as the rows say, by number in order of value, by name in order of appearance; eval rows
/// from a second file; one experience where nothing is said.
#[test]
fn experiences_of_ones_own_hub() {
    let one = Own::new("own-one").read(None, None).unwrap();
    assert_eq!((shape(&one).len(), shape(&one)[0].0.len()), (1, 5));

    let numbered = Own::new("own-numbers").labelled(|place| json!(10 - place as i64 / 3));
    let eval = concat!(
        r#"{"instruction": "sing an ode", "model_name": "odes", "experience": 9, "domain": "Audio"}"#,
        "\n\n",
        r####"{"instruction": "### Instruction: please do cats for me,  time 3", "model_name": "cats", "experience": 10}"####,
        "\n",
        r#"{"instruction": "laze about", "model_name": "idle", "experience": 10}"#,
        "\n",
    );
    let data = numbered.read(Some(eval), None).unwrap();
    let shapes = shape(&data);
    assert_eq!(
        (shapes[0].1, shapes[0].2, shapes[1].1, shapes[1].2),
        (48, 1, 32, 2)
    );
    assert_eq!(data.experiences[0].name, "9");
    assert_eq!(data.experiences[0].eval[0].domain, "Audio");
    assert_eq!(data.experiences[1].eval[0].domain, "Text", "the model's");
    assert_eq!(
        data.experiences[1].eval[0].instruction,
        "please do cats for me,  time 3"
    );
    for note in [
        "eval rows with the query of a training row: 1",
        "where only the domain can be hit: 1",
    ] {
        assert!(
            data.notes.iter().any(|found| found.contains(note)),
            "{:?}",
            data.notes
        );
    }

    let named =
        Own::new("own-names").labelled(|place| json!(if place < 3 { "second" } else { "first" }));
    let names: Vec<String> = named
        .read(None, None)
        .unwrap()
        .experiences
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(names, ["second", "first"], "the order of the file");

    // A later line of a model counts.
    let mut twice = Own::new("own-twice");
    twice.models += "{\"model_name\": \"ner\", \"domain\": \"Law\"}\n";
    let data = twice.read(None, None).unwrap();
    assert!(
        data.notes
            .iter()
            .any(|note| note == "models with several lines, of which the last counts: ner")
    );
    let ner = data.experiences[0]
        .train
        .iter()
        .find(|row| row.model_name == "ner")
        .unwrap();
    assert_eq!(ner.domain, "Law");
}

#[test]
fn a_wrong_hub_of_ones_own_is_refused() {
    let plain = || Own::new("own-refused");
    let mut own = plain();
    own.examples.insert_str(0, "{\"instruction\": \"x\", \"model_name\": \"ner\"}\n\n{\"instruction\": \"x\", \"model_name\": \"nor\"}\n");
    own.refused(
        None,
        None,
        "examples.jsonl:3: model_name: expected a model of ",
    );
    own.refused(None, None, "models.jsonl, found \"nor\"");
    let mut own = plain();
    own.examples.push_str("{\"instruction\": \"x\"}\n");
    own.refused(None, None, "examples.jsonl:81: missing field `model_name`");
    own.examples.clear();
    own.refused(
        None,
        None,
        "examples.jsonl: expected at least one example, found none",
    );
    let mut own = plain();
    own.models.push_str("{\"model_name\": \"x\"}\n");
    own.refused(None, None, "models.jsonl:7: missing field `domain`");
    let mut own = plain();
    own.models
        .push_str("{\"model_name\": \"x\", \"domain\": \" \"}\n");
    own.refused(
        None,
        None,
        "models.jsonl: \"x\": domain: expected text, found \" \"",
    );
    let mut own = plain();
    own.models
        .push_str("{\"model_name\": \"x\", \"domain\": \"d\", \"created_at\": \"soon\"}\n");
    own.refused(
        None,
        None,
        "models.jsonl:7: created_at: expected Unix milliseconds or ISO 8601",
    );
    let mut own = plain();
    own.examples
        .push_str("{\"instruction\": \"x\", \"model_name\": \"ner\", \"experience\": 1}\n");
    own.refused(
        None,
        None,
        "examples.jsonl: example 81: expected no experience, as the first example has",
    );
    own.refused(
        None,
        Some(2),
        "--experiences: expected examples that name no experience, found \"1\"",
    );
    let own = plain();
    own.refused(
        None,
        Some(0),
        "--experiences: expected 1 to 5, as many as there are models with examples, found 0",
    );
    own.refused(None, Some(6), "found 6");
    let eval = "{\"instruction\": \"x\", \"model_name\": \"ner\", \"experience\": 3}\n";
    own.refused(
        Some(eval),
        None,
        "eval.jsonl: example 1: experience: expected one of the training rows' (none), found 3",
    );
    let labelled = plain().labelled(|place| json!(place / 3));
    labelled.refused(Some(eval), None, "(0, 1), found 3");
    let mut own = plain();
    own.models = own.models.replace(",\"created_at\":\"2026-01-31\"", "");
    own.refused(None, Some(2), "created_at: expected a time for every model with examples, by which --experiences divides them; \"cats\" has none");
    own.read(None, None).unwrap();
    let missing = Own::new("own-missing");
    let nowhere = missing.folder.join("nowhere.jsonl");
    let own = OwnHub {
        models: &nowhere,
        examples: &nowhere,
        eval: None,
        experiences: None,
    };
    assert!(
        own.read(Prefix::Strip)
            .unwrap_err()
            .to_string()
            .contains("nowhere.jsonl: cannot open")
    );
}
