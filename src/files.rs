//! Files: digests, size-bounded reads, and the one writer of the crate.
//!
//! Everything this crate leaves on disk goes through [`Staged`] or [`replace`]: write under a
//! temporary name, `fsync`, rename, `fsync` the folder. Nothing is edited after its rename, so a
//! reader sees the old file or the new one, and a crash leaves at most a `.tmp-` entry behind.
#![expect(clippy::disallowed_methods, reason = "makes files")]

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result, bail, error};

/// Prefix of the names of unfinished files and folders.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// SHA-256 of `bytes` as 64 lower-case hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Whether `text` has the form of [`sha256`].
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Size and SHA-256 of a file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileDigest {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

impl FileDigest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            sha256: sha256(bytes),
        }
    }

    /// Reads the file at `path`.
    ///
    /// Errors: its length or hash is another one; it has more than `limit` bytes, which is checked
    /// before it is read.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>> {
        let (file, length) = open_file(path)?;
        self.check_length(path, length)?;
        if length > limit {
            bail!(
                Format,
                "{}: expected at most {limit} bytes, found {length}",
                path.display()
            );
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        file.take(self.bytes)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(path, "read", e))?;
        self.check(path, &bytes)?;
        Ok(bytes)
    }

    fn check_length(&self, path: &Path, length: u64) -> Result<()> {
        if length != self.bytes {
            bail!(
                Mismatch,
                "{}: expected {} bytes, found {length}",
                path.display(),
                self.bytes
            );
        }
        Ok(())
    }

    /// Errors: `bytes`, read from `path`, have another length or hash.
    pub(crate) fn check(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.check_length(path, bytes.len() as u64)?;
        let path = path.display();
        let found = sha256(bytes);
        if found != self.sha256 {
            bail!(
                Mismatch,
                "{path}: expected SHA-256 {}, found {found}",
                self.sha256
            );
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole file as text, refused above `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let bytes = read_bytes(path, limit)?;
    String::from_utf8(bytes).map_err(|e| error!(Format, "{}: not UTF-8: {e}", path.display()))
}

/// The whole file, refused above `limit` bytes before any of it is read.
pub(crate) fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, length) = open_file(path)?;
    let mut bytes = Vec::new();
    if length <= limit {
        // One more than there should be: the file may be growing.
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io(path, "read", e))?;
    }
    let found = length.max(bytes.len() as u64);
    if found > limit {
        bail!(
            Format,
            "{}: expected at most {limit} bytes, found {found}",
            path.display()
        );
    }
    Ok(bytes)
}

/// Opens the file at `path` for reading; with its length in bytes.
///
/// Errors: it is no regular file. To open a FIFO would wait for whoever writes into it.
pub(crate) fn open_file(path: &Path) -> Result<(File, u64)> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| Error::io(path, "open", e))?;
    let data = file.metadata().map_err(|e| Error::io(path, "read", e))?;
    if !data.is_file() {
        let found = if data.is_dir() {
            "a folder"
        } else {
            "a FIFO or a device"
        };
        bail!(
            Format,
            "{}: expected a regular file, found {found}",
            path.display()
        );
    }
    Ok((file, data.len()))
}

/// The whole file parsed as JSON; an error names the file, line and column.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    parse_json(path, &read_bytes(path, limit)?)
}

/// `bytes`, read from `path`, parsed as JSON.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| error!(Format, "{}: {e}", path.display()).because(e))
}

/// How the JSON files of this crate begin: what the file is, and the version of its form.
#[derive(serde::Deserialize)]
struct FormHeader {
    #[serde(default)]
    kind: String,
    schema_version: u32,
}

/// As [`parse_json`], for a file of this crate: its header is checked before the rest is parsed.
///
/// `kind`: what the header must say, empty for files that have no `kind`. Only version 1 is read.
pub(crate) fn parse_form<T: serde::de::DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
    kind: &str,
) -> Result<T> {
    let header: FormHeader = parse_json(path, bytes)?;
    if header.kind != kind {
        let (path, found) = (path.display(), header.kind);
        bail!(Format, "{path}: kind: expected {kind:?}, found {found:?}");
    }
    check_version(header.schema_version).map_err(|e| e.at(path.display()))?;
    parse_json(path, bytes)
}

/// Errors: `schema_version` is not 1.
pub(crate) fn check_version(found: u32) -> Result<()> {
    if found != 1 {
        bail!(Unsupported, "schema_version: expected 1, found {found}");
    }
    Ok(())
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
            .map_err(|e| Error::io(folder, "sync", e))?;
    }
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, "write", e))
}

/// A temporary name for the file `name`. Of a long name only the end is used, so that the file
/// system accepts it.
fn temporary_name(name: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut ends = name.char_indices().map(|(at, _)| &name[at..]);
    let end = ends.find(|end| end.len() <= 100).unwrap_or_default();
    format!("{TEMPORARY}{}-{count}-{end}", std::process::id())
}

/// Calls `make` with the first free temporary name in `folder`. A process that was killed leaves
/// such names behind, and in a container the next process may have the same id.
fn temporary<T>(
    folder: &Path,
    name: &str,
    make: impl Fn(&Path) -> std::io::Result<T>,
) -> std::io::Result<(PathBuf, T)> {
    loop {
        let path = folder.join(temporary_name(name));
        match make(&path) {
            Err(_) if path.symlink_metadata().is_ok() => {}
            made => return made.map(|made| (path, made)),
        }
    }
}

/// As [`temporary`], for a file or folder that no other process sweeps while this one writes it.
/// `make` opens the new entry; the lock on it lasts as long as the writer lives, see [`in_use`].
fn temporary_held(
    folder: &Path,
    name: &str,
    make: impl Fn(&Path) -> std::io::Result<File>,
) -> std::io::Result<(PathBuf, File)> {
    loop {
        let (path, file) = temporary(folder, name, &make)?;
        // On a file system without locks no other process looks for one.
        let _ = file.try_lock();
        // Another process may have swept it before it was locked.
        if path.symlink_metadata().is_ok() {
            return Ok((path, file));
        }
    }
}

/// True while the writer of the unfinished file or folder at `path` is alive.
pub(crate) fn in_use(path: &Path) -> bool {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOFOLLOW,
    );
    let held = |file: File| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock));
    options.open(path).is_ok_and(held)
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes the folder or file at `path`. It is renamed first, so that a reader sees it whole or not
/// at all.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    temporary(parent_of(path), name_of(path)?, |hidden| {
        fs::rename(path, hidden)
    })
    .and_then(|(hidden, ())| match hidden.is_dir() {
        true => fs::remove_dir_all(hidden),
        false => fs::remove_file(hidden),
    })
    .map_err(|e| Error::io(path, "remove", e))
}

/// Checks that `bytes` bytes can be written into `folder`: writes and removes a file of that size.
pub(crate) fn try_writing(folder: &Path, bytes: u64) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(folder, "write to the folder", e);
    let create = |path: &Path| File::create_new(path);
    let (path, mut file) = temporary_held(folder, "trial", create).map_err(failed)?;
    let written = std::io::copy(&mut std::io::repeat(0).take(bytes.max(1)), &mut file);
    let removed = fs::remove_file(&path);
    written.and(removed).map_err(failed)
}

/// Creates the folder and its parents where they are missing.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, "create the folder", e))
}

/// Replaces the file at `path` by `bytes`, or leaves it as it was.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = Replacement::new(path)?;
    file.write(bytes)?;
    file.commit()
}

/// Appends `bytes` to a log, which is created if missing. An interrupted write leaves a cut last
/// line.
#[cfg(feature = "cmrbench")]
pub(crate) fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = File::options();
    let file = options.append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|e| Error::io(path, "write", e))
}

/// Appends `line`, which ends in a line break, to the log at `path` in one write. The log is
/// created if missing, for its owner and group alone. If it ends within a line, as after a crash, a
/// line break comes first.
pub(crate) fn append_line(path: &Path, line: &[u8]) -> Result<()> {
    let mut options = File::options();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o640);
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
    }
    let append = || -> std::io::Result<()> {
        let mut file = options.open(path)?;
        match ends_in_a_line(&mut file)? {
            true => file.write_all(line),
            false => file.write_all(&[b"\n", line].concat()),
        }
    };
    append().map_err(|e| Error::io(path, "write", e))
}

/// Whether `file` is empty or its last byte is a line break; it is left at its beginning.
pub(crate) fn ends_in_a_line(file: &mut File) -> std::io::Result<bool> {
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        file.rewind()?;
    }
    Ok(last == [b'\n'])
}

/// Opens an entry that is no regular file, such as a FIFO (waits for its reader), a device or the
/// name of an open descriptor.
#[cfg(feature = "cli")]
pub(crate) fn open_to_append(path: &Path) -> Result<File> {
    let file = File::options().append(true).open(path);
    file.map_err(|e| Error::io(path, "write", e))
}

/// Writes to a control file of the system, such as those below `/proc`. It must exist, and nothing
/// can be renamed over it.
#[cfg(feature = "cmrbench")]
pub(crate) fn tell_system(path: &Path, order: &str) -> std::io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.write_all(order.as_bytes())
}

/// The last part of `path`, as text.
fn name_of(path: &Path) -> Result<&str> {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(name),
        None => bail!(Io, "{}: expected the name of a file", path.display()),
    }
}

/// A file under construction, for output that is too large for memory. It gets its name, complete,
/// in [`Replacement::commit`].
pub(crate) struct Replacement {
    writer: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl Replacement {
    /// Starts a file that will be published at `path`.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let create = |path: &Path| File::create_new(path);
        let (temporary, file) = temporary_held(parent_of(path), name_of(path)?, create)
            .map_err(|e| Error::io(path, "write", e))?;
        Ok(Self {
            writer: BufWriter::new(file),
            temporary,
            path: path.to_owned(),
            committed: false,
        })
    }

    /// The file's temporary path.
    #[cfg(feature = "cli")]
    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer
            .write_all(bytes)
            .map_err(|e| Error::io(&self.path, "write", e))
    }

    /// Replaces the file at the path.
    pub(crate) fn commit(mut self) -> Result<()> {
        let mut finish = || -> std::io::Result<()> {
            self.writer.flush()?;
            self.writer.get_ref().sync_all()?;
            fs::rename(&self.temporary, &self.path)
        };
        finish().map_err(|e| Error::io(&self.path, "write", e))?;
        self.committed = true;
        sync_folder(parent_of(&self.path))
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.committed {
            // The file at the path is unchanged; the unfinished one is useless.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A folder under construction. It appears under its name, complete, in [`Staged::publish`].
pub(crate) struct Staged {
    temporary: PathBuf,
    parent: PathBuf,
    published: bool,
    /// Locked, so that no other process sweeps the folder.
    _held: Option<File>,
}

impl Staged {
    /// Starts a folder that will be published inside `parent`, which is created if missing.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        make_folder(parent)?;
        let failed = |e: std::io::Error| Error::io(parent, "create a folder in it", e);
        // Windows has no handle for a folder.
        let (temporary, held) = if cfg!(unix) {
            let create = |path: &Path| fs::create_dir(path).and_then(|()| File::open(path));
            let (path, held) = temporary_held(parent, "folder", create).map_err(failed)?;
            (path, Some(held))
        } else {
            let create = |path: &Path| fs::create_dir(path);
            let (path, ()) = temporary(parent, "folder", create).map_err(failed)?;
            (path, None)
        };
        Ok(Self {
            temporary,
            parent: parent.to_owned(),
            published: false,
            _held: held,
        })
    }

    /// The folder's temporary path.
    pub(crate) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Adds the file `name`.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_synced(&self.temporary.join(name), bytes)
    }

    /// Adds a folder called `name` with `files`: names and bytes.
    pub(crate) fn write_folder<N: AsRef<str>>(
        &self,
        name: &str,
        files: &[(N, Vec<u8>)],
    ) -> Result<()> {
        let folder = self.temporary.join(name);
        make_folder(&folder)?;
        for (file, bytes) in files {
            write_synced(&folder.join(file.as_ref()), bytes)?;
        }
        sync_folder(&folder)?;
        sync_folder(parent_of(&folder))
    }

    /// Adds `name` as another name of the finished file `source`, or as a copy where the file
    /// system has no hard links.
    pub(crate) fn link(&self, name: &str, source: &Path) -> Result<()> {
        let target = self.temporary.join(name);
        if fs::hard_link(source, &target).is_ok() {
            return Ok(());
        }
        let bytes = fs::read(source).map_err(|e| Error::io(source, "read", e))?;
        write_synced(&target, &bytes)
    }

    /// Makes the folder appear as `parent/name`; an existing entry of that name is refused.
    pub(crate) fn publish(mut self, name: &str) -> Result<PathBuf> {
        let path = self.parent.join(name);
        if path.exists() {
            bail!(Refused, "{}: already exists", path.display());
        }
        sync_folder(&self.temporary)?;
        fs::rename(&self.temporary, &path).map_err(|e| Error::io(&path, "rename into place", e))?;
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

/// The first twelve digits of a hash, for people.
pub(crate) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn sha256_of_abc() {
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), want);
    }

    #[test]
    fn replace_leaves_no_temporary_file() {
        let folder = Folder::new("replace");
        let path = folder.join("current");
        replace(&path, b"one\n").unwrap();
        replace(&path, b"two\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two\n");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn an_unpublished_folder_disappears() {
        let folder = Folder::new("staged");
        let staged = Staged::new(&folder).unwrap();
        staged.write("a", b"1").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);

        let staged = Staged::new(&folder).unwrap();
        staged.write("a", b"1").unwrap();
        let path = staged.publish("whole").unwrap();
        assert_eq!(fs::read(path.join("a")).unwrap(), b"1");
        assert!(Staged::new(&folder).unwrap().publish("whole").is_err());
    }

    #[test]
    fn a_trial_and_a_removed_folder_leave_nothing() {
        let folder = Folder::new("trial");
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
    }

    #[test]
    fn left_overs_with_the_next_names_are_passed_over() {
        let folder = Folder::new("same-id");
        // As left by a process with the same id: the next names of every kind are taken.
        for _ in 0..40 {
            let name = temporary_name("folder");
            let (_, count) = name[TEMPORARY.len()..].split_once('-').unwrap();
            let count: u32 = count.split('-').next().unwrap().parse().unwrap();
            for (ahead, kind) in ["folder", "a", "trial", "whole"].iter().enumerate() {
                let ahead = count + 1 + u32::try_from(ahead).unwrap();
                let name = format!("{TEMPORARY}{}-{ahead}-{kind}", std::process::id());
                fs::create_dir_all(folder.join(name).join("full")).unwrap();
            }
            replace(&folder.join("a"), b"1").unwrap();
            try_writing(&folder, 10).unwrap();
            let staged = Staged::new(&folder).unwrap();
            staged.write("a", b"1").unwrap();
            staged.publish("whole").unwrap();
            remove_folder(&folder.join("whole")).unwrap();
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_a_living_writer_writes_is_in_use() {
        let folder = Folder::new("in-use");
        let staged = Staged::new(&folder).unwrap();
        let path = staged.path().to_owned();
        assert!(in_use(&path));
        let (left, kept) = (folder.join(".tmp-1-0-a"), folder.join(".tmp-1-1-b"));
        fs::write(&left, b"x").unwrap();
        fs::create_dir(&kept).unwrap();
        assert!(!in_use(&left) && !in_use(&kept));
        let file = Replacement::new(&folder.join("c")).unwrap();
        assert!(in_use(&file.temporary));
        drop((staged, file));
    }

    #[test]
    fn a_long_name_has_a_temporary_name_that_fits() {
        let folder = Folder::new("long");
        let path = folder.join("é".repeat(120));
        replace(&path, b"1").unwrap();
        assert_eq!(fs::read(path).unwrap(), b"1");
    }

    #[cfg(unix)]
    #[test]
    fn a_fifo_is_refused_at_once() {
        let folder = Folder::new("fifo");
        let path = folder.join("a");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        for bad in [path.as_path(), &folder] {
            let error = read_bytes(bad, 10).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Format);
            assert!(
                error.to_string().contains("expected a regular file"),
                "{error}"
            );
        }
    }

    #[test]
    fn reads_are_bounded() {
        let folder = Folder::new("bounded");
        fs::write(folder.join("a"), [0; 10]).unwrap();
        assert_eq!(read_bytes(&folder.join("a"), 10).unwrap().len(), 10);
        assert!(read_bytes(&folder.join("a"), 9).is_err());
    }
}
