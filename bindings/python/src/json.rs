//! Python values to JSON and back: through the module `json`, whose numbers and texts are those
//! that the library reads and writes.

use hubrouter::ErrorKind;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::errors::exception;

/// `value` as dicts, lists, texts and numbers.
pub(crate) fn to_python(py: Python<'_>, value: &impl Serialize) -> PyResult<Py<PyAny>> {
    let json = py.import("json")?;
    Ok(json.call_method1("loads", (text(value)?,))?.unbind())
}

/// `value` as JSON.
pub(crate) fn text(value: &impl Serialize) -> PyResult<String> {
    let text = serde_json::to_string(value);
    text.map_err(|error| exception(ErrorKind::Format, format!("cannot write JSON: {error}")))
}

/// The JSON of a Python value; a text and bytes are JSON already.
pub(crate) fn dumped(value: &Bound<'_, PyAny>) -> PyResult<String> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(text.to_str()?.to_owned());
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        let text = std::str::from_utf8(bytes.as_bytes());
        let wrong = |error| exception(ErrorKind::Format, format!("expected UTF-8: {error}"));
        return Ok(text.map_err(wrong)?.to_owned());
    }
    let json = value.py().import("json")?;
    json.call_method1("dumps", (value,))?.extract()
}

/// A `T` of JSON. `name` is what the caller calls it.
pub(crate) fn parsed<T: DeserializeOwned>(json: &str, name: &str) -> PyResult<T> {
    serde_json::from_str(json).map_err(|error| {
        let kind = match error.is_data() {
            true => ErrorKind::InvalidRequest,
            false => ErrorKind::Format,
        };
        exception(kind, format!("{name}: {error}"))
    })
}
