//! What holds parameters near earlier ones: anchors, or EWC in their place (carve.md sections 6 and 7).

use super::{End, Layout};
use crate::device::{Pass, Place, Read, Tensor};
use crate::ops::Ops;
use crate::ops::anchor::{Distance, Pull, Weighted};

/// What holds parameters near earlier ones in a step.
#[derive(Clone, Copy)]
pub(crate) enum Hold {
    Anchors(Anchors),
    /// EWC in their place, with this lambda.
    Ewc(f32),
}

impl Hold {
    /// Does an old row that only decayed have a gradient?
    pub(super) fn moves_sleepers(self) -> bool {
        match self {
            Self::Anchors(anchors) => anchors.raw && !anchors.touched,
            Self::Ewc(_) => true,
        }
    }
}

/// What holds parameters near the parent's in a step.
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
    /// lambda_emb / #S, scaled by D where the form is a mean over elements.
    pub(super) fn row_strength(self, rows: usize, layout: &Layout) -> f32 {
        let elements = if self.raw { layout.e.columns } else { 1 };
        self.embedding / (rows * elements).max(1) as f32
    }

    /// lambda_proj / (D H)
    pub(super) fn w_strength(self, layout: &Layout) -> f32 {
        self.projection / (layout.w.rows * layout.w.columns) as f32
    }

    #[expect(clippy::too_many_arguments, reason = "the step's parts")]
    pub(super) fn pull(
        self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        layout: &Layout,
        theta: &Tensor,
        references: &References,
        listed: bool,
        grad: &mut Tensor,
        end: &mut End,
    ) {
        let old = references.rows.rows();
        let rows = Place::flat(layout.e.offset, old, layout.e.columns);
        // Rows that sleep are where their references are: they count, and have no distance.
        let items = if self.touched && listed {
            end.touched.rows()
        } else {
            old
        };
        ops.anchor.pull(
            pass,
            Pull {
                form: if self.raw {
                    Distance::Raw
                } else {
                    Distance::Normalized
                },
                rows: theta.part(rows),
                reference: &references.rows,
                touched: listed.then_some(&end.touched),
                strength: self.row_strength(items, layout),
                grad: grad.part_mut(rows),
                losses: &mut end.row_losses,
            },
        );
        ops.anchor.pull(
            pass,
            Pull {
                form: Distance::Raw,
                rows: theta.part(layout.w),
                reference: &references.w,
                touched: None,
                strength: self.w_strength(layout),
                grad: grad.part_mut(layout.w),
                losses: &mut end.w_losses,
            },
        );
    }
}

/// The parent's parameters that anchors hold on to.
pub(super) struct References {
    /// R [M_old, D]
    pub(super) rows: Tensor,
    /// W0 [D, H]
    pub(super) w: Tensor,
}

/// Earlier parameters that EWC holds on to, with their Fisher weights: [1, n] each.
pub(super) struct Consolidated {
    /// Where they begin in the flat buffer.
    pub(super) first: usize,
    pub(super) theta: Tensor,
    pub(super) fisher: Tensor,
}

impl Consolidated {
    /// Adds the pull on the parameters from `from` on; the parts of the penalty.
    pub(super) fn pull(
        &self,
        ops: &Ops,
        pass: &mut Pass<'_>,
        from: usize,
        lambda: f32,
        flat: (&Tensor, &mut Tensor),
        losses: &mut Tensor,
    ) -> Read {
        let begin = self.first.max(from);
        let skip = begin - self.first;
        let n = self.theta.len() - skip;
        let (place, held) = (Place::flat(begin, 1, n), Place::flat(skip, 1, n));
        ops.anchor.weighted(
            pass,
            Weighted {
                theta: flat.0.part(place),
                reference: self.theta.part(held),
                weights: self.fisher.part(held),
                strength: lambda,
                grad: flat.1.part_mut(place),
                losses,
            },
        );
        pass.read(losses)
    }
}
