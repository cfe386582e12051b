//! From pooled vectors to the loss and back: projection, contrastive loss (carve.md section 5.1).

use super::distill::{Scorer, Student, Teaching};
use super::{Layout, Shape};
use crate::device::{Device, Pass, Place, Read, Tensor};
use crate::error::Result;
use crate::ops::Ops;
use crate::ops::contrastive::{
    CandidateSet, Inverse, LossAndGradients, LossWorkspace, Targets, invert,
};
use crate::ops::matmul::Product;

/// The tensors between pooled vectors and the loss.
pub(super) struct Head {
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
    /// Where there is a teacher.
    student: Option<Student>,
}

/// What some items are for the device.
#[derive(Default)]
pub(super) struct Packed {
    pub(super) target_ids: Vec<u32>,
    pub(super) target_mass: Vec<f32>,
    pub(super) weights: Vec<f32>,
    pub(super) candidates: Vec<u32>,
    /// A teacher's scores, and their examples' shares of its term; empty where nothing is distilled.
    pub(super) teacher: Vec<f32>,
    pub(super) shares: Vec<f32>,
}

impl Head {
    pub(super) fn new(
        device: &Device,
        shape: Shape,
        layout: &Layout,
        teaching: Option<Teaching>,
    ) -> Result<Self> {
        let Shape {
            examples, targets, ..
        } = shape;
        let (width, models) = (layout.w.rows, layout.e.rows);
        let (candidates, workspace) = match shape.candidates {
            Some(k) => (
                Some((
                    device.ids("candidates", examples, k)?,
                    Inverse::new(device, examples, k)?,
                )),
                LossWorkspace::sampled(device, examples, k, width)?,
            ),
            None => (None, LossWorkspace::all(device, examples, models, width)?),
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
            student: teaching
                .map(|teaching| Student::new(device, shape, layout, teaching))
                .transpose()?,
        })
    }

    pub(super) fn upload(&mut self, pass: &mut Pass<'_>, packed: &Packed) {
        let examples = packed.weights.len();
        pass.upload(&mut self.target_ids, &packed.target_ids);
        pass.upload_f32(&mut self.target_mass, &packed.target_mass);
        pass.upload_f32(&mut self.weights, &packed.weights);
        if let Some((ids, inverse)) = &mut self.candidates {
            pass.upload(ids, &packed.candidates);
            inverse.upload(pass, &invert(&packed.candidates));
        }
        if let Some(student) = &mut self.student {
            student.upload(pass, &packed.teacher, &packed.shares);
        }
        for tensor in [&mut self.z, &mut self.dz, &mut self.losses] {
            tensor.resize(examples);
        }
    }

    /// Bytes that [`Head::upload`] sends at most, pooled vectors included.
    pub(super) fn upload_bytes(shape: Shape, inputs: usize, teaching: Option<Teaching>) -> usize {
        let list = shape.candidates.unwrap_or(0);
        let teacher = teaching.map_or(0, |teaching| teaching.upload_bytes(shape));
        4 * (shape.examples * (2 * shape.targets + 1 + 4 * list + inputs) + 1) + teacher
    }

    /// Bytes that a micro-batch brings back at most.
    pub(super) fn read_bytes(shape: Shape, layout: &Layout) -> usize {
        4 * shape.examples * (2 + layout.w.rows)
    }
}

/// The head on its way forward and back.
pub(super) struct Router<'o> {
    ops: &'o Ops,
    w: Place,
    e: Place,
    tau: f32,
    priors: &'o Tensor,
}

pub(super) struct Reads {
    pub(super) z: Read,
    pub(super) losses: Read,
    /// Of what was distilled.
    pub(super) distill: Option<Read>,
}

impl<'o> Router<'o> {
    pub(super) fn new(ops: &'o Ops, layout: &Layout, tau: f32, priors: &'o Tensor) -> Self {
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
        head: &mut Head,
    ) -> Reads {
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
        let distill = head.student.as_mut().and_then(|student| {
            let scorer = self.scorer(theta);
            student.gradients(pass, scorer, &head.z, &mut head.dz, grad)
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
        Reads {
            z: pass.read(&head.z),
            losses: pass.read(&head.losses),
            distill,
        }
    }

    /// What a student says of `h` as the parameters are; `head` has one.
    pub(super) fn teacher_scores(
        &self,
        pass: &mut Pass<'_>,
        theta: &Tensor,
        h: &Tensor,
        head: &mut Head,
    ) -> Option<Read> {
        head.z.resize(h.rows());
        self.project(pass, theta, h, &mut head.z);
        let student = head.student.as_mut()?;
        Some(student.read_scores(pass, self.scorer(theta), &head.z))
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

    fn scorer<'s>(&'s self, theta: &'s Tensor) -> Scorer<'s> {
        Scorer {
            ops: self.ops,
            theta,
            e: self.e,
            tau: self.tau,
        }
    }
}
