//! The commands of passes, recorded while the GPU computes one that is like them.

use crate::device::gpu::encode::{self, Coming, Recorded};
use crate::device::gpu::tape::Tape;

/// Forms of passes that a tape knows: prompts of up to 128 tokens have 8.
const FORMS: usize = 8;

/// The forms of a tape's latest passes, the last one at the end.
#[derive(Default)]
pub(super) struct Ahead {
    forms: Vec<Form>,
}

/// What passes have in common that differ in their numbers alone; those are in the tape's buffers.
pub(super) struct Form {
    recorded: Recorded,
    /// Whether the tape has had such a pass.
    repeats: bool,
    /// The commands of the next such pass, which can be submitted once.
    ready: Option<(wgpu::CommandBuffer, Coming)>,
}

impl Ahead {
    /// The form of a pass, with what is known of it.
    pub(super) fn take(&mut self, recorded: Recorded) -> Form {
        let known = self.forms.iter().position(|form| form.recorded == recorded);
        match known {
            Some(place) => Form {
                repeats: true,
                ..self.forms.remove(place)
            },
            None => Form {
                recorded,
                repeats: false,
                ready: None,
            },
        }
    }

    pub(super) fn keep(&mut self, form: Form) {
        if self.forms.len() == FORMS {
            self.forms.remove(0);
        }
        self.forms.push(form);
    }
}

impl Form {
    /// The commands of this pass.
    pub(super) fn commands(
        &mut self,
        device: &wgpu::Device,
        tape: &Tape,
    ) -> (wgpu::CommandBuffer, Coming) {
        let ready = self.ready.take();
        ready.unwrap_or_else(|| encode::encode(device, tape, &self.recorded))
    }

    /// Records those of the next one, if there was more than one; to be called once the GPU computes.
    pub(super) fn prepare(&mut self, device: &wgpu::Device, tape: &Tape) {
        if self.repeats {
            let (commands, mut coming) = encode::encode(device, tape, &self.recorded);
            coming.counts.ahead = true;
            self.ready = Some((commands, coming));
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use crate::device::plan::Plan;
    use crate::device::{Device, NewTensor};
    use crate::ops::gelu::{Forward, Gelu};
    use crate::ops::reference;
    use crate::ops::testing::{assert_close, gpu};

    /// Passes over one plan: each has its own numbers, and one like two before it is there already.
    #[test]
    fn the_third_pass_of_a_form_is_recorded_ahead_and_has_its_own_numbers() {
        let device = Device::Gpu(gpu());
        let gelu = Gelu::new();
        let tensor = |label| NewTensor::numbers(label, 400, 3);
        let x = device.input(tensor("x"));
        let [y, z] = device.beside(["y", "z"].map(tensor)).unwrap();
        let mut plan = Plan::new(&device, (x, [y, z]), 1 << 12, 1 << 14).unwrap();
        let mut pass = |number: usize, rows: usize, other: bool, twice: bool| {
            let first = number as f32;
            let values: Vec<f32> = (0..3 * rows).map(|i| first + i as f32 / 100.0).collect();
            let (reads, outputs) = device
                .run(&mut plan, |pass, (x, results)| {
                    pass.upload_f32(x, &values);
                    let y = &mut results[usize::from(other)];
                    y.resize(rows);
                    gelu.forward(pass, Forward { x, y });
                    let read = pass.read(y);
                    [Some(read), twice.then(|| pass.read(y))]
                })
                .unwrap();
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            for read in reads.into_iter().flatten() {
                assert_close("gelu", outputs.f32(read), &reference::gelu(&values), 1e-6);
            }
            outputs.counts.ahead
        };
        let passes = [
            (1, false, false, false),
            (1, false, false, false),
            (1, false, false, true),
            // Of another grid, and between them one of the first.
            (300, false, false, false),
            (300, false, false, false),
            (1, false, false, true),
            (300, false, false, true),
            // Of other bind groups.
            (1, true, false, false),
            (1, true, false, false),
            (1, true, false, true),
            // Of other reads.
            (1, true, true, false),
            (1, true, true, false),
            (1, true, true, true),
            (300, false, false, true),
        ];
        for (number, (rows, other, twice, ahead)) in passes.into_iter().enumerate() {
            assert_eq!(pass(number, rows, other, twice), ahead, "pass {number}");
        }
    }
}
