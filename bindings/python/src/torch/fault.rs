//! What an operator refuses, and as which exception.

use std::fmt;

/// Why an operator did not run.
#[derive(Debug)]
pub enum Fault {
    /// An argument has another shape or other strides than it may have.
    Shape(String),
    /// An argument has another element type than it may have.
    DType(String),
    /// A number or a name has a value that it may not have.
    Option(String),
    /// What the caller cannot be blamed for.
    Internal(String),
}

impl fmt::Display for Fault {
    /// The exception class in brackets, by which the Python side makes it, and what is wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, text) = match self {
            Fault::Shape(text) => ("ShapeError", text),
            Fault::DType(text) => ("DTypeError", text),
            Fault::Option(text) => ("OptionError", text),
            Fault::Internal(text) => ("InternalError", text),
        };
        write!(f, "[{class}] {text}")
    }
}

/// A result, or why there is none.
pub type Result<T> = std::result::Result<T, Fault>;
