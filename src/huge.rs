//! Tables that are read at random, in huge pages where the system gives them.
//!
//! A read from a page that the CPU has no translation of waits for the page tables and, in a virtual
//! machine, for those of its host: a row of an embedding table took 2 us in pages of 4 KiB and
//! 0.5 us in huge ones (benches/README.md).

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

/// The size and alignment of a huge page.
const HUGE: usize = 2 << 20;

/// What fills less than a quarter of a huge page is not worth one.
const LEAST: usize = HUGE / 4;

/// A slice whose length stays.
#[derive(Debug)]
pub(crate) struct HugeSlice<T>(Room<T>);

#[derive(Debug)]
enum Room<T> {
    Vec(Vec<T>),
    Map {
        map: MmapMut,
        /// Bytes before the first element.
        begin: usize,
        /// Bytes of all elements.
        bytes: usize,
    },
}

impl<T: Pod> HugeSlice<T> {
    /// `count` zeros.
    pub(crate) fn zeroed(count: usize) -> Self {
        let bytes = count * size_of::<T>();
        let map = (bytes >= LEAST).then(|| huge(bytes)).flatten();
        Self(match map {
            Some(map) => {
                let address = map.as_ptr().addr();
                let begin = address.next_multiple_of(HUGE) - address;
                Room::Map { map, begin, bytes }
            }
            None => Room::Vec(vec![T::zeroed(); count]),
        })
    }

    pub(crate) fn copy_of(values: &[T]) -> Self {
        let mut copy = Self::zeroed(values.len());
        copy.copy_from_slice(values);
        copy
    }
}

/// Zeros with room to begin at a huge page and to end behind one; `None` if the system has no more.
fn huge(bytes: usize) -> Option<MmapMut> {
    let map = MmapMut::map_anon(bytes.next_multiple_of(HUGE) + HUGE).ok()?;
    // A wish; without huge pages all is the same, and slower.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Some(map)
}

impl<T: Pod> Deref for HugeSlice<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match &self.0 {
            Room::Vec(values) => values,
            Room::Map { map, begin, bytes } => bytemuck::cast_slice(&map[*begin..][..*bytes]),
        }
    }
}

impl<T: Pod> DerefMut for HugeSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            Room::Vec(values) => values,
            Room::Map { map, begin, bytes } => {
                bytemuck::cast_slice_mut(&mut map[*begin..][..*bytes])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_slices_hold_what_they_are_given() {
        for count in [0usize, 1, 1000, LEAST / 4 - 1, LEAST / 4, HUGE / 4 + 1] {
            let values: Vec<u32> = (0..count).map(|n| crate::num::to_u32(n * 7)).collect();
            let mut copy = HugeSlice::copy_of(&values);
            assert_eq!(*copy, *values);
            assert!(HugeSlice::<u32>::zeroed(count).iter().all(|n| *n == 0));
            if let Some(last) = copy.last_mut() {
                *last = 5;
                assert_eq!(copy[count - 1], 5);
            }
            let mapped = matches!(copy.0, Room::Map { .. });
            assert_eq!(mapped, count * 4 >= LEAST);
            if mapped {
                assert_eq!(copy.as_ptr().addr() % HUGE, 0);
            }
        }
    }
}
