//! The compiled part of the Python package `sparrow_llm`: the engine of `sparrow`, and operators on torch tensors.

use pyo3::prelude::*;

mod torch;

/// What `sparrow_llm` is built on; private to it.
#[pymodule]
mod _native {
    use super::*;

    #[pymodule_export]
    use super::torch::{operator_threads, register_operators, set_operator_threads};

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        m.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
