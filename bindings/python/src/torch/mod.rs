//! Operators on torch tensors, `torch.ops.sparrow.*`: no copy of a weight, no C++, no link to torch.
//!
//! | file | purpose |
//! |---|---|
//! | `fault` | what an operator refuses, and as which exception |
//! | `scalar_type` | torch's element types |
//! | `shim` | torch's stable C interface: all `unsafe` |
//! | `machine` | the kernels and threads that all operators share |
//! | `argument` | checks that name the argument |
//! | `floats` | between torch's floats and `f32` |
//! | `ops` | the operators |

mod argument;
mod fault;
mod floats;
mod machine;
mod ops;
mod scalar_type;
mod shim;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// Registers the operators with the torch whose `libtorch_cpu.so` is loaded from `path`; once is enough.
#[pyfunction]
pub fn register_operators(path: &str) -> PyResult<()> {
    shim::register(path, ops::ALL).map_err(PyRuntimeError::new_err)
}

/// The number of threads that operators compute on.
#[pyfunction]
pub fn operator_threads() -> PyResult<usize> {
    machine::threads().map_err(|fault| PyRuntimeError::new_err(fault.to_string()))
}

/// Sets it.
#[pyfunction]
pub fn set_operator_threads(threads: usize) -> PyResult<()> {
    if threads == 0 {
        return Err(PyValueError::new_err("[OptionError] threads: expected at least 1, found 0"));
    }
    machine::set_threads(threads);
    Ok(())
}
