//! `hubrouter doctor`: the state of a store, its current generation and its encoder.

use std::path::PathBuf;

use serde::Serialize;

use super::{bundled, output};
use crate::encoder::read_manifest;
use crate::error::Result;
use crate::{EncoderPin, GenerationId, Options, Router, Store};

/// A store, what it serves, and what is damaged.
#[derive(Default, Serialize)]
pub(super) struct Installed {
    store: Option<PathBuf>,
    generation: Option<GenerationId>,
    models: Option<usize>,
    /// Name and hash.
    encoder: Option<String>,
    encoder_folder: Option<PathBuf>,
    /// What `--precision auto` takes on the CPU, and why.
    precision: Option<String>,
    /// Why there is no store, or why it cannot be used.
    problem: Option<String>,
}

impl Installed {
    /// Reads everything of the store at `path` that a router would read.
    pub(super) fn look(path: Result<PathBuf>, encoder: Option<PathBuf>) -> Self {
        let mut installed = Self::default();
        let looked = path.and_then(|path| installed.read(path, encoder));
        installed.problem = looked.err().map(|error| error.to_string());
        installed
    }

    fn read(&mut self, path: PathBuf, encoder: Option<PathBuf>) -> Result<()> {
        let store = Store::open(&path)?;
        self.store = Some(path);
        let id = store.current()?;
        self.generation = Some(id.clone());
        let manifest = store.check(&id)?;
        self.models = Some(manifest.models);
        let pin = &manifest.encoder;
        self.encoder = Some(format!(
            "{}@{}",
            pin.name,
            pin.sha256.get(..12).unwrap_or(&pin.sha256)
        ));
        let mut options = Options::default().device("cpu").cpu(super::cpu_level()?);
        options.encoder.clone_from(&encoder);
        options.look_in.extend(bundled::encoder());
        store.encoder(&id, &options)?;
        self.encoder_folder = folder_of(&store, pin, encoder);
        let router = Router::open_generation(store.root(), &id, options)?;
        let (precision, why) = (router.precision(), router.precision_reason());
        self.precision = Some(format!("{precision}: {why}"));
        Ok(())
    }

    /// True if a store exists but it or its encoder cannot be used.
    pub(super) fn is_damaged(&self) -> bool {
        self.store.is_some() && self.problem.is_some()
    }

    pub(super) fn print(&self) -> Result<()> {
        if let Some(store) = &self.store {
            let store = store.canonicalize().unwrap_or_else(|_| store.clone());
            output::line(format!("store       {}", store.display()))?;
        }
        if let Some(id) = &self.generation {
            let models = self.models.map(|count| output::counted(count, "model"));
            let state = models.map_or("damaged".to_owned(), |models| format!("{models}, whole"));
            output::line(format!("generation  {id}: {state}"))?;
        }
        if let Some(encoder) = &self.encoder {
            let place = match &self.encoder_folder {
                Some(folder) => format!("{encoder}: {}, whole", folder.display()),
                None => format!("{encoder}: damaged"),
            };
            output::line(format!("encoder     {place}"))?;
        }
        if let Some(precision) = &self.precision {
            output::paragraph(format!("precision   {precision}"))?;
        }
        match &self.problem {
            Some(problem) => output::paragraph(format!("problem     {problem}")),
            None => Ok(()),
        }
    }
}

/// The first folder that holds the bundle with that hash, in a router's order of search.
fn folder_of(store: &Store, pin: &EncoderPin, named: Option<PathBuf>) -> Option<PathBuf> {
    let root = store.root().canonicalize().ok()?;
    let beside = root.parent().map(|parent| parent.join(&pin.name));
    let folders = match named {
        Some(folder) => vec![Some(folder)],
        None => vec![Some(root.join(&pin.name)), beside, bundled::encoder()],
    };
    let fits = |folder: &PathBuf| read_manifest(folder).is_ok_and(|(_, hash)| hash == pin.sha256);
    folders.into_iter().flatten().find(fits)
}
