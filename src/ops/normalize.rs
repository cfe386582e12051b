//! Unit rows z [R, D] -> u [R, D], and their gradient.

use std::sync::Arc;

use crate::device::cpu::math;
use crate::device::{CpuPass, Device, Kernel, Part, PartMut, Pass, Place, Shader, Tensor, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{Case, each, framed};
use crate::ops::reference::{self, noise, wide};

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

/// Forward, and backward onto ones, for each of `sizes`: R, D and elements before the rows.
pub(crate) fn cases(device: &Device, sizes: &[(usize, usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(Normalize::new());
    each(sizes, |(rows, width, before)| {
        let (z, du) = (noise(rows * width, 10), noise(rows * width, 46));
        let label = format!("{rows}x{width}");
        let back = backward_case(device, &op, width, [&z, &du], before)?;
        Ok([
            forward_case(device, &op, width, &z, before)?.of(&label),
            back.of(&format!("backward {label}")),
        ])
    })
}

fn forward_case(
    device: &Device,
    op: &Arc<Normalize>,
    width: usize,
    values: &[f32],
    before: usize,
) -> Result<Case> {
    let (z, place) = framed(device, "z", width, values, (before, 0))?;
    let u = device.scratch("u", place.rows, width)?;
    let (op, n) = (Arc::clone(op), values.len() as f64);
    let run = move |pass: &mut Pass<'_>, [u]: &mut [Tensor; 1]| {
        let z = z.part(place);
        op.forward(pass, Forward { z, u });
    };
    let values = wide(values);
    let want = move || [reference::normalize(&values, width)];
    Ok(Case::new("normalize", [u], run, want).work(3.0 * n, 8.0 * n))
}

fn backward_case(
    device: &Device,
    op: &Arc<Normalize>,
    width: usize,
    [values, slopes]: [&[f32]; 2],
    before: usize,
) -> Result<Case> {
    let (z, place) = framed(device, "z", width, values, (before, 0))?;
    let mut units = values.to_vec();
    units.chunks_exact_mut(width).for_each(unit);
    let u = device.upload("u", width, &units)?;
    let du = device.upload("du", width, slopes)?;
    let ones = vec![1.0; values.len()];
    let (dz, d_place) = framed(device, "dz", width, &ones, (before / 2, 0))?;
    let (op, n) = (Arc::clone(op), values.len() as f64);
    let run = move |pass: &mut Pass<'_>, [dz]: &mut [Tensor; 1]| {
        let b = Backward {
            z: z.part(place),
            u: &u,
            du: &du,
            dz: dz.part_mut(d_place),
        };
        op.backward(pass, b);
    };
    let (values, slopes) = (wide(values), wide(slopes));
    let case = Case::new("normalize", [dz], run, move || {
        let dz = reference::normalize_backward(&values, width, &slopes);
        [dz.iter().map(|d| 1.0 + d).collect()]
    });
    Ok(case.at(0, d_place).work(8.0 * n, 20.0 * n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check, outputs};

    #[test]
    fn both_ways_match_hand_values_and_zeros_stay_v12() {
        let (z, du) = ([3.0, 4.0, 0.0, 0.0], [1.0, 2.0, 1e-12, 0.0]);
        for [u] in outputs(|device| forward_case(device, &Normalize::new().into(), 2, &z, 0)) {
            assert_close("V12", &u, &[0.6, 0.8, 0.0, 0.0], 1e-6);
        }
        for [dz] in
            outputs(|device| backward_case(device, &Normalize::new().into(), 2, [&z, &du], 0))
        {
            assert_close("V12 dx", &dz, &[0.936, 1.048, 2.0, 1.0], 1e-6);
        }
    }

    #[test]
    fn rows_and_gradients_match_f64() {
        let sizes = [(1, 1, 5), (7, 65, 5), (64, 384, 0), (13, 65, 4)];
        check(|device| cases(device, &sizes));
    }

    #[test]
    fn gradients_have_no_part_along_their_rows() {
        let (z, du) = (noise(13 * 65, 44), noise(13 * 65, 47));
        for [dz] in
            outputs(|device| backward_case(device, &Normalize::new().into(), 65, [&z, &du], 5))
        {
            for (z, dz) in z.chunks_exact(65).zip(dz.chunks_exact(65)) {
                let dz: Vec<f64> = wide(dz).iter().map(|d| d - 1.0).collect();
                let along = reference::dot(&wide(z), &dz);
                assert!(along.abs() < 2e-6 * 65.0, "{along:e}");
            }
        }
    }
}
