//! Work on several threads: the pool, memory that its tasks use again, and slices that they write together.

mod fork;
mod pool;
mod scratch;
mod shared_mut;
mod start;
mod workers;

pub use pool::Pool;
pub(crate) use scratch::{AlignedBuffer, Buffer, Scratch};
pub(crate) use shared_mut::SharedMut;
pub use start::start_thread;
pub(crate) use workers::Workers;
