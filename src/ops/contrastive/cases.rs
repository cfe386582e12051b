//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{
    CandidateSet, Contrastive, Inverse, LossAndGradients, LossWorkspace, NONE, Targets, invert,
};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::case::{Case, each, framed};
use crate::ops::reference::{self, noise, wide};

/// Losses and gradients over lists of candidates and over all models, for each of `sizes`.
pub(crate) fn all(device: &Device, sizes: &[LossSize]) -> Result<Vec<Case>> {
    let op = Arc::new(Contrastive::new());
    each(sizes, |size| {
        let LossSize {
            examples,
            models,
            width,
            candidates,
            ..
        } = size;
        let label = |columns| format!("{columns} of {models}x{width} for {examples}");
        let sampled = LossInputs::of_noise(size);
        let all = LossInputs {
            lists: None,
            ..sampled.clone()
        };
        Ok([
            sampled.case(device, &op)?.of(&label(candidates)),
            all.case(device, &op)?.of(&label(models)),
        ])
    })
}

/// A batch: `candidates` of each example's list, at most; `models` is no multiple of 5.
#[derive(Clone, Copy)]
pub(crate) struct LossSize {
    pub(crate) examples: usize,
    pub(crate) models: usize,
    /// D
    pub(crate) width: usize,
    pub(crate) candidates: usize,
    /// Elements before E in its tensor.
    pub(crate) before: usize,
}

/// One batch: z [B, D], E [M, D], priors [M], lists [B, K] or None for all models, targets [B, S].
#[derive(Clone)]
struct LossInputs {
    width: usize,
    z: Vec<f32>,
    e: Vec<f32>,
    tau: f32,
    priors: Vec<f32>,
    lists: Option<Vec<u32>>,
    ids: Vec<u32>,
    mass: Vec<f32>,
    weights: Vec<f32>,
    /// Elements before E.
    before: usize,
}

impl LossInputs {
    /// Lists of different ids with the gold first and some places empty, soft targets, and every
    /// fourth example left out.
    fn of_noise(size: LossSize) -> Self {
        let LossSize {
            examples,
            models,
            width,
            candidates: k,
            before,
        } = size;
        let (mut lists, mut ids, mut mass) = (Vec::new(), Vec::new(), Vec::new());
        for b in 0..examples {
            let list: Vec<u32> = (0..k).map(|i| to_u32((b * 31 + i * 5) % models)).collect();
            let filled = k - b % k.min(3);
            lists.extend_from_slice(&list[..filled]);
            lists.resize((b + 1) * k, NONE);
            let neighbour = if filled > 1 { list[filled - 1] } else { NONE };
            ids.extend([list[0], neighbour, NONE]);
            mass.extend([0.98, if neighbour == NONE { 0.0 } else { 0.02 }, 0.0]);
        }
        let weight = |b: usize| match b % 4 {
            3 => 0.0,
            _ => (1 + b % 2 * 4) as f32 / examples as f32,
        };
        Self {
            width,
            z: noise(examples * width, 21),
            e: noise(models * width, 22),
            tau: 0.2,
            priors: noise(models, 23),
            lists: Some(lists),
            ids,
            mass,
            weights: (0..examples).map(weight).collect(),
            before,
        }
    }

    fn examples(&self) -> usize {
        self.weights.len()
    }

    /// K, or None for all models.
    fn candidates(&self) -> Option<usize> {
        self.lists
            .as_ref()
            .map(|lists| lists.len() / self.examples())
    }

    /// Outputs: losses, dz, and dE added to ones.
    fn case(&self, device: &Device, op: &Arc<Contrastive>) -> Result<Case> {
        let (examples, models, width) = (self.examples(), self.priors.len(), self.width);
        let z = device.upload("z", width, &self.z)?;
        let (theta, rows) = framed(device, "theta", width, &self.e, (self.before, 0))?;
        // The parts begin at different places, in fours where E does.
        let gap = match self.before % 4 {
            0 => self.before / 8 * 4,
            _ => self.before - self.before.min(2),
        };
        let gap = (gap, 0);
        let (grad, d_rows) = framed(device, "grad", width, &vec![1.0; models * width], gap)?;
        let slots = self.ids.len() / examples;
        let ids = device.upload_ids("ids", slots, &self.ids)?;
        let mass = device.upload("mass", slots, &self.mass)?;
        let weights = device.upload("weights", 1, &self.weights)?;
        let priors = device.upload("priors", 1, &self.priors)?;
        let losses = device.scratch("losses", examples, 1)?;
        let dz = device.scratch("dz", examples, width)?;
        // The workspace is larger than the batch.
        let k = self.candidates().unwrap_or(1);
        let mut workspace = match self.candidates() {
            None => LossWorkspace::all(device, examples + 2, rows)?,
            Some(k) => LossWorkspace::sampled(device, examples + 2, k, width)?,
        };
        let mut inverse = Inverse::new(device, examples + 2, k)?;
        let mut list = device.ids("candidates", examples + 2, k)?;
        let (sampled, mut fresh) = (self.lists.is_some(), self.lists.clone());
        let (op, tau) = (Arc::clone(op), self.tau);
        let run = move |pass: &mut Pass<'_>, [losses, dz, grad]: &mut [Tensor; 3]| {
            if let Some(ids) = fresh.take() {
                pass.upload(&mut list, &ids);
                inverse.upload(pass, &invert(&ids));
            }
            let (list, inverse) = (&list, &inverse);
            let f = LossAndGradients {
                z: &z,
                rows: theta.part(rows),
                tau,
                priors: &priors,
                candidates: match sampled {
                    true => CandidateSet::Sampled { ids: list, inverse },
                    false => CandidateSet::All,
                },
                targets: Targets {
                    ids: &ids,
                    mass: &mass,
                    weights: &weights,
                },
                workspace: &mut workspace,
                losses,
                dz,
                d_rows: grad.part_mut(d_rows),
            };
            op.loss_and_gradients(pass, f);
        };
        let inputs = self.clone();
        let case = Case::new("contrastive", [losses, dz, grad], run, move || {
            let [losses, dz, mut de] = inputs.in_f64(&wide(&inputs.z), &wide(&inputs.e));
            de.iter_mut().for_each(|d| *d += 1.0);
            [losses, dz, de]
        });
        let columns = self.candidates().unwrap_or(models);
        let flops = 6.0 * (examples * columns * width) as f64;
        let bytes = 12.0 * (models.min(examples * columns) * width) as f64;
        Ok(case.at(2, d_rows).work(flops, bytes))
    }

    /// The weighted losses, dz and dE: dz_b = sum_j g_bj (v_j - c_bj u_b) / |z_b| and
    /// dE_j = sum_b g_bj (u_b - c_bj v_j) / |e_j| with g = w (mass p - q) / tau.
    fn in_f64(&self, z: &[f64], e: &[f64]) -> [Vec<f64>; 3] {
        let (width, tau) = (self.width, f64::from(self.tau));
        let (u, v) = (
            reference::normalize(z, width),
            reference::normalize(e, width),
        );
        let row = |table: &[f64], i: usize| table[i * width..][..width].to_vec();
        let length = |table: &[f64], i: usize| {
            let row = row(table, i);
            reference::dot(&row, &row).sqrt()
        };
        let slots = self.ids.len() / self.examples();
        let (mut losses, mut dz, mut de) = (Vec::new(), vec![0.0; z.len()], vec![0.0; e.len()]);
        for b in 0..self.examples() {
            let list: Vec<u32> = match (&self.lists, self.candidates()) {
                (Some(lists), Some(k)) => {
                    let list = lists[b * k..][..k].iter().copied();
                    list.filter(|id| *id != NONE).collect()
                }
                _ => (0..to_u32(e.len() / width)).collect(),
            };
            let unit = row(&u, b);
            let cosine = |id: &u32| reference::dot(&unit, &row(&v, *id as usize));
            let cosines: Vec<f64> = list.iter().map(cosine).collect();
            let logit = |(id, c): (&u32, &f64)| c / tau + f64::from(self.priors[*id as usize]);
            let logits: Vec<f64> = list.iter().zip(&cosines).map(logit).collect();
            let total = logits.iter().map(|s| s.exp()).sum::<f64>().ln();
            let mut wanted = vec![0.0; list.len()];
            for slot in b * slots..(b + 1) * slots {
                if let Some(place) = list.iter().position(|id| *id == self.ids[slot]) {
                    wanted[place] += f64::from(self.mass[slot]);
                }
            }
            let (mass, weight) = (wanted.iter().sum::<f64>(), f64::from(self.weights[b]));
            let terms = wanted.iter().zip(&logits).map(|(q, s)| q * (total - s));
            losses.push(weight * terms.sum::<f64>());
            for (place, id) in list.iter().enumerate() {
                let (j, c) = (*id as usize, cosines[place]);
                let g = weight * (mass * (logits[place] - total).exp() - wanted[place]) / tau;
                let (z_length, e_length) = (length(z, b), length(e, j));
                for d in 0..width {
                    let (u, v) = (unit[d], v[j * width + d]);
                    dz[b * width + d] += g * (v - c * u) / z_length;
                    de[j * width + d] += g * (u - c * v) / e_length;
                }
            }
        }
        [losses, dz, de]
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        reason = "tests"
    )]
    use super::*;
    use crate::device::Place;
    use crate::ops::contrastive::InverseList;
    use crate::ops::testing::{assert_close, check, devices, finite_differences, outputs, run};

    #[derive(Debug, PartialEq)]
    struct Answer {
        losses: Vec<f32>,
        dz: Vec<f32>,
        de: Vec<f32>,
    }

    impl LossInputs {
        fn answers(&self) -> Vec<Answer> {
            let all = outputs(|device| self.case(device, &Contrastive::new().into()));
            let answers = all.into_iter().map(|[losses, dz, de]| Answer {
                losses,
                dz,
                de: de.into_iter().map(|d| d - 1.0).collect(),
            });
            answers.collect()
        }
    }

    /// A batch whose lists have no empty places.
    fn full(examples: usize, models: usize, width: usize, k: usize) -> LossInputs {
        let size = LossSize {
            examples,
            models,
            width,
            candidates: k,
            before: 5,
        };
        let list = |b: usize| (0..k).map(move |i| to_u32((b * 31 + i * 5) % models));
        LossInputs {
            lists: Some((0..examples).flat_map(list).collect()),
            ..LossInputs::of_noise(size)
        }
    }

    const V2_E: [f32; 12] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 2.0, -1.0, -1.0, 1.0, 0.5];

    fn check_one(
        what: &str,
        batch: &LossInputs,
        losses: &[f64],
        dz: &[f64],
        de: &[f64],
        bound: f64,
    ) {
        for answer in batch.answers() {
            assert_close(what, &answer.losses, losses, bound);
            assert_close(what, &answer.dz, dz, bound);
            if !de.is_empty() {
                assert_close(what, &answer.de, de, bound);
            }
        }
    }

    const SIZES: [[usize; 4]; 5] = [
        [1, 1, 1, 1],
        [3, 7, 5, 4],
        [5, 13, 17, 9],
        [9, 66, 63, 65],
        [33, 257, 65, 7],
    ];

    fn size([examples, models, width, candidates]: [usize; 4]) -> LossSize {
        LossSize {
            examples,
            models,
            width,
            candidates,
            before: 5,
        }
    }

    #[test]
    fn losses_and_gradients_match_f64() {
        check(|device| all(device, &SIZES.map(size)));
    }

    /// Rows in fours: on a GPU the three kernels of all models. With many examples a workgroup has
    /// several tiles.
    #[test]
    fn losses_and_gradients_of_rows_in_fours_match_f64() {
        let sizes = [
            [1, 1, 4, 1],
            [3, 17, 36, 4],
            [33, 257, 64, 7],
            [65, 33, 520, 3],
            [520, 291, 8, 5],
        ];
        let fours = sizes.map(|sizes| LossSize {
            before: 8,
            ..size(sizes)
        });
        check(|device| all(device, &fours));
    }

    /// They count as 1e-12 long, and their gradients keep the part along them.
    #[test]
    fn rows_without_a_length_have_the_gradients_of_the_cpu() {
        let mut batch = full(5, 37, 16, 5);
        (batch.lists, batch.before) = (None, 8);
        batch.e[3 * 16..4 * 16].fill(0.0);
        batch.z[2 * 16..3 * 16].fill(0.0);
        let answers = batch.answers();
        assert!(answers[0].de[3 * 16..4 * 16].iter().all(|d| d.abs() > 1e6));
        for answer in &answers[1..] {
            for (got, want) in [
                (&answer.losses, &answers[0].losses),
                (&answer.dz, &answers[0].dz),
                (&answer.de, &answers[0].de),
            ] {
                assert_close("no length", got, &wide(want), 1e-5);
            }
        }
    }

    #[test]
    fn the_gradients_in_f64_are_those_of_the_losses() {
        for shape in &SIZES[..3] {
            let mut batch = LossInputs::of_noise(size(*shape));
            for _ in 0..2 {
                let (z, e) = (wide(&batch.z), wide(&batch.e));
                let loss = |z: &[f64], e: &[f64]| batch.in_f64(z, e)[0].iter().sum::<f64>();
                let [_, dz, de] = batch.in_f64(&z, &e);
                for (found, differences) in [
                    (dz, finite_differences(&z, |z| loss(z, &e))),
                    (de, finite_differences(&e, |e| loss(&z, e))),
                ] {
                    let found: Vec<f32> = found.iter().map(|d| *d as f32).collect();
                    assert_close("differences", &found, &differences, 1e-6);
                }
                batch.lists = None;
            }
        }
    }

    #[test]
    fn loss_and_gradients_match_hand_values_v9() {
        let hard = LossInputs {
            width: 3,
            z: vec![1.0, 2.0, -1.0],
            e: V2_E.to_vec(),
            tau: 0.08,
            priors: vec![0.0; 4],
            lists: Some(vec![0, 1, 2, 3]),
            ids: vec![0, NONE, NONE],
            mass: vec![1.0, 0.0, 0.0],
            weights: vec![1.0],
            before: 5,
        };
        let dz = [-4.4060778, 1.8559306, -0.6942167];
        let de = [
            0.0,
            -10.2005260,
            5.1002630,
            0.4673710,
            0.0,
            -0.4673710,
            0.0,
            0.0,
            0.0,
            0.0000771,
            0.0001121,
            -0.0000701,
        ];
        check_one("V9 hard", &hard, &[7.4935844], &dz, &de, 2e-6);

        let soft = LossInputs {
            ids: vec![0, 1, 3],
            mass: vec![0.98, 0.01, 0.01],
            ..hard.clone()
        };
        let dz = [-4.2671600, 1.7765490, -0.7140621];
        let de = [
            0.0, -9.9964019, 4.9982009, 0.4163400, 0.0, -0.4163400, 0.0, 0.0, 0.0, -0.0415038,
            -0.0603691, 0.0377307,
        ];
        check_one("V9 soft", &soft, &[7.4765741], &dz, &de, 2e-6);

        let drop = LossInputs {
            mass: vec![0.98, 0.0, 0.0],
            ..hard.clone()
        };
        let dz = [-4.3179563, 1.8188120, -0.6803324];
        check_one("V9 drop", &drop, &[7.3437127], &dz, &[], 2e-6);

        // A neighbour that is no candidate takes no part, as if its mass had been dropped.
        let absent = LossInputs {
            ids: vec![0, 77, NONE],
            mass: vec![0.98, 0.02, 0.0],
            ..hard.clone()
        };
        check_one("V9 absent", &absent, &[7.3437127], &dz, &[], 2e-6);

        let all = LossInputs {
            lists: None,
            ids: vec![2, 0, 3],
            mass: vec![0.98, 0.01, 0.01],
            ..hard
        };
        let [losses, ..] = all.in_f64(&wide(&all.z), &wide(&all.e));
        assert!((losses[0] - 0.2786467).abs() < 1e-7);
        let g = [-0.0094434, 0.0915856, -0.0721608, -0.0099815];
        check_one(
            "V9 all",
            &all,
            &[0.2786467],
            &dz_of(&all, &g),
            &de_of(&all, &g),
            2e-6,
        );
    }

    /// The formula of dz for one example, from the derivatives `g` by the logits.
    fn dz_of(batch: &LossInputs, g: &[f64]) -> Vec<f64> {
        let z = wide(&batch.z);
        let tau = f64::from(batch.tau);
        let length = z.iter().map(|v| v * v).sum::<f64>().sqrt();
        let mut dz = vec![0.0; z.len()];
        for (e, g) in wide(&batch.e).chunks_exact(batch.width).zip(g) {
            let row = e.iter().map(|v| v * v).sum::<f64>().sqrt();
            let c = e.iter().zip(&z).map(|(e, z)| e * z).sum::<f64>() / (row * length);
            for i in 0..z.len() {
                dz[i] += g / (tau * length) * (e[i] / row - c * z[i] / length);
            }
        }
        dz
    }

    /// The formula of dE for one example, from the derivatives `g` by the logits.
    fn de_of(batch: &LossInputs, g: &[f64]) -> Vec<f64> {
        let z = wide(&batch.z);
        let tau = f64::from(batch.tau);
        let length = z.iter().map(|v| v * v).sum::<f64>().sqrt();
        let mut de = Vec::new();
        for (e, g) in wide(&batch.e).chunks_exact(batch.width).zip(g) {
            let row = e.iter().map(|v| v * v).sum::<f64>().sqrt();
            let c = e.iter().zip(&z).map(|(e, z)| e * z).sum::<f64>() / (row * length);
            de.extend(
                e.iter()
                    .zip(&z)
                    .map(|(e, z)| g / (tau * row) * (z / length - c * e / row)),
            );
        }
        de
    }

    const W: [[f64; 2]; 3] = [[1.0, 0.5], [-0.5, 2.0], [0.25, -1.0]];
    const H: [[f64; 2]; 2] = [[1.0, 1.0], [2.0, -1.0]];

    /// The batch of V10 with replay weight `mu`; `soft` targets or hard ones.
    fn v10_batch(mu: f32, soft: bool) -> LossInputs {
        LossInputs {
            width: 3,
            z: vec![1.5, 1.5, -0.75, 1.5, -3.0, 1.5],
            e: vec![1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 1.0, 2.0, -1.0, -1.0, 1.0, 0.5],
            tau: 0.08,
            priors: vec![0.0; 4],
            lists: Some(vec![0, 1, 3, 2, 0, 1]),
            ids: vec![0, 1, 3, 2, 1, NONE],
            mass: match soft {
                true => vec![0.98, 0.01, 0.01, 0.98, 0.02, 0.0],
                false => vec![1.0, 0.0, 0.0, 1.0, 0.0, 0.0],
            },
            weights: vec![0.5, mu / 2.0],
            before: 5,
        }
    }

    /// dW = sum of dz h^T, and dh = W^T dz.
    fn head(dz: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (mut dw, mut dh) = (vec![0.0; 6], vec![0.0; 4]);
        for (b, dz) in dz.chunks_exact(3).enumerate() {
            for (d, dz) in dz.iter().enumerate() {
                for i in 0..2 {
                    dw[d * 2 + i] += dz * H[b][i] as f32;
                    dh[b * 2 + i] += dz * W[d][i] as f32;
                }
            }
        }
        (dw, dh)
    }

    #[test]
    fn replay_weight_and_soft_targets_match_hand_values_v10() {
        for answer in v10_batch(5.0, false).answers() {
            let losses = [0.6931771 / 2.0, 13.4364386 * 2.5];
            assert_close("V10", &answer.losses, &losses, 2e-6);
            assert!((answer.losses.iter().sum::<f32>() - 33.937_685).abs() < 2e-4);
            let (dw, dh) = head(&answer.dz);
            let want = [
                1.2122652, -2.6895469, 2.4294299, 0.8687039, -0.5202339, 0.2601262,
            ];
            assert_close("V10 dW", &dw, &want, 5e-6);
            let want = [-2.0834143, 2.0834143, 0.9754530, 1.9509061];
            assert_close("V10 dh", &dh, &want, 5e-6);
            let want = [
                0.0,
                -27.5988709,
                13.7994355,
                1.0416369,
                0.0,
                -0.5208163,
                -8.6805429,
                3.4722172,
                -1.7361086,
                0.0000740,
                0.0000925,
                -0.0000370,
            ];
            assert_close("V10 dE", &answer.de, &want, 5e-6);
        }
        for answer in v10_batch(1.0, false).answers() {
            assert!((answer.losses.iter().sum::<f32>() - 7.064_808).abs() < 5e-5);
        }
        for answer in v10_batch(5.0, true).answers() {
            let losses = [0.7903994 / 2.0, 13.4738961 * 2.5];
            assert_close("V10 soft", &answer.losses, &losses, 2e-6);
            let want = [
                1.3900152, -2.6889157, 2.3479206, 0.8184092, -0.6819901, 0.3379179,
            ];
            assert_close("V10 soft dW", &head(&answer.dz).0, &want, 5e-6);
        }
    }

    #[test]
    fn length_of_rows_changes_no_loss_v28() {
        let sampled = full(4, 13, 17, 13);
        let scaled = LossInputs {
            e: sampled
                .e
                .iter()
                .enumerate()
                .map(|(i, v)| v * (1 + i / 17) as f32)
                .collect(),
            ..sampled.clone()
        };
        let all = LossInputs {
            lists: None,
            ..sampled.clone()
        };
        let (sampled_answers, scaled, all) = (sampled.answers(), scaled.answers(), all.answers());
        for ((sampled_answer, scaled), all) in sampled_answers.iter().zip(&scaled).zip(&all) {
            assert_close(
                "scaled rows",
                &scaled.losses,
                &wide(&sampled_answer.losses),
                1e-6,
            );
            assert_close("all", &all.losses, &wide(&sampled_answer.losses), 1e-6);
            assert_close("all", &all.dz, &wide(&sampled_answer.dz), 1e-5);
            assert_close("all", &all.de, &wide(&sampled_answer.de), 1e-5);
            for answer in [sampled_answer, all] {
                for (x, dx) in [(&sampled.z, &answer.dz), (&sampled.e, &answer.de)] {
                    for (x, dx) in x.chunks_exact(17).zip(dx.chunks_exact(17)) {
                        let product: f64 = wide(x).iter().zip(wide(dx)).map(|(x, dx)| x * dx).sum();
                        assert!(product.abs() < 1e-6, "{product}");
                    }
                }
            }
        }
    }

    #[test]
    fn length_of_queries_changes_no_loss_v28() {
        let plain = full(4, 13, 17, 13);
        let longer = LossInputs {
            z: plain.z.iter().map(|z| 3.0 * z).collect(),
            ..plain.clone()
        };
        for (plain, longer) in plain.answers().iter().zip(longer.answers()) {
            assert_close("losses", &longer.losses, &wide(&plain.losses), 1e-6);
            assert_close("dE", &longer.de, &wide(&plain.de), 1e-5);
            // dW = dz h^T stays, for h is three times as long.
            let dz: Vec<f32> = longer.dz.iter().map(|dz| 3.0 * dz).collect();
            assert_close("dz", &dz, &wide(&plain.dz), 1e-5);
        }
    }

    #[test]
    fn an_example_of_weight_zero_is_left_out() {
        let mut batch = full(4, 13, 17, 5);
        batch.lists.as_mut().unwrap()[15..].fill(NONE);
        assert_eq!(batch.weights[3], 0.0);
        for answer in batch.answers() {
            assert_eq!(answer.losses[3], 0.0);
            assert_eq!(answer.dz[51..], [0.0; 17]);
            assert!(answer.de.iter().all(|d| d.is_finite()));
        }
    }

    /// carve.md V12: a unit vector's way back. Rows at -(1, 2) and (1, 2) and this weight make the
    /// gradient of u what the vector has: (1, 2).
    #[test]
    fn unit_query_backward_matches_hand_values_v12() {
        let tau = 0.5;
        let cosine = (0.6 + 2.0 * 0.8) / 5.0f64.sqrt();
        let wrong = 1.0 / (1.0 + (-2.0 * cosine / tau).exp());
        let batch = LossInputs {
            width: 2,
            z: vec![3.0, 4.0],
            e: vec![-1.0, -2.0, 1.0, 2.0],
            tau: tau as f32,
            priors: vec![0.0; 2],
            lists: None,
            ids: vec![0],
            mass: vec![1.0],
            weights: vec![(5.0f64.sqrt() * tau / (2.0 * wrong)) as f32],
            before: 5,
        };
        for answer in batch.answers() {
            assert_close("V12 dx", &answer.dz, &[-0.064, 0.048], 1e-6);
        }
    }

    #[test]
    fn lists_are_inverted() {
        let inverse = invert(&[4, 2, NONE, 2, 7, 4]);
        let want = InverseList {
            rows: vec![2, 4, 7],
            starts: vec![0, 2, 4, 5],
            entries: vec![1, 3, 0, 5, 4],
        };
        assert_eq!(inverse, want);
        assert_eq!(invert(&[NONE]).starts, [0]);
    }

    #[test]
    #[should_panic(expected = "contrastive: d_rows: expected [2, 3], found [1, 3]")]
    fn a_wrong_shape_is_named() {
        let device = &devices()[0];
        let op = Contrastive::new();
        let x = device.upload("x", 3, &[1.0; 6]).unwrap();
        let ids = device.ids("ids", 2, 1).unwrap();
        let mut out = device.scratch("out", 2, 3).unwrap();
        let mut grad = device.scratch("grad", 1, 3).unwrap();
        let place = grad.place();
        let mut losses = device.scratch("losses", 2, 1).unwrap();
        let priors = device.upload("priors", 1, &[0.0; 2]).unwrap();
        let mut workspace = LossWorkspace::all(device, 2, x.place()).unwrap();
        run(device, |pass| {
            op.loss_and_gradients(
                pass,
                LossAndGradients {
                    z: &x,
                    rows: x.part(x.place()),
                    tau: 1.0,
                    priors: &priors,
                    candidates: CandidateSet::All,
                    targets: Targets {
                        ids: &ids,
                        mass: &x,
                        weights: &x,
                    },
                    workspace: &mut workspace,
                    losses: &mut losses,
                    dz: &mut out,
                    d_rows: grad.part_mut(place),
                },
            );
        });
    }

    /// One full step of phase 1: the loss, both anchors, AdamW; the head's products are the test's.
    #[test]
    fn a_whole_step_of_phase_1_matches_hand_values_v27() {
        use crate::ops::adamw::{self, AdamW, Segment, Step};
        use crate::ops::anchor::{Anchor, Distance, OtherPull, Pull};

        let batch = v10_batch(5.0, false);
        let w: Vec<f32> = W.as_flattened().iter().map(|w| *w as f32).collect();
        let w0: Vec<f32> = W.as_flattened().iter().map(|w| (w - 0.01) as f32).collect();
        let (at_w, at_e) = (Place::flat(0, 3, 2), Place::flat(6, 4, 3));
        let old = Place::flat(6, 2, 3);
        let (emb, proj) = (1e4 / 2.0, 0.071_525_574 / 6.0);
        let segment = |place: Place, rate| Segment {
            range: place.offset..place.end(),
            rate,
            decay: 1e-3,
            count: 1,
        };
        for (device, answer) in devices().iter().zip(batch.answers()) {
            let upload = |values: &[f32]| device.upload("v27", values.len(), values).unwrap();
            let mut theta = upload(&[&w[..], &batch.e].concat());
            let mut grad = upload(&[&head(&answer.dz).0[..], &answer.de].concat());
            let (mut m, mut v) = (upload(&[0.0; 18]), upload(&[0.0; 18]));
            let r = device
                .upload("r", 3, &[1.0, 0.1, 0.0, 0.0, 2.0, 0.2])
                .unwrap();
            let w0 = device.upload("w0", 2, &w0).unwrap();
            let mut rows = device.scratch("rows", 2, 1).unwrap();
            let mut sums = device.scratch("sums", 3, 1).unwrap();
            let mut room = adamw::NormWorkspace::new(device).unwrap();
            let (anchor, op) = (Anchor::new(), AdamW::new());
            let (reads, outputs) = run(device, |pass| {
                anchor.pull(
                    pass,
                    Pull {
                        form: Distance::Normalized,
                        rows: theta.part(old),
                        reference: &r,
                        touched: None,
                        strength: emb,
                        grad: grad.part_mut(old),
                        losses: &mut rows,
                        other: Some(OtherPull {
                            rows: theta.part(at_w),
                            reference: &w0,
                            strength: proj,
                            losses: &mut sums,
                        }),
                    },
                );
                let gradient = pass.read(&grad);
                op.step(
                    pass,
                    Step {
                        theta: &mut theta,
                        grad: &mut grad,
                        m: &mut m,
                        v: &mut v,
                        segments: &[segment(at_w, 1e-4), segment(at_e, 5e-5)],
                        listed: None,
                        clip: None,
                        losses: [None, None],
                        workspace: &mut room,
                    },
                );
                [
                    pass.read(&rows),
                    pass.read(&sums),
                    gradient,
                    pass.read(&theta),
                ]
            });
            let [rows, sums, grad, theta] = reads.map(|read| outputs.f32(read));
            let (rows, sums): (f32, f32) = (rows.iter().sum(), sums.iter().sum());
            assert_close("L_emb", &[rows / 2.0], &[0.004_962_809_8], 1e-7);
            assert_close("L_proj", &[sums / 6.0], &[1e-4], 1e-7);
            let loss = answer.losses.iter().sum::<f32>() + emb * rows + proj * sums;
            assert_close("L", &[loss], &[83.565_790_3], 1e-5);
            let want = [
                1.2125037,
                -2.6893085,
                2.4296683,
                0.8689423,
                -0.5199955,
                0.2603646, //
                0.0,
                -525.117466,
                13.7994355,
                1.0416369,
                0.0,
                -249.2801138, //
                -8.6805429,
                3.4722172,
                -1.7361086,
                0.0000740,
                0.0000925,
                -0.0000370,
            ];
            assert_close("V27 gradient", grad, &want, 1e-5);
            let want = [
                0.9998999,
                0.50009995,
                -0.50009995,
                1.9998998,
                0.250099975,
                -1.0000999, //
                1.0,
                0.00005,
                -0.00005,
                -0.00005,
                2.0,
                0.00005, //
                1.00004995,
                1.9999499,
                -0.99994995,
            ];
            let mut moved = theta[..15].to_vec();
            // Rounding decides which way elements without a gradient go.
            for (i, exact) in [(6, 1.0), (10, 2.0)] {
                assert!((moved[i] - exact).abs() < 6e-5);
                moved[i] = exact;
            }
            // In f32 a step of 5e-5 from 2 is known to 1.2e-7.
            assert_close("V27", &moved, &want, 2e-7);
        }
    }
}
