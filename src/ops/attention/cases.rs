//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Attention, Backward, Forward, query_tiles};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};

/// Forward and backward, for each of `sizes`: offsets of prompts, heads and their width.
pub(crate) fn all(device: &Device, sizes: &[(&[u32], usize, usize)]) -> Result<Vec<Case>> {
    each(sizes, |(offsets, heads, width)| {
        let op = Arc::new(Attention::new(device, width)?);
        let (tokens, hidden) = (offsets[offsets.len() - 1] as usize, heads * width);
        let (qkv, dy) = (noise(tokens * 3 * hidden, 7), noise(tokens * hidden, 14));
        Ok([
            forward_case(device, &op, offsets, &qkv)?,
            backward_case(device, &op, offsets, &qkv, &dy)?.of("backward"),
        ])
    })
}

/// Products of a query with a key, over all prompts.
fn pairs(offsets: &[u32]) -> f64 {
    let lengths = offsets.windows(2).map(|pair| f64::from(pair[1] - pair[0]));
    lengths.map(|n| n * n).sum()
}

fn forward_case(
    device: &Device,
    op: &Arc<Attention>,
    offsets: &[u32],
    values: &[f32],
) -> Result<Case> {
    let tokens = offsets[offsets.len() - 1] as usize;
    let (hidden, width) = (values.len() / tokens / 3, op.width);
    let qkv = device.upload("qkv", 3 * hidden, values)?;
    let offset_list = device.upload_ids("offsets", 1, offsets)?;
    let tiles = device.upload_ids("tiles", 2, &query_tiles(offsets))?;
    let y = device.scratch("y", tokens, hidden)?;
    let (op, n) = (Arc::clone(op), y.len() as f64);
    let run = move |pass: &mut Pass<'_>, [y]: &mut [Tensor; 1]| {
        let f = Forward {
            qkv: &qkv,
            offsets: &offset_list,
            tiles: &tiles,
            y,
        };
        op.forward(pass, f);
    };
    let flops = 4.0 * pairs(offsets) * hidden as f64;
    let (values, offsets) = (wide(values), offsets.to_vec());
    let want = move || [reference::attention(&values, &offsets, hidden, width)];
    Ok(Case::new("attention", [y], run, want).work(flops, 16.0 * n))
}

fn backward_case(
    device: &Device,
    op: &Arc<Attention>,
    offsets: &[u32],
    values: &[f32],
    slopes: &[f32],
) -> Result<Case> {
    let tokens = offsets[offsets.len() - 1] as usize;
    let (hidden, width) = (slopes.len() / tokens, op.width);
    let qkv = device.upload("qkv", 3 * hidden, values)?;
    let dy = device.upload("dy", hidden, slopes)?;
    let offset_list = device.upload_ids("offsets", 1, offsets)?;
    let tiles = device.upload_ids("tiles", 2, &query_tiles(offsets))?;
    let mut statistics = device.scratch("statistics", tokens, 3 * hidden / width)?;
    let dqkv = device.scratch("dqkv", tokens, 3 * hidden)?;
    let (op, n) = (Arc::clone(op), dy.len() as f64);
    let run = move |pass: &mut Pass<'_>, [dqkv]: &mut [Tensor; 1]| {
        let b = Backward {
            qkv: &qkv,
            offsets: &offset_list,
            tiles: &tiles,
            dy: &dy,
            statistics: &mut statistics,
            dqkv,
        };
        op.backward(pass, b);
    };
    let flops = 10.0 * pairs(offsets) * hidden as f64;
    let (values, slopes, offsets) = (wide(values), wide(slopes), offsets.to_vec());
    let case = Case::new("attention", [dqkv], run, move || {
        [reference::attention_backward(
            &values, &offsets, hidden, width, &slopes,
        )]
    });
    Ok(case.work(flops, 28.0 * n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::to_u32;
    use crate::ops::testing::{assert_close, check, outputs};

    fn offsets_of(lengths: &[usize]) -> Vec<u32> {
        let mut offsets = vec![0u32];
        for length in lengths {
            offsets.push(offsets[offsets.len() - 1] + to_u32(*length));
        }
        offsets
    }

    #[test]
    fn ragged_prompts_and_their_gradients_match_f64() {
        let batches = [
            (offsets_of(&[1]), 1, 4),
            (offsets_of(&[3, 1, 16, 17, 2]), 3, 32),
            (offsets_of(&[65, 7]), 2, 64),
            (offsets_of(&[130]), 1, 5),
        ];
        let sizes = batches
            .each_ref()
            .map(|(offsets, heads, width)| (&offsets[..], *heads, *width));
        check(|device| all(device, &sizes));
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let (offsets, hidden) = (offsets_of(&[33, 5]), 32);
        let qkv: Vec<f32> = noise(38 * 3 * hidden, 7).iter().map(|v| v * 30.0).collect();
        let dy = noise(38 * hidden, 14);
        check(|device| {
            let op = Attention::new(device, 16)?.into();
            let forward = forward_case(device, &op, &offsets, &qkv)?;
            let backward = backward_case(device, &op, &offsets, &qkv, &dy)?;
            Ok(vec![forward.within(2e-4), backward.within(2e-3)])
        });
    }

    #[test]
    fn forward_matches_hand_values_v16() {
        // Q, K, V of the two real keys; the third row is masked there and absent here.
        let qkv = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 2.0];
        let want = [0.6697615, 0.6604769, 0.5, 1.0];
        for [y] in outputs(|device| {
            let op = Attention::new(device, 2)?.into();
            forward_case(device, &op, &[0, 2], &qkv)
        }) {
            assert_close("V16", &y, &want, 1e-6);
        }
    }

    #[test]
    fn a_prompt_has_the_same_gradient_in_any_company() {
        let (heads, width) = (2, 16);
        let row = 3 * heads * width;
        let (qkv, dy) = (noise(50 * row, 7), noise(50 * row / 3, 14));
        let gradients = |offsets: &[u32], qkv: &[f32], dy: &[f32]| {
            outputs::<1>(|device| {
                let op = Attention::new(device, width)?.into();
                backward_case(device, &op, offsets, qkv, dy)
            })
        };
        let together = gradients(&offsets_of(&[19, 27, 4]), &qkv, &dy);
        let middle = (&qkv[19 * row..46 * row], &dy[19 * row / 3..46 * row / 3]);
        let alone = gradients(&[0, 27], middle.0, middle.1);
        for ([together], [alone]) in together.iter().zip(&alone) {
            assert_eq!(together[19 * row..46 * row], *alone);
        }
    }

    #[test]
    fn a_prompt_has_the_same_output_in_any_company() {
        for (heads, width) in [(2, 16), (1, 5), (1, 64)] {
            let row = 3 * heads * width;
            let qkv = noise(90 * row, 7);
            let forward = |offsets: &[u32], qkv: &[f32]| {
                outputs::<1>(|device| {
                    let op = Attention::new(device, width)?.into();
                    forward_case(device, &op, offsets, qkv)
                })
            };
            let together = forward(&offsets_of(&[19, 67, 4]), &qkv);
            let alone = forward(&[0, 67], &qkv[19 * row..86 * row]);
            for ([together], [alone]) in together.iter().zip(&alone) {
                assert_eq!(together[19 * row / 3..86 * row / 3], *alone);
            }
        }
    }

    #[test]
    fn backward_matches_hand_values_v16() {
        // Three queries see two keys there: the reference can, packed prompts cannot.
        let q = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        let (k, v) = ([1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0]);
        let dy = [1.0, 0.0, 0.0, 1.0, 1.0, -1.0];
        let [dq, dk, dv] = reference::head_backward(&q, &k, &v, &dy, 2);
        let given = [0.1563986, 0.0, -0.3535534, 0.0, 0.4691958, 0.0];
        assert_close("V16 dQ", &given, &dq, 1e-6);
        let given = [0.6255944, 0.1156424, -0.6255944, -0.1156424];
        assert_close("V16 dK", &given, &dk, 1e-6);
        let given = [1.3395231, -0.1697615, 0.6604769, 0.1697615];
        assert_close("V16 dV", &given, &dv, 1e-6);

        let qkv = [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 2.0];
        let dy = [1.0, 0.0, 0.0, 1.0];
        for [dqkv] in outputs(|device| {
            let op = Attention::new(device, 2)?.into();
            backward_case(device, &op, &[0, 2], &qkv, &dy)
        }) {
            let dq = [dqkv[0], dqkv[1], dqkv[6], dqkv[7]];
            assert_close("V16 dQ", &dq, &[0.1563986, 0.0, -0.3535534, 0.0], 1e-6);
        }
    }
}
