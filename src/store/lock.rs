//! Locks of a store: file locks, which end with the process that holds them.
//!
//! Readers need none. On Unix any process that can read a file can lock it. So a lock file is
//! created readable only for its owner and group, who may write to the store.
#![expect(clippy::disallowed_types, reason = "how long to wait for a lock")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, bail};

/// Held by a process that writes.
pub(super) const WRITING: &str = "lock";

/// Held by a process that learns, for as long as that takes. Other changes are possible meanwhile.
pub(super) const LEARNING: &str = "lock-learning";

/// A writer needs about a second. After this time a waiting process logs that it waits.
const WORD: Duration = Duration::from_secs(1);

/// After this time a waiting process gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Between two tries of [`Lock::soon`], whose holders need some microseconds.
const SHORT_PAUSE: Duration = Duration::from_micros(100);

/// The lock of a writer; dropping it frees the store.
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough while a process that the host is just starting has it too.
        let _ = self.0.unlock();
    }
}

impl Lock {
    /// Locks `file`; the inner error gives it back if another process holds the lock.
    fn take(file: File, path: &Path) -> Result<Result<Self, File>> {
        match file.try_lock() {
            Ok(()) => Ok(Ok(Self(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(Err(file)),
            Err(fs::TryLockError::Error(e)) => Err(Error::io(path, "lock", e)),
        }
    }

    /// Errors: another process holds the lock; `does`: what it does, for the text.
    pub(super) fn at_once(root: &Path, name: &str, does: &str) -> Result<Self> {
        let (file, path) = open(root, name)?;
        Self::take(file, &path)?
            .or_else(|_| bail!(Refused, "{}: another process {does}", root.display()))
    }

    /// Waits for other processes for at most `patience`; `None` where the file system has no locks.
    ///
    /// Errors: one of them holds the lock for longer; `root` cannot be written.
    pub(crate) fn soon(root: &Path, name: &str, patience: Duration) -> Result<Option<Self>> {
        let began = Instant::now();
        let (mut file, path) = open(root, name)?;
        loop {
            file = match Self::take(file, &path) {
                Ok(Ok(lock)) => return Ok(Some(lock)),
                Ok(Err(file)) => file,
                Err(_) => return Ok(None),
            };
            if began.elapsed() >= patience {
                bail!(
                    Refused,
                    "{}: another process has been writing for {} ms",
                    path.display(),
                    patience.as_millis()
                );
            }
            std::thread::sleep(SHORT_PAUSE);
        }
    }

    /// Waits for other writers.
    ///
    /// Errors: one of them holds the lock for longer than [`PATIENCE`].
    pub(super) fn in_turn(root: &Path) -> Result<Self> {
        let began = Instant::now();
        let (mut file, path) = open(root, WRITING)?;
        let mut said = false;
        loop {
            file = match Self::take(file, &path)? {
                Ok(lock) => return Ok(lock),
                Err(file) => file,
            };
            if began.elapsed() > PATIENCE {
                bail!(
                    Refused,
                    "{}: another process is writing to this store, and has been for {} s; `fuser {}` \
                     finds it; try again when it has ended",
                    root.display(),
                    PATIENCE.as_secs(),
                    path.display()
                );
            }
            if !said && began.elapsed() > WORD {
                said = true;
                log::warn!(
                    "{}: waiting for another process that is writing to this store",
                    root.display()
                );
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// The lock file, created if missing. Links are not followed, since they could lead anywhere.
fn open(root: &Path, name: &str) -> Result<(File, PathBuf)> {
    let path = root.join(name);
    #[expect(clippy::disallowed_methods, reason = "makes the lock's file")]
    let mut options = File::options();
    options.create(true).truncate(false).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o660);
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    let file = options
        .open(&path)
        .map_err(|e| Error::io(&path, "write to the store", e))?;
    let data = file.metadata().map_err(|e| Error::io(&path, "read", e))?;
    if !data.is_file() {
        bail!(
            Refused,
            "{}: expected a regular file, found another kind: remove it",
            path.display()
        );
    }
    Ok((file, path))
}
