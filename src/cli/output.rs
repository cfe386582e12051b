//! Writes to stdout and stderr. No other file does.
//!
//! Text for people has its control characters escaped; JSON and files are written unchanged. If
//! stderr cannot be written, its messages are lost and the command goes on.
#![expect(clippy::disallowed_methods, reason = "prints")]

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::terminal::{escaped, width, wrapped};
use crate::error::{Error, ErrorKind, Result, error};

pub(super) use super::table::TextTable;
pub(super) use super::terminal::counted;

/// The end of an error's text when the reader closed the pipe, as `head` does.
const BROKEN_PIPE: &str = "the reader went away";

/// One line on stdout.
pub(super) fn line(text: impl Display) -> Result<()> {
    let text = text.to_string();
    raw(format!("{}\n", escaped(&text)).as_bytes())
}

/// Text on stdout, wrapped at the terminal's width. All lines but the first are indented by 2.
pub(super) fn paragraph(text: impl Display) -> Result<()> {
    hanging(text, 2)
}

/// As [`paragraph`], with all lines but the first behind `indent` spaces.
pub(super) fn hanging(text: impl Display, indent: usize) -> Result<()> {
    let text = text.to_string();
    let lines = wrapped(&escaped(&text), width(), indent);
    lines.into_iter().try_for_each(line)
}

/// `value` as one line of JSON on stdout, flushed.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    raw(&json_line(value)?)
}

/// `value` as one line of JSON.
pub(super) fn json_line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text =
        serde_json::to_vec(value).map_err(|e| error!(Format, "cannot write JSON: {e}"))?;
    text.push(b'\n');
    Ok(text)
}

/// `bytes` on stdout, unchanged and flushed.
pub(super) fn raw(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|e| write_error("stdout", &e))
}

/// The answer of a command that has changed something: as JSON, or as a line of text.
///
/// The change is done even if stdout cannot be written; the answer then goes to stderr.
pub(super) fn done(as_json: bool, value: &impl Serialize, text: impl Display) {
    let text = text.to_string();
    let answered = if as_json { json(value) } else { line(&text) };
    if let Err(error) = answered {
        unanswered(text, &error);
    }
}

/// Reports on stderr what was done, because stdout could not be written.
pub(super) fn unanswered(what: impl Display, error: &Error) {
    remark(format!("hubrouter: {what}; {error}"));
}

/// The error for a `place` that cannot be written.
pub(super) fn write_error(place: &str, e: &std::io::Error) -> Error {
    if e.kind() == std::io::ErrorKind::BrokenPipe {
        error!(Io, "{place}: {BROKEN_PIPE}")
    } else {
        error!(Io, "{place}: cannot write: {e}")
    }
}

pub(super) fn is_broken_pipe(error: &Error) -> bool {
    error.kind() == ErrorKind::Io && error.to_string().ends_with(BROKEN_PIPE)
}

/// `error` on stderr.
pub(super) fn complain(error: &Error) {
    remark(format!("hubrouter: {error}"));
}

/// A remark on stderr.
pub(super) fn remark(text: impl Display) {
    let text = text.to_string();
    // There is nowhere left to report a failure.
    let _ = writeln!(std::io::stderr().lock(), "{}", escaped(&text));
}

pub(super) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

pub(super) fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Sends the library's log to stderr: warnings like the command's own remarks, the rest with time
/// and level.
pub(super) fn listen_to_log(verbose: u8) {
    let level = match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Error)
        .filter_module("hubrouter", level)
        .format(|buffer, record| {
            let text = record.args().to_string();
            let text = escaped(&text);
            if record.level() <= log::Level::Warn {
                return writeln!(buffer, "hubrouter: {text}");
            }
            let time = buffer.timestamp();
            writeln!(buffer, "[{time} {}] {text}", record.level())
        })
        .init();
}
