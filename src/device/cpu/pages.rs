//! Memory in huge pages, where the system gives them.

use std::io;

use memmap2::MmapMut;

/// The size and alignment of a huge page.
const HUGE: usize = 2 << 20;

/// Bytes of this process alone, zero at first, that begin with a huge page.
pub(crate) struct Pages {
    map: MmapMut,
    /// Bytes of the map before the first of these.
    before: usize,
    len: usize,
}

impl Pages {
    /// Errors: the system has no room for `len` bytes.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let map = MmapMut::map_anon(len + HUGE)?;
        // A wish: without huge pages everything is the same, and a little slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let address = map.as_ptr().addr();
        let before = address.next_multiple_of(HUGE) - address;
        Ok(Self { map, before, len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[self.before..][..self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.before..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn pages_begin_with_a_huge_one_and_hold_what_was_written() {
        for len in [0, 1, 4096, HUGE, 3 * HUGE + 5] {
            let mut pages = Pages::new(len).unwrap();
            assert_eq!(pages.bytes().len(), len);
            assert!(pages.bytes().as_ptr().addr().is_multiple_of(HUGE));
            assert!(pages.bytes().iter().all(|byte| *byte == 0));
            pages.bytes_mut().fill(7);
            assert!(pages.bytes().iter().all(|byte| *byte == 7));
        }
    }
}
