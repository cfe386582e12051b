//! Serving: a generation opened for reading, its head and keys on a device.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::cpu::Cpu;
use crate::device::{Device, Plan, Plans, Sizes};
use crate::encoder::{Encoder, read_manifest, sizes};
use crate::error::{Result, bail};
use crate::generation::manifest::EncoderPin;
use crate::generation::{Contents, GenerationId};
use crate::hub::Hub;
use crate::hub::index::{Index, Ranking, Room};
use crate::model::activations::Activations;
use crate::model::bert::Bert;
use crate::model::head::{Head, Projected};
use crate::options::Options;
use crate::text::tokenizer::Tokens;

pub(crate) struct Serving {
    pub(crate) id: GenerationId,
    pub(crate) hub: Hub,
    pub(crate) encoder: Arc<Encoder>,
    pub(crate) index: Index,
    /// Why another generation than the current one is served, if so.
    pub(crate) passed_over: Option<String>,
    /// The encoder's network with the generation's adapter merged in; none: as it is.
    merged: Option<Bert>,
    head: Head,
    plans: Plans<Tensors>,
}

/// The tensors of one batch, from tokens to ranks.
struct Tensors {
    activations: Activations,
    projected: Projected,
    room: Room,
}

/// Answers of one batch, with the device's time in microseconds.
pub(crate) struct Ranked {
    pub(crate) rankings: Vec<Ranking>,
    pub(crate) encode: f64,
    pub(crate) score: f64,
    /// Kernels that were dispatched; none on the CPU.
    pub(crate) dispatches: usize,
}

impl Serving {
    /// Brings `contents` to the device of `encoder`, which must be the one that is pinned.
    pub(crate) fn new(
        id: GenerationId,
        contents: Contents,
        encoder: Arc<Encoder>,
        passed_over: Option<String>,
    ) -> Result<Self> {
        let pin = &contents.manifest.encoder;
        if pin.sha256 != encoder.revision() {
            bail!(
                Mismatch,
                "{id}: belongs to encoder {} ({}), found {} ({})",
                pin.name,
                short(&pin.sha256),
                encoder.name(),
                short(encoder.revision())
            );
        }
        if pin.width != encoder.width() {
            bail!(
                Mismatch,
                "{id}: expected an encoder of width {}, found {}",
                pin.width,
                encoder.width()
            );
        }
        let (device, host) = (encoder.device(), encoder.host());
        let (head, index) = host.run(|| {
            let head = Head::new(device, &contents.projection, encoder.width());
            let manifest = &contents.manifest;
            let index = Index::new(
                device,
                &contents.hub,
                &contents.embeddings,
                manifest.width,
                manifest.tau,
            );
            (head, index)
        });
        let (head, index) = (head?, index?);
        let factors = contents.factors(encoder.config())?;
        let merged = factors
            .map(|factors| encoder.merged(&factors))
            .transpose()?;
        Ok(Self {
            id,
            hub: contents.hub,
            encoder,
            index,
            passed_over,
            merged,
            head,
            plans: Plans::new(),
        })
    }

    fn device(&self) -> &Device {
        self.encoder.device()
    }

    /// Ranks the hub for the prompts of one chunk, the `k` best of each; one submit.
    pub(crate) fn rank(&self, chunk: &[(usize, Tokens)], k: usize) -> Result<Ranked> {
        let encoder = &*self.encoder;
        let batch = encoder.pack(chunk);
        self.plans.with(
            sizes(&batch),
            |sizes| self.plan(sizes),
            |plan| {
                let (reads, outcome) = self.device().run(plan, |pass, t| {
                    t.activations.upload(pass, &batch);
                    pass.stage();
                    let bert = self.merged.as_ref().unwrap_or(encoder.bert());
                    bert.forward(encoder.ops(), pass, &mut t.activations, None);
                    pass.stage();
                    self.head
                        .forward(encoder.ops(), pass, &t.activations.pooled, &mut t.projected);
                    self.index
                        .forward(encoder.ops(), pass, &t.projected.u, k, &mut t.room)
                })?;
                let rankings = self.index.rankings(&reads, &outcome, batch.prompts())?;
                Ok(Ranked {
                    rankings,
                    encode: outcome.stage(0),
                    score: outcome.stage(1),
                    dispatches: outcome.dispatches,
                })
            },
        )
    }

    /// The best model of each prompt.
    pub(crate) fn best(
        &self,
        prompts: Vec<Tokens>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<u32>> {
        let prompts: Vec<(usize, Tokens)> = prompts.into_iter().enumerate().collect();
        let mut best = Vec::with_capacity(prompts.len());
        for chunk in self.encoder.chunks(&prompts, self.index.most_prompts()) {
            for ranking in self.rank(chunk, 1)?.rankings {
                let Some((id, _)) = ranking.best.first() else {
                    bail!(NoCandidate, "{}: every model is retired", self.id);
                };
                best.push(*id);
            }
            progress(best.len());
        }
        Ok(best)
    }

    fn plan(&self, sizes: Sizes) -> Result<Plan<Tensors>> {
        let device = self.device();
        let tensors = Tensors {
            activations: Activations::new(device, self.encoder.config(), sizes)?,
            projected: self.head.room(device, sizes.prompts)?,
            room: self.index.room(device, sizes.prompts)?,
        };
        let reads = self.index.read_bytes(sizes.prompts);
        Plan::new(device, tensors, Activations::upload_bytes(sizes), reads)
    }
}

/// The first twelve digits of a hash, for people.
pub(crate) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// Opens the encoder that `pin` names.
///
/// Looked for, in this order: the folder in the options; `<store>/<name>`; `<name>` beside the
/// store. A bundle with another hash is refused.
pub(crate) fn open_encoder(
    store: &Path,
    pin: &EncoderPin,
    host: Arc<Cpu>,
    options: &Options,
) -> Result<Encoder> {
    let folders: Vec<PathBuf> = match &options.encoder {
        Some(folder) => vec![folder.clone()],
        None => {
            let beside = store
                .canonicalize()
                .ok()
                .and_then(|store| Some(store.parent()?.join(&pin.name)));
            [Some(store.join(&pin.name)), beside]
                .into_iter()
                .flatten()
                .collect()
        }
    };
    let mut seen = Vec::new();
    for folder in &folders {
        match read_manifest(folder) {
            Ok((_, revision)) if revision == pin.sha256 => {
                return Encoder::open_on(folder, host, options);
            }
            Ok((_, revision)) => {
                seen.push(format!("{} (hash {})", folder.display(), short(&revision)))
            }
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
