//! The scoring index: the models' keys on a device, exact top-k, and scores of domains.

use std::sync::Arc;

use crate::device::{Device, NewTensor, Outputs, Pass, Read, Tensor};
use crate::error::{Result, bail};
use crate::hub::{Domains, Hub, ModelMask};
use crate::memory::served::{Parts, Recall};
use crate::num::to_u32;
use crate::ops::linear::{self, Weight};
use crate::ops::score::{self, Keys};
use crate::ops::top_k::{self, TopKWorkspace};
use crate::ops::{LOWEST, Ops, by_domain, log_sum_exp, mask, normalize};
use crate::weights::{View, with_table};

/// Scores of one batch that a device holds at most.
const MOST_SCORES: usize = 1 << 24;

pub(crate) struct Index {
    keys: Keys,
    /// Ids of the rows in the hub; `None`: row n is model n.
    ids: Option<Vec<u32>>,
    /// Ids by domain.
    members: Tensor,
    /// [N + 1]
    offsets: Tensor,
    domains: Vec<Arc<str>>,
    /// Domain of each row.
    of: Vec<u32>,
    recalled: Option<DeviceRecall>,
    tau: f32,
    eligible: usize,
}

/// The models that may answer each prompt of a batch, as rows of an index.
pub(crate) struct RowMasks {
    /// [B, ceil(M / 32)]
    bits: Vec<u32>,
    /// Rows that each prompt has.
    counts: Vec<usize>,
}

/// The memory on a device, whose scores are added to the learned ones.
struct DeviceRecall {
    recall: Recall,
    projection: Arc<Weight>,
    keys: Keys,
    /// The part of each model's score that does not depend on the prompt, [M].
    offsets: Vec<f32>,
    /// Domain of each model, [M].
    own: Tensor,
}

/// What a ranking should have.
#[derive(Clone, Copy)]
pub(crate) struct WantedRanks<'w> {
    /// So many of the best.
    pub(crate) k: usize,
    /// For each prompt a model to rank behind them if it is eligible; empty: none.
    pub(crate) kept: &'w [Option<u32>],
}

impl WantedRanks<'_> {
    /// The `k` best.
    pub(crate) fn best(k: usize) -> Self {
        Self { k, kept: &[] }
    }
}

/// The tensors of one batch.
pub(crate) struct IndexWorkspace {
    /// [B, M]
    s: Tensor,
    /// [B, ceil(M / 32)]
    mask: Tensor,
    /// [B, N]
    domains: Tensor,
    found: TopKWorkspace,
    /// [B k, 1]
    scores: Tensor,
    /// [B k, 1]
    ids: Tensor,
    recalled: Option<MemoryWorkspace>,
}

/// The memory's tensors of one batch.
struct MemoryWorkspace {
    /// [B, R]
    y: Tensor,
    /// ln P(d | words), [B, N].
    words: Tensor,
}

/// The reads to resolve when the pass is over.
pub(crate) struct RankingReads {
    k: usize,
    best: Best,
    domains: Read,
    /// Prompts in the memory's space, [B, R].
    recalled: Option<Read>,
}

enum Best {
    Ranked {
        ids: Read,
        scores: Read,
    },
    /// All scores, to be ranked on the host: for more ranks than the kernels take, and where a
    /// model is kept.
    All(Read),
}

/// One prompt's answer.
pub(crate) struct Ranking {
    /// Best first: id and score, at most k and never a retired model. Behind them the model that
    /// was to be kept, if it is eligible and not among them.
    pub(crate) best: Vec<(u32, f32)>,
    /// For each domain the log-sum-exp of its eligible members' scores; None without any.
    pub(crate) domains: Vec<Option<f32>>,
    /// The log-sum-exp of all eligible models' scores.
    pub(crate) total: f64,
    /// The parts of each of the best models' scores; empty without a memory.
    pub(crate) parts: Vec<Parts>,
    /// Where the memory sees the prompt, if there is a memory.
    pub(crate) place: Option<PromptPlace>,
}

/// A prompt as a memory sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PromptPlace {
    /// [R]
    pub(crate) y: Vec<f32>,
    /// Share of its words, and pairs of words, that no learned prompt has.
    pub(crate) unknown: f32,
}

/// The words of a batch against those of the learned prompts; empty without a memory.
#[derive(Default)]
pub(crate) struct WordMatches {
    /// Scores of domains, [B, N].
    scores: Vec<f32>,
    /// [`PromptPlace::unknown`], [B].
    unknown: Vec<f32>,
}

impl Index {
    /// `rows`: E [M, D], any length but zero; ids are those of `hub`. `halved`: keys are in f16.
    pub(crate) fn new(
        device: &Device,
        hub: &Hub,
        (rows, width): (&[f32], usize),
        tau: f32,
        recall: Option<Recall>,
        halved: bool,
    ) -> Result<Self> {
        if rows.len() != hub.len() * width {
            bail!(
                Mismatch,
                "model_embeddings.weight: expected [{}, {width}], found {} values",
                hub.len(),
                rows.len()
            );
        }
        let mut keys = rows.to_vec();
        keys.chunks_exact_mut(width.max(1))
            .for_each(normalize::unit);
        let retired: Vec<bool> = hub.iter().map(|(_, model)| model.retired).collect();
        let offset = |retired: &bool| if *retired { LOWEST } else { 0.0 };
        let floor: Vec<f32> = retired.iter().map(offset).collect();
        let domains = Domains::new(hub);
        let members = domains.members.concat();
        let mut offsets = vec![0];
        for ids in &domains.members {
            offsets.push(offsets.last().copied().unwrap_or(0) + to_u32(ids.len()));
        }
        let recalled = recall
            .map(|recall| DeviceRecall::new(device, recall, &retired))
            .transpose()?;
        Ok(Self {
            keys: with_table(&keys, width, halved, |keys| Keys::new(device, keys, &floor))?,
            members: device.upload_ids("members", 1, &members)?,
            offsets: device.upload_ids("domain offsets", 1, &offsets)?,
            domains: domains.names,
            ids: None,
            of: domains.of,
            recalled,
            tau,
            eligible: retired.iter().filter(|retired| !**retired).count(),
        })
    }

    /// The index of the models `ids` alone, which are not retired: to rank them costs as much as
    /// they are. `None` on a GPU, where a mask does the same.
    pub(crate) fn gathered(&self, device: &Device, ids: &[u32]) -> Result<Option<Self>> {
        let Some(keys) = self.keys.gathered(ids) else {
            return Ok(None);
        };
        let of: Vec<u32> = ids.iter().map(|id| self.of[*id as usize]).collect();
        let mut present = of.clone();
        present.sort_unstable();
        present.dedup();
        let mut groups = vec![Vec::new(); present.len()];
        let mut place_of = Vec::with_capacity(ids.len());
        for (row, domain) in of.iter().enumerate() {
            let place = present.partition_point(|other| other < domain);
            groups[place].push(to_u32(row));
            place_of.push(to_u32(place));
        }
        let mut offsets = vec![0];
        for group in &groups {
            offsets.push(offsets.last().copied().unwrap_or(0) + to_u32(group.len()));
        }
        let names = present.iter();
        let recalled = self.recalled.as_ref();
        Ok(Some(Self {
            keys,
            members: device.upload_ids("members", 1, &groups.concat())?,
            offsets: device.upload_ids("domain offsets", 1, &offsets)?,
            domains: names
                .map(|domain| Arc::clone(&self.domains[*domain as usize]))
                .collect(),
            of: place_of,
            recalled: recalled
                .and_then(|recalled| recalled.gathered(device, ids).transpose())
                .transpose()?,
            tau: self.tau,
            eligible: ids.len(),
            ids: Some(ids.to_vec()),
        }))
    }

    /// Models that are not retired.
    pub(crate) fn eligible(&self) -> usize {
        self.eligible
    }

    /// The rows of the models in `masks`, one for each prompt.
    pub(crate) fn rows_of(&self, masks: &[&ModelMask]) -> RowMasks {
        let mut bits = Vec::new();
        for mask in masks {
            match &self.ids {
                None => bits.extend_from_slice(mask.words()),
                Some(ids) => bits.extend(ids.chunks(32).map(|ids| {
                    let set = ids.iter().enumerate().filter(|(_, id)| mask.contains(**id));
                    set.fold(0u32, |word, (bit, _)| word | 1 << bit)
                })),
            }
        }
        let words = self.mask_words().max(1);
        let count = |mask: &[u32]| mask.iter().map(|word| word.count_ones() as usize).sum();
        let counts = bits.chunks(words).map(count).collect();
        RowMasks { bits, counts }
    }

    /// Words of a row of a mask.
    fn mask_words(&self) -> usize {
        self.keys.models().div_ceil(32)
    }

    /// Domain names in the order of [`Ranking::domains`], as first spelled in the hub.
    pub(crate) fn domains(&self) -> &[Arc<str>] {
        &self.domains
    }

    /// The place among [`Index::domains`] of the domain of row `row`.
    #[cfg(feature = "cli")]
    pub(crate) fn domain_of(&self, row: u32) -> usize {
        self.of[row as usize] as usize
    }

    /// The cosine of prompt and model embedding behind a model's score, or behind its learned part.
    pub(crate) fn cosine(&self, score: f32, parts: Option<&Parts>) -> f32 {
        parts.map_or(score, |parts| parts.learned) / self.scale()
    }

    /// The served form of the memory.
    pub(crate) fn recall(&self) -> Option<&Recall> {
        self.recalled.as_ref().map(|recalled| &recalled.recall)
    }

    /// The words of a batch's prompts, for [`Index::upload`].
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    pub(crate) fn by_words<'w>(&self, prompts: impl Iterator<Item = &'w [u32]>) -> WordMatches {
        let mut all = WordMatches::default();
        let Some(recall) = self.recall() else {
            return all;
        };
        for words in prompts {
            let (scores, known) = recall.words.scores(words);
            all.scores
                .extend(scores.into_iter().map(|score| score as f32));
            // A prompt without words is unlike any other.
            let known = known / words.len().max(1) as f64;
            all.unknown.push((1.0 - known) as f32);
        }
        all
    }

    /// The probabilities of the model `id` with this score and of its domain: softmax over the
    /// eligible models of `ranking`.
    pub(crate) fn probabilities(&self, ranking: &Ranking, id: u32, score: f32) -> [f64; 2] {
        let row = match &self.ids {
            None => Some(id as usize),
            Some(ids) => ids.iter().position(|other| *other == id),
        };
        let domain = row.and_then(|row| self.of.get(row));
        let of_domain = domain.and_then(|domain| ranking.domains[*domain as usize]);
        [Some(score), of_domain].map(|score| match score {
            Some(score) => (f64::from(score) - ranking.total).exp().min(1.0),
            None => 0.0,
        })
    }

    /// Most prompts of a batch.
    pub(crate) fn most_prompts(&self) -> usize {
        (MOST_SCORES / self.keys.models().max(1)).clamp(1, 256)
    }

    /// Most bytes that a batch reads back.
    pub(crate) fn read_bytes(&self, prompts: usize) -> usize {
        let ranks = self.keys.models().max(2 * top_k::MOST);
        let recalled = self.recall().map_or(0, |recall| recall.rank);
        4 * prompts * (ranks + self.domains.len() + recalled)
    }

    /// Most bytes that [`Index::upload`] sends.
    pub(crate) fn upload_bytes(&self, prompts: usize) -> usize {
        let words = self.recall().map_or(0, |recall| recall.words.domains());
        4 * prompts * (words + self.mask_words())
    }

    pub(crate) fn workspace(&self, device: &Device, prompts: usize) -> Result<IndexWorkspace> {
        let (models, domains) = (self.keys.models(), self.domains.len());
        let ranks = prompts * top_k::MOST.min(models);
        let rank = self.recall().map_or(0, |recall| recall.rank);
        let [domains, y, scores, ids] = device.beside([
            NewTensor::numbers("domain scores", prompts, domains),
            NewTensor::numbers("y", prompts, rank),
            NewTensor::numbers("best scores", ranks, 1),
            NewTensor::ids("best ids", ranks, 1),
        ])?;
        let words = |recall: &Recall| NewTensor::numbers("words", prompts, recall.words.domains());
        Ok(IndexWorkspace {
            s: device.scratch("s", prompts, models)?,
            mask: device.input(NewTensor::ids("mask", prompts, self.mask_words())),
            domains,
            found: TopKWorkspace::new(device, prompts, models)?,
            scores,
            ids,
            recalled: self.recall().map(|recall| MemoryWorkspace {
                y,
                words: device.input(words(recall)),
            }),
        })
    }

    /// Uploads the scores that [`Index::by_words`] gave for the batch, and the models that may
    /// answer it if not all may.
    pub(crate) fn upload(
        &self,
        pass: &mut Pass<'_>,
        by_words: &WordMatches,
        masks: Option<&RowMasks>,
        w: &mut IndexWorkspace,
    ) {
        if let Some(looked) = &mut w.recalled {
            pass.upload_f32(&mut looked.words, &by_words.scores);
        }
        if let Some(masks) = masks {
            pass.upload(&mut w.mask, &masks.bits);
        }
    }

    /// Ranks the hub for each row of `u` [B, D]; `x`: [B, L H], the layers' unit vectors, for a
    /// memory; `masked`: the workspace has a mask for each prompt.
    #[expect(clippy::too_many_arguments, reason = "a pass, its inputs and its room")]
    pub(crate) fn forward(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        u: &Tensor,
        x: Option<&Tensor>,
        masked: bool,
        wanted: WantedRanks<'_>,
        w: &mut IndexWorkspace,
    ) -> RankingReads {
        let prompts = u.rows();
        let k = wanted.k.min(self.eligible);
        let keeps = wanted.kept.iter().any(Option::is_some);
        w.s.resize(prompts);
        w.domains.resize(prompts);
        ops.score.forward(
            pass,
            score::Forward {
                u,
                keys: &self.keys,
                scale: self.scale(),
                s: &mut w.s,
            },
        );
        let mut recalled = None;
        if let (Some(own), Some(x), Some(looked)) = (&self.recalled, x, &mut w.recalled) {
            looked.y.resize(prompts);
            own.forward(ops, pass, x, looked, &mut w.s);
            recalled = Some(pass.read(&looked.y));
        }
        if masked {
            let (mask, s) = (&w.mask, &mut w.s);
            ops.mask.forward(pass, mask::Forward { mask, s });
        }
        ops.log_sum_exp.forward(
            pass,
            log_sum_exp::Forward {
                s: &w.s,
                members: &self.members,
                offsets: &self.offsets,
                out: &mut w.domains,
            },
        );
        let domains = pass.read(&w.domains);
        if keeps || k > top_k::MOST {
            return RankingReads {
                k,
                best: Best::All(pass.read(&w.s)),
                domains,
                recalled,
            };
        }
        w.scores.resize(prompts * k);
        w.ids.resize(prompts * k);
        ops.top_k.forward(
            pass,
            top_k::Forward {
                s: &w.s,
                k,
                found: &mut w.found,
                scores: &mut w.scores,
                ids: &mut w.ids,
            },
        );
        let best = Best::Ranked {
            ids: pass.read(&w.ids),
            scores: pass.read(&w.scores),
        };
        RankingReads {
            k,
            best,
            domains,
            recalled,
        }
    }

    /// One ranking for each prompt; `by_words`, `masks`, `kept`: those of its batch, if it had some.
    ///
    /// Errors: a score is not finite.
    pub(crate) fn rankings(
        &self,
        reads: &RankingReads,
        outputs: &Outputs,
        prompts: usize,
        by_words: &WordMatches,
        masks: Option<&RowMasks>,
        kept: &[Option<u32>],
    ) -> Result<Vec<Ranking>> {
        let (k, models, count) = (reads.k, self.keys.models(), self.domains.len());
        (0..prompts)
            .map(|b| {
                let mut best = match reads.best {
                    Best::Ranked { ids, scores } => {
                        let ids = outputs.u32(ids)[b * k..][..k].iter().copied();
                        ids.zip(outputs.f32(scores)[b * k..][..k].iter().copied())
                            .collect()
                    }
                    Best::All(scores) => ranked(&outputs.f32(scores)[b * models..][..models], k),
                };
                if let Some(masks) = masks {
                    best.truncate(masks.counts[b]);
                }
                if let (Best::All(scores), Some(Some(model))) = (&reads.best, kept.get(b)) {
                    let scores = &outputs.f32(*scores)[b * models..][..models];
                    best.extend(self.behind(&best, *model, scores));
                }
                let domains = &outputs.f32(reads.domains)[b * count..][..count];
                let mut ranking = Ranking::new(best, domains)?;
                if let Some((own, y)) = self.recalled.as_ref().zip(reads.recalled) {
                    let rank = own.recall.rank;
                    let y = &outputs.f32(y)[b * rank..][..rank];
                    let words = &by_words.scores[b * own.recall.words.domains()..];
                    ranking.parts = own.parts(&ranking.best, y, words, self.scale());
                    ranking.place = by_words.unknown.get(b).map(|unknown| PromptPlace {
                        y: y.to_vec(),
                        unknown: *unknown,
                    });
                }
                if let Some(ids) = &self.ids {
                    let rows = ranking.best.iter_mut();
                    rows.for_each(|(row, _)| *row = ids[*row as usize]);
                }
                Ok(ranking)
            })
            .collect()
    }

    /// The row and the score of `model`, if it is eligible and not among the `best`.
    fn behind(&self, best: &[(u32, f32)], model: u32, scores: &[f32]) -> Option<(u32, f32)> {
        let row = match &self.ids {
            None => model,
            Some(ids) => to_u32(ids.iter().position(|id| *id == model)?),
        };
        let score = *scores.get(row as usize)?;
        let new = !best.iter().any(|(ranked, _)| *ranked == row);
        (new && score > LOWEST / 2.0).then_some((row, score))
    }

    /// The factor of the learned cosine.
    fn scale(&self) -> f32 {
        let strength = self.recalled.as_ref().map_or(1.0, DeviceRecall::learned);
        strength / self.tau
    }
}

#[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
impl DeviceRecall {
    fn new(device: &Device, recall: Recall, retired: &[bool]) -> Result<Self> {
        let offsets = recall.offsets();
        let eligible = offsets.iter().zip(retired);
        let floor: Vec<f32> = eligible
            .map(|(offset, retired)| if *retired { LOWEST } else { *offset })
            .collect();
        let projection = View::of_half(&recall.projection, recall.width);
        let parts = [("the memory's projection", projection)];
        Ok(Self {
            projection: Arc::new(Weight::new(device, &parts, &recall.bias)?),
            keys: Keys::new(device, View::of_half(&recall.keys, recall.rank), &floor)?,
            offsets,
            own: device.upload_ids("domain of each model", 1, &recall.of)?,
            recall,
        })
    }

    /// The memory of the models `ids` alone; `None` on a GPU.
    fn gathered(&self, device: &Device, ids: &[u32]) -> Result<Option<Self>> {
        let Some(keys) = self.keys.gathered(ids) else {
            return Ok(None);
        };
        let recall = self.recall.gathered(ids);
        Ok(Some(Self {
            projection: Arc::clone(&self.projection),
            keys,
            offsets: ids.iter().map(|id| self.offsets[*id as usize]).collect(),
            own: device.upload_ids("domain of each model", 1, &recall.of)?,
            recall,
        }))
    }

    fn learned(&self) -> f32 {
        self.recall.strengths.learned as f32
    }

    /// Adds the memory's scores to `s` [B, M].
    fn forward(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        x: &Tensor,
        looked: &mut MemoryWorkspace,
        s: &mut Tensor,
    ) {
        let (w, y) = (&self.projection, &mut looked.y);
        ops.linear.forward(pass, linear::Forward { x, w, y });
        let strengths = &self.recall.strengths;
        let f = score::Forward {
            u: &looked.y,
            keys: &self.keys,
            scale: strengths.memory as f32,
            s,
        };
        ops.score.forward_add(pass, f);
        let f = by_domain::Forward {
            domains: &looked.words,
            own: &self.own,
            strength: strengths.words as f32,
            s,
        };
        ops.by_domain.forward(pass, f);
    }

    /// The parts of each of the `best` scores; `y`: [R]; `words`: [N]. `scale`: the factor of
    /// cosines. A learned part beyond it is rounding of a memory that is far stronger, and is
    /// clamped.
    fn parts(&self, best: &[(u32, f32)], y: &[f32], words: &[f32], scale: f32) -> Vec<Parts> {
        let Recall {
            strengths,
            keys,
            rank,
            of,
            ..
        } = &self.recall;
        let part = |(id, score): &(u32, f32)| {
            let model = *id as usize;
            let key = View::of_half(&keys[model * rank * 2..][..rank * 2], *rank).to_f32();
            let products = key
                .iter()
                .zip(y)
                .map(|(k, y)| f64::from(*k) * f64::from(*y));
            let memory = strengths.memory * products.sum::<f64>() + f64::from(self.offsets[model]);
            let words = strengths.words * f64::from(words[of[model] as usize]);
            let learned = (f64::from(*score) - memory - words) as f32;
            Parts {
                learned: learned.clamp(-scale, scale),
                memory: memory as f32,
                words: words as f32,
            }
        };
        best.iter().map(part).collect()
    }
}

/// All of `scores` best first, cut to `k`.
fn ranked(scores: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = scores
        .iter()
        .enumerate()
        .map(|(id, s)| (to_u32(id), *s))
        .collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if k > 0 && k < all.len() {
        all.select_nth_unstable_by(k - 1, order);
    }
    all.truncate(k);
    all.sort_unstable_by(order);
    all
}

impl Ranking {
    /// Of a prompt that no model of `index` may answer.
    pub(crate) fn nothing(index: &Index) -> Self {
        Self {
            best: Vec::new(),
            domains: vec![None; index.domains.len()],
            total: 0.0,
            parts: Vec::new(),
            place: None,
        }
    }

    /// `domains`: log-sum-exps, near [`LOWEST`] without an eligible member.
    ///
    /// Errors: a score is not finite.
    fn new(best: Vec<(u32, f32)>, domains: &[f32]) -> Result<Self> {
        if let Some((id, score)) = best
            .iter()
            .find(|(_, score)| !score.is_finite() || *score <= LOWEST)
        {
            bail!(
                Numeric,
                "score of model {id}: expected a finite number, found {score}"
            );
        }
        if let Some(score) = domains.iter().find(|score| !score.is_finite()) {
            bail!(
                Numeric,
                "score of a domain: expected a finite number, found {score}"
            );
        }
        let eligible = |score: &f32| (*score > LOWEST / 2.0).then_some(*score);
        Ok(Self {
            best,
            domains: domains.iter().map(eligible).collect(),
            total: log_sum_exp_of(domains),
            parts: Vec::new(),
            place: None,
        })
    }
}

/// In f64: over all domains, which is over all eligible models.
fn log_sum_exp_of(scores: &[f32]) -> f64 {
    let peak = scores.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = scores
        .iter()
        .map(|score| (f64::from(*score) - f64::from(peak)).exp())
        .sum();
    f64::from(peak) + sum.ln()
}
