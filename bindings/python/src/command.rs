//! The command `hubrouter`, for `python -m hubrouter`.

use std::ffi::OsString;
use std::process::ExitCode;

use pyo3::prelude::*;

use crate::errors::unlocked;

/// Runs the command. `arguments` begin with the program's name. Once in a process.
#[pyfunction]
pub(crate) fn run_command(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<u8> {
    let code = unlocked(py, || hubrouter::cli::run(arguments))?;
    let same = |number: &u8| ExitCode::from(*number) == code;
    Ok((0..=u8::MAX).find(same).unwrap_or(1))
}
