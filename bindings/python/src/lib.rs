//! The compiled part of the Python package `sparrow_llm`: the engine of `sparrow`, and operators on torch tensors.
//!
//! | file | purpose |
//! |---|---|
//! | `errors` | the library's errors as the exceptions of `sparrow_llm.errors` |
//! | `guard` | work without the interpreter's lock: panics, signals, callbacks, forks |
//! | `options` | strings and keyword arguments to options of the library |
//! | `model` | a loaded model and its tokenizer |
//! | `session` | sequences that the caller advances |
//! | `engine` | requests that are served together |
//! | `tools` | sparsify, prune, evaluate |
//! | `torch` | operators on torch tensors |

use pyo3::prelude::*;

mod engine;
mod errors;
mod guard;
mod model;
mod options;
mod session;
mod tools;
mod torch;

/// What `sparrow_llm` is built on; private to it.
#[pymodule]
mod _native {
    use super::*;

    #[pymodule_export]
    use super::engine::{Engine, Outcome, Token};
    #[pymodule_export]
    use super::model::{Model, default_threads, isa};
    #[pymodule_export]
    use super::session::Session;
    #[pymodule_export]
    use super::tools::{evaluate, prune, quantize, sparsify};
    #[pymodule_export]
    use super::torch::{operator_threads, register_operators, set_operator_threads};

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        m.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
