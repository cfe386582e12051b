//! The scoring index: the models' keys on a device, exact top-k, and scores of domains.

use std::sync::Arc;

use crate::device::cpu::Cpu;
use crate::device::cpu::prefetch::prefetch;
use crate::device::{Device, NewTensor, Outputs, Pass, Read, Tensor};
use crate::error::{Result, bail};
use crate::hub::{Domains, Hub, ModelMask};
use crate::memory::served::{Parts, Recall};
use crate::num::{dot, to_u32};
use crate::ops::finish::{self, AnswerRow, Groups, Words};
use crate::ops::linear::{self, Weight};
use crate::ops::score::{self, Keys, Remembered};
use crate::ops::{LOWEST, Ops, normalize};
use crate::weights::{View, with_table};

/// Scores of one batch that a device holds at most.
const MOST_SCORES: usize = 1 << 24;

pub(crate) struct Index {
    keys: Keys,
    /// Ids of the rows in the hub; `None`: row n is model n.
    ids: Option<Vec<u32>>,
    /// The part of each model's score that does not depend on the prompt, [M]; the lowest of retired
    /// ones.
    offsets: Vec<f32>,
    offset_list: Tensor,
    groups: Groups,
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
    found: Tensor,
    /// Rows of [`AnswerRow`].
    results: Tensor,
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
    prompts: usize,
    k: usize,
    row: AnswerRow,
    results: Read,
    /// All scores, to be ranked on the host: for more ranks than the kernels take, and where a
    /// model is kept.
    all: Option<Read>,
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
        let mut floor = match &recall {
            Some(recall) => recall.offsets(),
            None => vec![0.0; hub.len()],
        };
        let retired_ones = floor
            .iter_mut()
            .zip(&retired)
            .filter(|(_, retired)| **retired);
        retired_ones.for_each(|(offset, _)| *offset = LOWEST);
        let domains = Domains::new(hub);
        let members = domains.members.concat();
        let mut offsets = vec![0];
        for ids in &domains.members {
            offsets.push(offsets.last().copied().unwrap_or(0) + to_u32(ids.len()));
        }
        let recalled = recall
            .map(|recall| DeviceRecall::new(device, recall))
            .transpose()?;
        Ok(Self {
            keys: with_table(&keys, width, halved, |keys| Keys::new(device, keys))?,
            offset_list: device.upload("offsets", 1, &floor)?,
            offsets: floor,
            groups: Groups::new(device, &members, &offsets, &domains.of)?,
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
        let floor: Vec<f32> = ids.iter().map(|id| self.offsets[*id as usize]).collect();
        // The words' scores are of all domains.
        let groups = Groups::new(device, &groups.concat(), &offsets, &of)?;
        Ok(Some(Self {
            keys,
            offset_list: device.upload("offsets", 1, &floor)?,
            offsets: floor,
            groups,
            domains: names
                .map(|domain| Arc::clone(&self.domains[*domain as usize]))
                .collect(),
            of: place_of,
            recalled: recalled.and_then(|recalled| recalled.gathered(ids)),
            tau: self.tau,
            eligible: ids.len(),
            ids: Some(ids.to_vec()),
        }))
    }

    /// Compiles what a ranking of few prompts dispatches, unless it is compiled already.
    pub(crate) fn compile(&self, ops: &Ops, device: &Device) -> Result<()> {
        let rank = self.recall().map_or(0, |recall| recall.rank);
        let mut kernels = ops.finish.kernels(self.keys.models());
        let [few, _] = ops.score.kernels([self.keys.width(), rank]);
        kernels.push(few);
        device.compile(&kernels)
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
    pub(crate) fn by_words(&self, cpu: &Cpu, prompts: &[&[u32]]) -> WordMatches {
        let Some(recall) = self.recall() else {
            return WordMatches::default();
        };
        let count = recall.words.domains();
        let mut all = WordMatches {
            scores: vec![0.0; prompts.len() * count],
            unknown: vec![1.0; prompts.len()],
        };
        let arrays = [&mut all.scores[..], &mut all.unknown[..]];
        // A prompt's words are about 40 reads of memory that is in no cache.
        cpu.lockstep(arrays, [count, 1], 40_000, |first, [scores, unknown]| {
            let prompts = prompts[first..].iter().zip(unknown);
            for ((words, unknown), out) in prompts.zip(scores.chunks_exact_mut(count.max(1))) {
                let (scores, known) = recall.words.scores(words);
                for (out, score) in out.iter_mut().zip(scores) {
                    *out = score as f32;
                }
                // A prompt without words is unlike any other.
                *unknown = (1.0 - known / words.len().max(1) as f64) as f32;
            }
        });
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
        let all = self.row(0).width() + self.keys.models();
        4 * prompts * self.row(self.most_ranks()).width().max(all)
    }

    /// Most bytes that [`Index::upload`] sends.
    pub(crate) fn upload_bytes(&self, prompts: usize) -> usize {
        let words = self.recall().map_or(0, |recall| recall.words.domains());
        4 * prompts * (words + self.mask_words())
    }

    /// Ranks that the kernels take.
    fn most_ranks(&self) -> usize {
        finish::MOST.min(self.keys.models())
    }

    /// A row of results with `k` ranks.
    fn row(&self, k: usize) -> AnswerRow {
        AnswerRow {
            k,
            domains: self.domains.len(),
            rank: self.recall().map_or(0, |recall| recall.rank),
        }
    }

    pub(crate) fn workspace(
        &self,
        ops: &Ops,
        device: &Device,
        prompts: usize,
    ) -> Result<IndexWorkspace> {
        let models = self.keys.models();
        let results = prompts * self.row(self.most_ranks()).width();
        let [results] = device.beside([NewTensor::ids("results", results, 1)])?;
        Ok(IndexWorkspace {
            s: device.scratch("s", prompts, models)?,
            mask: device.input(NewTensor::ids("mask", prompts, self.mask_words())),
            found: ops.finish.found(device, prompts, models)?,
            results,
            recalled: self
                .recall()
                .map(|recall| -> Result<MemoryWorkspace> {
                    Ok(MemoryWorkspace {
                        y: device.scratch("y", prompts, recall.rank)?,
                        words: device.input(NewTensor::numbers(
                            "words",
                            prompts,
                            recall.words.domains(),
                        )),
                    })
                })
                .transpose()?,
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

    /// Ranks the hub for each row of `z` [B, D], which is of no use afterwards; `x`: [B, L H], the
    /// layers' unit vectors, for a memory; `masked`: the workspace has a mask for each prompt.
    #[expect(clippy::too_many_arguments, reason = "a pass, its inputs and its room")]
    pub(crate) fn forward(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        z: &mut Tensor,
        x: Option<&Tensor>,
        masked: bool,
        wanted: WantedRanks<'_>,
        w: &mut IndexWorkspace,
    ) -> RankingReads {
        let prompts = z.rows();
        let k = wanted.k.min(self.eligible);
        let all = wanted.kept.iter().any(Option::is_some) || k > finish::MOST;
        let row = self.row(if all { 0 } else { k });
        w.s.resize(prompts);
        let mut recalled = None;
        if let (Some(own), Some(x), Some(room)) = (&self.recalled, x, &mut w.recalled) {
            room.y.resize(prompts);
            own.project(ops, pass, x, &mut room.y);
            recalled = Some((own, &*room));
        }
        ops.score.forward(
            pass,
            score::Forward {
                z,
                keys: &self.keys,
                scale: self.scale(),
                memory: recalled.map(|(own, room)| own.remembered(&room.y)),
                offsets: &self.offset_list,
                s: &mut w.s,
            },
        );
        ops.finish.forward(
            pass,
            finish::Forward {
                s: &mut w.s,
                groups: &self.groups,
                words: recalled.map(|(own, room)| own.words(&room.words)),
                mask: masked.then_some(&w.mask),
                y: recalled.map(|(_, room)| &room.y),
                k: row.k,
                found: &mut w.found,
                results: &mut w.results,
            },
        );
        RankingReads {
            prompts,
            k,
            row,
            results: pass.read(&w.results),
            all: all.then(|| pass.read(&w.s)),
        }
    }

    /// One ranking for each prompt; `by_words`, `masks`, `kept`: those of its batch, if it had some.
    ///
    /// Errors: a score is not finite.
    pub(crate) fn rankings(
        &self,
        cpu: &Cpu,
        reads: &RankingReads,
        outputs: &Outputs,
        by_words: &WordMatches,
        masks: Option<&RowMasks>,
        kept: &[Option<u32>],
    ) -> Result<Vec<Ranking>> {
        let models = self.keys.models();
        let rank = |b: usize| {
            let (ids, [scores, domains, y]) = reads.row.of(outputs.u32(reads.results), b);
            let all = reads
                .all
                .map(|read| &outputs.f32(read)[b * models..][..models]);
            let mut best = match all {
                Some(all) => ranked(all, reads.k),
                None => ids.iter().copied().zip(scores.iter().copied()).collect(),
            };
            if let Some(masks) = masks {
                best.truncate(masks.counts[b]);
            }
            if let (Some(all), Some(Some(model))) = (all, kept.get(b)) {
                best.extend(self.behind(&best, *model, all));
            }
            let mut ranking = Ranking::new(best, domains)?;
            if let Some(own) = &self.recalled {
                let count = own.recall.words.domains();
                let words = &by_words.scores[b * count..][..count];
                let offsets = &self.offsets;
                ranking.parts = own.parts(&ranking.best, y, words, offsets, self.scale());
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
        };
        // The sums of a few products of R, one after the other.
        cpu.map(reads.prompts, 20_000, rank).into_iter().collect()
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
    fn new(device: &Device, recall: Recall) -> Result<Self> {
        let projection = View::of_half(&recall.projection, recall.width);
        let parts = [("the memory's projection", projection)];
        Ok(Self {
            projection: Arc::new(Weight::new(device, &parts, &recall.bias)?),
            keys: Keys::new(device, View::of_half(&recall.keys, recall.rank))?,
            recall,
        })
    }

    /// The memory of the models `ids` alone; `None` on a GPU.
    fn gathered(&self, ids: &[u32]) -> Option<Self> {
        Some(Self {
            projection: Arc::clone(&self.projection),
            keys: self.keys.gathered(ids)?,
            recall: self.recall.gathered(ids),
        })
    }

    fn learned(&self) -> f32 {
        self.recall.strengths.learned as f32
    }

    /// x [B, L H] -> y [B, R]
    fn project(&self, ops: &Ops, pass: &mut Pass<'_>, x: &Tensor, y: &mut Tensor) {
        let w = &self.projection;
        ops.linear.forward(pass, linear::Forward { x, w, y });
    }

    fn remembered<'t>(&'t self, y: &'t Tensor) -> Remembered<'t> {
        Remembered {
            y,
            keys: &self.keys,
            strength: self.recall.strengths.memory as f32,
        }
    }

    fn words<'t>(&self, scores: &'t Tensor) -> Words<'t> {
        Words {
            scores,
            strength: self.recall.strengths.words as f32,
        }
    }

    /// The parts of each of the `best` scores; `y`: [R]; `words`: [N]; `offsets`: [M]. `scale`: the
    /// factor of cosines. A learned part beyond it is rounding of a memory that is far stronger, and
    /// is clamped.
    fn parts(
        &self,
        best: &[(u32, f32)],
        y: &[f32],
        words: &[f32],
        offsets: &[f32],
        scale: f32,
    ) -> Vec<Parts> {
        let Recall {
            strengths,
            keys,
            rank,
            of,
            ..
        } = &self.recall;
        let keys = View::of_half(keys, *rank);
        // They are in no cache, since scores are made of packed keys.
        for (id, _) in best {
            prefetch(keys.row_bytes(*id as usize));
        }
        let mut key = vec![0.0; *rank];
        let part = |(id, score): &(u32, f32)| {
            let model = *id as usize;
            keys.read_row(model, &mut key);
            let memory = strengths.memory * dot(&key, y) + f64::from(offsets[model]);
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
