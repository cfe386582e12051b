//! A generation opened for routing: its network, head and keys on a device.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::cpu::low::{LowFormat, LowKernel};
use crate::device::{Counts, Device, HeldPlan, Pass, Plan, Plans, Running, Sizes, Tensor};
use crate::encoder::seen::{STEPS, Seen};
use crate::encoder::{Encoder, sizes};
use crate::error::{Result, bail};
use crate::files::short;
use crate::generation::{Calibration, Contents, GenerationId, Manifest};
use crate::hub::{Hub, ModelMask};
use crate::model::activations::Activations;
use crate::model::bert::Bert;
use crate::model::head::Head;
use crate::model::low::LowBert;
use crate::options::Precision;
use crate::serve::index::{
    Index, IndexWorkspace, Ranking, RankingReads, RowMasks, WantedRanks, WordMatches,
};
use crate::serve::landmarks::{Confidences, Landmarks};
use crate::text::tokenizer::Tokens;
use crate::weights::with_table;

pub(crate) struct Serving {
    /// Of [`serial`]: another one each time that a generation is opened.
    pub(crate) serial: u64,
    pub(crate) id: GenerationId,
    pub(crate) hub: Arc<Hub>,
    pub(crate) encoder: Arc<Encoder>,
    pub(crate) index: Index,
    /// Why this generation is served instead of the current one, if it is.
    pub(crate) passed_over: Option<String>,
    /// Why its network computes in these numbers.
    pub(crate) why: String,
    /// How sure its answers are, where that was measured.
    pub(crate) confidences: Option<Arc<Confidences>>,
    network: Arc<Network>,
    head: Arc<Head>,
    plans: Plans<RouteWorkspace>,
    /// The same generation on the CPU, for batches that it computes sooner.
    beside: Option<Box<CpuTwin>>,
}

/// A generation on the CPU beside the same one on a GPU.
struct CpuTwin {
    serving: Serving,
    /// Most tokens of its batches.
    most: usize,
}

/// The encoder's network, with the generation's adapter where it has one.
enum Network {
    F32(Arc<Bert>),
    Low(Box<LowBert>),
}

/// The tensors of one batch, from tokens to ranks.
struct RouteWorkspace {
    activations: Activations,
    /// The prompts behind W, [B, D].
    z: Tensor,
    workspace: IndexWorkspace,
}

/// The models that may answer the prompts of a call; by default all that are not retired.
#[derive(Clone, Copy, Default)]
pub(crate) struct Narrowing<'n> {
    /// The index of the models that may answer at all, if they have one of their own.
    pub(crate) index: Option<&'n Index>,
    /// The models that may answer each prompt; empty: all of the index. They are not retired.
    pub(crate) masks: &'n [&'n ModelMask],
    /// For each prompt a model to rank behind the best if it is eligible; empty: none.
    pub(crate) kept: &'n [Option<u32>],
}

/// The answer for one prompt, with its batch's times in microseconds.
pub(crate) struct PromptRanking {
    pub(crate) ranking: Ranking,
    pub(crate) encode: f64,
    pub(crate) score: f64,
    /// Prompts of the batch.
    pub(crate) batch: usize,
}

/// The answers for one batch, with the device's time in microseconds.
pub(crate) struct BatchRanking {
    pub(crate) rankings: Vec<Ranking>,
    pub(crate) encode: f64,
    pub(crate) score: f64,
    pub(crate) counts: Counts,
}

/// A batch that is under way.
struct StartedRanking<'n> {
    held: HeldPlan<RouteWorkspace>,
    running: Running,
    reads: RankingReads,
    words: WordMatches,
    masks: Option<RowMasks>,
    narrowing: Narrowing<'n>,
}

impl Serving {
    /// Brings `contents` to the device of `encoder`, which must be the one that is pinned.
    pub(crate) fn new(
        id: GenerationId,
        contents: &Contents,
        encoder: Arc<Encoder>,
        passed_over: Option<String>,
    ) -> Result<Self> {
        Self::with_kernel(id, contents, encoder, passed_over, None)
    }

    /// As [`Serving::new`]; with a kernel in its numbers, else in f32.
    pub(crate) fn with_kernel(
        id: GenerationId,
        contents: &Contents,
        encoder: Arc<Encoder>,
        passed_over: Option<String>,
        kernel: Option<LowKernel>,
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
        let halved = kernel.is_some();
        // The two slow parts side by side.
        let (tables, network) = host.join(
            || -> Result<(Head, Index)> {
                let (w, inputs) = (&contents.projection, encoder.width());
                let head = with_table(w, inputs, halved, |w| Head::new(device, w))?;
                Ok((head, index_of(device, contents, halved)?))
            },
            || match (kernel, contents.factors(encoder.config())?) {
                (Some(kernel), factors) => {
                    let low = encoder.low(kernel, factors.as_ref())?;
                    Ok(Network::Low(Box::new(low)))
                }
                (None, Some(factors)) => {
                    let merged = encoder.merged(&factors)?;
                    Ok(Network::F32(Arc::new(merged)))
                }
                (None, None) => encoder.bert().cloned().map(Network::F32),
            },
        );
        let ((head, index), network) = (tables?, network?);
        index.compile(encoder.ops(), device)?;
        Ok(Self {
            serial: serial(),
            id,
            hub: Arc::clone(&contents.hub),
            encoder,
            index,
            passed_over,
            why: String::new(),
            confidences: None,
            network: Arc::new(network),
            head: Arc::new(head),
            plans: Plans::new(),
            beside: None,
        })
    }

    /// With the reason why its network computes in these numbers.
    pub(crate) fn because(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// With the record of how sure its answers are.
    pub(crate) fn calibrated(mut self, calibration: Calibration) -> Self {
        let landmarks = Landmarks::new(&self.index);
        self.confidences = Some(Arc::new(Confidences {
            calibration,
            landmarks,
        }));
        self
    }

    /// With `cpu`, the same generation on the CPU, for batches of at most `most` tokens.
    pub(crate) fn beside(self, cpu: Self, most: usize) -> Self {
        let serving = Self {
            confidences: self.confidences.clone(),
            ..cpu
        };
        Self {
            beside: Some(Box::new(CpuTwin { serving, most })),
            ..self
        }
    }

    /// What computes a batch of `tokens`, and why it does where there are two.
    pub(crate) fn for_tokens(&self, tokens: usize) -> (&Self, Option<String>) {
        let Some(twin) = &self.beside else {
            return (self, None);
        };
        let most = twin.most;
        let (serving, than) = match tokens <= most {
            true => (&twin.serving, "no more"),
            false => (self, "more"),
        };
        let why = format!("{tokens} tokens, {than} than the {most} that the CPU computes sooner");
        (serving, Some(why))
    }

    /// The same generation with the models that `contents` has beyond it: its network and head are
    /// shared.
    pub(crate) fn extended(&self, contents: &Contents) -> Result<Self> {
        let halved = self.precision() != Precision::F32;
        let (encoder, index) = (&self.encoder, index_of(self.device(), contents, halved)?);
        index.compile(encoder.ops(), encoder.device())?;
        let beside = self.beside.as_ref().map(|twin| -> Result<_> {
            let serving = twin.serving.extended(contents)?;
            Ok(Box::new(CpuTwin {
                serving,
                most: twin.most,
            }))
        });
        Ok(Self {
            beside: beside.transpose()?,
            serial: serial(),
            id: self.id.clone(),
            hub: Arc::clone(&contents.hub),
            encoder: Arc::clone(encoder),
            index,
            passed_over: self.passed_over.clone(),
            why: self.why.clone(),
            confidences: self.confidences.clone(),
            network: Arc::clone(&self.network),
            head: Arc::clone(&self.head),
            plans: Plans::new(),
        })
    }

    /// The index of the models `ids` alone, which are not retired; `None` on a GPU.
    pub(crate) fn gathered(&self, ids: &[u32]) -> Result<Option<Index>> {
        self.index.gathered(self.device(), ids)
    }

    fn device(&self) -> &Device {
        self.encoder.device()
    }

    fn by_words<'w>(&self, prompts: impl Iterator<Item = &'w [u32]>) -> WordMatches {
        let prompts: Vec<&[u32]> = prompts.collect();
        self.index.by_words(self.encoder.host(), &prompts)
    }

    /// The cosine of prompt and model embedding of the `place`th of the best.
    pub(crate) fn cosine(&self, ranking: &Ranking, place: usize) -> f32 {
        let (_, score) = ranking.best[place];
        self.index.cosine(score, ranking.parts.get(place))
    }

    /// Ranks the hub for each prompt, the `k` best of `narrowing`.
    pub(crate) fn rank_all<T: Borrow<Tokens>>(
        &self,
        prompts: &[T],
        k: usize,
        narrowing: Narrowing<'_>,
    ) -> Vec<Result<PromptRanking>> {
        let mut begin = 0;
        let start = |batch: &[T]| {
            let of_batch = begin..begin + batch.len();
            begin = of_batch.end;
            let narrowing = Narrowing {
                index: narrowing.index,
                masks: narrowing.masks.get(of_batch.clone()).unwrap_or_default(),
                kept: narrowing.kept.get(of_batch).unwrap_or_default(),
            };
            self.start(batch, k, narrowing)
        };
        let finish = |started: StartedRanking<'_>| {
            let BatchRanking {
                rankings,
                encode,
                score,
                counts,
            } = self.finish(started)?;
            let batch = rankings.len();
            log::debug!("{batch} prompts, {counts:?}");
            let answer = |ranking| {
                Ok(PromptRanking {
                    ranking,
                    encode,
                    score,
                    batch,
                })
            };
            Ok(rankings.into_iter().map(answer).collect())
        };
        self.encoder
            .for_each_batch(prompts, self.index.most_prompts(), start, finish)
    }

    /// Ranks the hub for the prompts of one batch, the `k` best of each; one submit.
    pub(crate) fn rank<T: Borrow<Tokens>>(&self, prompts: &[T], k: usize) -> Result<BatchRanking> {
        self.finish(self.start(prompts, k, Narrowing::default())?)
    }

    /// Begins to rank the models of `narrowing` for the prompts of one batch, the `k` best of each.
    fn start<'n, T: Borrow<Tokens>>(
        &self,
        prompts: &[T],
        k: usize,
        narrowing: Narrowing<'n>,
    ) -> Result<StartedRanking<'n>> {
        let encoder = &*self.encoder;
        let index = narrowing.index.unwrap_or(&self.index);
        let masks = (!narrowing.masks.is_empty()).then(|| index.rows_of(narrowing.masks));
        let wanted = WantedRanks {
            k,
            kept: narrowing.kept,
        };
        let batch = encoder.pack(prompts);
        let words = prompts.iter().map(|tokens| &tokens.borrow().words[..]);
        let words = self.by_words(words);
        // Some rows take little room, and are on the CPU.
        let mut own = match narrowing.index {
            Some(index) => Some(index.workspace(encoder.ops(), self.device(), batch.prompts())?),
            None => None,
        };
        let mut held = self.plans.hold(sizes(&batch), |sizes| self.plan(sizes))?;
        let (reads, running) = self.device().start(&mut held.plan, |pass, t| {
            let w = own.as_mut().unwrap_or(&mut t.workspace);
            t.activations.upload(pass, &batch);
            index.upload(pass, &words, masks.as_ref(), w);
            pass.stage();
            self.encode(pass, &mut t.activations);
            pass.stage();
            let (a, z) = (&t.activations, &mut t.z);
            self.score(pass, a, z, index, masks.is_some(), wanted, w)
        })?;
        Ok(StartedRanking {
            held,
            running,
            reads,
            words,
            masks,
            narrowing,
        })
    }

    /// Waits for a batch, and ranks.
    fn finish(&self, started: StartedRanking<'_>) -> Result<BatchRanking> {
        let StartedRanking {
            mut held,
            running,
            reads,
            words,
            masks,
            narrowing,
        } = started;
        let outputs = self.device().finish(&mut held.plan, running)?;
        self.plans.give_back(held);
        let index = narrowing.index.unwrap_or(&self.index);
        let (masks, kept) = (masks.as_ref(), narrowing.kept);
        let host = self.encoder.host();
        Ok(BatchRanking {
            rankings: index.rankings(host, &reads, &outputs, &words, masks, kept)?,
            encode: outputs.stage(0),
            score: outputs.stage(1),
            counts: outputs.counts,
        })
    }

    /// Encodes the batch that `a` holds.
    fn encode(&self, pass: &mut Pass<'_>, a: &mut Activations) {
        let ops = self.encoder.ops();
        match &*self.network {
            Network::F32(bert) => bert.forward(ops, pass, a, None, None),
            Network::Low(low) => low.encode(ops, pass, self.encoder.words(), a),
        }
    }

    /// The numbers that vectors are computed in.
    pub(crate) fn precision(&self) -> Precision {
        match &*self.network {
            Network::F32(_) => Precision::F32,
            Network::Low(low) => match low.format() {
                LowFormat::Int8 => Precision::Int8,
                LowFormat::Bf16 => Precision::Bf16,
            },
        }
    }

    /// Ranks the models of `index` by the vectors in `activations`.
    #[expect(clippy::too_many_arguments, reason = "a pass, its inputs and its room")]
    fn score(
        &self,
        pass: &mut Pass<'_>,
        activations: &Activations,
        z: &mut Tensor,
        index: &Index,
        masked: bool,
        wanted: WantedRanks<'_>,
        w: &mut IndexWorkspace,
    ) -> RankingReads {
        let (ops, a) = (self.encoder.ops(), activations);
        self.head.forward(ops, pass, &a.pooled, z);
        let x = a.layers.as_ref().map(|layers| &layers.units);
        index.forward(ops, pass, z, x, masked, wanted, w)
    }

    /// The encoder's network, with the generation's adapter where it has one; only of a generation
    /// that [`Serving::new`] opened.
    pub(crate) fn network(&self) -> &Bert {
        match &*self.network {
            Network::F32(bert) => bert,
            Network::Low(_) => unreachable!("learning opens a generation in f32"),
        }
    }

    /// As [`Serving::best`], for prompts whose features are known, by the same network and layers.
    pub(crate) fn best_of(&self, prompts: &[&Seen]) -> Result<Vec<u32>> {
        let rankings = self.rank_seen(prompts)?;
        rankings.iter().map(|ranking| self.first(ranking)).collect()
    }

    /// The best model for prompts whose features are known, by the same network and layers.
    pub(crate) fn rank_seen(&self, prompts: &[&Seen]) -> Result<Vec<Ranking>> {
        let mut all = Vec::with_capacity(prompts.len());
        for chunk in prompts.chunks(self.index.most_prompts().min(64)) {
            let words = self.by_words(chunk.iter().map(|seen| &seen.words[..]));
            let pooled: Vec<f32> = chunk
                .iter()
                .flat_map(|seen| &seen.pooled)
                .copied()
                .collect();
            let units = chunk.iter().flat_map(|seen| &seen.layers);
            let units: Vec<f32> = units.map(|q| f32::from(*q) / STEPS as f32).collect();
            let sizes = Sizes {
                tokens: chunk.len(),
                prompts: chunk.len(),
            };
            let (reads, outputs) = self.plans.with(
                sizes,
                |sizes| self.plan(sizes),
                |plan| {
                    self.device().run(plan, |pass, t| {
                        pass.upload_f32(&mut t.activations.pooled, &pooled);
                        if let Some(layers) = &mut t.activations.layers {
                            layers.upload(pass, &units);
                        }
                        let w = &mut t.workspace;
                        self.index.upload(pass, &words, None, w);
                        let (a, z) = (&t.activations, &mut t.z);
                        self.score(pass, a, z, &self.index, false, WantedRanks::best(1), w)
                    })
                },
            )?;
            let (host, index) = (self.encoder.host(), &self.index);
            all.extend(index.rankings(host, &reads, &outputs, &words, None, &[])?);
        }
        Ok(all)
    }

    fn first(&self, ranking: &Ranking) -> Result<u32> {
        match ranking.best.first() {
            Some((id, _)) => Ok(*id),
            None => bail!(NoCandidate, "{}: every model is retired", self.id),
        }
    }

    /// The best model of each prompt.
    ///
    /// Errors: every model is retired; the device failed.
    pub(crate) fn best<T: Borrow<Tokens>>(
        &self,
        prompts: &[T],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<u32>> {
        let mut best = Vec::with_capacity(prompts.len());
        let most = self.index.most_prompts();
        let start = |batch| self.start(batch, 1, Narrowing::default());
        self.encoder
            .each_batch(prompts, most, start, |_, started| {
                for ranking in self.finish(started?)?.rankings {
                    best.push(self.first(&ranking)?);
                }
                progress(best.len());
                Ok(())
            })?;
        Ok(best)
    }

    /// The best model and the vector of each prompt of one batch; on the CPU.
    pub(super) fn look(&self, prompts: &[&Tokens]) -> Result<Vec<(u32, Vec<f32>)>> {
        let batch = self.encoder.pack(prompts);
        let words = self.by_words(prompts.iter().map(|tokens| &tokens.words[..]));
        let run = |plan: &mut Plan<RouteWorkspace>| {
            let ((reads, pooled), outcome) = self.device().run(plan, |pass, t| {
                let w = &mut t.workspace;
                t.activations.upload(pass, &batch);
                self.index.upload(pass, &words, None, w);
                self.encode(pass, &mut t.activations);
                let pooled = pass.read(&t.activations.pooled);
                let (a, z) = (&t.activations, &mut t.z);
                let reads = self.score(pass, a, z, &self.index, false, WantedRanks::best(1), w);
                (reads, pooled)
            })?;
            let host = self.encoder.host();
            let rankings = self
                .index
                .rankings(host, &reads, &outcome, &words, None, &[])?;
            let vectors = outcome.f32(pooled).chunks_exact(self.encoder.width());
            let both = rankings.iter().zip(vectors);
            both.map(|(ranking, vector)| Ok((self.first(ranking)?, vector.to_vec())))
                .collect()
        };
        self.plans
            .with(sizes(&batch), |sizes| self.plan(sizes), run)
    }

    /// The unit vector of each prompt of one batch behind W, [D].
    #[cfg(feature = "cli")]
    pub(crate) fn queries(&self, prompts: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
        let (device, batch) = (self.device(), self.encoder.pack(prompts));
        let sizes = sizes(&batch);
        let encoder = &self.encoder;
        let a = Activations::new(device, encoder.ops(), encoder.config(), sizes, &[])?;
        let room = |label| device.scratch(label, prompts.len(), self.head.width());
        let room = (a, room("z")?, room("u")?);
        let reads = 4 * prompts.len() * self.head.width();
        let mut plan = Plan::new(device, room, Activations::upload_bytes(sizes), reads)?;
        let (read, outputs) = device.run(&mut plan, |pass, (a, z, u)| {
            a.upload(pass, &batch);
            self.encode(pass, a);
            let ops = self.encoder.ops();
            self.head.forward(ops, pass, &a.pooled, z);
            let z = z.part(z.place());
            ops.normalize
                .forward(pass, crate::ops::normalize::Forward { z, u: &mut *u });
            pass.read(u)
        })?;
        let rows = outputs.f32(read).chunks_exact(self.head.width());
        Ok(rows.map(<[f32]>::to_vec).collect())
    }

    fn plan(&self, sizes: Sizes) -> Result<Plan<RouteWorkspace>> {
        let (device, config) = (self.device(), self.encoder.config());
        let layers = self.index.recall().map_or(&[][..], |r| &r.layers);
        let activations = Activations::new(device, self.encoder.ops(), config, sizes, layers)?;
        let tensors = RouteWorkspace {
            activations,
            z: device.scratch("z", sizes.prompts, self.head.width())?,
            workspace: (self.index).workspace(self.encoder.ops(), device, sizes.prompts)?,
        };
        // Prompts may come as their features.
        let seen = self.index.recall().map_or(0, |recall| recall.width) + config.hidden;
        let uploads = Activations::upload_bytes(sizes).max(4 * sizes.prompts * seen);
        let uploads = uploads + self.index.upload_bytes(sizes.prompts);
        let reads = self.index.read_bytes(sizes.prompts) + 4 * sizes.prompts * self.head.width();
        Plan::new(device, tensors, uploads, reads)
    }
}

/// The models of `contents`; with a network that is not in f32 neither are their keys, half of
/// whose bytes are saved.
fn index_of(device: &Device, contents: &Contents, halved: bool) -> Result<Index> {
    let Manifest { width, tau, .. } = contents.manifest;
    let rows = (&contents.embeddings[..], width);
    let recall = contents.recall()?;
    Index::new(device, &contents.hub, rows, tau, recall, halved)
}

/// A number that this process has not had before, from 1: what has it cannot be confused with what
/// came before or comes after it, as places in memory can.
pub(crate) fn serial() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The prompt that a generation must answer before it becomes current.
pub(super) const QUESTION: &str = "Which model is right for this?";

/// Opens `contents` as a router would and asks it once, before it becomes current.
///
/// Errors: it cannot be opened, or has no good answer.
pub(crate) fn ask(id: &GenerationId, contents: &Contents, encoder: &Arc<Encoder>) -> Result<()> {
    let serving = Serving::new(id.clone(), contents, Arc::clone(encoder), None)?;
    if serving.hub.active() == 0 {
        return Ok(());
    }
    let prompts = encoder.tokenize_prompts(&[QUESTION]).into_iter();
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    for ranking in serving.rank(&prompts, 2)?.rankings {
        let mut cosines = (0..ranking.best.len()).map(|place| serving.cosine(&ranking, place));
        if cosines.all(|cosine| cosine == 0.0) {
            bail!(
                Numeric,
                "{id}: a prompt's vector has no direction behind W: every learned score is 0"
            );
        }
    }
    Ok(())
}
