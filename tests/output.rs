//! Where the command writes, and what becomes of its work when that cannot be written: files, links,
//! FIFOs, signals, a full disk, a reader that went away.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![cfg(all(feature = "cli", unix))]

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::Folder;
use common::command::{
    current, failed, hubrouter, learnable, learning, lines, run, succeeded, text, with_input,
};
use serde_json::Value;

/// A folder with a toy store, and the arguments of a route on it.
struct Toy {
    folder: Folder,
    store: String,
    encoder: String,
    examples: String,
}

impl Toy {
    fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        let (store, encoder, examples) = learnable(&folder);
        Self {
            folder,
            store,
            encoder,
            examples,
        }
    }

    fn route<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec!["route", "--router", &self.store, "--encoder", &self.encoder];
        arguments.extend(["--device", "cpu", "--threads", "1", "--top", "1"]);
        arguments.extend(more);
        arguments
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.folder.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn left_overs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder.0).unwrap();
        let hidden = entries.map(|entry| entry.unwrap().path());
        let hidden = hidden.filter(|path| path.to_str().unwrap().contains(".tmp-"));
        hidden.collect()
    }
}

/// The arguments, to be put into a shell's line.
fn quoted(arguments: &[&str]) -> String {
    let words = arguments.iter().map(|word| format!("'{word}'"));
    words.collect::<Vec<_>>().join(" ")
}

/// A line of a POSIX shell in which `hubrouter` is the command.
fn shell(line: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_hubrouter");
    let line = format!("hubrouter() {{ '{program}' \"$@\"; }}; {line}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).stdin(Stdio::null());
    shell.env_remove("HUBROUTER_HOME").output().unwrap()
}

fn answers(path: impl AsRef<Path>) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

#[test]
fn links_are_written_through_and_modes_kept() {
    let toy = Toy::new("output-links");
    let target = toy.file("target.jsonl", b"old\n");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    let (link, second) = (toy.path("link"), toy.path("second"));
    symlink("target.jsonl", &link).unwrap();
    symlink(&link, &second).unwrap();
    succeeded(run(&toy.route(&["--output", &second, "hello"])));
    for link in [&link, &second] {
        assert!(Path::new(link).is_symlink(), "the link stays");
    }
    assert_eq!(answers(&target).len(), 1);
    let mode = fs::metadata(&target).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "of the file that was there");

    let dangling = toy.path("dangling");
    symlink("not-yet.jsonl", &dangling).unwrap();
    succeeded(run(&toy.route(&["--output", &dangling, "hello"])));
    assert!(Path::new(&dangling).is_symlink());
    assert_eq!(answers(toy.path("not-yet.jsonl")).len(), 1);

    let (a, b) = (toy.path("a"), toy.path("b"));
    symlink(&a, &b).unwrap();
    symlink(&b, &a).unwrap();
    let round = run(&toy.route(&["--output", &a, "hello"]));
    failed(round, 1, &["links that form a loop"]);
    let folder = run(&toy.route(&["--output", &toy.store, "hello"]));
    failed(folder, 2, &["expected the name of a file, found a folder"]);
    assert!(toy.left_overs().is_empty());
}

#[test]
fn what_is_no_regular_file_is_written_and_not_replaced() {
    let toy = Toy::new("output-fifo");
    let fifo = toy.path("pipe");
    let route = quoted(&toy.route(&["--output", &fifo, "hello", "world"]));
    let read = shell(&format!(
        "mkfifo '{fifo}' && hubrouter {route} & sleep 0.2; cat '{fifo}'"
    ));
    assert_eq!(lines(&read).len(), 2, "{}", text(&read.stderr));
    let kind = fs::symlink_metadata(&fifo).unwrap().file_type();
    assert!(!kind.is_file(), "the FIFO stays");

    // A descriptor that the shell opened, as in >(gzip).
    let (out, route) = (
        toy.path("out"),
        quoted(&toy.route(&["--output", "/dev/fd/3", "hello"])),
    );
    succeeded(shell(&format!("hubrouter {route} 3>'{out}'")));
    assert_eq!(answers(&out).len(), 1);

    // A file that is open, and is written at its end.
    let log = toy.file("log", b"{}\n");
    let route = quoted(&toy.route(&["--output", "/dev/stderr", "hello"]));
    succeeded(shell(&format!("hubrouter {route} 2>>'{log}'")));
    assert_eq!(answers(&log).len(), 2);

    // A null device of its own: to get that wrong must not break the machine.
    let null = toy.path("null");
    if shell(&format!("mknod '{null}' c 1 3")).status.success() {
        succeeded(run(&toy.route(&["--output", &null, "hello"])));
        assert_eq!(
            fs::metadata(&null).unwrap().rdev(),
            0x103,
            "still that device"
        );
    }
    assert!(toy.left_overs().is_empty());
}

#[test]
fn a_dash_is_stdout() {
    let toy = Toy::new("output-dash");
    let log = toy.file("log", b"{}\n");
    let link = toy.path("link-to-stdout");
    symlink("/dev/stdout", &link).unwrap();
    for name in ["-", "/dev/stdout", &link] {
        let answered = succeeded(run(&toy.route(&["--output", name, "hello"])));
        assert_eq!(lines(&answered).len(), 1);
        let route = quoted(&toy.route(&["--output", name, "hello"]));
        succeeded(shell(&format!("hubrouter {route} >> '{log}'")));
    }
    assert_eq!(answers(&log).len(), 4, "what was in the file stays");
    assert!(!Path::new("-").exists());
}

#[test]
fn the_input_is_not_overwritten() {
    let toy = Toy::new("output-input");
    let prompts = "{\"prompt\":\"a\"}\n";
    let input = toy.file("p.jsonl", prompts.as_bytes());
    let (link, hard) = (toy.path("link.jsonl"), toy.path("hard.jsonl"));
    symlink(&input, &link).unwrap();
    fs::hard_link(&input, &hard).unwrap();
    for output in [&input, &link, &hard] {
        let refused = run(&toy.route(&["--input", &input, "--output", output]));
        failed(refused, 2, &["expected another file than the input"]);
    }
    let route = quoted(&toy.route(&["--format", "jsonl", "--output", &input]));
    let refused = shell(&format!("hubrouter {route} < '{input}'"));
    failed(refused, 2, &["expected another file than the input"]);
    assert_eq!(fs::read_to_string(&input).unwrap(), prompts);
    // Beside other prompts stdin does not count.
    let route = quoted(&toy.route(&["--output", &hard, "hello"]));
    succeeded(shell(&format!("hubrouter {route} < '{input}'")));
    assert_eq!(fs::read_to_string(&input).unwrap(), prompts);
}

/// A route that waits for its next prompt, with its temporary file made.
fn waiting(toy: &Toy, command: &mut Command) -> Child {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    for _ in 0..2_000 {
        if !toy.left_overs().is_empty() {
            return child;
        }
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("no temporary file");
}

fn signal(child: &Child, name: &str) {
    let kill = format!("kill -{name} {}", child.id());
    succeeded(Command::new("sh").args(["-c", &kill]).output().unwrap());
}

#[test]
fn a_signal_leaves_the_old_file_and_nothing_else() {
    let toy = Toy::new("output-signals");
    let output = toy.file("out.jsonl", b"old\n");
    let route = toy.route(&["--output", &output]);
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let mut child = waiting(&toy, &mut hubrouter(&route));
        // Held until the command has ended: at the end of its input it would be done.
        let input = child.stdin.take();
        signal(&child, name);
        let ended = child.wait_with_output().unwrap();
        drop(input);
        assert_eq!(ended.status.code(), Some(code), "{}", text(&ended.stderr));
        assert!(toy.left_overs().is_empty(), "{name}");
        assert_eq!(fs::read(&output).unwrap(), b"old\n");
    }
    // nohup keeps its meaning.
    let program = env!("CARGO_BIN_EXE_hubrouter");
    let line = format!("trap '' HUP; exec '{program}' {}", quoted(&route));
    let mut nohup = Command::new("sh");
    let mut child = waiting(&toy, nohup.args(["-c", &line]));
    signal(&child, "HUP");
    std::thread::sleep(Duration::from_millis(100));
    drop(child.stdin.take());
    succeeded(child.wait_with_output().unwrap());
    assert_eq!(answers(&output).len(), 1);
}

#[test]
fn prune_leaves_alone_what_is_being_written() {
    let toy = Toy::new("output-prune");
    let output = format!("{}/routes.jsonl", toy.store);
    let route = toy.route(&["--output", &output]);
    let mut command = hubrouter(&route);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let being_written = || {
        let mut entries = fs::read_dir(&toy.store).unwrap();
        entries.any(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .starts_with(".tmp-")
        })
    };
    while !being_written() {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    let prune = succeeded(run(&["generation", "prune", "--router", &toy.store]));
    assert!(
        text(&prune.stdout).contains("0 left-overs"),
        "{}",
        text(&prune.stdout)
    );
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    succeeded(child.wait_with_output().unwrap());
    assert_eq!(answers(&output).len(), 1);
}

#[test]
fn a_stderr_that_cannot_be_written_ends_nothing() {
    let toy = Toy::new("output-stderr");
    let input = toy.file(
        "p.jsonl",
        b"{\"prompt\":\"a\"}\nnonsense\n{\"prompt\":\"b\"}\n",
    );
    let route = quoted(&toy.route(&["--input", &input]));
    for broken in ["2>/dev/full", "2>&-", "-vv 2>/dev/full"] {
        let said = shell(&format!("hubrouter {route} {broken}"));
        assert_eq!(said.status.code(), Some(1), "{broken}");
        let shown = text(&said.stdout);
        assert_eq!(
            shown.matches(" ms on cpu; g0001-").count(),
            2,
            "{broken}: {shown}"
        );
    }
    let before = current(&toy.store);
    let more = ["--set", "epochs=1", "-v"];
    let learn = quoted(&learning(&toy.store, &toy.encoder, &toy.examples, &more));
    succeeded(shell(&format!("hubrouter {learn} 2>/dev/full")));
    assert_ne!(current(&toy.store), before, "the update is published");
    // What goes wrong on the way to the command.
    assert_eq!(shell("hubrouter rout 2>/dev/full").status.code(), Some(2));
    failed(
        shell("hubrouter --help >/dev/full"),
        1,
        &["stdout: cannot write"],
    );
    succeeded(shell("hubrouter --help | head -1"));
}

#[test]
fn a_change_is_made_though_its_answer_is_lost() {
    let toy = Toy::new("output-full");
    let store = toy.store.as_str();
    let mut before = current(store);
    let add = [
        "hub",
        "add",
        "--router",
        store,
        "--encoder",
        &toy.encoder,
        "--device",
        "cpu",
    ];
    let add = [&add[..], &["--model", "new", "--domain", "Audio"]].concat();
    for change in [
        add,
        vec!["hub", "alias", "--router", store, "new", "newest"],
        vec!["generation", "rollback", "--router", store, "--json"],
    ] {
        let made = shell(&format!("hubrouter {} >/dev/full", quoted(&change)));
        let after = current(store);
        assert_ne!(after, before, "{change:?}");
        let said = text(&succeeded(made).stderr);
        for part in [after.as_str(), "current", "stdout: cannot write"] {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
        before = after;
    }
    let more = ["--set", "epochs=1"];
    let learn = quoted(&learning(store, &toy.encoder, &toy.examples, &more));
    let learned = shell(&format!("hubrouter {learn} >/dev/full"));
    let said = text(&succeeded(learned).stderr);
    assert!(
        said.contains(&format!(
            "published {}; stdout: cannot write",
            current(store)
        )),
        "{said}"
    );
    // Where nothing is changed, the answer is all there is.
    let list = shell(&format!("hubrouter hub list --router '{store}' >/dev/full"));
    failed(list, 1, &["stdout: cannot write"]);
}

#[test]
fn a_line_that_is_too_long_spoils_only_itself() {
    let toy = Toy::new("output-long");
    let long = "x ".repeat((4 << 20) / 2 + 1);
    let text_lines = format!("first\n{long}\nthird\n");
    let stdin = toy.route(&["--json", "--batch", "8"]);
    let answered = with_input(&stdin, text_lines.as_bytes());
    assert_eq!(answered.status.code(), Some(1));
    let found = lines(&answered);
    assert_eq!(found.len(), 3);
    assert!(found[0]["ranked"].is_array() && found[2]["ranked"].is_array());
    assert_eq!(found[1]["prompt_id"], "2");
    let why = found[1]["error"]["message"].as_str().unwrap();
    assert!(
        why.contains("stdin:2: expected a line of at most 4194304 bytes"),
        "{why}"
    );

    let objects = format!("{{\"prompt\":\"a\"}}\n{{\"prompt\":\"{long}\"}}\n{{\"prompt\":\"b\"}}");
    let input = toy.file("long.jsonl", objects.as_bytes());
    let out = toy.path("out.jsonl");
    let answered = run(&toy.route(&["--input", &input, "--output", &out]));
    failed(answered, 1, &["1 of 3 prompts have no answer"]);
    assert_eq!(answers(&out).len(), 3);
    // A line of a model or an example cannot be passed over.
    let models = format!("{{\"model_name\":\"m\",\"domain\":\"d\",\"description\":\"{long}\"}}\n");
    let models = toy.file("long-models.jsonl", models.as_bytes());
    let add = ["hub", "add", "--router", &toy.store, "--models", &models];
    failed(
        run(&add),
        1,
        &["long-models.jsonl:1: expected a line of at most"],
    );
}

#[test]
fn answers_can_repeat_the_prompt() {
    let toy = Toy::new("output-echo");
    let input = toy.file(
        "p.jsonl",
        b"{\"prompt\":\"a b\",\"id\":7}\n{\"prompt\":\" \"}\n[]\n",
    );
    let out = toy.path("out.jsonl");
    run(&toy.route(&["--input", &input, "--output", &out, "--echo"]));
    let found = answers(&out);
    assert_eq!(
        (&found[0]["prompt"], &found[0]["prompt_id"]),
        (&"a b".into(), &"7".into())
    );
    assert!(found[0]["ranked"].is_array());
    assert_eq!(
        (&found[1]["prompt"], found[1]["error"].is_object()),
        (&" ".into(), true)
    );
    assert!(found[2].get("prompt").is_none(), "the line holds none");
    let plain = succeeded(run(&toy.route(&["--json", "a b"])));
    let echoed = succeeded(run(&toy.route(&["--json", "--echo", "a b"])));
    let (mut plain, mut echoed) = (lines(&plain).remove(0), lines(&echoed).remove(0));
    echoed.as_object_mut().unwrap().shift_remove("prompt");
    for answer in [&mut plain, &mut echoed] {
        answer["timings_us"] = Value::Null;
    }
    assert_eq!(echoed, plain, "and nothing else changes");
}

#[test]
fn that_there_are_no_prompts_is_said() {
    let toy = Toy::new("output-none");
    let empty = toy.file("empty.txt", b"\n \n");
    let said = succeeded(run(&toy.route(&["--input", &empty])));
    assert!(text(&said.stderr).contains("no prompts in ") && said.stdout.is_empty());
    let said = succeeded(run(&toy.route(&[])));
    assert_eq!(text(&said.stderr), "hubrouter: no prompts in stdin\n");
}
