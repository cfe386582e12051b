//! Products on a GPU: which kernel takes one, by its rows, its widths and the adapter's memory.

use super::{SHADER, Weight, WeightValues};
use crate::device::gpu::GpuPass;
use crate::device::{Device, DeviceVariant, Kernel, Part, Tensor, groups};
use crate::num::to_u32;
use crate::ops::linear_matrix::{Halves, LinearMatrix};
use crate::ops::linear_skinny::{LinearSkinny, Shape};
use crate::ops::linear_tiled::{self, LinearTiled};

/// Rows up to which the narrow tile of the kernel for any widths is taken.
const NARROW: usize = 32;

/// Columns of a tile of that kernel.
const ACROSS: usize = 64;

pub(crate) struct GpuLinear {
    skinny: LinearSkinny,
    tiled: LinearTiled,
    /// On an adapter with matrix units that are asked for.
    matrix: Option<LinearMatrix>,
    any: AnyWidth,
    variant: DeviceVariant,
    /// Bytes of workgroup memory.
    scratch: usize,
    /// Most rows that `linear_skinny` takes.
    few_rows: usize,
    /// Fewest rows that `linear_matrix` takes.
    matrix_rows: usize,
}

/// The kernels for widths that are no multiples of four.
struct AnyWidth {
    wide: Kernel,
    narrow: Kernel,
    backward: Kernel,
    backward_add: Kernel,
}

/// y = end(x W^T + b)
pub(crate) struct GpuProduct<'t> {
    /// Whole rows of a tensor, [T, in].
    pub(crate) x: Part<'t>,
    pub(crate) w: &'t Tensor,
    pub(crate) bias: &'t Tensor,
    /// `w` once more, for matrix units.
    pub(crate) halves: Option<&'t Halves>,
    /// Whole rows of a tensor, [T, out].
    pub(crate) y: Part<'t>,
    pub(crate) end: GpuEnd<'t>,
}

/// What is special about a product.
#[derive(Clone, Copy)]
pub(crate) enum GpuEnd<'t> {
    /// Nothing, or GELU behind it.
    Bare { gelu: bool },
    /// It is of the norm of x, whose means and deviations it leaves in `scale` [T, 2].
    Normed {
        gelu: bool,
        norm: NormOf<'t>,
        scale: &'t Tensor,
    },
    /// The norm of `residual` is added, by the `scale` that its first reader left.
    Joined {
        residual: Part<'t>,
        norm: NormOf<'t>,
        scale: &'t Tensor,
    },
}

/// The entry of a kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Bare,
    Normed,
    Joined,
}

/// Products of a kind with a weight [out, in]: the kind, in and out.
#[derive(Clone, Copy)]
pub(crate) struct Map(pub(crate) Kind, pub(crate) usize, pub(crate) usize);

/// The kernel that takes a product, beside those of matrix units.
enum Choice {
    Skinny(Shape),
    Tiled,
    Any,
}

impl Kind {
    pub(crate) fn entry(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Normed => "normed",
            Self::Joined => "joined",
        }
    }
}

impl GpuEnd<'_> {
    fn kind(&self) -> Kind {
        match *self {
            Self::Bare { .. } => Kind::Bare,
            Self::Normed { .. } => Kind::Normed,
            Self::Joined { .. } => Kind::Joined,
        }
    }

    fn gelu(&self) -> bool {
        match *self {
            Self::Bare { gelu } | Self::Normed { gelu, .. } => gelu,
            Self::Joined { .. } => false,
        }
    }
}

/// A layer norm: gamma, beta [1, H] and eps.
#[derive(Clone, Copy)]
pub(crate) struct NormOf<'t> {
    pub(crate) gamma: &'t Tensor,
    pub(crate) beta: &'t Tensor,
    pub(crate) eps: f32,
}

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
pub(crate) struct GpuDims {
    rows: u32,
    inputs4: u32,
    outputs: u32,
    x_row: u32,
    y_row: u32,
    r_row: u32,
    gelu: u32,
    eps: f32,
}

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct AnyDims {
    rows: u32,
    inputs: u32,
    outputs: u32,
    gelu: u32,
}

impl<'t> GpuProduct<'t> {
    pub(crate) fn dims(&self) -> GpuDims {
        let row = |part: Part<'_>| to_u32(part.place.offset / part.place.columns.max(1));
        let (residual, eps) = match self.end {
            GpuEnd::Bare { .. } => (0, 0.0),
            GpuEnd::Normed { norm, .. } => (0, norm.eps),
            GpuEnd::Joined { residual, norm, .. } => (row(residual), norm.eps),
        };
        GpuDims {
            rows: to_u32(self.x.place.rows),
            inputs4: to_u32(self.x.place.columns / 4),
            outputs: to_u32(self.y.place.columns),
            x_row: row(self.x),
            y_row: row(self.y),
            r_row: residual,
            gelu: u32::from(self.end.gelu()),
            eps,
        }
    }

    pub(crate) fn tensors(&self) -> Vec<(&'static str, &'t Tensor)> {
        let (x, y) = (self.x.tensor, self.y.tensor);
        let mut tensors = vec![("x", x), ("w", self.w), ("bias", self.bias), ("y", y)];
        match self.end {
            GpuEnd::Bare { .. } => {}
            GpuEnd::Normed { norm, scale, .. } => tensors.extend([
                ("gamma", norm.gamma),
                ("beta", norm.beta),
                ("x_scale", scale),
            ]),
            GpuEnd::Joined {
                residual,
                norm,
                scale,
            } => tensors.extend([
                ("residual", residual.tensor),
                ("r_gamma", norm.gamma),
                ("r_beta", norm.beta),
                ("r_scale", scale),
            ]),
        }
        tensors
    }
}

impl GpuLinear {
    pub(super) fn new(device: &Device, variant: DeviceVariant) -> Self {
        let (mut matrix, mut matrix_rows) = (None, usize::MAX);
        let (scratch, few_rows) = match device {
            Device::Gpu(gpu) => {
                let rows = match variant {
                    DeviceVariant::Auto => gpu.matrix_rows(),
                    DeviceVariant::Matrix | DeviceVariant::Fast => Some(0),
                    DeviceVariant::Skinny | DeviceVariant::Tiled | DeviceVariant::Any => None,
                };
                if let Some(rows) = rows {
                    matrix = LinearMatrix::on(gpu, variant != DeviceVariant::Fast);
                    matrix_rows = rows;
                }
                (gpu.most_scratch() as usize, gpu.few_rows())
            }
            Device::Cpu(_) => (0, 0),
        };
        let forward = |down| Kernel::new(&SHADER, "forward", &[("DOWN", down)]);
        let backward = |entry| Kernel::new(&SHADER, entry, &[("DOWN", 16.0)]);
        Self {
            skinny: LinearSkinny::new(),
            tiled: LinearTiled::new(scratch),
            matrix,
            any: AnyWidth {
                wide: forward(16.0),
                narrow: forward(4.0),
                backward: backward("backward"),
                backward_add: backward("backward_add"),
            },
            variant,
            scratch,
            few_rows,
            matrix_rows,
        }
    }

    /// The kernels of matrix units, if they are the fastest for `rows` rows of weights that they have.
    fn on_matrices(&self, rows: usize) -> Option<&LinearMatrix> {
        self.matrix.as_ref().filter(|_| rows >= self.matrix_rows)
    }

    /// Which other kernel takes a product of `rows` rows.
    fn choose(&self, Map(kind, inputs, outputs): Map, rows: usize) -> Choice {
        let few = match self.variant {
            DeviceVariant::Auto => rows <= self.few_rows,
            DeviceVariant::Skinny => true,
            DeviceVariant::Tiled
            | DeviceVariant::Matrix
            | DeviceVariant::Fast
            | DeviceVariant::Any => false,
        };
        let shape = || Shape::of(kind, inputs, outputs, self.scratch);
        match few.then(shape).flatten() {
            Some(shape) => Choice::Skinny(shape),
            None if self.tiles(inputs, outputs) => Choice::Tiled,
            None => Choice::Any,
        }
    }

    /// The kernels that a product of each of `maps` is dispatched by if it has few rows. None for
    /// matrix units: those depend on the weights too.
    pub(super) fn for_few_rows(&self, maps: &[Map]) -> Vec<Kernel> {
        if self.on_matrices(1).is_some() {
            return Vec::new();
        }
        let of = |map: &Map| match self.choose(*map, 1) {
            Choice::Skinny(shape) => self.skinny.kernel(shape),
            Choice::Tiled => self.tiled.kernel(map.0).clone(),
            Choice::Any => self.any.narrow.clone(),
        };
        maps.iter().map(of).collect()
    }

    /// Whether it has the kernels for matrix units.
    #[cfg(feature = "cli")]
    pub(super) fn has_matrices(&self) -> bool {
        self.matrix.is_some()
    }

    fn tiles(&self, inputs: usize, outputs: usize) -> bool {
        self.variant != DeviceVariant::Any && LinearTiled::takes(inputs, outputs)
    }

    /// Whether products of these widths can norm what they read, and add a norm.
    pub(super) fn defers(&self, widths: &[(usize, usize)]) -> bool {
        widths
            .iter()
            .all(|(inputs, outputs)| self.tiles(*inputs, *outputs))
    }

    pub(super) fn forward(&self, pass: &mut GpuPass<'_>, product: &GpuProduct<'_>) {
        let (inputs, outputs) = (product.x.place.columns, product.y.place.columns);
        let (kind, rows) = (product.end.kind(), product.x.place.rows);
        if let (Some(matrix), Some(halves)) = (self.on_matrices(rows), product.halves) {
            return matrix.run(pass, product, kind, halves);
        }
        match self.choose(Map(kind, inputs, outputs), rows) {
            Choice::Skinny(shape) => self.skinny.run(pass, product, shape),
            Choice::Tiled => self.tiled.run(pass, product, kind),
            Choice::Any => self.any.run(pass, product),
        }
    }

    /// `dx = dy . W`, or `dx = base + dy . W`. `dy`: [T, out]; `base`, `dx`: [T, in].
    pub(super) fn backward(
        &self,
        pass: &mut GpuPass<'_>,
        (dy, w, dx): (&Tensor, &Tensor, &Tensor),
        base: Option<&Tensor>,
    ) {
        let base = base.map(|base| ("base", base));
        let (rows, outputs, inputs) = (dy.rows(), dy.columns(), dx.columns());
        if self.tiles(inputs, outputs) {
            let dims = GpuDims {
                rows: to_u32(rows),
                inputs4: to_u32(outputs / 4),
                outputs: to_u32(inputs),
                x_row: 0,
                y_row: 0,
                r_row: 0,
                gelu: 0,
                eps: 0.0,
            };
            let grid = linear_tiled::grid(rows, inputs);
            let mut tensors = vec![("x", dy), ("w", w), ("y", dx)];
            tensors.extend(base);
            let kernel = self.tiled.backward(base.is_some());
            return pass.dispatch(kernel, grid, &dims, &tensors);
        }
        let kernel = match base {
            Some(_) => &self.any.backward_add,
            None => &self.any.backward,
        };
        let mut tensors = vec![("dy", dy), ("w", w), ("dx", dx)];
        tensors.extend(base);
        let dims = AnyDims {
            rows: to_u32(rows),
            inputs: to_u32(inputs),
            outputs: to_u32(outputs),
            gelu: 0,
        };
        let grid = [groups(inputs, ACROSS), groups(rows, 64), 1];
        pass.dispatch(kernel, grid, &dims, &tensors);
    }
}

impl AnyWidth {
    fn run(&self, pass: &mut GpuPass<'_>, product: &GpuProduct<'_>) {
        let GpuEnd::Bare { gelu } = product.end else {
            unreachable!("linear: a norm that no kernel of these widths applies");
        };
        let (x, y) = (product.x, product.y);
        assert!(
            x.place.offset == 0 && y.place.offset == 0,
            "linear: rows inside a tensor, of widths that are no multiples of four"
        );
        let rows = x.place.rows;
        let (kernel, high) = match rows <= NARROW {
            true => (&self.narrow, 16),
            false => (&self.wide, 64),
        };
        let dims = AnyDims {
            rows: to_u32(rows),
            inputs: to_u32(x.place.columns),
            outputs: to_u32(y.place.columns),
            gelu: u32::from(gelu),
        };
        let grid = [groups(y.place.columns, ACROSS), groups(rows, high), 1];
        pass.dispatch(kernel, grid, &dims, &product.tensors());
    }
}

/// The tensor of `w`, which is on a GPU.
pub(super) fn on_gpu(w: &Weight) -> &Tensor {
    match &w.values {
        WeightValues::Gpu(values) => values,
        WeightValues::Cpu { .. } => unreachable!("linear: weights live on another device"),
    }
}
