//! Which batches the CPU computes sooner than a GPU: whole routes of both, in turns.

use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::device::{CpuShare, DeviceChoice};
use crate::error::{Error, Result};
use crate::options::{Options, Precision};
use crate::route::{Request, Router};

/// Tokens of the batches that are measured, ascending.
pub(super) const TOKENS: [usize; 9] = [8, 16, 32, 64, 128, 256, 512, 1024, 2048];

/// Most tokens of one of their prompts.
const LONGEST: usize = 32;

/// Routes of each that are timed, at most.
const TIMES: usize = 5;

/// A GPU that takes longer for a batch, in microseconds, and is the slower one, will not win with a
/// larger one.
const HOPELESS: f64 = 5e5;

/// The routes of one batch.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct TunedBatch {
    /// Tokens of its prompts.
    pub tokens: usize,
    /// Microseconds by the CPU, in f32.
    pub cpu_us: f64,
    /// Microseconds by the GPU.
    pub gpu_us: f64,
}

/// Routes on the GPU of `choice` and on the CPU, by the store in the folder `store`. `options`: of
/// both; `progress`: batches of [`TOKENS`] that are done.
///
/// Errors: one of them cannot be opened, or fails.
pub(super) fn measure(
    store: &Path,
    choice: &DeviceChoice,
    options: &Options,
    progress: &mut dyn FnMut(usize),
) -> Result<(Vec<TunedBatch>, CpuShare)> {
    // What computes in place of the GPU has to have its numbers.
    let options = options.clone().precision(Precision::F32);
    let open = |device: DeviceChoice| Router::open(store, options.clone().device(device));
    let (cpu, gpu) = (open(DeviceChoice::Cpu)?, open(choice.clone())?);
    let mut measured = Vec::with_capacity(TOKENS.len());
    for (done, tokens) in TOKENS.into_iter().enumerate() {
        progress(done);
        let prompts = prompts(tokens);
        let both = || Ok::<_, Error>([route(&cpu, &prompts)?, route(&gpu, &prompts)?]);
        // Kernels that such a batch needs first are compiled now.
        both()?;
        let mut times = [const { Vec::new() }; 2];
        while times[1].len() < TIMES {
            let took = both()?;
            times
                .iter_mut()
                .zip(took)
                .for_each(|(times, took)| times.push(took));
            if took[1] > HOPELESS {
                break;
            }
        }
        let [cpu_us, gpu_us] = times.map(median);
        measured.push(TunedBatch {
            tokens,
            cpu_us,
            gpu_us,
        });
        if gpu_us > HOPELESS && cpu_us < gpu_us {
            break;
        }
    }
    progress(TOKENS.len());
    let share = CpuShare {
        threads: cpu.threads(),
        tokens: wins(measured.iter().map(|m| (m.tokens, [m.cpu_us, m.gpu_us]))),
    };
    Ok((measured, share))
}

/// The last size at which, as at all before it, the first is the faster or as fast; 0 without any.
/// `measured`: ascending sizes, and the times of both.
pub(super) fn wins(measured: impl Iterator<Item = (usize, [f64; 2])>) -> usize {
    let won = measured.take_while(|(_, [first, second])| first <= second);
    won.last().map_or(0, |(size, _)| size)
}

/// Requests that have so many tokens together, two of each being special ones.
fn prompts(tokens: usize) -> Vec<Request> {
    let each = tokens.min(LONGEST);
    let text = vec!["model"; each - 2].join(" ");
    vec![Request::new(text).top(1); tokens / each]
}

/// Microseconds of a call with `requests`.
fn route(router: &Router, requests: &[Request]) -> Result<f64> {
    let began = Instant::now();
    let answers = router.route_batch(requests);
    let took = began.elapsed().as_secs_f64() * 1e6;
    answers
        .into_iter()
        .try_for_each(|answer| answer.map(drop))?;
    Ok(took)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wins_up_to_the_size_that_it_loses_first() {
        let of = |times: &[[f64; 2]]| wins(TOKENS.into_iter().zip(times.iter().copied()));
        assert_eq!(of(&[[1.0, 2.0], [2.0, 2.0], [3.0, 2.0], [1.0, 2.0]]), 16);
        assert_eq!(of(&[[3.0, 2.0], [1.0, 2.0]]), 0);
        assert_eq!(of(&[[1.0, 2.0]; 3]), 32);
        assert_eq!(of(&[[1.0, 2.0]; 9]), 2048);
        assert_eq!(of(&[]), 0);
    }

    #[test]
    fn batches_have_the_tokens_that_they_are_measured_for() {
        let options = Options::default().device("cpu").threads(2);
        let router = Router::open("weights/cmrbench", options).expect("the bundled router");
        for tokens in &TOKENS[..7] {
            let answers = router.route_batch(&prompts(*tokens)).into_iter();
            let found: usize = answers
                .map(|answer| answer.expect("an answer").tokens)
                .sum();
            assert_eq!(found, *tokens);
        }
    }

    #[test]
    fn a_median_is_that_of_what_was_timed() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![5.0]), 5.0);
    }
}
