//! A parity bundle on disk: its files against their hashes, its tensors, its encoder and its store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::comparison::StageComparison;
use super::form::{EncoderForm, KIND, MANIFEST, MANIFEST_LIMIT, ParityManifest, ParityRouter};
use super::report::StageReport;
use super::tensors::ParityTensors;
use crate::device::cpu::Cpu;
use crate::encoder::{Encoder, ImportOptions, import_encoder};
use crate::error::{Result, bail};
use crate::files::{self, Staged};
use crate::generation::{Contents, EncoderPin, GenerationId};
use crate::options::Options;
use crate::store::{Store, find_encoder};

/// Largest file of a bundle that is read.
const FILE_LIMIT: u64 = 4 << 30;

/// What two runs are compared by: the manifest and the tensors that it names.
#[derive(Clone, Debug)]
pub(super) struct ParityRun {
    pub(super) manifest: ParityManifest,
    pub(super) forward: Option<ParityTensors>,
    pub(super) router: Option<ParityTensors>,
    pub(super) learning: Option<ParityTensors>,
}

/// A bundle that was read.
pub(super) struct ParityBundle {
    pub(super) folder: PathBuf,
    pub(super) run: ParityRun,
    /// Every file against its hash.
    pub(super) files: StageReport,
}

impl ParityBundle {
    /// Reads the bundle in `folder`. A file that is not the one that the manifest names fails the
    /// stage `files`; the tensors of such a bundle are not read.
    ///
    /// Errors: the manifest or a tensor file is malformed; a file cannot be read.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let bytes = files::read_bytes(&path, MANIFEST_LIMIT)?;
        let manifest: ParityManifest = files::parse_form(&path, &bytes, KIND)?;
        manifest.check().map_err(|e| e.at(path.display()))?;
        let mut files = StageComparison::exact("files", "a hash is equal or not");
        let wanted = |name: &String| {
            let forward = manifest.forward.as_ref().map(|f| &f.file);
            let router = manifest.router.as_ref().map(|r| &r.file);
            let learning = manifest.learning.as_ref().map(|l| &l.file);
            [forward, router, learning].contains(&Some(name))
        };
        let mut kept = Vec::new();
        for (index, (name, digest)) in manifest.files.iter().enumerate() {
            files.equal(index, name, &0, &0);
            match digest.read(&folder.join(name), FILE_LIMIT) {
                Ok(bytes) if wanted(name) => kept.push((name.clone(), bytes)),
                Ok(_) => {}
                Err(error) if error.is_damage() => files.part(index, error.to_string()),
                Err(error) => return Err(error),
            }
        }
        let Some(files) = files.finish() else {
            bail!(
                Format,
                "{}: files: expected some, found none",
                path.display()
            );
        };
        let read = |name: Option<&String>| -> Result<Option<ParityTensors>> {
            let bytes = kept.iter().find(|(kept, _)| Some(kept) == name);
            match bytes.filter(|_| files.ok) {
                Some((name, bytes)) => ParityTensors::read(bytes)
                    .map(Some)
                    .map_err(|e| e.at(folder.join(name).display())),
                None => Ok(None),
            }
        };
        let run = ParityRun {
            forward: read(manifest.forward.as_ref().map(|f| &f.file))?,
            router: read(manifest.router.as_ref().map(|r| &r.file))?,
            learning: read(manifest.learning.as_ref().map(|l| &l.file))?,
            manifest,
        };
        Ok(Self {
            folder: folder.to_owned(),
            run,
            files,
        })
    }
}

/// An encoder that a bundle brings or names. A checkpoint is imported into a folder that goes away
/// with this.
pub(super) struct BundleEncoder {
    pub(super) encoder: Arc<Encoder>,
    /// The folder of the encoder's bundle.
    pub(super) folder: PathBuf,
    _imported: Option<Staged>,
}

impl BundleEncoder {
    /// Opens the encoder of `bundle` as `options` say.
    ///
    /// Errors: it is malformed, not found, or not the one that the bundle describes.
    pub(super) fn open(bundle: &ParityBundle, options: &Options) -> Result<Self> {
        let form = &bundle.run.manifest.encoder;
        let mut options = options.clone();
        options.max_tokens = form.max_tokens;
        let (folder, imported) = match (&form.folder, form.form) {
            (Some(folder), EncoderForm::Bundle) => (bundle.folder.join(folder), None),
            (Some(folder), EncoderForm::Checkpoint) => {
                let staged = Staged::new(&std::env::temp_dir())?;
                let to = staged.path().join("encoder");
                import_encoder(bundle.folder.join(folder), &to, &ImportOptions::default())?;
                (to, Some(staged))
            }
            (None, _) => {
                let Some(revision) = form.revision.clone() else {
                    bail!(
                        Format,
                        "{MANIFEST}: encoder: expected a folder or a revision, found neither"
                    );
                };
                let pin = EncoderPin {
                    name: form.name.clone(),
                    sha256: revision,
                    tokenizer_sha256: form.tokenizer_sha256.clone(),
                    width: form.hidden,
                };
                (find_encoder(&bundle.folder, &pin, &options)?, None)
            }
        };
        let opened = Self {
            encoder: open(&folder, &options)?,
            folder,
            _imported: imported,
        };
        let config = opened.encoder.config();
        if (config.layers, config.hidden) != (form.layers, form.hidden) {
            bail!(
                Mismatch,
                "{MANIFEST}: encoder: expected {} layers of width {}, as its own config.json has, \
                 found {} of {}",
                config.layers,
                config.hidden,
                form.layers,
                form.hidden
            );
        }
        Ok(opened)
    }
}

/// Opens the encoder bundle in `folder`.
pub(super) fn open(folder: &Path, options: &Options) -> Result<Arc<Encoder>> {
    let host = Arc::new(Cpu::open_at(options.threads, options.cpu)?);
    Ok(Arc::new(Encoder::open_on(folder, host, options)?))
}

/// The generation that `router` names: in the bundle's own store, or in the store `elsewhere`.
///
/// Errors: it is not there, or damaged.
pub(super) fn generation(
    bundle: &ParityBundle,
    router: &ParityRouter,
    elsewhere: Option<&Path>,
) -> Result<(GenerationId, Contents)> {
    let id: GenerationId = router.generation.parse()?;
    let store = match (&router.folder, elsewhere) {
        (Some(folder), _) => bundle.folder.join(folder),
        (None, Some(store)) => store.to_owned(),
        (None, None) => bail!(
            InvalidRequest,
            "{id}: the bundle does not bring its store: name it with --router"
        ),
    };
    let contents = Store::open(&store)?.contents(&id)?;
    Ok((id, contents))
}
