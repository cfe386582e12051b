//! The command as its users call it: help, JSON, exit codes, files, pipes, errors.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use common::command::{
    current, failed, hubrouter, learnable, lines, run, succeeded, text, with_input,
};
use common::{Folder, bundle, copied_store, fixture, store};
use serde_json::Value;

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        "route",
        "eval",
        "cmrbench",
        "doctor",
        "encoder import",
        "hub list",
        "hub show",
        "hub add",
        "hub retire",
        "hub rename",
        "hub alias",
        "learn",
        "replay list",
        "replay forget",
        "hub build",
        "generation list",
        "generation show",
        "generation check",
        "generation rollback",
        "generation diff",
        "generation prune",
    ] {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.push("--help");
        let help = text(&succeeded(run(&arguments)).stdout);
        assert!(
            help.contains(&format!("hubrouter {command}")),
            "{command}: no example in\n{help}"
        );
        assert!(help.contains("Example"), "{command}: no example in\n{help}");
        assert!(help.contains("--json"), "{command}: no --json");
    }
}

#[test]
fn route_prints_the_promised_fields() {
    let output = succeeded(run(&[
        "route",
        "--json",
        "--top",
        "3",
        "--device",
        "cpu",
        "Who is speaking?",
    ]));
    let [line] = lines(&output).try_into().unwrap();
    assert_eq!(line["schema_version"], 1);
    assert_eq!(line["prompt_id"], "1");
    assert_eq!(line["ranked"].as_array().unwrap().len(), 3);
    for field in ["model", "score", "probability", "domain", "family"] {
        assert!(!line["ranked"][0][field].is_null(), "{field}");
    }
    for field in ["domain", "score"] {
        assert!(!line["domains"][0][field].is_null(), "{field}");
    }
    assert_eq!(
        (&line["truncated"], &line["device"]),
        (&Value::Bool(false), &Value::from("cpu"))
    );
    for field in ["generation", "encoder", "tokenizer"] {
        assert!(line[field].is_string(), "{field}");
    }
    for field in ["tokenize", "encode", "score", "total"] {
        assert!(line["timings_us"][field].is_number(), "{field}");
    }
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn route_prints_a_table_for_people() {
    let output = succeeded(run(&[
        "route",
        "--top",
        "2",
        "--device",
        "cpu",
        "Who is speaking?",
        "Translate.",
    ]));
    let table = text(&output.stdout);
    for part in [
        "Who is speaking?",
        "Translate.",
        "probability",
        "domains: ",
        "tokens; margin",
        "on cpu",
    ] {
        assert!(table.contains(part), "{part:?} is not in\n{table}");
    }
}

#[test]
fn stdin_is_answered_line_by_line() {
    let output = succeeded(with_input(
        &["route", "--json", "--device", "cpu"],
        "first\n\nthird, é\r\n".as_bytes(),
    ));
    let ids: Vec<String> = lines(&output)
        .iter()
        .map(|line| line["prompt_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, ["1", "3"], "line numbers, blank lines passed over");
    // The same prompt has the same answer by every way.
    let alone = lines(&succeeded(run(&[
        "route",
        "--json",
        "--device",
        "cpu",
        "third, é",
    ])));
    assert_eq!(lines(&output)[1]["ranked"], alone[0]["ranked"]);
}

#[test]
fn files_of_prompts_become_files_of_answers() {
    let folder = Folder::new("files");
    let (input, output) = (folder.join("prompts.jsonl"), folder.join("routes.jsonl"));
    let prompts: Vec<String> = (0..70)
        .map(|i| match i {
            3 => r#"{"instruction":"by another name","id":"x","top":1}"#.to_owned(),
            _ => format!(r#"{{"prompt":"prompt number {i}","prompt_id":{i}}}"#),
        })
        .collect();
    fs::write(&input, prompts.join("\n")).unwrap();
    fs::write(&output, "what was there before\n").unwrap();
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    succeeded(run(&[
        "route", "--device", "cpu", "--input", input, "--output", output, "--top", "2",
    ]));
    let answers: Vec<Value> = fs::read_to_string(output)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 70);
    assert_eq!(
        (
            &answers[3]["prompt_id"],
            answers[3]["ranked"].as_array().unwrap().len()
        ),
        (&Value::from("x"), 1)
    );
    assert_eq!(
        (
            &answers[69]["prompt_id"],
            answers[69]["ranked"].as_array().unwrap().len()
        ),
        (&Value::from("69"), 2)
    );
    assert_eq!(
        fs::read_dir(&folder.0).unwrap().count(),
        2,
        "no temporary file is left"
    );

    // A bad line spoils only itself.
    fs::write(
        folder.join("bad.jsonl"),
        "{\"prompt\":\"good\"}\n{\"prompt\":7}\nnonsense\n{\"prompt\":\" \"}\n",
    )
    .unwrap();
    let bad = folder.join("bad.jsonl");
    let answer = run(&[
        "route",
        "--json",
        "--device",
        "cpu",
        "--input",
        bad.to_str().unwrap(),
    ]);
    assert_eq!(answer.status.code(), Some(1));
    let answers = lines(&answer);
    assert!(answers[0]["ranked"].is_array());
    assert_eq!(answers[1]["error"]["kind"], "format");
    assert!(
        answers[1]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("bad.jsonl:2")
    );
    assert_eq!(answers[2]["error"]["kind"], "format");
    assert_eq!(
        (&answers[3]["error"]["kind"], &answers[3]["prompt_id"]),
        (&Value::from("invalid_request"), &Value::from("4"))
    );
}

#[test]
fn a_failed_run_leaves_the_old_file() {
    let folder = Folder::new("keeps");
    let output = folder.join("routes.jsonl");
    fs::write(&output, "old\n").unwrap();
    let missing = folder.join("missing.jsonl");
    let out = output.to_str().unwrap();
    failed(
        run(&[
            "route",
            "--device",
            "cpu",
            "--input",
            missing.to_str().unwrap(),
            "--output",
            out,
        ]),
        1,
        &["missing.jsonl: cannot open"],
    );
    failed(
        run(&[
            "route", "--device", "cpu", "--router", "nowhere", "--output", out, "hello",
        ]),
        1,
        &["nowhere"],
    );
    assert_eq!(fs::read_to_string(&output).unwrap(), "old\n");
    let nowhere = folder.join("no/such/folder/routes.jsonl");
    failed(
        run(&[
            "route",
            "--device",
            "cpu",
            "--output",
            nowhere.to_str().unwrap(),
            "x",
        ]),
        1,
        &["routes.jsonl"],
    );
}

#[test]
fn mistakes_on_the_command_line_are_explained() {
    failed(run(&[]), 2, &["Usage"]);
    failed(run(&["rout"]), 2, &["unrecognized subcommand"]);
    failed(run(&["route", "--top", "many", "x"]), 2, &["--top"]);
    failed(
        run(&["route", "--device", "voodoo", "x"]),
        1,
        &["voodoo", "auto, cpu, gpu or part of an adapter's name"],
    );
    failed(
        run(&["route", "--threads", "0", "x"]),
        2,
        &["threads: expected 1 to 1024, found 0"],
    );
    failed(run(&["route", "--batch", "0", "x"]), 2, &["--batch"]);
    failed(run(&["route", ""]), 1, &["prompt 1: the prompt is empty"]);
    failed(
        run(&["route", "--input", "prompts"]),
        1,
        &["prompts: cannot open"],
    );
    failed(run(&["eval"]), 2, &["HUBROUTER_CMRBENCH"]);
    failed(
        run(&["eval", "--data", "nowhere"]),
        1,
        &["nowhere: expected a CMRBench checkout"],
    );
    failed(run(&["hub", "show", "flan-t5-xxl"]), 2, &["did you mean"]);
    failed(run(&["hub", "retire", "gpt2"]), 2, &["--router"]);
    failed(
        run(&["generation", "check", "latest"]),
        2,
        &["expected the id of a generation of"],
    );
    let folder = Folder::new("noformat");
    let plain = folder.join("prompts");
    fs::write(&plain, "x").unwrap();
    failed(
        run(&["route", "--input", plain.to_str().unwrap()]),
        2,
        &["--format"],
    );
}

#[test]
fn the_home_variable_moves_the_bundled_store() {
    let home = |folder: &Path| {
        let mut command = hubrouter(&["route", "--json", "--device", "cpu", "hello"]);
        command.env("HUBROUTER_HOME", folder).output().unwrap()
    };
    succeeded(home(Path::new(common::ROOT)));
    failed(home(Path::new("/nowhere")), 1, &["HUBROUTER_HOME"]);
}

#[test]
fn hubs_are_looked_at() {
    let all = lines(&succeeded(run(&["hub", "list", "--json"])));
    assert_eq!(all.len(), 2127);
    let some = lines(&succeeded(run(&[
        "hub", "list", "--json", "--domain", "audio", "--name", "WHISPER", "--limit", "4",
    ])));
    assert_eq!(some.len(), 4);
    for model in &some {
        assert!(
            model["domain"]
                .as_str()
                .unwrap()
                .to_lowercase()
                .contains("audio")
        );
        assert!(
            model["name"]
                .as_str()
                .unwrap()
                .to_lowercase()
                .contains("whisper")
        );
    }
    let [model] = lines(&succeeded(run(&["hub", "show", "--json", "gpt2"])))
        .try_into()
        .unwrap();
    assert_eq!(
        (&model["name"], &model["retired"]),
        (&Value::from("gpt2"), &Value::Bool(false))
    );
    assert!(text(&succeeded(run(&["hub", "show", "gpt2"])).stdout).contains("domain"));
    assert!(
        text(&succeeded(run(&["hub", "list", "--limit", "3"])).stdout)
            .contains("3 of 2127 models, 2127 active")
    );
}

#[test]
fn hubs_are_changed_one_generation_at_a_time() {
    let folder = Folder::new("changes");
    let path = copied_store(&folder);
    let store = path.to_str().unwrap();
    let first = current(store);

    let [dry] = lines(&succeeded(run(&[
        "hub",
        "retire",
        "--router",
        store,
        "--dry-run",
        "--json",
        "gpt2",
    ])))
    .try_into()
    .unwrap();
    assert_eq!(
        (&dry["generation"], &dry["dry_run"]),
        (&Value::Null, &Value::Bool(true))
    );
    assert_eq!(current(store), first);

    succeeded(run(&["hub", "retire", "--router", store, "gpt2"]));
    failed(
        run(&["hub", "retire", "--router", store, "gpt2"]),
        1,
        &["already retired"],
    );
    succeeded(run(&[
        "hub",
        "rename",
        "--router",
        store,
        "bert-base-uncased",
        "bert",
    ]));
    succeeded(run(&["hub", "alias", "--router", store, "bert", "b"]));
    failed(
        run(&["hub", "alias", "--router", store, "bert", "gpt2"]),
        1,
        &["retired model", "never reused"],
    );
    let card = "Tells which bird sings in a recording of a forest.";
    let add = [
        "hub",
        "add",
        "--router",
        store,
        "--model",
        "acme/birds",
        "--domain",
        "Audio Classification",
        "--device",
        "cpu",
    ];
    let [added] = lines(&succeeded(run(&[
        &add[..],
        &["--description", card, "--json"],
    ]
    .concat())))
    .try_into()
    .unwrap();
    assert_eq!(added["generation"], current(store).as_str());
    failed(
        run(&[&add[..], &["--description", card]].concat()),
        1,
        &["already a name"],
    );

    // The newcomer is routable from its card, at once.
    let [answer] = lines(&succeeded(run(&[
        "route",
        "--json",
        "--device",
        "cpu",
        "--router",
        store,
        "Which bird is singing in this forest recording?",
    ])))
    .try_into()
    .unwrap();
    assert_eq!(
        (&answer["ranked"][0]["model"], &answer["ranked"][0]["id"]),
        (&Value::from("acme/birds"), &Value::from(2127))
    );

    let generations = lines(&succeeded(run(&[
        "generation",
        "list",
        "--json",
        "--router",
        store,
    ])));
    assert_eq!(generations.len(), 5);
    assert!(
        generations
            .iter()
            .all(|generation| generation["damage"].is_null())
    );
    let [diff] = lines(&succeeded(run(&[
        "generation",
        "diff",
        "--json",
        "--router",
        store,
        &first,
    ])))
    .try_into()
    .unwrap();
    let diff = &diff["difference"];
    assert_eq!(diff["added"], serde_json::json!(["acme/birds"]));
    assert_eq!(diff["retired"], serde_json::json!(["gpt2"]));
    assert_eq!(
        diff["renamed"],
        serde_json::json!([["bert-base-uncased", "bert"]])
    );
    assert_eq!(diff["aliased"], serde_json::json!([["bert", "b"]]));
    assert_eq!(
        (&diff["moved_rows"], &diff["projection_changed"]),
        (&Value::from(0), &Value::Bool(false))
    );

    let newest = current(store);
    succeeded(run(&["generation", "rollback", "--router", store]));
    assert_ne!(current(store), newest);
    succeeded(run(&[
        "generation",
        "rollback",
        "--router",
        store,
        "--to",
        &first,
    ]));
    assert_eq!(current(store), first);
    failed(
        run(&["generation", "rollback", "--router", store]),
        1,
        &["no parent"],
    );
    let absent = "g0001-0123456789ab";
    failed(
        run(&["generation", "rollback", "--router", store, "--to", absent]),
        2,
        &[absent, &first],
    );
    succeeded(run(&[
        "generation",
        "rollback",
        "--router",
        store,
        "--to",
        &newest,
    ]));
    let [pruned] = lines(&succeeded(run(&[
        "generation",
        "prune",
        "--router",
        store,
        "--keep",
        "1",
        "--json",
    ])))
    .try_into()
    .unwrap();
    assert_eq!(pruned["pruned"]["generations"].as_array().unwrap().len(), 3);
    let whole = text(&succeeded(run(&["generation", "check", "--router", store])).stdout);
    assert_eq!(whole.matches("whole").count(), 2, "{whole}");

    fs::write(path.join(&newest).join("hub.json"), "{}").unwrap();
    let check = run(&["generation", "check", "--router", store]);
    assert_eq!(check.status.code(), Some(1));
    assert!(text(&check.stdout).contains("damaged"));
    assert!(
        text(&succeeded(run(&["generation", "list", "--router", store])).stdout)
            .contains("damaged")
    );
}

#[test]
fn a_hub_of_ones_own() {
    let folder = Folder::new("own");
    let models = folder.join("models.jsonl");
    fs::write(
        &models,
        r#"{"model_name":"acme/ner","domain":"Token Classification","description":"Finds the names of people and firms.","created_at":"2024-09-10","context_length":8192,"license":"mit","modality":["text"]}
{"model_name":"acme/cats","domain":"Image Classification","description":"Tells cats from dogs in photos."}
{"model_name":"acme/ner","domain":"Token Classification","description":"Finds the names of people, firms and places.","price":0.2}
"#,
    )
    .unwrap();
    let out = folder.join("store");
    let (models, store) = (models.to_str().unwrap(), out.to_str().unwrap());
    let encoder = bundle();
    let build = [
        "hub",
        "build",
        "--models",
        models,
        "--encoder",
        encoder.to_str().unwrap(),
        "--device",
        "cpu",
        "--out",
        store,
    ];
    succeeded(run(&[&build[..], &["--dry-run"]].concat()));
    assert!(!out.exists());
    let output = succeeded(run(&build));
    assert!(
        text(&output.stderr).contains("repeated"),
        "{}",
        text(&output.stderr)
    );
    // The same once more, as after a kill, is done already; another hub has no place here.
    let again = succeeded(run(&build));
    assert_eq!(again.stdout, output.stdout);
    let other = folder.join("other.jsonl");
    fs::write(&other, "{\"model_name\":\"acme/dogs\",\"domain\":\"x\"}\n").unwrap();
    let mut build = build;
    build[3] = other.to_str().unwrap();
    failed(run(&build), 1, &["expected an empty store"]);
    let route = [
        "route",
        "--json",
        "--router",
        store,
        "--encoder",
        encoder.to_str().unwrap(),
        "--device",
        "cpu",
    ];
    let answers = lines(&succeeded(run(&[
        &route[..],
        &["Who signed this letter?", "Is it a kitten?"],
    ]
    .concat())));
    assert_eq!(answers[0]["ranked"][0]["model"], "acme/ner");
    assert_eq!(answers[1]["ranked"][0]["model"], "acme/cats");
    assert_eq!(answers[1]["ranked"][0]["family"], Value::Null);
    let [model] = lines(&succeeded(run(&[
        "hub", "show", "--json", "--router", store, "acme/ner",
    ])))
    .try_into()
    .unwrap();
    assert_eq!(
        model["attributes"],
        serde_json::json!({"price": 0.2}),
        "of a repeated name the later line wins"
    );
    failed(
        run(&[
            "hub",
            "build",
            "--models",
            "none.jsonl",
            "--encoder",
            encoder.to_str().unwrap(),
            "--out",
            store,
        ]),
        1,
        &["none.jsonl"],
    );
    // Without the bundled encoder one has to be named.
    let home = folder.join("home");
    fs::create_dir_all(home.join("weights/cmrbench")).unwrap();
    let mut unnamed = hubrouter(&["hub", "build", "--models", models, "--out", store]);
    let unnamed = unnamed.env("HUBROUTER_HOME", &home).output().unwrap();
    failed(unnamed, 2, &["--encoder"]);
    fs::write(folder.join("other"), "").unwrap();
    failed(
        run(&[
            "hub",
            "build",
            "--models",
            models,
            "--encoder",
            encoder.to_str().unwrap(),
            "--out",
            folder.0.to_str().unwrap(),
        ]),
        1,
        &["expected a store or an empty folder"],
    );
}

#[test]
fn an_encoder_is_imported() {
    let folder = Folder::new("import");
    let to = folder.join("toy");
    let (from, to) = (fixture("toy-bert"), to.to_str().unwrap().to_owned());
    let import = [
        "encoder",
        "import",
        "--from",
        from.to_str().unwrap(),
        "--to",
        &to,
        "--json",
    ];
    let [imported] = lines(&succeeded(run(&import))).try_into().unwrap();
    for (field, want) in [
        ("name", "toy"),
        ("dtype", "bf16"),
        ("pooling", "cls"),
        ("licence", "mit"),
    ] {
        assert_eq!(imported[field], want);
    }
    assert_eq!(imported["max_tokens"], 40);
    failed(run(&import), 1, &["already exists"]);
    failed(
        run(&["encoder", "import", "--from", "nowhere", "--to", "x"]),
        1,
        &["nowhere/config.json"],
    );
}

#[cfg(feature = "gpu")]
#[test]
fn doctor_tests_every_op_on_every_device() {
    let output = run(&["doctor", "--json"]);
    let [report] = lines(&output).try_into().unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}");
    let adapter = common::adapter().to_lowercase();
    let adapters = report["adapters"].as_array().unwrap();
    assert!(adapters.iter().any(|a| {
        format!("{} {}", a["name"], a["driver"])
            .to_lowercase()
            .contains(&adapter)
    }));
    assert!(report["chosen"].is_string() && report["reason"].is_string());
    let tests = report["self_test"].as_array().unwrap();
    assert_eq!(tests.len() % (1 + adapters.len()), 0);
    for test in tests {
        assert!(
            test["op"].is_string()
                && test["device"].is_string()
                && test["max_abs_error"].is_number()
        );
        assert_eq!(test["ok"], true);
    }
    assert!(
        report["seconds"].as_f64().unwrap() < 10.0,
        "{}",
        report["seconds"]
    );
    assert!(text(&succeeded(run(&["doctor"])).stdout).contains("--device auto takes"));
}

#[test]
fn eval_prints_the_promised_fields() {
    // A miniature whose gold is what the router answers, and one that it does not know.
    let folder = Folder::new("eval");
    let (processed, indices) = (
        folder.join("data/processed"),
        folder.join("data/model_indices"),
    );
    fs::create_dir_all(&processed).unwrap();
    fs::create_dir_all(&indices).unwrap();
    let prompt = "translation from English to Spanish";
    let [answer] = lines(&succeeded(run(&[
        "route", "--json", "--device", "cpu", prompt,
    ])))
    .try_into()
    .unwrap();
    let best = answer["ranked"][0]["model"].as_str().unwrap();
    let row = |model: &str| {
        let instruction = format!("###Instruction: {prompt}");
        serde_json::json!({"model_name": model, "model_family": "f", "instruction": instruction, "domain": "d"}).to_string()
    };
    let stems = ["apibench-hf", "mllm", "hugging-bench-1", "hugging-bench-2"];
    for (stem, index) in stems.iter().zip(["e1", "e1_e2", "e1_e2_e3", "e1_e2_e3_e4"]) {
        fs::write(
            processed.join(format!("cleaned-{stem}-val.json")),
            row(best),
        )
        .unwrap();
        let eval = format!("{}\n{}\n", row(best), row("nobody/knows"));
        fs::write(processed.join(format!("cleaned-{stem}-eval.json")), eval).unwrap();
        let card = serde_json::json!({"model_name": best, "domain": "d"}).to_string();
        fs::write(indices.join(format!("{index}.json")), card).unwrap();
    }
    let data = folder.0.to_str().unwrap();
    let [report] = lines(&succeeded(run(&[
        "eval", "--json", "--device", "cpu", "--data", data,
    ])))
    .try_into()
    .unwrap();
    assert_eq!(report["schema_version"], 1);
    assert_eq!(report["experiences"].as_array().unwrap().len(), 4);
    let first = &report["experiences"][0];
    assert_eq!(
        (&first["name"], &first["rows"], &first["unknown"]),
        (&"apibench-hf".into(), &2.into(), &1.into())
    );
    for of in [first, &report["macro"]] {
        assert_eq!(
            (&of["model"], &of["family"], &of["domain"]),
            (&50.0.into(), &50.0.into(), &100.0.into()),
            "{of}"
        );
        assert_eq!(
            (&of["top3"], &of["mean_reciprocal_rank"]),
            (&50.0.into(), &0.5.into())
        );
    }
    assert!(report["texts_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(report["device"], "cpu");
    assert!(
        text(&succeeded(run(&["eval", "--device", "cpu", "--data", data])).stdout)
            .contains("macro")
    );
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = hubrouter(&["hub", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), String::new())
    );
}

#[test]
fn the_bundled_store_is_whole() {
    let check = succeeded(run(&[
        "generation",
        "check",
        "--router",
        store().to_str().unwrap(),
    ]));
    assert!(text(&check.stdout).contains("whole"));
}

#[test]
fn learning_by_the_command() {
    let folder = Folder::new("learn");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (store, bundle, new) = learnable(&folder);
    let learn = |more: &[&str]| {
        let mut arguments = vec![
            "learn",
            "--router",
            &store,
            "--encoder",
            &bundle,
            "--device",
            "cpu",
            "--threads",
            "1",
            "--examples",
            &new,
            "--set",
            "epochs=2",
            "--set",
            "train=always",
        ];
        arguments.extend(more);
        run(&arguments)
    };
    let dry = &lines(&succeeded(learn(&["--dry-run", "--json"])))[0];
    assert!(dry["generation"].is_null() && dry["steps"].as_u64().unwrap() > 0);
    let report = &lines(&succeeded(learn(&["--json"])))[0];
    assert_eq!(
        (
            report["schema_version"].as_u64(),
            report["models_added"].as_u64()
        ),
        (Some(2), Some(1))
    );
    for key in [
        "generation",
        "parent",
        "trained",
        "remembered",
        "models_added",
        "examples",
        "steps",
        "seconds",
        "accuracy",
        "forgetting",
        "replay",
        "device",
    ] {
        assert!(report.get(key).is_some(), "{key} is missing in {report}");
    }
    assert!(report["replay"]["kept"].as_u64().unwrap() > 0);
    let current = text(&fs::read(folder.join("store/current")).unwrap());
    assert_eq!(current.trim(), report["generation"].as_str().unwrap());

    // The gate: nobody gains so much.
    let refused = learn(&["--max-forgetting=-101"]);
    failed(refused, 3, &["refused", "stays current"]);
    assert_eq!(
        text(&fs::read(folder.join("store/current")).unwrap()),
        current
    );
    failed(
        learn(&["--set", "nothing=1"]),
        2,
        &["nothing", "anchor.phase"],
    );
    failed(learn(&["--set", "epochs=many"]), 2, &["epochs"]);
    failed(learn(&["--recipe", "secret"]), 2, &["carve or paper"]);
    failed(learn(&["--budget", "soon"]), 2, &["10m"]);
    fs::write(path("bad.jsonl"), "{\"instruction\": \"x\"}\n").unwrap();
    let bad = path("bad.jsonl");
    failed(
        run(&[
            "learn",
            "--router",
            &store,
            "--encoder",
            &bundle,
            "--examples",
            &bad,
        ]),
        1,
        &["bad.jsonl:1"],
    );

    let listed = lines(&succeeded(run(&[
        "replay", "list", "--router", &store, "--json",
    ])));
    let kept = listed.iter().find(|line| line["use"] == "replay").unwrap();
    let prompt = kept["text"].as_str().unwrap();
    let gone = &lines(&succeeded(run(&[
        "replay", "forget", "--router", &store, "--json", prompt,
    ])))[0];
    assert!(gone["generation"].is_string());
    let left = lines(&succeeded(run(&[
        "replay", "list", "--router", &store, "--json",
    ])));
    assert_eq!(left.len(), listed.len() - 1);
    failed(
        run(&["replay", "forget", "--router", &store, prompt]),
        2,
        &["expected a prompt that is kept or remembered"],
    );
    succeeded(run(&["generation", "check", "--router", &store]));
    let routed = run(&[
        "route",
        "--router",
        &store,
        "--encoder",
        &bundle,
        "--json",
        "prompt 3 about birds",
    ]);
    assert_eq!(
        lines(&succeeded(routed))[0]["generation"],
        gone["generation"]
    );
}

#[test]
fn learn_prints_the_promised_fields() {
    let folder = Folder::new("learn-fields");
    let (store, bundle, new) = learnable(&folder);
    let learn = [
        "learn",
        "--router",
        &store,
        "--encoder",
        &bundle,
        "--device",
        "cpu",
        "--examples",
        &new,
        "--recipe",
        "carve",
        "--set",
        "epochs=1",
        "--json",
        "--max-forgetting",
        "100",
    ];
    let keys = |value: &Value| -> Vec<String> {
        let object = value.as_object().unwrap();
        object.keys().map(String::clone).collect()
    };
    let parts = ["model", "family", "domain"];
    for round in [1, 2] {
        let parent = current(&store);
        let output = succeeded(run(&learn));
        let [report] = lines(&output).try_into().unwrap();
        let unknown = report["forgetting_unknown"].is_string();
        assert_eq!(unknown, round == 1, "the report says where it cannot tell");
        assert_eq!(report["forgetting_interval"].is_null(), unknown);
        let promised = [
            "schema_version",
            "generation",
            "parent",
            "models_added",
            "examples",
            "steps",
            "seconds",
            "accuracy",
            "forgetting",
            "replay",
            "device",
        ];
        let mut found = keys(&report);
        found.retain(|key| promised.contains(&key.as_str()));
        assert_eq!(found, promised, "these, and in this order");
        assert_eq!(report["schema_version"], 2);
        assert_eq!(report["parent"], parent.as_str());
        assert_eq!(report["generation"], current(&store).as_str());
        assert_eq!(report["models_added"], if round == 1 { 1 } else { 0 });
        assert_eq!(report["device"], "cpu");
        for key in ["examples", "steps"] {
            assert!(report[key].as_u64().unwrap() > 0, "{key}");
        }
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        let accuracy = &report["accuracy"];
        assert_eq!(keys(accuracy), ["old_before", "old_after", "new_after"]);
        assert_eq!(keys(&report["replay"]), ["kept", "bytes"]);
        assert_eq!(keys(&accuracy["new_after"]), [&parts[..], &["n"]].concat());
        if round == 1 {
            // Nothing was learned before that could be forgotten.
            assert!(accuracy["old_before"].is_null() && accuracy["old_after"].is_null());
            assert!(report["forgetting"].is_null());
            continue;
        }
        for part in parts {
            let of = |value: &Value| value[part].as_f64().unwrap();
            let lost = of(&accuracy["old_before"]) - of(&accuracy["old_after"]);
            assert_eq!(of(&report["forgetting"]), lost, "{part}");
            assert!((0.0..=100.0).contains(&of(&accuracy["new_after"])));
        }
        assert_eq!(keys(&report["forgetting"]), [&parts[..], &["n"]].concat());
    }
}

#[test]
fn mistakes_in_learning_are_explained() {
    let folder = Folder::new("learn-mistakes");
    let (store, bundle, new) = learnable(&folder);
    let before = current(&store);
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let learn = |examples: &str, more: &[&str]| {
        let mut arguments = vec![
            "learn",
            "--router",
            &store,
            "--encoder",
            &bundle,
            "--device",
            "cpu",
            "--examples",
            examples,
        ];
        arguments.extend(more);
        run(&arguments)
    };
    let good = r#"{"instruction":"x","model_name":"birds"}"#;
    for (name, text, code, says) in [
        (
            "empty.jsonl",
            "",
            1,
            "empty.jsonl: expected at least one example",
        ),
        (
            "blank.jsonl",
            "\n \n",
            1,
            "blank.jsonl: expected at least one example",
        ),
        ("torn.jsonl", "{\"instruction\":", 1, "torn.jsonl:1: EOF"),
        ("list.jsonl", "[1]\n", 1, "list.jsonl:1: "),
        ("binary.jsonl", "\u{0}\u{1}", 1, "binary.jsonl:1: "),
        (
            "stranger.jsonl",
            r#"{"instruction":"x","model_name":"who"}"#,
            2,
            "example 1: model \"who\" is not in the hub: introduce it with --models",
        ),
        (
            "several.jsonl",
            "{\"instruction\":\"x\",\"model_name\":\"birds\",\"experience\":1}\n{\"instruction\":\"x\",\"model_name\":\"birds\",\"experience\":2}",
            2,
            "expected one experience, found 2",
        ),
    ] {
        failed(learn(&file(name, text), &[]), code, &[says]);
    }
    let second = file(
        "second.jsonl",
        &format!("{good}\n{{\"instruction\":7,\"model_name\":\"birds\"}}\n"),
    );
    failed(
        learn(&second, &[]),
        1,
        &["second.jsonl:2: ", "expected a string"],
    );
    failed(
        learn("nowhere.jsonl", &[]),
        1,
        &["nowhere.jsonl: cannot open"],
    );
    let none = file("none.jsonl", "");
    for (more, code, says) in [
        (
            &["--models", none.as_str()][..],
            1,
            "none.jsonl: expected at least one model",
        ),
        (
            &["--models", "nowhere.jsonl"],
            1,
            "nowhere.jsonl: cannot open",
        ),
        (
            &["--set", "epoch=2"],
            2,
            "\"epoch\": expected one of train, train.least, memory",
        ),
        (
            &["--set", "epochs"],
            2,
            "--set: expected KEY=VALUE, found \"epochs\"",
        ),
        (
            &["--set", "epochs=0"],
            2,
            "epochs: expected at least 1, found 0",
        ),
        (&["--set", "epochs=-1"], 2, "epochs: "),
        (&["--set", "lr.w=nan"], 2, "lr.w: "),
        (
            &["--set", "phase_split=1.5"],
            2,
            "phase_split: expected a number from 0 to 1",
        ),
        (
            &["--set", "batching=domains"],
            2,
            "batching: unknown variant `domains`",
        ),
        (&["--set", "lora.targets=key,kay"], 2, "lora.targets: "),
        (
            &["--recipe", "Edge"],
            2,
            "recipe: expected edge, memory, carve or paper, found \"Edge\"",
        ),
        (
            &["--budget", "0s"],
            2,
            "expected a time such as 90s, 10m or 2h, found \"0s\"",
        ),
        (&["--budget", "10"], 2, "found \"10\""),
        (&["--budget", "10é"], 2, "found \"10é\""),
        (&["--budget", "99999999999999999999s"], 2, "--budget"),
        (
            &["--max-forgetting", "nan"],
            2,
            "expected a number of points such as 3, found \"nan\"",
        ),
        (&["--max-forgetting", "few"], 2, "found \"few\""),
        (&["--threads", "0"], 2, "threads: expected 1 to 1024"),
        (
            &["--out", &bundle],
            1,
            "expected a store or an empty folder",
        ),
    ] {
        failed(learn(&new, more), code, &[says]);
    }
    let elsewhere = ["learn", "--router", "nowhere", "--examples", &new];
    failed(run(&elsewhere), 1, &["nowhere: expected a store"]);
    failed(
        run(&[
            "learn",
            "--router",
            &store,
            "--encoder",
            "nowhere",
            "--examples",
            &new,
        ]),
        1,
        &["nowhere/manifest.json: cannot open"],
    );
    succeeded(run(&["hub", "retire", "--router", &store, "cats"]));
    failed(
        learn(&new, &[]),
        2,
        &["example 2: model \"cats\" is retired"],
    );
    succeeded(run(&["generation", "rollback", "--router", &store]));
    assert_eq!(current(&store), before);
    assert!(!folder.join("store/resume.safetensors").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_and_the_same_command_goes_on() {
    use std::process::Command;
    let folder = Folder::new("ctrl-c");
    let (store, bundle, new) = learnable(&folder);
    let out = folder.join("other").to_str().unwrap().to_owned();
    let learn = |more: &[&str]| {
        let mut arguments = vec![
            "learn",
            "--router",
            &store,
            "--encoder",
            &bundle,
            "--device",
            "cpu",
            "--threads",
            "1",
            "--examples",
            &new,
            "--json",
            "--recipe",
            "carve",
            "--set",
        ];
        arguments.extend(more);
        hubrouter(&arguments)
    };
    /// Starts it, waits until it has begun to learn, presses Ctrl-C; what it said.
    fn interrupt(mut learn: Command, log: &Path) -> (Option<i32>, String, String) {
        let errors = fs::File::create(log).unwrap();
        let mut child = learn
            .args(["-vv"])
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        while !fs::read_to_string(log).unwrap().contains("learning begins") {
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let kill = format!("kill -INT {}", child.id());
        succeeded(Command::new("sh").args(["-c", &kill]).output().unwrap());
        let output = child.wait_with_output().unwrap();
        let said = fs::read_to_string(log).unwrap();
        (output.status.code(), text(&output.stdout), said)
    }
    let before = current(&store);
    let log = folder.join("log");
    let many = "epochs=4000";
    // Into this store, and into another one, where the state is then.
    for (more, place) in [(&[many][..], &store), (&[many, "--out", &out], &out)] {
        let (code, said, errors) = interrupt(learn(more), &log);
        assert_eq!((code, said.as_str()), (Some(130), ""), "{errors}");
        for part in [
            "stopping at the next step",
            "stopped after step",
            "of 4000",
            "goes on from there",
        ] {
            assert!(errors.contains(part), "{part:?} is not in {errors}");
        }
        assert_eq!(current(&store), before);
        let state = Path::new(place).join("resume.safetensors");
        assert!(state.exists());
        let again = learn(&[more, &["-v", "--budget", "1s"]].concat())
            .output()
            .unwrap();
        assert!(text(&succeeded(again).stderr).contains("resuming at step"));
        assert!(!state.exists());
        if place == &store {
            succeeded(run(&["generation", "rollback", "--router", &store]));
        }
        assert_eq!(current(&store), before);
    }
    assert_ne!(current(&out), before);
    // A dry run leaves nothing.
    let (code, said, _) = interrupt(learn(&[many, "--dry-run"]), &log);
    assert_eq!((code, said.as_str()), (Some(130), ""));
    assert!(!folder.join("store/resume.safetensors").exists());
    assert_eq!(current(&store), before);
}

#[test]
fn cmrbench_says_what_is_wrong() {
    let listed = succeeded(run(&["cmrbench", "--list"]));
    let shown = text(&listed.stdout);
    assert!(
        shown.contains("carve-10") && shown.contains("Continual floor"),
        "{shown}"
    );
    let listed = lines(&succeeded(run(&["cmrbench", "--list", "--json"])));
    assert!(
        listed
            .iter()
            .any(|method| method["name"] == "joint" && method["group"] == "bound")
    );
    let folder = Folder::new("cli-cmrbench");
    let out = folder.join("out");
    let out = out.to_str().unwrap();
    failed(run(&["cmrbench"]), 2, &["--out"]);
    failed(
        run(&["cmrbench", "--out", out]),
        2,
        &["--data FOLDER", "HUBROUTER_CMRBENCH"],
    );
    failed(
        run(&["cmrbench", "--out", out, "--data", out]),
        1,
        &["expected a CMRBench checkout"],
    );
    failed(
        run(&["cmrbench", "--out", out, "--seeds", "x"]),
        2,
        &["--seeds"],
    );
    failed(
        run(&["cmrbench", "--out", out, "--eval", "secret"]),
        2,
        &["public", "whole", "dev"],
    );
    assert!(!Path::new(out).exists());
}

/// One answer for every request, and what was asked.
fn language_model(answer: &'static str) -> (String, std::sync::mpsc::Receiver<String>) {
    use std::io::{BufRead, BufReader, Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (send, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head += &line;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let text =
                serde_json::json!({"choices": [{"message": {"content": answer}}]}).to_string();
            let reply = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            stream.write_all(reply.as_bytes()).unwrap();
            if send.send(head + &String::from_utf8(body).unwrap()).is_err() {
                break;
            }
        }
    });
    (url, asked)
}

/// An own hub's prompts go to the endpoint that is named, with the key of the variable that is named,
/// and to none otherwise.
#[test]
fn cmrbench_asks_a_language_model_when_one_is_named() {
    let folder = Folder::new("cli-llm");
    let (_, encoder, _) = learnable(&folder);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let data = path("data");
    let (processed, indices) = (
        folder.join("data/processed"),
        folder.join("data/model_indices"),
    );
    fs::create_dir_all(&processed).unwrap();
    fs::create_dir_all(&indices).unwrap();
    let mut cards = String::new();
    for (i, (stem, index)) in [
        ("apibench-hf", "e1"),
        ("mllm", "e1_e2"),
        ("hugging-bench-1", "e1_e2_e3"),
        ("hugging-bench-2", "e1_e2_e3_e4"),
    ]
    .iter()
    .enumerate()
    {
        let row = |text: String| {
            serde_json::json!({
                "model_name": format!("m{i}"), "model_family": "f", "domain": format!("Domain {}", i % 2),
                "instruction": text,
            })
        };
        cards += &format!(
            "{{\"model_name\":\"m{i}\",\"domain\":\"Domain {}\"}}\n",
            i % 2
        );
        let file = |part: &str| processed.join(format!("cleaned-{stem}-{part}.json"));
        fs::write(file("val"), row(format!("learn {i}")).to_string()).unwrap();
        fs::write(file("eval"), row(format!("predict {i}")).to_string()).unwrap();
        fs::write(indices.join(format!("{index}.json")), &cards).unwrap();
    }
    let (url, asked) = language_model("domain 1.");
    let out = path("out");
    let base = [
        "cmrbench",
        "--data",
        &data,
        "--out",
        &out,
        "--encoder",
        &encoder,
        "--eval",
        "whole",
        "--seeds",
        "3",
        "--device",
        "cpu",
        "--json",
    ];
    let with = |more: &[&str]| -> std::process::Command { hubrouter(&[&base, more].concat()) };
    failed(
        with(&["--methods", "llm"]).output().unwrap(),
        2,
        &["llm: expected a chat endpoint, found none: say --llm-endpoint URL"],
    );
    failed(
        with(&["--methods", "bm25", "--llm-model", "m"])
            .output()
            .unwrap(),
        2,
        &["--llm-endpoint"],
    );
    let named = [
        "--methods",
        "llm",
        "--llm-endpoint",
        &url,
        "--llm-key-env",
        "MY_KEY",
    ];
    failed(
        with(&named).env_remove("MY_KEY").output().unwrap(),
        2,
        &["--llm-key-env: expected a key in the variable \"MY_KEY\", found none"],
    );
    assert!(asked.try_recv().is_err(), "nothing was sent so far");
    let done = succeeded(with(&named).env("MY_KEY", "secret").output().unwrap());
    let results = &lines(&done)[0];
    let llm = results["methods"]
        .as_array()
        .unwrap()
        .iter()
        .find(|method| method["name"] == "llm")
        .unwrap();
    assert_eq!(
        llm["runs"][0]["hits"]["D"][3],
        serde_json::json!([0, 1, 0, 1])
    );
    assert_eq!(
        llm["mean"]["acc"],
        serde_json::json!({"M": null, "F": null, "D": 50.0})
    );
    let requests: Vec<String> = asked.try_iter().collect();
    assert_eq!(requests.len(), 4);
    for (place, request) in requests.iter().enumerate() {
        let lower = request.to_lowercase();
        assert!(lower.contains("authorization: bearer secret"), "{request}");
        assert!(request.contains(&format!("predict {place}")) && request.contains("\"seed\":3"));
    }
    for file in ["results.json", "tables.md", "report.html"] {
        let text = fs::read_to_string(folder.join("out").join(file)).unwrap();
        assert!(!text.contains("secret") && text.contains(&url), "{file}");
    }
    // A group takes it in where there is an endpoint, and says so where there is none.
    let quiet = succeeded(
        with(&["--methods", "bm25,retrieval", "--report"])
            .output()
            .unwrap(),
    );
    assert_eq!(lines(&quiet)[0]["settings"]["not_run"][0]["method"], "llm");
    let tables = fs::read_to_string(folder.join("out/tables.md")).unwrap();
    assert!(
        tables.contains("- not run: LLM controller, domains alone (no chat endpoint was named)")
    );
    let shown = [&named[2..], &["--methods", "retrieval", "--report"]].concat();
    let shown = succeeded(with(&shown).env("MY_KEY", "other").output().unwrap());
    let methods = lines(&shown)[0]["methods"].as_array().unwrap().len();
    assert_eq!(
        methods, 2,
        "the floor and llm, whose cell is there whatever the key is"
    );
    assert!(asked.try_recv().is_err(), "--report sends nothing");
}

/// A hub of one's own in place of CMRBench's, with the defaults of one.
#[test]
fn cmrbench_runs_on_a_hub_of_ones_own() {
    let folder = Folder::new("cli-own");
    let (_, encoder, examples) = learnable(&folder);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (models, out) = (path("models.jsonl"), path("out"));
    let base = ["cmrbench", "--out", &out, "--models", &models];
    let with = |more: &[&str]| run(&[&base, more].concat());
    let first = fs::read_to_string(&models).unwrap();
    failed(with(&[]), 2, &["--examples"]);
    failed(
        with(&["--examples", &examples, "--data", &out]),
        2,
        &["--data", "--models"],
    );
    failed(
        with(&["--examples", &examples, "--eval", "public"]),
        2,
        &["--eval public: expected whole or dev for a hub of your own"],
    );
    failed(
        with(&["--examples", &examples]),
        1,
        &[
            "new.jsonl:3: model_name: expected a model of",
            "found \"dogs\"",
        ],
    );
    let again = "{\"model_name\":\"dogs\",\"domain\":\"Images\"}\n{\"model_name\":\"cats\",\"domain\":\"Images\"}\n";
    fs::write(&models, first + again).unwrap();
    let done = [
        "--examples",
        &examples,
        "--methods",
        "tfidf,sequential",
        "--quick",
        "--encoder",
        &encoder,
        "--device",
        "cpu",
        "--json",
    ];
    let done = succeeded(with(&done));
    let said = text(&done.stderr);
    assert!(said.contains("the later line counts: cats"), "{said}");
    let results = &lines(&done)[0];
    let data = &results["data"];
    let count = |of: &str| data[of][0].as_u64().unwrap();
    assert_eq!(count("train_rows") + count("eval_rows"), 24);
    assert_eq!(
        (&data["half"], data["train_rows"].as_array().unwrap().len()),
        (&Value::from("whole"), 1)
    );
    let tfidf = &results["methods"][0];
    assert_eq!(tfidf["mean"]["acc"]["M"], 100.0);
    assert!(tfidf["mean"]["acc"]["F"].is_null() && tfidf["mean"]["fgt"]["M"].is_null());
    let tables = fs::read_to_string(folder.join("out/tables.md")).unwrap();
    assert!(
        tables.contains("the later line counts: cats") && !tables.contains("poster"),
        "{tables}"
    );
}
