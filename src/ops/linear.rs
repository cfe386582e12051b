//! A linear map: y [T, out] = x [T, in] . W [out, in]^T + b [out].
//!
//! One shader, two pipelines: tiles of 64 rows, and of 16 for batches of at most [`NARROW`] rows,
//! where the taller tile would mostly compute rows that are not there.

use crate::device::cpu::gemm::{self, Packed};
use crate::device::{Device, Kernel, Pass, Shader, Tensor, groups, shader, small};
use crate::error::{Result, bail};
use crate::weights::View;

const SHADER: Shader = shader!("linear");

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
    wide: Kernel,
    narrow: Kernel,
}

/// `W` and `b` where a device wants them.
pub(crate) struct Weight {
    values: Values,
    bias: Tensor,
    inputs: usize,
    outputs: usize,
}

enum Values {
    Cpu(Packed),
    Gpu(Tensor),
}

impl Weight {
    /// `parts` [out_i, in] stacked along the outputs; `bias` [sum of out_i].
    pub(crate) fn new(device: &Device, parts: &[(&str, View<'_>)], bias: &[f32]) -> Result<Self> {
        let inputs = parts.first().map_or(0, |(_, view)| view.columns);
        let outputs: usize = parts.iter().map(|(_, view)| view.rows()).sum();
        assert_eq!(bias.len(), outputs, "linear: bias is not [{outputs}]");
        let values = match device {
            Device::Cpu(cpu) => Values::Cpu(cpu.run(|| Packed::new(cpu, parts))?),
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

impl Linear {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            wide: device.kernel(&SHADER, "forward", &[("DOWN", 16.0)])?,
            narrow: device.kernel(&SHADER, "forward", &[("DOWN", 4.0)])?,
        })
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
                        rows: small(rows),
                        inputs: small(f.w.inputs),
                        outputs: small(f.w.outputs),
                    },
                    &[("x", f.x), ("w", w), ("bias", &f.w.bias), ("y", f.y)],
                );
            }
            (Pass::Cpu(pass), Values::Cpu(w)) => {
                gemm::multiply(pass.cpu, f.x.f32(), w, f.w.bias.f32(), f.y.f32_mut());
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

    fn output(
        device: &Device,
        x: &[f32],
        w: &[f32],
        bias: &[f32],
        inputs: usize,
        narrow: usize,
    ) -> Vec<f32> {
        let op = Linear::new(device).unwrap();
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
