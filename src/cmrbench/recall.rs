//! The settings of the runs in a folder of results: a report that is made again needs them.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::cmrbench::{Cell, CellSettings, MethodInfo, Results, methods};
use crate::error::{Error, Result};
use crate::files;

/// The settings of the last report or of the cells, and the methods that have cells.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LastRun {
    /// The last report's settings; without a report those that most cells note. `None`: neither is
    /// there.
    pub settings: Option<CellSettings>,
    /// The last report's seeds, or those of the cells.
    pub seeds: Vec<u64>,
    /// Methods that have cells, in the order of the tables.
    pub methods: Vec<&'static MethodInfo>,
    /// The last report names a method that was not run.
    pub not_run: bool,
}

/// What `results.json` says of its run.
#[derive(Deserialize)]
struct LastReport {
    settings: LastSettings,
}

#[derive(Deserialize)]
struct LastSettings {
    seeds: Vec<u64>,
    not_run: Vec<serde_json::Value>,
    #[serde(flatten)]
    of_cells: CellSettings,
}

/// The settings of the last report in `out`; `None` where there is none that can be read.
fn last_settings(out: &Path) -> Option<LastSettings> {
    let last: Result<LastReport> = files::read_json(&out.join("results.json"), 1 << 28);
    last.ok().map(|last| last.settings)
}

/// The settings that the last report in `out` states for its cells.
pub(super) fn stated(out: &Path) -> Option<CellSettings> {
    last_settings(out).map(|last| last.of_cells)
}

/// Looks through the folder of results `out`. A `results.json` that cannot be read counts as none.
///
/// Errors: the folder cannot be read; a cell is malformed.
pub fn recall(out: &Path) -> Result<LastRun> {
    let cells = cells(out)?;
    let has = |method: &&'static MethodInfo| cells.iter().any(|(name, _)| name == method.name);
    let methods = methods().iter().filter(has).collect();
    if let Some(last) = last_settings(out) {
        return Ok(LastRun {
            settings: Some(last.of_cells),
            seeds: last.seeds,
            methods,
            not_run: !last.not_run.is_empty(),
        });
    }
    let seeds: BTreeSet<u64> = cells.iter().map(|(_, seed)| *seed).collect();
    let mut noted: Vec<(CellSettings, usize)> = Vec::new();
    for (method, seed) in &cells {
        let cell = Cell::read(out, method, *seed)?;
        let Some(settings) = cell.and_then(|cell| cell.settings) else {
            continue;
        };
        match noted.iter_mut().find(|(other, _)| *other == settings) {
            Some((_, count)) => *count += 1,
            None => noted.push((settings, 1)),
        }
    }
    // Of equals the first: `max_by_key` would take the last.
    let most = noted.into_iter().rev().max_by_key(|(_, count)| *count);
    Ok(LastRun {
        settings: most.map(|(settings, _)| settings),
        seeds: seeds.into_iter().collect(),
        methods,
        not_run: false,
    })
}

/// Cells in `out` that `results` do not show, as `method, seed N`: those of other settings, and
/// those that are not whole.
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
