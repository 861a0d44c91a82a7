//! Between text and tokens: tokenizer, text as it comes, stop strings, sampling.

pub mod sample;
mod stop;
mod stream;
mod tokenizer;

pub use stop::StopText;
pub use stream::TextStream;
pub use tokenizer::Tokenizer;
