//! The models of a hub.

use std::sync::Arc;

use hubrouter::{Hub, Model, ModelId};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;

use crate::json;

/// The models of a hub.
///
/// >>> import hubrouter
/// >>> hub = hubrouter.Router(device="cpu").hub
/// >>> "openai/whisper-small" in hub, hub["openai/whisper-small"].family
/// (True, 'whisper')
#[pyclass(frozen, module = "hubrouter", name = "Hub")]
pub(crate) struct PyHub(pub(crate) Arc<Hub>);

#[pymethods]
impl PyHub {
    /// Models that are not retired.
    #[getter]
    fn active(&self) -> usize {
        self.0.active()
    }

    /// All models in the order of their ids, retired ones, too.
    fn models(&self) -> Vec<PyModel> {
        let models = self.0.iter();
        models
            .map(|(id, model)| PyModel(id, model.clone()))
            .collect()
    }

    /// Names of the models that are not retired.
    fn names(&self) -> Vec<&str> {
        let in_use = self.0.iter().filter(|(_, model)| !model.retired);
        in_use.map(|(_, model)| &*model.name).collect()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __contains__(&self, name: &str) -> bool {
        self.0.find(name).is_some()
    }

    fn __getitem__(&self, name: &str) -> PyResult<PyModel> {
        let found = self.0.find(name).and_then(|id| Some((id, self.0.get(id)?)));
        match found {
            Some((id, model)) => Ok(PyModel(id, model.clone())),
            None => Err(PyKeyError::new_err(match self.0.resolve(name) {
                Err(error) => error.to_string(),
                Ok(_) => name.to_owned(),
            })),
        }
    }

    fn __repr__(&self) -> String {
        format!("Hub({} models, {} active)", self.0.len(), self.0.active())
    }
}

/// A model of a hub.
#[pyclass(frozen, module = "hubrouter", name = "Model")]
pub(crate) struct PyModel(ModelId, Model);

#[pymethods]
impl PyModel {
    #[getter]
    fn id(&self) -> u32 {
        self.0.0
    }

    #[getter]
    fn name(&self) -> &str {
        &self.1.name
    }

    #[getter]
    fn domain(&self) -> &str {
        &self.1.domain
    }

    #[getter]
    fn family(&self) -> Option<&str> {
        self.1.family.as_deref()
    }

    #[getter]
    fn created_at(&self) -> Option<i64> {
        self.1.created_at
    }

    #[getter]
    fn aliases(&self) -> Vec<&str> {
        self.1.aliases.iter().map(|name| &**name).collect()
    }

    #[getter]
    fn attributes(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.1.attributes)
    }

    #[getter]
    fn retired(&self) -> bool {
        self.1.retired
    }

    fn __repr__(&self) -> String {
        format!("Model({:?}, domain={:?})", self.1.name, self.1.domain)
    }
}
