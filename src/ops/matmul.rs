//! Products of matrices that change: y [M, N] = or += scale * a [M, K] . b [K, N], with a or b
//! transposed.
//!
//! Operands are matrices inside tensors: columns of one, or a parameter of a flat one.

use std::sync::Arc;

use crate::device::cpu::RowsMut;
use crate::device::cpu::gemm::{self, Finish, Matrix};
use crate::device::{Device, Kernel, Part, PartMut, Pass, Place, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{BOUND, Case, each, framed};
use crate::ops::reference::{self, noise, wide};

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

/// Products of noise, for each of `sizes`.
pub(crate) fn cases(device: &Device, sizes: &[ProductSize<'_>]) -> Result<Vec<Case>> {
    let op = Arc::new(Matmul::new());
    each(sizes, |size| {
        let [rows, inner, columns] = size.shape;
        let case = ProductInputs::of_noise(size).case(device, &op)?;
        Ok([case.of(&format!(
            "{} {rows}x{inner} . {inner}x{columns}",
            size.label
        ))])
    })
}

/// One product: [M, K, N], which factor is transposed, and elements before each matrix and between
/// its rows.
#[derive(Clone, Copy)]
pub(crate) struct ProductSize<'l> {
    pub(crate) label: &'l str,
    pub(crate) shape: [usize; 3],
    pub(crate) turned: Transposed,
    pub(crate) gap: (usize, usize),
    pub(crate) add: bool,
}

/// The matrices of a product, neither factor transposed, and `y` before it.
struct ProductInputs<'l> {
    a: Vec<f32>,
    b: Vec<f32>,
    y: Vec<f32>,
    size: ProductSize<'l>,
    scale: f32,
    narrow: usize,
}

/// The transpose of rows of `columns`.
fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    (0..rows * columns)
        .map(|i| values[i % rows * columns + i / rows])
        .collect()
}

impl<'l> ProductInputs<'l> {
    fn of_noise(size: ProductSize<'l>) -> Self {
        let [rows, inner, columns] = size.shape;
        Self {
            a: noise(rows * inner, 1),
            b: noise(inner * columns, 2),
            y: noise(rows * columns, 3),
            size,
            scale: 0.75,
            narrow: NARROW,
        }
    }

    fn case(&self, device: &Device, op: &Arc<Matmul>) -> Result<Case> {
        let ProductSize {
            shape: [rows, inner, columns],
            turned,
            gap,
            add,
            ..
        } = self.size;
        let (left, a) = match turned {
            Transposed::A => framed(device, "a", rows, &transpose(&self.a, inner), gap)?,
            _ => framed(device, "a", inner, &self.a, gap)?,
        };
        let (right, b) = match turned {
            Transposed::B => framed(device, "b", inner, &transpose(&self.b, columns), gap)?,
            _ => framed(device, "b", columns, &self.b, gap)?,
        };
        let (y, place) = framed(device, "y", columns, &self.y, gap)?;
        let (op, scale, narrow) = (Arc::clone(op), self.scale, self.narrow);
        let run = move |pass: &mut Pass<'_>, [y]: &mut [Tensor; 1]| {
            let p = Product {
                a: left.part(a),
                b: right.part(b),
                scale,
                y: y.part_mut(place),
                add,
            };
            op.multiply(pass, p, turned, narrow);
        };
        let (a, b, before) = (wide(&self.a), wide(&self.b), wide(&self.y));
        let want = move || {
            let mut y = reference::product(&a, &b, columns);
            for (y, before) in y.iter_mut().zip(&before) {
                *y = f64::from(scale) * *y + if add { *before } else { 0.0 };
            }
            [y]
        };
        let flops = 2.0 * (rows * inner * columns) as f64;
        let bytes = 4.0 * (rows * inner + inner * columns + rows * columns) as f64;
        let case = Case::new("matmul", [y], run, want).at(0, place);
        Ok(case.work(flops, bytes).within(3.0 * BOUND))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::device::cpu::gemm::Level;
    use crate::ops::testing::{assert_close, check, devices, outputs, run};

    const ALL: [Transposed; 3] = [Transposed::Neither, Transposed::A, Transposed::B];

    fn size(
        shape: [usize; 3],
        turned: Transposed,
        gap: (usize, usize),
        add: bool,
    ) -> ProductSize<'static> {
        ProductSize {
            label: "",
            shape,
            turned,
            gap,
            add,
        }
    }

    fn on(device: &Device, inputs: &ProductInputs<'_>) -> Vec<f32> {
        let op = Matmul::new().into();
        let mut case = inputs.case(device, &op).unwrap();
        let [y] = case.check(device).unwrap().try_into().ok().unwrap();
        assert!(y.intact);
        y.got
    }

    #[test]
    fn every_form_matches_f64_and_touches_nothing_else() {
        let shapes = [
            [1, 1, 1],
            [7, 63, 65],
            [33, 17, 16],
            [16, 65, 130],
            [65, 16, 257],
        ];
        let mut sizes = Vec::new();
        for shape in shapes {
            for turned in ALL {
                for (gap, add) in [((0, 0), false), ((5, 3), true), ((2, 9), false)] {
                    sizes.push(size(shape, turned, gap, add));
                }
            }
        }
        check(|device| cases(device, &sizes));
    }

    #[test]
    fn both_tiles_have_the_same_bits() {
        let at = |narrow| {
            let size = size([20, 33, 70], Transposed::B, (3, 4), true);
            let inputs = ProductInputs {
                narrow,
                ..ProductInputs::of_noise(size)
            };
            outputs::<1>(|device| inputs.case(device, &Matmul::new().into()))
        };
        assert_eq!(at(0), at(usize::MAX));
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_company() {
        for device in devices() {
            for turned in ALL {
                let all = ProductInputs::of_noise(size([150, 40, 50], turned, (1, 2), false));
                let row = |r: usize| ProductInputs {
                    a: all.a[r * 40..][..40].to_vec(),
                    y: all.y[r * 50..][..50].to_vec(),
                    ..ProductInputs::of_noise(size([1, 40, 50], turned, (0, 0), false))
                };
                let together = on(&device, &all);
                for r in [0, 77, 149] {
                    assert_eq!(on(&device, &row(r)), together[r * 50..][..50]);
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads_nor_on_the_simd_level() {
        // One and several blocks of rows, one and several panels, enough work for threads.
        for shape in [
            [16, 700, 384],
            [300, 384, 16],
            [250, 16, 384],
            [32, 100, 1000],
        ] {
            for (turned, add) in ALL.into_iter().zip([true, false, true]) {
                let inputs = ProductInputs::of_noise(size(shape, turned, (7, 5), add));
                let mut fused = None;
                for level in Level::available() {
                    let with = |threads| {
                        let cpu = Cpu::with_level(Some(threads), level).unwrap();
                        let device = Device::Cpu(Arc::new(cpu));
                        let op = Matmul::new().into();
                        let mut case = inputs.case(&device, &op).unwrap();
                        case.check(&device).unwrap().remove(0)
                    };
                    let one = with(1);
                    assert!(one.intact);
                    assert_close("matmul", &one.got, &one.want, 30.0 * BOUND);
                    assert_eq!(one.got, with(2).got);
                    assert_eq!(one.got, with(3).got);
                    if level != Level::Portable {
                        let fused = fused.get_or_insert_with(|| one.got.clone());
                        assert_eq!(*fused, one.got, "{level:?}");
                    }
                }
            }
        }
    }

    /// LoRA's products and their gradients, as `model/training.rs` composes them.
    #[test]
    fn lora_products_and_gradients_match_hand_values_v13() {
        // y = s (x La^T) Lb^T
        let (x, la, lb, g) = ([1.0, 2.0], [0.5, -1.0], [2.0, 1.0], [1.0, 1.0]);
        for device in devices() {
            let product = |shape, turned, scale, a: &[f32], b: &[f32]| {
                let inputs = ProductInputs {
                    a: a.to_vec(),
                    b: b.to_vec(),
                    scale,
                    ..ProductInputs::of_noise(size(shape, turned, (2, 1), false))
                };
                on(&device, &inputs)
            };
            let thin = product([1, 2, 1], Transposed::B, 1.0, &x, &la);
            let y = product([1, 1, 2], Transposed::B, 2.0, &thin, &lb);
            assert_close("V13 y", &y, &[-6.0, -3.0], 1e-6);
            let dlb = product([2, 1, 1], Transposed::A, 2.0, &g, &thin);
            assert_close("V13 dLb", &dlb, &[-3.0, -3.0], 1e-6);
            let d_thin = product([1, 2, 1], Transposed::Neither, 2.0, &g, &lb);
            let dla = product([1, 1, 2], Transposed::A, 1.0, &d_thin, &x);
            assert_close("V13 dLa", &dla, &[6.0, 12.0], 1e-6);
            let dx = product([1, 1, 2], Transposed::Neither, 1.0, &d_thin, &la);
            assert_close("V13 dx", &dx, &[3.0, -6.0], 1e-6);
        }
    }

    #[test]
    fn nothing_to_sum_is_zero() {
        for device in devices() {
            let mut y = device.upload("y", 2, &[1.0, 2.0, 3.0, 4.0]).unwrap();
            let a = device.upload("a", 2, &[1.0; 4]).unwrap();
            let op = Matmul::new();
            let ((sum, set), outcome) = run(&device, |pass| {
                let mut product = |pass: &mut Pass<'_>, add| {
                    let p = Product {
                        a: a.part(Place::flat(0, 0, 2)),
                        b: a.part(Place::flat(0, 0, 2)),
                        scale: 1.0,
                        y: y.part_mut(Place::flat(0, 2, 2)),
                        add,
                    };
                    op.tn(pass, p);
                    pass.read(&y)
                };
                (product(pass, true), product(pass, false))
            });
            assert_eq!(outcome.f32(sum), [1.0, 2.0, 3.0, 4.0]);
            assert_eq!(outcome.f32(set), [0.0; 4]);
        }
    }

    #[test]
    #[should_panic(expected = "matmul: b: expected [3, 2], found [2, 3]")]
    fn shapes_are_checked() {
        let device = &devices()[0];
        let a = device.upload("a", 2, &[1.0; 8]).unwrap();
        let mut y = device.upload("y", 3, &[0.0; 12]).unwrap();
        let op = Matmul::new();
        let place = y.place();
        run(device, |pass| {
            let p = Product {
                a: a.part(a.place()),
                b: a.part(Place::flat(0, 2, 3)),
                scale: 1.0,
                y: y.part_mut(place),
                add: false,
            };
            op.nt(pass, p);
        });
    }
}
