//! Distillation loss w T^2 KL(teacher || student) of scores [B, M], and its gradient with respect
//! to the student's scores (docs/carve.md sections 6.5 and 12.5).

#[cfg(any(test, feature = "cli"))]
pub(crate) mod cases;

use crate::device::cpu::{Cpu, math};
use crate::device::{Kernel, Pass, Shader, Tensor, shader};
use crate::num::to_u32;

const SHADER: Shader = shader!("distill", "reduce");

#[derive(Clone, Copy, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    models: u32,
    temperature: f32,
}

pub(crate) struct Distill {
    slopes: Kernel,
}

/// `teacher`: [B, M]; `weights`: [B, 1], 0 leaves an example out; `scores`: [B, M], overwritten
/// with the derivatives by them; `losses`: [B, 1], overwritten with w T^2 KL, so that their sum is
/// the batch's term.
pub(crate) struct Slopes<'t> {
    pub(crate) teacher: &'t Tensor,
    pub(crate) weights: &'t Tensor,
    pub(crate) temperature: f32,
    pub(crate) scores: &'t mut Tensor,
    pub(crate) losses: &'t mut Tensor,
}

impl Distill {
    pub(crate) fn new() -> Self {
        Self {
            // One workgroup walks all models: as many lanes as every adapter has.
            slopes: Kernel::new(&SHADER, "slopes", &[("WG", 256.0)]),
        }
    }

    pub(crate) fn slopes(&self, pass: &mut Pass<'_>, f: Slopes<'_>) {
        let (examples, models) = (f.scores.rows(), f.scores.columns());
        f.teacher.expect("distill", "teacher", examples, models);
        f.weights.expect("distill", "weights", examples, 1);
        f.losses.expect("distill", "losses", examples, 1);
        match pass {
            Pass::Gpu(gpu) => {
                let dims = Dims {
                    models: to_u32(models),
                    temperature: f.temperature,
                };
                let tensors = [
                    ("teacher", f.teacher),
                    ("weights", f.weights),
                    ("scores", &*f.scores),
                    ("losses", &*f.losses),
                ];
                gpu.dispatch(&self.slopes, [to_u32(examples), 1, 1], &dims, &tensors);
            }
            Pass::Cpu(pass) => slopes_cpu(pass.cpu, models, f),
        }
    }
}

fn slopes_cpu(cpu: &Cpu, models: usize, f: Slopes<'_>) {
    let (teacher, weights, temperature) = (f.teacher.f32(), f.weights.f32(), f.temperature);
    let outputs = [f.scores.f32_mut(), f.losses.f32_mut()];
    cpu.lockstep(
        outputs,
        [models, 1],
        32 * models,
        |first, [scores, losses]| {
            let mut rooms = [vec![0.0; models], vec![0.0; models]];
            for (i, (scores, loss)) in scores.chunks_exact_mut(models).zip(losses).enumerate() {
                let row = (first + i) * models;
                let teacher = &teacher[row..row + models];
                let slope = weights[first + i] * temperature;
                *loss = cpu.simd(
                    #[inline(always)]
                    || {
                        slope
                            * temperature
                            * row_of(teacher, scores, temperature, slope, &mut rooms)
                    },
                );
            }
        },
    );
}

/// Turns one example's scores into slopes; the divergence.
#[inline(always)]
fn row_of(
    teacher: &[f32],
    scores: &mut [f32],
    temperature: f32,
    slope: f32,
    [wanted, found]: &mut [Vec<f32>; 2],
) -> f32 {
    let (want, have) = (
        soften(teacher, temperature, wanted),
        soften(scores, temperature, found),
    );
    let mut apart = [0.0f32; math::LANES];
    let exponents = teacher.iter().zip(scores).zip(wanted.iter().zip(&*found));
    for (n, ((teacher, score), (wanted, found))) in exponents.enumerate() {
        let p = wanted / want.total;
        let log_p = (teacher - want.peak) / temperature - want.log;
        let log_q = (*score - have.peak) / temperature - have.log;
        apart[n % math::LANES] += p * (log_p - log_q);
        *score = slope * (found / have.total - p);
    }
    apart.iter().sum()
}

/// A softmax before its division.
struct Softened {
    peak: f32,
    total: f32,
    log: f32,
}

#[inline(always)]
fn soften(scores: &[f32], temperature: f32, exponentials: &mut [f32]) -> Softened {
    let peak = math::max(scores);
    for (to, score) in exponentials.iter_mut().zip(scores) {
        *to = math::exp((score - peak) / temperature);
    }
    let total = math::sum(exponentials, |e| e);
    Softened {
        peak,
        total,
        log: total.ln(),
    }
}
