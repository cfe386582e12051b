//! Locks of a store: files that a process holds, for as long as it lives, through the file system.
//!
//! Readers need none. A lock is made so that only whoever may write to the store by its group can
//! open it: on Unix whoever can read a file can also lock it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, bail};

/// Held by whoever writes.
pub(super) const WRITING: &str = "lock";

/// Held by whoever learns, for as long as that takes: other changes go on beside it.
pub(super) const LEARNING: &str = "lock-learning";

/// A writer is done within a second or so; who has waited this long says so.
const WORD: Duration = Duration::from_secs(1);

/// Who has waited this long gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// The lock of a writer; dropping it frees the store.
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // To close the file is not enough while a process that the host is just starting has it too.
        let _ = self.0.unlock();
    }
}

impl Lock {
    /// Takes the lock `name` of the store in `root`; none: another process holds it.
    fn take(file: File, path: &Path) -> Result<Result<Self, File>> {
        match file.try_lock() {
            Ok(()) => Ok(Ok(Self(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(Err(file)),
            Err(fs::TryLockError::Error(e)) => Err(Error::io(path, "lock", e)),
        }
    }

    /// Errors: another process holds the lock, and `does` what the text says.
    pub(super) fn at_once(root: &Path, name: &str, does: &str) -> Result<Self> {
        let (file, path) = open(root, name)?;
        Self::take(file, &path)?
            .or_else(|_| bail!(Refused, "{}: another process {does}", root.display()))
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

/// The lock file, made if missing. A link is not followed: it might lead anywhere.
fn open(root: &Path, name: &str) -> Result<(File, PathBuf)> {
    let path = root.join(name);
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
