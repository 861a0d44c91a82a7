//! A model at work: sequences, the steps that advance them, and the forward pass.

mod cancel;
mod forward;
mod layers;
mod sequence;
mod session;
mod step;

pub use cancel::Cancel;
pub use layers::{After, LayerStream, Run};
pub use sequence::SequenceStats;
pub use session::{LOGIT_ROWS, PREFILL_ROWS, Session, SessionOptions, check_ids};
pub use step::{Logits, Segment};
