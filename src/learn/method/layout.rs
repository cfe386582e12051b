//! Where the trained parameters lie in one flat buffer.

use crate::device::Place;
use crate::model::lora::Adapter;

/// LoRA factors, then W, then E.
#[derive(Clone, Debug)]
pub(crate) struct ParameterLayout {
    pub(crate) adapter: Adapter,
    /// W [D, H]
    pub(crate) w: Place,
    /// E [M, D]
    pub(crate) e: Place,
}

impl ParameterLayout {
    /// `width` D, `inputs` H, `models` M.
    pub(crate) fn new(adapter: Adapter, width: usize, inputs: usize, models: usize) -> Self {
        let w = Place::flat(adapter.len, width, inputs);
        let e = Place::flat(w.end(), models, width);
        Self { adapter, w, e }
    }

    /// Parameters in all.
    pub(crate) fn len(&self) -> usize {
        self.e.end()
    }
}
