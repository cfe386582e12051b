//! Where stores and encoders are: named on the command line, or bundled.

use std::path::{Path, PathBuf};

use crate::error::{Result, bail};
use crate::{GenerationId, Store};

/// Holds the store and the encoder that come with the program.
const WEIGHTS: &str = "weights";

/// The bundled store, below [`WEIGHTS`].
const STORE: &str = "cmrbench";

/// The bundled encoder, below [`WEIGHTS`].
const ENCODER: &str = "all-MiniLM-L6-v2";

/// Folders from that of the executable upwards that are looked at: `target/debug/deps` in a source tree,
/// and `bin` in an installation.
const ABOVE: usize = 4;

/// Names a folder that holds [`WEIGHTS`]; empty counts as not set.
const HOME: &str = "HUBROUTER_HOME";

/// Names what a store's current generation is, inside it.
const CURRENT: &str = "current";

/// The program's folder below a user's or a system's data folder.
const PROGRAM: &str = "hubrouter";

/// `named`, or the bundled store.
///
/// Errors: `named` is a generation, or a folder of stores; there is no bundled store.
pub(super) fn store(named: Option<&Path>) -> Result<PathBuf> {
    match named {
        Some(path) => checked(path),
        None => Ok(weights()?.join(STORE)),
    }
}

/// The folder of the bundled encoder, where there is one.
pub(super) fn encoder() -> Option<PathBuf> {
    let folder = weights().ok()?.join(ENCODER);
    folder.is_dir().then_some(folder)
}

/// The folder of the bundled store and encoder: under `$HUBROUTER_HOME` if that is set, else beside
/// the executable or above it, in the user's data folder, in the source tree that this was built from, or
/// in the working folder when that is such a source tree.
pub(super) fn weights() -> Result<PathBuf> {
    let is_there = |folder: &PathBuf| folder.join(STORE).is_dir();
    if let Some(home) = set(HOME) {
        let folder = home.join(WEIGHTS);
        if !is_there(&folder) {
            bail!(
                Io,
                "{}: expected a store, which {HOME} promises, found none; correct {HOME} or say --router STORE",
                folder.join(STORE).display()
            );
        }
        return Ok(folder);
    }
    match candidates().into_iter().find(is_there) {
        Some(folder) => Ok(folder),
        None => bail!(
            Io,
            "no store: expected {WEIGHTS}/{STORE} beside or above the executable, or in {}; put it there \
             (or say --router STORE, or set {HOME} to the folder that holds {WEIGHTS})",
            data_folder().map_or("a data folder".to_owned(), |folder| folder
                .display()
                .to_string())
        ),
    }
}

/// Never a folder above the working folder: others may write there.
fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let executable = std::env::current_exe().and_then(|path| path.canonicalize());
    if let Ok(executable) = executable {
        let above = executable.ancestors().skip(1).take(ABOVE);
        folders.extend(above.map(|folder| folder.join(WEIGHTS)));
    }
    folders.extend(data_folder().map(|folder| folder.join(WEIGHTS)));
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join(WEIGHTS));
    let working = std::env::current_dir().ok();
    folders.extend(
        working
            .filter(|folder| is_source_tree(folder))
            .map(|folder| folder.join(WEIGHTS)),
    );
    folders
}

/// `$XDG_DATA_HOME/hubrouter` or what stands for it.
fn data_folder() -> Option<PathBuf> {
    let home = || {
        let home = set("HOME")?;
        Some(home.join(".local/share"))
    };
    let absolute = set("XDG_DATA_HOME").filter(|folder| folder.is_absolute());
    Some(absolute.or_else(home)?.join(PROGRAM))
}

fn is_source_tree(folder: &Path) -> bool {
    let manifest = crate::files::read_text(&folder.join("Cargo.toml"), 1 << 20);
    manifest.is_ok_and(|text| text.lines().any(|line| line == "name = \"hubrouter\""))
}

/// The path in an environment variable that is set and not empty.
fn set(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name)?;
    (!value.is_empty()).then(|| PathBuf::from(value))
}

/// `path`, unless the store that is meant is one level above it or below it.
fn checked(path: &Path) -> Result<PathBuf> {
    let is_store = |folder: &Path| folder.join(CURRENT).is_file();
    if is_store(path) || !path.is_dir() {
        return Ok(path.to_owned());
    }
    let name = path.canonicalize().ok();
    let name = name
        .as_deref()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str());
    let id = name.and_then(|name| name.parse::<GenerationId>().ok());
    if let Some(id) = id {
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        let above = above.unwrap_or(Path::new("."));
        bail!(
            InvalidRequest,
            "{}: expected a store, found a generation of one: say --router {} --generation {id}",
            path.display(),
            above.display()
        );
    }
    let damaged = Store::open(path).and_then(|store| store.ids());
    if damaged.is_ok_and(|ids| !ids.is_empty()) {
        return Ok(path.to_owned());
    }
    let Ok(entries) = path.read_dir() else {
        return Ok(path.to_owned());
    };
    let below = entries.flatten().map(|entry| entry.path());
    let mut below: Vec<PathBuf> = below.filter(|folder| is_store(folder)).collect();
    below.sort();
    match below.first() {
        Some(store) => bail!(
            InvalidRequest,
            "{}: expected a store, found a folder that holds one: say --router {}",
            path.display(),
            store.display()
        ),
        None => Ok(path.to_owned()),
    }
}
