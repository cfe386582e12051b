//! Where `--output` writes.
//!
//! A regular file or a new name appears complete, by rename, at the end. The mode of an existing
//! file is kept, and its owner if the system permits. Links are followed. Anything else (a FIFO, a
//! device, `/dev/fd/N`) is opened and written line by line. `-` is stdout.

use std::fs::{File, Metadata};
use std::io::{LineWriter, Write};
use std::path::{Path, PathBuf};

use super::output;
use super::signals::{self, RemovedAtEnd};
use crate::error::{Error, Result, bail};
use crate::files::{Replacement, open_to_append};

/// Longest chain of links that is followed, as on Linux.
const MOST_LINKS: usize = 40;

/// Names of stdout.
const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// Names of open descriptors, and folders of them.
const DESCRIPTORS: [&str; 4] = ["/dev/fd", "/proc/self/fd", "/dev/stdout", "/dev/stderr"];

pub(super) enum Sink {
    Stdout,
    Direct(LineWriter<File>, PathBuf),
    File(Replacement, RemovedAtEnd),
}

impl Sink {
    /// Opens `path` for output. From now on a signal leaves no temporary file.
    ///
    /// Errors: `path` cannot be written, or it is one of `inputs`, which would be overwritten.
    pub(super) fn open(path: &Path, inputs: &[PathBuf]) -> Result<Self> {
        let target = behind_links(path)?;
        if STDOUT.iter().any(|name| Path::new(name) == target) {
            return Ok(Self::Stdout);
        }
        if is_descriptor(&target) {
            return Self::direct(&target);
        }
        match target.metadata() {
            Ok(data) if data.is_dir() => bail!(
                InvalidRequest,
                "--output {}: expected the name of a file, found a folder",
                path.display()
            ),
            Ok(data) if !data.is_file() => Self::direct(path),
            Ok(data) => {
                if inputs.iter().any(|input| same_file(input, &target, &data)) {
                    bail!(
                        InvalidRequest,
                        "--output {}: expected another file than the input, which would be \
                         overwritten",
                        path.display()
                    );
                }
                Self::file(&target, Some(&data))
            }
            Err(_) => Self::file(&target, None),
        }
    }

    fn direct(path: &Path) -> Result<Self> {
        let file = open_to_append(path)?;
        Ok(Self::Direct(LineWriter::new(file), path.to_owned()))
    }

    fn file(path: &Path, old: Option<&Metadata>) -> Result<Self> {
        signals::end_at_once()?;
        let file = Replacement::new(path)?;
        let removed = RemovedAtEnd::new(file.temporary());
        if let Some(old) = old {
            keep_owner_and_mode(&file, old).map_err(|e| Error::io(path, "set the mode", e))?;
        }
        Ok(Self::File(file, removed))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Stdout => output::raw(bytes),
            Self::Direct(file, path) => file
                .write_all(bytes)
                .map_err(|e| output::write_error(&path.display().to_string(), &e)),
            Self::File(file, _) => file.write(bytes),
        }
    }

    /// Completes the output: a regular file appears now.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Stdout => Ok(()),
            Self::Direct(mut file, path) => file
                .flush()
                .map_err(|e| output::write_error(&path.display().to_string(), &e)),
            Self::File(file, _removed) => file.commit(),
        }
    }
}

/// True for an open descriptor: it must be written, not replaced, even if it resolves to a file.
fn is_descriptor(path: &Path) -> bool {
    DESCRIPTORS.iter().any(|name| path.starts_with(name))
}

/// The end of the chain of links from `path`: a path that need not exist, or an open descriptor.
fn behind_links(path: &Path) -> Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..MOST_LINKS {
        if is_descriptor(&target) {
            return Ok(target);
        }
        match std::fs::read_link(&target) {
            Ok(next) => {
                let folder = target.parent().map(Path::to_owned).unwrap_or_default();
                target = folder.join(next);
            }
            Err(_) => return Ok(target),
        }
    }
    bail!(
        Io,
        "--output {}: expected a file, found links that form a loop",
        path.display()
    );
}

#[cfg(unix)]
fn same_file(input: &Path, _target: &Path, output: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |data: Metadata| (data.dev(), data.ino()) == (output.dev(), output.ino());
    input.metadata().is_ok_and(same)
}

#[cfg(not(unix))]
fn same_file(input: &Path, target: &Path, _output: &Metadata) -> bool {
    let input = input.canonicalize();
    input.is_ok_and(|input| target.canonicalize().is_ok_and(|target| target == input))
}

fn keep_owner_and_mode(file: &Replacement, old: &Metadata) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, chown};
        // Only root may change the owner; a member of the group may set the group alone.
        let owner = chown(file.temporary(), Some(old.uid()), Some(old.gid()));
        if owner.is_err() {
            let _ = chown(file.temporary(), None, Some(old.gid()));
        }
    }
    std::fs::set_permissions(file.temporary(), old.permissions())
}
