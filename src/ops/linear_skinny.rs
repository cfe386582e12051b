//! A GPU's [`super::linear`] for few rows, where the weights' bytes take the time: a workgroup has 8
//! or 16 columns of all rows, and each lane all its weights on their way at once.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::device::gpu::GpuPass;
use crate::device::{Kernel, Shader, groups, shader};
use crate::ops::linear::{GpuProduct, Kind};

const SHADER: Shader = shader!("linear_skinny", "product", "math");

/// Lanes along a row of weights, and rows of weights side by side.
const ALONG: usize = 16;
const ACROSS: usize = 8;

/// Most vectors of four that a lane has of a row of weights at a time.
const MOST_PIECES: usize = 12;

/// Vectors of a row of x that are staged at a time, where the row is longer.
const USUAL_CHUNK: usize = 96;

/// Rows of a workgroup, the first of them for which there is workgroup memory. More rows would have
/// the work of a short prompt on fewer cores.
const ROWS: [usize; 2] = [16, 8];

/// Outputs from which a lane has two columns: the workgroups fill a large GPU then.
const MANY_OUTPUTS: usize = 1152;

pub(crate) struct LinearSkinny {
    kernels: Mutex<BTreeMap<Shape, Kernel>>,
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    kind: Kind,
    rows: usize,
    /// Vectors of four.
    chunk: usize,
    /// Columns of a lane.
    each: usize,
}

impl Shape {
    /// The shape for products with W [outputs, inputs] on an adapter with `scratch` bytes of
    /// workgroup memory; `None` where it does not fit.
    pub(crate) fn of(kind: Kind, inputs: usize, outputs: usize, scratch: usize) -> Option<Self> {
        let vectors = inputs / 4;
        if inputs == 0 || !inputs.is_multiple_of(4 * ALONG) {
            return None;
        }
        let chunk = match kind {
            // A norm needs the whole row.
            Kind::Normed => Some(vectors).filter(|all| *all <= ALONG * MOST_PIECES),
            Kind::Bare | Kind::Joined => {
                let chunks = (1..=USUAL_CHUNK / ALONG).rev().map(|n| n * ALONG);
                chunks
                    .into_iter()
                    .find(|chunk| vectors.is_multiple_of(*chunk))
            }
        };
        let of = |rows| {
            Some(Self {
                kind,
                rows,
                chunk: chunk?,
                each: if outputs >= MANY_OUTPUTS { 2 } else { 1 },
            })
        };
        let shapes = ROWS.into_iter().filter_map(of);
        shapes.into_iter().find(|shape| shape.bytes() <= scratch)
    }

    /// Bytes of workgroup memory.
    fn bytes(&self) -> usize {
        let sums = self.each * self.rows / 4 * ACROSS * (ALONG + 1);
        16 * sums.max(self.rows * self.chunk) + 4 * ALONG * ACROSS + 8 * self.rows
    }

    /// After how many of its vectors a lane comes to the same columns again.
    fn period(&self) -> usize {
        let (mut chunk, mut lanes) = (self.chunk, ALONG * ACROSS);
        while lanes > 0 {
            (chunk, lanes) = (lanes, chunk % lanes);
        }
        self.chunk / chunk
    }

    fn grid(&self, rows: usize, outputs: usize) -> [u32; 3] {
        [
            groups(outputs, ACROSS * self.each),
            groups(rows, self.rows),
            1,
        ]
    }
}

impl LinearSkinny {
    pub(crate) fn new() -> Self {
        Self {
            kernels: Mutex::default(),
        }
    }

    /// The kernel of `shape`, the same one for every call.
    pub(crate) fn kernel(&self, shape: Shape) -> Kernel {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = kernels.entry(shape).or_insert_with(|| {
            let constants = [
                ("ROWS", shape.rows as f64),
                ("CHUNK", shape.chunk as f64),
                ("EACH", shape.each as f64),
                ("PERIOD", shape.period() as f64),
            ];
            Kernel::new(&SHADER, shape.kind.entry(), &constants)
        });
        kernel.clone()
    }

    /// Runs `product` by the kernel of `shape`.
    pub(crate) fn run(&self, pass: &mut GpuPass<'_>, product: &GpuProduct<'_>, shape: Shape) {
        let kernel = self.kernel(shape);
        let grid = shape.grid(product.x.place.rows, product.w.rows());
        pass.dispatch(&kernel, grid, &product.dims(), &product.tensors());
    }
}
