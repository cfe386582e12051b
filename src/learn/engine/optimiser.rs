//! The end of a step: penalties, clipping and AdamW.

use std::sync::Arc;

use crate::device::{Outputs, Plan, Read, Tensor};
use crate::encoder::Encoder;
use crate::error::Result;
use crate::learn::engine::parameters::TrainedParameters;
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
    plan: Plan<StepEnd>,
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
    /// With room to read the penalties of `snapshots`, and `more` numbers.
    fn plan(
        encoder: &Encoder,
        layout: &ParameterLayout,
        snapshots: usize,
        more: usize,
    ) -> Result<Plan<Self>> {
        let device = encoder.device();
        let (models, width) = (layout.e.rows, layout.w.rows);
        let parts = Weighted::losses(layout.len());
        let end = Self {
            adamw: adamw::NormWorkspace::new(device)?,
            row_losses: device.scratch("row losses", models, 1)?,
            w_losses: device.scratch("w losses", width, 1)?,
            anchored: device.ids("anchored rows", models, 1)?,
            ewc_losses: device.scratch("ewc losses", parts, 1)?,
            moved: device.ids("moved rows", models, 1)?,
        };
        let reads = 4 * (models + width + snapshots * parts + more + 1);
        Plan::new(device, end, 2 * 4 * models, reads)
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
            plan: StepEnd::plan(&encoder, layout, 0, 0)?,
            norm: 0.0,
            watched: None,
            encoder,
        })
    }

    /// Steps keep their gradients from now on.
    #[cfg(feature = "cli")]
    pub(super) fn watch(&mut self, layout: &ParameterLayout) -> Result<()> {
        self.watched = Some(Vec::new());
        let snapshots = self.snapshots.len();
        self.plan = StepEnd::plan(&self.encoder, layout, snapshots, layout.len())?;
        Ok(())
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
    pub(super) fn consolidate(
        &mut self,
        layout: &ParameterLayout,
        snapshots: &[FisherSnapshot],
    ) -> Result<()> {
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
        let more = self.watched.as_ref().map_or(0, |_| layout.len());
        self.plan = StepEnd::plan(&self.encoder, layout, snapshots.len(), more)?;
        Ok(())
    }

    /// Old rows of E that anchors can pull to.
    pub(super) fn old_rows(&self) -> usize {
        let references = self.references.as_ref();
        references.map_or(0, |references| references.rows.rows())
    }

    /// Adds penalties to the gradients and moves the parameters. `named`: models that the step's
    /// examples name, ascending, `None`: all. Returns the penalties.
    pub(super) fn step(
        &mut self,
        parameters: &mut TrainedParameters,
        rates: &StepRates,
        penalty: Option<Penalty>,
        named: Option<Vec<u32>>,
    ) -> Result<Losses> {
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
        // The gradients of a frozen adapter would wait for the phase in which it is trained.
        let from = rates.lora.map_or(parameters.layout.w.offset, |_| 0);
        let (segments, clip) = segments(&parameters.layout, rates);
        let (ops, snapshots) = (self.encoder.ops(), &self.snapshots);
        let references = anchors.zip(self.references.as_ref());
        let watching = self.watched.is_some();
        let (reads, outputs) = self.encoder.device().run(&mut self.plan, |pass, end| {
            let anchors = references.map(|(anchors, references)| {
                references.pull(pass, ops, anchors, parameters, end, anchored.as_deref())
            });
            let ewc = lambda.map_or_else(Vec::new, |lambda| {
                let losses = &mut end.ewc_losses;
                let pull = |snapshot: &DeviceSnapshot| {
                    snapshot.pull(pass, ops, from, lambda, parameters, losses)
                };
                snapshots.iter().map(pull).collect()
            });
            let gradients = watching.then(|| pass.read(&parameters.grad));
            if let Some(ids) = &moved {
                pass.upload(&mut end.moved, ids);
            }
            let listed = moved.as_ref().map(|_| Listed {
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
                    segments: &segments,
                    listed,
                    clip,
                    workspace: &mut end.adamw,
                },
            );
            let norm = pass.read(&end.adamw.norm);
            EndReads {
                anchors,
                ewc,
                norm,
                gradients,
            }
        })?;
        if let Some(read) = reads.gradients {
            self.watched = Some(outputs.f32(read).to_vec());
        }
        self.norm = outputs.f32(reads.norm)[0];
        if !rates.touched {
            parameters.rows.step(segments[E].keep());
        }
        Ok(losses(&outputs, reads, &parameters.layout, anchors, lambda))
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
fn losses(
    outputs: &Outputs,
    reads: EndReads,
    layout: &ParameterLayout,
    anchors: Option<Anchors>,
    lambda: Option<f32>,
) -> Losses {
    let sum = |read: Read| -> f64 {
        let losses = outputs.f32(read).iter();
        losses.map(|loss| f64::from(*loss)).sum()
    };
    let mut losses = Losses::default();
    if let (Some(read), Some(anchors)) = (reads.anchors, anchors) {
        let strength = f64::from(anchors.row_strength(read.items, layout));
        losses.embedding = strength * sum(read.rows);
        losses.projection = f64::from(anchors.w_strength(layout)) * sum(read.w);
    }
    if let Some(lambda) = lambda {
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
