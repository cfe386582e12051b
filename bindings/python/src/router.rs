//! Routers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hubrouter::{
    Decision, ErrorKind, GenerationId, Options, Policy, Request, Router, SessionOptions, StoreWatch,
};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::json;

use crate::arrow::{ArrowRoutes, Prompts};
use crate::decision::{PyDecision, PyExplanation};
use crate::errors::{computed, exception, raised, unlocked};
use crate::hub::PyHub;
use crate::json;
use crate::policy::{PyPolicy, policy_of};
use crate::request::{Asked, PyRequest, Session, seconds};

/// Prompts that are routed together. Ctrl-C is noticed between two such batches.
const BATCH: usize = 256;

/// Ranks the models of a hub for prompts.
///
/// >>> import hubrouter
/// >>> router = hubrouter.Router(device="cpu")
/// >>> router.route("Which bird is singing in this recording?").ranked[0].domain
/// 'Audio Audio Classification'
///
/// Without a store it opens the one in the package. Threads may share a router: calls compute
/// without the GIL. With `threads=1` they run side by side, with more they take turns and each has
/// all threads. In a forked process a router with more threads raises UnsupportedError: open it
/// there.
#[pyclass(frozen, module = "hubrouter", name = "Router")]
pub(crate) struct PyRouter(Arc<Router>);

/// The folder of the package's weights.
pub(crate) fn weights(py: Python<'_>) -> PyResult<PathBuf> {
    let module = py.import("hubrouter._native")?.filename()?;
    let module: PathBuf = module.extract()?;
    let package = module.parent().unwrap_or(Path::new("."));
    Ok(package.join("weights"))
}

/// The store that comes with the package.
fn bundled_store(py: Python<'_>) -> PyResult<PathBuf> {
    Ok(weights(py)?.join("cmrbench"))
}

/// The encoder that comes with the package.
pub(crate) fn bundled_encoder(py: Python<'_>) -> PyResult<PathBuf> {
    Ok(weights(py)?.join("all-MiniLM-L6-v2"))
}

/// Options that look for the encoder in the package as well.
pub(crate) fn options(py: Python<'_>, device: &str, threads: Option<usize>) -> PyResult<Options> {
    let mut options = Options::default()
        .device(device)
        .look_in(bundled_encoder(py)?);
    options.threads = threads;
    Ok(options)
}

impl PyRouter {
    fn handle<'a>(
        &self,
        policy: Option<&'a Bound<'_, PyPolicy>>,
    ) -> PyResult<Option<&'a hubrouter::PolicyHandle>> {
        let Some(policy) = policy.map(Bound::get) else {
            return Ok(None);
        };
        if !Arc::ptr_eq(&policy.router, &self.0) {
            let text = "policy: expected one that this router has compiled, found another router's";
            return Err(exception(ErrorKind::InvalidRequest, text.to_owned()));
        }
        Ok(Some(&policy.handle))
    }

    fn routed(
        &self,
        py: Python<'_>,
        request: &Request,
        policy: Option<&Bound<'_, PyPolicy>>,
    ) -> PyResult<PyDecision> {
        let handle = self.handle(policy)?;
        let decision = computed(py, || match handle {
            Some(handle) => self.0.route_within(request, handle),
            None => self.0.route(request),
        })?;
        Ok(PyDecision(decision))
    }

    /// An answer for each request, batch by batch.
    fn batches(
        &self,
        py: Python<'_>,
        requests: &[Request],
        policy: Option<&Bound<'_, PyPolicy>>,
    ) -> PyResult<Vec<hubrouter::Result<Decision>>> {
        let handle = self.handle(policy)?;
        let mut answers = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH) {
            answers.extend(unlocked(py, || match handle {
                Some(handle) => self.0.route_batch_within(batch, handle),
                None => self.0.route_batch(batch),
            })?);
            py.check_signals()?;
        }
        Ok(answers)
    }
}

#[pymethods]
impl PyRouter {
    #[new]
    #[pyo3(signature = (
        store=None, *, generation=None, device="auto", threads=None, fallback=false, encoder=None,
        look_in=None, max_tokens=None, precision="auto", cpu="auto", cache_bytes=0, queue=None,
        sessions=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        py: Python<'_>,
        store: Option<PathBuf>,
        generation: Option<&str>,
        device: &str,
        threads: Option<usize>,
        fallback: bool,
        encoder: Option<PathBuf>,
        look_in: Option<Vec<PathBuf>>,
        max_tokens: Option<usize>,
        precision: &str,
        cpu: &str,
        cache_bytes: usize,
        queue: Option<usize>,
        sessions: Option<Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mut options = options(py, device, threads)?;
        options.fallback = fallback;
        options.encoder = encoder;
        options.look_in.splice(0..0, look_in.unwrap_or_default());
        options.max_tokens = max_tokens;
        options.precision = precision.parse().map_err(|error| raised(&error))?;
        options.cpu = cpu.parse().map_err(|error| raised(&error))?;
        options.cache_bytes = cache_bytes;
        options.queue = queue;
        if let Some(sessions) = sessions {
            let text = json::dumped(&sessions)?;
            options.sessions = json::parsed::<SessionOptions>(&text, "sessions")?;
        }
        let store = match store {
            Some(store) => store,
            None => bundled_store(py)?,
        };
        let router = match generation {
            None => computed(py, || Router::open(store, options))?,
            Some(beginning) => computed(py, || {
                let id = hubrouter::Store::open(&store)?.find(beginning)?;
                Router::open_generation(store, &id, options)
            })?,
        };
        Ok(Self(Arc::new(router)))
    }

    /// The best models for a prompt, or for a Request.
    ///
    /// `top` counts before the request's own. Raises InvalidRequestError if the prompt has no text,
    /// NoCandidateError if no model may answer.
    #[pyo3(signature = (request, *, top=None, policy=None))]
    fn route(
        &self,
        py: Python<'_>,
        request: Asked,
        top: Option<usize>,
        policy: Option<Bound<'_, PyPolicy>>,
    ) -> PyResult<PyDecision> {
        self.routed(py, &request.request(top), policy.as_ref())
    }

    /// The best models for each prompt, computed together.
    ///
    /// A prompt without an answer has an exception in its place, which is returned and not raised:
    ///
    /// >>> import hubrouter
    /// >>> router = hubrouter.Router(device="cpu")
    /// >>> good, bad = router.route_many(["Translate this letter.", ""])
    /// >>> good.model is not None, type(bad).__name__
    /// (True, 'InvalidRequestError')
    #[pyo3(signature = (requests, *, top=None, policy=None))]
    fn route_many(
        &self,
        py: Python<'_>,
        requests: Vec<Asked>,
        top: Option<usize>,
        policy: Option<Bound<'_, PyPolicy>>,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let requests = requests.into_iter().map(|asked| asked.request(top));
        let requests: Vec<Request> = requests.collect();
        let answers = self.batches(py, &requests, policy.as_ref())?;
        let python = |answer| -> PyResult<Py<PyAny>> {
            match answer {
                Ok(decision) => Ok(Py::new(py, PyDecision(decision))?.into_any()),
                Err(error) => Ok(raised(&error).into_value(py).into_any()),
            }
        };
        answers.into_iter().map(python).collect()
    }

    /// The best models for the body of a chat request: JSON, or the dict that it is of.
    ///
    /// `shape` is "openai_chat", "openai_responses" or "anthropic_messages"; without it the body
    /// shows which. What is routed is the newest ask of a person.
    ///
    /// >>> import hubrouter
    /// >>> router = hubrouter.Router(device="cpu")
    /// >>> body = {"messages": [{"role": "user", "content": "Translate this letter."}]}
    /// >>> router.route_chat(body).chat["taken"]["from"]
    /// 'newest_ask'
    #[pyo3(signature = (
        body, *, shape=None, top=None, prompt_id=None, session=None, deadline=None, policy=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn route_chat(
        &self,
        py: Python<'_>,
        body: &Bound<'_, PyAny>,
        shape: Option<&str>,
        top: Option<usize>,
        prompt_id: Option<String>,
        session: Option<Session>,
        deadline: Option<f64>,
        policy: Option<Bound<'_, PyPolicy>>,
    ) -> PyResult<PyDecision> {
        let request = PyRequest::from_chat(body, shape, top, prompt_id, session, deadline)?;
        self.routed(py, &request.0, policy.as_ref())
    }

    /// As `route`, with what is behind the answer: parts of the score, the runner-up, what is near.
    #[pyo3(signature = (request, *, top=None, policy=None))]
    fn explain(
        &self,
        py: Python<'_>,
        request: Asked,
        top: Option<usize>,
        policy: Option<Bound<'_, PyPolicy>>,
    ) -> PyResult<PyExplanation> {
        let request = request.request(top);
        let handle = self.handle(policy.as_ref())?;
        let explanation = computed(py, || match handle {
            Some(handle) => self.0.explain_within(&request, handle),
            None => self.0.explain(&request),
        })?;
        Ok(PyExplanation(explanation))
    }

    /// The best models for a column of prompts: an object with `__arrow_c_array__` or
    /// `__arrow_c_stream__`, such as a record batch, a table, a data frame or a column itself.
    ///
    /// The result has a row for each row of the input, in the same order, with the columns `model`,
    /// `domain`, `score`, `probability` (lists if `top` is more than 1), `margin`, `confidence`,
    /// `abstained`, `truncated` and `error`. A row whose prompt is null or has no text has its
    /// reason in `error` and nulls elsewhere; the others are answered.
    ///
    /// >>> import hubrouter, pyarrow as pa
    /// >>> router = hubrouter.Router(device="cpu")
    /// >>> batch = pa.record_batch({"prompt": ["Translate this letter.", None]})
    /// >>> routes = pa.record_batch(router.route_arrow(batch))
    /// >>> routes["error"].to_pylist()
    /// [None, 'invalid_request: the prompt is null']
    #[pyo3(signature = (data, column="prompt", top=1, *, policy=None))]
    fn route_arrow(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        column: &str,
        top: usize,
        policy: Option<Bound<'_, PyPolicy>>,
    ) -> PyResult<ArrowRoutes> {
        let prompts = Prompts::of(data, column, top)?;
        let answers = self.batches(py, prompts.requests(), policy.as_ref())?;
        prompts.answered(answers, top)
    }

    /// Compiles a policy: its fields as a dict, or the path of a TOML or JSON file.
    ///
    /// >>> import hubrouter
    /// >>> router = hubrouter.Router(device="cpu")
    /// >>> speech = router.compile({"where": "domain has audio and family != whisper"})
    /// >>> router.route("Who is speaking?", policy=speech).policy["eligible"] == speech.eligible
    /// True
    fn compile(&self, py: Python<'_>, policy: &Bound<'_, PyAny>) -> PyResult<PyPolicy> {
        let policy = policy_of(policy)?;
        self.compiled(py, &policy)
    }

    /// Compiles the policy that admits the models of these names alone.
    fn candidates(&self, py: Python<'_>, names: Vec<String>) -> PyResult<PyPolicy> {
        self.compiled(py, &Policy::default().candidates(names))
    }

    /// Routes prompts of all lengths, so that the first request is as fast as the others.
    fn warm_up(&self, py: Python<'_>) -> PyResult<()> {
        computed(py, || self.0.warm_up())
    }

    /// Serves the store's current generation. True if it changed. On an error the old one stays.
    fn refresh(&self, py: Python<'_>) -> PyResult<bool> {
        computed(py, || self.0.refresh())
    }

    /// Serves the generation of this id. Calls under way finish on the old one.
    fn install(&self, py: Python<'_>, generation: &str) -> PyResult<()> {
        computed(py, || {
            let id: GenerationId = generation.parse()?;
            self.0.install(&id)
        })
    }

    /// Makes the parent of the served generation current in the store, serves it, and returns its
    /// id.
    fn rollback(&self, py: Python<'_>) -> PyResult<String> {
        Ok(computed(py, || self.0.rollback())?.to_string())
    }

    /// Follows the store, every `interval` seconds, until the result is stopped or is lost.
    fn watch(&self, interval: f64) -> PyResult<PyStoreWatch> {
        let watch = self.0.watch(seconds(interval)?);
        let watch = watch.map_err(|error| raised(&error))?;
        Ok(PyStoreWatch(Mutex::new(Some(watch))))
    }

    /// The id of the generation that is served.
    #[getter]
    fn generation(&self) -> String {
        self.0.generation().to_string()
    }

    /// The models of the generation that is served.
    #[getter]
    fn hub(&self) -> PyHub {
        PyHub(self.0.hub())
    }

    /// The folder of the store.
    #[getter]
    fn store(&self) -> PathBuf {
        self.0.store().root().to_owned()
    }

    /// What the router is now: device and numbers with the reasons for them, threads, counts.
    fn info(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let router = &self.0;
        let hub = router.hub();
        let report = json!({
            "schema_version": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "store": router.store().root(),
            "generation": router.generation(),
            "models": hub.len(),
            "active_models": hub.active(),
            "device": router.device_name(),
            "device_reason": router.device_reason(),
            "precision": router.precision(),
            "precision_reason": router.precision_reason(),
            "threads": router.threads(),
            "max_tokens": router.max_tokens(),
            "stats": router.stats(),
        });
        json::to_python(py, &report)
    }

    fn __repr__(&self) -> String {
        let hub = self.0.hub();
        format!(
            "Router(generation={:?}, models={})",
            self.0.generation().as_str(),
            hub.active()
        )
    }
}

impl PyRouter {
    fn compiled(&self, py: Python<'_>, policy: &Policy) -> PyResult<PyPolicy> {
        let handle = computed(py, || self.0.compile(policy))?;
        let router = Arc::clone(&self.0);
        Ok(PyPolicy { router, handle })
    }
}

/// A router that follows its store: `Router.watch` makes it. As a context manager it stops at the
/// end.
#[pyclass(frozen, module = "hubrouter", name = "StoreWatch")]
pub(crate) struct PyStoreWatch(Mutex<Option<StoreWatch>>);

impl PyStoreWatch {
    fn with<T>(&self, ask: impl FnOnce(&StoreWatch) -> T) -> Option<T> {
        let watch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watch.as_ref().map(ask)
    }
}

#[pymethods]
impl PyStoreWatch {
    /// Generations that were served since.
    #[getter]
    fn reloads(&self) -> u64 {
        self.with(StoreWatch::reloads).unwrap_or(0)
    }

    /// Tries that failed.
    #[getter]
    fn errors(&self) -> u64 {
        self.with(StoreWatch::errors).unwrap_or(0)
    }

    /// Why the last try failed; None if it did not.
    #[getter]
    fn last_error(&self) -> Option<PyErr> {
        let error = self.with(StoreWatch::last_error).flatten()?;
        Some(raised(&error))
    }

    /// Stops, and waits for the thread's end.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        // Dropping it waits for the end of its thread.
        let stopped = || drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        unlocked(py, stopped)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.stop(py)
    }
}
