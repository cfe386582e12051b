//! Reports of a benchmark made again: with the settings of the run, and with a word on what is not
//! in them.
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
    let cmrbench = |more: &[&str]| {
        let all = ["cmrbench", "--models", &models, "--examples", &examples];
        let all = [&all[..], &["--out", &out, "--encoder", &encoder]].concat();
        let all = [&all[..], &["--device", "cpu", "--threads", "1", "--json"]].concat();
        run(&[&all[..], more].concat())
    };
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

    // Before the first report there is no word of it, but there are cells.
    fs::remove_file(folder.join("out/results.json")).unwrap();
    let cells = succeeded(cmrbench(&[&["--report"], &quick[..]].concat()));
    assert_eq!(names(&lines(&cells)[0]), run_first);

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
