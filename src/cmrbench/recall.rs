//! What a folder of results says of the runs that made it: a report made again needs their settings.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::cmrbench::{Cell, MethodInfo, Results, methods};
use crate::error::{Error, Result};
use crate::files;

/// The settings of the last report, and the cells that are there.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Recalled {
    /// Seeds: the last report's, or those that cells have.
    pub seeds: Vec<u64>,
    /// Epochs of each experience, of the last report.
    pub epochs: Option<Vec<usize>>,
    /// Settings that it changed in every trained method.
    pub changes: Vec<(String, String)>,
    /// Methods that have cells, in the order of the tables.
    pub methods: Vec<&'static MethodInfo>,
    /// The last report said of a method that it was not run.
    pub not_run: bool,
}

/// What of `results.json` a run is known by.
#[derive(Deserialize)]
struct Last {
    settings: Settings,
}

#[derive(Deserialize)]
struct Settings {
    seeds: Vec<u64>,
    epochs: Vec<usize>,
    changes: Vec<String>,
    not_run: Vec<serde_json::Value>,
}

/// Looks through the folder of results `out`; a `results.json` that cannot be read counts as none.
///
/// Errors: the folder cannot be read.
pub fn recall(out: &Path) -> Result<Recalled> {
    let cells = cells(out)?;
    let has = |method: &&'static MethodInfo| cells.iter().any(|(name, _)| name == method.name);
    let mut recalled = Recalled {
        methods: methods().iter().filter(has).collect(),
        ..Recalled::default()
    };
    match files::read_json::<Last>(&out.join("results.json"), 1 << 28) {
        Ok(Last { settings }) => {
            recalled.seeds = settings.seeds;
            recalled.epochs = Some(settings.epochs);
            recalled.not_run = !settings.not_run.is_empty();
            let pairs = settings.changes.iter().filter_map(|c| c.split_once('='));
            let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
            recalled.changes = pairs.map(owned).collect();
        }
        Err(_) => {
            let seeds: BTreeSet<u64> = cells.iter().map(|(_, seed)| *seed).collect();
            recalled.seeds = seeds.into_iter().collect();
        }
    }
    Ok(recalled)
}

/// Cells in `out` that `results` do not show, as `method, seed N`: they were run with other settings,
/// or are not whole.
///
/// Errors: the folder cannot be read.
pub fn passed_over(results: &Results, out: &Path) -> Result<Vec<String>> {
    let shown = |(name, seed): &(String, u64)| {
        let method = results.method(name);
        method.is_some_and(|method| method.runs.iter().any(|run| run.seed == *seed))
    };
    let cells = cells(out)?;
    let others = cells.iter().filter(|cell| !shown(cell));
    Ok(others
        .map(|(name, seed)| format!("{name}, seed {seed}"))
        .collect())
}

/// Method and seed of every cell in `out`, sorted.
fn cells(out: &Path) -> Result<Vec<(String, u64)>> {
    let folder = out.join("cells");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, "list", e))?;
    let mut cells = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(&folder, "list", e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let parts = name.strip_suffix(".json").and_then(|n| n.rsplit_once("-s"));
        if let Some((method, seed)) = parts
            && let Ok(seed) = seed.parse()
            && Cell::file(out, method, seed) == entry.path()
        {
            cells.push((method.to_owned(), seed));
        }
    }
    cells.sort();
    Ok(cells)
}
