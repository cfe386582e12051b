//! The Arrow PyCapsule interface: arrays of other libraries in, arrays of this one out.
//!
//! <https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html>
#![expect(
    unsafe_code,
    reason = "structs of the Arrow C data interface behind pointers"
)]

use std::ffi::CStr;
use std::ptr::NonNull;

use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi};
use arrow_array::ffi_stream::{ArrayStreamReader, FFI_ArrowArrayStream};
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchIterator, make_array};
use arrow_schema::{ArrowError, Field};
use hubrouter::ErrorKind;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::errors::exception;

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";
const STREAM: &CStr = c"arrow_array_stream";

/// An error of Arrow.
pub(crate) fn refused(error: &ArrowError) -> PyErr {
    exception(ErrorKind::Format, format!("arrow: {error}"))
}

/// The struct in a capsule of this name.
fn pointer<T>(capsule: &Bound<'_, PyAny>, name: &CStr) -> PyResult<NonNull<T>> {
    let capsule = capsule.cast::<PyCapsule>()?;
    Ok(capsule.pointer_checked(Some(name))?.cast())
}

/// The arrays of `data`, which has `__arrow_c_array__` or `__arrow_c_stream__`. Each is checked:
/// offsets lie within buffers, texts are UTF-8.
pub(crate) fn imported(data: &Bound<'_, PyAny>) -> PyResult<Vec<ArrayRef>> {
    let arrays = if data.hasattr("__arrow_c_array__")? {
        vec![one_array(data)?]
    } else if data.hasattr("__arrow_c_stream__")? {
        let capsule = data.call_method0("__arrow_c_stream__")?;
        let stream = pointer::<FFI_ArrowArrayStream>(&capsule, STREAM)?;
        // SAFETY: a capsule of this name points to such a struct, by the interface. It is moved
        // out, which leaves one that is released.
        let stream = unsafe { FFI_ArrowArrayStream::from_raw(stream.as_ptr()) };
        let arrays = ArrayStreamReader::try_new(stream).and_then(Iterator::collect);
        arrays.map_err(|error| refused(&error))?
    } else {
        return Err(PyTypeError::new_err(format!(
            "expected an object with __arrow_c_array__ or __arrow_c_stream__, such as a record \
             batch, a table or a data frame, found {}",
            data.get_type().name()?
        )));
    };
    for array in &arrays {
        let checked = array.to_data().validate_full();
        checked.map_err(|error| refused(&error))?;
    }
    Ok(arrays)
}

fn one_array(data: &Bound<'_, PyAny>) -> PyResult<ArrayRef> {
    let pair = data.call_method0("__arrow_c_array__")?;
    let (schema, array): (Bound<'_, PyAny>, Bound<'_, PyAny>) = pair.extract()?;
    let schema_at = pointer::<FFI_ArrowSchema>(&schema, SCHEMA)?;
    let array_at = pointer::<FFI_ArrowArray>(&array, ARRAY)?;
    // SAFETY: capsules of these names point to such structs, by the interface. The array is moved
    // out, which leaves one that is released; the schema stays the capsule's, which lives here.
    let (schema, array) = unsafe {
        let array = FFI_ArrowArray::from_raw(array_at.as_ptr());
        (schema_at.as_ref(), array)
    };
    if array.is_released() {
        let text = "arrow: expected an array, found one that was taken already";
        return Err(exception(ErrorKind::Format, text.to_owned()));
    }
    // SAFETY: the producer's array agrees with its schema, by the interface.
    let data = unsafe { from_ffi(array, schema) };
    Ok(make_array(data.map_err(|error| refused(&error))?))
}

/// Capsules of an array and its field, for `__arrow_c_array__`.
pub(crate) fn exported<'py>(
    py: Python<'py>,
    field: &Field,
    array: &dyn Array,
) -> PyResult<(Bound<'py, PyCapsule>, Bound<'py, PyCapsule>)> {
    let array = FFI_ArrowArray::new(&array.to_data());
    let array = PyCapsule::new_with_value(py, array, ARRAY)?;
    Ok((exported_schema(py, field)?, array))
}

/// The capsule of a field, for `__arrow_c_schema__`.
pub(crate) fn exported_schema<'py>(
    py: Python<'py>,
    field: &Field,
) -> PyResult<Bound<'py, PyCapsule>> {
    let schema = FFI_ArrowSchema::try_from(field).map_err(|error| refused(&error))?;
    PyCapsule::new_with_value(py, schema, SCHEMA)
}

/// The capsule of a stream of one batch, for `__arrow_c_stream__`.
pub(crate) fn exported_stream<'py>(
    py: Python<'py>,
    batch: &RecordBatch,
) -> PyResult<Bound<'py, PyCapsule>> {
    let batches = RecordBatchIterator::new([Ok(batch.clone())], batch.schema());
    let stream = FFI_ArrowArrayStream::new(Box::new(batches));
    PyCapsule::new_with_value(py, stream, STREAM)
}
