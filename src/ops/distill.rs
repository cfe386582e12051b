//! What a student's scores cost beside a teacher's: scores [B, M] become the derivatives of
//! w T^2 KL(teacher, student) by them, both softened by T; with unit rows, and the way back through
//! them, for what comes before the scores (carve.md sections 6.5 and 12.5).

use crate::device::cpu::{Cpu, math};
use crate::device::{Device, Kernel, Part, PartMut, Pass, Shader, Tensor, shader};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::normalize;

const SHADER: Shader = shader!("distill", "reduce");

/// A shorter row counts as this long.
const LEAST: f32 = 1e-12;

/// Workgroups of a kernel that walks rows.
const MOST_GROUPS: usize = 32_768;

#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
#[repr(C)]
struct Dims {
    rows: u32,
    columns: u32,
    stride: u32,
    x_at: u32,
    grad_at: u32,
    temperature: f32,
}

pub(crate) struct Distill {
    unit_rows: Kernel,
    slopes: Kernel,
    across: Kernel,
}

/// `x`: [R, D], consecutive rows; `unit`: [R, D], overwritten.
pub(crate) struct UnitRows<'t> {
    pub(crate) x: Part<'t>,
    pub(crate) unit: &'t mut Tensor,
}

/// `teacher`: [B, M]; `weights`: [B, 1], 0 leaves an example out; `scores`: [B, M], overwritten with the
/// derivatives by them; `losses`: [B, 1], overwritten with w T^2 KL, so that their sum is the
/// batch's term.
pub(crate) struct Slopes<'t> {
    pub(crate) teacher: &'t Tensor,
    pub(crate) weights: &'t Tensor,
    pub(crate) temperature: f32,
    pub(crate) scores: &'t mut Tensor,
    pub(crate) losses: &'t mut Tensor,
}

/// `x`: as in [`UnitRows`], which made `unit`; `g`: [R, D], the derivatives by `unit`; `grad`: [R, D],
/// consecutive rows, those by `x` are added.
pub(crate) struct Across<'t> {
    pub(crate) x: Part<'t>,
    pub(crate) unit: &'t Tensor,
    pub(crate) g: &'t Tensor,
    pub(crate) grad: PartMut<'t>,
}

impl Distill {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            unit_rows: device.kernel(&SHADER, "unit_rows", &[])?,
            // One workgroup walks all models: as many lanes as every adapter has.
            slopes: device.kernel(&SHADER, "slopes", &[("WG", 256.0)])?,
            across: device.kernel(&SHADER, "across", &[])?,
        })
    }

    pub(crate) fn unit_rows(&self, pass: &mut Pass<'_>, f: UnitRows<'_>) {
        let (rows, width) = consecutive("x", f.x);
        f.unit.expect("distill", "unit", rows, width);
        match pass {
            Pass::Gpu(gpu) => {
                let dims = dims_of_rows(f.x);
                let tensors = [("x", f.x.tensor), ("unit", &*f.unit)];
                gpu.dispatch(&self.unit_rows, [dims.stride, 1, 1], &dims, &tensors);
            }
            Pass::Cpu(pass) => unit_rows_cpu(pass.cpu, width, f.x.f32(), f.unit.f32_mut()),
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
                    rows: to_u32(examples),
                    columns: to_u32(models),
                    temperature: f.temperature,
                    ..Dims::default()
                };
                let tensors = [
                    ("teacher", f.teacher),
                    ("weights", f.weights),
                    ("scores", &*f.scores),
                    ("losses", &*f.losses),
                ];
                gpu.dispatch(&self.slopes, [dims.rows, 1, 1], &dims, &tensors);
            }
            Pass::Cpu(pass) => slopes_cpu(pass.cpu, models, f),
        }
    }

    pub(crate) fn across(&self, pass: &mut Pass<'_>, mut f: Across<'_>) {
        let (rows, width) = consecutive("x", f.x);
        f.unit.expect("distill", "unit", rows, width);
        f.g.expect("distill", "g", rows, width);
        f.grad.place.expect("distill", "grad", rows, width);
        assert_eq!(
            f.grad.place.stride, width,
            "distill: grad: rows are not consecutive"
        );
        match pass {
            Pass::Gpu(gpu) => {
                let dims = Dims {
                    grad_at: to_u32(f.grad.place.offset),
                    ..dims_of_rows(f.x)
                };
                let tensors = [
                    ("x", f.x.tensor),
                    ("g", f.g),
                    ("unit", f.unit),
                    ("grad", &*f.grad.tensor),
                ];
                gpu.dispatch(&self.across, [dims.stride, 1, 1], &dims, &tensors);
            }
            Pass::Cpu(pass) => {
                let (x, unit, g) = (f.x.f32(), f.unit.f32(), f.g.f32());
                across_cpu(pass.cpu, width, [x, unit, g], f.grad.f32_mut());
            }
        }
    }
}

/// Rows and columns of a part whose rows are consecutive.
fn consecutive(name: &str, part: Part<'_>) -> (usize, usize) {
    let place = part.place;
    assert_eq!(
        place.stride, place.columns,
        "distill: {name}: rows are not consecutive"
    );
    (place.rows, place.columns)
}

fn dims_of_rows(x: Part<'_>) -> Dims {
    Dims {
        rows: to_u32(x.place.rows),
        columns: to_u32(x.place.columns),
        stride: to_u32(x.place.rows.min(MOST_GROUPS)),
        x_at: to_u32(x.place.offset),
        ..Dims::default()
    }
}

#[inline(always)]
fn length_of(row: &[f32]) -> f32 {
    math::sum(row, |v| v * v).sqrt().max(LEAST)
}

fn unit_rows_cpu(cpu: &Cpu, width: usize, x: &[f32], unit: &mut [f32]) {
    cpu.rows(unit, width, 2 * width, |first, rows| {
        cpu.simd(
            #[inline(always)]
            || {
                let pairs = x[first * width..].chunks_exact(width);
                for (x, unit) in pairs.zip(rows.chunks_exact_mut(width)) {
                    unit.copy_from_slice(x);
                    normalize::unit(unit);
                }
            },
        );
    });
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

fn across_cpu(cpu: &Cpu, width: usize, [x, unit, g]: [&[f32]; 3], grad: &mut [f32]) {
    cpu.rows(grad, width, 4 * width, |first, rows| {
        cpu.simd(
            #[inline(always)]
            || {
                for (i, grad) in rows.chunks_exact_mut(width).enumerate() {
                    let row = (first + i) * width..(first + i + 1) * width;
                    let (x, unit, g) = (&x[row.clone()], &unit[row.clone()], &g[row]);
                    let length = length_of(x);
                    let along = if length > LEAST {
                        math::dot(g, unit)
                    } else {
                        0.0
                    };
                    for ((grad, g), unit) in grad.iter_mut().zip(g).zip(unit) {
                        *grad += (g - along * unit) / length;
                    }
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
    use crate::ops::matmul::{Matmul, Product};
    use crate::ops::reference::{self, divergence};
    use crate::ops::testing::{BOUND, assert_close, devices, finite_differences, noise, run, wide};

    /// Derivatives and losses on every device.
    fn slopes(
        models: usize,
        teacher: &[f32],
        scores: &[f32],
        weights: &[f32],
        temperature: f32,
    ) -> Vec<(Vec<f32>, Vec<f32>)> {
        let each = |device: &Device| {
            let op = Distill::new(device).unwrap();
            let teacher = device.upload("teacher", models, teacher).unwrap();
            let weights = device.upload("weights", 1, weights).unwrap();
            let mut scores = device.upload("scores", models, scores).unwrap();
            let mut losses = device.scratch("losses", scores.rows(), 1).unwrap();
            let (reads, outcome) = run(device, |pass| {
                op.slopes(
                    pass,
                    Slopes {
                        teacher: &teacher,
                        weights: &weights,
                        temperature,
                        scores: &mut scores,
                        losses: &mut losses,
                    },
                );
                [pass.read(&scores), pass.read(&losses)]
            });
            let [slopes, losses] = reads.map(|read| outcome.f32(read).to_vec());
            (slopes, losses)
        };
        devices().iter().map(each).collect()
    }

    #[test]
    fn loss_and_slopes_match_hand_values_v24() {
        for (slopes, losses) in slopes(3, &[2.0, 0.0, -1.0], &[1.0, 1.0, 0.0], &[1.0], 2.0) {
            let want = [-0.489_760_0, 0.304_855_7, 0.184_904_3];
            assert_close("V24 ds", &slopes, &want, 1e-6);
            assert_close("V24", &losses, &[0.488_732_1], 1e-6);
        }
    }

    #[test]
    fn slopes_match_f64_and_finite_differences() {
        for (examples, models, temperature) in
            [(1, 1, 2.0f32), (3, 7, 0.5), (5, 65, 2.0), (2, 257, 3.0)]
        {
            // As far apart as cosines over a sharp temperature are.
            let spread = |seed| -> Vec<f32> {
                noise(examples * models, seed)
                    .iter()
                    .map(|s| 9.0 * s)
                    .collect()
            };
            let (teacher, scores) = (spread(41), spread(42));
            let weights: Vec<f32> = (0..examples)
                .map(|b| if b % 3 == 1 { 0.0 } else { 0.3 + b as f32 })
                .collect();
            let each = |scores: &[f64]| -> Vec<f64> {
                let t = f64::from(temperature);
                let rows = wide(&teacher);
                let rows = rows.chunks_exact(models).zip(scores.chunks_exact(models));
                let terms = rows.map(|(teacher, scores)| divergence(teacher, scores, t) * t * t);
                terms
                    .zip(wide(&weights))
                    .map(|(term, w)| w * term)
                    .collect()
            };
            let want = each(&wide(&scores));
            let slope = finite_differences(&wide(&scores), |scores| each(scores).iter().sum());
            let all = slopes(models, &teacher, &scores, &weights, temperature);
            for (slopes, losses) in &all {
                assert_close("distill", losses, &want, BOUND);
                assert_close("distill ds", slopes, &slope, 1e-4);
                // Left out to the last bit.
                for b in (0..examples).filter(|b| weights[*b] == 0.0) {
                    assert!(slopes[b * models..][..models].iter().all(|s| *s == 0.0));
                    assert_eq!(losses[b], 0.0);
                }
            }
            assert_eq!(all[0], all[1], "threads");
            assert_eq!(all[2], all[3], "workgroup memory");
        }
    }

    #[test]
    fn a_student_that_says_what_its_teacher_says_has_no_gradient() {
        let scores: Vec<f32> = noise(4 * 129, 43).iter().map(|s| 12.0 * s).collect();
        for (slopes, losses) in slopes(129, &scores, &scores, &[1.0; 4], 2.0) {
            let largest = slopes
                .iter()
                .chain(&losses)
                .fold(0.0f32, |m, s| m.max(s.abs()));
            assert!(largest < 1e-7, "{largest:e}");
        }
        // A shift of all scores is none, and another temperature is another term.
        let shifted: Vec<f32> = scores.iter().map(|s| s + 0.5).collect();
        for (_, losses) in slopes(129, &scores, &shifted, &[1.0; 4], 2.0) {
            assert!(losses.iter().all(|loss| loss.abs() < 1e-5), "{losses:?}");
        }
        let sharper: Vec<f32> = scores.iter().map(|s| 2.0 * s).collect();
        for (_, losses) in slopes(129, &scores, &sharper, &[1.0; 4], 2.0) {
            assert!(losses.iter().all(|loss| *loss > 0.1), "{losses:?}");
        }
    }

    const TAU: f32 = 0.2;

    /// Queries `z` [B, D], rows `e` [M, D] and what a teacher scores; the matrices stand at offsets.
    struct Batch {
        width: usize,
        z: Vec<f32>,
        e: Vec<f32>,
        teacher: Vec<f32>,
        weights: Vec<f32>,
        temperature: f32,
    }

    fn product<'p>(a: Part<'p>, b: Part<'p>, y: PartMut<'p>) -> Product<'p> {
        Product {
            a,
            b,
            scale: 1.0 / TAU,
            y,
            add: false,
        }
    }

    impl Batch {
        fn new(examples: usize, models: usize, width: usize) -> Self {
            Self {
                width,
                z: noise(examples * width, 44),
                e: noise(models * width, 45),
                teacher: noise(examples * models, 46)
                    .iter()
                    .map(|s| s / TAU)
                    .collect(),
                weights: noise(examples, 47).iter().map(|w| w.abs()).collect(),
                temperature: 2.0,
            }
        }

        /// The term in f64.
        fn loss(&self, z: &[f64], e: &[f64]) -> f64 {
            let (u, v) = (
                reference::normalize(z, self.width),
                reference::normalize(e, self.width),
            );
            let (models, t) = (e.len() / self.width, f64::from(self.temperature));
            let teacher = wide(&self.teacher);
            let rows = u.chunks_exact(self.width).zip(teacher.chunks_exact(models));
            let terms = rows.map(|(u, teacher)| {
                let score = |v| reference::dot(u, v) / f64::from(TAU);
                let scores: Vec<f64> = v.chunks_exact(self.width).map(score).collect();
                t * t * divergence(teacher, &scores, t)
            });
            terms
                .zip(wide(&self.weights))
                .map(|(term, w)| w * term)
                .sum()
        }

        /// The gradients, added to ones, as the head computes them.
        fn on(&self, device: &Device) -> [Vec<f32>; 3] {
            const BEFORE: usize = 5;
            let (op, matmul) = (Distill::new(device).unwrap(), Matmul::new(device).unwrap());
            let (examples, width) = (self.weights.len(), self.width);
            let models = self.e.len() / width;
            let theta = [vec![7.0; BEFORE], self.e.clone(), vec![9.0]].concat();
            let theta = device.upload("theta", theta.len(), &theta).unwrap();
            let n = BEFORE + self.e.len() + 1;
            let mut grad = device.upload("grad", n, &vec![1.0; n]).unwrap();
            let z = device.upload("z", width, &self.z).unwrap();
            let ones = vec![1.0; self.z.len()];
            let mut dz = device.upload("dz", width, &ones).unwrap();
            let teacher = device.upload("teacher", models, &self.teacher).unwrap();
            let weights = device.upload("weights", 1, &self.weights).unwrap();
            let scratch = |rows, columns| device.scratch("scratch", rows, columns).unwrap();
            let (mut u, mut du) = (scratch(examples, width), scratch(examples, width));
            let (mut v, mut dv) = (scratch(models, width), scratch(models, width));
            let (mut scores, mut losses) = (scratch(examples, models), scratch(examples, 1));
            let e = Place::flat(BEFORE, models, width);
            let (of_z, of_v, of_s) = (z.place(), v.place(), scores.place());
            let (reads, outcome) = run(device, |pass| {
                let (x, unit) = (z.part(of_z), &mut u);
                op.unit_rows(pass, UnitRows { x, unit });
                let (x, unit) = (theta.part(e), &mut v);
                op.unit_rows(pass, UnitRows { x, unit });
                let y = scores.part_mut(of_s);
                matmul.nt(pass, product(u.part(of_z), v.part(of_v), y));
                op.slopes(
                    pass,
                    Slopes {
                        teacher: &teacher,
                        weights: &weights,
                        temperature: self.temperature,
                        scores: &mut scores,
                        losses: &mut losses,
                    },
                );
                let (a, y) = (scores.part(of_s), du.part_mut(of_z));
                matmul.nn(pass, product(a, v.part(of_v), y));
                let (a, y) = (scores.part(of_s), dv.part_mut(of_v));
                matmul.tn(pass, product(a, u.part(of_z), y));
                op.across(
                    pass,
                    Across {
                        x: z.part(of_z),
                        unit: &u,
                        g: &du,
                        grad: dz.part_mut(of_z),
                    },
                );
                op.across(
                    pass,
                    Across {
                        x: theta.part(e),
                        unit: &v,
                        g: &dv,
                        grad: grad.part_mut(e),
                    },
                );
                [pass.read(&losses), pass.read(&dz), pass.read(&grad)]
            });
            let [losses, mut dz, mut grad] = reads.map(|read| outcome.f32(read).to_vec());
            assert_eq!(
                (&grad[..BEFORE], grad[n - 1]),
                (&[1.0; BEFORE][..], 1.0),
                "nothing else is written"
            );
            grad = grad[BEFORE..n - 1].to_vec();
            for g in dz.iter_mut().chain(&mut grad) {
                *g -= 1.0;
            }
            [losses, dz, grad]
        }
    }

    #[test]
    fn gradients_of_queries_and_rows_match_finite_differences() {
        for (examples, models, width) in [(1, 1, 1), (3, 7, 5), (5, 13, 65), (2, 66, 9)] {
            let batch = Batch::new(examples, models, width);
            let (z, e) = (wide(&batch.z), wide(&batch.e));
            let dz = finite_differences(&z, |z| batch.loss(z, &e));
            let de = finite_differences(&e, |e| batch.loss(&z, e));
            let mut all = Vec::new();
            for device in devices() {
                let [losses, found_z, found_e] = batch.on(&device);
                let total = losses.iter().sum();
                assert_close("distill", &[total], &[batch.loss(&z, &e)], BOUND);
                assert_close("distill dz", &found_z, &dz, 1e-4);
                assert_close("distill dE", &found_e, &de, 1e-4);
                // No part along the vectors themselves.
                for (x, dx) in [(&batch.z, &found_z), (&batch.e, &found_e)] {
                    for (x, dx) in x.chunks_exact(width).zip(dx.chunks_exact(width)) {
                        let along = reference::dot(&wide(x), &wide(dx));
                        assert!(along.abs() < 2e-6 * width as f64, "{along:e}");
                    }
                }
                all.push((losses, found_z, found_e));
            }
            assert_eq!(all[0], all[1], "threads");
            assert_eq!(all[2], all[3], "workgroup memory");
        }
    }

    /// carve.md V12, and rows too short to have a direction.
    #[test]
    fn unit_rows_and_rows_of_zeros_match_hand_values_v12() {
        for device in devices() {
            let op = Distill::new(&device).unwrap();
            let x = device.upload("x", 2, &[3.0, 4.0, 0.0, 0.0]).unwrap();
            let g = device.upload("g", 2, &[1.0, 2.0, 1e-12, 0.0]).unwrap();
            let mut unit = device.scratch("unit", 2, 2).unwrap();
            let mut grad = device.upload("grad", 2, &[0.0; 4]).unwrap();
            let place = x.place();
            let (reads, outcome) = run(&device, |pass| {
                let (x, unit) = (x.part(place), &mut unit);
                op.unit_rows(pass, UnitRows { x, unit });
                op.across(
                    pass,
                    Across {
                        x,
                        unit,
                        g: &g,
                        grad: grad.part_mut(place),
                    },
                );
                [pass.read(unit), pass.read(&grad)]
            });
            let [unit, grad] = reads.map(|read| outcome.f32(read).to_vec());
            assert_close("V12", &unit, &[0.6, 0.8, 0.0, 0.0], 1e-6);
            assert_close("V12 dx", &grad, &[-0.064, 0.048, 1.0, 0.0], 1e-6);
        }
    }

    #[test]
    #[should_panic(expected = "distill: teacher (teacher): expected [2, 3], found [2, 2]")]
    fn a_wrong_shape_is_named() {
        let device = &devices()[0];
        let op = Distill::new(device).unwrap();
        let teacher = device.upload("teacher", 2, &[0.0; 4]).unwrap();
        let weights = device.upload("weights", 1, &[1.0; 2]).unwrap();
        let mut scores = device.upload("scores", 3, &[0.0; 6]).unwrap();
        let mut losses = device.scratch("losses", 2, 1).unwrap();
        run(device, |pass| {
            op.slopes(
                pass,
                Slopes {
                    teacher: &teacher,
                    weights: &weights,
                    temperature: 1.0,
                    scores: &mut scores,
                    losses: &mut losses,
                },
            );
        });
    }
}
