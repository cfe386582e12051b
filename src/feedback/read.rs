//! Reading a log: every whole line, and a count of the others.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::line::FeedbackLine;
use super::writer::{number_of, segments};
use crate::error::{Error, Result, bail};
use crate::files::{ends_in_a_line, open_file};
use crate::text::lines::Lines;

/// Lines that are looked at to tell a log from another file.
const LOOKED_AT: usize = 16;

/// Lines of a log that could not be taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SkippedLines {
    /// Not of the form of a line.
    pub malformed: usize,
    /// The last line of a file, whose writer was ended within it.
    pub cut_off: usize,
    /// Over 4 MiB.
    pub too_long: usize,
    /// Of another kind or version.
    pub other_version: usize,
    /// The first of them, with its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
}

impl SkippedLines {
    /// All of them.
    pub fn total(&self) -> usize {
        self.malformed + self.cut_off + self.too_long + self.other_version
    }

    fn note(&mut self, place: impl FnOnce() -> String) {
        if self.first.is_none() {
            self.first = Some(place());
        }
    }
}

/// Calls `each` with the lines of the log at `path`, the oldest first: a folder, or one of its
/// files. A log may be read while it is written.
///
/// Returns how many lines were skipped, and why.
///
/// Errors: there is no log at `path`; a file cannot be read; an error of `each`.
pub fn read_feedback(
    path: impl AsRef<Path>,
    mut each: impl FnMut(FeedbackLine) -> Result<()>,
) -> Result<SkippedLines> {
    read_log(path.as_ref(), &mut each)
}

/// As [`read_feedback`].
pub(crate) fn read_log(
    path: &Path,
    each: &mut dyn FnMut(FeedbackLine) -> Result<()>,
) -> Result<SkippedLines> {
    let mut skipped = SkippedLines::default();
    for file in log_files(path)? {
        read_file(&file, &mut skipped, &mut |_, line| match line {
            Some(line) => each(line),
            None => Ok(()),
        })?;
    }
    Ok(skipped)
}

/// The files of the log at `path`, the oldest first.
pub(crate) fn log_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let files: Vec<PathBuf> = segments(path)?.into_iter().map(|file| file.path).collect();
    if files.is_empty() {
        bail!(
            Format,
            "{}: expected a log, a folder with files such as feedback-00000001.jsonl, found a \
             folder without",
            path.display()
        );
    }
    Ok(files)
}

/// Calls `each` with each line of the file at `path` and its length in bytes; `None` for a line
/// that is skipped. A file that a writer has removed meanwhile, as the oldest, has no lines.
pub(crate) fn read_file(
    path: &Path,
    skipped: &mut SkippedLines,
    each: &mut dyn FnMut(usize, Option<FeedbackLine>) -> Result<()>,
) -> Result<()> {
    let (mut file, _) = match open_file(path) {
        Err(_) if was_removed(path) => return Ok(()),
        opened => opened?,
    };
    let whole = ends_in_a_line(&mut file).map_err(|e| Error::io(path, "read", e))?;
    let mut lines = Lines::new(BufReader::new(file));
    // Whether the line was the last is known when there is no other.
    let mut last_is_bad = false;
    loop {
        let line = lines.next().map_err(|error| error.at(path.display()))?;
        let Some(line) = line else {
            break;
        };
        let place = |why: &str| format!("{}:{}: {why}", path.display(), line.number);
        last_is_bad = false;
        let text = match line.text {
            Ok(text) => text,
            Err(error) => {
                skipped.too_long += 1;
                skipped.note(|| place(&error.to_string()));
                each(0, None)?;
                continue;
            }
        };
        let parsed = match FeedbackLine::parse(text) {
            Ok(Some(line)) => Some(line),
            Ok(None) => {
                skipped.other_version += 1;
                skipped.note(|| place("another kind or version of line"));
                None
            }
            Err(error) => {
                skipped.malformed += 1;
                skipped.note(|| place(&error.to_string()));
                last_is_bad = true;
                None
            }
        };
        each(text.len() + 1, parsed)?;
    }
    if last_is_bad && !whole {
        skipped.malformed -= 1;
        skipped.cut_off += 1;
    }
    Ok(())
}

/// Whether `path` is gone, and its folder has only later files of a log.
fn was_removed(path: &Path) -> bool {
    let later = || {
        let number = path.file_name().and_then(number_of)?;
        let files = segments(path.parent()?).ok()?;
        Some(files.first()?.number > number)
    };
    path.symlink_metadata().is_err() && later() == Some(true)
}

/// Whether there is a log at `path`: a folder, or a file with a line of a log among its first.
pub(crate) fn is_log(path: &Path) -> bool {
    if path.is_dir() {
        return true;
    }
    // To open a FIFO and leave it would end its writer.
    if !path.is_file() {
        return false;
    }
    let Ok((file, _)) = open_file(path) else {
        return false;
    };
    let mut lines = Lines::new(BufReader::new(file));
    for _ in 0..LOOKED_AT {
        let Ok(Some(line)) = lines.next() else {
            return false;
        };
        if line
            .text
            .is_ok_and(|text| matches!(FeedbackLine::parse(text), Ok(Some(_))))
        {
            return true;
        }
    }
    false
}
