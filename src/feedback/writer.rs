//! The writer of a log: files of bounded size and number, to which processes append whole lines.
//!
//! A line is one write at the end of the newest file, under a lock of the log's folder. A writer
//! that is ended leaves whole lines and at most one cut line, and the next writer starts a new one
//! behind it. Nothing is held between two lines: no thread, no buffer, no open file.
#![expect(clippy::disallowed_types, reason = "a line has its time")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::KeepPrompt;
use super::line::{Feedback, FeedbackLine};
use crate::encoder::Encoder;
use crate::error::{Error, Result, bail, caught, error};
use crate::files;
use crate::route::{Decision, Request};
use crate::store::Lock;
use crate::text::lines::LONGEST_LINE;

/// Most bytes of a prompt's text that are kept; in JSON they are at most six times as many.
const LONGEST_TEXT: usize = 512 << 10;

/// The file that writers lock.
const LOCK: &str = "lock";

/// How a log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeedbackOptions {
    /// What is kept of a prompt; its hash unless another is chosen.
    pub keep: KeepPrompt,
    /// Ranked models of a decision that are kept, at least 1; 3 by default.
    pub top: usize,
    /// Most bytes of a file, from 4 KiB; 64 MiB by default.
    pub max_bytes: u64,
    /// Most files, at least 1; 8 by default. The oldest is removed for a new one.
    pub max_files: usize,
    /// How long a call waits while other processes write; 100 ms by default. Then its line is lost.
    pub patience: Duration,
    /// Whether lines are marked as decisions on which nobody acts.
    pub shadow: bool,
}

impl Default for FeedbackOptions {
    fn default() -> Self {
        Self {
            keep: KeepPrompt::default(),
            top: 3,
            max_bytes: 64 << 20,
            max_files: 8,
            patience: Duration::from_millis(100),
            shadow: false,
        }
    }
}

impl FeedbackOptions {
    /// The options with this kept of a prompt.
    pub fn keep(mut self, keep: KeepPrompt) -> Self {
        self.keep = keep;
        self
    }

    /// The options with as many ranked models.
    pub fn top(mut self, top: usize) -> Self {
        self.top = top;
        self
    }

    /// The options with at most `files` files of `bytes` bytes.
    pub fn bounds(mut self, bytes: u64, files: usize) -> Self {
        (self.max_bytes, self.max_files) = (bytes, files);
        self
    }

    /// The options with this longest wait for other processes.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The options with lines marked as decisions on which nobody acts, or not.
    pub fn shadow(mut self, shadow: bool) -> Self {
        self.shadow = shadow;
        self
    }

    fn check(&self) -> Result<()> {
        if self.max_bytes < 4096 {
            let found = self.max_bytes;
            bail!(
                InvalidRequest,
                "max_bytes: expected at least 4096, found {found}"
            );
        }
        for (name, value) in [("max_files", self.max_files), ("top", self.top)] {
            if value == 0 {
                bail!(InvalidRequest, "{name}: expected at least 1, found 0");
            }
        }
        Ok(())
    }
}

/// A log of decisions and of what became of them: a folder of JSON Lines files.
///
/// `Send + Sync`; several processes may write the same folder. A call appends one line and takes
/// some 20 microseconds, more on a slow disk; with [`KeepPrompt::Vector`] also the time of an
/// encoding. No call panics. An error loses one line and no other, and [`FeedbackLog::lost`]
/// counts it: a host should go on.
///
/// ```
/// use hubrouter::feedback::{Feedback, FeedbackLog, FeedbackOptions};
/// use hubrouter::{Options, Request, Router};
///
/// let router = Router::open("weights/cmrbench", Options::default().device("cpu"))?;
/// let folder = std::env::temp_dir().join("hubrouter-feedback-example");
/// let log = FeedbackLog::open(&folder, FeedbackOptions::default())?;
/// let request = Request::new("Which bird is singing?").prompt_id("7");
/// let decision = router.route(&request)?;
/// // The host asks a model, and looks at the answer.
/// let used = decision.ranked[0].model.to_string();
/// log.observe(&request, &decision, &Feedback::used(used).success(true))?;
/// # std::fs::remove_dir_all(folder).ok();
/// # Ok::<(), hubrouter::Error>(())
/// ```
#[derive(Debug)]
pub struct FeedbackLog {
    folder: PathBuf,
    options: FeedbackOptions,
    encoder: Option<Arc<Encoder>>,
    lost: AtomicU64,
}

/// A file of a log.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
}

impl FeedbackLog {
    /// Opens the log in `folder`, which is created if missing.
    ///
    /// Errors: the folder cannot be written; an option is out of its range.
    pub fn open(folder: impl AsRef<Path>, options: FeedbackOptions) -> Result<Self> {
        let folder = folder.as_ref();
        options.check()?;
        if folder.is_file() {
            bail!(
                InvalidRequest,
                "{}: expected the folder of a log, found a file",
                folder.display()
            );
        }
        files::make_folder(folder)?;
        // Where locks are not known the end of a file is safe by the system's own order.
        Lock::soon(folder, LOCK, options.patience)?;
        Ok(Self {
            folder: folder.to_owned(),
            options,
            encoder: None,
            lost: AtomicU64::new(0),
        })
    }

    /// The log with the encoder that makes the vectors of [`KeepPrompt::Vector`]:
    /// [`crate::Router::encoder`], or another one. Its network without an adapter is read at the
    /// first line.
    pub fn encoder(mut self, encoder: Arc<Encoder>) -> Self {
        self.encoder = Some(encoder);
        self
    }

    /// Appends what `decision` was for `request`, and what became of it.
    ///
    /// Errors: a number of `feedback` is out of its range; the line is longer than a file may be
    /// or than 4 MiB; other processes wrote for longer than [`FeedbackOptions::patience`]; the disk
    /// is full or the folder is gone; a vector is to be kept, and the log has no encoder or the
    /// encoder fails.
    pub fn observe(
        &self,
        request: &Request,
        decision: &Decision,
        feedback: &Feedback,
    ) -> Result<()> {
        let top = self.options.top;
        self.counted(|| {
            let line = self.line(request, feedback)?;
            self.append(&line.decided(decision, top)?)
        })
    }

    /// Appends that the router had no answer to `request`, only `error`.
    ///
    /// Errors: as [`FeedbackLog::observe`].
    pub fn observe_failure(
        &self,
        request: &Request,
        error: &Error,
        feedback: &Feedback,
    ) -> Result<()> {
        let with_text = self.options.keep == KeepPrompt::Text;
        self.counted(|| {
            let line = self.line(request, feedback)?;
            self.append(&line.failed(error, with_text))
        })
    }

    /// Lines that this log could not write.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The folder of the log.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn options(&self) -> &FeedbackOptions {
        &self.options
    }

    pub(super) fn has_encoder(&self) -> bool {
        self.encoder.is_some()
    }

    /// The log with its lines marked as those of a shadow.
    pub(super) fn in_shadow(mut self) -> Self {
        self.options.shadow = true;
        self
    }

    fn counted(&self, write: impl FnOnce() -> Result<()>) -> Result<()> {
        let written = caught("the feedback log", write);
        if written.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    /// A line about `request`, with its time and what may be kept of the prompt.
    fn line(&self, request: &Request, feedback: &Feedback) -> Result<FeedbackLine> {
        feedback.check()?;
        let mut line = FeedbackLine::new(&request.prompt_id, feedback);
        line.feedback.time = feedback.time.or_else(now);
        line.shadow = self.options.shadow;
        let prompt = request.prompt.as_str();
        match self.options.keep {
            KeepPrompt::Text => {
                let kept = beginning(prompt, LONGEST_TEXT);
                line.prompt_cut = kept.len() < prompt.len();
                line.prompt = Some(kept.to_owned());
            }
            KeepPrompt::Hash => line.prompt_sha256 = Some(files::sha256(prompt.as_bytes())),
            KeepPrompt::Vector => {
                let encoder = self.encoder.as_ref().ok_or_else(|| {
                    error!(
                        InvalidRequest,
                        "keep = vector: expected a log with an encoder (FeedbackLog::encoder), \
                         found one without"
                    )
                })?;
                // A prompt without text has no vector, and the line says why there is no answer.
                if let Some(vector) = encoder.embed(&[prompt]).pop()
                    && (!prompt.trim().is_empty() || vector.is_ok())
                {
                    line.prompt_vector = Some(vector?);
                    line.vector_encoder = Some(encoder.revision().to_owned());
                }
            }
            KeepPrompt::Nothing => {}
        }
        Ok(line)
    }

    fn append(&self, line: &FeedbackLine) -> Result<()> {
        let line = line.to_json()?;
        let bytes = line.len() as u64;
        // Behind a cut line one more byte is written.
        let most = (LONGEST_LINE as u64).min(self.options.max_bytes - 1);
        if bytes > most {
            bail!(
                Refused,
                "{}: expected a line of at most {most} bytes, found {bytes}",
                self.folder.display()
            );
        }
        let _lock = Lock::soon(&self.folder, LOCK, self.options.patience)?;
        let mut files = segments(&self.folder)?;
        let room = |file: &Segment| {
            let length = file.path.metadata().map_or(u64::MAX, |data| data.len());
            length.saturating_add(bytes + 1) <= self.options.max_bytes
        };
        let newest = match files.last() {
            Some(file) if room(file) => file.path.clone(),
            last => {
                let number = last.map_or(0, |file| file.number) + 1;
                let path = self.folder.join(format!("feedback-{number:08}.jsonl"));
                files.push(Segment {
                    number,
                    path: path.clone(),
                });
                path
            }
        };
        files::append_line(&newest, &line)?;
        let over = files.len().saturating_sub(self.options.max_files);
        for old in files.drain(..over) {
            match std::fs::remove_file(&old.path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    // The line is written; the next one tries again.
                    log::warn!("{}", Error::io(&old.path, "remove", e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// At most the first `bytes` bytes of `text`, whole characters.
fn beginning(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The time in Unix milliseconds; `None` if the clock stands before 1970.
fn now() -> Option<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

/// The number of a file of a log with this name.
pub(super) fn number_of(name: &OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_prefix("feedback-")?;
    let digits = digits.strip_suffix(".jsonl")?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    // The largest number has no next one.
    digits.parse().ok().filter(|n| plain && *n < u64::MAX)
}

/// The files of the log in `folder`, the oldest first.
pub(super) fn segments(folder: &Path) -> Result<Vec<Segment>> {
    let failed = |e: std::io::Error| Error::io(folder, "read", e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(number) = number_of(&entry.file_name()) {
            let path = entry.path();
            found.push(Segment { number, path });
        }
    }
    found.sort_by_key(|file| file.number);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        for (bytes, want) in [(0, ""), (1, ""), (2, "é"), (3, "éa"), (9, "éa€"), (4, "éa")] {
            assert_eq!(beginning("éa€", bytes), want, "{bytes}");
        }
    }

    #[test]
    fn files_are_known_by_their_names() {
        for (name, want) in [
            ("feedback-00000007.jsonl", Some(7)),
            ("feedback-7.jsonl", Some(7)),
            ("feedback-+7.jsonl", None),
            ("feedback-.jsonl", None),
            ("feedback-18446744073709551615.jsonl", None),
            ("feedback-00000007.jsonl.gz", None),
            ("lock", None),
        ] {
            assert_eq!(number_of(OsStr::new(name)), want, "{name}");
        }
    }
}
