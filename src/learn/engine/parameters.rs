//! The trained parameters on a device, with their gradients and AdamW's moments.

use std::sync::Arc;

use crate::device::{Outputs, Pass, Place, Plan, Read, Tensor};
use crate::encoder::Encoder;
use crate::error::{Result, bail};
use crate::learn::engine::lazy_rows::LazyRows;
use crate::learn::method::layout::ParameterLayout;
use crate::num::to_u32;
use crate::ops::Ops;
use crate::ops::adamw::Listed;

/// Trained parameters and AdamW's moments on the host, to resume from.
pub(crate) struct ParameterState {
    /// As on the device: lazy rows of E have not been decayed.
    pub(crate) theta: Vec<f32>,
    pub(crate) m: Vec<f32>,
    pub(crate) v: Vec<f32>,
    /// Active rows of E, and the decay that the others have not had yet.
    pub(crate) active: Vec<u32>,
    pub(crate) decay: f64,
}

/// Rows of E that became active, and the factor of their decay so far.
pub(super) struct Activated {
    ids: Vec<u32>,
    factor: f32,
}

/// Four flat buffers in the order of the layout, [1, N] each, and which rows of E are lazy.
pub(super) struct TrainedParameters {
    encoder: Arc<Encoder>,
    pub(super) layout: ParameterLayout,
    pub(super) theta: Tensor,
    pub(super) grad: Tensor,
    pub(super) m: Tensor,
    pub(super) v: Tensor,
    pub(super) rows: LazyRows,
    /// With the ids of rows that become active; has room to read three buffers.
    plan: Plan<Tensor>,
}

impl TrainedParameters {
    /// `values`: N, in the order of `layout`.
    pub(super) fn new(
        encoder: Arc<Encoder>,
        layout: ParameterLayout,
        values: &[f32],
    ) -> Result<Self> {
        assert_eq!(values.len(), layout.len(), "engine: values do not fit");
        let device = encoder.device();
        let zeros = vec![0.0; layout.len()];
        let flat = |label, values: &[f32]| device.upload(label, layout.len(), values);
        let models = layout.e.rows;
        let ids = device.ids("active rows", models, 1)?;
        Ok(Self {
            theta: flat("theta", values)?,
            grad: flat("grad", &zeros)?,
            m: flat("m", &zeros)?,
            v: flat("v", &zeros)?,
            rows: LazyRows::new(models),
            plan: Plan::new(device, ids, 4 * models, 4 * 3 * layout.len())?,
            layout,
            encoder,
        })
    }

    fn upload(&self, label: &'static str, values: &[f32]) -> Result<Tensor> {
        let device = self.encoder.device();
        device.upload(label, self.layout.len(), values)
    }

    /// Replaces the parameters before the first step.
    pub(super) fn set(&mut self, theta: &[f32]) -> Result<()> {
        self.theta = self.upload("theta", theta)?;
        Ok(())
    }

    /// Sets the gradients to 0.
    pub(super) fn clear_gradients(&mut self) -> Result<()> {
        self.set_gradients(&vec![0.0; self.layout.len()])
    }

    /// Replaces the gradients.
    pub(super) fn set_gradients(&mut self, values: &[f32]) -> Result<()> {
        self.grad = self.upload("grad", values)?;
        Ok(())
    }

    /// Replaces everything by what [`TrainedParameters::state`] returned.
    ///
    /// Errors: the sizes differ.
    pub(super) fn restore(&mut self, state: &ParameterState) -> Result<()> {
        let n = self.layout.len();
        for (name, part) in [("theta", &state.theta), ("m", &state.m), ("v", &state.v)] {
            if part.len() != n {
                bail!(
                    Mismatch,
                    "{name}: expected {n} values, found {}",
                    part.len()
                );
            }
        }
        self.set(&state.theta)?;
        self.m = self.upload("m", &state.m)?;
        self.v = self.upload("v", &state.v)?;
        let models = self.layout.e.rows;
        if let Some(id) = state.active.iter().find(|id| **id as usize >= models) {
            bail!(Mismatch, "awake: expected rows of {models}, found {id}");
        }
        if !state.active.is_sorted_by(|a, b| a < b) {
            bail!(Mismatch, "awake: expected ids that ascend");
        }
        self.rows = LazyRows::restored(models, state.active.clone(), state.decay);
        Ok(())
    }

    /// Parameters and moments as they are on the device.
    pub(super) fn state(&mut self) -> Result<ParameterState> {
        let Self { theta, m, v, .. } = self;
        let device = self.encoder.device();
        let (reads, outputs) = device.run(&mut self.plan, |pass, _| {
            [&*theta, m, v].map(|tensor| pass.read(tensor))
        })?;
        let [theta, m, v] = reads.map(|read| outputs.f32(read).to_vec());
        Ok(ParameterState {
            theta,
            m,
            v,
            active: self.rows.active().to_vec(),
            decay: self.rows.decay(),
        })
    }

    /// The parameters, with lazy rows decayed: N, in the order of the layout.
    pub(super) fn current(&mut self) -> Result<Vec<f32>> {
        let theta = &self.theta;
        let device = self.encoder.device();
        let (read, outputs) = device.run(&mut self.plan, |pass, _| pass.read(theta))?;
        let mut theta = outputs.f32(read).to_vec();
        self.rows.apply(&mut theta[self.layout.e.offset..]);
        Ok(theta)
    }

    /// Runs `run` on the gradients.
    pub(super) fn with_gradients(
        &mut self,
        run: impl FnOnce(&mut Pass<'_>, &mut Tensor) + Send,
    ) -> Result<()> {
        let grad = &mut self.grad;
        let device = self.encoder.device();
        device.run(&mut self.plan, |pass, _| run(pass, grad))?;
        Ok(())
    }

    /// The gradients: N, in the order of the layout.
    #[cfg(test)]
    pub(super) fn gradients(&mut self) -> Result<Vec<f32>> {
        let grad = &self.grad;
        let device = self.encoder.device();
        let (read, outputs) = device.run(&mut self.plan, |pass, _| pass.read(grad))?;
        Ok(outputs.f32(read).to_vec())
    }

    /// Reads `tensor`, of at most 3 N elements.
    pub(super) fn read(&mut self, tensor: &Tensor) -> Result<Vec<f32>> {
        let device = self.encoder.device();
        let (read, outputs) = device.run(&mut self.plan, |pass, _| pass.read(tensor))?;
        Ok(outputs.f32(read).to_vec())
    }

    /// Rows of E as they are on the device.
    pub(super) fn rows_of(&mut self, models: &[u32]) -> Result<(Read, Outputs)> {
        let table = self.theta.part(self.layout.e);
        let device = self.encoder.device();
        device.run(&mut self.plan, |pass, _| pass.read_rows(table, models))
    }

    /// Makes rows active that are to have a gradient: `named` (`None`: all) and the first `old`.
    /// Returns those that have yet to be decayed, for [`TrainedParameters::decay`].
    pub(super) fn activate(&mut self, named: Option<&[u32]>, old: u32) -> Option<Activated> {
        let factor = self.rows.pending();
        let models = to_u32(self.layout.e.rows);
        let mut ids = match named {
            Some(named) => self.rows.activate(named.iter().copied()),
            None => self.rows.activate(0..models),
        };
        ids.extend(self.rows.activate(0..old));
        ids.sort_unstable();
        // Before the first step that decays there is nothing to apply.
        (!ids.is_empty() && factor != 1.0).then_some(Activated { ids, factor })
    }

    /// Gives rows that became active the decay that they have not had.
    pub(super) fn decay(&mut self, pass: &mut Pass<'_>, activated: &Activated) {
        let (ids, matrix) = (&mut self.plan.tensors, self.layout.e);
        activated.decay(pass, self.encoder.ops(), matrix, &mut self.theta, ids);
    }

    /// Every row of E is active from now on.
    pub(super) fn activate_all(&mut self) -> Result<()> {
        let Some(activated) = self.activate(None, 0) else {
            return Ok(());
        };
        let (encoder, matrix, theta) = (&self.encoder, self.layout.e, &mut self.theta);
        encoder.device().run(&mut self.plan, |pass, ids| {
            activated.decay(pass, encoder.ops(), matrix, theta, ids);
        })?;
        Ok(())
    }
}

impl Activated {
    /// `ids` takes the rows of E, which is at `matrix` of `theta`.
    fn decay(
        &self,
        pass: &mut Pass<'_>,
        ops: &Ops,
        matrix: Place,
        theta: &mut Tensor,
        ids: &mut Tensor,
    ) {
        pass.upload(ids, &self.ids);
        ops.adamw
            .shrink(pass, theta, Listed { matrix, ids }, self.factor);
    }
}
