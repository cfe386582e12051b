//! Sums of squared gradients: sums [1, n] from n elements of grad [1, N], which are zeroed: Fisher
//! weights, batch by batch (carve.md section 7).

use crate::device::cpu::Cpu;
use crate::device::{Device, Kernel, PartMut, Pass, Shader, Tensor, groups, shader};
use crate::error::Result;
use crate::num::to_u32;

const SHADER: Shader = shader!("square");

/// Lanes of a workgroup, and workgroups at most.
const WG: usize = 64;
const MOST_GROUPS: usize = 4096;

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    offset: u32,
    len: u32,
    stride: u32,
    scale: f32,
}

pub(crate) struct Square {
    accumulate: Kernel,
}

/// `grad`: [1, n], zeroed; `sums`: [1, n], `scale` times its squares are added.
pub(crate) struct Accumulate<'t> {
    pub(crate) grad: PartMut<'t>,
    pub(crate) scale: f32,
    pub(crate) sums: &'t mut Tensor,
}

impl Square {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            accumulate: device.kernel(&SHADER, "accumulate", &[])?,
        })
    }

    pub(crate) fn accumulate(&self, pass: &mut Pass<'_>, mut a: Accumulate<'_>) {
        let n = a.grad.place.columns;
        a.grad.place.expect("square", "grad", 1, n);
        a.sums.expect("square", "sums", 1, n);
        match pass {
            Pass::Gpu(gpu) => {
                let grid = groups(n, WG).min(to_u32(MOST_GROUPS));
                let dims = Dims {
                    offset: to_u32(a.grad.place.offset),
                    len: to_u32(n),
                    stride: grid * to_u32(WG),
                    scale: a.scale,
                };
                let tensors = [("grad", &*a.grad.tensor), ("sums", &*a.sums)];
                gpu.dispatch(&self.accumulate, [grid, 1, 1], &dims, &tensors);
            }
            Pass::Cpu(pass) => {
                let (grad, sums) = (a.grad.f32_mut(), a.sums.f32_mut());
                accumulate_cpu(pass.cpu, a.scale, grad, sums);
            }
        }
    }
}

fn accumulate_cpu(cpu: &Cpu, scale: f32, grad: &mut [f32], sums: &mut [f32]) {
    cpu.lockstep([grad, sums], [1; 2], 3, |_, [grad, sums]| {
        cpu.simd(
            #[inline(always)]
            || {
                for (g, sum) in grad.iter_mut().zip(sums) {
                    *sum += scale * *g * *g;
                    *g = 0.0;
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::device::Place;
    use crate::ops::testing::{assert_close, devices, noise, run};

    /// Sums over `batches` of gradients on every device; they stand at an offset.
    fn sums(batches: &[Vec<f32>], scale: f32) -> Vec<Vec<f32>> {
        const BEFORE: usize = 3;
        let n = batches[0].len();
        let each = |device: &Device| {
            let op = Square::new(device).unwrap();
            let mut sums = device.upload("sums", n, &vec![0.0; n]).unwrap();
            for batch in batches {
                let g = [vec![9.0; BEFORE], batch.clone(), vec![8.0]].concat();
                let mut grad = device.upload("grad", g.len(), &g).unwrap();
                let (read, outcome) = run(device, |pass| {
                    let a = Accumulate {
                        grad: grad.part_mut(Place::flat(BEFORE, 1, n)),
                        scale,
                        sums: &mut sums,
                    };
                    op.accumulate(pass, a);
                    pass.read(&grad)
                });
                let left = [vec![9.0; BEFORE], vec![0.0; n], vec![8.0]].concat();
                assert_eq!(outcome.f32(read), left, "zeroed, and nothing else is");
            }
            let (read, outcome) = run(device, |pass| pass.read(&sums));
            outcome.f32(read).to_vec()
        };
        devices().iter().map(each).collect()
    }

    #[test]
    fn sums_of_squares_match_hand_values_v17() {
        for sums in sums(&[vec![1.0, -2.0], vec![3.0, 0.0]], 0.5) {
            assert_close("V17 Fisher", &sums, &[5.0, 2.0], 1e-6);
        }
    }

    #[test]
    fn sums_match_f64_and_threads_do_not_show() {
        for n in [1, 65, 100_001] {
            let batches: Vec<Vec<f32>> = (0..3).map(|seed| noise(n, seed)).collect();
            let square = |i: usize| -> f64 {
                let squares = batches.iter().map(|batch| f64::from(batch[i]).powi(2));
                squares.sum::<f64>() / 3.0
            };
            let want: Vec<f64> = (0..n).map(square).collect();
            let found = sums(&batches, 1.0 / 3.0);
            for sums in &found {
                assert_close("square", sums, &want, 1e-6);
            }
            assert_eq!(found[0], found[1], "one thread and two");
        }
    }
}
