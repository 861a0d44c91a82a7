//! Sparse language-model inference: load a Hugging Face directory, run it dense or sparse, and know what it cost.
//!
//! The way in: [`Load`] opens a model, [`Loaded::engine`] serves requests with it, [`Loaded::session`] runs single steps.
//!
//! ```no_run
//! use sparrow::engine::{EngineOptions, Event, Request};
//! use sparrow::{KvOptions, Load};
//!
//! let loaded = Load::new("DIR").open(|_, _, _| ())?;
//! let prompt = loaded.tokenizer()?.encode("Once upon a time", true)?;
//! let mut engine = loaded.engine(KvOptions::default(), EngineOptions::default())?;
//! engine.submit(Request { prompt, max_new_tokens: 64, ..Request::default() })?;
//! for event in engine.events() {
//!     match event? {
//!         Event::Token { text, .. } | Event::Finished { text, .. } => print!("{text}"),
//!     }
//! }
//! # Ok::<(), sparrow::Error>(())
//! ```
//!
//! The forward pass is `run/forward.rs`, one page; which neurons a token needs is decided in `select/`, a file for each way; the
//! arithmetic is in the crate `sparrow-kernels`. The folders are floors: each imports only those listed before it.
#![deny(unsafe_code)]

mod error;

// The floors, lowest first: each imports only those above it in this list, which `tests/it/architecture` checks.

// What an architecture is, as data.
mod spec;

// Bytes with a shape: dense, bitmap.
mod tensor;

// Tensors by role: attention, MLP.
mod weights;

// Files and tensors: safetensors, config.json, the hub.
mod checkpoint;

// Weights that are not in memory: pool, store, placement.
mod residency;

// The operations of a layer, and who does them.
mod backend;

// What a token needs: a file for each selector.
mod select;

// sparrow.json, as plain data.
mod record;

// A loaded model.
mod model;

// Sessions, steps and the forward pass.
mod run;

// Tokenizer, stop strings, sampling, chat templates.
mod text;

// Requests in, events out.
pub mod engine;

// The one way to open a model.
mod load;

/// What a [`Session`] is asked for and says: segments of a step, whose logits are wanted, cancelling, figures of a sequence.
pub mod session {
    pub use crate::run::{Cancel, Logits, Segment, SequenceStats};
}

#[doc(hidden)]
pub mod internals;

pub use backend::{Backend, Cpu, KvOptions, KvSparsity};
pub use error::{Error, Result};
pub use load::{Load, LoadStage, Loaded};
pub use model::Model;
pub use residency::Placement;
pub use run::{Session, SessionOptions};
pub use select::{Selector, SelectorSpec};
pub use sparrow_kernels::DType;
pub use text::Tokenizer;
pub use weights::WeightsFormat;
