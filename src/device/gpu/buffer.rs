//! Buffers on a GPU: a tensor has one of its own, or some bytes of one.

use std::num::NonZeroU64;

/// Consecutive bytes of a buffer.
#[derive(Clone, PartialEq)]
pub(crate) struct Buffer {
    whole: wgpu::Buffer,
    offset: usize,
    size: usize,
}

impl Buffer {
    /// The first `size` bytes of `whole`.
    pub(super) fn new(whole: wgpu::Buffer, size: usize) -> Self {
        Self::of(whole, 0, size)
    }

    /// `size` bytes of `whole` from `offset` on.
    pub(super) fn of(whole: wgpu::Buffer, offset: usize, size: usize) -> Self {
        Self {
            whole,
            offset,
            size,
        }
    }

    /// `size` of these bytes, from `offset` on.
    pub(super) fn part(&self, offset: usize, size: usize) -> Self {
        Self::of(self.whole.clone(), self.offset + offset, size)
    }

    pub(super) fn whole(&self) -> &wgpu::Buffer {
        &self.whole
    }

    /// Where the bytes begin.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Where they end.
    pub(super) fn end(&self) -> usize {
        self.offset + self.size
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn binding(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.whole,
            offset: self.offset as u64,
            size: NonZeroU64::new(self.size as u64),
        })
    }

    /// Whether some bytes are those of `other`, too.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.whole == other.whole && self.offset < other.end() && other.offset < self.end()
    }
}

/// Where the upload of one pass has put a tensor.
pub(crate) struct Uploaded {
    buffer: Buffer,
    pass: u64,
}

impl Uploaded {
    pub(super) fn new(buffer: Buffer, pass: u64) -> Self {
        Self { buffer, pass }
    }

    pub(crate) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Whether the pass of this number has uploaded it.
    pub(crate) fn is_of(&self, pass: u64) -> bool {
        self.pass == pass
    }
}
