//! Calling the command and reading what it says.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::{Folder, fixture};

pub fn hubrouter(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hubrouter"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("HUBROUTER_HOME")
        .env_remove("HUBROUTER_CMRBENCH");
    command
}

/// The arguments of an update that trains, on one thread of the CPU; a `--recipe` in `more` counts.
pub fn learning<'a>(
    store: &'a str,
    encoder: &'a str,
    examples: &'a str,
    more: &[&'a str],
) -> Vec<&'a str> {
    let mut arguments = vec!["learn", "--router", store, "--encoder", encoder];
    arguments.extend(["--device", "cpu", "--threads", "1", "--examples", examples]);
    if !more.contains(&"--recipe") {
        arguments.extend(["--recipe", "carve"]);
    }
    arguments.extend(more);
    arguments
}

pub fn run(arguments: &[&str]) -> Output {
    hubrouter(arguments).output().unwrap()
}

/// One command line, with the folder as its working folder: `route --router store 'a prompt'`.
pub fn command_in(folder: &Folder, line: &str) -> Command {
    let words = words(line);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = hubrouter(&words);
    command.current_dir(&folder.0);
    command
}

pub fn run_in(folder: &Folder, line: &str) -> Output {
    command_in(folder, line).output().unwrap()
}

/// The JSON of a command line that succeeds with one line of it.
#[track_caller]
pub fn json_in(folder: &Folder, line: &str) -> Value {
    let [value] = lines(&succeeded(run_in(folder, line))).try_into().unwrap();
    value
}

/// The words of a command line; `'a b'` and `"a b"` are one.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "a quote is open in {line:?}");
    words.extend(word);
    words
}

pub fn with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = hubrouter(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn lines(output: &Output) -> Vec<Value> {
    text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[track_caller]
pub fn succeeded(output: Output) -> Output {
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

#[track_caller]
pub fn failed(output: Output, code: i32, says: &[&str]) {
    let errors = text(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}{errors}",
        text(&output.stdout)
    );
    for part in says {
        assert!(errors.contains(part), "{part:?} is not in {errors:?}");
    }
    assert!(!errors.contains("panicked"), "{errors}");
}

pub fn current(store: &str) -> String {
    fs::read_to_string(Path::new(store).join("current"))
        .unwrap()
        .trim()
        .to_owned()
}

/// A toy encoder, a store with two models and 24 examples of three: store, encoder, examples.
pub fn learnable(folder: &Folder) -> (String, String, String) {
    let encoder = folder.join("toy-bert");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (toy, bundle) = (fixture("toy-bert"), encoder.to_str().unwrap().to_owned());
    let import = [
        "encoder",
        "import",
        "--from",
        toy.to_str().unwrap(),
        "--to",
        &bundle,
    ];
    succeeded(run(&import));
    let models = "{\"model_name\":\"birds\",\"domain\":\"Audio\"}\n{\"model_name\":\"cats\",\"domain\":\"Images\"}\n";
    fs::write(path("models.jsonl"), models).unwrap();
    let (models, store) = (path("models.jsonl"), path("store"));
    let build = [
        "hub",
        "build",
        "--models",
        &models,
        "--encoder",
        &bundle,
        "--out",
        &store,
    ];
    succeeded(run(&build));
    let mut examples = String::new();
    for i in 0..24 {
        let (model, domain) = [("birds", "Audio"), ("cats", "Images"), ("dogs", "Images")][i % 3];
        let line = serde_json::json!({
            "instruction": format!("prompt {i} about {model}"), "model_name": model, "domain": domain,
        });
        examples.push_str(&format!("{line}\n"));
    }
    fs::write(path("new.jsonl"), &examples).unwrap();
    let new = path("new.jsonl");
    (store, bundle, new)
}
