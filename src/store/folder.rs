//! A store: a folder of generations and one line that names the current one.
#![expect(clippy::disallowed_types, reason = "when a generation was published")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::device::cpu::Cpu;
use crate::encoder::Encoder;
use crate::error::{Error, ErrorKind, Result, bail};
use crate::files;
use crate::generation::confidence::{self, CONFIDENCE, Calibration};
use crate::generation::precision::{self, Agreement, PRECISION};
use crate::generation::{Contents, EncoderPin, GenerationId, Manifest};
use crate::hub::{Hub, ModelId};
use crate::options::Options;
use crate::serve::ask;
use crate::store::encoders::{find_encoder, open_encoder};
use crate::store::lock::{LEARNING, Lock, WRITING};

/// Names the current generation; replaced by rename.
const CURRENT: &str = "current";

/// The state of an interrupted update; readers ignore it.
pub(crate) const RESUME: &str = "resume.safetensors";

/// A folder of generations.
///
/// Reading needs no write access. Writers hold a lock file, write under temporary names and
/// rename; a reader sees the old generation or the new one.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    /// More folders to look for encoders in.
    look_in: Vec<PathBuf>,
}

/// A generation as `generation list` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GenerationReport {
    /// The generation.
    pub id: GenerationId,
    /// True for the one that `current` names.
    pub current: bool,
    /// What is damaged, if anything. A damaged generation is never opened.
    pub damage: Option<String>,
    /// Its manifest, where that can be read.
    pub manifest: Option<Manifest>,
    /// When it was published, in Unix seconds, as the file system says.
    pub published: Option<u64>,
}

/// The difference of two generations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Models whose attributes differ.
    #[serde(default)]
    pub described: Vec<String>,
    /// Models whose row of E differs.
    pub moved_rows: usize,
    /// Largest angle by which a row turned, in degrees.
    pub largest_turn: f64,
    /// True when W differs.
    pub projection_changed: bool,
    /// True when they belong to different encoders.
    pub encoder_changed: bool,
}

/// The result of [`Store::prune`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Pruned {
    /// Generations.
    pub generations: Vec<GenerationId>,
    /// Unfinished files and folders of dead writers.
    pub leftovers: usize,
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
        Ok(Self::at(root))
    }

    /// The store in the folder `root`, which is made if missing; a folder that holds anything else
    /// is refused.
    pub fn create(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref().to_owned();
        #[expect(clippy::disallowed_methods, reason = "makes the store's folder")]
        fs::create_dir_all(&root).map_err(|e| Error::io(&root, "create the folder", e))?;
        let store = Self::at(root);
        if store.root.join(CURRENT).is_file() {
            return Ok(store);
        }
        let foreign = store.entries()?.into_iter().find(|name| {
            ![WRITING, LEARNING, RESUME].iter().any(|own| name == own)
                && !is_temporary(name)
                && id_of(name).is_none()
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

    fn at(root: PathBuf) -> Self {
        let look_in = Vec::new();
        Self { root, look_in }
    }

    /// The store with one more folder to look for an encoder in, behind those inside and beside it:
    /// to ask a generation before it becomes current.
    pub fn look_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.look_in.push(folder.into());
        self
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn entries(&self) -> Result<Vec<OsString>> {
        let read = || -> std::io::Result<Vec<OsString>> {
            let entries = fs::read_dir(&self.root)?;
            let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
            let mut names = names.collect::<std::io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        };
        read().map_err(|e| Error::io(&self.root, "list the folder", e))
    }

    /// The hub of generation `id`.
    pub fn hub(&self, id: &GenerationId) -> Result<Arc<Hub>> {
        Ok(self.contents(id)?.hub)
    }

    /// The encoder that generation `id` belongs to, opened.
    pub fn encoder(&self, id: &GenerationId, options: &Options) -> Result<Encoder> {
        self.exists(id)?;
        let pin = Manifest::read(&self.folder(id))?.encoder;
        self.open_encoder(&pin, options)
    }

    pub(super) fn open_encoder(&self, pin: &EncoderPin, options: &Options) -> Result<Encoder> {
        let host = Arc::new(Cpu::open_at(options.threads, options.cpu)?);
        open_encoder(&self.root, pin, host, options)
    }

    /// The parent of generation `id`. Only the manifest is read, so one can go back from a
    /// generation whose other parts are damaged.
    pub fn parent(&self, id: &GenerationId) -> Result<GenerationId> {
        self.exists(id)?;
        match Manifest::read(&self.folder(id))?.parent {
            Some(parent) => Ok(parent),
            None => bail!(Refused, "{id} has no parent to go back to"),
        }
    }

    /// Every generation's id, oldest first.
    pub fn ids(&self) -> Result<Vec<GenerationId>> {
        let entries = self.entries()?;
        let mut ids: Vec<GenerationId> = entries.iter().filter_map(|name| id_of(name)).collect();
        ids.sort();
        Ok(ids)
    }

    /// The generation whose id begins with `beginning`: `g0003` or `g0003-5a0e` will do where only
    /// one does.
    ///
    /// Errors: none does, or several do.
    pub fn find(&self, beginning: &str) -> Result<GenerationId> {
        let known = self.ids()?;
        let mut fitting = known.iter().filter(|id| id.as_str().starts_with(beginning));
        match (fitting.next(), fitting.next()) {
            (Some(id), None) if !beginning.is_empty() => Ok(id.clone()),
            (Some(first), Some(second)) => bail!(
                InvalidRequest,
                "generation {beginning:?}: expected the beginning of one id, found that of {first} and \
                 {second}: say more of it"
            ),
            _ => bail!(
                InvalidRequest,
                "generation {beginning:?}: expected the id of a generation of {}, or its beginning, \
                 found none that fits: it has {}",
                self.root.display(),
                listed(&known)
            ),
        }
    }

    pub(crate) fn folder(&self, id: &GenerationId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// The generation that the file `current` names, damaged or not.
    pub fn current(&self) -> Result<GenerationId> {
        let path = self.root.join(CURRENT);
        let text = files::read_text(&path, 1024)?;
        text.trim().parse().map_err(|e: Error| e.at(path.display()))
    }

    /// Opens the current generation with `open` or, if it is damaged, an earlier one.
    ///
    /// `read` reads a generation. `open` gets it and why the current one was passed over; its inner
    /// error is the generation's own fault, its outer one is not. A fallback goes back only: to the
    /// ancestors of the current generation, then to those made before it; where `current` itself is
    /// lost, to the newest. What passes, such as a lack of file handles or of permission, is no
    /// damage.
    ///
    /// Errors: none is whole, or the first error that is no damage.
    pub(crate) fn open_current<T>(
        &self,
        read: impl Fn(&GenerationId) -> Result<Contents>,
        mut open: impl FnMut(GenerationId, Contents, Option<String>) -> Result<Result<T>>,
    ) -> Result<T> {
        let mut attempt = |id: &GenerationId, note| match read(id) {
            Ok(contents) => open(id.clone(), contents, note),
            Err(error) => Ok(Err(error)),
        };
        let mut named = self.current();
        let first = loop {
            let error = match &named {
                Ok(id) => match attempt(id, None)? {
                    Ok(opened) => return Ok(opened),
                    Err(error) => error,
                },
                Err(error) => error.clone(),
            };
            // A writer may have made another one current, and taken this away, since it was named.
            let now = self.current();
            match (&named, &now) {
                (Ok(before), Ok(now)) if before == now || !error.is_missing() => break error,
                (Err(_), Err(_)) | (Ok(_), Err(_)) => break error,
                _ => named = now,
            }
        };
        let passing = match &named {
            Ok(_) => !first.is_damage(),
            // The text in `current` may be damaged; a file that cannot be read now is no damage.
            Err(error) => error.kind() == ErrorKind::Io && !error.is_missing(),
        };
        if passing {
            return Err(first);
        }
        let which = match named {
            Ok(_) => "the nearest whole generation before it",
            Err(_) => "the newest whole generation",
        };
        for id in self.fallbacks(named.ok().as_ref())? {
            let note = format!(
                "{first}; opened {id}, {which}; `hubrouter generation rollback --to {id}` makes it current"
            );
            // Its encoder may not be there: that of an older one may.
            match attempt(&id, Some(note.clone())).flatten() {
                Ok(opened) => {
                    log::warn!("{note}");
                    return Ok(opened);
                }
                Err(error) if error.is_damage() => log::debug!("{error}"),
                Err(error) => return Err(error),
            }
        }
        Err(first)
    }

    /// The generations to try if `current` is damaged, nearest first.
    fn fallbacks(&self, current: Option<&GenerationId>) -> Result<Vec<GenerationId>> {
        let mut ids = self.ids()?;
        ids.reverse();
        let Some(current) = current else {
            return Ok(ids);
        };
        let mut chain = self.ancestors(current);
        ids.retain(|id| id.sequence() < current.sequence() && !chain.contains(id));
        chain.extend(ids);
        Ok(chain)
    }

    /// The ancestors of `id`, its parent first, as far as their manifests can be read.
    fn ancestors(&self, id: &GenerationId) -> Vec<GenerationId> {
        let mut chain = Vec::new();
        let mut last = id.clone();
        while let Ok(Manifest {
            parent: Some(parent),
            ..
        }) = Manifest::read(&self.folder(&last))
        {
            // A parent was there first.
            if parent.sequence() >= last.sequence() {
                break;
            }
            chain.push(parent.clone());
            last = parent;
        }
        chain
    }

    /// The generation `id`, every part checked.
    pub(crate) fn contents(&self, id: &GenerationId) -> Result<Contents> {
        self.exists(id)?;
        Contents::read(&self.folder(id))
    }

    /// Errors: there is no such generation.
    fn exists(&self, id: &GenerationId) -> Result<()> {
        if !self.folder(id).is_dir() {
            bail!(
                InvalidRequest,
                "{id}: expected a generation of {}, found {}",
                self.root.display(),
                listed(&self.ids()?)
            );
        }
        Ok(())
    }

    /// How near the answers of `id` in int8 are to those in f32; `None`: that was not measured.
    ///
    /// Errors: the record is damaged, or that of another generation or encoder.
    pub fn agreement(&self, id: &GenerationId) -> Result<Option<Agreement>> {
        self.exists(id)?;
        let folder = self.folder(id);
        let encoder = Manifest::read(&folder)?.encoder.sha256;
        precision::read(&folder, id, &encoder)
    }

    /// What a child of `parent` inherits whose vectors are those of `parent`; nothing where the
    /// record is damaged.
    pub(crate) fn inherited_agreement(&self, parent: &GenerationId) -> Option<Agreement> {
        let agreement = self.agreement(parent).ok().flatten()?;
        Some(agreement.inherited(parent))
    }

    /// Records `agreement` of `id`.
    pub(crate) fn record(&self, id: &GenerationId, agreement: &Agreement) -> Result<()> {
        let _lock = self.lock()?;
        let folder = self.folder(id);
        let encoder = Manifest::read(&folder)?.encoder.sha256;
        let bytes = precision::to_bytes(id, &encoder, agreement)?;
        files::replace(&folder.join(PRECISION), &bytes)
    }

    /// How sure the answers of `id` are; `None`: that was not measured.
    ///
    /// Errors: the record is damaged, or that of another generation or encoder.
    pub fn calibration(&self, id: &GenerationId) -> Result<Option<Calibration>> {
        self.exists(id)?;
        let folder = self.folder(id);
        let encoder = Manifest::read(&folder)?.encoder.sha256;
        confidence::read(&folder, id, &encoder)
    }

    /// What a child of `parent` inherits whose vectors are those of `parent`; nothing where the
    /// record is damaged.
    pub(crate) fn inherited_calibration(&self, parent: &GenerationId) -> Option<Calibration> {
        let calibration = self.calibration(parent).ok().flatten()?;
        Some(calibration.inherited(parent))
    }

    /// Records `calibration` of `id`.
    pub(crate) fn record_calibration(
        &self,
        id: &GenerationId,
        calibration: &Calibration,
    ) -> Result<()> {
        let _lock = self.lock()?;
        let folder = self.folder(id);
        let encoder = Manifest::read(&folder)?.encoder.sha256;
        let bytes = confidence::to_bytes(id, &encoder, calibration)?;
        files::replace(&folder.join(CONFIDENCE), &bytes)
    }

    /// The manifest of `id`; every part is checked against it.
    pub fn manifest(&self, id: &GenerationId) -> Result<Manifest> {
        Ok(self.contents(id)?.manifest)
    }

    /// Checks every part of `id` against its manifest, and whether each can be opened.
    ///
    /// Where its encoder is found (see [`Store::look_in`]), the generation is also opened and asked
    /// once, as before it was published.
    pub fn check(&self, id: &GenerationId) -> Result<Manifest> {
        let contents = self.contents(id)?;
        self.check_contents(id, &contents)?;
        Ok(contents.manifest)
    }

    /// As [`Store::check`], of what was read already: [`ask`] with the generation's encoder, where
    /// that is found.
    pub(crate) fn check_contents(&self, id: &GenerationId, contents: &Contents) -> Result<()> {
        contents.check_parts()?;
        let mut options = Options::default().device("cpu").threads(1);
        options.look_in.clone_from(&self.look_in);
        match find_encoder(&self.root, &contents.manifest.encoder, &options) {
            Ok(folder) => {
                let host = Arc::new(Cpu::open_at(options.threads, options.cpu)?);
                let encoder = Encoder::open_lazily(&folder, host, &options)?;
                ask(id, contents, &Arc::new(encoder))
            }
            // It may be where only the host that serves knows of.
            Err(error) => {
                log::info!("{id} is not asked with a prompt: {error}");
                Ok(())
            }
        }
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
                damage: self.damage(&id).map(|error| error.to_string()),
                manifest: Manifest::read(&folder).ok(),
                published: published.map(|since| since.as_secs()),
                id,
            }
        };
        Ok(self.ids()?.into_iter().map(report).collect())
    }

    /// The damage of the files of `id`, if there is some.
    fn damage(&self, id: &GenerationId) -> Option<Error> {
        let contents = Contents::read(&self.folder(id));
        contents.and_then(|contents| contents.check_parts()).err()
    }

    /// Makes `id` the current generation; it is checked first, as by [`Store::check`]. The
    /// generation that is current now may be damaged or missing.
    pub fn set_current(&self, id: &GenerationId) -> Result<()> {
        let _lock = self.lock()?;
        self.check(id)?;
        self.point_to(id)
    }

    fn point_to(&self, id: &GenerationId) -> Result<()> {
        files::replace(&self.root.join(CURRENT), format!("{id}\n").as_bytes())
    }

    /// Makes the parent of the current generation current again, and returns it.
    pub fn rollback(&self) -> Result<GenerationId> {
        let _lock = self.lock()?;
        let parent = self.parent(&self.current()?)?;
        self.check(&parent)?;
        self.point_to(&parent)?;
        Ok(parent)
    }

    /// Writes `child`, reads it back, opens it, asks it once, and makes it current. On an error the
    /// store is unchanged.
    pub(crate) fn publish(
        &self,
        lock: &Lock,
        child: &Contents,
        encoder: Option<&Arc<Encoder>>,
    ) -> Result<GenerationId> {
        let unchanged = |e: Error| match self.current() {
            Ok(current) => e.but(format!("nothing was published, {current} stays current")),
            Err(_) => e.but("nothing was published"),
        };
        let (id, new) = self.write(lock, child, encoder).map_err(unchanged)?;
        if let Err(error) = self.point_to(&id) {
            if self.current().is_ok_and(|current| current == id) {
                return Err(error);
            }
            if new && let Err(other) = files::remove_folder(&self.folder(&id)) {
                log::warn!("{other}");
            }
            return Err(unchanged(error));
        }
        log::info!("published {id}: {}", child.manifest.made_by);
        Ok(id)
    }

    /// Writes `child` as a complete generation, and does not make it current.
    pub(crate) fn publish_beside(
        &self,
        child: &Contents,
        encoder: Option<&Arc<Encoder>>,
    ) -> Result<GenerationId> {
        Ok(self.write(&self.lock()?, child, encoder)?.0)
    }

    fn write(
        &self,
        _lock: &Lock,
        child: &Contents,
        encoder: Option<&Arc<Encoder>>,
    ) -> Result<(GenerationId, bool)> {
        child.write(&self.root, |id, contents| match encoder {
            Some(encoder) => ask(id, contents, encoder),
            None => self.check_contents(id, contents),
        })
    }

    /// Publishes a child that took long to make, begun when `base` was current. If another
    /// generation has become current since, `carry` may rebase the child on it.
    ///
    /// Errors: another generation has become current since, and nothing was carried over. The child
    /// is published beside it then, and nothing of either is lost.
    pub(crate) fn publish_after(
        &self,
        base: Option<&GenerationId>,
        child: &Contents,
        encoder: &Arc<Encoder>,
        carry: impl FnOnce(&GenerationId, &Contents) -> Option<Contents>,
    ) -> Result<GenerationId> {
        let lock = self.lock()?;
        match self.current().ok() {
            Some(now) if base.is_some_and(|base| *base != now) => {
                let contents = self.contents(&now).ok();
                if let Some(carried) = contents.and_then(|contents| carry(&now, &contents)) {
                    log::info!(
                        "{now} has become current meanwhile: the hub's changes are carried over"
                    );
                    return self.publish(&lock, &carried, Some(encoder));
                }
                let (id, _) = self.write(&lock, child, Some(encoder))?;
                bail!(
                    Refused,
                    "{now} has become current meanwhile and stays so; {id} is published beside it: \
                     `hubrouter generation rollback --to {id}` makes it current"
                )
            }
            _ => self.publish(&lock, child, Some(encoder)),
        }
    }

    /// Checks that a generation of so many bytes can be published.
    pub(crate) fn check_writable(&self, bytes: u64) -> Result<()> {
        let _lock = self.lock()?;
        files::try_writing(&self.root, bytes)
    }

    /// Deletes the state of an interrupted update, if there is one. Once the update is published it
    /// is useless, and harmless if it stays.
    pub(crate) fn clear_resume(&self) {
        let path = self.root.join(RESUME);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                log::warn!("{}", Error::io(&path, "remove", e));
            }
            _ => (),
        }
    }

    /// The difference from `old` to `new`.
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
            if before.attributes != model.attributes {
                difference.described.push(model.name.to_string());
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

    /// Removes all generations but the current one and its `keep` newest ancestors, and the
    /// unfinished files of dead writers. A dry run only reports what it would remove.
    pub fn prune(&self, keep: usize, dry_run: bool) -> Result<Pruned> {
        let _lock = if dry_run { None } else { Some(self.lock()?) };
        let current = self.current()?;
        let mut kept = self.ancestors(&current);
        kept.truncate(keep);
        kept.push(current);
        let mut pruned = Pruned::default();
        for name in self.entries()? {
            let path = self.root.join(&name);
            if is_temporary(&name) {
                if files::in_use(&path) {
                    continue;
                }
                if !dry_run {
                    remove(&path).map_err(|e| Error::io(&path, "remove", e))?;
                }
                pruned.leftovers += 1;
            } else if let Some(id) = id_of(&name).filter(|id| !kept.contains(id)) {
                if !dry_run {
                    files::remove_folder(&path)?;
                }
                pruned.generations.push(id);
            }
        }
        Ok(pruned)
    }

    /// Keeps other writers out. Waits for those at work, for a limited time, and says so in the
    /// log.
    pub(crate) fn lock(&self) -> Result<Lock> {
        Lock::in_turn(&self.root)
    }

    /// Keeps other processes from learning into this store, since they would share the file of an
    /// interrupted update. `None` if the store is read-only: then none can write it.
    pub(crate) fn lock_learning(&self) -> Result<Option<Lock>> {
        let does = "learns into this store; try again when it has ended";
        match Lock::at_once(&self.root, LEARNING, does) {
            Err(error) if error.kind() == ErrorKind::Io => Ok(None),
            other => other.map(Some),
        }
    }
}

/// The generation that a folder of this name is.
fn id_of(name: &OsStr) -> Option<GenerationId> {
    name.to_str()?.parse().ok()
}

fn is_temporary(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.starts_with(files::TEMPORARY.as_bytes())
}

/// Removes a file, a link, or a folder with what is in it.
fn remove(path: &Path) -> std::io::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

fn listed(ids: &[GenerationId]) -> String {
    match ids {
        [] => "none".to_owned(),
        _ => ids
            .iter()
            .map(GenerationId::as_str)
            .collect::<Vec<_>>()
            .join(", "),
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
