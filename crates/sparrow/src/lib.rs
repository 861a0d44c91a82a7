//! Sparse language-model inference: load a Hugging Face directory, run it dense or sparse, and measure what it cost.
//!
//! The way in: [`Model::load`] → [`Model::prepare`] a selector → [`Session::new`] → [`generate`](generate::generate).
//! The forward pass is `model/forward.rs`, one page; which neurons a token needs is decided in `sparsity/selector.rs`;
//! the arithmetic is in the crate `sparrow-kernels`.
#![deny(unsafe_code)]

pub mod backend;
pub mod checkpoint;
pub mod engine;
mod error;
pub mod eval;
pub mod generate;
pub mod model;
pub mod pack;
pub mod prune;
pub mod sample;
pub mod shapes;
pub mod sparsify;
pub mod sparsity;
pub mod synth;
mod text;
pub mod tokenizer;

pub use backend::Cpu;
pub use checkpoint::hub::resolve as resolve_model;
pub use error::{Error, Result};
pub use model::format::WeightsFormat;
pub use model::spec::ModelSpec;
pub use model::{KvOptions, KvSparsity, Model, Session, SessionOptions};
pub use sparrow_kernels::DType;
pub use sparsity::SelectorSpec;
pub use tokenizer::Tokenizer;
