//! Ctrl-C, SIGTERM and SIGHUP: stop between two steps, or end at once without leftover files.
//!
//! A signal that the parent process ignores stays ignored, so `nohup` works.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::output;
use crate::error::{Result, error};

/// A signal that asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Signal {
    Interrupt,
    #[cfg(unix)]
    Terminate,
    #[cfg(unix)]
    HangUp,
}

impl Signal {
    /// 128 plus the signal's number, as in shells.
    fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            #[cfg(unix)]
            Self::Terminate => 143,
            #[cfg(unix)]
            Self::HangUp => 129,
        }
    }
}

/// Temporary files to remove when a signal ends the process.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn temporary() -> MutexGuard<'static, Vec<PathBuf>> {
    // A list of paths stays valid if a thread panicked while it held the lock.
    TEMPORARY.lock().unwrap_or_else(|held| held.into_inner())
}

/// Keeps a file in the list of files that a signal removes.
pub(super) struct RemovedAtEnd(PathBuf);

impl RemovedAtEnd {
    /// A signal removes `path` as long as the returned value lives. Requires [`end_at_once`] or
    /// [`stop_gently`].
    pub(super) fn new(path: &Path) -> Self {
        temporary().push(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for RemovedAtEnd {
    fn drop(&mut self) {
        temporary().retain(|path| *path != self.0);
    }
}

/// Whether a signal asked the process to stop, and which.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<AtomicU8>);

impl Stop {
    pub(super) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// The exit code after a signal: 130, 143 or 129.
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.0.load(Ordering::Relaxed))
    }

    /// True the first time.
    fn ask(&self, signal: Signal) -> bool {
        self.0.swap(signal.exit_code(), Ordering::Relaxed) == 0
    }
}

/// From now on the first signal asks to stop and prints `remark` on stderr; the second ends the
/// process. Call once per process.
pub(super) fn stop_gently(remark: &'static str) -> Result<Stop> {
    let stop = Stop::default();
    let asked = stop.clone();
    listen(move |signal| {
        if asked.ask(signal) {
            output::remark(remark);
        } else {
            end(signal);
        }
    })?;
    Ok(stop)
}

/// From now on a signal removes the temporary files and ends the process. Call once per process.
pub(super) fn end_at_once() -> Result<()> {
    listen(end)
}

fn end(signal: Signal) {
    for path in temporary().drain(..) {
        // It may be gone already.
        let _ = std::fs::remove_file(path);
    }
    std::process::exit(signal.exit_code().into())
}

fn failed(e: impl std::fmt::Display) -> crate::Error {
    error!(Io, "cannot listen for Ctrl-C: {e}")
}

#[cfg(unix)]
fn listen(mut each: impl FnMut(Signal) + Send + 'static) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let ignored = ignored();
    let heard = |number: i32| ignored & (1 << (number - 1)) == 0;
    let numbers = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|n| heard(*n));
    let mut signals = signal_hook::iterator::Signals::new(numbers).map_err(failed)?;
    let wait = move || {
        for number in signals.forever() {
            each(match number {
                SIGTERM => Signal::Terminate,
                SIGHUP => Signal::HangUp,
                _ => Signal::Interrupt,
            });
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    #[expect(clippy::disallowed_methods, reason = "waits for signals")]
    let started = thread.spawn(wait);
    started.map(drop).map_err(failed)
}

/// The signals that this process ignores as a bit set, signal 1 lowest; 0 if the system does not
/// tell.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(not(unix))]
fn listen(mut each: impl FnMut(Signal) + Send + 'static) -> Result<()> {
    ctrlc::set_handler(move || each(Signal::Interrupt)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_asks_and_keeps_its_code() {
        let stop = Stop::default();
        assert!(!stop.asked());
        assert!(stop.ask(Signal::Interrupt) && stop.asked());
        assert_eq!(stop.0.load(Ordering::Relaxed), 130);
        assert!(!stop.ask(Signal::Interrupt), "the second ends the process");
    }

    #[test]
    fn a_file_that_is_done_is_no_longer_removed() {
        let path = Path::new("signals-test");
        let one = RemovedAtEnd::new(path);
        assert!(temporary().iter().any(|listed| listed == path));
        drop(one);
        assert!(!temporary().iter().any(|listed| listed == path));
    }
}
