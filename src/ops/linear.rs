//! A linear map: y [T, out] = x [T, in] . W [out, in]^T + b [out], and the gradient of its input:
//! dx [T, in] = dy [T, out] . W. `W` and `b` are frozen.
//!
//! One shader; forward has two pipelines: tiles of 64 rows, and of 16 for batches of at most
//! [`NARROW`] rows, where the taller tile would mostly compute rows that are not there.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use std::sync::Arc;

use crate::device::cpu::RowsMut;
use crate::device::cpu::gemm::{self, Finish, Matrix, Packed};
use crate::device::{CpuPass, Device, Kernel, Pass, Shader, Tensor, groups, shader};
use crate::error::{Result, bail};
use crate::num::to_u32;
use crate::weights::View;

const SHADER: Shader = shader!("linear", "tile", "math");

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
    pub(super) wide_gelu: Kernel,
    pub(super) narrow_gelu: Kernel,
    backward: Kernel,
    backward_add: Kernel,
}

/// `W` and `b` where a device wants them.
pub(crate) struct Weight {
    values: WeightValues,
    /// A weight and its twins have the same.
    bias: Arc<Tensor>,
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
            bias: Arc::new(device.upload("bias", outputs.max(1), bias)?),
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

    /// A weight of the same shape and bias on a GPU, whose [`Weight::on_gpu_mut`] is to be written.
    pub(crate) fn twin(&self, device: &Device) -> Result<Self> {
        let values = device.scratch("merged", self.outputs, self.inputs)?;
        Ok(Self {
            values: WeightValues::Gpu(values),
            bias: Arc::clone(&self.bias),
            inputs: self.inputs,
            outputs: self.outputs,
        })
    }

    /// `W` [out, in] on a GPU.
    pub(crate) fn on_gpu(&self) -> &Tensor {
        match &self.values {
            WeightValues::Gpu(values) => values,
            WeightValues::Cpu { .. } => unreachable!("linear: weights live on another device"),
        }
    }

    /// As [`Weight::on_gpu`], to be written.
    pub(crate) fn on_gpu_mut(&mut self) -> &mut Tensor {
        match &mut self.values {
            WeightValues::Gpu(values) => values,
            WeightValues::Cpu { .. } => unreachable!("linear: weights live on another device"),
        }
    }
}

/// `x`: [T, in]; `y`: [T, out], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) x: &'t Tensor,
    pub(crate) w: &'t Weight,
    pub(crate) y: &'t mut Tensor,
}

/// What becomes of the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Bias,
    Gelu,
}

/// `dy`: [T, out]; `w`: made by [`Weight::for_learning`]; `base`: [T, in], is added; `dx`: [T, in],
/// overwritten.
pub(crate) struct Backward<'t> {
    pub(crate) dy: &'t Tensor,
    pub(crate) w: &'t Weight,
    pub(crate) base: Option<&'t Tensor>,
    pub(crate) dx: &'t mut Tensor,
}

impl Linear {
    pub(crate) fn new() -> Self {
        let kernel = |entry, down| Kernel::new(&SHADER, entry, &[("DOWN", down)]);
        let gelu = |down| Kernel::new(&SHADER, "forward", &[("DOWN", down), ("GELU", 1.0)]);
        Self {
            wide: kernel("forward", 16.0),
            narrow: kernel("forward", 4.0),
            wide_gelu: gelu(16.0),
            narrow_gelu: gelu(4.0),
            backward: kernel("backward", 16.0),
            backward_add: kernel("backward_add", 16.0),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        self.forward_at(pass, f, End::Bias, NARROW);
    }

    /// `y = gelu(x . W^T + b)`, with the bits of the two ops one after the other.
    pub(crate) fn forward_gelu(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        self.forward_at(pass, f, End::Gelu, NARROW);
    }

    fn forward_cpu(pass: &CpuPass<'_>, f: Forward<'_>, end: End) {
        let WeightValues::Cpu { forward, .. } = &f.w.values else {
            unreachable!("linear: weights live on another device");
        };
        let finish = match end {
            End::Bias => Finish::Bias,
            End::Gelu => Finish::Gelu,
        };
        let x = Matrix::of_rows(f.x.f32(), f.w.inputs);
        let y = RowsMut::whole(f.y.f32_mut(), f.w.outputs);
        gemm::multiply(pass.cpu, x, forward, finish(f.w.bias.f32()), y);
    }

    fn forward_at(&self, pass: &mut Pass<'_>, f: Forward<'_>, end: End, narrow: usize) {
        let rows = f.x.rows();
        f.x.expect("linear", "x", rows, f.w.inputs);
        f.y.expect("linear", "y", rows, f.w.outputs);
        match (pass, &f.w.values) {
            (Pass::Gpu(gpu), WeightValues::Gpu(w)) => {
                let (kernel, high) = match (rows <= narrow, end) {
                    (true, End::Bias) => (&self.narrow, 16),
                    (true, End::Gelu) => (&self.narrow_gelu, 16),
                    (false, End::Bias) => (&self.wide, 64),
                    (false, End::Gelu) => (&self.wide_gelu, 64),
                };
                gpu.dispatch(
                    kernel,
                    [groups(f.w.outputs, ACROSS), groups(rows, high), 1],
                    &Dims {
                        rows: to_u32(rows),
                        inputs: to_u32(f.w.inputs),
                        outputs: to_u32(f.w.outputs),
                    },
                    &[("x", f.x), ("w", w), ("bias", &*f.w.bias), ("y", f.y)],
                );
            }
            (Pass::Cpu(pass), _) => Self::forward_cpu(pass, f, end),
            _ => unreachable!("linear: weights live on another device"),
        }
    }

    /// `dx = dy . W`, or `dx = base + dy . W`
    pub(crate) fn backward(&self, pass: &mut Pass<'_>, b: Backward<'_>) {
        let rows = b.dy.rows();
        b.dy.expect("linear", "dy", rows, b.w.outputs);
        b.dx.expect("linear", "dx", rows, b.w.inputs);
        if let Some(base) = b.base {
            base.expect("linear", "base", rows, b.w.inputs);
        }
        match (pass, &b.w.values) {
            (Pass::Gpu(gpu), WeightValues::Gpu(w)) => {
                let mut tensors = vec![("dy", b.dy), ("w", w), ("dx", &*b.dx)];
                tensors.extend(b.base.map(|base| ("base", base)));
                let kernel = match b.base {
                    Some(_) => &self.backward_add,
                    None => &self.backward,
                };
                let grid = [groups(b.w.inputs, ACROSS), groups(rows, 64), 1];
                let dims = Dims {
                    rows: to_u32(rows),
                    inputs: to_u32(b.w.inputs),
                    outputs: to_u32(b.w.outputs),
                };
                gpu.dispatch(kernel, grid, &dims, &tensors);
            }
            (Pass::Cpu(pass), WeightValues::Cpu { backward, .. }) => {
                let Some(w) = backward else {
                    panic!("linear: backward through a weight that is not for learning");
                };
                let finish = match b.base {
                    Some(base) => {
                        b.dx.f32_mut().copy_from_slice(base.f32());
                        Finish::Add(1.0)
                    }
                    None => Finish::Set(1.0),
                };
                let dy = Matrix::of_rows(b.dy.f32(), b.w.outputs);
                let dx = RowsMut::whole(b.dx.f32_mut(), b.w.inputs);
                gemm::multiply(pass.cpu, dy, w, finish, dx);
            }
            _ => unreachable!("linear: weights live on another device"),
        }
    }
}
