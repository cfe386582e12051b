//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Backward, End, Forward, Linear, NARROW, Weight};
use crate::device::{Device, Pass, Tensor};
use crate::error::Result;
use crate::ops::case::{Case, each};
use crate::ops::reference::{self, noise, wide};
use crate::weights::View;

/// Forward and backward with a weight of two parts, for each of `sizes`: a label, T, in and out.
pub(crate) fn all(device: &Device, sizes: &[(&str, usize, usize, usize)]) -> Result<Vec<Case>> {
    let op = Arc::new(Linear::new());
    each(sizes, |(label, rows, inputs, outputs)| {
        let (x, w, b) = (
            noise(rows * inputs, 1),
            noise(outputs * inputs, 2),
            noise(outputs, 3),
        );
        let dy = noise(rows * outputs, 4);
        let forward = |end| forward_case(device, &op, [&x, &w, &b], end, NARROW);
        let backward = |add| backward_case(device, &op, [&dy, &w], inputs, add);
        let at = format!("{label} {rows}x{inputs} . {outputs}x{inputs}");
        let back = format!("{label} {rows}x{outputs} . {outputs}x{inputs}");
        Ok([
            forward(End::Bias)?.of(&at),
            forward(End::Gelu)?.of(&format!("gelu {at}")),
            backward(false)?.of(&format!("backward {back}")),
            backward(true)?.of(&format!("backward, added {back}")),
        ])
    })
}

/// `w` [out, in] in two parts, as query, key and value are three.
fn two_parts(w: &[f32], inputs: usize) -> [(&'static str, View<'_>); 2] {
    let (top, rest) = w.split_at(w.len() / inputs / 2 * inputs);
    [("top", top), ("rest", rest)].map(|(name, part)| (name, View::of_f32(part, inputs)))
}

/// `inputs`: x [T, in], W [out, in], b [out]; at most `narrow` rows take the narrow tile.
fn forward_case(
    device: &Device,
    op: &Arc<Linear>,
    [x, w, b]: [&[f32]; 3],
    end: End,
    narrow: usize,
) -> Result<Case> {
    let (outputs, columns) = (b.len(), w.len() / b.len());
    let weight = Weight::new(device, &two_parts(w, columns), b)?;
    let input = device.upload("x", columns, x)?;
    let y = device.scratch("y", input.rows(), outputs)?;
    let flops = 2.0 * (x.len() * outputs) as f64;
    let bytes = 4.0 * (y.len() + w.len() + x.len()) as f64;
    let op = Arc::clone(op);
    let run = move |pass: &mut Pass<'_>, [y]: &mut [Tensor; 1]| {
        let (x, w) = (&input, &weight);
        op.forward_at(pass, Forward { x, w, y }, end, narrow);
    };
    let [x, w, b] = [x, w, b].map(<[f32]>::to_vec);
    let want = move || {
        let y = reference::linear(&wide(&x), &wide(&w), &wide(&b));
        [match end {
            End::Bias => y,
            End::Gelu => reference::gelu(&y),
        }]
    };
    Ok(Case::new("linear", [y], run, want).work(flops, bytes))
}

/// `inputs`: dy [T, out], W [out, in]; onto ones with `add`.
fn backward_case(
    device: &Device,
    op: &Arc<Linear>,
    [dy, w]: [&[f32]; 2],
    inputs: usize,
    add: bool,
) -> Result<Case> {
    let outputs = w.len() / inputs;
    let weight = Weight::for_learning(device, &two_parts(w, inputs), &vec![9.0; outputs])?;
    let slopes = device.upload("dy", outputs, dy)?;
    let ones = vec![1.0; slopes.rows() * inputs];
    let base = add.then(|| device.upload("base", inputs, &ones));
    let (base, dx) = (
        base.transpose()?,
        device.scratch("dx", slopes.rows(), inputs)?,
    );
    let flops = 2.0 * (dy.len() * inputs) as f64;
    let bytes = 4.0 * (dy.len() + w.len() + dx.len()) as f64;
    let op = Arc::clone(op);
    let run = move |pass: &mut Pass<'_>, [dx]: &mut [Tensor; 1]| {
        let (dy, w, base) = (&slopes, &weight, base.as_ref());
        op.backward(pass, Backward { dy, w, base, dx });
    };
    let [dy, w] = [dy, w].map(<[f32]>::to_vec);
    let case = Case::new("linear", [dx], run, move || {
        let mut dx = reference::product(&wide(&dy), &wide(&w), inputs);
        if add {
            dx.iter_mut().for_each(|dx| *dx += 1.0);
        }
        [dx]
    });
    Ok(case.work(flops, bytes))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ops::testing::{check, devices, outputs, run};

    #[test]
    fn forward_and_backward_match_f64() {
        let sizes = [
            ("", 1, 1, 1),
            ("", 7, 65, 63),
            ("", 33, 130, 17),
            ("", 65, 64, 257),
            ("", 65, 128, 64),
        ];
        check(|device| all(device, &sizes));
    }

    #[test]
    fn both_tiles_match_f64_and_each_other() {
        for (rows, inputs, outs) in [(1, 1, 1), (7, 63, 65), (33, 17, 130), (65, 128, 64)] {
            let (x, w, b) = (
                noise(rows * inputs, 1),
                noise(outs * inputs, 2),
                noise(outs, 3),
            );
            let at = |end, narrow| {
                let make = |device: &Device| {
                    forward_case(device, &Linear::new().into(), [&x, &w, &b], end, narrow)
                };
                check(|device| Ok(vec![make(device)?]));
                outputs::<1>(make)
            };
            for end in [End::Bias, End::Gelu] {
                let tiles = [at(end, usize::MAX), at(end, 0)];
                assert_eq!(tiles[0], tiles[1], "the tile shows in the bits");
            }
        }
    }

    #[test]
    fn a_gradient_is_the_same_alone_and_in_company_and_with_any_threads() {
        let (rows, inputs, outs) = (230, 48, 100);
        let (dy, w) = (noise(rows * outs, 6), noise(outs * inputs, 7));
        let of = |device: &Device, dy: &[f32]| {
            let op = Linear::new().into();
            let mut case = backward_case(device, &op, [dy, &w], inputs, false).unwrap();
            case.check(device).unwrap().remove(0).got
        };
        for device in devices() {
            let all = of(&device, &dy);
            assert_eq!(of(&device, &dy[..outs]), all[..inputs]);
            let some = of(&device, &dy[64 * outs..130 * outs]);
            assert_eq!(some, all[64 * inputs..130 * inputs]);
        }
        let with = |threads| {
            let cpu = crate::device::cpu::Cpu::open(Some(threads)).unwrap();
            of(&Device::Cpu(cpu.into()), &dy)
        };
        assert_eq!(with(1), with(2));
        assert_eq!(with(1), with(3));
    }

    #[test]
    #[should_panic(expected = "not for learning")]
    fn a_weight_that_is_not_for_learning_is_refused() {
        let device = &devices()[0];
        let op = Linear::new();
        let weight = Weight::new(device, &[("w", View::of_f32(&[1.0], 1))], &[0.0]).unwrap();
        let dy = device.upload("dy", 1, &[1.0]).unwrap();
        let mut dx = device.scratch("dx", 1, 1).unwrap();
        run(device, |pass| {
            let b = Backward {
                dy: &dy,
                w: &weight,
                base: None,
                dx: &mut dx,
            };
            op.backward(pass, b);
        });
    }
}
