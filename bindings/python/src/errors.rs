//! The library's errors as exceptions: a class of `sparrow_llm.errors` for each variant.

use pyo3::prelude::*;
use sparrow::Error;

/// The exception that an error is.
pub fn exception(error: Error) -> PyErr {
    named(class(&error), error.to_string())
}

/// The exception of `sparrow_llm.errors` with this name.
pub fn named(class: &str, message: impl Into<String>) -> PyErr {
    let message = message.into();
    Python::attach(|py| {
        let made = py.import("sparrow_llm.errors").and_then(|errors| errors.getattr(class)?.call1((message,)));
        made.map_or_else(|failure| failure, PyErr::from_value)
    })
}

/// An option that has a value it cannot have.
pub fn option(option: &str, message: impl std::fmt::Display) -> PyErr {
    named("OptionError", format!("{option}: {message}"))
}

fn class(error: &Error) -> &'static str {
    match error {
        Error::Io { .. } => "FileError",
        Error::Damaged { .. } => "DamagedFileError",
        Error::Config { .. } => "ConfigError",
        Error::Safetensors { .. } => "SafetensorsError",
        Error::Gguf { .. } => "GgufError",
        Error::Tensor { .. } => "TensorError",
        Error::Tokenizer(_) => "TokenizerError",
        Error::Template { .. } => "TemplateError",
        Error::Sidecar { .. } => "SidecarError",
        Error::ContextLength { .. } => "ContextLengthError",
        Error::NotFinite { .. } => "NotFiniteError",
        Error::Memory { .. } => "OutOfMemoryError",
        Error::Option { .. } => "OptionError",
        Error::Hub(_) => "HubError",
        Error::Cancelled => "Cancelled",
        Error::Forked => "ForkError",
        _ => "SparrowError",
    }
}
