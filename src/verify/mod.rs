//! Whether two machines, two devices, two versions, or this program and PyTorch have the same
//! router, and if not, where they part (docs/reproducibility.md).
//!
//! A *parity bundle* is a recorded run: tokens, layers, scores, a learning run with its batches.
//! A run of this program has the same form in memory ([`bundle::ParityRun`]), so one comparison
//! serves a bundle and this machine, two bundles, and two devices.
#![expect(clippy::disallowed_types, reason = "seconds that a verification took")]

mod bounds;
mod bundle;
mod compare;
mod comparison;
mod exact;
mod export;
mod form;
mod forward;
mod invariance;
mod learning;
mod learning_check;
mod learning_compare;
mod ranking;
mod report;
mod tensors;
mod whole_store;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use self::bundle::{BundleEncoder, ParityBundle, ParityRun};
use self::compare::Sides;
use self::form::{NumericMode, ParityForward, ParityRouter};
use self::forward::ProbedEncoder;
pub(crate) use self::report::{CurvePoint, ParityVerdict, StageReport, VerifyReport};
use crate::encoder::Encoder;
use crate::error::{Result, bail, caught};
use crate::generation::{Contents, GenerationId};
use crate::options::{Options, Precision};
use crate::serve::Serving;
use crate::serve::gate::Choice;
use crate::store::{Store, find_encoder};
use crate::text::tokenizer::Tokens;

/// Called with what is done, how much of it, and how much there is.
pub(crate) type VerifyProgress<'p> = &'p mut dyn FnMut(&'static str, usize, usize);

/// Models of a ranking in a bundle that is made here.
const TOP: usize = 10;

/// Makes the run of the bundle in `folder` again, as `options` say, and compares. `store`: where a
/// generation is looked for that the bundle does not bring; `copy`: a bundle to write of this run.
///
/// Errors: the bundle is malformed, or names what is not there; the device failed.
pub(crate) fn verify_bundle(
    folder: &Path,
    store: Option<&Path>,
    copy: Option<&Path>,
    options: &Options,
    progress: VerifyProgress<'_>,
) -> Result<VerifyReport> {
    let begin = Instant::now();
    let report = caught("verify", || {
        replayed(folder, store, copy, options, progress)
    })?;
    Ok(report.conclude(begin.elapsed().as_secs_f64()))
}

fn replayed(
    folder: &Path,
    store: Option<&Path>,
    copy: Option<&Path>,
    options: &Options,
    progress: VerifyProgress<'_>,
) -> Result<VerifyReport> {
    progress("files", 0, 1);
    let bundle = ParityBundle::read(folder)?;
    let form = &bundle.run.manifest;
    let name = format!("{} ({})", folder.display(), form.name);
    let mode = mode_of(options.precision);
    let mut report = VerifyReport::new(name, "this machine".into(), mode);
    report.bundle_mode = Some(form.made_by.mode.to_string());
    report.stages.push(bundle.files.clone());
    if !bundle.files.ok {
        report
            .not_compared
            .push("everything else: a file is not the one that was recorded".into());
        return Ok(report);
    }
    let brought = BundleEncoder::open(&bundle, options)?;
    let encoder = &brought.encoder;
    report.device = Some(encoder.device_name().to_owned());
    let probed = ProbedEncoder::new(Arc::clone(encoder), options.precision)?;
    let found = again(&bundle, store, &probed, options, progress)?;
    let sides = Sides {
        found: &found,
        expected: &bundle.run,
    };
    sides.compare(&mut report)?;
    progress("invariance", 0, 1);
    let tokens = forward::tokenized(encoder, &form.prompts)?;
    invariance::compare(&probed, &brought.folder, options, &tokens, &mut report)?;
    if let Some(copy) = copy {
        export::write(&found, copy, Some(&bundle))?;
    }
    Ok(report)
}

/// The run of `bundle` on this machine.
fn again(
    bundle: &ParityBundle,
    store: Option<&Path>,
    probed: &ProbedEncoder,
    options: &Options,
    progress: VerifyProgress<'_>,
) -> Result<ParityRun> {
    let (encoder, expected) = (&probed.encoder, &bundle.run);
    let form = &expected.manifest;
    let own = forward::tokenized(encoder, &form.prompts)?;
    let tokens = forward::planned(encoder, &own, expected.forward.as_ref())?;
    let mut manifest = export::manifest(encoder, probed.mode(), &form.name, &form.prompts);
    manifest.encoder = form.encoder.clone();
    manifest.encoder.tokenizer_sha256 = encoder.tokenizer_revision().to_owned();
    let mut run = ParityRun {
        manifest,
        forward: None,
        router: None,
        learning: None,
    };
    if let Some(plan) = &expected.forward {
        let mut say = |done| progress("forward", done, tokens.len());
        run.forward = Some(forward::run(probed, &own, &tokens, Some(plan), &mut say)?);
    }
    if let Some(router) = &form.router {
        progress("router", 0, 1);
        let (id, contents) = bundle::generation(bundle, router, store)?;
        let precision = options.precision;
        let (mut ranked, made) = ranked(&id, &contents, encoder, precision, &tokens, router.top)?;
        ranked.folder.clone_from(&router.folder);
        (run.manifest.router, run.router) = (Some(ranked), Some(made));
    }
    if let (Some(learning), Some(plan)) = (&form.learning, &expected.learning) {
        let steps = learning.steps.len();
        let mut say = |done| progress("learning", done, steps);
        let (own, made) = learning::run(encoder, learning, plan, &mut say)?;
        (run.manifest.learning, run.learning) = (Some(own), Some(made));
    }
    Ok(run)
}

/// The rankings of `tokens` by a generation, and what a manifest says of them.
fn ranked(
    id: &GenerationId,
    contents: &Contents,
    encoder: &Arc<Encoder>,
    precision: Precision,
    tokens: &[Tokens],
    top: usize,
) -> Result<(ParityRouter, tensors::ParityTensors)> {
    if top == 0 || contents.hub.active() == 0 {
        bail!(
            NoCandidate,
            "{id}: expected models that can answer and a top of at least 1, found {} and {top}",
            contents.hub.active()
        );
    }
    let kernel = Choice::new(precision, encoder, || Ok(None))?.kernel;
    let serving = Serving::with_kernel(id.clone(), contents, Arc::clone(encoder), None, kernel)?;
    let made = ranking::run(&serving, tokens, top)?;
    let router = ParityRouter {
        folder: None,
        generation: id.to_string(),
        file: export::ROUTER.into(),
        top,
        mode: mode_of(serving.precision()),
    };
    Ok((router, made))
}

/// Compares the bundles in `found` and `expected`, without a device.
///
/// Errors: one is malformed; they are of other prompts or steps.
pub(crate) fn verify_between(found: &Path, expected: &Path) -> Result<VerifyReport> {
    let begin = Instant::now();
    let report = caught("verify", || {
        let [own, other] = [ParityBundle::read(found)?, ParityBundle::read(expected)?];
        let mode = own.run.manifest.made_by.mode;
        let (found, expected) = (found.display().to_string(), expected.display().to_string());
        let mut report = VerifyReport::new(found, expected, mode);
        report.bundle_mode = Some(other.run.manifest.made_by.mode.to_string());
        let whole = own.files.ok && other.files.ok;
        report
            .stages
            .push(if own.files.ok { other.files } else { own.files });
        if whole {
            let sides = Sides {
                found: &own.run,
                expected: &other.run,
            };
            sides.compare(&mut report)?;
        }
        Ok(report)
    })?;
    Ok(report.conclude(begin.elapsed().as_secs_f64()))
}

/// Writes a bundle of generation `id` of `store` on this machine: `prompts` through the encoder and
/// the router; without prompts a few that are built in. The encoder and the store stay where they
/// are, and are named by their hashes.
///
/// Errors: the folder exists; the encoder is not found; the device failed.
pub(crate) fn export_bundle(
    folder: &Path,
    store: &Store,
    id: &GenerationId,
    prompts: Option<Vec<String>>,
    options: &Options,
    progress: VerifyProgress<'_>,
) -> Result<()> {
    caught("verify", || {
        let contents = store.contents(id)?;
        let place = find_encoder(store.root(), &contents.manifest.encoder, options)?;
        let encoder = bundle::open(&place, options)?;
        let probed = ProbedEncoder::new(Arc::clone(&encoder), options.precision)?;
        let prompts = prompts.unwrap_or_else(|| export::PROMPTS.map(str::to_owned).to_vec());
        let tokens = forward::tokenized(&encoder, &prompts)?;
        let mut manifest = export::manifest(&encoder, probed.mode(), encoder.name(), &prompts);
        manifest.forward = Some(ParityForward {
            file: export::FORWARD.into(),
            padded: None,
        });
        let mut say = |done| progress("forward", done, tokens.len());
        let forward = forward::run(&probed, &tokens, &tokens, None, &mut say)?;
        progress("router", 0, 1);
        let (router, rankings) = ranked(id, &contents, &encoder, options.precision, &tokens, TOP)?;
        manifest.router = Some(router);
        let run = ParityRun {
            manifest,
            forward: Some(forward),
            router: Some(rankings),
            learning: None,
        };
        export::write(&run, folder, None)
    })
}

/// Checks generation `id` of `store`, and the files of all of its generations.
///
/// Errors: the generation or its encoder cannot be opened; the device failed.
pub(crate) fn verify_store(
    store: &Store,
    id: &GenerationId,
    options: &Options,
    progress: VerifyProgress<'_>,
) -> Result<VerifyReport> {
    let begin = Instant::now();
    let report = caught("verify", || {
        let name = format!("{} ({id})", store.root().display());
        let mode = mode_of(options.precision);
        let mut report = VerifyReport::new(name, "f64 and plain f32 on this machine".into(), mode);
        whole_store::check(store, id, options, &mut report, progress)?;
        Ok(report)
    })?;
    Ok(report.conclude(begin.elapsed().as_secs_f64()))
}

/// The mode of a precision that is not chosen by itself.
fn mode_of(precision: Precision) -> NumericMode {
    match precision {
        Precision::Bf16 => NumericMode::Bf16,
        Precision::Int8 => NumericMode::Int8,
        Precision::Auto | Precision::F32 => NumericMode::F32,
    }
}
