//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Backward, Forward, NormedStates, Pool, Pooling};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{Case, each, framed};
use crate::ops::reference::{self, noise, wide};

/// Forward and backward of both poolings, for each of `sizes`: offsets of prompts, and H. A
/// prompt's row is the middle one of three.
pub(crate) fn all(device: &Device, sizes: &[(&[u32], usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(Pool::new());
    let mut cases = each(sizes, |(offsets, hidden)| {
        let prompts = offsets.len() - 1;
        let x = noise(offsets[prompts] as usize * hidden, 9);
        let dh = noise(prompts * hidden, 12);
        let forward = |pooling| forward_case(device, &op, pooling, hidden, &x, offsets);
        let backward = |pooling| backward_case(device, &op, pooling, hidden, &dh, offsets);
        Ok([
            forward(Pooling::Mean)?.of("mean"),
            forward(Pooling::Cls)?.of("first"),
            backward(Pooling::Mean)?.of("backward mean"),
            backward(Pooling::Cls)?.of("backward first"),
        ])
    })?;
    let taken = |size: &&(&[u32], usize)| Pool::norms(size.1);
    for (offsets, hidden) in sizes.iter().filter(taken) {
        if matches!(device, Device::Gpu(_)) {
            for pooling in [Pooling::Mean, Pooling::Cls] {
                cases.push(normed_case(device, &op, pooling, *hidden, offsets)?);
            }
        }
    }
    Ok(cases)
}

/// Of three states the first and the last as layers, and the second as the output.
fn normed_case(
    device: &Device,
    op: &Arc<Pool>,
    pooling: Pooling,
    hidden: usize,
    offsets: &[u32],
) -> Result<Case> {
    const EPS: f32 = 1e-5;
    let (prompts, tokens) = (offsets.len() - 1, offsets[offsets.len() - 1] as usize);
    let size = tokens * hidden;
    let values: Vec<f32> = noise(3 * size, 13).iter().map(|v| v + 2.0).collect();
    let norms = noise(2 * 2 * hidden, 14);
    let states = device.upload("states", hidden, &values)?;
    let norm_rows = device.upload("norms", hidden, &norms)?;
    let sources = [[0, 1], [2, 0], [1, 1]];
    let source_list = device.upload_ids("sources", 2, &sources.concat())?;
    let offset_list = device.upload_ids("offsets", 1, offsets)?;
    let outputs = [
        device.scratch("pooled", prompts, hidden)?,
        device.scratch("units", prompts * 2, hidden)?,
    ];
    let op = Arc::clone(op);
    let n = values.len() as f64;
    let run = move |pass: &mut Pass<'_>, [pooled, units]: &mut [Tensor; 2]| {
        let Pass::Gpu(pass) = pass else {
            panic!("a norm is deferred on a GPU alone");
        };
        let f = NormedStates {
            pooling,
            tokens,
            states: &states,
            norms: &norm_rows,
            eps: EPS,
            sources: &source_list,
            offsets: &offset_list,
            pooled,
            units,
        };
        op.normed(pass, f);
    };
    let offsets = offsets.to_vec();
    let want = move || {
        let of = |[state, norm]: [u32; 2], pooling| {
            let x = wide(&values[state as usize * size..][..size]);
            let norm = wide(&norms[norm as usize * 2 * hidden..][..2 * hidden]);
            let (gamma, beta) = norm.split_at(hidden);
            let x = reference::layer_norm(&x, gamma, beta, f64::from(EPS));
            reference::pool(pooling, &x, &offsets, hidden)
        };
        let layers = [sources[0], sources[1]];
        let layers = layers.map(|source| {
            let mean = of(source, Pooling::Mean);
            reference::normalize(&mean, hidden)
        });
        let rows = |prompt: usize| {
            let layers = layers.iter();
            layers.flat_map(move |layer| layer[prompt * hidden..][..hidden].to_vec())
        };
        [
            of(sources[2], pooling),
            (0..prompts).flat_map(rows).collect(),
        ]
    };
    let case = Case::new("pool", outputs, run, want).of("of norms");
    Ok(case.work(4.0 * n, 8.0 * n).within(3e-5))
}

fn forward_case(
    device: &Device,
    op: &Arc<Pool>,
    pooling: Pooling,
    hidden: usize,
    values: &[f32],
    offsets: &[u32],
) -> Result<Case> {
    let x = device.upload("x", hidden, values)?;
    let offset_list = device.upload_ids("offsets", 1, offsets)?;
    let before = vec![0.0; (offsets.len() - 1) * hidden];
    let (h, place) = framed(device, "h", hidden, &before, (hidden, 2 * hidden))?;
    let (op, n, rows) = (Arc::clone(op), x.len() as f64, before.len() as f64);
    let run = move |pass: &mut Pass<'_>, [h]: &mut [Tensor; 1]| {
        let f = Forward {
            pooling,
            x: &x,
            offsets: &offset_list,
            h: h.part_mut(place),
        };
        op.forward(pass, f);
    };
    let (values, offsets) = (wide(values), offsets.to_vec());
    let want = move || [reference::pool(pooling, &values, &offsets, hidden)];
    let case = Case::new("pool", [h], run, want).at(0, place);
    Ok(case.work(n, 4.0 * (n + rows)))
}

fn backward_case(
    device: &Device,
    op: &Arc<Pool>,
    pooling: Pooling,
    hidden: usize,
    slopes: &[f32],
    offsets: &[u32],
) -> Result<Case> {
    let dh = device.upload("dh", hidden, slopes)?;
    let offset_list = device.upload_ids("offsets", 1, offsets)?;
    let tokens = offsets[offsets.len() - 1] as usize;
    let dx = device.scratch("dx", tokens, hidden)?;
    let (op, n) = (Arc::clone(op), dx.len() as f64);
    let run = move |pass: &mut Pass<'_>, [dx]: &mut [Tensor; 1]| {
        let b = Backward {
            pooling,
            dh: &dh,
            offsets: &offset_list,
            dx,
        };
        op.backward(pass, b);
    };
    let (slopes, offsets) = (wide(slopes), offsets.to_vec());
    let want = move || [reference::pool_backward(pooling, &slopes, &offsets, hidden)];
    Ok(Case::new("pool", [dx], run, want).work(n, 4.0 * n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, check, outputs};

    #[test]
    fn mean_matches_hand_values_v16() {
        for [h] in outputs(|device| {
            let op = Pool::new().into();
            forward_case(
                device,
                &op,
                Pooling::Mean,
                2,
                &[1.0, 2.0, 3.0, 4.0],
                &[0, 2],
            )
        }) {
            assert_close("V16 pooling", &h, &[2.0, 3.0], 1e-6);
        }
    }

    #[test]
    fn each_prompt_has_its_own_rows_and_gradients() {
        let offsets = &[0u32, 1, 8, 71, 72][..];
        check(|device| all(device, &[1, 65, 384].map(|hidden| (offsets, hidden))));
    }
}
