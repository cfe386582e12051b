//! A hint to the caches: memory that is read soon.

/// Bytes that come into a cache together.
const CACHE_LINE: usize = 64;

/// Asks for the bytes of `values`.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    let first = values.as_ptr().cast::<u8>();
    for offset in (0..size_of_val(values)).step_by(CACHE_LINE) {
        prefetch_at(first.wrapping_add(offset));
    }
}

/// Asks for the line of `place`, which may be any address. On a CPU other than x86 nothing happens.
#[inline(always)]
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "a hint to the cache")
)]
pub(crate) fn prefetch_at<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing into the program and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
