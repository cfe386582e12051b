//! Unit rows z [R, D] -> u [R, D], and their gradient.

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::cpu::math;
use crate::device::{CpuPass, Kernel, Part, PartMut, Pass, Place, Shader, Tensor, shader};
use crate::num::to_u32;

const SHADER: Shader = shader!("normalize", "reduce");

/// A shorter row counts as this long.
const LEAST: f32 = 1e-12;

/// Workgroups of a kernel that walks rows; every adapter allows as many.
const MOST_GROUPS: usize = 32_768;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    rows: u32,
    width: u32,
    stride: u32,
    z_at: u32,
    grad_at: u32,
}

pub(crate) struct Normalize {
    pub(super) forward: Kernel,
    backward: Kernel,
}

/// `z`: [R, D], consecutive rows; `u`: [R, D], overwritten.
pub(crate) struct Forward<'t> {
    pub(crate) z: Part<'t>,
    pub(crate) u: &'t mut Tensor,
}

/// `z`, `u`: the forward's; `du`: [R, D]; `dz`: [R, D], consecutive rows, the gradient is added.
pub(crate) struct Backward<'t> {
    pub(crate) z: Part<'t>,
    pub(crate) u: &'t Tensor,
    pub(crate) du: &'t Tensor,
    pub(crate) dz: PartMut<'t>,
}

impl Dims {
    fn of(z: Place, grad_at: usize) -> Self {
        Self {
            rows: to_u32(z.rows),
            width: to_u32(z.columns),
            stride: to_u32(z.rows.min(MOST_GROUPS)),
            z_at: to_u32(z.offset),
            grad_at: to_u32(grad_at),
        }
    }
}

impl Normalize {
    pub(crate) fn new() -> Self {
        Self {
            forward: Kernel::new(&SHADER, "forward", &[]),
            backward: Kernel::new(&SHADER, "backward", &[]),
        }
    }

    pub(crate) fn forward(&self, pass: &mut Pass<'_>, f: Forward<'_>) {
        let (rows, width) = consecutive("z", f.z.place);
        f.u.expect("normalize", "u", rows, width);
        match pass {
            Pass::Gpu(gpu) => {
                let dims = Dims::of(f.z.place, 0);
                let tensors = [("z", f.z.tensor), ("u", &*f.u)];
                gpu.dispatch(&self.forward, [dims.stride, 1, 1], &dims, &tensors);
            }
            Pass::Cpu(cpu) => forward_cpu(cpu, width, f.z.f32(), f.u.f32_mut()),
        }
    }

    pub(crate) fn backward(&self, pass: &mut Pass<'_>, mut b: Backward<'_>) {
        let (rows, width) = consecutive("z", b.z.place);
        consecutive("dz", b.dz.place);
        b.u.expect("normalize", "u", rows, width);
        b.du.expect("normalize", "du", rows, width);
        b.dz.place.expect("normalize", "dz", rows, width);
        match pass {
            Pass::Gpu(gpu) => {
                let dims = Dims::of(b.z.place, b.dz.place.offset);
                let (z, u) = (("z", b.z.tensor), ("u", b.u));
                let tensors = [z, ("du", b.du), u, ("grad", &*b.dz.tensor)];
                gpu.dispatch(&self.backward, [dims.stride, 1, 1], &dims, &tensors);
            }
            Pass::Cpu(cpu) => {
                let inputs = [b.z.f32(), b.u.f32(), b.du.f32()];
                backward_cpu(cpu, width, inputs, b.dz.f32_mut());
            }
        }
    }
}

/// Rows and columns of a matrix whose rows are consecutive.
fn consecutive(name: &str, place: Place) -> (usize, usize) {
    assert_eq!(
        place.stride, place.columns,
        "normalize: {name}: rows are not consecutive"
    );
    (place.rows, place.columns)
}

fn forward_cpu(pass: &CpuPass<'_>, width: usize, z: &[f32], u: &mut [f32]) {
    let cpu = pass.cpu;
    cpu.rows(u, width, width * 2, |first, rows| {
        cpu.simd(
            #[inline(always)]
            || {
                for (i, u) in rows.chunks_exact_mut(width).enumerate() {
                    u.copy_from_slice(&z[(first + i) * width..][..width]);
                    unit(u);
                }
            },
        );
    });
}

fn backward_cpu(pass: &CpuPass<'_>, width: usize, [z, u, du]: [&[f32]; 3], dz: &mut [f32]) {
    let cpu = pass.cpu;
    cpu.rows(dz, width, 4 * width, |first, rows| {
        cpu.simd(
            #[inline(always)]
            || {
                for (i, dz) in rows.chunks_exact_mut(width).enumerate() {
                    let row = (first + i) * width..(first + i + 1) * width;
                    let (z, u, du) = (&z[row.clone()], &u[row.clone()], &du[row]);
                    let length = length_of(z);
                    let along = if length > LEAST {
                        math::dot(du, u)
                    } else {
                        0.0
                    };
                    for ((dz, du), u) in dz.iter_mut().zip(du).zip(u) {
                        *dz += (du - along * u) / length;
                    }
                }
            },
        );
    });
}

/// The length of `row`, at least 1e-12.
#[inline(always)]
pub(crate) fn length_of(row: &[f32]) -> f32 {
    math::sum(row, |v| v * v).sqrt().max(LEAST)
}

/// Makes `row` a unit vector.
#[inline(always)]
pub(crate) fn unit(row: &mut [f32]) {
    let length = length_of(row);
    for value in row {
        *value /= length;
    }
}
