//! Files: digests, size-bounded reads, and the one writer of the crate.
//!
//! Everything this crate leaves on disk goes through [`Staged`] or [`replace`]: write under a
//! temporary name, `fsync`, rename, `fsync` the folder. Nothing is edited after its rename, so a
//! reader sees the old file or the new one, and a crash leaves at most a `.tmp-` entry behind.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result, bail, error};

/// Prefix of whatever is not finished yet.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// SHA-256 of `bytes` as 64 lower-case hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole file as text, refused above `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let bytes = read_bytes(path, limit)?;
    String::from_utf8(bytes).map_err(|e| error!(Format, "{}: not UTF-8: {e}", path.display()))
}

/// The whole file, refused above `limit` bytes.
pub(crate) fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", &e))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, "read", &e))?;
    if bytes.len() as u64 > limit {
        bail!(
            Format,
            "{}: expected at most {limit} bytes, found more",
            path.display()
        );
    }
    Ok(bytes)
}

/// The whole file parsed as JSON; an error names the file, line and column.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    parse_json(path, &read_bytes(path, limit)?)
}

/// `bytes`, read from `path`, parsed as JSON.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| error!(Format, "{}: {e}", path.display()))
}

/// Pretty JSON with a final newline.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| error!(Format, "cannot write JSON: {e}"))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn sync_folder(folder: &Path) -> Result<()> {
    // Windows has no handle to sync for a folder.
    if cfg!(unix) {
        File::open(folder)
            .and_then(|handle| handle.sync_all())
            .map_err(|e| Error::io(folder, "sync", &e))?;
    }
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, "write", &e))
}

fn temporary_name(name: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{TEMPORARY}{}-{count}-{name}", std::process::id())
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes the folder at `path`: out of sight first, so that a reader sees it whole or not at all.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    let hidden = temporary_beside(path)?;
    fs::rename(path, &hidden)
        .and_then(|()| fs::remove_dir_all(&hidden))
        .map_err(|e| Error::io(path, "remove", &e))
}

/// Finds out whether `bytes` can be written into `folder`: writes so many, and takes them away.
pub(crate) fn try_writing(folder: &Path, bytes: u64) -> Result<()> {
    let temporary = folder.join(temporary_name("trial"));
    let failed = |e: &std::io::Error| Error::io(folder, "write to the folder", e);
    let mut file = File::create_new(&temporary).map_err(|e| failed(&e))?;
    let written = std::io::copy(&mut std::io::repeat(0).take(bytes.max(1)), &mut file);
    let removed = fs::remove_file(&temporary);
    written.and(removed).map_err(|e| failed(&e))
}

/// Makes the folder and those above it, unless they are there.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, "create the folder", &e))
}

/// Replaces the file at `path` by `bytes`, or leaves it as it was.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = Replacement::new(path)?;
    file.write(bytes)?;
    file.commit()
}

/// Adds `bytes` to the end of a log, which is made if missing: what is cut off there is the end of
/// the last line.
pub(crate) fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = File::options();
    let file = options.append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|e| Error::io(path, "write", &e))
}

/// Writes to a file that is none but an order to the system, such as those below `/proc`: it has to
/// be there, and nothing can be renamed over it.
pub(crate) fn tell_system(path: &Path, order: &str) -> std::io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.write_all(order.as_bytes())
}

/// A free name in the folder of `path`.
fn temporary_beside(path: &Path) -> Result<PathBuf> {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(parent_of(path).join(temporary_name(name))),
        None => bail!(Io, "{}: expected the name of a file", path.display()),
    }
}

/// A file under construction, for output that is too large to hold; it takes its name, whole, at
/// [`Replacement::commit`].
pub(crate) struct Replacement {
    writer: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl Replacement {
    /// Starts the file that will be at `path`.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let temporary = temporary_beside(path)?;
        let file = File::create_new(&temporary).map_err(|e| Error::io(path, "write", &e))?;
        Ok(Self {
            writer: BufWriter::new(file),
            temporary,
            path: path.to_owned(),
            committed: false,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer
            .write_all(bytes)
            .map_err(|e| Error::io(&self.path, "write", &e))
    }

    /// Replaces what was at the path.
    pub(crate) fn commit(mut self) -> Result<()> {
        let mut finish = || -> std::io::Result<()> {
            self.writer.flush()?;
            self.writer.get_ref().sync_all()?;
            fs::rename(&self.temporary, &self.path)
        };
        finish().map_err(|e| Error::io(&self.path, "write", &e))?;
        self.committed = true;
        sync_folder(parent_of(&self.path))
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.committed {
            // The file at the path is as it was; the rest is of no use.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A folder under construction; it appears under its name, whole, at [`Staged::publish`].
pub(crate) struct Staged {
    temporary: PathBuf,
    parent: PathBuf,
    published: bool,
}

impl Staged {
    /// Starts a folder that will be published inside `parent`, which is made if missing.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        make_folder(parent)?;
        let temporary = parent.join(temporary_name("folder"));
        fs::create_dir(&temporary).map_err(|e| Error::io(&temporary, "create the folder", &e))?;
        Ok(Self {
            temporary,
            parent: parent.to_owned(),
            published: false,
        })
    }

    /// Where the folder is until it is published.
    pub(crate) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Adds the file `name`.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_synced(&self.temporary.join(name), bytes)
    }

    /// Adds `name` as another name of the finished file `source`, or as a copy where the file
    /// system has no hard links.
    pub(crate) fn link(&self, name: &str, source: &Path) -> Result<()> {
        let target = self.temporary.join(name);
        if fs::hard_link(source, &target).is_ok() {
            return Ok(());
        }
        let bytes = fs::read(source).map_err(|e| Error::io(source, "read", &e))?;
        write_synced(&target, &bytes)
    }

    /// Makes the folder appear as `parent/name`; an existing entry of that name is refused.
    pub(crate) fn publish(mut self, name: &str) -> Result<PathBuf> {
        let path = self.parent.join(name);
        if path.exists() {
            bail!(Refused, "{}: already exists", path.display());
        }
        sync_folder(&self.temporary)?;
        fs::rename(&self.temporary, &path)
            .map_err(|e| Error::io(&path, "rename into place", &e))?;
        self.published = true;
        sync_folder(&self.parent)?;
        Ok(path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // Nothing was published; a leftover is swept by `prune`.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(temporary_name(name));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn sha256_of_abc() {
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), want);
    }

    #[test]
    fn replace_leaves_no_temporary_file() {
        let folder = folder("replace");
        let path = folder.join("current");
        replace(&path, b"one\n").unwrap();
        replace(&path, b"two\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two\n");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_unpublished_folder_disappears() {
        let folder = folder("staged");
        let staged = Staged::new(&folder).unwrap();
        staged.write("a", b"1").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);

        let staged = Staged::new(&folder).unwrap();
        staged.write("a", b"1").unwrap();
        let path = staged.publish("whole").unwrap();
        assert_eq!(fs::read(path.join("a")).unwrap(), b"1");
        assert!(Staged::new(&folder).unwrap().publish("whole").is_err());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_trial_and_a_removed_folder_leave_nothing() {
        let folder = folder("trial");
        try_writing(&folder, 100_000).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        let error = try_writing(&folder.join("missing"), 1).unwrap_err();
        assert!(
            error.to_string().contains("missing: cannot write"),
            "{error}"
        );
        fs::create_dir(folder.join("a")).unwrap();
        fs::write(folder.join("a/b"), "x").unwrap();
        remove_folder(&folder.join("a")).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn reads_are_bounded() {
        let folder = folder("bounded");
        fs::write(folder.join("a"), [0; 10]).unwrap();
        assert_eq!(read_bytes(&folder.join("a"), 10).unwrap().len(), 10);
        assert!(read_bytes(&folder.join("a"), 9).is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
