//! Products of matrices that change: y [M, N] = or += scale * a [M, K] . b [K, N], with a or b
//! transposed.
//!
//! Operands are matrices inside tensors: columns of one, or a parameter of a flat one.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::cpu::RowsMut;
use crate::device::cpu::gemm::{self, Finish, Matrix};
use crate::device::{Kernel, Part, PartMut, Pass, Place, Shader, groups, shader};
use crate::num::to_u32;

const SHADER: Shader = shader!("matmul", "tile");

/// Rows up to which the narrow tile is taken.
const NARROW: usize = 32;

/// Columns of a tile.
const ACROSS: usize = 64;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    rows: u32,
    inner: u32,
    columns: u32,
    scale: f32,
    a: Steps,
    b: Steps,
    y: Steps,
}

/// Where a matrix, or the transpose of one, is in its tensor.
#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Steps {
    offset: u32,
    down: u32,
    across: u32,
    /// Uniforms align structs to 16 bytes.
    padding: u32,
}

impl Steps {
    fn of(place: Place) -> Self {
        Self {
            offset: to_u32(place.offset),
            down: to_u32(place.stride),
            across: 1,
            padding: 0,
        }
    }

    fn transposed(self) -> Self {
        Self {
            down: self.across,
            across: self.down,
            ..self
        }
    }
}

/// Kernels for tall and for narrow results.
struct Kernels {
    wide: Kernel,
    narrow: Kernel,
}

pub(crate) struct Matmul {
    product: Kernels,
    product_add: Kernels,
}

/// Shapes as each method says; `y` is overwritten, or added to with `add`.
pub(crate) struct Product<'t> {
    pub(crate) a: Part<'t>,
    pub(crate) b: Part<'t>,
    pub(crate) scale: f32,
    pub(crate) y: PartMut<'t>,
    pub(crate) add: bool,
}

/// Which factor stands transposed in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transposed {
    Neither,
    A,
    B,
}

impl Matmul {
    pub(crate) fn new() -> Self {
        let kernels = |entry| Kernels {
            wide: Kernel::new(&SHADER, entry, &[("DOWN", 16.0)]),
            narrow: Kernel::new(&SHADER, entry, &[("DOWN", 4.0)]),
        };
        Self {
            product: kernels("product"),
            product_add: kernels("product_add"),
        }
    }

    /// `y` [M, N] from `a` [M, K] . `b` [K, N]
    pub(crate) fn nn(&self, pass: &mut Pass<'_>, p: Product<'_>) {
        self.multiply(pass, p, Transposed::Neither, NARROW);
    }

    /// `y` [M, N] from `a` [M, K] . `b` [N, K]^T
    pub(crate) fn nt(&self, pass: &mut Pass<'_>, p: Product<'_>) {
        self.multiply(pass, p, Transposed::B, NARROW);
    }

    /// `y` [M, N] from `a` [K, M]^T . `b` [K, N]
    pub(crate) fn tn(&self, pass: &mut Pass<'_>, p: Product<'_>) {
        self.multiply(pass, p, Transposed::A, NARROW);
    }

    fn multiply(&self, pass: &mut Pass<'_>, p: Product<'_>, turned: Transposed, narrow: usize) {
        let Place { rows, columns, .. } = p.y.place;
        let inner = match turned {
            Transposed::A => p.a.place.rows,
            _ => p.a.place.columns,
        };
        match turned {
            Transposed::A => p.a.place.expect("matmul", "a", inner, rows),
            _ => p.a.place.expect("matmul", "a", rows, inner),
        }
        match turned {
            Transposed::B => p.b.place.expect("matmul", "b", columns, inner),
            _ => p.b.place.expect("matmul", "b", inner, columns),
        }
        match pass {
            Pass::Gpu(gpu) => {
                let kernels = if p.add {
                    &self.product_add
                } else {
                    &self.product
                };
                let (kernel, high) = if rows <= narrow {
                    (&kernels.narrow, 16)
                } else {
                    (&kernels.wide, 64)
                };
                let (mut a, mut b) = (Steps::of(p.a.place), Steps::of(p.b.place));
                match turned {
                    Transposed::Neither => {}
                    Transposed::A => a = a.transposed(),
                    Transposed::B => b = b.transposed(),
                }
                gpu.dispatch(
                    kernel,
                    [groups(columns, ACROSS), groups(rows, high), 1],
                    &Dims {
                        rows: to_u32(rows),
                        inner: to_u32(inner),
                        columns: to_u32(columns),
                        scale: p.scale,
                        a,
                        b,
                        y: Steps::of(p.y.place),
                    },
                    &[("a", p.a.tensor), ("b", p.b.tensor), ("y", p.y.tensor)],
                );
            }
            Pass::Cpu(pass) => {
                let (mut a, mut b) = (Matrix::of_part(p.a), Matrix::of_part(p.b));
                match turned {
                    Transposed::Neither => {}
                    Transposed::A => a = a.transposed(),
                    Transposed::B => b = b.transposed(),
                }
                let finish = if p.add {
                    Finish::Add(p.scale)
                } else {
                    Finish::Set(p.scale)
                };
                let mut y = p.y;
                let stride = y.place.stride;
                let y = RowsMut {
                    values: y.f32_mut(),
                    columns,
                    stride,
                };
                gemm::product(pass.cpu, a, b, finish, y);
            }
        }
    }
}
