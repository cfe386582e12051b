//! Columns of prompts in, columns of routes out.

use std::sync::Arc;

use arrow_array::builder::{Float32Builder, ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, RecordBatch, StringArray, StructArray,
};
use arrow_schema::{DataType, Field, FieldRef, Schema};
use hubrouter::{Decision, ErrorKind, Ranked, Request};
use pyo3::exceptions::{PyKeyError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::capsules::{exported, exported_schema, exported_stream, imported, refused};
use crate::errors::{exception, kind_name};

/// Why a row without a prompt has no answer.
const NULL: &str = "invalid_request: the prompt is null";

/// The prompts of a column.
pub(crate) struct Prompts {
    /// For each row whether it has a prompt.
    present: Vec<bool>,
    /// Of the rows that have one.
    requests: Vec<Request>,
}

impl Prompts {
    /// The prompts of `data`: of its column of that name, or of `data` itself if it is a column.
    pub(crate) fn of(data: &Bound<'_, PyAny>, column: &str, top: usize) -> PyResult<Self> {
        if top == 0 {
            let text = "top: expected at least 1, found 0";
            return Err(exception(ErrorKind::InvalidRequest, text.to_owned()));
        }
        let (mut present, mut requests) = (Vec::new(), Vec::new());
        for array in imported(data)? {
            for prompt in texts(&prompts_of(&array, column)?, column)? {
                present.push(prompt.is_some());
                requests.extend(prompt.map(|prompt| Request::new(prompt).top(top)));
            }
        }
        Ok(Self { present, requests })
    }

    pub(crate) fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// The columns of the answers, one row for each row of the prompts.
    pub(crate) fn answered(
        &self,
        answers: Vec<hubrouter::Result<Decision>>,
        top: usize,
    ) -> PyResult<ArrowRoutes> {
        let mut answers = answers.into_iter();
        let answer = |present: &bool| match present {
            true => answers
                .next()
                .map(|answer| answer.map_err(|error| said(&error))),
            false => Some(Err(NULL.to_owned())),
        };
        let rows: Vec<Result<Decision, String>> = self.present.iter().filter_map(answer).collect();
        let batch = table(&rows, top).map_err(|error| refused(&error))?;
        Ok(ArrowRoutes(batch))
    }
}

/// `kind: text`
fn said(error: &hubrouter::Error) -> String {
    format!("{}: {error}", kind_name(error.kind()))
}

/// The column of prompts in an array: an array of structs has columns, others are one.
fn prompts_of(array: &ArrayRef, column: &str) -> PyResult<ArrayRef> {
    let Some(rows) = array.as_struct_opt() else {
        return Ok(Arc::clone(array));
    };
    match rows.column_by_name(column) {
        Some(found) => Ok(Arc::clone(found)),
        None => Err(PyKeyError::new_err(format!(
            "expected a column {column:?}, found {:?}",
            rows.column_names()
        ))),
    }
}

/// The texts of a column of texts, plain or as a dictionary.
fn texts<'a>(array: &'a ArrayRef, column: &str) -> PyResult<Vec<Option<&'a str>>> {
    Ok(match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().iter().collect(),
        DataType::LargeUtf8 => array.as_string::<i64>().iter().collect(),
        DataType::Utf8View => array.as_string_view().iter().collect(),
        DataType::Null => vec![None; array.len()],
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let values = texts(dictionary.values(), column)?;
            if values.is_empty() {
                return Ok(vec![None; array.len()]);
            }
            let keys = dictionary.normalized_keys().into_iter().enumerate();
            keys.map(|(row, key)| match dictionary.keys().is_null(row) {
                true => None,
                false => values.get(key).copied().flatten(),
            })
            .collect()
        }
        other => {
            let text = format!("column {column:?}: expected texts, found {other}");
            return Err(PyTypeError::new_err(text));
        }
    })
}

type Rows = [Result<Decision, String>];

/// A value of each ranked model: one of a row, or a list of up to `top`.
fn strings<'a>(rows: &'a Rows, top: usize, value: impl Fn(&'a Ranked) -> &'a str) -> ArrayRef {
    if top == 1 {
        let best =
            |row: &'a Result<Decision, String>| Some(value(row.as_ref().ok()?.ranked.first()?));
        return Arc::new(rows.iter().map(best).collect::<StringArray>());
    }
    let mut lists = ListBuilder::new(StringBuilder::new());
    for row in rows {
        if let Ok(decision) = row {
            for ranked in &decision.ranked {
                lists.values().append_value(value(ranked));
            }
        }
        lists.append(row.is_ok());
    }
    Arc::new(lists.finish())
}

/// As [`strings`], of numbers.
fn numbers(rows: &Rows, top: usize, value: impl Fn(&Ranked) -> f32) -> ArrayRef {
    if top == 1 {
        let best = |row: &Result<Decision, String>| Some(value(row.as_ref().ok()?.ranked.first()?));
        return Arc::new(rows.iter().map(best).collect::<Float32Array>());
    }
    let mut lists = ListBuilder::new(Float32Builder::new());
    for row in rows {
        if let Ok(decision) = row {
            for ranked in &decision.ranked {
                lists.values().append_value(value(ranked));
            }
        }
        lists.append(row.is_ok());
    }
    Arc::new(lists.finish())
}

fn table(rows: &Rows, top: usize) -> Result<RecordBatch, arrow_schema::ArrowError> {
    let decisions: Vec<Option<&Decision>> = rows.iter().map(|row| row.as_ref().ok()).collect();
    let each = || decisions.iter().copied();
    let margin = |decision: Option<&Decision>| decision?.margin;
    let sure = |decision: Option<&Decision>| Some(decision?.confidence.as_ref()?.model);
    let why = each().map(|decision| Some(decision?.abstained.as_ref()?.detail.as_str()));
    let cut = |decision: Option<&Decision>| Some(decision?.truncated);
    let error = rows.iter().map(|row| row.as_ref().err());
    let columns: [(&str, ArrayRef); 9] = [
        ("model", strings(rows, top, |ranked| &ranked.model)),
        ("domain", strings(rows, top, |ranked| &ranked.domain)),
        ("score", numbers(rows, top, |ranked| ranked.score)),
        (
            "probability",
            numbers(rows, top, |ranked| ranked.probability),
        ),
        (
            "margin",
            Arc::new(each().map(margin).collect::<Float32Array>()),
        ),
        (
            "confidence",
            Arc::new(each().map(sure).collect::<Float32Array>()),
        ),
        ("abstained", Arc::new(why.collect::<StringArray>())),
        (
            "truncated",
            Arc::new(each().map(cut).collect::<BooleanArray>()),
        ),
        ("error", Arc::new(error.collect::<StringArray>())),
    ];
    let fields = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    let columns = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(schema), columns)
}

/// Routes as columns: `pyarrow.record_batch`, `pyarrow.table`, `polars.DataFrame` and others take
/// it.
#[pyclass(frozen, module = "hubrouter")]
pub(crate) struct ArrowRoutes(RecordBatch);

impl ArrowRoutes {
    /// The batch as an array of structs.
    fn structs(&self) -> (Field, StructArray) {
        let field = Field::new(
            "",
            DataType::Struct(self.0.schema().fields().clone()),
            false,
        );
        (field, StructArray::from(self.0.clone()))
    }
}

type Capsules<'py> = (Bound<'py, PyCapsule>, Bound<'py, PyCapsule>);

#[pymethods]
impl ArrowRoutes {
    /// The names of the columns.
    #[getter]
    fn column_names(&self) -> Vec<String> {
        let schema = self.0.schema();
        schema
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect()
    }

    /// Rows without an answer; the column `error` says why.
    #[getter]
    fn failed(&self) -> Vec<usize> {
        let errors = self.0.column_by_name("error");
        let has_error = |row: &usize| errors.is_some_and(|errors| errors.is_valid(*row));
        (0..self.0.num_rows()).filter(has_error).collect()
    }

    /// One column, which `pyarrow.array` and `polars.Series` take.
    fn column(&self, name: &str) -> PyResult<ArrowColumn> {
        let schema = self.0.schema();
        match schema.column_with_name(name) {
            Some((place, field)) => Ok(ArrowColumn {
                field: Arc::new(field.clone()),
                array: Arc::clone(self.0.column(place)),
            }),
            None => Err(PyKeyError::new_err(format!(
                "expected one of {:?}, found {name:?}",
                self.column_names()
            ))),
        }
    }

    fn __len__(&self) -> usize {
        self.0.num_rows()
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        exported_schema(py, &self.structs().0)
    }

    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Capsules<'py>> {
        let _ = requested_schema;
        let (field, array) = self.structs();
        exported(py, &field, &array)
    }

    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let _ = requested_schema;
        exported_stream(py, &self.0)
    }

    fn __repr__(&self) -> String {
        format!(
            "ArrowRoutes({} rows, {} failed)",
            self.0.num_rows(),
            self.failed().len()
        )
    }
}

/// A column of routes.
#[pyclass(frozen, module = "hubrouter")]
pub(crate) struct ArrowColumn {
    field: FieldRef,
    array: ArrayRef,
}

#[pymethods]
impl ArrowColumn {
    fn __len__(&self) -> usize {
        self.array.len()
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        exported_schema(py, &self.field)
    }

    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Capsules<'py>> {
        let _ = requested_schema;
        exported(py, &self.field, &self.array)
    }

    fn __repr__(&self) -> String {
        format!(
            "ArrowColumn({:?}, {} rows)",
            self.field.name(),
            self.array.len()
        )
    }
}
