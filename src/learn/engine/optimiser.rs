//! The end of a step: penalties, clipping and AdamW.

use std::sync::Arc;

use crate::device::{Outputs, Pass, Read, Tensor};
use crate::encoder::Encoder;
use crate::error::Result;
use crate::learn::engine::parameters::{Activated, TrainedParameters};
use crate::learn::engine::penalty::{AnchorReads, Anchors, DeviceSnapshot, Penalty, References};
use crate::learn::engine::{Losses, StepRates};
use crate::learn::method::ewc::FisherSnapshot;
use crate::learn::method::layout::ParameterLayout;
use crate::num::to_u32;
use crate::ops::adamw::{self, Clip, Listed, Segment};
use crate::ops::anchor::Weighted;

/// E's place among the segments of a step.
const E: usize = 1;

/// The end of a step, and what its penalties refer to.
pub(super) struct Optimiser {
    encoder: Arc<Encoder>,
    references: Option<References>,
    snapshots: Vec<DeviceSnapshot>,
    end: StepEnd,
    /// Norm of the clipped gradients in the last step.
    pub(super) norm: f32,
    /// The gradients of the last step; `None`: they are not kept.
    pub(super) watched: Option<Vec<f32>>,
}

/// The tensors of a step's end.
pub(super) struct StepEnd {
    adamw: adamw::NormWorkspace,
    /// Distances of E's anchored rows, and of W's.
    pub(super) row_losses: Tensor,
    pub(super) w_losses: Tensor,
    /// Ids of old rows that anchors look at, where it is not all.
    pub(super) anchored: Tensor,
    /// Parts of EWC's penalty.
    ewc_losses: Tensor,
    /// Ids of rows that AdamW moves, where it is not all.
    moved: Tensor,
}

impl StepEnd {
    fn new(encoder: &Encoder, layout: &ParameterLayout) -> Result<Self> {
        let device = encoder.device();
        let (models, width) = (layout.e.rows, layout.w.rows);
        Ok(Self {
            adamw: adamw::NormWorkspace::new(device)?,
            row_losses: device.scratch("row losses", models, 1)?,
            w_losses: device.scratch("w losses", width, 1)?,
            anchored: device.ids("anchored rows", models, 1)?,
            ewc_losses: device.scratch("ewc losses", Weighted::losses(layout.len()), 1)?,
            moved: device.ids("moved rows", models, 1)?,
        })
    }
}

/// A step, decided before its pass.
struct StepOrder {
    anchors: Option<Anchors>,
    /// EWC's
    lambda: Option<f32>,
    /// Old rows that anchors look at, where it is not all.
    anchored: Option<Vec<u32>>,
    /// Rows that AdamW moves, where it is not all.
    moved: Option<Vec<u32>>,
    /// First parameter that EWC pulls.
    from: usize,
    segments: Vec<Segment>,
    clip: Option<Clip>,
}

/// A step on its way: it begins with the pass of the first micro-batch and ends with that of the
/// last.
pub(super) struct StepPass<'o> {
    optimiser: &'o mut Optimiser,
    order: StepOrder,
    /// Rows that became active.
    activated: Option<Activated>,
    reads: Option<EndReads>,
    /// The penalties, once the step is done.
    pub(super) penalties: Losses,
}

impl StepPass<'_> {
    /// In the first pass, before anything reads the parameters.
    pub(super) fn begin(&mut self, pass: &mut Pass<'_>, parameters: &mut TrainedParameters) {
        if let Some(activated) = self.activated.take() {
            parameters.decay(pass, &activated);
        }
    }

    /// In the last pass, behind the gradients: adds penalties to them and moves the parameters.
    /// Nothing moves where an element of `losses` is not finite.
    pub(super) fn end(
        &mut self,
        pass: &mut Pass<'_>,
        parameters: &mut TrainedParameters,
        losses: [Option<&Tensor>; 2],
    ) {
        let reads = self.optimiser.record(pass, parameters, &self.order, losses);
        self.reads = Some(reads);
    }

    /// Takes what the last pass brought back.
    pub(super) fn finish(&mut self, outputs: &Outputs, layout: &ParameterLayout) {
        let Some(reads) = self.reads.take() else {
            return;
        };
        if let Some(read) = reads.gradients {
            self.optimiser.watched = Some(outputs.f32(read).to_vec());
        }
        self.optimiser.norm = outputs.f32(reads.norm)[0];
        self.penalties = penalties(outputs, reads, layout, &self.order);
    }

    /// The factor of E's decay in this step.
    pub(super) fn keep(&self) -> f32 {
        self.order.segments[E].keep()
    }
}

/// The reads of a step's end.
struct EndReads {
    anchors: Option<AnchorReads>,
    ewc: Vec<Read>,
    norm: Read,
    gradients: Option<Read>,
}

impl Optimiser {
    pub(super) fn new(encoder: Arc<Encoder>, layout: &ParameterLayout) -> Result<Self> {
        Ok(Self {
            references: None,
            snapshots: Vec::new(),
            end: StepEnd::new(&encoder, layout)?,
            norm: 0.0,
            watched: None,
            encoder,
        })
    }

    /// Bytes that a step uploads and reads at most beside its gradients.
    pub(super) fn bytes(&self, layout: &ParameterLayout) -> [usize; 2] {
        let (models, width) = (layout.e.rows, layout.w.rows);
        let parts = self.snapshots.len() * Weighted::losses(layout.len());
        let watched = self.watched.as_ref().map_or(0, |_| layout.len());
        // Rows that are anchored, that move and that become active; the norm has two numbers.
        let uploads = 3 * 4 * models + adamw::NormWorkspace::UPLOADS;
        [uploads, 4 * (models + width + parts + watched + 2)]
    }

    /// Steps keep their gradients from now on.
    #[cfg(feature = "cli")]
    pub(super) fn watch(&mut self) {
        self.watched = Some(Vec::new());
    }

    /// Anchors pull to these from now on: R [M_old, D] and W0 [D, H].
    pub(super) fn anchor_to(
        &mut self,
        layout: &ParameterLayout,
        rows: &[f32],
        w: &[f32],
    ) -> Result<()> {
        let device = self.encoder.device();
        self.references = Some(References {
            rows: device.upload("reference rows", layout.e.columns, rows)?,
            w: device.upload("reference w", layout.w.columns, w)?,
        });
        Ok(())
    }

    /// EWC pulls to these from now on.
    pub(super) fn consolidate(&mut self, snapshots: &[FisherSnapshot]) -> Result<()> {
        let device = self.encoder.device();
        let upload = |snapshot: &FisherSnapshot| {
            let (theta, fisher) = (&snapshot.theta, &snapshot.fisher);
            Ok(DeviceSnapshot {
                first: snapshot.first,
                theta: device.upload("snapshot theta", theta.len(), theta)?,
                fisher: device.upload("snapshot fisher", fisher.len(), fisher)?,
            })
        };
        self.snapshots = snapshots.iter().map(upload).collect::<Result<_>>()?;
        Ok(())
    }

    /// Old rows of E that anchors can pull to.
    pub(super) fn old_rows(&self) -> usize {
        let references = self.references.as_ref();
        references.map_or(0, |references| references.rows.rows())
    }

    /// A step that adds penalties to the gradients and moves the parameters. `named`: models that
    /// the step's examples name, ascending, `None`: all; `activated`: rows of E that are to decay
    /// first.
    pub(super) fn step(
        &mut self,
        parameters: &TrainedParameters,
        rates: &StepRates,
        penalty: Option<Penalty>,
        named: Option<Vec<u32>>,
        activated: Option<Activated>,
    ) -> StepPass<'_> {
        let (anchors, lambda) = match penalty {
            Some(Penalty::Anchors(anchors)) => (Some(anchors), None),
            Some(Penalty::Ewc(lambda)) => (None, Some(lambda)),
            None => (None, None),
        };
        let anchored = anchors.and_then(|a| self.anchored(a, parameters, named.as_deref()));
        let moved = match rates.touched {
            true => named.filter(|ids| ids.len() < parameters.layout.e.rows),
            false => parameters.rows.some_active().map(<[u32]>::to_vec),
        };
        let (segments, clip) = segments(&parameters.layout, rates);
        let order = StepOrder {
            anchors,
            lambda,
            anchored,
            moved,
            // The gradients of a frozen adapter would wait for the phase in which it is trained.
            from: rates.lora.map_or(parameters.layout.w.offset, |_| 0),
            segments,
            clip,
        };
        StepPass {
            optimiser: self,
            order,
            activated,
            reads: None,
            penalties: Losses::default(),
        }
    }

    fn record(
        &mut self,
        pass: &mut Pass<'_>,
        parameters: &mut TrainedParameters,
        order: &StepOrder,
        losses: [Option<&Tensor>; 2],
    ) -> EndReads {
        let (ops, end) = (self.encoder.ops(), &mut self.end);
        let references = order.anchors.zip(self.references.as_ref());
        let anchors = references.map(|(anchors, references)| {
            references.pull(
                pass,
                ops,
                anchors,
                parameters,
                end,
                order.anchored.as_deref(),
            )
        });
        let ewc = order.lambda.map_or_else(Vec::new, |lambda| {
            let losses = &mut end.ewc_losses;
            let pull = |snapshot: &DeviceSnapshot| {
                snapshot.pull(pass, ops, order.from, lambda, parameters, losses)
            };
            self.snapshots.iter().map(pull).collect()
        });
        let watching = self.watched.is_some();
        let gradients = watching.then(|| pass.read(&parameters.grad));
        if let Some(ids) = &order.moved {
            pass.upload(&mut end.moved, ids);
        }
        let listed = order.moved.as_ref().map(|_| Listed {
            matrix: parameters.layout.e,
            ids: &end.moved,
        });
        ops.adamw.step(
            pass,
            adamw::Step {
                theta: &mut parameters.theta,
                grad: &mut parameters.grad,
                m: &mut parameters.m,
                v: &mut parameters.v,
                segments: &order.segments,
                listed,
                clip: order.clip.clone(),
                losses,
                workspace: &mut end.adamw,
            },
        );
        EndReads {
            anchors,
            ewc,
            norm: pass.read(&end.adamw.norm),
            gradients,
        }
    }

    /// Old rows that anchors look at, ascending; `None`: all.
    ///
    /// A row that was only decayed has its reference's direction, and no gradient in the normalised
    /// form.
    fn anchored(
        &self,
        anchors: Anchors,
        parameters: &TrainedParameters,
        named: Option<&[u32]>,
    ) -> Option<Vec<u32>> {
        let old = to_u32(self.old_rows());
        let ids = match (anchors.touched, anchors.raw) {
            (true, _) => named,
            (false, true) => None,
            (false, false) => parameters.rows.some_active(),
        }?;
        Some(ids[..ids.partition_point(|id| *id < old)].to_vec())
    }
}

/// The penalties with their strengths.
fn penalties(
    outputs: &Outputs,
    reads: EndReads,
    layout: &ParameterLayout,
    order: &StepOrder,
) -> Losses {
    let sum = |read: Read| -> f64 {
        let losses = outputs.f32(read).iter();
        losses.map(|loss| f64::from(*loss)).sum()
    };
    let mut losses = Losses::default();
    if let (Some(read), Some(anchors)) = (reads.anchors, order.anchors) {
        let strength = f64::from(anchors.row_strength(read.items, layout));
        losses.embedding = strength * sum(read.rows);
        losses.projection = f64::from(anchors.w_strength(layout)) * sum(read.w);
    }
    if let Some(lambda) = order.lambda {
        losses.ewc = f64::from(lambda) * reads.ewc.into_iter().map(sum).sum::<f64>();
    }
    losses
}

/// W's first, then E's at place [`E`], then the adapters' where they are trained.
fn segments(layout: &ParameterLayout, rates: &StepRates) -> (Vec<Segment>, Option<Clip>) {
    let ParameterLayout { adapter, w, e } = layout;
    let segment = |range, rate, count| Segment {
        range,
        rate,
        decay: rates.decay,
        count,
    };
    let mut segments = vec![
        segment(w.offset..w.end(), rates.w, rates.counter),
        segment(e.offset..e.end(), rates.e, rates.counter),
    ];
    if let Some((rate, count)) = rates.lora.filter(|_| adapter.len > 0) {
        segments.push(segment(0..adapter.len, rate, count));
    }
    let range = match (rates.clip_all, rates.lora) {
        (true, Some(_)) => Some(0..e.end()),
        (true, None) => Some(w.offset..e.end()),
        (false, Some(_)) if adapter.len > 0 => Some(0..adapter.len),
        _ => None,
    };
    let limit = rates.clip;
    (segments, range.map(|range| Clip { range, limit }))
}
