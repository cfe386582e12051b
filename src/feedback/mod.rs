//! Feedback: what was decided and what became of it, as a log that learning and reports read.
//!
//! A [`FeedbackLog`] is a folder of JSON Lines files. [`FeedbackLog::observe`] appends a
//! [`FeedbackLine`]: the decision and a [`Feedback`], which says what was really used and how it
//! went. A [`Shadow`] decides beside another router and only records. [`read_feedback`] reads a log
//! again. `docs/feedback.md` has the form of a line and what the log promises.

mod keep;
mod line;
mod read;
mod shadow;
mod writer;

pub use keep::KeepPrompt;
pub use line::{Feedback, FeedbackLine, LoggedModel, NoAnswer};
pub use read::{SkippedLines, read_feedback};
pub(crate) use read::{is_log, read_log};
#[cfg(feature = "cli")]
pub(crate) use read::{log_files, read_file};
pub use shadow::Shadow;
pub use writer::{FeedbackLog, FeedbackOptions};
