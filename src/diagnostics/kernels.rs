//! Timed kernels for benches: time, arithmetic and bytes of each case, and the device's peaks.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::cases::{self, CaseScale};
use crate::device::cpu::Cpu;
use crate::device::{Device, DeviceChoice, DeviceVariant, Pass, Plan, Tensor};
use crate::error::Result;
use crate::ops::case::{Case, UPLOADS};
use crate::ops::peak::{CHAINS, Peak};

/// Every kernel of a route and of an update on one device, at the shapes of all-MiniLM-L6-v2.
pub struct KernelBench {
    device: Device,
    peak: Peak,
    cases: Vec<Case>,
}

/// The measured peaks of a device.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Peaks {
    /// Bytes a second that a copy of 64 MiB reads and writes.
    pub bytes: f64,
    /// Operations a second of independent multiply-adds in registers, each as two.
    pub flops: f64,
}

impl fmt::Debug for KernelBench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelBench")
            .field("device", &self.device())
            .finish_non_exhaustive()
    }
}

impl KernelBench {
    /// All for `prompts` prompts of together `tokens` tokens and a hub of `models`.
    pub fn open(
        choice: &DeviceChoice,
        threads: usize,
        tokens: usize,
        prompts: usize,
        models: usize,
    ) -> Result<Self> {
        let scale = CaseScale::of_minilm(tokens, prompts, models);
        let host = Arc::new(Cpu::open(Some(threads))?);
        let device = Device::open(choice, &host, None, DeviceVariant::Auto)?.device;
        let cases = cases::all(&device, scale)?;
        let peak = Peak::new();
        Ok(Self {
            device,
            peak,
            cases,
        })
    }

    /// `cpu`, or the adapter's name.
    pub fn device(&self) -> &str {
        self.device.name()
    }

    /// Label, operations and bytes of each case.
    pub fn cases(&self) -> Vec<(String, f64, f64)> {
        self.cases
            .iter()
            .map(|case| (case.label.clone(), case.flops, case.bytes))
            .collect()
    }

    /// Seconds of one run of case `index`: the mean of `repeats` in one pass.
    pub fn time(&mut self, index: usize, repeats: usize) -> Result<f64> {
        let case = &mut self.cases[index];
        seconds(&self.device, repeats, |pass| case.run(pass))
    }

    /// The device's peaks, measured now.
    pub fn peaks(&self) -> Result<Peaks> {
        const WORDS: usize = 8 << 20;
        const LANES: usize = 1 << 16;
        let (turns, repeats) = match self.device {
            Device::Cpu(_) => (400, 3),
            Device::Gpu(_) => (100, 3),
        };
        let peak = &self.peak;
        let x = self.device.upload("x", 1, &vec![0.5; WORDS])?;
        let mut y = self.device.scratch("y", WORDS, 1)?;
        let copy = best(&self.device, repeats, |pass| peak.copy(pass, &x, &mut y))?;
        let small = self.device.upload("x", 1, &vec![0.5; LANES])?;
        let mut y: Tensor = self.device.scratch("y", LANES, 1)?;
        let work = best(&self.device, repeats, |pass| {
            peak.multiply_add(pass, &small, turns, &mut y)
        })?;
        Ok(Peaks {
            bytes: 8.0 * WORDS as f64 / copy,
            flops: 2.0 * (CHAINS * LANES * turns) as f64 / work,
        })
    }
}

/// The shortest of three means, after one run to warm up.
pub(super) fn best(
    device: &Device,
    repeats: usize,
    mut run: impl FnMut(&mut Pass<'_>) + Send,
) -> Result<f64> {
    seconds(device, 1, &mut run)?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        best = best.min(seconds(device, repeats, &mut run)?);
    }
    Ok(best)
}

/// Seconds of one of `repeats` runs in a pass; by the device's clock where it has one.
fn seconds(
    device: &Device,
    repeats: usize,
    mut run: impl FnMut(&mut Pass<'_>) + Send,
) -> Result<f64> {
    let mut plan = Plan::new(device, (), UPLOADS, 0)?;
    let began = Instant::now();
    let ((), outcome) = device.run(&mut plan, |pass, ()| {
        pass.stage();
        (0..repeats).for_each(|_| run(pass));
    })?;
    let wall = began.elapsed().as_secs_f64();
    let own = outcome.stage(0) / 1e6;
    Ok(if own > 0.0 { own } else { wall } / repeats as f64)
}
