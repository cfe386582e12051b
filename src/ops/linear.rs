//! A linear map: y [T, out] = x [T, in] . W [out, in]^T + b [out], and the gradient of its input:
//! dx [T, in] = dy [T, out] . W. `W` and `b` are frozen.
//!
//! One shader; forward has two pipelines: tiles of 64 rows, and of 16 for batches of at most
//! [`NARROW`] rows, where the taller tile would mostly compute rows that are not there.

use crate::device::cpu::RowsMut;
use crate::device::cpu::gemm::{self, Finish, Matrix, Packed};
use crate::device::{Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::{Result, bail};
use crate::num::to_u32;
use crate::weights::View;

const SHADER: Shader = shader!("linear", "tile");

/// Rows up to which the narrow tile is taken.
const NARROW: usize = 32;

/// Columns of a tile.
const ACROSS: usize = 64;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    rows: u32,
    inputs: u32,
    outputs: u32,
}

pub(crate) struct Linear {
    pub(super) wide: Kernel,
    pub(super) narrow: Kernel,
    backward: Kernel,
    backward_add: Kernel,
}

/// `W` and `b` where a device wants them.
pub(crate) struct Weight {
    values: Values,
    bias: Tensor,
    inputs: usize,
    outputs: usize,
}

enum Values {
    Cpu {
        forward: Packed,
        /// `W` the other way round, where the map is learned through.
        backward: Option<Packed>,
    },
    Gpu(Tensor),
}

impl Weight {
    /// `parts` [out_i, in] stacked along the outputs; `bias` [sum of out_i].
    pub(crate) fn new(device: &Device, parts: &[(&str, View<'_>)], bias: &[f32]) -> Result<Self> {
        let inputs = parts.first().map_or(0, |(_, view)| view.columns);
        let outputs: usize = parts.iter().map(|(_, view)| view.rows()).sum();
        assert_eq!(bias.len(), outputs, "linear: bias is not [{outputs}]");
        let values = match device {
            Device::Cpu(cpu) => Values::Cpu {
                forward: cpu.run(|| Packed::new(cpu, parts))?,
                backward: None,
            },
            Device::Gpu(_) => {
                let mut values = Vec::with_capacity(inputs * outputs);
                for (name, view) in parts {
                    values.extend(view.to_f32());
                    if !values.iter().all(|value| value.is_finite()) {
                        bail!(
                            Numeric,
                            "{name}: expected finite weights, found infinity or NaN"
                        );
                    }
                }
                Values::Gpu(device.upload("w", inputs, &values)?)
            }
        };
        Ok(Self {
            values,
            bias: device.upload("bias", outputs.max(1), bias)?,
            inputs,
            outputs,
        })
    }

    /// As [`Weight::new`], and ready for [`Linear::backward`]: on the CPU that takes the memory of
    /// the weights again.
    pub(crate) fn for_learning(
        device: &Device,
        parts: &[(&str, View<'_>)],
        bias: &[f32],
    ) -> Result<Self> {
        let mut weight = Self::new(device, parts, bias)?;
        if let (Device::Cpu(cpu), Values::Cpu { backward, .. }) = (device, &mut weight.values) {
            *backward = Some(cpu.run(|| Packed::transposed(cpu, parts)));
        }
        Ok(weight)
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }
}

/// `x`: [T, in]; `y`: [T, out], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) x: &'t Tensor,
    pub(crate) w: &'t Weight,
    pub(crate) y: &'t mut Tensor,
}

/// `dy`: [T, out]; `w`: made by [`Weight::for_learning`]; `dx`: [T, in], overwritten or added to.
pub(crate) struct Backward<'t> {
    pub(crate) dy: &'t Tensor,
    pub(crate) w: &'t Weight,
    pub(crate) dx: &'t mut Tensor,
}

impl Linear {
    pub(crate) fn new() -> Self {
        let kernel = |entry, down| Kernel::new(&SHADER, entry, &[("DOWN", down)]);
        Self {
            wide: kernel("forward", 16.0),
            narrow: kernel("forward", 4.0),
            backward: kernel("backward", 16.0),
            backward_add: kernel("backward_add", 16.0),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        self.forward_at(pass, f, NARROW);
    }

    fn forward_at(&self, pass: &mut Pass<'_>, f: Forward<'_>, narrow: usize) {
        let rows = f.x.rows();
        f.x.expect("linear", "x", rows, f.w.inputs);
        f.y.expect("linear", "y", rows, f.w.outputs);
        match (pass, &f.w.values) {
            (Pass::Gpu(gpu), Values::Gpu(w)) => {
                let (kernel, high) = if rows <= narrow {
                    (&self.narrow, 16)
                } else {
                    (&self.wide, 64)
                };
                gpu.dispatch(
                    kernel,
                    [groups(f.w.outputs, ACROSS), groups(rows, high), 1],
                    &Dims {
                        rows: to_u32(rows),
                        inputs: to_u32(f.w.inputs),
                        outputs: to_u32(f.w.outputs),
                    },
                    &[("x", f.x), ("w", w), ("bias", &f.w.bias), ("y", f.y)],
                );
            }
            (Pass::Cpu(pass), Values::Cpu { forward, .. }) => {
                let x = Matrix::of_rows(f.x.f32(), f.w.inputs);
                let y = RowsMut::whole(f.y.f32_mut(), f.w.outputs);
                gemm::multiply(pass.cpu, x, forward, Finish::Bias(f.w.bias.f32()), y);
            }
            _ => unreachable!("linear: weights live on another device"),
        }
    }

    /// `dx = dy . W`
    pub(crate) fn backward(&self, pass: &mut Pass<'_>, b: Backward<'_>) {
        self.backward_by(pass, b, &self.backward, Finish::Set(1.0));
    }

    /// `dx += dy . W`
    pub(crate) fn backward_add(&self, pass: &mut Pass<'_>, b: Backward<'_>) {
        self.backward_by(pass, b, &self.backward_add, Finish::Add(1.0));
    }

    fn backward_by(
        &self,
        pass: &mut Pass<'_>,
        b: Backward<'_>,
        kernel: &Kernel,
        finish: Finish<'_>,
    ) {
        let rows = b.dy.rows();
        b.dy.expect("linear", "dy", rows, b.w.outputs);
        b.dx.expect("linear", "dx", rows, b.w.inputs);
        match (pass, &b.w.values) {
            (Pass::Gpu(gpu), Values::Gpu(w)) => gpu.dispatch(
                kernel,
                [groups(b.w.inputs, ACROSS), groups(rows, 64), 1],
                &Dims {
                    rows: to_u32(rows),
                    inputs: to_u32(b.w.inputs),
                    outputs: to_u32(b.w.outputs),
                },
                &[("dy", b.dy), ("w", w), ("dx", b.dx)],
            ),
            (Pass::Cpu(pass), Values::Cpu { backward, .. }) => {
                let Some(w) = backward else {
                    panic!("linear: backward through a weight that is not for learning");
                };
                let dy = Matrix::of_rows(b.dy.f32(), b.w.outputs);
                let dx = RowsMut::whole(b.dx.f32_mut(), b.w.inputs);
                gemm::multiply(pass.cpu, dy, w, finish, dx);
            }
            _ => unreachable!("linear: weights live on another device"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::reference;
    use crate::ops::testing::{BOUND, assert_close, devices, noise, run, wide};

    /// `dx = dy . W`, then `dx += dy . W`.
    fn gradients(device: &Device, dy: &[f32], w: &[f32], inputs: usize) -> [Vec<f32>; 2] {
        let op = Linear::new();
        let outputs = w.len() / inputs;
        // Two parts, as query, key and value are.
        let (top, rest) = w.split_at(outputs / 2 * inputs);
        let parts = [
            ("top", View::of_f32(top, inputs)),
            ("rest", View::of_f32(rest, inputs)),
        ];
        let weight = Weight::for_learning(device, &parts, &vec![9.0; outputs]).unwrap();
        let dy = device.upload("dy", outputs, dy).unwrap();
        let mut dx = device.scratch("dx", dy.rows(), inputs).unwrap();
        let (reads, outcome) = run(device, |pass| {
            let (dy, w) = (&dy, &weight);
            let first = Backward { dy, w, dx: &mut dx };
            op.backward(pass, first);
            let once = pass.read(&dx);
            let second = Backward { dy, w, dx: &mut dx };
            op.backward_add(pass, second);
            [once, pass.read(&dx)]
        });
        reads.map(|read| outcome.f32(read).to_vec())
    }

    #[test]
    fn backward_matches_f64_and_adds() {
        for (rows, inputs, outputs) in [(1, 1, 1), (7, 65, 63), (33, 130, 17), (65, 64, 257)] {
            let (dy, w) = (noise(rows * outputs, 4), noise(outputs * inputs, 5));
            let want = reference::product(&wide(&dy), &wide(&w), inputs);
            let twice: Vec<f64> = want.iter().map(|v| 2.0 * v).collect();
            for device in devices() {
                let [once, sum] = gradients(&device, &dy, &w, inputs);
                assert_close("linear backward", &once, &want, BOUND);
                assert_close("linear backward_add", &sum, &twice, 2.0 * BOUND);
            }
        }
    }

    #[test]
    fn backward_is_the_derivative_of_the_forward_reference() {
        let (rows, inputs, outputs) = (3, 5, 7);
        let (x, w, dy) = (
            wide(&noise(rows * inputs, 1)),
            noise(outputs * inputs, 2),
            noise(rows * outputs, 3),
        );
        let loss = |x: &[f64]| {
            let y = reference::linear(x, &wide(&w), &vec![0.5; outputs]);
            let terms = y.iter().zip(&dy).map(|(y, dy)| y * f64::from(*dy));
            terms.sum::<f64>()
        };
        let want: Vec<f64> = (0..x.len())
            .map(|i| {
                let at = |step: f64| {
                    let mut x = x.clone();
                    x[i] += step;
                    loss(&x)
                };
                (at(1e-4) - at(-1e-4)) / 2e-4
            })
            .collect();
        for device in devices() {
            let [dx, _] = gradients(&device, &dy, &w, inputs);
            assert_close("linear backward", &dx, &want, 1e-4);
        }
    }

    #[test]
    fn a_gradient_is_the_same_alone_and_in_company_and_with_any_threads() {
        let (rows, inputs, outputs) = (230, 48, 100);
        let (dy, w) = (noise(rows * outputs, 6), noise(outputs * inputs, 7));
        for device in devices() {
            let [all, _] = gradients(&device, &dy, &w, inputs);
            let [first, _] = gradients(&device, &dy[..outputs], &w, inputs);
            let [some, _] = gradients(&device, &dy[64 * outputs..130 * outputs], &w, inputs);
            assert_eq!(first, all[..inputs]);
            assert_eq!(some, all[64 * inputs..130 * inputs]);
        }
        let with = |threads| {
            let cpu = crate::device::cpu::Cpu::open(Some(threads)).unwrap();
            gradients(&Device::Cpu(cpu.into()), &dy, &w, inputs)
        };
        assert_eq!(with(1), with(2));
        assert_eq!(with(1), with(3));
    }

    #[test]
    #[should_panic(expected = "not for learning")]
    fn a_weight_that_is_not_for_learning_is_refused() {
        let device = &devices()[0];
        let op = Linear::new();
        let weight = Weight::new(device, &[("w", View::of_f32(&[1.0], 1))], &[0.0]).unwrap();
        let dy = device.upload("dy", 1, &[1.0]).unwrap();
        let mut dx = device.scratch("dx", 1, 1).unwrap();
        run(device, |pass| {
            let (w, dx) = (&weight, &mut dx);
            op.backward(pass, Backward { dy: &dy, w, dx });
        });
    }

    fn output(
        device: &Device,
        x: &[f32],
        w: &[f32],
        bias: &[f32],
        inputs: usize,
        narrow: usize,
    ) -> Vec<f32> {
        let op = Linear::new();
        let weight = Weight::new(device, &[("w", View::of_f32(w, inputs))], bias).unwrap();
        let x = device.upload("x", inputs, x).unwrap();
        let mut y = device.scratch("y", x.rows(), bias.len()).unwrap();
        let (read, outcome) = run(device, |pass| {
            op.forward_at(
                pass,
                Forward {
                    x: &x,
                    w: &weight,
                    y: &mut y,
                },
                narrow,
            );
            pass.read(&y)
        });
        outcome.f32(read).to_vec()
    }

    #[test]
    fn both_tiles_match_f64_and_each_other() {
        for (rows, inputs, outputs) in [(1, 1, 1), (7, 63, 65), (33, 17, 130), (65, 128, 64)] {
            let (x, w, b) = (
                noise(rows * inputs, 1),
                noise(outputs * inputs, 2),
                noise(outputs, 3),
            );
            let want = reference::linear(&wide(&x), &wide(&w), &wide(&b));
            for device in devices() {
                let narrow = output(&device, &x, &w, &b, inputs, usize::MAX);
                let wide = output(&device, &x, &w, &b, inputs, 0);
                assert_close("linear", &narrow, &want, BOUND);
                assert_eq!(narrow, wide, "the tile shows in the bits");
            }
        }
    }
}
