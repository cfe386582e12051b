//! A linear map: y [T, out] = x [T, in] . W [out, in]^T + b [out], and the gradient of its input:
//! dx [T, in] = dy [T, out] . W. `W` and `b` are frozen.
//!
//! On a GPU `linear/gpu.rs` chooses among three shaders: `linear_skinny` for few rows, `linear_tiled`
//! for many, `linear_matrix` for many where matrix units are the faster, and `linear` for widths that are no multiples of four.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;
mod gpu;

use std::sync::Arc;

use crate::device::cpu::RowsMut;
use crate::device::cpu::gemm::{self, Finish, Matrix, Packed};
use crate::device::gpu::GpuPass;
use crate::device::{
    CpuPass, Device, DeviceVariant, Kernel, Part, PartMut, Pass, Shader, Tensor, shader,
};
use crate::error::{Result, bail};
use crate::ops::linear_matrix::Halves;
use crate::ops::linear_tiled::LinearTiled;
use crate::weights::View;
use gpu::{GpuLinear, on_gpu};

pub(crate) use gpu::{GpuEnd, GpuProduct, Kind, Map, NormOf};

const SHADER: Shader = shader!("linear", "tile", "math");

pub(crate) struct Linear {
    gpu: GpuLinear,
}

/// `W` and `b` where a device wants them.
pub(crate) struct Weight {
    values: WeightValues,
    /// A weight and its twins have the same.
    bias: Arc<Tensor>,
    /// Of a weight that matrix units may multiply by.
    halves: Option<Halves>,
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
        Self::made(device, parts, bias, true)
    }

    /// `halved`: with halves where the device was opened for matrix units.
    fn made(
        device: &Device,
        parts: &[(&str, View<'_>)],
        bias: &[f32],
        halved: bool,
    ) -> Result<Self> {
        let inputs = parts.first().map_or(0, |(_, view)| view.columns);
        let outputs: usize = parts.iter().map(|(_, view)| view.rows()).sum();
        assert_eq!(bias.len(), outputs, "linear: bias is not [{outputs}]");
        let mut halves = None;
        let values = match device {
            Device::Cpu(cpu) => WeightValues::Cpu {
                forward: cpu.run(|| Packed::new(cpu, parts))?,
                backward: None,
            },
            Device::Gpu(gpu) => {
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
                if halved && gpu.matrices().is_some() && LinearTiled::takes(inputs, outputs) {
                    halves = Halves::new(device, &values, inputs)?;
                }
                WeightValues::Gpu(device.upload("w", inputs, &values)?)
            }
        };
        Ok(Self {
            values,
            bias: Arc::new(device.upload("bias", outputs.max(1), bias)?),
            halves,
            inputs,
            outputs,
        })
    }

    /// As [`Weight::new`] without matrix units, and ready for [`Linear::backward`]: on the CPU that
    /// takes the memory of the weights again.
    pub(crate) fn for_learning(
        device: &Device,
        parts: &[(&str, View<'_>)],
        bias: &[f32],
    ) -> Result<Self> {
        let mut weight = Self::made(device, parts, bias, false)?;
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
            halves: None,
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

/// As [`Forward`], of a layer norm of x, on a GPU: `x` [T, in] before its norm; `scale`: [T, 2],
/// overwritten by each row's mean and 1 / sqrt(var + eps).
pub(crate) struct Normed<'t> {
    pub(crate) x: Part<'t>,
    pub(crate) norm: NormOf<'t>,
    pub(crate) scale: &'t mut Tensor,
    pub(crate) w: &'t Weight,
    pub(crate) y: &'t mut Tensor,
}

/// As [`Forward`], with a layer norm of `residual` [T, out] added, on a GPU; `scale`: [T, 2], as the
/// [`Normed`] product of it left it.
pub(crate) struct Joined<'t> {
    pub(crate) x: &'t Tensor,
    pub(crate) w: &'t Weight,
    pub(crate) residual: Part<'t>,
    pub(crate) norm: NormOf<'t>,
    pub(crate) scale: &'t Tensor,
    pub(crate) y: PartMut<'t>,
}

impl Linear {
    pub(crate) fn new(device: &Device, variant: DeviceVariant) -> Self {
        Self {
            gpu: GpuLinear::new(device, variant),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        self.forward_to(pass, f, End::Bias);
    }

    /// `y = gelu(x . W^T + b)`, with the bits of the two ops one after the other on the CPU.
    pub(crate) fn forward_gelu(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        self.forward_to(pass, f, End::Gelu);
    }

    fn forward_to(&self, pass: &mut Pass<'_>, f: Forward<'_>, end: End) {
        let rows = f.x.rows();
        f.x.expect("linear", "x", rows, f.w.inputs);
        f.y.expect("linear", "y", rows, f.w.outputs);
        match pass {
            Pass::Gpu(pass) => {
                let gelu = end == End::Gelu;
                let product = GpuProduct {
                    x: f.x.part(f.x.place()),
                    w: on_gpu(f.w),
                    bias: &f.w.bias,
                    halves: f.w.halves.as_ref(),
                    y: f.y.part(f.y.place()),
                    end: GpuEnd::Bare { gelu },
                };
                self.gpu.forward(pass, &product);
            }
            Pass::Cpu(pass) => Self::forward_cpu(pass, f, end),
        }
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

    /// The kernels of products of a few rows, each of a kind, from in to out.
    pub(crate) fn for_few_rows(&self, maps: &[Map]) -> Vec<Kernel> {
        self.gpu.for_few_rows(maps)
    }

    /// Whether a GPU takes [`Linear::normed`] and [`Linear::joined`] of these (in, out).
    pub(crate) fn defers(&self, widths: &[(usize, usize)]) -> bool {
        self.gpu.defers(widths)
    }

    /// `y = layer_norm(x) . W^T + b`, or gelu of it.
    pub(crate) fn normed(&self, pass: &mut GpuPass<'_>, f: Normed<'_>, gelu: bool) {
        let rows = f.x.place.rows;
        f.x.place.expect("linear", "x", rows, f.w.inputs);
        f.y.expect("linear", "y", rows, f.w.outputs);
        f.scale.expect("linear", "scale", rows, 2);
        f.norm.gamma.expect("linear", "gamma", 1, f.w.inputs);
        f.norm.beta.expect("linear", "beta", 1, f.w.inputs);
        let product = GpuProduct {
            x: f.x,
            w: on_gpu(f.w),
            bias: &f.w.bias,
            halves: f.w.halves.as_ref(),
            y: f.y.part(f.y.place()),
            end: GpuEnd::Normed {
                gelu,
                norm: f.norm,
                scale: f.scale,
            },
        };
        self.gpu.forward(pass, &product);
    }

    /// `y = x . W^T + b + layer_norm(residual)`
    pub(crate) fn joined(&self, pass: &mut GpuPass<'_>, f: Joined<'_>) {
        let (rows, place) = (f.x.rows(), f.y.place);
        f.x.expect("linear", "x", rows, f.w.inputs);
        place.expect("linear", "y", rows, f.w.outputs);
        f.residual
            .place
            .expect("linear", "residual", rows, f.w.outputs);
        f.scale.expect("linear", "scale", rows, 2);
        f.norm.gamma.expect("linear", "gamma", 1, f.w.outputs);
        f.norm.beta.expect("linear", "beta", 1, f.w.outputs);
        let product = GpuProduct {
            x: f.x.part(f.x.place()),
            w: on_gpu(f.w),
            bias: &f.w.bias,
            halves: f.w.halves.as_ref(),
            y: f.y.tensor.part(place),
            end: GpuEnd::Joined {
                residual: f.residual,
                norm: f.norm,
                scale: f.scale,
            },
        };
        self.gpu.forward(pass, &product);
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
                self.gpu.backward(gpu, (b.dy, w, b.dx), b.base);
            }
            (Pass::Cpu(pass), WeightValues::Cpu { backward, .. }) => {
                let Some(w) = backward else {
                    panic!("linear: backward through a weight that is not for learning");
                };
                let finish = match b.base {
                    Some(base) => {
                        b.dx.f32_mut().copy_from_slice(base.f32());
                        Finish::Add
                    }
                    None => Finish::Set,
                };
                let dy = Matrix::of_rows(b.dy.f32(), b.w.outputs);
                let dx = RowsMut::whole(b.dx.f32_mut(), b.w.inputs);
                gemm::multiply(pass.cpu, dy, w, finish(1.0), dx);
            }
            _ => unreachable!("linear: weights live on another device"),
        }
    }
}
