//! Building a store, and learning into one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hubrouter::learn::{
    Control, Example, Experience, Learner, Outcome, Settings, Status, group_experiences,
    is_feedback, read_examples, read_observed,
};
use hubrouter::{Encoder, ErrorKind, ModelCard, NewModel, Store, read_models};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::errors::{computed, exception, raised};
use crate::json;
use crate::request::seconds;
use crate::router::{bundled_encoder, options};

/// Progress of an update.
#[pyclass(frozen, get_all, module = "hubrouter", name = "Progress")]
pub(crate) struct PyProgress {
    stage: &'static str,
    done: usize,
    total: usize,
    loss: Option<f64>,
    examples_per_second: Option<f64>,
}

#[pymethods]
impl PyProgress {
    fn __repr__(&self) -> String {
        format!(
            "Progress({:?}, {} of {})",
            self.stage, self.done, self.total
        )
    }
}

/// A path, or rows in Python.
enum Source<T> {
    File(PathBuf),
    Rows(Vec<T>),
}

fn source<T: serde::de::DeserializeOwned>(
    value: &Bound<'_, PyAny>,
    name: &str,
) -> PyResult<Source<T>> {
    let is_path = value.cast::<PyString>().is_ok() || value.hasattr("__fspath__")?;
    if is_path {
        return Ok(Source::File(value.extract()?));
    }
    let mut rows = Vec::new();
    for (number, row) in value.try_iter()?.enumerate() {
        let text = json::dumped(&row?)?;
        rows.push(json::parsed(&text, &format!("{name}[{number}]"))?);
    }
    Ok(Source::Rows(rows))
}

fn models(source: Source<ModelCard>) -> hubrouter::Result<Vec<NewModel>> {
    let cards = match source {
        Source::File(path) => read_models(path)?.0,
        Source::Rows(cards) => cards,
    };
    Ok(cards.iter().map(NewModel::from).collect())
}

fn examples(source: Source<Example>, store: &Path) -> hubrouter::Result<Vec<Example>> {
    match source {
        Source::Rows(examples) => Ok(examples),
        Source::File(path) if is_feedback(&path) => {
            let store = Store::open(store)?;
            let hub = store.hub(&store.current()?)?;
            Ok(read_observed(path, &hub)?.examples)
        }
        Source::File(path) => read_examples(path),
    }
}

/// Makes a store of models: rows with `model_name`, `domain`, `description`, or a JSON Lines file
/// of such. Returns the id of its generation.
///
/// >>> import hubrouter, tempfile
/// >>> folder = tempfile.mkdtemp() + "/store"
/// >>> models = [
/// ...     {"model_name": "acme/ner", "domain": "Text", "description": "Finds names."},
/// ...     {"model_name": "acme/cats", "domain": "Images", "description": "Finds cats."},
/// ... ]
/// >>> generation = hubrouter.build(folder, models, device="cpu")
/// >>> hubrouter.Router(folder, device="cpu").route("Who is named in this letter?").model
/// 'acme/ner'
#[pyfunction]
#[pyo3(signature = (
    store, models, *, encoder=None, device="auto", threads=None, progress=None
))]
pub(crate) fn build(
    py: Python<'_>,
    store: PathBuf,
    models: &Bound<'_, PyAny>,
    encoder: Option<PathBuf>,
    device: &str,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let cards = source(models, "models")?;
    let options = options(py, device, threads)?;
    let encoder = match encoder {
        Some(encoder) => encoder,
        None => bundled_encoder(py)?,
    };
    let mut failed = None;
    let id = computed(py, || {
        let models = self::models(cards)?;
        let encoder = Arc::new(Encoder::open(encoder, &options)?);
        let made_by = "hubrouter.build";
        Store::create(store)?.build(&encoder, &models, made_by, &mut |done, total| {
            let stage = "encoding cards";
            let (loss, examples_per_second) = (None, None);
            let step = PyProgress {
                stage,
                done,
                total,
                loss,
                examples_per_second,
            };
            // It cannot be stopped; the first exception is raised at the end.
            if failed.is_none() {
                failed = told(progress.as_ref(), step).err();
            }
        })
    })?;
    match failed {
        Some(error) => Err(error),
        None => Ok(id.to_string()),
    }
}

/// Tells the callback about a step. False if it answers `False`.
fn told(progress: Option<&Py<PyAny>>, step: PyProgress) -> PyResult<bool> {
    Python::attach(|py| {
        py.check_signals()?;
        let Some(progress) = progress else {
            return Ok(true);
        };
        let answer = progress.call1(py, (step,))?;
        Ok(!answer.bind(py).is(pyo3::types::PyBool::new(py, false)))
    })
}

fn progress_of(status: &Status) -> PyProgress {
    PyProgress {
        stage: status.stage,
        done: status.done,
        total: status.total,
        loss: status.loss,
        examples_per_second: status.examples_per_second,
    }
}

/// Learns labelled prompts and new models into a new generation of a store, and publishes it.
///
/// `examples`: rows with `instruction` and `model_name` (`domain` is optional), a JSON Lines file
/// of such, or a log of feedback. `budget` is in seconds. `progress` is called with a Progress
/// after each step; if it returns False, or at Ctrl-C, the update stops at the next step, and the
/// same call goes on from there. Returns the report as `hubrouter learn --json` prints it, or None
/// if it was stopped. An update that the gate refuses has `refused` and is kept beside the current
/// generation.
#[pyfunction]
#[pyo3(signature = (
    store, examples, *, models=None, recipe="edge", settings=None, max_forgetting=None, budget=None,
    out=None, allow_unmeasured=false, introduce=false, dry_run=false, device="auto", threads=None,
    progress=None
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments")]
pub(crate) fn learn(
    py: Python<'_>,
    store: PathBuf,
    examples: &Bound<'_, PyAny>,
    models: Option<&Bound<'_, PyAny>>,
    recipe: &str,
    settings: Option<&Bound<'_, PyDict>>,
    max_forgetting: Option<f64>,
    budget: Option<f64>,
    out: Option<PathBuf>,
    allow_unmeasured: bool,
    introduce: bool,
    dry_run: bool,
    device: &str,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Option<Py<PyAny>>> {
    let examples = source(examples, "examples")?;
    let models = match models {
        Some(models) => source(models, "models")?,
        None => Source::Rows(Vec::new()),
    };
    let settings = settings_of(recipe, settings)?;
    let budget: Option<Duration> = budget.map(seconds).transpose()?;
    let options = options(py, device, threads)?;
    if max_forgetting.is_some_and(f64::is_nan) {
        let text = "max_forgetting: expected a number of points, found NaN";
        return Err(exception(ErrorKind::InvalidRequest, text.to_owned()));
    }
    let (experience, experiences) = computed(py, || {
        let mut groups = group_experiences(self::examples(examples, &store)?)?;
        let models = self::models(models)?;
        let experiences = groups.len();
        let examples = groups.pop().unwrap_or_default();
        Ok((Experience { models, examples }, experiences))
    })?;
    if experiences > 1 {
        let text = format!(
            "examples: expected one experience, found {experiences}: learn them one after the other"
        );
        return Err(exception(ErrorKind::InvalidRequest, text));
    }
    let mut learner = computed(py, || {
        let mut learner = Learner::open(&store, None, settings, options)?
            .recipe(recipe)
            .introduce(introduce)
            .allow_unmeasured(allow_unmeasured);
        if let Some(points) = max_forgetting {
            learner = learner.max_forgetting(points);
        }
        if dry_run {
            return Ok(learner.dry_run());
        }
        let learner = match out {
            Some(out) => learner.into_store(out)?,
            None => learner,
        };
        learner.check_writable()?;
        Ok(learner)
    })?;
    let mut failed = None;
    let outcome = computed(py, || {
        learner.learn(&experience, budget, &mut |status| {
            let going = failed.is_none()
                && told(progress.as_ref(), progress_of(status)).unwrap_or_else(|error| {
                    failed = Some(error);
                    false
                });
            match going {
                true => Control::Continue,
                false => Control::Stop,
            }
        })
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let Outcome::Learned(mut report) = outcome else {
        return Ok(None);
    };
    match (dry_run, report.refused) {
        (true, _) => {}
        (false, false) => report.generation = Some(computed(py, || learner.commit())?),
        (false, true) => report.kept_beside = Some(computed(py, || learner.keep_beside())?),
    }
    json::to_python(py, &*report).map(Some)
}

/// The settings of a recipe with these changes.
fn settings_of(recipe: &str, changes: Option<&Bound<'_, PyDict>>) -> PyResult<Settings> {
    let mut settings = Settings::recipe(recipe).map_err(|error| raised(&error))?;
    let Some(changes) = changes else {
        return Ok(settings);
    };
    for (key, value) in changes {
        let key: String = key.extract()?;
        // A text as it is, a number or a truth value as in JSON.
        let value = json::dumped(&value)?;
        settings.set(&key, &value).map_err(|error| raised(&error))?;
    }
    Ok(settings)
}
