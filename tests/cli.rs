//! The command as its users call it: transcripts, and checks that a transcript cannot express.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::Folder;
use common::command::{
    command_in, current, failed, hubrouter, json_in, learnable, lines, run, run_in, succeeded, text,
};
use serde_json::{Value, json};

#[cfg(unix)]
mod transcripts {
    use super::common::transcript::{check, compared};
    use super::*;

    #[test]
    fn route() {
        check("route", &Folder::new("route"));
    }

    #[test]
    fn chat() {
        check("chat", &Folder::new("chat"));
    }

    #[test]
    fn policy() {
        check("policy", &Folder::new("policy"));
    }

    #[test]
    fn confidence() {
        check("confidence", &Folder::new("confidence"));
    }

    #[test]
    fn serving() {
        check("serving", &Folder::new("serving"));
    }

    #[test]
    fn hub() {
        check("hub", &Folder::new("hub"));
    }

    #[test]
    fn shell() {
        check("shell", &Folder::new("shell"));
    }

    #[test]
    fn build() {
        check("build", &Folder::new("build"));
    }

    #[test]
    fn sources() {
        check("sources", &Folder::new("sources"));
    }

    #[test]
    fn learn() {
        let folder = Folder::new("learn");
        learnable(&folder);
        check("learn", &folder);
    }

    #[test]
    fn exchange() {
        let folder = Folder::new("exchange");
        learnable(&folder);
        check("exchange", &folder);
    }

    #[test]
    fn feedback() {
        check("feedback", &Folder::new("feedback"));
    }

    /// A comparison that cannot fail checks nothing.
    #[test]
    fn a_transcript_that_is_wrong_is_noticed() {
        let folder = Folder::new("wrong");
        for (body, fits) in [
            ("$ echo one; echo two >&2; exit 3\n? 3\none\ntwo\n", true),
            ("$ echo one; exit 3\none\n", false),
            ("$ echo one\n? 1\none\n", false),
            ("$ echo one\n", false),
            ("$ echo one\n...\n", true),
            ("$ echo one\none\n...\ntwo\n", false),
            ("$ echo one two\no[..]o\n", true),
            ("$ echo one two\n[..]one\n", false),
            ("$ echo '{\"a\":[1]}'\n{\n  \"a\": [\n    1\n  ]\n}\n", true),
            ("$ echo \\\n>   one\none\n$ echo two\ntwo\n", true),
        ] {
            let text = format!("# x\n\n```console\n{body}```\n");
            let (written, differences) = compared(&text, &folder);
            assert_eq!(differences.is_empty(), fits, "{body}");
            assert_eq!(written == text, fits, "{written}");
            assert!(compared(&written, &folder).1.is_empty(), "{written}");
        }
    }
}

/// `docs/schemas` is what the command prints; HUBROUTER_TRANSCRIPTS=write writes it. What the command
/// reads and writes has the fields that a schema names, and no others.
#[test]
fn schemas_are_those_of_the_types() {
    let folder = Folder::new("schemas");
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schemas");
    let schema = |form: &str| -> serde_json::Value {
        let printed = succeeded(run_in(&folder, &format!("schema {form}"))).stdout;
        let path = schemas.join(format!("{form}.json"));
        if std::env::var("HUBROUTER_TRANSCRIPTS").is_ok_and(|mode| mode == "write") {
            std::fs::write(&path, &printed).unwrap();
        }
        assert!(
            std::fs::read(&path).is_ok_and(|committed| committed == printed),
            "{}: expected what `hubrouter schema {form}` prints, found another text; \
             HUBROUTER_TRANSCRIPTS=write writes it",
            path.display()
        );
        serde_json::from_slice(&printed).unwrap()
    };
    let route = "route --device cpu --precision f32 --json --top 2";
    for (form, command) in [
        (
            "decision",
            format!("{route} --where \"domain has audio\" 'Who sings?'"),
        ),
        ("explanation", format!("{route} --explain 'Who sings?'")),
    ] {
        let answer = succeeded(run_in(&folder, &command)).stdout;
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let schema = schema(form);
        let known = schema["properties"].as_object().unwrap();
        let answer = answer.as_object().unwrap();
        for key in answer.keys() {
            assert!(known.contains_key(key), "{form}: {key}");
        }
        for key in schema["required"].as_array().unwrap() {
            assert!(answer.contains_key(key.as_str().unwrap()), "{form}: {key}");
        }
    }
    for form in ["request", "policy", "feedback-line", "model-card", "verify"] {
        schema(form);
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    let without_json = [
        "hub",
        "replay",
        "generation",
        "encoder",
        "completions",
        "man",
        "policy",
        "schema",
    ];
    let with_json = [
        "route",
        "eval",
        "cmrbench",
        "doctor",
        "verify",
        "learn",
        "report",
        "replay-log",
        "encoder import",
        "hub list",
        "hub show",
        "hub add",
        "hub retire",
        "hub rename",
        "hub alias",
        "hub build",
        "policy check",
        "replay list",
        "replay forget",
        "generation list",
        "generation show",
        "generation check",
        "generation measure",
        "generation export",
        "generation import",
        "generation adopt",
        "generation rollback",
        "generation diff",
        "generation prune",
    ];
    let folder = Folder::new("help");
    for command in without_json.iter().chain(&with_json) {
        let help = succeeded(run_in(&folder, &format!("{command} --help")));
        let help = text(&help.stdout);
        let example = format!("\n  hubrouter {command}");
        assert!(
            help.contains("Example") && help.contains(&example),
            "{command}: {help}"
        );
        assert!(
            help.contains("--json") || without_json.contains(command),
            "{command}: no --json"
        );
    }
}

#[test]
fn the_environment_names_the_kernels_of_the_cpu() {
    let route = ["route", "--device", "cpu", "--json", "Who is speaking?"];
    let at = |level: &str, more: &[&str]| {
        let mut command = hubrouter(&[&route[..], more].concat());
        command.env("HUBROUTER_CPU", level).output().unwrap()
    };
    let precision = |output: Output| {
        let [decision] = lines(&succeeded(output)).try_into().unwrap();
        let decision: serde_json::Value = decision;
        decision["precision"].as_str().unwrap().to_owned()
    };
    // Unset and empty are auto.
    let own = precision(run(&route));
    assert_eq!(precision(at("", &[])), own);
    assert_eq!(precision(at("auto", &[])), own);
    assert_eq!(precision(at("portable", &[])), "f32");
    let foreign = if cfg!(target_arch = "x86_64") {
        "neon"
    } else {
        "avx2"
    };
    for (level, more, code, why) in [
        (
            "sse9",
            &[][..],
            2,
            "HUBROUTER_CPU: cpu level: expected auto, ",
        ),
        (
            foreign,
            &[],
            1,
            "expected one that this machine has (auto, ",
        ),
        (
            "portable",
            &["--precision", "int8"],
            1,
            "not of the level portable",
        ),
        (
            "portable",
            &["--precision", "bf16"],
            1,
            "not of the level portable",
        ),
    ] {
        let output = at(level, more);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{error}");
        // Kernels of other processors have no reason of their own.
        let is_known = cfg!(target_arch = "x86_64") || code != 1 || level == foreign;
        assert!(error.contains(why) || !is_known, "{error}");
    }
    let mut doctor = hubrouter(&["doctor", "--device", "cpu"]);
    let shown = succeeded(doctor.env("HUBROUTER_CPU", "portable").output().unwrap());
    let shown = text(&shown.stdout)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert!(
        shown.contains("kernels of the level portable (HUBROUTER_CPU)"),
        "{shown}"
    );
    assert!(
        shown.contains("in int8 none") && shown.contains("in bf16 none"),
        "{shown}"
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
    assert!(report["kept"].is_array());
    let tests = report["self_test"].as_array().unwrap();
    // Some kernels are a GPU's alone.
    let of = |device: &Value| {
        tests
            .iter()
            .filter(|test| test["device"] == *device)
            .count()
    };
    let on_cpu = of(&json!("cpu"));
    assert!(on_cpu > 0);
    assert!(adapters.iter().all(|a| of(&a["name"]) > on_cpu));
    for test in tests {
        assert!(test["op"].is_string() && test["device"].is_string());
        assert!(test["max_abs_error"].is_number());
        assert_eq!(test["ok"], true);
    }
    assert!(report["seconds"].is_number());
    assert!(text(&succeeded(run(&["doctor"])).stdout).contains("--device auto takes"));
}

/// A CMRBench checkout in `folder/data`, with the training and eval rows of each experience.
fn checkout(
    folder: &Folder,
    rows: impl Fn(usize) -> [Vec<Value>; 2],
    cards: impl Fn(usize) -> Vec<Value>,
) {
    let (processed, indices) = (
        folder.join("data/processed"),
        folder.join("data/model_indices"),
    );
    fs::create_dir_all(&processed).unwrap();
    fs::create_dir_all(&indices).unwrap();
    let text = |rows: Vec<Value>| {
        rows.iter()
            .map(|row| format!("{row}\n"))
            .collect::<String>()
    };
    let stems = ["apibench-hf", "mllm", "hugging-bench-1", "hugging-bench-2"];
    let names = ["e1", "e1_e2", "e1_e2_e3", "e1_e2_e3_e4"];
    for (i, (stem, index)) in stems.iter().zip(names).enumerate() {
        for (part, rows) in ["val", "eval"].into_iter().zip(rows(i)) {
            fs::write(
                processed.join(format!("cleaned-{stem}-{part}.json")),
                text(rows),
            )
            .unwrap();
        }
        fs::write(indices.join(format!("{index}.json")), text(cards(i))).unwrap();
    }
}

#[test]
fn eval_prints_the_promised_fields() {
    // The gold of one row is the router's answer; the router does not know that of the other.
    let folder = Folder::new("eval");
    let prompt = "translation from English to Spanish";
    let answer = json_in(&folder, &format!("route --json --device cpu '{prompt}'"));
    let best = answer["ranked"][0]["model"].as_str().unwrap();
    let row = |model: &str| {
        let instruction = format!("###Instruction: {prompt}");
        json!({"model_name": model, "model_family": "f", "instruction": instruction, "domain": "d"})
    };
    let rows = |_| [vec![row(best)], vec![row(best), row("nobody/knows")]];
    checkout(&folder, rows, |_| {
        vec![json!({"model_name": best, "domain": "d"})]
    });
    let report = json_in(&folder, "eval --json --device cpu --data .");
    assert_eq!(report["schema_version"], 1);
    assert_eq!(report["experiences"].as_array().unwrap().len(), 4);
    let first = &report["experiences"][0];
    assert_eq!(
        (&first["name"], &first["rows"], &first["unknown"]),
        (&"apibench-hf".into(), &2.into(), &1.into())
    );
    for of in [first, &report["macro"]] {
        for (key, value) in [
            ("model", 50.0),
            ("family", 50.0),
            ("domain", 100.0),
            ("top3", 50.0),
            ("mean_reciprocal_rank", 0.5),
        ] {
            assert_eq!(of[key], value, "{key} of {of}");
        }
    }
    assert!(report["texts_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(report["device"], "cpu");
    let shown = succeeded(run_in(&folder, "eval --device cpu --data ."));
    assert!(text(&shown.stdout).contains("macro"));
    failed(run_in(&folder, "eval"), 2, &["HUBROUTER_CMRBENCH"]);
    let nowhere = run_in(&folder, "eval --data nowhere");
    failed(nowhere, 1, &["nowhere: expected a CMRBench checkout"]);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut command = hubrouter(&["hub", "list"]);
    let mut child = command
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

/// Of two updates; `tests/cli/learn.md` shows all fields.
#[test]
fn forgetting_is_the_difference_of_two_accuracies() {
    let folder = Folder::new("learn-fields");
    let (store, ..) = learnable(&folder);
    let learn = "learn --router store --device cpu --examples new.jsonl --recipe carve \
                 --set epochs=1 --json --max-forgetting 100";
    for round in [1, 2] {
        let parent = current(&store);
        let report = json_in(&folder, learn);
        let unknown = report["forgetting_unknown"].is_string();
        assert_eq!(unknown, round == 1, "the report says where it cannot tell");
        assert_eq!(report["forgetting_interval"].is_null(), unknown);
        assert_eq!(report["parent"], parent.as_str());
        assert_eq!(report["generation"], current(&store).as_str());
        assert_eq!(report["models_added"], if round == 1 { 1 } else { 0 });
        for key in ["examples", "steps", "seconds"] {
            assert!(report[key].as_f64().unwrap() > 0.0, "{key}");
        }
        let accuracy = &report["accuracy"];
        if round == 1 {
            // Nothing was learned before that could be forgotten.
            assert!(accuracy["old_before"].is_null() && accuracy["old_after"].is_null());
            assert!(report["forgetting"].is_null());
            continue;
        }
        for part in ["model", "family", "domain"] {
            let of = |value: &Value| value[part].as_f64().unwrap();
            let lost = of(&accuracy["old_before"]) - of(&accuracy["old_after"]);
            assert_eq!(of(&report["forgetting"]), lost, "{part}");
            assert!((0.0..=100.0).contains(&of(&accuracy["new_after"])));
        }
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_and_the_same_command_goes_on() {
    let folder = Folder::new("ctrl-c");
    let (store, ..) = learnable(&folder);
    let learn = |more: &str| {
        let learn = "learn --router store --device cpu --threads 1 --examples new.jsonl --json \
                     --recipe carve --set epochs=4000";
        command_in(&folder, &format!("{learn} {more}"))
    };
    /// Starts it, waits until it has begun to learn, presses Ctrl-C; what it said.
    fn interrupt(mut learn: Command, log: &Path) -> (Option<i32>, String, String) {
        let errors = fs::File::create(log).unwrap();
        let learn = learn.arg("-vv").stdout(Stdio::piped()).stderr(errors);
        let mut child = learn.spawn().unwrap();
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
    // Into this store, and into another one, where the state is then.
    for (more, place) in [("", "store"), ("--out other", "other")] {
        let (code, said, errors) = interrupt(learn(more), &log);
        assert_eq!((code, said.as_str()), (Some(130), ""), "{errors}");
        for part in [
            "stopping at the next step",
            "stopped after step",
            "of 4000",
            "resumes there",
        ] {
            assert!(errors.contains(part), "{part:?} is not in {errors}");
        }
        assert_eq!(current(&store), before);
        let state = folder.join(place).join("resume.safetensors");
        assert!(state.exists());
        let again = learn(&format!("{more} -v --budget 1s")).output().unwrap();
        assert!(text(&succeeded(again).stderr).contains("resuming at step"));
        assert!(!state.exists());
        if place == "store" {
            succeeded(run_in(&folder, "generation rollback --router store"));
        }
        assert_eq!(current(&store), before);
    }
    assert_ne!(current(folder.join("other").to_str().unwrap()), before);
    // A dry run leaves nothing.
    let (code, said, _) = interrupt(learn("--dry-run"), &log);
    assert_eq!((code, said.as_str()), (Some(130), ""));
    assert!(!folder.join("store/resume.safetensors").exists());
    assert_eq!(current(&store), before);
}

#[test]
fn cmrbench_says_what_is_wrong() {
    let folder = Folder::new("cli-cmrbench");
    let listed = text(&succeeded(run_in(&folder, "cmrbench --list")).stdout);
    assert!(
        listed.contains("carve-10") && listed.contains("Continual floor"),
        "{listed}"
    );
    let listed = lines(&succeeded(run_in(&folder, "cmrbench --list --json")));
    let joint = |method: &Value| method["name"] == "joint" && method["group"] == "bound";
    assert!(listed.iter().any(joint));
    for (arguments, code, says) in [
        ("", 2, &["--out"][..]),
        ("--out out", 2, &["--data FOLDER", "HUBROUTER_CMRBENCH"]),
        ("--out out --data out", 1, &["expected a CMRBench checkout"]),
        ("--out out --seeds x", 2, &["--seeds"]),
        ("--out out --eval secret", 2, &["public", "whole", "dev"]),
    ] {
        failed(
            run_in(&folder, &format!("cmrbench {arguments}")),
            code,
            says,
        );
    }
    assert!(!folder.join("out").exists());
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

/// The prompts go to the endpoint that is named, with the key of the variable that is named, and to
/// no other.
#[test]
fn cmrbench_asks_a_language_model_when_one_is_named() {
    let folder = Folder::new("cli-llm");
    learnable(&folder);
    let rows = |i: usize| {
        ["learn", "predict"].map(|what| {
            let (model, domain) = (format!("m{i}"), format!("Domain {}", i % 2));
            let instruction = format!("{what} {i}");
            vec![json!({
                "model_name": model, "model_family": "f", "domain": domain,
                "instruction": instruction,
            })]
        })
    };
    let card =
        |i: usize| json!({"model_name": format!("m{i}"), "domain": format!("Domain {}", i % 2)});
    checkout(&folder, rows, |i| (0..=i).map(card).collect());
    let (url, asked) = language_model("domain 1.");
    let with = |more: &str| {
        let base = "cmrbench --data data --out out --encoder toy-bert --eval whole --seeds 3 \
                    --device cpu --json";
        command_in(&folder, &format!("{base} {more}"))
    };
    failed(
        with("--methods llm").output().unwrap(),
        2,
        &["llm: expected a chat endpoint, found none; name one with --llm-endpoint URL"],
    );
    let unnamed = with("--methods bm25 --llm-model m").output().unwrap();
    failed(unnamed, 2, &["--llm-endpoint"]);
    let endpoint = format!("--llm-endpoint {url} --llm-key-env MY_KEY");
    let named = format!("--methods llm {endpoint}");
    failed(
        with(&named).env_remove("MY_KEY").output().unwrap(),
        2,
        &["--llm-key-env: expected a key in the variable \"MY_KEY\", found none"],
    );
    assert!(asked.try_recv().is_err(), "nothing was sent so far");
    let done = succeeded(with(&named).env("MY_KEY", "secret").output().unwrap());
    let results = &lines(&done)[0];
    let methods = results["methods"].as_array().unwrap();
    let llm = methods
        .iter()
        .find(|method| method["name"] == "llm")
        .unwrap();
    assert_eq!(llm["runs"][0]["hits"]["D"][3], json!([0, 1, 0, 1]));
    assert_eq!(llm["mean"]["acc"], json!({"M": null, "F": null, "D": 50.0}));
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
    let quiet = succeeded(with("--methods bm25,retrieval --report").output().unwrap());
    assert_eq!(lines(&quiet)[0]["settings"]["not_run"][0]["method"], "llm");
    let tables = fs::read_to_string(folder.join("out/tables.md")).unwrap();
    let not_run = "- not run: LLM controller, domains alone (no chat endpoint was named)";
    assert!(tables.contains(not_run), "{tables}");
    let shown = with(&format!("{endpoint} --methods retrieval --report"));
    let shown = succeeded({ shown }.env("MY_KEY", "other").output().unwrap());
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
    learnable(&folder);
    let with = |more: &str| {
        let base = "cmrbench --out out --models models.jsonl";
        run_in(&folder, &format!("{base} {more}"))
    };
    for (more, code, says) in [
        ("", 2, &["--examples"][..]),
        (
            "--examples new.jsonl --data out",
            2,
            &["--data", "--models"],
        ),
        (
            "--examples new.jsonl --eval public",
            2,
            &["--eval public: expected whole or dev for a hub of your own"],
        ),
        (
            "--examples new.jsonl",
            1,
            &[
                "new.jsonl:3: model_name: expected a model of",
                "found \"dogs\"",
            ],
        ),
    ] {
        failed(with(more), code, says);
    }
    let models = folder.join("models.jsonl");
    let first = fs::read_to_string(&models).unwrap();
    let again = ["dogs", "cats"].map(|name| json!({"model_name": name, "domain": "Images"}));
    fs::write(&models, format!("{first}{}\n{}\n", again[0], again[1])).unwrap();
    let done = succeeded(with(
        "--examples new.jsonl --methods tfidf,sequential --quick --encoder toy-bert --device cpu \
         --json",
    ));
    let said = text(&done.stderr);
    assert!(said.contains("of which the last counts: cats"), "{said}");
    let results = &lines(&done)[0];
    let data = &results["data"];
    let count = |of: &str| data[of][0].as_u64().unwrap();
    assert_eq!(count("train_rows") + count("eval_rows"), 24);
    assert_eq!(data["half"], "whole");
    assert_eq!(data["train_rows"].as_array().unwrap().len(), 1);
    let mean = &results["methods"][0]["mean"];
    assert_eq!(mean["acc"]["M"], 100.0);
    assert!(mean["acc"]["F"].is_null() && mean["fgt"]["M"].is_null());
    let tables = fs::read_to_string(folder.join("out/tables.md")).unwrap();
    assert!(
        tables.contains("of which the last counts: cats") && !tables.contains("poster"),
        "{tables}"
    );
}

/// A server that gives each request the next of `answers`: a status and a body. Its URL, and the
/// heads of the requests.
fn server(answers: Vec<(u16, Value)>) -> (String, std::thread::JoinHandle<Vec<String>>) {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let answer = |(status, body): (u16, Value)| {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let (body, head) = (body.to_string(), head.join("\n"));
            let length = body.len();
            let begin = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n");
            let whole = format!("{begin}connection: close\r\n\r\n{body}");
            stream.write_all(whole.as_bytes()).unwrap();
            head
        };
        answers.into_iter().map(answer).collect()
    });
    (url, thread)
}

/// The key goes to the server and nowhere else.
#[test]
fn a_hub_follows_the_list_of_a_server() {
    let folder = Folder::new("server");
    learnable(&folder);
    let vllm = |names: &[&str]| {
        let one = |name: &&str| json!({"id": name, "owned_by": "vllm", "max_model_len": 4096});
        json!({"object": "list", "data": names.iter().map(one).collect::<Vec<_>>()})
    };
    let long = "n".repeat(1 << 20);
    let (url, thread) = server(vec![
        (200, vllm(&["a", "b", "a", &long])),
        (200, vllm(&["a", "c"])),
        (200, vllm(&["a", "c"])),
        (200, vllm(&["a", "c"])),
        (401, json!({"error": {"message": "unknown key sk-secret"}})),
        (500, json!({"error": "down"})),
    ]);
    let from = format!("--from-openai {url} --key-env HUBROUTER_TEST_KEY --encoder toy-bert -vv");
    let asked = |line: &str| {
        let mut command = command_in(&folder, &format!("{line} {from} --device cpu --json"));
        let output = command
            .env("HUBROUTER_TEST_KEY", "sk-secret")
            .output()
            .unwrap();
        for text in [text(&output.stdout), text(&output.stderr)] {
            assert!(!text.contains("secret"), "{text}");
        }
        output
    };
    let answer = |line: &str| {
        let [value] = lines(&succeeded(asked(line))).try_into().unwrap();
        value
    };
    let built: Value = answer("hub build --out served --domain Chat");
    let report = &built["report"];
    assert_eq!((&built["models"], &report["new"]), (&2.into(), &2.into()));
    assert_eq!(report["repeated"], json!(["a"]));
    let reason = "expected a name of at most 512 bytes, found 1048576";
    assert_eq!(report["skipped"][0]["reason"], reason);
    assert_eq!(report["domains"]["told"], 2);
    let model = json_in(&folder, "hub show --router served --json b");
    let source = format!("{url}/v1/models");
    let want = json!({"context_length": 4096, "owned_by": "vllm", "source": source});
    assert_eq!(
        (&model["domain"], &model["attributes"]),
        (&"Chat".into(), &want)
    );

    let dry: Value = answer("hub add --router served --nearest-domain --dry-run");
    assert_eq!(
        (&dry["generation"], &dry["report"]["domains"]["nearest"]),
        (&Value::Null, &1.into())
    );
    assert_eq!(dry["report"]["models"][0]["model_name"], "c");
    assert_eq!(dry["report"]["models"][0]["domain"], "Chat");
    let added: Value = answer("hub add --router served");
    let report = &added["report"];
    assert_eq!((&report["new"], &report["known"]), (&1.into(), &1.into()));
    assert_eq!(report["vanished"], json!(["b"]));
    assert_eq!(report["domains"]["unknown"], 1);
    let again: Value = answer("hub add --router served");
    assert_eq!(
        (&again["generation"], &again["report"]["new"]),
        (&added["generation"], &0.into())
    );
    failed(
        asked("hub add --router served"),
        1,
        &["HTTP 401 (unknown key [key])"],
    );
    failed(
        asked("hub add --router served"),
        1,
        &["HTTP 500 (down); try again later"],
    );
    for head in thread.join().unwrap() {
        assert!(head.starts_with("GET /v1/models HTTP/1.1\n"), "{head}");
        assert!(
            head.to_lowercase()
                .contains("\nauthorization: bearer sk-secret"),
            "{head}"
        );
    }
    let line = format!("hub build --out other {from}");
    failed(
        run_in(&folder, &line),
        2,
        &["a key in the variable \"HUBROUTER_TEST_KEY\", found none"],
    );
}
