//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Forward, TopK, TopKWorkspace};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

/// The best of noise, for each of `sizes`: prompts, models and k.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(TopK::new());
    each(sizes, |(prompts, models, k)| {
        let case = case(device, &op, models, k, noise(prompts * models, 14))?;
        Ok([case.of(&format!("{k} of {models}"))])
    })
}

/// Exact, ids and scores.
fn case(
    device: &Device,
    op: &Arc<TopK>,
    models: usize,
    k: usize,
    scores: Vec<f32>,
) -> Result<Case> {
    let s = device.upload("s", models, &scores)?;
    let prompts = s.rows();
    let mut found = TopKWorkspace::new(device, prompts, models)?;
    let best = device.scratch("scores", prompts * k, 1)?;
    let ids = device.ids("ids", prompts * k, 1)?;
    let (op, n) = (Arc::clone(op), s.len() as f64);
    let run = move |pass: &mut Pass<'_>, [scores, ids]: &mut [Tensor; 2]| {
        let (s, found) = (&s, &mut found);
        let f = Forward {
            s,
            k,
            found,
            scores,
            ids,
        };
        op.forward(pass, f);
    };
    let case = Case::new("top_k", [best, ids], run, move || {
        let (ids, best) = reference::top_k(&scores, models, k);
        [wide(&best), ids.into_iter().map(f64::from).collect()]
    });
    Ok(case.ids(1).work(n, 4.0 * n).within(1e-12))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::LOWEST;
    use crate::ops::testing::check;
    use crate::ops::top_k::MOST;

    #[test]
    fn ranks_match_a_stable_sort() {
        let sizes = [
            (1, 1, 1),
            (2, 7, 7),
            (3, 65, 10),
            (2, 1024, 3),
            (2, 1025, 65),
            (1, 2500, MOST),
        ];
        check(|device| all(device, &sizes));
    }

    fn check_one(k: usize, s: &[f32]) {
        check(|device| {
            let op = TopK::new().into();
            Ok(vec![case(device, &op, s.len(), k, s.to_vec())?])
        });
    }

    #[test]
    fn ties_go_to_the_smaller_id() {
        let s: Vec<f32> = noise(2100, 15).iter().map(|v| (v * 3.0).round()).collect();
        check_one(20, &s);
        check_one(5, &[1.0; 2100]);
    }

    #[test]
    fn the_lowest_score_ranks_last() {
        let mut s = noise(70, 16);
        s[3] = LOWEST;
        s[69] = LOWEST;
        check_one(70, &s);
    }
}
