//! A GPU's [`super::linear`] for many rows, where arithmetic takes the time: a workgroup has 64 rows
//! by 64 columns, a lane 8 by 4 of them.

use crate::device::gpu::GpuPass;
use crate::device::{Kernel, Shader, groups, shader};
use crate::ops::linear::{GpuProduct, Kind};

const SHADER: Shader = shader!("linear_tiled", "product", "math");

/// Rows and columns of a workgroup.
const SIDE: usize = 64;

/// Bytes of workgroup memory with one stage, and of each further one.
const BYTES: usize = STAGE + 1024;
const STAGE: usize = 2 * 16 * 16 * 17;

pub(crate) struct LinearTiled {
    bare: Kernel,
    normed: Kernel,
    joined: Kernel,
    backward: Kernel,
    backward_add: Kernel,
}

impl LinearTiled {
    /// `scratch`: bytes of workgroup memory.
    pub(crate) fn new(scratch: usize) -> Self {
        let stages = if BYTES + STAGE <= scratch { 2.0 } else { 1.0 };
        let kernel = |entry| Kernel::new(&SHADER, entry, &[("STAGES", stages)]);
        Self {
            bare: kernel("bare"),
            normed: kernel("normed"),
            joined: kernel("joined"),
            backward: kernel("backward"),
            backward_add: kernel("backward_add"),
        }
    }

    /// Whether it takes products with these widths.
    pub(crate) fn takes(inputs: usize, outputs: usize) -> bool {
        inputs > 0 && inputs.is_multiple_of(4) && outputs.is_multiple_of(4)
    }

    /// The kernel of products of this kind.
    pub(crate) fn kernel(&self, kind: Kind) -> &Kernel {
        match kind {
            Kind::Bare => &self.bare,
            Kind::Normed => &self.normed,
            Kind::Joined => &self.joined,
        }
    }

    pub(crate) fn run(&self, pass: &mut GpuPass<'_>, product: &GpuProduct<'_>, kind: Kind) {
        let grid = grid(product.x.place.rows, product.w.rows());
        pass.dispatch(self.kernel(kind), grid, &product.dims(), &product.tensors());
    }

    /// The kernel of dx, and of what is added to it.
    pub(crate) fn backward(&self, add: bool) -> &Kernel {
        if add {
            &self.backward_add
        } else {
            &self.backward
        }
    }
}

pub(crate) fn grid(rows: usize, columns: usize) -> [u32; 3] {
    [groups(columns, SIDE), groups(rows, SIDE), 1]
}
