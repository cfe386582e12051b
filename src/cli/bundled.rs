//! Where the bundled store is.

use std::path::{Path, PathBuf};

use crate::error::{Result, bail};

/// The store that comes with the program.
const STORE: &str = "weights/cmrbench";

/// Moves the search: a folder that holds `weights`.
const HOME: &str = "HUBROUTER_HOME";

/// `named`, or the bundled store: under `$HUBROUTER_HOME` if that is set, else above the
/// executable, above the working folder, or in the source tree that this was built from.
pub(super) fn store(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    if let Some(home) = std::env::var_os(HOME) {
        let store = Path::new(&home).join(STORE);
        if !store.is_dir() {
            bail!(
                Io,
                "{}: expected a store, which {HOME} promises, found none; correct {HOME} or say --router STORE",
                store.display()
            );
        }
        return Ok(store);
    }
    let executable = std::env::current_exe()
        .and_then(|path| path.canonicalize())
        .ok();
    let working = std::env::current_dir().ok();
    let above = [executable.as_deref(), working.as_deref()]
        .into_iter()
        .flatten()
        .flat_map(Path::ancestors);
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    match above
        .chain([built])
        .map(|folder| folder.join(STORE))
        .find(|store| store.is_dir())
    {
        Some(store) => Ok(store),
        None => bail!(
            Io,
            "no store: expected {STORE} above the executable or the working folder, found none; say --router STORE or set {HOME}"
        ),
    }
}
