//! What makes and measures models: everything that no running engine needs.
//!
//! | what | how |
//! |---|---|
//! | [`sparsify::sparsify`] | calibrate a selector on a text, and write a directory that runs sparse |
//! | [`prune::prune`] | set weights to zero: magnitude, Wanda, SparseGPT |
//! | [`quantize::quantize`] | round weights to 4 or 8 bits: RTN, GPTQ, AWQ |
//! | [`tune::Tuning`] | measure ways of running a model, and write the one that was chosen |
//! | [`convert::convert`] | write a GGUF file as a Hugging Face directory |
//! | [`pack::pack`] | write pruned matrices as bitmaps |
//! | [`answers::Questions`] | how often a model's most likely tokens are a known answer |
//! | [`eval::evaluate`] | perplexity, KL divergence and agreement against a reference |
//! | [`text`] | the tokens of a text, in windows |
//! | [`traffic::weight_bytes_per_token`] | what decoding a token reads |
//! | [`shapes`], [`synth::synthesize`] | models of known shapes with random weights |
#![deny(unsafe_code)]

pub mod answers;
pub mod calibrate;
pub mod convert;
pub mod eval;
mod layerwise;
mod named;
pub mod observe;
pub mod pack;
pub mod prune;
pub mod quantize;
pub mod shapes;
pub mod sparsify;
pub mod synth;
pub mod text;
pub mod traffic;
pub mod tune;
