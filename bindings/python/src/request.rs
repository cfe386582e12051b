//! Requests.

use std::time::Duration;

use hubrouter::{ChatShape, ErrorKind, Request, SessionKey};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::errors::{computed, exception};
use crate::json;

/// A prompt, and what is asked for it.
///
/// `top`: ranked models of the answer, 10 if it is missing. `session`: the id of a conversation, or
/// tenant and id. `deadline`: seconds after the call.
///
/// >>> import hubrouter
/// >>> hubrouter.Request("Which bird is singing?", top=3, session=("acme", "42"))
/// Request('Which bird is singing?', top=3)
#[pyclass(frozen, module = "hubrouter", name = "Request")]
pub(crate) struct PyRequest(pub(crate) Request);

/// The conversation of a request: its id, or tenant and id.
#[derive(FromPyObject)]
pub(crate) enum Session {
    Id(String),
    TenantAndId((String, String)),
}

/// What a request has beside its prompt.
struct Extras {
    top: Option<usize>,
    prompt_id: Option<String>,
    session: Option<Session>,
    deadline: Option<f64>,
}

impl Extras {
    fn added_to(self, mut request: Request) -> PyResult<PyRequest> {
        if let Some(top) = self.top {
            request.top = top;
        }
        if let Some(id) = self.prompt_id {
            request.prompt_id = id;
        }
        request.session = self.session.map(|session| match session {
            Session::Id(id) => SessionKey::new("", id),
            Session::TenantAndId((tenant, id)) => SessionKey::new(tenant, id),
        });
        request.deadline = self.deadline.map(seconds).transpose()?;
        Ok(PyRequest(request))
    }
}

/// A time in seconds.
pub(crate) fn seconds(number: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(number).map_err(|_| {
        let text = format!("expected a number of seconds from 0 on, found {number}");
        exception(ErrorKind::InvalidRequest, text)
    })
}

/// The request in the body of a chat request: JSON, or the dict that it is of.
fn of_chat(body: &Bound<'_, PyAny>, shape: Option<&str>) -> PyResult<Request> {
    let py = body.py();
    let body = json::dumped(body)?;
    let shape: Option<ChatShape> = match shape {
        Some(name) => Some(json::parsed(&json::text(&name)?, "shape")?),
        None => None,
    };
    computed(py, move || match shape {
        Some(shape) => Request::from_chat_as(body, shape),
        None => Request::from_chat(body),
    })
}

#[pymethods]
impl PyRequest {
    #[new]
    #[pyo3(signature = (prompt, *, top=None, prompt_id=None, session=None, deadline=None))]
    fn new(
        prompt: String,
        top: Option<usize>,
        prompt_id: Option<String>,
        session: Option<Session>,
        deadline: Option<f64>,
    ) -> PyResult<Self> {
        let extras = Extras {
            top,
            prompt_id,
            session,
            deadline,
        };
        extras.added_to(Request::new(prompt))
    }

    /// The request in the body of a chat request: JSON, or the dict that it is of.
    ///
    /// >>> import hubrouter
    /// >>> body = {"messages": [{"role": "user", "content": "Which bird is singing?"}]}
    /// >>> hubrouter.Request.from_chat(body).prompt
    /// 'Which bird is singing?'
    #[staticmethod]
    #[pyo3(signature = (
        body, *, shape=None, top=None, prompt_id=None, session=None, deadline=None
    ))]
    pub(crate) fn from_chat(
        body: &Bound<'_, PyAny>,
        shape: Option<&str>,
        top: Option<usize>,
        prompt_id: Option<String>,
        session: Option<Session>,
        deadline: Option<f64>,
    ) -> PyResult<Self> {
        let extras = Extras {
            top,
            prompt_id,
            session,
            deadline,
        };
        extras.added_to(of_chat(body, shape)?)
    }

    /// The request that `json` wrote.
    #[staticmethod]
    fn from_json(text: &str) -> PyResult<Self> {
        Ok(Self(json::parsed(text, "request")?))
    }

    /// The text to route.
    #[getter]
    fn prompt(&self) -> &str {
        &self.0.prompt
    }

    /// Ranked models of the answer.
    #[getter]
    fn top(&self) -> usize {
        self.0.top
    }

    /// Comes back in the decision.
    #[getter]
    fn prompt_id(&self) -> &str {
        &self.0.prompt_id
    }

    /// Tenant and id of the conversation.
    #[getter]
    fn session(&self) -> Option<(&str, &str)> {
        let session = self.0.session.as_ref()?;
        Some((&session.tenant, &session.id))
    }

    /// Seconds after the call.
    #[getter]
    fn deadline(&self) -> Option<f64> {
        self.0.deadline.map(|deadline| deadline.as_secs_f64())
    }

    /// What of a chat request was taken and left out, and what it demands.
    #[getter]
    fn chat(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0.chat)
    }

    /// As JSON.
    fn json(&self) -> PyResult<String> {
        json::text(&self.0)
    }

    /// As a dict.
    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        json::to_python(py, &self.0)
    }

    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<(Py<PyAny>, (String,))> {
        let make = slf.get_type().getattr("from_json")?.unbind();
        Ok((make, (slf.get().json()?,)))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let request = &slf.get().0;
        let prompt = PyString::new(slf.py(), &request.prompt).repr()?;
        Ok(format!("Request({prompt}, top={})", request.top))
    }
}

/// A request, or its prompt.
pub(crate) struct Asked(Request);

impl<'py> FromPyObject<'_, 'py> for Asked {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(request) = value.cast::<PyRequest>() {
            return Ok(Self(request.get().0.clone()));
        }
        let Ok(prompt) = value.cast::<PyString>() else {
            let found = value.get_type().name()?;
            let text = format!("expected a str or a hubrouter.Request, found {found}");
            return Err(PyTypeError::new_err(text));
        };
        let text = prompt.to_str().map_err(|error| {
            let text = format!("prompt: expected text that can be written in UTF-8: {error}");
            exception(ErrorKind::InvalidRequest, text)
        })?;
        Ok(Self(Request::new(text)))
    }
}

impl Asked {
    /// The request; `top` counts before its own.
    pub(crate) fn request(self, top: Option<usize>) -> Request {
        match top {
            Some(top) => self.0.top(top),
            None => self.0,
        }
    }
}
