//! A report of a benchmark that is made again has the settings of its cells, and names the cells that
//! are not in it.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;

use common::Folder;
use common::command::{learnable, lines, run, succeeded, text};
use serde_json::Value;

#[test]
fn a_report_made_again_loses_no_method() {
    let folder = Folder::new("again");
    let (_, encoder, examples) = learnable(&folder);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (models, out) = (path("models.jsonl"), path("out"));
    let dogs = "{\"model_name\":\"dogs\",\"domain\":\"Images\"}\n";
    fs::write(&models, fs::read_to_string(&models).unwrap() + dogs).unwrap();
    let cmrbench_on = |more: &[&str]| {
        let all = ["cmrbench", "--models", &models, "--examples", &examples];
        let all = [&all[..], &["--out", &out, "--encoder", &encoder]].concat();
        let all = [&all[..], &["--device", "cpu", "--json"]].concat();
        run(&[&all[..], more].concat())
    };
    let cmrbench = |more: &[&str]| cmrbench_on(&[&["--threads", "1"], more].concat());
    let names = |results: &Value| -> Vec<String> {
        let methods = results["methods"].as_array().unwrap();
        let name = |method: &Value| method["name"].as_str().unwrap().to_owned();
        methods.iter().map(name).collect()
    };
    let quick = ["--quick", "--set", "lora.r=4"];
    let first = lines(&succeeded(cmrbench(&quick)))[0].clone();
    let run_first = names(&first);
    assert!(run_first.contains(&"carve-10".to_owned()) && run_first.len() == 8);
    let again = succeeded(cmrbench(&["--report"]));
    assert_eq!(lines(&again)[0], first);
    assert!(!text(&again.stderr).contains("not in this report"));

    // Without a report the cells say what they were run with.
    fs::remove_file(folder.join("out/results.json")).unwrap();
    let cells = succeeded(cmrbench(&["--report"]));
    assert_eq!(lines(&cells)[0], first);
    let tables = fs::read_to_string(folder.join("out/tables.md")).unwrap();
    for part in [
        "> **A quick run, not a result.**",
        "; 1 thread of ",
        "changed settings: [\"lora.r=4\"]",
    ] {
        assert!(tables.contains(part), "{part:?} is not in {tables}");
    }
    fs::remove_file(folder.join("out/results.json")).unwrap();
    let cells = succeeded(cmrbench(&[&["--report"], &quick[..]].concat()));
    assert_eq!(names(&lines(&cells)[0]), run_first);

    // A report is no run: the threads are those of the cells.
    let more = ["--report", "--threads", "2"];
    let again = succeeded(cmrbench_on(&more));
    assert_eq!(lines(&again)[0]["settings"]["threads"], 1);

    // Other settings are another report, which says what it leaves out.
    let other = succeeded(cmrbench(&["--report", "--epochs", "3"]));
    let shown = names(&lines(&other)[0]);
    assert!(shown.contains(&"bm25".to_owned()) && !shown.contains(&"carve-10".to_owned()));
    let said = text(&other.stderr);
    for method in ["carve-10", "replay-10", "sequential"] {
        assert!(said.contains(&format!("{method}, seed 0")), "{said}");
    }
    assert!(said.contains("not in this report: "), "{said}");
}
