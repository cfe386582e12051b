//! Policies, compiled for a router.

use std::path::PathBuf;
use std::sync::Arc;

use hubrouter::{Policy, PolicyHandle, Router};
use pyo3::prelude::*;
use pyo3::types::PyMapping;
use serde_json::json;

use crate::errors::raised;
use crate::json;

/// Which models may answer, compiled for the router that made it.
#[pyclass(frozen, module = "hubrouter", name = "Policy")]
pub(crate) struct PyPolicy {
    pub(crate) router: Arc<Router>,
    pub(crate) handle: PolicyHandle,
}

/// A policy as its fields, or the path of a file that has them.
pub(crate) fn policy_of(value: &Bound<'_, PyAny>) -> PyResult<Policy> {
    if value.cast::<PyMapping>().is_ok() {
        return Policy::from_json(&json::dumped(value)?).map_err(|error| raised(&error));
    }
    let path: PathBuf = value.extract()?;
    Policy::read(path).map_err(|error| raised(&error))
}

#[pymethods]
impl PyPolicy {
    /// Models that may answer; 0 if none may.
    #[getter]
    fn eligible(&self) -> usize {
        self.handle.eligible()
    }

    /// What excludes the others.
    #[getter]
    fn excluded(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.handle.excluded())
    }

    /// The fallback that is used in place of `where`, if one is.
    #[getter]
    fn fallback(&self) -> Option<String> {
        self.handle.fallback().map(|fallback| fallback.to_string())
    }

    #[getter]
    fn generation(&self) -> String {
        self.handle.generation().to_string()
    }

    /// The policy, the generation that it was compiled for, and what it excludes.
    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let handle = &self.handle;
        let report = json!({
            "schema_version": 1,
            "policy": handle.policy(),
            "generation": handle.generation(),
            "eligible": handle.eligible(),
            "excluded": handle.excluded(),
        });
        json::to_python(py, &report)
    }

    fn __repr__(&self) -> String {
        format!("Policy(eligible={})", self.handle.eligible())
    }
}
