//! Weights that are not all in memory: where they are, a pool of neurons that follows the active set, and what fills it.

mod direct_file;
mod placement;
mod pool;
mod store;

pub use placement::Placement;
pub use pool::{CacheSpec, Load, Pass, Policy, Traffic, WeightCache, ones};
pub use store::{NeuronStore, Places, Reading};
