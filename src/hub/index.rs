//! The scoring index: the models' keys on a device, exact top-k, scores of domains.

use std::sync::Arc;

use crate::device::{Device, Outcome, Pass, Read, Tensor, small};
use crate::error::{Result, bail};
use crate::hub::hybrid::{Hybrid, Memory, Parts};
use crate::hub::{Domains, Hub};
use crate::ops::score::{self, Keys};
use crate::ops::top_k::{self, Found};
use crate::ops::{LOWEST, Ops, domain_prior, log_sum_exp, normalize};

/// Scores of one batch that a device holds at most.
const MOST_SCORES: usize = 1 << 24;

pub(crate) struct Index {
    keys: Keys,
    /// Ids by domain.
    members: Tensor,
    /// [N + 1]
    offsets: Tensor,
    domains: Vec<Arc<str>>,
    recalled: Option<Recalled>,
    tau: f32,
    eligible: usize,
}

/// What a hybrid adds to the learned scores.
struct Recalled {
    hybrid: Hybrid,
    keys: Keys,
    /// Domain of each model, [M].
    own: Tensor,
}

/// The tensors of one batch.
pub(crate) struct Room {
    /// [B, M]
    s: Tensor,
    /// [B, N]
    domains: Tensor,
    found: Found,
    /// [B k, 1]
    scores: Tensor,
    /// [B k, 1]
    ids: Tensor,
}

/// What to read when the pass is over.
pub(crate) struct Reads {
    k: usize,
    best: Best,
    domains: Read,
    /// The frozen encoder's vectors of the prompts, of a hybrid.
    x: Option<Read>,
}

enum Best {
    Ranked {
        ids: Read,
        scores: Read,
    },
    /// All scores, to be ranked on the host: for more ranks than the kernels take.
    All(Read),
}

/// One prompt's answer.
pub(crate) struct Ranking {
    /// Best first: id and score, at most k and never a retired model.
    pub(crate) best: Vec<(u32, f32)>,
    /// For each domain the log-sum-exp of its members' scores; [`LOWEST`] or so without any.
    pub(crate) domains: Vec<f32>,
    /// What each of the best models' scores is the sum of; empty without a hybrid.
    pub(crate) parts: Vec<Parts>,
}

impl Index {
    /// `rows`: E [M, D], any length but zero; ids are those of `hub`.
    pub(crate) fn new(
        device: &Device,
        hub: &Hub,
        rows: &[f32],
        width: usize,
        tau: f32,
        hybrid: Option<Hybrid>,
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
            offsets.push(offsets.last().copied().unwrap_or(0) + small(ids.len()));
        }
        let recalled = hybrid
            .map(|hybrid| Recalled::new(device, hybrid, &retired))
            .transpose()?;
        Ok(Self {
            keys: Keys::new(device, &keys, width, &floor)?,
            members: device.upload_ids("members", 1, &members)?,
            offsets: device.upload_ids("domain offsets", 1, &offsets)?,
            domains: domains.names,
            recalled,
            tau,
            eligible: retired.iter().filter(|retired| !**retired).count(),
        })
    }

    /// Domain names in the order of [`Ranking::domains`], as first spelled in the hub.
    pub(crate) fn domains(&self) -> &[Arc<str>] {
        &self.domains
    }

    /// The cosine of prompt and model embedding behind a model's score, or behind its learned part.
    pub(crate) fn cosine(&self, score: f32, parts: Option<&Parts>) -> f32 {
        parts.map_or(score, |parts| parts.learned) / self.scale()
    }

    /// What a hybrid remembers.
    pub(crate) fn memory(&self) -> Option<&Memory> {
        let recalled = self.recalled.as_ref()?;
        Some(&recalled.hybrid.memory)
    }

    /// Width of the frozen encoder's vectors that [`Index::forward`] wants; none: it wants none.
    pub(crate) fn recalls(&self) -> Option<usize> {
        self.memory().map(|memory| memory.width)
    }

    /// Prompts of a batch.
    pub(crate) fn most_prompts(&self) -> usize {
        (MOST_SCORES / self.keys.models().max(1)).clamp(1, 256)
    }

    /// Bytes that a batch brings back at most.
    pub(crate) fn read_bytes(&self, prompts: usize) -> usize {
        let ranks = self.keys.models().max(2 * top_k::MOST);
        4 * prompts * (ranks + self.domains.len() + self.recalls().unwrap_or(0))
    }

    pub(crate) fn room(&self, device: &Device, prompts: usize) -> Result<Room> {
        let models = self.keys.models();
        Ok(Room {
            s: device.scratch("s", prompts, models)?,
            domains: device.scratch("domain scores", prompts, self.domains.len())?,
            found: Found::new(device, prompts, models)?,
            scores: device.scratch("best scores", prompts * top_k::MOST.min(models), 1)?,
            ids: device.ids("best ids", prompts * top_k::MOST.min(models), 1)?,
        })
    }

    /// Ranks the hub for each row of `u` [B, D]; `x`: [B, H], unit vectors of the frozen encoder, for
    /// a hybrid.
    pub(crate) fn forward(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        u: &Tensor,
        x: Option<&Tensor>,
        k: usize,
        room: &mut Room,
    ) -> Reads {
        let recalled = self.recalled.as_ref().zip(x);
        let prompts = u.rows();
        let k = k.min(self.eligible);
        room.s.resize(prompts);
        room.domains.resize(prompts);
        ops.score.forward(
            pass,
            score::Forward {
                u,
                keys: &self.keys,
                scale: self.scale(),
                s: &mut room.s,
            },
        );
        if let Some((recalled, x)) = recalled {
            let f = score::Forward {
                u: x,
                keys: &recalled.keys,
                scale: 1.0,
                s: &mut room.s,
            };
            ops.score.forward_add(pass, f);
        }
        ops.log_sum_exp.forward(
            pass,
            log_sum_exp::Forward {
                s: &room.s,
                members: &self.members,
                offsets: &self.offsets,
                out: &mut room.domains,
            },
        );
        let domains = pass.read(&room.domains);
        if let Some((recalled, _)) = recalled {
            let f = domain_prior::Forward {
                domains: &room.domains,
                own: &recalled.own,
                strength: recalled.prior(),
                s: &mut room.s,
            };
            ops.domain_prior.forward(pass, f);
        }
        let x = recalled.map(|(_, x)| pass.read(x));
        if k > top_k::MOST {
            return Reads {
                k,
                best: Best::All(pass.read(&room.s)),
                domains,
                x,
            };
        }
        room.scores.resize(prompts * k);
        room.ids.resize(prompts * k);
        ops.top_k.forward(
            pass,
            top_k::Forward {
                s: &room.s,
                k,
                found: &mut room.found,
                scores: &mut room.scores,
                ids: &mut room.ids,
            },
        );
        let best = Best::Ranked {
            ids: pass.read(&room.ids),
            scores: pass.read(&room.scores),
        };
        Reads {
            k,
            best,
            domains,
            x,
        }
    }

    /// One ranking for each prompt.
    ///
    /// Errors: a score is not finite.
    pub(crate) fn rankings(
        &self,
        reads: &Reads,
        outcome: &Outcome,
        prompts: usize,
    ) -> Result<Vec<Ranking>> {
        let (k, models, count) = (reads.k, self.keys.models(), self.domains.len());
        (0..prompts)
            .map(|b| {
                let best = match reads.best {
                    Best::Ranked { ids, scores } => {
                        let ids = outcome.u32(ids)[b * k..][..k].iter().copied();
                        ids.zip(outcome.f32(scores)[b * k..][..k].iter().copied())
                            .collect()
                    }
                    Best::All(scores) => ranked(&outcome.f32(scores)[b * models..][..models], k),
                };
                let domains = outcome.f32(reads.domains)[b * count..][..count].to_vec();
                let mut ranking = Ranking {
                    best,
                    domains,
                    parts: Vec::new(),
                };
                if let Some((recalled, x)) = self.recalled.as_ref().zip(reads.x) {
                    let width = recalled.hybrid.memory.width;
                    recalled.finish(&mut ranking, &outcome.f32(x)[b * width..][..width]);
                }
                ranking.check()?;
                Ok(ranking)
            })
            .collect()
    }

    /// What the learned cosine is multiplied with.
    fn scale(&self) -> f32 {
        let strength = self.recalled.as_ref().map_or(1.0, Recalled::learned);
        strength / self.tau
    }
}

#[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
impl Recalled {
    fn new(device: &Device, hybrid: Hybrid, retired: &[bool]) -> Result<Self> {
        let mut offsets = hybrid.offsets();
        for (offset, _) in offsets
            .iter_mut()
            .zip(retired)
            .filter(|(_, retired)| **retired)
        {
            *offset = LOWEST;
        }
        Ok(Self {
            keys: Keys::new(device, &hybrid.keys(), hybrid.memory.width, &offsets)?,
            own: device.upload_ids("domain of each model", 1, &hybrid.memory.of)?,
            hybrid,
        })
    }

    fn learned(&self) -> f32 {
        self.hybrid.strengths.learned as f32
    }

    fn prior(&self) -> f32 {
        self.hybrid.strengths.prior as f32
    }

    /// Takes the logarithm of all domains' sum from what the device added for a model's own domain,
    /// and says what each score is the sum of.
    fn finish(&self, ranking: &mut Ranking, x: &[f32]) {
        let Hybrid { strengths, memory } = &self.hybrid;
        let total = log_sum_exp_of(&ranking.domains);
        let prior = |s: f32| strengths.prior * (f64::from(s) - total);
        let parts = ranking.best.iter_mut().map(|(id, score)| {
            let model = *id as usize;
            let own = ranking.domains[memory.of[model] as usize];
            let [card, exemplar, domain] = memory.cosines(x, model);
            *score -= (strengths.prior * total) as f32;
            let [card, exemplar, domain, balance, prior] = [
                strengths.card * card,
                strengths.exemplar * exemplar,
                strengths.domain * domain,
                strengths.balance * f64::from(memory.balance[model]),
                prior(own),
            ]
            .map(|part| part as f32);
            Parts {
                learned: *score - (card + exemplar + domain + balance + prior),
                card,
                exemplar,
                domain,
                balance,
                prior,
            }
        });
        ranking.parts = parts.collect();
        for domain in &mut ranking.domains {
            if *domain > LOWEST / 2.0 {
                *domain += prior(*domain) as f32;
            }
        }
    }
}

/// All of `scores` best first, cut to `k`.
fn ranked(scores: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = scores
        .iter()
        .enumerate()
        .map(|(id, s)| (small(id), *s))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(k);
    all
}

impl Ranking {
    fn check(&self) -> Result<()> {
        if let Some((id, score)) = self
            .best
            .iter()
            .find(|(_, score)| !score.is_finite() || *score <= LOWEST)
        {
            bail!(
                Numeric,
                "score of model {id}: expected a finite number, found {score}"
            );
        }
        if let Some(score) = self.domains.iter().find(|score| !score.is_finite()) {
            bail!(
                Numeric,
                "score of a domain: expected a finite number, found {score}"
            );
        }
        Ok(())
    }
}

/// In f64: over all domains, which is over all eligible models.
pub(crate) fn log_sum_exp_of(scores: &[f32]) -> f64 {
    let peak = scores.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = scores
        .iter()
        .map(|score| (f64::from(*score) - f64::from(peak)).exp())
        .sum();
    f64::from(peak) + sum.ln()
}
