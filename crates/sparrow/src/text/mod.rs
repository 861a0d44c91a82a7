//! Between text and tokens: tokenizer, text as it comes, stop strings, sampling, chat templates.

pub mod chat;
mod declared;
mod decoder;
mod pieces;
mod quiet;
pub mod sample;
mod stop;
mod stream;
mod tokenizer;
mod written;

pub use stream::TextStream;
pub use tokenizer::{AddedToken, Tokenizer};
pub use written::Written;
