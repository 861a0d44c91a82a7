//! What is read of a model's directory, and what is refused.

mod compressed;
mod configs;
mod fuzz;
mod gguf;
mod malformed;
mod wild;
