//! Cross-entropy over models by cosine, with its gradients: z [B, D], E [M, D] -> losses [B], dz,
//! dE. A prior [M] is added to the logits.
//!
//! An example's candidates are a list, or all models. The cost of a list does not depend on M. A
//! GPU has [`contrastive_all`] for all models, where D and the places of E and dE are multiples of
//! four.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::cpu::blocks::{self, Multipliers};
use crate::device::cpu::{Cpu, math, pick_rows};
use crate::device::gpu::GpuPass;
use crate::device::{Device, Kernel, Part, PartMut, Pass, Place, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::LOWEST;
use crate::ops::contrastive_all::{self, ContrastiveAll, TiledWorkspace};
use crate::ops::normalize::length_of;

const SHADER: Shader = shader!("contrastive", "reduce");

/// No candidate, no target: fills lists up.
pub(crate) const NONE: u32 = u32::MAX;

/// A shorter row counts as this long.
const LEAST: f32 = 1e-12;

/// Examples of one workgroup of `similarity_all`.
const EXAMPLES: usize = 8;

/// Workgroups of a kernel that walks rows of E; every adapter allows as many.
const MOST_GROUPS: usize = 32_768;

/// Rows of E whose gradients one thread sums before it adds them.
const ROWS: usize = 32;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    examples: u32,
    width: u32,
    columns: u32,
    models: u32,
    targets: u32,
    rows_at: u32,
    grad_at: u32,
    length_step: u32,
    inverse_tau: f32,
}

pub(crate) struct Contrastive {
    unit_queries: Kernel,
    length_of_rows: Kernel,
    similarity_sampled: Kernel,
    similarity_all: Kernel,
    loss: Kernel,
    dz_sampled: Kernel,
    dz_all: Kernel,
    de_sampled: Kernel,
    de_all: Kernel,
    tiled: ContrastiveAll,
}

/// Scratch tensors between the kernels.
pub(crate) enum LossWorkspace {
    Steps(StepsWorkspace),
    /// Of all models on a GPU.
    Tiled(TiledWorkspace),
}

/// Scratch tensors of the kernels in this shader, and of the CPU.
pub(crate) struct StepsWorkspace {
    /// Unit queries [B, D] and the lengths of z [B, 1].
    u: Tensor,
    lengths: Tensor,
    /// [B, C]: cosines, and the derivative of the loss by u . E[j].
    cosines: Tensor,
    slopes: Tensor,
    /// Lengths of the rows of E: [B, C] of the candidates, or [M, 1] of all.
    row_lengths: Tensor,
}

impl LossWorkspace {
    /// For `examples` lists of `candidates` ids; `width`: D.
    pub(crate) fn sampled(
        device: &Device,
        examples: usize,
        candidates: usize,
        width: usize,
    ) -> Result<Self> {
        let row_lengths = device.scratch("row lengths", examples, candidates)?;
        let steps = StepsWorkspace::new(device, examples, candidates, width, row_lengths)?;
        Ok(Self::Steps(steps))
    }

    /// For `examples` with all models as candidates, whose `rows` are E's in their tensor.
    pub(crate) fn all(device: &Device, examples: usize, rows: Place) -> Result<Self> {
        let (models, width) = (rows.rows, rows.columns);
        if matches!(device, Device::Gpu(_)) && contrastive_all::fits(rows) {
            let tiled = TiledWorkspace::new(device, examples, models, width)?;
            return Ok(Self::Tiled(tiled));
        }
        let row_lengths = device.scratch("row lengths", models, 1)?;
        let steps = StepsWorkspace::new(device, examples, models, width, row_lengths)?;
        Ok(Self::Steps(steps))
    }
}

impl StepsWorkspace {
    fn new(
        device: &Device,
        examples: usize,
        columns: usize,
        width: usize,
        row_lengths: Tensor,
    ) -> Result<Self> {
        Ok(Self {
            u: device.scratch("unit queries", examples, width)?,
            lengths: device.scratch("query lengths", examples, 1)?,
            cosines: device.scratch("cosines", examples, columns)?,
            slopes: device.scratch("slopes", examples, columns)?,
            row_lengths,
        })
    }

    /// Gives every tensor the rows that `f` needs, and checks their shapes.
    fn fit(&mut self, f: &LossShape<'_>) {
        let examples = f.examples;
        for tensor in [
            &mut self.u,
            &mut self.lengths,
            &mut self.cosines,
            &mut self.slopes,
        ] {
            tensor.resize(examples);
        }
        self.u.expect("contrastive", "room", examples, f.width);
        let columns = match f.candidates {
            CandidateSet::All => {
                let lengths = &self.row_lengths;
                lengths.expect("contrastive", "room of all", f.models, 1);
                f.models
            }
            CandidateSet::Sampled { ids, inverse } => {
                ids.expect("contrastive", "candidates", examples, ids.columns());
                let listed = inverse.rows.rows();
                inverse
                    .starts
                    .expect("contrastive", "inverse", listed + 1, 1);
                self.row_lengths.resize(examples);
                let lengths = &self.row_lengths;
                lengths.expect("contrastive", "room of lists", examples, ids.columns());
                ids.columns()
            }
        };
        let cosines = &self.cosines;
        cosines.expect("contrastive", "room", examples, columns);
    }
}

/// What a workspace must have room for.
struct LossShape<'t> {
    examples: usize,
    models: usize,
    width: usize,
    candidates: CandidateSet<'t>,
}

/// For each row of E its places among the candidates of a batch, in tensors [R, 1], [R + 1, 1] and
/// [L, 1].
pub(crate) struct Inverse {
    rows: Tensor,
    starts: Tensor,
    entries: Tensor,
}

impl Inverse {
    /// LossWorkspace for `examples` lists of `candidates` ids.
    pub(crate) fn new(device: &Device, examples: usize, candidates: usize) -> Result<Self> {
        let most = examples * candidates;
        Ok(Self {
            rows: device.ids("inverse rows", most, 1)?,
            starts: device.ids("inverse starts", most + 1, 1)?,
            entries: device.ids("inverse entries", most, 1)?,
        })
    }

    /// Takes the list over, which [`invert`] made of the batch's candidates.
    pub(crate) fn upload(&mut self, pass: &mut Pass<'_>, list: &InverseList) {
        pass.upload(&mut self.rows, &list.rows);
        pass.upload(&mut self.starts, &list.starts);
        pass.upload(&mut self.entries, &list.entries);
    }
}

/// The content of an [`Inverse`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InverseList {
    /// Rows of E that are candidates, ascending.
    pub(crate) rows: Vec<u32>,
    /// First entry of each row, and the number of entries.
    pub(crate) starts: Vec<u32>,
    /// Elements of the candidates [B, K] that name the row, ascending for each row.
    pub(crate) entries: Vec<u32>,
}

/// Inverts `candidates` [B, K].
pub(crate) fn invert(candidates: &[u32]) -> InverseList {
    let named = candidates.iter().enumerate().filter(|(_, id)| **id != NONE);
    let mut pairs: Vec<(u32, u32)> = named.map(|(place, id)| (*id, to_u32(place))).collect();
    pairs.sort_unstable();
    let (mut rows, mut starts) = (Vec::new(), Vec::new());
    for (entry, (id, _)) in pairs.iter().enumerate() {
        if rows.last() != Some(id) {
            rows.push(*id);
            starts.push(to_u32(entry));
        }
    }
    starts.push(to_u32(pairs.len()));
    InverseList {
        rows,
        starts,
        entries: pairs.into_iter().map(|(_, place)| place).collect(),
    }
}

/// The models that a softmax runs over.
#[derive(Clone, Copy)]
pub(crate) enum CandidateSet<'t> {
    /// The whole table.
    All,
    /// `ids`: [B, K], different ids in each row, [`NONE`] fills up; `inverse` is of the same ids.
    Sampled {
        ids: &'t Tensor,
        inverse: &'t Inverse,
    },
}

/// The target distribution of the softmax. A target that is no candidate is left out.
#[derive(Clone, Copy)]
pub(crate) struct Targets<'t> {
    /// [B, S]; [`NONE`] fills up.
    pub(crate) ids: &'t Tensor,
    /// [B, S], not negative; a row may sum to less than 1.
    pub(crate) mass: &'t Tensor,
    /// [B, 1]: weight over the number of valid examples; 0 leaves an example out.
    pub(crate) weights: &'t Tensor,
}

/// `z`, `dz`: [B, D], `dz` overwritten; `rows`: E [M, D]; `priors`: [M, 1]; `losses`: [B, 1],
/// overwritten with w l, so that their sum is the batch's loss; `d_rows`: dE [M, D], added to.
pub(crate) struct LossAndGradients<'t> {
    pub(crate) z: &'t Tensor,
    pub(crate) rows: Part<'t>,
    pub(crate) tau: f32,
    pub(crate) priors: &'t Tensor,
    pub(crate) candidates: CandidateSet<'t>,
    pub(crate) targets: Targets<'t>,
    pub(crate) workspace: &'t mut LossWorkspace,
    pub(crate) losses: &'t mut Tensor,
    pub(crate) dz: &'t mut Tensor,
    pub(crate) d_rows: PartMut<'t>,
}

impl Contrastive {
    pub(crate) fn new() -> Self {
        let kernel = |entry| Kernel::new(&SHADER, entry, &[]);
        // One workgroup walks all of E for an example: as many lanes as every adapter has.
        let wide = |entry| Kernel::new(&SHADER, entry, &[("WG", 256.0)]);
        Self {
            unit_queries: kernel("unit_queries"),
            length_of_rows: kernel("length_of_rows"),
            similarity_sampled: kernel("similarity_sampled"),
            similarity_all: kernel("similarity_all"),
            loss: wide("loss"),
            dz_sampled: wide("dz_sampled"),
            dz_all: wide("dz_all"),
            de_sampled: kernel("de_sampled"),
            de_all: kernel("de_all"),
            tiled: ContrastiveAll::new(),
        }
    }

    pub(crate) fn loss_and_gradients(&self, pass: &mut Pass<'_>, f: LossAndGradients<'_>) {
        let (examples, width) = (f.z.rows(), f.z.columns());
        let models = f.rows.place.rows;
        f.rows.place.expect("contrastive", "rows", models, width);
        f.d_rows
            .place
            .expect("contrastive", "d_rows", models, width);
        assert!(
            f.rows.place.stride == width && f.d_rows.place.stride == width,
            "contrastive: rows and d_rows: expected consecutive rows, found {:?} and {:?}",
            f.rows.place,
            f.d_rows.place
        );
        f.priors.expect("contrastive", "priors", models, 1);
        f.losses.expect("contrastive", "losses", examples, 1);
        f.dz.expect("contrastive", "dz", examples, width);
        let slots = f.targets.ids.columns();
        f.targets
            .ids
            .expect("contrastive", "targets.ids", examples, slots);
        f.targets
            .mass
            .expect("contrastive", "targets.mass", examples, slots);
        f.targets
            .weights
            .expect("contrastive", "targets.weights", examples, 1);

        let shape = LossShape {
            examples,
            models,
            width,
            candidates: f.candidates,
        };
        match &mut *f.workspace {
            LossWorkspace::Steps(steps) => steps.fit(&shape),
            LossWorkspace::Tiled(tiled) => tiled.resize(examples),
        }
        match pass {
            Pass::Gpu(gpu) => match &*f.workspace {
                LossWorkspace::Steps(steps) => self.record(gpu, &f, steps),
                LossWorkspace::Tiled(tiled) => self.tiled.record(gpu, &f, tiled),
            },
            Pass::Cpu(pass) => compute(pass.cpu, f),
        }
    }

    fn record(&self, gpu: &mut GpuPass<'_>, f: &LossAndGradients<'_>, room: &StepsWorkspace) {
        let (examples, models) = (to_u32(f.z.rows()), f.rows.place.rows);
        let targets = f.targets;
        let mut dims = Dims {
            examples,
            width: to_u32(f.z.columns()),
            columns: to_u32(room.cosines.columns()),
            models: to_u32(models),
            targets: to_u32(targets.ids.columns()),
            rows_at: to_u32(f.rows.place.offset),
            grad_at: to_u32(f.d_rows.place.offset),
            length_step: 0,
            inverse_tau: 1.0 / f.tau,
        };
        let (z, theta, u) = (("z", f.z), ("theta", f.rows.tensor), ("u", &room.u));
        let (lengths, row_lengths) = (
            ("lengths", &room.lengths),
            ("row_lengths", &room.row_lengths),
        );
        let (cosines, slopes) = (("cosines", &room.cosines), ("slopes", &room.slopes));
        let (ids, mass) = (("target_ids", targets.ids), ("target_mass", targets.mass));
        let (losses, weights) = (("losses", &*f.losses), ("weights", targets.weights));
        let priors = ("priors", f.priors);
        let (dz, grad) = (("dz", &*f.dz), ("grad", &*f.d_rows.tensor));
        let (every_example, every_row) = ([examples, 1, 1], to_u32(models.min(MOST_GROUPS)));

        gpu.dispatch(&self.unit_queries, every_example, &dims, &[z, u, lengths]);
        match f.candidates {
            CandidateSet::All => {
                let grid = [every_row, 1, 1];
                gpu.dispatch(&self.length_of_rows, grid, &dims, &[theta, row_lengths]);
                let by_eight = [every_row, groups(f.z.rows(), EXAMPLES), 1];
                let similarity = [u, theta, ids, mass, row_lengths, cosines, slopes];
                gpu.dispatch(&self.similarity_all, by_eight, &dims, &similarity);
                // Bound and not read: candidate k is model k.
                let list = ("candidates", targets.ids);
                let loss = [list, priors, cosines, row_lengths, weights, slopes, losses];
                gpu.dispatch(&self.loss, every_example, &dims, &loss);
                gpu.dispatch(
                    &self.dz_all,
                    every_example,
                    &dims,
                    &[u, theta, lengths, slopes, dz],
                );
                gpu.dispatch(
                    &self.de_all,
                    grid,
                    &dims,
                    &[u, theta, cosines, slopes, grad],
                );
            }
            CandidateSet::Sampled { ids: list, inverse } => {
                dims.length_step = dims.columns;
                let list = ("candidates", list);
                let places = [dims.columns, examples, 1];
                let similarity = [u, theta, list, ids, mass, row_lengths, cosines, slopes];
                gpu.dispatch(&self.similarity_sampled, places, &dims, &similarity);
                let loss = [list, priors, cosines, row_lengths, weights, slopes, losses];
                gpu.dispatch(&self.loss, every_example, &dims, &loss);
                let back = [u, theta, list, lengths, slopes, dz];
                gpu.dispatch(&self.dz_sampled, every_example, &dims, &back);
                let listed = inverse.rows.rows();
                dims.models = to_u32(listed);
                let (rows, starts) = (("rows", &inverse.rows), ("starts", &inverse.starts));
                let entries = ("entries", &inverse.entries);
                let back = [u, theta, rows, starts, entries, cosines, slopes, grad];
                let grid = [to_u32(listed.min(MOST_GROUPS)), 1, 1];
                gpu.dispatch(&self.de_sampled, grid, &dims, &back);
            }
        }
    }
}

/// The kernels of the shader, one after the other.
fn compute(cpu: &Cpu, mut f: LossAndGradients<'_>) {
    let LossWorkspace::Steps(StepsWorkspace {
        u,
        lengths,
        cosines,
        slopes,
        row_lengths,
    }) = f.workspace
    else {
        unreachable!("contrastive: the room is a GPU's");
    };
    let (width, columns) = (f.z.columns(), cosines.columns());
    let e = f.rows.f32();
    let (u, lengths) = (u.f32_mut(), lengths.f32_mut());
    let (cosines, slopes) = (cosines.f32_mut(), slopes.f32_mut());
    let row_lengths = row_lengths.f32_mut();
    let lists = match f.candidates {
        CandidateSet::All => None,
        CandidateSet::Sampled { ids, .. } => Some(ids.u32()),
    };

    unit_queries(cpu, f.z.f32(), u, lengths);
    match lists {
        None => {
            lengths_of_rows(cpu, e, width, row_lengths);
            blocks::dots(cpu, u, e, width, cosines);
        }
        Some(lists) => products_of_lists(cpu, [u, e], lists, columns, [cosines, row_lengths]),
    }
    let softmax = Softmax {
        lists,
        targets: f.targets,
        priors: f.priors.f32(),
        inverse_tau: 1.0 / f.tau,
        columns,
    };
    softmax.losses(cpu, cosines, row_lengths, slopes, f.losses.f32_mut());

    let dz = f.dz.f32_mut();
    match lists {
        None => {
            let by_place = Multipliers {
                values: slopes,
                row_step: columns,
                step: 1,
            };
            blocks::combine(cpu, by_place, e, width, dz);
        }
        Some(lists) => sums_of_lists(cpu, lists, [slopes, e], width, dz),
    }
    cpu.rows(dz, width, 4 * width, |first, rows| {
        for (b, dz) in (first..).zip(rows.chunks_exact_mut(width)) {
            finish_dz(cpu, &u[b * width..][..width], lengths[b], dz);
        }
    });
    match f.candidates {
        CandidateSet::All => de_of_all(cpu, [slopes, u, e], width, f.d_rows.f32_mut()),
        CandidateSet::Sampled { inverse, .. } => {
            de_of_lists(cpu, inverse, [slopes, u, e], width, f.d_rows.f32_mut());
        }
    }
}

fn lengths_of_rows(cpu: &Cpu, e: &[f32], width: usize, lengths: &mut [f32]) {
    cpu.rows(lengths, 1, width, |first, lengths| {
        cpu.simd(
            #[inline(always)]
            || {
                let rows = e[first * width..].chunks_exact(width);
                for (length, e) in lengths.iter_mut().zip(rows) {
                    *length = length_of(e);
                }
            },
        );
    });
}

/// u . E[j] and the lengths of E[j] for the models of each list.
fn products_of_lists(
    cpu: &Cpu,
    [u, e]: [&[f32]; 2],
    lists: &[u32],
    columns: usize,
    [products, lengths]: [&mut [f32]; 2],
) {
    let width = u.len() / (products.len() / columns).max(1);
    let rows = products.chunks_exact_mut(columns);
    let mut rows: Vec<_> = rows.zip(lengths.chunks_exact_mut(columns)).collect();
    cpu.rows(&mut rows, 1, 2 * columns * width, |first, rows| {
        for (b, (products, lengths)) in (first..).zip(rows) {
            let (u, ids) = (&u[b * width..][..width], &lists[b * columns..][..columns]);
            products_of_list(cpu, u, e, ids, products, lengths);
        }
    });
}

/// The softmax over candidates and its target distribution.
struct Softmax<'s> {
    /// [B, C]; None: all models.
    lists: Option<&'s [u32]>,
    targets: Targets<'s>,
    priors: &'s [f32],
    inverse_tau: f32,
    /// C
    columns: usize,
}

impl Softmax<'_> {
    /// Turns products in `cosines` into cosines; overwrites `slopes` and `losses`.
    fn losses(
        &self,
        cpu: &Cpu,
        cosines: &mut [f32],
        row_lengths: &[f32],
        slopes: &mut [f32],
        losses: &mut [f32],
    ) {
        let (columns, targets) = (self.columns, self.targets);
        let rows = cosines
            .chunks_exact_mut(columns)
            .zip(slopes.chunks_exact_mut(columns));
        let mut rows: Vec<_> = rows.zip(losses).collect();
        let slots = targets.ids.columns();
        cpu.rows(&mut rows, 1, 16 * columns, |first, rows| {
            for (b, ((cosines, slopes), loss)) in (first..).zip(rows) {
                let ids = self.lists.map(|ids| &ids[b * columns..][..columns]);
                let wanted = targets.ids.u32()[b * slots..][..slots].iter();
                spread(ids, wanted.zip(&targets.mass.f32()[b * slots..]), slopes);
                let weight = targets.weights.f32()[b];
                let prior = |id: &u32| self.priors.get(*id as usize).copied().unwrap_or_default();
                let of_list: Vec<f32>;
                let (lengths, priors) = match ids {
                    None => (row_lengths, self.priors),
                    Some(ids) => {
                        of_list = ids.iter().map(prior).collect();
                        (&row_lengths[b * columns..][..columns], &of_list[..])
                    }
                };
                let inverse_tau = self.inverse_tau;
                **loss = loss_of(cpu, cosines, lengths, priors, slopes, weight, inverse_tau);
            }
        });
    }
}

/// `dz` = the rows of E in each list by their slopes.
fn sums_of_lists(cpu: &Cpu, lists: &[u32], [slopes, e]: [&[f32]; 2], width: usize, dz: &mut [f32]) {
    let columns = lists.len() / (dz.len() / width).max(1);
    cpu.rows(dz, width, columns * width, |first, rows| {
        for (b, dz) in (first..).zip(rows.chunks_exact_mut(width)) {
            let ids = lists[b * columns..][..columns].iter();
            let list = ids.zip(&slopes[b * columns..]);
            let list = list.filter(|(id, _)| **id != NONE);
            let list = list.map(|(id, slope)| (*slope, &e[*id as usize * width..]));
            weighted_sum(cpu, list, dz);
        }
    });
}

fn de_of_all(cpu: &Cpu, [slopes, u, e]: [&[f32]; 3], width: usize, d_rows: &mut [f32]) {
    let columns = d_rows.len() / width;
    cpu.rows(d_rows, width, u.len(), |first, d_rows| {
        let mut sums = vec![0.0; ROWS * width];
        for (block, d_rows) in d_rows.chunks_mut(ROWS * width).enumerate() {
            let first = first + block * ROWS;
            let by_example = Multipliers {
                values: &slopes[first..],
                row_step: 1,
                step: columns,
            };
            let sums = &mut sums[..d_rows.len()];
            let mut rows: Vec<_> = sums.chunks_exact_mut(width).collect();
            blocks::combine_rows(cpu, by_example, u, width, 0, &mut rows);
            let pairs = d_rows.chunks_exact_mut(width).zip(sums.chunks_exact(width));
            for ((d_row, sum), e) in pairs.zip(e[first * width..].chunks_exact(width)) {
                add_across(cpu, e, sum, d_row);
            }
        }
    });
}

fn de_of_lists(
    cpu: &Cpu,
    inverse: &Inverse,
    [slopes, u, e]: [&[f32]; 3],
    width: usize,
    d_rows: &mut [f32],
) {
    let (starts, entries) = (inverse.starts.u32(), inverse.entries.u32());
    let columns = slopes.len() / (u.len() / width).max(1);
    let mut rows = pick_rows(d_rows, inverse.rows.u32(), width);
    cpu.rows(&mut rows, 1, 4 * width, |first, rows| {
        let mut sum = vec![0.0; width];
        for (i, (j, d_row)) in (first..).zip(rows) {
            let list = entries[starts[i] as usize..starts[i + 1] as usize].iter();
            let list = list.map(|entry| *entry as usize);
            let list = list.map(|entry| (slopes[entry], &u[entry / columns * width..]));
            weighted_sum(cpu, list, &mut sum);
            add_across(cpu, &e[*j * width..][..width], &sum, d_row);
        }
    });
}

fn unit_queries(cpu: &Cpu, z: &[f32], u: &mut [f32], lengths: &mut [f32]) {
    let width = u.len() / lengths.len().max(1);
    cpu.simd(
        #[inline(always)]
        || {
            let rows = z
                .chunks_exact(width.max(1))
                .zip(u.chunks_exact_mut(width.max(1)));
            for ((z, u), length) in rows.zip(lengths) {
                *length = length_of(z);
                for (u, z) in u.iter_mut().zip(z) {
                    *u = z / *length;
                }
            }
        },
    );
}

/// u . E[j] and the length of E[j] for the models of a list.
fn products_of_list(
    cpu: &Cpu,
    u: &[f32],
    e: &[f32],
    ids: &[u32],
    products: &mut [f32],
    lengths: &mut [f32],
) {
    cpu.simd(
        #[inline(always)]
        || {
            for ((id, product), length) in ids.iter().zip(products).zip(lengths) {
                (*product, *length) = match *id {
                    NONE => (0.0, 1.0),
                    id => {
                        let e = &e[id as usize * u.len()..][..u.len()];
                        (math::dot(u, e), length_of(e))
                    }
                };
            }
        },
    );
}

/// Target mass of each candidate, -1 where there is none; `ids`: None for all models.
fn spread<'t>(
    ids: Option<&[u32]>,
    targets: impl Iterator<Item = (&'t u32, &'t f32)>,
    mass: &mut [f32],
) {
    match ids {
        None => mass.fill(0.0),
        Some(ids) => {
            for (mass, id) in mass.iter_mut().zip(ids) {
                *mass = if *id == NONE { -1.0 } else { 0.0 };
            }
        }
    }
    for (target, own) in targets.filter(|(target, _)| **target != NONE) {
        let place = match ids {
            None => Some(*target as usize),
            Some(ids) => ids.iter().position(|id| id == target),
        };
        if let Some(mass) = place.and_then(|place| mass.get_mut(place)) {
            *mass += own;
        }
    }
}

/// Turns products in `cosines` and target mass in `slopes` into cosines and slopes; the weighted
/// loss.
fn loss_of(
    cpu: &Cpu,
    cosines: &mut [f32],
    lengths: &[f32],
    priors: &[f32],
    slopes: &mut [f32],
    weight: f32,
    inverse_tau: f32,
) -> f32 {
    let mut p = vec![0.0; cosines.len()];
    cpu.simd(
        #[inline(always)]
        || {
            let places = p
                .iter_mut()
                .zip(&mut *cosines)
                .zip(lengths.iter().zip(priors));
            for (((p, c), (length, prior)), q) in places.zip(&*slopes) {
                *c /= length;
                *p = if *q < 0.0 {
                    LOWEST
                } else {
                    *c * inverse_tau + prior
                };
            }
            let peak = math::max(&p);
            let (mut mass, mut reached) = (0.0, 0.0);
            for (p, q) in p.iter().zip(&*slopes).filter(|(_, q)| **q > 0.0) {
                mass += q;
                reached += q * (p - peak);
            }
            for p in &mut p {
                *p = math::exp(*p - peak);
            }
            let total = math::sum(&p, |p| p);
            for ((q, p), length) in slopes.iter_mut().zip(&p).zip(lengths) {
                let slope = weight * (mass * (p / total) - *q) * inverse_tau / length;
                *q = if *q < 0.0 { 0.0 } else { slope };
            }
            weight * (mass * total.ln() - reached)
        },
    )
}

/// `sum` = the rows of `list` by their factors.
fn weighted_sum<'r>(cpu: &Cpu, list: impl Iterator<Item = (f32, &'r [f32])>, sum: &mut [f32]) {
    sum.fill(0.0);
    cpu.simd(
        #[inline(always)]
        || {
            for (factor, row) in list {
                for (sum, value) in sum.iter_mut().zip(row) {
                    *sum += factor * value;
                }
            }
        },
    );
}

/// Takes the part along `u` out of `dz` and divides by the length of z.
fn finish_dz(cpu: &Cpu, u: &[f32], length: f32, dz: &mut [f32]) {
    cpu.simd(
        #[inline(always)]
        || {
            let along = if length > LEAST {
                math::dot(dz, u)
            } else {
                0.0
            };
            for (dz, u) in dz.iter_mut().zip(u) {
                *dz = (*dz - along * u) / length;
            }
        },
    );
}

/// `d_row` += the part of `sum` across the row `e`.
fn add_across(cpu: &Cpu, e: &[f32], sum: &[f32], d_row: &mut [f32]) {
    cpu.simd(
        #[inline(always)]
        || {
            let length = length_of(e);
            let along = if length > LEAST {
                math::dot(sum, e) / length / length
            } else {
                0.0
            };
            for ((d, sum), e) in d_row.iter_mut().zip(sum).zip(e) {
                *d += sum - along * e;
            }
        },
    );
}
