//! Poison behind the tensors of a device under test: a kernel that reads it has other results, and
//! one that writes it leaves a trace.

/// A byte of it: NaN as numbers, and no id.
pub(super) const POISON: u8 = 0xff;

/// Buffers, and where the poison in them begins.
#[cfg(test)]
pub(super) type Guarded = std::sync::Mutex<Vec<(wgpu::Buffer, usize)>>;

#[cfg(test)]
mod testing {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::POISON;
    use crate::device::gpu::Gpu;

    /// More than the rows by which a tile of a product can be too long, at the widest case.
    const BYTES: usize = 1 << 16;

    impl Gpu {
        /// The same device, with poison behind every tensor.
        pub(crate) fn guarding(&self) -> Self {
            Self {
                guard: BYTES,
                ..self.again()
            }
        }

        pub(in crate::device::gpu) fn note_guarded(&self, buffer: &wgpu::Buffer, end: usize) {
            if self.guard > 0 {
                let mut guarded = self.guarded.lock().unwrap();
                guarded.push((buffer.clone(), end));
            }
        }

        /// Whether nothing was written behind the tensors that were made since the last call.
        pub(crate) fn guards_are_whole(&self) -> bool {
            let guarded = std::mem::take(&mut *self.guarded.lock().unwrap());
            let size = (guarded.len() * BYTES) as u64;
            if size == 0 {
                return true;
            }
            let read = self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let mut encoder = self.device.create_command_encoder(&Default::default());
            for (index, (buffer, end)) in guarded.iter().enumerate() {
                let at = (index * BYTES) as u64;
                encoder.copy_buffer_to_buffer(buffer, *end as u64, &read, at, BYTES as u64);
            }
            self.queue.submit([encoder.finish()]);
            read.map_async(wgpu::MapMode::Read, .., |mapped| mapped.unwrap());
            self.device
                .poll(wgpu::PollType::wait_indefinitely())
                .unwrap();
            let bytes = read.get_mapped_range(..).unwrap();
            bytes.iter().all(|byte| *byte == POISON)
        }
    }
}
