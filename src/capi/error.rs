//! Errors that the caller owns, and the frame of every call.

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;

use crate::capi::status::hubrouter_status::{self, *};
use crate::error::{Error, caught};

/// Why a call failed: a status and a message. The caller frees it.
#[derive(Debug)]
pub struct hubrouter_error {
    status: hubrouter_status,
    message: CString,
}

/// A status other than success, and its message.
pub(super) struct FailedCall {
    status: hubrouter_status,
    message: String,
}

/// What the inside of a call returns.
pub(super) type Called<T = ()> = Result<T, FailedCall>;

impl From<Error> for FailedCall {
    fn from(error: Error) -> Self {
        Self {
            status: error.kind().into(),
            message: error.to_string(),
        }
    }
}

impl FailedCall {
    /// The caller's code is wrong, whatever its users sent.
    pub(super) fn argument(message: impl Into<String>) -> Self {
        Self {
            status: HUBROUTER_INVALID_ARGUMENT,
            message: message.into(),
        }
    }

    /// A text of `length` bytes does not fit in `capacity`.
    pub(super) fn too_small(length: usize, capacity: usize) -> Self {
        Self {
            status: HUBROUTER_BUFFER_TOO_SMALL,
            message: format!("buffer: expected room for {length} bytes, found {capacity}"),
        }
    }
}

/// What a pointer points to. `name`: the argument.
pub(super) fn needed<T>(pointer: Option<T>, name: &str) -> Called<T> {
    let null = || FailedCall::argument(format!("{name}: expected a pointer, found NULL"));
    pointer.ok_or_else(null)
}

/// The place for a new handle, NULL until there is one.
pub(super) fn place<'a, T>(
    pointer: Option<&'a mut MaybeUninit<Option<Box<T>>>>,
    name: &str,
) -> Called<&'a mut Option<Box<T>>> {
    Ok(needed(pointer, name)?.write(None))
}

/// Runs `job`, the inside of the call `name`. What it fails with, a panic included, is put into
/// `error` if that is not NULL.
pub(super) fn call(
    name: &str,
    error: Option<&mut MaybeUninit<Option<Box<hubrouter_error>>>>,
    job: impl FnOnce() -> Called,
) -> hubrouter_status {
    let failure = match caught(name, || Ok(job())) {
        Ok(outcome) => outcome.err(),
        Err(panic) => Some(panic.into()),
    };
    let status = failure.as_ref().map_or(HUBROUTER_OK, |why| why.status);
    if let Some(error) = error {
        error.write(failure.map(|why| Box::new(owned(why))));
    }
    status
}

/// The failure as an object of the caller's.
fn owned(why: FailedCall) -> hubrouter_error {
    // The texts of errors have no NUL: they escape control characters.
    let message = CString::new(why.message).unwrap_or_default();
    hubrouter_error {
        status: why.status,
        message,
    }
}

/// The error of one of several things that were asked for in one call.
pub(super) fn error_of(error: Error) -> Box<hubrouter_error> {
    Box::new(owned(error.into()))
}

/// Drops a handle. A panic meanwhile is a bug that nobody can be told of.
pub(super) fn free<T>(handle: Option<Box<T>>) {
    if let Err(panic) = caught("freeing a handle", || {
        drop(handle);
        Ok(())
    }) {
        log::error!("{panic}");
    }
}

/// The status of an error, `HUBROUTER_OK` for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_error_status(error: Option<&hubrouter_error>) -> hubrouter_status {
    error.map_or(HUBROUTER_OK, |error| error.status)
}

/// The message of an error, for people: it names the file, the field or the argument, what was
/// expected and what was found. It ends with NUL and lives as long as the error. `""` for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_error_message(error: Option<&hubrouter_error>) -> *const c_char {
    error.map_or(c"", |error| error.message.as_c_str()).as_ptr()
}

/// Frees an error. NULL is allowed.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_error_free(error: Option<Box<hubrouter_error>>) {
    free(error);
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_panic_is_a_status_and_an_error_of_the_callers() {
        let mut error = MaybeUninit::uninit();
        let status = call("a call", Some(&mut error), || panic!("a word"));
        assert_eq!(status, HUBROUTER_PANIC);
        assert_eq!(call("a call", None, || panic!("a word")), HUBROUTER_PANIC);
        // SAFETY: `call` has written it.
        let error = unsafe { error.assume_init() }.unwrap();
        assert_eq!(error.status, HUBROUTER_PANIC);
        assert_eq!(error.message.to_str().unwrap(), "a call panicked: a word");
    }

    #[test]
    fn success_clears_the_error() {
        let mut error = MaybeUninit::uninit();
        assert_eq!(call("a call", Some(&mut error), || Ok(())), HUBROUTER_OK);
        // SAFETY: `call` has written it.
        assert!(unsafe { error.assume_init() }.is_none());
    }
}
