//! Progress on stderr: a bar on a terminal, a line every few seconds elsewhere.
#![expect(clippy::disallowed_types, reason = "progress by the clock")]

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::output;
use super::terminal::escaped;

/// Pause between two lines if there is no terminal.
const PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Progress {
    bar: ProgressBar,
    what: &'static str,
    note: String,
    said: Instant,
}

impl Progress {
    /// A bar labelled `what` that counts to `total`.
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let bar = if output::stderr_is_terminal() {
            ProgressBar::new(total)
        } else {
            ProgressBar::hidden()
        };
        bar.set_length(total);
        let form = "{msg} [{bar:32}] {pos}/{len} {speed} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(form) {
            let speed = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                // The bar is drawn without the speed then.
                let _ = write!(out, "{:.0}/s", state.per_sec());
            };
            bar.set_style(style.with_key("speed", speed).progress_chars("=> "));
        }
        bar.set_message(what);
        Self {
            bar,
            what,
            note: String::new(),
            said: Instant::now(),
        }
    }

    /// Sets the text beside the bar.
    pub(super) fn note(&mut self, note: String) {
        let shown = format!("{} ({note})", self.what);
        self.bar.set_message(escaped(&shown).into_owned());
        self.note = note;
    }

    /// Sets the number to count to.
    pub(super) fn total(&self, total: u64) {
        self.bar.set_length(total);
    }

    pub(super) fn set(&mut self, done: u64) {
        self.bar.set_position(done);
        if !output::stderr_is_terminal() && self.said.elapsed() > PAUSE {
            self.said = Instant::now();
            let total = self.bar.length().unwrap_or(0);
            // From the mean speed: the bar's own estimate diverges when one step takes long.
            let left = match done {
                0 => String::new(),
                _ => {
                    let share = total.saturating_sub(done) as f64 / done as f64;
                    format!(", {:.0} s left", self.bar.elapsed().as_secs_f64() * share)
                }
            };
            output::remark(format!(
                "{}: {done} of {total}{}{}{left}",
                self.what,
                if self.note.is_empty() { "" } else { ", " },
                self.note
            ));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
