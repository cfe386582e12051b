//! Writing to the terminal; the only place that does.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result, error};

/// Marks the error of a reader that went away, as `head` does.
const BROKEN_PIPE: &str = "stdout was closed";

/// One line on stdout.
pub(super) fn line(text: impl Display) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").map_err(|e| stdout_error(&e))
}

/// `value` as one line of JSON on stdout, at once.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_string(value).map_err(|e| error!(Format, "cannot write JSON: {e}"))?;
    line(text)
}

fn stdout_error(e: &std::io::Error) -> Error {
    if e.kind() == std::io::ErrorKind::BrokenPipe {
        error!(Io, "{BROKEN_PIPE}")
    } else {
        error!(Io, "stdout: cannot write: {e}")
    }
}

pub(super) fn is_broken_pipe(error: &Error) -> bool {
    error.kind() == ErrorKind::Io && error.to_string() == BROKEN_PIPE
}

/// `error` on stderr.
#[expect(clippy::print_stderr, reason = "the command's errors")]
pub(super) fn complain(error: &Error) {
    eprintln!("hubrouter: {error}");
}

/// A remark on stderr.
#[expect(clippy::print_stderr, reason = "the command's remarks")]
pub(super) fn remark(text: impl Display) {
    eprintln!("{text}");
}

/// `1 model`, `2 models`.
pub(super) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

pub(super) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Columns under their heads; a column is right-aligned when its head begins with `>`.
pub(super) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heads: &[&'static str]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) fn print(&self) -> Result<()> {
        let heads: Vec<&str> = self
            .heads
            .iter()
            .map(|head| head.trim_start_matches('>'))
            .collect();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells
                .chain([heads[column].chars().count()])
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        let print = |cells: Vec<&str>| {
            let mut text = String::new();
            for (column, cell) in cells.iter().enumerate() {
                let pad = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
                if self.heads[column].starts_with('>') {
                    text.push_str(&format!("{pad}{cell}  "));
                } else {
                    text.push_str(&format!("{cell}{pad}  "));
                }
            }
            line(text.trim_end())
        };
        print(heads.clone())?;
        self.rows
            .iter()
            .try_for_each(|row| print(row.iter().map(String::as_str).collect()))
    }
}
