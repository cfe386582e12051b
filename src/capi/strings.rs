//! Texts and structs of the caller: what comes in as a pointer and a length, what goes out into a
//! buffer.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;

use crate::capi::error::{Called, FailedCall, needed};
use crate::error::{Result, error};

/// A text: `len` bytes of UTF-8 at `ptr`, not ended with NUL.
///
/// One that the library returns lives as long as the object that it was read from. Where there is
/// none, `ptr` is NULL and `len` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct hubrouter_str {
    /// The first byte.
    pub ptr: *const c_char,
    /// The number of bytes.
    pub len: usize,
}

impl hubrouter_str {
    /// `text`, which has to outlive what is returned.
    pub(super) fn new(text: &str) -> Self {
        Self {
            ptr: text.as_ptr().cast(),
            len: text.len(),
        }
    }

    /// `text`, or no text.
    pub(super) fn maybe(text: Option<&str>) -> Self {
        let none = Self {
            ptr: std::ptr::null(),
            len: 0,
        };
        text.map_or(none, Self::new)
    }
}

/// The caller's `count` items at `first`. `name`: the argument.
///
/// # Safety
/// `first` is NULL or points to as many items, which nobody changes during the call.
pub(super) unsafe fn items<'a, T>(first: *const T, count: usize, name: &str) -> Called<&'a [T]> {
    check_items(first, count, name)?;
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: the caller's promise; `check_items` has refused NULL and what is no slice.
    Ok(unsafe { std::slice::from_raw_parts(first, count) })
}

/// The caller's `count` places at `first`. `name`: the argument.
///
/// # Safety
/// `first` is NULL or points to as many places, which nobody else uses during the call.
pub(super) unsafe fn places<'a, T>(
    first: *mut T,
    count: usize,
    name: &str,
) -> Called<&'a mut [MaybeUninit<T>]> {
    check_items(first, count, name)?;
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: the caller's promise; `check_items` has refused NULL and what is no slice.
    Ok(unsafe { std::slice::from_raw_parts_mut(first.cast(), count) })
}

fn check_items<T>(first: *const T, count: usize, name: &str) -> Called {
    if count > 0 && first.is_null() {
        let message = format!("{name}: expected a pointer to {count} items, found NULL");
        return Err(FailedCall::argument(message));
    }
    let most = isize::MAX.unsigned_abs() / size_of::<T>().max(1);
    if count > most {
        let message = format!("{name}: expected a length of at most {most}, found {count}");
        return Err(FailedCall::argument(message));
    }
    Ok(())
}

/// The caller's text; "" if `len` is 0, whatever `ptr` is.
///
/// # Safety
/// `ptr` is NULL or points to `len` bytes, which nobody changes during the call.
pub(super) unsafe fn text<'a>(ptr: *const c_char, len: usize, name: &str) -> Called<&'a str> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { items(ptr.cast(), len, name) }?;
    Ok(utf8(bytes, name)?)
}

/// `bytes` as a text. `name`: the argument.
pub(super) fn utf8<'a>(bytes: &'a [u8], name: &str) -> Result<&'a str> {
    let refused = |why: std::str::Utf8Error| {
        let at = why.valid_up_to();
        error!(
            InvalidRequest,
            "{name}: expected UTF-8, found another byte at {at}"
        )
    };
    std::str::from_utf8(bytes).map_err(refused)
}

/// The value whose JSON the caller gave.
pub(super) fn parsed<T: DeserializeOwned>(json: &str, name: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|why| match why.classify() {
        Category::Data => error!(InvalidRequest, "{name}: {why}"),
        Category::Io | Category::Syntax | Category::Eof => error!(Format, "{name}: {why}"),
    })
}

/// The value whose JSON is `json`.
pub(super) fn read<T: DeserializeOwned>(json: Value, name: &str) -> Result<T> {
    serde_json::from_value(json).map_err(|why| error!(InvalidRequest, "{name}: {why}"))
}

/// `value` as JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|why| error!(Format, "cannot write JSON: {why}"))
}

/// Copies `text` to the caller's buffer and its length to `length`. With NULL and 0 as a buffer
/// only the length is written.
///
/// # Safety
/// `buffer` is NULL or points to `capacity` bytes, which nobody else uses during the call.
pub(super) unsafe fn copy(
    text: &str,
    buffer: *mut c_char,
    capacity: usize,
    length: Option<&mut MaybeUninit<usize>>,
) -> Called {
    needed(length, "length")?.write(text.len());
    if buffer.is_null() && capacity == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let places = unsafe { places(buffer.cast::<u8>(), capacity, "buffer") }?;
    let Some(places) = places.get_mut(..text.len()) else {
        return Err(FailedCall::too_small(text.len(), capacity));
    };
    for (place, byte) in places.iter_mut().zip(text.bytes()) {
        place.write(byte);
    }
    Ok(())
}

/// A struct that may grow at its end. Its first field is its size.
pub(super) trait Growing: Copy {
    /// The size of its first version.
    const FIRST: usize;
}

/// Fills the caller's struct with what `value` makes of its size. A struct of an older header is
/// shorter, one of a newer header longer: both get the fields that caller and library know.
///
/// # Safety
/// `out` is NULL or points to a struct of as many bytes as its first field says.
pub(super) unsafe fn fill<T: Growing>(
    out: *mut T,
    name: &str,
    value: impl FnOnce(usize) -> T,
) -> Called {
    if out.is_null() {
        return needed(None, name);
    }
    // SAFETY: the first field is there, whatever the struct's version.
    let size = unsafe { out.cast::<usize>().read() };
    if size < T::FIRST {
        let message = format!(
            "{name}: expected a size of at least {}, found {size}: set it to sizeof of the struct",
            T::FIRST
        );
        return Err(FailedCall::argument(message));
    }
    let value = value(size);
    let known = size.min(size_of::<T>());
    // SAFETY: both have at least `known` bytes, and the caller's are not a part of `value`.
    unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), out.cast(), known) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Grown {
        size: usize,
        old: u64,
        new: u64,
    }

    impl Growing for Grown {
        const FIRST: usize = 16;
    }

    #[test]
    fn a_struct_of_any_version_gets_the_fields_that_it_has() {
        let value = |size| Grown {
            size,
            old: 1,
            new: 2,
        };
        for (size, want) in [(16, [1, 9, 9]), (24, [1, 2, 9]), (32, [1, 2, 9])] {
            let mut bytes = [size, 9, 9, 9_u64];
            // SAFETY: the array is as long as its first item says.
            let outcome = unsafe { fill(bytes.as_mut_ptr().cast::<Grown>(), "out", value) };
            assert!(outcome.is_ok());
            assert_eq!(bytes, [size, want[0], want[1], want[2]]);
        }
        for size in [0, 8, 15] {
            let mut bytes = [size, 9, 9, 9_u64];
            // SAFETY: as above.
            let outcome = unsafe { fill(bytes.as_mut_ptr().cast::<Grown>(), "out", value) };
            assert!(outcome.is_err());
            assert_eq!(bytes, [size, 9, 9, 9]);
        }
    }
}
