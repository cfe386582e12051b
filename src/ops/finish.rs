//! The answer for each prompt: s [B, M] -> its best models and the scores of its domains.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;
mod cpu;

use crate::device::gpu::GpuPass;
use crate::device::{Device, Kernel, Pass, Shader, Tensor, shader};
use crate::error::Result;
use crate::num::to_u32;

const SHADER: Shader = shader!("finish");

/// Lanes of a workgroup.
const WG: usize = 256;

/// Most lanes of one domain.
const MOST_LANES: usize = 64;

/// Bytes of workgroup memory beside the scores.
const PAIRS: usize = 8 * (WG + 16);

/// Scores that a workgroup holds at most: more would leave a card's cores to few workgroups.
const MOST_ROOM: usize = 8192;

/// Above this the kernels, which take one turn for each rank, lose to reading the scores back.
pub(crate) const MOST: usize = 128;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    models: u32,
    domains: u32,
    k: u32,
    chunks: u32,
    span: u32,
    rank: u32,
    words: u32,
    mask: u32,
    strength: f32,
}

pub(crate) struct Finish {
    /// For a hub whose scores one workgroup holds.
    pub(super) whole: Kernel,
    part: Kernel,
    join: Kernel,
    /// Scores that a workgroup holds.
    room: usize,
}

/// The models of a hub by domain.
pub(crate) struct Groups {
    /// [M], ids of domain 0, then 1, ...
    members: Tensor,
    /// [N + 1]
    offsets: Tensor,
    /// [M], the column of the words' scores that a model takes.
    own: Tensor,
    models: usize,
    domains: usize,
    /// That the words' scores have at least.
    columns: usize,
}

impl Groups {
    /// `members`: [M], ids of domain 0, then 1, ...; `offsets`: [N + 1]; `own`: [M], the column of
    /// the words' scores that a model takes.
    pub(crate) fn new(
        device: &Device,
        members: &[u32],
        offsets: &[u32],
        own: &[u32],
    ) -> Result<Self> {
        let (models, domains) = (members.len(), offsets.len() - 1);
        // The kernels run without checks of these.
        let inside = |id: &u32| (*id as usize) < models;
        assert!(
            own.len() == models
                && members.iter().all(inside)
                && offsets.is_sorted()
                && offsets.last().is_some_and(|end| *end as usize == models),
            "finish: {models} models are not those of {domains} domains"
        );
        let columns = own.iter().max().map_or(0, |own| *own as usize + 1);
        Ok(Self {
            members: device.upload_ids("members", 1, members)?,
            offsets: device.upload_ids("domain offsets", 1, offsets)?,
            own: device.upload_ids("domain of each model", 1, own)?,
            models,
            domains,
            columns,
        })
    }
}

/// How a row of results is made up: k ids, k scores, N scores of domains, R numbers of y.
#[derive(Clone, Copy)]
pub(crate) struct AnswerRow {
    pub(crate) k: usize,
    pub(crate) domains: usize,
    pub(crate) rank: usize,
}

impl AnswerRow {
    pub(crate) fn width(self) -> usize {
        2 * self.k + self.domains + self.rank
    }

    /// Ids, scores, domains and y of row `b` of `results`.
    pub(crate) fn of(self, results: &[u32], b: usize) -> (&[u32], [&[f32]; 3]) {
        let row = &results[b * self.width()..][..self.width()];
        let (ids, rest) = row.split_at(self.k);
        let rest: &[f32] = bytemuck::cast_slice(rest);
        let (scores, rest) = rest.split_at(self.k);
        let (domains, y) = rest.split_at(self.domains);
        (ids, [scores, domains, y])
    }
}

/// `s`: [B, M]; words are added to it, and those that the mask leaves out become the lowest.
pub(crate) struct Forward<'t> {
    pub(crate) s: &'t mut Tensor,
    pub(crate) groups: &'t Groups,
    pub(crate) words: Option<Words<'t>>,
    /// [B, ceil(M / 32)], bit m % 32 of word m / 32 is set where model m may answer.
    pub(crate) mask: Option<&'t Tensor>,
    /// [B, R], to be read with the answers.
    pub(crate) y: Option<&'t Tensor>,
    /// Ranks, at most [`MOST`] and M; behind the eligible models come those with the lowest score.
    pub(crate) k: usize,
    /// Of [`Finish::found`].
    pub(crate) found: &'t mut Tensor,
    /// [B width, 1], rows as [`AnswerRow`] says, overwritten.
    pub(crate) results: &'t mut Tensor,
}

/// Scores of domains by the words of the prompts.
#[derive(Clone, Copy)]
pub(crate) struct Words<'t> {
    /// [B, W]
    pub(crate) scores: &'t Tensor,
    /// Their factor; models that may not be returned keep the lowest score.
    pub(crate) strength: f32,
}

impl Finish {
    pub(crate) fn new(device: &Device) -> Self {
        let scratch = match device {
            Device::Cpu(_) => 0,
            Device::Gpu(gpu) => gpu.most_scratch() as usize,
        };
        Self::with_room(scratch.saturating_sub(PAIRS) / 4)
    }

    /// `room`: scores that a workgroup holds.
    fn with_room(room: usize) -> Self {
        let room = room.clamp(1, MOST_ROOM);
        let kernel = |entry| Kernel::new(&SHADER, entry, &[("ROOM", room as f64)]);
        Self {
            whole: kernel("whole"),
            part: kernel("part"),
            join: kernel("join"),
            room,
        }
    }

    /// The kernels that a hub of `models` takes.
    pub(crate) fn kernels(&self, models: usize) -> Vec<&Kernel> {
        match models <= self.room {
            true => Vec::from([&self.whole]),
            false => Vec::from([&self.part, &self.join]),
        }
    }

    /// Room for the best of each part of a hub, between the two kernels; none where there is one.
    pub(crate) fn found(&self, device: &Device, prompts: usize, models: usize) -> Result<Tensor> {
        let parts = match device {
            Device::Gpu(_) if models > self.room => models.div_ceil(self.room),
            _ => 0,
        };
        device.ids("found", prompts * parts * MOST, 2)
    }

    /// Overwrites the results.
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (prompts, models) = (f.s.rows(), f.groups.models);
        f.s.expect("finish", "s", prompts, models);
        assert!(
            f.k <= MOST.min(models),
            "finish: k of {} among {models}",
            f.k
        );
        if let Some(mask) = f.mask {
            mask.expect("finish", "mask", prompts, models.div_ceil(32));
        }
        let row = AnswerRow {
            k: f.k,
            domains: f.groups.domains,
            rank: f.y.map_or(0, Tensor::columns),
        };
        for (name, tensor) in [("y", f.y), ("words", f.words.map(|words| words.scores))] {
            if let Some(tensor) = tensor {
                tensor.expect("finish", name, prompts, tensor.columns());
            }
        }
        assert!(
            f.words
                .is_none_or(|words| words.scores.columns() >= f.groups.columns),
            "finish: fewer scores of words than domains"
        );
        f.results.resize(prompts * row.width());
        match pass {
            Pass::Gpu(pass) => self.forward_gpu(pass, f, row),
            Pass::Cpu(pass) => cpu::forward(pass, f, row),
        }
    }

    fn forward_gpu(&self, gpu: &mut GpuPass<'_>, f: Forward<'_>, row: AnswerRow) {
        let Groups {
            members,
            offsets,
            own,
            ..
        } = f.groups;
        let (prompts, models, domains) = (to_u32(f.s.rows()), f.groups.models, row.domains);
        let whole = models <= self.room;
        // As many lanes as give each domain some at once, or about eight members to each.
        let lanes = match whole {
            true => WG / domains.clamp(1, WG),
            false => models / (8 * domains.max(1)),
        };
        let span = (lanes.clamp(1, MOST_LANES) + 1).next_power_of_two() / 2;
        let chunks = models.div_ceil(self.room);
        let dims = Dims {
            models: to_u32(models),
            domains: to_u32(domains),
            k: to_u32(f.k),
            chunks: to_u32(chunks),
            span: to_u32(span),
            rank: to_u32(row.rank),
            words: to_u32(f.words.map_or(0, |words| words.scores.columns())),
            mask: to_u32(f.mask.map_or(0, Tensor::columns)),
            strength: f.words.map_or(0.0, |words| words.strength),
        };
        // What is not there is not read either.
        let words = ("words", f.words.map_or(offsets, |words| words.scores));
        let mask = ("mask", f.mask.unwrap_or(offsets));
        let y = ("y", f.y.unwrap_or(offsets));
        let (own, members, offsets) = (("own", own), ("members", members), ("offsets", offsets));
        let (s, results) = (("s", &*f.s), ("results", &*f.results));
        if whole {
            let tensors = [words, own, members, offsets, mask, y, s, results];
            gpu.dispatch(&self.whole, [prompts, 1, 1], &dims, &tensors);
            return;
        }
        f.found.resize(f.s.rows() * chunks * f.k);
        let found = ("found", &*f.found);
        let grid = [to_u32(chunks), prompts, 1];
        gpu.dispatch(&self.part, grid, &dims, &[words, own, mask, s, found]);
        let grid = [1 + to_u32(domains.div_ceil(WG / span)), prompts, 1];
        let tensors = [members, offsets, y, s, found, results];
        gpu.dispatch(&self.join, grid, &dims, &tensors);
    }
}
