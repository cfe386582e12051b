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
    wide_gelu: Kernel,
    narrow_gelu: Kernel,
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

/// The entry of a kernel, and whether GELU is its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Bare { gelu: bool },
    Normed { gelu: bool },
    Joined,
}

impl Kind {
    pub(crate) fn entry(self) -> &'static str {
        match self {
            Self::Bare { .. } => "bare",
            Self::Normed { .. } => "normed",
            Self::Joined => "joined",
        }
    }

    pub(crate) fn gelu(self) -> bool {
        matches!(
            self,
            Self::Bare { gelu: true } | Self::Normed { gelu: true }
        )
    }
}

impl GpuEnd<'_> {
    fn kind(&self) -> Kind {
        match *self {
            Self::Bare { gelu } => Kind::Bare { gelu },
            Self::Normed { gelu, .. } => Kind::Normed { gelu },
            Self::Joined { .. } => Kind::Joined,
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
    eps: f32,
}

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct AnyDims {
    rows: u32,
    inputs: u32,
    outputs: u32,
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
        let forward = |down, gelu| {
            let constants = [("DOWN", down), ("GELU", gelu)];
            Kernel::new(&SHADER, "forward", &constants)
        };
        let backward = |entry| Kernel::new(&SHADER, entry, &[("DOWN", 16.0)]);
        Self {
            skinny: LinearSkinny::new(),
            tiled: LinearTiled::new(scratch),
            matrix,
            any: AnyWidth {
                wide: forward(16.0, 0.0),
                narrow: forward(4.0, 0.0),
                wide_gelu: forward(16.0, 1.0),
                narrow_gelu: forward(4.0, 1.0),
                backward: backward("backward"),
                backward_add: backward("backward_add"),
            },
            variant,
            scratch,
            few_rows,
            matrix_rows,
        }
    }

    /// The shape of `linear_skinny` for `rows` rows, if that is the fastest.
    fn skinny(&self, kind: Kind, rows: usize, inputs: usize, outputs: usize) -> Option<Shape> {
        let wanted = match self.variant {
            DeviceVariant::Auto => rows <= self.few_rows,
            DeviceVariant::Skinny => true,
            DeviceVariant::Tiled
            | DeviceVariant::Matrix
            | DeviceVariant::Fast
            | DeviceVariant::Any => false,
        };
        let shape = || Shape::of(kind, inputs, outputs, self.scratch);
        wanted.then(shape).flatten()
    }

    /// The kernels that a product of each of `maps`, (kind, in, out), is dispatched by if it has few
    /// rows.
    pub(super) fn for_few_rows(&self, maps: &[(Kind, usize, usize)]) -> Vec<Kernel> {
        let of = |(kind, inputs, outputs): (Kind, usize, usize)| {
            if let Some(shape) = self.skinny(kind, 1, inputs, outputs) {
                self.skinny.kernel(shape)
            } else if self.tiles(inputs, outputs) {
                self.tiled.kernel(kind).clone()
            } else {
                self.any.forward(kind.gelu())[0].clone()
            }
        };
        maps.iter().copied().map(of).collect()
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
        if let (Some(matrix), Some(halves)) = (&self.matrix, product.halves)
            && rows >= self.matrix_rows
        {
            matrix.run(pass, product, kind, halves);
        } else if let Some(shape) = self.skinny(kind, rows, inputs, outputs) {
            self.skinny.run(pass, product, shape);
        } else if self.tiles(inputs, outputs) {
            self.tiled.run(pass, product, kind);
        } else {
            self.any.run(pass, product);
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
        };
        let grid = [groups(inputs, ACROSS), groups(rows, 64), 1];
        pass.dispatch(kernel, grid, &dims, &tensors);
    }
}

impl AnyWidth {
    /// The kernels for few rows and for many.
    fn forward(&self, gelu: bool) -> [&Kernel; 2] {
        match gelu {
            false => [&self.narrow, &self.wide],
            true => [&self.narrow_gelu, &self.wide_gelu],
        }
    }

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
        let [narrow, wide] = self.forward(gelu);
        let (kernel, high) = match rows <= NARROW {
            true => (narrow, 16),
            false => (wide, 64),
        };
        let dims = AnyDims {
            rows: to_u32(rows),
            inputs: to_u32(x.place.columns),
            outputs: to_u32(y.place.columns),
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
