//! A linear map: y [T, out] = x [T, in] . W [out, in]^T + b [out], and the gradient of its input:
//! dx [T, in] = dy [T, out] . W. `W` and `b` are frozen.
//!
//! One shader; forward has two pipelines: tiles of 64 rows, and of 16 for batches of at most
//! [`NARROW`] rows, where the taller tile would mostly compute rows that are not there.

use std::sync::Arc;

use crate::device::cpu::RowsMut;
use crate::device::cpu::gemm::{self, Finish, Matrix, Packed};
use crate::device::{Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::{Result, bail};
use crate::num::to_u32;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};
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
    values: WeightValues,
    bias: Tensor,
    inputs: usize,
    outputs: usize,
}

enum WeightValues {
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
            Device::Cpu(cpu) => WeightValues::Cpu {
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
                WeightValues::Gpu(device.upload("w", inputs, &values)?)
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
        if let (Device::Cpu(cpu), WeightValues::Cpu { backward, .. }) = (device, &mut weight.values)
        {
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
            (Pass::Gpu(gpu), WeightValues::Gpu(w)) => {
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
            (Pass::Cpu(pass), WeightValues::Cpu { forward, .. }) => {
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
            (Pass::Gpu(gpu), WeightValues::Gpu(w)) => gpu.dispatch(
                kernel,
                [groups(b.w.inputs, ACROSS), groups(rows, 64), 1],
                &Dims {
                    rows: to_u32(rows),
                    inputs: to_u32(b.w.inputs),
                    outputs: to_u32(b.w.outputs),
                },
                &[("dy", b.dy), ("w", w), ("dx", b.dx)],
            ),
            (Pass::Cpu(pass), WeightValues::Cpu { backward, .. }) => {
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

/// Forward and backward with a weight of two parts, for each of `sizes`: a label, T, in and out.
pub(crate) fn cases(device: &Device, sizes: &[(&str, usize, usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(Linear::new());
    each(sizes, |(label, rows, inputs, outputs)| {
        let (x, w, b) = (
            noise(rows * inputs, 1),
            noise(outputs * inputs, 2),
            noise(outputs, 3),
        );
        let dy = noise(rows * outputs, 4);
        let forward = forward_case(device, &op, [&x, &w, &b], NARROW)?;
        let backward = |add| backward_case(device, &op, [&dy, &w], inputs, add);
        let at = format!("{label} {rows}x{inputs} . {outputs}x{inputs}");
        let back = format!("{label} {rows}x{outputs} . {outputs}x{inputs}");
        Ok([
            forward.of(&at),
            backward(false)?.of(&format!("backward {back}")),
            backward(true)?.of(&format!("backward, added {back}")),
        ])
    })
}

/// `w` [out, in] in two parts, as query, key and value are three.
fn two_parts(w: &[f32], inputs: usize) -> [(&'static str, View<'_>); 2] {
    let (top, rest) = w.split_at(w.len() / inputs / 2 * inputs);
    [("top", top), ("rest", rest)].map(|(name, part)| (name, View::of_f32(part, inputs)))
}

/// `inputs`: x [T, in], W [out, in], b [out]; at most `narrow` rows take the narrow tile.
fn forward_case(
    device: &Device,
    op: &Arc<Linear>,
    [x, w, b]: [&[f32]; 3],
    narrow: usize,
) -> Result<Case> {
    let (outputs, columns) = (b.len(), w.len() / b.len());
    let weight = Weight::new(device, &two_parts(w, columns), b)?;
    let input = device.upload("x", columns, x)?;
    let y = device.scratch("y", input.rows(), outputs)?;
    let flops = 2.0 * (x.len() * outputs) as f64;
    let bytes = 4.0 * (y.len() + w.len() + x.len()) as f64;
    let op = Arc::clone(op);
    let run = move |pass: &mut Pass<'_>, [y]: &mut [Tensor; 1]| {
        let (x, w) = (&input, &weight);
        op.forward_at(pass, Forward { x, w, y }, narrow);
    };
    let [x, w, b] = [x, w, b].map(<[f32]>::to_vec);
    let want = move || [reference::linear(&wide(&x), &wide(&w), &wide(&b))];
    Ok(Case::new("linear", [y], run, want).work(flops, bytes))
}

/// `inputs`: dy [T, out], W [out, in]; onto ones with `add`.
fn backward_case(
    device: &Device,
    op: &Arc<Linear>,
    [dy, w]: [&[f32]; 2],
    inputs: usize,
    add: bool,
) -> Result<Case> {
    let outputs = w.len() / inputs;
    let weight = Weight::for_learning(device, &two_parts(w, inputs), &vec![9.0; outputs])?;
    let slopes = device.upload("dy", outputs, dy)?;
    let dx = match add {
        true => device.upload("dx", inputs, &vec![1.0; slopes.rows() * inputs])?,
        false => device.scratch("dx", slopes.rows(), inputs)?,
    };
    let flops = 2.0 * (dy.len() * inputs) as f64;
    let bytes = 4.0 * (dy.len() + w.len() + dx.len()) as f64;
    let op = Arc::clone(op);
    let run = move |pass: &mut Pass<'_>, [dx]: &mut [Tensor; 1]| {
        let (dy, w) = (&slopes, &weight);
        match add {
            true => op.backward_add(pass, Backward { dy, w, dx }),
            false => op.backward(pass, Backward { dy, w, dx }),
        }
    };
    let [dy, w] = [dy, w].map(<[f32]>::to_vec);
    let case = Case::new("linear", [dx], run, move || {
        let mut dx = reference::product(&wide(&dy), &wide(&w), inputs);
        if add {
            dx.iter_mut().for_each(|dx| *dx += 1.0);
        }
        [dx]
    });
    Ok(case.work(flops, bytes))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::testing::{check, devices, outputs, run};

    #[test]
    fn forward_and_backward_match_f64() {
        let sizes = [
            ("", 1, 1, 1),
            ("", 7, 65, 63),
            ("", 33, 130, 17),
            ("", 65, 64, 257),
            ("", 65, 128, 64),
        ];
        check(|device| cases(device, &sizes));
    }

    #[test]
    fn both_tiles_match_f64_and_each_other() {
        for (rows, inputs, outs) in [(1, 1, 1), (7, 63, 65), (33, 17, 130), (65, 128, 64)] {
            let (x, w, b) = (
                noise(rows * inputs, 1),
                noise(outs * inputs, 2),
                noise(outs, 3),
            );
            let at = |narrow| {
                let make = |device: &Device| {
                    forward_case(device, &Linear::new().into(), [&x, &w, &b], narrow)
                };
                check(|device| Ok(vec![make(device)?]));
                outputs::<1>(make)
            };
            assert_eq!(at(usize::MAX), at(0), "the tile shows in the bits");
        }
    }

    #[test]
    fn a_gradient_is_the_same_alone_and_in_company_and_with_any_threads() {
        let (rows, inputs, outs) = (230, 48, 100);
        let (dy, w) = (noise(rows * outs, 6), noise(outs * inputs, 7));
        let of = |device: &Device, dy: &[f32]| {
            let op = Linear::new().into();
            let mut case = backward_case(device, &op, [dy, &w], inputs, false).unwrap();
            case.check(device).unwrap().remove(0).got
        };
        for device in devices() {
            let all = of(&device, &dy);
            assert_eq!(of(&device, &dy[..outs]), all[..inputs]);
            let some = of(&device, &dy[64 * outs..130 * outs]);
            assert_eq!(some, all[64 * inputs..130 * inputs]);
        }
        let with = |threads| {
            let cpu = crate::device::cpu::Cpu::open(Some(threads)).unwrap();
            of(&Device::Cpu(cpu.into()), &dy)
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
}
