//! A parity bundle of a run of this program.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::bundle::{ParityBundle, ParityRun};
use super::form::{
    EncoderForm, KIND, MANIFEST, NumericMode, ParityEncoder, ParityForward, ParityMaker,
    ParityManifest,
};
use crate::device::Device;
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::files::{self, FileDigest, Staged};

pub(super) const FORWARD: &str = "forward.safetensors";
pub(super) const ROUTER: &str = "router.safetensors";
const LEARNING: &str = "learning.safetensors";

/// Prompts of a bundle that names none: short and long ones, other scripts, code, noise.
pub(super) const PROMPTS: [&str; 12] = [
    "Which bird is singing in this recording?",
    "Translate this letter into Spanish.",
    "hi",
    "Summarise the minutes of the last three meetings in five points, and name who has to do what \
     until when.",
    "def mean(xs): return sum(xs) / len(xs)  # why does this fail for []?",
    "\u{dc}bersetze \u{201e}Guten Morgen\u{201c} ins Japanische.",
    "\u{3053}\u{306e}\u{753b}\u{50cf}\u{306b}\u{306f}\u{4f55}\u{304c}\u{3042}\u{308b}?",
    "Find all people and places that are named in this article.",
    "Is this review positive or negative? \"The battery lasted two days, then nothing.\"",
    "3.14159 + 2.71828 = ?",
    "I need to caption photographs of birds for a field guide, in two languages, offline.",
    "asdf qwer zxcv 1234 !!! ???",
];

/// The manifest of a run on the device of `encoder`, with `prompts` and nothing else yet.
pub(super) fn manifest(
    encoder: &Encoder,
    mode: NumericMode,
    name: &str,
    prompts: &[String],
) -> ParityManifest {
    let device = match encoder.device() {
        Device::Cpu(_) => "cpu",
        Device::Gpu(_) => "adapter",
    };
    let config = encoder.config();
    ParityManifest {
        kind: KIND.to_owned(),
        schema_version: 1,
        name: name.to_owned(),
        made_by: ParityMaker {
            program: "hubrouter verify --export".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            versions: Value::Null,
            device: device.into(),
            device_name: encoder.device_name().to_owned(),
            mode,
            flags: json!({"tf32": false, "deterministic": true}),
            threads: Some(encoder.host().threads()),
            seed: None,
        },
        files: BTreeMap::new(),
        encoder: ParityEncoder {
            folder: None,
            form: EncoderForm::Bundle,
            name: encoder.name().to_owned(),
            revision: Some(encoder.revision().to_owned()),
            tokenizer_sha256: encoder.tokenizer_revision().to_owned(),
            model_type: None,
            layers: config.layers,
            hidden: config.hidden,
            pooling: Some(encoder.pooling_name().to_owned()),
            query_prefix: Some(encoder.query_prefix().to_owned()),
            max_tokens: Some(encoder.max_tokens()),
        },
        prompts: prompts.to_vec(),
        forward: Some(ParityForward {
            file: FORWARD.into(),
            padded: None,
        }),
        router: None,
        learning: None,
    }
}

/// Writes `run` as the bundle `folder`, which must not exist; with the encoder and the store of
/// `source`, the bundle whose run was made again, if there is one.
///
/// Errors: the folder exists; a file cannot be written.
pub(super) fn write(run: &ParityRun, folder: &Path, source: Option<&ParityBundle>) -> Result<()> {
    let Some(name) = folder.file_name().and_then(|name| name.to_str()) else {
        bail!(
            InvalidRequest,
            "{}: expected a folder with a name",
            folder.display()
        );
    };
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let staged = Staged::new(parent)?;
    let mut manifest = run.manifest.clone();
    manifest.files.clear();
    name_files(&mut manifest);
    let tensors = [
        (FORWARD, &run.forward),
        (ROUTER, &run.router),
        (LEARNING, &run.learning),
    ];
    for (file, tensors) in tensors {
        if let Some(tensors) = tensors {
            let bytes = tensors.write(file)?;
            manifest
                .files
                .insert(file.to_owned(), FileDigest::of(&bytes));
            staged.write(file, &bytes)?;
        }
    }
    let brought = source.into_iter().flat_map(|source| {
        let files = source.run.manifest.files.iter();
        files.map(|(path, digest)| (source.folder.join(path), path, digest))
    });
    for (from, path, digest) in brought {
        // Tensors lie beside the manifest, encoders and stores in folders.
        if let Some((inside, _)) = path.rsplit_once('/') {
            files::make_folder(&staged.path().join(inside))?;
            staged.link(path, &from)?;
            manifest.files.insert(path.clone(), digest.clone());
        }
    }
    staged.write(MANIFEST, &files::to_json(&manifest)?)?;
    staged.publish(name)?;
    Ok(())
}

fn name_files(manifest: &mut ParityManifest) {
    if let Some(forward) = &mut manifest.forward {
        forward.file = FORWARD.into();
    }
    if let Some(router) = &mut manifest.router {
        router.file = ROUTER.into();
    }
    if let Some(learning) = &mut manifest.learning {
        learning.file = LEARNING.into();
    }
}
