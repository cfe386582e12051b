//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{AnswerRow, Finish, Forward, Groups, Words};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::num::{mix, to_u32};
use crate::ops::LOWEST;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

/// Prompts, models, domains and ranks.
pub(crate) type AnswerSize = (usize, usize, usize, usize);

/// For each of `sizes`: the scores alone, and with words, a mask and numbers of a memory; each by one
/// workgroup a prompt where it has the room, and in parts of 200 scores.
pub(crate) fn all(device: &Device, sizes: &[AnswerSize]) -> Result<Vec<Case>> {
    let whole = Arc::new(Finish::new(device));
    let parts = Arc::new(Finish::with_room(200));
    each(sizes, |size| {
        let (alone, all) = (Inputs::noise(size, false), Inputs::noise(size, true));
        let label = format!("{} of {}", size.3, size.1);
        Ok([
            alone.case(device, &whole)?.of(&label),
            all.case(device, &whole)?.of(&format!("{label}, masked")),
            alone
                .case(device, &parts)?
                .of(&format!("{label}, in parts")),
            all.case(device, &parts)?
                .of(&format!("{label}, masked, in parts")),
        ])
    })
}

/// Scores by words have this factor; with inputs of few digits all sums are exact in f32.
const STRENGTH: f32 = 0.5;

#[derive(Clone)]
struct Inputs {
    k: usize,
    /// [B, M]
    s: Vec<f32>,
    members: Vec<u32>,
    offsets: Vec<u32>,
    /// [M]
    own: Vec<u32>,
    more: Option<MoreInputs>,
}

#[derive(Clone)]
struct MoreInputs {
    /// [B, N]
    words: Vec<f32>,
    /// [B, ceil(M / 32)]
    mask: Vec<u32>,
    /// [B, 5]
    y: Vec<f32>,
}

/// Numbers of a row of y.
const RANK: usize = 5;

impl Inputs {
    /// Domain 0 has one member, the last of at least three none, and domain 1 of at least four only
    /// retired ones; so is every seventh model. Many scores are equal.
    fn noise((prompts, models, domains, k): AnswerSize, more: bool) -> Self {
        let group = |m: usize| match m == 0 || domains == 1 {
            true => 0,
            false => 1 + m % domains.saturating_sub(2).max(1),
        };
        let of: Vec<usize> = (0..models).map(group).collect();
        let (mut members, mut offsets) = (Vec::new(), vec![0u32]);
        for g in 0..domains {
            members.extend((0..models).filter(|m| of[*m] == g).map(to_u32));
            offsets.push(to_u32(members.len()));
        }
        let step = |v: &f32| (v * 1000.0).round() / 64.0;
        let mut s: Vec<f32> = noise(prompts * models, 13).iter().map(step).collect();
        for (n, s) in s.iter_mut().enumerate() {
            let m = n % models;
            if m % 7 == 5 || (domains > 3 && of[m] == 1) {
                *s = LOWEST;
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "any 32 bits")]
        let bits = |n: u32| mix(u64::from(n)) as u32;
        let more = more.then(|| MoreInputs {
            words: noise(prompts * domains, 22).iter().map(step).collect(),
            mask: (0..to_u32(prompts * models.div_ceil(32)))
                .map(bits)
                .collect(),
            y: noise(prompts * RANK, 23),
        });
        let own = (0..models).map(|m| to_u32(m * 13 % domains)).collect();
        Self {
            k,
            s,
            members,
            offsets,
            own,
            more,
        }
    }

    fn case(&self, device: &Device, op: &Arc<Finish>) -> Result<Case> {
        let (models, domains) = (self.members.len(), self.offsets.len() - 1);
        let s = device.upload("s", models, &self.s)?;
        let prompts = s.rows();
        let groups = Groups::new(device, &self.members, &self.offsets, &self.own)?;
        let more = self.more.as_ref().map(|more| -> Result<_> {
            let mask = device.upload_ids("mask", models.div_ceil(32), &more.mask)?;
            let words = device.upload("words", domains, &more.words)?;
            Ok([words, mask, device.upload("y", RANK, &more.y)?])
        });
        let more = more.transpose()?;
        let row = AnswerRow {
            k: self.k,
            domains,
            rank: more.as_ref().map_or(0, |[_, _, y]| y.columns()),
        };
        let results = device.ids("results", prompts * row.width(), 1)?;
        let mut found = op.found(device, prompts, models)?;
        let (op, k, n) = (Arc::clone(op), self.k, self.s.len() as f64);
        let run = move |pass: &mut Pass<'_>, [s, results]: &mut [Tensor; 2]| {
            let more = more.as_ref();
            let f = Forward {
                s,
                groups: &groups,
                words: more.map(|[scores, ..]| Words {
                    scores,
                    strength: STRENGTH,
                }),
                mask: more.map(|[_, mask, _]| mask),
                y: more.map(|[.., y]| y),
                k,
                found: &mut found,
                results,
            };
            op.forward(pass, f);
        };
        let inputs = self.clone();
        let case = Case::new("finish", [s, results], run, move || inputs.want(row));
        Ok(case.ids(1, row.width(), k).work(14.0 * n, 8.0 * n))
    }

    /// s as it is left, and the rows of results.
    fn want(&self, row: AnswerRow) -> [Vec<f64>; 2] {
        let models = self.members.len();
        let mut s = wide(&self.s);
        if let Some(MoreInputs { words, mask, .. }) = &self.more {
            let strength = f64::from(STRENGTH);
            s = reference::by_domain(&s, &wide(words), &self.own, row.domains, strength);
            s = reference::mask(&s, mask, models);
        }
        #[expect(clippy::cast_possible_truncation, reason = "exact in f32")]
        let exact: Vec<f32> = s.iter().map(|score| *score as f32).collect();
        let (ids, best) = reference::top_k(&exact, models, row.k);
        let domains = reference::log_sum_exp(&s, models, &self.members, &self.offsets);
        let prompts = s.len() / models;
        let mut results = Vec::new();
        for b in 0..prompts {
            let ranks = b * row.k..(b + 1) * row.k;
            results.extend(ids[ranks.clone()].iter().map(|id| f64::from(*id)));
            results.extend(wide(&best[ranks]));
            results.extend(&domains[b * row.domains..][..row.domains]);
            if let Some(more) = &self.more {
                results.extend(wide(&more.y[b * RANK..][..RANK]));
            }
        }
        [s, results]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finish::MOST;
    use crate::ops::testing::{check, outputs};

    #[test]
    fn answers_match_f64_with_retired_and_masked_models_and_empty_domains() {
        let sizes = [
            (1, 1, 1, 1),
            (2, 7, 3, 7),
            (3, 65, 4, 10),
            (33, 200, 9, 1),
            (2, 201, 2, 3),
            (5, 700, 58, 20),
            (1, 2500, 300, MOST),
            (1, 2127, 58, 0),
        ];
        check(|device| all(device, &sizes));
    }

    /// The ids of the `k` best of `s`, in one domain.
    fn ranks(room: usize, k: usize, s: &[f32]) -> Vec<Vec<f32>> {
        let models = to_u32(s.len());
        let inputs = Inputs {
            k,
            s: s.to_vec(),
            members: (0..models).collect(),
            offsets: vec![0, models],
            own: vec![0; s.len()],
            more: None,
        };
        let op = || Arc::new(Finish::with_room(room));
        let all = outputs(|device| inputs.case(device, &op()));
        all.into_iter().map(|[_, row]| row).collect()
    }

    #[test]
    fn ties_go_to_the_smaller_id() {
        for room in [3000, 100] {
            for row in ranks(room, 5, &[1.0; 2100]) {
                assert_eq!(row[..5], [0.0, 1.0, 2.0, 3.0, 4.0]);
            }
            let s: Vec<f32> = noise(2100, 15).iter().map(|v| (v * 3.0).round()).collect();
            let (want, _) = reference::top_k(&s, s.len(), 20);
            let want: Vec<f32> = want.iter().map(|id| *id as f32).collect();
            for row in ranks(room, 20, &s) {
                assert_eq!(row[..20], want);
            }
        }
    }

    #[test]
    fn probabilities_match_hand_values_v2() {
        let s = [5.1031036f32, 10.206_207, 12.5, 1.7010345];
        let want = [0.000556644, 0.0915856, 0.9078392, 0.0000185390];
        for row in ranks(3000, 1, &s) {
            for (s, want) in s.iter().zip(want) {
                let p = f64::from(s - row[2]).exp();
                assert!((p - want).abs() < 1e-6 + 1e-5 * want, "{p}, not {want}");
            }
        }
    }

    /// Nothing is ranked by a score that is no number: its domain says so.
    #[test]
    fn a_score_that_is_no_number_shows_in_its_domain() {
        for row in ranks(3000, 1, &[1.0, f32::NAN, 2.0]) {
            assert!(!row[2].is_finite(), "{row:?}");
        }
    }

    /// Scores, domains and the words' scores of a lane are on their way together.
    #[cfg(feature = "gpu")]
    #[test]
    fn loads_of_a_lane_fly_together() {
        use super::super::{Dims, PAIRS};
        use crate::device::gpu::flight::fly;
        let dims = Dims {
            models: 2127,
            domains: 58,
            k: 10,
            chunks: 1,
            span: 4,
            rank: 384,
            words: 58,
            mask: 67,
            strength: 0.06,
        };
        let dims = bytemuck::cast_slice(bytemuck::bytes_of(&dims));
        let room = (16_352 - PAIRS) / 4;
        let op = Finish::with_room(room);
        let stored = |name: &str, place: usize| match name {
            "offsets" => to_u32(place * 36),
            _ => 0,
        };
        let trace = fly(&op.whole, dims, [0, 0, 0], 5, &stored);
        let first = ["s", "own", "mask"].map(|name| trace.in_flight(0, name, 1));
        assert_eq!(first, [9, 9, 9]);
        assert_eq!(trace.in_flight(1, "words", 1), 9);
        // Scores, words, y, offsets and members of a domain.
        assert!(trace.rounds <= 6, "{}", trace.rounds);
        assert_eq!(trace.scratch, 4 * room + PAIRS);
        let trace = fly(&op.part, dims, [0, 0, 0], 5, &stored);
        assert!(trace.rounds <= 2, "{}", trace.rounds);
    }
}
