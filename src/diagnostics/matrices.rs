//! Whether a GPU's matrix units give the right sums, and always the same ones.
//!
//! Modules with matrices do not declare that lanes share workgroup memory (`docs/gpu.md`), so a
//! driver may let lanes race there. What a race leaves behind differs from run to run.

use crate::device::Device;
use crate::error::Result;
use crate::ops::case::Case;
use crate::ops::linear::cases;
use crate::ops::reference;

/// Runs of all kinds of products together.
const RUNS: usize = 300;

/// Why products of `device` may not be computed on matrix units; `None`: they may.
///
/// Errors: the device failed.
pub(super) fn fault(device: &Device) -> Result<Option<String>> {
    if matches!(device, Device::Cpu(_)) {
        return Ok(Some("the CPU has none".to_owned()));
    }
    match cases::on_matrices(device)? {
        Some(cases) => look(device, cases),
        None => {
            let none = "the adapter has none of f16 with sums in f32, its driver shows none, or it \
                        has too little workgroup memory";
            Ok(Some(none.to_owned()))
        }
    }
}

/// Why `cases` of one op are not right, each run equally often.
fn look(device: &Device, mut cases: Vec<Case>) -> Result<Option<String>> {
    let runs = RUNS.div_ceil(cases.len());
    for case in &mut cases {
        let mut first: Option<Vec<Vec<f32>>> = None;
        for run in 0..runs {
            let outputs = case.check(device)?;
            for output in &outputs {
                let worst = reference::worst(&output.got, &output.want);
                if worst > case.bound {
                    return Ok(Some(format!(
                        "{}: run {run} is off by {worst:.1e} of at most {:.0e}",
                        case.label, case.bound
                    )));
                }
            }
            let got = outputs.into_iter().map(|output| output.got).collect();
            if first.get_or_insert_with(|| Vec::clone(&got)) != &got {
                return Ok(Some(format!(
                    "{}: run {run} has other bits than the first",
                    case.label
                )));
            }
        }
    }
    Ok(None)
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::device::Pass;
    use crate::ops::testing::devices;

    /// A case whose run `broken` gives `bits`.
    fn breaks(device: &Device, broken: usize, bits: f32) -> Case {
        let y = device.scratch("y", 1, 1).unwrap();
        let mut run = 0;
        let step = move |_: &mut Pass<'_>, [y]: &mut [crate::device::Tensor; 1]| {
            run += 1;
            y.f32_mut()[0] = if run == broken { bits } else { 1.0 };
        };
        Case::new("broken", [y], step, || [vec![1.0]])
    }

    #[test]
    fn one_run_of_many_that_is_wrong_or_different_is_found() {
        let cpu = &devices()[0];
        let of = |broken, bits| look(cpu, vec![breaks(cpu, broken, bits)]).unwrap();
        assert_eq!(of(0, 0.0), None);
        assert!(of(RUNS, 1.1).is_some_and(|why| why.contains("run 299 is off")));
        assert!(of(7, f32::NAN).is_some_and(|why| why.contains("run 6 is off")));
        assert!(of(2, 1.0 + f32::EPSILON).is_some_and(|why| why.contains("other bits")));
        assert!(fault(cpu).unwrap().is_some_and(|why| why.contains("CPU")));
    }

    #[test]
    fn matrix_units_are_right_where_there_are_any() {
        for device in devices() {
            let fault = fault(&device).unwrap();
            let has = matches!(&device, Device::Gpu(gpu) if gpu.matrices().is_some());
            if std::env::var_os("HUBROUTER_TEST_MATRICES").is_some() {
                assert_eq!(has, matches!(device, Device::Gpu(_)), "{fault:?}");
            }
            assert_eq!(fault.is_none(), has, "{fault:?}");
        }
    }
}
