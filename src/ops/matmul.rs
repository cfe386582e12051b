//! Products of matrices that change: y [M, N] = or += scale * a [M, K] . b [K, N], with a or b transposed.
//!
//! Operands are matrices inside tensors: columns of one, or a parameter of a flat one.

use crate::device::cpu::RowsMut;
use crate::device::cpu::gemm::{self, Finish, Matrix};
use crate::device::{Device, Kernel, Part, PartMut, Pass, Place, Shader, groups, shader};
use crate::error::Result;
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
enum Transposed {
    Neither,
    A,
    B,
}

impl Matmul {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        let kernels = |entry| -> Result<Kernels> {
            Ok(Kernels {
                wide: device.kernel(&SHADER, entry, &[("DOWN", 16.0)])?,
                narrow: device.kernel(&SHADER, entry, &[("DOWN", 4.0)])?,
            })
        };
        Ok(Self {
            product: kernels("product")?,
            product_add: kernels("product_add")?,
        })
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use super::*;
    use crate::device::cpu::Cpu;
    use crate::device::cpu::gemm::Level;
    use crate::ops::reference;
    use crate::ops::testing::{BOUND, assert_close, devices, noise, run, wide};

    const ALL: [Transposed; 3] = [Transposed::Neither, Transposed::A, Transposed::B];

    /// Fills what is around a matrix: must neither be read nor written.
    const AROUND: f32 = f32::NAN;

    struct Case {
        a: Vec<f32>,
        b: Vec<f32>,
        y: Vec<f32>,
        shape: [usize; 3],
        turned: Transposed,
        /// Elements before a matrix, and between its rows.
        gap: (usize, usize),
        scale: f32,
        add: bool,
    }

    fn case(shape: [usize; 3], turned: Transposed, gap: (usize, usize), add: bool) -> Case {
        let [rows, inner, columns] = shape;
        Case {
            a: noise(rows * inner, 1),
            b: noise(inner * columns, 2),
            y: noise(rows * columns, 3),
            shape,
            turned,
            gap,
            scale: 0.75,
            add,
        }
    }

    fn turn(values: &[f32], columns: usize) -> Vec<f32> {
        let rows = values.len() / columns.max(1);
        (0..rows * columns)
            .map(|i| values[i % rows * columns + i / rows])
            .collect()
    }

    impl Case {
        fn want(&self) -> Vec<f64> {
            let products = reference::product(&wide(&self.a), &wide(&self.b), self.shape[2]);
            let before = |i: usize| {
                if self.add { f64::from(self.y[i]) } else { 0.0 }
            };
            let scaled = products.iter().enumerate();
            scaled
                .map(|(i, sum)| before(i) + f64::from(self.scale) * sum)
                .collect()
        }

        /// `values` with gaps, as rows of one element, and where the matrix is in them.
        fn spread(&self, values: &[f32], columns: usize) -> (Vec<f32>, Place) {
            let (offset, between) = self.gap;
            let place = Place {
                offset,
                stride: columns + between,
                rows: values.len() / columns,
                columns,
            };
            let mut spread = vec![AROUND; place.end() + offset];
            for (r, row) in values.chunks_exact(columns).enumerate() {
                spread[offset + r * place.stride..][..columns].copy_from_slice(row);
            }
            (spread, place)
        }

        fn run(&self, device: &Device, narrow: usize) -> Vec<f32> {
            let [rows, inner, columns] = self.shape;
            let a = match self.turned {
                Transposed::A => self.spread(&turn(&self.a, inner), rows),
                _ => self.spread(&self.a, inner),
            };
            let b = match self.turned {
                Transposed::B => self.spread(&turn(&self.b, columns), inner),
                _ => self.spread(&self.b, columns),
            };
            let before = self.spread(&self.y, columns);
            let op = Matmul::new(device).unwrap();
            let tensors =
                [&a, &b, &before].map(|(values, _)| device.upload("m", 1, values).unwrap());
            let [left, right, mut y] = tensors;
            let (read, outcome) = run(device, |pass| {
                let p = Product {
                    a: left.part(a.1),
                    b: right.part(b.1),
                    scale: self.scale,
                    y: y.part_mut(before.1),
                    add: self.add,
                };
                op.multiply(pass, p, self.turned, narrow);
                pass.read(&y)
            });
            let (mut spread, place) = (outcome.f32(read).to_vec(), before.1);
            let mut inside = Vec::new();
            for r in 0..rows {
                let row = &mut spread[place.offset + r * place.stride..][..columns];
                inside.extend_from_slice(row);
                row.fill(AROUND);
            }
            let untouched = spread.iter().all(|v| v.to_bits() == AROUND.to_bits());
            assert!(untouched, "matmul writes around its result");
            inside
        }
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
        for device in devices() {
            for shape in shapes {
                for turned in ALL {
                    for (gap, add) in [((0, 0), false), ((5, 3), true), ((2, 9), false)] {
                        let case = case(shape, turned, gap, add);
                        let got = case.run(&device, NARROW);
                        assert_close("matmul", &got, &case.want(), 3.0 * BOUND);
                    }
                }
            }
        }
    }

    #[test]
    fn both_tiles_have_the_same_bits() {
        for device in devices() {
            let case = case([20, 33, 70], Transposed::B, (3, 4), true);
            assert_eq!(case.run(&device, 0), case.run(&device, usize::MAX));
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_company() {
        for device in devices() {
            for turned in ALL {
                let all = case([150, 40, 50], turned, (1, 2), false);
                let row = |r: usize| Case {
                    a: all.a[r * 40..][..40].to_vec(),
                    y: all.y[r * 50..][..50].to_vec(),
                    ..case([1, 40, 50], turned, (0, 0), false)
                };
                let together = all.run(&device, NARROW);
                for r in [0, 77, 149] {
                    assert_eq!(row(r).run(&device, NARROW), together[r * 50..][..50]);
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
                let case = case(shape, turned, (7, 5), add);
                let mut fused = None;
                for level in Level::available() {
                    let on = |threads| {
                        let cpu = Cpu::with_level(Some(threads), level).unwrap();
                        case.run(&Device::Cpu(Arc::new(cpu)), NARROW)
                    };
                    let one = on(1);
                    assert_close("matmul", &one, &case.want(), 30.0 * BOUND);
                    assert_eq!(one, on(2));
                    assert_eq!(one, on(3));
                    if level != Level::Portable {
                        assert_eq!(*fused.get_or_insert_with(|| one.clone()), one, "{level:?}");
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
                let case = Case {
                    a: a.to_vec(),
                    b: b.to_vec(),
                    scale,
                    ..case(shape, turned, (2, 1), false)
                };
                case.run(&device, NARROW)
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
    fn gradients_match_finite_differences() {
        // y = s x w^T; loss = sum of y g: dx = s g w (nn), dw = s g^T x (tn).
        let (rows, inner, columns) = (5, 4, 3);
        let (x, w) = (noise(rows * inner, 1), noise(columns * inner, 2));
        let g = noise(rows * columns, 3);
        let s = 0.5;
        let loss = |x: &[f64], w: &[f64]| {
            let y = reference::linear(x, w, &vec![0.0; columns]);
            let terms = y.iter().zip(&g).map(|(y, g)| s * y * f64::from(*g));
            terms.sum::<f64>()
        };
        let slope = |at: &dyn Fn(f64) -> f64| (at(1e-4) - at(-1e-4)) / 2e-4;
        let (wide_x, wide_w) = (wide(&x), wide(&w));
        let moved = |values: &[f64], i: usize, step: f64| {
            let mut values = values.to_vec();
            values[i] += step;
            values
        };
        let want_dx: Vec<f64> = (0..x.len())
            .map(|i| slope(&|step| loss(&moved(&wide_x, i, step), &wide_w)))
            .collect();
        let want_dw: Vec<f64> = (0..w.len())
            .map(|i| slope(&|step| loss(&wide_x, &moved(&wide_w, i, step))))
            .collect();
        for device in devices() {
            let plain = |shape, turned, a: Vec<f32>, b: &[f32]| Case {
                a,
                b: b.to_vec(),
                scale: 0.5,
                ..case(shape, turned, (2, 1), false)
            };
            let dx = plain([rows, columns, inner], Transposed::Neither, g.clone(), &w);
            assert_close("dx", &dx.run(&device, NARROW), &want_dx, 1e-4);
            let dw = plain([columns, rows, inner], Transposed::A, turn(&g, columns), &x);
            assert_close("dw", &dw.run(&device, NARROW), &want_dw, 1e-4);
        }
    }

    #[test]
    fn nothing_to_sum_is_zero() {
        for device in devices() {
            let mut y = device.upload("y", 2, &[1.0, 2.0, 3.0, 4.0]).unwrap();
            let a = device.upload("a", 2, &[1.0; 4]).unwrap();
            let op = Matmul::new(&device).unwrap();
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
        let op = Matmul::new(device).unwrap();
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
