//! From pooled vectors to the loss and back: projection, contrastive loss (carve.md section 5.1).

use crate::device::{Device, Pass, Place, Read, Tensor};
use crate::error::Result;
use crate::learn::engine::Capacity;
use crate::learn::engine::distill::{DistillConfig, DistillPass, DistillWorkspace};
use crate::learn::method::layout::ParameterLayout;
use crate::ops::Ops;
use crate::ops::contrastive::{
    CandidateSet, Inverse, LossAndGradients, LossWorkspace, Targets, invert,
};
use crate::ops::matmul::Product;

/// The tensors between pooled vectors and the loss.
pub(super) struct HeadWorkspace {
    /// [B, D]
    pub(super) z: Tensor,
    /// [B, D]
    pub(super) dz: Tensor,
    /// [B, S]
    pub(super) target_ids: Tensor,
    /// [B, S]
    pub(super) target_mass: Tensor,
    /// [B, 1]
    pub(super) weights: Tensor,
    /// [B, 1]
    pub(super) losses: Tensor,
    /// [B, K] and its inverse.
    pub(super) candidates: Option<(Tensor, Inverse)>,
    pub(super) workspace: LossWorkspace,
    /// `None` without a teacher.
    distill: Option<DistillWorkspace>,
}

/// Items as flat lists, to be uploaded.
#[derive(Default)]
pub(super) struct PackedItems {
    pub(super) target_ids: Vec<u32>,
    pub(super) target_mass: Vec<f32>,
    pub(super) weights: Vec<f32>,
    pub(super) candidates: Vec<u32>,
    /// A teacher's scores and the examples' shares of the distillation loss; empty without.
    pub(super) teacher: Vec<f32>,
    pub(super) shares: Vec<f32>,
}

impl HeadWorkspace {
    pub(super) fn new(
        device: &Device,
        capacity: Capacity,
        layout: &ParameterLayout,
        distill: Option<DistillConfig>,
    ) -> Result<Self> {
        let Capacity {
            examples, targets, ..
        } = capacity;
        let width = layout.w.rows;
        let (candidates, workspace) = match capacity.candidates {
            Some(k) => (
                Some((
                    device.ids("candidates", examples, k)?,
                    Inverse::new(device, examples, k)?,
                )),
                LossWorkspace::sampled(device, examples, k, width)?,
            ),
            None => (None, LossWorkspace::all(device, examples, layout.e)?),
        };
        Ok(Self {
            z: device.scratch("z", examples, width)?,
            dz: device.scratch("dz", examples, width)?,
            target_ids: device.ids("target_ids", examples, targets)?,
            target_mass: device.scratch("target_mass", examples, targets)?,
            weights: device.scratch("weights", examples, 1)?,
            losses: device.scratch("losses", examples, 1)?,
            candidates,
            workspace,
            distill: distill
                .map(|config| DistillWorkspace::new(device, capacity, layout, config))
                .transpose()?,
        })
    }

    pub(super) fn upload(&mut self, pass: &mut Pass<'_>, packed: &PackedItems) {
        let examples = packed.weights.len();
        pass.upload(&mut self.target_ids, &packed.target_ids);
        pass.upload_f32(&mut self.target_mass, &packed.target_mass);
        pass.upload_f32(&mut self.weights, &packed.weights);
        if let Some((ids, inverse)) = &mut self.candidates {
            pass.upload(ids, &packed.candidates);
            inverse.upload(pass, &invert(&packed.candidates));
        }
        if let Some(distill) = &mut self.distill {
            distill.upload(pass, &packed.teacher, &packed.shares);
        }
        for tensor in [&mut self.z, &mut self.dz, &mut self.losses] {
            tensor.resize(examples);
        }
    }

    /// The losses of the batch that was uploaded: of routing, and of distillation.
    pub(super) fn losses(&self) -> [Option<&Tensor>; 2] {
        let distilled = self.distill.as_ref().and_then(DistillWorkspace::losses);
        [Some(&self.losses), distilled]
    }

    /// Bytes that [`HeadWorkspace::upload`] sends at most, pooled vectors included.
    pub(super) fn upload_bytes(
        capacity: Capacity,
        inputs: usize,
        distill: Option<DistillConfig>,
    ) -> usize {
        let list = capacity.candidates.unwrap_or(0);
        let teacher = distill.map_or(0, |config| config.upload_bytes(capacity));
        4 * (capacity.examples * (2 * capacity.targets + 1 + 4 * list + inputs) + 1) + teacher
    }

    /// Bytes that a micro-batch brings back at most.
    pub(super) fn read_bytes(capacity: Capacity, layout: &ParameterLayout) -> usize {
        4 * capacity.examples * (2 + layout.w.rows)
    }
}

/// The head, forward and backward.
pub(super) struct HeadPass<'o> {
    ops: &'o Ops,
    w: Place,
    e: Place,
    tau: f32,
    priors: &'o Tensor,
}

pub(super) struct HeadReads {
    pub(super) z: Read,
    pub(super) losses: Read,
    /// The distillation loss of each example.
    pub(super) distill: Option<Read>,
}

impl<'o> HeadPass<'o> {
    pub(super) fn new(
        ops: &'o Ops,
        layout: &ParameterLayout,
        tau: f32,
        priors: &'o Tensor,
    ) -> Self {
        Self {
            ops,
            w: layout.w,
            e: layout.e,
            tau,
            priors,
        }
    }

    /// Adds dW and dE to `grad`; `dh` [B, H] is overwritten where the encoder is trained.
    pub(super) fn gradients(
        &self,
        pass: &mut Pass<'_>,
        theta: &Tensor,
        grad: &mut Tensor,
        h: &Tensor,
        dh: Option<&mut Tensor>,
        head: &mut HeadWorkspace,
    ) -> HeadReads {
        let matmul = &self.ops.matmul;
        self.project(pass, theta, h, &mut head.z);
        let z = head.z.place();
        let candidates = match &head.candidates {
            Some((ids, inverse)) => CandidateSet::Sampled { ids, inverse },
            None => CandidateSet::All,
        };
        self.ops.contrastive.loss_and_gradients(
            pass,
            LossAndGradients {
                z: &head.z,
                rows: theta.part(self.e),
                tau: self.tau,
                priors: self.priors,
                candidates,
                targets: Targets {
                    ids: &head.target_ids,
                    mass: &head.target_mass,
                    weights: &head.weights,
                },
                workspace: &mut head.workspace,
                losses: &mut head.losses,
                dz: &mut head.dz,
                d_rows: grad.part_mut(self.e),
            },
        );
        let distill = head.distill.as_mut().and_then(|distill| {
            let student = self.student(theta);
            distill.gradients(pass, student, &head.z, &mut head.dz, grad)
        });
        matmul.tn(
            pass,
            Product {
                a: head.dz.part(z),
                b: h.part(h.place()),
                scale: 1.0,
                y: grad.part_mut(self.w),
                add: true,
            },
        );
        if let Some(dh) = dh {
            let place = dh.place();
            matmul.nn(
                pass,
                Product {
                    a: head.dz.part(z),
                    b: theta.part(self.w),
                    scale: 1.0,
                    y: dh.part_mut(place),
                    add: false,
                },
            );
        }
        HeadReads {
            z: pass.read(&head.z),
            losses: pass.read(&head.losses),
            distill,
        }
    }

    /// Scores of the teacher's models for `h` [B, H], by the parameters as they are; `None` where
    /// `head` has no room for them.
    pub(super) fn teacher_scores(
        &self,
        pass: &mut Pass<'_>,
        theta: &Tensor,
        h: &Tensor,
        head: &mut HeadWorkspace,
    ) -> Option<Read> {
        head.z.resize(h.rows());
        self.project(pass, theta, h, &mut head.z);
        let distill = head.distill.as_mut()?;
        Some(distill.read_scores(pass, self.student(theta), &head.z))
    }

    /// z = W h
    fn project(&self, pass: &mut Pass<'_>, theta: &Tensor, h: &Tensor, z: &mut Tensor) {
        let place = z.place();
        self.ops.matmul.nt(
            pass,
            Product {
                a: h.part(h.place()),
                b: theta.part(self.w),
                scale: 1.0,
                y: z.part_mut(place),
                add: false,
            },
        );
    }

    fn student<'s>(&'s self, theta: &'s Tensor) -> DistillPass<'s> {
        DistillPass {
            ops: self.ops,
            theta,
            e: self.e,
            tau: self.tau,
        }
    }
}
