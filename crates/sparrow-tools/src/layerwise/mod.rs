//! What pruning and quantising share: one walk through the layers, each changed by what the changed layers before it make of a text,
//! written to a file of its own, and gone on from where a run was interrupted.

mod feedback;
mod hessian;
mod inputs;
mod journal;
mod matrices;
mod quality;
mod record;
mod shards;
mod stage;
mod walk;

pub(crate) use feedback::{feed_back, make_up};
pub(crate) use hessian::Hessian;
pub(crate) use inputs::{Kept, LayerInputs};
pub(crate) use journal::Journal;
pub(crate) use matrices::{Choice, Input, LayerMatrix, choose, layer_matrices};
pub use quality::MeasuredQuality;
pub(crate) use record::read_record;
pub(crate) use shards::{NewTensor, Replaced, Shards};
pub use stage::{Progress, Stage};
pub(crate) use walk::{Walk, dense};
