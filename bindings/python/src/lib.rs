//! The Python package `hubrouter`: the library's types as classes, its errors as exceptions, its
//! command as `python -m hubrouter`.
//!
//! `python/hubrouter/_native.pyi` has the interface with its types. Everything that computes or
//! reads a file does so without the GIL ([`errors::computed`]), and a panic becomes an exception.
//! Classes are frozen: what changes is behind the library's own locks, so that the module needs no
//! GIL (PEP 703).

mod arrow;
mod capsules;
mod command;
mod decision;
mod errors;
mod feedback;
mod hub;
mod json;
mod learn;
mod policy;
mod request;
mod router;

/// The module `hubrouter._native`.
#[pyo3::pymodule(gil_used = false)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::arrow::{ArrowColumn, ArrowRoutes};
    #[pymodule_export]
    use crate::command::run_command;
    #[pymodule_export]
    use crate::decision::{PyDecision, PyDomainScore, PyExplanation, PyRanked};
    #[pymodule_export]
    use crate::feedback::PyFeedbackLog;
    #[pymodule_export]
    use crate::hub::{PyHub, PyModel};
    #[pymodule_export]
    use crate::learn::{PyProgress, build, learn};
    #[pymodule_export]
    use crate::policy::PyPolicy;
    #[pymodule_export]
    use crate::request::PyRequest;
    #[pymodule_export]
    use crate::router::{PyRouter, PyStoreWatch};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        crate::errors::add_to(module)
    }
}
