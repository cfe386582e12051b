//! Uses of the op with their results in f64.

use std::sync::Arc;

use super::{Backward, End, Forward, Joined, Linear, NormOf, Normed, Weight};
use crate::device::{Device, DeviceVariant, Pass, Place, Tensor};
use crate::error::Result;
use crate::ops::case::Case;
use crate::ops::reference::{self, noise, wide};
use crate::weights::View;

/// All uses with a weight of two parts, for each of `sizes`: a label, T, in and out. The first of
/// them also by each variant that is taken without having been measured. Norms are a GPU's alone.
pub(crate) fn all(device: &Device, sizes: &[(&str, usize, usize, usize)]) -> Result<Vec<Case>> {
    let mut cases = by_variant(device, DeviceVariant::Auto, sizes)?;
    let first = &sizes[..sizes.len().min(1)];
    for variant in [DeviceVariant::Skinny, DeviceVariant::Tiled] {
        cases.extend(by_variant(device, variant, first)?);
    }
    Ok(cases)
}

/// Products by the kernel for matrix units, one of each kind; `None` where it does not run.
#[cfg(feature = "cli")]
pub(crate) fn on_matrices(device: &Device) -> Result<Option<Vec<Case>>> {
    let op = Arc::new(Linear::new(device, DeviceVariant::Matrix));
    if !op.gpu.has_matrices() {
        return Ok(None);
    }
    let make = |inputs: usize| {
        let (rows, outputs) = (70, 132);
        let x = noise(rows * inputs, 1);
        (x, noise(outputs * inputs, 2), noise(outputs, 3))
    };
    let ((x, w, b), (long_x, long_w, long_b)) = (make(384), make(1536));
    Ok(Some(vec![
        forward_case(device, &op, [&x, &w, &b], End::Bias)?.of("matrix"),
        normed_case(device, &op, [&x, &w, &b], true)?.of("matrix, normed, gelu"),
        joined_case(device, &op, [&long_x, &long_w, &long_b])?.of("matrix, joined"),
    ]))
}

/// As [`all`], by one variant.
fn by_variant(
    device: &Device,
    variant: DeviceVariant,
    sizes: &[(&str, usize, usize, usize)],
) -> Result<Vec<Case>> {
    let op = Arc::new(Linear::new(device, variant));
    let mut cases: Vec<Case> = Vec::new();
    for (label, rows, inputs, outputs) in sizes.iter().copied() {
        let (x, w, b) = (
            noise(rows * inputs, 1),
            noise(outputs * inputs, 2),
            noise(outputs, 3),
        );
        let dy: Vec<f32> = noise(rows * outputs, 4).iter().map(|v| v / 4.0).collect();
        let forward = |end| forward_case(device, &op, [&x, &w, &b], end);
        let backward = |add| backward_case(device, &op, [&dy, &w], inputs, add);
        let at = format!("{label} {rows}x{inputs} . {outputs}x{inputs}");
        let back = format!("{label} {rows}x{outputs} . {outputs}x{inputs}");
        cases.extend([
            forward(End::Bias)?.of(&at),
            forward(End::Gelu)?.of(&format!("gelu {at}")),
            backward(false)?.of(&format!("backward {back}")),
            backward(true)?.of(&format!("backward, added {back}")),
        ]);
        if matches!(device, Device::Gpu(_)) && op.defers(&[(inputs, outputs)]) {
            let normed = |gelu| normed_case(device, &op, [&x, &w, &b], gelu);
            cases.extend([
                normed(false)?.of(&format!("normed {at}")),
                normed(true)?.of(&format!("normed, gelu {at}")),
                joined_case(device, &op, [&x, &w, &b])?.of(&format!("joined {at}")),
            ]);
        }
    }
    let name = match variant {
        DeviceVariant::Skinny => "linear_skinny",
        DeviceVariant::Tiled => "linear_tiled",
        DeviceVariant::Matrix | DeviceVariant::Fast => "linear_matrix",
        DeviceVariant::Auto | DeviceVariant::Any => "linear",
    };
    cases.iter_mut().for_each(|case| case.op = name);
    Ok(cases)
}

/// `w` [out, in] in two parts, as query, key and value are three.
fn two_parts(w: &[f32], inputs: usize) -> [(&'static str, View<'_>); 2] {
    let (top, rest) = w.split_at(w.len() / inputs / 2 * inputs);
    [("top", top), ("rest", rest)].map(|(name, part)| (name, View::of_f32(part, inputs)))
}

/// Operations and bytes of x [T, in] times W [out, in].
fn work(x: &[f32], w: &[f32], outputs: usize) -> (f64, f64) {
    let y = x.len() / (w.len() / outputs) * outputs;
    let flops = 2.0 * (x.len() * outputs) as f64;
    (flops, 4.0 * (y + w.len() + x.len()) as f64)
}

/// `inputs`: x [T, in], W [out, in], b [out].
fn forward_case(
    device: &Device,
    op: &Arc<Linear>,
    [x, w, b]: [&[f32]; 3],
    end: End,
) -> Result<Case> {
    let (outputs, columns) = (b.len(), w.len() / b.len());
    let weight = Weight::new(device, &two_parts(w, columns), b)?;
    let input = device.upload("x", columns, x)?;
    let y = device.scratch("y", input.rows(), outputs)?;
    let (flops, bytes) = work(x, w, outputs);
    let op = Arc::clone(op);
    let run = move |pass: &mut Pass<'_>, [y]: &mut [Tensor; 1]| {
        let (x, w) = (&input, &weight);
        op.forward_to(pass, Forward { x, w, y }, end);
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

const EPS: f32 = 1e-5;

/// A tensor [T + 1, columns] whose first row is NaN, and where the others are.
fn behind_a_row(
    device: &Device,
    label: &'static str,
    columns: usize,
    rows: &[f32],
) -> Result<(Tensor, Place)> {
    let mut all = vec![f32::NAN; columns];
    all.extend(rows);
    let place = Place::flat(columns, rows.len() / columns, columns);
    Ok((device.upload(label, columns, &all)?, place))
}

/// Mean and 1 / deviation of each row, in f64.
fn scales(x: &[f32], columns: usize) -> Vec<f64> {
    let of = |row: &[f32]| {
        let n = columns as f64;
        let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let square = |v: &f32| (f64::from(*v) - mean).powi(2);
        let variance = row.iter().map(square).sum::<f64>() / n;
        [mean, 1.0 / (variance + f64::from(EPS)).sqrt()]
    };
    x.chunks_exact(columns).flat_map(of).collect()
}

/// A product of the norm of x, whose mean is far from zero, and the scale that it leaves.
fn normed_case(
    device: &Device,
    op: &Arc<Linear>,
    [x, w, b]: [&[f32]; 3],
    gelu: bool,
) -> Result<Case> {
    let (outputs, columns) = (b.len(), w.len() / b.len());
    let x: Vec<f32> = x.iter().map(|v| v + 3.0).collect();
    let (gamma, beta) = (noise(columns, 5), noise(columns, 6));
    let weight = Weight::new(device, &two_parts(w, columns), b)?;
    let (input, place) = behind_a_row(device, "x", columns, &x)?;
    let y = device.scratch("y", place.rows, outputs)?;
    let scale = device.scratch("scale", place.rows, 2)?;
    let (flops, bytes) = work(&x, w, outputs);
    let op = Arc::clone(op);
    let norms = [&gamma, &beta].map(|values| device.upload("norm", columns, values));
    let [g, h] = norms;
    let norms = (g?, h?);
    let run = move |pass: &mut Pass<'_>, [y, scale]: &mut [Tensor; 2]| {
        let Pass::Gpu(pass) = pass else {
            panic!("a norm is deferred on a GPU alone");
        };
        let f = Normed {
            x: input.part(place),
            norm: NormOf {
                gamma: &norms.0,
                beta: &norms.1,
                eps: EPS,
            },
            scale,
            w: &weight,
            y,
        };
        op.normed(pass, f, gelu);
    };
    let [w, b] = [w, b].map(<[f32]>::to_vec);
    let want = move || {
        let eps = f64::from(EPS);
        let x64 = reference::layer_norm(&wide(&x), &wide(&gamma), &wide(&beta), eps);
        let y = reference::linear(&x64, &wide(&w), &wide(&b));
        let y = if gelu { reference::gelu(&y) } else { y };
        [y, scales(&x, columns)]
    };
    Ok(Case::new("linear", [y, scale], run, want)
        .work(flops, bytes)
        .within(3e-5))
}

/// A product with the norm of a residual added, by its scale.
#[expect(clippy::cast_possible_truncation, reason = "scales are f32")]
fn joined_case(device: &Device, op: &Arc<Linear>, [x, w, b]: [&[f32]; 3]) -> Result<Case> {
    let (outputs, columns) = (b.len(), w.len() / b.len());
    let rows = x.len() / columns;
    let residual: Vec<f32> = noise(rows * outputs, 7).iter().map(|v| v - 2.0).collect();
    let (gamma, beta) = (noise(outputs, 8), noise(outputs, 9));
    let weight = Weight::new(device, &two_parts(w, columns), b)?;
    let input = device.upload("x", columns, x)?;
    let (before, place) = behind_a_row(device, "residual", outputs, &residual)?;
    let scale: Vec<f32> = scales(&residual, outputs)
        .iter()
        .map(|v| *v as f32)
        .collect();
    let scale = device.upload("scale", 2, &scale)?;
    let y = device.scratch("y", rows + 1, outputs)?;
    let (flops, bytes) = work(x, w, outputs);
    let op = Arc::clone(op);
    let norms = [&gamma, &beta].map(|values| device.upload("norm", outputs, values));
    let [g, h] = norms;
    let norms = (g?, h?);
    let run = move |pass: &mut Pass<'_>, [y]: &mut [Tensor; 1]| {
        let Pass::Gpu(pass) = pass else {
            panic!("a norm is deferred on a GPU alone");
        };
        let f = Joined {
            x: &input,
            w: &weight,
            residual: before.part(place),
            norm: NormOf {
                gamma: &norms.0,
                beta: &norms.1,
                eps: EPS,
            },
            scale: &scale,
            y: y.part_mut(place),
        };
        op.joined(pass, f);
    };
    let [x, w, b] = [x, w, b].map(<[f32]>::to_vec);
    let want = move || {
        let eps = f64::from(EPS);
        let stream = reference::layer_norm(&wide(&residual), &wide(&gamma), &wide(&beta), eps);
        let y = reference::linear(&wide(&x), &wide(&w), &wide(&b));
        [y.iter().zip(stream).map(|(y, v)| y + v).collect()]
    };
    Ok(Case::new("linear", [y], run, want)
        .work(flops, bytes)
        .at(0, place)
        .within(3e-5))
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
    use crate::ops::testing::{check, devices, run};

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

    /// Each variant that the widths allow, with rows on both sides of its tiles.
    #[test]
    fn every_variant_matches_f64() {
        let sizes = [
            ("", 1, 64, 4),
            ("", 5, 192, 20),
            ("", 9, 384, 36),
            ("", 17, 64, 1160),
            ("", 33, 512, 12),
            ("", 67, 128, 68),
            ("", 130, 20, 64),
            ("", 65, 36, 132),
            ("", 3, 7, 5),
        ];
        for variant in [
            DeviceVariant::Skinny,
            DeviceVariant::Tiled,
            DeviceVariant::Matrix,
            DeviceVariant::Any,
        ] {
            check(|device| by_variant(device, variant, &sizes));
        }
    }

    /// Where the promise about bits ends: a variant gives the same ones every time, alone and in
    /// company; two variants do not.
    #[test]
    fn a_variant_gives_a_row_the_same_bits_alone_and_in_company() {
        let (rows, inputs, outs) = (70, 384, 64);
        let (x, w, b) = (
            noise(rows * inputs, 1),
            noise(outs * inputs, 2),
            noise(outs, 3),
        );
        for device in devices() {
            let of = |variant, x: &[f32]| {
                let op = Linear::new(&device, variant).into();
                let mut case = forward_case(&device, &op, [x, &w, &b], End::Gelu).unwrap();
                case.check(&device).unwrap().remove(0).got
            };
            let variants = [
                DeviceVariant::Skinny,
                DeviceVariant::Tiled,
                DeviceVariant::Matrix,
                DeviceVariant::Any,
            ];
            let all = variants.map(|variant| {
                let all = of(variant, &x);
                assert_eq!(of(variant, &x[..inputs]), all[..outs], "{variant:?}");
                assert_eq!(of(variant, &x[inputs..]), all[outs..], "{variant:?}");
                all
            });
            let gpu = matches!(device, Device::Gpu(_));
            assert_eq!(all[0] != all[1], gpu, "two variants have the same bits");
            let matrices = matches!(&device, Device::Gpu(gpu) if gpu.matrices().is_some());
            assert_eq!(all[1] != all[2], matrices, "matrix units have other bits");
        }
    }

    /// Of factors of 11 bits: a few parts in ten thousand, where the exact kinds have one in a million.
    #[test]
    fn fast_products_are_within_the_rounding_of_their_factors() {
        let (rows, inputs, outs) = (40, 384, 64);
        let (x, w, b) = (
            noise(rows * inputs, 1),
            noise(outs * inputs, 2),
            noise(outs, 3),
        );
        for device in devices() {
            let of = |variant| {
                let op = Linear::new(&device, variant).into();
                let mut case = forward_case(&device, &op, [&x, &w, &b], End::Bias).unwrap();
                let checked = case.check(&device).unwrap().remove(0);
                reference::worst(&checked.got, &checked.want)
            };
            let [exact, fast] = [DeviceVariant::Matrix, DeviceVariant::Fast].map(of);
            let matrices = matches!(&device, Device::Gpu(gpu) if gpu.matrices().is_some());
            assert!(exact < 1e-5, "{exact}");
            assert!(fast < if matrices { 1e-2 } else { 1e-5 }, "{fast}");
            assert_eq!(fast > 10.0 * exact, matrices, "{fast}, {exact}");
        }
    }

    #[test]
    fn a_gradient_is_the_same_alone_and_in_company_and_with_any_threads() {
        let (rows, inputs, outs) = (230, 48, 100);
        let (dy, w) = (noise(rows * outs, 6), noise(outs * inputs, 7));
        let of = |device: &Device, dy: &[f32]| {
            let op = Linear::new(device, DeviceVariant::Auto).into();
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
        let op = Linear::new(device, DeviceVariant::Auto);
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
