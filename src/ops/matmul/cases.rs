//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Matmul, NARROW, Product, Transposed};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{BOUND, Case, each, framed};
use crate::ops::reference::{self, noise, wide};

/// Products of noise, for each of `sizes`.
pub(crate) fn all(device: &Device, sizes: &[ProductSize<'_>]) -> Result<Vec<Case>> {
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
    use crate::device::Place;
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
        check(|device| all(device, &sizes));
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
            let ((sum, set), outputs) = run(&device, |pass| {
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
            assert_eq!(outputs.f32(sum), [1.0, 2.0, 3.0, 4.0]);
            assert_eq!(outputs.f32(set), [0.0; 4]);
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
