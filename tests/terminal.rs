//! What people see of the command: control characters, widths, encodings, the places of stores, short ids,
//! words instead of riddles.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::command::{
    current, failed, hubrouter, learnable, lines, run, succeeded, text, with_input,
};
use common::{Folder, bundle, copied_store, copy, fixture};
use serde_json::Value;

const BIRD: &str = "Which bird is singing in this recording?";

/// A toy store: its folder, its path, its encoder's path.
fn toy(name: &str) -> (Folder, String, String) {
    let folder = Folder::new(name);
    let (store, encoder, _) = learnable(&folder);
    (folder, store, encoder)
}

fn write(folder: &Folder, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn columns(arguments: &[&str], columns: &str) -> Output {
    hubrouter(arguments)
        .env("COLUMNS", columns)
        .output()
        .unwrap()
}

/// Nothing but visible characters and line breaks.
fn assert_clean(output: &Output) {
    let shown = text(&output.stdout) + &text(&output.stderr);
    let steers = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!shown.contains(steers), "{shown:?}");
}

#[test]
fn control_characters_are_shown_and_not_sent() {
    let (folder, store, encoder) = toy("terminal-escapes");
    let evil = "a\u{1b}[31m\u{9b}2J\u{202e}b\n9  forged";
    let model = serde_json::json!({
        "model_name": evil, "domain": evil, "family": evil, "description": "about birds", "note": evil,
    });
    let models = write(&folder, "evil.jsonl", format!("{model}\n"));
    let add = [
        "hub",
        "add",
        "--router",
        &store,
        "--encoder",
        &encoder,
        "--models",
        &models,
    ];
    assert_clean(&succeeded(run(&add)));
    let alias = ["hub", "alias", "--router", &store, evil, "other\u{7}name"];
    assert_clean(&succeeded(run(&alias)));

    let route = [
        "route",
        "--router",
        &store,
        "--encoder",
        &encoder,
        "--device",
        "cpu",
    ];
    for arguments in [
        vec!["hub", "list", "--router", &store],
        vec!["hub", "show", "--router", &store, evil],
        vec!["generation", "list", "--router", &store],
        vec!["generation", "show", "--router", &store],
        vec!["generation", "diff", "g0001", "--router", &store],
        [&route[..], &["--explain", "a\u{1b}]0;title\u{7} prompt"]].concat(),
    ] {
        let shown = succeeded(run(&arguments));
        assert_clean(&shown);
        let forged = text(&shown.stdout)
            .lines()
            .any(|line| line.starts_with("9  forged"));
        assert!(!forged, "{arguments:?}");
    }
    let shown = text(&succeeded(run(&["hub", "list", "--router", &store])).stdout);
    assert!(
        shown.contains("a\\u{1b}[31m\\u{9b}2J\\u{202e}b\\n9  forged"),
        "{shown}"
    );
    // In errors as well, those of the arguments too.
    for arguments in [
        vec!["hub", "show", "--router", &store, "other"],
        vec!["hub", "show", "--router", "no\u{1b}[2Jwhere", "x"],
        vec!["route", "--\u{1b}[2J"],
    ] {
        let refused = run(&arguments);
        assert_ne!(refused.status.code(), Some(0));
        assert_clean(&refused);
    }
    // JSON stays what it is.
    let [shown] = lines(&succeeded(run(&[
        "hub", "show", "--json", "--router", &store, evil,
    ])))
    .try_into()
    .unwrap();
    assert_eq!(shown["name"], evil);
}

#[test]
fn kept_prompts_are_escaped() {
    let (folder, store, encoder) = toy("terminal-replay");
    let mut rows = String::new();
    for i in 0..30 {
        let row = serde_json::json!({"instruction": format!("{i} \u{1b}[2J\nforged"), "model_name": "birds"});
        rows += &format!("{row}\n");
    }
    let rows = write(&folder, "rows.jsonl", rows);
    let learn = [
        "learn",
        "--router",
        &store,
        "--encoder",
        &encoder,
        "--device",
        "cpu",
    ];
    succeeded(run(&[
        &learn[..],
        &[
            "--examples",
            &rows,
            "--recipe",
            "carve",
            "--set",
            "epochs=1",
        ],
    ]
    .concat()));
    let shown = succeeded(run(&["replay", "list", "--router", &store]));
    assert_clean(&shown);
    assert!(text(&shown.stdout).contains("\\u{1b}[2J\\nforged"));
}

#[test]
fn answers_fit_the_terminal() {
    let route = ["route", "--device", "cpu", BIRD, "Translate this letter."];
    let widest = |shown: &Output| {
        let shown = text(&shown.stdout);
        shown
            .lines()
            .map(|line| line.chars().count())
            .max()
            .unwrap()
    };
    for width in [60, 80, 100, 140] {
        for more in [&[][..], &["--explain"]] {
            let shown = succeeded(columns(&[&route[..], more].concat(), &width.to_string()));
            assert!(widest(&shown) <= width, "{width}: {}", text(&shown.stdout));
        }
    }
    for unsaid in ["", "0", "wide"] {
        assert!(
            widest(&succeeded(columns(&route, unsaid))) <= 80,
            "80 where nothing says more"
        );
    }
    let shown = text(&succeeded(columns(&route, "100")).stdout);
    let head = shown.lines().nth(1).unwrap();
    let words: Vec<&str> = head.split_whitespace().collect();
    assert_eq!(words, ["#", "model", "probability", "domain"]);
    assert!(
        !shown.contains("learned") && !shown.contains("family"),
        "{shown}"
    );
}

#[test]
fn the_parts_of_a_score_are_explained_when_asked() {
    let route = ["route", "--device", "cpu", "--top", "2", "--explain", BIRD];
    let shown = text(&succeeded(columns(&route, "200")).stdout);
    for part in [
        "\nlearned score  similarity",
        "\nmemory         likeness",
        "\nwords          likeness",
    ] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    let strengths = "\nstrengths      learned score 0.2, memory 0.04, words 0.06 are multiplied in";
    assert!(shown.contains(strengths), "{shown}");
    for part in [
        "\nmargin         ",
        "\nstages         tokenize ",
        "\nencoder        all-MiniLM",
    ] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    assert!(!shown.contains("+ -"), "{shown}");
    let [answer] = lines(&succeeded(run(&[
        "route", "--device", "cpu", "--json", BIRD,
    ])))
    .try_into()
    .unwrap();
    let first = &answer["ranked"][0];
    let (score, learned) = (&first["score"], &first["parts"]["learned"]);
    let says = format!(
        "score {:.3} = learned score {:.2} ",
        score.as_f64().unwrap(),
        learned.as_f64().unwrap()
    );
    assert!(shown.contains(&says), "{says:?} is not in {shown}");
    let said = shown.lines().find(|line| line.contains(&says)).unwrap();
    assert!(
        said.contains(" memory ") && said.contains(" words "),
        "{said}"
    );
    assert!(shown.contains("; family audioprotopnet"), "{shown}");
}

/// On a terminal of its own, which `script` makes.
#[cfg(target_os = "linux")]
#[test]
fn progress_counts_prompts() {
    let folder = Folder::new("terminal-progress");
    let input = write(&folder, "p.txt", "Which bird is singing?\n".repeat(70));
    let program = env!("CARGO_BIN_EXE_hubrouter");
    let out = folder.join("out.jsonl");
    let line = format!(
        "'{program}' route --device cpu --input '{input}' --output '{}'",
        out.display()
    );
    let mut script = Command::new("script");
    let shown = script
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm")
        .output()
        .unwrap();
    let shown = text(&succeeded(shown).stdout);
    assert!(
        shown.contains("routing [") && shown.contains("/70 "),
        "{shown:?}"
    );
}

#[test]
fn lists_are_whole_in_a_pipe_and_cut_to_columns() {
    let list = ["hub", "list", "--name", "flan", "--limit", "20"];
    let whole = text(&succeeded(run(&list)).stdout);
    assert!(!whole.contains('…'), "names are to be found");
    let cut = text(&succeeded(columns(&list, "50")).stdout);
    assert!(cut.lines().all(|line| line.chars().count() <= 50), "{cut}");
}

#[test]
fn byte_order_marks_are_passed_over_and_utf_16_refused() {
    let (folder, store, encoder) = toy("terminal-encodings");
    let route = [
        "route",
        "--router",
        &store,
        "--encoder",
        &encoder,
        "--device",
        "cpu",
        "--json",
        "--input",
    ];
    let marked = |text: &str| [b"\xef\xbb\xbf", text.as_bytes()].concat();
    let wide = |text: &str| -> Vec<u8> {
        let units = "\u{feff}".encode_utf16().chain(text.encode_utf16());
        units.flat_map(u16::to_le_bytes).collect()
    };
    let [plain] = lines(&succeeded(run(&[&route[..8], &["about birds"]].concat())))
        .try_into()
        .unwrap();
    for (name, line) in [
        ("p.txt", "about birds"),
        ("p.jsonl", "{\"prompt\":\"about birds\"}"),
    ] {
        let file = write(&folder, name, marked(line));
        let [answer] = lines(&succeeded(run(&[&route[..], &[&file]].concat())))
            .try_into()
            .unwrap();
        assert_eq!(answer["ranked"], plain["ranked"], "{name}");
        let file = write(&folder, name, wide(&format!("{line}\r\nmore\r\n")));
        let refused = run(&[&route[..], &[&file]].concat());
        failed(refused, 1, &[name, "UTF-16", "UTF-8"]);
    }
    // Without a mark it is seen by its NUL bytes, line by line.
    let unmarked: Vec<u8> = wide("about\nbirds\n").split_off(2);
    let refused = run(&[&route[..], &[&write(&folder, "bare.txt", unmarked)]].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        lines(&refused)
            .iter()
            .all(|line| line["error"]["kind"] == "format")
    );
    let model = "{\"model_name\":\"m\",\"domain\":\"d\"}\n";
    let add = |file: &str| {
        run(&[
            "hub",
            "add",
            "--router",
            &store,
            "--encoder",
            &encoder,
            "--models",
            file,
        ])
    };
    succeeded(add(&write(&folder, "marked.jsonl", marked(model))));
    failed(
        add(&write(&folder, "wide.jsonl", wide(model))),
        1,
        &["wide.jsonl", "UTF-16"],
    );
    let row = "{\"instruction\":\"a\",\"model_name\":\"birds\"}\n";
    let learn = [
        "learn",
        "--dry-run",
        "--router",
        &store,
        "--encoder",
        &encoder,
        "--device",
        "cpu",
        "--set",
        "epochs=1",
        "--examples",
    ];
    let marked_rows = write(&folder, "rows.jsonl", marked(&row.repeat(2)));
    succeeded(run(&[&learn[..], &[&marked_rows]].concat()));
    let wide_rows = write(&folder, "wide-rows.jsonl", wide(row));
    failed(
        run(&[&learn[..], &[&wide_rows]].concat()),
        1,
        &["wide-rows.jsonl", "UTF-16"],
    );
}

#[test]
fn json_lines_given_as_text_are_noticed() {
    let (folder, store, encoder) = toy("terminal-json");
    let route = [
        "route",
        "--router",
        &store,
        "--encoder",
        &encoder,
        "--device",
        "cpu",
        "--json",
    ];
    let line = "{\"instruction\": \"about birds\", \"model\": 3}\n";
    let refused = with_input(&route, line.as_bytes());
    assert!(refused.stdout.is_empty());
    failed(
        refused,
        2,
        &[
            "stdin:1: ",
            "\"instruction\"",
            "--format jsonl",
            "--format txt",
        ],
    );
    let file = write(&folder, "p.txt", format!("\n{line}"));
    failed(
        run(&[&route[..], &["--input", &file]].concat()),
        2,
        &["p.txt:2: "],
    );

    let forced = with_input(
        &[&route[..], &["--format", "txt"]].concat(),
        line.as_bytes(),
    );
    assert!(succeeded(forced).stderr.is_empty());
    // Later, a prompt that looks so ends no service; it is said once.
    let later = succeeded(with_input(
        &route,
        format!("hello\n{line}{line}").as_bytes(),
    ));
    assert_eq!(lines(&later).len(), 3);
    assert_eq!(text(&later.stderr).matches("--format jsonl").count(), 1);
    // Other objects are prompts like any other.
    let other = with_input(&route, b"{\"question\": \"?\"}\n{ not json\n");
    assert!(succeeded(other).stderr.is_empty());
}

#[test]
fn what_the_encoder_does_not_know_is_said() {
    let route = ["route", "--device", "cpu", "--top", "1"];
    let shown =
        |prompt: &str| text(&succeeded(columns(&[&route[..], &[prompt]].concat(), "200")).stdout);
    let emoji = shown("🐦🎵🐦🎵 🦜🦚🦉");
    assert!(
        emoji.contains("does not know 100 % of this prompt's tokens"),
        "{emoji}"
    );
    let partly = shown("Which bird is singing in this recording? 🐦");
    assert!(
        partly.contains("% unknown)") && !partly.contains("does not know"),
        "{partly}"
    );
    assert!(!shown(BIRD).contains("unknown"));
}

#[test]
fn the_bundled_encoder_is_found() {
    let folder = Folder::new("terminal-bundled");
    let models = "{\"model_name\":\"ner\",\"domain\":\"Token Classification\"}\n";
    let models = write(&folder, "models.jsonl", models);
    let store = folder.join("store").to_str().unwrap().to_owned();
    succeeded(run(&[
        "hub", "build", "--device", "cpu", "--models", &models, "--out", &store,
    ]));
    let add = [
        "hub",
        "add",
        "--router",
        &store,
        "--model",
        "cats",
        "--domain",
        "Image Classification",
    ];
    succeeded(run(&add));
    let [answer] = lines(&succeeded(run(&[
        "route",
        "--device",
        "cpu",
        "--router",
        &store,
        "--json",
        "Is it a cat?",
    ])))
    .try_into()
    .unwrap();
    assert_eq!(answer["ranked"][0]["model"], "cats");
    // One of another hash does not fit, whatever its place.
    let (_other, toy, _) = toy("terminal-other-encoder");
    fs::rename(
        Path::new(&toy).with_file_name("toy-bert"),
        folder.join("away"),
    )
    .unwrap();
    failed(
        run(&["route", "--router", &toy, "x"]),
        1,
        &["expected encoder toy-bert", "--encoder"],
    );
}

#[test]
fn a_router_is_measured_on_ones_own_rows() {
    let folder = Folder::new("terminal-eval");
    let best = |prompt: &str| {
        let [answer] = lines(&succeeded(run(&[
            "route", "--device", "cpu", "--json", "--top", "1", prompt,
        ])))
        .try_into()
        .unwrap();
        answer["ranked"][0].clone()
    };
    let (bird, translate) = (best(BIRD), best("Translate this letter into Spanish."));
    let row = |prompt: &str, model: &Value, domain: Option<&Value>| {
        let mut row = serde_json::json!({"instruction": prompt, "model_name": model});
        if let Some(domain) = domain {
            row["domain"] = domain.clone();
        }
        format!("{row}\n")
    };
    let upper = Value::from(bird["domain"].as_str().unwrap().to_uppercase());
    let rows = [
        // Right, its domain looked up, and with the prefix that CMRBench's rows have.
        row(&format!("###Instruction: {BIRD}"), &bird["model"], None),
        // Right, its domain in other letters.
        row(BIRD, &bird["model"], Some(&upper)),
        // Another model.
        row("Translate this letter into Spanish.", &bird["model"], None),
        // A model that nobody knows: missed, but its domain is right.
        row(
            "Translate this letter into Spanish.",
            &"nobody/knows".into(),
            Some(&translate["domain"]),
        ),
        // And nothing is known of its domain either.
        row(BIRD, &"nobody/knows".into(), None),
        // A typo.
        row(BIRD, &bird["model"], Some(&"Audoi".into())),
    ];
    let file = write(&folder, "mine.jsonl", rows.concat());
    let eval = ["eval", "--device", "cpu", "--examples", &file];
    let output = succeeded(run(&[&eval[..], &["--json"]].concat()));
    let said = text(&output.stderr);
    assert!(
        said.contains(
            "1 row in domains that no model of the hub has, counted as misses: \"Audoi\""
        ),
        "{said}"
    );
    let [report] = lines(&output).try_into().unwrap();
    assert_eq!(
        (&report["rows"], &report["unknown"]),
        (&6.into(), &2.into())
    );
    for (part, hits, rows) in [("model", 3, 6), ("domain", 3, 5), ("family", 3, 4)] {
        let share = &report[part];
        assert_eq!(
            (&share["hits"], &share["rows"]),
            (&hits.into(), &rows.into()),
            "{part}: {share}"
        );
    }
    let model = &report["model"];
    assert_eq!(model["percent"], 50.0);
    // Wilson's interval of 3 in 6.
    assert!(
        (model["low"].as_f64().unwrap() - 18.76).abs() < 0.01,
        "{model}"
    );
    assert!(
        (model["high"].as_f64().unwrap() - 81.24).abs() < 0.01,
        "{model}"
    );
    let domains = report["domains"].as_array().unwrap();
    let first = domains.iter().find(|of| of["rows"] == 3).unwrap();
    assert_eq!(
        (&first["name"], &first["model"]["hits"]),
        (&bird["domain"], &2.into())
    );
    assert_eq!(domains.len(), 4);
    let shown = text(&succeeded(columns(&eval, "80")).stdout);
    for part in [
        "all",
        "50.0 (19-81)",
        "95 %",
        "2 rows with a model",
        "generation g0002",
    ] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    assert!(
        shown.lines().all(|line| line.chars().count() <= 80),
        "{shown}"
    );
    // On an earlier generation, which answers otherwise.
    let parent = fixture("zero-shot");
    let router = ["--router", parent.to_str().unwrap()];
    let encoder = bundle();
    let encoder = ["--encoder", encoder.to_str().unwrap()];
    let first = [
        &eval[..],
        &router,
        &encoder,
        &["--generation", "g0001", "--json"],
    ]
    .concat();
    let [report] = lines(&succeeded(run(&first))).try_into().unwrap();
    assert!(report["generation"].as_str().unwrap().starts_with("g0001-"));
    failed(run(&[&eval[..], &["--data", "x"]].concat()), 2, &["--data"]);
}

#[test]
fn generations_are_named_by_their_beginning() {
    let (_folder, store, encoder) = toy("terminal-ids");
    let first = current(&store);
    succeeded(run(&["hub", "alias", "--router", &store, "birds", "b"]));
    let second = current(&store);
    let shown = |arguments: &[&str]| {
        let arguments = [arguments, &["--router", &store, "--json"]].concat();
        lines(&succeeded(run(&arguments))).remove(0)
    };
    assert_eq!(
        shown(&["generation", "show", "g0001"])["id"],
        first.as_str()
    );
    assert_eq!(
        shown(&["generation", "check", &second[..8]])["id"],
        second.as_str()
    );
    let diff = shown(&["generation", "diff", "g0001", "g0002"]);
    assert_eq!(
        (&diff["old"], &diff["new"]),
        (&first.as_str().into(), &second.as_str().into())
    );
    let route = [
        "route",
        "--encoder",
        &encoder,
        "--device",
        "cpu",
        "x",
        "--generation",
    ];
    for id in [&first, &second] {
        let answer = shown(&[&route[..], &[&id[..5]]].concat());
        assert_eq!(answer["generation"], id.as_str());
    }
    assert_eq!(current(&store), second, "the store is as it was");
    let back = [
        "generation",
        "rollback",
        "--router",
        &store,
        "--to",
        "g0001",
    ];
    succeeded(run(&back));
    assert_eq!(current(&store), first);
    // What is removed that came later is said.
    let prune = ["generation", "prune", "--router", &store, "--dry-run"];
    let said = text(&succeeded(run(&prune)).stdout);
    assert!(
        said.contains(&format!(
            "would remove {second}: made from the current generation"
        )),
        "{said}"
    );
    assert!(
        said.contains("would remove 1 generation, 0 left-overs"),
        "{said}"
    );
    let dry = shown(&["generation", "prune", "--dry-run"]);
    assert_eq!(dry["descendants_of_current"], serde_json::json!([second]));
    // And a `current` that is gone is no reason not to name one.
    fs::write(Path::new(&store).join("current"), "garbage\n").unwrap();
    succeeded(run(&[
        "generation",
        "rollback",
        "--router",
        &store,
        "--to",
        "g0002",
    ]));
    assert_eq!(current(&store), second);
    let listed = text(&succeeded(run(&["generation", "list", "--router", &store])).stdout);
    assert!(
        !listed.contains("published"),
        "the file system's time is none: {listed}"
    );
}

#[test]
fn doctor_begins_with_what_is_installed() {
    let (folder, store, encoder) = toy("terminal-doctor");
    let doctor = |more: &[&str]| run(&[&["doctor", "--router", &store][..], more].concat());
    let shown = text(&succeeded(doctor(&[])).stdout);
    let first: Vec<&str> = shown.lines().take(3).collect();
    let id = current(&store);
    for (line, parts) in first.iter().zip([
        ["store ", "/store"],
        ["generation ", &format!("{id}: 2 models, whole")],
        ["encoder ", "/toy-bert, whole"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{shown}");
    }
    let hub = folder.join("store").join(&id).join("hub.json");
    fs::write(&hub, "{}").unwrap();
    let damaged = doctor(&["--json"]);
    assert_eq!(damaged.status.code(), Some(1));
    let [report] = lines(&damaged).try_into().unwrap();
    let problem = report["installed"]["problem"].as_str().unwrap();
    assert!(problem.contains("hub.json"), "{problem}");
    assert!(report["self_test"].is_array() && !encoder.is_empty());
}

/// The program in a folder of its own, with the working folder `at` and this environment.
fn elsewhere(program: &Path, at: &Path, variables: &[(&str, &Path)]) -> usize {
    let mut command = Command::new(program);
    command.args(["hub", "list", "--json"]).current_dir(at);
    for name in ["HUBROUTER_HOME", "XDG_DATA_HOME", "HOME"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    lines(&succeeded(command.output().unwrap())).len()
}

/// Of the bundled store, so that the planted ones can be told from it.
const BUNDLED: usize = 2127;

#[test]
fn no_store_is_taken_from_a_folder_above_the_working_one() {
    let (folder, store, _) = toy("terminal-planted");
    let plant = |place: &str| {
        let weights = folder.join(place).join("weights");
        copy(Path::new(&store), &weights.join("cmrbench"));
        folder.join(place)
    };
    let planted = plant("planted");
    let below = planted.join("a/b");
    fs::create_dir_all(&below).unwrap();
    let bin = folder.join("prefix/bin");
    fs::create_dir_all(&bin).unwrap();
    let program: PathBuf = bin.join("hubrouter");
    let built = env!("CARGO_BIN_EXE_hubrouter");
    if fs::hard_link(built, &program).is_err() {
        fs::copy(built, &program).unwrap();
    }
    for at in [&planted, &below] {
        assert_eq!(elsewhere(&program, at, &[]), BUNDLED, "{}", at.display());
    }
    // A source tree that one works in is one's own.
    fs::write(
        planted.join("Cargo.toml"),
        "[package]\nname = \"hubrouter\"\n",
    )
    .unwrap();
    assert_eq!(elsewhere(&program, &below, &[]), BUNDLED);
    // The user's data folder, and what is named, come before the tree that this was built from.
    let data = plant("data/hubrouter").with_file_name("");
    assert_eq!(elsewhere(&program, &below, &[("XDG_DATA_HOME", &data)]), 2);
    let home = plant("home/.local/share/hubrouter");
    let home = home.ancestors().nth(3).unwrap();
    assert_eq!(elsewhere(&program, &below, &[("HOME", home)]), 2);
    assert_eq!(
        elsewhere(&program, &below, &[("HUBROUTER_HOME", &planted)]),
        2
    );
    assert_eq!(
        elsewhere(&program, &below, &[("HUBROUTER_HOME", Path::new(""))]),
        BUNDLED,
        "empty is unset"
    );
    // And beside the program.
    plant("prefix");
    assert_eq!(elsewhere(&program, &below, &[]), 2);
}

#[test]
fn a_store_that_is_one_level_away_is_named() {
    let (folder, store, encoder) = toy("terminal-levels");
    let generation = format!("{store}/{}", current(&store));
    let route = |router: &str| run(&["route", "--router", router, "--encoder", &encoder, "x"]);
    failed(
        route(&generation),
        2,
        &[
            "a generation of one",
            &format!("--router {store} --generation g0001-"),
        ],
    );
    let above = folder.0.to_str().unwrap();
    failed(
        route(above),
        2,
        &[
            "a folder that contains one",
            &format!("use --router {store}"),
        ],
    );
    let examples = store.replace("/store", "/new.jsonl");
    let learn = ["learn", "--router", &generation, "--examples", &examples];
    failed(run(&learn), 2, &[&format!("--router {store}")]);
    let retire = run(&["hub", "retire", "--router", &generation, "birds"]);
    failed(retire, 2, &[&format!("--router {store}")]);
    // A store that lost its `current` is still one.
    fs::remove_file(format!("{store}/current")).unwrap();
    let [answer] = lines(&succeeded(run(&[
        "route",
        "--router",
        &store,
        "--encoder",
        &encoder,
        "--device",
        "cpu",
        "--json",
        "x",
    ])))
    .try_into()
    .unwrap();
    assert!(answer["degraded"].is_string());
}

#[test]
fn a_warning_is_said_once() {
    let folder = Folder::new("terminal-once");
    let store = copied_store(&folder);
    let path = store.to_str().unwrap();
    succeeded(run(&["hub", "retire", "--router", path, "gpt2"]));
    fs::write(store.join(current(path)).join("hub.json"), "{}").unwrap();
    let output = succeeded(run(&[
        "route", "--router", path, "--device", "cpu", "a", "b",
    ]));
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.starts_with("hubrouter: ") && said.contains("hub.json"),
        "{said}"
    );
    let shown = text(&output.stdout);
    assert!(
        !shown.contains("hub.json") && shown.matches("(degraded)").count() == 2,
        "{shown}"
    );
}

#[test]
fn errors_name_a_place_once() {
    let (folder, store, encoder) = toy("terminal-places");
    let input = write(
        &folder,
        "p.jsonl",
        "{\"prompt\":\"a\"}\n{\"prompt\": nope}\n",
    );
    let output = run(&[
        "route",
        "--router",
        &store,
        "--encoder",
        &encoder,
        "--json",
        "--input",
        &input,
    ]);
    let message = lines(&output)[1]["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains("p.jsonl:2: ") && message.contains("at column "),
        "{message}"
    );
    assert!(!message.contains("line 1"), "{message}");
}

#[test]
fn a_mistyped_option_is_told_from_its_letters() {
    let mistyped = run(&["route", "--tpo", "3", "x"]);
    let said = text(&mistyped.stderr);
    assert!(!said.contains("--output"), "another is not meant: {said}");
    failed(
        mistyped,
        2,
        &["'--top'", "Usage: hubrouter route [OPTIONS]"],
    );
    failed(
        run(&["generation", "prune", "--keap", "3"]),
        2,
        &["'--keep'"],
    );
    let none = run(&["route", "--voodoo", "x"]);
    assert!(
        !text(&none.stderr).contains("similar"),
        "{}",
        text(&none.stderr)
    );
}

#[test]
fn completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = text(&succeeded(run(&["completions", shell])).stdout);
        assert!(
            script.contains("hubrouter") && script.contains("generation"),
            "{shell}"
        );
    }
    let page = text(&succeeded(run(&["man"])).stdout);
    assert!(page.contains(".TH") && page.contains("hubrouter"), "{page}");
    let page = text(&succeeded(run(&["man", "hub", "build"])).stdout);
    assert!(page.contains("models") && page.contains("hub"), "{page}");
    failed(
        run(&["man", "hub", "burn"]),
        2,
        &["\"burn\": expected a command of"],
    );
}

/// The shell blocks of the README that need nothing but this program, as they are written, one after
/// the other in one folder.
#[cfg(unix)]
#[test]
fn the_readme_runs_as_it_is_written() {
    let readme = fs::read_to_string(Path::new(common::ROOT).join("README.md")).unwrap();
    let folder = Folder::new("terminal-readme");
    let bin = Path::new(env!("CARGO_BIN_EXE_hubrouter")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let blocks = readme
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap());
    // Others build the program, or want data of their own.
    let own = |block: &&str| {
        !["cargo ", "--data CMR", "tests/"]
            .iter()
            .any(|part| block.contains(part))
    };
    let mut count = 0;
    for block in blocks.filter(own) {
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", block])
            .env("PATH", &path)
            .current_dir(&folder.0);
        let output = shell.env_remove("HUBROUTER_HOME").output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{block}\n{said}");
        count += 1;
    }
    assert!(count >= 2, "{count} blocks");
    assert!(bundle().is_dir());
}
