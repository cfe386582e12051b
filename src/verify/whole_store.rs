//! A whole store on this machine: its files, its encoder against f64, its generation on this device
//! against the CPU's plainest f32, its golden vector in int8, the decisions on its own held-out
//! prompts, and what may not change a bit.

use std::path::Path;
use std::sync::Arc;

use super::bounds::{BoundOf, bound};
use super::bundle::ParityRun;
use super::compare::Sides;
use super::comparison::StageComparison;
use super::exact;
use super::export::{self, PROMPTS};
use super::form::{NumericMode, ParityRouter};
use super::forward::{self, ProbedEncoder};
use super::invariance;
use super::ranking;
use super::report::{ErrorMeasure, VerifyReport};
use super::tensors::ParityTensors;
use super::{VerifyProgress, mode_of};
use crate::device::CpuLevel;
use crate::device::cpu::low::LowKernel;
use crate::encoder::Encoder;
use crate::encoder::seen::Seen;
use crate::error::{Result, bail, error};
use crate::generation::{Contents, GenerationId, precision};
use crate::learn::{HELD_OUT, kept};
use crate::options::{Options, Precision};
use crate::serve::Serving;
use crate::serve::gate::Choice;
use crate::serve::index::Ranking;
use crate::store::{Store, find_encoder};
use crate::text::tokenizer::Tokens;

/// Prompts whose layers are compared with f64, which is slow.
const EXACT: usize = 6;

/// Most held-out prompts that are decided.
const DECISIONS: usize = 512;

/// Models that a prompt's best ones are compared by.
const TOP: usize = 10;

/// Checks generation `id` of `store`, and the files of all.
///
/// Errors: the current generation or its encoder cannot be opened; the device failed.
pub(super) fn check(
    store: &Store,
    id: &GenerationId,
    options: &Options,
    report: &mut VerifyReport,
    progress: VerifyProgress<'_>,
) -> Result<()> {
    files(store, report, progress)?;
    let contents = match store.contents(id) {
        Err(error) if error.is_damage() => {
            let why = format!("{id} is damaged: nothing was computed");
            report.not_compared.push(why);
            return Ok(());
        }
        contents => contents?,
    };
    let folder = find_encoder(store.root(), &contents.manifest.encoder, options)?;
    let encoder = super::bundle::open(&folder, options)?;
    report.device = Some(encoder.device_name().to_owned());
    let probed = ProbedEncoder::new(Arc::clone(&encoder), options.precision)?;
    report.mode = probed.mode().to_string();
    let prompts: Vec<String> = PROMPTS.map(str::to_owned).to_vec();
    let tokens = forward::tokenized(&encoder, &prompts)?;
    layers(&encoder, &tokens[..EXACT], report, progress)?;
    let two = Both::open(store, id, &contents, &folder, &encoder, options)?;
    two.rankings(&prompts, &tokens, report, progress)?;
    golden(store, id, &contents, &two.plain.encoder, report)?;
    two.decisions(&contents, report, progress)?;
    progress("invariance", 0, 1);
    invariance::compare(&probed, &folder, options, &tokens, report)
}

/// Every generation and the encoders against their hashes.
fn files(store: &Store, report: &mut VerifyReport, progress: VerifyProgress<'_>) -> Result<()> {
    let mut stage = StageComparison::exact("files", "a hash is equal or not");
    let ids = store.ids()?;
    for (index, id) in ids.iter().enumerate() {
        progress("files", index, ids.len());
        stage.equal(index, id.as_str(), &0, &0);
        let contents = store
            .contents(id)
            .and_then(|contents| contents.check_parts());
        match contents {
            Ok(()) => {}
            Err(error) if error.is_damage() => stage.part(index, error.to_string()),
            Err(error) => return Err(error),
        }
    }
    if ids.is_empty() {
        bail!(
            Io,
            "{}: expected generations, found none",
            store.root().display()
        );
    }
    report.stages.extend(stage.finish());
    Ok(())
}

/// The encoder's layers in f32 against f64.
fn layers(
    encoder: &Encoder,
    tokens: &[Tokens],
    report: &mut VerifyReport,
    progress: VerifyProgress<'_>,
) -> Result<()> {
    let (count, width) = (encoder.config().layers, encoder.width());
    let f32_bound = || {
        let mut bound = bound(BoundOf::Layer, NumericMode::F32, NumericMode::F32);
        bound.why = "this device in f32 against f64: sums of f32 products round".into();
        bound
    };
    let mut stages: Vec<StageComparison> = (0..=count)
        .map(|layer| StageComparison::of_layer(layer, f32_bound()))
        .collect();
    let mut pooled = StageComparison::new("pooled", ErrorMeasure::Elements, f32_bound());
    for (i, tokens) in tokens.iter().enumerate() {
        progress("layers", i, EXACT);
        let (own, exact) = (
            encoder.trace_tokens(tokens.clone())?,
            exact::trace(encoder, &tokens.ids)?,
        );
        for (stage, (own, exact)) in stages.iter_mut().zip(own.layers.iter().zip(&exact.layers)) {
            let place =
                |at: usize| format!("prompt {i}, token {}, element {}", at / width, at % width);
            stage.elements(i, place, own, exact);
        }
        let place = |at: usize| format!("prompt {i}, element {at}");
        pooled.elements(i, place, &own.pooled, &exact.pooled);
    }
    report
        .stages
        .extend(stages.into_iter().filter_map(StageComparison::finish));
    report.stages.extend(pooled.finish());
    Ok(())
}

/// The generation as it is asked for, and on the CPU in f32 with the plainest kernels.
struct Both {
    asked: Serving,
    plain: Serving,
}

impl Both {
    fn open(
        store: &Store,
        id: &GenerationId,
        contents: &Contents,
        folder: &Path,
        encoder: &Arc<Encoder>,
        options: &Options,
    ) -> Result<Self> {
        let record = || precision::read(&store.folder(id), id, encoder.revision());
        let kernel = Choice::new(options.precision, encoder, record)?.kernel;
        let open =
            |encoder, kernel| Serving::with_kernel(id.clone(), contents, encoder, None, kernel);
        let plain = options
            .clone()
            .device("cpu")
            .cpu(CpuLevel::Portable)
            .precision(Precision::F32);
        Ok(Self {
            asked: open(Arc::clone(encoder), kernel)?,
            plain: open(super::bundle::open(folder, &plain)?, None)?,
        })
    }

    fn mode(&self) -> NumericMode {
        mode_of(self.asked.precision())
    }

    /// Everything that a ranking is made of, for fixed prompts.
    fn rankings(
        &self,
        prompts: &[String],
        tokens: &[Tokens],
        report: &mut VerifyReport,
        progress: VerifyProgress<'_>,
    ) -> Result<()> {
        let run = |serving: &Serving, mode: NumericMode| -> Result<ParityRun> {
            let mut manifest = export::manifest(&serving.encoder, mode, "store", prompts);
            manifest.router = Some(ParityRouter {
                folder: None,
                generation: serving.id.to_string(),
                file: export::ROUTER.into(),
                top: TOP,
                mode,
            });
            Ok(ParityRun {
                manifest,
                forward: None,
                router: Some(ranking::run(serving, tokens, TOP)?),
                learning: None,
            })
        };
        progress("rankings", 0, 2);
        let found = run(&self.asked, self.mode())?;
        progress("rankings", 1, 2);
        let expected = run(&self.plain, NumericMode::F32)?;
        let sides = Sides {
            found: &found,
            expected: &expected,
        };
        let rankings = |run: &ParityRun| -> Result<ParityTensors> {
            run.router
                .clone()
                .ok_or_else(|| error!(Format, "expected rankings"))
        };
        sides.router(&rankings(&found)?, &rankings(&expected)?, report)
    }

    /// The decisions on the prompts that the generation held out. Two models within the bound of
    /// each other may change places.
    fn decisions(
        &self,
        contents: &Contents,
        report: &mut VerifyReport,
        progress: VerifyProgress<'_>,
    ) -> Result<()> {
        let rows = kept(contents, HELD_OUT)?.entries;
        let count = rows.len().min(DECISIONS);
        let rows: Vec<_> = (0..count).map(|i| &rows[i * rows.len() / count]).collect();
        if rows.is_empty() {
            report
                .not_compared
                .push("decisions: the generation held no prompts out".into());
            return Ok(());
        }
        let bound = bound(BoundOf::Score, NumericMode::F32, self.mode());
        let why = format!("the same best model, but for near ties; {}", bound.why);
        let mut stage = StageComparison::exact("decisions", &why);
        let mut agreed = 0;
        for (index, row) in rows.iter().enumerate() {
            progress("decisions", index, rows.len());
            let rank = |serving: &Serving| match (&row.text, &row.seen) {
                (Some(text), _) => by_text(serving, text).map(Some),
                (None, Some(seen)) => by_features(serving, seen).map(Some),
                (None, None) => Ok(None),
            };
            let (Some(found), Some(expected)) = (rank(&self.asked)?, rank(&self.plain)?) else {
                continue;
            };
            let (Some((found, own)), Some((best, score))) =
                (found.best.first(), expected.best.first())
            else {
                bail!(NoCandidate, "{}: every model is retired", self.plain.id);
            };
            agreed += usize::from(found == best);
            let near = 2.0 * bound.limit * (1.0 + f64::from(score.abs()));
            let tied = f64::from((score - own).abs()) <= near;
            let found = if tied { best } else { found };
            stage.equal(index, &format!("held-out prompt {index}"), found, best);
        }
        report.top1_agreement = Some(agreed as f64 / rows.len() as f64);
        report.stages.extend(stage.finish());
        Ok(())
    }
}

fn by_text(serving: &Serving, text: &str) -> Result<Ranking> {
    let tokens = serving.encoder.tokenize_prompts(&[text]).pop();
    let tokens = tokens.ok_or_else(|| error!(Tokenizer, "no tokens"))??;
    one(serving.rank(&[&tokens], 1)?.rankings)
}

fn by_features(serving: &Serving, seen: &Seen) -> Result<Ranking> {
    one(serving.rank_seen(&[seen])?)
}

fn one(mut rankings: Vec<Ranking>) -> Result<Ranking> {
    rankings
        .pop()
        .ok_or_else(|| error!(NoCandidate, "no ranking"))
}

/// The vector of a fixed prompt in int8, of which the generation's record has the hash.
fn golden(
    store: &Store,
    id: &GenerationId,
    contents: &Contents,
    encoder: &Arc<Encoder>,
    report: &mut VerifyReport,
) -> Result<()> {
    let record = match precision::read(&store.folder(id), id, encoder.revision()) {
        Ok(Some(record)) => record,
        Ok(None) => {
            let why = "precision: how near int8 is was not measured for this generation";
            report.not_compared.push(why.into());
            return Ok(());
        }
        Err(error) => {
            let mut stage = StageComparison::exact("precision", "the record is whole or not");
            stage.part(0, error.to_string());
            report.stages.extend(stage.finish());
            return Ok(());
        }
    };
    // Every CPU computes the same bits, one without the instructions by the scalar reference.
    let kernel = Some(LowKernel::right_int8(CpuLevel::Auto));
    let low = Serving::with_kernel(id.clone(), contents, Arc::clone(encoder), None, kernel)?;
    let mut stage = StageComparison::exact("precision", "int8 has the same bits on every CPU");
    let place = "SHA-256 of the vector of a fixed prompt in int8";
    stage.equal(0, place, &low.vector_sha256()?, &record.vector_sha256);
    report.stages.extend(stage.finish());
    Ok(())
}
