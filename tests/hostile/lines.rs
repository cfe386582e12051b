//! JSON Lines: models, examples, prompts. (Those that a store keeps are in `stores.rs`.)
//!
//! An error names the file and a line of it; what is read can be built, and what is built opens; the
//! command answers every line of prompts with one line, whatever it says.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use hubrouter::learn::{Experience, group_experiences, read_examples};
use hubrouter::{Encoder, NewModel, Store, read_models};
use serde_json::Value;

use crate::case::Case;
use crate::common::{copy, toy::settings};
use crate::draws::Draws;
use crate::harness::{Boundary, corpus_folder};
use crate::mutate;
use crate::toy::{self, Answer, Refusal, judge_refused, served};

const MODELS: &str = "models.jsonl";
const EXAMPLES: &str = "examples.jsonl";
const PROMPTS: &str = "prompts.jsonl";
/// Its presence in a case: the examples are learned.
const LEARN: &str = "learn";

pub struct Lines {
    base: Case,
}

#[derive(Clone)]
pub struct Seen {
    models: Result<Vec<String>, Refusal>,
    /// What came of building a hub of them.
    built: Option<Result<Built, Refusal>>,
    examples: Result<usize, Refusal>,
    learned: Option<Result<Answer, Refusal>>,
    /// Lines of each file.
    lines: [usize; 2],
    routed: Option<Routed>,
}

/// A generation and how it serves.
type Built = (String, Result<Answer, Refusal>);

/// What the command said.
#[derive(Clone)]
struct Routed {
    code: Option<i32>,
    /// Lines of the input that are not blank.
    wanted: usize,
    stdout: String,
    stderr: String,
}

impl Lines {
    pub fn new() -> Self {
        let mut base = Case::read(&corpus_folder("lines"));
        base.files
            .retain(|path, _| !path.contains('/') && path.ends_with(".jsonl"));
        Self { base }
    }
}

impl Boundary for Lines {
    type Seen = Seen;
    const NAME: &'static str = "lines";

    fn case(&self, draws: &mut Draws) -> Case {
        let mut case = self.base.clone();
        let path = *draws.pick(&[MODELS, EXAMPLES, PROMPTS]);
        // The others are as they are, and are not read again.
        case.files.retain(|name, _| name == path);
        let others: Vec<&[u8]> = self.base.files.values().map(|bytes| &bytes[..]).collect();
        for _ in 0..1 + draws.below(3) {
            let bytes = case.files.get_mut(path).unwrap();
            let said = mutate::json_lines(bytes, &others, draws);
            case.story.push(format!("{path}: {said}"));
        }
        if path == EXAMPLES && draws.one_in(8) {
            case.files.insert(LEARN.into(), Vec::new());
        }
        case
    }

    fn observe(&self, folder: &Path) -> Seen {
        let lines = |name: &str| {
            fs::read(folder.join(name)).map_or(0, |bytes| bytes.split(|b| *b == b'\n').count())
        };
        let none = || Refusal {
            kind: hubrouter::ErrorKind::Io,
            text: "not asked".into(),
        };
        let mut seen = Seen {
            models: Err(none()),
            built: None,
            examples: Err(none()),
            learned: None,
            lines: [lines(MODELS), lines(EXAMPLES)],
            routed: None,
        };
        if folder.join(MODELS).exists() {
            let cards = read_models(folder.join(MODELS)).map_err(Refusal::from);
            if let Ok((cards, _)) = &cards
                && cards.len() <= 400
            {
                let models: Vec<NewModel> = cards.iter().map(NewModel::from).collect();
                seen.built = Some(build(&folder.join("store"), &models));
            }
            seen.models =
                cards.map(|(cards, _)| cards.into_iter().map(|card| card.model_name).collect());
        }
        if folder.join(EXAMPLES).exists() {
            let examples = read_examples(folder.join(EXAMPLES)).map_err(Refusal::from);
            seen.examples = examples.as_ref().map(Vec::len).map_err(Clone::clone);
            if let Ok(examples) = examples {
                let groups = group_experiences(examples).map_err(Refusal::from);
                if let Ok(groups) = groups
                    && folder.join(LEARN).exists()
                    && groups[0].len() < 400
                {
                    let experience = Experience {
                        models: Vec::new(),
                        examples: groups[0].clone(),
                    };
                    seen.learned = learn(&folder.join("store"), &experience);
                }
            }
        }
        if folder.join(PROMPTS).exists() {
            seen.routed = Some(route(&folder.join(PROMPTS)));
        }
        seen
    }

    fn judge(&self, seen: &Seen) -> Result<(), String> {
        if let Ok(names) = &seen.models {
            let mut unique = names.clone();
            unique.sort();
            unique.dedup();
            if unique.len() != names.len() || names.is_empty() {
                return Err(format!(
                    "read {} models, {} names",
                    names.len(),
                    unique.len()
                ));
            }
        }
        match &seen.built {
            Some(Ok((id, opened))) => judge_published(id, opened)?,
            Some(Err(error)) => error.judge()?,
            None => (),
        }
        if let Some(opened) = &seen.learned {
            judge_published("what was learned", opened)?;
        }
        seen.routed.as_ref().map_or(Ok(()), judge_routed)?;
        judge_lines(&seen.models, MODELS, seen.lines[0])?;
        judge_lines(&seen.examples, EXAMPLES, seen.lines[1])
    }
}

fn build(folder: &Path, models: &[NewModel]) -> Result<Built, Refusal> {
    let store = Store::create(folder)?;
    let encoder = Arc::new(Encoder::open(toy::bundle(), &toy::options())?);
    let id = store.build(&encoder, models, "hub build", &mut |_, _| {})?;
    store.check(&id)?;
    Ok((id.to_string(), served(folder)))
}

/// Learns a step or two into the built store; if it was published, how it serves.
fn learn(folder: &Path, experience: &Experience) -> Option<Result<Answer, Refusal>> {
    copy(&corpus_folder("stores").join("built"), folder);
    let settings = settings(&[("epochs", "1")]);
    let learned = toy::learn(folder, experience, settings, 400).ok()??;
    let answer = served(folder);
    if let Ok(answer) = &answer
        && answer.generation != learned
    {
        let text = format!(
            "{learned} was acknowledged, {} is served",
            answer.generation
        );
        return Some(Err(Refusal {
            kind: hubrouter::ErrorKind::Mismatch,
            text,
        }));
    }
    Some(answer)
}

fn route(prompts: &Path) -> Routed {
    let store = corpus_folder("stores").join("built");
    let output = Command::new(env!("CARGO_BIN_EXE_hubrouter"))
        .args([
            "route",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--json",
            "--top",
            "2",
            "--router",
        ])
        .arg(store)
        .arg("--encoder")
        .arg(toy::bundle())
        .arg("--input")
        .arg(prompts)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = fs::read(prompts).unwrap();
    // A byte-order mark is no part of the first line.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let lines = text.split(|byte| *byte == b'\n');
    Routed {
        code: output.status.code(),
        wanted: lines.filter(|line| !line.trim_ascii().is_empty()).count(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// An error of a file names it and, if it is about a line, one that is there.
fn judge_lines<T>(read: &Result<T, Refusal>, name: &str, lines: usize) -> Result<(), String> {
    judge_refused(read)?;
    let Err(error) = read else { return Ok(()) };
    if error.text == "not asked" {
        return Ok(());
    }
    let Some((_, rest)) = error.text.split_once(name) else {
        return Err(format!("an error that does not name {name}: {error:?}"));
    };
    let number: String = rest
        .strip_prefix(':')
        .unwrap_or("")
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    match number.parse::<usize>() {
        Ok(line) if line == 0 || line > lines => Err(format!("line {line} of {lines}: {error:?}")),
        _ => Ok(()),
    }
}

fn judge_published(id: &str, opened: &Result<Answer, Refusal>) -> Result<(), String> {
    match opened {
        Ok(Answer {
            degraded: Some(why),
            ..
        }) => Err(format!("{id} was published, served is another: {why}")),
        Ok(answer) => answer
            .odd
            .as_ref()
            .map_or(Ok(()), |odd| Err(format!("{id}: {odd}"))),
        Err(error) => Err(format!("{id} was published, and does not serve: {error:?}")),
    }
}

fn judge_routed(routed: &Routed) -> Result<(), String> {
    let Routed {
        code,
        wanted,
        stdout,
        stderr,
    } = routed;
    if !matches!(code, Some(0..=2)) || stderr.contains("panicked") {
        return Err(format!("route ended with {code:?}: {stderr}"));
    }
    let answers: Vec<Value> = stdout
        .lines()
        .map(|line| {
            serde_json::from_str(line).map_err(|e| format!("an answer is no JSON: {e}: {line}"))
        })
        .collect::<Result<_, _>>()?;
    if answers.len() != *wanted {
        return Err(format!(
            "{wanted} lines, {} answers, code {code:?}: {stderr}",
            answers.len()
        ));
    }
    let failed = answers
        .iter()
        .filter(|answer| answer.get("error").is_some())
        .count();
    if (failed == 0) != (*code == Some(0)) {
        return Err(format!(
            "{failed} of {wanted} without an answer, code {code:?}"
        ));
    }
    Ok(())
}

#[test]
fn false_sights_are_found() {
    let boundary = Lines::new();
    let folder = crate::common::Folder::new("sights");
    let mut whole = boundary.base.clone();
    whole.files.insert(LEARN.into(), Vec::new());
    whole.lay_out(&folder.join("whole"));
    let mut seen = boundary.observe(&folder.join("whole"));
    boundary.judge(&seen).unwrap();
    assert!(matches!(seen.built, Some(Ok(_))) && seen.routed.is_some());
    seen.learned.clone().unwrap().unwrap();
    let refusal = |text: &str| Refusal {
        kind: hubrouter::ErrorKind::Format,
        text: text.into(),
    };
    let mut found = |what: &str, lie: &dyn Fn(&mut Seen)| {
        let kept = seen.clone();
        lie(&mut seen);
        assert!(boundary.judge(&seen).is_err(), "{what} is not noticed");
        seen = kept;
    };
    found("a repeated name", &|seen| {
        let names = seen.models.as_mut().unwrap();
        names[1] = names[0].clone();
    });
    found("an error of no file", &|seen| {
        seen.models = Err(refusal("torn"))
    });
    found("a line that is not there", &|seen| {
        seen.examples = Err(refusal("examples.jsonl:99: torn"))
    });
    found("built, and does not open", &|seen| {
        seen.built.as_mut().unwrap().as_mut().unwrap().1 = Err(refusal("torn"));
    });
    found("learned, and does not open", &|seen| {
        seen.learned = Some(Err(refusal("torn")))
    });
    found("a panic", &|seen| {
        seen.routed.as_mut().unwrap().stderr = "thread main panicked at".into()
    });
    found("a signal", &|seen| {
        seen.routed.as_mut().unwrap().code = None
    });
    found("an answer too many", &|seen| {
        seen.routed.as_mut().unwrap().stdout.push_str("{}\n")
    });
    found("no JSON", &|seen| {
        seen.routed.as_mut().unwrap().stdout.push_str("{\n")
    });
}
