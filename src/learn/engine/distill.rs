//! Learning without forgetting in the head: the distillation loss T^2 KL(teacher || student) over
//! the scores of old models, and its gradients (carve.md section 12.5).

use crate::device::{Device, Pass, Place, Read, Tensor};
use crate::error::Result;
use crate::learn::engine::Capacity;
use crate::learn::method::layout::ParameterLayout;
use crate::ops::Ops;
use crate::ops::distill::Slopes;
use crate::ops::matmul::{Matmul, Product};
use crate::ops::normalize;

/// How scores are distilled.
#[derive(Clone, Copy, Debug)]
pub(super) struct DistillConfig {
    /// Models that the teacher knows: M_old.
    pub(super) models: usize,
    /// T, by which scores are divided
    pub(super) temperature: f32,
}

impl DistillConfig {
    /// Bytes of a micro-batch's scores and shares.
    pub(super) fn upload_bytes(self, capacity: Capacity) -> usize {
        4 * capacity.examples * (self.models + 1)
    }
}

/// The tensors between projected queries and the distillation loss.
pub(super) struct DistillWorkspace {
    config: DistillConfig,
    /// True if an example of the micro-batch is distilled.
    on: bool,
    /// The teacher's scores [B, M_old], and the examples' shares of the loss [B, 1].
    teacher: Tensor,
    shares: Tensor,
    /// Unit queries [B, D] and rows [M_old, D], and the derivatives by them.
    u: Tensor,
    v: Tensor,
    du: Tensor,
    dv: Tensor,
    /// [B, M_old]: scores, then the derivatives by them.
    scores: Tensor,
    /// [B, 1]
    losses: Tensor,
}

/// The student: the parameters, and how they score.
#[derive(Clone, Copy)]
pub(super) struct DistillPass<'o> {
    pub(super) ops: &'o Ops,
    pub(super) theta: &'o Tensor,
    /// All of E: the teacher's models come first.
    pub(super) e: Place,
    pub(super) tau: f32,
}

impl DistillWorkspace {
    pub(super) fn new(
        device: &Device,
        capacity: Capacity,
        layout: &ParameterLayout,
        config: DistillConfig,
    ) -> Result<Self> {
        let (examples, models, width) = (capacity.examples, config.models, layout.w.rows);
        Ok(Self {
            config,
            on: false,
            teacher: device.scratch("teacher", examples, models)?,
            shares: device.scratch("shares", examples, 1)?,
            u: device.scratch("unit queries", examples, width)?,
            v: device.scratch("unit rows", models, width)?,
            du: device.scratch("d_unit queries", examples, width)?,
            dv: device.scratch("d_unit rows", models, width)?,
            scores: device.scratch("scores", examples, models)?,
            losses: device.scratch("distillation", examples, 1)?,
        })
    }

    /// `teacher`: [B, M_old]; `shares`: [B], 0 for an example that is not distilled. Both are empty
    /// if none is.
    pub(super) fn upload(&mut self, pass: &mut Pass<'_>, teacher: &[f32], shares: &[f32]) {
        self.on = !shares.is_empty();
        if self.on {
            pass.upload_f32(&mut self.teacher, teacher);
            pass.upload_f32(&mut self.shares, shares);
        }
    }

    /// The examples' parts of the loss, if one is distilled.
    pub(super) fn losses(&self) -> Option<&Tensor> {
        self.on.then_some(&self.losses)
    }

    /// Scores of `z` [B, D] for the teacher's models.
    fn score(&mut self, pass: &mut Pass<'_>, student: DistillPass<'_>, z: &Tensor) {
        let DistillPass { ops, theta, .. } = student;
        for tensor in [
            &mut self.u,
            &mut self.du,
            &mut self.scores,
            &mut self.losses,
        ] {
            tensor.resize(z.rows());
        }
        let e = theta.part(self.rows(student.e));
        for (z, u) in [(z.part(z.place()), &mut self.u), (e, &mut self.v)] {
            ops.normalize.forward(pass, normalize::Forward { z, u });
        }
        let place = self.scores.place();
        ops.matmul.nt(
            pass,
            Product {
                a: self.u.part(self.u.place()),
                b: self.v.part(self.v.place()),
                scale: 1.0 / student.tau,
                y: self.scores.part_mut(place),
                add: false,
            },
        );
    }

    /// Scores of `z`, to be a teacher's.
    pub(super) fn read_scores(
        &mut self,
        pass: &mut Pass<'_>,
        student: DistillPass<'_>,
        z: &Tensor,
    ) -> Read {
        self.score(pass, student, z);
        pass.read(&self.scores)
    }

    /// Adds the gradients of the loss to `dz` [B, D] and to E's in `grad`. Returns the examples'
    /// parts of the loss, `None` if none is distilled.
    pub(super) fn gradients(
        &mut self,
        pass: &mut Pass<'_>,
        student: DistillPass<'_>,
        z: &Tensor,
        dz: &mut Tensor,
        grad: &mut Tensor,
    ) -> Option<Read> {
        if !self.on {
            return None;
        }
        self.score(pass, student, z);
        let DistillPass { ops, theta, .. } = student;
        ops.distill.slopes(
            pass,
            Slopes {
                teacher: &self.teacher,
                weights: &self.shares,
                temperature: self.config.temperature,
                scores: &mut self.scores,
                losses: &mut self.losses,
            },
        );
        let (slopes, rows) = (&self.scores, self.rows(student.e));
        let mut product =
            |by: fn(&Matmul, &mut Pass<'_>, Product<'_>), unit: &Tensor, y: &mut Tensor| {
                let place = y.place();
                by(
                    &ops.matmul,
                    pass,
                    Product {
                        a: slopes.part(slopes.place()),
                        b: unit.part(unit.place()),
                        scale: 1.0 / student.tau,
                        y: y.part_mut(place),
                        add: false,
                    },
                );
            };
        product(Matmul::nn, &self.v, &mut self.du);
        product(Matmul::tn, &self.u, &mut self.dv);
        let place = z.place();
        for (z, place, u, du, grad) in [
            (z, place, &self.u, &self.du, dz),
            (theta, rows, &self.v, &self.dv, grad),
        ] {
            let (z, dz) = (z.part(place), grad.part_mut(place));
            let b = normalize::Backward { z, u, du, dz };
            ops.normalize.backward(pass, b);
        }
        Some(pass.read(&self.losses))
    }

    /// The rows of the teacher's models.
    fn rows(&self, e: Place) -> Place {
        Place::flat(e.offset, self.config.models, e.columns)
    }
}
