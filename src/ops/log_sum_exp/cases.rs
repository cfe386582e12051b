//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Forward, LogSumExp};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::LOWEST;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

/// For each of `sizes`, prompts, models and groups: group 0 has one member, the others share the
/// rest, and every seventh model is retired.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(LogSumExp::new());
    each(sizes, |(prompts, models, groups)| {
        let mut s: Vec<f32> = noise(prompts * models, 13)
            .iter()
            .map(|v| v * 12.5)
            .collect();
        let retired = |n: &usize| n % models % 7 == 5;
        (0..s.len()).filter(retired).for_each(|n| s[n] = LOWEST);
        let group = |m: usize| match m == 0 || groups == 1 {
            true => 0,
            false => 1 + m % (groups - 1),
        };
        let (mut members, mut offsets) = (Vec::new(), vec![0u32]);
        for g in 0..groups {
            members.extend((0..models).filter(|m| group(*m) == g).map(to_u32));
            offsets.push(to_u32(members.len()));
        }
        Ok([case(device, &op, models, s, [members, offsets])?])
    })
}

fn case(
    device: &Device,
    op: &Arc<LogSumExp>,
    models: usize,
    scores: Vec<f32>,
    [members, offsets]: [Vec<u32>; 2],
) -> Result<Case> {
    let s = device.upload("s", models, &scores)?;
    let member_list = device.upload_ids("members", 1, &members)?;
    let offset_list = device.upload_ids("offsets", 1, &offsets)?;
    let out = device.scratch("out", s.rows(), offsets.len() - 1)?;
    let (op, n) = (Arc::clone(op), scores.len() as f64);
    let run = move |pass: &mut Pass<'_>, [out]: &mut [Tensor; 1]| {
        let f = Forward {
            s: &s,
            members: &member_list,
            offsets: &offset_list,
            out,
        };
        op.forward(pass, f);
    };
    let case = Case::new("log_sum_exp", [out], run, move || {
        [reference::log_sum_exp(
            &wide(&scores),
            models,
            &members,
            &offsets,
        )]
    });
    Ok(case.work(12.0 * n, 8.0 * n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, outputs};

    #[test]
    fn groups_match_f64_with_retired_members() {
        check(|device| all(device, &[(1, 1, 1), (3, 65, 4), (5, 700, 9)]));
    }

    /// The sums of all of `s` as one group.
    fn sums(s: &[f32]) -> Vec<[Vec<f32>; 1]> {
        let lists = [(0..to_u32(s.len())).collect(), vec![0, to_u32(s.len())]];
        let op = || Arc::new(LogSumExp::new());
        outputs(|device| case(device, &op(), s.len(), s.to_vec(), lists.clone()))
    }

    #[test]
    fn probabilities_match_hand_values_v2() {
        let s = [5.1031036f32, 10.206_207, 12.5, 1.7010345];
        let want = [0.000556644, 0.0915856, 0.9078392, 0.0000185390];
        for [total] in sums(&s) {
            for (s, want) in s.iter().zip(want) {
                let p = f64::from(s - total[0]).exp();
                assert!((p - want).abs() < 1e-6 + 1e-5 * want, "{p}, not {want}");
            }
        }
    }

    #[test]
    fn a_group_without_eligible_members_stays_lowest() {
        for [total] in sums(&[LOWEST, LOWEST]) {
            assert!(total[0] < -1e38);
        }
    }
}
