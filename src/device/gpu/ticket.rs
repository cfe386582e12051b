//! A submitted pass, and the wait for it.
#![expect(clippy::disallowed_types, reason = "how long a thread waits awake")]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::device::gpu::Gpu;
use crate::device::gpu::encode::Coming;
use crate::device::gpu::tape::Tape;
use crate::device::pass::Outputs;
use crate::error::{Result, error};

/// How long a thread waits awake for a hardware GPU.
const AWAKE: Duration = Duration::from_micros(500);

/// A submitted pass of one tape, which no other pass may use before it is waited for.
pub(crate) struct Ticket {
    index: wgpu::SubmissionIndex,
    /// One message for each of the two buffers that are mapped when the pass is over.
    mapped: mpsc::Receiver<bool>,
    coming: Coming,
}

impl Ticket {
    /// Asks for the results of submission `index`, and for the staging buffer of the next pass.
    pub(super) fn new(tape: &Tape, index: wgpu::SubmissionIndex, coming: Coming) -> Self {
        // Another thread's poll may be the one that calls back, after ours has returned.
        let (sender, mapped) = mpsc::channel();
        let tell = |sender: mpsc::Sender<_>| {
            move |result: Result<(), wgpu::BufferAsyncError>| {
                // The receiver is gone only when the ticket was dropped.
                let _ = sender.send(result.is_ok());
            }
        };
        tape.staging
            .map_async(wgpu::MapMode::Write, .., tell(sender.clone()));
        tape.readback
            .map_async(wgpu::MapMode::Read, .., tell(sender));
        Self {
            index,
            mapped,
            coming,
        }
    }

    /// Waits for the pass of `tape`, and reads back.
    pub(crate) fn wait(self, gpu: &Gpu, tape: &Tape) -> Result<Outputs> {
        let coming = self.mapped(gpu)?;
        let outputs = {
            let bytes = tape
                .readback
                .get_mapped_range(..)
                .map_err(|e| error!(DeviceLost, "{}: cannot read back: {e}", gpu.name()))?;
            let reads = coming.reads.into_iter();
            Outputs {
                reads: reads
                    .map(|place| bytemuck::pod_collect_to_vec(&bytes[place]))
                    .collect(),
                stages: stage_times(&bytes[coming.stamps], gpu.timestamp_period()),
                counts: coming.counts,
            }
        };
        tape.readback.unmap();
        Ok(outputs)
    }

    fn mapped(self, gpu: &Gpu) -> Result<Coming> {
        let Self {
            index,
            mapped,
            coming,
        } = self;
        let mut done = Vec::with_capacity(2);
        done.extend(mapped.try_iter());
        if gpu.is_hardware() {
            // To be woken takes as long as a short prompt.
            let began = Instant::now();
            while done.len() < 2 && began.elapsed() < AWAKE {
                // An error shows in the wait below.
                let _ = gpu.device().poll(wgpu::PollType::Poll);
                done.extend(mapped.try_iter());
                std::hint::spin_loop();
            }
        }
        let name = gpu.name();
        if done.len() < 2 {
            let waited = gpu.device().poll(wgpu::PollType::Wait {
                submission_index: Some(index),
                timeout: None,
            });
            gpu.check()?;
            if let Err(e) = waited {
                let error = error!(DeviceLost, "{name}: cannot wait for the device: {e}");
                return Err(gpu.explain(error));
            }
            let missing = 2 - done.len();
            done.extend(mapped.iter().take(missing));
        }
        gpu.check()?;
        if done != [true, true] {
            let error = error!(DeviceLost, "{name}: the result could not be read back");
            return Err(gpu.explain(error));
        }
        Ok(coming)
    }
}

/// Microseconds between the two stamps of each stage.
fn stage_times(stamps: &[u8], period: f32) -> Vec<f64> {
    let stamps: Vec<u64> = bytemuck::pod_collect_to_vec(stamps);
    stamps
        .chunks_exact(2)
        .map(|pair| pair[1].saturating_sub(pair[0]) as f64 * f64::from(period) / 1000.0)
        .collect()
}
