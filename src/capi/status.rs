//! Statuses: the kinds of the library's errors as numbers, and two of this interface.

use std::ffi::{CStr, c_char};

use crate::error::ErrorKind;

/// The result of a call. 0 is success, 1 to 99 are the kinds of the library's errors, and from 100
/// on are errors in the use of this interface. A number never changes its meaning, and later
/// versions may add some.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum hubrouter_status {
    /// Success.
    HUBROUTER_OK = 0,
    /// The file system refused: missing, unreadable, unwritable, full.
    HUBROUTER_IO = 1,
    /// A file or a text is not of the form it claims to be; JSON does not parse.
    HUBROUTER_FORMAT = 2,
    /// Parts that are each well-formed do not belong together.
    HUBROUTER_MISMATCH = 3,
    /// The tokenizer could not be built or refused a text.
    HUBROUTER_TOKENIZER = 4,
    /// The request has no answer: an empty prompt, a text that is not UTF-8, an unknown field.
    HUBROUTER_INVALID_REQUEST = 5,
    /// Every model of the hub is retired, or a policy lets none answer.
    HUBROUTER_NO_CANDIDATE = 6,
    /// No adapter fits the asked-for device.
    HUBROUTER_NO_ADAPTER = 7,
    /// An adapter's limits are too small for this encoder or hub.
    HUBROUTER_LIMITS = 8,
    /// The device refused for another reason.
    HUBROUTER_DEVICE = 9,
    /// The device went away while it was in use.
    HUBROUTER_DEVICE_LOST = 10,
    /// The device has no memory left.
    HUBROUTER_OUT_OF_MEMORY = 11,
    /// A weight or a score is not finite.
    HUBROUTER_NUMERIC = 12,
    /// A rule of the store or the registry forbids it.
    HUBROUTER_REFUSED = 13,
    /// The input is well-formed, and the library does not support it.
    HUBROUTER_UNSUPPORTED = 14,
    /// Code of the library panicked: a bug. Other calls are not affected.
    HUBROUTER_PANIC = 15,
    /// The request's deadline passed before it was computed, and its policy has no fallback.
    HUBROUTER_DEADLINE = 16,
    /// As many calls wait as the queue has places: try again later, or elsewhere.
    HUBROUTER_OVERLOADED = 17,
    /// The buffer is too small; the needed length was written. The buffer is as it was.
    HUBROUTER_BUFFER_TOO_SMALL = 100,
    /// A pointer is NULL, an index or a size is out of range, or handles do not belong together.
    HUBROUTER_INVALID_ARGUMENT = 101,
}

use hubrouter_status::*;

impl From<ErrorKind> for hubrouter_status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Io => HUBROUTER_IO,
            ErrorKind::Format => HUBROUTER_FORMAT,
            ErrorKind::Mismatch => HUBROUTER_MISMATCH,
            ErrorKind::Tokenizer => HUBROUTER_TOKENIZER,
            ErrorKind::InvalidRequest => HUBROUTER_INVALID_REQUEST,
            ErrorKind::NoCandidate => HUBROUTER_NO_CANDIDATE,
            ErrorKind::NoAdapter => HUBROUTER_NO_ADAPTER,
            ErrorKind::Limits => HUBROUTER_LIMITS,
            ErrorKind::Device => HUBROUTER_DEVICE,
            ErrorKind::DeviceLost => HUBROUTER_DEVICE_LOST,
            ErrorKind::OutOfMemory => HUBROUTER_OUT_OF_MEMORY,
            ErrorKind::Numeric => HUBROUTER_NUMERIC,
            ErrorKind::Refused => HUBROUTER_REFUSED,
            ErrorKind::Unsupported => HUBROUTER_UNSUPPORTED,
            ErrorKind::Panic => HUBROUTER_PANIC,
            ErrorKind::Deadline => HUBROUTER_DEADLINE,
            ErrorKind::Overloaded => HUBROUTER_OVERLOADED,
        }
    }
}

/// Each status with its name: that of the error's JSON form for the library's kinds.
const NAMES: [(hubrouter_status, &CStr); 20] = [
    (HUBROUTER_OK, c"ok"),
    (HUBROUTER_IO, c"io"),
    (HUBROUTER_FORMAT, c"format"),
    (HUBROUTER_MISMATCH, c"mismatch"),
    (HUBROUTER_TOKENIZER, c"tokenizer"),
    (HUBROUTER_INVALID_REQUEST, c"invalid_request"),
    (HUBROUTER_NO_CANDIDATE, c"no_candidate"),
    (HUBROUTER_NO_ADAPTER, c"no_adapter"),
    (HUBROUTER_LIMITS, c"limits"),
    (HUBROUTER_DEVICE, c"device"),
    (HUBROUTER_DEVICE_LOST, c"device_lost"),
    (HUBROUTER_OUT_OF_MEMORY, c"out_of_memory"),
    (HUBROUTER_NUMERIC, c"numeric"),
    (HUBROUTER_REFUSED, c"refused"),
    (HUBROUTER_UNSUPPORTED, c"unsupported"),
    (HUBROUTER_PANIC, c"panic"),
    (HUBROUTER_DEADLINE, c"deadline"),
    (HUBROUTER_OVERLOADED, c"overloaded"),
    (HUBROUTER_BUFFER_TOO_SMALL, c"buffer_too_small"),
    (HUBROUTER_INVALID_ARGUMENT, c"invalid_argument"),
];

/// The name of a status: `"no_candidate"`, as `kind` in the JSON form of an error, or `"unknown"`.
/// It ends with NUL and is never freed.
#[unsafe(no_mangle)]
pub extern "C" fn hubrouter_status_name(status: i32) -> *const c_char {
    let named = NAMES.iter().find(|(known, _)| *known as i32 == status);
    named.map_or(c"unknown", |&(_, name)| name).as_ptr()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// By the names in JSON, so that a new kind of error without a status of its name is found.
    #[test]
    fn every_kind_of_error_has_the_status_of_its_name() {
        let mut kinds = 0;
        for (status, name) in NAMES {
            let json = format!("\"{}\"", name.to_str().unwrap());
            if let Ok(kind) = serde_json::from_str::<ErrorKind>(&json) {
                assert_eq!(hubrouter_status::from(kind), status);
                kinds += 1;
            }
        }
        assert_eq!(kinds, NAMES.len() - 3);
    }
}
