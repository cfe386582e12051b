//! A store: a folder of generations and one line that names the current one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use crate::device::cpu::Cpu;
use crate::encoder::Encoder;
use crate::error::{Error, ErrorKind, Result, bail};
use crate::files;
use crate::generation::contents::{Contents, Draft};
use crate::generation::manifest::{GenerationId, Manifest};
use crate::generation::serving::open_encoder;
use crate::hub::{Hub, ModelId};
use crate::options::Options;

/// Names the current generation; replaced by rename.
const CURRENT: &str = "current";

/// Held by whoever writes; readers do not need it.
const LOCK: &str = "lock";

/// Held by whoever learns, for as long as that takes: other changes go on beside it.
const LEARNING: &str = "lock-learning";

/// Where an interrupted update left off; of no meaning to readers.
pub(crate) const RESUME: &str = "resume.safetensors";

/// A folder of generations.
///
/// Reading needs no write access. Writers hold a lock file, write under temporary names and
/// rename; a reader sees the old generation or the new one.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// A generation as `generation list` shows it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GenerationReport {
    /// The generation.
    pub id: GenerationId,
    /// True for the one that `current` names.
    pub current: bool,
    /// What is wrong with it, if anything: it is never opened then.
    pub damage: Option<String>,
    /// Its manifest, where that can be read.
    pub manifest: Option<Manifest>,
    /// When it was published, in Unix seconds, as the file system says.
    pub published: Option<u64>,
}

/// What changed between two generations.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Models that only the second has.
    pub added: Vec<String>,
    /// Models that the second retired.
    pub retired: Vec<String>,
    /// Old and new names.
    pub renamed: Vec<(String, String)>,
    /// Model and new alias; a former name counts as a rename.
    pub aliased: Vec<(String, String)>,
    /// Models whose row of E differs.
    pub moved_rows: usize,
    /// Largest angle by which a row turned, in degrees.
    pub largest_turn: f64,
    /// True when W differs.
    pub projection_changed: bool,
    /// True when they belong to different encoders.
    pub encoder_changed: bool,
}

/// What `prune` removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Pruned {
    /// Generations.
    pub generations: Vec<GenerationId>,
    /// Left-overs of writers that did not finish.
    pub leftovers: usize,
}

/// The lock of a writer; dropping it frees the store.
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // To close the file is not enough while a process that the host is just starting has it too.
        let _ = self.0.unlock();
    }
}

impl Store {
    /// The store in the folder `root`, which must exist.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref().to_owned();
        if !root.is_dir() {
            bail!(
                Io,
                "{}: expected a store (a folder with a file called {CURRENT}), found no folder",
                root.display()
            );
        }
        Ok(Self { root })
    }

    /// The store in the folder `root`, which is made if missing; a folder that holds anything else
    /// is refused.
    pub fn create(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref().to_owned();
        fs::create_dir_all(&root).map_err(|e| Error::io(&root, "create the folder", &e))?;
        let store = Self { root };
        if store.root.join(CURRENT).is_file() {
            return Ok(store);
        }
        let foreign = store.entries()?.into_iter().find(|name| {
            ![LOCK, LEARNING, RESUME].contains(&name.as_str())
                && !name.starts_with(files::TEMPORARY)
                && name.parse::<GenerationId>().is_err()
        });
        if let Some(name) = foreign {
            bail!(
                Refused,
                "{}: expected a store or an empty folder, found {name:?}",
                store.root.display()
            );
        }
        Ok(store)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn entries(&self) -> Result<Vec<String>> {
        let read = || -> std::io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.root)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        };
        read().map_err(|e| Error::io(&self.root, "list the folder", &e))
    }

    /// The hub of generation `id`.
    pub fn hub(&self, id: &GenerationId) -> Result<Hub> {
        Ok(self.contents(id)?.hub)
    }

    /// The encoder that generation `id` belongs to, opened.
    pub fn encoder(&self, id: &GenerationId, options: &Options) -> Result<Encoder> {
        let manifest = self.check(id)?;
        let host = Arc::new(Cpu::open(options.threads)?);
        open_encoder(&self.root, &manifest.encoder, host, options)
    }

    /// What generation `id` grew from. Its manifest says so: one can go back from a generation
    /// with other damage.
    pub fn parent(&self, id: &GenerationId) -> Result<GenerationId> {
        self.find(id)?;
        match Manifest::read(&self.folder(id))?.parent {
            Some(parent) => Ok(parent),
            None => bail!(Refused, "{id} has no parent to go back to"),
        }
    }

    /// Every generation's id, oldest first.
    pub fn ids(&self) -> Result<Vec<GenerationId>> {
        Ok(self
            .entries()?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    pub(crate) fn folder(&self, id: &GenerationId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// The generation that `current` names, whether it is whole or not.
    pub fn current(&self) -> Result<GenerationId> {
        let path = self.root.join(CURRENT);
        let text = files::read_text(&path, 1024)?;
        text.trim().parse().map_err(|e: Error| e.at(path.display()))
    }

    /// The current generation or, when that is damaged, the newest whole one.
    ///
    /// Also returns why the current one was passed over. Errors: none is whole.
    pub(crate) fn open_current(&self) -> Result<(GenerationId, Contents, Option<String>)> {
        let first = match self.current() {
            Ok(id) => match Contents::read(&self.folder(&id)) {
                Ok(contents) => return Ok((id, contents, None)),
                Err(error) => error,
            },
            Err(error) => error,
        };
        for id in self.ids()?.into_iter().rev() {
            if let Ok(contents) = Contents::read(&self.folder(&id)) {
                let note = format!("{first}; opened {id}, the newest whole generation");
                log::warn!("{note}");
                return Ok((id, contents, Some(note)));
            }
        }
        Err(first)
    }

    /// The generation `id`, every part checked.
    pub(crate) fn contents(&self, id: &GenerationId) -> Result<Contents> {
        self.find(id)?;
        Contents::read(&self.folder(id))
    }

    /// Errors: there is no such generation.
    fn find(&self, id: &GenerationId) -> Result<()> {
        if !self.folder(id).is_dir() {
            let known: Vec<String> = self.ids()?.iter().map(ToString::to_string).collect();
            bail!(
                InvalidRequest,
                "{id}: expected a generation of {}, found {}",
                self.root.display(),
                known.join(", ")
            );
        }
        Ok(())
    }

    /// Checks every part of `id` against its manifest.
    pub fn check(&self, id: &GenerationId) -> Result<Manifest> {
        Ok(self.contents(id)?.manifest)
    }

    /// All generations, oldest first, damaged ones with what is wrong.
    pub fn list(&self) -> Result<Vec<GenerationReport>> {
        let current = self.current().ok();
        let report = |id: GenerationId| {
            let folder = self.folder(&id);
            let published = fs::metadata(&folder).and_then(|data| data.modified()).ok();
            let published =
                published.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
            GenerationReport {
                current: current.as_ref() == Some(&id),
                damage: Contents::read(&folder).err().map(|error| error.to_string()),
                manifest: Manifest::read(&folder).ok(),
                published: published.map(|since| since.as_secs()),
                id,
            }
        };
        Ok(self.ids()?.into_iter().map(report).collect())
    }

    /// Makes `id` the current generation; it is checked first.
    pub fn set_current(&self, id: &GenerationId) -> Result<()> {
        self.contents(id)?;
        let _lock = self.lock()?;
        self.point_to(id)
    }

    fn point_to(&self, id: &GenerationId) -> Result<()> {
        files::replace(&self.root.join(CURRENT), format!("{id}\n").as_bytes())
    }

    /// Makes the parent of the current generation current again, and returns it.
    pub fn rollback(&self) -> Result<GenerationId> {
        let parent = self.parent(&self.current()?)?;
        self.set_current(&parent)?;
        Ok(parent)
    }

    /// Makes a child of the current generation and publishes it, all while no other writer can:
    /// two changes at once would both start from the same parent, and one would be lost.
    pub(crate) fn change(
        &self,
        made_by: &str,
        change: impl FnOnce(&mut Contents) -> Result<()>,
    ) -> Result<GenerationId> {
        let lock = self.lock()?;
        let parent = self.current()?;
        let mut contents = self.contents(&parent)?;
        change(&mut contents)?;
        self.publish(&lock, &contents.child(parent, made_by.to_owned()))
    }

    /// Writes `draft` and makes it current; whatever goes wrong, nothing has changed.
    pub(crate) fn publish(&self, _lock: &Lock, draft: &Draft) -> Result<GenerationId> {
        let unchanged = |e: Error| match self.current() {
            Ok(current) => e.but(format!("nothing was published, {current} stays current")),
            Err(_) => e.but("nothing was published"),
        };
        let (id, new) = draft.write(&self.root).map_err(unchanged)?;
        if let Err(error) = self.point_to(&id) {
            if self.current().is_ok_and(|current| current == id) {
                return Err(error);
            }
            if new && let Err(other) = files::remove_folder(&self.folder(&id)) {
                log::warn!("{other}");
            }
            return Err(unchanged(error));
        }
        log::info!("published {id}: {}", draft.made_by);
        Ok(id)
    }

    /// Publishes what took long to make, from when `base` was current. Waits for other writers.
    ///
    /// Errors: another generation has become current since. The draft is published beside it then,
    /// and nothing of either is lost.
    pub(crate) fn publish_after(
        &self,
        base: Option<&GenerationId>,
        draft: &Draft,
    ) -> Result<GenerationId> {
        let lock = self.wait_for_lock()?;
        match self.current().ok() {
            Some(now) if base.is_some_and(|base| *base != now) => {
                let (id, _) = draft.write(&self.root)?;
                bail!(
                    Refused,
                    "{now} has become current meanwhile and stays so; {id} is published beside it: \
                     `hubrouter generation rollback --to {id}` makes it current"
                )
            }
            _ => self.publish(&lock, draft),
        }
    }

    /// Finds out whether a generation of so many bytes can be published.
    pub(crate) fn check_writable(&self, bytes: u64) -> Result<()> {
        let _lock = self.wait_for_lock()?;
        files::try_writing(&self.root, bytes)
    }

    /// Takes away what an interrupted update left, if there is something; it is of no use, and of
    /// no harm, once the update is published.
    pub(crate) fn clear_resume(&self) {
        let path = self.root.join(RESUME);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                log::warn!("{}", Error::io(&path, "remove", &e));
            }
            _ => (),
        }
    }

    /// What changed from `old` to `new`.
    pub fn diff(&self, old: &GenerationId, new: &GenerationId) -> Result<Difference> {
        let (a, b) = (self.contents(old)?, self.contents(new)?);
        let mut difference = Difference {
            projection_changed: a.projection != b.projection,
            encoder_changed: a.manifest.encoder != b.manifest.encoder,
            ..Difference::default()
        };
        for (id, model) in b.hub.iter() {
            let Some(before) = a.hub.get(id) else {
                difference.added.push(model.name.to_string());
                continue;
            };
            if before.name != model.name {
                difference
                    .renamed
                    .push((before.name.to_string(), model.name.to_string()));
            }
            if model.retired && !before.retired {
                difference.retired.push(model.name.to_string());
            }
            for alias in &model.aliases {
                if !before.aliases.contains(alias) && *alias != before.name {
                    difference
                        .aliased
                        .push((model.name.to_string(), alias.to_string()));
                }
            }
            if a.manifest.width == b.manifest.width {
                let turn = angle(row(&a, id), row(&b, id));
                if row(&a, id) != row(&b, id) {
                    difference.moved_rows += 1;
                }
                difference.largest_turn = difference.largest_turn.max(turn);
            }
        }
        Ok(difference)
    }

    /// Removes generations, keeping the current one and its `keep` newest ancestors, and whatever
    /// unfinished writers left. A dry run only says what that would be.
    pub fn prune(&self, keep: usize, dry_run: bool) -> Result<Pruned> {
        let _lock = if dry_run { None } else { Some(self.lock()?) };
        // A learner that is at work may be writing its state, without the lock.
        let learning = if dry_run {
            Ok(None)
        } else {
            self.lock_learning()
        };
        let in_use = |name: &str| learning.is_err() && name.ends_with(RESUME);
        let mut kept = vec![self.current()?];
        while kept.len() <= keep {
            match Manifest::read(&self.folder(&kept[kept.len() - 1])) {
                Ok(Manifest {
                    parent: Some(parent),
                    ..
                }) => kept.push(parent),
                _ => break,
            }
        }
        let mut pruned = Pruned::default();
        for name in self.entries()? {
            let path = self.root.join(&name);
            let removed = |e: &std::io::Error| Error::io(&path, "remove", e);
            if name.starts_with(files::TEMPORARY) && !in_use(&name) {
                if !dry_run {
                    let gone = if path.is_dir() {
                        fs::remove_dir_all(&path)
                    } else {
                        fs::remove_file(&path)
                    };
                    gone.map_err(|e| removed(&e))?;
                }
                pruned.leftovers += 1;
            } else if let Some(id) = name
                .parse::<GenerationId>()
                .ok()
                .filter(|id| !kept.contains(id))
            {
                if !dry_run {
                    files::remove_folder(&path)?;
                }
                pruned.generations.push(id);
            }
        }
        Ok(pruned)
    }

    /// Keeps other writers out.
    pub(crate) fn lock(&self) -> Result<Lock> {
        self.try_lock(LOCK, "is writing to this store; try again")
    }

    fn wait_for_lock(&self) -> Result<Lock> {
        let (file, path) = self.open_lock(LOCK)?;
        file.lock().map_err(|e| Error::io(&path, "lock", &e))?;
        Ok(Lock(file))
    }

    /// Keeps others from learning into this store: they share the file of an interrupted update.
    /// None where nothing can be written, and so nothing can meet.
    pub(crate) fn lock_learning(&self) -> Result<Option<Lock>> {
        match self.try_lock(
            LEARNING,
            "learns into this store; try again when it has ended",
        ) {
            Err(error) if error.kind() == ErrorKind::Io => Ok(None),
            other => other.map(Some),
        }
    }

    fn open_lock(&self, name: &str) -> Result<(File, PathBuf)> {
        let path = self.root.join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io(&path, "write to the store", &e))?;
        Ok((file, path))
    }

    fn try_lock(&self, name: &str, another: &str) -> Result<Lock> {
        let (file, path) = self.open_lock(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(fs::TryLockError::WouldBlock) => {
                bail!(
                    Refused,
                    "{}: another process {another}",
                    self.root.display()
                )
            }
            Err(fs::TryLockError::Error(e)) => Err(Error::io(&path, "lock", &e)),
        }
    }
}

fn row(contents: &Contents, id: ModelId) -> &[f32] {
    &contents.embeddings[id.0 as usize * contents.manifest.width..][..contents.manifest.width]
}

/// Degrees between two rows.
fn angle(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| {
        x.iter()
            .zip(y)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum::<f64>()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths == 0.0 {
        0.0
    } else {
        (dot(a, b) / lengths).clamp(-1.0, 1.0).acos().to_degrees()
    }
}
