//! Decisions and explanations.

use hubrouter::{Decision, DomainScore, Explanation, Ranked};
use pyo3::prelude::*;

use crate::json;

/// The models that should take a prompt, best first. `json` is the form of `hubrouter route
/// --json`.
///
/// >>> import hubrouter
/// >>> decision = hubrouter.Router(device="cpu").route("Translate this letter.", top=2)
/// >>> decision.model == decision.ranked[0].model == decision.to_dict()["ranked"][0]["model"]
/// True
#[pyclass(frozen, module = "hubrouter", name = "Decision")]
pub(crate) struct PyDecision(pub(crate) Decision);

#[pymethods]
impl PyDecision {
    #[staticmethod]
    fn from_json(text: &str) -> PyResult<Self> {
        Ok(Self(json::parsed(text, "decision")?))
    }

    /// The name of the best model; None if none is ranked.
    #[getter]
    fn model(&self) -> Option<&str> {
        self.0.ranked.first().map(|best| &*best.model)
    }

    /// Best first.
    #[getter]
    fn ranked(&self) -> Vec<PyRanked> {
        self.0.ranked.iter().cloned().map(PyRanked).collect()
    }

    /// Best domain first.
    #[getter]
    fn domains(&self) -> Vec<PyDomainScore> {
        self.0.domains.iter().cloned().map(PyDomainScore).collect()
    }

    /// Best score less that of the runner-up.
    #[getter]
    fn margin(&self) -> Option<f32> {
        self.0.margin
    }

    /// How sure the answer is, if that was measured: `model`, `domain`, `out_of_distribution`, ...
    #[getter]
    fn confidence(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.confidence)
    }

    /// Why the answer is not to be acted on, if so: `reason`, `detail`.
    #[getter]
    fn abstained(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.abstained)
    }

    /// Which models could answer, if the request came with a policy.
    #[getter]
    fn policy(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.policy)
    }

    /// What of a chat request was taken, and what it demands.
    #[getter]
    fn chat(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.chat)
    }

    /// Whether the conversation kept its model.
    #[getter]
    fn session(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.session)
    }

    /// Microseconds of each stage.
    #[getter]
    fn timings_us(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.timing)
    }

    #[getter]
    fn prompt_id(&self) -> &str {
        &self.0.prompt_id
    }

    /// Tokens that were encoded.
    #[getter]
    fn tokens(&self) -> usize {
        self.0.tokens
    }

    /// True if the prompt was longer than the encoder's limit.
    #[getter]
    fn truncated(&self) -> bool {
        self.0.truncated
    }

    /// Share of the tokens that the tokenizer does not know.
    #[getter]
    fn unknown(&self) -> f32 {
        self.0.unknown
    }

    /// True if it was made before, for an equal prompt.
    #[getter]
    fn cached(&self) -> bool {
        self.0.cached
    }

    /// Why another device or generation answered than the one asked for.
    #[getter]
    fn degraded(&self) -> Option<&str> {
        self.0.degraded.as_deref()
    }

    /// The device that computed.
    #[getter]
    fn device(&self) -> &str {
        &self.0.device
    }

    /// Why that device, where `auto` chooses between the CPU and a GPU for each call.
    #[getter]
    fn device_reason(&self) -> Option<&str> {
        self.0.device_reason.as_deref()
    }

    /// `f32` or `int8`.
    #[getter]
    fn precision(&self) -> String {
        self.0.precision.to_string()
    }

    /// The generation that answered.
    #[getter]
    fn generation(&self) -> &str {
        self.0.revisions.generation.as_str()
    }

    #[getter]
    fn encoder(&self) -> &str {
        &self.0.revisions.encoder
    }

    #[getter]
    fn tokenizer(&self) -> &str {
        &self.0.revisions.tokenizer
    }

    fn json(&self) -> PyResult<String> {
        json::text(&self.0)
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0)
    }

    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<(Py<PyAny>, (String,))> {
        let make = slf.get_type().getattr("from_json")?.unbind();
        Ok((make, (slf.get().json()?,)))
    }

    fn __repr__(&self) -> String {
        match self.0.ranked.first() {
            Some(best) => format!(
                "Decision({:?}, probability={})",
                best.model, best.probability
            ),
            None => "Decision(None)".to_owned(),
        }
    }
}

/// A ranked model.
#[pyclass(frozen, module = "hubrouter", name = "Ranked")]
pub(crate) struct PyRanked(Ranked);

#[pymethods]
impl PyRanked {
    #[getter]
    fn id(&self) -> u32 {
        self.0.id.0
    }

    #[getter]
    fn model(&self) -> &str {
        &self.0.model
    }

    #[getter]
    fn score(&self) -> f32 {
        self.0.score
    }

    #[getter]
    fn probability(&self) -> f32 {
        self.0.probability
    }

    #[getter]
    fn cosine(&self) -> f32 {
        self.0.cosine
    }

    #[getter]
    fn domain(&self) -> &str {
        &self.0.domain
    }

    #[getter]
    fn family(&self) -> Option<&str> {
        self.0.family.as_deref()
    }

    /// The deployments of the model that may answer, if the policy has candidates.
    #[getter]
    fn deployments(&self) -> Vec<&str> {
        self.0.deployments.iter().map(|name| &**name).collect()
    }

    /// Score less cost and latency, if the policy trades.
    #[getter]
    fn utility(&self) -> Option<f64> {
        self.0.utility
    }

    #[getter]
    fn parts(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.parts)
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0)
    }

    fn __repr__(&self) -> String {
        format!(
            "Ranked({:?}, probability={})",
            self.0.model, self.0.probability
        )
    }
}

/// The score of a domain.
#[pyclass(frozen, module = "hubrouter", name = "DomainScore")]
pub(crate) struct PyDomainScore(DomainScore);

#[pymethods]
impl PyDomainScore {
    #[getter]
    fn domain(&self) -> &str {
        &self.0.domain
    }

    #[getter]
    fn score(&self) -> f32 {
        self.0.score
    }

    #[getter]
    fn probability(&self) -> f32 {
        self.0.probability
    }

    fn __repr__(&self) -> String {
        format!(
            "DomainScore({:?}, probability={})",
            self.0.domain, self.0.probability
        )
    }
}

/// A decision and what is behind it: `Router.explain` makes it.
#[pyclass(frozen, module = "hubrouter", name = "Explanation")]
pub(crate) struct PyExplanation(pub(crate) Explanation);

#[pymethods]
impl PyExplanation {
    #[getter]
    fn decision(&self) -> PyDecision {
        PyDecision(self.0.decision.clone())
    }

    #[getter]
    fn runner_up(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.runner_up)
    }

    #[getter]
    fn near_models(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.near_models)
    }

    #[getter]
    fn near_domains(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.near_domains)
    }

    #[getter]
    fn excluded(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.excluded)
    }

    #[getter]
    fn introduced(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.introduced)
    }

    fn json(&self) -> PyResult<String> {
        json::text(&self.0)
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0)
    }

    fn __repr__(&self) -> String {
        let best = self.0.decision.ranked.first();
        format!("Explanation({:?})", best.map(|best| &*best.model))
    }
}
