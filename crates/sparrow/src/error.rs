//! What can go wrong, each with the words that say what to do about it.

use std::path::{Path, PathBuf};

/// Result of every fallible operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong while loading, calibrating or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said; not a `source`, for it is part of the message.
        error: std::io::Error,
    },
    /// A file is something else than its name says, or a link to nothing: what downloads leave behind.
    #[error("{}: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        message: String,
    },
    /// A JSON file is malformed, or one of its fields has a value that cannot be used.
    #[error("{}: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Names the field, what was expected and what was found.
        message: String,
    },
    /// A safetensors file, or the index over several, is malformed.
    #[error("{}: {message}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A GGUF file is malformed, or describes what is not supported.
    #[error("{}: {message}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A tensor is missing, or is not what the configuration calls for.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The file that holds the tensor, or the directory when no file does.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        tensor: String,
        /// Shape or dtype that the configuration calls for.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// The tokenizer could not be loaded, or refused a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat template is malformed, fails, or refuses a conversation.
    #[error("{}: {message}", path.display())]
    Template {
        /// The file that has it.
        path: PathBuf,
        /// Where in the template, and why.
        message: String,
    },
    /// `sparrow.json` does not fit the model beside it.
    #[error("{}: field {field}: {message}", path.display())]
    Sidecar {
        /// The sidecar file.
        path: PathBuf,
        /// The field that does not fit.
        field: &'static str,
        /// Expected and found.
        message: String,
    },
    /// More tokens than the model, or the session, has room for.
    #[error("{needed} tokens do not fit the context of {context}: shorten the prompt or generate fewer tokens")]
    ContextLength {
        /// Tokens asked for.
        needed: usize,
        /// Tokens there is room for.
        context: usize,
    },
    /// The model's numbers became NaN or infinite.
    #[error("the logits after token {token} are not finite: {cause}")]
    NotFinite {
        /// Which token of its sequence, from 1.
        token: usize,
        /// Where they became so, and what to do.
        cause: String,
    },
    /// More memory than there is.
    #[error("{what} need {} of memory, and {} are available: {mend}", megabytes(*needed), megabytes(*available))]
    Memory {
        /// What is to be kept.
        what: String,
        /// Bytes of it.
        needed: u64,
        /// Bytes that there are.
        available: u64,
        /// What takes less.
        mend: &'static str,
    },
    /// An option has a value that cannot be used with this model.
    #[error("{option}: {message}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// Why, and what to use instead.
        message: String,
    },
    /// The model hub could not be used.
    #[error("{0}")]
    Hub(String),
    /// The work was [cancelled](crate::run::Cancel).
    #[error("cancelled")]
    Cancelled,
    /// The process was forked after the model was loaded: its threads are not in the child.
    #[error(
        "this process was forked after its threads were started, and they are not in the child: load the model after the fork"
    )]
    Forked,
}

impl Error {
    #[doc(hidden)]
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |error| Error::Io { path: path.to_owned(), error }
    }

    #[doc(hidden)]
    pub fn config(path: &Path, message: impl Into<String>) -> Error {
        Error::Config { path: path.to_owned(), message: message.into() }
    }

    #[doc(hidden)]
    pub fn safetensors(path: &Path, message: impl Into<String>) -> Error {
        Error::Safetensors { path: path.to_owned(), message: message.into() }
    }

    #[doc(hidden)]
    pub fn gguf(path: &Path, message: impl Into<String>) -> Error {
        Error::Gguf { path: path.to_owned(), message: message.into() }
    }

    #[doc(hidden)]
    pub fn option(option: &'static str, message: impl Into<String>) -> Error {
        Error::Option { option, message: message.into() }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}
