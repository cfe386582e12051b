//! The prompts of `route`: arguments, files of chat requests, a file of lines or stdin.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Seek};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::Value;

use super::output;
use crate::Request;
use crate::error::{Error, Result, bail, error};
use crate::feedback::Feedback;
use crate::files::read_bytes;
use crate::route::LONGEST_REQUEST;
use crate::text::lines::{LONGEST_LINE, Lines, json_line};

/// Prompts per batch from a file.
const BATCH: usize = 32;

/// The format of an input.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Format {
    /// One prompt per line
    Txt,
    /// One JSON object per line
    Jsonl,
    /// One chat request per line, as --chat reads them
    Chat,
}

/// The arguments that describe the input.
pub(super) struct Wanted<'w> {
    pub(super) prompts: &'w [String],
    pub(super) chats: &'w [PathBuf],
    pub(super) input: Option<&'w Path>,
    pub(super) format: Option<Format>,
    pub(super) top: usize,
    pub(super) batch: Option<usize>,
    /// Lines of JSON may say what was really used.
    pub(super) feedback: bool,
}

/// A request, or the id and error of a line without one.
pub(super) type ParsedRequest = std::result::Result<AskedLine, (String, Error)>;

/// A request, and what its line says of what was really used.
pub(super) struct AskedLine {
    pub(super) request: Request,
    /// Of a line of JSON, if [`Wanted::feedback`] asks for it.
    pub(super) feedback: Feedback,
}

impl std::convert::From<Request> for AskedLine {
    fn from(request: Request) -> Self {
        Self {
            request,
            feedback: Feedback::default(),
        }
    }
}

/// The prompts of a run, in order.
pub(super) struct Source<'s> {
    from: From<'s>,
    top: usize,
    batch: usize,
    taken: u64,
}

enum From<'s> {
    Arguments(std::slice::Iter<'s, String>),
    Chats(std::slice::Iter<'s, PathBuf>),
    Lines(Box<PromptInput>),
}

/// A file or stdin.
struct PromptInput {
    lines: Lines<Box<dyn BufRead>>,
    /// The file's path, or stdin; errors begin with it.
    place: String,
    format: Format,
    /// The command line names the format, so a prompt may look like JSON.
    named: bool,
    /// Lines of the file, if they can be counted.
    total: Option<u64>,
    /// Number of the last line that was read and not blank; 0 at the start.
    done: usize,
    /// A remark about a line that looks like JSON was printed.
    remarked: bool,
    /// An error that ends the run after the prompts before it are answered.
    failed: Option<Error>,
    /// Lines of JSON may say what was really used.
    feedback: bool,
}

/// A line of a JSON Lines input.
#[derive(Deserialize)]
struct PromptLine {
    #[serde(alias = "instruction", alias = "text")]
    prompt: String,
    #[serde(default, alias = "id")]
    prompt_id: Option<Value>,
    #[serde(default)]
    top: Option<usize>,
    /// The conversation that the prompt is a turn of.
    #[serde(default)]
    session: Option<String>,
    /// Whose conversation it is.
    #[serde(default)]
    tenant: String,
}

impl<'s> Source<'s> {
    /// Errors: the input cannot be opened, or its format is unknown.
    pub(super) fn open(wanted: &Wanted<'s>) -> Result<Self> {
        if wanted.batch == Some(0) {
            bail!(InvalidRequest, "--batch: expected at least 1, found 0");
        }
        let (from, batch) = match wanted.input.filter(|path| *path != Path::new("-")) {
            _ if !wanted.prompts.is_empty() => (From::Arguments(wanted.prompts.iter()), BATCH),
            _ if !wanted.chats.is_empty() => (From::Chats(wanted.chats.iter()), BATCH),
            Some(path) => (
                From::Lines(Box::new(
                    PromptInput::file(path, wanted.format)?.with_feedback(wanted.feedback),
                )),
                BATCH,
            ),
            None => {
                if std::io::stdin().is_terminal() && wanted.input.is_none() {
                    bail!(
                        InvalidRequest,
                        "no prompt: pass one, name a file with --input, or pipe lines to stdin \
                         (see hubrouter route --help)"
                    );
                }
                let input = PromptInput::stdin(wanted.format).with_feedback(wanted.feedback);
                (From::Lines(Box::new(input)), 1)
            }
        };
        Ok(Self {
            from,
            top: wanted.top,
            batch: wanted.batch.unwrap_or(batch),
            taken: 0,
        })
    }

    /// The next batch of prompts; empty at the end.
    pub(super) fn next(&mut self) -> Result<Vec<ParsedRequest>> {
        match &mut self.from {
            From::Lines(input) => input.next(self.top, self.batch),
            From::Arguments(prompts) => {
                let mut batch = Vec::new();
                for prompt in prompts.by_ref().take(self.batch) {
                    self.taken += 1;
                    let request = Request::new(prompt.as_str()).top(self.top);
                    batch.push(Ok(request.prompt_id(self.taken.to_string()).into()));
                }
                Ok(batch)
            }
            From::Chats(files) => {
                let (mut batch, mut bytes) = (Vec::new(), 0);
                while batch.len() < self.batch && bytes < LONGEST_LINE {
                    let Some(path) = files.next() else {
                        break;
                    };
                    self.taken += 1;
                    let id = self.taken.to_string();
                    let request = chat_of(path).map(|request| request.top(self.top));
                    bytes += request.as_ref().map_or(0, |request| request.prompt.len());
                    batch.push(match request {
                        Ok(request) => Ok(request.prompt_id(id).into()),
                        Err(error) => Err((id, error)),
                    });
                }
                Ok(batch)
            }
        }
    }

    /// Lines of the input, if they are known.
    pub(super) fn total(&self) -> Option<u64> {
        match &self.from {
            From::Arguments(_) | From::Chats(_) => None,
            From::Lines(input) => input.total,
        }
    }

    /// Lines or arguments that were read so far.
    pub(super) fn done(&self) -> u64 {
        match &self.from {
            From::Arguments(_) | From::Chats(_) => self.taken,
            From::Lines(input) => input.done as u64,
        }
    }

    /// The source of the prompts, for messages.
    pub(super) fn place(&self) -> &str {
        match &self.from {
            From::Arguments(_) | From::Chats(_) => "the command line",
            From::Lines(input) => &input.place,
        }
    }
}

impl PromptInput {
    fn file(path: &Path, format: Option<Format>) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let by_name = match path.extension().and_then(|ending| ending.to_str()) {
            Some("jsonl" | "json" | "ndjson") => Some(Format::Jsonl),
            Some("txt") => Some(Format::Txt),
            _ => None,
        };
        let Some(form) = format.or(by_name) else {
            bail!(
                InvalidRequest,
                "{}: expected a name ending in .txt or .jsonl; pass --format txt, jsonl or chat",
                path.display()
            );
        };
        let total = count_lines(&mut file).map_err(|e| Error::io(path, "read", e))?;
        let place = path.display().to_string();
        let reader = Box::new(BufReader::new(file));
        Ok(Self::new(reader, place, form, format.is_some(), total))
    }

    fn stdin(format: Option<Format>) -> Self {
        let reader = Box::new(BufReader::new(std::io::stdin()));
        let form = format.unwrap_or(Format::Txt);
        Self::new(reader, "stdin".to_owned(), form, format.is_some(), None)
    }

    fn new(
        reader: Box<dyn BufRead>,
        place: String,
        format: Format,
        named: bool,
        total: Option<u64>,
    ) -> Self {
        Self {
            lines: Lines::new(reader),
            place,
            format,
            named,
            total,
            done: 0,
            remarked: false,
            failed: None,
            feedback: false,
        }
    }

    fn with_feedback(mut self, feedback: bool) -> Self {
        self.feedback = feedback;
        self
    }

    /// At most `most` prompts, and fewer if they are longer together than [`LONGEST_LINE`].
    fn next(&mut self, top: usize, most: usize) -> Result<Vec<ParsedRequest>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let (mut requests, mut bytes) = (Vec::new(), 0);
        while requests.len() < most && bytes < LONGEST_LINE {
            match self.one(top) {
                Ok(Some((length, request))) => {
                    bytes += length;
                    requests.push(request);
                }
                Ok(None) => break,
                Err(error) if requests.is_empty() => return Err(error),
                Err(error) => {
                    // The prompts before the error are answered first.
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok(requests)
    }

    /// One line: its length in bytes, and its request.
    fn one(&mut self, top: usize) -> Result<Option<(usize, ParsedRequest)>> {
        let place = &self.place;
        let Some(line) = self.lines.next().map_err(|e| e.at(place))? else {
            return Ok(None);
        };
        let id = line.number.to_string();
        let first = std::mem::replace(&mut self.done, line.number) == 0;
        let text = match line.text {
            Ok(text) => text,
            Err(error) => return Ok(Some((0, Err((id.clone(), error.at(at(place, &id))))))),
        };
        let looks = self.format == Format::Txt && !self.named && !self.remarked;
        if let Some((key, instead)) = looks.then(|| key_of_json(text)).flatten() {
            let what =
                format!("expected a prompt, found a JSON object with {key:?}: pass {instead}");
            if first {
                bail!(
                    InvalidRequest,
                    "{}: {what}, or --format txt to route the line as it is",
                    at(place, &id)
                );
            }
            self.remarked = true;
            output::remark(format!(
                "hubrouter: {}: {what}; this line and others like it are routed as they are",
                at(place, &id)
            ));
        }
        let parsed = match self.format {
            Format::Txt => {
                prompt_of(text).map(|prompt| Request::new(prompt).top(top).prompt_id(id.clone()))
            }
            Format::Jsonl => json_line(text).map(|line: PromptLine| line.request(top, &id)),
            Format::Chat => {
                Request::from_chat(text).map(|request| request.top(top).prompt_id(id.clone()))
            }
        };
        let parsed = parsed.and_then(|request| {
            let feedback: Feedback = match self.feedback && self.format != Format::Txt {
                true => json_line(text)?,
                false => Feedback::default(),
            };
            feedback.check()?;
            Ok(AskedLine { request, feedback })
        });
        let parsed = parsed.map_err(|error| (id.clone(), error.at(at(place, &id))));
        Ok(Some((text.len(), parsed)))
    }
}

/// The prompt of a line of text.
fn prompt_of(line: &[u8]) -> Result<&str> {
    if line.contains(&0) {
        bail!(Format, "expected text, found a NUL byte: is it UTF-16?");
    }
    let text = std::str::from_utf8(line).map_err(|e| error!(Format, "not UTF-8: {e}"))?;
    Ok(text.trim_end_matches('\r'))
}

fn at(place: &str, line: &str) -> String {
    format!("{place}:{line}")
}

/// The chat request in the file `path`; `-` is stdin.
fn chat_of(path: &Path) -> Result<Request> {
    if path != Path::new("-") {
        let json = read_bytes(path, LONGEST_REQUEST as u64)?;
        return Request::from_chat(json).map_err(|e| e.at(path.display()));
    }
    let mut json = Vec::new();
    // One more than there should be: the library says what is too much.
    std::io::stdin()
        .take(LONGEST_REQUEST as u64 + 1)
        .read_to_end(&mut json)
        .map_err(|e| error!(Io, "stdin: cannot read: {e}"))?;
    Request::from_chat(json).map_err(|e| e.at("stdin"))
}

/// The key of the prompt or of the messages, and what to pass, if a line is an object as in a JSON
/// Lines input.
fn key_of_json(line: &[u8]) -> Option<(&'static str, &'static str)> {
    if !line.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let value: Value = serde_json::from_slice(line).ok()?;
    let keys = ["prompt", "instruction"].into_iter();
    let prompt = keys
        .into_iter()
        .find(|key| value.get(key).is_some_and(Value::is_string));
    if let Some(key) = prompt {
        return Some((key, "--format jsonl to route the value of that key"));
    }
    let is_chat = value.get("messages").is_some_and(Value::is_array);
    is_chat.then_some((
        "messages",
        "--format chat to route the newest ask of the conversation",
    ))
}

/// Lines of a regular file; `None` for a file that cannot be read twice.
fn count_lines(file: &mut File) -> std::io::Result<Option<u64>> {
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let (mut count, mut last) = (0, b'\n');
    let mut part = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut part)?;
        let Some(end) = part[..read].last() else {
            break;
        };
        last = *end;
        count += part[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    file.rewind()?;
    Ok(Some(count + u64::from(last != b'\n')))
}

impl PromptLine {
    fn request(self, top: usize, number: &str) -> Request {
        let id = match self.prompt_id {
            None | Some(Value::Null) => number.to_owned(),
            Some(Value::String(id)) => id,
            Some(other) => other.to_string(),
        };
        let request = Request::new(self.prompt)
            .top(self.top.unwrap_or(top))
            .prompt_id(id);
        match self.session {
            Some(session) => request.session(self.tenant, session),
            None => request,
        }
    }
}

/// The file behind an input, if any: `--output` must not overwrite it.
pub(super) fn file_of(input: Option<&Path>) -> Option<PathBuf> {
    match input {
        Some(path) if path != Path::new("-") => Some(path.to_owned()),
        _ => Some(PathBuf::from("/dev/stdin")).filter(|_| cfg!(unix)),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::Folder;

    fn source(content: &str) -> (Folder, PromptInput) {
        let folder = Folder::new("source");
        let path = folder.write("prompts.txt", content);
        let input = PromptInput::file(&path, None).unwrap();
        (folder, input)
    }

    #[test]
    fn progress_counts_lines() {
        for (content, total) in [("", 0), ("a\nb\n", 2), ("a\n\nb", 3)] {
            let (_folder, mut input) = source(content);
            assert_eq!(input.total, Some(total));
            while !input.next(1, 1).unwrap().is_empty() {}
            assert_eq!(input.done as u64, total, "all are read in the end");
        }
    }

    #[test]
    fn what_was_read_before_an_error_comes_first() {
        // A folder can be opened, and not be read.
        let reader = std::io::Read::chain(&b"one\ntwo\n"[..], File::open("/").unwrap());
        let reader = Box::new(BufReader::new(reader));
        let mut input = PromptInput::new(reader, "x".into(), Format::Txt, false, None);
        assert_eq!(input.next(1, 8).unwrap().len(), 2);
        let error = input.next(1, 8).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.starts_with("x: cannot read: ")));
    }

    #[test]
    fn a_batch_of_long_lines_is_a_short_one() {
        let line = "x".repeat(LONGEST_LINE / 2);
        let (_folder, mut input) = source(&format!("{line}\n").repeat(5));
        let counts: Vec<usize> = (0..3).map(|_| input.next(1, 32).unwrap().len()).collect();
        assert_eq!(counts, [2, 2, 1]);
    }
}
