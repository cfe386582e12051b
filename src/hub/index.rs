//! The scoring index: the models' keys on a device, exact top-k, scores of domains.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::device::{Device, Outcome, Pass, Read, Tensor, small};
use crate::error::{Result, bail};
use crate::hub::{Hub, domain_key};
use crate::ops::score::{self, Keys};
use crate::ops::top_k::{self, Found};
use crate::ops::{LOWEST, Ops, log_sum_exp, normalize};

/// Scores of one batch that a device holds at most.
const MOST_SCORES: usize = 1 << 24;

pub(crate) struct Index {
    keys: Keys,
    /// Ids by domain.
    members: Tensor,
    /// [N + 1]
    offsets: Tensor,
    domains: Vec<Arc<str>>,
    tau: f32,
    eligible: usize,
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
}

impl Index {
    /// `rows`: E [M, D], any length but zero; ids are those of `hub`.
    pub(crate) fn new(
        device: &Device,
        hub: &Hub,
        rows: &[f32],
        width: usize,
        tau: f32,
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
        let eligible: Vec<bool> = hub.iter().map(|(_, model)| !model.retired).collect();
        let mut groups: BTreeMap<String, (Arc<str>, Vec<u32>)> = BTreeMap::new();
        for (id, model) in hub.iter() {
            let key = domain_key(&model.domain);
            let group = groups
                .entry(key)
                .or_insert_with(|| (Arc::clone(&model.domain), Vec::new()));
            group.1.push(id.0);
        }
        let mut members = Vec::with_capacity(hub.len());
        let mut offsets = vec![0];
        let mut domains = Vec::with_capacity(groups.len());
        for (name, ids) in groups.into_values() {
            members.extend(ids);
            offsets.push(small(members.len()));
            domains.push(name);
        }
        Ok(Self {
            keys: Keys::new(device, &keys, width, &eligible)?,
            members: device.upload_ids("members", 1, &members)?,
            offsets: device.upload_ids("domain offsets", 1, &offsets)?,
            domains,
            tau,
            eligible: eligible.iter().filter(|may| **may).count(),
        })
    }

    /// Domain names in the order of [`Ranking::domains`], as first spelled in the hub.
    pub(crate) fn domains(&self) -> &[Arc<str>] {
        &self.domains
    }

    pub(crate) fn tau(&self) -> f32 {
        self.tau
    }

    /// Prompts of a batch.
    pub(crate) fn most_prompts(&self) -> usize {
        (MOST_SCORES / self.keys.models().max(1)).clamp(1, 256)
    }

    /// Bytes that a batch brings back at most.
    pub(crate) fn read_bytes(&self, prompts: usize) -> usize {
        4 * prompts * (self.keys.models().max(2 * top_k::MOST) + self.domains.len())
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

    /// Ranks the hub for each row of `u` [B, D].
    pub(crate) fn forward(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        u: &Tensor,
        k: usize,
        room: &mut Room,
    ) -> Reads {
        let prompts = u.rows();
        let k = k.min(self.eligible);
        room.s.resize(prompts);
        room.domains.resize(prompts);
        ops.score.forward(
            pass,
            score::Forward {
                u,
                keys: &self.keys,
                tau: self.tau,
                s: &mut room.s,
            },
        );
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
        if k > top_k::MOST {
            return Reads {
                k,
                best: Best::All(pass.read(&room.s)),
                domains,
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
        Reads { k, best, domains }
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
                let ranking = Ranking { best, domains };
                ranking.check()?;
                Ok(ranking)
            })
            .collect()
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
