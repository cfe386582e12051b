//! Logs of feedback.

use std::path::PathBuf;
use std::time::Duration;

use hubrouter::feedback::{Feedback, FeedbackLog, FeedbackOptions, KeepPrompt};
use pyo3::prelude::*;

use crate::decision::PyDecision;
use crate::errors::{computed, raised};
use crate::request::Asked;

/// A log of decisions and of what became of them, which `hubrouter report` and `learn` read.
///
/// `keep`: what is kept of a prompt, "hash", "text", "vector" or "nothing".
///
/// >>> import hubrouter, tempfile
/// >>> log = hubrouter.FeedbackLog(tempfile.mkdtemp() + "/log")
/// >>> request = hubrouter.Request("Translate this letter.")
/// >>> decision = hubrouter.Router(device="cpu").route(request)
/// >>> log.observe(request, decision, used=decision.model, success=True)
#[pyclass(frozen, module = "hubrouter", name = "FeedbackLog")]
pub(crate) struct PyFeedbackLog(FeedbackLog);

#[pymethods]
impl PyFeedbackLog {
    #[new]
    #[pyo3(signature = (
        folder, *, keep="hash", top=3, max_bytes=64 << 20, max_files=8, patience=0.1, shadow=false
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        py: Python<'_>,
        folder: PathBuf,
        keep: &str,
        top: usize,
        max_bytes: u64,
        max_files: usize,
        patience: f64,
        shadow: bool,
    ) -> PyResult<Self> {
        let keep: KeepPrompt = keep.parse().map_err(|error| raised(&error))?;
        let patience: Duration = crate::request::seconds(patience)?;
        let options = FeedbackOptions::default().keep(keep).top(top);
        let options = options
            .bounds(max_bytes, max_files)
            .patience(patience)
            .shadow(shadow);
        Ok(Self(computed(py, || FeedbackLog::open(folder, options))?))
    }

    /// The folder of the log.
    #[getter]
    fn folder(&self) -> PathBuf {
        self.0.folder().to_owned()
    }

    /// Lines that could not be written.
    #[getter]
    fn lost(&self) -> u64 {
        self.0.lost()
    }

    /// Records a decision, and what was really used and how it went.
    #[pyo3(signature = (
        request, decision, *, used=None, expected_model=None, success=None, rating=None, cost=None,
        latency_ms=None, input_tokens=None, output_tokens=None, error=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn observe(
        &self,
        py: Python<'_>,
        request: Asked,
        decision: &Bound<'_, PyDecision>,
        used: Option<String>,
        expected_model: Option<String>,
        success: Option<bool>,
        rating: Option<f64>,
        cost: Option<f64>,
        latency_ms: Option<f64>,
        input_tokens: Option<u64>,
        output_tokens: Option<u64>,
        error: Option<String>,
    ) -> PyResult<()> {
        let mut feedback = Feedback::default();
        feedback.used = used;
        feedback.expected_model = expected_model;
        feedback.success = success;
        feedback.rating = rating;
        feedback.cost = cost;
        feedback.latency_ms = latency_ms;
        feedback.input_tokens = input_tokens;
        feedback.output_tokens = output_tokens;
        feedback.error = error;
        let request = request.request(None);
        let decision = &decision.get().0;
        computed(py, || self.0.observe(&request, decision, &feedback))
    }

    fn __repr__(&self) -> String {
        format!("FeedbackLog({:?})", self.0.folder().display().to_string())
    }
}
