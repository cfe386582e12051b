//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{ByDomain, Forward};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::num::to_u32;
use crate::ops::LOWEST;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

/// Every seventh model is retired, for each of `sizes`: prompts, models and domains.
pub(crate) fn all(device: &Device, sizes: &[(usize, usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(ByDomain::new());
    each(sizes, |(prompts, models, domains)| {
        let mut scores = noise(prompts * models, 21);
        let retired = |n: &usize| n % models % 7 == 5;
        (0..scores.len())
            .filter(retired)
            .for_each(|n| scores[n] = LOWEST);
        let own: Vec<u32> = (0..models).map(|m| to_u32(m * 13 % domains)).collect();
        let of_prompts = noise(prompts * domains, 22);
        let case = |strength: f32| -> Result<Case> {
            let s = device.upload("s", models, &scores)?;
            let added = device.upload("domains", domains, &of_prompts)?;
            let own_list = device.upload_ids("own", 1, &own)?;
            let op = Arc::clone(&op);
            let run = move |pass: &mut Pass<'_>, [s]: &mut [Tensor; 1]| {
                let f = Forward {
                    domains: &added,
                    own: &own_list,
                    strength,
                    s,
                };
                op.forward(pass, f);
            };
            let (scores, of_prompts, own) = (wide(&scores), wide(&of_prompts), own.clone());
            let n = scores.len() as f64;
            let case = Case::new("by_domain", [s], run, move || {
                let strength = f64::from(strength);
                [reference::by_domain(
                    &scores,
                    &of_prompts,
                    &own,
                    domains,
                    strength,
                )]
            });
            Ok(case.work(2.0 * n, 12.0 * n))
        };
        Ok([case(0.6)?, case(-0.3)?])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::check;

    #[test]
    fn models_get_their_domains_and_retired_ones_stay_lowest() {
        check(|device| all(device, &[(1, 1, 1), (3, 65, 4), (5, 700, 9)]));
    }
}
