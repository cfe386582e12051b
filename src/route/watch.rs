//! Hot reload: a thread that looks at the store's `current` now and then.
//!
//! It polls, and does not ask the system to report changes: a store may lie on a network file
//! system, where inotify sees nothing of other machines' writes, and reading a line of 30 bytes
//! costs microseconds.
#![expect(
    clippy::disallowed_methods,
    reason = "the thread that a host asks for to follow its store"
)]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Error, Result, bail, error};
use crate::route::Router;

/// The name of the thread.
const NAME: &str = "hubrouter-watch";

/// After errors the interval doubles, so many times at most: a damaged generation is read and
/// hashed anew at each try.
const DOUBLINGS: u32 = 5;

/// A router that follows its store, for as long as this lives: [`Router::watch`] makes it.
///
/// Dropped, it stops the thread and waits for its end, which takes as long as opening a generation
/// if one is being opened.
pub struct StoreWatch {
    shared: Arc<WatchState>,
    thread: Option<JoinHandle<()>>,
}

struct WatchState {
    over: Mutex<bool>,
    bell: Condvar,
    reloads: AtomicU64,
    errors: AtomicU64,
    last_error: Mutex<Option<Error>>,
}

impl Router {
    /// Serves the store's current generation whenever that changes, as [`Router::refresh`] does,
    /// until the result is dropped: a thread called `hubrouter-watch` reads the file `current`
    /// every `interval`.
    ///
    /// If a generation cannot be opened, the old one stays, the log has a warning, the error is
    /// counted, and the next tries come later, up to 32 intervals apart. The thread does not keep
    /// the router alive.
    ///
    /// Errors: of kind [`crate::ErrorKind::InvalidRequest`] if `interval` is 0; of kind
    /// [`crate::ErrorKind::Io`] if the thread cannot be started.
    pub fn watch(self: &Arc<Self>, interval: Duration) -> Result<StoreWatch> {
        if interval.is_zero() {
            bail!(InvalidRequest, "interval: expected more than 0, found 0 s");
        }
        let shared = Arc::new(WatchState {
            over: Mutex::new(false),
            bell: Condvar::new(),
            reloads: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            last_error: Mutex::new(None),
        });
        let (router, state) = (Arc::downgrade(self), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || state.follow(&router, interval))
            .map_err(|e| error!(Io, "cannot start the thread {NAME}: {e}").because(e))?;
        Ok(StoreWatch {
            shared,
            thread: Some(thread),
        })
    }
}

impl StoreWatch {
    /// Generations that were served since.
    pub fn reloads(&self) -> u64 {
        self.shared.reloads.load(Ordering::Relaxed)
    }

    /// Tries that failed.
    pub fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }

    /// Why the last try failed; `None` if it did not.
    pub fn last_error(&self) -> Option<Error> {
        self.shared.last_error().clone()
    }
}

impl WatchState {
    /// Until the watch is dropped, or the router.
    fn follow(&self, router: &Weak<Router>, interval: Duration) {
        let mut failed = 0;
        while !self.is_over_after(interval * 2u32.pow(failed.min(DOUBLINGS))) {
            let Some(router) = router.upgrade() else {
                return;
            };
            // A panic inside is an error as well.
            let refreshed = crate::error::caught("following the store", || router.refresh());
            match refreshed {
                Ok(changed) => {
                    self.reloads
                        .fetch_add(u64::from(changed), Ordering::Relaxed);
                    failed = 0;
                    *self.last_error() = None;
                }
                Err(error) => {
                    self.errors.fetch_add(1, Ordering::Relaxed);
                    failed += 1;
                    let text = error.to_string();
                    let mut last = self.last_error();
                    let known = last.as_ref().is_some_and(|last| last.to_string() == text);
                    let level = if known {
                        log::Level::Debug
                    } else {
                        log::Level::Warn
                    };
                    log::log!(level, "{} stays: {text}", router.generation());
                    *last = Some(error);
                }
            }
        }
    }

    /// Waits for `time`; true if the watch was dropped.
    fn is_over_after(&self, time: Duration) -> bool {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.bell.wait_timeout_while(over, time, |over| !*over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn last_error(&self) -> std::sync::MutexGuard<'_, Option<Error>> {
        let last = self.last_error.lock();
        last.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StoreWatch {
    fn drop(&mut self) {
        let over = self.shared.over.lock();
        *over.unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.bell.notify_all();
        if let Some(thread) = self.thread.take() {
            // It catches panics of the router, and has no others.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for StoreWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreWatch")
            .field("reloads", &self.reloads())
            .field("errors", &self.errors())
            .field("last_error", &self.last_error())
            .finish_non_exhaustive()
    }
}
