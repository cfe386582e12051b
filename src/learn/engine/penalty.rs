//! Penalties that keep parameters near earlier ones: anchors, or EWC in their place (carve.md
//! sections 6 and 7).

use crate::device::{Pass, Place, Read, Tensor};
use crate::learn::engine::optimiser::StepEnd;
use crate::learn::engine::parameters::TrainedParameters;
use crate::learn::method::layout::ParameterLayout;
use crate::ops::Ops;
use crate::ops::anchor::{Distance, OtherPull, Pull, Weighted};

/// The penalty of a step.
#[derive(Clone, Copy)]
pub(crate) enum Penalty {
    Anchors(Anchors),
    /// EWC, with its lambda.
    Ewc(f32),
}

impl Penalty {
    /// True where an old row that was only decayed has a gradient.
    pub(super) fn moves_decayed_rows(self) -> bool {
        match self {
            Self::Anchors(anchors) => anchors.raw && !anchors.touched,
            Self::Ewc(_) => true,
        }
    }
}

/// The anchors of a step on the parent's W and rows of E.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anchors {
    /// lambda_emb
    pub(crate) embedding: f32,
    /// The raw form instead of the normalised one.
    pub(crate) raw: bool,
    /// lambda_proj
    pub(crate) projection: f32,
    /// Only rows that the step's examples name.
    pub(crate) touched: bool,
}

impl Anchors {
    /// lambda_emb / #S, divided by D too where the form is a mean over elements.
    pub(super) fn row_strength(self, rows: usize, layout: &ParameterLayout) -> f32 {
        let elements = if self.raw { layout.e.columns } else { 1 };
        self.embedding / (rows * elements).max(1) as f32
    }

    /// lambda_proj / (D H)
    pub(super) fn w_strength(self, layout: &ParameterLayout) -> f32 {
        self.projection / (layout.w.rows * layout.w.columns) as f32
    }
}

/// The parent's parameters that anchors pull to.
pub(super) struct References {
    /// R [M_old, D]
    pub(super) rows: Tensor,
    /// W0 [D, H]
    pub(super) w: Tensor,
}

/// The distances that anchors had, to be multiplied by their strengths.
pub(super) struct AnchorReads {
    pub(super) rows: Read,
    pub(super) w: Read,
    /// Rows of E that the strength is divided by.
    pub(super) items: usize,
}

impl References {
    /// Adds the pull of `anchors` to the gradients; `listed`: the old rows that can have one,
    /// ascending, `None`: all.
    pub(super) fn pull(
        &self,
        pass: &mut Pass<'_>,
        ops: &Ops,
        anchors: Anchors,
        parameters: &mut TrainedParameters,
        end: &mut StepEnd,
        listed: Option<&[u32]>,
    ) -> AnchorReads {
        if let Some(ids) = listed {
            pass.upload(&mut end.anchored, ids);
        }
        let TrainedParameters {
            layout,
            theta,
            grad,
            ..
        } = parameters;
        let old = self.rows.rows();
        let rows = Place::flat(layout.e.offset, old, layout.e.columns);
        // Lazy rows are where their references are: they count, and their distance is 0.
        let items = match listed {
            Some(ids) if anchors.touched => ids.len(),
            _ => old,
        };
        ops.anchor.pull(
            pass,
            Pull {
                form: if anchors.raw {
                    Distance::Raw
                } else {
                    Distance::Normalized
                },
                rows: theta.part(rows),
                reference: &self.rows,
                touched: listed.map(|_| &end.anchored),
                strength: anchors.row_strength(items, layout),
                grad: grad.part_mut(rows),
                losses: &mut end.row_losses,
                other: Some(OtherPull {
                    rows: theta.part(layout.w),
                    reference: &self.w,
                    strength: anchors.w_strength(layout),
                    losses: &mut end.w_losses,
                }),
            },
        );
        AnchorReads {
            rows: pass.read(&end.row_losses),
            w: pass.read(&end.w_losses),
            items,
        }
    }
}

/// A Fisher snapshot on the device: earlier parameters with their weights, [1, n] each.
pub(super) struct DeviceSnapshot {
    /// Where they begin in the flat buffer.
    pub(super) first: usize,
    pub(super) theta: Tensor,
    pub(super) fisher: Tensor,
}

impl DeviceSnapshot {
    /// Adds the pull on the parameters from `from` on; returns the parts of the penalty.
    pub(super) fn pull(
        &self,
        pass: &mut Pass<'_>,
        ops: &Ops,
        from: usize,
        lambda: f32,
        parameters: &mut TrainedParameters,
        losses: &mut Tensor,
    ) -> Read {
        let begin = self.first.max(from);
        let skip = begin - self.first;
        let n = self.theta.len() - skip;
        let (place, own) = (Place::flat(begin, 1, n), Place::flat(skip, 1, n));
        ops.anchor.weighted(
            pass,
            Weighted {
                theta: parameters.theta.part(place),
                reference: self.theta.part(own),
                weights: self.fisher.part(own),
                strength: lambda,
                grad: parameters.grad.part_mut(place),
                losses,
            },
        );
        pass.read(losses)
    }
}
