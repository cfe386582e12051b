//! A GPU's [`super::linear`] for many rows on matrix units: a workgroup of four subgroups has four
//! matrices of rows by four of columns.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use half::f16;

use crate::device::gpu::{Gpu, GpuPass};
use crate::device::{Device, Kernel, Matrices, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::ops::linear::{GpuEnd, GpuProduct, Kind};

const BY_8: Shader = shader!("linear_matrix", "matrix8", "product", "math");
const BY_16: Shader = shader!("linear_matrix", "matrix16", "product", "math");

/// Vectors of four of a row that are staged at a time, the first number for which there is workgroup
/// memory.
const STEPS: [usize; 2] = [8, 4];

/// Storage buffers of a kernel.
const BUFFERS: usize = 10;

/// A map's weights as f16.
pub(crate) struct Halves {
    /// The high parts of [out, in] and then the low ones, two numbers in one: [2 out, in / 2].
    values: Tensor,
    /// Whether a low part is not 0.
    low: bool,
}

impl Halves {
    /// Of `w` [out, in]; `None` if a number is too large for f16.
    pub(crate) fn new(device: &Device, w: &[f32], inputs: usize) -> Result<Option<Self>> {
        let high: Vec<f16> = w.iter().copied().map(f16::from_f32).collect();
        if !high.iter().all(|high| high.is_finite()) {
            return Ok(None);
        }
        let rest = |(w, high): (&f32, &f16)| f16::from_f32(w - high.to_f32());
        let low: Vec<f16> = w.iter().zip(&high).map(rest).collect();
        let has_low = low.iter().any(|low| low.to_f32() != 0.0);
        let pairs = high.as_chunks::<2>().0.iter().chain(low.as_chunks().0);
        let pair = |[a, b]: &[f16; 2]| u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16;
        let pairs: Vec<u32> = pairs.map(pair).collect();
        Ok(Some(Self {
            values: device.upload_ids("halves", inputs / 2, &pairs)?,
            low: has_low,
        }))
    }
}

pub(crate) struct LinearMatrix {
    units: Matrices,
    /// Vectors that are staged at a time.
    step: usize,
    /// Low parts are taken: sums are as exact as those of f32.
    exact: bool,
    /// By kind, and whether low parts of the weights are taken.
    kernels: Mutex<BTreeMap<(Kind, bool), Kernel>>,
}

impl LinearMatrix {
    /// On a GPU that was opened for its matrix units. `None` where it was not, or has too little
    /// workgroup memory or too few buffers.
    pub(crate) fn on(gpu: &Gpu, exact: bool) -> Option<Self> {
        let units = gpu.matrices()?;
        let enough = gpu.most_buffers() as usize >= BUFFERS;
        let matrix = || Self::new(units, gpu.most_scratch() as usize, exact);
        enough.then(matrix).flatten()
    }

    /// `scratch`: bytes of workgroup memory. `None` where they are too few.
    pub(crate) fn new(units: Matrices, scratch: usize, exact: bool) -> Option<Self> {
        let step = STEPS
            .into_iter()
            .find(|step| bytes(units, *step) <= scratch)?;
        Some(Self {
            units,
            step,
            exact,
            kernels: Mutex::default(),
        })
    }

    /// The kernel of products of this kind, the same one for every call.
    pub(crate) fn kernel(&self, kind: Kind, low: bool) -> Kernel {
        let low = low && self.exact;
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = kernels.entry((kind, low)).or_insert_with(|| {
            let shader = if self.units.side == 8 { &BY_8 } else { &BY_16 };
            let constants = [
                ("LANES", self.units.lanes as f64),
                ("STEP", self.step as f64),
                ("X_LOW", f64::from(u8::from(self.exact))),
                ("W_LOW", f64::from(u8::from(low))),
            ];
            Kernel::new(shader, kind.entry(), &constants)
        });
        kernel.clone()
    }

    pub(crate) fn run(
        &self,
        pass: &mut GpuPass<'_>,
        product: &GpuProduct<'_>,
        kind: Kind,
        halves: &Halves,
    ) {
        let side = 4 * self.units.side;
        let (rows, outputs) = (product.x.place.rows, product.w.rows());
        let mut tensors = product.tensors();
        for tensor in &mut tensors {
            if tensor.0 == "w" {
                *tensor = ("halves", &halves.values);
            }
        }
        if !matches!(product.end, GpuEnd::Normed { .. }) {
            // Bound and not read.
            tensors.extend([("gamma", product.bias), ("beta", product.bias)]);
        }
        let kernel = self.kernel(kind, halves.low);
        let grid = [groups(outputs, side), groups(rows, side), 1];
        pass.dispatch(&kernel, grid, &product.dims(), &tensors);
    }
}

/// Bytes of workgroup memory with `step` vectors staged at a time.
fn bytes(units: Matrices, step: usize) -> usize {
    let side = 4 * units.side;
    let staged = 4 * 8 * side * (step + 2);
    staged + 16 * side * (side / 4 + 1) + 4 * units.lanes + 8 * side
}
