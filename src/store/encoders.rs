//! The search for the encoder of a generation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::cpu::Cpu;
use crate::encoder::{Encoder, read_manifest};
use crate::error::{Result, bail};
use crate::files::short;
use crate::generation::EncoderPin;
use crate::options::Options;

/// Opens the encoder that `pin` names.
pub(crate) fn open_encoder(
    store: &Path,
    pin: &EncoderPin,
    host: Arc<Cpu>,
    options: &Options,
) -> Result<Encoder> {
    Encoder::open_on(&find_encoder(store, pin, options)?, host, options)
}

/// The folder of the encoder that `pin` names.
///
/// Looked for, in this order: the folder in the options; `<store>/<name>`; `<name>` beside the
/// store; the options' further folders. A bundle with another hash is refused.
pub(crate) fn find_encoder(store: &Path, pin: &EncoderPin, options: &Options) -> Result<PathBuf> {
    let mut seen = Vec::new();
    for folder in encoder_folders(store, pin, options) {
        match read_manifest(&folder) {
            Ok((_, revision)) if revision == pin.sha256 => return Ok(folder),
            Ok((_, revision)) => {
                seen.push(format!("{} (hash {})", folder.display(), short(&revision)))
            }
            // The host named this folder, so no other is tried.
            Err(error) if options.encoder.is_some() => return Err(error),
            Err(error) => seen.push(error.to_string()),
        }
    }
    bail!(
        Mismatch,
        "{}: expected encoder {} with hash {}, found {}; name its folder with --encoder",
        store.display(),
        pin.name,
        short(&pin.sha256),
        seen.join("; ")
    );
}

fn encoder_folders(store: &Path, pin: &EncoderPin, options: &Options) -> Vec<PathBuf> {
    if let Some(folder) = &options.encoder {
        return vec![folder.clone()];
    }
    let mut folders = Vec::new();
    // A manifest's name must not lead out of these folders.
    if Path::new(&pin.name).file_name() == Some(pin.name.as_ref()) {
        folders.push(store.join(&pin.name));
        let parent = store.canonicalize().ok();
        let parent = parent.as_deref().and_then(Path::parent);
        folders.extend(parent.map(|parent| parent.join(&pin.name)));
    }
    folders.extend(options.look_in.iter().cloned());
    folders
}
