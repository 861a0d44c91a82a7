//! Between text and tokens: tokenizer, text as it comes, stop strings, sampling.

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
pub use tokenizer::Tokenizer;
pub use written::Written;
