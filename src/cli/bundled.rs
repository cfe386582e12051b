//! Finds the store and the encoder: named on the command line, or bundled with the program.

use std::path::{Path, PathBuf};

use crate::error::{Result, bail};
use crate::{GenerationId, Store};

/// The folder of the bundled store and encoder.
const WEIGHTS: &str = "weights";

/// The bundled store, below [`WEIGHTS`].
const STORE: &str = "cmrbench";

/// The bundled encoder, below [`WEIGHTS`].
const ENCODER: &str = "all-MiniLM-L6-v2";

/// How many folders are searched, from the executable's folder upwards. Enough for
/// `target/debug/deps` in a source tree, and for `bin` in an installation.
const ABOVE: usize = 4;

/// The environment variable with the folder that contains [`WEIGHTS`]; empty counts as not set.
const HOME: &str = "HUBROUTER_HOME";

/// The environment variable with the folder for what was compiled for a GPU.
const CACHE: &str = "HUBROUTER_CACHE";

/// The file in a store that names its current generation.
const CURRENT: &str = "current";

/// The program's folder in a folder of data.
const PROGRAM: &str = "hubrouter";

/// Returns `named`, or the bundled store.
///
/// Errors: `named` is a generation or a folder of stores; no bundled store exists.
pub(super) fn store(named: Option<&Path>) -> Result<PathBuf> {
    match named {
        Some(path) => checked(path),
        None => Ok(weights()?.join(STORE)),
    }
}

/// The folder of the bundled encoder, if it exists.
pub(super) fn encoder() -> Option<PathBuf> {
    let folder = weights().ok()?.join(ENCODER);
    folder.is_dir().then_some(folder)
}

/// The folder of the bundled store and encoder.
///
/// Searched in this order: `$HUBROUTER_HOME` if it is set, and nothing else then; the executable's
/// folder and those above it; `share/hubrouter` beside the executable's folder, where a package
/// installs; the user's data folder; the source tree that built this program; the working folder if
/// it is such a source tree.
pub(super) fn weights() -> Result<PathBuf> {
    let is_there = |folder: &PathBuf| folder.join(STORE).is_dir();
    if let Some(home) = set(HOME) {
        let folder = home.join(WEIGHTS);
        if !is_there(&folder) {
            bail!(
                Io,
                "{}: expected a store because {HOME} is set, found none; correct {HOME} or pass \
                 --router STORE",
                folder.join(STORE).display()
            );
        }
        return Ok(folder);
    }
    match candidates().into_iter().find(is_there) {
        Some(folder) => Ok(folder),
        None => bail!(
            Io,
            "no store: expected {WEIGHTS}/{STORE} beside or above the executable, or in {}; copy \
             it there, pass --router STORE, or set {HOME} to the folder that contains {WEIGHTS}",
            data_folder().map_or("a data folder".to_owned(), |folder| folder
                .display()
                .to_string())
        ),
    }
}

/// Folders to search. None is above the working folder, because others may write there.
fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let executable = std::env::current_exe().and_then(|path| path.canonicalize());
    if let Ok(executable) = executable {
        let above = executable.ancestors().skip(1).take(ABOVE);
        folders.extend(above.map(|folder| folder.join(WEIGHTS)));
        let prefix = executable.ancestors().nth(2);
        folders.extend(prefix.map(|prefix| prefix.join("share").join(PROGRAM).join(WEIGHTS)));
    }
    folders.extend(data_folder().map(|folder| folder.join(WEIGHTS)));
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join(WEIGHTS));
    #[expect(clippy::disallowed_methods, reason = "reads the environment")]
    let working = std::env::current_dir().ok();
    folders.extend(
        working
            .filter(|folder| is_source_tree(folder))
            .map(|folder| folder.join(WEIGHTS)),
    );
    folders
}

/// `$XDG_DATA_HOME/hubrouter`, or its default `~/.local/share/hubrouter`.
fn data_folder() -> Option<PathBuf> {
    let home = || {
        let home = set("HOME")?;
        Some(home.join(".local/share"))
    };
    let absolute = set("XDG_DATA_HOME").filter(|folder| folder.is_absolute());
    Some(absolute.or_else(home)?.join(PROGRAM))
}

/// The folder for what was compiled for a GPU: `$HUBROUTER_CACHE`, where `off` is none; else
/// `$XDG_CACHE_HOME/hubrouter` or its default `~/.cache/hubrouter`.
pub(super) fn cache_folder() -> Option<PathBuf> {
    match set(CACHE) {
        Some(folder) if folder == Path::new("off") => None,
        Some(folder) => Some(folder),
        None => {
            let absolute = set("XDG_CACHE_HOME").filter(|folder| folder.is_absolute());
            let home = || Some(set("HOME")?.join(".cache"));
            Some(absolute.or_else(home)?.join(PROGRAM))
        }
    }
}

fn is_source_tree(folder: &Path) -> bool {
    let manifest = crate::files::read_text(&folder.join("Cargo.toml"), 1 << 20);
    manifest.is_ok_and(|text| text.lines().any(|line| line == "name = \"hubrouter\""))
}

/// The path in an environment variable; `None` if it is unset or empty.
fn set(name: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "reads the environment")]
    let value = std::env::var_os(name)?;
    (!value.is_empty()).then(|| PathBuf::from(value))
}

/// Returns `path`.
///
/// Errors: the store is one level above it or below it; the text names it.
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
            "{}: expected a store, found a generation of one: use --router {} --generation {id}",
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
            "{}: expected a store, found a folder that contains one: use --router {}",
            path.display(),
            store.display()
        ),
        None => Ok(path.to_owned()),
    }
}
