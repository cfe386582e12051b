//! Errors as exceptions, one class for each kind, and work without the GIL.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hubrouter::ErrorKind;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    hubrouter,
    Error,
    PyException,
    "An error of the router. `kind` names it, the text is for people."
);

/// The exceptions of these kinds, how one is made of an error, and how they come into the module.
macro_rules! exceptions {
    ($($kind:ident $class:ident $doc:literal)*) => {
        $(create_exception!(hubrouter, $class, Error, $doc);)*

        /// The exception for an error of the library.
        pub(crate) fn raised(error: &hubrouter::Error) -> PyErr {
            exception(error.kind(), error.to_string())
        }

        /// The exception of this kind.
        pub(crate) fn exception(kind: ErrorKind, text: String) -> PyErr {
            match kind {
                $(ErrorKind::$kind => $class::new_err(text),)*
                _ => Error::new_err(text),
            }
        }

        /// Adds the classes to the module. Each has the name of its kind as `kind`.
        pub(crate) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
            let py = module.py();
            let base = py.get_type::<Error>();
            base.setattr("kind", "error")?;
            module.add("Error", base)?;
            $(
                let class = py.get_type::<$class>();
                class.setattr("kind", kind_name(ErrorKind::$kind))?;
                module.add(stringify!($class), class)?;
            )*
            Ok(())
        }
    };
}

exceptions! {
    Io IoError "The file system refused: missing, unreadable, unwritable, full."
    Format FormatError "A file or a text is not of the form that it claims to be."
    Mismatch MismatchError "Parts that are each well-formed do not belong together."
    Tokenizer TokenizerError "The tokenizer could not be built, or refused a text."
    InvalidRequest InvalidRequestError "The request has no answer: an empty prompt, a wrong field."
    NoCandidate NoCandidateError "Every model of the hub is retired, or a policy lets none answer."
    NoAdapter NoAdapterError "No adapter fits the asked-for device."
    Limits LimitsError "An adapter's limits are too small for this encoder or hub."
    Device DeviceError "The device refused for another reason."
    DeviceLost DeviceLostError "The device went away while it was in use."
    OutOfMemory OutOfMemoryError "The device has no memory left."
    Numeric NumericError "A weight or a score is not finite."
    Refused RefusedError "A rule of the store or the hub, a lock, or a gate forbids it."
    Unsupported UnsupportedError "Well-formed, and the library does not support it."
    Deadline DeadlineError "The deadline passed before the prompt was computed."
    Overloaded OverloadedError "As many calls wait as the queue has places."
    Panic PanicError "A bug in the library or in a dependency; other calls are not affected."
}

/// The name of a kind, as in the JSON form of an error: `no_candidate`.
pub(crate) fn kind_name(kind: ErrorKind) -> String {
    let value = serde_json::to_value(kind).unwrap_or_default();
    value.as_str().unwrap_or("error").to_owned()
}

/// Does `work` without the GIL. Its error, and a panic in it, become an exception.
pub(crate) fn computed<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> hubrouter::Result<T> + Send,
) -> PyResult<T> {
    unlocked(py, || work().map_err(|error| raised(&error)))?
}

/// Does `work`, which cannot fail, without the GIL. A panic in it becomes an exception.
pub(crate) fn unlocked<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    // A panic drops the values that the work held. Shared ones are behind locks that allow for it.
    let done = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("without a word");
        PanicError::new_err(format!("the library panicked: {text}"))
    })
}
